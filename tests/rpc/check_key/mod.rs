mod frames;
mod input;
mod limits;
pub(crate) mod operation_id;
mod restrictions;
pub(crate) mod verdicts;

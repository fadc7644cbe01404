mod frames;
mod input;
mod limits;
mod restrictions;
pub(crate) mod verdicts;

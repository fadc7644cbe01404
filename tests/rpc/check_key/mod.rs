mod input;
mod limits;
mod restrictions;
mod verdicts;

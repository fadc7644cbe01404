mod limits;
mod restrictions;
mod verdicts;

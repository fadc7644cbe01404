//! What the process tells about itself: logs, metrics, and whether it is ready.

pub mod log;
pub mod metrics;
mod readiness;

pub use readiness::{Condition, Conditions, Readiness};

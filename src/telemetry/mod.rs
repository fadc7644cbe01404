//! What the process tells about itself: logs, metrics, and whether it is ready.

pub mod metrics;

//! How callers reach the engine. What is specific to a protocol stays in here.

pub mod http;
pub mod server;

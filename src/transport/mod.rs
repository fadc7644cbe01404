//! How callers reach the engine. What is specific to a protocol stays in here.

pub mod grpc;
pub mod http;
mod listen;
pub mod server;

pub use listen::ListenError;

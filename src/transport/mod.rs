//! How callers reach the engine. What is specific to a protocol stays in here.

pub mod edge;
pub mod grpc;
pub mod http;
pub mod http_check;
mod listen;
mod request_id;
pub mod server;
mod verdict;

pub use listen::ListenError;
pub use verdict::HttpStatuses;

//! What a server is told, and why it may fail to start.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::tls::TlsError;
use crate::transport::ListenError;

/// Bounds and times of a server. The defaults suit a service whose callers are few, trusted, and call often.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen; port 0 lets the system choose. An unspecified IPv6 address takes IPv4 as well.
    pub addr: SocketAddr,
    /// Threads that serve; as many as the machine has cores, by default.
    pub workers: usize,
    /// Connections open at once. One more is closed as soon as it is accepted.
    pub connections_max: usize,
    /// Streams open at once on one connection. A client that wants more waits, or opens a second connection.
    pub streams_per_connection_max: u32,
    /// Requests under way at once, over all connections, beyond which one more is answered `RESOURCE_EXHAUSTED`.
    /// A request of a hot class counts only while it waits for something. One whose answer is a stream counts until the
    /// stream begins.
    pub in_flight_max: usize,
    /// Time from a request's arrival to the head of its answer; then it is dropped, and answered `DEADLINE_EXCEEDED`.
    /// A caller's shorter `grpc-timeout` takes its place. Whatever must not stop half-way has to be a task of its own.
    pub request_timeout: Duration,
    /// The same for requests of the class [`RequestClass::Long`].
    pub long_request_timeout: Duration,
    /// What requests of the class [`RequestClass::Awaited`] have beyond `request_timeout`.
    pub await_timeout: Duration,
    /// The class of a request, by its path, as in `/tollgate.v1.KeyService/CheckKey`. It is called for every request.
    pub classify: fn(&str) -> RequestClass,
    /// Time until the HTTP/2 preface must be complete, from the accept or the end of the TLS handshake.
    pub first_byte_timeout: Duration,
    /// Time that a TLS handshake may take.
    pub tls_handshake_timeout: Duration,
    /// A connection that was silent for this long is pinged.
    pub keepalive_interval: Duration,
    /// A ping that is not answered within this closes the connection.
    pub keepalive_timeout: Duration,
    /// A connection that is this old, give or take a tenth, is told to go (GOAWAY), so that clients spread over new
    /// replicas and follow DNS. Absent: it may stay.
    pub connection_age_max: Option<Duration>,
    /// Time that such a connection has to finish its requests; then it is cut.
    pub connection_age_grace: Duration,
    /// Time that the shutdown waits for requests under way.
    pub drain_timeout: Duration,
    /// Bytes of a request's headers, as HTTP/2 counts them (RFC 9113, section 6.5.2).
    pub header_list_bytes_max: u32,
    /// TLS with these files; absent, the port speaks plain text.
    pub tls: Option<TlsFiles>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 50051)),
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            connections_max: 10_000,
            streams_per_connection_max: 256,
            in_flight_max: 4_096,
            request_timeout: Duration::from_secs(10),
            long_request_timeout: Duration::from_mins(10),
            await_timeout: Duration::ZERO,
            classify: |_| RequestClass::Ordinary,
            first_byte_timeout: Duration::from_secs(5),
            tls_handshake_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_mins(1),
            keepalive_timeout: Duration::from_secs(20),
            connection_age_max: None,
            connection_age_grace: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(25),
            header_list_bytes_max: 16 * 1024,
            tls: None,
        }
    }
}

/// How a request is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Answered from memory as a rule, and safe to drop at any point: its first step runs before anything is counted
    /// or timed, and mostly that is all of it.
    Hot,
    /// Counted before it begins, and given `request_timeout`.
    Ordinary,
    /// Counted before it begins, and given `request_timeout` and `await_timeout`: it waits for other processes.
    Awaited,
    /// Counted before it begins, and given `long_request_timeout`: uploads.
    Long,
}

/// Files for TLS, in PEM. They are looked at every ten seconds; a changed set is used for connections to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by those of its issuers.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Issuers of the certificates that clients must show; absent, clients show none.
    pub client_ca: Option<PathBuf>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The TLS files can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system gave no thread, or none with an event loop.
    #[error("cannot start a thread of the server: {0}")]
    Thread(io::Error),
}

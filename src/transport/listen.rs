//! Listening on a port, and accepting whatever the system throws in between.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

/// Connections that the system completes before they are accepted.
const BACKLOG: i32 = 1_024;

/// How long to wait after the system failed to accept, for want of file descriptors for instance: trying again at once
/// would only burn the time that could free some.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("the address `{0}` is in use by another process")]
    InUse(SocketAddr),
    /// Any other reason.
    #[error("cannot listen on `{addr}`: {source}")]
    Other {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on an address, alone. An unspecified IPv6 address takes IPv4 as well.
pub(super) fn bind(addr: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // Connections of an earlier process that linger do not bar a restart. A listener still does.
        socket.set_reuse_address(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|source: io::Error| {
        if source.kind() == io::ErrorKind::AddrInUse {
            ListenError::InUse(addr)
        } else {
            ListenError::Other { addr, source }
        }
    })
}

/// A listener that never fails for good.
#[derive(Debug)]
pub(super) struct Listener {
    inner: tokio::net::TcpListener,
    back_off: Duration,
}

impl Listener {
    /// Inside the runtime that is to accept.
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self { inner: tokio::net::TcpListener::from_std(listener)?, back_off: BACK_OFF_MIN })
    }

    /// The next connection. Where the system can't accept one, calls `failed` and tries again after a while. Dropping
    /// the future loses no connection.
    pub(super) async fn accept(&mut self, failed: impl Fn()) -> (TcpStream, SocketAddr) {
        loop {
            match self.inner.accept().await {
                Ok(accepted) => {
                    self.back_off = BACK_OFF_MIN;
                    return accepted;
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    failed();
                    if self.back_off == BACK_OFF_MIN {
                        tracing::warn!(%error, "cannot accept connections; trying again until it works");
                    }
                    let wait = self.back_off;
                    self.back_off = (wait * 2).min(BACK_OFF_MAX);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// Whether the connection broke before it was accepted, which says nothing of the next (accept(2)).
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

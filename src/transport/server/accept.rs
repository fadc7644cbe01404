//! The listener, and who serves what it accepts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{MissedTickBehavior, interval};

use super::worker::Queue;
use super::{Shared, StartError};
use crate::telemetry::metrics::Refusal;

/// Connections that the system completes before they are accepted.
const BACKLOG: i32 = 1_024;

/// How long to wait after the system failed to accept, for want of file descriptors for instance: trying again at once
/// would only burn the time that could free some.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

const TLS_CHECK_PERIOD: Duration = Duration::from_secs(10);

/// Listens on an address, alone.
pub(super) fn bind(addr: SocketAddr) -> Result<TcpListener, StartError> {
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
    listen().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse(addr),
        _ => StartError::Bind { addr, source },
    })
}

/// Accepts connections and hands them out.
#[derive(Debug)]
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    workers: Vec<Queue>,
    /// Whether the last connection was one too many; the state is logged when it begins.
    full: bool,
}

impl Acceptor {
    pub(super) fn new(shared: Arc<Shared>, workers: Vec<Queue>) -> Self {
        Self { shared, workers, full: false }
    }

    /// Accepts until the server ends. The workers know by their queues' end.
    pub(super) async fn run(mut self, listener: TcpListener) {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot watch the listener");
                return;
            }
        };
        let mut tls_check = interval(TLS_CHECK_PERIOD);
        tls_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        let mut back_off = BACK_OFF_MIN;
        loop {
            tokio::select! {
                biased;
                () = shared.draining.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, remote)) => {
                        back_off = BACK_OFF_MIN;
                        self.hand_out(stream, remote);
                    }
                    Err(error) if is_of_the_peer(&error) => {}
                    Err(error) => {
                        shared.metrics.refused(Refusal::Accept);
                        if back_off == BACK_OFF_MIN {
                            tracing::warn!(%error, "cannot accept connections; trying again until it works");
                        }
                        tokio::select! {
                            () = shared.draining.cancelled() => return,
                            () = tokio::time::sleep(back_off) => {}
                        }
                        back_off = (back_off * 2).min(BACK_OFF_MAX);
                    }
                },
                _ = tls_check.tick() => {
                    if let Some(tls) = &shared.tls {
                        tls.reload_if_changed();
                    }
                }
            }
        }
    }

    fn hand_out(&mut self, stream: tokio::net::TcpStream, remote: SocketAddr) {
        let open: usize = self.workers.iter().map(Queue::open).sum();
        if open >= self.shared.options.connections_max {
            self.shared.metrics.refused(Refusal::ConnectionsMax);
            if !self.full {
                tracing::warn!(connections_max = open, "closing new connections: as many are open as may be");
            }
            self.full = true;
            return;
        }
        self.full = false;
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.open()) else { return };
        // Small answers must not wait for the acknowledgement of the one before.
        let handed = stream.set_nodelay(true).and_then(|()| stream.into_std());
        let taken = match handed {
            Ok(stream) => worker.push(&self.shared, stream, remote),
            // It was closed already.
            Err(_) => return,
        };
        if !taken {
            self.shared.metrics.refused(Refusal::Accept);
            tracing::warn!("closed a new connection: its worker is behind with others");
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

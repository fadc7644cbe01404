//! Who serves what the listener accepts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use super::Shared;
use super::worker::Queue;
use crate::telemetry::metrics::Refusal;
use crate::transport::listen::Listener;

const TLS_CHECK_PERIOD: Duration = Duration::from_secs(10);

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
    pub(super) async fn run(mut self, listener: std::net::TcpListener) {
        let mut listener = match Listener::new(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot watch the listener");
                return;
            }
        };
        let mut tls_check = interval(TLS_CHECK_PERIOD);
        tls_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        let failed = || shared.metrics.refused(Refusal::Accept);
        loop {
            tokio::select! {
                biased;
                () = shared.draining.cancelled() => return,
                _ = tls_check.tick() => {
                    if let Some(tls) = &shared.tls {
                        tls.reload_if_changed();
                    }
                }
                (stream, remote) = listener.accept(failed) => self.hand_out(stream, remote),
            }
        }
    }

    fn hand_out(&mut self, stream: TcpStream, remote: SocketAddr) {
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
        // Small answers must not wait for the acknowledgement of the one before. Fails where the peer has gone.
        let Ok(stream) = stream.set_nodelay(true).and_then(|()| stream.into_std()) else { return };
        if !worker.push(&self.shared, stream, remote) {
            self.shared.metrics.refused(Refusal::Accept);
            tracing::warn!("closed a new connection: its worker is behind with others");
        }
    }
}

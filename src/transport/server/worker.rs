//! A worker: one thread that serves its share of the connections.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::{Service, Shared, connection};

/// Connections that may wait for a worker to take them up; it does so at its next turn.
const QUEUE_MAX: usize = 1_024;

/// A connection on its way to a worker.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) remote: SocketAddr,
    pub(super) place: ConnectionPlace,
}

/// Counts a connection as open, at its worker and in all, until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    shared: Arc<Shared>,
    open: Arc<AtomicUsize>,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        self.shared.metrics.connections.dec();
    }
}

/// The acceptor's end of a worker.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

/// A way to hand connections to a worker.
pub(super) fn queue() -> (Queue, mpsc::Receiver<Accepted>) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (Queue { sender, open: Arc::default() }, receiver)
}

impl Queue {
    /// Connections that this worker has or will have.
    pub(super) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Hands it a connection, unless too many wait already. Only the acceptor does, so the counts are exact.
    pub(super) fn push(&self, shared: &Arc<Shared>, stream: TcpStream, remote: SocketAddr) -> bool {
        self.open.fetch_add(1, Relaxed);
        shared.metrics.connections.inc();
        let place = ConnectionPlace { shared: Arc::clone(shared), open: Arc::clone(&self.open) };
        self.sender.try_send(Accepted { stream, remote, place }).is_ok()
    }
}

/// Serves connections until the acceptor ends, then lets those that are open end.
pub(super) async fn run<S: Service>(shared: Arc<Shared>, mut accepted: mpsc::Receiver<Accepted>, service: S) {
    let http = connection::http(&shared.options);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            next = accepted.recv() => match next {
                Some(next) => {
                    let (shared, http, service) = (Arc::clone(&shared), http.clone(), service.clone());
                    connections.spawn(connection::serve(shared, http, service, next));
                }
                None => break,
            },
            Some(ended) = connections.join_next() => report(ended),
        }
    }
    let all_ended = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(shared.options.drain_timeout, all_ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            drain_timeout = ?shared.options.drain_timeout,
            "cut connections that had not ended by the end of the drain"
        );
        connections.shutdown().await;
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection ended by a panic");
    }
}

//! Serves one gRPC service over HTTP/2, with and without TLS.
//!
//! This stands in for `tonic::transport::Server`, for two reasons. It is faster: every worker is a thread with a
//! current-thread runtime of its own, on which a connection stays for life, so that many answers leave in one write
//! and the workers share nothing. And it is bounded where tonic is not: connections, requests under way, the time to a
//! first byte, a TLS handshake, a request, a connection's age, and the drain at the end.
//!
//! One listener hands each connection to the worker that holds the fewest. Listeners of each worker's own
//! (`SO_REUSEPORT`) would spread connections by a hash, which leaves workers idle where clients are few and their
//! connections long-lived, and would let a second process take the port unnoticed.
//!
//! A connection's way: `accept` (the cap, the choice of a worker), `connection` (TLS, the preface, its age, its end),
//! and for each request `request` (shedding, the deadline), then the service.

mod accept;
mod connection;
mod options;
mod peer;
mod preface;
mod request;
mod tls;
mod worker;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use options::{RequestClass, ServerOptions, StartError, TlsFiles};
pub use peer::{ClientCertificate, PeerInfo};
pub use tls::TlsError;

use crate::telemetry::metrics::Metrics;
use crate::transport::listen;

/// What can be served: a tonic service, or anything that answers in its form. It is cloned for each request, so a clone
/// should cost no more than a reference count that no other worker touches.
pub trait Service:
    tower::Service<
        ::http::Request<hyper::body::Incoming>,
        Response = ::http::Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S> Service for S where
    S: tower::Service<
            ::http::Request<hyper::body::Incoming>,
            Response = ::http::Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// What the threads of one server share.
#[derive(Debug)]
struct Shared {
    options: ServerOptions,
    metrics: Arc<Metrics>,
    tls: Option<tls::Tls>,
    /// Requests that count against `in_flight_max`.
    in_flight: AtomicUsize,
    /// Cancelled when the server shall end.
    draining: CancellationToken,
}

/// Starts to serve, on threads of its own. `service` is called once on each worker's thread, inside its runtime.
pub fn start<S: Service>(
    options: ServerOptions,
    metrics: Arc<Metrics>,
    service: impl Fn() -> S + Clone + Send + 'static,
) -> Result<ServerHandle, StartError> {
    let tls = options.tls.clone().map(tls::Tls::load).transpose()?;
    let listener = listen::bind(options.addr)?;
    let local_addr = listener.local_addr().map_err(StartError::Thread)?;
    let workers = options.workers.max(1);
    let draining = CancellationToken::new();
    let guard = draining.clone().drop_guard();
    let shared = Arc::new(Shared { options, metrics, tls, in_flight: AtomicUsize::new(0), draining });

    let mut threads = Vec::with_capacity(workers + 1);
    let mut queues = Vec::with_capacity(workers);
    for number in 0..workers {
        let (queue, connections) = worker::queue();
        let (shared, service) = (Arc::clone(&shared), service.clone());
        queues.push(queue);
        threads.push(Thread::spawn(format!("tollgate-{number}"), move || worker::run(shared, connections, service()))?);
    }
    let acceptor = accept::Acceptor::new(Arc::clone(&shared), queues);
    threads.push(Thread::spawn("tollgate-accept".to_owned(), move || acceptor.run(listener))?);
    Ok(ServerHandle { local_addr, shared, threads, _draining: guard })
}

/// A server that runs. Dropping it without [`shutdown`](Self::shutdown) starts the shutdown and does not wait for it.
#[derive(Debug)]
pub struct ServerHandle {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    _draining: DropGuard,
}

impl ServerHandle {
    /// The address that is listened on, with the port that the system chose where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Reads the TLS files again, for connections to come. Where they can't be used, the old ones stay. Without TLS
    /// there is nothing to do.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.shared.tls.as_ref().map_or(Ok(()), tls::Tls::reload)
    }

    /// Ends the server in order: the listener closes, every connection is told to go (GOAWAY) and finishes the requests
    /// that it has, for `drain_timeout` at most; what is left then is cut. Callers should be led away first, by health
    /// checks that say `NOT_SERVING` for a moment.
    pub async fn shutdown(mut self) {
        self.shared.draining.cancel();
        for thread in std::mem::take(&mut self.threads) {
            thread.join().await;
        }
    }
}

/// A thread with a runtime of its own.
#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    done: oneshot::Receiver<Infallible>,
}

impl Thread {
    /// Runs, on a new thread, the future that `body` makes there.
    fn spawn<F: Future<Output = ()>>(
        name: String,
        body: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let (alive, done) = oneshot::channel();
        let handle = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                runtime.block_on(async { body().await });
                // This drops what still runs on it.
                drop(runtime);
                drop(alive);
            })
            .map_err(StartError::Thread)?;
        Ok(Self { handle, done })
    }

    /// Waits for its end without blocking the caller's runtime.
    async fn join(self) {
        // Nothing is ever sent: the end of the thread drops the sender.
        if self.done.await.is_err() && self.handle.join().is_err() {
            tracing::error!("a thread of the server panicked");
        }
    }
}

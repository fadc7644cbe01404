//! The HTTP port: metrics and probes for machines that watch this one, and `/v1/check` for proxies. It is bounded, because
//! a scraper that hangs must not cost a file descriptor for good.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ListenError;
use super::listen::{self, Listener};
use crate::domain::shown;
use crate::telemetry::Readiness;
use crate::telemetry::metrics::{Format, Metrics};

/// Bytes that a request's head may have.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers that it may have. Proxies hand on what their clients send, and bound it by bytes.
const HEADERS_MAX: usize = 1_000;

/// Bounds and times of the HTTP port.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Where to listen; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Connections open at once. One more waits until another ends.
    pub connections_max: usize,
    /// Time until a request's head must be complete, also from the answer before it: so long a connection may idle.
    pub header_read_timeout: Duration,
    /// Time that a connection may last, then it ends with the answer under way.
    pub connection_age_max: Duration,
    /// Time that this end, and the shutdown, wait for answers under way.
    pub drain_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            connections_max: 1_024,
            header_read_timeout: Duration::from_secs(10),
            connection_age_max: Duration::from_mins(10),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// What the port serves by itself: `/metrics`, `/healthz` and `/readyz`. Further routes can be merged into it.
pub fn routes(readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(scrape).with_state(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(readiness))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
}

async fn scrape(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    match metrics.encode(format) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot write the metrics");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written")
        }
    }
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let conditions = readiness.now();
    let ready = conditions.are_met();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "missing": conditions.missing() }))).into_response()
}

async fn nothing(uri: Uri) -> Response {
    problem(StatusCode::NOT_FOUND, &format!("there is nothing at `{}`", shown(uri.path())))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, &format!("`{}` does not take {method}", shown(uri.path())))
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

/// An HTTP port that is served, on the runtime that started it. Dropping it starts the shutdown.
#[derive(Debug)]
pub struct HttpServer {
    local_addr: SocketAddr,
    draining: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _draining: DropGuard,
}

impl HttpServer {
    /// Listens, and serves from then on. Must be called inside a runtime.
    pub fn start(options: HttpOptions, routes: Router) -> Result<Self, ListenError> {
        let other = |source| ListenError::Other { addr: options.addr, source };
        let listener = listen::bind(options.addr)?;
        let local_addr = listener.local_addr().map_err(other)?;
        let listener = Listener::new(listener).map_err(other)?;
        let draining = CancellationToken::new();
        let task = tokio::spawn(accept(options, listener, routes, draining.clone()));
        Ok(Self { local_addr, _draining: draining.clone().drop_guard(), draining, task })
    }

    /// The address that is listened on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Closes the listener, waits for answers under way, for `drain_timeout` at most, and cuts the rest.
    pub async fn shutdown(self) {
        self.draining.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the HTTP port ended by a panic");
        }
    }
}

async fn accept(options: HttpOptions, mut listener: Listener, routes: Router, draining: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(options.header_read_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = draining.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (stream, remote) = listener.accept(|| {}), if connections.len() < options.connections_max => {
                let (http, routes) = (http.clone(), routes.clone().layer(Extension(remote)));
                let (options, draining) = (options.clone(), draining.clone());
                connections.spawn(async move {
                    if let Err(error) = serve(&http, stream, routes, &options, &draining).await {
                        tracing::debug!(%remote, %error, "a connection of the HTTP port broke");
                    }
                });
            }
        }
    }
    drop(listener);
    // Each ends within the drain's time by itself.
    while connections.join_next().await.is_some() {}
}

async fn serve(
    http: &http1::Builder,
    stream: TcpStream,
    routes: Router,
    options: &HttpOptions,
    draining: &CancellationToken,
) -> hyper::Result<()> {
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = draining.cancelled() => {}
        () = tokio::time::sleep(options.connection_age_max) => {}
    }
    connection.as_mut().graceful_shutdown();
    // Cut where it takes longer.
    tokio::time::timeout(options.drain_timeout, connection).await.unwrap_or(Ok(()))
}

//! One connection, from its first byte to its end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::preface::Prefaced;
use super::request::Guard;
use super::worker::Accepted;
use super::{PeerInfo, ServerOptions, Service, Shared};
use crate::ambient::random;
use crate::telemetry::metrics::Refusal;

/// Bytes of a request's body that may be on their way. More would only be memory that a slow handler fills; what is
/// uploaded comes in small messages.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Streams that the peer opened and reset before they were looked at, beyond which the connection ends
/// (CVE-2023-44487), and streams that had to be reset for the peer's faults.
const PEER_RESETS_MAX: usize = 50;
const LOCAL_RESETS_MAX: usize = 256;

/// The protocol's settings.
pub(super) fn http(options: &ServerOptions) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(options.streams_per_connection_max)
        .max_header_list_size(options.header_list_bytes_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_pending_accept_reset_streams(PEER_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        // No gRPC client reads it.
        .auto_date_header(false);
    http
}

/// Serves a connection until either side ends it.
pub(super) async fn serve<S: Service>(
    shared: Arc<Shared>,
    http: http2::Builder<TokioExecutor>,
    service: S,
    accepted: Accepted,
) {
    let Accepted { stream, remote, place: _place } = accepted;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            shared.metrics.refused(Refusal::Accept);
            tracing::warn!(%error, "cannot watch a new connection");
            return;
        }
    };
    let Some(tls) = &shared.tls else {
        return speak(Arc::clone(&shared), http, service, stream, PeerInfo::plain(remote)).await;
    };
    let handshake = within(&shared, shared.options.tls_handshake_timeout, tls.acceptor().accept(stream));
    match handshake.await {
        Ok(stream) => {
            let (_, session) = stream.get_ref();
            let certificate = session.peer_certificates().and_then(|chain| chain.first());
            let peer = PeerInfo::tls(remote, certificate);
            speak(Arc::clone(&shared), http, service, stream, peer).await;
        }
        Err(error) => {
            shared.metrics.refused(Refusal::TlsHandshake);
            tracing::debug!(%remote, %error, "a TLS handshake failed");
        }
    }
}

/// Speaks HTTP/2 on a connection.
async fn speak<S: Service>(
    shared: Arc<Shared>,
    http: http2::Builder<TokioExecutor>,
    service: S,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: PeerInfo,
) {
    let remote = peer.remote();
    let stream = match within(&shared, shared.options.first_byte_timeout, Prefaced::read(stream)).await {
        Ok(stream) => stream,
        Err(error) => {
            shared.metrics.refused(Refusal::Preface);
            tracing::debug!(%remote, %error, "a connection closed before it spoke HTTP/2");
            return;
        }
    };
    let guard = Arc::new(Guard { shared: Arc::clone(&shared), peer });
    let answer = service_fn(move |request| Arc::clone(&guard).answer(service.clone(), request));
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), answer));

    let grace = tokio::select! {
        biased;
        ended = &mut connection => {
            if let Err(error) = ended {
                tracing::debug!(%remote, %error, "a connection broke");
            }
            return;
        }
        // The worker cuts what is left when the drain is over, and says so once for all.
        () = shared.draining.cancelled() => Duration::MAX,
        () = old(shared.options.connection_age_max) => shared.options.connection_age_grace,
    };
    connection.as_mut().graceful_shutdown();
    if timeout(grace, connection).await.is_err() {
        tracing::debug!(%remote, ?grace, "cut a connection that did not go in time");
    }
}

/// Bounds a step before the first request, also by the server's end.
async fn within<T>(shared: &Shared, limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        done = timeout(limit, step) => {
            done.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer took too long")))
        }
        () = shared.draining.cancelled() => Err(io::Error::other("the server ends")),
    }
}

/// Completes when a connection has reached its age, and never where there is none. A tenth more or less keeps
/// connections that were opened together from coming back together.
async fn old(age_max: Option<Duration>) {
    let Some(age_max) = age_max else {
        return std::future::pending().await;
    };
    let mut byte = [0];
    // Without randomness the age is exact.
    let [byte] = random::fill(&mut byte).map_or([128], |()| byte);
    let jittered = age_max.mul_f64(0.9 + 0.2 * f64::from(byte) / 256.0);
    tokio::time::sleep(jittered).await;
}

//! What surrounds each request: shedding, and its deadline.
//!
//! The hot path pays next to nothing for either. A hot request is polled once first, and since it is answered from
//! memory, that completes it as a rule: no counter that workers share is touched, and no timer is set.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use super::{PeerInfo, RequestClass, ServerOptions, Service, Shared};
use crate::telemetry::metrics::RpcLabel;

/// What the requests of one connection share. Each holds it by a reference count that no other worker touches.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: PeerInfo,
}

impl Guard {
    /// Answers a request by the service, within bounds. The call begins here, and not when the future is first polled, so
    /// that the future is small: it is moved several times, and a request with its service is a kilobyte.
    pub(super) fn answer<S: Service>(
        self: Arc<Self>,
        mut service: S,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<S> {
        let options = &self.shared.options;
        let path = request.uri().path();
        let (class, rpc) = ((options.classify)(path), RpcLabel::from_path(path));
        let limit = time_limit(options, class, request.headers());
        request.extensions_mut().insert(self.peer.clone());

        let place = if class == RequestClass::Hot { None } else { self.place() };
        let admitted = class == RequestClass::Hot || place.is_some();
        // What is not ready at once has too much to do already.
        let ready = admitted && service.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready();
        let call = ready.then(|| std::panic::catch_unwind(AssertUnwindSafe(|| service.call(request))));
        async move {
            match call {
                Some(Ok(call)) => self.finish(call, place, rpc, limit).await,
                Some(Err(_)) => Ok(self.broke(rpc, Duration::ZERO)),
                None => Ok(self.shed(rpc, Duration::ZERO)),
            }
        }
    }

    async fn finish<F: Future<Output = Result<Response<Body>, Infallible>>>(
        &self,
        call: F,
        place: Option<Place>,
        rpc: RpcLabel,
        limit: Duration,
    ) -> Result<Response<Body>, Infallible> {
        let mut call = Caught(pin!(call));
        if let Poll::Ready(answer) = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut call).poll(cx))).await {
            return Ok(answer.unwrap_or_else(|Panicked| self.broke(rpc, Duration::ZERO)));
        }

        let since = Instant::now();
        let Some(_place) = place.or_else(|| self.place()) else {
            return Ok(self.shed(rpc, since.elapsed()));
        };
        // In a box, because a timer is large and most requests need none.
        match Box::pin(tokio::time::timeout_at(since + limit, call)).await {
            Ok(answer) => Ok(answer.unwrap_or_else(|Panicked| self.broke(rpc, since.elapsed()))),
            Err(_) => Ok(self.time_out(rpc, limit)),
        }
    }

    /// A place among the requests under way, unless all are taken.
    fn place(&self) -> Option<Place> {
        let before = self.shared.in_flight.fetch_add(1, Relaxed);
        let place = Place(Arc::clone(&self.shared));
        (before < self.shared.options.in_flight_max).then_some(place)
    }

    fn shed(&self, rpc: RpcLabel, took: Duration) -> Response<Body> {
        self.shared.metrics.requests_shed.inc();
        self.shared.metrics.rpc(rpc, Code::ResourceExhausted, took);
        Status::resource_exhausted("the server has too many requests under way; try again after a moment").into_http()
    }

    fn broke(&self, rpc: RpcLabel, took: Duration) -> Response<Body> {
        self.shared.metrics.rpc(rpc, Code::Internal, took);
        Status::internal("the server failed on this request; its log says why").into_http()
    }

    fn time_out(&self, rpc: RpcLabel, limit: Duration) -> Response<Body> {
        self.shared.metrics.request_timeouts.inc();
        self.shared.metrics.rpc(rpc, Code::DeadlineExceeded, limit);
        Status::deadline_exceeded(format!("no answer within {limit:?}")).into_http()
    }
}

/// Ends with the answer, or with the news that the service panicked. Without this the caller would see a stream that was
/// reset, and no metric would.
struct Caught<F>(F);

/// The hook of the process has told what happened.
struct Panicked;

impl<F: Future<Output = Result<Response<Body>, Infallible>> + Unpin> Future for Caught<F> {
    type Output = Result<Response<Body>, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Nothing of a service that panicked is used again: it is dropped at once.
        match std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(answer))) => Poll::Ready(Ok(answer)),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    }
}

/// A place among the requests under way; given back when dropped, also where it was one too many.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// As a constant it is not looked for by its letters each time.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The server's limit, or the caller's where that is shorter. What can't be read as a limit is none.
fn time_limit(options: &ServerOptions, class: RequestClass, headers: &HeaderMap) -> Duration {
    let limit = match class {
        RequestClass::Hot | RequestClass::Ordinary => options.request_timeout,
        RequestClass::Awaited => options.request_timeout.saturating_add(options.await_timeout),
        RequestClass::Long => options.long_request_timeout,
    };
    let asked = headers.get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.as_bytes()));
    asked.map_or(limit, |asked| asked.min(limit))
}

/// `TimeoutValue TimeoutUnit` of gRPC over HTTP/2: 1 to 8 digits and a letter.
fn parse_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3_600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_can_shorten_the_limit_and_not_extend_it() {
        let options = ServerOptions {
            request_timeout: Duration::from_secs(10),
            long_request_timeout: Duration::from_mins(10),
            await_timeout: Duration::from_mins(1),
            ..ServerOptions::default()
        };
        for (class, header, seconds) in [
            (RequestClass::Ordinary, None, 10),
            (RequestClass::Hot, Some("3S"), 3),
            (RequestClass::Ordinary, Some("1H"), 10),
            (RequestClass::Awaited, None, 70),
            (RequestClass::Awaited, Some("5S"), 5),
            (RequestClass::Long, Some("1H"), 600),
            (RequestClass::Long, Some("2M"), 120),
            (RequestClass::Ordinary, Some("soon"), 10),
        ] {
            let headers = header.map(|value| (HeaderName::from_static("grpc-timeout"), value.parse().unwrap()));
            let headers = HeaderMap::from_iter(headers);
            assert_eq!(time_limit(&options, class, &headers), Duration::from_secs(seconds), "{class:?} {header:?}");
        }
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        for (text, nanos) in
            [("1n", 1), ("2u", 2_000), ("3m", 3_000_000), ("0S", 0), ("99999999H", 359_999_996_400_000_000_000)]
        {
            assert_eq!(parse_timeout(text.as_bytes()).map(|d| d.as_nanos()), Some(nanos), "{text}");
        }
        for wrong in ["", "S", "1", "-1S", "+1S", "1.5S", "1s", "100000000S", "1 S", "é"] {
            assert_eq!(parse_timeout(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

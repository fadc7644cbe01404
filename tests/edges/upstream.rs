//! The API behind the edge: it serves HTTP/1.1, HTTP/2 and a gRPC echo on one port, and records every request as it came.
//!
//! `/status/CODE` anywhere in a path makes it answer with that status.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// A request that reached it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With its query.
    pub(crate) target: String,
    /// As they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Seen {
    /// Every value of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str()).collect()
    }

    /// All that any of its headers says, names included.
    pub(crate) fn text(&self) -> String {
        let headers: Vec<String> = self.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        format!("{} {}\n{}", self.method, self.target, headers.concat())
    }
}

/// It runs as long as the runtime that it was started on.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    pub(crate) fn start(runtime: &Runtime) -> Self {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::default();
        let log = Arc::clone(&seen);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&log)));
            }
        });
        Self { addr, seen }
    }

    /// What came since the last look.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// The one request that came since the last look.
    #[track_caller]
    pub(crate) fn one(&self) -> Seen {
        let mut seen = self.take();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    /// That none came.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        let seen = self.take();
        assert!(seen.is_empty(), "it reached the upstream: {seen:?}");
    }
}

async fn serve(stream: TcpStream, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut first = [0; 3];
    let http2 = matches!(stream.peek(&mut first).await, Ok(3)) && first == *b"PRI";
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    // Edges break connections off as they like.
    if http2 {
        _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    } else {
        _ = http1::Builder::new().max_headers(1_000).serve_connection(TokioIo::new(stream), service).await;
    }
}

type Frames = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(request: Request<Incoming>, seen: Arc<Mutex<Vec<Seen>>>) -> Result<Response<Frames>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = |value: &[u8]| value.iter().map(|byte| char::from(*byte)).collect::<String>();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let status = target.split_once("/status/").and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    let grpc = head.headers.get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let mut frames = Vec::new();
    if grpc {
        frames.push(Ok(Frame::data(body.clone())));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        frames.push(Ok(Frame::trailers(trailers)));
    } else {
        let said = serde_json::json!({ "method": head.method.as_str(), "target": target });
        frames.push(Ok(Frame::data(said.to_string().into())));
    }
    seen.lock().unwrap().push(Seen { method: head.method.to_string(), target, headers, body });
    let kind = if grpc { "application/grpc" } else { "application/json" };
    let mut response = Response::builder().status(status.unwrap_or(200)).header("content-type", kind);
    if let Some(date) = head.headers.get("x-echo-limit") {
        response = response.header("x-ratelimit-limit", date);
    }
    Ok(response.body(StreamBody::new(tokio_stream::iter(frames))).unwrap())
}

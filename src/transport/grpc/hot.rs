//! One call and one answer, without what tonic needs for streams, compression and interceptors: that costs several times
//! what a check does.
//!
//! Only a call of the plainest form is taken this way (one message, not compressed); every other goes to the generated
//! service with all that has been read of it, so there is one place that knows what to say of a call that is wrong.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use prost::Message;
use prost::bytes::{BufMut as _, BytesMut};
use tonic::Status;
use tonic::body::Body;

/// Bytes before a message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;
/// Bytes of a part of an answer. h2 puts what is shorter than 1,024 bytes beside the answers of others and sends all in one
/// write; a longer part would be a write of its own.
const PART_BYTES_MAX: usize = 1_023;

// As constants they are not looked for by their letters each time.
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// Whether the head of a call promises the plainest form.
pub(super) fn is_plain<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let content_type = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.method() == Method::POST
        && matches!(content_type, Some(b"application/grpc" | b"application/grpc+proto"))
        && !headers.contains_key(GRPC_ENCODING)
}

/// Reads the body, but not much more than a message of `bytes_max` can have. Absent where the connection breaks.
pub(super) async fn read(mut body: Incoming, bytes_max: usize) -> Option<Bytes> {
    let mut all = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        if all.is_empty() {
            all = data;
        } else {
            rest.extend_from_slice(&data);
        }
        if all.len() + rest.len() > bytes_max + HEAD_BYTES || body.is_end_stream() {
            break;
        }
    }
    if rest.is_empty() {
        return Some(all);
    }
    let mut joined = BytesMut::with_capacity(all.len() + rest.len());
    joined.extend_from_slice(&all);
    joined.extend_from_slice(&rest);
    Some(joined.freeze())
}

/// The message, where the body is one that is not compressed, not longer than `bytes_max`, and decodes.
pub(super) fn message<M: Message + Default>(body: &Bytes, bytes_max: usize) -> Option<M> {
    M::decode(encoded(body, bytes_max)?).ok()
}

/// The same, not decoded.
pub(super) fn encoded(body: &[u8], bytes_max: usize) -> Option<&[u8]> {
    let (head, message) = body.split_at_checked(HEAD_BYTES)?;
    let [compressed, length @ ..] = head.first_chunk::<HEAD_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let plain = *compressed == 0 && length == message.len() && length <= bytes_max;
    plain.then_some(message)
}

/// An answer as it goes out.
pub(super) fn response<M: Message>(answer: Result<M, Status>) -> Response<Body> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(status) => return status.into_http(),
    };
    let length = answer.encoded_len();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    answer.encode_raw(&mut frame);
    let mut response = Response::new(Body::new(Answer { message: frame.freeze(), ended: false }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// One message, in parts, and the trailers that say that all went well.
struct Answer {
    message: Bytes,
    ended: bool,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.message.is_empty() {
            let part = self.message.len().min(PART_BYTES_MAX);
            return Poll::Ready(Some(Ok(Frame::data(self.message.split_to(part)))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

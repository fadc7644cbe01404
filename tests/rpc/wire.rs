//! Calls with bytes of the test's own choosing.

use http::HeaderMap;
use http::uri::PathAndQuery;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use prost::bytes::{Buf as _, BufMut as _, Bytes};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};
use tower::{Service as _, ServiceExt as _};

use crate::harness::Server;

/// Sends these bytes as the message of a call, with the operator's key; the bytes of the answer.
pub(crate) async fn call(server: &Server, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(message.to_vec());
    let authorization = format!("Bearer {}", server.operator_secret).parse().unwrap();
    request.metadata_mut().insert("authorization", authorization);
    let answer = grpc.unary(request, path.parse::<PathAndQuery>().unwrap(), AsTheyAre).await?;
    Ok(answer.into_inner())
}

/// What came back: status and message, wherever they stood, and the body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Back {
    pub(crate) status: String,
    pub(crate) message: String,
    pub(crate) body: Bytes,
}

/// Sends a message as it would lie on the wire, in frames of so many bytes. A word on the encoding of the message makes it go
/// the long way.
pub(crate) async fn post(server: &Server, path: &str, body: &[u8], frame_bytes: usize, the_long_way: bool) -> Back {
    let frames: Vec<Result<Frame<Bytes>, std::io::Error>> =
        body.chunks(frame_bytes).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
    let mut request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", server.operator_secret));
    if the_long_way {
        request = request.header("grpc-encoding", "identity");
    }
    let request = request.body(Body::new(StreamBody::new(tokio_stream::iter(frames)))).unwrap();
    let mut channel = server.channel.clone();
    let (head, body) = channel.ready().await.unwrap().call(request).await.unwrap().into_parts();
    assert_eq!(head.headers["content-type"], "application/grpc");
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_else(HeaderMap::new);
    let told = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name));
        value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    Back { status: told("grpc-status"), message: told("grpc-message"), body: collected.to_bytes() }
}

/// A message as it lies on the wire.
pub(crate) fn framed(compressed: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let mut body = vec![compressed];
    body.extend(u32::try_from(length).unwrap().to_be_bytes());
    body.extend(message);
    body
}

/// Bytes as they are.
struct AsTheyAre;

impl Codec for AsTheyAre {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsTheyAre {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

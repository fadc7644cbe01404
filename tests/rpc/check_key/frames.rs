//! A check in its plainest form goes a shorter way than tonic's. Nobody can tell from the answer.

use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use prost::Message as _;
use prost::bytes::{Bytes, BytesMut};
use tollgate::proto::v1::*;
use tonic::body::Body;
use tower::{Service as _, ServiceExt as _};

use crate::harness::{MESSAGE_BYTES_MAX, Server};

/// What came back: status and message, wherever they stood, and the body.
#[derive(Debug, PartialEq, Eq)]
struct Back {
    status: String,
    message: String,
    body: Bytes,
}

/// Sends a check as it would lie on the wire, in frames of so many bytes. A word on the encoding of the message makes it go
/// the long way.
async fn post(server: &Server, body: &[u8], frame_bytes: usize, the_long_way: bool) -> Back {
    let frames: Vec<Result<Frame<Bytes>, std::io::Error>> =
        body.chunks(frame_bytes).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
    let mut request = Request::post("/tollgate.v1.KeyService/CheckKey")
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

fn framed(compressed: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let mut body = vec![compressed];
    body.extend(u32::try_from(length).unwrap().to_be_bytes());
    body.extend(message);
    body
}

#[tokio::test]
async fn the_short_way_answers_as_the_long_one() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("a key").await;
    let request = CheckKeyRequest { key: secret, mode: Mode::Peek.into(), ..CheckKeyRequest::default() };
    let message = request.encode_to_vec();
    let good = framed(0, message.len(), &message);
    let wrong = CheckKeyRequest { cost: Some(-1), ..request.clone() }.encode_to_vec();
    let large = CheckKeyRequest { key: "x".repeat(MESSAGE_BYTES_MAX), ..request }.encode_to_vec();
    let rows = [
        ("good", "0", good.clone()),
        ("wrong", "3", framed(0, wrong.len(), &wrong)),
        ("too large", "11", framed(0, large.len(), &large)),
        ("no message at all", "13", Vec::new()),
        ("half a head", "13", vec![0, 0, 0]),
        ("less than was promised", "13", framed(0, message.len() + 1, &message)),
        ("more than was promised", "3", framed(0, message.len() - 1, &message)),
        ("two messages", "0", [good.clone(), good.clone()].concat()),
        ("compressed", "13", framed(1, message.len(), &message)),
        ("neither compressed nor not", "13", framed(2, message.len(), &message)),
        ("no message of the contract", "3", framed(0, 3, b"\xff\xff\xff")),
        ("an empty message", "0", framed(0, 0, b"")),
    ];
    for (name, status, body) in rows {
        let long = post(&server, &body, usize::MAX, true).await;
        for frame_bytes in [usize::MAX, 7, 1] {
            // In frames of a few bytes a large message would take its time.
            if body.len() / frame_bytes.min(body.len() + 1) < 4_096 {
                let short = post(&server, &body, frame_bytes, false).await;
                assert_eq!(short, long, "{name} in frames of {frame_bytes}");
                assert_eq!(short.status, status, "{name}: {}", short.message);
            }
        }
    }
    let answer = post(&server, &good, usize::MAX, false).await.body;
    let answer = CheckKeyResponse::decode(BytesMut::from(&answer[5..])).unwrap();
    assert_eq!((answer.allowed, answer.key_name.as_str()), (true, "a key"));
}

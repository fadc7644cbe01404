//! A check in its plainest form goes a shorter way than tonic's. Nobody can tell from the answer.

use prost::Message as _;
use tollgate::proto::v1::*;

use crate::harness::{MESSAGE_BYTES_MAX, Server};
use crate::wire::{framed, post};

const PATH: &str = "/tollgate.v1.KeyService/CheckKey";

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
        let long = post(&server, PATH, &body, usize::MAX, true).await;
        for frame_bytes in [usize::MAX, 7, 1] {
            // In frames of a few bytes a large message would take its time.
            if body.len() / frame_bytes.min(body.len() + 1) < 4_096 {
                let short = post(&server, PATH, &body, frame_bytes, false).await;
                assert_eq!(short, long, "{name} in frames of {frame_bytes}");
                assert_eq!(short.status, status, "{name}: {}", short.message);
            }
        }
    }
    let answer = post(&server, PATH, &good, usize::MAX, false).await.body;
    let answer = CheckKeyResponse::decode(&answer[5..]).unwrap();
    assert_eq!((answer.allowed, answer.key_name.as_str()), (true, "a key"));
}

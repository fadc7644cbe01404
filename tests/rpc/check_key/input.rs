//! What is no check: each is refused with the field that is wrong, or answered as what it is.

use tollgate::proto::v1::{Verdict as V, *};
use tonic::Code;

use crate::harness::{MESSAGE_BYTES_MAX, Server, invalid, of, refused, strings};
use crate::wire;

#[tokio::test]
async fn what_cannot_be_a_key_is_told_by_its_looks() {
    let server = Server::start().await;
    let (_, good) = server.plain_key("k").await;
    let body = &good["sk_live_".len()..];
    let rows = [
        (String::new(), V::Missing),
        (" ".to_owned(), V::Malformed),
        (format!("{good} "), V::Malformed),
        (format!("Bearer {good}"), V::Malformed),
        (format!("{good}\n"), V::Malformed),
        (format!("{good}\0"), V::Malformed),
        (format!("{good}é"), V::Malformed),
        ("\u{1b}[31m".to_owned(), V::Malformed),
        (good.replace("sk_live_", "sk_test_"), V::Malformed),
        (good[..good.len() - 1].to_owned(), V::Malformed),
        (format!("{good}0"), V::Malformed),
        (format!("sk_live_{}", "!".repeat(49)), V::Malformed),
        ("x".repeat(513), V::Malformed),
        ("x".repeat(60_000), V::Malformed),
        ("x".repeat(512), V::Unknown),
        ("not-a-key".to_owned(), V::Unknown),
        (format!("pk_live_{body}"), V::Unknown),
        (good.to_uppercase(), V::Unknown),
        (good.clone(), V::Allowed),
    ];
    for (credential, expected) in rows {
        let shown: String = credential.chars().take(70).collect();
        assert_eq!(server.verdict(&credential).await, expected, "{shown:?}");
    }
    // Every digit counts for the checksum.
    for place in "sk_live_".len()..good.len() {
        let mut damaged = good.clone();
        let other = if damaged[place..].starts_with('0') { "1" } else { "0" };
        damaged.replace_range(place..=place, other);
        assert_eq!(server.verdict(&damaged).await, Verdict::Malformed, "{place}");
    }
}

#[tokio::test]
async fn each_wrong_field_is_named() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let check = || of(&secret);
    let context = |client_ip: &str| Some(CheckContext { client_ip: client_ip.to_owned(), ..CheckContext::default() });
    let rows: Vec<(CheckKeyRequest, &[&str])> = vec![
        (CheckKeyRequest { cost: Some(-1), ..check() }, &["cost"]),
        (CheckKeyRequest { cost: Some(i64::MIN), ..check() }, &["cost"]),
        (CheckKeyRequest { cost: Some(1_000_000_000_001), ..check() }, &["cost"]),
        (CheckKeyRequest { all_of: strings(&["tasks:read", "nonsense"]), ..check() }, &["all_of[1]"]),
        (CheckKeyRequest { any_of: strings(&["", "tasks:é"]), ..check() }, &["any_of[0]", "any_of[1]"]),
        (CheckKeyRequest { all_of: vec!["a:b".to_owned(); 65], ..check() }, &["all_of"]),
        (CheckKeyRequest { environment: 3, ..check() }, &["environment"]),
        (CheckKeyRequest { environment: -1, ..check() }, &["environment"]),
        (CheckKeyRequest { mode: 3, ..check() }, &["mode"]),
        (CheckKeyRequest { min_revision: -1, ..check() }, &["min_revision"]),
        (CheckKeyRequest { context: context("10.0.0.1:80"), ..check() }, &["context.client_ip"]),
        (CheckKeyRequest { context: context("10.0.0.0/8"), ..check() }, &["context.client_ip"]),
        (CheckKeyRequest { context: context("localhost"), ..check() }, &["context.client_ip"]),
        (CheckKeyRequest { cost: Some(-1), mode: 9, environment: 9, ..check() }, &["environment", "cost", "mode"]),
    ];
    for (request, fields) in rows {
        let shown = format!("{request:?}").replace(&secret, "…");
        assert_eq!(invalid(server.operator.check_key(request).await), fields, "{shown}");
    }
    server.flush().await;
    assert!(server.rows("SELECT hex(key_id) FROM usage_hourly").await.is_empty(), "nothing of it was counted");
}

#[tokio::test]
async fn an_error_does_not_repeat_the_key() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let status = server.operator.check_key(CheckKeyRequest { cost: Some(-1), ..of(&secret) }).await.unwrap_err();
    assert!(!format!("{status:?}").contains(&secret));
    assert!(!String::from_utf8_lossy(status.details()).contains(&secret));
}

#[tokio::test]
async fn a_message_over_its_bound_is_refused_and_harms_nobody() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    for bytes in [MESSAGE_BYTES_MAX, 10_000_000] {
        let status = refused(server.operator.check_key(of(&"x".repeat(bytes))).await, Code::OutOfRange);
        assert!(status.message().contains("too large"), "{status:?}");
    }
    assert!(server.check(&secret).await.allowed);
}

const CHECK_KEY: &str = "/tollgate.v1.KeyService/CheckKey";

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let rows: [(&str, &[u8]); 5] = [
        ("a field that ends too early", b"\x0a\x20abc"),
        ("a length that never ends", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("a wire type that does not exist", b"\x0f\x01"),
        ("text that is not UTF-8", b"\x0a\x02\xc3\x28"),
        ("a group that nobody closes", b"\x0b"),
    ];
    for (what, bytes) in rows {
        let status = wire::call(&server, CHECK_KEY, bytes).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        assert!(!status.message().is_empty());
    }
    // Fields that this version does not know are passed over.
    let mut bytes = vec![0x0a, u8::try_from(secret.len()).unwrap()];
    bytes.extend_from_slice(secret.as_bytes());
    bytes.extend_from_slice(b"\xf2\x3f\x03new");
    wire::call(&server, CHECK_KEY, &bytes).await.unwrap();
}

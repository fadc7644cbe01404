//! Who may ask, and what is believed of them.

use prost::Message as _;
use tollgate::proto::v1::*;
use tonic::Code;

use super::*;
use crate::harness::{Settings, key, reason, refused, strings};
use crate::wire;

const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A key that is good from this network alone.
async fn bound(server: &Server, network: &str) -> String {
    let restrictions = Some(Restrictions { allowed_ips: strings(&[network]), ..Restrictions::default() });
    server.key(Key { restrictions, ..key(network) }).await.secret
}

#[tokio::test]
async fn envoy_says_who_it_is_or_is_refused() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("a").await;
    let status = refused(ask_with(&server, &[], with_key(&secret, &[])).await, Code::Unauthenticated);
    assert_eq!(reason(&status), "MISSING");
    let client = format!("Bearer {secret}");
    let status = ask_with(&server, &[("authorization", &client)], with_key(&secret, &[])).await;
    assert!(refused(status, Code::PermissionDenied).message().contains("tollgate:check"));
    let status = ask_with(&server, &[("authorization", "Bearer wrong")], request(&[], &[("mode", "off")])).await;
    assert_eq!(reason(&refused(status, Code::Unauthenticated)), "UNKNOWN");
}

#[tokio::test]
async fn an_envoy_of_one_account_knows_the_keys_of_no_other() {
    let server = Server::start().await;
    let scopes = strings(&["tollgate:check"]);
    let envoy = server.key(Key { account_id: "acct_b".to_owned(), scopes, ..key("envoy") }).await.secret;
    let envoy = format!("Bearer {envoy}");
    let (_, other) = server.plain_key("a").await;
    let own = server.key(Key { account_id: "acct_b".to_owned(), ..key("b") }).await.secret;
    for (secret, expected) in [(other, "UNKNOWN"), (own, "ALLOWED")] {
        let answer = ask_with(&server, &[("authorization", &envoy)], with_key(&secret, &[])).await.unwrap();
        assert_eq!(verdict(&answer), expected);
    }
}

#[tokio::test]
async fn the_clients_address_is_what_envoy_says() {
    let server = Server::start().await;
    let (here, peer) = (bound(&server, "198.51.100.0/24").await, bound(&server, "192.0.2.7").await);
    let operator = format!("Bearer {}", server.operator_secret);
    let known = ("authorization", operator.as_str());
    let rows: [(Pairs<'_>, &str, &str); 6] = [
        (&[known], &peer, "ALLOWED"),
        (&[known, ("x-client-ip", "198.51.100.9")], &here, "ALLOWED"),
        (&[known, ("x-client-ip", "198.51.100.9")], &peer, "IP_DENIED"),
        (&[known, ("x-client-ip", "198.51.100.9"), ("x-client-ip", "198.51.100.9")], &here, "IP_DENIED"),
        (&[known, ("x-client-ip", "/run/envoy.sock")], &peer, "IP_DENIED"),
        (&[known, ("x-forwarded-for", "198.51.100.9")], &here, "IP_DENIED"),
    ];
    for (metadata, secret, expected) in rows {
        // What the client writes into its own headers says nothing.
        let bearer = format!("Bearer {secret}");
        let mut forged = vec![("authorization", bearer.as_str())];
        forged.extend([("x-client-ip", "198.51.100.9"), ("x-forwarded-for", "198.51.100.9")]);
        let answer = ask_with(&server, metadata, request(&forged, &[])).await.unwrap();
        assert_eq!(verdict(&answer), expected, "{:?}", metadata.get(1..));
    }
}

#[tokio::test]
async fn where_anybody_may_ask_nobodys_word_for_the_address_is_taken() {
    let server = Server::start_with(Settings { check_needs_caller: false, ..Settings::default() }).await;
    let (here, peer) = (bound(&server, "198.51.100.0/24").await, bound(&server, "192.0.2.7").await);
    let told: Pairs<'_> = &[("x-client-ip", "198.51.100.9")];
    for (metadata, secret, expected) in
        [(told, &here, "IP_DENIED"), (told, &peer, "IP_DENIED"), (&[], &here, "IP_DENIED"), (&[], &peer, "ALLOWED")]
    {
        let answer = ask_with(&server, metadata, with_key(secret, &[])).await.unwrap();
        assert_eq!(verdict(&answer), expected, "{metadata:?}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_know_yet_neither_allows_nor_denies() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("a").await;
    server.set_serving(false);
    for request in [with_key(&secret, &[]), with_key("other", &[]), request(&[], &[("mode", "off")])] {
        let (status, told, body) = failed(&ask(&server, request).await);
        assert_eq!((status, told["retry-after"].as_str()), (503, "1"));
        assert!(body.contains("\"code\":\"UNAVAILABLE\""), "{body}");
    }
    let (_, told, body) = failed(&ask(&server, request(&[("content-type", "application/grpc")], &[])).await);
    assert_eq!((told["grpc-status"].as_str(), body.as_str()), ("14", ""));
}

#[tokio::test]
async fn every_form_of_the_call_is_answered_alike() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("a").await;
    let message = with_key(&secret, &[]).encode_to_vec();
    let short = CheckResponse::decode(wire::call(&server, PATH, &message).await.unwrap().as_slice()).unwrap();
    let framed = wire::framed(0, message.len(), &message);
    let mut answers = Vec::new();
    for (frame_bytes, the_long_way) in [(framed.len(), false), (3, false), (framed.len(), true), (7, true)] {
        let back = wire::post(&server, PATH, &framed, frame_bytes, the_long_way).await;
        assert_eq!(back.status, "0", "{back:?}");
        answers.push(back.body);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    assert_eq!(headers(&allowed(&short).headers)["x-auth-key-id"], id);

    for wrong in [&b"\x0a\x20abc"[..], b"\x0a", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
        let status = refused(wire::call(&server, PATH, wrong).await, Code::InvalidArgument);
        assert!(status.message().contains("decode"), "{status:?}");
    }
    // An empty message has no key: it is denied.
    let empty = CheckResponse::decode(wire::call(&server, PATH, b"").await.unwrap().as_slice()).unwrap();
    assert_eq!(verdict(&empty), "MISSING");
}

#[tokio::test]
async fn large_requests_have_room_and_a_bound() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("a").await;
    let bearer = format!("Bearer {secret}");
    let operator = format!("Bearer {}", server.operator_secret);
    for (bytes, fits) in [(60 << 10, true), (400 << 10, true), (600 << 10, false)] {
        let large = "x".repeat(bytes);
        let sent = request(&[("authorization", bearer.as_str()), ("cookie", &large)], &[]);
        let answer = ask_with(&server, &[("authorization", &operator)], sent).await;
        if fits {
            allowed(&answer.unwrap());
        } else {
            refused(answer, Code::OutOfRange);
        }
    }
}

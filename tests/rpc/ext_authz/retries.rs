//! A call that is sent again is charged once; one that only looks so is not.

use std::sync::Arc;

use tollgate::proto::v1::*;

use super::*;
use crate::harness::{key, limit};

/// A request of a client, as the stream of this number.
fn stream(secret: &str, id: &str, request_id: &str) -> CheckRequest {
    let bearer = format!("Bearer {secret}");
    let mut request = request(&[("authorization", bearer.as_str()), ("x-request-id", request_id)], &[]);
    http(&mut request).id = id.to_owned();
    request
}

async fn limited(server: &Server, capacity: i64) -> (String, String) {
    let made = server.key(Key { limits: vec![limit("hourly", capacity, Period::Hour)], ..key("a") }).await;
    (made.key.unwrap().id, made.secret)
}

async fn left(server: &Server, id: &str) -> i64 {
    server.operator.get_limits(GetLimitsRequest { id: id.to_owned() }).await.unwrap().remaining.unwrap()
}

#[tokio::test]
async fn a_call_that_is_sent_again_is_charged_once() {
    let server = Server::start().await;
    let (id, secret) = limited(&server, 10).await;
    for _ in 0..3 {
        let answer = ask(&server, stream(&secret, "17", "r1")).await;
        allowed(&answer);
        assert_eq!(metadata(&answer, "charged").as_deref(), Some("1"));
        assert_eq!(left(&server, &id).await, 9);
        server.advance(1);
    }
    server.flush().await;
    assert_eq!(server.get_key(&id).await.usage.unwrap().requests_today, 1);
    // Whoever asks this much later is not retrying.
    server.advance(11);
    allowed(&ask(&server, stream(&secret, "17", "r1")).await);
    assert_eq!(left(&server, &id).await, 8);
}

#[tokio::test]
async fn a_client_that_repeats_its_request_id_pays_each_time() {
    let server = Server::start().await;
    let (id, secret) = limited(&server, 10).await;
    for (call, request_id) in [("1", "same"), ("2", "same"), ("3", "same"), ("3", "other"), ("", "same"), ("", "same")]
    {
        allowed(&ask(&server, stream(&secret, call, request_id)).await);
    }
    assert_eq!(left(&server, &id).await, 4);
}

#[tokio::test]
async fn another_question_about_the_same_stream_is_no_retry() {
    let server = Server::start().await;
    let (id, secret) = limited(&server, 10).await;
    // Two filters in one chain, with policies of their own.
    for cost in ["1", "5"] {
        let mut call = stream(&secret, "17", "r1");
        call.attributes.as_mut().unwrap().context_extensions.insert("cost".to_owned(), cost.to_owned());
        allowed(&ask(&server, call).await);
    }
    assert_eq!(left(&server, &id).await, 4);
}

#[tokio::test]
async fn the_last_unit_can_be_asked_for_again_and_spent_once() {
    let server = Server::start().await;
    let (id, secret) = limited(&server, 1).await;
    allowed(&ask(&server, stream(&secret, "1", "r")).await);
    allowed(&ask(&server, stream(&secret, "1", "r")).await);
    for _ in 0..2 {
        assert_eq!(verdict(&ask(&server, stream(&secret, "2", "r")).await), "RATE_LIMITED");
    }
    // What was refused is not remembered as charged.
    let raised = Key { id: id.clone(), limits: vec![limit("hourly", 2, Period::Hour)], ..Key::default() };
    server.change_key(raised, &["limits"]).await;
    allowed(&ask(&server, stream(&secret, "2", "r")).await);
    assert_eq!(left(&server, &id).await, 0);
    assert_eq!(verdict(&ask(&server, stream(&secret, "3", "r")).await), "RATE_LIMITED");
}

#[tokio::test]
async fn a_retry_is_decided_anew() {
    let server = Server::start().await;
    let (id, secret) = limited(&server, 10).await;
    allowed(&ask(&server, stream(&secret, "1", "r")).await);
    server.revoke(&id).await;
    assert_eq!(verdict(&ask(&server, stream(&secret, "1", "r")).await), "REVOKED");
}

#[tokio::test]
async fn the_same_call_of_two_keys_is_two() {
    let server = Server::start().await;
    let (first_id, first) = limited(&server, 10).await;
    let made = server.key(Key { limits: vec![limit("hourly", 10, Period::Hour)], ..key("b") }).await;
    for secret in [&first, &made.secret] {
        allowed(&ask(&server, stream(secret, "1", "r")).await);
    }
    assert_eq!((left(&server, &first_id).await, left(&server, &made.key.unwrap().id).await), (9, 9));
}

#[tokio::test]
async fn a_call_that_is_broken_off_and_sent_again_is_charged_once() {
    let server = Arc::new(Server::start().await);
    let (id, secret) = limited(&server, 1_000).await;
    for i in 0..100 {
        let call = stream(&secret, &i.to_string(), "r");
        let broken_off = tokio::spawn({
            let (server, call) = (Arc::clone(&server), call.clone());
            async move { ask(&server, call).await }
        });
        // Somewhere between its beginning and its end.
        for _ in 0..i % 10 {
            tokio::task::yield_now().await;
        }
        broken_off.abort();
        _ = broken_off.await;
        allowed(&ask(&server, call).await);
    }
    assert_eq!(left(&server, &id).await, 900);
}

#[tokio::test]
async fn of_many_at_once_one_is_charged() {
    let server = Arc::new(Server::start().await);
    let (id, secret) = limited(&server, 1_000).await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..200 {
        let (server, secret) = (Arc::clone(&server), secret.clone());
        calls.spawn(async move { ask(&server, stream(&secret, &(i % 10).to_string(), "r")).await });
    }
    for answer in calls.join_all().await {
        allowed(&answer);
    }
    assert_eq!(left(&server, &id).await, 990);
}

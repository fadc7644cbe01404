//! `RefundCheck`: what was charged under an operation's name is given back, once.

use tollgate::proto::v1::*;
use tonic::{Code, Status};

use crate::check_key::operation_id::{METERED, metered, operation, peek_left, used};
use crate::harness::{ACCOUNT, Server, Settings, invalid, precondition, refused};

fn request(id: &str, account_id: &str) -> RefundCheckRequest {
    RefundCheckRequest { operation_id: id.to_owned(), account_id: account_id.to_owned() }
}

async fn refund(server: &Server, id: &str) -> Result<i64, Status> {
    Ok(server.operator.refund_check(request(id, METERED)).await?.refunded)
}

#[tokio::test]
async fn what_was_charged_is_there_again() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 100)).await.allowed);
    assert_eq!(server.ask(operation(&secret, "other", 1)).await.verdict(), Verdict::RateLimited);
    assert_eq!(refund(&server, "op").await.unwrap(), 100);
    // The process that had been told that there is no more knows it at once.
    assert_eq!(peek_left(&server, &secret).await, [100; 4]);
    assert!(server.ask(operation(&secret, "other", 30)).await.allowed);
    assert_eq!(peek_left(&server, &secret).await, [70; 4]);
    assert_eq!(used(&server, &id).await, (3, 1, 30));
    // The request was made, and stays counted.
    assert_eq!(refund(&server, "other").await.unwrap(), 30);
    assert_eq!(used(&server, &id).await, (3, 1, 0));
}

#[tokio::test]
async fn it_is_given_back_once() {
    let mut server = Server::start().await;
    let (_, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 60)).await.allowed);
    assert!(server.ask(operation(&secret, "op-2", 30)).await.allowed);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = server.operator.clone();
        calls.spawn(async move { client.refund_check(request("op", METERED)).await });
    }
    let results = calls.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results.into_iter().filter(Result::is_err) {
        assert_eq!(precondition(result), "OPERATION_REFUNDED");
    }
    assert_eq!(peek_left(&server, &secret).await, [70; 4]);
    server = server.restart(Settings::default()).await;
    assert_eq!(precondition(refund(&server, "op").await), "OPERATION_REFUNDED");
    assert_eq!(peek_left(&server, &secret).await, [70; 4]);
    assert_eq!(refund(&server, "op-2").await.unwrap(), 30);
    assert_eq!(peek_left(&server, &secret).await, [100; 4]);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::start().await;
    let (_, secret) = metered(&server).await;
    let status = refused(refund(&server, "op").await, Code::NotFound);
    assert!(status.message().contains("operation `op`"), "{status:?}");
    // What was denied was not charged.
    assert_eq!(server.ask(operation(&secret, "op", 101)).await.verdict(), Verdict::RateLimited);
    refused(refund(&server, "op").await, Code::NotFound);
    assert!(server.ask(operation(&secret, "op", 5)).await.allowed);
    server.advance(24 * 3_600);
    refused(refund(&server, "op").await, Code::NotFound);
    assert_eq!(peek_left(&server, &secret).await, [100, 100, 100, 95]);
}

#[tokio::test]
async fn accounts_have_operations_of_their_own() {
    let server = Server::start().await;
    let (_, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 5)).await.allowed);
    refused(server.operator.refund_check(request("op", ACCOUNT)).await, Code::NotFound);
    assert_eq!(invalid(server.operator.refund_check(request("op", "")).await), ["account_id"]);
    assert_eq!(invalid(server.operator.refund_check(request("", METERED)).await), ["operation_id"]);
    assert_eq!(invalid(server.operator.refund_check(request("a b", METERED)).await), ["operation_id"]);

    let stranger = server.caller_of(ACCOUNT, &["tollgate:check"]).await;
    let status = refused(stranger.refund_check(request("op", METERED)).await, Code::NotFound);
    assert!(status.message().contains("account"), "{status:?}");
    refused(stranger.refund_check(request("op", "")).await, Code::NotFound);
    let reader = server.caller_of(METERED, &["tollgate:keys:read"]).await;
    refused(reader.refund_check(request("op", "")).await, Code::PermissionDenied);
    refused(server.anonymous().refund_check(request("op", METERED)).await, Code::Unauthenticated);
    assert_eq!(peek_left(&server, &secret).await, [95; 4]);

    let own = server.caller_of(METERED, &["tollgate:check"]).await;
    assert_eq!(own.refund_check(request("op", "")).await.unwrap().refunded, 5);
    assert_eq!(precondition(own.refund_check(request("op", METERED)).await), "OPERATION_REFUNDED");
    assert_eq!(peek_left(&server, &secret).await, [100; 4]);
}

#[tokio::test]
async fn a_window_that_is_over_gets_nothing_back() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 40)).await.allowed);
    server.advance(2 * 3_600);
    assert!(server.ask(operation(&secret, "op-2", 10)).await.allowed);
    assert_eq!(peek_left(&server, &secret).await, [90, 90, 50, 50]);
    // The hours are over; the day and the month are not.
    assert_eq!(refund(&server, "op").await.unwrap(), 40);
    assert_eq!(peek_left(&server, &secret).await, [90, 90, 90, 90]);
    assert_eq!(used(&server, &id).await, (2, 0, 10));
}

#[tokio::test]
async fn what_a_revoked_key_was_charged_goes_back_to_its_account() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    let (_, second) = crate::check_key::operation_id::another(&server, "second").await;
    assert!(server.ask(operation(&secret, "op", 100)).await.allowed);
    assert_eq!(server.ask(operation(&second, "op-2", 1)).await.verdict(), Verdict::RateLimited);
    server.revoke(&id).await;
    assert_eq!(refund(&server, "op").await.unwrap(), 100);
    assert!(server.ask(operation(&second, "op-2", 100)).await.allowed);
    assert_eq!(used(&server, &id).await.2, 0);
}

#[tokio::test]
async fn a_limit_that_was_changed_since_gets_back_what_is_its_own() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 60)).await.allowed);
    let own = |capacity, period| vec![crate::harness::limit("own", capacity, period)];
    let change = |limits| Key { id: id.clone(), limits, ..Key::default() };
    server.change_key(change(own(50, Period::Hour)), &["limits"]).await;
    assert_eq!(refund(&server, "op").await.unwrap(), 60);
    let answer = server.ask(CheckKeyRequest { mode: Mode::Peek.into(), ..operation(&secret, "x", 0) }).await;
    let remaining: Vec<i64> = answer.limits.iter().map(|limit| limit.remaining).collect();
    assert_eq!(remaining, [50, 100]);
    // Of one that was taken away meanwhile, nobody sees it.
    assert!(server.ask(operation(&secret, "op-2", 20)).await.allowed);
    server.change_key(change(own(50, Period::Day)), &["limits"]).await;
    assert!(server.ask(operation(&secret, "op-3", 0)).await.allowed);
    assert_eq!(refund(&server, "op-2").await.unwrap(), 20);
    server.change_key(change(own(50, Period::Hour)), &["limits"]).await;
    let answer = server.ask(CheckKeyRequest { mode: Mode::Peek.into(), ..operation(&secret, "x", 0) }).await;
    assert_eq!(answer.limits[0].remaining, 50);
}

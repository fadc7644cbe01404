//! `RevokeKey`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, Server, invalid, key, precondition, refused};

fn revocation(id: &str, reason: &str) -> RevokeKeyRequest {
    RevokeKeyRequest { id: id.to_owned(), reason: reason.to_owned() }
}

#[tokio::test]
async fn a_key_ends_at_once_and_the_reason_is_kept() {
    let server = Server::start().await;
    let made = server.key(key("k")).await;
    let before = made.key.unwrap();
    assert!(server.check(&made.secret).await.allowed);
    server.advance(3);
    let revoked = server.operator.revoke_key(revocation(&before.id, "leaked in a ticket")).await.unwrap();
    let answer = server.check(&made.secret).await;
    assert_eq!((answer.verdict(), answer.revision), (Verdict::Revoked, revoked.revision));
    let expected = Key {
        status: Status::Revoked.into(),
        revoke_time: Some(server.now()),
        revoke_reason: "leaked in a ticket".to_owned(),
        revoke_actor: server.operator_key_id.clone(),
        update_time: Some(server.now()),
        etag: format!("r{}", revoked.revision),
        ..before
    };
    let found = revoked.key.unwrap();
    assert_eq!(Key { last_used_time: None, ..found.clone() }, expected);
    assert_eq!(server.get_key(&found.id).await.revoke_reason, "leaked in a ticket");
}

#[tokio::test]
async fn revoking_again_changes_nothing() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    let first = server.operator.revoke_key(revocation(&id, "first")).await.unwrap();
    server.advance(60);
    let second = server.operator.revoke_key(revocation(&id, "second")).await.unwrap();
    assert_eq!(second, first);
    assert_eq!(second.revision, server.engine.index_size().2.number(), "there was no other change");
    assert_eq!(server.verdict(&secret).await, Verdict::Revoked);
}

#[tokio::test]
async fn it_is_for_good() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    server.revoke(&id).await;
    let enabled = Key { id: id.clone(), status: Status::Active.into(), ..Key::default() };
    let update = UpdateKeyRequest { key: Some(enabled), update_mask: None };
    assert_eq!(precondition(server.operator.update_key(update).await), "KEY_REVOKED");
    let rotation = RotateKeyRequest { id: id.clone(), ..RotateKeyRequest::default() };
    assert_eq!(precondition(server.operator.rotate_key(rotation).await), "KEY_REVOKED");
    assert_eq!(server.verdict(&secret).await, Verdict::Revoked);
    server.set_time("2020-01-01T00:00:00Z");
    assert_eq!(server.verdict(&secret).await, Verdict::Revoked);
}

#[tokio::test]
async fn a_disabled_or_expired_key_can_be_revoked_too() {
    let server = Server::start().await;
    let (disabled, _) = server.plain_key("disabled").await;
    server.change_key(Key { id: disabled.clone(), status: Status::Disabled.into(), ..Key::default() }, &[]).await;
    let expired = server.key(Key { expire_time: server.in_seconds(1), ..key("expired") }).await.key.unwrap().id;
    server.advance(1);
    for id in [disabled, expired] {
        assert_eq!(server.revoke(&id).await.key.unwrap().status(), Status::Revoked);
    }
}

#[tokio::test]
async fn a_key_may_end_itself() {
    let server = Server::start().await;
    let scopes = vec!["tollgate:keys:write".to_owned()];
    let made = server.key(Key { scopes, ..key("self") }).await;
    let id = made.key.unwrap().id;
    let caller = server.caller(&made.secret);
    let revoked = caller.revoke_key(revocation(&id, "")).await.unwrap().key.unwrap();
    assert_eq!(revoked.revoke_actor, id);
    refused(caller.revoke_key(revocation(&id, "")).await, Code::Unauthenticated);
}

#[tokio::test]
async fn input_that_is_wrong() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    for reason in ["r".repeat(501), "a\nb".to_owned(), "\u{1b}[31m".to_owned()] {
        assert_eq!(invalid(server.operator.revoke_key(revocation(&id, &reason)).await), ["reason"]);
    }
    assert_eq!(invalid(server.operator.revoke_key(revocation("", "")).await), ["id"]);
    refused(server.operator.revoke_key(revocation("key_0000000000000000000000", "")).await, Code::NotFound);
    refused(server.operator.revoke_key(revocation(ACCOUNT, "")).await, Code::NotFound);
    assert!(server.check(&secret).await.allowed);
    server.operator.revoke_key(revocation(&id, &"ü".repeat(500))).await.unwrap();
}

/// Every check that begins after the answer to a revocation is refused, while others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_admitted_after_the_answer() {
    let server = Server::start().await;
    let (_, other) = server.plain_key("other").await;
    for i in 0..20 {
        let (id, secret) = server.plain_key(&format!("k{i}")).await;
        let hammer = |secret: &str| {
            let (client, request) = (server.operator.clone(), crate::harness::of(secret));
            tokio::spawn(async move {
                for _ in 0..10 {
                    client.check_key(request.clone()).await.unwrap();
                }
            })
        };
        let hammers = [hammer(&secret), hammer(&other)];
        server.revoke(&id).await;
        assert_eq!(server.verdict(&secret).await, Verdict::Revoked);
        for hammer in hammers {
            hammer.await.unwrap();
        }
    }
    assert!(server.check(&other).await.allowed);
}

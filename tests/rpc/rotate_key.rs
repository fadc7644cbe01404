//! `RotateKey`.

use tollgate::proto::v1::{Verdict as V, *};
use tonic::Code;

use crate::harness::{Server, invalid, key, limit, of, precondition, reason, refused};

fn rotation(id: &str, grace_seconds: i64) -> RotateKeyRequest {
    let grace_period = Some(prost_types::Duration { seconds: grace_seconds, nanos: 0 });
    RotateKeyRequest { id: id.to_owned(), grace_period, etag: String::new() }
}

#[tokio::test]
async fn the_key_keeps_all_but_its_secret() {
    let server = Server::start().await;
    let made = server.key(Key { description: "d".to_owned(), ..key("k") }).await;
    let before = made.key.unwrap();
    server.advance(7);
    let rotated = server.operator.rotate_key(rotation(&before.id, 3_600)).await.unwrap();
    assert_ne!(rotated.secret, made.secret);
    assert_eq!(rotated.revision, made.revision + 1);
    let expected = Key {
        prefix: rotated.secret[..12].to_owned(),
        previous_prefix: before.prefix.clone(),
        previous_expire_time: server.in_seconds(3_600),
        rotate_time: Some(server.now()),
        update_time: Some(server.now()),
        etag: format!("r{}", rotated.revision),
        ..before.clone()
    };
    assert_eq!(rotated.key, Some(expected.clone()));
    assert_eq!(Key { usage: None, ..server.get_key(&before.id).await }, expected);
}

#[tokio::test]
async fn without_grace_the_old_secret_ends_before_the_call_returns() {
    let server = Server::start().await;
    let (id, old) = server.plain_key("k").await;
    let unset = RotateKeyRequest { id: id.clone(), ..RotateKeyRequest::default() };
    let new = server.operator.rotate_key(unset).await.unwrap().secret;
    assert_eq!([server.verdict(&old).await, server.verdict(&new).await], [Verdict::RotatedOut, Verdict::Allowed]);
    server.set_time("2020-01-01T00:00:00Z");
    assert_eq!(server.verdict(&old).await, V::RotatedOut, "a clock that is set back brings nothing back");
    let newest = server.rotate(&id, 0).await;
    for (secret, expected) in [(&old, V::RotatedOut), (&new, V::RotatedOut), (&newest, V::Allowed)] {
        assert_eq!(server.verdict(secret).await, expected);
    }
}

#[tokio::test]
async fn in_grace_both_secrets_are_one_key_with_one_budget() {
    let server = Server::start().await;
    let made = server.key(Key { limits: vec![limit("l", 10, Period::Day)], ..key("k") }).await;
    let (id, old) = (made.key.unwrap().id, made.secret);
    server.ask(CheckKeyRequest { cost: Some(3), ..of(&old) }).await;
    let new = server.rotate(&id, 60).await;
    for (secret, left) in [(&new, 6), (&old, 5), (&new, 4)] {
        let answer = server.check(secret).await;
        assert_eq!((answer.key_id.as_str(), answer.limits[0].remaining), (id.as_str(), left));
    }
    server.clock.advance(std::time::Duration::from_millis(59_999));
    assert!(server.check(&old).await.allowed);
    server.clock.advance(std::time::Duration::from_millis(1));
    let answer = server.check(&old).await;
    assert_eq!((answer.verdict(), answer.http_status, answer.key_id), (Verdict::RotatedOut, 401, id.clone()));
    assert_eq!(server.check(&new).await.limits[0].remaining, 2);
    server.flush().await;
    let usage = GetUsageRequest { key_id: id, ..GetUsageRequest::default() };
    let totals = server.operator.get_usage(usage).await.unwrap().totals.unwrap();
    assert_eq!((totals.allowed, totals.by_verdict["ROTATED_OUT"]), (6, 1));
}

#[tokio::test]
async fn a_second_rotation_in_grace_ends_the_oldest_secret_at_once() {
    let server = Server::start().await;
    let (id, first) = server.plain_key("k").await;
    let second = server.rotate(&id, 3_600).await;
    let third = server.rotate(&id, 3_600).await;
    for (secret, expected) in [(&first, V::RotatedOut), (&second, V::Allowed), (&third, V::Allowed)] {
        assert_eq!(server.verdict(secret).await, expected);
    }
    server.advance(3_600);
    assert_eq!([server.verdict(&second).await, server.verdict(&third).await], [V::RotatedOut, V::Allowed]);
}

#[tokio::test]
async fn what_is_done_to_a_key_in_grace_is_done_to_both_secrets() {
    let server = Server::start().await;
    let made = server.key(Key { expire_time: server.in_seconds(600), ..key("k") }).await;
    let (id, old) = (made.key.unwrap().id, made.secret);
    let new = server.rotate(&id, 3_600).await;
    let both = async || [server.verdict(&old).await, server.verdict(&new).await];
    assert_eq!(both().await, [Verdict::Allowed; 2]);
    let set = |status: Status| Key { id: id.clone(), status: status.into(), ..Key::default() };
    server.change_key(set(Status::Disabled), &[]).await;
    assert_eq!(both().await, [Verdict::Disabled; 2]);
    server.change_key(set(Status::Active), &[]).await;
    assert_eq!(both().await, [Verdict::Allowed; 2]);
    server.advance(600);
    assert_eq!(both().await, [Verdict::Expired; 2]);
    server.revoke(&id).await;
    assert_eq!(both().await, [Verdict::Revoked; 2]);
}

#[tokio::test]
async fn the_grace_period_has_bounds() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    for seconds in [-1, 90 * 86_400 + 1, i64::MAX, i64::MIN] {
        assert_eq!(invalid(server.operator.rotate_key(rotation(&id, seconds)).await), ["grace_period"], "{seconds}");
    }
    let longest = server.operator.rotate_key(rotation(&id, 90 * 86_400)).await.unwrap().key.unwrap();
    assert_eq!(longest.previous_expire_time, server.in_seconds(90 * 86_400));
}

#[tokio::test]
async fn what_cannot_be_rotated_says_why() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    let stale = RotateKeyRequest { etag: "r1".to_owned(), ..rotation(&id, 0) };
    assert_eq!(reason(&refused(server.operator.rotate_key(stale).await, Code::Aborted)), "ETAG_STALE");
    assert!(server.check(&secret).await.allowed, "nothing was changed");
    let etag = server.get_key(&id).await.etag;
    server.operator.rotate_key(RotateKeyRequest { etag, ..rotation(&id, 0) }).await.unwrap();
    server.revoke(&id).await;
    assert_eq!(precondition(server.operator.rotate_key(rotation(&id, 0)).await), "KEY_REVOKED");
    let nobody = rotation("key_0000000000000000000000", 0);
    refused(server.operator.rotate_key(nobody).await, Code::NotFound);
    assert_eq!(invalid(server.operator.rotate_key(rotation("", 0)).await), ["id"]);
}

#[tokio::test]
async fn an_old_secret_makes_no_key_that_outlives_it() {
    let server = Server::start().await;
    let made = server.key(Key { scopes: vec!["tollgate:keys:write".to_owned()], ..key("caller") }).await;
    let old = server.caller(&made.secret);
    let new = server.caller(&server.rotate(&made.key.unwrap().id, 60).await);
    let until = |name: &str, seconds: i64| CreateKeyRequest {
        key: Some(Key { expire_time: server.in_seconds(seconds), ..key(name) }),
    };
    old.create_key(until("within", 60)).await.unwrap();
    let for_good = CreateKeyRequest { key: Some(key("for good")) };
    for request in [until("beyond", 61), for_good.clone()] {
        let status = refused(old.create_key(request).await, Code::PermissionDenied);
        assert!(status.message().contains("expire_time"), "{status:?}");
    }
    new.create_key(for_good).await.unwrap();
}

#[tokio::test]
async fn an_old_secret_in_grace_still_calls() {
    let server = Server::start().await;
    let made = server.key(Key { scopes: vec!["tollgate:check".to_owned()], ..key("k") }).await;
    let (id, old) = (made.key.unwrap().id, made.secret);
    server.rotate(&id, 60).await;
    assert!(server.caller(&old).check_key(of(&old)).await.unwrap().allowed);
    server.advance(60);
    let status = refused(server.caller(&old).check_key(of(&old)).await, Code::Unauthenticated);
    assert_eq!(reason(&status), "ROTATED_OUT");
}

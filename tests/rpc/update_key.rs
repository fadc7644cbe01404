//! `UpdateKey`.

use std::collections::BTreeMap;

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{Server, invalid, key, limit, mask, plan, precondition, reason, refused, strings};

/// Takes over one field of the second.
type Set = fn(&mut Key, Key);

async fn update(server: &Server, key: Key, paths: &[&str]) -> Result<Key, tonic::Status> {
    let request = UpdateKeyRequest { key: Some(key), update_mask: mask(paths) };
    server.operator.update_key(request).await
}

/// A key with a value in every field that can be changed.
fn full(server: &Server, name: &str) -> Key {
    Key {
        description: "before".to_owned(),
        scopes: strings(&["tasks:read"]),
        restrictions: Some(Restrictions { allowed_ips: strings(&["10.0.0.0/8"]), ..Restrictions::default() }),
        limits: vec![limit("l", 5, Period::Hour)],
        expire_time: server.in_seconds(86_400),
        auto_renew: Some(AutoRenew { period: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }) }),
        metadata: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
        ..key(name)
    }
}

/// What an update leaves, but for what every update sets.
fn without_marks(key: Key) -> Key {
    Key { update_time: None, etag: String::new(), usage: None, ..key }
}

#[tokio::test]
async fn each_path_changes_its_field_alone() {
    let server = Server::start().await;
    let made = server.key(full(&server, "before")).await.key.unwrap();
    server.advance(1);
    let changed = Key {
        id: made.id.clone(),
        name: "after".to_owned(),
        description: "after".to_owned(),
        scopes: strings(&["notes:*"]),
        restrictions: Some(Restrictions { allowed_referrers: strings(&["example.com"]), ..Restrictions::default() }),
        limits: vec![Limit { algorithm: Algorithm::FixedWindow.into(), ..limit("m", 6, Period::Day) }],
        status: Status::Disabled.into(),
        expire_time: server.in_seconds(7_200),
        auto_renew: Some(AutoRenew { period: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }) }),
        metadata: BTreeMap::from([("b".to_owned(), "2".to_owned())]),
        ..Key::default()
    };
    let rows: [(&str, Set); 9] = [
        ("name", |key, new| key.name = new.name),
        ("description", |key, new| key.description = new.description),
        ("scopes", |key, new| key.scopes = new.scopes),
        ("restrictions", |key, new| key.restrictions = new.restrictions),
        ("limits", |key, new| key.limits = new.limits),
        ("status", |key, new| key.status = new.status),
        ("expire_time", |key, new| key.expire_time = new.expire_time),
        ("auto_renew", |key, new| key.auto_renew = new.auto_renew),
        ("metadata", |key, new| key.metadata = new.metadata),
    ];
    let mut expected = made.clone();
    for (path, set) in rows {
        set(&mut expected, changed.clone());
        let answer = update(&server, changed.clone(), &[path]).await.unwrap();
        assert_eq!((answer.update_time, answer.create_time), (Some(server.now()), made.create_time));
        assert_eq!(answer, Key { usage: None, ..server.get_key(&made.id).await });
        assert_eq!(without_marks(answer), without_marks(expected.clone()), "{path}");
    }
}

#[tokio::test]
async fn without_a_mask_what_is_not_empty_is_changed_and_with_a_star_everything() {
    let server = Server::start().await;
    let made = server.key(full(&server, "k")).await.key.unwrap();
    let some = Key { id: made.id.clone(), description: "changed".to_owned(), ..Key::default() };
    for request_mask in [None, Some(prost_types::FieldMask::default())] {
        let request = UpdateKeyRequest { key: Some(some.clone()), update_mask: request_mask };
        let answer = server.operator.update_key(request).await.unwrap();
        let expected = Key { description: "changed".to_owned(), ..made.clone() };
        assert_eq!(without_marks(answer), without_marks(expected));
    }
    // What a path names and the key leaves out is emptied.
    let answer =
        update(&server, Key { id: made.id.clone(), ..Key::default() }, &["description", "scopes", "auto_renew"]);
    let answer = answer.await.unwrap();
    assert_eq!((answer.description.as_str(), answer.scopes.len(), answer.auto_renew), ("", 0, None));
    assert_eq!(answer.limits, made.limits);
    let bare = Key { id: made.id.clone(), name: "bare".to_owned(), status: Status::Active.into(), ..Key::default() };
    let expected = Key {
        account_id: made.account_id.clone(),
        environment: made.environment,
        prefix: made.prefix.clone(),
        create_time: made.create_time,
        ..bare.clone()
    };
    assert_eq!(without_marks(update(&server, bare, &["*"]).await.unwrap()), expected);
}

#[tokio::test]
async fn a_mask_names_only_what_can_be_changed() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    let unknown = ["nonsense", "", "Name", "metadata.team", "restrictions.allowed_ips", "key.name", "name,scopes"];
    let output = [
        "id",
        "account_id",
        "environment",
        "prefix",
        "create_time",
        "update_time",
        "last_used_time",
        "last_used_ip",
        "revoke_time",
        "revoke_reason",
        "revoke_actor",
        "rotate_time",
        "previous_prefix",
        "previous_expire_time",
        "etag",
        "usage",
    ];
    for path in unknown.into_iter().chain(output) {
        let change = || Key { id: id.clone(), name: "changed".to_owned(), ..Key::default() };
        assert_eq!(invalid(update(&server, change(), &[path]).await), ["update_mask"], "{path}");
        assert_eq!(invalid(update(&server, change(), &["name", path]).await), ["update_mask"], "{path}");
    }
    let change = Key { id: id.clone(), name: "changed".to_owned(), ..Key::default() };
    let both = update(&server, change, &["*", "name"]).await;
    assert_eq!(invalid(both), ["update_mask"]);
    assert_eq!(server.get_key(&id).await.name, "k");
}

#[tokio::test]
async fn each_wrong_value_is_named() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    let of_key = || Key { id: id.clone(), ..Key::default() };
    let minute = Some(AutoRenew { period: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }) });
    let rows: Vec<(Key, &str, &str)> = vec![
        (of_key(), "name", "key.name"),
        (Key { name: "a\0".to_owned(), ..of_key() }, "name", "key.name"),
        (Key { scopes: strings(&["a:b", "x"]), ..of_key() }, "scopes", "key.scopes[1]"),
        (Key { limits: vec![limit("l", -1, Period::Day)], ..of_key() }, "limits", "key.limits[0]"),
        (of_key(), "status", "key.status"),
        (Key { status: Status::Revoked.into(), ..of_key() }, "status", "key.status"),
        (Key { status: Status::Expired.into(), ..of_key() }, "status", "key.status"),
        (Key { status: 99, ..of_key() }, "status", "key.status"),
        (Key { expire_time: server.in_seconds(0), ..of_key() }, "expire_time", "key.expire_time"),
        (Key { auto_renew: minute, ..of_key() }, "auto_renew", "key.auto_renew"),
        (Key { metadata: BTreeMap::from([(String::new(), String::new())]), ..of_key() }, "metadata", "key.metadata"),
    ];
    for (wrong, path, field) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(update(&server, wrong, &[path]).await), [field], "{shown}");
    }
    // What is not to be changed may be anything.
    let passed_over = Key { description: "d".to_owned(), status: 99, scopes: strings(&["x"]), ..of_key() };
    update(&server, passed_over, &["description"]).await.unwrap();
    assert_eq!(invalid(server.operator.update_key(UpdateKeyRequest::default()).await), ["key"]);
    assert_eq!(invalid(update(&server, Key::default(), &["name"]).await), ["id"]);
    let nobody = Key { id: "key_0000000000000000000000".to_owned(), name: "n".to_owned(), ..Key::default() };
    refused(update(&server, nobody, &["name"]).await, Code::NotFound);
}

#[tokio::test]
async fn a_stale_etag_changes_nothing() {
    let server = Server::start().await;
    let first = server.key(key("k")).await.key.unwrap();
    let described = |etag: &str, description: &str| Key {
        id: first.id.clone(),
        etag: etag.to_owned(),
        description: description.to_owned(),
        ..Key::default()
    };
    let second = update(&server, described(&first.etag, "one"), &[]).await.unwrap();
    assert_ne!(second.etag, first.etag);
    for etag in [first.etag.as_str(), "nonsense"] {
        let status = refused(update(&server, described(etag, "two"), &[]).await, Code::Aborted);
        assert_eq!(reason(&status), "ETAG_STALE");
    }
    assert_eq!(server.get_key(&first.id).await.description, "one");
    update(&server, described(&second.etag, "two"), &[]).await.unwrap();
    update(&server, described("", "three"), &[]).await.unwrap();
}

#[tokio::test]
async fn of_changes_on_the_same_etag_one_is_made() {
    let server = Server::start().await;
    let made = server.key(key("k")).await.key.unwrap();
    let calls: Vec<_> = (0..8)
        .map(|i| {
            let key = Key { description: format!("by {i}"), ..made.clone() };
            let request = UpdateKeyRequest { key: Some(key), update_mask: mask(&["description"]) };
            let client = server.operator.clone();
            tokio::spawn(async move { client.update_key(request).await.map_err(|status| status.code()) })
        })
        .collect();
    let mut made_changes = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => made_changes += 1,
            Err(code) => assert_eq!(code, Code::Aborted),
        }
    }
    assert_eq!(made_changes, 1);
}

#[tokio::test]
async fn a_revoked_key_stays_as_it_is() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    server.revoke(&id).await;
    let before = server.get_key(&id).await;
    for (change, path) in [
        (Key { status: Status::Active.into(), ..Key::default() }, "status"),
        (Key { name: "new".to_owned(), ..Key::default() }, "name"),
        (Key { expire_time: server.in_seconds(60), ..Key::default() }, "expire_time"),
    ] {
        assert_eq!(precondition(update(&server, Key { id: id.clone(), ..change }, &[path]).await), "KEY_REVOKED");
    }
    assert_eq!(server.get_key(&id).await, before);
    assert_eq!(server.verdict(&secret).await, Verdict::Revoked);
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused() {
    let server = Server::start().await;
    let (first, _) = server.plain_key("first").await;
    let (second, _) = server.plain_key("second").await;
    let renamed = |id: &str, name: &str| Key { id: id.to_owned(), name: name.to_owned(), ..Key::default() };
    refused(update(&server, renamed(&second, "first"), &["name"]).await, Code::AlreadyExists);
    update(&server, renamed(&second, "second"), &["name"]).await.unwrap();
    update(&server, renamed(&first, "third"), &["name"]).await.unwrap();
    update(&server, renamed(&second, "first"), &["name"]).await.unwrap();
}

#[tokio::test]
async fn disabling_enabling_and_extending_take_effect_on_the_next_check() {
    let server = Server::start().await;
    let made = server.key(Key { expire_time: server.in_seconds(60), ..key("k") }).await;
    let (id, secret) = (made.key.unwrap().id, made.secret);
    let set = async |change: Key, path: &str| {
        update(&server, Key { id: id.clone(), ..change }, &[path]).await.unwrap();
        server.verdict(&secret).await
    };
    let status = |status: Status| Key { status: status.into(), ..Key::default() };
    assert_eq!(set(status(Status::Disabled), "status").await, Verdict::Disabled);
    assert_eq!(set(status(Status::Active), "status").await, Verdict::Allowed);
    server.advance(60);
    assert_eq!(server.verdict(&secret).await, Verdict::Expired);
    let extended = Key { expire_time: server.in_seconds(60), ..Key::default() };
    assert_eq!(set(extended, "expire_time").await, Verdict::Allowed);
    server.advance(60);
    assert_eq!(set(Key::default(), "expire_time").await, Verdict::Allowed, "without an expiry it never ends");
    server.advance(86_400 * 365 * 20);
    assert_eq!(server.verdict(&secret).await, Verdict::Allowed);
}

#[tokio::test]
async fn scopes_that_the_plan_does_not_allow_are_refused() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    server.change_plan(Plan { allowed_scopes: strings(&["tasks:*"]), ..plan("basic") }, &["allowed_scopes"]).await;
    let scoped = |scope: &str| Key { id: id.clone(), scopes: strings(&[scope]), ..Key::default() };
    assert_eq!(precondition(update(&server, scoped("notes:read"), &["scopes"]).await), "PLAN_DENIED");
    update(&server, scoped("tasks:read"), &["scopes"]).await.unwrap();
}

#[tokio::test]
async fn a_long_renewal_comes_a_day_before_the_expiry() {
    let server = Server::start().await;
    let month = 30 * 86_400;
    let auto_renew = Some(AutoRenew { period: Some(prost_types::Duration { seconds: month, nanos: 0 }) });
    server.key(Key { expire_time: server.in_seconds(month), auto_renew, ..key("k") }).await;
    server.advance(29 * 86_400 - 1);
    assert_eq!(server.engine.renew_keys().await.unwrap(), 0);
    server.advance(1);
    assert_eq!(server.engine.renew_keys().await.unwrap(), 1);
}

#[tokio::test]
async fn a_key_renews_itself_before_its_expiry() {
    let server = Server::start().await;
    let auto_renew = Some(AutoRenew { period: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }) });
    let made = server.key(Key { expire_time: server.in_seconds(3_600), auto_renew, ..key("k") }).await;
    let plain = server.key(Key { expire_time: server.in_seconds(3_600), ..key("plain") }).await;
    let id = made.key.as_ref().unwrap().id.clone();
    let first_expiry = made.key.unwrap().expire_time;
    server.advance(2_699);
    assert_eq!(server.engine.renew_keys().await.unwrap(), 0);
    server.advance(1);
    // A quarter of the period is left.
    assert_eq!(server.engine.renew_keys().await.unwrap(), 1);
    assert_eq!(server.engine.renew_keys().await.unwrap(), 0, "it is not due twice");
    let renewed = server.get_key(&id).await.expire_time.unwrap();
    assert_eq!(renewed.seconds, first_expiry.unwrap().seconds + 3_600);
    server.advance(900);
    assert_eq!(server.check(&made.secret).await.expire_time, Some(renewed));
    assert_eq!(server.verdict(&plain.secret).await, Verdict::Expired);
    // Away for days: one round brings it back beyond now.
    server.advance(86_400 * 3);
    assert_eq!(server.engine.renew_keys().await.unwrap(), 1);
    assert!(server.check(&made.secret).await.allowed);
    let events = server.rows("SELECT actor FROM audit_events ORDER BY revision DESC LIMIT 1").await;
    assert_eq!(events, [["system"]]);
    // Neither a disabled nor a revoked one does.
    update(&server, Key { id: id.clone(), status: Status::Disabled.into(), ..Key::default() }, &[]).await.unwrap();
    server.advance(86_400);
    assert_eq!(server.engine.renew_keys().await.unwrap(), 0);
    server.revoke(&id).await;
    assert_eq!(server.engine.renew_keys().await.unwrap(), 0);
}

//! No key makes, changes or rotates its way to more than it has itself.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::client::Client;
use crate::harness::{ACCOUNT, Server, key, limit, mask, reason, refused, strings};

const WRITE: &str = "tollgate:keys:write";

/// The field that a refusal for more than the caller has itself names.
fn wider<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> String {
    let status = refused(result, Code::PermissionDenied);
    assert_eq!(reason(&status), "PERMISSION_DENIED");
    let field = status.message().split('`').nth(1).unwrap();
    field.strip_prefix("key.").unwrap_or_else(|| panic!("{status:?}")).to_owned()
}

async fn create(client: &Client, key: Key) -> Result<CreateKeyResponse, tonic::Status> {
    client.create_key(CreateKeyRequest { key: Some(key) }).await
}

/// A key of the customer that may write keys, and whatever else it is given; its id and a client that calls with it.
async fn caller(server: &Server, mut own: Key) -> (String, Client) {
    own.scopes.push(WRITE.to_owned());
    let made = server.key(Key { name: "caller".to_owned(), ..own }).await;
    (made.key.unwrap().id, server.caller(&made.secret))
}

#[tokio::test]
async fn scopes() {
    let server = Server::start().await;
    let scopes = strings(&["tasks:read", "notes:*", "tollgate:check"]);
    let (_, client) = caller(&server, Key { scopes, ..key("") }).await;
    let rows: [(&[&str], bool); 11] = [
        (&[], true),
        (&["tasks:read"], true),
        (&["notes:write", "notes:*"], true),
        (&["tollgate:check", WRITE], true),
        (&["tasks:write"], false),
        (&["tasks:*"], false),
        (&["tasks:read", "users:read"], false),
        (&["admin:*"], false),
        (&["tollgate:admin"], false),
        (&["tollgate:keys:read"], false),
        (&["tollgate:usage:read"], false),
    ];
    for (scopes, allowed) in rows {
        let result = create(&client, Key { scopes: strings(scopes), ..key(&format!("with {scopes:?}")) }).await;
        if allowed {
            result.unwrap();
        } else {
            assert_eq!(wider(result), "scopes", "{scopes:?}");
        }
    }
    // The widest of an application's scopes grants none of Tollgate's own.
    let server = Server::start().await;
    let (_, client) = caller(&server, Key { scopes: strings(&["admin:*"]), ..key("") }).await;
    create(&client, Key { scopes: strings(&["anything:at-all", "admin:*"]), ..key("a") }).await.unwrap();
    assert_eq!(wider(create(&client, Key { scopes: strings(&["tollgate:admin"]), ..key("b") }).await), "scopes");
}

#[tokio::test]
async fn a_plans_narrowing_narrows_what_can_be_given_on() {
    let server = Server::start().await;
    let (_, client) = caller(&server, Key { scopes: strings(&["admin:*"]), ..key("") }).await;
    let change = Plan { id: "basic".to_owned(), allowed_scopes: strings(&["tasks:*"]), ..Plan::default() };
    server.change_plan(change, &["allowed_scopes"]).await;
    create(&client, Key { scopes: strings(&["tasks:read"]), ..key("a") }).await.unwrap();
    create(&client, Key { scopes: strings(&["notes:read"]), ..key("b") }).await.unwrap_err();
}

#[tokio::test]
async fn expiry() {
    let server = Server::start().await;
    let (_, client) = caller(&server, Key { expire_time: server.in_seconds(600), ..key("") }).await;
    let minute = Some(AutoRenew { period: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }) });
    create(&client, Key { expire_time: server.in_seconds(600), ..key("a") }).await.unwrap();
    create(&client, Key { expire_time: server.in_seconds(60), ..key("b") }).await.unwrap();
    let rows = [
        (Key { expire_time: server.in_seconds(601), ..key("c") }, "expire_time"),
        (key("c"), "expire_time"),
        (Key { expire_time: server.in_seconds(60), auto_renew: minute, ..key("c") }, "auto_renew"),
    ];
    for (wide, field) in rows {
        assert_eq!(wider(create(&client, wide).await), field);
    }
}

#[tokio::test]
async fn limits() {
    let server = Server::start().await;
    let (_, client) = caller(&server, Key { limits: vec![limit("l", 10, Period::Hour)], ..key("") }).await;
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("l", 5, Period::Hour) };
    let rows = [
        (vec![limit("l", 10, Period::Hour)], true),
        (vec![limit("l", 0, Period::Hour), limit("more", 5, Period::Day)], true),
        (vec![limit("l", 11, Period::Hour)], false),
        (vec![limit("l", 10, Period::Minute)], false),
        (vec![sliding], false),
        (vec![limit("other", 1, Period::Hour)], false),
        (vec![], false),
    ];
    for (place, (limits, allowed)) in rows.into_iter().enumerate() {
        let result = create(&client, Key { limits, ..key(&format!("k{place}")) }).await;
        if allowed {
            result.unwrap();
        } else {
            assert_eq!(wider(result), "limits", "row {place}");
        }
    }
}

#[tokio::test]
async fn limits_of_the_plan_cannot_be_replaced_by_wider_ones() {
    let server = Server::start().await;
    let change = Plan { id: "basic".to_owned(), key_limits: vec![limit("l", 10, Period::Hour)], ..Plan::default() };
    server.change_plan(change, &["key_limits"]).await;
    let (id, client) = caller(&server, key("")).await;
    create(&client, key("as it is")).await.unwrap();
    create(&client, Key { limits: vec![limit("l", 9, Period::Hour)], ..key("narrower") }).await.unwrap();
    for wide in [limit("l", 11, Period::Hour), limit("l", 10, Period::Minute)] {
        assert_eq!(wider(create(&client, Key { limits: vec![wide.clone()], ..key("wider") }).await), "limits");
        let change = Key { id: id.clone(), limits: vec![wide], ..Key::default() };
        let update = UpdateKeyRequest { key: Some(change), update_mask: mask(&["limits"]) };
        assert_eq!(wider(client.update_key(update).await), "limits");
    }
    // An operator may.
    server.key(Key { limits: vec![limit("l", 11, Period::Hour)], ..key("by the operator") }).await;
}

#[tokio::test]
async fn restrictions() {
    let server = Server::start().await;
    let own = Restrictions {
        allowed_ips: strings(&["127.0.0.0/8", "10.0.0.0/8"]),
        allowed_referrers: strings(&["example.com", "*.example.com"]),
        allowed_endpoints: strings(&["GET /v1/*", "* /v2/**"]),
    };
    let (_, client) = caller(&server, Key { restrictions: Some(own.clone()), ..key("") }).await;
    let with = |change: fn(&mut Restrictions)| {
        let mut restrictions = own.clone();
        change(&mut restrictions);
        Some(restrictions)
    };
    let rows = [
        (with(|_| {}), None),
        (with(|r| r.allowed_ips = strings(&["10.1.0.0/16"])), None),
        (with(|r| r.allowed_referrers = strings(&["example.com"])), None),
        (with(|r| r.allowed_endpoints = strings(&["GET /v1/*"])), None),
        (with(|r| r.allowed_ips = Vec::new()), Some("restrictions.allowed_ips")),
        (with(|r| r.allowed_ips = strings(&["10.0.0.0/7"])), Some("restrictions.allowed_ips")),
        (with(|r| r.allowed_ips.push("::1".to_owned())), Some("restrictions.allowed_ips")),
        (with(|r| r.allowed_referrers = Vec::new()), Some("restrictions.allowed_referrers")),
        (with(|r| r.allowed_referrers.push("example.org".to_owned())), Some("restrictions.allowed_referrers")),
        (with(|r| r.allowed_endpoints = Vec::new()), Some("restrictions.allowed_endpoints")),
        (with(|r| r.allowed_endpoints.push("* /**".to_owned())), Some("restrictions.allowed_endpoints")),
        (None, Some("restrictions.allowed_ips")),
    ];
    for (place, (restrictions, field)) in rows.into_iter().enumerate() {
        let result = create(&client, Key { restrictions, ..key(&format!("k{place}")) }).await;
        match field {
            None => drop(result.unwrap()),
            Some(field) => assert_eq!(wider(result), field, "row {place}"),
        }
    }
}

#[tokio::test]
async fn environment() {
    let server = Server::start().await;
    let (_, test) = caller(&server, Key { environment: Environment::Test.into(), ..key("") }).await;
    create(&test, Key { environment: Environment::Test.into(), ..key("a") }).await.unwrap();
    assert_eq!(wider(create(&test, key("b")).await), "environment");
    let made = server.key(Key { scopes: strings(&[WRITE]), ..key("live") }).await;
    let live = server.caller(&made.secret);
    create(&live, Key { environment: Environment::Test.into(), ..key("c") }).await.unwrap();
}

#[tokio::test]
async fn what_is_wider_can_be_neither_changed_nor_rotated_but_ended() {
    let server = Server::start().await;
    let (own_id, client) = caller(&server, Key { scopes: strings(&["tasks:read"]), ..key("") }).await;
    let wide = server.key(Key { scopes: strings(&["tasks:*"]), ..key("wide") }).await;
    let wide_id = wide.key.unwrap().id;
    let narrow = server.key(Key { scopes: strings(&["tasks:read"]), ..key("narrow") }).await.key.unwrap().id;

    let update = async |change: Key, path: &str| {
        client.update_key(UpdateKeyRequest { key: Some(change), update_mask: mask(&[path]) }).await
    };
    let renamed = |id: &str| Key { id: id.to_owned(), name: format!("renamed {}", &id[4..]), ..Key::default() };
    let scoped = |id: &str, scope: &str| Key { id: id.to_owned(), scopes: strings(&[scope]), ..Key::default() };
    assert_eq!(wider(update(renamed(&wide_id), "name").await), "scopes");
    update(renamed(&narrow), "name").await.unwrap();
    for id in [&own_id, &narrow] {
        assert_eq!(wider(update(scoped(id, "tasks:write"), "scopes").await), "scopes");
        assert_eq!(wider(update(scoped(id, "tollgate:admin"), "scopes").await), "scopes");
    }
    // Made narrow enough by the change itself.
    let rotation = |id: &str| RotateKeyRequest { id: id.to_owned(), ..RotateKeyRequest::default() };
    assert_eq!(wider(client.rotate_key(rotation(&wide_id)).await), "scopes");
    assert!(server.check(&wide.secret).await.allowed, "its secret is the old one");
    client.rotate_key(rotation(&narrow)).await.unwrap();
    update(scoped(&wide_id, "tasks:read"), "scopes").await.unwrap();
    client.rotate_key(rotation(&wide_id)).await.unwrap();

    let wide = server.key(Key { scopes: strings(&["tasks:*"]), ..key("wide again") }).await.key.unwrap().id;
    client.revoke_key(RevokeKeyRequest { id: wide, reason: String::new() }).await.unwrap();
}

#[tokio::test]
async fn a_key_does_not_extend_its_own_life_or_lift_its_own_bounds() {
    let server = Server::start().await;
    let restrictions = Restrictions { allowed_ips: strings(&["127.0.0.1"]), ..Restrictions::default() };
    let own = Key {
        expire_time: server.in_seconds(600),
        limits: vec![limit("l", 10, Period::Hour)],
        restrictions: Some(restrictions),
        ..key("")
    };
    let (id, client) = caller(&server, own).await;
    let rows = [
        (Key { expire_time: server.in_seconds(601), ..Key::default() }, "expire_time"),
        (Key::default(), "expire_time"),
        (Key { limits: vec![limit("l", 11, Period::Hour)], ..Key::default() }, "limits"),
        (Key::default(), "limits"),
        (Key::default(), "restrictions"),
    ];
    for (change, path) in rows {
        let update = UpdateKeyRequest { key: Some(Key { id: id.clone(), ..change }), update_mask: mask(&[path]) };
        let field = wider(client.update_key(update).await);
        assert!(field.starts_with(path), "{field} for {path}");
    }
}

#[tokio::test]
async fn an_operator_gives_any_scope_of_an_application_but_only_its_own_of_tollgates() {
    let server = Server::start().await;
    let narrow = server.caller_of("acct_operator", &[WRITE, "tollgate:keys:read"]).await;
    create(&narrow, Key { scopes: strings(&["admin:*", "tasks:read"]), ..key("a") }).await.unwrap();
    create(&narrow, Key { scopes: strings(&["tollgate:keys:read"]), ..key("b") }).await.unwrap();
    for scope in ["tollgate:admin", "tollgate:check", "tollgate:usage:read"] {
        assert_eq!(wider(create(&narrow, Key { scopes: strings(&[scope]), ..key("c") }).await), "scopes");
    }
    // Not even by a detour over another operator's key.
    let rotation = RotateKeyRequest { id: server.operator_key_id.clone(), ..RotateKeyRequest::default() };
    assert_eq!(wider(narrow.rotate_key(rotation).await), "scopes");
    let of_operators = Key { account_id: "acct_operator".to_owned(), ..key("d") };
    let wide = Key { scopes: strings(&["tollgate:admin"]), ..of_operators };
    assert_eq!(wider(create(&narrow, wide).await), "scopes");
}

#[tokio::test]
async fn an_operators_bounds_hold_for_keys_of_operators_alone() {
    let server = Server::start().await;
    let own = Key {
        account_id: "acct_operator".to_owned(),
        expire_time: server.in_seconds(600),
        limits: vec![limit("l", 10, Period::Hour)],
        ..key("")
    };
    let (_, client) = caller(&server, own).await;
    create(&client, Key { account_id: ACCOUNT.to_owned(), ..key("for good") }).await.unwrap();
    let of_operators = Key { account_id: "acct_operator".to_owned(), ..key("for good") };
    assert_eq!(wider(create(&client, of_operators).await), "expire_time");
}

#[tokio::test]
async fn an_import_is_no_detour() {
    let server = Server::start().await;
    let (_, client) = caller(&server, Key { expire_time: server.in_seconds(600), ..key("") }).await;
    let row = |hash: &str, key: Key| ImportKeysRequest {
        dry_run: false,
        key: Some(ImportedKey { hash: hash.repeat(32), key: Some(key) }),
    };
    let within = Key { expire_time: server.in_seconds(60), ..key("a") };
    let wide = Key { scopes: strings(&["tollgate:admin"]), ..within.clone() };
    let rows = vec![row("aa", within), row("bb", wide), row("cc", key("c"))];
    let answer = client.import_keys(rows).await.unwrap();
    assert_eq!((answer.imported, answer.failed), (1, 2));
    assert!(answer.errors[0].message.contains("key.scopes"), "{answer:?}");
    assert!(answer.errors[1].message.contains("key.expire_time"), "{answer:?}");
}

#[tokio::test]
async fn the_plans_limits_bound_what_can_be_given_on_too() {
    let server = Server::start().await;
    let change = Plan { id: "basic".to_owned(), key_limits: vec![limit("per-day", 3, Period::Day)], ..Plan::default() };
    server.change_plan(change, &["key_limits"]).await;
    let (own_id, client) = caller(&server, key("")).await;
    create(&client, key("as the plan has it")).await.unwrap();
    let tight = Key { limits: vec![limit("per-day", 2, Period::Day)], ..key("tight") };
    create(&client, tight).await.unwrap();
    for (name, wide) in
        [("more", limit("per-day", 4, Period::Day)), ("another period", limit("per-day", 3, Period::Minute))]
    {
        let new = Key { limits: vec![wide.clone()], ..key(name) };
        assert_eq!(wider(create(&client, new).await), "limits", "{name}");
        let own = Key { id: own_id.clone(), limits: vec![wide], ..Key::default() };
        let change = UpdateKeyRequest { key: Some(own), update_mask: mask(&["limits"]) };
        assert_eq!(wider(client.update_key(change).await), "limits", "{name}");
    }
}

#[tokio::test]
async fn a_secret_in_its_grace_period_makes_nothing_that_outlives_it() {
    let server = Server::start().await;
    let made = server.key(Key { scopes: strings(&[WRITE]), ..key("leaked") }).await;
    let id = made.key.unwrap().id;
    let old = server.caller(&made.secret);
    server.rotate(&id, 60).await;
    assert_eq!(wider(create(&old, key("for good")).await), "expire_time");
    create(&old, Key { expire_time: server.in_seconds(60), ..key("as long as itself") }).await.unwrap();
    let rotation = RotateKeyRequest { id, ..RotateKeyRequest::default() };
    assert_eq!(wider(old.rotate_key(rotation).await), "expire_time");
}

#[tokio::test]
async fn what_is_checked_is_what_the_plan_allows() {
    let server = Server::start().await;
    let scopes = strings(&["tasks:*", "notes:read", "tollgate:check"]);
    let made = server.key(Key { scopes, ..key("k") }).await;
    let change = Plan { id: "basic".to_owned(), allowed_scopes: strings(&["tasks:read"]), ..Plan::default() };
    server.change_plan(change, &["allowed_scopes"]).await;
    let answer = server.check(&made.secret).await;
    assert!(answer.allowed);
    assert_eq!(answer.scopes, ["tollgate:check", "tasks:read"]);
}

#[tokio::test]
async fn a_limit_that_is_taken_away_and_put_back_is_as_spent_as_before() {
    let server = Server::start().await;
    let made = server.key(Key { limits: vec![limit("l", 2, Period::Minute)], ..key("k") }).await;
    let id = made.key.unwrap().id;
    for _ in 0..2 {
        assert!(server.check(&made.secret).await.allowed);
    }
    for limits in [vec![limit("l", 2, Period::Day)], vec![], vec![limit("l", 2, Period::Minute)]] {
        server.change_key(Key { id: id.clone(), limits, ..Key::default() }, &["limits"]).await;
        server.check(&made.secret).await;
    }
    assert_eq!(server.verdict(&made.secret).await, Verdict::RateLimited);
}

#[tokio::test]
async fn a_plan_without_api_access_has_no_callers() {
    let server = Server::start().await;
    let (_, client) = caller(&server, key("")).await;
    server.change_plan(Plan { id: "basic".to_owned(), ..Plan::default() }, &["api_access"]).await;
    let status = refused(create(&client, key("a")).await, Code::Unauthenticated);
    assert_eq!(reason(&status), "PLAN_DENIED");
}

#[tokio::test]
async fn min_revision_makes_only_callers_wait() {
    let server = Server::start().await;
    let request = CheckKeyRequest { min_revision: i64::MAX, ..CheckKeyRequest::default() };
    let status = refused(server.anonymous().check_key(request).await, Code::Unauthenticated);
    assert!(!status.message().contains("revision"), "{status:?}");
}

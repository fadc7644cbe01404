//! `CreateKey`.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{
    ACCOUNT, OTHER_ACCOUNT, PLAN, Server, account, invalid, key, limit, plan, precondition, reason, refused, strings,
};

async fn create(server: &Server, key: Key) -> Result<CreateKeyResponse, tonic::Status> {
    server.operator.create_key(CreateKeyRequest { key: Some(key) }).await
}

#[expect(clippy::unnecessary_wraps, reason = "messages hold it as an option")]
fn days(days: i64) -> Option<AutoRenew> {
    Some(AutoRenew { period: Some(prost_types::Duration { seconds: days * 86_400, nanos: 0 }) })
}

#[tokio::test]
async fn a_key_is_made_as_it_was_asked_for() {
    let server = Server::start().await;
    let wanted = Key {
        description: "two\nlines".to_owned(),
        environment: Environment::Test.into(),
        scopes: strings(&["tasks:read", "notes:*"]),
        restrictions: Some(Restrictions {
            allowed_ips: strings(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]),
            allowed_referrers: strings(&["*.example.com"]),
            allowed_endpoints: strings(&["GET /v1/tasks/*", "* api.example.com/**"]),
        }),
        limits: vec![
            Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("a", 5, Period::Minute) },
            Limit {
                period_seconds: 90,
                algorithm: Algorithm::FixedWindow.into(),
                ..limit("b", 1_000_000_000_000_000, Period::Seconds)
            },
        ],
        expire_time: server.in_seconds(86_400 * 30),
        auto_renew: days(10),
        metadata: BTreeMap::from([("team".to_owned(), "ü".to_owned())]),
        ..key("mine")
    };
    let made = create(&server, wanted.clone()).await.unwrap();
    let key = made.key.unwrap();
    let expected = Key {
        id: key.id.clone(),
        prefix: made.secret[..12].to_owned(),
        status: Status::Active.into(),
        create_time: Some(server.now()),
        update_time: Some(server.now()),
        etag: format!("r{}", made.revision),
        ..wanted
    };
    assert_eq!(key, expected);
    assert!(key.id.starts_with("key_") && key.id.len() == 26);
    assert!(made.secret.starts_with("sk_test_") && made.secret.len() == 57);
    assert_eq!(made.revision, server.engine.index_size().2.number());
    let read = server.get_key(&key.id).await;
    assert_eq!(Key { usage: None, ..read }, expected);
}

#[tokio::test]
async fn what_is_left_out_has_a_default_and_what_is_output_is_passed_over() {
    let server = Server::start().await;
    let long_ago = Some(Timestamp { seconds: 1, nanos: 0 });
    let wanted = Key {
        id: "key_0000000000000000000000".to_owned(),
        prefix: "sk_live_fake".to_owned(),
        create_time: long_ago,
        update_time: long_ago,
        last_used_time: long_ago,
        last_used_ip: "192.0.2.1".to_owned(),
        revoke_time: long_ago,
        revoke_reason: "none".to_owned(),
        revoke_actor: "me".to_owned(),
        rotate_time: long_ago,
        previous_prefix: "sk_live_0000".to_owned(),
        previous_expire_time: long_ago,
        etag: "r99".to_owned(),
        usage: Some(KeyUsage { requests_today: 9, requests_this_month: 9 }),
        ..key("k")
    };
    let made = create(&server, wanted).await.unwrap();
    let found = made.key.unwrap();
    let expected = Key {
        id: found.id.clone(),
        environment: Environment::Live.into(),
        prefix: made.secret[..12].to_owned(),
        status: Status::Active.into(),
        create_time: Some(server.now()),
        update_time: Some(server.now()),
        etag: format!("r{}", made.revision),
        ..key("k")
    };
    assert_eq!(found, expected);
    assert!(server.check(&made.secret).await.allowed);
}

#[tokio::test]
async fn each_key_is_new_and_they_sort_by_their_making() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    let mut secrets = std::collections::HashSet::new();
    for i in 0..20 {
        let (id, secret) = server.plain_key(&format!("k{i}")).await;
        ids.push(id);
        assert!(secrets.insert(secret));
    }
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn each_wrong_field_is_named() {
    let server = Server::start().await;
    let soon = server.in_seconds(60);
    let limits = |limits: Vec<Limit>| Key { limits, ..key("k") };
    let hour = || limit("l", 1, Period::Hour);
    let within = |change: fn(&mut Restrictions)| {
        let mut restrictions = Restrictions::default();
        change(&mut restrictions);
        Key { restrictions: Some(restrictions), ..key("k") }
    };
    let metadata = |entries: &[(&str, &str)]| {
        let metadata = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Key { metadata, ..key("k") }
    };
    let many: Vec<(String, &str)> = (0..17).map(|i| (format!("k{i}"), "v")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let far = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let rows: Vec<(Key, &str)> = vec![
        (key(""), "key.name"),
        (key(&"n".repeat(101)), "key.name"),
        (key(" padded"), "key.name"),
        (key("bell\u{7}"), "key.name"),
        (Key { description: "d".repeat(1_001), ..key("k") }, "key.description"),
        (Key { description: "\u{1b}[31m".to_owned(), ..key("k") }, "key.description"),
        (Key { account_id: "nonsense".to_owned(), ..key("k") }, "key.account_id"),
        (Key { account_id: String::new(), ..key("k") }, "key.account_id"),
        (Key { environment: 7, ..key("k") }, "key.environment"),
        (Key { status: Status::Disabled.into(), ..key("k") }, "key.status"),
        (Key { status: 17, ..key("k") }, "key.status"),
        (Key { scopes: strings(&["tasks:read", "tasks"]), ..key("k") }, "key.scopes[1]"),
        (Key { scopes: strings(&["*:*"]), ..key("k") }, "key.scopes[0]"),
        (Key { scopes: strings(&["tollgate:*"]), ..key("k") }, "key.scopes[0]"),
        (Key { scopes: strings(&["a:b", "a:b"]), ..key("k") }, "key.scopes"),
        (Key { scopes: (0..65).map(|i| format!("a:b{i}")).collect(), ..key("k") }, "key.scopes"),
        (within(|r| r.allowed_ips = strings(&["10.0.0.0/33"])), "key.restrictions.allowed_ips[0]"),
        (within(|r| r.allowed_ips = strings(&["::1", "10.0.0.1/8"])), "key.restrictions.allowed_ips[1]"),
        (within(|r| r.allowed_referrers = strings(&["https://a.b"])), "key.restrictions.allowed_referrers[0]"),
        (within(|r| r.allowed_endpoints = strings(&["get /v1"])), "key.restrictions.allowed_endpoints[0]"),
        (within(|r| r.allowed_endpoints = strings(&["GET /**/x"])), "key.restrictions.allowed_endpoints[0]"),
        (within(|r| r.allowed_ips = (0..65).map(|i| format!("10.0.0.{i}")).collect()), "key.restrictions.allowed_ips"),
        (limits(vec![limit("L", 1, Period::Hour)]), "key.limits[0]"),
        (limits(vec![limit("", 1, Period::Hour)]), "key.limits[0]"),
        (limits(vec![hour(), limit("neg", -1, Period::Hour)]), "key.limits[1]"),
        (limits(vec![limit("big", 1_000_000_000_000_001, Period::Hour)]), "key.limits[0]"),
        (limits(vec![limit("l", 1, Period::Unspecified)]), "key.limits[0]"),
        (limits(vec![limit("l", 1, Period::Seconds)]), "key.limits[0]"),
        (limits(vec![Limit { period: 6, ..hour() }]), "key.limits[0]"),
        (limits(vec![Limit { period_seconds: 5, ..hour() }]), "key.limits[0]"),
        (limits(vec![Limit { period_seconds: 31_536_001, ..limit("l", 1, Period::Seconds) }]), "key.limits[0]"),
        (limits(vec![Limit { algorithm: 3, ..hour() }]), "key.limits[0]"),
        (limits(vec![hour(), hour()]), "key.limits"),
        (limits((0..9).map(|i| limit(&format!("l{i}"), 1, Period::Hour)).collect()), "key.limits"),
        (Key { expire_time: server.in_seconds(0), ..key("k") }, "key.expire_time"),
        (Key { expire_time: server.in_seconds(-1), ..key("k") }, "key.expire_time"),
        (Key { expire_time: far, ..key("k") }, "key.expire_time"),
        (Key { auto_renew: days(1), ..key("k") }, "key.auto_renew"),
        (Key { auto_renew: Some(AutoRenew { period: None }), expire_time: soon, ..key("k") }, "key.auto_renew.period"),
        (Key { auto_renew: days(0), expire_time: soon, ..key("k") }, "key.auto_renew.period"),
        (Key { auto_renew: days(3_651), expire_time: soon, ..key("k") }, "key.auto_renew.period"),
        (metadata(&many), "key.metadata"),
        (metadata(&[("", "v")]), "key.metadata"),
        (metadata(&[(&"k".repeat(41), "v")]), "key.metadata"),
        (metadata(&[("k", &"v".repeat(201))]), "key.metadata"),
        (metadata(&[("k", "a\r\nb")]), "key.metadata"),
    ];
    for (wrong, field) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(create(&server, wrong).await), [field], "{shown}");
    }
    assert_eq!(invalid(server.operator.create_key(CreateKeyRequest { key: None }).await), ["key"]);
    // All that is wrong is told at once.
    let wrong = Key { name: String::new(), environment: 9, scopes: strings(&["x"]), ..key("k") };
    assert_eq!(invalid(create(&server, wrong).await), ["key.name", "key.environment", "key.scopes[0]"]);
    // As far as it fits into the head of an answer.
    let wrong = Key { scopes: vec!["x".to_owned(); 64], ..key("k") };
    assert_eq!(invalid(create(&server, wrong).await), (0..8).map(|i| format!("key.scopes[{i}]")).collect::<Vec<_>>());
    let wrong = Key { scopes: vec!["x".to_owned(); 20_000], ..key("k") };
    assert_eq!(invalid(create(&server, wrong).await), ["key.scopes"]);
}

#[tokio::test]
async fn bounds_hold_their_last_value() {
    let server = Server::start().await;
    let widest = Key {
        description: "ü".repeat(1_000),
        scopes: (0..64).map(|i| format!("a:b{i}")).collect(),
        restrictions: Some(Restrictions {
            allowed_ips: (0..64).map(|i| format!("10.0.0.{i}")).collect(),
            ..Restrictions::default()
        }),
        limits: (0..8).map(|i| limit(&format!("l{i}"), 0, Period::Hour)).collect(),
        metadata: (0..16).map(|i| (format!("{i:040}"), "v".repeat(200))).collect(),
        expire_time: server.in_seconds(60),
        auto_renew: days(3_650),
        ..key(&"ü".repeat(100))
    };
    create(&server, widest).await.unwrap();
}

#[tokio::test]
async fn names_differ_among_the_keys_of_an_account_that_are_not_revoked() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("taken").await;
    let status = refused(create(&server, key("taken")).await, Code::AlreadyExists);
    assert_eq!(reason(&status), "ALREADY_EXISTS");
    assert!(status.message().contains("taken"));
    create(&server, Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("taken") }).await.unwrap();
    let disabled = Key { id: id.clone(), status: Status::Disabled.into(), ..Key::default() };
    server.change_key(disabled, &["status"]).await;
    refused(create(&server, key("taken")).await, Code::AlreadyExists);
    server.revoke(&id).await;
    let again = Key { expire_time: server.in_seconds(1), ..key("taken") };
    let again = create(&server, again).await.unwrap().key.unwrap().id;
    server.advance(1);
    refused(create(&server, key("taken")).await, Code::AlreadyExists);
    server.revoke(&again).await;
    create(&server, key("taken")).await.unwrap();
}

#[tokio::test]
async fn the_state_of_account_and_plan_has_to_permit_it() {
    let server = Server::start().await;
    let of_account = |id: &str, name: &str| Key { account_id: id.to_owned(), ..key(name) };
    refused(create(&server, of_account("acct_nobody", "k")).await, Code::NotFound);

    server.account(Account { status: AccountStatus::Suspended.into(), ..account("acct_s", PLAN) }).await;
    assert_eq!(precondition(create(&server, of_account("acct_s", "k")).await), "ACCOUNT_SUSPENDED");

    server.plan(Plan { api_access: false, ..plan("none") }).await;
    server.account(account("acct_n", "none")).await;
    assert_eq!(precondition(create(&server, of_account("acct_n", "k")).await), "PLAN_DENIED");

    server.plan(Plan { allowed_scopes: strings(&["tasks:*"]), ..plan("tasks") }).await;
    server.account(account("acct_t", "tasks")).await;
    let scoped = |name: &str, scope: &str| Key { scopes: strings(&[scope]), ..of_account("acct_t", name) };
    assert_eq!(precondition(create(&server, scoped("k", "notes:read")).await), "PLAN_DENIED");
    assert_eq!(precondition(create(&server, scoped("k", "admin:*")).await), "PLAN_DENIED");
    create(&server, scoped("k", "tasks:*")).await.unwrap();
    create(&server, scoped("own", "tollgate:check")).await.unwrap();

    server.plan(Plan { max_keys: 2, ..plan("two") }).await;
    server.account(account("acct_two", "two")).await;
    let first = create(&server, of_account("acct_two", "a")).await.unwrap().key.unwrap().id;
    create(&server, of_account("acct_two", "b")).await.unwrap();
    assert_eq!(precondition(create(&server, of_account("acct_two", "c")).await), "TOO_MANY_KEYS");
    server.revoke(&first).await;
    create(&server, of_account("acct_two", "c")).await.unwrap();
}

#[tokio::test]
async fn keys_made_at_once_do_not_exceed_what_the_plan_allows() {
    let server = Server::start().await;
    server.change_plan(Plan { max_keys: 5, ..plan(PLAN) }, &["max_keys"]).await;
    let calls: Vec<_> = (0..12)
        .map(|i| {
            let (client, key) = (server.operator.clone(), key(&format!("k{i}")));
            tokio::spawn(async move { client.create_key(CreateKeyRequest { key: Some(key) }).await.is_ok() })
        })
        .collect();
    let mut made = 0;
    for call in calls {
        made += usize::from(call.await.unwrap());
    }
    assert_eq!(made, 5);
    let list = ListKeysRequest { account_id: ACCOUNT.to_owned(), ..ListKeysRequest::default() };
    assert_eq!(server.operator.list_keys(list).await.unwrap().keys.len(), 5);
}

#[tokio::test]
async fn an_expiry_ends_the_key_to_the_millisecond() {
    let server = Server::start().await;
    let secret = create(&server, Key { expire_time: server.in_seconds(60), ..key("k") }).await.unwrap().secret;
    server.clock.advance(std::time::Duration::from_millis(59_999));
    assert!(server.check(&secret).await.allowed);
    server.clock.advance(std::time::Duration::from_millis(1));
    assert_eq!(server.verdict(&secret).await, Verdict::Expired);
}

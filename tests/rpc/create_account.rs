//! `CreateAccount`.

use std::collections::BTreeMap;

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, PLAN, Server, account, invalid, key, limit, precondition, reason, refused};

async fn create(server: &Server, account: Account) -> Result<Account, tonic::Status> {
    server.operator.create_account(CreateAccountRequest { account: Some(account) }).await
}

#[tokio::test]
async fn an_account_is_made_as_it_was_asked_for() {
    let server = Server::start().await;
    let fixed = |limit| Limit { algorithm: Algorithm::FixedWindow.into(), ..limit };
    let wanted = Account {
        name: "Ünïque & Co".to_owned(),
        status: AccountStatus::Suspended.into(),
        time_zone: "Europe/Berlin".to_owned(),
        key_limits: vec![fixed(limit("a", 5, Period::Minute))],
        account_limits: vec![fixed(limit("a", 50, Period::Day))],
        monthly_credits: Some(1_000),
        credits_reset_day: 31,
        metadata: BTreeMap::from([("crm".to_owned(), "4711".to_owned())]),
        ..account("acct_Full1", PLAN)
    };
    let made = create(&server, wanted.clone()).await.unwrap();
    let expected = Account {
        create_time: Some(server.now()),
        update_time: Some(server.now()),
        etag: format!("r{}", server.engine.index_size().2.number()),
        ..wanted
    };
    assert_eq!(made, expected);
    let read = server.operator.get_account(GetAccountRequest { id: made.id }).await.unwrap();
    assert_eq!(read, expected);
}

#[tokio::test]
async fn what_is_left_out_has_a_default() {
    let server = Server::start().await;
    let long_ago = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    let wanted = Account { create_time: long_ago, update_time: long_ago, etag: "r1".to_owned(), ..account("", PLAN) };
    let wanted = Account { name: "bare".to_owned(), ..wanted };
    let made = create(&server, wanted.clone()).await.unwrap();
    assert!(made.id.starts_with("acct_") && made.id.len() == 27, "{}", made.id);
    let expected = Account {
        id: made.id.clone(),
        status: AccountStatus::Active.into(),
        time_zone: "UTC".to_owned(),
        credits_reset_day: 1,
        create_time: Some(server.now()),
        update_time: Some(server.now()),
        etag: made.etag.clone(),
        ..wanted
    };
    assert_eq!(made, expected);
    let again = create(&server, Account { name: "bare".to_owned(), ..account("", PLAN) }).await.unwrap();
    assert_ne!(again.id, made.id);
    // It is there for keys at once.
    server.key(Key { account_id: made.id, ..key("k") }).await;
}

#[tokio::test]
async fn each_wrong_field_is_named() {
    let server = Server::start().await;
    let good = || account("acct_new", PLAN);
    let rows: Vec<(Account, &[&str])> = vec![
        (account("nonsense", PLAN), &["account.id"]),
        (account("acct_", PLAN), &["account.id"]),
        (account("acct_a b", PLAN), &["account.id"]),
        (account(&format!("acct_{}", "a".repeat(41)), PLAN), &["account.id"]),
        (Account { name: String::new(), ..good() }, &["account.name"]),
        (Account { name: "n".repeat(101), ..good() }, &["account.name"]),
        (account("acct_new", ""), &["account.plan"]),
        (account("acct_new", "No Plan"), &["account.plan"]),
        (Account { status: 3, ..good() }, &["account.status"]),
        (Account { time_zone: "Mars/Olympus".to_owned(), ..good() }, &["account.time_zone"]),
        (Account { time_zone: "../../etc/passwd".to_owned(), ..good() }, &["account.time_zone"]),
        (Account { key_limits: vec![limit("x y", 1, Period::Day)], ..good() }, &["account.key_limits[0]"]),
        (Account { account_limits: vec![limit("l", -1, Period::Day)], ..good() }, &["account.account_limits[0]"]),
        (Account { key_limits: vec![limit("l", 1, Period::Day); 2], ..good() }, &["account.key_limits"]),
        (Account { monthly_credits: Some(-2), ..good() }, &["account.monthly_credits"]),
        (Account { monthly_credits: Some(i64::MAX), ..good() }, &["account.monthly_credits"]),
        (Account { credits_reset_day: 32, ..good() }, &["account.credits_reset_day"]),
        (Account { credits_reset_day: -1, ..good() }, &["account.credits_reset_day"]),
        (
            Account { metadata: (0..17).map(|i| (format!("k{i}"), String::new())).collect(), ..good() },
            &["account.metadata"],
        ),
        (
            Account { name: String::new(), time_zone: "x".to_owned(), ..account("x", "") },
            &["account.id", "account.name", "account.plan", "account.time_zone"],
        ),
    ];
    for (wrong, fields) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(create(&server, wrong).await), fields, "{shown}");
    }
    assert_eq!(invalid(server.operator.create_account(CreateAccountRequest::default()).await), ["account"]);
}

#[tokio::test]
async fn what_stands_in_the_way_is_told() {
    let server = Server::start().await;
    assert_eq!(precondition(create(&server, account("acct_new", "nothing")).await), "NO_SUCH_PLAN");
    for taken in [ACCOUNT, "acct_operator"] {
        let status = refused(create(&server, account(taken, PLAN)).await, Code::AlreadyExists);
        assert_eq!(reason(&status), "ALREADY_EXISTS");
    }
}

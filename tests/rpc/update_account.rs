//! `UpdateAccount`. What a change does to checks is in `check_key`.

use std::collections::BTreeMap;

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, PLAN, Server, account, invalid, limit, mask, plan, precondition, reason, refused};

/// Takes over one field of the second.
type Set = fn(&mut Account, Account);

async fn update(server: &Server, account: Account, paths: &[&str]) -> Result<Account, tonic::Status> {
    let request = UpdateAccountRequest { account: Some(account), update_mask: mask(paths) };
    server.operator.update_account(request).await
}

fn subject() -> Account {
    Account { id: ACCOUNT.to_owned(), ..Account::default() }
}

fn without_marks(account: Account) -> Account {
    Account { update_time: None, etag: String::new(), ..account }
}

fn fixed(limit: Limit) -> Vec<Limit> {
    vec![Limit { algorithm: Algorithm::FixedWindow.into(), ..limit }]
}

#[tokio::test]
async fn each_path_changes_its_field_alone() {
    let server = Server::start().await;
    server.plan(plan("other")).await;
    let made = server.operator.get_account(GetAccountRequest { id: ACCOUNT.to_owned() }).await.unwrap();
    let changed = Account {
        name: "after".to_owned(),
        plan: "other".to_owned(),
        status: AccountStatus::Suspended.into(),
        time_zone: "Asia/Tokyo".to_owned(),
        key_limits: fixed(limit("k", 1, Period::Hour)),
        account_limits: fixed(limit("a", 2, Period::Hour)),
        monthly_credits: Some(-1),
        credits_reset_day: 15,
        metadata: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
        ..subject()
    };
    let rows: [(&str, Set); 9] = [
        ("name", |account, new| account.name = new.name),
        ("plan", |account, new| account.plan = new.plan),
        ("status", |account, new| account.status = new.status),
        ("time_zone", |account, new| account.time_zone = new.time_zone),
        ("key_limits", |account, new| account.key_limits = new.key_limits),
        ("account_limits", |account, new| account.account_limits = new.account_limits),
        ("monthly_credits", |account, new| account.monthly_credits = new.monthly_credits),
        ("credits_reset_day", |account, new| account.credits_reset_day = new.credits_reset_day),
        ("metadata", |account, new| account.metadata = new.metadata),
    ];
    let mut expected = made.clone();
    for (path, set) in rows {
        server.advance(1);
        set(&mut expected, changed.clone());
        let answer = update(&server, changed.clone(), &[path]).await.unwrap();
        assert_eq!((answer.create_time, answer.update_time), (made.create_time, Some(server.now())));
        assert_eq!(answer.etag, format!("r{}", server.engine.index_size().2.number()));
        assert_eq!(without_marks(answer), without_marks(expected.clone()), "{path}");
    }
    // Without a mask what is not empty, with a star everything.
    let answer = update(&server, Account { name: "again".to_owned(), ..subject() }, &[]).await.unwrap();
    assert_eq!(without_marks(answer), without_marks(Account { name: "again".to_owned(), ..expected }));
    let answer = update(&server, Account { name: "bare".to_owned(), plan: PLAN.to_owned(), ..subject() }, &["*"]).await;
    let expected = Account {
        name: "bare".to_owned(),
        status: AccountStatus::Active.into(),
        time_zone: "UTC".to_owned(),
        credits_reset_day: 1,
        create_time: made.create_time,
        ..account(ACCOUNT, PLAN)
    };
    assert_eq!(without_marks(answer.unwrap()), expected);
}

#[tokio::test]
async fn each_wrong_value_is_named() {
    let server = Server::start().await;
    let rows: Vec<(Account, &str, &str)> = vec![
        (subject(), "name", "account.name"),
        (subject(), "plan", "account.plan"),
        (Account { status: 9, ..subject() }, "status", "account.status"),
        (Account { time_zone: "x".to_owned(), ..subject() }, "time_zone", "account.time_zone"),
        (Account { key_limits: vec![limit("", 1, Period::Day)], ..subject() }, "key_limits", "account.key_limits[0]"),
        (Account { monthly_credits: Some(-2), ..subject() }, "monthly_credits", "account.monthly_credits"),
        (Account { credits_reset_day: 99, ..subject() }, "credits_reset_day", "account.credits_reset_day"),
        (subject(), "nonsense", "update_mask"),
        (subject(), "id", "update_mask"),
        (subject(), "create_time", "update_mask"),
        (subject(), "update_time", "update_mask"),
        (subject(), "etag", "update_mask"),
        (Account::default(), "name", "id"),
    ];
    for (wrong, path, field) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(update(&server, wrong, &[path]).await), [field], "{path} of {shown}");
    }
    assert_eq!(invalid(server.operator.update_account(UpdateAccountRequest::default()).await), ["account"]);
}

#[tokio::test]
async fn what_stands_in_the_way_is_told() {
    let server = Server::start().await;
    let etag = server.operator.get_account(GetAccountRequest { id: ACCOUNT.to_owned() }).await.unwrap().etag;
    let named = |etag: &str| Account { name: "new".to_owned(), etag: etag.to_owned(), ..subject() };
    update(&server, named(&etag), &[]).await.unwrap();
    assert_eq!(reason(&refused(update(&server, named(&etag), &[]).await, Code::Aborted)), "ETAG_STALE");
    let moved = Account { plan: "nothing".to_owned(), ..subject() };
    assert_eq!(precondition(update(&server, moved, &["plan"]).await), "NO_SUCH_PLAN");
    for id in ["acct_nobody", "nonsense"] {
        refused(update(&server, Account { id: id.to_owned(), ..named("") }, &[]).await, Code::NotFound);
    }
}

#[tokio::test]
async fn the_operator_account_cannot_be_shut_out() {
    let server = Server::start().await;
    let operators = || Account { id: "acct_operator".to_owned(), ..Account::default() };
    let suspended = Account { status: AccountStatus::Suspended.into(), ..operators() };
    assert_eq!(precondition(update(&server, suspended, &[]).await), "BUILT_IN");
    let moved = Account { plan: PLAN.to_owned(), ..operators() };
    assert_eq!(precondition(update(&server, moved, &[]).await), "BUILT_IN");
    let renamed = Account { name: "Us".to_owned(), ..operators() };
    assert_eq!(update(&server, renamed, &[]).await.unwrap().name, "Us");
    server.operator.get_self(GetSelfRequest {}).await.unwrap();
}

//! What is charged once, however often it is sent.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{
    ACCOUNT, OTHER_ACCOUNT, Server, Settings, account, invalid, key, limit, of, plan, precondition, reason, refused,
};

pub(crate) const OPERATION_ID_CHARS_MAX: usize = 128;
/// Of the credits and of each limit of what [`metered`] makes.
pub(crate) const CAPACITY: i64 = 100;
pub(crate) const METERED: &str = "acct_m";
const HOUR: u64 = 3_600;

/// A check of a key as an operation.
pub(crate) fn operation(secret: &str, id: &str, cost: i64) -> CheckKeyRequest {
    CheckKeyRequest { operation_id: id.to_owned(), cost: Some(cost), ..of(secret) }
}

/// A key of [`METERED`] with a limit of its own, a pooled one, and credits. Its id and its secret.
pub(crate) async fn metered(server: &Server) -> (String, String) {
    server.plan(Plan { monthly_credits: Some(CAPACITY), ..plan("metered") }).await;
    let account_limits = vec![limit("pool", CAPACITY, Period::Day)];
    server.account(Account { account_limits, ..account(METERED, "metered") }).await;
    another(server, "first").await
}

/// Another key of the same account.
pub(crate) async fn another(server: &Server, name: &str) -> (String, String) {
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("slide", CAPACITY, Period::Hour) };
    let limits = vec![limit("own", CAPACITY, Period::Hour), sliding];
    let made = server.key(Key { account_id: METERED.to_owned(), limits, ..key(name) }).await;
    (made.key.unwrap().id, made.secret)
}

/// What is left of own, slide, pool and credits.
pub(crate) fn left(answer: &CheckKeyResponse) -> [i64; 4] {
    let limits: Vec<i64> = answer.limits.iter().map(|limit| limit.remaining).collect();
    [limits[0], limits[1], limits[2], answer.credits.unwrap().remaining]
}

/// The same, without asking for anything.
pub(crate) async fn peek_left(server: &Server, secret: &str) -> [i64; 4] {
    left(&server.ask(CheckKeyRequest { cost: Some(0), mode: Mode::Peek.into(), ..of(secret) }).await)
}

/// Requests, denied ones among them, and credits of a key.
pub(crate) async fn used(server: &Server, key_id: &str) -> (i64, i64, i64) {
    server.flush().await;
    let request = GetUsageRequest { key_id: key_id.to_owned(), ..GetUsageRequest::default() };
    let totals = server.operator.get_usage(request).await.unwrap().totals.unwrap();
    (totals.requests, totals.denied, totals.credits)
}

#[tokio::test]
async fn a_retry_is_answered_and_not_charged() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    let first = server.ask(operation(&secret, "op", 7)).await;
    assert_eq!((first.verdict(), left(&first)), (Verdict::Allowed, [93; 4]));
    assert_eq!(first.key_id, id);
    for _ in 0..3 {
        assert_eq!(server.ask(operation(&secret, "op", 7)).await, first);
    }
    // Others are charged, and a retry tells what is left now.
    assert_eq!(left(&server.ask(operation(&secret, "op-2", 1)).await), [92; 4]);
    assert_eq!(left(&server.ask(operation(&secret, "OP", 2)).await), [90; 4]);
    let again = server.ask(operation(&secret, "op", 7)).await;
    assert_eq!((again.verdict(), left(&again), again.http_status), (Verdict::Allowed, [90; 4], 200));
    assert_eq!(used(&server, &id).await, (3, 0, 10));
    assert_eq!(server.get_key(&id).await.last_used_time, Some(server.now()));
}

#[tokio::test]
async fn a_retry_is_allowed_also_where_nothing_is_left() {
    let server = Server::start_with(Settings { key_checks_per_second: 2, ..Settings::default() }).await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", CAPACITY)).await.allowed);
    assert_eq!(server.ask(operation(&secret, "other", 1)).await.verdict(), Verdict::RateLimited);
    assert!(server.ask(operation(&secret, "free", 0)).await.allowed);
    // The pace of checks is no reason either.
    assert_eq!(server.ask(operation(&secret, "free-2", 0)).await.verdict(), Verdict::Throttled);
    for _ in 0..3 {
        let again = server.ask(operation(&secret, "op", CAPACITY)).await;
        assert_eq!((again.verdict(), left(&again), again.retry_after), (Verdict::Allowed, [0; 4], None));
    }
    assert_eq!(used(&server, &id).await, (4, 2, CAPACITY));
    // What was denied is decided anew.
    server.advance(24 * HOUR);
    assert_eq!(server.ask(operation(&secret, "other", 1)).await.verdict(), Verdict::CreditsExhausted);
    server.set_time("2026-04-01T00:00:00Z");
    assert!(server.ask(operation(&secret, "other", 1)).await.allowed);
}

#[tokio::test]
async fn a_name_stands_for_one_key_and_cost() {
    let server = Server::start().await;
    let (first_id, first) = metered(&server).await;
    let (_, second) = another(&server, "second").await;
    assert!(server.ask(operation(&first, "op", 5)).await.allowed);
    let status = refused(server.operator.check_key(operation(&first, "op", 6)).await, Code::AlreadyExists);
    assert_eq!(reason(&status), "ALREADY_EXISTS");
    assert!(status.message().contains("`op`") && status.message().contains("another cost, 5"), "{status:?}");
    let status = refused(server.operator.check_key(operation(&second, "op", 5)).await, Code::AlreadyExists);
    assert!(status.message().contains("another key") && status.message().contains(&first_id), "{status:?}");
    let peek = CheckKeyRequest { mode: Mode::Peek.into(), ..operation(&second, "op", 5) };
    refused(server.operator.check_key(peek).await, Code::AlreadyExists);
    assert_eq!(peek_left(&server, &first).await, [95; 4]);
    // Another account has names of its own, and a rotated key is the same.
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await;
    assert!(server.ask(operation(&other.secret, "op", 6)).await.allowed);
    let rotated = server.rotate(&first_id, 0).await;
    assert_eq!(left(&server.ask(operation(&rotated, "op", 5)).await), [95; 4]);
}

#[tokio::test]
async fn whether_the_key_may_comes_first() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 5)).await.allowed);
    let scoped = CheckKeyRequest { all_of: vec!["tasks:read".to_owned()], ..operation(&secret, "op", 5) };
    let denied = server.ask(scoped).await;
    assert_eq!((denied.verdict(), denied.missing_scopes.len()), (Verdict::ScopeDenied, 1));
    let customer = server.caller_of(ACCOUNT, &["tollgate:check"]).await;
    let unknown = customer.check_key(operation(&secret, "op", 5)).await.unwrap();
    assert_eq!(unknown.verdict(), Verdict::Unknown);
    assert_eq!(server.ask(operation("not-a-key", "op", 5)).await.verdict(), Verdict::Unknown);
    server.revoke(&id).await;
    assert_eq!(server.ask(operation(&secret, "op", 5)).await.verdict(), Verdict::Revoked);
    assert_eq!(server.ask(operation(&secret, "new", 5)).await.verdict(), Verdict::Revoked);
    assert_eq!(used(&server, &id).await, (4, 3, 5));
}

#[tokio::test]
async fn a_peek_is_answered_as_the_operation_would_be_and_leaves_no_trace() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    let peek = |id: &str, cost| CheckKeyRequest { mode: Mode::Peek.into(), ..operation(&secret, id, cost) };
    assert!(server.ask(peek("op", CAPACITY)).await.allowed);
    assert_eq!(server.ask(peek("op", CAPACITY + 1)).await.verdict(), Verdict::RateLimited);
    assert_eq!(server.rows("SELECT id FROM operations").await.len(), 0);
    assert_eq!(left(&server.ask(operation(&secret, "op", CAPACITY)).await), [0; 4]);
    assert!(server.ask(peek("op", CAPACITY)).await.allowed);
    assert_eq!(server.ask(peek("op-2", 1)).await.verdict(), Verdict::RateLimited);
    assert_eq!(used(&server, &id).await, (1, 0, CAPACITY));
}

#[tokio::test]
async fn of_many_at_once_one_is_charged() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..150 {
        let (client, request) = (server.operator.clone(), operation(&secret, &format!("op-{}", i % 3), 7));
        calls.spawn(async move { client.check_key(request).await.unwrap().verdict() });
    }
    assert!(calls.join_all().await.iter().all(|verdict| *verdict == Verdict::Allowed));
    assert_eq!(peek_left(&server, &secret).await, [79; 4]);
    assert_eq!(used(&server, &id).await, (3, 0, 21));
}

#[tokio::test]
async fn operations_and_checks_at_once_take_no_more_than_there_is() {
    let server = Server::start().await;
    let (_, secret) = metered(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..300 {
        let named = operation(&secret, &format!("op-{i}"), 1);
        let request = if i % 2 == 0 { named } else { of(&secret) };
        let client = server.operator.clone();
        calls.spawn(async move { client.check_key(request).await.unwrap().allowed });
    }
    let allowed = calls.join_all().await.into_iter().filter(|allowed| *allowed).count();
    assert_eq!(i64::try_from(allowed).unwrap(), CAPACITY);
    assert_eq!(peek_left(&server, &secret).await, [0; 4]);
}

#[tokio::test]
async fn an_operation_outlives_its_server() {
    let mut server = Server::start().await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 7)).await.allowed);
    server = server.restart(Settings::default()).await;
    let again = server.ask(operation(&secret, "op", 7)).await;
    assert_eq!((again.verdict(), left(&again)), (Verdict::Allowed, [93; 4]));
    assert!(server.ask(operation(&secret, "op-2", 3)).await.allowed);
    // What was leased and not charged comes back, and nothing of what was.
    server = server.kill(Settings::default()).await;
    let again = server.ask(operation(&secret, "op-2", 3)).await;
    assert_eq!((again.verdict(), left(&again)), (Verdict::Allowed, [90; 4]));
    assert_eq!(used(&server, &id).await, (2, 0, 10));
}

#[tokio::test]
async fn an_operation_is_remembered_for_a_day() {
    let server = Server::start().await;
    let (id, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 5)).await.allowed);
    server.advance(24 * HOUR - 1);
    assert_eq!(left(&server.ask(operation(&secret, "op", 5)).await), [100, 100, 100, 95]);
    server.advance(1);
    assert_eq!(left(&server.ask(operation(&secret, "op", 6)).await), [94, 94, 94, 89]);
    assert_eq!(used(&server, &id).await, (2, 0, 11));
    // The row of the one before is gone, and this one's stays.
    server.advance(12 * HOUR);
    assert!(server.ask(operation(&secret, "op-2", 1)).await.allowed);
    assert_eq!(server.rows("SELECT cost || '' FROM operations ORDER BY time").await, [["6"], ["1"]]);
    server.advance(12 * HOUR);
    assert!(server.ask(operation(&secret, "op-3", 2)).await.allowed);
    assert_eq!(server.rows("SELECT cost || '' FROM operations ORDER BY time").await, [["1"], ["2"]]);
}

#[tokio::test]
async fn a_key_without_limits_has_operations_too() {
    let server = Server::start().await;
    let made = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await;
    for _ in 0..2 {
        let answer = server.ask(operation(&made.secret, "op", 1_000_000_000_000)).await;
        assert!(answer.allowed && answer.limits.is_empty() && answer.credits.is_none());
        assert!(server.ask(operation(&made.secret, "free", 0)).await.allowed);
    }
    let id = made.key.unwrap().id;
    assert_eq!(used(&server, &id).await, (2, 0, 0));
    refused(server.operator.check_key(operation(&made.secret, "free", 1)).await, Code::AlreadyExists);
}

#[tokio::test]
async fn after_a_refund_the_name_is_used_up() {
    let server = Server::start().await;
    let (_, secret) = metered(&server).await;
    assert!(server.ask(operation(&secret, "op", 5)).await.allowed);
    let refund = RefundCheckRequest { operation_id: "op".to_owned(), account_id: METERED.to_owned() };
    server.operator.refund_check(refund).await.unwrap();
    let retry = server.operator.check_key(operation(&secret, "op", 5)).await;
    assert_eq!(precondition(retry), "OPERATION_REFUNDED");
    refused(server.operator.check_key(operation(&secret, "op", 6)).await, Code::AlreadyExists);
    assert_eq!(peek_left(&server, &secret).await, [100; 4]);
}

#[tokio::test]
async fn a_name_that_is_none_is_refused() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let longest = "x".repeat(OPERATION_ID_CHARS_MAX);
    assert!(server.ask(operation(&secret, &longest, 1)).await.allowed);
    for wrong in [format!("{longest}x"), "a b".to_owned(), "é".to_owned(), "a\n".to_owned()] {
        let request = CheckKeyRequest { cost: Some(-1), ..operation(&secret, &wrong, 1) };
        assert_eq!(invalid(server.operator.check_key(request).await), ["cost", "operation_id"]);
    }
}

#[tokio::test]
async fn no_name_is_written_down() {
    let server = Server::start().await;
    let (_, secret) = metered(&server).await;
    let name = "a-name-that-could-be-a-secret";
    assert!(server.ask(operation(&secret, name, 5)).await.allowed);
    let database = server.database_bytes();
    assert!(!database.windows(name.len()).any(|bytes| bytes == name.as_bytes()));
}

//! `GetUsage`.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use tollgate::decision::Request;
use tollgate::domain;
use tollgate::engine::Check;
use tollgate::proto::v1::{Environment as E, Granularity as G, *};
use tonic::Code;

use crate::harness::{ACCOUNT, OTHER_ACCOUNT, PLAN, Server, account, at, invalid, key, limit, of, refused};

fn of_account(account_id: &str) -> GetUsageRequest {
    GetUsageRequest { account_id: account_id.to_owned(), ..GetUsageRequest::default() }
}

fn between(start: &str, end: &str, granularity: Granularity) -> GetUsageRequest {
    GetUsageRequest {
        start_time: Some(at(start)),
        end_time: Some(at(end)),
        granularity: granularity.into(),
        ..of_account(ACCOUNT)
    }
}

async fn usage(server: &Server, request: GetUsageRequest) -> GetUsageResponse {
    server.flush().await;
    server.operator.get_usage(request).await.unwrap()
}

/// When each bucket begins, and its requests.
fn requests(answer: &GetUsageResponse) -> Vec<(Timestamp, i64)> {
    answer.buckets.iter().map(|bucket| (bucket.start_time.unwrap(), bucket.requests)).collect()
}

#[tokio::test]
async fn checks_are_counted_by_verdict_and_credits_by_cost() {
    let server = Server::start().await;
    let change = Account { id: ACCOUNT.to_owned(), monthly_credits: Some(100), ..Account::default() };
    server.change_account(change, &[]).await;
    let made = server.key(Key { limits: vec![limit("l", 12, Period::Day)], ..key("k") }).await;
    let (id, secret) = (made.key.unwrap().id, made.secret);
    for cost in [5, 0, 7, 1] {
        server.ask(CheckKeyRequest { cost: Some(cost), ..of(&secret) }).await;
    }
    server.ask(CheckKeyRequest { all_of: vec!["a:b".to_owned()], ..of(&secret) }).await;
    server.ask(CheckKeyRequest { mode: Mode::Peek.into(), ..of(&secret) }).await;
    server.check("not-a-key").await;
    let answer = usage(&server, GetUsageRequest { key_id: id, ..GetUsageRequest::default() }).await;
    let expected = UsageBucket {
        start_time: Some(at("2026-03-10T00:00:00Z")),
        key_id: String::new(),
        environment: Environment::Live.into(),
        requests: 5,
        allowed: 3,
        denied: 2,
        by_verdict: BTreeMap::from([
            ("ALLOWED".to_owned(), 3),
            ("RATE_LIMITED".to_owned(), 1),
            ("SCOPE_DENIED".to_owned(), 1),
        ]),
        credits: 12,
    };
    assert_eq!(answer.buckets, std::slice::from_ref(&expected));
    let totals = UsageBucket { start_time: None, environment: 0, ..expected };
    assert_eq!(answer.totals, Some(totals));
    assert_eq!(answer.as_of, Some(server.now()));
}

#[tokio::test]
async fn buckets_are_hours_days_or_months() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    for time in [
        "2026-01-31T23:59:59Z",
        "2026-02-01T00:00:00Z",
        "2026-03-09T22:10:00Z",
        "2026-03-09T22:50:00Z",
        "2026-03-10T00:00:00Z",
        "2026-03-10T01:30:00Z",
    ] {
        server.set_time(time);
        server.check(&secret).await;
    }
    server.set_time("2026-03-10T01:30:00Z");
    let rows: [(GetUsageRequest, &[(&str, i64)]); 9] = [
        (
            between("2026-03-09T22:30:00Z", "2026-03-10T01:00:00Z", G::Hour),
            &[("2026-03-09T22:00:00Z", 2), ("2026-03-10T00:00:00Z", 1)],
        ),
        // The end is exclusive only where it is a bucket's first moment.
        (
            between("2026-03-10T00:00:00Z", "2026-03-10T01:00:01Z", G::Hour),
            &[("2026-03-10T00:00:00Z", 1), ("2026-03-10T01:00:00Z", 1)],
        ),
        (
            between("2026-03-09T12:00:00Z", "2026-03-10T12:00:00Z", G::Day),
            &[("2026-03-09T00:00:00Z", 2), ("2026-03-10T00:00:00Z", 2)],
        ),
        (between("2026-03-09T00:00:00Z", "2026-03-10T00:00:00Z", G::Day), &[("2026-03-09T00:00:00Z", 2)]),
        (between("2026-03-09T12:00:00Z", "2026-03-09T13:00:00Z", G::Unspecified), &[("2026-03-09T00:00:00Z", 2)]),
        (
            between("2026-01-15T00:00:00Z", "2026-03-01T00:00:01Z", G::Month),
            &[("2026-01-01T00:00:00Z", 1), ("2026-02-01T00:00:00Z", 1), ("2026-03-01T00:00:00Z", 4)],
        ),
        (between("2025-01-01T00:00:00Z", "2025-12-31T00:00:00Z", G::Month), &[]),
        // By default the 30 days to now, by day.
        (of_account(ACCOUNT), &[("2026-03-09T00:00:00Z", 2), ("2026-03-10T00:00:00Z", 2)]),
        (
            GetUsageRequest { end_time: Some(at("2026-02-02T00:00:00Z")), ..of_account(ACCOUNT) },
            &[("2026-01-31T00:00:00Z", 1), ("2026-02-01T00:00:00Z", 1)],
        ),
    ];
    for (request, expected) in rows {
        let shown = format!("{request:?}");
        let answer = usage(&server, request).await;
        let expected: Vec<(Timestamp, i64)> = expected.iter().map(|(time, count)| (at(time), *count)).collect();
        assert_eq!(requests(&answer), expected, "{shown}");
        assert_eq!(answer.totals.unwrap().requests, expected.iter().map(|(_, count)| count).sum::<i64>());
    }
}

#[tokio::test]
async fn days_and_months_are_the_accounts() {
    let server = Server::start().await;
    server.account(Account { time_zone: "Asia/Tokyo".to_owned(), ..account("acct_jp", PLAN) }).await;
    server.account(Account { time_zone: "Asia/Kolkata".to_owned(), ..account("acct_in", PLAN) }).await;
    let tokyo = server.key(Key { account_id: "acct_jp".to_owned(), ..key("k") }).await.secret;
    let kolkata = server.key(Key { account_id: "acct_in".to_owned(), ..key("k") }).await.secret;
    for time in ["2026-03-31T14:59:00Z", "2026-03-31T15:00:00Z", "2026-03-31T18:40:00Z", "2026-03-31T19:10:00Z"] {
        server.set_time(time);
        server.check(&tokyo).await;
        server.check(&kolkata).await;
    }
    let of = |account_id: &str, granularity: Granularity| GetUsageRequest {
        account_id: account_id.to_owned(),
        ..between("2026-03-31T12:00:00Z", "2026-04-01T12:00:00Z", granularity)
    };
    // Where the offset is not in whole hours, an hour belongs to the day in which it began: 18:00Z is 23:30 there.
    let rows = [
        (of("acct_jp", Granularity::Day), [("2026-03-30T15:00:00Z", 1), ("2026-03-31T15:00:00Z", 3)]),
        (of("acct_jp", Granularity::Month), [("2026-02-28T15:00:00Z", 1), ("2026-03-31T15:00:00Z", 3)]),
        (of("acct_in", Granularity::Day), [("2026-03-30T18:30:00Z", 3), ("2026-03-31T18:30:00Z", 1)]),
        (of("acct_in", Granularity::Month), [("2026-02-28T18:30:00Z", 3), ("2026-03-31T18:30:00Z", 1)]),
    ];
    for (request, expected) in rows {
        let shown = format!("{request:?}");
        let expected: Vec<(Timestamp, i64)> = expected.iter().map(|(time, count)| (at(time), *count)).collect();
        assert_eq!(requests(&usage(&server, request).await), expected, "{shown}");
    }
}

#[tokio::test]
async fn keys_and_environments_are_told_apart() {
    let server = Server::start().await;
    let (first, first_secret) = server.plain_key("first").await;
    let (second, second_secret) = server.plain_key("second").await;
    let test = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await;
    let (test_id, test_secret) = (test.key.unwrap().id, test.secret);
    for secret in [&first_secret, &first_secret, &second_secret, &test_secret] {
        server.check(secret).await;
    }
    let found = |answer: &GetUsageResponse| -> Vec<(String, E, i64)> {
        answer.buckets.iter().map(|b| (b.key_id.clone(), b.environment(), b.requests)).collect()
    };
    let all = usage(&server, of_account(ACCOUNT)).await;
    assert_eq!(found(&all), [(String::new(), E::Live, 3), (String::new(), E::Test, 1)]);
    let by_key = usage(&server, GetUsageRequest { group_by_key: true, ..of_account(ACCOUNT) }).await;
    let expected = [(first.clone(), E::Live, 2), (second, E::Live, 1), (test_id, E::Test, 1)];
    assert_eq!(found(&by_key), expected);
    assert_eq!(by_key.totals.unwrap().requests, 4);
    let one = GetUsageRequest { key_id: first.clone(), group_by_key: true, ..GetUsageRequest::default() };
    assert_eq!(found(&usage(&server, one).await), [(first, E::Live, 2)]);
    assert_eq!(found(&usage(&server, of_account(OTHER_ACCOUNT)).await), []);
}

#[tokio::test]
async fn test_checks_charge_no_credits() {
    let server = Server::start().await;
    let change = Account { id: ACCOUNT.to_owned(), monthly_credits: Some(100), ..Account::default() };
    server.change_account(change, &[]).await;
    let test = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await.secret;
    server.ask(CheckKeyRequest { cost: Some(5), ..of(&test) }).await;
    let totals = usage(&server, of_account(ACCOUNT)).await.totals.unwrap();
    assert_eq!((totals.allowed, totals.credits), (1, 0));
}

#[tokio::test]
async fn credits_that_are_not_counted_are_not_charged() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    server.ask(CheckKeyRequest { cost: Some(5), ..of(&secret) }).await;
    let totals = usage(&server, of_account(ACCOUNT)).await.totals.unwrap();
    assert_eq!((totals.allowed, totals.credits), (1, 0));
}

#[tokio::test]
async fn an_answer_of_too_many_buckets_is_refused() {
    let server = Server::start().await;
    let mut secrets = Vec::new();
    for i in 0..14 {
        secrets.push(server.plain_key(&format!("k{i}")).await.1);
    }
    let start_time = Some(server.now());
    // 14 keys in 744 hours.
    for _ in 0..31 * 24 {
        for secret in &secrets {
            let check = Check {
                credential: secret,
                request: Request::default(),
                cost: 1,
                consume: true,
                within: None,
                attempt: None,
            };
            let answer = server.engine.check(&check, server.engine.clock().now()).await.unwrap();
            assert_eq!(answer.verdict, domain::Verdict::Allowed);
        }
        server.advance(3_600);
    }
    let end_time = Some(server.now());
    let request = GetUsageRequest { start_time, end_time, granularity: G::Hour.into(), ..of_account(ACCOUNT) };
    let by_key = GetUsageRequest { group_by_key: true, ..request };
    server.flush().await;
    assert_eq!(invalid(server.operator.get_usage(by_key.clone()).await), ["granularity"]);
    let by_day = GetUsageRequest { granularity: G::Day.into(), ..by_key.clone() };
    assert_eq!(usage(&server, by_day).await.totals.unwrap().requests, 744 * 14);
    let together = GetUsageRequest { group_by_key: false, ..by_key };
    assert_eq!(usage(&server, together).await.buckets.len(), 744);
}

#[tokio::test]
async fn as_of_tells_up_to_when_it_is_complete() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    assert_eq!(server.operator.get_usage(of_account(ACCOUNT)).await.unwrap().as_of, None, "there was no flush yet");
    server.check(&secret).await;
    server.flush().await;
    let flushed_at = server.now();
    server.advance(5);
    server.check(&secret).await;
    let answer = server.operator.get_usage(of_account(ACCOUNT)).await.unwrap();
    assert_eq!((answer.as_of, answer.totals.unwrap().requests), (Some(flushed_at), 1));
    let answer = usage(&server, of_account(ACCOUNT)).await;
    assert_eq!((answer.as_of, answer.totals.unwrap().requests), (Some(server.now()), 2));
    // A flush of nothing moves it on.
    server.advance(5);
    assert_eq!(usage(&server, of_account(ACCOUNT)).await.as_of, Some(server.now()));
}

#[tokio::test]
async fn each_wrong_field_is_named() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    let nonsense = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let rows = [
        (GetUsageRequest { granularity: 9, ..of_account(ACCOUNT) }, "granularity"),
        (GetUsageRequest { start_time: nonsense, ..of_account(ACCOUNT) }, "start_time"),
        (GetUsageRequest { end_time: nonsense, ..of_account(ACCOUNT) }, "end_time"),
        (GetUsageRequest { key_id: id, ..of_account(ACCOUNT) }, "key_id"),
        (GetUsageRequest::default(), "account_id"),
        (between("2026-03-10T00:00:00Z", "2026-03-10T00:00:00Z", G::Day), "end_time"),
        (between("2026-03-10T00:00:00Z", "2026-03-09T00:00:00Z", G::Day), "end_time"),
        (between("2026-01-01T00:00:00Z", "2026-02-01T00:00:01Z", G::Hour), "start_time"),
        (between("2025-01-01T00:00:00Z", "2026-02-05T00:00:01Z", G::Day), "start_time"),
        (between("2016-01-01T00:00:00Z", "2026-01-01T00:00:01Z", G::Month), "start_time"),
    ];
    for (request, field) in rows {
        let shown = format!("{request:?}");
        assert_eq!(invalid(server.operator.get_usage(request).await), [field], "{shown}");
    }
    for request in [
        between("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", G::Hour),
        between("2025-01-01T00:00:00Z", "2026-02-05T00:00:00Z", G::Day),
        between("2016-01-01T00:00:00Z", "2026-01-01T00:00:00Z", G::Month),
    ] {
        server.operator.get_usage(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_customer_sees_its_own_usage_alone() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await.key.unwrap().id;
    server.check(&secret).await;
    server.flush().await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:usage:read"]).await;
    for request in [GetUsageRequest::default(), of_account(ACCOUNT)] {
        assert_eq!(customer.get_usage(request).await.unwrap().totals.unwrap().requests, 1);
    }
    let of_key = GetUsageRequest { key_id: other, ..GetUsageRequest::default() };
    for request in [of_account(OTHER_ACCOUNT), of_account("acct_nobody"), of_account("nonsense"), of_key] {
        refused(customer.get_usage(request).await, Code::NotFound);
    }
}

#[tokio::test]
async fn usage_of_a_revoked_key_is_kept() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    server.check(&secret).await;
    server.revoke(&id).await;
    server.check(&secret).await;
    let totals = usage(&server, GetUsageRequest { key_id: id, ..GetUsageRequest::default() }).await.totals.unwrap();
    assert_eq!((totals.requests, totals.by_verdict["REVOKED"]), (2, 1));
}

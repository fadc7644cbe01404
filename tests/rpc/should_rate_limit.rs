//! `ShouldRateLimit`, as Envoy's rate limit filter calls it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tollgate::decision::Request;
use tollgate::domain::{self, KeyId};
use tollgate::engine::{Check, Payer, Share};
use tollgate::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_response::{
    Code as Limited, DescriptorStatus, RateLimit,
};
use tollgate::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{
    ACCOUNT, OTHER_ACCOUNT, Server, Settings, account, invalid, key, limit, of, plan, reason, refused, strings,
};

const UNKNOWN_KEY: &str = "key_0000000000000000000000";

/// A descriptor with these entries.
fn entries(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, &str)| Entry { key: (*key).to_owned(), value: (*value).to_owned() };
    RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..RateLimitDescriptor::default() }
}

/// Charges a key, or an account, so many units.
fn hits(id: &str, hits: u64) -> RateLimitDescriptor {
    let name = if id.starts_with("acct_") { "account_id" } else { "key_id" };
    RateLimitDescriptor { hits_addend: Some(hits), ..entries(&[(name, id)]) }
}

fn asking(descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: "edge".to_owned(), descriptors, hits_addend: 0 }
}

async fn ask(server: &Server, descriptors: Vec<RateLimitDescriptor>) -> RateLimitResponse {
    server.operator.should_rate_limit(asking(descriptors)).await.unwrap()
}

/// Asks, and says of each descriptor whether it is within its limits, by `ok` and `over`. The whole is over if one is.
async fn codes(server: &Server, descriptors: Vec<RateLimitDescriptor>) -> String {
    let answer = ask(server, descriptors).await;
    let word = |code: Limited| match code {
        Limited::Ok => "ok",
        Limited::OverLimit => "over",
        Limited::Unknown => "unknown",
    };
    let each: Vec<&str> = answer.statuses.iter().map(|status| word(status.code())).collect();
    assert_eq!(word(answer.overall_code()), if each.contains(&"over") { "over" } else { "ok" });
    each.join(" ")
}

fn headers(answer: &RateLimitResponse) -> Vec<(&str, &str)> {
    answer.response_headers_to_add.iter().map(|header| (header.key.as_str(), header.value.as_str())).collect()
}

/// What is left of the limits of a key, asked with a check that costs nothing.
async fn left(server: &Server, secret: &str) -> Vec<i64> {
    let answer = server.ask(CheckKeyRequest { mode: Mode::Peek.into(), ..of(secret) }).await;
    answer.limits.iter().map(|limit| limit.remaining).collect()
}

async fn change_limits(server: &Server, id: &str, account_limits: Vec<Limit>, monthly_credits: Option<i64>) {
    let change = Account { id: id.to_owned(), account_limits, monthly_credits, ..Account::default() };
    server.change_account(change, &["account_limits", "monthly_credits"]).await;
}

async fn key_with(server: &Server, name: &str, limits: Vec<Limit>) -> (String, String) {
    let made = server.key(Key { limits, ..key(name) }).await;
    (made.key.unwrap().id, made.secret)
}

/// Requests of a key by verdict, and its credits.
async fn used(server: &Server, id: &str) -> (String, i64) {
    server.flush().await;
    let request = GetUsageRequest { key_id: id.to_owned(), ..GetUsageRequest::default() };
    let totals = server.operator.get_usage(request).await.unwrap().totals.unwrap();
    let verdicts: Vec<String> = totals.by_verdict.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
    (verdicts.join(", "), totals.credits)
}

#[tokio::test]
async fn a_key_is_charged_what_a_check_of_it_would_be() {
    let server = Server::start().await;
    change_limits(&server, ACCOUNT, vec![limit("pool", 100, Period::Day)], Some(50)).await;
    let limits = vec![limit("minute", 10, Period::Minute), limit("hour", 30, Period::Hour)];
    let (id, secret) = key_with(&server, "k", limits).await;
    let answer = ask(&server, vec![hits(&id, 3)]).await;
    let status = DescriptorStatus {
        code: Limited::Ok.into(),
        current_limit: Some(RateLimit { requests_per_unit: 10, unit: Unit::Minute.into(), name: "minute".to_owned() }),
        limit_remaining: 7,
        duration_until_reset: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
    };
    assert_eq!(answer.overall_code(), Limited::Ok);
    assert_eq!(answer.statuses, [status]);
    let reset = (server.now().seconds + 60).to_string();
    let expected = [("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", reset.as_str())];
    assert_eq!(headers(&answer), expected);
    // Each sees what the other has charged.
    let checked = server.ask(CheckKeyRequest { cost: Some(2), ..of(&secret) }).await;
    let remaining: Vec<i64> = checked.limits.iter().map(|limit| limit.remaining).collect();
    assert_eq!((remaining, checked.credits.unwrap().remaining), (vec![5, 25, 95], 45));
    assert_eq!(ask(&server, vec![hits(&id, 5)]).await.statuses[0].limit_remaining, 0);
    assert_eq!(server.verdict(&secret).await, Verdict::RateLimited);
    let over = ask(&server, vec![hits(&id, 1)]).await;
    assert_eq!((over.overall_code(), over.statuses[0].code()), (Limited::OverLimit, Limited::OverLimit));
    assert_eq!(headers(&over).last(), Some(&("retry-after", "60")));
    assert_eq!(used(&server, &id).await, ("ALLOWED 3, RATE_LIMITED 2".to_owned(), 10));
    assert!(server.get_key(&id).await.last_used_time.is_some());
}

#[tokio::test]
async fn hits_are_the_descriptors_or_the_requests_or_one() {
    let server = Server::start().await;
    let (id, _) = key_with(&server, "k", vec![limit("l", 100, Period::Day)]).await;
    let mut expected = 100;
    for (of_request, of_descriptor, cost) in
        [(0, None, 1), (4, None, 4), (4, Some(7), 7), (4, Some(0), 0), (0, Some(0), 0), (0, Some(9), 9)]
    {
        let descriptor = RateLimitDescriptor { hits_addend: of_descriptor, ..entries(&[("key_id", &id)]) };
        let request = RateLimitRequest { hits_addend: of_request, ..asking(vec![descriptor]) };
        let answer = server.operator.should_rate_limit(request).await.unwrap();
        expected -= cost;
        assert_eq!(answer.statuses[0].limit_remaining, expected, "{of_request} {of_descriptor:?}");
    }
    assert_eq!(used(&server, &id).await.0, "ALLOWED 4", "what costs nothing is no use");
    assert_eq!(codes(&server, vec![hits(&id, u64::from(expected) + 1)]).await, "over");
    assert_eq!(codes(&server, vec![hits(&id, expected.into())]).await, "ok");
    assert_eq!(codes(&server, vec![hits(&id, 0)]).await, "ok", "it asks only what is left");
}

#[tokio::test]
async fn an_account_is_charged_as_its_live_keys_charge_it() {
    let server = Server::start().await;
    change_limits(&server, ACCOUNT, vec![limit("pool", 10, Period::Hour)], Some(50)).await;
    let (_, live) = key_with(&server, "live", vec![limit("own", 5, Period::Hour)]).await;
    let test = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await;
    assert_eq!(codes(&server, vec![hits(ACCOUNT, 4)]).await, "ok");
    assert_eq!(left(&server, &live).await, [5, 6]);
    assert_eq!(left(&server, &test.secret).await, [10]);
    assert_eq!(server.check(&live).await.credits.unwrap().remaining, 45);
    let over = ask(&server, vec![hits(ACCOUNT, 6)]).await;
    let limit = over.statuses[0].current_limit.clone().unwrap();
    assert_eq!((limit.name.as_str(), limit.requests_per_unit, limit.unit()), ("pool", 10, Unit::Hour));
    assert_eq!(over.statuses[0].limit_remaining, 5);
    // One without limits and credits has nothing to exceed.
    let free = ask(&server, vec![hits(OTHER_ACCOUNT, 1_000)]).await;
    assert_eq!(free.overall_code(), Limited::Ok);
    assert_eq!((free.statuses[0].current_limit.clone(), headers(&free)), (None, vec![]));
}

#[tokio::test]
async fn what_shares_a_budget_must_be_covered_together() {
    let server = Server::start().await;
    change_limits(&server, ACCOUNT, vec![limit("pool", 10, Period::Hour)], None).await;
    let (a, secret) = key_with(&server, "a", vec![limit("own", 8, Period::Hour)]).await;
    let (b, _) = key_with(&server, "b", vec![]).await;
    let rows = [
        // Each alone would be.
        (vec![hits(&a, 6), hits(&b, 5)], "over over", [8, 10]),
        (vec![hits(&a, 6), hits(ACCOUNT, 5)], "over over", [8, 10]),
        (vec![hits(&b, 6), hits(&b, 5)], "over over", [8, 10]),
        (vec![hits(&a, 5), hits(&a, 4)], "over over", [8, 10]),
        // What costs nothing exceeds nothing.
        (vec![hits(&a, 11), hits(&b, 0)], "over ok", [8, 10]),
        (vec![hits(&a, 1), hits(&b, 2), hits(ACCOUNT, 3), hits(&a, 1)], "ok ok ok ok", [6, 3]),
        (vec![hits(ACCOUNT, 1), hits(ACCOUNT, 1), hits(ACCOUNT, 1)], "ok ok ok", [6, 0]),
        (vec![hits(&b, 1)], "over", [6, 0]),
    ];
    for (descriptors, expected, remaining) in rows {
        assert_eq!(codes(&server, descriptors.clone()).await, expected, "{descriptors:?}");
        assert_eq!(left(&server, &secret).await, remaining, "{descriptors:?}");
    }
}

#[tokio::test]
async fn all_descriptors_are_charged_or_none() {
    let server = Server::start().await;
    change_limits(&server, OTHER_ACCOUNT, vec![limit("pool", 3, Period::Hour)], Some(100)).await;
    let (a, secret) = key_with(&server, "a", vec![limit("own", 10, Period::Hour)]).await;
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await;
    let other_id = other.key.unwrap().id;
    let (revoked, _) = server.plain_key("revoked").await;
    server.revoke(&revoked).await;
    for (descriptors, expected) in [
        (vec![hits(&a, 1), hits(OTHER_ACCOUNT, 4)], "ok over"),
        (vec![hits(&other_id, 4), hits(&a, 1)], "over ok"),
        (vec![hits(&a, 1), hits(UNKNOWN_KEY, 1)], "ok over"),
        (vec![hits(&revoked, 1), hits(&a, 1), hits(&other_id, 1)], "over ok ok"),
        (vec![hits(&a, 1), hits("acct_nobody", 0)], "ok over"),
    ] {
        assert_eq!(codes(&server, descriptors.clone()).await, expected, "{descriptors:?}");
        assert_eq!(left(&server, &secret).await, [10], "{descriptors:?}");
        assert_eq!(left(&server, &other.secret).await, [3], "{descriptors:?}");
    }
    assert_eq!(codes(&server, vec![hits(&a, 1), hits(&other_id, 3)]).await, "ok ok");
    assert_eq!((left(&server, &secret).await, left(&server, &other.secret).await), (vec![9], vec![0]));
    // What was refused for another's sake is no use of a key.
    assert_eq!(used(&server, &a).await, ("ALLOWED 1".to_owned(), 0));
    assert_eq!(used(&server, &other_id).await, ("ALLOWED 1, RATE_LIMITED 1".to_owned(), 3));
    assert_eq!(used(&server, &revoked).await, ("REVOKED 1".to_owned(), 0));
}

#[tokio::test]
async fn credits_are_charged_by_live_keys_alone() {
    let server = Server::start().await;
    change_limits(&server, ACCOUNT, vec![], Some(10)).await;
    let (live, secret) = key_with(&server, "live", vec![limit("l", 100, Period::Minute)]).await;
    let test = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await.key.unwrap().id;
    assert_eq!(codes(&server, vec![hits(&test, 1_000)]).await, "ok");
    let answer = ask(&server, vec![hits(&live, 4), hits(ACCOUNT, 3)]).await;
    let told = |status: &DescriptorStatus| (status.current_limit.clone().unwrap().name, status.limit_remaining);
    let told: Vec<_> = answer.statuses.iter().map(told).collect();
    assert_eq!(told, [("l".to_owned(), 96), ("credits".to_owned(), 3)], "where there is nothing else");
    assert_eq!(headers(&answer)[0], ("x-ratelimit-limit", "10"));
    assert_eq!(server.check(&secret).await.credits.unwrap().remaining, 2);
    let over = ask(&server, vec![hits(&live, 1), hits(&live, 2)]).await;
    assert_eq!(over.overall_code(), Limited::OverLimit);
    let DescriptorStatus { current_limit, limit_remaining, .. } = over.statuses[0].clone();
    let expected = RateLimit { requests_per_unit: 10, unit: Unit::Month.into(), name: "credits".to_owned() };
    assert_eq!((current_limit, limit_remaining), (Some(expected), 2));
    assert_eq!(used(&server, &live).await, ("ALLOWED 2, CREDITS_EXHAUSTED 2".to_owned(), 5));
    assert_eq!(used(&server, &test).await, ("ALLOWED 1".to_owned(), 0));
}

#[tokio::test]
async fn what_is_unknown_or_not_in_use_is_over_its_limit() {
    let server = Server::start().await;
    let limited = |name: &str| Key { limits: vec![limit("l", 5, Period::Day)], ..key(name) };
    let id = async |key: Key| server.key(key).await.key.unwrap().id;
    let revoked = id(limited("revoked")).await;
    server.revoke(&revoked).await;
    let disabled = id(limited("disabled")).await;
    server.change_key(Key { id: disabled.clone(), status: Status::Disabled.into(), ..Key::default() }, &[]).await;
    let expired = id(Key { expire_time: server.in_seconds(1), ..limited("expired") }).await;
    let suspended = id(Key { account_id: OTHER_ACCOUNT.to_owned(), ..limited("suspended") }).await;
    let status = AccountStatus::Suspended.into();
    server.change_account(Account { id: OTHER_ACCOUNT.to_owned(), status, ..Account::default() }, &[]).await;
    server.plan(plan("closing")).await;
    server.account(account("acct_c", "closing")).await;
    let closed = id(Key { account_id: "acct_c".to_owned(), ..limited("closed") }).await;
    server.change_plan(Plan { api_access: false, ..plan("closing") }, &["api_access"]).await;
    server.advance(1);
    for (id, verdict) in [
        (UNKNOWN_KEY, ""),
        ("acct_nobody", ""),
        (&revoked, "REVOKED 1"),
        (&disabled, "DISABLED 1"),
        (&expired, "EXPIRED 1"),
        (&suspended, "ACCOUNT_SUSPENDED 1"),
        (&closed, "PLAN_DENIED 1"),
        (OTHER_ACCOUNT, ""),
        ("acct_c", ""),
    ] {
        let refused = DescriptorStatus { code: Limited::OverLimit.into(), ..DescriptorStatus::default() };
        let answer = ask(&server, vec![hits(id, 0)]).await;
        assert_eq!((answer.overall_code(), answer.statuses), (Limited::OverLimit, vec![refused.clone()]), "{id}");
        let answer = ask(&server, vec![hits(id, 1)]).await;
        assert_eq!((answer.overall_code(), headers(&answer)), (Limited::OverLimit, vec![]), "{id}");
        assert_eq!(answer.statuses, [refused], "{id}");
        if !verdict.is_empty() {
            assert_eq!(used(&server, id).await, (verdict.to_owned(), 0));
        }
    }
    // Restrictions and scopes are about the request, which is not known here; a rotation is about the secret.
    let restrictions = Some(Restrictions { allowed_ips: strings(&["192.0.2.1"]), ..Restrictions::default() });
    let restricted = id(Key { restrictions, ..limited("restricted") }).await;
    server.rotate(&restricted, 0).await;
    assert_eq!(codes(&server, vec![hits(&restricted, 5)]).await, "ok");
    assert_eq!(codes(&server, vec![hits(&restricted, 1)]).await, "over");
}

#[tokio::test]
async fn the_ids_are_those_of_entries_that_are_called_so() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    for (named, expected) in [
        (vec![("key_id", id.as_str()), ("generic_key", "x"), ("generic_key", "x"), ("", "")], "ok"),
        (vec![("remote_address", "192.0.2.1"), ("account_id", ACCOUNT)], "ok"),
        (vec![("account_id", ACCOUNT), ("key_id", &id)], "ok"),
        (vec![("key_id", &id), ("account_id", OTHER_ACCOUNT)], "over"),
        (vec![("key_id", &id), ("account_id", "acct_nobody")], "over"),
    ] {
        assert_eq!(codes(&server, vec![entries(&named)]).await, expected, "{named:?}");
    }
    assert_eq!(used(&server, &id).await.0, "ALLOWED 2");
}

#[tokio::test]
async fn a_request_that_is_wrong_names_what_is() {
    let server = Server::start().await;
    let (id, secret) = key_with(&server, "k", vec![limit("l", 5, Period::Day)]).await;
    let good = || hits(&id, 1);
    let many = |n: usize| vec![("x", "y"); n];
    let rows: Vec<(Vec<RateLimitDescriptor>, Vec<&str>)> = vec![
        (vec![], vec!["descriptors"]),
        (vec![good(); 33], vec!["descriptors"]),
        (vec![good(), entries(&[])], vec!["descriptors[1].entries"]),
        (vec![good(), entries(&[("key", &id), ("KEY_ID", &id)])], vec!["descriptors[1].entries"]),
        (vec![entries(&[many(32), vec![("key_id", &id)]].concat())], vec!["descriptors[0].entries"]),
        (vec![entries(&[("x", ""), ("key_id", &id), ("key_id", &id)])], vec!["descriptors[0].entries[2].key"]),
        (vec![entries(&[("account_id", ACCOUNT), ("account_id", "")])], vec!["descriptors[0].entries[1].key"]),
        (vec![entries(&[("key_id", "")])], vec!["descriptors[0].entries[0].value"]),
        (vec![entries(&[("x", ""), ("key_id", &secret)])], vec!["descriptors[0].entries[1].value"]),
        (
            vec![entries(&[("account_id", "a"), ("key_id", "k")])],
            vec!["descriptors[0].entries[1].value", "descriptors[0].entries[0].value"],
        ),
        (
            vec![RateLimitDescriptor { is_negative_hits: true, ..good() }, hits(&id, 1_000_000_000_001)],
            vec!["descriptors[0].is_negative_hits", "descriptors[1].hits_addend"],
        ),
        (vec![hits(&id, u64::MAX)], vec!["descriptors[0].hits_addend"]),
    ];
    for (descriptors, expected) in rows {
        let result = server.operator.should_rate_limit(asking(descriptors)).await;
        assert!(!format!("{result:?}").contains(&secret));
        assert_eq!(invalid(result), expected);
    }
    assert_eq!(left(&server, &secret).await, [5]);
    // As many as may be.
    assert_eq!(codes(&server, vec![hits(&id, 0); 32]).await, ["ok"; 32].join(" "));
    assert_eq!(codes(&server, vec![entries(&[many(31), vec![("key_id", &id)]].concat())]).await, "ok");
}

#[tokio::test]
async fn limits_are_told_in_envoys_terms() {
    let server = Server::start().await;
    let seconds = |seconds: i32| Limit { period_seconds: seconds, ..limit("l", 5, Period::Seconds) };
    for (given, name, capacity, unit) in [
        (limit("l", 5, Period::Minute), "l", 5, Unit::Minute),
        (limit("l", 5, Period::Hour), "l", 5, Unit::Hour),
        (limit("l", 5, Period::Day), "l", 5, Unit::Day),
        (limit("l", 5, Period::Month), "l", 5, Unit::Month),
        (seconds(1), "l", 5, Unit::Second),
        (seconds(60), "l", 5, Unit::Minute),
        (seconds(3_600), "l", 5, Unit::Hour),
        (seconds(86_400), "l", 5, Unit::Day),
        (seconds(7), "l/7s", 5, Unit::Unknown),
        (limit("large", 1_000_000_000_000, Period::Day), "large", u32::MAX, Unit::Day),
    ] {
        let (id, _) = key_with(&server, &format!("{name} {unit:?} {:?}", given.period()), vec![given]).await;
        let answer = ask(&server, vec![hits(&id, 0)]).await;
        let expected = RateLimit { requests_per_unit: capacity, unit: unit.into(), name: name.to_owned() };
        assert_eq!(answer.statuses[0].current_limit, Some(expected));
        assert_eq!(answer.statuses[0].limit_remaining, capacity);
    }
}

#[tokio::test]
async fn headers_are_of_the_nearest_limit_and_the_longest_wait() {
    fn told<'a>(limit: &'a str, remaining: &'a str, reset: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![("x-ratelimit-limit", limit), ("x-ratelimit-remaining", remaining), ("x-ratelimit-reset", reset)]
    }
    let server = Server::start().await;
    let minute = |capacity| vec![limit("minute", capacity, Period::Minute)];
    let (wide, _) = key_with(&server, "wide", minute(100)).await;
    let (tight, _) = key_with(&server, "tight", minute(4)).await;
    let (hourly, _) = key_with(&server, "hourly", vec![limit("hour", 2, Period::Hour)]).await;
    let start = server.now().seconds;
    server.clock.advance(std::time::Duration::from_millis(1_500));
    let (minute_end, hour_end) = ((start + 60).to_string(), (start + 3_600).to_string());
    let answer = ask(&server, vec![hits(&wide, 1), hits(&tight, 1), hits(&hourly, 0)]).await;
    assert_eq!(headers(&answer), told("4", "3", &minute_end));
    assert_eq!(answer.statuses[2].duration_until_reset.unwrap().seconds, 3_598);
    // The one that is exceeded, though more is left of it.
    let answer = ask(&server, vec![hits(&wide, 100), hits(&tight, 3)]).await;
    let expected = [told("100", "99", &minute_end), vec![("retry-after", "59")]].concat();
    assert_eq!(headers(&answer), expected);
    ask(&server, vec![hits(&hourly, 2)]).await;
    let answer = ask(&server, vec![hits(&hourly, 1), hits(&wide, 100)]).await;
    let expected = [told("2", "0", &hour_end), vec![("retry-after", "3599")]].concat();
    assert_eq!(headers(&answer), expected);
    // It never will be, or nobody knows.
    for descriptors in [vec![hits(&tight, 5), hits(&hourly, 1)], vec![hits(&hourly, 1), hits(UNKNOWN_KEY, 1)]] {
        assert_eq!(headers(&ask(&server, descriptors).await).len(), 3);
    }
}

#[tokio::test]
async fn a_throttled_key_is_so_here_too() {
    let server = Server::start_with(Settings { key_checks_per_second: 3, ..Settings::default() }).await;
    let (id, secret) = key_with(&server, "k", vec![limit("l", 100, Period::Day)]).await;
    assert_eq!(server.verdict(&secret).await, Verdict::Allowed);
    assert_eq!(codes(&server, vec![hits(&id, 1), hits(&id, 1), hits(&id, 1)]).await, "over over over");
    assert_eq!(codes(&server, vec![hits(&id, 1), hits(&id, 1), hits(&id, 0)]).await, "ok ok ok");
    assert_eq!(server.verdict(&secret).await, Verdict::Throttled);
    let answer = ask(&server, vec![hits(&id, 1)]).await;
    assert_eq!(headers(&answer).last(), Some(&("retry-after", "1")));
    assert_eq!(left(&server, &secret).await, [97]);
    server.advance(1);
    assert_eq!(codes(&server, vec![hits(&id, 1)]).await, "ok");
}

#[tokio::test]
async fn keys_are_found_that_were_made_before_and_after_the_first_call() {
    let server = Server::start().await;
    let made = async |name: &str| server.plain_key(name).await;
    let (before, _) = made("before").await;
    let rotated = made("rotated").await.0;
    server.rotate(&rotated, 60).await;
    assert!(!server.engine.finds_keys_by_id());
    assert_eq!(codes(&server, vec![hits(ACCOUNT, 1)]).await, "ok");
    assert!(!server.engine.finds_keys_by_id(), "an account's call needs no keys");
    assert_eq!(codes(&server, vec![hits(&before, 1), hits(&rotated, 1)]).await, "ok ok");
    assert!(server.engine.finds_keys_by_id());
    let (after, _) = made("after").await;
    let row = ImportedKey { hash: "ab".repeat(32), key: Some(key("imported")) };
    server.operator.import_keys(vec![ImportKeysRequest { key: Some(row), dry_run: false }]).await.unwrap();
    let list = ListKeysRequest { account_id: ACCOUNT.to_owned(), ..ListKeysRequest::default() };
    let keys = server.operator.list_keys(list.clone()).await.unwrap().keys;
    assert_eq!(keys.len(), 4);
    let all = || keys.iter().map(|key| hits(&key.id, 1)).collect::<Vec<_>>();
    assert_eq!(codes(&server, all()).await, "ok ok ok ok");
    server.revoke(&after).await;
    assert_eq!(codes(&server, vec![hits(&after, 1)]).await, "over");
    let server = server.restart(Settings::default()).await;
    assert!(!server.engine.finds_keys_by_id());
    let expected: Vec<&str> = keys.iter().map(|key| if key.id == after { "over" } else { "ok" }).collect();
    assert_eq!(codes(&server, all()).await, expected.join(" "));
}

#[tokio::test]
async fn keys_made_while_the_first_calls_come_in_are_found() {
    let server = Arc::new(Server::start().await);
    let (first, _) = server.plain_key("first").await;
    let makers = (0..40).map(|n| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.plain_key(&format!("k{n}")).await.0 })
    });
    let makers: Vec<_> = makers.collect();
    let callers = (0..20).map(|_| {
        let (server, first) = (Arc::clone(&server), first.clone());
        tokio::spawn(async move { codes(&server, vec![hits(&first, 1)]).await })
    });
    for caller in callers.collect::<Vec<_>>() {
        assert_eq!(caller.await.unwrap(), "ok");
    }
    for maker in makers {
        assert_eq!(codes(&server, vec![hits(&maker.await.unwrap(), 1)]).await, "ok");
    }
}

#[tokio::test]
async fn it_takes_a_caller_who_may_check() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    let request = || asking(vec![hits(&id, 1)]);
    let status = refused(server.anonymous().should_rate_limit(request()).await, Code::Unauthenticated);
    assert_eq!(reason(&status), "MISSING");
    let reader = server.caller_of("acct_operator", &["tollgate:keys:read", "tollgate:admin", "admin:*"]).await;
    let status = refused(reader.should_rate_limit(request()).await, Code::PermissionDenied);
    assert!(status.message().contains("tollgate:check"), "{status:?}");
    // Who calls is asked before what.
    refused(server.anonymous().should_rate_limit(asking(vec![])).await, Code::Unauthenticated);
    let checker = server.caller_of("acct_operator", &["tollgate:check"]).await;
    assert_eq!(checker.should_rate_limit(request()).await.unwrap().overall_code(), Limited::Ok);
    server.set_serving(false);
    refused(checker.should_rate_limit(request()).await, Code::Unavailable);

    let server = Server::start_with(Settings { check_needs_caller: false, ..Settings::default() }).await;
    let (id, _) = server.plain_key("k").await;
    let answer = server.anonymous().should_rate_limit(asking(vec![hits(&id, 1), hits(ACCOUNT, 1)])).await.unwrap();
    assert_eq!(answer.overall_code(), Limited::Ok);
    server.set_serving(false);
    refused(server.anonymous().should_rate_limit(asking(vec![])).await, Code::Unavailable);
}

#[tokio::test]
async fn a_customer_charges_its_own_keys_and_account_alone() {
    let server = Server::start().await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:check"]).await;
    let (own, _) = server.plain_key("own").await;
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await;
    let other = other.key.unwrap().id;
    let answer = async |descriptor| customer.should_rate_limit(asking(vec![descriptor])).await.unwrap();
    for id in [own.as_str(), ACCOUNT] {
        assert_eq!(answer(hits(id, 1)).await.overall_code(), Limited::Ok, "{id}");
    }
    let unknown = answer(hits(UNKNOWN_KEY, 1)).await;
    assert_eq!(unknown.overall_code(), Limited::OverLimit);
    for id in [other.as_str(), OTHER_ACCOUNT, &server.operator_key_id, "acct_operator"] {
        assert_eq!(answer(hits(id, 1)).await, unknown, "{id}");
    }
    let both = entries(&[("key_id", &other), ("account_id", OTHER_ACCOUNT)]);
    assert_eq!(answer(both).await, unknown);
    assert_eq!(used(&server, &other).await, (String::new(), 0));
    assert_eq!(used(&server, &own).await.0, "ALLOWED 1");
}

/// Calls and checks of several keys of one account, all at once.
#[tokio::test]
async fn exactly_the_capacity_is_admitted_to_many_at_once() {
    const CAPACITY: u64 = 500;
    let server = Arc::new(Server::start().await);
    let pool = limit("pool", i64::try_from(CAPACITY).unwrap(), Period::Day);
    change_limits(&server, ACCOUNT, vec![pool], None).await;
    let mut keys = Vec::new();
    for n in 0..5 {
        keys.push(server.plain_key(&format!("k{n}")).await);
    }
    let tasks = (0..20_usize).map(|task| {
        let (server, keys) = (Arc::clone(&server), keys.clone());
        tokio::spawn(async move {
            let mut admitted = 0;
            for round in 0..30 {
                let (id, secret) = &keys[(task + round) % keys.len()];
                let (other, _) = &keys[(task + round + 1) % keys.len()];
                if (task + round) % 3 == 0 {
                    admitted += u64::from(server.check(secret).await.allowed);
                } else {
                    let over = codes(&server, vec![hits(id, 1), hits(ACCOUNT, 1), hits(other, 1)]).await;
                    admitted += if over == "ok ok ok" { 3 } else { 0 };
                }
            }
            admitted
        })
    });
    let mut admitted = 0;
    for task in tasks.collect::<Vec<_>>() {
        admitted += task.await.unwrap();
    }
    // Three may have been too many for the last one or two units.
    while server.check(&keys[0].1).await.allowed {
        admitted += 1;
    }
    assert_eq!(admitted, CAPACITY);
}

/// The engine from threads of its own, because the server of a test has one: no two calls wait for each other, and what is
/// admitted is what there was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_take_the_locks_in_one_order() {
    const CAPACITY: u64 = 20_000;
    let server = Server::start().await;
    let pool = || vec![limit("pool", i64::try_from(CAPACITY).unwrap(), Period::Day)];
    let mut keys = Vec::new();
    for account_id in [ACCOUNT, OTHER_ACCOUNT] {
        change_limits(&server, account_id, pool(), None).await;
        for n in 0..3 {
            let made = server.key(Key { account_id: account_id.to_owned(), ..key(&format!("k{n}")) }).await;
            keys.push((KeyId::parse(&made.key.unwrap().id).unwrap(), made.secret));
        }
    }
    server.engine.find_keys_by_id().await;
    let (engine, keys) = (&server.engine, &keys);
    let runtime = &tokio::runtime::Handle::current();
    let admitted = [const { AtomicU64::new(0) }; 2];
    let accounts = [ACCOUNT, OTHER_ACCOUNT].map(|id| domain::AccountId::parse(id).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let (admitted, accounts) = (&admitted, &accounts);
            scope.spawn(move || {
                for round in 0..4_000_usize {
                    let place = (thread * 7 + round * 5) % keys.len();
                    if round % 4 == 0 {
                        let (credential, request) = (keys[place].1.as_str(), Request::default());
                        let check = Check { credential, request, cost: 1, consume: true, within: None, attempt: None };
                        let answer = runtime.block_on(engine.check(&check, engine.clock().now())).unwrap();
                        let allowed = answer.verdict == domain::Verdict::Allowed;
                        admitted[place / 3].fetch_add(u64::from(allowed), Ordering::Relaxed);
                        continue;
                    }
                    // The same few in ever other orders.
                    let mut shares: Vec<Share> = (0..4)
                        .map(|step| Payer::Key { id: keys[(place + step * (1 + thread % 2)) % keys.len()].0, of: None })
                        .chain(accounts.iter().cloned().map(Payer::Account))
                        .map(|payer| Share { payer, cost: 1 })
                        .collect();
                    shares.rotate_left(thread % 6);
                    let charges = runtime.block_on(engine.charge_together(&shares, None)).unwrap();
                    if charges.iter().all(|charge| charge.verdict == domain::Verdict::Allowed) {
                        for share in &shares {
                            let account = match &share.payer {
                                Payer::Key { id, .. } => keys.iter().position(|(key, _)| key == id).unwrap() / 3,
                                Payer::Account(id) => usize::from(*id == accounts[1]),
                            };
                            admitted[account].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    for (account, admitted) in accounts.iter().zip(admitted) {
        let admitted = admitted.into_inner();
        let share = Share { payer: Payer::Account(account.clone()), cost: 0 };
        let left = engine.charge_together(&[share], None).await.unwrap()[0].limits[0].remaining;
        assert_eq!(admitted + left, CAPACITY, "{account}");
        assert!(admitted > CAPACITY / 2, "{admitted}");
    }
}

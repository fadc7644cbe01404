//! `AdjustCredits`, and what checks make of it.

use serde_json::json;
use tollgate::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use tollgate::proto::envoy::service::ratelimit::v3::RateLimitRequest;
use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_response::Code as Limited;
use tollgate::proto::v1::*;
use tollgate::store::Uncertain;
use tonic::{Code, Status as Refusal};

use crate::harness::{
    ACCOUNT, PLAN, Server, Settings, account, at, invalid, key, limit, of, plan, precondition, refused,
};

const APRIL: &str = "2026-04-01T00:00:00Z";

fn by(amount: i64) -> AdjustCreditsRequest {
    let (account_id, reason) = (ACCOUNT.to_owned(), "a test".to_owned());
    AdjustCreditsRequest { account_id, amount, reason, operation_id: String::new() }
}

fn named(amount: i64, operation_id: &str) -> AdjustCreditsRequest {
    AdjustCreditsRequest { operation_id: operation_id.to_owned(), ..by(amount) }
}

async fn adjust(server: &Server, request: AdjustCreditsRequest) -> Result<AdjustCreditsResponse, Refusal> {
    server.operator.adjust_credits(request).await
}

/// A server whose account has so many credits a month, and a live key of it.
async fn counting(monthly_credits: i64) -> (Server, String) {
    counting_with(Settings::default(), monthly_credits).await
}

async fn counting_with(settings: Settings, monthly_credits: i64) -> (Server, String) {
    let server = Server::start_with(settings).await;
    allow(&server, monthly_credits).await;
    let secret = server.plain_key("k").await.1;
    (server, secret)
}

async fn allow(server: &Server, monthly_credits: i64) {
    let change = Account { id: ACCOUNT.to_owned(), monthly_credits: Some(monthly_credits), ..Account::default() };
    server.change_account(change, &["monthly_credits"]).await;
}

async fn spend(server: &Server, secret: &str, cost: i64) -> CheckKeyResponse {
    server.ask(CheckKeyRequest { cost: Some(cost), ..of(secret) }).await
}

/// What is left of the month's allowance, and of the top-ups.
fn left(credits: Option<CreditState>) -> (i64, i64) {
    let credits = credits.unwrap();
    (credits.remaining - credits.topped_up_remaining, credits.topped_up_remaining)
}

#[tokio::test]
async fn top_ups_are_used_after_the_allowance_and_split_a_charge() {
    let (server, secret) = counting(10).await;
    assert!(spend(&server, &secret, 7).await.allowed);
    let adjusted = adjust(&server, by(100)).await.unwrap();
    let reset_time = Some(at(APRIL));
    let expected = CreditState { allowance: 10, remaining: 103, reset_time, exceeded: false, topped_up_remaining: 100 };
    assert_eq!(adjusted.credits, Some(expected));
    assert_eq!(adjusted.account.as_ref().unwrap().topped_up_credits, 100);
    assert_eq!(adjusted.account.unwrap().etag, format!("r{}", adjusted.revision));
    // 3 of the allowance and 2 of the top-ups; then these alone; all or nothing.
    let rows = [(5, true, (0, 98)), (0, true, (0, 98)), (99, false, (0, 98)), (98, true, (0, 0)), (1, false, (0, 0))];
    for (cost, allowed, expected) in rows {
        let answer = spend(&server, &secret, cost).await;
        assert_eq!((answer.allowed, left(answer.credits)), (allowed, expected), "{cost}");
    }
    let refused = spend(&server, &secret, 1).await;
    assert_eq!((refused.verdict(), refused.credits.unwrap().exceeded), (Verdict::CreditsExhausted, true));
    let found = server.operator.get_account(GetAccountRequest { id: ACCOUNT.to_owned() }).await.unwrap();
    assert_eq!(found.topped_up_credits, 100, "what was spent was given all the same");
}

#[tokio::test]
async fn a_month_brings_its_allowance_and_top_ups_stay_as_they_are() {
    let (server, secret) = counting(10).await;
    adjust(&server, by(50)).await.unwrap();
    assert!(spend(&server, &secret, 25).await.allowed);
    for month in [APRIL, "2026-05-01T00:00:00Z", "2031-01-01T00:00:00Z"] {
        server.set_time(month);
        assert_eq!(left(spend(&server, &secret, 0).await.credits), (10, 35), "{month}");
    }
    assert_eq!(left(spend(&server, &secret, 12).await.credits), (0, 33));
    // A clock that was set back finds no other.
    server.set_time("2026-03-01T00:00:00Z");
    assert_eq!(left(spend(&server, &secret, 3).await.credits), (0, 30));
    // Another reset day is no other allowance: what was spent since the one before counts until the first of the new kind ends.
    server.set_time("2031-01-02T00:00:00Z");
    let change = Account { id: ACCOUNT.to_owned(), credits_reset_day: 20, ..Account::default() };
    server.change_account(change, &["credits_reset_day"]).await;
    for (time, expected) in [("01-02", (0, 30)), ("01-20", (0, 30)), ("02-01", (0, 30)), ("02-20", (10, 30))] {
        server.set_time(&format!("2031-{time}T00:00:00Z"));
        assert_eq!(left(spend(&server, &secret, 0).await.credits), expected, "{time}");
    }
}

#[tokio::test]
async fn waiting_helps_where_the_next_months_allowance_does() {
    let (server, secret) = counting(10).await;
    adjust(&server, by(20)).await.unwrap();
    assert!(spend(&server, &secret, 15).await.allowed);
    let wait = at(APRIL).seconds - server.now().seconds;
    // 15 are left, and 25 will be; what was topped up does not come back.
    for (cost, expected) in [(16, Some(wait)), (25, Some(wait)), (26, None)] {
        let answer = spend(&server, &secret, cost).await;
        assert_eq!(answer.retry_after.map(|wait| wait.seconds), expected, "{cost}");
        assert_eq!(answer.verdict(), Verdict::CreditsExhausted, "{cost}");
    }
    let message = spend(&server, &secret, 16).await.message;
    assert_eq!(message, format!("the account has 0 of 10 credits left until {APRIL}, and 15 that were topped up"));
    assert!(spend(&server, &secret, 15).await.allowed);
    let message = spend(&server, &secret, 1).await.message;
    assert_eq!(message, format!("the account has 0 of 10 credits left until {APRIL}"));
}

#[tokio::test]
async fn without_an_allowance_they_are_prepaid() {
    let (server, secret) = counting(0).await;
    assert_eq!(server.verdict(&secret).await, Verdict::CreditsExhausted);
    // The next check sees them, though it was refused in the same second.
    adjust(&server, by(2)).await.unwrap();
    for expected in [Verdict::Allowed, Verdict::Allowed, Verdict::CreditsExhausted] {
        assert_eq!(server.verdict(&secret).await, expected);
    }
    server.set_time(APRIL);
    assert_eq!(server.verdict(&secret).await, Verdict::CreditsExhausted);
    adjust(&server, by(1)).await.unwrap();
    assert_eq!(server.verdict(&secret).await, Verdict::Allowed);
}

#[tokio::test]
async fn a_limit_that_lacks_the_cost_leaves_both_alone() {
    let (server, _) = counting(3).await;
    let limits = vec![limit("l", 6, Period::Day)];
    let secret = server.key(Key { limits, ..key("limited") }).await.secret;
    adjust(&server, by(50)).await.unwrap();
    assert_eq!(left(spend(&server, &secret, 5).await.credits), (0, 48));
    let refused = spend(&server, &secret, 2).await;
    assert_eq!((refused.verdict(), left(refused.credits)), (Verdict::RateLimited, (0, 48)));
    assert!(!refused.credits.unwrap().exceeded);
}

#[tokio::test]
async fn test_keys_touch_neither() {
    let (server, live) = counting(5).await;
    let test = Key { environment: Environment::Test.into(), ..key("test") };
    let test = server.key(test).await.secret;
    adjust(&server, by(10)).await.unwrap();
    let answer = spend(&server, &test, 1_000).await;
    assert_eq!((answer.allowed, answer.credits), (true, None));
    assert_eq!(left(spend(&server, &live, 0).await.credits), (5, 10));
}

#[tokio::test]
async fn what_is_told_elsewhere_is_both_together() {
    let (server, secret) = counting(5).await;
    adjust(&server, by(10)).await.unwrap();
    assert!(spend(&server, &secret, 7).await.allowed);
    let caller = server.caller(&secret);
    let own = caller.get_self(GetSelfRequest {}).await.unwrap();
    assert_eq!((own.credits_remaining, own.monthly_allowance), (Some(8), Some(5)));
    let limits = caller.get_limits(GetLimitsRequest::default()).await.unwrap();
    assert_eq!(left(limits.credits), (0, 8));
    server.flush().await;
    let usage = GetUsageRequest { account_id: ACCOUNT.to_owned(), ..GetUsageRequest::default() };
    assert_eq!(server.operator.get_usage(usage).await.unwrap().totals.unwrap().credits, 7);
}

#[tokio::test]
async fn a_proxy_is_told_no_more_than_there_is() {
    let (server, secret) = counting(5).await;
    adjust(&server, by(10)).await.unwrap();
    assert!(spend(&server, &secret, 2).await.allowed);
    let entries = vec![Entry { key: "account_id".to_owned(), value: ACCOUNT.to_owned() }];
    let descriptors = vec![RateLimitDescriptor { entries, hits_addend: Some(7), ..Default::default() }];
    for (code, quota, left) in [(Limited::Ok, 11, 6), (Limited::OverLimit, 11, 6)] {
        let request = RateLimitRequest { descriptors: descriptors.clone(), ..Default::default() };
        let answer = server.operator.should_rate_limit(request).await.unwrap();
        let status = answer.statuses[0].clone();
        assert_eq!((status.code(), status.limit_remaining), (code, left));
        assert_eq!(status.current_limit.unwrap().requests_per_unit, quota);
    }
    assert_eq!(left(spend(&server, &secret, 0).await.credits), (0, 6));
}

#[tokio::test]
async fn what_is_not_counted_is_kept_for_when_it_is() {
    let (server, secret) = counting(-1).await;
    let adjusted = adjust(&server, by(40)).await.unwrap();
    assert_eq!((adjusted.credits, adjusted.account.unwrap().topped_up_credits), (None, 40));
    assert_eq!(spend(&server, &secret, 1_000).await.credits, None);
    assert_eq!(precondition(adjust(&server, by(-41)).await), "NOT_ENOUGH_CREDITS");
    adjust(&server, by(-10)).await.unwrap();
    allow(&server, 5).await;
    for _ in 0..15 {
        assert!(server.check(&secret).await.allowed);
    }
    assert_eq!(left(spend(&server, &secret, 0).await.credits), (0, 20));
    // What is leased when they cease to be counted is not lost, and what was spent is known.
    allow(&server, -1).await;
    adjust(&server, by(-20)).await.unwrap();
    assert_eq!(precondition(adjust(&server, by(-1)).await), "NOT_ENOUGH_CREDITS");
    allow(&server, 5).await;
    assert_eq!(left(spend(&server, &secret, 0).await.credits), (0, 0));
}

#[tokio::test]
async fn no_more_can_be_taken_away_than_is_left() {
    let (server, secret) = counting(5).await;
    assert_eq!(precondition(adjust(&server, by(-1)).await), "NOT_ENOUGH_CREDITS");
    adjust(&server, by(100)).await.unwrap();
    assert!(spend(&server, &secret, 35).await.allowed);
    let status = refused(adjust(&server, by(-71)).await, Code::FailedPrecondition);
    assert!(status.message().contains("has 70 topped-up credits left"), "{}", status.message());
    let adjusted = adjust(&server, by(-30)).await.unwrap();
    assert_eq!((left(adjusted.credits), adjusted.account.unwrap().topped_up_credits), ((0, 40), 70));
    assert_eq!(spend(&server, &secret, 41).await.verdict(), Verdict::CreditsExhausted);
    assert!(spend(&server, &secret, 40).await.allowed);
    assert_eq!(precondition(adjust(&server, by(-1)).await), "NOT_ENOUGH_CREDITS");
    // Also the last of what was never used.
    adjust(&server, by(8)).await.unwrap();
    assert_eq!(left(adjust(&server, by(-8)).await.unwrap().credits), (0, 0));
    assert_eq!(server.verdict(&secret).await, Verdict::CreditsExhausted);
}

#[tokio::test]
async fn all_that_was_given_can_be_taken_back_and_given_again() {
    let (server, secret) = counting(0).await;
    for _ in 0..3 {
        adjust(&server, by(10)).await.unwrap();
        assert_eq!(left(spend(&server, &secret, 0).await.credits), (0, 10));
        let adjusted = adjust(&server, by(-10)).await.unwrap();
        assert_eq!((left(adjusted.credits), adjusted.account.unwrap().topped_up_credits), ((0, 0), 0));
        assert_eq!(server.verdict(&secret).await, Verdict::CreditsExhausted);
    }
}

#[tokio::test]
async fn a_retry_changes_nothing() {
    let (server, secret) = counting(0).await;
    let first = adjust(&server, named(30, "invoice-7")).await.unwrap();
    assert_eq!(adjust(&server, named(30, "invoice-7")).await.unwrap(), first);
    let status = refused(adjust(&server, named(31, "invoice-7")).await, Code::AlreadyExists);
    assert!(status.message().contains("`invoice-7` was an adjustment by 30"), "{}", status.message());
    assert_eq!(left(spend(&server, &secret, 30).await.credits), (0, 0));
    // Also after others, of another reason, after a restart, and where it took what is not there any more.
    adjust(&server, by(5)).await.unwrap();
    adjust(&server, named(-5, "correction")).await.unwrap();
    let server = server.restart(Settings::default()).await;
    let retry = AdjustCreditsRequest { reason: "once more".to_owned(), ..named(30, "invoice-7") };
    assert_eq!(left(adjust(&server, retry).await.unwrap().credits), (0, 0));
    assert_eq!(adjust(&server, named(-5, "correction")).await.unwrap().account.unwrap().topped_up_credits, 30);
    // Another account's is another operation.
    let other = AdjustCreditsRequest { account_id: "acct_b".to_owned(), ..named(31, "invoice-7") };
    assert_eq!(adjust(&server, other).await.unwrap().account.unwrap().topped_up_credits, 31);
    // The last hundred are remembered.
    for i in 0..99 {
        adjust(&server, named(1, &format!("op-{i}"))).await.unwrap();
    }
    assert_eq!(adjust(&server, named(-5, "correction")).await.unwrap().account.unwrap().topped_up_credits, 129);
    assert_eq!(adjust(&server, named(30, "invoice-7")).await.unwrap().account.unwrap().topped_up_credits, 159);
}

#[tokio::test]
async fn retries_at_once_add_once() {
    let (server, _) = counting(0).await;
    let retries = (0..20).map(|_| {
        let client = server.operator.clone();
        tokio::spawn(async move { client.adjust_credits(named(30, "invoice-7")).await.unwrap() })
    });
    let retries: Vec<_> = retries.collect();
    for retry in retries {
        assert_eq!(left(retry.await.unwrap().credits), (0, 30));
    }
}

#[tokio::test]
async fn what_was_spent_stays_spent_after_a_restart() {
    let (server, secret) = counting(10).await;
    adjust(&server, by(100)).await.unwrap();
    assert!(spend(&server, &secret, 35).await.allowed);
    let server = server.restart(Settings::default()).await;
    assert_eq!(left(spend(&server, &secret, 0).await.credits), (0, 75));
    assert!(spend(&server, &secret, 75).await.allowed);
    let server = server.restart(Settings::default()).await;
    assert_eq!(server.verdict(&secret).await, Verdict::CreditsExhausted);
    server.set_time(APRIL);
    assert_eq!(left(spend(&server, &secret, 0).await.credits), (10, 0));
}

#[tokio::test]
async fn a_crash_admits_nothing_twice() {
    let without = |uncertain| Settings { uncertain, journal: false, ..Settings::default() };
    let rows = [
        (Settings::default(), Settings::default(), 77..=77),
        (without(Uncertain::Charge), without(Uncertain::Charge), 0..=77),
        (without(Uncertain::Refund), without(Uncertain::Refund), 77..=110),
    ];
    for (first, second, range) in rows {
        let (server, secret) = counting_with(first, 10).await;
        adjust(&server, by(100)).await.unwrap();
        for _ in 0..11 {
            assert!(spend(&server, &secret, 3).await.allowed);
        }
        let server = server.kill(second).await;
        let (of_month, topped_up) = left(spend(&server, &secret, 0).await.credits);
        assert!(range.contains(&(of_month + topped_up)), "{range:?}: {of_month} and {topped_up}");
        assert!(spend(&server, &secret, of_month + topped_up).await.allowed);
        assert_eq!(server.verdict(&secret).await, Verdict::CreditsExhausted);
    }
}

#[tokio::test]
async fn checks_at_once_take_what_there_is() {
    let (server, secret) = counting(30).await;
    adjust(&server, by(45)).await.unwrap();
    let checks = (0..60).map(|_| {
        let (client, request) = (server.operator.clone(), CheckKeyRequest { cost: Some(2), ..of(&secret) });
        tokio::spawn(async move { client.check_key(request).await.unwrap().allowed })
    });
    let checks: Vec<_> = checks.collect();
    let mut allowed = 0;
    for check in checks {
        allowed += u32::from(check.await.unwrap());
    }
    assert_eq!((allowed, left(spend(&server, &secret, 0).await.credits)), (37, (0, 1)));
}

#[tokio::test]
async fn each_wrong_value_is_named() {
    let server = Server::start().await;
    let max = 1_000_000_000_000_000;
    let reason = |reason: &str| AdjustCreditsRequest { reason: reason.to_owned(), ..by(1) };
    let rows: Vec<(AdjustCreditsRequest, &[&str])> = vec![
        (AdjustCreditsRequest::default(), &["account_id", "amount", "reason"]),
        (AdjustCreditsRequest { account_id: String::new(), ..by(1) }, &["account_id"]),
        (by(0), &["amount"]),
        (by(max + 1), &["amount"]),
        (by(-max - 1), &["amount"]),
        (by(i64::MIN), &["amount"]),
        (reason(""), &["reason"]),
        (reason("  "), &["reason"]),
        (reason(&"x".repeat(501)), &["reason"]),
        (reason("two\nlines"), &["reason"]),
        (named(1, "a b"), &["operation_id"]),
        (named(1, &"x".repeat(101)), &["operation_id"]),
    ];
    for (wrong, fields) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(adjust(&server, wrong).await), fields, "{shown}");
    }
    for id in ["acct_nobody", "nonsense"] {
        let request = AdjustCreditsRequest { account_id: id.to_owned(), ..by(1) };
        refused(adjust(&server, request).await, Code::NotFound);
    }
    let longest = AdjustCreditsRequest { reason: "é".repeat(500), ..named(max, &"x".repeat(100)) };
    adjust(&server, longest).await.unwrap();
    assert_eq!(precondition(adjust(&server, by(1)).await), "TOO_MANY_CREDITS");
    assert_eq!(adjust(&server, by(-max)).await.unwrap().account.unwrap().topped_up_credits, 0);
}

#[tokio::test]
async fn a_customer_cannot_give_itself_credits() {
    let server = Server::start().await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:write", "tollgate:keys:read"]).await;
    refused(customer.adjust_credits(by(1)).await, Code::PermissionDenied);
    // Nor by way of the account's record.
    server.plan(Plan { monthly_credits: Some(0), ..plan("counted") }).await;
    let made = server.account(Account { topped_up_credits: 500, ..account("acct_x", "counted") }).await;
    assert_eq!(made.topped_up_credits, 0);
    let change = Account { topped_up_credits: 500, name: "x".to_owned(), ..account("acct_x", PLAN) };
    assert_eq!(server.change_account(change, &["name"]).await.topped_up_credits, 0);
}

#[tokio::test]
async fn a_change_of_the_account_keeps_them() {
    let (server, secret) = counting(0).await;
    let etag = adjust(&server, named(9, "op")).await.unwrap().account.unwrap().etag;
    let change = Account { id: ACCOUNT.to_owned(), name: "renamed".to_owned(), etag, ..Account::default() };
    assert_eq!(server.change_account(change, &["name"]).await.topped_up_credits, 9);
    server.change_plan(Plan { display_name: "renamed".to_owned(), ..plan(PLAN) }, &["display_name"]).await;
    assert_eq!(left(spend(&server, &secret, 4).await.credits), (0, 5));
    assert_eq!(left(adjust(&server, named(9, "op")).await.unwrap().credits), (0, 5));
}

#[tokio::test]
async fn the_trail_says_who_gave_what_and_why() {
    let server = Server::start().await;
    adjust(&server, named(30, "invoice-7")).await.unwrap();
    adjust(&server, named(30, "invoice-7")).await.unwrap();
    adjust(&server, by(-10)).await.unwrap();
    adjust(&server, by(-100)).await.unwrap_err();
    let sql =
        "SELECT subject, actor, details FROM audit_events WHERE action = 'account.adjust_credits' ORDER BY revision";
    let rows = server.rows(sql).await;
    let events: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| json!({ "of": row[0], "by": row[1], "what": serde_json::from_str::<serde_json::Value>(&row[2]).unwrap() }))
        .collect();
    let operator = server.operator_key_id.as_str();
    let expected = [
        json!({ "amount": 30, "reason": "a test", "operation_id": "invoice-7" }),
        json!({ "amount": -10, "reason": "a test", "operation_id": null }),
    ];
    assert_eq!(events, expected.map(|what| json!({ "of": ACCOUNT, "by": operator, "what": what })));
}

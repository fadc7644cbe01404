//! How much: limits, pooled limits, credits, and what a check leaves of them.

use prost_types::Timestamp;
use tollgate::proto::v1::*;

use crate::harness::{ACCOUNT, PLAN, Server, Settings, account, at, key, limit, mask, of, plan};

fn costing(secret: &str, cost: i64) -> CheckKeyRequest {
    CheckKeyRequest { cost: Some(cost), ..of(secret) }
}

fn peek(secret: &str, cost: i64) -> CheckKeyRequest {
    CheckKeyRequest { mode: Mode::Peek.into(), ..costing(secret, cost) }
}

fn sliding(name: &str, capacity: i64, period: Period) -> Limit {
    Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit(name, capacity, period) }
}

/// Name and remaining units of each limit.
fn remaining(answer: &CheckKeyResponse) -> Vec<(&str, i64)> {
    answer.limits.iter().map(|limit| (limit.name.as_str(), limit.remaining)).collect()
}

fn exceeded(answer: &CheckKeyResponse) -> Vec<&str> {
    answer.limits.iter().filter(|limit| limit.exceeded).map(|limit| limit.name.as_str()).collect()
}

fn seconds(duration: Option<prost_types::Duration>) -> Option<i64> {
    duration.map(|duration| duration.seconds)
}

async fn limited_key(server: &Server, limits: Vec<Limit>) -> (String, String) {
    let made = server.key(Key { limits, ..key("limited") }).await;
    (made.key.unwrap().id, made.secret)
}

#[tokio::test]
async fn a_fixed_window_is_aligned_to_the_calendar() {
    // At 13:14:15 of a Saturday in March.
    let seconds_7 = Limit { period_seconds: 7, ..limit("l", 2, Period::Seconds) };
    let rows = [
        (limit("l", 2, Period::Minute), "2026-03-14T13:15:00Z"),
        (limit("l", 2, Period::Hour), "2026-03-14T14:00:00Z"),
        (limit("l", 2, Period::Day), "2026-03-15T00:00:00Z"),
        (limit("l", 2, Period::Month), "2026-04-01T00:00:00Z"),
        (seconds_7, "2026-03-14T13:14:18Z"),
    ];
    for (limit, reset) in rows {
        let server = Server::start().await;
        server.set_time("2026-03-14T13:14:15Z");
        let (_, secret) = limited_key(&server, vec![limit.clone()]).await;
        for left in [1, 0] {
            let answer = server.check(&secret).await;
            assert!(answer.allowed);
            let state = &answer.limits[0];
            assert_eq!((state.name.as_str(), state.level(), state.capacity), ("l", Level::Key, 2));
            assert_eq!((state.period, state.period_seconds), (limit.period, limit.period_seconds));
            assert_eq!((state.algorithm(), state.remaining), (Algorithm::FixedWindow, left));
            assert_eq!((state.reset_time, state.exceeded), (Some(at(reset)), false), "{limit:?}");
            assert_eq!(answer.retry_after, None);
        }
        let answer = server.check(&secret).await;
        assert_eq!((answer.verdict(), exceeded(&answer)), (Verdict::RateLimited, vec!["l"]));
        let wait = at(reset).seconds - server.now().seconds;
        assert_eq!(seconds(answer.retry_after), Some(wait), "{limit:?}");
        server.advance(u64::try_from(wait - 1).unwrap());
        assert_eq!(server.verdict(&secret).await, Verdict::RateLimited);
        server.advance(1);
        assert_eq!(remaining(&server.check(&secret).await), [("l", 1)], "{limit:?}");
    }
}

#[tokio::test]
async fn days_and_months_begin_in_the_accounts_time_zone() {
    let server = Server::start().await;
    let zoned = Account { time_zone: "America/New_York".to_owned(), ..account("acct_ny", PLAN) };
    server.account(zoned).await;
    let limits = vec![limit("day", 9, Period::Day), limit("month", 9, Period::Month)];
    let made = server.key(Key { account_id: "acct_ny".to_owned(), limits, ..key("k") }).await;
    let answer = server.check(&made.secret).await;
    let resets: Vec<Option<Timestamp>> = answer.limits.iter().map(|limit| limit.reset_time).collect();
    assert_eq!(resets, [Some(at("2026-03-11T04:00:00Z")), Some(at("2026-04-01T04:00:00Z"))]);
    // A change of the zone moves the windows to come, and gives nothing back in those that are open.
    let change = Account { id: "acct_ny".to_owned(), time_zone: "Asia/Tokyo".to_owned(), ..Account::default() };
    server.change_account(change, &["time_zone"]).await;
    assert_eq!(remaining(&server.check(&made.secret).await), [("day", 7), ("month", 7)]);
    server.set_time("2026-03-11T04:00:00Z");
    assert_eq!(server.check(&made.secret).await.limits[0].reset_time, Some(at("2026-03-11T15:00:00Z")));
}

#[tokio::test]
async fn a_sliding_window_holds_its_capacity_wherever_it_begins() {
    let server = Server::start().await;
    let (_, secret) = limited_key(&server, vec![sliding("l", 10, Period::Minute)]).await;
    server.advance(50);
    assert_eq!(remaining(&server.ask(costing(&secret, 6)).await), [("l", 4)]);
    server.advance(20);
    // A fixed window would have begun anew.
    let answer = server.ask(costing(&secret, 5)).await;
    assert_eq!((answer.verdict(), remaining(&answer)), (Verdict::RateLimited, vec![("l", 4)]));
    // What was spent at :50 is back after a minute and at most a 60th more.
    assert_eq!(seconds(answer.retry_after), Some(41));
    assert_eq!(remaining(&server.ask(costing(&secret, 4)).await), [("l", 0)]);
    server.advance(40);
    assert!(!server.ask(costing(&secret, 5)).await.allowed);
    server.advance(1);
    let answer = server.ask(costing(&secret, 5)).await;
    assert_eq!((answer.allowed, remaining(&answer)), (true, vec![("l", 1)]));
    assert_eq!(answer.limits[0].reset_time.unwrap().seconds - server.now().seconds, 61);
}

#[tokio::test]
async fn a_check_is_taken_from_every_limit_or_from_none() {
    let server = Server::start().await;
    let pooled = Plan {
        key_limits: vec![limit("requests", 10, Period::Hour)],
        account_limits: vec![limit("pool", 5, Period::Hour)],
        monthly_credits: Some(100),
        ..plan("pooled")
    };
    server.plan(pooled).await;
    server.account(account("acct_p", "pooled")).await;
    let made = server.key(Key { account_id: "acct_p".to_owned(), ..key("k") }).await;
    let before = server.ask(costing(&made.secret, 4)).await;
    assert_eq!(remaining(&before), [("requests", 6), ("pool", 1)]);
    assert_eq!(before.limits[1].level(), Level::Account);
    assert_eq!(before.credits.unwrap().remaining, 96);
    let refused = server.ask(costing(&made.secret, 2)).await;
    assert_eq!((refused.verdict(), exceeded(&refused)), (Verdict::RateLimited, vec!["pool"]));
    assert_eq!(remaining(&refused), [("requests", 6), ("pool", 1)]);
    let credits = refused.credits.unwrap();
    assert_eq!((credits.remaining, credits.exceeded), (96, false));
    assert!(refused.message.contains("pool"), "{}", refused.message);
    // Both limits stand in the way; the wait is for the last of them.
    let refused = server.ask(costing(&made.secret, 7)).await;
    assert_eq!(exceeded(&refused), ["requests", "pool"]);
    assert_eq!(refused.retry_after, None, "7 never fit into a pool of 5");
}

#[tokio::test]
async fn keys_of_an_account_share_its_limits_but_not_their_own() {
    let server = Server::start().await;
    let change = Account {
        id: ACCOUNT.to_owned(),
        key_limits: vec![limit("own", 3, Period::Hour)],
        account_limits: vec![limit("pool", 4, Period::Hour)],
        ..Account::default()
    };
    server.change_account(change, &["key_limits", "account_limits"]).await;
    let (_, first) = server.plain_key("first").await;
    let (_, second) = server.plain_key("second").await;
    assert_eq!(remaining(&server.ask(costing(&first, 3)).await), [("own", 0), ("pool", 1)]);
    assert_eq!(remaining(&server.ask(costing(&second, 1)).await), [("own", 2), ("pool", 0)]);
    let answer = server.ask(costing(&second, 1)).await;
    assert_eq!((answer.verdict(), exceeded(&answer)), (Verdict::RateLimited, vec!["pool"]));
}

#[tokio::test]
async fn nearer_limits_take_the_place_of_those_of_the_same_name() {
    let server = Server::start().await;
    let tiered = Plan {
        key_limits: vec![limit("a", 1, Period::Hour), limit("b", 1, Period::Hour), limit("c", 1, Period::Hour)],
        ..plan("tiered")
    };
    server.plan(tiered).await;
    let key_limits = vec![limit("b", 2, Period::Day), limit("c", 2, Period::Day)];
    server.account(Account { key_limits, ..account("acct_t", "tiered") }).await;
    let limits = vec![limit("c", 3, Period::Minute), limit("d", 3, Period::Minute)];
    let made = server.key(Key { account_id: "acct_t".to_owned(), limits, ..key("k") }).await;
    let answer = server.ask(costing(&made.secret, 0)).await;
    let found: Vec<(&str, i64, Period)> =
        answer.limits.iter().map(|limit| (limit.name.as_str(), limit.capacity, limit.period())).collect();
    let expected = [("a", 1, Period::Hour), ("b", 2, Period::Day), ("c", 3, Period::Minute), ("d", 3, Period::Minute)];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn credits_are_a_months_and_begin_anew_on_their_day() {
    let server = Server::start().await;
    let rows = [(1, "2026-04-01T00:00:00Z"), (15, "2026-03-15T00:00:00Z"), (31, "2026-03-31T00:00:00Z")];
    for (credits_reset_day, reset) in rows {
        let id = format!("acct_day{credits_reset_day}");
        server.account(Account { monthly_credits: Some(10), credits_reset_day, ..account(&id, PLAN) }).await;
        let made = server.key(Key { account_id: id, ..key("k") }).await;
        let answer = server.ask(costing(&made.secret, 4)).await;
        let expected =
            CreditState { allowance: 10, remaining: 6, reset_time: Some(at(reset)), ..CreditState::default() };
        assert_eq!(answer.credits, Some(expected));
        let answer = server.ask(costing(&made.secret, 7)).await;
        assert_eq!((answer.verdict(), answer.http_status), (Verdict::CreditsExhausted, 429));
        assert_eq!(answer.credits, Some(CreditState { exceeded: true, ..expected }));
        assert_eq!(seconds(answer.retry_after), Some(at(reset).seconds - server.now().seconds));
    }
    server.set_time("2026-04-01T00:00:00Z");
    let made = server.key(Key { account_id: "acct_day31".to_owned(), ..key("later") }).await;
    let credits = server.ask(costing(&made.secret, 10)).await.credits.unwrap();
    // The last day of a shorter month.
    assert_eq!((credits.remaining, credits.reset_time), (0, Some(at("2026-04-30T00:00:00Z"))));
}

#[tokio::test]
async fn an_accounts_credits_take_the_place_of_its_plans() {
    let server = Server::start().await;
    server.plan(Plan { monthly_credits: Some(50), ..plan("fifty") }).await;
    for (monthly_credits, expected) in [(None, Some(50)), (Some(7), Some(7)), (Some(0), Some(0)), (Some(-1), None)] {
        let id = format!("acct_{}", monthly_credits.map_or("none".to_owned(), |n| format!("n{}", n + 1)));
        server.account(Account { monthly_credits, ..account(&id, "fifty") }).await;
        let made = server.key(Key { account_id: id, ..key("k") }).await;
        let answer = server.ask(costing(&made.secret, 0)).await;
        assert_eq!(answer.credits.map(|credits| credits.allowance), expected, "{monthly_credits:?}");
    }
}

#[tokio::test]
async fn test_keys_never_use_credits_or_what_live_keys_share() {
    let server = Server::start().await;
    let account_limits = vec![limit("pool", 5, Period::Hour)];
    server.account(Account { monthly_credits: Some(5), account_limits, ..account("acct_m", PLAN) }).await;
    let of_account = |name: &str, environment: Environment| Key {
        account_id: "acct_m".to_owned(),
        environment: environment.into(),
        ..key(name)
    };
    let live = server.key(of_account("live", Environment::Live)).await.secret;
    let test = server.key(of_account("test", Environment::Test)).await.secret;
    assert!(test.starts_with("sk_test_") && live.starts_with("sk_live_"));
    let answer = server.ask(costing(&test, 5)).await;
    assert_eq!((answer.credits.is_none(), remaining(&answer)), (true, vec![("pool", 0)]));
    assert_eq!(server.verdict(&test).await, Verdict::RateLimited);
    let answer = server.ask(costing(&live, 5)).await;
    assert_eq!((answer.credits.as_ref().unwrap().remaining, remaining(&answer)), (0, vec![("pool", 0)]));
}

#[tokio::test]
async fn a_cost_of_zero_is_free_and_one_is_the_default() {
    let server = Server::start().await;
    let (_, secret) = limited_key(&server, vec![limit("l", 2, Period::Day)]).await;
    let rows = [(Some(0), 2), (None, 1), (Some(1), 0), (Some(0), 0)];
    for (cost, left) in rows {
        let answer = server.ask(CheckKeyRequest { cost, ..of(&secret) }).await;
        assert_eq!((answer.allowed, remaining(&answer)), (true, vec![("l", left)]), "{cost:?}");
    }
    let closed = server.key(Key { limits: vec![limit("closed", 0, Period::Day)], ..key("closed") }).await.secret;
    assert!(server.ask(costing(&closed, 0)).await.allowed);
    assert_eq!(server.ask(costing(&closed, 1)).await.verdict(), Verdict::RateLimited);
    let (_, none) = server.plain_key("without limits").await;
    let answer = server.ask(costing(&none, 1_000_000_000_000)).await;
    assert!(answer.allowed && answer.limits.is_empty() && answer.credits.is_none());
}

#[tokio::test]
async fn a_peek_decides_alike_and_leaves_no_trace() {
    let server = Server::start_with(Settings { key_checks_per_second: 1, ..Settings::default() }).await;
    let (id, secret) = limited_key(&server, vec![limit("l", 3, Period::Day), sliding("s", 3, Period::Hour)]).await;
    // What is left is told as it stands.
    assert_eq!(remaining(&server.ask(peek(&secret, 2)).await), [("l", 3), ("s", 3)]);
    for cost in [0, 1, 3, 4, 3] {
        let answer = server.ask(peek(&secret, cost)).await;
        assert_eq!(answer.verdict(), if cost > 3 { Verdict::RateLimited } else { Verdict::Allowed });
        assert_eq!(exceeded(&answer), if cost > 3 { vec!["l", "s"] } else { vec![] });
    }
    assert_eq!(remaining(&server.ask(peek(&secret, 0)).await), [("l", 3), ("s", 3)]);
    assert_eq!(remaining(&server.ask(costing(&secret, 3)).await), [("l", 0), ("s", 0)]);
    server.flush().await;
    let key = server.get_key(&id).await;
    assert_eq!(key.usage.unwrap(), KeyUsage { requests_today: 1, requests_this_month: 1 });
    assert_eq!(server.ask(peek(&secret, 0)).await.verdict(), Verdict::Throttled, "the second's check was made");
}

#[tokio::test]
async fn the_servers_own_ceiling_counts_by_the_second_and_charges_nothing() {
    let server = Server::start_with(Settings { key_checks_per_second: 2, ..Settings::default() }).await;
    let (_, secret) = limited_key(&server, vec![limit("l", 100, Period::Day)]).await;
    server.clock.advance(std::time::Duration::from_millis(250));
    for expected in [Verdict::Allowed, Verdict::Allowed, Verdict::Throttled, Verdict::Throttled] {
        assert_eq!(server.verdict(&secret).await, expected);
    }
    let answer = server.check(&secret).await;
    assert_eq!((answer.http_status, remaining(&answer)), (429, vec![("l", 98)]));
    let wait = answer.retry_after.unwrap();
    assert_eq!((wait.seconds, wait.nanos), (0, 750_000_000));
    // Another key has a second of its own, and so does this one in the next.
    let (_, other) = server.plain_key("other").await;
    assert!(server.check(&other).await.allowed);
    server.clock.advance(std::time::Duration::from_millis(750));
    assert!(server.check(&secret).await.allowed);
}

#[tokio::test]
async fn a_change_takes_effect_on_the_next_check_and_what_is_spent_stays_spent() {
    let server = Server::start().await;
    server.plan(Plan { key_limits: vec![limit("l", 10, Period::Day)], ..plan("small") }).await;
    server.plan(Plan { key_limits: vec![limit("l", 20, Period::Day)], ..plan("large") }).await;
    server.plan(plan("unlimited")).await;
    server.account(account("acct_x", "small")).await;
    let made = server.key(Key { account_id: "acct_x".to_owned(), ..key("k") }).await;
    let (id, secret) = (made.key.unwrap().id, made.secret);
    assert_eq!(remaining(&server.ask(costing(&secret, 8)).await), [("l", 2)]);

    let on = async |plan: &str| {
        let change = Account { id: "acct_x".to_owned(), plan: plan.to_owned(), ..Account::default() };
        server.change_account(change, &["plan"]).await;
    };
    on("large").await;
    let answer = server.ask(costing(&secret, 1)).await;
    assert_eq!((answer.plan.as_str(), remaining(&answer)), ("large", vec![("l", 11)]));

    let smaller = Plan { key_limits: vec![limit("l", 5, Period::Day)], ..plan("large") };
    server.change_plan(smaller, &["key_limits"]).await;
    let answer = server.ask(costing(&secret, 1)).await;
    assert_eq!((answer.verdict(), remaining(&answer)), (Verdict::RateLimited, vec![("l", 0)]));

    let own = Key { id: id.clone(), limits: vec![limit("l", 12, Period::Day)], ..Key::default() };
    server.change_key(own, &["limits"]).await;
    assert_eq!(remaining(&server.ask(costing(&secret, 1)).await), [("l", 2)]);

    // The account's own credits, changed in the middle of the month.
    let credits = |credits| Account { id: "acct_x".to_owned(), monthly_credits: Some(credits), ..Account::default() };
    server.change_account(credits(10), &["monthly_credits"]).await;
    assert_eq!(server.ask(costing(&secret, 2)).await.credits.unwrap().remaining, 8);
    server.change_account(credits(5), &["monthly_credits"]).await;
    assert_eq!(server.ask(costing(&secret, 0)).await.credits.unwrap().remaining, 3);
}

#[tokio::test]
async fn a_limit_that_comes_back_has_not_forgotten_what_was_spent() {
    let server = Server::start().await;
    let daily = || vec![limit("l", 10, Period::Day)];
    let (id, secret) = limited_key(&server, daily()).await;
    assert!(server.ask(costing(&secret, 8)).await.allowed);
    for other in [vec![], vec![limit("l", 10, Period::Hour)], vec![sliding("l", 10, Period::Day)]] {
        server.change_key(Key { id: id.clone(), limits: other, ..Key::default() }, &["limits"]).await;
        assert!(server.check(&secret).await.allowed);
        server.change_key(Key { id: id.clone(), limits: daily(), ..Key::default() }, &["limits"]).await;
        assert_eq!(server.ask(costing(&secret, 3)).await.verdict(), Verdict::RateLimited);
    }
    let change = |credits| Account { id: ACCOUNT.to_owned(), monthly_credits: Some(credits), ..Account::default() };
    server.change_account(change(5), &[]).await;
    assert_eq!(server.ask(costing(&secret, 2)).await.credits.unwrap().remaining, 3);
    server.change_account(change(-1), &[]).await;
    assert_eq!(server.ask(costing(&secret, 0)).await.credits, None);
    server.change_account(change(5), &[]).await;
    assert_eq!(server.ask(costing(&secret, 0)).await.credits.unwrap().remaining, 3);
}

#[tokio::test]
async fn the_day_on_which_clocks_change_is_as_long_as_it_is() {
    let server = Server::start().await;
    server.account(Account { time_zone: "Europe/Berlin".to_owned(), ..account("acct_de", PLAN) }).await;
    let limits = vec![limit("l", 9, Period::Day)];
    let made = server.key(Key { account_id: "acct_de".to_owned(), limits, ..key("k") }).await;
    // The days of 23 and of 25 hours of 2026.
    for (first, last, next) in [
        ("2026-03-28T23:00:00Z", "2026-03-29T21:59:59Z", "2026-03-29T22:00:00Z"),
        ("2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z", "2026-10-25T23:00:00Z"),
    ] {
        for (time, left) in [(first, 8), (last, 7), (next, 8)] {
            server.set_time(time);
            assert_eq!(remaining(&server.check(&made.secret).await), [("l", left)], "{time}");
        }
    }
}

#[tokio::test]
async fn suspending_an_account_stops_all_its_keys_until_it_is_active_again() {
    let server = Server::start().await;
    let (_, first) = server.plain_key("first").await;
    let (_, second) = server.plain_key("second").await;
    let set = async |status: AccountStatus| {
        let change = Account { id: ACCOUNT.to_owned(), status: status.into(), ..Account::default() };
        let request = UpdateAccountRequest { account: Some(change), update_mask: mask(&["status"]) };
        server.operator.update_account(request).await.unwrap();
    };
    for (status, expected) in
        [(AccountStatus::Suspended, Verdict::AccountSuspended), (AccountStatus::Active, Verdict::Allowed)]
    {
        set(status).await;
        assert_eq!([server.verdict(&first).await, server.verdict(&second).await], [expected; 2]);
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_gives_nothing_again() {
    let server = Server::start().await;
    let (_, secret) = limited_key(&server, vec![limit("f", 2, Period::Hour), sliding("s", 2, Period::Hour)]).await;
    assert!(server.ask(costing(&secret, 2)).await.allowed);
    for earlier in ["2026-03-10T11:30:00Z", "2026-03-10T09:00:00Z", "2025-03-10T09:00:00Z"] {
        server.set_time(earlier);
        assert_eq!(server.verdict(&secret).await, Verdict::RateLimited, "{earlier}");
    }
}

#[tokio::test]
async fn checks_at_once_take_no_more_than_there_is() {
    let server = Server::start().await;
    let (_, secret) = limited_key(&server, vec![limit("l", 50, Period::Day)]).await;
    let checks = (0..200).map(|_| {
        let (client, request) = (server.operator.clone(), of(&secret));
        tokio::spawn(async move { client.check_key(request).await.unwrap().allowed })
    });
    let checks: Vec<_> = checks.collect();
    let mut allowed = 0;
    for check in checks {
        allowed += usize::from(check.await.unwrap());
    }
    assert_eq!(allowed, 50);
}

#[tokio::test]
async fn a_cost_that_never_fits_is_told_so() {
    let server = Server::start().await;
    let made = server.key(Key { limits: vec![limit("daily", 10, Period::Day)], ..key("k") }).await;
    let answer = server.ask(CheckKeyRequest { cost: Some(11), ..of(&made.secret) }).await;
    assert_eq!((answer.verdict(), answer.retry_after), (Verdict::RateLimited, None));
    let expected = "the check costs more than a limit ever has: the key's limit `daily` has 10 in all";
    assert_eq!(answer.message, expected);
    let answer = server.ask(CheckKeyRequest { cost: Some(10), ..of(&made.secret) }).await;
    assert!(answer.allowed);
    let answer = server.check(&made.secret).await;
    assert!(answer.message.starts_with("the key's limit `daily` has 0 of 10 left until "), "{}", answer.message);
}

//! What a server answers after a restart, from the store alone.

use tollgate::proto::v1::{Verdict as V, *};
use tollgate::store::Uncertain;

use crate::check_key::verdicts::requests;
use crate::harness::{ACCOUNT, OTHER_ACCOUNT, Server, Settings, account, key, limit, of, plan};

fn settings() -> Settings {
    Settings { key_checks_per_second: 1, ..Settings::default() }
}

#[tokio::test]
async fn every_verdict_is_the_same() {
    let server = Server::start_with(settings()).await;
    let requests = requests(&server).await;
    let mut before = Vec::new();
    for (_, request) in &requests {
        before.push(server.ask(request.clone()).await);
    }
    server.advance(1);
    let server = server.restart(settings()).await;
    for ((verdict, request), before) in requests.into_iter().zip(before) {
        let after = server.ask(request).await;
        if verdict == Verdict::Throttled {
            // Another second.
            assert_eq!(after.verdict(), Verdict::Allowed);
        } else {
            // Windows have moved on by the second that passed.
            let without_wait = |answer: CheckKeyResponse| CheckKeyResponse { retry_after: None, ..answer };
            assert_eq!(without_wait(after), without_wait(before));
        }
    }
}

#[tokio::test]
async fn what_was_spent_stays_spent() {
    let server = Server::start().await;
    server.plan(Plan { monthly_credits: Some(50), ..plan("counted") }).await;
    server.account(account("acct_counted", "counted")).await;
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("sliding", 30, Period::Hour) };
    let limits = vec![limit("daily", 20, Period::Day), sliding, limit("minute", 10, Period::Minute)];
    let made = server.key(Key { account_id: "acct_counted".to_owned(), limits, ..key("k") }).await;
    let cost = |cost: i64| CheckKeyRequest { cost: Some(cost), ..of(&made.secret) };
    let left = |answer: &CheckKeyResponse| {
        let limits: Vec<i64> = answer.limits.iter().map(|limit| limit.remaining).collect();
        (limits, answer.credits.as_ref().unwrap().remaining)
    };
    assert_eq!(left(&server.ask(cost(7)).await), (vec![13, 23, 3], 43));
    let server = server.restart(Settings::default()).await;
    assert_eq!(left(&server.ask(cost(0)).await), (vec![13, 23, 3], 43));
    assert_eq!(server.ask(cost(4)).await.verdict(), V::RateLimited);
    assert_eq!(left(&server.ask(cost(3)).await), (vec![10, 20, 0], 40));
    // A clock that was set back opens nothing, not even with a restart between.
    server.set_time("2026-03-09T12:00:00Z");
    let server = server.restart(Settings::default()).await;
    assert_eq!(server.ask(cost(1)).await.verdict(), V::RateLimited);
    server.set_time("2026-03-10T12:01:00Z");
    assert_eq!(left(&server.ask(cost(10)).await), (vec![0, 10, 0], 30));
    server.set_time("2026-03-11T00:00:00Z");
    assert_eq!(left(&server.ask(cost(10)).await), (vec![10, 20, 0], 20));
}

/// As after kill -9.
#[tokio::test]
async fn a_process_that_is_killed_loses_nothing() {
    let server = Server::start().await;
    server.plan(Plan { monthly_credits: Some(500), ..plan("counted") }).await;
    server.account(account("acct_counted", "counted")).await;
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("sliding", 100, Period::Hour) };
    let limits = vec![limit("daily", 60, Period::Day), sliding];
    let made = server.key(Key { account_id: "acct_counted".to_owned(), limits, ..key("k") }).await;
    let cost = |cost: i64| CheckKeyRequest { cost: Some(cost), ..of(&made.secret) };
    let key_id = made.key.as_ref().unwrap().id.clone();
    let mut server = server;
    let mut spent = 0;
    for round in 1..=3 {
        for _ in 0..5 {
            assert!(server.ask(cost(round)).await.allowed);
            spent += round;
        }
        assert_eq!(server.ask(cost(99)).await.verdict(), V::RateLimited);
        if round == 2 {
            // A part of what was counted is in the store.
            server.flush().await;
            assert!(server.ask(cost(1)).await.allowed);
            spent += 1;
        }
        server = server.kill(Settings::default()).await;
        assert_eq!(server.engine.lease_stats().uncertain_units, 0);
        let answer = server.ask(cost(0)).await;
        let left: Vec<i64> = answer.limits.iter().map(|limit| limit.remaining).collect();
        assert_eq!((left, answer.credits.unwrap().remaining), (vec![60 - spent, 100 - spent], 500 - spent));
    }
    server.flush().await;
    let request = GetUsageRequest { key_id, ..GetUsageRequest::default() };
    let totals = server.operator.get_usage(request).await.unwrap().totals.unwrap();
    // 15 and one in between, three for 0 units; three that were refused.
    assert_eq!((totals.allowed, totals.denied, totals.credits), (19, 3, spent));
}

fn without_journal() -> Settings {
    Settings { journal: false, ..Settings::default() }
}

/// As after kill -9: nobody has said what became of what was leased.
#[tokio::test]
async fn a_process_that_ends_without_a_word_has_spent_what_it_had_leased() {
    let server = Server::start_with(without_journal()).await;
    let made = server.key(Key { limits: vec![limit("daily", 100, Period::Day)], ..key("k") }).await;
    for _ in 0..20 {
        assert!(server.check(&made.secret).await.allowed);
    }
    let server = server.kill(without_journal()).await;
    let left = server.ask(CheckKeyRequest { cost: Some(0), ..of(&made.secret) }).await.limits[0].remaining;
    // At least what was admitted is spent, and at most a second's worth more, of which the report tells.
    assert!((60..=80).contains(&left), "{left}");
    let key_id = made.key.as_ref().unwrap().id.clone();
    let of_key = GetUsageRequest { key_id: key_id.clone(), ..GetUsageRequest::default() };
    let of_account = GetUsageRequest { account_id: ACCOUNT.to_owned(), ..GetUsageRequest::default() };
    for request in [of_key, of_account] {
        let report = server.operator.get_usage(request).await.unwrap();
        let [uncertain] = &report.uncertain[..] else { panic!("{report:?}") };
        assert_eq!((uncertain.budget.as_str(), &uncertain.key_id), ("daily", &key_id));
        // What was spent of the last lease had not been told either.
        assert!((1..=100 - left).contains(&uncertain.units), "{uncertain:?}");
    }
    let other = GetUsageRequest { account_id: OTHER_ACCOUNT.to_owned(), ..GetUsageRequest::default() };
    assert_eq!(server.operator.get_usage(other).await.unwrap().uncertain, []);
    let mut admitted = 0;
    while server.check(&made.secret).await.allowed {
        admitted += 1;
    }
    assert_eq!(admitted, left);
}

#[tokio::test]
async fn what_nobody_knows_to_be_spent_may_be_given_back() {
    let server = Server::start_with(without_journal()).await;
    let made = server.key(Key { limits: vec![limit("daily", 100, Period::Day)], ..key("k") }).await;
    for _ in 0..20 {
        assert!(server.check(&made.secret).await.allowed);
    }
    let server = server.kill(Settings { uncertain: Uncertain::Refund, ..without_journal() }).await;
    let left = server.ask(CheckKeyRequest { cost: Some(0), ..of(&made.secret) }).await.limits[0].remaining;
    assert!((80..=100).contains(&left), "{left}");
    let request = GetUsageRequest { key_id: made.key.unwrap().id, ..GetUsageRequest::default() };
    let report = server.operator.get_usage(request).await.unwrap();
    assert!(report.uncertain[0].given_back && report.uncertain[0].units > 0, "{report:?}");
}

#[tokio::test]
async fn both_secrets_of_a_rotated_key_are_known() {
    let server = Server::start().await;
    let (id, first) = server.plain_key("k").await;
    let second = server.rotate(&id, 60).await;
    let third = server.rotate(&id, 60).await;
    let server = server.restart(Settings::default()).await;
    for (secret, expected) in [(&first, V::RotatedOut), (&second, V::Allowed), (&third, V::Allowed)] {
        assert_eq!(server.verdict(secret).await, expected);
    }
    server.advance(60);
    for (secret, expected) in [(&first, V::RotatedOut), (&second, V::RotatedOut), (&third, V::Allowed)] {
        assert_eq!(server.verdict(secret).await, expected);
    }
    // It goes on from there.
    let fourth = server.rotate(&id, 0).await;
    assert_eq!([server.verdict(&third).await, server.verdict(&fourth).await], [V::RotatedOut, V::Allowed]);
}

#[tokio::test]
async fn revisions_usage_and_names_go_on() {
    let server = Server::start().await;
    let made = server.key(key("k")).await;
    let id = made.key.unwrap().id;
    server.check(&made.secret).await;
    server.flush().await;
    let server = server.restart(Settings::default()).await;
    assert_eq!(server.check(&made.secret).await.revision, made.revision);
    server.flush().await;
    assert_eq!(server.get_key(&id).await.usage.unwrap().requests_today, 2);
    let taken = CreateKeyRequest { key: Some(key("k")) };
    assert_eq!(server.operator.create_key(taken).await.unwrap_err().code(), tonic::Code::AlreadyExists);
    let next = server.key(key("next")).await;
    assert_eq!(next.revision, made.revision + 1);
    assert!(next.key.unwrap().id > id);
    let waiting = CheckKeyRequest { min_revision: next.revision, ..of(&next.secret) };
    assert!(server.ask(waiting).await.allowed);
}

//! The real binary, killed while it takes over from one that was killed, and killed after it ran for long enough to have written
//! usage and given leases back: all that was answered is there once, and nothing else is missing.
#![cfg(test)]

mod support;

use std::time::Duration;

use support::{Bearer, Home, Keys, Server, dice, serve_command};
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::*;

const ROUNDS: i64 = 8;
const CLIENTS: usize = 4;
const CHECKS: i64 = 50;
const CAPACITY: i64 = 1_000_000;
/// No window of this length ends while a test runs.
const YEAR_SECONDS: i32 = 31_536_000;
/// Usage is written as often as may be.
const ARGUMENTS: [&str; 1] = ["--usage-flush-interval=100ms"];

fn limit(name: &str, algorithm: Algorithm) -> Limit {
    Limit {
        name: name.into(),
        capacity: CAPACITY,
        period: Period::Seconds.into(),
        period_seconds: YEAR_SECONDS,
        algorithm: algorithm.into(),
    }
}

/// An account with a pooled limit and topped-up credits, and a key of its own two limits.
async fn make_key(server: &Server, token: &str) -> (String, String) {
    let account_id = server.account(token).await;
    let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, Bearer::new(token));
    let account = Account {
        id: account_id.clone(),
        account_limits: vec![limit("pool", Algorithm::FixedWindow)],
        monthly_credits: Some(0),
        ..Account::default()
    };
    let paths = ["account_limits", "monthly_credits"].map(str::to_owned).to_vec();
    let update_mask = Some(prost_types::FieldMask { paths });
    accounts.update_account(UpdateAccountRequest { account: Some(account), update_mask }).await.unwrap();
    let top_up = AdjustCreditsRequest {
        account_id: account_id.clone(),
        amount: CAPACITY,
        reason: "a test".into(),
        ..Default::default()
    };
    accounts.adjust_credits(top_up).await.unwrap();
    let limits = vec![limit("fixed", Algorithm::FixedWindow), limit("sliding", Algorithm::SlidingWindow)];
    let key = Key { account_id: account_id.clone(), name: "k".into(), limits, ..Key::default() };
    let made = server.keys(token).await.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
    (account_id, made.secret)
}

async fn check(client: &mut Keys, secret: &str, cost: i64) -> Option<CheckKeyResponse> {
    let request = CheckKeyRequest { key: secret.to_owned(), cost: Some(cost), ..CheckKeyRequest::default() };
    client.check_key(request).await.ok().map(tonic::Response::into_inner)
}

/// What is left of all budgets, which must be as much of each.
async fn left(server: &Server, token: &str, secret: &str) -> i64 {
    let answer = check(&mut server.keys(token).await, secret, 0).await.unwrap();
    let credits = answer.credits.unwrap().remaining;
    let limits: Vec<i64> = answer.limits.iter().map(|limit| limit.remaining).collect();
    assert_eq!(limits, vec![credits; 3]);
    credits
}

/// Units charged, by the usage report once it is complete.
async fn charged(server: &Server, token: &str, account_id: &str) -> i64 {
    let mut client = server.keys(token).await;
    let mut as_of = Vec::new();
    loop {
        let request = GetUsageRequest { account_id: account_id.to_owned(), ..GetUsageRequest::default() };
        let report = client.get_usage(request).await.unwrap().into_inner();
        as_of.extend(report.as_of.map(|time| (time.seconds, time.nanos)));
        as_of.dedup();
        if as_of.len() > 2 {
            return report.totals.unwrap().credits;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_while_it_takes_over_changes_nothing() {
    let home = Home::new();
    let mut server = home.serve(&ARGUMENTS);
    let (account_id, secret) = make_key(&server, &home.token).await;
    let mut spent = 0;
    for _ in 0..ROUNDS {
        let mut client = server.keys(&home.token).await;
        for _ in 0..CHECKS {
            assert!(check(&mut client, &secret, 3).await.unwrap().allowed);
            spent += 3;
        }
        server.kill();
        for _ in 0..6 {
            let mut successor = serve_command(home.path(), &ARGUMENTS).spawn().unwrap();
            tokio::time::sleep(Duration::from_millis(dice(150))).await;
            successor.kill().unwrap();
            successor.wait().unwrap();
        }
        server = home.serve(&ARGUMENTS);
        assert_eq!(left(&server, &home.token, &secret).await, CAPACITY - spent);
        assert_eq!(charged(&server, &home.token, &account_id).await, spent);
    }
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_after_usage_was_written_and_leases_went_back_lose_nothing() {
    let home = Home::new();
    let mut server = home.serve(&ARGUMENTS);
    let (account_id, secret) = make_key(&server, &home.token).await;
    let (mut heard, mut unanswered) = (0, 0);
    for round in 0..ROUNDS {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            let (mut client, secret) = (server.keys(&home.token).await, secret.clone());
            clients.spawn(async move {
                let mut heard = 0;
                for turn in 0.. {
                    // Some rest for longer than leases are kept.
                    if number == 0 && turn % 100 == 99 {
                        tokio::time::sleep(Duration::from_millis(1_100)).await;
                    }
                    match check(&mut client, &secret, 2).await {
                        Some(answer) => assert!(answer.allowed, "{answer:?}"),
                        None => break,
                    }
                    heard += 2;
                }
                heard
            });
        }
        tokio::time::sleep(Duration::from_millis(100 + dice(if round % 2 == 0 { 400 } else { 2_500 }))).await;
        server.kill();
        heard += clients.join_all().await.into_iter().sum::<i64>();
        unanswered += 2 * i64::try_from(CLIENTS).unwrap();
        server = home.serve(&ARGUMENTS);
        let gone =
            CAPACITY - check(&mut server.keys(&home.token).await, &secret, 0).await.unwrap().credits.unwrap().remaining;
        assert!((heard..=heard + unanswered).contains(&gone), "{heard} heard of, {gone} gone");
        let reported = charged(&server, &home.token, &account_id).await;
        assert!((heard..=heard + unanswered).contains(&reported), "{heard} heard of, {reported} reported");
    }
    println!("{heard} heard of in {ROUNDS} rounds");
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

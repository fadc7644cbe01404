//! The real binary, killed while it takes over from one that was killed, and killed after it ran for long enough to have written
//! usage and given leases back: all that was answered is there once, and nothing else is missing.
#![cfg(test)]

mod support;

use std::time::Duration;

use support::{Home, Keys, Server, dice, serve_command};
use tollgate::proto::v1::*;

const ROUNDS: i64 = 8;
const CLIENTS: usize = 4;
const CHECKS: i64 = 50;
const CAPACITY: i64 = 1_000_000;
/// Usage is written as often as may be.
const ARGUMENTS: [&str; 1] = ["--usage-flush-interval=100ms"];

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
    let (account_id, secret) = support::budgeted_key(&server, &home.token, CAPACITY).await;
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
    let (account_id, secret) = support::budgeted_key(&server, &home.token, CAPACITY).await;
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

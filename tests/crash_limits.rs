//! The real binary under load, killed as the system kills when memory runs out, again and again: no limit ever admits more
//! than it has, nothing that was not spent is lost, and every charge that a client heard of is in the usage report.
#![cfg(test)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use support::{Home, Keys, Server, dice};
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::*;

/// How often it is killed; `make soak` asks for more.
const KILLS_DEFAULT: u64 = 100;
const CLIENTS: usize = 4;
const KEYS: usize = 4;
/// Of each key, and of all together.
const KEY_CAPACITY: i64 = 6_000;
const POOL_CAPACITY: i64 = 20_000;
/// Of the month, and topped up.
const CREDITS: i64 = ALLOWANCE + TOPPED_UP;
const ALLOWANCE: i64 = 5_000;
const TOPPED_UP: i64 = 10_000;

/// What the clients were told.
#[derive(Debug, Default)]
struct Admitted {
    by_key: [AtomicI64; KEYS],
    checks: AtomicI64,
    /// Units asked for in calls that were never answered: they may have been spent.
    unanswered: AtomicI64,
}

impl Admitted {
    fn all(&self) -> i64 {
        self.by_key.iter().map(|units| units.load(Ordering::Relaxed)).sum()
    }
}

fn kills() -> u64 {
    std::env::var("TOLLGATE_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS_DEFAULT)
}

async fn make_keys(server: &Server, token: &str) -> (String, Vec<String>) {
    let account_id = server.account(token).await;
    let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, support::Bearer::new(token));
    let limit = |name: &str, capacity: i64| Limit {
        name: name.into(),
        capacity,
        period: Period::Month.into(),
        ..Limit::default()
    };
    let account = Account {
        id: account_id.clone(),
        account_limits: vec![limit("pool", POOL_CAPACITY)],
        monthly_credits: Some(ALLOWANCE),
        ..Account::default()
    };
    let paths = ["account_limits", "monthly_credits"].map(str::to_owned).to_vec();
    let update_mask = Some(prost_types::FieldMask { paths });
    accounts.update_account(UpdateAccountRequest { account: Some(account), update_mask }).await.unwrap();
    let top_up = AdjustCreditsRequest {
        account_id: account_id.clone(),
        amount: TOPPED_UP,
        reason: "a test".into(),
        ..Default::default()
    };
    accounts.adjust_credits(top_up).await.unwrap();
    let mut keys = server.keys(token).await;
    let mut secrets = Vec::new();
    for i in 0..KEYS {
        let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("sliding", KEY_CAPACITY) };
        let limits = vec![if i % 2 == 0 { limit("fixed", KEY_CAPACITY) } else { sliding }];
        let key = Key { account_id: account_id.clone(), name: format!("k{i}"), limits, ..Key::default() };
        let answer = keys.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
        secrets.push(answer.secret);
    }
    (account_id, secrets)
}

/// Checks one key after the other until the server is gone, and counts what it is told.
async fn hammer(
    mut client: Keys,
    secrets: Arc<Vec<String>>,
    admitted: Arc<Admitted>,
    stop: Arc<AtomicBool>,
    first: usize,
) {
    for i in first.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let place = i % KEYS;
        let cost = i64::from(u8::try_from(i % 3).unwrap()) + 1;
        let request = CheckKeyRequest { key: secrets[place].clone(), cost: Some(cost), ..CheckKeyRequest::default() };
        let Ok(answer) = client.check_key(request).await else {
            admitted.unanswered.fetch_add(cost, Ordering::Relaxed);
            return;
        };
        if answer.into_inner().allowed {
            admitted.by_key[place].fetch_add(cost, Ordering::Relaxed);
            admitted.checks.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Kills a server under load again and again, then takes all that is left. Returns the last server and what was admitted.
async fn kill_and_count(home: &Home, arguments: &[&str]) -> (Server, String, Admitted) {
    let mut server = home.serve(arguments);
    let (account_id, secrets) = make_keys(&server, &home.token).await;
    let secrets = Arc::new(secrets);
    let admitted = Arc::new(Admitted::default());
    for _ in 0..kills() {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for first in 0..CLIENTS {
            let client = server.keys(&home.token).await;
            clients.spawn(hammer(client, Arc::clone(&secrets), Arc::clone(&admitted), Arc::clone(&stop), first));
        }
        tokio::time::sleep(Duration::from_millis(10 + dice(70))).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        clients.join_all().await;
        server = home.serve(arguments);
    }
    // And now all that is left.
    let mut client = server.keys(&home.token).await;
    for (place, secret) in secrets.iter().enumerate() {
        let request = CheckKeyRequest { key: secret.clone(), ..CheckKeyRequest::default() };
        while client.check_key(request.clone()).await.unwrap().into_inner().allowed {
            admitted.by_key[place].fetch_add(1, Ordering::Relaxed);
            admitted.checks.fetch_add(1, Ordering::Relaxed);
        }
    }
    for units in &admitted.by_key {
        let units = units.load(Ordering::Relaxed);
        assert!(units <= KEY_CAPACITY, "{units} of {KEY_CAPACITY}");
    }
    let all = admitted.all();
    assert!(all <= CREDITS.min(POOL_CAPACITY), "{all} of {CREDITS} credits");
    (server, account_id, Arc::into_inner(admitted).unwrap())
}

/// What the usage report says once it is complete: checks allowed, and credits.
async fn reported(server: &Server, token: &str, account_id: &str) -> (i64, i64) {
    let mut client = server.keys(token).await;
    let mut as_of = Vec::new();
    // The second flush from now on began after all that was counted.
    loop {
        let request = GetUsageRequest { account_id: account_id.to_owned(), ..GetUsageRequest::default() };
        let report = client.get_usage(request).await.unwrap().into_inner();
        as_of.extend(report.as_of.map(|time| (time.seconds, time.nanos)));
        as_of.dedup();
        if as_of.len() > 2 {
            let totals = report.totals.unwrap();
            return (totals.allowed, totals.credits);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_admitted_too_much_or_lost_however_often_the_server_is_killed() {
    let home = Home::new();
    let (server, account_id, admitted) = kill_and_count(&home, &[]).await;
    let (all, unanswered) = (admitted.all(), admitted.unanswered.load(Ordering::Relaxed));
    // What nobody heard of may be spent; nothing else is missing.
    assert!(all + unanswered >= CREDITS, "{all} and {unanswered} unanswered of {CREDITS}");
    let (checks, credits) = reported(&server, &home.token, &account_id).await;
    assert!(
        all <= credits && credits <= all + unanswered,
        "{all} heard of, {unanswered} unanswered, {credits} reported"
    );
    let heard = admitted.checks.load(Ordering::Relaxed);
    assert!(heard <= checks && checks <= heard + unanswered, "{heard} heard of, {checks} reported");
    let (_, metrics) = server.get("/metrics");
    assert!(metrics.contains("\ntollgate_lease_uncertain_units_total 0\n"), "{metrics}");
    stop(&home, server);
    println!("{} kills, {all} of {CREDITS} units admitted, {unanswered} unanswered", kills());
}

/// Where no journal is kept, what was leased counts as spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_journal_no_limit_admits_more_than_it_has() {
    let home = Home::new();
    let (server, _, admitted) = kill_and_count(&home, &["--limits-journal", "off"]).await;
    let all = admitted.all();
    assert!(all > CREDITS / 20, "only {all}: the kills have used up more than is left to see");
    stop(&home, server);
    println!("{} kills, {all} of {CREDITS} units admitted", kills());
}

fn stop(home: &Home, mut server: Server) {
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

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
/// No window of this length ends while a test runs.
const YEAR_SECONDS: i32 = 31_536_000;
const KEYS: usize = 4;
/// What each limit has for each kill: less than the clients ask for meanwhile, so that all are reached under fire.
const KEY_UNITS: i64 = 8;
const POOL_UNITS: i64 = 24;
const CREDIT_UNITS: i64 = 9;

/// Of the first two keys each, of the first three together, and of the fourth.
#[derive(Clone, Copy, Debug)]
struct Capacity {
    key: i64,
    pool: i64,
    credits: i64,
}

impl Capacity {
    fn new() -> Self {
        let kills = i64::try_from(kills()).unwrap();
        Self { key: kills * KEY_UNITS, pool: kills * POOL_UNITS, credits: kills * CREDIT_UNITS }
    }
}

/// What the clients were told of one key.
#[derive(Debug, Default)]
struct Admitted {
    checks: AtomicI64,
    units: AtomicI64,
    /// Units asked for in calls that were never answered: they may have been spent.
    unanswered: AtomicI64,
}

impl Admitted {
    fn add(&self, units: i64) {
        self.checks.fetch_add(1, Ordering::Relaxed);
        self.units.fetch_add(units, Ordering::Relaxed);
    }

    fn units(&self) -> i64 {
        self.units.load(Ordering::Relaxed)
    }

    fn unanswered(&self) -> i64 {
        self.unanswered.load(Ordering::Relaxed)
    }
}

fn kills() -> u64 {
    std::env::var("TOLLGATE_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS_DEFAULT)
}

/// Two accounts, one with a pool and one with credits, and the secrets of their keys.
async fn make_keys(server: &Server, token: &str) -> ([String; 2], Vec<String>) {
    let capacity = Capacity::new();
    let limit = |name: &str, capacity: i64| Limit {
        name: name.into(),
        capacity,
        period: Period::Seconds.into(),
        period_seconds: YEAR_SECONDS,
        ..Limit::default()
    };
    let (pooled, counted) = (server.account(token).await, server.account(token).await);
    let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, support::Bearer::new(token));
    let changes = [
        (
            Account { account_limits: vec![limit("pool", capacity.pool)], ..Account::default() },
            "account_limits",
            &pooled,
        ),
        (Account { monthly_credits: Some(capacity.credits), ..Account::default() }, "monthly_credits", &counted),
    ];
    for (account, path, id) in changes {
        let account = Some(Account { id: id.clone(), ..account });
        let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
        accounts.update_account(UpdateAccountRequest { account, update_mask }).await.unwrap();
    }
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("sliding", capacity.key) };
    let limits = [vec![limit("fixed", capacity.key)], vec![sliding], vec![], vec![]];
    let mut keys = server.keys(token).await;
    let mut secrets = Vec::new();
    for (i, limits) in limits.into_iter().enumerate() {
        let account_id = if i < 3 { pooled.clone() } else { counted.clone() };
        let key = Key { account_id, name: format!("k{i}"), limits, ..Key::default() };
        let answer = keys.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
        secrets.push(answer.secret);
    }
    ([pooled, counted], secrets)
}

/// Checks one key after the other until the server is gone, and counts what it is told.
async fn hammer(
    mut client: Keys,
    secrets: Arc<Vec<String>>,
    admitted: Arc<[Admitted; KEYS]>,
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
            admitted[place].unanswered.fetch_add(cost, Ordering::Relaxed);
            return;
        };
        if answer.into_inner().allowed {
            admitted[place].add(cost);
        }
    }
}

/// Kills a server under load again and again, then takes all that is left. Returns the last server, its accounts and what was
/// admitted.
async fn kill_and_count(home: &Home, arguments: &[&str]) -> (Server, [String; 2], [Admitted; KEYS]) {
    let arguments = [&["--usage-flush-interval=100ms"], arguments].concat();
    let mut server = home.serve(&arguments);
    let (account_ids, secrets) = make_keys(&server, &home.token).await;
    let secrets = Arc::new(secrets);
    let admitted = Arc::new(<[Admitted; KEYS]>::default());
    for kill in 0..kills() {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for first in 0..CLIENTS {
            let client = server.keys(&home.token).await;
            clients.spawn(hammer(client, Arc::clone(&secrets), Arc::clone(&admitted), Arc::clone(&stop), first));
        }
        // Most live for less than a flush; some for long enough that leases are filled up, and go back.
        let longer = if kill % 25 == 0 { 1_500 } else { 0 };
        tokio::time::sleep(Duration::from_millis(10 + dice(120) + longer)).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        clients.join_all().await;
        server = home.serve(&arguments);
    }
    // And now all that is left.
    let mut client = server.keys(&home.token).await;
    for (admitted, secret) in admitted.iter().zip(secrets.iter()) {
        let request = CheckKeyRequest { key: secret.clone(), ..CheckKeyRequest::default() };
        while client.check_key(request.clone()).await.unwrap().into_inner().allowed {
            admitted.add(1);
        }
    }
    (server, account_ids, Arc::into_inner(admitted).unwrap())
}

/// Each limit with what it has, and what was admitted of it and not heard of.
fn sums(admitted: &[Admitted; KEYS]) -> [(&'static str, i64, i64, i64); 4] {
    let capacity = Capacity::new();
    let [fixed, sliding, plain, counted] = admitted;
    let sum = |of: &[&Admitted]| {
        (of.iter().map(|one| one.units()).sum::<i64>(), of.iter().map(|one| one.unanswered()).sum::<i64>())
    };
    let row = |name, capacity, of: &[&Admitted]| (name, capacity, sum(of).0, sum(of).1);
    [
        row("fixed", capacity.key, &[fixed]),
        row("sliding", capacity.key, &[sliding]),
        row("pool", capacity.pool, &[fixed, sliding, plain]),
        row("credits", capacity.credits, &[counted]),
    ]
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

fn uncertain_units(server: &Server) -> i64 {
    let (_, metrics) = server.get("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("tollgate_lease_uncertain_units_total "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_admitted_too_much_or_lost_however_often_the_server_is_killed() {
    let home = Home::new();
    let (server, [pooled, counted], admitted) = kill_and_count(&home, &[]).await;
    println!("{} kills: {:?}", kills(), sums(&admitted));
    for (limit, capacity, units, unanswered) in sums(&admitted) {
        assert!(units <= capacity, "{limit}: {units} of {capacity}");
        // What nobody heard of may be spent; nothing else is missing.
        assert!(units + unanswered >= capacity, "{limit}: {units} and {unanswered} unanswered of {capacity}");
    }
    for (account_id, of) in [(pooled, &admitted[..3]), (counted, &admitted[3..])] {
        let (checks, credits) = reported(&server, &home.token, &account_id).await;
        let heard: i64 = of.iter().map(|one| one.checks.load(Ordering::Relaxed)).sum();
        let unanswered: i64 = of.iter().map(Admitted::unanswered).sum();
        assert!(heard <= checks && checks <= heard + unanswered, "{heard} heard of, {checks} reported");
        if credits > 0 {
            // All are spent. A kill between the two counters of a check can take it out of one of them, and hardly ever does.
            let missing = Capacity::new().credits - credits;
            assert!((0..=9).contains(&missing), "{missing} credits are spent and not reported");
        }
    }
    assert_eq!(uncertain_units(&server), 0);
    stop(&home, server);
}

/// Where no journal is kept, what was leased counts as spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_journal_no_limit_admits_more_than_it_has() {
    let home = Home::new();
    let (server, _, admitted) = kill_and_count(&home, &["--limits-journal=off"]).await;
    println!("{} kills: {:?}", kills(), sums(&admitted));
    for (limit, capacity, units, _) in sums(&admitted) {
        assert!(units <= capacity, "{limit}: {units} of {capacity}");
        assert!(units > capacity / 20, "{limit}: only {units} of {capacity}, the rest is uncertain");
    }
    stop(&home, server);
}

/// The metric counts what the journal would have told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_journal_what_was_leased_is_uncertain() {
    let home = Home::new();
    let mut server = home.serve(&["--limits-journal=off"]);
    let (_, secrets) = make_keys(&server, &home.token).await;
    let request = CheckKeyRequest { key: secrets[0].clone(), ..CheckKeyRequest::default() };
    assert!(server.keys(&home.token).await.check_key(request).await.unwrap().into_inner().allowed);
    server.kill();
    let server = home.serve(&["--limits-journal=off"]);
    support::eventually("the metric tells", || uncertain_units(&server) > 0);
    stop(&home, server);
}

fn stop(home: &Home, mut server: Server) {
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

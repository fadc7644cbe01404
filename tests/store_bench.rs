//! How fast a store is, with as many keys as `TOLLGATE_BENCH_LOAD` says:
//!
//! ```sh
//! TOLLGATE_BENCH_LOAD=1000000 cargo test --release --test store_bench -- --nocapture
//! ```
//!
//! It is the embedded one, and `TOLLGATE_BENCH_FOLDER` says on which disk; or where `TOLLGATE_BENCH_DATABASE` is the URL of an empty
//! PostgreSQL database, that one.

#![cfg(test)]

#[path = "store_contract/records.rs"]
#[expect(dead_code, reason = "the contract's cases use more of it")]
mod records;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tollgate::domain::{Activity, Environment, Key, Policy, Scope, UsageDelta, Verdict};
use tollgate::store::postgres::{PostgresOptions, PostgresStore};
use tollgate::store::sqlite::{OpenMode, SqliteStore};
use tollgate::store::{AuditEvent, Commit, KeyQuery, Loaded, SharedStore, UsageFlush, UsageOf, UsageQuery, Write};

use records::{NOW, account, account_id, all_keys, hash, key, key_id, later, limit, plan, secret, write};

/// How many share the keys.
const ACCOUNTS: u64 = 1_000;

/// Since when, by the clock and by what the process has spent on all cores: on a shared machine the latter tells more.
struct Start(Instant, Duration);

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn begin() -> Start {
    Start(Instant::now(), cpu())
}

/// User and system time of this process, in the hundredths of a second that Linux counts.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks = stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2);
    Duration::from_millis(ticks.map(|ticks| 10 * ticks.parse::<u64>().unwrap()).sum())
}

impl Start {
    fn elapsed(&self) -> (Duration, Duration) {
        (self.0.elapsed(), cpu().saturating_sub(self.1))
    }
}

fn report(what: &str, count: u64, (elapsed, cpu): (Duration, Duration)) {
    let millis = elapsed.as_secs_f64() * 1_000.0;
    let rate = f64::from(u32::try_from(count).unwrap()) / elapsed.as_secs_f64();
    println!("{what:<52} {millis:>9.1} ms {:>7} ms CPU {rate:>10.0}/s", cpu.as_millis());
}

fn account_name(number: u64) -> String {
    // The first 10,000 keys are of one account; of the others 50 in a row are.
    if number <= 10_000 { "0".to_owned() } else { (number / 50 % ACCOUNTS).to_string() }
}

fn bench_key(number: u64) -> Key {
    let scopes = ["tasks:read", "tasks:write", "users:*"];
    let policy = Policy {
        scopes: scopes.iter().map(|scope| Scope::parse(scope).unwrap()).collect(),
        limits: vec![limit("minute", 100 + number % 20), limit("day", 10_000)],
        ..Policy::default()
    };
    let expire_time = number.is_multiple_of(4).then(|| later(86_400_000));
    let environment = if number.is_multiple_of(5) { Environment::Test } else { Environment::Live };
    Key { policy, expire_time, environment, ..key(number, &account_name(number)) }
}

async fn import(store: &SharedStore, keys: u64) {
    let mut setup = vec![Write::InsertPlan(plan("free"))];
    setup.extend((0..ACCOUNTS).map(|number| Write::InsertAccount(account(&number.to_string(), "free"))));
    write(store, setup).await.unwrap();
    let mut spent = (Duration::ZERO, Duration::ZERO);
    for first in (1..=keys).step_by(1_000) {
        let numbers = first..=keys.min(first + 999);
        let event = |number| AuditEvent {
            action: "key.import",
            subject: key_id(number).to_string(),
            details: format!("{{\"account_id\":\"acct_{}\"}}", account_name(number)),
        };
        let commit = Commit {
            rehearsal: false,
            time: NOW,
            actor: "key_0000000000000000000001".to_owned(),
            guards: vec![],
            events: numbers.clone().map(event).collect(),
            writes: numbers.map(|number| Write::InsertKey(bench_key(number), secret(number))).collect(),
        };
        let start = begin();
        store.commit(commit).await.unwrap();
        let (elapsed, cpu) = start.elapsed();
        spent = (spent.0 + elapsed, spent.1 + cpu);
    }
    report("import, commits of 1,000 keys", keys, spent);
}

async fn load(store: &SharedStore, keys: u64) {
    for _ in 0..3 {
        let start = begin();
        let (sender, mut receiver) = mpsc::channel(16);
        let loading = tokio::spawn({
            let store = Arc::clone(store);
            async move { store.load(sender).await }
        });
        let (mut count, mut kept) = (0, Vec::new());
        while let Some(loaded) = receiver.recv().await {
            if let Loaded::Keys(keys) = loaded {
                count += keys.len();
                kept.push(keys);
            }
        }
        loading.await.unwrap().unwrap();
        report("load", keys, start.elapsed());
        assert_eq!(u64::try_from(count).unwrap(), keys);
    }
}

async fn usage(store: &SharedStore, keys: u64) {
    let mut flushes = 0_u128;
    let mut flush = |hour: i64, rows: u64, spread: u64| {
        flushes += 1;
        let number = move |i: u64| 1 + i.wrapping_mul(spread) % keys;
        let deltas = (0..rows).map(|i| UsageDelta {
            key_id: key_id(number(i)),
            hour,
            verdict: Verdict::Allowed,
            requests: 3,
            credits: 3,
        });
        let activities =
            (0..rows).map(|i| Activity { key_id: key_id(number(i)), last_used_time: NOW, last_used_ip: None });
        UsageFlush {
            id: flushes.to_be_bytes(),
            time: NOW,
            deltas: deltas.collect(),
            activities: activities.take(if hour < 100 { 0 } else { 50_000 }).collect(),
        }
    };
    for (what, hour, rows, spread) in [
        ("flush of new rows, neighbours", 1, 50_000, 1),
        ("flush of the same rows", 1, 50_000, 1),
        ("flush of new rows, scattered", 2, 50_000, 7_919),
        ("flush of the same rows, scattered", 2, 50_000, 7_919),
        ("flush of 1,000 rows, scattered", 2, 1_000, 7_919),
        ("the same with last uses", 100, 50_000, 7_919),
    ] {
        let flush = flush(hour, rows, spread);
        let start = begin();
        store.record_usage(&flush).await.unwrap();
        report(what, rows, start.elapsed());
    }
    for hour in 200..230 {
        store.record_usage(&flush(hour, 10_000.min(keys), 1)).await.unwrap();
    }
    let query = |buckets: Vec<(i64, i64)>, by_key| UsageQuery {
        of: UsageOf::Account(account_id("0")),
        buckets,
        by_key,
        rows_max: 100_000,
    };
    for (what, query) in [
        ("usage of 10,000 keys, 30 hours, hourly", query((200..230).map(|hour| (hour, hour + 1)).collect(), false)),
        ("usage of 10,000 keys, 30 hours, one bucket", query(vec![(0, 744)], false)),
        (
            "usage of 10,000 keys, hours of a month, mostly none",
            query((0..744).map(|hour| (hour, hour + 1)).collect(), false),
        ),
        ("usage of 10,000 keys by key, one bucket", query(vec![(0, 744)], true)),
    ] {
        let start = begin();
        let rows = store.usage(&query).await.unwrap().len();
        report(what, u64::try_from(rows).unwrap(), start.elapsed());
    }
}

async fn reads(store: &SharedStore) {
    let page = |change: &dyn Fn(&mut KeyQuery)| {
        let mut query = KeyQuery { rows_max: 101, ..all_keys() };
        change(&mut query);
        query
    };
    for (what, query) in [
        ("page of all keys", page(&|_| {})),
        ("page of an account", page(&|query| query.account_id = Some(account_id("7")))),
        ("page of a rare prefix", page(&|query| query.prefix = Some("sk_live_00012".to_owned()))),
        ("page of a common prefix", page(&|query| query.prefix = Some("sk_live_".to_owned()))),
        ("page of what no key is", page(&|query| query.expires_before = Some(later(0)))),
        ("page of keys unused", page(&|query| query.unused_since = Some(later(1)))),
    ] {
        let start = begin();
        let rows = store.keys(&query).await.unwrap().len();
        report(what, u64::try_from(rows).unwrap(), start.elapsed());
    }
    let start = begin();
    for number in 1..=1_000 {
        let found = store.key(key_id(number)).await.unwrap().unwrap();
        assert_eq!(found.hash, hash(number));
    }
    report("one key by its id", 1_000, start.elapsed());
    let start = begin();
    store.pepper_ids().await.unwrap();
    report("pepper ids", 1, start.elapsed());
    let start = begin();
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
    report("verify", 1, start.elapsed());
}

async fn small_commits(store: &SharedStore, keys: u64) {
    let start = begin();
    for number in keys + 1..=keys + 200 {
        write(store, vec![Write::InsertKey(bench_key(number), secret(number))]).await.unwrap();
    }
    report("commits of one key, one after the other", 200, start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench() {
    let Ok(keys) = std::env::var("TOLLGATE_BENCH_LOAD") else {
        println!("SKIPPED: TOLLGATE_BENCH_LOAD does not say with how many keys");
        return;
    };
    let keys: u64 = keys.parse().unwrap();
    if let Ok(url) = std::env::var("TOLLGATE_BENCH_DATABASE") {
        return measure(keys, || on_server(&url)).await;
    }
    let folder = match std::env::var_os("TOLLGATE_BENCH_FOLDER") {
        Some(folder) => tempfile::tempdir_in(folder).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let path = folder.path().join("tollgate.db");
    measure(keys, || in_file(&path)).await;
    let kilobytes = u32::try_from(path.metadata().unwrap().len() / 1_000).unwrap();
    println!("{:<52} {:>9.1} MB", "the file", f64::from(kilobytes) / 1_000.0);
}

async fn in_file(path: &Path) -> SharedStore {
    Arc::new(SqliteStore::open(path, OpenMode::Create).await.unwrap())
}

async fn on_server(url: &str) -> SharedStore {
    let options = PostgresOptions {
        url: url.into(),
        password_file: None,
        connections_max: 8,
        connect_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_mins(1),
        log_kept: Duration::from_hours(24),
    };
    PostgresStore::migrate(&options).await.unwrap();
    Arc::new(PostgresStore::open(&options).await.unwrap())
}

async fn measure<F: Future<Output = SharedStore>>(keys: u64, open: impl Fn() -> F) {
    let store = open().await;
    import(&store, keys).await;
    let start = begin();
    store.close().await;
    report("close", 1, start.elapsed());
    let start = begin();
    let store = open().await;
    report("open", 1, start.elapsed());
    load(&store, keys).await;
    reads(&store).await;
    usage(&store, keys).await;
    small_commits(&store, keys).await;
    store.close().await;
}

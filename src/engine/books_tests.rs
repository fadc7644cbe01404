//! What must hold of counters, journals and windows whatever happens around them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::ask::Ask;
use super::budget::Budget;
use super::*;
use crate::ambient::ManualClock;
use crate::decision::Request;
use crate::decision::quota::{Rule, State};
use crate::domain::*;
use crate::journal::{Journal, Opened, SpendCell};
use crate::store::sqlite::{OpenMode, SqliteStore};
use crate::store::{Leased, UsageOf, UsageQuery};
use secrecy::ExposeSecret as _;

fn at(millis: i64) -> Time {
    Time::from_millis(millis)
}

fn limit(name: &str, capacity: u64, period: Period, algorithm: Algorithm) -> Limit {
    Limit { name: LimitName::parse(name).unwrap(), capacity, period, algorithm }
}

fn sliding(capacity: u64) -> Rule {
    Rule::of(&limit("l", capacity, Period::Minute, Algorithm::SlidingWindow))
}

fn answer(store: &mut Option<State>, ask: &Ask, now: Time) -> Leased {
    let mut state = store.take().unwrap_or_else(|| State::new(&ask.rule, &TimeZone::UTC, now));
    state.advance(&ask.rule, &TimeZone::UTC, now.max(ask.reached));
    ask.settled.iter().for_each(|one| state.give_back(one.slot, one.returned));
    let granted = state.grant(&ask.rule, ask.wanted);
    let ahead = state.grant_ahead(&ask.rule, ask.ahead);
    *store = Some(state.clone());
    Leased { granted, ahead, elsewhere: false, state }
}

fn journal(folder: &tempfile::TempDir) -> Journal {
    Opened::open(&folder.path().join("spent")).unwrap().begin([1; 16]).unwrap()
}

/// A slot begins between the question and the answer.
#[test]
fn a_counter_in_use_is_never_freed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(&folder);
    let (mut budget, mut store) = (Budget::new(sliding(1_000)), None);
    budget.want(5);
    let ask = budget.ask(&journal, at(900)).unwrap();
    budget.grant(answer(&mut store, &ask, at(900)), ask.cells);
    budget.advance(&TimeZone::UTC, at(900));
    budget.spend(5, at(900));
    // A check at 0.999 s waits, and the store is asked at 1.001 s.
    budget.want(3);
    let ask = budget.ask(&journal, at(1_001)).unwrap();
    budget.grant(answer(&mut store, &ask, at(1_001)), ask.cells);
    budget.advance(&TimeZone::UTC, at(1_001));
    budget.spend(3, at(1_001));
    budget.want(1);
    let ask = budget.ask(&journal, at(1_002)).unwrap();
    let used = ask.cells.here.map(SpendCell::number);
    let freed: Vec<_> = ask.freed.iter().map(|cell| Some(cell.number())).collect();
    assert!(!freed.contains(&used), "in use: {used:?}, freed: {freed:?}");
}

/// The same while units of the next slot are leased.
#[test]
fn no_counter_is_freed_twice() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(&folder);
    let (mut budget, mut store) = (Budget::new(sliding(10_000)), None);
    let mut freed: Vec<u32> = Vec::new();
    // Spent from in two seconds, so that it is looked ahead.
    for millis in [100, 1_100, 1_500] {
        budget.advance(&TimeZone::UTC, at(millis));
        budget.want(10);
        let ask = budget.ask(&journal, at(millis)).unwrap();
        freed.extend(ask.freed.iter().map(|cell| cell.number()));
        budget.grant(answer(&mut store, &ask, at(millis)), ask.cells);
        budget.spend(10, at(millis));
    }
    budget.want(10);
    // Asked when the next slot has begun.
    let ask = budget.ask(&journal, at(2_001)).unwrap();
    freed.extend(ask.freed.iter().map(|cell| cell.number()));
    budget.grant(answer(&mut store, &ask, at(2_001)), ask.cells);
    budget.want(1);
    let ask = budget.ask(&journal, at(2_002)).unwrap();
    let here = ask.cells.here.map(SpendCell::number);
    let freed: Vec<_> = freed.into_iter().chain(ask.freed.iter().map(|cell| cell.number())).collect();
    let mut once = freed.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!((once.len(), freed.iter().any(|n| Some(*n) == here)), (freed.len(), false), "{freed:?} {here:?}");
}

/// Units taken out for an operation are in the store's books under the lease's counter until they are charged.
#[test]
fn a_counter_of_reserved_units_is_not_freed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(&folder);
    let (mut budget, mut store) = (Budget::new(sliding(1_000)), None);
    budget.want(5);
    let ask = budget.ask(&journal, at(900)).unwrap();
    budget.grant(answer(&mut store, &ask, at(900)), ask.cells);
    budget.advance(&TimeZone::UTC, at(900));
    let (lease, _) = budget.reserve(5, at(900));
    let ask = budget.end().unwrap();
    assert!(!ask.freed.iter().any(|cell| Some(cell.number()) == lease.cell.map(SpendCell::number)), "freed");
}

#[test]
fn a_file_that_is_no_journal_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.sqlite");
    std::fs::write(&path, "SQLite format 3\0 and all keys of all customers").unwrap();
    if let Ok(opened) = Opened::open(&path) {
        assert!(opened.left().unwrap().is_none());
        _ = opened.begin([1; 16]);
    }
    let kept = std::fs::read(&path).unwrap();
    assert!(kept.starts_with(b"SQLite"), "it is gone");
}

#[test]
fn a_damaged_file_is_read_without_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spent");
    drop(Opened::open(&path).unwrap().begin([1; 16]).unwrap());
    let whole = std::fs::read(&path).unwrap();
    let mut seed = 7_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..5_000 {
            let place = 52 + usize::try_from(next()).unwrap() % (bytes.len() - 52);
            bytes[place] = u8::try_from(next() & 255).unwrap();
        }
        let segment = 4_096 + (2 << 20) * (usize::try_from(next()).unwrap() % 2);
        bytes[segment..segment + 8].copy_from_slice(&(next() % 4).to_ne_bytes());
        bytes.truncate(usize::try_from(next()).unwrap() % (bytes.len() + 1));
        std::fs::write(&path, &bytes).unwrap();
        _ = Opened::open(&path).unwrap().left().unwrap();
    }
}

/// Whose day it is changes as the day goes on.
#[test]
fn a_day_gives_its_capacity_once_whatever_becomes_of_the_zone() {
    let rule = Rule::of(&limit("l", 10, Period::Day, Algorithm::FixedWindow));
    let zones: Vec<TimeZone> = ["UTC", "Etc/GMT+1", "Etc/GMT+2", "Etc/GMT+3", "Etc/GMT+4", "Etc/GMT+5", "Etc/GMT+6"]
        .iter()
        .map(|name| TimeZone::parse(name).unwrap())
        .collect();
    let hour = 3_600_000;
    let mut state = State::new(&rule, &zones[0], at(23 * hour));
    let mut admitted = Vec::new();
    for (i, zone) in (0..).zip(&zones) {
        // A moment before midnight of the zone that it has, the whole is spent; then the zone is set one hour to the west.
        let now = at((24 + i) * hour - 1);
        state.advance(&rule, zone, now);
        admitted.push((now, state.grant(&rule, 10)));
    }
    // The day of the last zone.
    let day = crate::decision::window::window_at(
        crate::decision::window::Calendar::Period(Period::Day),
        zones.last().unwrap(),
        at(30 * hour - 1),
    );
    let sum: u64 = admitted.iter().filter(|(time, _)| day.contains(*time)).map(|(_, units)| units).sum();
    assert!(sum <= 10, "{sum} units admitted in the day {day:?}: {admitted:?}");
}

struct Process {
    engine: Arc<Engine>,
    hands: ManualClock,
}

impl Process {
    async fn start(folder: &Path, now: i64) -> Self {
        let inner = SqliteStore::open(&folder.join("db"), OpenMode::Create).await.unwrap();
        let (clock, hands) = Clock::manual(at(now));
        let options = Options { journal: Some(folder.join("spent")), ..Options::default() };
        let engine = Arc::new(Engine::new(Arc::new(inner), clock, options));
        engine.load().await.unwrap();
        Self { engine, hands }
    }

    /// Leases are served only while this runs.
    async fn serve<T>(&self, run: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let run = async {
            let result = run.await;
            stop.cancel();
            result
        };
        tokio::join!(self.engine.serve_leases(stop.cancelled()), run).1
    }

    /// A check; the clock moves on by so much before the store is asked.
    async fn check(&self, secret: &str, cost: u64, id: Option<&OperationId>, late: i64) -> Result<Answer, Error> {
        let now = self.engine.clock.now();
        let request = Request::default();
        let check = Check { credential: secret, request, cost, consume: true, within: None, attempt: None };
        let call = async {
            match id {
                Some(id) => self.engine.check_operation(&check, id, now).await,
                None => self.engine.check(&check, now).await,
            }
        };
        let mut call = std::pin::pin!(call);
        tokio::select! {
            biased;
            done = &mut call => return done,
            () = std::future::ready(()) => {}
        }
        self.hands.set(at(now.millis() + late));
        self.serve(call).await
    }

    async fn left(&self, secret: &str) -> HashMap<String, u64> {
        let request = Request::default();
        let check = Check { credential: secret, request, cost: 0, consume: false, within: None, attempt: None };
        let answer = self.serve(self.engine.check(&check, self.engine.clock.now())).await.unwrap();
        answer.limits.iter().map(|limit| (limit.limit.name.to_string(), limit.remaining)).collect()
    }

    async fn requests(&self, key: KeyId) -> u64 {
        let query =
            UsageQuery { of: UsageOf::Key(key), buckets: vec![(499_990, 500_010)], by_key: false, rows_max: 99 };
        self.engine.store.usage(&query).await.unwrap().iter().map(|row| row.requests).sum()
    }

    async fn key(&self, limits: Vec<Limit>) -> (KeyId, String) {
        let made = self.engine.bootstrap(true).await.unwrap();
        // Its name is the second in which it was made.
        self.hands.advance(Duration::from_secs(1));
        let patch = KeyPatch { limits: Some(limits), ..KeyPatch::default() };
        self.engine.update_key(&Caller::System, made.key.id, patch, None).await.unwrap();
        (made.key.id, made.secret.expose_secret().to_owned())
    }

    async fn kill(self) {
        self.engine.store.close().await;
    }
}

const START: i64 = 1_800_000_000_000;

fn both() -> Vec<Limit> {
    vec![
        limit("slide", 1_000, Period::Minute, Algorithm::SlidingWindow),
        limit("hour", 1_000, Period::Hour, Algorithm::FixedWindow),
    ]
}

/// Two keys, one of which is asked for while a slot begins.
#[tokio::test]
async fn after_a_kill_what_is_left_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), START + 100).await;
    let (_, a) = process.key(both()).await;
    let (_, b) = process.key(both()).await;
    let mut spent = 0;
    for late in [0, 0, 950, 0, 0] {
        process.check(&a, 20, None, late).await.unwrap();
        spent += 20;
    }
    process.check(&b, 7, None, 0).await.unwrap();
    let expected = HashMap::from([("slide".to_owned(), 1_000 - spent), ("hour".to_owned(), 1_000 - spent)]);
    assert_eq!(process.left(&a).await, expected, "before");
    let now = process.engine.clock.now().millis();
    process.kill().await;
    let process = Process::start(folder.path(), now).await;
    assert_eq!(process.left(&a).await, expected, "after");
}

/// The journal can't be begun anew, twice.
#[tokio::test]
async fn usage_that_was_left_counts_once_also_where_no_new_journal_can_be_begun() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), START).await;
    let (id, a) = process.key(vec![]).await;
    for _ in 0..5 {
        process.check(&a, 1, None, 0).await.unwrap();
    }
    process.kill().await;
    // As on a full disk, or in a folder that can't be written.
    std::fs::create_dir(folder.path().join("spent.new")).unwrap();
    for start in 0..3 {
        let process = Process::start(folder.path(), START + 1_000).await;
        assert_eq!(process.requests(id).await, 5 + start, "at start {start}");
        process.check(&a, 1, None, 0).await.unwrap();
        process.engine.flush_usage().await.unwrap();
        process.kill().await;
    }
}

fn utc(text: &str) -> Time {
    at(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

/// An account is set from UTC to its true zone before the month ends.
#[test]
fn a_month_gives_its_credits_once_where_the_zone_is_set() {
    let (rule, los_angeles) = (Rule::of_credits(100, 1), TimeZone::parse("America/Los_Angeles").unwrap());
    let mut state = State::new(&rule, &TimeZone::UTC, utc("2026-01-20T12:00:00Z"));
    let january = state.grant(&rule, 100);
    // It is still January there.
    state.advance(&rule, &los_angeles, utc("2026-02-01T01:00:00Z"));
    assert_eq!(state.bounds().end, utc("2026-02-01T08:00:00Z"));
    assert_eq!(january + state.grant(&rule, 100), 100, "in {:?}", state.bounds());
}

/// Where clocks are set by half an hour.
#[test]
fn an_hour_gives_its_capacity_once_where_the_offset_changes_by_half_of_it() {
    let rule = Rule::of(&limit("l", 10, Period::Hour, Algorithm::FixedWindow));
    let zone = TimeZone::parse("Australia/Lord_Howe").unwrap();
    for change in ["2026-04-04T15:00:00Z", "2026-10-03T15:30:00Z"] {
        let change = utc(change);
        let mut state = State::new(&rule, &zone, change.plus_millis(-7_200_000));
        let mut granted: Vec<(Time, u64)> = Vec::new();
        for minute in -120..120 {
            let now = change.plus_millis(minute * 60_000);
            state.advance(&rule, &zone, now);
            let window = state.bounds();
            granted.push((now, state.grant(&rule, 10)));
            let sum: u64 = granted.iter().filter(|(time, _)| window.contains(*time)).map(|(_, units)| units).sum();
            assert!(sum <= 10, "{sum} in {window:?} at the change of {change}");
        }
    }
}

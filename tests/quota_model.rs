//! A model of limits, in a few lines, and the engine on the embedded store beside it: through checks, clocks that jump, limits
//! that change, restarts and crashes both say the same.
#![cfg(test)]

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tollgate::ambient::{Clock, ManualClock};
use tollgate::decision::Request;
use tollgate::domain::{Algorithm, KeyId, Limit, LimitName, Period, Time, Verdict};
use tollgate::engine::{Caller, Check, Engine, KeyPatch, Options};
use tollgate::store::SharedStore;
use tollgate::store::sqlite::{OpenMode, SqliteStore};

const MINUTE: i64 = 60_000;
const START: i64 = 1_000 * MINUTE;

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// A check of so many units, so often.
    Checks(u64, u32),
    /// The clock moves, also back.
    Clock(i64),
    /// The limit is another from now on.
    Capacity(u64),
    /// The process ends in order, and another begins.
    Restart,
    /// The process is gone, and another begins.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let clock = prop_oneof![
        4 => 0..MINUTE / 3,
        2 => MINUTE..3 * MINUTE,
        1 => -3 * MINUTE..0,
        1 => Just(31 * 24 * 60 * MINUTE),
        1 => Just(-31 * 24 * 60 * MINUTE),
    ];
    let step = prop_oneof![
        8 => (0..5_u64, 1..12_u32).prop_map(|(units, times)| Step::Checks(units, times)),
        4 => clock.prop_map(Step::Clock),
        1 => (0..40_u64).prop_map(Step::Capacity),
        1 => Just(Step::Restart),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// One limit in a fixed window, as its documentation has it.
#[derive(Debug)]
struct Model {
    capacity: u64,
    /// The latest window that was ever admitted in, and what is gone of it. Where the clock goes back, it goes on.
    window: i64,
    gone: u64,
}

impl Model {
    fn left(&self, now: i64) -> u64 {
        self.capacity.saturating_sub(if now.div_euclid(MINUTE) > self.window { 0 } else { self.gone })
    }

    /// Whether so many units are left. They are gone then.
    fn admits(&mut self, units: u64, now: i64) -> bool {
        let admitted = units == 0 || units <= self.left(now);
        if admitted {
            self.lose(units, now);
        }
        admitted
    }

    fn lose(&mut self, units: u64, now: i64) {
        if units > 0 {
            let window = now.div_euclid(MINUTE).max(self.window);
            let gone = if window > self.window { 0 } else { self.gone };
            (self.window, self.gone) = (window, gone + units);
        }
    }
}

/// An engine, and what it runs on.
struct Process {
    engine: Arc<Engine>,
    store: SharedStore,
    stop: CancellationToken,
    leasing: JoinHandle<()>,
}

impl Process {
    async fn start(folder: &TempDir, clock: &Clock) -> Self {
        let store: SharedStore =
            Arc::new(SqliteStore::open(&folder.path().join("db"), OpenMode::Create).await.unwrap());
        let engine = Arc::new(Engine::new(Arc::clone(&store), clock.clone(), Options::default()));
        engine.load().await.unwrap();
        let stop = CancellationToken::new();
        let leasing = tokio::spawn({
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        Self { engine, store, stop, leasing }
    }

    async fn end(self) {
        self.stop.cancel();
        self.leasing.await.unwrap();
        self.engine.return_leases().await.unwrap();
        self.store.close().await;
    }

    async fn crash(self) {
        self.leasing.abort();
        self.store.close().await;
    }
}

fn limits(capacity: u64) -> Vec<Limit> {
    let name = LimitName::parse("l").unwrap();
    vec![Limit { name, capacity, period: Period::Minute, algorithm: Algorithm::FixedWindow }]
}

/// The key that is checked, and how.
struct Subject {
    id: KeyId,
    secret: String,
}

impl Subject {
    async fn check(&self, process: &Process, units: u64, clock: &Clock) -> (Verdict, u64) {
        let request = Request::default();
        let check =
            Check { credential: &self.secret, request, cost: units, consume: true, within: None, attempt: None };
        let answer = process.engine.check(&check, clock.now()).await.unwrap();
        (answer.verdict, answer.limits[0].remaining)
    }

    async fn set_capacity(&self, process: &Process, capacity: u64) {
        let patch = KeyPatch { limits: Some(limits(capacity)), ..KeyPatch::default() };
        process.engine.update_key(&Caller::System, self.id, patch, None).await.unwrap();
    }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    use secrecy::ExposeSecret as _;
    let folder = tempfile::tempdir().unwrap();
    let (clock, hands) = Clock::manual(Time::from_millis(START));
    let mut process = Process::start(&folder, &clock).await;
    let made = process.engine.bootstrap(false).await.unwrap();
    let subject = Subject { id: made.key.id, secret: made.secret.expose_secret().to_owned() };
    let mut model = Model { capacity: 20, window: 0, gone: 0 };
    subject.set_capacity(&process, model.capacity).await;
    for step in steps {
        let now = clock.now().millis();
        match step {
            Step::Checks(units, times) => {
                for _ in 0..times {
                    let expected = model.admits(units, now);
                    let (verdict, left) = subject.check(&process, units, &clock).await;
                    let in_words = if expected { Verdict::Allowed } else { Verdict::RateLimited };
                    prop_assert_eq!(verdict, in_words, "{} units, {:?}", units, model);
                    if expected && units > 0 {
                        prop_assert_eq!(left, model.left(now), "{:?}", model);
                    }
                }
            }
            Step::Clock(millis) => move_clock(&hands, now + millis),
            Step::Capacity(capacity) => {
                model.capacity = capacity;
                subject.set_capacity(&process, capacity).await;
            }
            Step::Restart => {
                process.end().await;
                process = Process::start(&folder, &clock).await;
            }
            Step::Crash => {
                process.crash().await;
                process = Process::start(&folder, &clock).await;
                let (_, left) = subject.check(&process, 0, &clock).await;
                let (at_most, uncertain) = (model.left(now), process.engine.lease_stats().uncertain_units);
                prop_assert!(left <= at_most && left + uncertain >= at_most, "{} {:?} {}", left, model, uncertain);
                model.lose(at_most - left, now);
            }
        }
    }
    process.end().await;
    Ok(())
}

fn move_clock(hands: &ManualClock, millis: i64) {
    hands.set(Time::from_millis(millis.max(0)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_time: 60_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(run(steps))?;
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

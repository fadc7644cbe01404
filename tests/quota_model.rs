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
    /// The clock moves to so long before the end of its minute. Units of the next one are leased then.
    Late(i64),
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
        3 => (1..2_500_i64).prop_map(Step::Late),
        1 => (0..40_u64).prop_map(Step::Capacity),
        1 => Just(Step::Restart),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

/// One limit in a fixed window, as its documentation has it.
#[derive(Clone, Debug)]
struct Model {
    capacity: u64,
    /// The latest window that was ever admitted in, and what is gone of it. Where the clock goes back, it goes on.
    window: i64,
    gone: u64,
    /// Up to so many more may be gone of it, since a process ended without a word.
    doubt: u64,
    /// And of the windows after it, up to this one, of which it may have leased units for a check that was refused, or ahead.
    ahead: (i64, u64),
    /// The latest window before that was ever admitted in.
    before: i64,
}

impl Model {
    /// As it is if something is admitted now.
    fn at(&self, now: i64) -> Self {
        let window = now.div_euclid(MINUTE).max(self.window);
        if window == self.window {
            return self.clone();
        }
        let doubt = if window <= self.ahead.0 { self.ahead.1 } else { 0 };
        Self { window, gone: 0, doubt, before: self.window, ..self.clone() }
    }

    /// At least and at most so many units are left.
    fn left(&self) -> (u64, u64) {
        (self.capacity.saturating_sub(self.gone + self.doubt), self.capacity.saturating_sub(self.gone))
    }

    /// Takes what came of a check of so many units, and what it said is left. Says what is wrong with it.
    fn take(&mut self, units: u64, now: i64, admitted: bool, left: u64) -> Result<(), TestCaseError> {
        let mut state = self.at(now);
        let (at_least, at_most) = state.left();
        prop_assert!(admitted || units > at_least, "{} refused: {:?}", units, state);
        prop_assert!(!admitted || units <= at_most || units == 0, "{} admitted: {:?}", units, state);
        if admitted && units > 0 {
            state.gone += units;
            let (at_least, at_most) = state.left();
            prop_assert!((at_least..=at_most).contains(&left), "{} left: {:?}", left, state);
            if left > 0 {
                (state.gone, state.doubt) = (state.capacity - left, 0);
            }
            *self = state;
        }
        Ok(())
    }

    fn crash(&mut self, uncertain: u64, now: i64) {
        self.doubt += uncertain;
        let before = if self.ahead.0 > self.window { self.ahead.1 } else { 0 };
        self.ahead = (self.at(now).window + 1, before + uncertain);
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
    let mut model = Model { capacity: 20, window: 0, gone: 0, doubt: 0, ahead: (0, 0), before: 0 };
    subject.set_capacity(&process, model.capacity).await;
    let mut checked = 0;
    for step in steps {
        let now = clock.now().millis();
        match step {
            Step::Checks(units, times) => {
                checked = now.div_euclid(MINUTE);
                for _ in 0..times {
                    let (verdict, left) = subject.check(&process, units, &clock).await;
                    prop_assert!(matches!(verdict, Verdict::Allowed | Verdict::RateLimited), "{:?}", verdict);
                    model.take(units, now, verdict == Verdict::Allowed, left)?;
                }
            }
            // Whether a window that was checked in is left again where nothing was admitted in it, is left open.
            Step::Clock(millis) if model.window < checked => move_clock(&hands, (now + millis).max(checked * MINUTE)),
            Step::Clock(millis) => move_clock(&hands, now + millis),
            Step::Late(millis) => move_clock(&hands, (now.div_euclid(MINUTE) + 1) * MINUTE - millis),
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
                // Only the process knew that it had gone on to a window whose units it had leased ahead. One that comes after it
                // while the clock is set back goes on in the window before, of which the model knows no more.
                if model.before + 1 == model.window {
                    move_clock(&hands, now.max(model.window * MINUTE));
                }
                process = Process::start(&folder, &clock).await;
                model.crash(process.engine.lease_stats().uncertain_units, clock.now().millis());
                let (_, left) = subject.check(&process, 0, &clock).await;
                let (at_least, at_most) = model.at(clock.now().millis()).left();
                prop_assert!((at_least..=at_most).contains(&left), "{} left: {:?}", left, model);
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

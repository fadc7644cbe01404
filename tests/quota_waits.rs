//! How many checks wait for the store under steady demand: the engine on the embedded store, its task that leases, and a clock
//! that is moved in small steps.
#![cfg(test)]

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;
use tollgate::ambient::Clock;
use tollgate::decision::Request;
use tollgate::domain::{Algorithm, Limit, LimitName, Period, Time, Verdict};
use tollgate::engine::{Caller, Check, Engine, KeyPatch, Options};
use tollgate::store::SharedStore;
use tollgate::store::sqlite::{OpenMode, SqliteStore};

const MINUTE: u64 = 60_000;
const MINUTES: u64 = 3;
/// Minutes after 1970, so that slots and windows begin with the first check.
const START: u64 = 1_000 * MINUTE;

/// The clock stands still for the store after each of these, in milliseconds, ...
const STEP: u64 = 50;
/// ... for a small part of the time that it would have.
const PAUSE: Duration = Duration::from_millis(2);

/// What came of a demand.
#[derive(Debug)]
struct Outcome {
    checks: u64,
    waits: u64,
    /// When each check was that was admitted, in milliseconds.
    admitted: Vec<u64>,
}

impl Outcome {
    /// How many were admitted in the minute that has most: of the calendar's, or of all that begin with a check.
    fn fullest(&self, algorithm: Algorithm) -> u64 {
        let minutes: Vec<u64> = match algorithm {
            Algorithm::FixedWindow => (0..MINUTES).map(|minute| START + minute * MINUTE).collect(),
            Algorithm::SlidingWindow => self.admitted.clone(),
        };
        let before = |time: u64| self.admitted.partition_point(|at| *at < time);
        let fullest = minutes.into_iter().map(|from| before(from + MINUTE) - before(from)).max().unwrap();
        u64::try_from(fullest).unwrap()
    }
}

/// So many checks a minute of a key with a limit, at even distances, for some minutes.
async fn demand(a_minute: u64, capacity: u64, algorithm: Algorithm) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let (clock, hands) = Clock::manual(Time::from_millis(i64::try_from(START).unwrap()));
    let store = SqliteStore::open(&folder.path().join("db"), OpenMode::Create).await.unwrap();
    let store: SharedStore = Arc::new(store);
    let engine = Arc::new(Engine::new(Arc::clone(&store), clock.clone(), Options::default()));
    engine.load().await.unwrap();
    let made = engine.bootstrap(false).await.unwrap();
    let limit = Limit { name: LimitName::parse("l").unwrap(), capacity, period: Period::Minute, algorithm };
    let patch = KeyPatch { limits: Some(vec![limit]), ..KeyPatch::default() };
    engine.update_key(&Caller::System, made.key.id, patch, None).await.unwrap();
    let stop = CancellationToken::new();
    let leasing = tokio::spawn({
        let (engine, stop) = (Arc::clone(&engine), stop.clone());
        async move { engine.serve_leases(stop.cancelled()).await }
    });
    let mut outcome = Outcome { checks: a_minute * MINUTES, waits: 0, admitted: Vec::new() };
    let times: Vec<u64> = (0..outcome.checks).map(|i| START + i * MINUTE / a_minute).collect();
    for at_once in times.chunk_by(|one, next| one / STEP == next / STEP) {
        for at in at_once {
            hands.set(Time::from_millis(i64::try_from(*at).unwrap()));
            let check = Check {
                credential: made.secret.expose_secret(),
                request: Request::default(),
                cost: 1,
                consume: true,
                within: None,
                attempt: None,
            };
            if engine.check(&check, clock.now()).await.unwrap().verdict == Verdict::Allowed {
                outcome.admitted.push(*at);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    outcome.waits = engine.lease_stats().waits;
    stop.cancel();
    leasing.await.unwrap();
    engine.return_leases().await.unwrap();
    store.close().await;
    outcome
}

/// Holds that at most one check in a hundred waits, and what is admitted against the capacity.
async fn hold(a_minute: u64, capacity: u64, algorithm: Algorithm) {
    let outcome = demand(a_minute, capacity, algorithm).await;
    let (waits, checks) = (outcome.waits, outcome.checks);
    assert!(waits * 100 <= checks, "{waits} of {checks} waited");
    let fullest = outcome.fullest(algorithm);
    assert!(fullest <= capacity, "{fullest} in one minute");
    let (admitted, ideal) = (u64::try_from(outcome.admitted.len()).unwrap(), a_minute.min(capacity) * MINUTES);
    assert!(admitted * 100 >= ideal * 98, "{admitted} of {ideal}");
}

macro_rules! demands {
    ($($name:ident: $a_minute:literal of $capacity:literal, $algorithm:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                hold($a_minute, $capacity, Algorithm::$algorithm).await;
            }
        )*
    };
}

demands! {
    half_of_a_thousand_fixed: 500 of 1_000, FixedWindow;
    a_thousand_fixed: 1_000 of 1_000, FixedWindow;
    more_than_a_thousand_fixed: 1_300 of 1_000, FixedWindow;
    six_thousand_fixed: 6_000 of 6_000, FixedWindow;
    half_of_a_thousand_sliding: 500 of 1_000, SlidingWindow;
    a_thousand_sliding: 1_000 of 1_000, SlidingWindow;
    more_than_a_thousand_sliding: 1_300 of 1_000, SlidingWindow;
    six_thousand_sliding: 6_000 of 6_000, SlidingWindow;
}

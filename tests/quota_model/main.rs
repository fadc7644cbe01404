//! A model of limits and credits in plain numbers, and the engine on the embedded store beside it: through checks of several keys,
//! plans and limits that change, rotations, clocks that jump, restarts, stores that fail, and crashes at every step of a grant,
//! both say the same.
//!
//! To add a step: a case of [`Step`], how it is drawn in [`steps`], and what it does in `World::step`.
#![cfg(test)]

mod history;
mod model;
mod names;
mod operations;
mod process;
mod store;
mod terms;
mod window;
mod world;

use std::time::Duration;

use proptest::prelude::*;

use store::{Call, Carried, Trouble};
use terms::{Credits, Limit, Terms};
use window::Window;
use world::World;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// 2026-01-30T23:58:20Z: a month, a day and an hour are about to end.
const START: i64 = 1_769_817_500_000;
const END: i64 = START + 5 * 366 * DAY;

/// How many histories are tried; `TOLLGATE_TEST_CASES` is another number.
const CASES_DEFAULT: u32 = 40;

const NAMES: [&str; 2] = ["a", "b"];
const WINDOWS: [Window; 6] = [
    Window::Fixed(MINUTE),
    Window::Fixed(HOUR),
    Window::Fixed(DAY),
    Window::MonthFrom(1),
    Window::Sliding(MINUTE),
    Window::Sliding(10 * SECOND),
];
const RESET_DAYS: [i8; 3] = [1, 15, 31];
/// Whether each key is live. The last two share what is the account's.
const KEYS: [bool; 3] = [false, true, true];
const PLANS: usize = 2;
/// Names of operations: few, so that many are sent again.
const OPERATIONS: usize = 3;

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// So many checks of a key, of so many units each.
    Checks { key: usize, units: u64, times: u32, spend: bool },
    /// The clock moves, also back.
    Clock(i64),
    /// Checks of a key, a second apart, from so many milliseconds before a minute ends: units of the next slot are leased then.
    Across { key: usize, units: u64, before: i64, seconds: u32 },
    /// A check under the name of an operation.
    Operation { id: usize, key: usize, units: u64, spend: bool },
    /// An operation is given back.
    Refund(usize),
    /// Credits are topped up, or taken away.
    Adjust(i64),
    /// An operator changes something.
    Change(Change),
    /// Usage is written.
    Flush,
    /// A call of the store will go wrong after so many that don't.
    Trouble(Call, u32, Trouble),
    /// The process ends in order, and another begins.
    Restart,
    /// The process is gone, and another begins.
    Crash,
}

/// What is changed.
#[derive(Clone, Debug)]
enum Change {
    /// The key gets another secret.
    Rotate(usize),
    /// The account goes to another plan.
    Move(usize),
    /// A plan says something else.
    Plan(usize, Terms),
    /// The account has something else instead.
    Account(Terms),
    /// A key has other limits of its own.
    Key(usize, Vec<Limit>),
    /// Of a limit that a plan has, only the capacity is another.
    Capacity(usize, u64),
}

fn limits() -> impl Strategy<Value = Vec<Limit>> {
    let capacity = prop_oneof![1 => 0..6_u64, 3 => 6..40_u64];
    let limit = (prop::sample::select(&WINDOWS[..]), capacity);
    let both = NAMES.map(|name| {
        let limit = limit.clone().prop_map(move |(window, capacity)| Limit { name, capacity, window });
        prop::option::weighted(0.6, limit)
    });
    both.prop_map(|both| both.into_iter().flatten().collect())
}

fn terms() -> impl Strategy<Value = Terms> {
    let credits = prop_oneof![
        2 => Just(Credits::Unsaid),
        1 => Just(Credits::Uncounted),
        3 => (0..80_u64).prop_map(Credits::Counted),
    ];
    (limits(), limits(), credits).prop_map(|(key_limits, account_limits, credits)| Terms {
        key_limits,
        account_limits,
        credits,
    })
}

fn clock() -> impl Strategy<Value = i64> {
    let long = prop::sample::select(vec![HOUR, 25 * HOUR, 31 * DAY]);
    prop_oneof![
        8 => 0..5 * SECOND,
        4 => 0..MINUTE,
        2 => MINUTE..3 * MINUTE,
        1 => long.clone(),
        1 => -2 * MINUTE..0,
        1 => long.prop_map(|long| -long),
    ]
}

fn trouble() -> impl Strategy<Value = Step> {
    let calls = vec![
        (4, Call::Lease),
        (1, Call::CloseLeases),
        (3, Call::RecordUsage),
        (2, Call::RecordOperations),
        (2, Call::RefundOperation),
    ];
    let call =
        prop::strategy::Union::new_weighted(calls.into_iter().map(|(weight, call)| (weight, Just(call))).collect());
    let outcome = prop::sample::select(vec![Carried::Out, Carried::Not, Carried::NotForSure]);
    (call, 0..3_u32, outcome, any::<bool>())
        .prop_map(|(call, after, outcome, fatal)| Step::Trouble(call, after, Trouble { outcome, fatal }))
}

fn change() -> impl Strategy<Value = Change> {
    let (key, plan) = (0..KEYS.len(), 0..PLANS);
    prop_oneof![
        key.clone().prop_map(Change::Rotate),
        plan.clone().prop_map(Change::Move),
        (plan.clone(), terms()).prop_map(|(plan, terms)| Change::Plan(plan, terms)),
        terms().prop_map(Change::Account),
        (key, limits()).prop_map(|(key, limits)| Change::Key(key, limits)),
        (plan, 0..40_u64).prop_map(|(plan, capacity)| Change::Capacity(plan, capacity)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let checks = (0..KEYS.len(), 0..5_u64, 1..12_u32, prop::bool::weighted(0.85));
    let across = (0..KEYS.len(), 1..4_u64, 0..4 * SECOND, 2..6_u32);
    let operation = (0..OPERATIONS, 0..KEYS.len(), 0..4_u64, prop::bool::weighted(0.9));
    let step = prop_oneof![
        12 => checks.prop_map(|(key, units, times, spend)| Step::Checks { key, units, times, spend }),
        5 => clock().prop_map(Step::Clock),
        3 => across.prop_map(|(key, units, before, seconds)| Step::Across { key, units, before, seconds }),
        6 => operation.prop_map(|(id, key, units, spend)| Step::Operation { id, key, units, spend }),
        3 => (0..OPERATIONS).prop_map(Step::Refund),
        2 => prop_oneof![3 => 1..60_i64, 1 => -30..0_i64].prop_map(Step::Adjust),
        6 => change().prop_map(Step::Change),
        2 => Just(Step::Flush),
        4 => trouble(),
        1 => Just(Step::Restart),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..48)
}

fn cases() -> u32 {
    std::env::var("TOLLGATE_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES_DEFAULT)
}

/// Takes the steps in the engine and in the model.
fn run(plans: Vec<Terms>, reset_day: i8, steps: Vec<Step>, journal: bool) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let mut world = World::new(plans, reset_day, journal).await;
        for step in steps {
            world.step(&step).await.map_err(|wrong| format!("{step:?}: {wrong}"))?;
        }
        world.end().await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome.map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(), max_shrink_time: 60_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_engine_does_what_the_model_says(
        plans in prop::collection::vec(terms(), PLANS),
        reset_day in prop::sample::select(&RESET_DAYS[..]),
        steps in steps(),
    ) {
        run(plans, reset_day, steps, true)?;
    }

    #[test]
    fn without_a_journal_crashes_cost_what_is_leased(
        plans in prop::collection::vec(terms(), PLANS),
        reset_day in prop::sample::select(&RESET_DAYS[..]),
        steps in steps(),
    ) {
        run(plans, reset_day, steps, false)?;
    }
}

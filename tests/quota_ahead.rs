//! Units that are granted ahead, for the slot after the one that a budget is in.
#![cfg(test)]

use proptest::prelude::*;
use tollgate::decision::quota::{Motion, Rule, Slot, State};
use tollgate::decision::window::Calendar;
use tollgate::domain::{Algorithm, Limit, LimitName, Period, Time, TimeZone};

/// A window is one of this many slots before the latest, and that one.
const SLOTS: i64 = 60;

fn limit(capacity: u64, period: Period, algorithm: Algorithm) -> Rule {
    Rule::of(&Limit { name: LimitName::parse("l").unwrap(), capacity, period, algorithm })
}

fn fresh(rule: &Rule, millis: i64) -> State {
    State::new(rule, &TimeZone::UTC, Time::from_millis(millis))
}

/// Asks for units at a time; all or nothing.
fn take(state: &mut State, rule: &Rule, millis: i64, units: u64) -> bool {
    state.advance(rule, &TimeZone::UTC, Time::from_millis(millis));
    let enough = state.available(rule) >= units;
    if enough {
        assert_eq!(state.grant(rule, units), units);
    }
    enough
}

#[test]
fn what_is_granted_ahead_is_of_the_next_fixed_window() {
    let rule = limit(10, Period::Minute, Algorithm::FixedWindow);
    let mut state = fresh(&rule, 0);
    assert_eq!(state.grant(&rule, 10), 10);
    assert_eq!((state.next_slot(), state.bounds().end.millis()), (Slot::new(60_000), 60_000));
    assert_eq!((state.grant_ahead(&rule, 7), state.grant_ahead(&rule, 7)), (7, 3));
    state.give_back(Slot::new(60_000), 4);
    assert_eq!((state.available(&rule), state.available_ahead(&rule, 99)), (0, 4), "each window has its own");
    assert_eq!(state.excess(&Rule { capacity: 9, ..rule }), 1);
    let mut jumped = state.clone();
    assert!(take(&mut state, &rule, 60_000, 4) && !take(&mut state, &rule, 119_999, 1));
    assert!(take(&mut state, &rule, 120_000, 10), "it is of that window alone");
    assert!(take(&mut jumped, &rule, 120_000, 10), "the clock has jumped past it");
}

#[test]
fn the_next_window_is_the_one_on_the_calendar() {
    let berlin = TimeZone::parse("Europe/Berlin").unwrap();
    let at = |text: &str| Time::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond());
    let rows = [
        // The day before the clocks go forward, and that day of 23 hours itself.
        (Rule { capacity: 10, motion: Motion::Fixed(Calendar::Period(Period::Day)) }, "2026-03-28T22:59:59Z"),
        (Rule { capacity: 10, motion: Motion::Fixed(Calendar::Period(Period::Day)) }, "2026-03-29T21:59:59Z"),
        (Rule { capacity: 10, motion: Motion::Fixed(Calendar::Period(Period::Month)) }, "2026-01-31T22:59:59Z"),
        (Rule::of_credits(10, 31), "2026-02-27T22:59:59Z"),
        (Rule::of_credits(10, 31), "2026-03-30T21:59:59Z"),
    ];
    for (rule, last_second) in rows {
        let now = at(last_second);
        let mut state = State::new(&rule, &berlin, now);
        let next = state.next_slot();
        assert_eq!(state.grant_ahead(&rule, 8), 8);
        state.advance(&rule, &berlin, now.plus_millis(999));
        assert_eq!(state.available(&rule), 10, "{rule:?}");
        state.advance(&rule, &berlin, now.plus_millis(1_000));
        assert_eq!((state.slot(), state.available(&rule)), (next, 2), "{rule:?}");
    }
}

#[test]
fn a_zone_that_is_changed_does_not_forget_what_was_granted_ahead() {
    let rule = limit(10, Period::Day, Algorithm::FixedWindow);
    let mut state = fresh(&rule, 0);
    assert_eq!(state.grant_ahead(&rule, 8), 8);
    state.advance(&rule, &TimeZone::parse("Europe/Berlin").unwrap(), Time::from_millis(86_400_000));
    assert_eq!(state.available(&rule), 2);
}

#[test]
fn what_is_granted_ahead_of_a_sliding_window_counts_in_both_windows_that_it_could_exceed() {
    let rule = limit(10, Period::Minute, Algorithm::SlidingWindow);
    let mut state = fresh(&rule, 0);
    assert!(take(&mut state, &rule, 0, 6) && take(&mut state, &rule, 60_500, 1));
    // At 61 s the 6 of slot 0 come back, and until then nobody may have more than 3.
    assert_eq!((state.available(&rule), state.available_ahead(&rule, 0), state.available_ahead(&rule, 3)), (3, 9, 6));
    assert_eq!(state.grant_ahead(&rule, 7), 7);
    assert_eq!((state.available(&rule), state.available_beside(&rule, 1)), (2, 1));
    assert_eq!((state.grant(&rule, 9), state.available_ahead(&rule, 0)), (2, 0));
    assert_eq!(state.excess(&Rule { capacity: 8, ..rule }), 2);
    assert_eq!(state.available_at(&rule, 2, Time::from_millis(60_500)), Some(Time::from_millis(121_000)));
    assert_eq!(state.available_at(&rule, 9, Time::from_millis(60_500)), Some(Time::from_millis(122_000)));
    state.give_back(state.next_slot(), 4);
    assert!(take(&mut state, &rule, 61_000, 4) && !take(&mut state, &rule, 61_000, 1));
}

#[test]
fn a_state_catches_up_with_another() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let rule = limit(10, Period::Minute, algorithm);
        let mut state = fresh(&rule, 0);
        state.grant_ahead(&rule, 8);
        let mut other = state.clone();
        other.advance(&rule, &TimeZone::UTC, Time::from_millis(state.bounds().end.millis()));
        state.catch_up(&other);
        assert_eq!((state.slot(), state.available(&rule)), (other.slot(), 2));
        state.catch_up(&fresh(&rule, 0));
        assert_eq!(state, other, "{algorithm:?}");
    }
}

#[test]
fn stored_states_are_read_also_those_of_before_units_were_granted_ahead() {
    let fixed = r#"{"fixed":{"window":{"start":0,"end":60000},"granted":4}}"#;
    let ahead = r#"{"fixed":{"window":{"start":0,"end":60000},"granted":4,"ahead":3}}"#;
    let sliding = r#"{"sliding":{"slot_micros":1000000,"newest":7,"granted":[[3,2],[7,2]]}}"#;
    let rows = [
        (fixed, Algorithm::FixedWindow, 10),
        (ahead, Algorithm::FixedWindow, 7),
        (sliding, Algorithm::SlidingWindow, 6),
    ];
    for (text, algorithm, available_ahead) in rows {
        let state: State = serde_json::from_str(text).unwrap();
        let rule = limit(10, Period::Minute, algorithm);
        assert_eq!((state.available(&rule), state.available_ahead(&rule, 0)), (6, available_ahead), "{text}");
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
    }
}

/// What can happen to a state: units are taken, or leased ahead, or what is leased ahead is not needed after all.
fn uses() -> impl Strategy<Value = Vec<(i64, Use)>> {
    let step = prop_oneof![8 => 0_i64..700, 2 => 0_i64..100_000, 1 => -200_000_i64..0];
    let units = 0_u64..8;
    let what = prop_oneof![
        3 => units.clone().prop_map(Use::Take),
        3 => units.clone().prop_map(Use::Ahead),
        1 => units.prop_map(Use::Return),
    ];
    prop::collection::vec((step, what), 1..300)
}

#[derive(Clone, Debug)]
enum Use {
    Take(u64),
    Ahead(u64),
    Return(u64),
}

/// What every slot was granted, and in which of them. Units are spent as late in their slot as can be, and as early: each
/// slot counts at its full length.
#[derive(Default)]
struct Granted {
    slots: std::collections::BTreeMap<i64, u64>,
    leased_ahead: Option<(Slot, u64)>,
}

impl Granted {
    /// Checks on the way what the state says of itself.
    fn after(&mut self, state: &mut State, rule: &Rule, what: &Use) -> Result<(), TestCaseError> {
        // Those leased for a slot that the clock has jumped past are not spent any more.
        if let Some((slot, units)) = self.leased_ahead.take_if(|(slot, _)| *slot != state.next_slot())
            && slot != state.slot()
        {
            *self.slots.entry(slot.number()).or_default() -= units;
            state.give_back(slot, units);
        }
        match *what {
            Use::Take(units) => {
                let (available, beside) = (state.available(rule), state.available_beside(rule, 1));
                prop_assert!(beside <= available);
                let granted = state.grant(rule, units);
                prop_assert_eq!(granted, units.min(available));
                *self.slots.entry(state.slot().number()).or_default() += granted;
            }
            Use::Ahead(units) => {
                let (available, here) = (state.available_ahead(rule, 0), state.available_beside(rule, units));
                let granted = state.grant_ahead(rule, units);
                prop_assert_eq!(granted, units.min(available));
                prop_assert!(granted < units || state.available(rule) == here);
                *self.slots.entry(state.next_slot().number()).or_default() += granted;
                let before = self.leased_ahead.map_or(0, |(_, units)| units);
                self.leased_ahead = Some((state.next_slot(), before + granted));
            }
            Use::Return(units) => {
                if let Some((slot, leased)) = &mut self.leased_ahead {
                    let units = units.min(*leased);
                    *leased -= units;
                    *self.slots.entry(slot.number()).or_default() -= units;
                    state.give_back(*slot, units);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is granted for this slot and the next in whatever order, no true window exceeds the capacity, neither now
    /// nor when the next slot has begun; and there is no more room than the definition leaves, and no less.
    #[test]
    fn units_granted_ahead_never_exceed_a_sliding_window(uses in uses(), capacity in 1_u64..20) {
        let rule = limit(capacity, Period::Minute, Algorithm::SlidingWindow);
        let (mut wall, mut state, mut granted) = (0, fresh(&rule, 0), Granted::default());
        for (step, what) in uses {
            wall += step;
            state.advance(&rule, &TimeZone::UTC, Time::from_millis(wall));
            granted.after(&mut state, &rule, &what)?;
            let sum = |last: i64| granted.slots.range(last - SLOTS..=last).map(|(_, units)| units).sum::<u64>();
            let newest = state.slot().number();
            let fullest = granted.slots.keys().map(|last| sum(*last)).max().unwrap_or(0);
            prop_assert!(fullest <= capacity);
            prop_assert_eq!(state.available(&rule), capacity - sum(newest).max(sum(newest + 1)));
            prop_assert_eq!(state.available_ahead(&rule, 0), capacity - sum(newest + 1));
        }
    }

    /// Each fixed window has what was granted in it and what was granted of it before it began.
    #[test]
    fn units_granted_ahead_are_exact_in_fixed_windows(uses in uses(), capacity in 1_u64..20, seconds in 1_u32..9) {
        let rule = limit(capacity, Period::Seconds(seconds), Algorithm::FixedWindow);
        let (mut wall, mut state, mut granted) = (0, fresh(&rule, 0), Granted::default());
        for (step, what) in uses {
            wall += step;
            state.advance(&rule, &TimeZone::UTC, Time::from_millis(wall));
            granted.after(&mut state, &rule, &what)?;
            let of = |slot: Slot| granted.slots.get(&slot.number()).copied().unwrap_or(0);
            prop_assert!(granted.slots.values().all(|units| *units <= capacity));
            prop_assert_eq!(state.available(&rule), capacity - of(state.slot()));
            prop_assert_eq!(state.available_ahead(&rule, 0), capacity - of(state.next_slot()));
        }
    }
}

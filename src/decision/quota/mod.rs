//! How much of a limit has been granted, and how much may still be.
//!
//! [`State`] is what is remembered of one limit for one subject; only the functions here look inside it, so that every
//! store can keep it without knowing the rule. Three things hold whatever the order of calls and however the clock jumps:
//!
//! - what is granted in one slot's window never exceeds the capacity;
//! - slots never run backwards: where the clock does, the state stays in the latest slot that it has seen, so a window
//!   that has been spent is never opened again;
//! - what was granted is forgotten only when its window is over.
//!
//! Units can also be granted *ahead*, for the slot after the one that the state is in, so that they are there when it begins.
//! In a fixed window they are those of the next window. In a sliding one, this slot's window and the next slot's
//! overlap, and each grant is held against both.

mod merge;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::domain::{Algorithm, Limit, Time, TimeZone};

use super::window::{Calendar, Window, window_at};

/// A sliding window's slots. Any stretch of one period touches at most one slot more than this.
const SLOTS: i64 = 60;

/// What a budget is held against: a capacity, and how its window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Cost units per window.
    pub capacity: u64,
    /// How the window moves.
    pub motion: Motion,
}

/// How a window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// On the calendar: the whole capacity is back when the next window begins.
    Fixed(Calendar),
    /// With time, in slots.
    Sliding {
        /// Length of a slot, in microseconds: whole milliseconds would make the 61 slots of a second 4 % too long.
        slot_micros: i64,
    },
}

impl Rule {
    /// Of a limit.
    #[must_use]
    pub fn of(limit: &Limit) -> Self {
        let motion = match limit.algorithm {
            Algorithm::FixedWindow => Motion::Fixed(Calendar::Period(limit.period)),
            Algorithm::SlidingWindow => {
                let period_micros = limit.period.sliding_millis().saturating_mul(1_000);
                Motion::Sliding { slot_micros: period_micros.saturating_add(SLOTS - 1).div_euclid(SLOTS).max(1) }
            }
        };
        Self { capacity: limit.capacity, motion }
    }

    /// Of a monthly allowance that begins anew on this day.
    #[must_use]
    pub const fn of_credits(allowance: u64, reset_day: u8) -> Self {
        Self { capacity: allowance, motion: Motion::Fixed(Calendar::MonthFrom(reset_day)) }
    }

    /// Of credits that no month ends.
    #[must_use]
    pub const fn of_top_ups(topped_up: u64) -> Self {
        Self { capacity: topped_up, motion: Motion::Fixed(Calendar::Never) }
    }
}

/// What was granted of one limit to one subject. A store keeps it as serde writes it, and does not look inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State(Inner);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Inner {
    Fixed {
        window: Window,
        granted: u64,
        /// What was granted of the window that begins where this one ends.
        #[serde(default, skip_serializing_if = "is_zero")]
        ahead: u64,
    },
    Sliding {
        slot_micros: i64,
        newest: i64,
        /// What each slot granted, oldest first, up to the slot after the newest; slots that granted nothing are left out.
        granted: Vec<(i64, u64)>,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(units: &u64) -> bool {
    *units == 0
}

/// The stretch of time for which units are granted: a number that only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(i64);

impl Slot {
    /// From its number.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl State {
    /// Of a limit of which nothing was granted yet.
    #[must_use]
    pub fn new(rule: &Rule, zone: &TimeZone, now: Time) -> Self {
        Self(match rule.motion {
            Motion::Fixed(calendar) => Inner::Fixed { window: window_at(calendar, zone, now), granted: 0, ahead: 0 },
            Motion::Sliding { slot_micros } => {
                Inner::Sliding { slot_micros, newest: slot_at(now, slot_micros), granted: Vec::new() }
            }
        })
    }

    /// Moves on to the slot of `now`, and forgets what has left the window. Does nothing where `now` is before the slot
    /// that it has reached.
    pub fn advance(&mut self, rule: &Rule, zone: &TimeZone, now: Time) {
        match (&mut self.0, rule.motion) {
            (Inner::Fixed { window, granted, ahead }, Motion::Fixed(calendar)) => {
                if now >= window.end && *window != Window::ETERNAL {
                    begin(window_at(calendar, zone, now), window, granted, ahead);
                }
            }
            (Inner::Sliding { slot_micros, newest, granted }, Motion::Sliding { .. }) => {
                slide(slot_at(now, *slot_micros), newest, granted);
            }
            // The limit's movement was changed: what was granted under the other one has no place in this one.
            _ => *self = Self::new(rule, zone, now),
        }
    }

    /// Moves on to the slot of another state of the same limit. Does nothing where that is in an earlier one.
    pub fn catch_up(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (Inner::Fixed { window, granted, ahead }, Inner::Fixed { window: later, .. }) => {
                if later.start > window.start {
                    begin(*later, window, granted, ahead);
                }
            }
            (Inner::Sliding { newest, granted, .. }, Inner::Sliding { newest: later, .. }) => {
                slide(*later, newest, granted);
            }
            (Inner::Fixed { .. } | Inner::Sliding { .. }, _) => {}
        }
    }

    /// Where it has advanced to.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        match &self.0 {
            Inner::Fixed { window, .. } => Slot(window.start.millis()),
            Inner::Sliding { newest, .. } => Slot(*newest),
        }
    }

    /// The slot after that.
    #[must_use]
    pub const fn next_slot(&self) -> Slot {
        match &self.0 {
            Inner::Fixed { window, .. } => Slot(window.end.millis()),
            Inner::Sliding { newest, .. } => Slot(newest.saturating_add(1)),
        }
    }

    /// When the slot that it is in begins, and when the next one does.
    #[must_use]
    pub fn bounds(&self) -> Window {
        match &self.0 {
            Inner::Fixed { window, .. } => *window,
            Inner::Sliding { slot_micros, newest, .. } => {
                Window { start: begin_of(*newest, *slot_micros), end: begin_of(newest.saturating_add(1), *slot_micros) }
            }
        }
    }

    /// Units that may still be granted in this slot.
    #[must_use]
    pub fn available(&self, rule: &Rule) -> u64 {
        self.available_beside(rule, 0)
    }

    /// Units that may still be granted in this slot if so many more were granted ahead.
    #[must_use]
    pub fn available_beside(&self, rule: &Rule, ahead: u64) -> u64 {
        let Granted { here, next } = self.granted();
        let left = rule.capacity.saturating_sub(here);
        match &self.0 {
            Inner::Fixed { .. } => left,
            Inner::Sliding { .. } => left.min(rule.capacity.saturating_sub(next).saturating_sub(ahead)),
        }
    }

    /// Units that may be granted ahead if so many more were granted in this slot.
    #[must_use]
    pub fn available_ahead(&self, rule: &Rule, here: u64) -> u64 {
        let left = rule.capacity.saturating_sub(self.granted().next);
        match &self.0 {
            Inner::Fixed { .. } => left,
            Inner::Sliding { .. } => left.saturating_sub(here),
        }
    }

    /// Units granted beyond what may be granted in this slot, where the capacity was lowered since.
    #[must_use]
    pub fn excess(&self, rule: &Rule) -> u64 {
        let Granted { here, next } = self.granted();
        match &self.0 {
            Inner::Fixed { .. } => here.saturating_sub(rule.capacity),
            Inner::Sliding { .. } => here.max(next).saturating_sub(rule.capacity),
        }
    }

    /// Grants as many of the units as may be, and returns how many.
    pub fn grant(&mut self, rule: &Rule, wanted: u64) -> u64 {
        let units = wanted.min(self.available(rule));
        match &mut self.0 {
            Inner::Fixed { granted, .. } => *granted = granted.saturating_add(units),
            Inner::Sliding { newest, granted, .. } => add(granted, *newest, units),
        }
        units
    }

    /// Grants as many of the units as may be for the slot after this one, and returns how many.
    pub fn grant_ahead(&mut self, rule: &Rule, wanted: u64) -> u64 {
        let units = wanted.min(self.available_ahead(rule, 0));
        match &mut self.0 {
            Inner::Fixed { ahead, .. } => *ahead = ahead.saturating_add(units),
            Inner::Sliding { newest, granted, .. } => add(granted, newest.saturating_add(1), units),
        }
        units
    }

    /// Takes back units that were granted for `slot` and not spent. Does nothing where its window is over.
    pub fn give_back(&mut self, slot: Slot, units: u64) {
        match &mut self.0 {
            Inner::Fixed { window, granted, .. } if window.start.millis() == slot.0 => {
                *granted = granted.saturating_sub(units);
            }
            Inner::Fixed { window, ahead, .. } if window.end.millis() == slot.0 => {
                *ahead = ahead.saturating_sub(units);
            }
            Inner::Fixed { .. } => {}
            Inner::Sliding { granted, .. } => {
                if let Some((_, sum)) = granted.iter_mut().find(|(number, _)| *number == slot.0) {
                    *sum = sum.saturating_sub(units);
                }
            }
        }
    }

    /// When the whole capacity is back if nothing more is granted; the end of time where it never will be.
    #[must_use]
    pub fn reset_time(&self, now: Time) -> Time {
        match &self.0 {
            Inner::Fixed { window, .. } => window.end,
            Inner::Sliding { slot_micros, granted, .. } => {
                granted.iter().rev().find(|(_, sum)| *sum > 0).map_or(now, |(slot, _)| leaves_at(*slot, *slot_micros))
            }
        }
    }

    /// When so many units can be granted if nothing more is granted until then; absent where that is never, as they
    /// exceed the capacity, or nothing comes back. In a fixed window that is when the next one begins, also where some of that
    /// one was granted ahead.
    #[must_use]
    pub fn available_at(&self, rule: &Rule, units: u64, now: Time) -> Option<Time> {
        if units > rule.capacity {
            return None;
        }
        if units <= self.available(rule) {
            return Some(now);
        }
        match &self.0 {
            Inner::Fixed { window: Window::ETERNAL, .. } => None,
            Inner::Fixed { window, .. } => Some(window.end),
            Inner::Sliding { slot_micros, granted, .. } => {
                let mut left = granted.iter().map(|(_, sum)| *sum).fold(0, u64::saturating_add);
                granted.iter().find_map(|(slot, sum)| {
                    left = left.saturating_sub(*sum);
                    (units <= rule.capacity.saturating_sub(left)).then(|| leaves_at(*slot, *slot_micros))
                })
            }
        }
    }

    fn granted(&self) -> Granted {
        if cfg!(feature = "mutate-capacity") {
            return Granted { here: 0, next: 0 };
        }
        match &self.0 {
            Inner::Fixed { granted, ahead, .. } => Granted { here: *granted, next: *ahead },
            Inner::Sliding { newest, granted, .. } => {
                let oldest = newest.saturating_sub(SLOTS);
                granted.iter().fold(Granted { here: 0, next: 0 }, |Granted { here, next }, (slot, sum)| Granted {
                    here: here.saturating_add(if slot > newest { 0 } else { *sum }),
                    next: next.saturating_add(if *slot <= oldest { 0 } else { *sum }),
                })
            }
        }
    }
}

/// Units granted in the window of the slot that a state is in, and in the window of the slot after it.
#[derive(Clone, Copy, Debug)]
struct Granted {
    here: u64,
    next: u64,
}

/// Moves a fixed window on to one that begins later. Where the zone, or the day on which credits begin anew, was changed since, it
/// can hold a part of the one before: then that goes on counting, and what is left of the later one begins where that one ended.
fn begin(later: Window, window: &mut Window, granted: &mut u64, ahead: &mut u64) {
    let ahead = std::mem::take(ahead);
    *granted = match later.start.cmp(&window.end) {
        Ordering::Less => granted.saturating_add(ahead),
        Ordering::Equal => ahead,
        Ordering::Greater => 0,
    };
    *window = Window { start: later.start.max(window.end), end: later.end };
}

/// Moves a sliding window on to a slot, unless that is an earlier one.
fn slide(slot: i64, newest: &mut i64, granted: &mut Vec<(i64, u64)>) {
    *newest = slot.max(*newest);
    let oldest = newest.saturating_sub(SLOTS);
    granted.retain(|(slot, _)| *slot >= oldest);
}

fn add(granted: &mut Vec<(i64, u64)>, slot: i64, units: u64) {
    if units == 0 {
        return;
    }
    let place = granted.partition_point(|(number, _)| *number < slot);
    match granted.get_mut(place) {
        Some((number, sum)) if *number == slot => *sum = sum.saturating_add(units),
        Some(_) | None => granted.insert(place, (slot, units)),
    }
}

/// The slot of a time.
fn slot_at(now: Time, slot_micros: i64) -> i64 {
    now.millis().saturating_mul(1_000).div_euclid(slot_micros)
}

/// The first millisecond of a slot.
fn begin_of(slot: i64, slot_micros: i64) -> Time {
    let micros = slot.saturating_mul(slot_micros);
    Time::from_millis(micros.div_euclid(1_000).saturating_add(i64::from(micros.rem_euclid(1_000) > 0)))
}

/// When a slot has left every window.
fn leaves_at(slot: i64, slot_micros: i64) -> Time {
    begin_of(slot.saturating_add(SLOTS + 1), slot_micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{LimitName, Period};

    pub(super) fn limit(capacity: u64, period: Period, algorithm: Algorithm) -> Rule {
        Rule::of(&Limit { name: LimitName::parse("l").unwrap(), capacity, period, algorithm })
    }

    /// Asks for units at a time; all or nothing.
    pub(super) fn take(state: &mut State, rule: &Rule, millis: i64, units: u64) -> bool {
        state.advance(rule, &TimeZone::UTC, Time::from_millis(millis));
        let enough = state.available(rule) >= units;
        if enough {
            assert_eq!(state.grant(rule, units), units);
        }
        enough
    }

    pub(super) fn fresh(rule: &Rule, millis: i64) -> State {
        State::new(rule, &TimeZone::UTC, Time::from_millis(millis))
    }

    #[test]
    fn a_fixed_window_gives_its_capacity_once() {
        let rule = limit(10, Period::Minute, Algorithm::FixedWindow);
        let mut state = fresh(&rule, 0);
        let rows = [
            (0, 4, true),
            (59_999, 6, true),
            (59_999, 1, false),
            (59_999, 0, true),
            (60_000, 10, true),
            (60_001, 1, false),
        ];
        for (millis, units, expected) in rows {
            assert_eq!(take(&mut state, &rule, millis, units), expected, "{units} at {millis}");
        }
        assert_eq!(state.reset_time(Time::from_millis(60_001)).millis(), 120_000);
        assert_eq!(state.available_at(&rule, 10, Time::from_millis(60_001)), Some(Time::from_millis(120_000)));
        assert_eq!(state.available_at(&rule, 11, Time::from_millis(60_001)), None);
    }

    #[test]
    fn a_clock_that_goes_back_opens_nothing() {
        for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
            let rule = limit(10, Period::Hour, algorithm);
            let mut state = fresh(&rule, 7_200_000);
            assert!(take(&mut state, &rule, 7_200_000, 10));
            for millis in [7_199_999, 3_600_000, 0, -86_400_000_000, 7_200_001] {
                assert!(!take(&mut state, &rule, millis, 1), "{algorithm:?} at {millis}");
            }
        }
    }

    #[test]
    fn a_changed_capacity_keeps_what_was_spent() {
        let rule = limit(10, Period::Hour, Algorithm::FixedWindow);
        let mut state = fresh(&rule, 0);
        assert!(take(&mut state, &rule, 0, 8));
        let smaller = Rule { capacity: 5, ..rule };
        assert_eq!(state.available(&smaller), 0);
        let larger = Rule { capacity: 12, ..rule };
        assert_eq!(state.available(&larger), 4);
    }

    #[test]
    fn what_was_not_spent_can_be_given_back_until_its_window_is_over() {
        let rule = limit(10, Period::Minute, Algorithm::FixedWindow);
        let mut state = fresh(&rule, 0);
        assert_eq!(state.grant(&rule, 15), 10);
        let slot = state.slot();
        state.give_back(slot, 3);
        assert_eq!(state.available(&rule), 3);
        state.advance(&rule, &TimeZone::UTC, Time::from_millis(60_000));
        state.give_back(slot, 7);
        assert_eq!(state.available(&rule), 10);
    }

    #[test]
    fn what_never_comes_back_is_spent_once() {
        let rule = Rule::of_top_ups(10);
        let mut state = fresh(&rule, 5);
        let rows = [
            (5, 4, true),
            (4_000_000_000_000, 5, true),
            (-9_000_000_000_000, 2, false),
            (i64::MAX, 2, false),
            (i64::MIN, 1, true),
            (i64::MAX, 1, false),
            (0, 0, true),
        ];
        for (millis, units, expected) in rows {
            assert_eq!(take(&mut state, &rule, millis, units), expected, "{units} at {millis}");
        }
        let now = Time::from_millis(6);
        assert_eq!([1, 10, 11].map(|units| state.available_at(&rule, units, now)), [None; 3]);
        assert_eq!(state.available_at(&rule, 0, now), Some(now));
        // More is there when more is given, and what went back is there again, whenever it was granted.
        let more = Rule::of_top_ups(13);
        assert_eq!((state.available(&more), state.available_at(&more, 3, now)), (3, Some(now)));
        state.give_back(state.slot(), 2);
        assert_eq!(state.available(&rule), 2);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
    }

    #[test]
    fn a_sliding_window_says_when_units_come_back() {
        let rule = limit(10, Period::Minute, Algorithm::SlidingWindow);
        let mut state = fresh(&rule, 0);
        assert!(take(&mut state, &rule, 0, 6));
        assert!(take(&mut state, &rule, 30_000, 4));
        let now = Time::from_millis(30_000);
        assert_eq!(state.available_at(&rule, 6, now), Some(Time::from_millis(61_000)));
        assert_eq!(state.available_at(&rule, 7, now), Some(Time::from_millis(91_000)));
        assert_eq!(state.reset_time(now), Time::from_millis(91_000));
        assert!(!take(&mut state, &rule, 60_999, 6));
        assert!(take(&mut state, &rule, 61_000, 6));
    }

    #[test]
    fn a_sliding_window_gives_98_percent_under_steady_demand() {
        let rule = limit(6_000, Period::Minute, Algorithm::SlidingWindow);
        let mut state = fresh(&rule, 0);
        let minutes = 20;
        let admitted = (0..minutes * 60_000).filter(|&millis| take(&mut state, &rule, millis, 1)).count();
        let ideal = 6_000 * usize::try_from(minutes).unwrap();
        assert!(admitted * 100 >= ideal * 98, "{admitted} of {ideal}");
    }

    #[test]
    fn a_state_takes_no_more_memory_than_it_has_to() {
        assert_eq!(size_of::<Option<State>>(), 40, "there is one for each limit of each key");
    }

    /// One call: how far the clock moves, back or forth, and what is asked for.
    pub(super) fn calls() -> impl Strategy<Value = Vec<(i64, u64)>> {
        let step = prop_oneof![8 => 0_i64..3_000, 2 => 0_i64..100_000, 1 => -200_000_i64..0];
        prop::collection::vec((step, 0_u64..8), 1..200)
    }

    proptest! {
        /// Against the definition: of the true times of all grants, no stretch of one period holds more than the
        /// capacity; and under a clock that only goes forward, what is refused could not have been granted a slot later
        /// either.
        #[test]
        fn sliding_windows_never_exceed_capacity_in_any_window(calls in calls(), capacity in 1_u64..20, seconds in 1_u32..120) {
            let rule = limit(capacity, Period::Seconds(seconds), Algorithm::SlidingWindow);
            let period = i64::from(seconds) * 1_000;
            let (mut wall, mut state) = (0, fresh(&rule, 0));
            let mut latest = 0;
            let mut grants: Vec<(i64, u64)> = Vec::new();
            for (step, units) in calls {
                wall += step;
                latest = latest.max(wall);
                if take(&mut state, &rule, wall, units) {
                    // A clock that went back does not make less time pass.
                    grants.push((latest, units));
                }
                let in_window: u64 = grants.iter().filter(|(at, _)| *at > latest - period).map(|(_, units)| units).sum();
                prop_assert!(in_window <= capacity);
            }
        }

        /// Against the definition: grants of one calendar window sum to at most the capacity, and a refusal means that
        /// the window really had no room.
        #[test]
        fn fixed_windows_are_exact(calls in calls(), capacity in 1_u64..20, seconds in 1_u32..120) {
            let rule = limit(capacity, Period::Seconds(seconds), Algorithm::FixedWindow);
            let period = i64::from(seconds) * 1_000;
            let (mut wall, mut state, mut latest) = (0_i64, fresh(&rule, 0), 0_i64);
            let mut spent = std::collections::HashMap::<i64, u64>::new();
            for (step, units) in calls {
                wall += step;
                latest = latest.max(wall);
                let window = spent.entry(latest.div_euclid(period)).or_default();
                let expected = *window + units <= capacity;
                prop_assert_eq!(take(&mut state, &rule, wall, units), expected);
                if expected {
                    *window += units;
                }
            }
        }
    }
}

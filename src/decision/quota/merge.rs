//! Two memories of one budget made one, after the store has lost a part of what it said.

use std::cmp::Ordering;

use super::{Inner, State, slide};
use crate::decision::window::Window;

impl State {
    /// Takes in another state of the same limit, of which it is not known what the two have in common: moves on to the later
    /// window, and counts of each slot the most that either has granted.
    pub fn most(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (
                Inner::Fixed { window, granted, ahead },
                Inner::Fixed { window: other, granted: other_granted, ahead: other_ahead },
            ) => {
                let (mine, theirs) = ((*window, *granted, *ahead), (*other, *other_granted, *other_ahead));
                let is_later = (other.start, other.end) > (window.start, window.end);
                let (earlier, later) = if is_later { (mine, theirs) } else { (theirs, mine) };
                let (here, next) = carried(earlier, later.0);
                (*window, *granted, *ahead) = (later.0, later.1.max(here), later.2.max(next));
            }
            (
                Inner::Sliding { slot_micros, newest, granted },
                Inner::Sliding { slot_micros: other_micros, newest: later, granted: others },
            ) if slot_micros == other_micros => {
                for (slot, units) in others {
                    raise(granted, *slot, *units);
                }
                slide(*later, newest, granted);
            }
            // Not of the same limit, so no count of one says anything of the other's slots.
            _ => {
                if other.bounds().start > self.bounds().start {
                    *self = other.clone();
                }
            }
        }
    }
}

/// What a fixed window and the one that it was granted ahead of tell of one that begins no earlier: units of it, and of that which
/// begins where it ends.
fn carried((window, granted, ahead): (Window, u64, u64), later: Window) -> (u64, u64) {
    if window == later {
        return (granted, ahead);
    }
    match later.start.cmp(&window.end) {
        // A part of it lies in the later one.
        Ordering::Less => (granted.saturating_add(ahead), 0),
        Ordering::Equal => (ahead, 0),
        Ordering::Greater => (0, 0),
    }
}

/// So many units of a slot, unless more are granted already.
fn raise(granted: &mut Vec<(i64, u64)>, slot: i64, units: u64) {
    let place = granted.partition_point(|(number, _)| *number < slot);
    match granted.get_mut(place) {
        Some((number, sum)) if *number == slot => *sum = (*sum).max(units),
        Some(_) | None => granted.insert(place, (slot, units)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{calls, fresh, limit, take};
    use super::super::{SLOTS, Slot};
    use super::*;
    use crate::domain::{Algorithm, Period, Time};

    fn granted_of(state: &State, slot: Slot) -> u64 {
        match &state.0 {
            Inner::Fixed { window, granted, .. } if window.start.millis() == slot.0 => *granted,
            Inner::Fixed { window, ahead, .. } if window.end.millis() == slot.0 => *ahead,
            Inner::Fixed { .. } => 0,
            Inner::Sliding { granted, .. } => {
                granted.iter().find(|(number, _)| *number == slot.0).map_or(0, |(_, units)| *units)
            }
        }
    }

    #[test]
    fn of_two_states_the_later_window_stays_and_the_most_of_each_slot() {
        let rule = limit(10, Period::Minute, Algorithm::FixedWindow);
        let state = |millis, granted, ahead| {
            let mut state = fresh(&rule, millis);
            assert_eq!((state.grant(&rule, granted), state.grant_ahead(&rule, ahead)), (granted, ahead));
            state
        };
        let rows = [
            // The same window, the next one, and one long after.
            (state(0, 4, 1), state(0, 3, 2), state(0, 4, 2)),
            (state(0, 9, 5), state(60_000, 3, 2), state(60_000, 5, 2)),
            (state(0, 9, 5), state(60_000, 7, 2), state(60_000, 7, 2)),
            (state(0, 9, 5), state(600_000, 3, 2), state(600_000, 3, 2)),
        ];
        for (one, other, expected) in rows {
            let (mut merged, mut turned) = (one.clone(), other.clone());
            merged.most(&other);
            turned.most(&one);
            assert_eq!((&merged, &turned), (&expected, &expected), "{one:?} and {other:?}");
        }
    }

    /// Where a month begins was changed: a part of the one before lies in the later one.
    #[test]
    fn of_two_windows_that_overlap_the_earlier_counts_too() {
        let window = |start, end| Window { start: Time::from_millis(start), end: Time::from_millis(end) };
        let state = |window, granted, ahead| State(Inner::Fixed { window, granted, ahead });
        let rows = [
            (state(window(0, 100), 4, 2), state(window(50, 150), 1, 3), state(window(50, 150), 6, 3)),
            (state(window(0, 100), 4, 2), state(window(0, 150), 9, 3), state(window(0, 150), 9, 3)),
        ];
        for (one, other, expected) in rows {
            let (mut merged, mut turned) = (one.clone(), other.clone());
            merged.most(&other);
            turned.most(&one);
            assert_eq!((&merged, &turned), (&expected, &expected), "{one:?} and {other:?}");
        }
    }

    #[test]
    fn of_states_that_have_nothing_in_common_the_later_stays() {
        let fixed = |millis| fresh(&limit(10, Period::Minute, Algorithm::FixedWindow), millis);
        let sliding = |millis| fresh(&limit(10, Period::Hour, Algorithm::SlidingWindow), millis);
        for (one, other) in [(fixed(0), sliding(600_000)), (sliding(0), fixed(600_000))] {
            let (mut merged, mut turned) = (one.clone(), other.clone());
            merged.most(&other);
            turned.most(&one);
            assert_eq!((&merged, &turned), (&other, &other));
        }
    }

    proptest! {
        /// Of two histories of one budget: nothing that either granted in a window that is still open is forgotten, and it makes
        /// no difference who takes in whom, or how often.
        #[test]
        fn the_most_of_two_states_forgets_no_slot(
            first in calls(), second in calls(), ahead in 0_u64..5, seconds in 1_u32..120, is_sliding: bool,
        ) {
            let algorithm = if is_sliding { Algorithm::SlidingWindow } else { Algorithm::FixedWindow };
            let rule = limit(20, Period::Seconds(seconds), algorithm);
            let run = |calls: Vec<(i64, u64)>, ahead| {
                let (mut wall, mut state) = (0, fresh(&rule, 0));
                for (step, units) in calls {
                    wall += step;
                    take(&mut state, &rule, wall, units);
                }
                state.grant_ahead(&rule, ahead);
                state
            };
            let (one, other) = (run(first, ahead), run(second, 4 - ahead));
            let (mut merged, mut turned) = (one.clone(), other.clone());
            merged.most(&other);
            turned.most(&one);
            prop_assert_eq!(&merged, &turned);
            turned.most(&other);
            prop_assert_eq!(&merged, &turned);
            prop_assert_eq!(merged.slot(), one.slot().max(other.slot()));
            let slots: Vec<Slot> = match &merged.0 {
                Inner::Fixed { .. } => vec![merged.slot(), merged.next_slot()],
                Inner::Sliding { newest, .. } => (newest - SLOTS..=newest + 1).map(Slot).collect(),
            };
            for slot in slots {
                let most = granted_of(&one, slot).max(granted_of(&other, slot));
                prop_assert_eq!(granted_of(&merged, slot), most, "{:?}", slot);
            }
            for state in [one, other] {
                let mut later = state;
                later.catch_up(&merged);
                prop_assert!(merged.available(&rule) <= later.available(&rule));
            }
        }
    }
}

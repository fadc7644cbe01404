//! How much of a budget is wanted, by which the size of its leases goes.

use crate::domain::Time;

/// How much is spent in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demand {
    second: i64,
    /// Units in that second so far, and in the one before it.
    units: u64,
    before: u64,
}

impl Demand {
    pub(super) fn spent(&mut self, units: u64, now: Time) {
        self.turn(now);
        self.units = self.units.saturating_add(units);
    }

    /// Units a second, by the fuller of the last two.
    pub(super) fn a_second(&mut self, now: Time) -> u64 {
        self.turn(now);
        self.units.max(self.before)
    }

    /// Whether something was spent in the second before this one, too.
    pub(super) fn is_steady(&mut self, now: Time) -> bool {
        self.turn(now);
        self.before > 0
    }

    fn turn(&mut self, now: Time) {
        let second = now.seconds();
        if second != self.second {
            self.before = if second == self.second + 1 { self.units } else { 0 };
            (self.second, self.units) = (second, 0);
        }
    }
}

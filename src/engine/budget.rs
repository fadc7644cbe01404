//! What one process may still spend of one limit.
//!
//! Units are spent from a [`Lease`], and only what was leased before is spent: a check first makes sure that the lease of
//! each budget holds its cost, and spends from all of them or from none. What is leased comes from the ledger, which is
//! the limit's [`State`] in this process' memory.

use crate::decision::quota::{Rule, Slot, State};
use crate::domain::{Limit, Time, TimeZone};

/// One limit of one subject.
#[derive(Debug)]
pub(super) struct Budget {
    rule: Rule,
    ledger: State,
    lease: Lease,
}

/// Units granted to this process, to be spent in one slot alone.
#[derive(Clone, Copy, Debug)]
struct Lease {
    slot: Slot,
    units: u64,
}

/// What a budget looks like to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BudgetView {
    pub(super) remaining: u64,
    pub(super) reset_time: Time,
}

impl Budget {
    pub(super) fn new(rule: Rule, zone: &TimeZone, now: Time) -> Self {
        let ledger = State::new(&rule, zone, now);
        let lease = Lease { slot: ledger.slot(), units: 0 };
        Self { rule, ledger, lease }
    }

    /// Goes on under a rule of which only the capacity differs: what was spent stays spent.
    pub(super) fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
    }

    /// Whether nothing of what was spent counts any more.
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.ledger.reset_time(now) <= now
    }

    /// Moves on to the slot of `now`. Units leased for an earlier one go back.
    pub(super) fn advance(&mut self, zone: &TimeZone, now: Time) {
        self.ledger.advance(&self.rule, zone, now);
        let slot = self.ledger.slot();
        if self.lease.slot != slot {
            self.ledger.give_back(self.lease.slot, self.lease.units);
            self.lease = Lease { slot, units: 0 };
        }
    }

    /// Whether so many units could be spent now. Changes nothing.
    pub(super) fn covers(&self, units: u64) -> bool {
        self.remaining() >= units
    }

    /// Makes the lease hold so many units. False if the ledger does not grant them; it then holds what it held.
    pub(super) fn lease(&mut self, units: u64) -> bool {
        let lacking = units.saturating_sub(self.lease.units);
        if lacking > self.ledger.available(&self.rule) {
            return false;
        }
        self.lease.units = self.lease.units.saturating_add(self.ledger.grant(&self.rule, lacking));
        true
    }

    /// Spends units that [`Self::lease`] has made sure of.
    pub(super) fn spend(&mut self, units: u64) {
        self.lease.units = self.lease.units.saturating_sub(units);
    }

    pub(super) fn view(&self, now: Time) -> BudgetView {
        BudgetView { remaining: self.remaining(), reset_time: self.ledger.reset_time(now) }
    }

    /// When so many units can be spent if nothing is until then; absent where never.
    pub(super) fn available_at(&self, units: u64, now: Time) -> Option<Time> {
        if self.covers(units) { Some(now) } else { self.ledger.available_at(&self.rule, units, now) }
    }

    fn remaining(&self) -> u64 {
        self.ledger.available(&self.rule).saturating_add(self.lease.units).min(self.rule.capacity)
    }
}

/// The budgets of a list of limits, in its order.
#[derive(Debug, Default)]
pub(super) struct BudgetList {
    limits: Vec<(Limit, Budget)>,
    /// Of limits that were taken away before their window was over: where one comes back, what was spent is still spent.
    kept: Vec<(Limit, Budget)>,
}

/// Budgets that are kept of limits that were taken away; the oldest go first.
const KEPT_MAX: usize = 32;

impl BudgetList {
    /// Makes these the limits, and keeps what was spent under those that continue one from before.
    pub(super) fn set_limits(&mut self, limits: &[Limit], zone: &TimeZone, now: Time) {
        let mut old = std::mem::take(&mut self.kept);
        old.append(&mut self.limits);
        self.limits = limits
            .iter()
            .map(|limit| {
                let rule = Rule::of(limit);
                let place = old.iter().position(|(other, _)| limit.continues(other));
                let mut budget = place.map_or_else(|| Budget::new(rule, zone, now), |place| old.remove(place).1);
                budget.set_rule(rule);
                (limit.clone(), budget)
            })
            .collect();
        old.retain(|(_, budget)| !budget.is_over(now));
        self.kept = old.split_off(old.len().saturating_sub(KEPT_MAX));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Limit, &Budget)> {
        self.limits.iter().map(|(limit, budget)| (limit, budget))
    }

    pub(super) fn budgets_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        self.limits.iter_mut().map(|(_, budget)| budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Algorithm, LimitName, Period};

    fn limit(name: &str, capacity: u64, algorithm: Algorithm) -> Limit {
        Limit { name: LimitName::parse(name).unwrap(), capacity, period: Period::Minute, algorithm }
    }

    fn at(millis: i64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn what_is_leased_and_not_spent_is_still_there() {
        for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
            let mut budget = Budget::new(Rule::of(&limit("a", 10, algorithm)), &TimeZone::UTC, at(0));
            assert!(budget.lease(7));
            assert_eq!(budget.view(at(0)).remaining, 10);
            assert!(!budget.lease(11));
            budget.spend(5);
            assert_eq!(budget.view(at(0)).remaining, 5);
            budget.advance(&TimeZone::UTC, at(1_000));
            assert_eq!(budget.view(at(1_000)).remaining, 5, "{algorithm:?}");
            assert!(budget.lease(5) && !budget.lease(6));
        }
    }

    #[test]
    fn a_changed_list_keeps_what_was_spent_under_the_same_limit() {
        let mut list = BudgetList::default();
        let (a, b) = (limit("a", 10, Algorithm::FixedWindow), limit("b", 10, Algorithm::FixedWindow));
        list.set_limits(&[a.clone(), b.clone()], &TimeZone::UTC, at(0));
        for budget in list.budgets_mut() {
            assert!(budget.lease(4));
            budget.spend(4);
        }
        let larger = Limit { capacity: 20, ..b };
        let other = Limit { period: Period::Hour, ..a };
        list.set_limits(&[larger, other], &TimeZone::UTC, at(0));
        let remaining =
            |list: &BudgetList| list.iter().map(|(_, budget)| budget.view(at(0)).remaining).collect::<Vec<u64>>();
        assert_eq!(remaining(&list), [16, 10]);
    }

    #[test]
    fn a_limit_that_is_taken_away_and_comes_back_is_no_new_one() {
        let mut list = BudgetList::default();
        let (minute, day) = (limit("a", 10, Algorithm::FixedWindow), limit("a", 10, Algorithm::SlidingWindow));
        let day = Limit { period: Period::Day, ..day };
        let mut spend = |limits: &[Limit], units, millis| {
            list.set_limits(limits, &TimeZone::UTC, at(millis));
            list.budgets_mut().all(|budget| {
                budget.advance(&TimeZone::UTC, at(millis));
                let leased = budget.lease(units);
                budget.spend(if leased { units } else { 0 });
                leased
            })
        };
        assert!(spend(std::slice::from_ref(&minute), 10, 0));
        assert!(spend(std::slice::from_ref(&day), 1, 1));
        assert!(spend(&[], 1, 2));
        assert!(!spend(std::slice::from_ref(&minute), 1, 3), "spent in this minute");
        assert!(!spend(std::slice::from_ref(&day), 10, 4), "one is spent today");
        assert!(spend(std::slice::from_ref(&minute), 10, 60_000));
    }
}

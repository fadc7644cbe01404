//! The budgets of a key or an account, one for each of its limits.

use std::time::Duration;

use crate::decision::quota::Rule;
use crate::domain::{Limit, Time};
use crate::journal::Journal;
use crate::store::Leased;

use super::ask::{Ask, Cells, LeaseName, number};
use super::budget::Budget;

/// The budgets of a list of limits, in its order.
#[derive(Debug, Default)]
pub(super) struct BudgetList {
    limits: Vec<(Limit, Budget)>,
    /// Of limits that were taken away: what is still to be told to the store.
    ended: Vec<(Limit, Ask)>,
}

impl BudgetList {
    /// Makes these the limits, and goes on with the budgets of those that continue one from before. What was spent of the
    /// others is in the store, where it is found again should they come back.
    pub(super) fn set_limits(&mut self, limits: &[Limit]) {
        let mut old = std::mem::take(&mut self.limits);
        self.limits = limits
            .iter()
            .map(|limit| {
                let rule = Rule::of(limit);
                let place = old.iter().position(|(other, _)| limit.continues(other));
                let mut budget = place.map_or_else(|| Budget::new(rule), |place| old.remove(place).1);
                budget.set_rule(rule);
                (limit.clone(), budget)
            })
            .collect();
        self.ended.extend(old.into_iter().filter_map(|(limit, mut budget)| Some((limit, budget.end()?))));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Limit, &Budget)> {
        self.limits.iter().map(|(limit, budget)| (limit, budget))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Limit, &mut Budget)> {
        self.limits.iter_mut().map(|(limit, budget)| (&*limit, budget))
    }

    /// Puts back units that were reserved of the limit that this one is, or was.
    pub(super) fn unreserve(&mut self, of: &Limit, lease: LeaseName, units: u64) {
        if let Some(budget) = self.find_mut(of) {
            budget.unreserve(lease, units);
        } else {
            self.ended.extend(Ask::returning(Rule::of(of), [(lease, units)]).map(|ask| (of.clone(), ask)));
        }
    }

    /// Units that were reserved of the limit that this one is, or was, are charged.
    pub(super) fn charged(&mut self, of: &Limit, lease: LeaseName, units: u64) {
        if let Some(budget) = self.find_mut(of) {
            budget.charged(lease, units);
        }
    }

    pub(super) fn budgets_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        self.limits.iter_mut().map(|(_, budget)| budget)
    }

    /// What the store is to be told and asked. What was taken away comes first: it may be there again, and then goes on from there.
    pub(super) fn asks(&mut self, round: Round<'_>) -> Vec<(Limit, Ask)> {
        let mut asks = std::mem::take(&mut self.ended);
        for (limit, budget) in &mut self.limits {
            asks.extend(round.ask(budget).map(|ask| (limit.clone(), ask)));
        }
        asks
    }

    /// The budget of the limit that this one is, or was.
    pub(super) fn find_mut(&mut self, of: &Limit) -> Option<&mut Budget> {
        self.limits.iter_mut().find(|(limit, _)| limit.continues(of)).map(|(_, budget)| budget)
    }

    /// Takes what the store has granted of the limit that this one is, or was.
    pub(super) fn grant(&mut self, of: &Limit, leased: Leased, cells: Cells) {
        keep_counters(&mut self.ended, cells);
        if let Some(budget) = self.find_mut(of) {
            budget.grant(leased, cells);
        } else {
            let returned = Ask::return_grant(Rule::of(of), &leased, cells);
            self.ended.extend(returned.map(|ask| (of.clone(), ask)));
        }
    }

    /// Forgets all that was leased, and what was to be told.
    pub(super) fn forget(&mut self) {
        self.ended.clear();
        self.budgets_mut().for_each(Budget::forget);
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        !self.ended.is_empty() || self.limits.iter().any(|(_, budget)| budget.is_open())
    }
}

/// Keeps counters from being another's, which are still in use: where a limit was taken away while it was asked for, and has come
/// back.
pub(super) fn keep_counters<T>(ended: &mut [(T, Ask)], cells: Cells) {
    let used = [number(cells.here), number(cells.ahead)];
    for (_, ask) in ended {
        ask.freed.retain(|cell| !used.contains(&Some(cell.number())));
    }
}

/// What the store is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// What is wanted.
    Wanted,
    /// What is wanted, and leases that are not in use go back.
    Tidy,
    /// Every lease goes back: this process ends.
    Last,
}

/// One round of asking the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round<'a> {
    pub(super) journal: &'a Journal,
    pub(super) now: Time,
    /// The same by the clock that never steps back. Absent where one process has the store.
    pub(super) at: Option<Duration>,
    pub(super) mode: Asking,
}

impl Round<'_> {
    /// What the store is to be asked and told of a budget.
    pub(super) fn ask(self, budget: &mut Budget) -> Option<Ask> {
        let Self { journal, now, at, mode } = self;
        let recalled = at.is_some_and(|at| budget.face_others(at));
        let ask = match mode {
            Asking::Last => budget.end(),
            Asking::Wanted | Asking::Tidy if recalled => budget.give_up(),
            Asking::Tidy if budget.is_idle(now) => budget.end(),
            Asking::Wanted | Asking::Tidy => budget.ask(journal, now),
        };
        if let (Some(at), Some(_)) = (at, &ask) {
            budget.note_asked(at);
        }
        ask
    }
}

//! Budgets that are charged together, all of them or none.

use std::time::Duration;

use crate::domain::Time;

use super::ask::Urgency;
use super::budget::{Budget, Cover};
use super::budget_list::BudgetList;
use super::meter::{AccountMeter, KeyMeter};
use super::purse::Purse;

/// Budgets that are charged together.
pub(super) trait Budgets {
    /// All of them: limits, and credits where they are counted.
    fn parts(&self) -> (&BudgetList, Option<&Purse>);

    /// All of them.
    fn parts_mut(&mut self) -> (&mut BudgetList, Option<&mut Purse>);

    /// What they say to a cost, all together.
    fn cover(&self, units: u64) -> Covers {
        let (limits, purse) = self.parts();
        let of_limits = limits.iter().map(|(_, budget)| (budget.cover(units), budget.is_asked()));
        let of_purse = purse.map(|purse| (purse.cover(units), purse.is_asked()));
        let mut all = Covers::NONE;
        for said in of_limits.chain(of_purse) {
            match said {
                (Cover::Leased, _) => {}
                (Cover::Unknown, true) => all.unknown = true,
                (Cover::Unknown, false) => all.unasked = true,
                (Cover::Doubtful, _) => all.doubtful = true,
                (Cover::Short, _) => all.short = true,
            }
        }
        all
    }

    /// Has those that don't know, or whose lease is too small for `cost`, want `wanted` units. How soon, if there are such.
    fn want(&mut self, cost: u64, wanted: u64) -> Option<Urgency> {
        let (limits, purse) = self.parts_mut();
        let mut urgency = purse.and_then(|purse| purse.want(cost, wanted));
        for budget in limits.budgets_mut() {
            let asks = matches!(budget.cover(cost), Cover::Unknown | Cover::Doubtful);
            if asks && (wanted > 0 || !budget.is_asked()) {
                budget.want(wanted);
                urgency = urgency.max(Some(budget.urgency()));
            }
        }
        urgency
    }

    /// Every budget.
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        let (limits, purse) = self.parts_mut();
        limits.budgets_mut().chain(purse.into_iter().flat_map(Purse::budgets_mut))
    }

    /// Forgets denials that are not to be believed any more at `at`, by the clock that never steps back.
    fn doubt(&mut self, at: Duration) {
        self.all_mut().for_each(|budget| budget.doubt(at));
    }

    /// Has those of which the store was not asked lately ask how they stand. True if there are such.
    fn freshen(&mut self, at: Duration) -> bool {
        self.all_mut().filter_map(|budget| budget.freshen(at).then_some(())).count() > 0
    }

    /// Each budget with what it is charged of a cost that all have leased.
    fn charged(&mut self, units: u64) -> impl Iterator<Item = (&mut Budget, u64)> {
        let (limits, purse) = self.parts_mut();
        let of_purse = purse.into_iter().flat_map(move |purse| purse.charged(units));
        let of_purse = of_purse.map(|(_, budget, units)| (budget, units));
        limits.budgets_mut().map(move |budget| (budget, units)).chain(of_purse)
    }

    /// Spends what all have leased. True if a lease should be filled up.
    fn spend(&mut self, units: u64, now: Time) -> bool {
        let mut low = false;
        for (budget, units) in self.charged(units) {
            if budget.spend(units, now) {
                budget.want(0);
                low = true;
            }
        }
        low
    }

    /// When all can spend so many units if nothing is spent until then; absent where one never can.
    fn available_at(&self, units: u64, now: Time) -> Option<Time> {
        let (limits, purse) = self.parts();
        let of_purse = purse.map_or(Some(now), |purse| purse.available_at(units, now));
        limits.iter().map(|(_, budget)| budget.available_at(units, now)).try_fold(of_purse?, |at, of| Some(at.max(of?)))
    }
}

/// What budgets say to a cost, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is true of a budget of its own")]
pub(super) struct Covers {
    /// One has not so much in this slot.
    pub(super) short: bool,
    /// One has it, and has to lease it.
    pub(super) unknown: bool,
    /// One lacks it, but others may hold units that they don't need.
    pub(super) doubtful: bool,
    /// One has never been asked for.
    pub(super) unasked: bool,
}

impl Covers {
    /// No budget at all.
    pub(super) const NONE: Self = Self { short: false, unknown: false, doubtful: false, unasked: false };

    /// Whether the store has to be asked before anything can be said; for a cost that is to be charged, or only to be held
    /// against what is left.
    pub(super) const fn asks(self, spend: bool) -> bool {
        self.unasked || (spend && !self.short && (self.unknown || self.doubtful))
    }

    /// Whether one lacks it by what is known.
    pub(super) const fn lacks(self) -> bool {
        self.short || self.doubtful
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            short: self.short || other.short,
            unknown: self.unknown || other.unknown,
            doubtful: self.doubtful || other.doubtful,
            unasked: self.unasked || other.unasked,
        }
    }
}

impl Budgets for KeyMeter {
    fn parts(&self) -> (&BudgetList, Option<&Purse>) {
        (&self.budgets, None)
    }

    fn parts_mut(&mut self) -> (&mut BudgetList, Option<&mut Purse>) {
        (&mut self.budgets, None)
    }
}

impl Budgets for AccountMeter {
    fn parts(&self) -> (&BudgetList, Option<&Purse>) {
        (&self.budgets, self.credits.as_ref())
    }

    fn parts_mut(&mut self) -> (&mut BudgetList, Option<&mut Purse>) {
        (&mut self.budgets, self.credits.as_mut())
    }
}

//! Units on their way from leases into a charge that the store makes itself: taken out of the leases, and not yet spent.

use crate::domain::{BudgetId, Environment, KeyId, Subject, Time};
use crate::store::OperationCharge;

use super::all_or_none::Budgets;
use super::ask::{LeaseName, number};
use super::budget::Budget;
use super::meter::{AccountMeter, AskedFor, KeyMeter};

/// What was taken out of one lease.
#[derive(Debug)]
pub(super) struct Held {
    of: AskedFor,
    budget: BudgetId,
    lease: LeaseName,
    units: u64,
    /// Since when leases were last forgotten, by the count of the meter.
    era: u32,
}

impl Held {
    fn take(of: AskedFor, id: BudgetId, budget: &mut Budget, units: u64, (era, now): (u32, Time)) -> (Self, bool) {
        let (lease, low) = budget.reserve(units, now);
        if low {
            budget.want(0);
        }
        (Self { of, budget: id, lease, units, era }, low)
    }

    /// As the store is told of it.
    pub(super) fn charge(&self) -> OperationCharge {
        let LeaseName { slot, cell } = self.lease;
        OperationCharge { budget: self.budget.clone(), slot, cell: number(cell), units: self.units }
    }
}

impl KeyMeter {
    /// Takes units that all budgets have leased out of the leases. True if a lease should be filled up.
    pub(super) fn reserve(&mut self, id: KeyId, units: u64, now: Time, held: &mut Vec<Held>) -> bool {
        let (mut any_low, era) = (false, self.era);
        for (limit, budget) in self.budgets.iter_mut().filter(|_| units > 0) {
            let name = BudgetId::of_limit(&Subject::Key(id), limit);
            let (one, low) = Held::take(AskedFor::Limit(limit.clone()), name, budget, units, (era, now));
            held.push(one);
            any_low |= low;
        }
        any_low
    }

    /// Puts back what was reserved and not charged.
    pub(super) fn unreserve(&mut self, held: &[Held]) {
        for Held { of, lease, units, .. } in held.iter().filter(|held| held.era == self.era) {
            if let AskedFor::Limit(limit) = of {
                self.budgets.unreserve(limit, *lease, *units);
            }
        }
    }

    /// What was reserved is charged.
    pub(super) fn charged_reserved(&mut self, held: &[Held]) {
        for Held { of, lease, units, .. } in held.iter().filter(|held| held.era == self.era) {
            if let AskedFor::Limit(limit) = of {
                self.budgets.charged(limit, *lease, *units);
            }
        }
    }
}

impl AccountMeter {
    /// Takes units that all budgets have leased out of the leases. True if a lease should be filled up.
    pub(super) fn reserve(&mut self, environment: Environment, units: u64, now: Time, held: &mut Vec<Held>) -> bool {
        let Some(terms) = self.basis.clone().filter(|_| units > 0) else { return false };
        let subject = Subject::Account(terms.account_id.clone(), environment);
        let (mut any_low, era) = (false, self.era);
        let mut take = |of: AskedFor, name: BudgetId, budget: &mut Budget, units: u64| {
            let (one, low) = Held::take(of, name, budget, units, (era, now));
            held.push(one);
            any_low |= low;
        };
        for (limit, budget) in self.budgets.iter_mut() {
            take(AskedFor::Limit(limit.clone()), BudgetId::of_limit(&subject, limit), budget, units);
        }
        for (fund, budget, units) in self.credits.iter_mut().flat_map(|purse| purse.charged(units)) {
            take(AskedFor::Credits(fund), fund.budget_id(&terms.account_id), budget, units);
        }
        any_low
    }

    /// Puts back what was reserved and not charged.
    pub(super) fn unreserve(&mut self, held: &[Held]) {
        for Held { of, lease, units, .. } in held.iter().filter(|held| held.era == self.era) {
            match of {
                AskedFor::Limit(limit) => self.budgets.unreserve(limit, *lease, *units),
                AskedFor::Credits(fund) => match self.credits.as_mut().and_then(|purse| purse.fund_mut(*fund)) {
                    Some(budget) => budget.unreserve(*lease, *units),
                    None => self.credits_ended.extend(fund.returning(*lease, *units).map(|ask| (*fund, ask))),
                },
            }
        }
    }

    /// What was reserved is charged.
    pub(super) fn charged_reserved(&mut self, held: &[Held]) {
        for Held { of, lease, units, .. } in held.iter().filter(|held| held.era == self.era) {
            match of {
                AskedFor::Limit(limit) => self.budgets.charged(limit, *lease, *units),
                AskedFor::Credits(fund) => {
                    if let Some(budget) = self.credits.as_mut().and_then(|purse| purse.fund_mut(*fund)) {
                        budget.charged(*lease, *units);
                    }
                }
            }
        }
    }
}

/// Has all budgets that were ever asked for ask again how they stand.
pub(super) fn refresh(meter: &mut impl Budgets) {
    for budget in meter.all_mut().filter(|budget| budget.is_asked()) {
        budget.want_to_know();
    }
}

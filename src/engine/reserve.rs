//! Units on their way from leases into a charge that the store makes itself: taken out of the leases, and not yet spent.

use crate::decision::quota::{Rule, Slot};
use crate::domain::{BudgetId, Environment, KeyId, Subject, Time};
use crate::store::OperationCharge;

use super::budget::{Ask, Budget};
use super::meter::{AccountMeter, AskedFor, Budgets, KeyMeter};

/// What was taken out of one lease.
#[derive(Debug)]
pub(super) struct Held {
    of: AskedFor,
    budget: BudgetId,
    slot: Slot,
    units: u64,
}

impl Held {
    fn take(of: AskedFor, id: BudgetId, budget: &mut Budget, units: u64, now: Time) -> (Self, bool) {
        let (slot, low) = budget.reserve(units, now);
        if low {
            budget.want(0);
        }
        (Self { of, budget: id, slot, units }, low)
    }

    /// As the store is told of it.
    pub(super) fn charge(&self) -> OperationCharge {
        OperationCharge { budget: self.budget.clone(), slot: self.slot, units: self.units }
    }
}

impl KeyMeter {
    /// Takes units that all budgets have leased out of the leases. True if a lease should be filled up.
    pub(super) fn reserve(&mut self, id: KeyId, units: u64, now: Time, held: &mut Vec<Held>) -> bool {
        let mut any_low = false;
        for (limit, budget) in self.budgets.iter_mut().filter(|_| units > 0) {
            let name = BudgetId::of_limit(&Subject::Key(id), limit);
            let (one, low) = Held::take(AskedFor::Limit(limit.clone()), name, budget, units, now);
            held.push(one);
            any_low |= low;
        }
        any_low
    }

    /// Puts back what was reserved and not charged.
    pub(super) fn unreserve(&mut self, held: &[Held]) {
        for Held { of, slot, units, .. } in held {
            if let AskedFor::Limit(limit) = of {
                self.budgets.unreserve(limit, *slot, *units);
            }
        }
    }
}

impl AccountMeter {
    /// Takes units that all budgets have leased out of the leases. True if a lease should be filled up.
    pub(super) fn reserve(&mut self, environment: Environment, units: u64, now: Time, held: &mut Vec<Held>) -> bool {
        let Some(terms) = self.basis.clone().filter(|_| units > 0) else { return false };
        let subject = Subject::Account(terms.account_id.clone(), environment);
        let mut any_low = false;
        let mut take = |of: AskedFor, name: BudgetId, budget: &mut Budget| {
            let (one, low) = Held::take(of, name, budget, units, now);
            held.push(one);
            any_low |= low;
        };
        for (limit, budget) in self.budgets.iter_mut() {
            take(AskedFor::Limit(limit.clone()), BudgetId::of_limit(&subject, limit), budget);
        }
        if let Some((credits, budget)) = &mut self.credits {
            let name = BudgetId::of_credits(&terms.account_id, credits.reset_day);
            take(AskedFor::Credits(credits.reset_day), name, budget);
        }
        any_low
    }

    /// Puts back what was reserved and not charged.
    pub(super) fn unreserve(&mut self, held: &[Held]) {
        for Held { of, slot, units, .. } in held {
            match of {
                AskedFor::Limit(limit) => self.budgets.unreserve(limit, *slot, *units),
                AskedFor::Credits(reset_day) => self.unreserve_credits(*reset_day, *slot, *units),
            }
        }
    }

    fn unreserve_credits(&mut self, reset_day: u8, slot: Slot, units: u64) {
        match &mut self.credits {
            Some((credits, budget)) if credits.reset_day == reset_day => budget.unreserve(slot, units),
            Some(_) | None => {
                let credits = crate::decision::Credits { allowance: 0, reset_day };
                let ask = Ask::returning(Rule::of_credits(0, reset_day), slot, units);
                self.credits_ended.push((credits, ask));
            }
        }
    }
}

/// Has all budgets that were ever asked for ask again how they stand.
pub(super) fn refresh(meter: &mut impl Budgets) {
    for budget in meter.all_mut().filter(|budget| budget.is_asked()) {
        budget.want(0);
    }
}

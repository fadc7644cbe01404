//! When the store has given this process up, or has become an earlier state of itself: forgetting what was leased, and
//! remembering what was granted.

use crate::decision::quota::State;
use crate::domain::{BudgetId, Environment};
use crate::store::Incarnation;

use super::Engine;
use super::meter::KeyMeter;

const ENVIRONMENTS: [Environment; 2] = [Environment::Live, Environment::Test];

impl Engine {
    /// The name under which this process holds leases now.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.leases.incarnation()
    }

    /// Forgets every lease, and goes on under another name. Nothing of them is spent or told any more: the store has closed
    /// them. Checks that wait for a lease fail; those that come later begin anew. Waits until the store has answered what it is
    /// being asked; and some 0.1 seconds for a million keys, because it looks at each.
    pub async fn forget_leases(&self, incarnation: Incarnation) {
        let (_asking, round) = self.leases.interrupt().await;
        // What is granted from now on is granted after all of these have been forgotten, and after the name has changed.
        self.index.for_each_key(|entry| {
            entry.with_made_meter(KeyMeter::forget);
        });
        self.index.for_each_account(|account| {
            for environment in ENVIRONMENTS {
                account.meter(environment).forget();
            }
        });
        self.leases.go_on(round, incarnation);
    }

    /// What was granted of every budget that the store was asked for and whose window is still open: at least all that this process
    /// was granted, to be spent now or in the next slot, and has not given back. The same budget may come more than once.
    #[must_use]
    pub fn remembered_budgets(&self) -> Vec<(BudgetId, State)> {
        let now = self.clock.now();
        let mut remembered = Vec::new();
        self.index.for_each_key(|entry| {
            let of_key = entry.with_made_meter(|meter| {
                let budgets = meter.named_mut(entry.id).into_iter();
                budgets.filter_map(|(id, budget)| Some((id, budget.remembered(now)?))).collect::<Vec<_>>()
            });
            remembered.extend(of_key.into_iter().flatten());
        });
        self.index.for_each_account(|account| {
            for environment in ENVIRONMENTS {
                let mut meter = account.meter(environment);
                let budgets = meter.named_mut(environment).into_iter();
                remembered.extend(budgets.filter_map(|(id, budget)| Some((id, budget.remembered(now)?))));
            }
        });
        remembered
    }
}

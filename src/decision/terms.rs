//! The terms that an account's keys are checked on: what its plan says, and what the account has instead.
//!
//! Of limits with the same name the key's own comes before the account's, and the account's before the plan's; limits of
//! other names apply beside each other.

use std::sync::Arc;

use crate::domain::{
    Account, AccountId, AccountStatus, CreditOverride, Limit, Plan, PlanId, Policy, Scope, ScopeRef, TimeZone,
};

/// What holds for all keys of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountTerms {
    /// The account.
    pub account_id: AccountId,
    /// Its plan.
    pub plan_id: PlanId,
    /// In use or suspended.
    pub status: AccountStatus,
    /// Whether the plan includes API access.
    pub api_access: bool,
    /// The scopes that the plan lets keys use; empty: all.
    pub allowed_scopes: Vec<Scope>,
    /// Where days and months begin.
    pub time_zone: TimeZone,
    /// Limits of each key that has none of the same name.
    pub key_limits: Arc<[Limit]>,
    /// Limits shared by the keys.
    pub account_limits: Arc<[Limit]>,
    /// Credits, where they are counted.
    pub credits: Option<Credits>,
}

/// A monthly allowance, and what was topped up beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credits {
    /// Cost units a month.
    pub allowance: u64,
    /// Day on which they begin anew, 1 to 31.
    pub reset_day: u8,
    /// Cost units that no month ends, spent ones included.
    pub topped_up: u64,
}

impl AccountTerms {
    /// Of an account on its plan.
    #[must_use]
    pub fn new(account: &Account, plan: &Plan) -> Self {
        let allowance = match account.credits {
            Some(CreditOverride::Uncounted) => None,
            Some(CreditOverride::Allowance(allowance)) => Some(allowance),
            None => plan.monthly_credits,
        };
        Self {
            account_id: account.id.clone(),
            plan_id: plan.id.clone(),
            status: account.status,
            api_access: plan.api_access,
            allowed_scopes: plan.allowed_scopes.clone(),
            time_zone: account.time_zone.clone(),
            key_limits: merge(&plan.key_limits, &account.key_limits).into(),
            account_limits: merge(&plan.account_limits, &account.account_limits).into(),
            credits: allowance.map(|allowance| Credits {
                allowance,
                reset_day: account.credits_reset_day,
                topped_up: account.top_ups.sum,
            }),
        }
    }

    /// The limits of a key with this policy.
    #[must_use]
    pub fn limits_of(&self, policy: &Policy) -> Arc<[Limit]> {
        if policy.limits.is_empty() {
            Arc::clone(&self.key_limits)
        } else {
            merge(&self.key_limits, &policy.limits).into()
        }
    }

    /// Of the scopes that a key holds, what it may use: those that the plan allows, and where it holds a wider one than
    /// the plan does, the plan's.
    pub fn usable_scopes<'a>(&'a self, held: &'a [Scope]) -> impl Iterator<Item = &'a Scope> {
        let allowed = held.iter().filter(|scope| self.allows(scope.as_ref()));
        let narrower = |scope: &&Scope| scope.as_ref().is_granted_by(held) && !held.contains(scope);
        allowed.chain(self.allowed_scopes.iter().filter(narrower))
    }

    /// Whether the plan lets keys use this scope.
    pub(super) fn allows(&self, scope: ScopeRef<'_>) -> bool {
        self.allowed_scopes.is_empty() || scope.is_own() || scope.is_granted_by(&self.allowed_scopes)
    }
}

/// The limits of `base`, those with a namesake in `instead` replaced by it, and then the rest of `instead`.
fn merge(base: &[Limit], instead: &[Limit]) -> Vec<Limit> {
    let named = |limits: &[Limit], limit: &Limit| limits.iter().find(|other| other.name == limit.name).cloned();
    let replaced = base.iter().map(|limit| named(instead, limit).unwrap_or_else(|| limit.clone()));
    let added = instead.iter().filter(|limit| named(base, limit).is_none()).cloned();
    replaced.chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Algorithm, LimitName, Period};

    fn limit(name: &str, capacity: u64) -> Limit {
        let name = LimitName::parse(name).unwrap();
        Limit { name, capacity, period: Period::Minute, algorithm: Algorithm::FixedWindow }
    }

    #[test]
    fn nearer_limits_come_first() {
        let merged = merge(&[limit("a", 1), limit("b", 2)], &[limit("c", 30), limit("b", 20)]);
        assert_eq!(merged, [limit("a", 1), limit("b", 20), limit("c", 30)]);
        assert_eq!(merge(&[], &[limit("a", 1)]), [limit("a", 1)]);
    }
}

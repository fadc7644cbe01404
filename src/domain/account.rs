//! Accounts, and the plans that they are on.

use serde::{Deserialize, Serialize};

use super::{
    AccountId, Invalid, Limit, Metadata, PlanId, Revision, Scope, Time, TimeZone, TopUps, UNITS_MAX, caps, key, limit,
};

/// The owner of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name in the system.
    pub id: AccountId,
    /// Its name for people.
    pub name: String,
    /// The plan that it is on.
    pub plan: PlanId,
    /// In use or suspended.
    pub status: AccountStatus,
    /// Where its days and months begin.
    pub time_zone: TimeZone,
    /// Limits of each of its keys, before the plan's of the same name.
    pub key_limits: Vec<Limit>,
    /// Limits shared by its keys, before the plan's of the same name.
    pub account_limits: Vec<Limit>,
    /// Credits instead of the plan's.
    pub credits: Option<CreditOverride>,
    /// Day of the month on which credits begin anew, 1 to 31.
    pub credits_reset_day: u8,
    /// Credits beside those of the month.
    pub top_ups: TopUps,
    /// The owner's notes.
    pub metadata: Metadata,
    /// When it was made.
    pub create_time: Time,
    /// When it was last changed.
    pub update_time: Time,
    /// The revision that wrote it.
    pub revision: Revision,
}

impl Account {
    /// Checks sizes and that nothing stands there twice. Says which field is wrong.
    pub fn check(&self) -> Result<(), (&'static str, Invalid)> {
        limit::check_list(&self.key_limits, caps::LIMITS_MAX).map_err(|error| ("key_limits", error))?;
        limit::check_list(&self.account_limits, caps::LIMITS_MAX).map_err(|error| ("account_limits", error))?;
        if let Some(CreditOverride::Allowance(credits)) = self.credits {
            check_credits(credits).map_err(|error| ("monthly_credits", error))?;
        }
        if !(1..=31).contains(&self.credits_reset_day) {
            let message = format!("`{}` is no day of a month, 1 to 31", self.credits_reset_day);
            return Err(("credits_reset_day", Invalid::new(message)));
        }
        Ok(())
    }
}

/// What an account has instead of its plan's credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreditOverride {
    /// Credits are not counted.
    Uncounted,
    /// So many a month.
    Allowance(u64),
}

/// What state an account is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountStatus {
    /// In use.
    Active,
    /// All of its keys are refused.
    Suspended,
}

/// A tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name in the system, chosen by the operator.
    pub id: PlanId,
    /// Its name for people.
    pub display_name: String,
    /// Whether it includes API access at all.
    pub api_access: bool,
    /// Limits of each key.
    pub key_limits: Vec<Limit>,
    /// Limits shared by all keys of an account.
    pub account_limits: Vec<Limit>,
    /// Credits a month. Absent: not counted.
    pub monthly_credits: Option<u64>,
    /// The scopes that keys may use; empty: all. Tollgate's own are always allowed.
    pub allowed_scopes: Vec<Scope>,
    /// Keys an account may have that are not revoked. Absent: no bound.
    pub keys_max: Option<u32>,
    /// When it was made.
    pub create_time: Time,
    /// When it was last changed.
    pub update_time: Time,
    /// The revision that wrote it.
    pub revision: Revision,
}

impl Plan {
    /// Checks sizes and that nothing stands there twice. Says which field is wrong.
    pub fn check(&self) -> Result<(), (&'static str, Invalid)> {
        limit::check_list(&self.key_limits, caps::LIMITS_MAX).map_err(|error| ("key_limits", error))?;
        limit::check_list(&self.account_limits, caps::LIMITS_MAX).map_err(|error| ("account_limits", error))?;
        key::check_scopes(&self.allowed_scopes).map_err(|error| ("allowed_scopes", error))?;
        if let Some(credits) = self.monthly_credits {
            check_credits(credits).map_err(|error| ("monthly_credits", error))?;
        }
        Ok(())
    }

    /// Whether keys of its accounts may use this scope.
    #[must_use]
    pub fn allows_scope(&self, scope: &Scope) -> bool {
        self.allowed_scopes.is_empty() || scope.is_own() || scope.as_ref().is_granted_by(&self.allowed_scopes)
    }
}

fn check_credits(credits: u64) -> Result<(), Invalid> {
    if credits > UNITS_MAX {
        return Err(Invalid::new(format!("`{credits}` is more than {UNITS_MAX}")));
    }
    Ok(())
}

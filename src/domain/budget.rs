//! What a budget is called: whose it is, and of what.

use std::fmt;

use super::{AccountId, Algorithm, Environment, KeyId, Limit, Period};

/// Whose budget it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A key's own.
    Key(KeyId),
    /// Shared by an account's keys of one environment.
    Account(AccountId, Environment),
}

/// A budget's name. What was spent under one name is spent under no other: a limit that changes its period or movement is
/// another budget, one that changes its capacity is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetId(String);

impl BudgetId {
    /// Of a limit.
    #[must_use]
    pub fn of_limit(subject: &Subject, limit: &Limit) -> Self {
        let algorithm = match limit.algorithm {
            Algorithm::FixedWindow => "fixed",
            Algorithm::SlidingWindow => "sliding",
        };
        let name = &limit.name;
        match limit.period {
            Period::Minute => Self(format!("{subject}/{name}/minute/{algorithm}")),
            Period::Hour => Self(format!("{subject}/{name}/hour/{algorithm}")),
            Period::Day => Self(format!("{subject}/{name}/day/{algorithm}")),
            Period::Month => Self(format!("{subject}/{name}/month/{algorithm}")),
            Period::Seconds(seconds) => Self(format!("{subject}/{name}/{seconds}s/{algorithm}")),
        }
    }

    /// Of an account's credits that begin anew on this day of the month. Names of limits hold no `/`, so it is none of theirs.
    #[must_use]
    pub fn of_credits(account: &AccountId, reset_day: u8) -> Self {
        Self(format!("{account}/live//credits/{reset_day}"))
    }

    /// Of what was topped up to an account's credits, likewise.
    #[must_use]
    pub fn of_top_ups(account: &AccountId) -> Self {
        Self(format!("{account}/live//top-ups"))
    }

    /// From a store.
    #[must_use]
    pub const fn stored(text: String) -> Self {
        Self(text)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(id) => write!(f, "{id}"),
            Self::Account(id, environment) => write!(f, "{id}/{environment}"),
        }
    }
}

impl fmt::Display for BudgetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

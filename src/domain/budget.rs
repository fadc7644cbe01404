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

    /// Of an account's monthly credits, whatever day its months begin on. Names of limits hold no `/`, so it is none of theirs.
    #[must_use]
    pub fn of_credits(account: &AccountId) -> Self {
        Self(format!("{account}/live//credits"))
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

    /// Whose it is, and the name of the limit, or `credits`. Absent where the text is none that this version writes.
    #[must_use]
    pub fn parse(&self) -> Option<(Subject, &str)> {
        let (subject, rest) = self.0.split_once('/')?;
        let (subject, rest) = if let Some(key) = KeyId::parse(subject) {
            (Subject::Key(key), rest)
        } else {
            let (environment, rest) = rest.split_once('/')?;
            let environment = Environment::parse(environment)?;
            (Subject::Account(AccountId::parse(subject).ok()?, environment), rest)
        };
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        Some((subject, rest.split_once('/').map_or(rest, |(name, _)| name)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::LimitName;

    #[test]
    fn a_budgets_name_tells_whose_it_is_and_of_what() {
        let limit = |period| Limit {
            name: LimitName::parse("per-day").unwrap(),
            capacity: 1,
            period,
            algorithm: Algorithm::SlidingWindow,
        };
        let account = AccountId::parse("acct_a").unwrap();
        let subjects = [Subject::Key(KeyId::from_bytes([7; 16])), Subject::Account(account.clone(), Environment::Test)];
        for subject in subjects {
            for period in [Period::Minute, Period::Seconds(90)] {
                let id = BudgetId::of_limit(&subject, &limit(period));
                assert_eq!(id.parse(), Some((subject.clone(), "per-day")), "{id}");
            }
        }
        let credits = BudgetId::of_credits(&account);
        assert_eq!(credits.parse(), Some((Subject::Account(account, Environment::Live), "credits")));
        for other in ["", "key_/a", "acct_a/live", "acct_a/other/a", "a/live/b"] {
            assert_eq!(BudgetId::stored(other.to_owned()).parse(), None, "{other}");
        }
    }
}

//! What limits and credits are said to be, and what an answer says of them.

use std::collections::BTreeMap;

use crate::window::Window;

/// A limit, or credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) capacity: u64,
    pub(crate) window: Window,
}

/// What a plan says, or an account in its stead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) key_limits: Vec<Limit>,
    pub(crate) account_limits: Vec<Limit>,
    pub(crate) credits: Credits,
}

/// What is said of credits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Credits {
    #[default]
    Unsaid,
    Uncounted,
    Counted(u64),
}

impl Credits {
    pub(crate) fn counted(self) -> Option<u64> {
        if let Self::Counted(units) = self { Some(units) } else { None }
    }
}

/// Of limits with one name the last that is told.
pub(crate) fn nearest(lists: &[&[Limit]]) -> Vec<Limit> {
    let by_name: BTreeMap<_, _> = lists.iter().flat_map(|list| list.iter()).map(|limit| (limit.name, limit)).collect();
    by_name.into_values().cloned().collect()
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Key(usize),
    /// All live keys of the account.
    Live,
    Test,
}

/// What a budget is called. Where anything of it changes it is another one, and what was spent of the first is still spent
/// should it come back.
pub(crate) type BudgetKey = (Owner, &'static str, Window);

/// The names of credits: those of the month, and those that were topped up.
pub(crate) const CREDITS: &str = "credits";
pub(crate) const TOP_UPS: &str = "top-ups";

pub(crate) fn budget_key(owner: Owner, limit: &Limit) -> BudgetKey {
    (owner, limit.name, limit.window)
}

/// Units of a budget in one of its slots.
pub(crate) type Charge = (BudgetKey, i64, u64);

/// What an answer says of one budget, in the order of [`Model::budgets_of`].
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) limit: Limit,
    pub(crate) owner: Owner,
    pub(crate) remaining: u64,
    pub(crate) reset: i64,
    pub(crate) exceeded: bool,
}

impl Told {
    /// Whether it is of credits.
    pub(crate) fn is_fund(&self) -> bool {
        [CREDITS, TOP_UPS].contains(&self.limit.name)
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    RateLimited,
    CreditsExhausted,
}

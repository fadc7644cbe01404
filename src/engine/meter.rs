//! What a key, or an account, has used and may still use. Each meter is behind one lock of its own; a check takes the
//! key's and then, where the account has budgets, the account's, in that order and never the other way round. What charges
//! several together (`joint`) takes those of all keys and then those of all accounts, each in one order.

use std::net::IpAddr;
use std::sync::Arc;

use crate::decision::quota::Rule;
use crate::decision::{AccountTerms, Credits};
use crate::domain::{Environment, Limit, Policy, Time, Verdict};

use super::budget::{Budget, BudgetList, BudgetView};

/// What a key has used. Made when it is first checked, because most keys of a large store are asleep.
#[derive(Debug)]
pub(super) struct KeyMeter {
    basis: Option<(Arc<Policy>, Arc<AccountTerms>)>,
    pub(super) budgets: BudgetList,
    usage: Vec<UsageCell>,
    last_use: Option<(Time, Option<IpAddr>)>,
    /// Whether it stands in the queue for the next flush.
    queued: bool,
    /// The second of the last check that was allowed, and how many there were in it.
    pace: (i64, u32),
}

/// Checks of one hour that ended in one verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsageCell {
    pub(super) hour: i64,
    pub(super) verdict: Verdict,
    pub(super) requests: u64,
    pub(super) credits: u64,
}

/// What a flush takes out of a meter.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) usage: Vec<UsageCell>,
    pub(super) last_use: Option<(Time, Option<IpAddr>)>,
}

impl KeyMeter {
    pub(super) fn new() -> Self {
        Self {
            basis: None,
            budgets: BudgetList::default(),
            usage: Vec::new(),
            last_use: None,
            queued: false,
            pace: (0, 0),
        }
    }

    /// Brings the budgets up to date with the key's and the account's terms, and to the slot of `now`.
    pub(super) fn advance(&mut self, policy: &Arc<Policy>, terms: &Arc<AccountTerms>, now: Time) {
        let same = self.basis.as_ref().is_some_and(|(p, t)| Arc::ptr_eq(p, policy) && Arc::ptr_eq(t, terms));
        if !same {
            self.budgets.set_limits(&terms.limits_of(policy), &terms.time_zone, now);
            self.basis = Some((Arc::clone(policy), Arc::clone(terms)));
        }
        for budget in self.budgets.budgets_mut() {
            budget.advance(&terms.time_zone, now);
        }
    }

    /// Counts a check. True if the meter must be put into the queue for the next flush.
    pub(super) fn count(&mut self, verdict: Verdict, credits: u64, client_ip: Option<IpAddr>, now: Time) -> bool {
        let hour = now.hour();
        match self.usage.iter_mut().find(|cell| cell.verdict == verdict && cell.hour == hour) {
            Some(cell) => {
                cell.requests = cell.requests.saturating_add(1);
                cell.credits = cell.credits.saturating_add(credits);
            }
            None => self.usage.push(UsageCell { hour, verdict, requests: 1, credits }),
        }
        if verdict == Verdict::Allowed {
            self.last_use = Some((now, client_ip));
            self.keep_pace(now);
        }
        !std::mem::replace(&mut self.queued, true)
    }

    /// Notes a use that is no check. True if the meter must be put into the queue for the next flush.
    pub(super) fn touch(&mut self, peer: Option<IpAddr>, now: Time) -> bool {
        self.last_use = Some((now, peer));
        !std::mem::replace(&mut self.queued, true)
    }

    /// Takes out what has been counted since the last time.
    pub(super) fn drain(&mut self) -> Drained {
        self.queued = false;
        Drained { usage: std::mem::take(&mut self.usage), last_use: self.last_use.take() }
    }

    /// Whether so many more checks can be allowed in this second without exceeding a ceiling.
    pub(super) fn is_within_pace(&self, more: u32, checks_per_second: u32, now: Time) -> bool {
        let allowed = if self.pace.0 == now.seconds() { self.pace.1 } else { 0 };
        allowed.saturating_add(more) <= checks_per_second
    }

    fn keep_pace(&mut self, now: Time) {
        let second = now.seconds();
        self.pace = (second, if self.pace.0 == second { self.pace.1.saturating_add(1) } else { 1 });
    }
}

/// What the keys of one environment of an account have used together.
#[derive(Debug, Default)]
pub(super) struct AccountMeter {
    basis: Option<Arc<AccountTerms>>,
    pub(super) budgets: BudgetList,
    /// Absent where the plan counts no credits, and for test keys.
    pub(super) credits: Option<(Credits, Budget)>,
    /// Credits of another reset day, or that are not counted now, from before a change of the terms.
    credits_kept: Vec<(Credits, Budget)>,
}

impl AccountMeter {
    /// Brings the budgets up to date with the account's terms, and to the slot of `now`.
    pub(super) fn advance(&mut self, terms: &Arc<AccountTerms>, environment: Environment, now: Time) {
        if !self.basis.as_ref().is_some_and(|basis| Arc::ptr_eq(basis, terms)) {
            self.budgets.set_limits(&terms.account_limits, &terms.time_zone, now);
            self.set_credits(terms.credits.filter(|_| environment == Environment::Live), terms, now);
            self.basis = Some(Arc::clone(terms));
        }
        for budget in self.budgets.budgets_mut() {
            budget.advance(&terms.time_zone, now);
        }
        if let Some((_, budget)) = &mut self.credits {
            budget.advance(&terms.time_zone, now);
        }
    }

    fn set_credits(&mut self, credits: Option<Credits>, terms: &AccountTerms, now: Time) {
        // At most one of each day of the month.
        self.credits_kept.extend(self.credits.take());
        self.credits_kept.retain(|(_, budget)| !budget.is_over(now));
        self.credits = credits.map(|credits| {
            let rule = Rule::of_credits(credits.allowance, credits.reset_day);
            let place = self.credits_kept.iter().position(|(old, _)| old.reset_day == credits.reset_day);
            let kept = place.map(|place| self.credits_kept.remove(place).1);
            let mut budget = kept.unwrap_or_else(|| Budget::new(rule, &terms.time_zone, now));
            budget.set_rule(rule);
            (credits, budget)
        });
    }
}

/// One limit, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitStatus {
    /// The limit.
    pub limit: Limit,
    /// Whose budget it is.
    pub level: Level,
    /// Cost units left.
    pub remaining: u64,
    /// When the whole capacity is back.
    pub reset_time: Time,
    /// Whether it is why the check was refused.
    pub exceeded: bool,
}

/// The limit that is nearest to its end: one that is why a check was refused, or else the one with the least share left.
#[must_use]
pub fn nearest_limit(limits: &[LimitStatus]) -> Option<&LimitStatus> {
    // a.remaining / a.capacity < b.remaining / b.capacity, without fractions.
    let share = |a: &LimitStatus, b: &LimitStatus| {
        let product = |x: u64, y: u64| u128::from(x) * u128::from(y);
        product(a.remaining, b.limit.capacity).cmp(&product(b.remaining, a.limit.capacity))
    };
    limits.iter().min_by(|a, b| b.exceeded.cmp(&a.exceeded).then_with(|| share(a, b)))
}

/// Whose budget a limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The key's own.
    Key,
    /// The account's.
    Account,
}

/// An account's credits, and what is left of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditStatus {
    /// Cost units a month.
    pub allowance: u64,
    /// Cost units left.
    pub remaining: u64,
    /// When the next month's begin.
    pub reset_time: Time,
    /// Whether they are why the check was refused.
    pub exceeded: bool,
}

/// What the budgets say to a cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// `ALLOWED`, `RATE_LIMITED` or `CREDITS_EXHAUSTED`; the caller may make it `THROTTLED`.
    pub verdict: Verdict,
    /// Every limit that applies, of the key and then of the account.
    pub limits: Vec<LimitStatus>,
    /// The account's credits, where they are counted.
    pub credits: Option<CreditStatus>,
    /// How long until the same cost can be spent, in milliseconds. Absent where it can now, or never will.
    pub retry_after_millis: Option<i64>,
}

/// Holds a cost against all budgets of a key and its account, and, where `spend` is set, takes it from all of them or,
/// if one lacks it, from none. Both meters have been advanced to `now`.
pub(super) fn charge(
    key: &mut KeyMeter,
    mut account: Option<&mut AccountMeter>,
    cost: u64,
    spend: bool,
    now: Time,
) -> Charge {
    let covered = key.covers(cost) && account.as_deref().is_none_or(|account| account.covers(cost));
    if covered && spend {
        // The test above has made sure of it: this process alone holds the ledgers.
        let leased = key.lease(cost) && account.as_deref_mut().is_none_or(|account| account.lease(cost));
        debug_assert!(leased, "a budget that covers a cost leases it");
        key.spend(cost);
        if let Some(account) = account.as_deref_mut() {
            account.spend(cost);
        }
    }
    report(Some((key, cost)), account.as_deref().map(|account| (account, cost)), covered, now)
}

/// What the budgets of a key and of an account say to what is held against each of them. `covered` is set where all of
/// them cover it, which may have been spent since.
pub(super) fn report(
    key: Option<(&KeyMeter, u64)>,
    account: Option<(&AccountMeter, u64)>,
    covered: bool,
    now: Time,
) -> Charge {
    let lacks = |budget: &Budget, cost: u64| !covered && !budget.covers(cost);
    let status = |level: Level, cost: u64, (limit, budget): (&Limit, &Budget)| {
        let BudgetView { remaining, reset_time } = budget.view(now);
        LimitStatus { limit: limit.clone(), level, remaining, reset_time, exceeded: lacks(budget, cost) }
    };
    let of_key = key.into_iter().flat_map(|(key, cost)| key.budgets.iter().map(move |item| (Level::Key, cost, item)));
    let of_account = account
        .into_iter()
        .flat_map(|(account, cost)| account.budgets.iter().map(move |item| (Level::Account, cost, item)));
    let limits: Vec<LimitStatus> =
        of_key.chain(of_account).map(|(level, cost, item)| status(level, cost, item)).collect();
    let credits = account.and_then(|(account, cost)| {
        let (credits, budget) = account.credits.as_ref()?;
        let BudgetView { remaining, reset_time } = budget.view(now);
        Some(CreditStatus { allowance: credits.allowance, remaining, reset_time, exceeded: lacks(budget, cost) })
    });
    let verdict = if limits.iter().any(|limit| limit.exceeded) {
        Verdict::RateLimited
    } else if credits.is_some_and(|credits| credits.exceeded) {
        Verdict::CreditsExhausted
    } else {
        Verdict::Allowed
    };
    let retry_after_millis = if verdict == Verdict::Allowed { None } else { retry_after(key, account, now) };
    Charge { verdict, limits, credits, retry_after_millis }
}

/// Milliseconds until the last of the budgets that lack the cost has it; absent where one never will.
fn retry_after(key: Option<(&KeyMeter, u64)>, account: Option<(&AccountMeter, u64)>, now: Time) -> Option<i64> {
    let of_key = key.into_iter().flat_map(|(key, cost)| key.all().map(move |budget| (budget, cost)));
    let of_account = account.into_iter().flat_map(|(account, cost)| account.all().map(move |budget| (budget, cost)));
    let mut latest = now;
    for (budget, cost) in of_key.chain(of_account) {
        latest = latest.max(budget.available_at(cost, now)?);
    }
    Some(latest.millis_since(now))
}

/// Budgets that are charged together.
pub(super) trait Budgets {
    /// All of them.
    fn all(&self) -> impl Iterator<Item = &Budget>;

    /// All of them.
    fn all_mut(&mut self) -> impl Iterator<Item = &mut Budget>;

    /// Whether each could spend so many units now.
    fn covers(&self, units: u64) -> bool {
        self.all().all(|budget| budget.covers(units))
    }

    /// Makes the lease of each hold so many units. False where one does not grant them.
    fn lease(&mut self, units: u64) -> bool {
        self.all_mut().all(|budget| budget.lease(units))
    }

    /// Spends what all have leased.
    fn spend(&mut self, units: u64) {
        for budget in self.all_mut() {
            budget.spend(units);
        }
    }
}

impl Budgets for KeyMeter {
    fn all(&self) -> impl Iterator<Item = &Budget> {
        self.budgets.iter().map(|(_, budget)| budget)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        self.budgets.budgets_mut()
    }
}

impl Budgets for AccountMeter {
    fn all(&self) -> impl Iterator<Item = &Budget> {
        let credits = self.credits.iter().map(|(_, budget)| budget);
        self.budgets.iter().map(|(_, budget)| budget).chain(credits)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        let credits = self.credits.iter_mut().map(|(_, budget)| budget);
        self.budgets.budgets_mut().chain(credits)
    }
}

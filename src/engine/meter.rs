//! What a key, or an account, has used and may still use. Each meter is behind one lock of its own; a check takes the
//! key's and then, where the account has budgets, the account's, in that order and never the other way round. What charges
//! several together (`joint`) takes those of all keys and then those of all accounts, each in one order.

use std::net::IpAddr;
use std::sync::Arc;

use crate::ambient::Clock;
use crate::decision::{AccountTerms, Credits};
use crate::domain::{BudgetId, Environment, KeyId, Limit, Policy, Subject, Time, Verdict};

use super::all_or_none::{Budgets as _, Covers};
use super::ask::{Ask, Cells, Urgency};
use super::budget::{Budget, BudgetView};
use super::budget_list::{BudgetList, Round, keep_counters};
use super::purse::{Fund, Purse, PurseView};
use crate::journal::{Journal, SpendCell, UsageCell};
use crate::store::{LeaseAsk, Leased};

/// What a key has used. Made when it is first checked, because most keys of a large store are asleep.
#[derive(Debug)]
pub(super) struct KeyMeter {
    basis: Option<(Arc<Policy>, Arc<AccountTerms>)>,
    pub(super) budgets: BudgetList,
    usage: Vec<Count>,
    last_use: Option<(Time, Option<IpAddr>)>,
    /// Whether it stands in the queue for the next flush.
    queued: bool,
    /// The second of the last check that was allowed, and how many there were in it.
    pace: (i64, u32),
    /// Whether it is listed among those with something leased.
    pub(super) listed: bool,
    /// How often leases were forgotten: what was reserved before that is not put back.
    pub(super) era: u32,
}

/// Checks of one hour that ended in one verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) hour: i64,
    pub(super) verdict: Verdict,
    pub(super) requests: u64,
    pub(super) credits: u64,
    /// Where the same stands for the case that this process is killed.
    pub(super) cell: Option<UsageCell>,
}

impl Count {
    fn add(&mut self, requests: u64, credits: u64) {
        self.requests = self.requests.saturating_add(requests);
        self.credits = self.credits.saturating_add(credits);
        if let Some(cell) = self.cell {
            cell.count(self.requests, self.credits);
        }
    }
}

/// A check that is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) verdict: Verdict,
    /// Credits that it was charged, in cost units.
    pub(super) credits: u64,
    pub(super) client_ip: Option<IpAddr>,
}

/// What a flush takes out of a meter.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) usage: Vec<Count>,
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
            listed: false,
            era: 0,
        }
    }

    /// Forgets all that was leased and reserved.
    pub(super) fn forget(&mut self) {
        self.budgets.forget();
        self.listed = false;
        self.era = self.era.wrapping_add(1);
    }

    /// What the store is to be asked and told.
    pub(super) fn asks(&mut self, id: KeyId, round: Round<'_>) -> Vec<Asked> {
        let Some((_, terms)) = self.basis.clone() else { return Vec::new() };
        limit_asks(self.budgets.asks(round), &Subject::Key(id), &terms)
    }

    /// Takes what the store has granted.
    pub(super) fn grant(&mut self, of: &AskedFor, leased: Leased, cells: Cells) {
        if let AskedFor::Limit(limit) = of {
            self.budgets.grant(limit, leased, cells);
        }
    }

    /// The budget of which the store was asked, unless it is there no more.
    pub(super) fn budget_mut(&mut self, of: &AskedFor) -> Option<&mut Budget> {
        match of {
            AskedFor::Limit(limit) => self.budgets.find_mut(limit),
            AskedFor::Credits(_) => None,
        }
    }

    /// Every budget, under its name in the store.
    pub(super) fn named_mut(&mut self, id: KeyId) -> Vec<(BudgetId, &mut Budget)> {
        let subject = Subject::Key(id);
        self.budgets.iter_mut().map(|(limit, budget)| (BudgetId::of_limit(&subject, limit), budget)).collect()
    }

    /// Brings the budgets up to date with the key's and the account's terms, and to the slot of `now`.
    pub(super) fn advance(&mut self, policy: &Arc<Policy>, terms: &Arc<AccountTerms>, now: Time) {
        let same = self.basis.as_ref().is_some_and(|(p, t)| Arc::ptr_eq(p, policy) && Arc::ptr_eq(t, terms));
        if !same {
            self.budgets.set_limits(&terms.limits_of(policy));
            self.basis = Some((Arc::clone(policy), Arc::clone(terms)));
        }
        for budget in self.budgets.budgets_mut() {
            budget.advance(&terms.time_zone, now);
        }
    }

    /// Counts a check of the key `id`. True if the meter must be put into the queue for the next flush.
    pub(super) fn count(&mut self, id: KeyId, counted: Counted, journal: &Journal, now: Time) -> bool {
        let Counted { verdict, credits, client_ip } = counted;
        let hour = now.hour();
        if let Some(count) = self.usage.iter_mut().find(|count| count.verdict == verdict && count.hour == hour) {
            count.add(1, credits);
        } else {
            let cell = journal.usage_cell(id, hour, verdict);
            let mut count = Count { hour, verdict, requests: 0, credits: 0, cell };
            count.add(1, credits);
            self.usage.push(count);
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

    /// Counts a check of this second that is allowed.
    pub(super) fn keep_pace(&mut self, now: Time) {
        let second = now.seconds();
        self.pace = (second, if self.pace.0 == second { self.pace.1.saturating_add(1) } else { 1 });
    }
}

/// What the keys of one environment of an account have used together.
#[derive(Debug, Default)]
pub(super) struct AccountMeter {
    pub(super) basis: Option<Arc<AccountTerms>>,
    pub(super) budgets: BudgetList,
    /// Absent where the plan counts no credits, and for test keys.
    pub(super) credits: Option<Purse>,
    /// Of credits of another reset day, or that are not counted any more: what is still to be told to the store.
    pub(super) credits_ended: Vec<(Fund, Ask)>,
    /// Whether it is listed among those with something leased.
    pub(super) listed: bool,
    /// How often leases were forgotten: what was reserved before that is not put back.
    pub(super) era: u32,
}

impl AccountMeter {
    /// Forgets all that was leased and reserved.
    pub(super) fn forget(&mut self) {
        self.budgets.forget();
        self.credits.iter_mut().flat_map(Purse::budgets_mut).for_each(Budget::forget);
        self.credits_ended.clear();
        self.listed = false;
        self.era = self.era.wrapping_add(1);
    }

    /// Brings the budgets up to date with the account's terms, and to the slot of `now`.
    pub(super) fn advance(&mut self, terms: &Arc<AccountTerms>, environment: Environment, now: Time) {
        if !self.basis.as_ref().is_some_and(|basis| Arc::ptr_eq(basis, terms)) {
            self.budgets.set_limits(&terms.account_limits);
            self.set_credits(terms.credits.filter(|_| environment == Environment::Live));
            self.basis = Some(Arc::clone(terms));
        }
        for budget in self.budgets.budgets_mut() {
            budget.advance(&terms.time_zone, now);
        }
        if let Some(purse) = &mut self.credits {
            purse.advance(&terms.time_zone, now);
        }
    }

    fn set_credits(&mut self, credits: Option<Credits>) {
        self.credits = Purse::next(self.credits.take(), credits, &mut self.credits_ended);
    }

    /// What the store is to be asked and told.
    pub(super) fn asks(&mut self, environment: Environment, round: Round<'_>) -> Vec<Asked> {
        let Some(terms) = self.basis.clone() else { return Vec::new() };
        let subject = Subject::Account(terms.account_id.clone(), environment);
        let mut asks = limit_asks(self.budgets.asks(round), &subject, &terms);
        let mut of_credits = std::mem::take(&mut self.credits_ended);
        of_credits.extend(self.credits.iter_mut().flat_map(|purse| purse.asks(round)));
        asks.extend(
            of_credits
                .into_iter()
                .map(|(fund, ask)| Asked::new(AskedFor::Credits(fund), fund.budget_id(&terms.account_id), ask, &terms)),
        );
        asks
    }

    /// Takes what the store has granted.
    pub(super) fn grant(&mut self, of: &AskedFor, leased: Leased, cells: Cells) {
        match of {
            AskedFor::Limit(limit) => self.budgets.grant(limit, leased, cells),
            AskedFor::Credits(fund) => {
                keep_counters(&mut self.credits_ended, cells);
                match self.credits.as_mut().and_then(|purse| purse.fund_mut(*fund)) {
                    Some(budget) => budget.grant(leased, cells),
                    None => self.credits_ended.extend(fund.return_grant(&leased, cells).map(|ask| (*fund, ask))),
                }
            }
        }
    }

    /// The budget of which the store was asked, unless it is there no more.
    pub(super) fn budget_mut(&mut self, of: &AskedFor) -> Option<&mut Budget> {
        match of {
            AskedFor::Limit(limit) => self.budgets.find_mut(limit),
            AskedFor::Credits(fund) => self.credits.as_mut()?.fund_mut(*fund),
        }
    }

    /// Every budget, under its name in the store. None before it was first used.
    pub(super) fn named_mut(&mut self, environment: Environment) -> Vec<(BudgetId, &mut Budget)> {
        let Some(terms) = self.basis.clone() else { return Vec::new() };
        let subject = Subject::Account(terms.account_id.clone(), environment);
        let limits = self.budgets.iter_mut().map(|(limit, budget)| (BudgetId::of_limit(&subject, limit), budget));
        let funds = self.credits.iter_mut().flat_map(Purse::funds_mut);
        limits.chain(funds.map(|(fund, budget)| (fund.budget_id(&terms.account_id), budget))).collect()
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        let credits = self.credits.as_ref().is_some_and(Purse::is_open);
        self.budgets.is_open() || credits || !self.credits_ended.is_empty()
    }
}

/// Of what the store was asked.
#[derive(Clone, Debug)]
pub(super) enum AskedFor {
    Limit(Limit),
    Credits(Fund),
}

/// One ask, and what is to be done with the answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) of: AskedFor,
    pub(super) ask: LeaseAsk,
    /// What is granted is counted in these.
    pub(super) cells: Cells,
    /// The store then knows no lease of these any more.
    pub(super) freed: Vec<SpendCell>,
}

impl Asked {
    fn new(of: AskedFor, budget: BudgetId, ask: Ask, terms: &AccountTerms) -> Self {
        let Ask { rule, settled, reached, wanted, needed, ahead, cells, freed } = ask;
        let (account, zone) = (terms.account_id.clone(), terms.time_zone.clone());
        let (cell, ahead_cell) = cells.told();
        let recalled = false;
        let ask = LeaseAsk {
            budget,
            account,
            rule,
            zone,
            settled,
            reached,
            wanted,
            needed,
            recalled,
            cell,
            ahead,
            ahead_cell,
        };
        Self { of, ask, cells, freed }
    }
}

fn limit_asks(asks: Vec<(Limit, Ask)>, subject: &Subject, terms: &AccountTerms) -> Vec<Asked> {
    let asked = |(limit, ask)| {
        let budget = BudgetId::of_limit(subject, &limit);
        Asked::new(AskedFor::Limit(limit), budget, ask, terms)
    };
    asks.into_iter().map(asked).collect()
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
    /// Cost units left, of the allowance and of what was topped up.
    pub remaining: u64,
    /// Those of them that were topped up, and that no month ends.
    pub topped_up_remaining: u64,
    /// When the next month's begin.
    pub reset_time: Time,
    /// Whether they are why the check was refused.
    pub exceeded: bool,
}

impl CreditStatus {
    /// Cost units that there are this month, spent ones of the allowance included.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.allowance.saturating_add(self.topped_up_remaining)
    }

    pub(super) fn of(purse: &Purse, exceeded: bool, now: Time) -> Self {
        let PurseView { remaining, topped_up_remaining, reset_time } = purse.view(now);
        Self { allowance: purse.terms().allowance, remaining, topped_up_remaining, reset_time, exceeded }
    }
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

impl Charge {
    /// Where it does not come to the budgets.
    pub(super) const fn denied(verdict: Verdict) -> Self {
        Self { verdict, limits: Vec::new(), credits: None, retry_after_millis: None }
    }
}

/// Who has to ask the store, and how soon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) key: Option<Urgency>,
    pub(super) account: Option<Urgency>,
}

impl Wants {
    /// Whose leases should be filled up.
    pub(super) fn refill(key: bool, account: bool) -> Self {
        Self { key: key.then_some(Urgency::Later), account: account.then_some(Urgency::Later) }
    }

    /// Who asks how they stand.
    pub(super) fn to_know(key: bool, account: bool) -> Self {
        Self { key: key.then_some(Urgency::Now), account: account.then_some(Urgency::Now) }
    }

    /// How soon, if anybody has to ask.
    pub(super) fn urgency(self) -> Option<Urgency> {
        self.key.max(self.account)
    }
}

/// What came of holding a cost against budgets.
#[derive(Debug)]
pub(super) enum Charged<T> {
    /// The answer; `Wants` says whose leases should be filled up, which nobody waits for.
    Done(T, Wants),
    /// The store has to be asked first.
    Wait(Wants),
}

/// How a cost is taken from the budgets of a key and its account, which have it leased. Tells whose leases should be filled up.
pub(super) trait Take: FnOnce(&mut KeyMeter, Option<&mut AccountMeter>) -> Wants {}

impl<F: FnOnce(&mut KeyMeter, Option<&mut AccountMeter>) -> Wants> Take for F {}

/// By spending it.
pub(super) fn spend(cost: u64, now: Time) -> impl Take {
    move |key, account| Wants::refill(key.spend(cost, now), account.is_some_and(|account| account.spend(cost, now)))
}

/// Holds a cost against all budgets of a key and its account, and, where `take` is given, has it take the cost from all of
/// them or, if one lacks it, from none. Both meters have been advanced to `now`. Where other processes share the store, `clock`
/// tells how old its word is.
pub(super) fn charge(
    key: &mut KeyMeter,
    mut account: Option<&mut AccountMeter>,
    cost: u64,
    take: Option<impl Take>,
    now: Time,
    clock: Option<&Clock>,
) -> Charged<Charge> {
    let spend = take.is_some();
    let covers = |key: &KeyMeter, account: Option<&AccountMeter>| {
        key.cover(cost).and(account.map_or(Covers::NONE, |account| account.cover(cost)))
    };
    let mut cover = covers(key, account.as_deref());
    if let Some(clock) = clock.filter(|_| spend && cover.short) {
        let at = clock.monotonic();
        key.doubt(at);
        if let Some(account) = &mut account {
            account.doubt(at);
        }
        cover = covers(key, account.as_deref());
    }
    if cover.asks(spend) {
        let wanted = if spend && !cover.short { cost } else { 0 };
        let of_account = account.as_deref_mut().and_then(|account| account.want(cost, wanted));
        return Charged::Wait(Wants { key: key.want(cost, wanted), account: of_account });
    }
    let take = take.filter(|_| !cover.lacks());
    let wants = take.map_or_else(Wants::default, |take| take(key, account.as_deref_mut()));
    let charge = report(Some((key, cost)), account.as_deref().map(|account| (account, cost)), !cover.lacks(), now);
    Charged::Done(charge, wants)
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
        let purse = account.credits.as_ref()?;
        Some(CreditStatus::of(purse, !covered && !purse.covers(cost), now))
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
    let of_key = key.map_or(Some(now), |(key, cost)| key.available_at(cost, now));
    let of_account = account.map_or(Some(now), |(account, cost)| account.available_at(cost, now));
    Some(of_key?.max(of_account?).millis_since(now))
}

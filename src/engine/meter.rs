//! What a key, or an account, has used and may still use. Each meter is behind one lock of its own; a check takes the
//! key's and then, where the account has budgets, the account's, in that order and never the other way round. What charges
//! several together (`joint`) takes those of all keys and then those of all accounts, each in one order.

use std::net::IpAddr;
use std::sync::Arc;

use crate::decision::quota::Rule;
use crate::decision::{AccountTerms, Credits};
use crate::domain::{BudgetId, Environment, KeyId, Limit, Policy, Subject, Time, Verdict};

use super::budget::{Ask, Asking, Budget, BudgetList, BudgetView, Cover};
use crate::store::{LeaseAsk, Leased};

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
    /// Whether it is listed among those with something leased.
    pub(super) listed: bool,
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
            listed: false,
        }
    }

    /// What the store is to be asked and told.
    pub(super) fn asks(&mut self, id: KeyId, now: Time, mode: Asking) -> Vec<(AskedFor, LeaseAsk)> {
        let Some((_, terms)) = self.basis.clone() else { return Vec::new() };
        limit_asks(self.budgets.asks(now, mode), &Subject::Key(id), &terms)
    }

    /// Takes what the store has granted.
    pub(super) fn grant(&mut self, of: &AskedFor, leased: Leased) {
        if let AskedFor::Limit(limit) = of {
            self.budgets.grant(limit, leased);
        }
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
    /// Of credits of another reset day, or that are not counted any more: what is still to be told to the store.
    credits_ended: Vec<(Credits, Ask)>,
    /// Whether it is listed among those with something leased.
    pub(super) listed: bool,
}

impl AccountMeter {
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
        if let Some((_, budget)) = &mut self.credits {
            budget.advance(&terms.time_zone, now);
        }
    }

    fn set_credits(&mut self, credits: Option<Credits>) {
        let old = self.credits.take();
        let same = |old: &Credits| credits.is_some_and(|new| new.reset_day == old.reset_day);
        let (kept, ended) = match old {
            Some((old, budget)) if same(&old) => (Some(budget), None),
            Some((old, mut budget)) => (None, budget.end().map(|ask| (old, ask))),
            None => (None, None),
        };
        self.credits_ended.extend(ended);
        self.credits = credits.map(|credits| {
            let rule = Rule::of_credits(credits.allowance, credits.reset_day);
            let mut budget = kept.unwrap_or_else(|| Budget::new(rule));
            budget.set_rule(rule);
            (credits, budget)
        });
    }

    /// What the store is to be asked and told.
    pub(super) fn asks(&mut self, environment: Environment, now: Time, mode: Asking) -> Vec<(AskedFor, LeaseAsk)> {
        let Some(terms) = self.basis.clone() else { return Vec::new() };
        let subject = Subject::Account(terms.account_id.clone(), environment);
        let mut asks = limit_asks(self.budgets.asks(now, mode), &subject, &terms);
        let of_credits = |credits: Credits, ask: Ask| {
            let budget = BudgetId::of_credits(&terms.account_id, credits.reset_day);
            (AskedFor::Credits(credits.reset_day), lease_ask(budget, ask, &terms))
        };
        asks.extend(std::mem::take(&mut self.credits_ended).into_iter().map(|(credits, ask)| of_credits(credits, ask)));
        if let Some((credits, budget)) = &mut self.credits {
            asks.extend(mode.of(budget, now).map(|ask| of_credits(*credits, ask)));
        }
        asks
    }

    /// Takes what the store has granted.
    pub(super) fn grant(&mut self, of: &AskedFor, leased: Leased) {
        match of {
            AskedFor::Limit(limit) => self.budgets.grant(limit, leased),
            AskedFor::Credits(reset_day) => match &mut self.credits {
                Some((credits, budget)) if credits.reset_day == *reset_day => budget.grant(leased),
                // They begin anew on another day since it was asked for, or are not counted any more.
                Some(_) | None => {
                    let gone = Credits { allowance: 0, reset_day: *reset_day };
                    let ask = Ask::giving_back(Rule::of_credits(gone.allowance, gone.reset_day), &leased);
                    self.credits_ended.extend(ask.map(|ask| (gone, ask)));
                }
            },
        }
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        let credits = self.credits.as_ref().is_some_and(|(_, budget)| budget.is_open());
        self.budgets.is_open() || credits || !self.credits_ended.is_empty()
    }
}

/// Of what the store was asked.
#[derive(Clone, Debug)]
pub(super) enum AskedFor {
    Limit(Limit),
    /// That begin anew on this day.
    Credits(u8),
}

fn limit_asks(asks: Vec<(Limit, Ask)>, subject: &Subject, terms: &AccountTerms) -> Vec<(AskedFor, LeaseAsk)> {
    let ask = |(limit, ask)| {
        let budget = BudgetId::of_limit(subject, &limit);
        (AskedFor::Limit(limit), lease_ask(budget, ask, terms))
    };
    asks.into_iter().map(ask).collect()
}

fn lease_ask(budget: BudgetId, ask: Ask, terms: &AccountTerms) -> LeaseAsk {
    let Ask { rule, settled, wanted } = ask;
    LeaseAsk { budget, rule, zone: terms.time_zone.clone(), settled, wanted }
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

/// Whether budgets hold what is asked of them, and who has to ask the store before that can be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) key: bool,
    pub(super) account: bool,
}

impl Wants {
    pub(super) const fn any(self) -> bool {
        self.key || self.account
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

/// Holds a cost against all budgets of a key and its account, and, where `spend` is set, takes it from all of them or,
/// if one lacks it, from none. Both meters have been advanced to `now`.
pub(super) fn charge(
    key: &mut KeyMeter,
    mut account: Option<&mut AccountMeter>,
    cost: u64,
    spend: bool,
    now: Time,
) -> Charged<Charge> {
    let cover = key.cover(cost).and(account.as_deref().map_or(Covers::NONE, |account| account.cover(cost)));
    let asks = cover.unasked || (spend && !cover.short && cover.unknown);
    if asks {
        let wanted = if spend && !cover.short { cost } else { 0 };
        let of_account = account.as_deref_mut().is_some_and(|account| account.want(cost, wanted));
        return Charged::Wait(Wants { key: key.want(cost, wanted), account: of_account });
    }
    let mut wants = Wants::default();
    if spend && !cover.short {
        wants.key = key.spend(cost, now);
        wants.account = account.as_deref_mut().is_some_and(|account| account.spend(cost, now));
    }
    let charge = report(Some((key, cost)), account.as_deref().map(|account| (account, cost)), !cover.short, now);
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

    /// What they say to a cost, all together.
    fn cover(&self, units: u64) -> Covers {
        let mut all = Covers::NONE;
        for budget in self.all() {
            match budget.cover(units) {
                Cover::Leased => {}
                Cover::Unknown if budget.is_asked() => all.unknown = true,
                Cover::Unknown => all.unasked = true,
                Cover::Short => all.short = true,
            }
        }
        all
    }

    /// Has those that don't know, or whose lease is too small for `cost`, want `wanted` units. True if there are such.
    fn want(&mut self, cost: u64, wanted: u64) -> bool {
        let mut any = false;
        for budget in self.all_mut() {
            if budget.cover(cost) == Cover::Unknown && (wanted > 0 || !budget.is_asked()) {
                budget.want(wanted);
                any = true;
            }
        }
        any
    }

    /// Spends what all have leased. True if a lease should be filled up.
    fn spend(&mut self, units: u64, now: Time) -> bool {
        let mut low = false;
        for budget in self.all_mut() {
            if budget.spend(units, now) {
                budget.want(0);
                low = true;
            }
        }
        low
    }
}

/// What budgets say to a cost, all together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Covers {
    /// One has not so much in this slot.
    pub(super) short: bool,
    /// One has it, and has to lease it.
    pub(super) unknown: bool,
    /// One has never been asked for.
    pub(super) unasked: bool,
}

impl Covers {
    /// No budget at all.
    pub(super) const NONE: Self = Self { short: false, unknown: false, unasked: false };

    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            short: self.short || other.short,
            unknown: self.unknown || other.unknown,
            unasked: self.unasked || other.unasked,
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

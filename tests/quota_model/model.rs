//! What limits and credits mean, as their documentation has it, in plain numbers. Nothing here is the server's code.
//!
//! While the clock only goes forward there is one slot in which a check may be charged, that of now. Where the clock went back,
//! a budget may stay in any slot up to the latest that it has seen; the answer tells which, and must then be right for it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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
fn nearest(lists: &[&[Limit]]) -> Vec<Limit> {
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
pub(crate) type BudgetKey = (Owner, &'static str, i64, bool);

/// The name of credits.
pub(crate) const CREDITS: &str = "credits";

pub(crate) fn budget_key(owner: Owner, limit: &Limit) -> BudgetKey {
    match limit.window {
        Window::Fixed(length) => (owner, limit.name, length, false),
        Window::MonthFrom(day) => (owner, limit.name, i64::from(day), false),
        Window::Sliding(period) => (owner, limit.name, period, true),
    }
}

/// What has become of a slot's units.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    spent: u64,
    /// Granted, not spent, and never to be had again.
    sunk: u64,
    /// The same, but the process may not have learnt it yet.
    torn: u64,
}

/// What an answer says of one budget, in the order of [`Model::budgets_of`].
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) limit: Limit,
    pub(crate) owner: Owner,
    pub(crate) remaining: u64,
    pub(crate) reset: i64,
    pub(crate) exceeded: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    RateLimited,
    CreditsExhausted,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) plans: Vec<Terms>,
    pub(crate) plan: usize,
    pub(crate) account: Terms,
    pub(crate) reset_day: i8,
    /// The keys' own limits, and whether they are live.
    pub(crate) keys: Vec<(Vec<Limit>, bool)>,
    pub(crate) now: i64,
    /// The latest time that the clock has shown.
    latest: i64,
    budgets: BTreeMap<BudgetKey, BTreeMap<i64, Slot>>,
}

impl Model {
    pub(crate) fn new(plans: Vec<Terms>, keys: Vec<(Vec<Limit>, bool)>, now: i64) -> Self {
        let (account, budgets) = (Terms::default(), BTreeMap::new());
        Self { plans, plan: 0, account, reset_day: 1, keys, now, latest: now, budgets }
    }

    pub(crate) fn set_clock(&mut self, now: i64) {
        self.now = now;
        self.latest = self.latest.max(now);
    }

    /// The budgets that a check of a key is held against.
    pub(crate) fn budgets_of(&self, key: usize) -> Vec<(Owner, Limit)> {
        let (plan, (own, live)) = (&self.plans[self.plan], &self.keys[key]);
        let pool = if *live { Owner::Live } else { Owner::Test };
        let of_key = nearest(&[&plan.key_limits, &self.account.key_limits, own]);
        let of_account = nearest(&[&plan.account_limits, &self.account.account_limits]);
        let said = if matches!(self.account.credits, Credits::Unsaid) { plan.credits } else { self.account.credits };
        let window = Window::MonthFrom(self.reset_day);
        let credits = said.counted().filter(|_| *live).map(|capacity| Limit { name: CREDITS, capacity, window });
        let of_account = of_account.into_iter().chain(credits).map(|limit| (pool, limit));
        of_key.into_iter().map(|limit| (Owner::Key(key), limit)).chain(of_account).collect()
    }

    /// Holds an answer against what it must be, and notes what it spent. Says what is wrong.
    pub(crate) fn judge(
        &mut self,
        key: usize,
        cost: u64,
        spend: bool,
        answer: (Outcome, &[Told]),
    ) -> Result<(), String> {
        let (outcome, told) = answer;
        let of_told: Vec<(Owner, Limit)> = told.iter().map(|told| (told.owner, told.limit.clone())).collect();
        ensure(of_told == self.budgets_of(key), || format!("not the budgets of the key: {told:?}"))?;
        let allowed = outcome == Outcome::Allowed;
        let charged = if allowed && spend { cost } else { 0 };
        let mut expected = Outcome::Allowed;
        let mut slots = Vec::new();
        for told in told {
            let before = told.remaining + charged;
            slots.push(self.slot_of(told, before, charged > 0)?);
            let short = before < cost;
            ensure(told.exceeded == (short && !allowed), || format!("`exceeded` of {told:?}"))?;
            expected = match (short, told.limit.name == CREDITS) {
                (true, false) => Outcome::RateLimited,
                (true, true) if expected == Outcome::Allowed => Outcome::CreditsExhausted,
                _ => expected,
            };
        }
        ensure(outcome == expected, || format!("{outcome:?} instead of {expected:?} for {cost}: {told:?}"))?;
        for (told, slot) in told.iter().zip(slots).filter(|_| charged > 0) {
            let slots = self.budgets.entry(budget_key(told.owner, &told.limit)).or_default();
            slots.entry(slot).or_default().spent += charged;
        }
        Ok(())
    }

    /// The slot that an answer is of, in which so much must have been left.
    fn slot_of(&self, told: &Told, before: u64, charged: bool) -> Result<i64, String> {
        let window = told.limit.window;
        let none = BTreeMap::new();
        let slots = self.budgets.get(&budget_key(told.owner, &told.limit)).unwrap_or(&none);
        let reached = slots.iter().rev().find(|(_, slot)| slot.spent + slot.sunk > 0).map(|(number, _)| *number);
        let lawful = reached.unwrap_or(i64::MIN).max(window.slot(self.now))..=window.slot(self.latest);
        let charged_or_fixed = charged || !matches!(window, Window::Sliding(_));
        let candidates: Vec<i64> = if charged_or_fixed {
            vec![window.slot_that_resets_at(told.reset)]
        } else {
            // What is left changes where a slot that was granted in begins, and where it leaves the window.
            let changes = slots.keys().flat_map(|slot| [*slot, window.leaves_at(*slot)]);
            changes.chain([*lawful.start()]).collect()
        };
        let right = |slot: &&i64| {
            let told_so = !charged_or_fixed || window.reset(**slot) == told.reset;
            lawful.contains(slot) && told_so && left(slots, &told.limit, **slot).contains(&before)
        };
        candidates.iter().find(right).copied().ok_or_else(|| {
            let lefts: Vec<_> = candidates.iter().map(|slot| (slot, left(slots, &told.limit, *slot))).collect();
            format!("{told:?} at {}: {before} left before, lawful slots {lawful:?}, by slot {lefts:?}", self.now)
        })
    }

    /// Units of a slot are lost, and the process may not know.
    pub(crate) fn tear(&mut self, key: BudgetKey, slot: i64, units: u64) {
        self.budgets.entry(key).or_default().entry(slot).or_default().torn += units;
    }

    /// Another process begins with what the store says was granted and not given back: what of it was not spent is lost.
    /// Returns how much more than before, and how much of it was known to be torn.
    pub(crate) fn sink(&mut self, granted: &BTreeMap<(BudgetKey, i64), u64>) -> Result<(u64, u64), String> {
        let (mut sunk, mut torn) = (0, 0);
        for (key, slots) in &mut self.budgets {
            for (number, slot) in slots {
                let granted = granted.get(&(*key, *number)).copied().unwrap_or(0);
                let lost = granted.checked_sub(slot.spent);
                let lost = lost.ok_or_else(|| format!("{key:?}, slot {number}: {granted} granted, {slot:?}"))?;
                let more = lost.checked_sub(slot.sunk);
                sunk +=
                    more.ok_or_else(|| format!("{key:?}, slot {number}: {granted} granted, lost units came back"))?;
                torn += slot.torn;
                (slot.sunk, slot.torn) = (lost, 0);
            }
        }
        for ((key, number), units) in granted {
            let slot = self.budgets.entry(*key).or_default().entry(*number).or_default();
            if slot.spent == 0 && slot.sunk == 0 {
                slot.sunk = *units;
                sunk += units;
            }
        }
        Ok((sunk, torn))
    }
}

/// What may be left of a limit in a slot: from what the store knows to what the process knows.
fn left(slots: &BTreeMap<i64, Slot>, limit: &Limit, slot: i64) -> RangeInclusive<u64> {
    let counted = || slots.range(limit.window.counted(slot)).map(|(_, slot)| slot);
    let gone: u64 = counted().map(|slot| slot.spent + slot.sunk).sum();
    let torn: u64 = counted().map(|slot| slot.torn).sum();
    limit.capacity.saturating_sub(gone + torn)..=limit.capacity.saturating_sub(gone)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

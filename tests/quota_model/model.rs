//! What limits and credits mean, as their documentation has it, in plain numbers. Nothing here is the server's code.
//!
//! While the clock only goes forward there is one slot in which a check may be charged, that of now. Where the clock went back,
//! a budget may stay in any slot up to the latest that it has seen; the answer tells which, and must then be right for it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::terms::{
    BudgetKey, CREDITS, Charge, Credits, Limit, Outcome, Owner, TOP_UPS, Terms, Told, budget_key, nearest,
};
use crate::window::Window;

#[derive(Debug, Default)]
struct Budget {
    slots: BTreeMap<i64, Slot>,
    /// The latest slot that the budget can't be in an earlier one of any more.
    reached: Option<i64>,
}

/// What has become of a slot's units.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    spent: u64,
    /// Granted, not spent, and never to be had again.
    sunk: u64,
    /// The same, or only until the process ends, but it may not have learnt it yet.
    torn: u64,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) plans: Vec<Terms>,
    pub(crate) plan: usize,
    pub(crate) account: Terms,
    pub(crate) reset_day: i8,
    pub(crate) topped_up: u64,
    /// The keys' own limits, and whether they are live.
    pub(crate) keys: Vec<(Vec<Limit>, bool)>,
    pub(crate) now: i64,
    /// The latest time that the clock has shown.
    pub(crate) latest: i64,
    /// Whether only clocks that don't go back leave no doubt in which slot a budget is: units are gone of a slot that the store
    /// does not know to have begun.
    pub(crate) forward_only: bool,
    budgets: BTreeMap<BudgetKey, Budget>,
}

impl Model {
    pub(crate) fn new(plans: Vec<Terms>, keys: Vec<(Vec<Limit>, bool)>, reset_day: i8, now: i64) -> Self {
        let (account, budgets) = (Terms::default(), BTreeMap::new());
        let (plan, topped_up, forward_only) = (0, 0, false);
        Self { plans, plan, account, reset_day, topped_up, keys, now, latest: now, forward_only, budgets }
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
        let credits = credits.into_iter().flat_map(|allowance| [allowance, self.top_ups()]);
        let of_account = of_account.into_iter().chain(credits).map(|limit| (pool, limit));
        of_key.into_iter().map(|limit| (Owner::Key(key), limit)).chain(of_account).collect()
    }

    pub(crate) fn is_counting_credits(&self, key: usize) -> bool {
        self.budgets_of(key).iter().any(|(_, limit)| limit.name == CREDITS)
    }

    fn top_ups(&self) -> Limit {
        Limit { name: TOP_UPS, capacity: self.topped_up, window: Window::Forever }
    }

    pub(crate) fn top_ups_left(&self) -> RangeInclusive<u64> {
        let budget = self.budgets.get(&budget_key(Owner::Live, &self.top_ups()));
        budget.map_or(self.topped_up..=self.topped_up, |budget| left(&budget.slots, &self.top_ups(), 0))
    }

    /// Holds an answer against what it must be, and notes what it spent. Returns that, or says what is wrong.
    pub(crate) fn judge(
        &mut self,
        key: usize,
        cost: u64,
        spend: bool,
        answer: (Outcome, &[Told]),
    ) -> Result<Vec<Charge>, String> {
        let (outcome, told) = answer;
        let of_told: Vec<(Owner, Limit)> = told.iter().map(|told| (told.owner, told.limit.clone())).collect();
        ensure(of_told == self.budgets_of(key), || format!("not the budgets of the key: {told:?}"))?;
        let allowed = outcome == Outcome::Allowed;
        let units = if allowed && spend { cost } else { 0 };
        let funds: u64 = told.iter().filter(|told| told.is_fund()).map(|told| told.remaining).sum();
        let mut expected = Outcome::Allowed;
        let mut charges = Vec::new();
        for (told, share) in told.iter().zip(self.shares(told, units)) {
            let slot = self.slot_of(told, told.remaining + share, share > 0)?;
            charges.push((budget_key(told.owner, &told.limit), slot, share));
            let short = (if told.is_fund() { funds } else { told.remaining }) + units < cost;
            ensure(told.exceeded == (short && !allowed), || format!("`exceeded` of {told:?}"))?;
            expected = match (short, told.is_fund()) {
                (true, false) => Outcome::RateLimited,
                (true, true) if expected == Outcome::Allowed => Outcome::CreditsExhausted,
                _ => expected,
            };
        }
        ensure(outcome == expected, || format!("{outcome:?} instead of {expected:?} for {cost}: {told:?}"))?;
        charges.retain(|(_, _, units)| *units > 0);
        self.charge(&charges);
        Ok(charges)
    }

    /// What each budget was charged: the allowance to its last unit before the first of the top-ups.
    fn shares(&self, told: &[Told], charged: u64) -> Vec<u64> {
        let mut shares = vec![charged; told.len()];
        if let ([.., allowance, top_ups], [.., first, rest]) = (told, &mut shares[..])
            && top_ups.limit.name == TOP_UPS
        {
            let fits = |units: &u64| {
                let of = |told: &Told, units: u64| self.slot_of(told, told.remaining + units, units > 0).is_ok();
                (*units == charged || allowance.remaining == 0) && of(allowance, *units) && of(top_ups, charged - units)
            };
            *first = (0..=charged).rev().find(fits).unwrap_or(charged);
            *rest = charged - *first;
        }
        shares
    }

    fn charge(&mut self, charges: &[Charge]) {
        for (key, slot, units) in charges {
            let budget = self.budgets.entry(*key).or_default();
            budget.slots.entry(*slot).or_default().spent += units;
            budget.reached = budget.reached.max(Some(*slot));
        }
    }

    /// Notes what a check was charged of which there was no answer. Says what is wrong with it.
    pub(crate) fn charge_unseen(&mut self, key: usize, cost: u64, charges: &[Charge]) -> Result<(), String> {
        let mut due = BTreeMap::new();
        for (owner, limit) in self.budgets_of(key) {
            let of_it = charges.iter().filter(|(of, _, _)| *of == budget_key(owner, &limit));
            let none = Budget::default();
            for (of, slot, units) in of_it {
                let budget = self.budgets.get(of).unwrap_or(&none);
                let covered = *units <= *left(&budget.slots, &limit, *slot).end();
                let lawful = self.lawful(budget, limit.window).contains(slot);
                ensure(covered && lawful, || format!("{units} charged in slot {slot} of {limit:?}: {budget:?}"))?;
            }
            let name = if limit.name == TOP_UPS { CREDITS } else { limit.name };
            let units = charges.iter().filter(|(of, _, _)| *of == budget_key(owner, &limit)).map(|(_, _, units)| units);
            *due.entry((owner, name)).or_insert(0) += units.sum::<u64>();
        }
        let all: u64 = charges.iter().map(|(_, _, units)| units).sum();
        let right = due.values().all(|units| *units == cost) && all == due.values().sum::<u64>();
        ensure(right, || format!("{cost} charged as {charges:?}"))?;
        self.charge(charges);
        Ok(())
    }

    /// What was charged is given back.
    pub(crate) fn refund(&mut self, charges: &[Charge]) {
        for (key, slot, units) in charges {
            self.budgets.get_mut(key).unwrap().slots.get_mut(slot).unwrap().spent -= units;
        }
    }

    /// The slots in which a budget may be.
    fn lawful(&self, budget: &Budget, window: Window) -> RangeInclusive<i64> {
        budget.reached.unwrap_or(i64::MIN).max(window.slot(self.now))..=window.slot(self.latest)
    }

    /// The slot that an answer is of, in which so much must have been left.
    fn slot_of(&self, told: &Told, before: u64, charged: bool) -> Result<i64, String> {
        let window = told.limit.window;
        let none = Budget::default();
        let budget = self.budgets.get(&budget_key(told.owner, &told.limit)).unwrap_or(&none);
        let (slots, lawful) = (&budget.slots, self.lawful(budget, window));
        let by_reset = window.slot_that_resets_at(told.reset);
        let is_sliding = matches!(window, Window::Sliding(_));
        let candidates: Vec<i64> = if is_sliding && !charged {
            // What is left changes where a slot that was granted in begins or is the next, and where it leaves the window.
            let changes =
                slots.keys().flat_map(|slot| [*slot - 1, *slot, window.leaves_at(*slot) - 1, window.leaves_at(*slot)]);
            changes.chain([*lawful.start()]).collect()
        } else if is_sliding && slots.get(&by_reset).is_some_and(|slot| slot.sunk + slot.torn > 0) {
            // Units of a slot that is still to come are gone.
            vec![by_reset, *lawful.start()]
        } else {
            vec![by_reset]
        };
        let told_so = (is_sliding && !charged) || window.reset(by_reset) == told.reset;
        let right =
            |slot: &&i64| lawful.contains(slot) && told_so && left(slots, &told.limit, **slot).contains(&before);
        candidates.iter().find(right).copied().ok_or_else(|| {
            let lefts: Vec<_> = candidates.iter().map(|slot| (slot, left(slots, &told.limit, *slot))).collect();
            format!("{told:?} at {}: {before} left before, lawful slots {lawful:?}, by slot {lefts:?}", self.now)
        })
    }

    /// Units of a slot are lost, or are back, and the process may not know.
    pub(crate) fn tear(&mut self, key: BudgetKey, slot: i64, units: u64) {
        let budget = self.budgets.entry(key).or_default();
        budget.slots.entry(slot).or_default().torn += units;
        self.forward_only |= is_in_doubt(key, slot, budget.reached);
    }

    /// Whether what is torn leaves open how a check's cost was split.
    pub(crate) fn is_split_in_doubt(&self) -> bool {
        let torn =
            |name| self.budgets.iter().any(|(key, it)| key.1 == name && it.slots.values().any(|slot| slot.torn > 0));
        torn(CREDITS) && torn(TOP_UPS)
    }

    /// Another process begins with what the store says was granted and not given back, and the slots that it knows to have
    /// begun. Where what was spent is known, the rest is there again; else it is lost. Returns how much more is lost than before,
    /// and how much of it was known to be torn.
    pub(crate) fn begin(
        &mut self,
        granted: &BTreeMap<(BudgetKey, i64), u64>,
        heard: &BTreeMap<BudgetKey, i64>,
        known: bool,
    ) -> Result<(u64, u64), String> {
        let (mut sunk, mut torn) = (0, 0);
        for (key, slot) in granted.keys() {
            self.budgets.entry(*key).or_default().slots.entry(*slot).or_default();
        }
        for (key, budget) in &mut self.budgets {
            let heard = heard.get(key).copied();
            for (number, slot) in &mut budget.slots {
                let granted = granted.get(&(*key, *number)).copied().unwrap_or(0);
                let lost = granted.checked_sub(slot.spent);
                let lost = lost.ok_or_else(|| format!("{key:?}, slot {number}: {granted} granted, {slot:?}"))?;
                let lost = if known { 0 } else { lost };
                let more = lost.checked_sub(slot.sunk);
                sunk +=
                    more.ok_or_else(|| format!("{key:?}, slot {number}: {granted} granted, lost units came back"))?;
                torn += slot.torn;
                (slot.sunk, slot.torn) = (lost, 0);
                self.forward_only |= lost > 0 && is_in_doubt(*key, *number, heard);
            }
            self.forward_only |= budget.reached > heard;
            budget.reached = heard;
        }
        Ok((sunk, torn))
    }

    /// What was spent in a slot.
    pub(crate) fn spent(&self, key: BudgetKey, slot: i64) -> u64 {
        self.budgets.get(&key).and_then(|budget| budget.slots.get(&slot)).map_or(0, |slot| slot.spent)
    }
}

/// Whether units that are gone of this slot let answers of the slots between it and the one that is reached look alike.
fn is_in_doubt((_, _, window): BudgetKey, slot: i64, reached: Option<i64>) -> bool {
    matches!(window, Window::Sliding(_)) && Some(slot) > reached
}

/// What may be left of a limit in a slot: from what the store knows to what the process knows. In a sliding window, what is gone
/// of the next slot is also gone.
fn left(slots: &BTreeMap<i64, Slot>, limit: &Limit, slot: i64) -> RangeInclusive<u64> {
    let last = if matches!(limit.window, Window::Sliding(_)) { slot + 1 } else { slot };
    let gone = |of: fn(&Slot) -> u64| {
        let in_window = |at| slots.range(limit.window.counted(at)).map(|(_, slot)| of(slot)).sum();
        limit.capacity.saturating_sub((slot..=last).map(in_window).max().unwrap_or(0))
    };
    gone(|slot| slot.spent + slot.sunk + slot.torn)..=gone(|slot| slot.spent + slot.sunk)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

//! What one process may still spend of one limit.
//!
//! Units are spent from a [`Lease`], and a lease is granted in the store before anything is spent from it: what a crash
//! leaves behind was counted already. The ledger here is what the store said last, moved on by the clock with the same
//! arithmetic; while this process alone has the store, it is what the store has.
//!
//! Three answers are possible to a cost: the lease holds it; the store may grant it, so it has to be asked; or the store has
//! said that there is not so much in this slot, which is remembered, so that a flood of refused checks asks nothing.

use crate::decision::quota::{Rule, Slot, State};
use crate::domain::{Limit, Time, TimeZone};
use crate::store::{Leased, Settled};

/// One limit of one subject.
#[derive(Debug)]
pub(super) struct Budget {
    rule: Rule,
    /// What the store said last. Absent before it was asked.
    ledger: Option<State>,
    lease: Lease,
    /// What became of earlier leases, and is still to be told to the store. One for each slot.
    settled: Vec<Settled>,
    demand: Demand,
    /// Units that checks wait for, beyond what the lease holds. Set while the budget stands in a queue.
    wanted: Option<u64>,
}

/// Units granted to this process, to be spent in one slot alone.
#[derive(Clone, Copy, Debug)]
struct Lease {
    slot: Slot,
    units: u64,
    /// Units spent and not yet told to the store.
    spent: u64,
}

/// How much is spent in a second.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    second: i64,
    /// Units in that second so far, and in the one before it.
    units: u64,
    before: u64,
}

/// Whether a budget holds a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// It is leased.
    Leased,
    /// The store has to be asked.
    Unknown,
    /// There is not so much in this slot.
    Short,
}

/// What a budget looks like to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BudgetView {
    pub(super) remaining: u64,
    pub(super) reset_time: Time,
}

/// What the store is to be asked of a budget.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) rule: Rule,
    pub(super) settled: Vec<Settled>,
    pub(super) wanted: u64,
}

impl Ask {
    /// Gives back what was granted and has no place any more.
    pub(super) fn giving_back(rule: Rule, leased: &Leased) -> Option<Self> {
        let settled = Settled { slot: leased.state.slot(), spent: 0, returned: leased.granted };
        (leased.granted > 0).then(|| Self { rule, settled: vec![settled], wanted: 0 })
    }
}

impl Demand {
    fn spent(&mut self, units: u64, now: Time) {
        self.turn(now);
        self.units = self.units.saturating_add(units);
    }

    /// Units a second, by the fuller of the last two.
    fn a_second(&mut self, now: Time) -> u64 {
        self.turn(now);
        self.units.max(self.before)
    }

    fn turn(&mut self, now: Time) {
        let second = now.seconds();
        if second != self.second {
            self.before = if second == self.second + 1 { self.units } else { 0 };
            (self.second, self.units) = (second, 0);
        }
    }
}

impl Budget {
    pub(super) fn new(rule: Rule) -> Self {
        let lease = Lease { slot: Slot::new(i64::MIN), units: 0, spent: 0 };
        Self { rule, ledger: None, lease, settled: Vec::new(), demand: Demand::default(), wanted: None }
    }

    /// Goes on under a rule of which only the capacity differs: what was spent stays spent. Where it is less, what is leased
    /// goes back, as it may be more than there is now.
    pub(super) fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
        self.give_back_excess();
    }

    fn give_back_excess(&mut self) {
        let Some(ledger) = &mut self.ledger else { return };
        let Lease { slot, units, .. } = self.lease;
        let excess = ledger.excess(&self.rule).min(units);
        if excess > 0 {
            ledger.give_back(slot, excess);
            self.lease.units = units - excess;
            self.note_settled(Settled { slot, spent: 0, returned: excess });
        }
    }

    /// Moves on to the slot of `now`. Units leased for an earlier one are given back.
    pub(super) fn advance(&mut self, zone: &TimeZone, now: Time) {
        let Some(ledger) = &mut self.ledger else { return };
        ledger.advance(&self.rule, zone, now);
        let slot = ledger.slot();
        if self.lease.slot != slot {
            self.settle();
            self.lease.slot = slot;
        }
    }

    /// Ends the lease: what was not spent is given back.
    fn settle(&mut self) {
        let Lease { slot, units, spent } = self.lease;
        if units > 0
            && let Some(ledger) = &mut self.ledger
        {
            ledger.give_back(slot, units);
        }
        self.note_settled(Settled { slot, spent, returned: units });
        self.lease = Lease { slot, units: 0, spent: 0 };
    }

    fn note_settled(&mut self, new: Settled) {
        if new.spent == 0 && new.returned == 0 {
            return;
        }
        match self.settled.iter_mut().find(|one| one.slot == new.slot) {
            Some(one) => {
                one.spent = one.spent.saturating_add(new.spent);
                one.returned = one.returned.saturating_add(new.returned);
            }
            None => self.settled.push(new),
        }
    }

    /// Whether so many units can be spent now. A cost above the capacity never can, whatever is left.
    pub(super) fn cover(&self, units: u64) -> Cover {
        let Some(ledger) = &self.ledger else { return Cover::Unknown };
        if units <= self.lease.units {
            Cover::Leased
        } else if units - self.lease.units <= ledger.available(&self.rule) {
            Cover::Unknown
        } else {
            Cover::Short
        }
    }

    /// Whether the store has ever said how it stands.
    pub(super) fn is_asked(&self) -> bool {
        self.ledger.is_some()
    }

    /// Whether there are so many units, leased or not, by what is known.
    pub(super) fn covers(&self, units: u64) -> bool {
        self.cover(units) != Cover::Short
    }

    /// Spends units that [`Self::cover`] has said are leased. True if the lease should be filled up before it is empty.
    pub(super) fn spend(&mut self, units: u64, now: Time) -> bool {
        self.lease.units = self.lease.units.saturating_sub(units);
        self.lease.spent = self.lease.spent.saturating_add(units);
        self.demand.spent(units, now);
        let available = self.ledger.as_ref().map_or(0, |ledger| ledger.available(&self.rule));
        let low = self.lease.units < self.demand.a_second(now) / 2;
        units > 0 && low && available > 0 && self.wanted.is_none()
    }

    /// Wants so many units, beside those that others wait for; with 0, to know how it stands or to have about a second's worth.
    pub(super) fn want(&mut self, units: u64) {
        self.wanted = Some(self.wanted.unwrap_or(0).saturating_add(units));
    }

    /// What the store is to be asked, if anything. It is then on its way; where no answer comes, what it told is not told again,
    /// because units that went back twice could be spent twice.
    pub(super) fn ask(&mut self, now: Time) -> Option<Ask> {
        let wanted = self.wanted.take()?;
        self.note_spent();
        let available = self.ledger.as_ref().map_or(u64::MAX, |ledger| ledger.available(&self.rule));
        // About a second's worth beside what is waited for, and ever less as the budget runs out.
        let ahead = self.demand.a_second(now).saturating_sub(self.lease.units);
        let ahead = ahead.min(available.saturating_sub(wanted) / 4);
        let settled = std::mem::take(&mut self.settled);
        Some(Ask { rule: self.rule, settled, wanted: wanted.saturating_add(ahead) })
    }

    /// What is to be told to the store of a lease that is not in use any more.
    pub(super) fn end(&mut self) -> Option<Ask> {
        self.settle();
        let settled = std::mem::take(&mut self.settled);
        (!settled.is_empty()).then_some(Ask { rule: self.rule, settled, wanted: 0 })
    }

    fn note_spent(&mut self) {
        let Lease { slot, spent, .. } = self.lease;
        self.note_settled(Settled { slot, spent, returned: 0 });
        self.lease.spent = 0;
    }

    /// Whether nothing was spent lately, so that units leased are better given back.
    pub(super) fn is_idle(&mut self, now: Time) -> bool {
        self.demand.a_second(now) == 0 && self.wanted.is_none()
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        self.lease.units > 0 || self.lease.spent > 0 || !self.settled.is_empty()
    }

    /// Takes what the store has granted.
    pub(super) fn grant(&mut self, leased: Leased) {
        let slot = leased.state.slot();
        let mut ledger = leased.state;
        // What went back since it was asked, the store is told the next time.
        for one in &self.settled {
            ledger.give_back(one.slot, one.returned);
        }
        self.ledger = Some(ledger);
        if self.lease.slot != slot {
            self.settle();
            self.lease.slot = slot;
        }
        self.lease.units = self.lease.units.saturating_add(leased.granted);
        // It was asked for before the limit was lowered.
        self.give_back_excess();
    }

    pub(super) fn view(&self, now: Time) -> BudgetView {
        let Some(ledger) = &self.ledger else { return BudgetView { remaining: self.rule.capacity, reset_time: now } };
        let remaining = ledger.available(&self.rule).saturating_add(self.lease.units).min(self.rule.capacity);
        BudgetView { remaining, reset_time: ledger.reset_time(now) }
    }

    /// When so many units can be spent if nothing is until then; absent where never.
    pub(super) fn available_at(&self, units: u64, now: Time) -> Option<Time> {
        if self.covers(units) { Some(now) } else { self.ledger.as_ref()?.available_at(&self.rule, units, now) }
    }
}

/// The budgets of a list of limits, in its order.
#[derive(Debug, Default)]
pub(super) struct BudgetList {
    limits: Vec<(Limit, Budget)>,
    /// Of limits that were taken away: what is still to be told to the store.
    ended: Vec<(Limit, Ask)>,
}

impl BudgetList {
    /// Makes these the limits, and goes on with the budgets of those that continue one from before. What was spent of the
    /// others is in the store, where it is found again should they come back.
    pub(super) fn set_limits(&mut self, limits: &[Limit]) {
        let mut old = std::mem::take(&mut self.limits);
        self.limits = limits
            .iter()
            .map(|limit| {
                let rule = Rule::of(limit);
                let place = old.iter().position(|(other, _)| limit.continues(other));
                let mut budget = place.map_or_else(|| Budget::new(rule), |place| old.remove(place).1);
                budget.set_rule(rule);
                (limit.clone(), budget)
            })
            .collect();
        self.ended.extend(old.into_iter().filter_map(|(limit, mut budget)| Some((limit, budget.end()?))));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Limit, &Budget)> {
        self.limits.iter().map(|(limit, budget)| (limit, budget))
    }

    pub(super) fn budgets_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        self.limits.iter_mut().map(|(_, budget)| budget)
    }

    /// What the store is to be told and asked. What was taken away comes first: it may be there again, and then goes on from there.
    pub(super) fn asks(&mut self, now: Time, mode: Asking) -> Vec<(Limit, Ask)> {
        let mut asks = std::mem::take(&mut self.ended);
        for (limit, budget) in &mut self.limits {
            asks.extend(mode.of(budget, now).map(|ask| (limit.clone(), ask)));
        }
        asks
    }

    /// Takes what the store has granted of the limit that this one is, or was. Of one that was taken away since it was asked
    /// for, it goes back.
    pub(super) fn grant(&mut self, of: &Limit, leased: Leased) {
        match self.limits.iter_mut().find(|(limit, _)| limit.continues(of)) {
            Some((_, budget)) => budget.grant(leased),
            None => self.ended.extend(Ask::giving_back(Rule::of(of), &leased).map(|ask| (of.clone(), ask))),
        }
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        !self.ended.is_empty() || self.limits.iter().any(|(_, budget)| budget.is_open())
    }
}

/// What the store is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// What is wanted.
    Wanted,
    /// What is wanted, and leases that are not in use go back.
    Tidy,
    /// Every lease goes back: this process ends.
    Last,
}

impl Asking {
    pub(super) fn of(self, budget: &mut Budget, now: Time) -> Option<Ask> {
        match self {
            Self::Tidy if budget.is_idle(now) => budget.end(),
            Self::Wanted | Self::Tidy => budget.ask(now),
            Self::Last => budget.end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Algorithm, LimitName, Period};

    fn limit(name: &str, capacity: u64, algorithm: Algorithm) -> Limit {
        Limit { name: LimitName::parse(name).unwrap(), capacity, period: Period::Minute, algorithm }
    }

    fn at(millis: i64) -> Time {
        Time::from_millis(millis)
    }

    /// A store for one budget.
    fn answer(store: &mut Option<State>, ask: &Ask, now: Time) -> Leased {
        let mut state = store.take().unwrap_or_else(|| State::new(&ask.rule, &TimeZone::UTC, now));
        state.advance(&ask.rule, &TimeZone::UTC, now);
        for one in &ask.settled {
            state.give_back(one.slot, one.returned);
        }
        let granted = state.grant(&ask.rule, ask.wanted);
        *store = Some(state.clone());
        Leased { granted, state }
    }

    fn spend(budget: &mut Budget, store: &mut Option<State>, units: u64, now: Time) -> bool {
        budget.advance(&TimeZone::UTC, now);
        if budget.cover(units) == Cover::Unknown {
            budget.want(units);
            let ask = budget.ask(now).unwrap();
            budget.grant(answer(store, &ask, now));
        }
        let leased = budget.cover(units) == Cover::Leased;
        if leased {
            budget.spend(units, now);
        }
        leased
    }

    #[test]
    fn what_is_leased_and_not_spent_is_still_there() {
        for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
            let (mut budget, mut store) = (Budget::new(Rule::of(&limit("a", 10, algorithm))), None);
            assert_eq!(budget.cover(0), Cover::Unknown, "nobody has said how it stands");
            assert!(spend(&mut budget, &mut store, 5, at(0)));
            assert_eq!(budget.view(at(0)).remaining, 5);
            assert_eq!(budget.cover(6), Cover::Short);
            assert!(spend(&mut budget, &mut store, 5, at(1_000)), "{algorithm:?}");
            assert_eq!((budget.view(at(1_000)).remaining, budget.cover(1)), (0, Cover::Short));
            assert!(spend(&mut budget, &mut store, 10, at(130_000)));
        }
    }

    #[test]
    fn a_lease_grows_with_the_demand_and_shrinks_with_what_is_left() {
        let (mut budget, mut store) = (Budget::new(Rule::of(&limit("a", 1_000, Algorithm::FixedWindow))), None);
        let mut asked = 0;
        let mut admitted = 0;
        for i in 0..1_100 {
            let now = at(i * 10);
            budget.advance(&TimeZone::UTC, now);
            asked += u32::from(budget.cover(1) == Cover::Unknown);
            admitted += u32::from(spend(&mut budget, &mut store, 1, now));
        }
        assert_eq!(admitted, 1_000);
        assert!((5..60).contains(&asked), "{asked}");
    }

    #[test]
    fn a_lease_that_ends_goes_back_whole() {
        let (mut budget, mut store) = (Budget::new(Rule::of(&limit("a", 100, Algorithm::FixedWindow))), None);
        for i in 0..10 {
            assert!(spend(&mut budget, &mut store, 1, at(i)));
        }
        let ask = budget.end().unwrap();
        answer(&mut store, &ask, at(10));
        assert!(!budget.is_open() && budget.end().is_none());
        let rule = Rule::of(&limit("a", 100, Algorithm::FixedWindow));
        assert_eq!(store.unwrap().available(&rule), 90);
    }

    #[test]
    fn what_is_granted_of_a_limit_that_is_gone_goes_back() {
        let a = limit("a", 10, Algorithm::FixedWindow);
        let mut list = BudgetList::default();
        list.set_limits(std::slice::from_ref(&a));
        list.budgets_mut().for_each(|budget| budget.want(4));
        let mut store = None;
        let asks = list.asks(at(0), Asking::Wanted);
        // While an ask is on its way, the limit is taken away.
        list.set_limits(&[]);
        list.grant(&a, answer(&mut store, &asks[0].1, at(0)));
        assert!(list.is_open());
        for (_, ask) in list.asks(at(0), Asking::Wanted) {
            answer(&mut store, &ask, at(0));
        }
        assert_eq!((store.unwrap().available(&Rule::of(&a)), list.is_open()), (10, false));
    }

    #[test]
    fn what_is_leased_beyond_a_lowered_limit_goes_back() {
        let rule = |capacity| Rule::of(&limit("a", capacity, Algorithm::FixedWindow));
        let (mut budget, mut store) = (Budget::new(rule(100)), None);
        for _ in 0..8 {
            assert!(spend(&mut budget, &mut store, 1, at(0)));
        }
        // While an ask is on its way, the limit is lowered.
        budget.want(20);
        let ask = budget.ask(at(0)).unwrap();
        budget.set_rule(rule(10));
        budget.grant(answer(&mut store, &ask, at(0)));
        let mut admitted = 8;
        while spend(&mut budget, &mut store, 1, at(0)) {
            admitted += 1;
        }
        assert_eq!(admitted, 10);
    }

    #[test]
    fn a_changed_list_keeps_what_was_spent_under_the_same_limit() {
        let mut list = BudgetList::default();
        let (a, b) = (limit("a", 10, Algorithm::FixedWindow), limit("b", 10, Algorithm::FixedWindow));
        list.set_limits(&[a.clone(), b.clone()]);
        for budget in list.budgets_mut() {
            assert!(spend(budget, &mut None, 4, at(0)));
        }
        let larger = Limit { capacity: 20, ..b };
        let other = Limit { period: Period::Hour, ..a };
        list.set_limits(&[larger, other]);
        let remaining =
            |list: &BudgetList| list.iter().map(|(_, budget)| budget.view(at(0)).remaining).collect::<Vec<u64>>();
        assert_eq!(remaining(&list), [16, 10]);
        assert!(list.is_open(), "what became of the other is to be told");
        let names = |asks: Vec<(Limit, Ask)>| asks.iter().map(|(limit, _)| limit.period).collect::<Vec<_>>();
        // The one that was taken away, the one that went on, and not the new one, of which nothing is leased.
        assert_eq!(names(list.asks(at(0), Asking::Last)), [Period::Minute, Period::Minute]);
        assert!(!list.is_open());
    }
}

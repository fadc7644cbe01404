//! An account's credits: the month's allowance, and what was topped up beside it.
//!
//! Each is a budget of its own, so each is as exact as any limit. A cost is taken from the allowance first, and only what
//! that lacks from the top-ups. As units are spent from leases alone, what is left of the allowance is leased to the last
//! unit before top-ups are touched.

use crate::decision::Credits;
use crate::decision::quota::Rule;
use crate::domain::{AccountId, BudgetId, Time, TimeZone};
use crate::store::Leased;

use super::ask::Urgency;
use super::ask::{Ask, Cells, LeaseName};
use super::budget::{Budget, BudgetView, Cover};
use super::budget_list::Round;

/// Credits of an account.
#[derive(Debug)]
pub(super) struct Purse {
    terms: Credits,
    allowance: Budget,
    /// Absent where the account was topped up with nothing, as most are not.
    top_ups: Option<Box<Budget>>,
}

/// One of the budgets of a purse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fund {
    /// The month's.
    Allowance,
    TopUps,
}

/// What a purse looks like to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PurseView {
    /// Of both together.
    pub(super) remaining: u64,
    pub(super) topped_up_remaining: u64,
    /// Of the allowance.
    pub(super) reset_time: Time,
}

impl Fund {
    pub(super) fn budget_id(self, account: &AccountId) -> BudgetId {
        match self {
            Self::Allowance => BudgetId::of_credits(account),
            Self::TopUps => BudgetId::of_top_ups(account),
        }
    }

    /// What has nothing to grant.
    const fn empty_rule(self) -> Rule {
        match self {
            // Of what is given back, the day does not matter.
            Self::Allowance => Rule::of_credits(0, 1),
            Self::TopUps => Rule::of_top_ups(0),
        }
    }

    /// Sends back what was granted to a budget that is there no more: else it would be lost for as long as its window, which
    /// for top-ups is forever.
    pub(super) fn return_grant(self, leased: &Leased, cells: Cells) -> Option<Ask> {
        Ask::return_grant(self.empty_rule(), leased, cells)
    }

    /// The same of units that were reserved.
    pub(super) fn returning(self, lease: LeaseName, units: u64) -> Option<Ask> {
        Ask::returning(self.empty_rule(), [(lease, units)])
    }
}

impl Purse {
    pub(super) fn new(terms: Credits) -> Self {
        let Credits { allowance, reset_day, topped_up } = terms;
        let top_ups = (topped_up > 0).then(|| Box::new(Budget::new(Rule::of_top_ups(topped_up))));
        Self { terms, allowance: Budget::new(Rule::of_credits(allowance, reset_day)), top_ups }
    }

    /// From one to the next, either of which may be absent: what was spent stays spent. What is to be told to the store of
    /// budgets that end with that is added to `ended`.
    pub(super) fn next(old: Option<Self>, terms: Option<Credits>, ended: &mut Vec<(Fund, Ask)>) -> Option<Self> {
        let mut next = terms.map(Self::new);
        let Some(Self { terms: _, allowance: mut old_allowance, top_ups: old_top_ups }) = old else { return next };
        match &mut next {
            Some(next) => {
                old_allowance.set_rule(Rule::of_credits(next.terms.allowance, next.terms.reset_day));
                next.allowance = old_allowance;
            }
            None => ended.extend(old_allowance.end().map(|ask| (Fund::Allowance, ask))),
        }
        if let Some(mut old) = old_top_ups {
            match next.as_mut().and_then(|next| Some((next.terms.topped_up, next.top_ups.as_mut()?))) {
                Some((topped_up, top_ups)) => {
                    old.set_rule(Rule::of_top_ups(topped_up));
                    *top_ups = old;
                }
                None => ended.extend(old.end().map(|ask| (Fund::TopUps, ask))),
            }
        }
        next
    }

    /// The terms that it is on.
    pub(super) const fn terms(&self) -> Credits {
        self.terms
    }

    pub(super) fn advance(&mut self, zone: &TimeZone, now: Time) {
        self.budgets_mut().for_each(|budget| budget.advance(zone, now));
    }

    fn budgets(&self) -> impl Iterator<Item = &Budget> {
        std::iter::once(&self.allowance).chain(self.top_ups.as_deref())
    }

    /// Both.
    pub(super) fn budgets_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        std::iter::once(&mut self.allowance).chain(self.top_ups.as_deref_mut())
    }

    /// Whether so many units can be spent now.
    pub(super) fn cover(&self, units: u64) -> Cover {
        if !self.is_asked() {
            return Cover::Unknown;
        }
        let lacking = units.saturating_sub(self.allowance.leased());
        if lacking == 0 {
            return Cover::Leased;
        }
        let unleased = self.allowance.unleased();
        let of_top_ups = lacking.saturating_sub(unleased);
        let covered = match &self.top_ups {
            Some(top_ups) => top_ups.cover(of_top_ups),
            None if of_top_ups == 0 => Cover::Leased,
            None => Cover::Short,
        };
        match covered {
            // To the last unit of the allowance before the first of the top-ups.
            Cover::Leased if unleased > 0 => Cover::Unknown,
            // What others hold of the allowance may do.
            Cover::Short if units <= self.capacity() && self.allowance.is_doubtful() => Cover::Doubtful,
            Cover::Leased | Cover::Unknown | Cover::Doubtful | Cover::Short => covered,
        }
    }

    /// Units of both together, spent ones included.
    fn capacity(&self) -> u64 {
        self.terms.allowance.saturating_add(self.terms.topped_up)
    }

    /// Whether the store has said how all of it stands.
    pub(super) fn is_asked(&self) -> bool {
        self.budgets().all(Budget::is_asked)
    }

    /// Whether there are so many units, leased or not, by what is known.
    pub(super) fn covers(&self, units: u64) -> bool {
        matches!(self.cover(units), Cover::Leased | Cover::Unknown)
    }

    /// Has what doesn't know, or whose lease is too small for `cost`, want its part of `wanted` units. How soon, if there is such.
    pub(super) fn want(&mut self, cost: u64, wanted: u64) -> Option<Urgency> {
        let cover = self.cover(cost);
        if matches!(cover, Cover::Leased | Cover::Short) || (wanted == 0 && self.is_asked()) {
            return None;
        }
        let mut urgency = Urgency::Soon;
        let (leased, unleased) = (self.allowance.leased(), self.allowance.unleased());
        let of_top_ups = wanted.saturating_sub(leased.saturating_add(unleased));
        if cover == Cover::Doubtful && self.allowance.is_doubtful() {
            // All that others hold of it.
            self.allowance.want(wanted.min(self.terms.allowance));
            urgency = urgency.max(self.allowance.urgency());
        } else if !self.allowance.is_asked() || (wanted > leased && unleased > 0) {
            self.allowance.want(wanted - of_top_ups);
            urgency = urgency.max(self.allowance.urgency());
        }
        if let Some(top_ups) = &mut self.top_ups
            && (!top_ups.is_asked() || of_top_ups > top_ups.leased())
        {
            top_ups.want(of_top_ups.min(self.terms.topped_up));
            urgency = urgency.max(top_ups.urgency());
        }
        Some(urgency)
    }

    /// Both, with what they are.
    pub(super) fn funds_mut(&mut self) -> impl Iterator<Item = (Fund, &mut Budget)> {
        let top_ups = self.top_ups.as_deref_mut().map(|top_ups| (Fund::TopUps, top_ups));
        std::iter::once((Fund::Allowance, &mut self.allowance)).chain(top_ups)
    }

    /// What each budget is charged of a cost that [`Self::cover`] has said is leased.
    pub(super) fn charged(&mut self, units: u64) -> impl Iterator<Item = (Fund, &mut Budget, u64)> {
        let of_allowance = units.min(self.allowance.leased());
        let of_top_ups = self.top_ups.as_deref_mut().map(|top_ups| (Fund::TopUps, top_ups, units - of_allowance));
        let allowance = (Fund::Allowance, &mut self.allowance, of_allowance);
        std::iter::once(allowance).chain(of_top_ups).filter(|(_, _, units)| *units > 0)
    }

    pub(super) fn view(&self, now: Time) -> PurseView {
        let BudgetView { remaining, reset_time } = self.allowance.view(now);
        let topped_up_remaining = self.top_ups.as_ref().map_or(0, |top_ups| top_ups.view(now).remaining);
        PurseView { remaining: remaining.saturating_add(topped_up_remaining), topped_up_remaining, reset_time }
    }

    /// When so many units can be spent if nothing is until then; absent where never.
    pub(super) fn available_at(&self, units: u64, now: Time) -> Option<Time> {
        if self.covers(units) {
            return Some(now);
        }
        // The allowance comes back, the top-ups don't.
        self.allowance.available_at(units.saturating_sub(self.view(now).topped_up_remaining), now)
    }

    /// What the store is to be asked and told.
    pub(super) fn asks(&mut self, round: Round<'_>) -> Vec<(Fund, Ask)> {
        let of_top_ups = self.top_ups.as_deref_mut().and_then(|top_ups| Some((Fund::TopUps, round.ask(top_ups)?)));
        // Others may have given back units of the allowance, which are to be spent before more of the top-ups.
        if let (Some(at), Some(_)) = (round.at, &of_top_ups) {
            self.allowance.freshen(at);
        }
        let of_allowance = round.ask(&mut self.allowance).map(|ask| (Fund::Allowance, ask));
        of_allowance.into_iter().chain(of_top_ups).collect()
    }

    /// The budget of a fund, unless it is not one of these.
    pub(super) fn fund_mut(&mut self, fund: Fund) -> Option<&mut Budget> {
        match fund {
            Fund::Allowance => Some(&mut self.allowance),
            Fund::TopUps => self.top_ups.as_deref_mut(),
        }
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        self.budgets().any(Budget::is_open)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::decision::quota::State;
    use crate::engine::budget_list::Asking;
    use crate::journal::Journal;

    /// 1970-02-01.
    const FEBRUARY: i64 = 31 * 86_400_000;
    const MARCH: i64 = FEBRUARY + 28 * 86_400_000;

    fn at(millis: i64) -> Time {
        Time::from_millis(millis)
    }

    fn terms(allowance: u64, topped_up: u64) -> Credits {
        Credits { allowance, reset_day: 1, topped_up }
    }

    /// A round of a process that has the store for itself.
    fn alone(journal: &Journal, now: Time, mode: Asking) -> Round<'_> {
        Round { journal, now, at: None, mode }
    }

    /// A purse, and a store for it.
    struct Rig {
        purse: Option<Purse>,
        states: HashMap<BudgetId, State>,
        ended: Vec<(Fund, Ask)>,
        /// Times that the store was asked.
        rounds: u32,
    }

    impl Rig {
        fn new(terms: Credits) -> Self {
            Self { purse: Some(Purse::new(terms)), states: HashMap::new(), ended: Vec::new(), rounds: 0 }
        }

        fn set_terms(&mut self, terms: Option<Credits>) {
            self.purse = Purse::next(self.purse.take(), terms, &mut self.ended);
        }

        fn purse(&mut self) -> &mut Purse {
            self.purse.as_mut().unwrap()
        }

        fn answer(&mut self, fund: Fund, ask: &Ask, now: Time) -> Leased {
            let fresh = || State::new(&ask.rule, &TimeZone::UTC, now);
            let state = self.states.entry(fund.budget_id(&AccountId::parse("acct_a").unwrap())).or_insert_with(fresh);
            state.advance(&ask.rule, &TimeZone::UTC, now);
            ask.settled.iter().for_each(|one| state.give_back(one.slot, one.returned));
            let granted = state.grant(&ask.rule, ask.wanted);
            let ahead = state.grant_ahead(&ask.rule, ask.ahead);
            Leased { granted, ahead, elsewhere: false, state: state.clone() }
        }

        /// What a round of the lease desk does.
        fn round(&mut self, now: Time, mode: Asking) {
            self.rounds += 1;
            let mut asks = std::mem::take(&mut self.ended);
            asks.extend(self.purse.iter_mut().flat_map(|purse| purse.asks(alone(&Journal::default(), now, mode))));
            for (fund, ask) in asks {
                let leased = self.answer(fund, &ask, now);
                match self.purse.as_mut().and_then(|purse| purse.fund_mut(fund)) {
                    Some(budget) => budget.grant(leased, Cells::default()),
                    None => self.ended.extend(fund.return_grant(&leased, Cells::default()).map(|ask| (fund, ask))),
                }
            }
        }

        /// What a check does. Each fund that was charged, and how much.
        fn spend(&mut self, units: u64, now: Time) -> Option<Vec<(bool, u64)>> {
            self.purse().advance(&TimeZone::UTC, now);
            for tries in 0.. {
                assert!(tries < 4, "it asks and asks");
                match self.purse().cover(units) {
                    Cover::Leased => break,
                    Cover::Short => return None,
                    Cover::Unknown | Cover::Doubtful => {
                        assert!(self.purse().want(units, units).is_some());
                        self.round(now, Asking::Wanted);
                    }
                }
            }
            let mut charged = Vec::new();
            for (fund, budget, units) in self.purse().charged(units) {
                charged.push((fund != Fund::TopUps, units));
                budget.spend(units, now);
            }
            Some(charged)
        }

        /// What is left of the allowance and of the top-ups.
        fn left(&mut self, now: Time) -> (u64, u64) {
            self.purse().advance(&TimeZone::UTC, now);
            if !self.purse().is_asked() {
                assert!(self.purse().want(0, 0).is_some());
                self.round(now, Asking::Wanted);
            }
            let PurseView { remaining, topped_up_remaining, .. } = self.purse().view(now);
            (remaining - topped_up_remaining, topped_up_remaining)
        }
    }

    /// A cost, what it is charged from, and what is then left.
    type Row<'a> = (u64, Option<&'a [(bool, u64)]>, (u64, u64));

    #[test]
    fn the_allowance_comes_first_and_the_top_ups_give_the_rest() {
        let rows: Vec<Row<'_>> = vec![
            (4, Some(&[(true, 4)]), (3, 100)),
            (0, Some(&[]), (3, 100)),
            (104, None, (3, 100)),
            (5, Some(&[(true, 3), (false, 2)]), (0, 98)),
            (90, Some(&[(false, 90)]), (0, 8)),
            (9, None, (0, 8)),
            (8, Some(&[(false, 8)]), (0, 0)),
            (1, None, (0, 0)),
        ];
        let mut rig = Rig::new(terms(7, 100));
        for (cost, charged, left) in rows {
            assert_eq!(rig.spend(cost, at(0)).as_deref(), charged, "{cost}");
            assert_eq!(rig.left(at(0)), left, "{cost}");
        }
        // The next month brings its allowance, and nothing else.
        assert_eq!(rig.left(at(FEBRUARY)), (7, 0));
        assert_eq!((rig.spend(8, at(FEBRUARY)), rig.spend(7, at(FEBRUARY))), (None, Some(vec![(true, 7)])));
    }

    #[test]
    fn a_flood_of_refused_checks_asks_nothing() {
        let mut rig = Rig::new(terms(2, 3));
        assert!(rig.spend(5, at(0)).is_some());
        let rounds = rig.rounds;
        for _ in 0..100 {
            assert_eq!(rig.spend(1, at(1)), None);
        }
        assert_eq!(rig.rounds, rounds);
    }

    #[test]
    fn an_allowance_that_is_used_up_is_not_asked_for() {
        let mut rig = Rig::new(terms(2, 1_000));
        assert!(rig.spend(2, at(0)).is_some());
        assert!(rig.purse().want(500, 500).is_some());
        let asks = rig.purse().asks(alone(&Journal::default(), at(0), Asking::Wanted));
        assert_eq!(asks.into_iter().map(|(fund, ask)| (fund, ask.wanted)).collect::<Vec<_>>(), [(Fund::TopUps, 500)]);
    }

    #[test]
    fn top_ups_need_no_allowance_and_an_allowance_no_top_ups() {
        let mut rig = Rig::new(terms(0, 5));
        assert_eq!(rig.spend(5, at(0)), Some(vec![(false, 5)]));
        assert_eq!(rig.spend(1, at(FEBRUARY)), None);
        let mut rig = Rig::new(terms(5, 0));
        assert_eq!((rig.spend(6, at(0)), rig.spend(5, at(0))), (None, Some(vec![(true, 5)])));
    }

    #[test]
    fn what_comes_back_is_the_allowance() {
        let mut rig = Rig::new(terms(10, 100));
        assert!(rig.spend(70, at(0)).is_some());
        assert_eq!(rig.left(at(0)), (0, 40));
        // Covered now; with the next month's allowance; never.
        for (cost, expected) in [(40, Some(0)), (41, Some(FEBRUARY)), (50, Some(FEBRUARY)), (51, None)] {
            assert_eq!(rig.purse().available_at(cost, at(0)), expected.map(at), "{cost}");
        }
        assert_eq!(rig.purse().view(at(0)).reset_time, at(FEBRUARY));
    }

    #[test]
    fn other_terms_keep_what_was_spent() {
        let mut rig = Rig::new(terms(10, 100));
        assert!(rig.spend(30, at(0)).is_some());
        // More, less, another reset day, none counted, nothing topped up, and back.
        let rows = [
            (Some(terms(15, 150)), (5, 130)),
            (Some(terms(12, 90)), (2, 70)),
            (Some(Credits { reset_day: 20, ..terms(12, 90) }), (2, 70)),
            (None, (0, 0)),
            (Some(terms(12, 90)), (2, 70)),
            (Some(terms(12, 0)), (2, 0)),
            (Some(terms(12, 10)), (2, 0)),
            (Some(terms(12, 21)), (2, 1)),
        ];
        for (place, (terms, left)) in rows.into_iter().enumerate() {
            rig.set_terms(terms);
            rig.round(at(1), Asking::Wanted);
            if terms.is_some() {
                assert_eq!(rig.left(at(1)), left, "row {place}");
            }
        }
    }

    #[test]
    fn what_was_granted_to_a_fund_that_is_gone_goes_back() {
        let mut rig = Rig::new(terms(0, 50));
        assert!(rig.spend(10, at(0)).is_some());
        // An ask is under way while credits cease to be counted.
        assert!(rig.purse().want(30, 30).is_some());
        let asks = rig.purse().asks(alone(&Journal::default(), at(0), Asking::Wanted));
        rig.set_terms(None);
        for (fund, ask) in asks {
            let leased = rig.answer(fund, &ask, at(0));
            rig.ended.extend(fund.return_grant(&leased, Cells::default()).map(|ask| (fund, ask)));
        }
        rig.round(at(0), Asking::Wanted);
        rig.set_terms(Some(terms(0, 50)));
        assert_eq!(rig.left(at(0)), (0, 40));
    }

    #[test]
    fn a_lease_that_is_not_in_use_goes_back_whole() {
        let mut rig = Rig::new(terms(10, 1_000));
        for i in 0..60 {
            assert!(rig.spend(5, at(i * 10)).is_some());
        }
        assert!(rig.purse().is_open());
        rig.round(at(10_000), Asking::Tidy);
        assert!(!rig.purse().is_open());
        let top_ups = BudgetId::of_top_ups(&AccountId::parse("acct_a").unwrap());
        assert_eq!(rig.states[&top_ups].available(&Rule::of_top_ups(1_000)), 1_000 - 290);
        assert_eq!(rig.left(at(10_000)), (0, 1_000 - 290));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Check(u64),
        Clock(i64),
        Allowance(u64),
        TopUp(u64),
        Tidy,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            12 => (0..9_u64).prop_map(Step::Check),
            3 => (0..2_000_i64).prop_map(Step::Clock),
            1 => (0..MARCH).prop_map(Step::Clock),
            1 => (0..20_u64).prop_map(Step::Allowance),
            2 => (1..20_u64).prop_map(Step::TopUp),
            1 => Just(Step::Tidy),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        /// With `a` left of the allowance and `t` of the top-ups, a cost `c` is taken if c <= a + t, and of `a` first.
        #[test]
        fn a_purse_is_two_numbers(allowance in 0..20_u64, topped_up in 0..20_u64, steps in steps()) {
            let mut terms = terms(allowance, topped_up);
            let mut rig = Rig::new(terms);
            let (mut spent, mut t, mut now) = (0, topped_up, 0);
            for step in steps {
                match step {
                    Step::Check(c) => {
                        let a = terms.allowance.saturating_sub(spent);
                        let taken = rig.spend(c, at(now));
                        prop_assert_eq!(taken.is_some(), c <= a + t, "{} of {} and {}", c, a, t);
                        if let Some(charged) = taken {
                            let sum = |own: bool| charged.iter().filter(|(it, _)| *it == own).map(|(_, n)| n).sum();
                            prop_assert_eq!((sum(true), sum(false)), (c.min(a), c - c.min(a)));
                            (spent, t) = (spent + c.min(a), t - (c - c.min(a)));
                        }
                    }
                    Step::Clock(millis) => {
                        let month = |now: i64| crate::decision::window::window_at(
                            crate::decision::window::Calendar::MonthFrom(1), &TimeZone::UTC, at(now));
                        if month(now) != month(now + millis) {
                            spent = 0;
                        }
                        now += millis;
                    }
                    Step::Allowance(allowance) => terms.allowance = allowance,
                    Step::TopUp(units) => (t, terms.topped_up) = (t + units, terms.topped_up + units),
                    Step::Tidy => rig.round(at(now), Asking::Tidy),
                }
                rig.set_terms(Some(terms));
                prop_assert_eq!(rig.left(at(now)), (terms.allowance.saturating_sub(spent), t));
            }
        }
    }
}

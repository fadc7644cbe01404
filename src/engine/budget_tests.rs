//! Budgets: what they ask the store for, and that they answer as if every unit was spent there one by one.

use std::time::Duration;

use proptest::prelude::*;

use super::ask::{Ask, Cells, LeaseName, Urgency};
use super::budget::{Budget, Cover};
use super::budget_list::{Asking, BudgetList, Round};
use super::others::Said;
use crate::decision::quota::{Rule, Slot, State};
use crate::domain::{Algorithm, Limit, LimitName, Period, Time, TimeZone};
use crate::journal::{Journal, Opened};
use crate::store::{Leased, Settled};

fn limit(name: &str, capacity: u64, algorithm: Algorithm) -> Limit {
    Limit { name: LimitName::parse(name).unwrap(), capacity, period: Period::Minute, algorithm }
}

fn rule(capacity: u64, algorithm: Algorithm) -> Rule {
    Rule::of(&limit("l", capacity, algorithm))
}

fn at(millis: i64) -> Time {
    Time::from_millis(millis)
}

/// The end of a process that has the store for itself.
fn last(journal: &Journal) -> Round<'_> {
    Round { journal, now: at(0), at: None, mode: Asking::Last }
}

/// A store for one budget.
fn answer(store: &mut Option<State>, ask: &Ask, now: Time) -> Leased {
    let mut state = store.take().unwrap_or_else(|| State::new(&ask.rule, &TimeZone::UTC, now));
    state.advance(&ask.rule, &TimeZone::UTC, now.max(ask.reached));
    for one in &ask.settled {
        state.give_back(one.slot, one.returned);
    }
    let granted = state.grant(&ask.rule, ask.wanted);
    let ahead = state.grant_ahead(&ask.rule, ask.ahead);
    *store = Some(state.clone());
    Leased { granted, ahead, elsewhere: false, state }
}

fn spend(budget: &mut Budget, store: &mut Option<State>, units: u64, now: Time) -> bool {
    budget.advance(&TimeZone::UTC, now);
    if budget.cover(units) == Cover::Unknown {
        budget.want(units);
        let ask = budget.ask(&Journal::default(), now).unwrap();
        budget.grant(answer(store, &ask, now), Cells::default());
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
fn a_counter_is_free_when_the_last_lease_that_had_it_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Opened::open(&folder.path().join("spent")).unwrap().begin([1; 16]).unwrap();
    let (mut budget, mut store) = (Budget::new(Rule::of(&limit("a", 100, Algorithm::FixedWindow))), None);
    // The first lease; one that goes on; one that is asked for before its minute begins and granted in it.
    for (asked, granted) in [(0, 0), (0, 0), (59_999, 60_000)] {
        budget.advance(&TimeZone::UTC, at(asked));
        budget.want(1 + budget.leased());
        let ask = budget.ask(&journal, at(asked)).unwrap();
        assert!(ask.freed.is_empty(), "at {asked}");
        budget.advance(&TimeZone::UTC, at(granted));
        let leased = answer(&mut store, &ask, at(granted));
        assert!(leased.granted > 0);
        budget.grant(leased, ask.cells);
        budget.spend(1, at(granted));
    }
    // It was one lease's in each of the minutes, and is free once.
    assert_eq!(budget.end().unwrap().freed.len(), 1);
    assert!(!budget.is_open());
}

#[test]
fn the_store_is_told_which_slot_was_spent_from_also_when_it_is_over() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let (mut budget, mut store) = (Budget::new(Rule::of(&limit("a", 10, algorithm))), None);
        assert!(spend(&mut budget, &mut store, 1, at(60_000)));
        // Nothing is spent later, and the clock is set back.
        budget.advance(&TimeZone::UTC, at(130_000));
        budget.advance(&TimeZone::UTC, at(0));
        assert_eq!(budget.end().unwrap().reached, at(60_000), "{algorithm:?}");
    }
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
    let ask = budget.ask(&Journal::default(), at(0)).unwrap();
    budget.set_rule(rule(10));
    budget.grant(answer(&mut store, &ask, at(0)), Cells::default());
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
    assert_eq!(names(list.asks(last(&Journal::default()))), [Period::Minute, Period::Minute]);
    assert!(!list.is_open());
}

/// A budget, and the store of it.
#[derive(Debug)]
struct Bench {
    rule: Rule,
    budget: Budget,
    store: Option<State>,
    /// What the store has answered, and the budget has not heard yet.
    answer: Option<Leased>,
    /// Units that are leased by what the store was told.
    leased: i64,
    waits: u32,
}

impl Bench {
    fn new(rule: Rule) -> Self {
        Self { rule, budget: Budget::new(rule), store: None, answer: None, leased: 0, waits: 0 }
    }

    fn serve(&mut self, ask: Option<Ask>, now: Time) {
        let Some(ask) = ask else { return };
        let now = now.max(ask.reached);
        let mut state = self.store.clone().unwrap_or_else(|| State::new(&ask.rule, &TimeZone::UTC, now));
        state.advance(&ask.rule, &TimeZone::UTC, now);
        for one in &ask.settled {
            state.give_back(one.slot, one.returned);
            self.leased -= i64::try_from(one.spent + one.returned).unwrap();
        }
        let granted = state.grant(&ask.rule, ask.wanted);
        let ahead = state.grant_ahead(&ask.rule, ask.ahead);
        self.leased += i64::try_from(granted + ahead).unwrap();
        assert!(self.leased >= 0, "units went back that were never leased");
        // That time has passed is not written down.
        if granted + ahead > 0 || ask.settled.iter().any(|one| one.spent > 0 && one.slot == state.slot()) {
            self.store = Some(state.clone());
        } else if let Some(store) = &mut self.store {
            ask.settled.iter().for_each(|one| store.give_back(one.slot, one.returned));
        }
        assert!(
            self.answer.replace(Leased { granted, ahead, elsewhere: false, state }).is_none(),
            "one question at a time"
        );
    }

    fn hear(&mut self) {
        if let Some(leased) = self.answer.take() {
            self.budget.grant(leased, Cells::default());
        }
    }

    /// Whether so many units are admitted. What nobody waits for is asked, and stays unheard where `late` is set.
    fn check(&mut self, units: u64, now: Time, late: bool) -> bool {
        self.budget.advance(&TimeZone::UTC, now);
        for _ in 0..4 {
            match self.budget.cover(units) {
                Cover::Leased => {
                    if self.budget.spend(units, now) && self.answer.is_none() {
                        self.budget.want(0);
                        let ask = self.budget.ask(&Journal::default(), now);
                        self.serve(ask, now);
                    }
                    if !late {
                        self.hear();
                    }
                    return true;
                }
                Cover::Short => return false,
                Cover::Unknown | Cover::Doubtful => {
                    self.waits += 1;
                    self.hear();
                    self.budget.want(units);
                    let ask = self.budget.ask(&Journal::default(), now);
                    self.serve(ask, now);
                    self.hear();
                    self.budget.advance(&TimeZone::UTC, now);
                }
            }
        }
        panic!("asks for ever: {self:?}");
    }

    /// Whether the second that is over was an idle one. Leases then go back.
    fn tidy(&mut self, now: Time) {
        self.hear();
        if self.budget.is_idle(now) {
            let ask = self.budget.end();
            assert!(!self.budget.is_open());
            self.serve(ask, now);
        }
    }

    fn last(&mut self, now: Time) {
        self.hear();
        let ask = self.budget.end();
        self.serve(ask, now);
        assert_eq!(self.leased, 0, "nothing is leased that nobody knows of");
    }
}

#[test]
fn under_steady_demand_only_the_first_checks_wait() {
    for (algorithm, capacity, step) in [
        (Algorithm::FixedWindow, 2_000, 60),
        (Algorithm::FixedWindow, 1_000, 60),
        (Algorithm::SlidingWindow, 2_000, 60),
        (Algorithm::SlidingWindow, 12_000, 10),
    ] {
        let mut bench = Bench::new(rule(capacity, algorithm));
        for i in 0..180_000 / step {
            assert!(bench.check(1, at(i * step), false));
        }
        assert!(bench.waits <= 3, "{algorithm:?} {capacity}: {}", bench.waits);
        bench.last(at(180_000));
    }
}

#[test]
fn a_sliding_window_at_its_limit_waits_once_in_a_window() {
    let mut bench = Bench::new(rule(1_000, Algorithm::SlidingWindow));
    let admitted = (0..6_000).filter(|i| bench.check(1, at(i * 60), false)).count();
    assert!((5_900..=6_000).contains(&admitted), "{admitted}");
    assert!(bench.waits <= 20, "{}", bench.waits);
}

#[test]
fn what_is_leased_ahead_is_no_reason_to_refuse() {
    let mut bench = Bench::new(rule(20, Algorithm::SlidingWindow));
    for millis in [500, 1_500, 1_600] {
        assert!(bench.check(1, at(millis), false));
    }
    let ahead = bench.store.as_ref().unwrap().available_ahead(&bench.rule, 0);
    assert!(bench.store.as_ref().unwrap().available(&bench.rule) <= ahead && bench.leased > 0);
    assert_eq!(bench.budget.view(at(1_600)).remaining, 17);
    assert_eq!(bench.budget.available_at(18, at(1_600)), Some(at(61_000)), "as if nothing was leased");
    assert!(bench.check(17, at(1_700), false));
    assert!(!bench.check(1, at(1_800), false));
    bench.last(at(1_800));
}

#[test]
fn a_slot_that_the_clock_jumps_past_gives_its_units_back() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let mut bench = Bench::new(rule(1_000, algorithm));
        for i in 0..60 {
            assert!(bench.check(1, at(57_000 + i * 50), false));
        }
        let spare = bench.leased;
        assert!(spare > 0);
        assert!(bench.check(1_000, at(400_000), false), "{algorithm:?}");
        bench.last(at(400_000));
        assert_eq!(bench.store.unwrap().available(&bench.rule), 0);
    }
}

#[test]
fn units_leased_ahead_fit_a_limit_that_was_lowered() {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let mut bench = Bench::new(rule(1_000, algorithm));
        for i in 0..60 {
            assert!(bench.check(1, at(57_000 + i * 50), true));
        }
        bench.rule = rule(70, algorithm);
        bench.budget.set_rule(bench.rule);
        let admitted = (0..100).filter(|i| bench.check(1, at(60_000 + i), true)).count();
        assert_eq!(admitted, if algorithm == Algorithm::FixedWindow { 70 } else { 10 });
        bench.last(at(61_000));
    }
}

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// The clock moves so far, also back; then a check of so many units, after which the store's answer is late.
    Check(i64, u64, bool),
    /// The store's answer comes, and what is idle goes back.
    Tidy,
    Capacity(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let clock = prop_oneof![20 => 0_i64..300, 4 => 300_i64..1_500, 1 => 0_i64..100_000, 1 => -100_000_i64..0];
    let check = (clock, 0_u64..4, any::<bool>()).prop_map(|(millis, units, late)| Step::Check(millis, units, late));
    let step = prop_oneof![40 => check, 2 => Just(Step::Tidy), 1 => (0_u64..60).prop_map(Step::Capacity)];
    prop::collection::vec(step, 1..400)
}

#[test]
fn what_is_reserved_can_be_put_back() {
    let rule = |capacity| Rule::of(&limit("a", capacity, Algorithm::FixedWindow));
    let journal = Journal::default();
    let (mut budget, mut store) = (Budget::new(rule(100)), None);
    budget.want(60);
    let ask = budget.ask(&journal, at(0)).unwrap();
    budget.grant(answer(&mut store, &ask, at(0)), Cells::default());
    let (lease, _) = budget.reserve(50, at(0));
    assert_eq!((budget.view(at(0)).remaining, budget.cover(11)), (50, Cover::Unknown));
    budget.unreserve(lease, 20);
    assert_eq!((budget.view(at(0)).remaining, budget.cover(30)), (70, Cover::Leased));
    // What was reserved is not told as spent, nor is what was put back.
    budget.want(0);
    assert_eq!(budget.ask(&journal, at(0)).unwrap().settled, []);
    // After the limit was lowered, it goes back to the store.
    let (lease, _) = budget.reserve(30, at(0));
    budget.set_rule(rule(50));
    budget.unreserve(lease, 30);
    let returned = |budget: &mut Budget, now| {
        budget.want(0);
        budget.ask(&journal, now).unwrap().settled.iter().map(|one| (one.spent, one.returned)).collect::<Vec<_>>()
    };
    assert_eq!(returned(&mut budget, at(0)), [(0, 10)]);
    // And so it does when its slot is over.
    let (lease, _) = budget.reserve(20, at(0));
    budget.advance(&TimeZone::UTC, at(60_000));
    budget.unreserve(lease, 20);
    assert_eq!(returned(&mut budget, at(60_000)), [(0, 20)]);
    assert_eq!(budget.cover(1), Cover::Unknown);
}

#[test]
fn what_is_put_back_of_a_limit_that_was_taken_away_goes_back() {
    let mut list = BudgetList::default();
    let (a, b) = (limit("a", 10, Algorithm::FixedWindow), limit("b", 10, Algorithm::FixedWindow));
    list.set_limits(std::slice::from_ref(&b));
    list.unreserve(&a, LeaseName { slot: Slot::new(7), cell: None }, 4);
    assert!(list.is_open());
    let [(of, ask)] = list.asks(last(&Journal::default())).try_into().unwrap();
    assert_eq!((of, ask.wanted), (a, 0));
    assert_eq!(ask.settled, [Settled { slot: Slot::new(7), cell: None, spent: 0, returned: 4 }]);
}

/// One round of a process that shares the store.
fn shared(journal: &Journal, now: Time, at: u64) -> Round<'_> {
    Round { journal, now, at: Some(Duration::from_millis(at)), mode: Asking::Wanted }
}

/// The same for one budget: what was asked.
fn round(budget: &mut Budget, store: &mut Option<State>, now: Time, at: u64) -> Option<Ask> {
    let ask = shared(&Journal::default(), now, at).ask(budget)?;
    let leased = answer(store, &ask, now);
    let said = Said::of(ask.needed, leased.granted, false);
    budget.grant(leased, Cells::default());
    if let Some(said) = said {
        budget.hear(said);
    }
    Some(ask)
}

#[test]
fn what_is_called_back_goes_back_whole_but_for_what_is_reserved() {
    let (mut budget, mut store) = (Budget::new(rule(1_000, Algorithm::FixedWindow)), None);
    // Spent from in two seconds, so that it is looked ahead.
    for millis in [58_100, 59_100] {
        budget.want(10);
        round(&mut budget, &mut store, at(millis), 0);
        budget.advance(&TimeZone::UTC, at(millis));
        budget.spend(9, at(millis));
    }
    let (reserved, _) = budget.reserve(2, at(59_100));
    assert!(budget.leased() > 0 && store.as_ref().unwrap().available_ahead(&budget_rule(), 0) < 1_000, "{budget:?}");
    budget.want(5);
    budget.recall();
    let ask = round(&mut budget, &mut store, at(59_200), 10).unwrap();
    assert_eq!((ask.wanted, ask.needed, ask.ahead), (0, 0, 0), "others come first");
    assert_eq!(ask.settled.iter().map(|one| one.spent).sum::<u64>(), 9);
    let store_has = store.as_ref().unwrap();
    assert_eq!((store_has.available(&budget_rule()), store_has.available_ahead(&budget_rule(), 0)), (980, 1_000));
    assert_eq!((budget.leased(), budget.cover(5), budget.urgency()), (0, Cover::Unknown, Urgency::Soon));
    // It is told once, and what was reserved can still be put back.
    budget.recall();
    assert_eq!(round(&mut budget, &mut store, at(59_300), 20).unwrap().settled, []);
    budget.unreserve(reserved, 2);
    budget.want(0);
    round(&mut budget, &mut store, at(59_400), 30);
    assert_eq!(store.as_ref().unwrap().available(&budget_rule()) + budget.leased(), 982);
    for is_held in [true, false] {
        budget.recall();
        assert_eq!(round(&mut budget, &mut store, at(59_500), 40).is_some(), is_held);
    }
}

fn budget_rule() -> Rule {
    rule(1_000, Algorithm::FixedWindow)
}

#[test]
fn what_is_needed_is_what_the_lease_lacks() {
    let (mut budget, mut store) = (Budget::new(rule(1_000, Algorithm::FixedWindow)), None);
    budget.want(10);
    assert_eq!(round(&mut budget, &mut store, at(0), 0).unwrap().needed, 10);
    budget.want(15);
    let ask = round(&mut budget, &mut store, at(0), 0).unwrap();
    assert_eq!((ask.wanted, ask.needed), (15, 5));
    // What is leased is of another slot.
    budget.want(15);
    assert_eq!(shared(&Journal::default(), at(60_000), 0).ask(&mut budget).unwrap().needed, 15);
}

#[test]
fn those_who_wait_while_it_is_denied_do_not_ask_again() {
    let (mut budget, mut store) = (Budget::new(rule(10, Algorithm::FixedWindow)), None);
    budget.want(10);
    round(&mut budget, &mut store, at(0), 0);
    budget.advance(&TimeZone::UTC, at(0));
    budget.spend(10, at(0));
    assert_eq!(budget.cover(1), Cover::Doubtful, "nobody has said that others hold none");
    budget.want(1);
    let ask = shared(&Journal::default(), at(0), 1).ask(&mut budget).unwrap();
    // Another comes while the store is asked.
    budget.want(1);
    let leased = answer(&mut store, &ask, at(0));
    budget.grant(leased, Cells::default());
    budget.hear(Said::Denied);
    assert!(round(&mut budget, &mut store, at(0), 2).is_none());
    assert_eq!(budget.cover(1), Cover::Short);
    // Who wants to know how it stands, is told.
    budget.want(1);
    budget.want_to_know();
    assert!(round(&mut budget, &mut store, at(0), 3).is_some());
    // After a second it is as good as unsaid.
    budget.doubt(Duration::from_millis(1_002));
    assert_eq!((budget.cover(1), budget.cover(11)), (Cover::Short, Cover::Short));
    budget.doubt(Duration::from_millis(1_003));
    assert_eq!((budget.cover(1), budget.cover(11)), (Cover::Doubtful, Cover::Short));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is leased, and for when, and however late the store answers: a check is refused if and only if the units
    /// are really spent, and the views say what is left of them.
    #[test]
    fn a_budget_answers_as_if_units_were_spent_one_by_one(
        steps in steps(),
        start in 55_000_i64..60_000,
        sliding in any::<bool>(),
        capacity in 1_u64..60,
    ) {
        let algorithm = if sliding { Algorithm::SlidingWindow } else { Algorithm::FixedWindow };
        let mut bench = Bench::new(rule(capacity, algorithm));
        prop_assert!(bench.check(1, at(start), false));
        let mut model = State::new(&bench.rule, &TimeZone::UTC, at(start));
        model.grant(&bench.rule, 1);
        let (mut wall, mut seen) = (start, model.clone());
        for step in steps {
            match step {
                Step::Check(millis, units, late) => {
                    // Whether a slot in which nothing is admitted is left again where the clock is set back, is left open.
                    if millis > 0 || model.slot() == seen.slot() {
                        wall += millis;
                    }
                    seen.advance(&bench.rule, &TimeZone::UTC, at(wall));
                    let mut state = model.clone();
                    state.advance(&bench.rule, &TimeZone::UTC, at(wall));
                    let expected = state.available(&bench.rule) >= units;
                    prop_assert_eq!(bench.check(units, at(wall), late), expected, "{:?} {:?}", state, bench);
                    if expected && units > 0 {
                        state.grant(&bench.rule, units);
                        let left = state.available(&bench.rule);
                        prop_assert_eq!(bench.budget.view(at(wall)).remaining, left);
                        let more = left + 1;
                        let more_at = state.available_at(&bench.rule, more, at(wall));
                        prop_assert_eq!(bench.budget.available_at(more, at(wall)), more_at);
                        model = state;
                    }
                }
                Step::Tidy => bench.tidy(at(wall)),
                Step::Capacity(capacity) => {
                    bench.rule = rule(capacity, algorithm);
                    bench.budget.set_rule(bench.rule);
                }
            }
        }
        bench.last(at(wall));
    }
}

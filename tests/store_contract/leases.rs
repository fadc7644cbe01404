//! Leases of budgets.

use tollgate::decision::quota::{Rule, Slot};
use tollgate::domain::{
    AccountId, Algorithm, BudgetId, Environment, KeyId, Limit, LimitName, Period, Subject, Time, TimeZone,
};
use tollgate::store::{
    Cell, ClosedLease, Closing, Incarnation, KnownSpends, LeaseAsk, LeaseBatch, Leased, Settled, SharedStore,
    Uncertain, UncertainRow,
};

use crate::records::NOW;
use crate::replication::{close_leases, register_if_shared};

const FIRST: Incarnation = Incarnation([1; 16]);
const SECOND: Incarnation = Incarnation([2; 16]);
const THIRD: Incarnation = Incarnation([3; 16]);

fn limit(capacity: u64, algorithm: Algorithm) -> Limit {
    Limit { name: LimitName::parse("per-minute").unwrap(), capacity, period: Period::Minute, algorithm }
}

fn ask(account: &str, limit: &Limit, wanted: u64) -> LeaseAsk {
    let subject = Subject::Account(AccountId::parse(account).unwrap(), Environment::Live);
    let budget = BudgetId::of_limit(&subject, limit);
    LeaseAsk {
        budget,
        account: AccountId::parse(account).unwrap(),
        rule: Rule::of(limit),
        zone: TimeZone::UTC,
        settled: vec![],
        reached: Time::from_millis(0),
        wanted,
        needed: wanted,
        recalled: false,
        cell: None,
        ahead: 0,
        ahead_cell: None,
    }
}

async fn lease(store: &SharedStore, incarnation: Incarnation, now: Time, asks: Vec<LeaseAsk>) -> Vec<Leased> {
    register_if_shared(store, incarnation).await;
    store.lease(&LeaseBatch { incarnation, now, asks, released: Vec::new() }).await.unwrap()
}

async fn one(store: &SharedStore, incarnation: Incarnation, ask: LeaseAsk) -> Leased {
    lease(store, incarnation, NOW, vec![ask]).await.remove(0)
}

fn settled(slot: Slot, spent: u64, returned: u64) -> Vec<Settled> {
    vec![Settled { slot, cell: None, spent, returned }]
}

async fn close(store: &SharedStore, survivor: Incarnation, policy: Uncertain) -> Vec<ClosedLease> {
    close_leases(store, Closing::at_start(survivor, NOW, policy, None)).await.uncertain
}

pub(crate) async fn no_more_is_leased_than_there_is(store: SharedStore) {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let limit = limit(10, algorithm);
        assert_eq!(one(&store, FIRST, ask("acct_a", &limit, 7)).await.granted, 7);
        assert_eq!(one(&store, SECOND, ask("acct_a", &limit, 7)).await.granted, 3, "{algorithm:?}");
        assert_eq!(one(&store, FIRST, ask("acct_a", &limit, 1)).await.granted, 0);
        assert_eq!(one(&store, FIRST, ask("acct_b", &limit, 10)).await.granted, 10, "another account's");
        let raised = Limit { capacity: 12, ..limit.clone() };
        assert_eq!(one(&store, FIRST, ask("acct_a", &raised, 5)).await.granted, 2);
        let next_minute = lease(&store, FIRST, NOW.plus_millis(120_000), vec![ask("acct_a", &limit, 99)]).await;
        assert_eq!(next_minute[0].granted, 10);
        // A clock that goes back opens nothing.
        assert_eq!(one(&store, FIRST, ask("acct_a", &limit, 1)).await.granted, 0);
    }
}

pub(crate) async fn a_budget_that_is_asked_for_twice_is_one(store: SharedStore) {
    let limit = limit(10, Algorithm::FixedWindow);
    let asks = vec![ask("acct_a", &limit, 7), ask("acct_b", &limit, 1), ask("acct_a", &limit, 7)];
    let granted = |leased: Vec<Leased>| leased.iter().map(|leased| leased.granted).collect::<Vec<_>>();
    assert_eq!(granted(lease(&store, FIRST, NOW, asks.clone()).await), [7, 1, 3]);
    assert_eq!(granted(lease(&store, FIRST, NOW, asks).await), [0, 1, 0]);
    let closed = close(&store, SECOND, Uncertain::Charge).await;
    assert_eq!(closed.iter().map(|lease| lease.units).collect::<Vec<_>>(), [10, 2]);
}

pub(crate) async fn what_is_returned_can_be_leased_again_and_what_is_spent_not(store: SharedStore) {
    let limit = limit(10, Algorithm::FixedWindow);
    let leased = one(&store, FIRST, ask("acct_a", &limit, 10)).await;
    let slot = leased.state.slot();
    let again = LeaseAsk { settled: settled(slot, 4, 6), ..ask("acct_a", &limit, 8) };
    assert_eq!(one(&store, FIRST, again).await.granted, 6);
    // What is returned of a window that is over comes too late.
    let late = LeaseAsk { settled: settled(slot, 0, 6), ..ask("acct_a", &limit, 0) };
    lease(&store, FIRST, NOW.plus_millis(60_000), vec![late]).await;
    let next = lease(&store, FIRST, NOW.plus_millis(60_000), vec![ask("acct_a", &limit, 99)]).await;
    assert_eq!(next[0].granted, 10);
}

pub(crate) async fn leases_of_the_dead_are_charged_or_refunded(store: SharedStore) {
    let limit = limit(10, Algorithm::FixedWindow);
    let slot = one(&store, FIRST, ask("acct_a", &limit, 8)).await.state.slot();
    one(&store, FIRST, LeaseAsk { settled: settled(slot, 3, 1), ..ask("acct_a", &limit, 0) }).await;
    one(&store, SECOND, ask("acct_a", &limit, 2)).await;
    let closed = close(&store, SECOND, Uncertain::Charge).await;
    assert_eq!(closed.iter().map(|lease| (lease.slot, lease.units)).collect::<Vec<_>>(), [(slot, 4)]);
    assert_eq!(closed[0].budget, ask("acct_a", &limit, 0).budget);
    assert_eq!(close(&store, SECOND, Uncertain::Charge).await, [], "once");
    // 8 + 2 were granted, and 1 came back.
    assert_eq!(one(&store, THIRD, ask("acct_a", &limit, 99)).await.granted, 1);
    let closed = close(&store, THIRD, Uncertain::Refund).await;
    assert_eq!(closed.iter().map(|lease| lease.units).sum::<u64>(), 2);
    assert_eq!(one(&store, THIRD, ask("acct_a", &limit, 99)).await.granted, 2);
}

/// What a journal tells of the dead.
pub(crate) async fn leases_of_which_it_is_known_what_was_spent(store: SharedStore) {
    let limit = limit(20, Algorithm::FixedWindow);
    let cell = |number: u32, value: u64| Some(Cell { number, value });
    // The counter was another lease's before, up to 100.
    let slot = one(&store, FIRST, LeaseAsk { cell: cell(4, 100), ..ask("acct_a", &limit, 8) }).await.state.slot();
    // 3 were spent, 1 went back, 2 more were granted; then another 2 were spent.
    let told = vec![Settled { slot, cell: Some(4), spent: 3, returned: 1 }];
    one(&store, FIRST, LeaseAsk { settled: told, cell: cell(4, 103), ..ask("acct_a", &limit, 2) }).await;
    // Another lease of the same slot, of which nothing was spent, and one without a counter.
    one(&store, FIRST, LeaseAsk { cell: cell(5, 0), ..ask("acct_a", &limit, 5) }).await;
    one(&store, FIRST, ask("acct_a", &limit, 3)).await;
    // Another process, with the same number.
    one(&store, SECOND, LeaseAsk { cell: cell(4, 0), ..ask("acct_a", &limit, 1) }).await;
    let known = KnownSpends { incarnation: FIRST, counters: [(4, 105)].into() };
    let closed = close_leases(&store, Closing::at_start(THIRD, NOW, Uncertain::Charge, Some(&known))).await;
    let mut uncertain: Vec<u64> = closed.uncertain.iter().map(|lease| lease.units).collect();
    uncertain.sort_unstable();
    assert_eq!((closed.known, uncertain), (2, vec![1, 3]));
    // 20, less the 3 + 2 that were spent and the 3 + 1 that are uncertain.
    assert_eq!(one(&store, THIRD, ask("acct_a", &limit, 99)).await.granted, 11);
    let hour = NOW.hour();
    let account = AccountId::parse("acct_a").unwrap();
    let rows = store.uncertain(&account, None, hour..hour + 1, 10).await.unwrap();
    assert_eq!(rows, [UncertainRow { budget: ask("acct_a", &limit, 0).budget, hour, given_back: false, units: 4 }]);
    assert_eq!(store.uncertain(&account, None, hour + 1..hour + 9, 10).await.unwrap(), []);
    let other = AccountId::parse("acct_b").unwrap();
    assert_eq!(store.uncertain(&other, None, hour..hour + 1, 10).await.unwrap(), []);
}

/// The two do not belong together: more was spent than was leased.
pub(crate) async fn a_journal_that_tells_too_much_gives_nothing_back(store: SharedStore) {
    let limit = limit(10, Algorithm::FixedWindow);
    one(&store, FIRST, LeaseAsk { cell: Some(Cell { number: 1, value: 50 }), ..ask("acct_a", &limit, 8) }).await;
    for counter in [59, 49] {
        let known = KnownSpends { incarnation: FIRST, counters: [(1, counter)].into() };
        close_leases(&store, Closing::at_start(THIRD, NOW, Uncertain::Charge, Some(&known))).await;
    }
    assert_eq!(one(&store, THIRD, ask("acct_a", &limit, 99)).await.granted, 2);
}

pub(crate) async fn what_is_uncertain_of_one_key(store: SharedStore) {
    let limit = limit(10, Algorithm::FixedWindow);
    let account = AccountId::parse("acct_a").unwrap();
    let keys = [1, 2].map(|byte| KeyId::from_bytes([byte; 16]));
    let hour = NOW.hour();
    for (policy, given_back) in [(Uncertain::Charge, false), (Uncertain::Refund, true)] {
        for key in keys {
            let budget = BudgetId::of_limit(&Subject::Key(key), &limit);
            one(&store, FIRST, LeaseAsk { budget, ..ask("acct_a", &limit, 4) }).await;
        }
        close(&store, SECOND, policy).await;
        for key in keys {
            let rows = store.uncertain(&account, Some(key), hour..hour + 1, 10).await.unwrap();
            let budget = BudgetId::of_limit(&Subject::Key(key), &limit);
            assert_eq!(rows.last(), Some(&UncertainRow { budget, hour, given_back, units: 4 }));
        }
    }
    assert_eq!(store.uncertain(&account, None, hour..hour + 1, 10).await.unwrap().len(), 4);
}

pub(crate) async fn a_large_batch_of_leases(store: SharedStore) {
    let limit = limit(10, Algorithm::SlidingWindow);
    let asks: Vec<LeaseAsk> = (0..5_000).map(|i| ask(&format!("acct_{i}"), &limit, 4)).collect();
    let leased = lease(&store, FIRST, NOW, asks.clone()).await;
    assert!(leased.iter().all(|leased| leased.granted == 4));
    let slot = leased[0].state.slot();
    let asks = asks.into_iter().map(|ask| LeaseAsk { settled: settled(slot, 1, 3), wanted: 99, ..ask }).collect();
    assert!(lease(&store, FIRST, NOW, asks).await.iter().all(|leased| leased.granted == 9));
    let closed = close(&store, SECOND, Uncertain::Charge).await;
    assert_eq!((closed.len(), closed.iter().map(|lease| lease.units).sum::<u64>()), (5_000, 45_000));
}

pub(crate) async fn leases_at_once_share_what_there_is(store: SharedStore) {
    let limit = limit(1_000, Algorithm::FixedWindow);
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..50 {
        let (store, ask) = (store.clone(), ask("acct_a", &limit, 30));
        calls.spawn(async move { one(&store, Incarnation([i; 16]), ask).await.granted });
    }
    assert_eq!(calls.join_all().await.iter().sum::<u64>(), 1_000);
}

pub(crate) async fn units_of_the_next_slot_are_leased_before_it_begins(store: SharedStore) {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let limit = limit(10, algorithm);
        let ahead = |wanted, ahead| LeaseAsk { ahead, needed: 0, ..ask("acct_a", &limit, wanted) };
        let leased = one(&store, FIRST, ahead(6, 3)).await;
        assert_eq!((leased.granted, leased.ahead), (6, 3), "{algorithm:?}");
        let (now, next) = (leased.state.slot(), leased.state.next_slot());
        // In a sliding window they are some of the same units; in a fixed one they are the next window's.
        let (left, left_ahead) = if algorithm == Algorithm::FixedWindow { (4, 7) } else { (1, 0) };
        let leased = one(&store, SECOND, ahead(9, 9)).await;
        assert_eq!((leased.granted, leased.ahead), (left, left_ahead), "{algorithm:?}");
        // Those that are not needed, before their slot begins and after.
        let returned = LeaseAsk { settled: settled(next, 0, 1), ..ahead(0, 1) };
        assert_eq!(one(&store, FIRST, returned).await.ahead, 1);
        let begun = leased.state.bounds().end;
        let spent = [settled(now, 5, 1), settled(next, 2, 1)].concat();
        let after = LeaseAsk { settled: spent, ..ask("acct_a", &limit, 99) };
        let leased = lease(&store, FIRST, begun, vec![after]).await.remove(0);
        assert_eq!(leased.state.slot(), next);
        let room = if algorithm == Algorithm::FixedWindow { 10 - 2 - 7 } else { 10 - 5 - 1 - 2 };
        assert_eq!(leased.granted, room, "{algorithm:?}");
        let closed = close_leases(&store, Closing::at_start(THIRD, begun, Uncertain::Charge, None)).await.uncertain;
        let of = |slot: Slot| closed.iter().filter(|lease| lease.slot == slot).map(|lease| lease.units).sum::<u64>();
        assert_eq!((of(now), of(next)), (left, left_ahead + room), "{algorithm:?}");
    }
}

pub(crate) async fn units_leased_ahead_by_the_dead_are_charged_or_refunded(store: SharedStore) {
    for (policy, left) in [(Uncertain::Charge, 3), (Uncertain::Refund, 10)] {
        for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
            let limit = Limit {
                name: LimitName::parse(&format!("{policy:?}").to_lowercase()).unwrap(),
                ..limit(10, algorithm)
            };
            let leased = one(&store, FIRST, LeaseAsk { ahead: 7, ..ask("acct_a", &limit, 0) }).await;
            let closed = close_leases(&store, Closing::at_start(SECOND, NOW, policy, None)).await.uncertain;
            let closed: Vec<_> = closed.iter().map(|lease| (lease.slot, lease.units)).collect();
            assert_eq!(closed, [(leased.state.next_slot(), 7)]);
            let begun = leased.state.bounds().end;
            assert_eq!(
                lease(&store, SECOND, begun, vec![ask("acct_a", &limit, 99)]).await[0].granted,
                left,
                "{limit:?}"
            );
            close_leases(&store, Closing::at_start(FIRST, begun, Uncertain::Charge, None)).await;
        }
    }
}

pub(crate) async fn a_slot_that_was_begun_is_not_left_again_where_the_clock_is_set_back(store: SharedStore) {
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        let limit = limit(10, algorithm);
        let leased = one(&store, FIRST, LeaseAsk { ahead: 5, ..ask("acct_a", &limit, 2) }).await;
        let (next, reached) = (leased.state.next_slot(), leased.state.bounds().end);
        // All were spent in their slot before the store heard that it has begun, and the clock is back before it.
        let told = LeaseAsk { settled: settled(next, 5, 0), reached, ..ask("acct_a", &limit, 0) };
        assert_eq!(one(&store, FIRST, told).await.state.slot(), next);
        let restarted = one(&store, SECOND, ask("acct_a", &limit, 99)).await;
        let left = if algorithm == Algorithm::FixedWindow { 5 } else { 3 };
        assert_eq!((restarted.state.slot(), restarted.granted), (next, left), "{algorithm:?}");
    }
}

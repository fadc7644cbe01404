//! Leases and operations of processes that share a store.

use std::collections::HashMap;

use tollgate::decision::quota::{Rule, Slot};
use tollgate::domain::{AccountId, Algorithm, BudgetId, Environment, Limit, LimitName, OperationId, Period, TimeZone};
use tollgate::store::{
    Closing, Incarnation, LeaseAsk, LeaseBatch, Leased, NamedOperation, Operation, OperationBatch, OperationCharge,
    RecordError, Recorded, Refund, Settled, SharedStore, StoreError, Uncertain,
};

use crate::Shared;
use crate::records::{NOW, insert, key, key_id, with_account};
use crate::replication::{FIRST, LONG, SECOND, THIRD, poll, position, register, replication, silence};

fn rule(capacity: u64) -> Rule {
    Rule::of(&Limit {
        name: LimitName::parse("l").unwrap(),
        capacity,
        period: Period::Hour,
        algorithm: Algorithm::FixedWindow,
    })
}

fn account() -> AccountId {
    AccountId::parse("acct_a").unwrap()
}

fn budget(name: &str) -> BudgetId {
    BudgetId::stored(name.to_owned())
}

/// Wants so many of 10, and needs one of them.
pub(crate) fn ask(name: &str, wanted: u64) -> LeaseAsk {
    LeaseAsk {
        budget: budget(name),
        account: account(),
        rule: rule(10),
        zone: TimeZone::UTC,
        settled: vec![],
        reached: tollgate::domain::Time::from_millis(0),
        wanted,
        needed: wanted.min(1),
        recalled: false,
        cell: None,
        ahead: 0,
        ahead_cell: None,
    }
}

pub(crate) async fn try_lease(
    store: &SharedStore,
    incarnation: Incarnation,
    asks: Vec<LeaseAsk>,
) -> Result<Vec<Leased>, StoreError> {
    store.lease(&LeaseBatch { incarnation, now: NOW, asks, released: vec![] }).await
}

pub(crate) async fn lease(store: &SharedStore, incarnation: Incarnation, ask: LeaseAsk) -> Leased {
    try_lease(store, incarnation, vec![ask]).await.unwrap().remove(0)
}

async fn recalled(store: &SharedStore, incarnation: Incarnation, beat: i64) -> Vec<BudgetId> {
    let at = position(store).await;
    poll(store, incarnation, at, beat).await.recalled
}

fn operation(slot: Slot, units: u64) -> Operation {
    Operation {
        key_id: key_id(1),
        environment: Environment::Live,
        cost: units,
        credits: units,
        time: NOW,
        charges: vec![OperationCharge { budget: budget("b"), slot, cell: None, units }],
        refund_time: None,
    }
}

async fn record(
    store: &SharedStore,
    incarnation: Incarnation,
    named_operations: &[(&str, Operation)],
) -> Result<Vec<Recorded>, RecordError> {
    let named = |(name, operation): &(&str, Operation)| NamedOperation {
        account_id: account(),
        id: OperationId::parse(name).unwrap(),
        operation: operation.clone(),
    };
    let operations = named_operations.iter().map(named).collect();
    store.record_operations(&OperationBatch { incarnation, now: NOW, operations }).await
}

pub(crate) async fn units_are_called_back_from_who_holds_them(shared: Shared) {
    let store = &shared.store;
    for incarnation in [FIRST, SECOND, THIRD] {
        register(store, incarnation).await;
    }
    let leased = lease(store, FIRST, ask("b", 10)).await;
    assert_eq!((leased.granted, leased.elsewhere), (10, false));
    let slot = leased.state.slot();
    lease(store, FIRST, ask("another", 10)).await;
    let asked = lease(store, SECOND, ask("b", 5)).await;
    assert_eq!((asked.granted, asked.elsewhere), (0, true));
    assert_eq!(recalled(store, FIRST, 1).await, [budget("b")]);
    assert_eq!(recalled(store, FIRST, 2).await, [budget("b")], "until it is answered");
    assert_eq!(recalled(store, SECOND, 1).await, []);

    // The holder has spent 2, gives 8 back, and would like to have some again.
    let settled = vec![Settled { slot, cell: None, spent: 2, returned: 8 }];
    let answer = LeaseAsk { settled, recalled: true, needed: 0, ahead: 7, ..ask("b", 6) };
    let answered = lease(store, FIRST, answer).await;
    assert_eq!((answered.granted, answered.ahead, answered.elsewhere), (0, 0, false), "tight: only what is needed");
    assert_eq!(recalled(store, FIRST, 3).await, []);
    let asked = lease(store, SECOND, ask("b", 5)).await;
    assert_eq!((asked.granted, asked.elsewhere), (1, false));
    assert_eq!(lease(store, THIRD, LeaseAsk { needed: 4, ..ask("b", 5) }).await.granted, 4);
    shared.sql("UPDATE budgets SET tight_until = clock_timestamp() - interval '1 ms'").await;
    assert_eq!(lease(store, SECOND, LeaseAsk { ahead: 7, ..ask("b", 2) }).await.ahead, 7);
    assert_eq!(lease(store, FIRST, ask("b", 5)).await.granted, 1);

    // Nothing is left, and all of it is spent: nobody has any of it.
    let spent = |spent| vec![Settled { slot, cell: None, spent, returned: 0 }];
    let next = asked.state.next_slot();
    let unused = vec![Settled { slot: next, cell: None, spent: 0, returned: 7 }];
    for (incarnation, settled) in [(FIRST, spent(1)), (SECOND, [spent(3), unused].concat()), (THIRD, spent(4))] {
        lease(store, incarnation, LeaseAsk { settled, recalled: true, ..ask("b", 0) }).await;
    }
    let denied = lease(store, FIRST, ask("b", 1)).await;
    assert_eq!((denied.granted, denied.elsewhere), (0, false));
    assert_eq!(shared.sql("SELECT count(*) FROM recalls").await, "0");
    // A clock that was far ahead of this one leaves nothing tight.
    shared.sql("UPDATE budgets SET tight_until = clock_timestamp() + interval '1 hour'").await;
    assert_eq!(lease(store, FIRST, LeaseAsk { ahead: 5, ..ask("b", 0) }).await.ahead, 5);
}

/// What was granted in an answer that was lost is not held by anybody who could give it back.
pub(crate) async fn units_of_which_their_holder_does_not_know_are_spent(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    register(store, SECOND).await;
    lease(store, FIRST, ask("b", 6)).await;
    lease(store, FIRST, ask("another", 6)).await;
    assert!(lease(store, SECOND, LeaseAsk { needed: 9, ..ask("b", 9) }).await.elsewhere);
    assert_eq!(recalled(store, FIRST, 1).await, [budget("b")]);
    let batch =
        |released: Vec<BudgetId>| LeaseBatch { incarnation: FIRST, now: NOW, asks: vec![ask("another", 1)], released };
    assert_eq!(store.lease(&batch(vec![budget("b"), budget("new")])).await.unwrap().len(), 1);
    assert_eq!(recalled(store, FIRST, 2).await, []);
    let left = lease(store, SECOND, LeaseAsk { needed: 9, ..ask("b", 9) }).await;
    assert_eq!((left.granted, left.elsewhere), (0, false));
    let uncertain = store.uncertain(&account(), None, NOW.hour()..NOW.hour() + 1, 9).await.unwrap();
    assert_eq!(uncertain.iter().map(|row| (&row.budget, row.units)).collect::<Vec<_>>(), [(&budget("b"), 6)]);
    let nothing = LeaseBatch { asks: vec![], ..batch(vec![]) };
    assert_eq!(store.lease(&nothing).await.unwrap(), []);
}

/// An answer of the store was lost: it has leased what the process knows nothing of, and so can never give back.
pub(crate) async fn what_nobody_holds_is_not_called_back_again(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    register(store, SECOND).await;
    for (name, asks) in [("a", vec![]), ("b", vec![ask("c", 1)])] {
        lease(store, FIRST, ask(name, 10)).await;
        assert!(lease(store, SECOND, ask(name, 1)).await.elsewhere);
        let released = vec![budget(name)];
        let granted = asks.len();
        let leased = store.lease(&LeaseBatch { incarnation: FIRST, now: NOW, asks, released }).await.unwrap();
        assert_eq!(leased.iter().filter(|leased| leased.granted == 1).count(), granted);
        assert_eq!(shared.sql("SELECT count(*) FROM recalls").await, "0");
        // It counts as spent.
        let denied = lease(store, SECOND, ask(name, 1)).await;
        assert_eq!((denied.granted, denied.elsewhere), (0, false));
        assert_eq!(lease(store, FIRST, ask(name, 1)).await.granted, 0);
    }
}

/// Those who have ended can give nothing back: they are waited for until they are closed.
pub(crate) async fn units_of_who_is_gone_are_elsewhere_until_they_are_closed(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    register(store, SECOND).await;
    lease(store, FIRST, ask("b", 10)).await;
    assert!(lease(store, SECOND, ask("b", 1)).await.elsewhere);
    replication(store).depart(FIRST).await.unwrap();
    assert_eq!(shared.sql("SELECT count(*) FROM recalls").await, "0");
    assert!(lease(store, SECOND, ask("b", 1)).await.elsewhere);
    assert_eq!(shared.sql("SELECT count(*) FROM recalls").await, "0");
    let closed = store.close_leases(&Closing::at_start(SECOND, NOW, Uncertain::Charge, None)).await.unwrap();
    assert_eq!(closed.uncertain.iter().map(|lease| lease.units).sum::<u64>(), 10);
    assert!(!lease(store, SECOND, ask("b", 1)).await.elsewhere);
}

/// Who is not in the list is granted nothing, and charges nothing.
pub(crate) async fn who_is_buried_is_refused(shared: Shared) {
    let store = &shared.store;
    with_account(store).await;
    insert(store, vec![(1, key(1, "a"))]).await;
    register(store, FIRST).await;
    register(store, SECOND).await;
    let slot = lease(store, FIRST, ask("b", 4)).await.state.slot();
    silence(&shared, FIRST).await;
    let closing = Closing { watched: LONG, ..Closing::at_start(SECOND, NOW, Uncertain::Refund, None) };
    let closed = store.close_leases(&closing).await.unwrap();
    assert_eq!(closed.uncertain.iter().map(|lease| lease.units).collect::<Vec<_>>(), [4]);
    assert!(matches!(try_lease(store, FIRST, vec![ask("b", 1)]).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(try_lease(store, FIRST, vec![ask("new", 1)]).await, Err(StoreError::Unavailable(_))));
    let refused = record(store, FIRST, &[("a", operation(slot, 1))]).await;
    assert!(matches!(refused, Err(RecordError::NotWritten(StoreError::Unavailable(_)))), "{refused:?}");
    let found = store.operation(&account(), &OperationId::parse("a").unwrap(), NOW).await.unwrap();
    assert_eq!(found, None);
    assert_eq!(lease(store, SECOND, ask("b", 10)).await.granted, 10);
}

/// A database that went back is noticed by who asks for units before it is by his next poll.
pub(crate) async fn nothing_is_granted_by_a_database_that_moved(shared: Shared) {
    let store = &shared.store;
    with_account(store).await;
    insert(store, vec![(1, key(1, "a"))]).await;
    register(store, FIRST).await;
    let slot = lease(store, FIRST, ask("b", 4)).await.state.slot();
    record(store, FIRST, &[("before", operation(slot, 1))]).await.unwrap();
    let at = position(store).await;
    poll(store, FIRST, at, 1).await;
    let lineage = shared.sql("SELECT lineage FROM sequence").await;
    let moves = [
        ("UPDATE replicas SET beat = 0".to_owned(), "UPDATE replicas SET beat = 1".to_owned()),
        ("UPDATE sequence SET lineage = 'x'".to_owned(), format!("UPDATE sequence SET lineage = '{lineage}'")),
        (
            "UPDATE sequence SET moving = gen_random_uuid(), moving_since = now()".to_owned(),
            "UPDATE sequence SET moving = NULL, moving_since = NULL".to_owned(),
        ),
    ];
    for (there, back) in &moves {
        shared.sql(there).await;
        for name in ["b", "new"] {
            let refused = try_lease(store, FIRST, vec![ask(name, 1)]).await;
            assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{there}: {refused:?}");
        }
        let refused = record(store, FIRST, &[("a", operation(slot, 1))]).await;
        assert!(matches!(refused, Err(RecordError::NotWritten(StoreError::Unavailable(_)))), "{there}: {refused:?}");
        if there.contains("sequence") {
            let id = OperationId::parse("before").unwrap();
            assert!(store.refund_operation(&account(), &id, NOW).await.is_err(), "{there}");
            replication(store).depart(FIRST).await.unwrap();
            let closing = Closing::at_start(SECOND, NOW, Uncertain::Refund, None);
            assert!(store.close_leases(&closing).await.is_err(), "{there}");
        }
        shared.sql(back).await;
        register(store, FIRST).await;
        shared.sql("UPDATE replicas SET beat = 1").await;
    }
    assert_eq!(lease(store, FIRST, ask("b", 10)).await.granted, 6);
}

pub(crate) async fn one_operation_at_once_from_two_processes(shared: Shared) {
    let store = &shared.store;
    with_account(store).await;
    insert(store, vec![(1, key(1, "a"))]).await;
    let mut slot = Slot::new(0);
    for incarnation in [FIRST, SECOND] {
        register(store, incarnation).await;
        slot = lease(store, incarnation, ask("b", 5)).await.state.slot();
    }
    let (mut new, mut known) = (0, 0);
    for round in 0..20 {
        let names = [format!("{round}-a"), format!("{round}-b")];
        let both = [FIRST, SECOND].map(|incarnation| {
            let (store, mut names) = (store.clone(), names.clone());
            // In opposite orders.
            names.rotate_left(usize::from(incarnation == SECOND));
            async move {
                let operations = names.each_ref().map(|name| (name.as_str(), operation(slot, 0)));
                record(&store, incarnation, &operations).await.unwrap()
            }
        });
        let [first, second] = both;
        let (first, second) = tokio::join!(tokio::spawn(first), tokio::spawn(second));
        for recorded in first.unwrap().into_iter().chain(second.unwrap()) {
            match recorded {
                Recorded::New => new += 1,
                Recorded::Known(operation) => known += usize::from(operation.cost == 0),
            }
        }
    }
    assert_eq!((new, known), (40, 40));
}

/// What [`crossing_leases_neither_hang_nor_exceed`] remembers of one process.
#[derive(Default)]
struct Holding {
    held: HashMap<(String, Slot), u64>,
    spent: HashMap<String, u64>,
}

const NAMES: [&str; 4] = ["b", "c", "d", "e"];
const ROUNDS: u32 = 40;

/// Eight processes that ask for the same budgets, each in its own order, give back and charge operations, while others end.
pub(crate) async fn crossing_leases_neither_hang_nor_exceed(shared: Shared) {
    let store = &shared.store;
    with_account(store).await;
    insert(store, vec![(1, key(1, "a"))]).await;
    let mut processes = tokio::task::JoinSet::new();
    for number in 1..=8_u8 {
        let store = if number % 4 == 0 { shared.open().await } else { store.clone() };
        processes.spawn(async move { live(store, number).await });
    }
    let mut spent: HashMap<String, u64> = HashMap::new();
    for holding in processes.join_all().await {
        for (name, units) in holding.spent {
            *spent.entry(name).or_default() += units;
        }
    }
    // All are gone, and what they held and did not spend has gone back.
    register(store, FIRST).await;
    for name in NAMES {
        let left = lease(store, FIRST, LeaseAsk { rule: rule(500), needed: 1_000, ..ask(name, 1_000) }).await.granted;
        assert_eq!(left + spent.get(name).copied().unwrap_or(0), 500, "{name}");
    }
    assert_eq!(
        shared.sql("SELECT count(*) FROM leases WHERE incarnation <> decode(repeat('01', 16), 'hex')").await,
        "0"
    );
    assert_eq!(shared.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await, "0");
}

async fn live(store: SharedStore, number: u8) -> Holding {
    let incarnation = Incarnation([number; 16]);
    register(&store, incarnation).await;
    let mut holding = Holding::default();
    for round in 0..ROUNDS {
        let mut names = NAMES;
        names.rotate_left(usize::from(number) % 4);
        if (round + u32::from(number)) % 3 == 0 {
            names.reverse();
        }
        let mut asks = Vec::new();
        for (name, wanted) in names.into_iter().take(3).zip(1..) {
            // Half of what is held is spent, the other half goes back.
            let mut settled = Vec::new();
            for ((of, slot), held) in &mut holding.held {
                if of == name && *held > 2 {
                    let returned = *held / 2;
                    let spent = *held - returned;
                    *holding.spent.entry(name.to_owned()).or_default() += spent;
                    settled.push(Settled { slot: *slot, cell: None, spent, returned });
                    *held = 0;
                }
            }
            let is_answer = round % 4 == 0;
            asks.push(LeaseAsk { rule: rule(500), settled, recalled: is_answer, ..ask(name, wanted * 2) });
        }
        let leased = try_lease(&store, incarnation, asks.clone()).await.unwrap();
        for (ask, one) in asks.iter().zip(leased) {
            *holding.held.entry((ask.budget.as_str().to_owned(), one.state.slot())).or_default() += one.granted;
        }
        charge(&store, incarnation, round, &mut holding).await;
    }
    replication(&store).depart(incarnation).await.unwrap();
    let closing = Closing::at_start(Incarnation([number + 100; 16]), NOW, Uncertain::Refund, None);
    store.close_leases(&closing).await.unwrap();
    holding
}

/// Operations that two processes record, and one of them gives back.
async fn charge(store: &SharedStore, incarnation: Incarnation, round: u32, holding: &mut Holding) {
    let held = holding.held.iter_mut().find(|((name, _), held)| name == "b" && **held > 1);
    let Some(((_, slot), held)) = held else { return };
    let name = format!("{round}-{}", incarnation.0[0] / 2);
    let recorded = record(store, incarnation, &[(&name, operation(*slot, 1))]).await.unwrap();
    if recorded == [Recorded::New] {
        *held -= 1;
        *holding.spent.entry("b".to_owned()).or_default() += 1;
        if round.is_multiple_of(2) {
            let id = OperationId::parse(&name).unwrap();
            let refund = store.refund_operation(&account(), &id, NOW).await.unwrap();
            assert!(matches!(refund, Refund::Done(_)), "{refund:?}");
            *holding.spent.entry("b".to_owned()).or_default() -= 1;
        }
    }
}

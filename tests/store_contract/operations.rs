//! Operations: what is charged once for a name.

use tollgate::decision::quota::{Rule, Slot};
use tollgate::domain::{
    AccountId, Algorithm, BudgetId, Environment, Limit, LimitName, OperationId, Period, Subject, Time, TimeZone,
    Verdict,
};
use tollgate::store::{
    Closing, Incarnation, LeaseAsk, LeaseBatch, NamedOperation, OPERATIONS_KEPT_MILLIS, Operation, OperationBatch,
    OperationCharge, Recorded, Refund, SharedStore, Uncertain, UsageOf, UsageQuery, Write,
};

use crate::records::{NOW, account, commit, key, key_id, plan, secret};
use crate::replication::{close_leases, register_if_shared};

const PROCESS: Incarnation = Incarnation([1; 16]);
const OTHER_PROCESS: Incarnation = Incarnation([2; 16]);

fn account_id(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

fn id(name: &str) -> OperationId {
    OperationId::parse(name).unwrap()
}

fn limit(algorithm: Algorithm) -> Limit {
    Limit { name: LimitName::parse("l").unwrap(), capacity: 100, period: Period::Minute, algorithm }
}

fn budget(algorithm: Algorithm) -> BudgetId {
    BudgetId::of_limit(&Subject::Account(account_id("acct_1"), Environment::Live), &limit(algorithm))
}

/// Leases units; the slot that they are of, and how many of the capacity are left.
async fn lease(store: &SharedStore, by: Incarnation, algorithm: Algorithm, now: Time, wanted: u64) -> (Slot, u64) {
    let rule = Rule::of(&limit(algorithm));
    let asks = vec![LeaseAsk {
        budget: budget(algorithm),
        account: AccountId::parse("acct_a").unwrap(),
        rule,
        zone: TimeZone::UTC,
        settled: vec![],
        reached: Time::from_millis(0),
        wanted,
        needed: wanted,
        recalled: false,
        cell: None,
        ahead: 0,
        ahead_cell: None,
    }];
    register_if_shared(store, by).await;
    let leased = store.lease(&LeaseBatch { incarnation: by, now, asks, released: Vec::new() }).await.unwrap().remove(0);
    assert_eq!(leased.granted, wanted);
    (leased.state.slot(), leased.state.available(&rule))
}

/// Units that a process has leased and not charged.
async fn outstanding(store: &SharedStore) -> u64 {
    let survivor = Incarnation([9; 16]);
    let closed = close_leases(store, Closing::at_start(survivor, NOW, Uncertain::Refund, None)).await.uncertain;
    closed.iter().map(|lease| lease.units).sum()
}

/// A store with the key 1 of the account `acct_1`.
async fn with_key(store: &SharedStore) {
    let writes = [
        Write::InsertPlan(plan("p")),
        Write::InsertAccount(account("1", "p")),
        Write::InsertKey(key(1, "1"), secret(1)),
    ];
    for write in writes {
        store.commit(commit(vec![write])).await.unwrap();
    }
}

fn operation(time: Time, charges: &[(Algorithm, Slot, u64)]) -> Operation {
    let charge = |(algorithm, slot, units): &(_, _, _)| OperationCharge {
        budget: budget(*algorithm),
        slot: *slot,
        cell: None,
        units: *units,
    };
    Operation {
        key_id: key_id(1),
        environment: Environment::Live,
        cost: 5,
        credits: 4,
        time,
        charges: charges.iter().map(charge).collect(),
        refund_time: None,
    }
}

fn named(account: &str, name: &str, operation: Operation) -> NamedOperation {
    NamedOperation { account_id: account_id(account), id: id(name), operation }
}

async fn record(store: &SharedStore, now: Time, operations: Vec<NamedOperation>) -> Vec<Recorded> {
    register_if_shared(store, PROCESS).await;
    store.record_operations(&OperationBatch { incarnation: PROCESS, now, operations }).await.unwrap()
}

async fn find(store: &SharedStore, name: &str, now: Time) -> Option<Operation> {
    store.operation(&account_id("acct_1"), &id(name), now).await.unwrap()
}

/// Requests and credits of the key 1.
async fn used(store: &SharedStore, verdict: Verdict) -> (u64, u64) {
    let hour = NOW.hour();
    let query =
        UsageQuery { of: UsageOf::Key(key_id(1)), buckets: vec![(hour - 99, hour + 99)], by_key: false, rows_max: 99 };
    let rows = store.usage(&query).await.unwrap();
    let rows = rows.iter().filter(|row| row.verdict == verdict);
    rows.fold((0, 0), |(requests, credits), row| (requests + row.requests, credits + row.credits))
}

pub(crate) async fn an_operation_is_charged_once_for_its_name(store: SharedStore) {
    with_key(&store).await;
    let (slot, _) = lease(&store, PROCESS, Algorithm::FixedWindow, NOW, 50).await;
    lease(&store, OTHER_PROCESS, Algorithm::FixedWindow, NOW, 20).await;
    let first = operation(NOW, &[(Algorithm::FixedWindow, slot, 5)]);
    assert_eq!(find(&store, "a", NOW).await, None);
    assert_eq!(record(&store, NOW, vec![named("acct_1", "a", first.clone())]).await, [Recorded::New]);
    let again = Operation { cost: 6, credits: 6, time: NOW.plus_millis(1), ..first.clone() };
    assert_eq!(
        record(&store, NOW.plus_millis(1), vec![named("acct_1", "a", again)]).await,
        [Recorded::Known(first.clone())]
    );
    assert_eq!(find(&store, "a", NOW).await, Some(first.clone()));
    assert_eq!(store.operation(&account_id("acct_2"), &id("a"), NOW).await.unwrap(), None);
    assert_eq!(find(&store, "A", NOW).await, None);
    assert_eq!(used(&store, Verdict::Allowed).await, (1, 4));
    // What is charged is not leased any more, and the other process's leases are its own.
    assert_eq!(outstanding(&store).await, 45 + 20);
    let (_, left) = lease(&store, PROCESS, Algorithm::FixedWindow, NOW, 0).await;
    assert_eq!(left, 95);
}

pub(crate) async fn a_batch_of_operations_has_one_of_each_name(store: SharedStore) {
    with_key(&store).await;
    let (slot, _) = lease(&store, PROCESS, Algorithm::SlidingWindow, NOW, 50).await;
    let charged = operation(NOW, &[(Algorithm::SlidingWindow, slot, 5)]);
    let free = Operation { cost: 0, credits: 0, ..operation(NOW, &[]) };
    let batch = vec![
        named("acct_1", "a", charged.clone()),
        named("acct_1", "b", free.clone()),
        named("acct_1", "a", free.clone()),
        named("acct_2", "a", charged.clone()),
    ];
    let expected = [Recorded::New, Recorded::New, Recorded::Known(charged.clone()), Recorded::New];
    assert_eq!(record(&store, NOW, batch.clone()).await, expected);
    let known = |operation: &Operation| Recorded::Known(operation.clone());
    let expected = [known(&charged), known(&free), known(&charged), known(&charged)];
    assert_eq!(record(&store, NOW, batch).await, expected);
    assert_eq!(used(&store, Verdict::Allowed).await, (3, 8));
    assert_eq!(outstanding(&store).await, 40);
    assert_eq!(record(&store, NOW, vec![]).await, []);
}

pub(crate) async fn a_large_batch_of_operations(store: SharedStore) {
    with_key(&store).await;
    let batch = || (0..5_000).map(|i| named("acct_1", &format!("op-{i}"), operation(NOW, &[]))).collect::<Vec<_>>();
    assert!(record(&store, NOW, batch()).await.iter().all(|recorded| *recorded == Recorded::New));
    let again = record(&store, NOW, batch()).await;
    assert!(again.iter().all(|recorded| *recorded == Recorded::Known(operation(NOW, &[]))));
    assert_eq!(used(&store, Verdict::Allowed).await, (5_000, 20_000));
}

pub(crate) async fn an_operation_is_given_back_once(store: SharedStore) {
    with_key(&store).await;
    let (fixed, _) = lease(&store, PROCESS, Algorithm::FixedWindow, NOW, 10).await;
    let (sliding, _) = lease(&store, PROCESS, Algorithm::SlidingWindow, NOW, 10).await;
    let charges = [(Algorithm::FixedWindow, fixed, 5), (Algorithm::SlidingWindow, sliding, 5)];
    let first = operation(NOW, &charges);
    record(&store, NOW, vec![named("acct_1", "a", first.clone()), named("acct_1", "b", first.clone())]).await;
    let later = NOW.plus_millis(1_000);
    let refund = async |name: &str, now| store.refund_operation(&account_id("acct_1"), &id(name), now).await.unwrap();
    let refunded = Operation { refund_time: Some(later), ..first.clone() };
    assert_eq!(refund("c", later).await, Refund::Unknown);
    assert_eq!(store.refund_operation(&account_id("acct_2"), &id("a"), later).await.unwrap(), Refund::Unknown);
    assert_eq!(refund("a", later).await, Refund::Done(refunded.clone()));
    assert_eq!(refund("a", NOW.plus_millis(2_000)).await, Refund::DoneBefore(refunded.clone()));
    assert_eq!(find(&store, "a", later).await, Some(refunded.clone()));
    let retry = record(&store, later, vec![named("acct_1", "a", first)]).await;
    assert_eq!(retry, [Recorded::Known(refunded)]);
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        assert_eq!(lease(&store, PROCESS, algorithm, later, 0).await.1, 95, "{algorithm:?}");
    }
    assert_eq!(used(&store, Verdict::Allowed).await, (2, 4));
    // Where the windows are over, they have all of it already.
    let over = NOW.plus_millis(180_000);
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        lease(&store, PROCESS, algorithm, over, 30).await;
    }
    assert!(matches!(refund("b", over).await, Refund::Done(_)));
    for algorithm in [Algorithm::FixedWindow, Algorithm::SlidingWindow] {
        assert_eq!(lease(&store, PROCESS, algorithm, over, 0).await.1, 70, "{algorithm:?}");
    }
    assert_eq!(used(&store, Verdict::Allowed).await, (2, 0));
}

pub(crate) async fn operations_are_remembered_for_a_day(store: SharedStore) {
    with_key(&store).await;
    let batch = |from: u32, to: u32| (from..to).map(|i| named("acct_1", &i.to_string(), operation(NOW, &[]))).collect();
    record(&store, NOW, batch(0, 6_000)).await;
    let (last, after) = (NOW.plus_millis(OPERATIONS_KEPT_MILLIS - 1), NOW.plus_millis(OPERATIONS_KEPT_MILLIS));
    assert!(find(&store, "0", last).await.is_some() && find(&store, "0", after).await.is_none());
    assert_eq!(store.refund_operation(&account_id("acct_1"), &id("0"), after).await.unwrap(), Refund::Unknown);
    // A name that is forgotten is free, and what the last one was stays nowhere.
    let second = Operation { cost: 9, ..operation(after, &[]) };
    assert_eq!(record(&store, after, vec![named("acct_1", "0", second.clone())]).await, [Recorded::New]);
    assert_eq!(find(&store, "0", after).await, Some(second));
    // A clock that was set back finds most of them where they were.
    let mut found = 0;
    for i in 0..6_000 {
        found += u32::from(find(&store, &i.to_string(), NOW).await.is_some());
    }
    assert!((3_000..6_000).contains(&found), "{found}");
}

pub(crate) async fn of_operations_at_once_one_is_charged(store: SharedStore) {
    with_key(&store).await;
    let (slot, _) = lease(&store, PROCESS, Algorithm::FixedWindow, NOW, 100).await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..60 {
        let (store, charged) = (store.clone(), operation(NOW, &[(Algorithm::FixedWindow, slot, 5)]));
        calls.spawn(async move { record(&store, NOW, vec![named("acct_1", &(i % 3).to_string(), charged)]).await });
    }
    let new = calls.join_all().await.into_iter().flatten().filter(|recorded| *recorded == Recorded::New).count();
    assert_eq!((new, used(&store, Verdict::Allowed).await), (3, (3, 12)));
    assert_eq!(outstanding(&store).await, 85);
}

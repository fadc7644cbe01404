//! Usage, last uses, and the rest.

use std::net::IpAddr;

use tollgate::domain::{Activity, Environment, Key, Time, UsageDelta, UsageRow, Verdict};
use tollgate::store::{SharedStore, StoreError, StoredSecret, UsageFlush, UsageOf, UsageQuery, Write};

use crate::Shared;
use crate::records::{
    NOW, account, account_id, all_keys, commit, hash, insert, key, key_id, later, with_account, write,
};

fn delta(number: u64, hour: i64, verdict: Verdict, requests: u64, credits: u64) -> UsageDelta {
    UsageDelta { key_id: key_id(number), hour, verdict, requests, credits }
}

fn flush(id: u8, deltas: Vec<UsageDelta>) -> UsageFlush {
    UsageFlush { id: [id; 16], time: NOW, deltas, activities: vec![] }
}

fn of_account(buckets: &[(i64, i64)], by_key: bool) -> UsageQuery {
    UsageQuery { of: UsageOf::Account(account_id("a")), buckets: buckets.to_vec(), by_key, rows_max: 1_000 }
}

fn row(bucket: usize, number: Option<u64>, environment: Environment, verdict: Verdict, sums: (u64, u64)) -> UsageRow {
    let (requests, credits) = sums;
    UsageRow { bucket, key_id: number.map(key_id), environment, verdict, requests, credits }
}

/// Keys 1 (live) and 2 (test) of one account, 3 of another.
async fn with_keys(store: &SharedStore) {
    with_account(store).await;
    write(store, vec![Write::InsertAccount(account("b", "free"))]).await.unwrap();
    let test = Key { environment: Environment::Test, ..key(2, "a") };
    insert(store, vec![(1, key(1, "a")), (2, test), (3, key(3, "b"))]).await;
}

pub(crate) async fn sums_by_bucket_and_verdict(store: SharedStore) {
    use Environment::{Live, Test};
    use Verdict::{Allowed, RateLimited};
    with_keys(&store).await;
    let deltas = vec![
        delta(1, 9, Allowed, 1_000, 0),
        delta(1, 10, Allowed, 1, 5),
        delta(1, 11, Allowed, 2, 6),
        delta(1, 11, RateLimited, 4, 0),
        delta(1, 11, Allowed, 8, 7),
        delta(2, 12, Allowed, 16, 0),
        delta(3, 11, Allowed, 32, 1),
        delta(1, 14, Allowed, 1_000, 0),
    ];
    store.record_usage(&flush(1, deltas)).await.unwrap();
    store.record_usage(&flush(2, vec![delta(1, 11, RateLimited, 64, 0)])).await.unwrap();
    let rows = store.usage(&of_account(&[(10, 12), (12, 13), (13, 14)], false)).await.unwrap();
    let wanted = [
        row(0, None, Live, Allowed, (11, 18)),
        row(0, None, Live, RateLimited, (68, 0)),
        row(1, None, Test, Allowed, (16, 0)),
    ];
    assert_eq!(rows, wanted);
    let of_key = UsageQuery { of: UsageOf::Key(key_id(3)), ..of_account(&[(0, 100)], false) };
    assert_eq!(store.usage(&of_key).await.unwrap(), [row(0, None, Live, Allowed, (32, 1))]);
    let of_none = UsageQuery { of: UsageOf::Key(key_id(9)), ..of_account(&[(0, 100)], true) };
    assert_eq!(store.usage(&of_none).await.unwrap(), []);
    assert_eq!(store.usage(&of_account(&[], true)).await.unwrap(), []);
}

pub(crate) async fn sums_by_key_in_order(store: SharedStore) {
    use Environment::{Live, Test};
    use Verdict::{Allowed, Expired};
    with_keys(&store).await;
    let deltas = vec![
        delta(2, 5, Allowed, 1, 0),
        delta(2, 4, Expired, 2, 0),
        delta(1, 5, Expired, 4, 0),
        delta(1, 5, Allowed, 8, 9),
        delta(1, 4, Allowed, 16, 0),
    ];
    store.record_usage(&flush(1, deltas)).await.unwrap();
    let rows = store.usage(&of_account(&[(4, 5), (5, 6)], true)).await.unwrap();
    let wanted = [
        row(0, Some(1), Live, Allowed, (16, 0)),
        row(0, Some(2), Test, Expired, (2, 0)),
        row(1, Some(1), Live, Allowed, (8, 9)),
        row(1, Some(1), Live, Expired, (4, 0)),
        row(1, Some(2), Test, Allowed, (1, 0)),
    ];
    assert_eq!(rows, wanted);
}

pub(crate) async fn a_flush_counts_once(store: SharedStore) {
    with_keys(&store).await;
    let once = UsageFlush {
        activities: vec![Activity { key_id: key_id(1), last_used_time: NOW, last_used_ip: None }],
        ..flush(1, vec![delta(1, 5, Verdict::Allowed, 3, 3)])
    };
    store.record_usage(&once).await.unwrap();
    store.record_usage(&once).await.unwrap();
    // With another content, or late, it is the same flush all the same.
    let mut late = flush(1, vec![delta(1, 5, Verdict::Allowed, 100, 100)]);
    late.time = later(3_600_000);
    store.record_usage(&late).await.unwrap();
    let rows = store.usage(&of_account(&[(5, 6)], false)).await.unwrap();
    assert_eq!(rows, [row(0, None, Environment::Live, Verdict::Allowed, (3, 3))]);
    // That ids are forgotten after a day is no promise; that flushes go on is.
    let mut next_day = flush(2, vec![delta(1, 5, Verdict::Allowed, 1, 0)]);
    next_day.time = later(25 * 3_600_000);
    store.record_usage(&next_day).await.unwrap();
    let rows = store.usage(&of_account(&[(5, 6)], false)).await.unwrap();
    assert_eq!(rows, [row(0, None, Environment::Live, Verdict::Allowed, (4, 3))]);
    store.record_usage(&flush(3, vec![])).await.unwrap();
}

/// Flushes out of a journal are as if from long ago, and others forget ids by their time.
pub(crate) async fn what_a_killed_process_had_counted_counts_once_beside_others(shared: Shared) {
    let store = &shared.store;
    with_keys(store).await;
    let time = store.replication().unwrap().time().await.unwrap();
    let left = UsageFlush { time: Time::from_millis(0), ..flush(1, vec![delta(1, 5, Verdict::Allowed, 3, 3)]) };
    store.record_usage(&left).await.unwrap();
    store.record_usage(&UsageFlush { time, ..flush(2, vec![]) }).await.unwrap();
    store.record_usage(&left).await.unwrap();
    let rows = store.usage(&of_account(&[(5, 6)], false)).await.unwrap();
    assert_eq!(rows, [row(0, None, Environment::Live, Verdict::Allowed, (3, 3))]);
}

pub(crate) async fn unknown_keys_are_dropped(store: SharedStore) {
    with_keys(&store).await;
    let mut mixed = flush(1, vec![delta(99, 5, Verdict::Allowed, 1, 1), delta(1, 5, Verdict::Allowed, 2, 2)]);
    let used = |number| Activity { key_id: key_id(number), last_used_time: NOW, last_used_ip: None };
    mixed.activities = vec![used(99), used(1)];
    store.record_usage(&mixed).await.unwrap();
    let rows = store.usage(&of_account(&[(5, 6)], true)).await.unwrap();
    assert_eq!(rows, [row(0, Some(1), Environment::Live, Verdict::Allowed, (2, 2))]);
    insert(&store, vec![(99, key(99, "a"))]).await;
    assert_eq!(store.usage(&of_account(&[(5, 6)], true)).await.unwrap(), rows);
    assert_eq!(store.key(key_id(99)).await.unwrap().unwrap().activity, None);
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
}

pub(crate) async fn buckets_apart_and_row_bound(store: SharedStore) {
    with_keys(&store).await;
    let deltas = (0..100).map(|hour| delta(1, hour, Verdict::Allowed, 1, 0)).collect();
    store.record_usage(&flush(1, deltas)).await.unwrap();
    let query = of_account(&[(10, 20), (30, 31), (50, 90), (200, 300)], false);
    let sums = |rows: Vec<UsageRow>| rows.iter().map(|row| (row.bucket, row.requests)).collect::<Vec<_>>();
    assert_eq!(sums(store.usage(&query).await.unwrap()), [(0, 10), (1, 1), (2, 40)]);
    let bounded = UsageQuery { rows_max: 2, ..query };
    assert_eq!(sums(store.usage(&bounded).await.unwrap()), [(0, 10), (1, 1)]);
    // Hours before 1970 are hours.
    store.record_usage(&flush(2, vec![delta(1, -3, Verdict::Allowed, 7, 0)])).await.unwrap();
    assert_eq!(sums(store.usage(&of_account(&[(-5, 0)], false)).await.unwrap()), [(0, 7)]);
}

pub(crate) async fn large_numbers(store: SharedStore) {
    with_keys(&store).await;
    let largest = u64::MAX;
    let deltas = vec![delta(1, 1, Verdict::Allowed, 1, largest), delta(1, 1, Verdict::Allowed, 1, largest)];
    store.record_usage(&flush(1, deltas.clone())).await.unwrap();
    store.record_usage(&flush(2, deltas)).await.unwrap();
    let more = vec![delta(1, 2, Verdict::Allowed, 1, largest), delta(2, 2, Verdict::Allowed, 1, 1)];
    store.record_usage(&flush(3, more)).await.unwrap();
    let rows = store.usage(&of_account(&[(0, 10)], false)).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].requests, 5);
    assert!(rows[0].credits >= u64::try_from(i64::MAX).unwrap());
}

pub(crate) async fn the_latest_use_stays(store: SharedStore) {
    with_keys(&store).await;
    let used = |time, ip: Option<&str>| Activity {
        key_id: key_id(1),
        last_used_time: time,
        last_used_ip: ip.map(|ip| ip.parse::<IpAddr>().unwrap()),
    };
    let steps = [
        (vec![used(later(10), Some("192.0.2.1"))], used(later(10), Some("192.0.2.1"))),
        (vec![used(later(5), None)], used(later(10), Some("192.0.2.1"))),
        (vec![used(later(30), Some("2001:db8::1")), used(later(20), None)], used(later(30), Some("2001:db8::1"))),
        (vec![used(later(31), None), used(later(40), None)], used(later(40), None)),
    ];
    for (id, (activities, wanted)) in (1..).zip(steps) {
        store.record_usage(&UsageFlush { activities, ..flush(id, vec![]) }).await.unwrap();
        assert_eq!(store.key(key_id(1)).await.unwrap().unwrap().activity, Some(wanted));
        assert_eq!(store.keys(&all_keys()).await.unwrap()[0].activity, Some(wanted));
    }
    assert_eq!(store.key(key_id(2)).await.unwrap().unwrap().activity, None);
}

pub(crate) async fn a_large_flush(store: SharedStore) {
    with_keys(&store).await;
    let deltas = (0..10_001).map(|i| delta(1 + i % 2, i64::try_from(i / 2).unwrap(), Verdict::Allowed, 1, 2));
    store.record_usage(&flush(1, deltas.collect())).await.unwrap();
    let rows = store.usage(&of_account(&[(0, 10_000)], true)).await.unwrap();
    let sums: Vec<_> = rows.iter().map(|row| (row.requests, row.credits)).collect();
    assert_eq!(sums, [(5_001, 10_002), (5_000, 10_000)]);
}

pub(crate) async fn pepper_ids_of_current_and_retired_secrets(store: SharedStore) {
    with_account(&store).await;
    let peppered = |number, pepper: &str| StoredSecret { hash: hash(number), pepper_id: Some(pepper.to_owned()) };
    let writes = vec![
        Write::InsertKey(key(1, "a"), peppered(1, "p1")),
        Write::InsertKey(key(2, "a"), peppered(2, "p2")),
        Write::InsertKey(key(3, "a"), peppered(3, "p2")),
    ];
    let revision = write(&store, writes).await.unwrap();
    insert(&store, vec![(4, key(4, "a"))]).await;
    assert_eq!(store.pepper_ids().await.unwrap(), ["p1", "p2"]);
    let rotate = |new_secret| Write::UpdateKey { key: key(1, "a"), expected: revision, new_secret: Some(new_secret) };
    store.commit(commit(vec![rotate(peppered(11, "p3"))])).await.unwrap();
    // A retired secret needs its pepper still, to be known as one that was rotated out.
    assert_eq!(store.pepper_ids().await.unwrap(), ["p1", "p2", "p3"]);
}

pub(crate) async fn a_sound_store_has_no_damage(store: SharedStore) {
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
    with_keys(&store).await;
    store.record_usage(&flush(1, vec![delta(1, 5, Verdict::Allowed, 1, 1)])).await.unwrap();
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
}

pub(crate) async fn a_closed_store_is_unavailable(store: SharedStore) {
    with_account(&store).await;
    store.close().await;
    store.close().await;
    assert!(matches!(store.revision().await, Err(StoreError::Unavailable(_))));
    assert!(write(&store, vec![]).await.is_err());
    assert!(matches!(store.record_usage(&flush(1, vec![])).await, Err(StoreError::Unavailable(_))));
}

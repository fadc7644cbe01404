//! Processes that share a store: their list, and what polls tell.

use std::time::Duration;

use sqlx::{Connection as _, Row as _};
use tollgate::domain::{AccountId, KeyStatus, PlanId, Revision, Revocation, Time};
use tollgate::store::{
    ChangedRecords, Changes, Closed, Closing, Incarnation, LogPosition, Poll, Polled, Registration, Replica,
    Replication, SharedStore, Standing, Uncertain, Write,
};

use crate::Shared;
use crate::records::{NOW, commit, hash, insert, key, key_id, later, plan, secret, with_account, write};

pub(crate) const FIRST: Incarnation = Incarnation([1; 16]);
pub(crate) const SECOND: Incarnation = Incarnation([2; 16]);
pub(crate) const THIRD: Incarnation = Incarnation([3; 16]);
pub(crate) const FENCE: Duration = Duration::from_secs(5);
/// Longer than any silence that matters.
pub(crate) const LONG: Duration = Duration::from_hours(1);

pub(crate) fn replica(incarnation: Incarnation) -> Replica {
    Replica { incarnation, name: format!("process {}", incarnation.0[0]), fence: FENCE }
}

pub(crate) fn replication(store: &SharedStore) -> &dyn Replication {
    store.replication().unwrap()
}

pub(crate) async fn register(store: &SharedStore, incarnation: Incarnation) {
    assert_eq!(replication(store).register(&replica(incarnation)).await.unwrap(), Registration::Done);
}

/// The process counts, where several share the store.
pub(crate) async fn register_if_shared(store: &SharedStore, incarnation: Incarnation) {
    if store.replication().is_some() {
        register(store, incarnation).await;
    }
}

/// Closes leases after all others of the processes `[1; 16]` to `[9; 16]` have ended, or their ends have been noticed.
pub(crate) async fn close_leases(store: &SharedStore, closing: Closing<'_>) -> Closed {
    for number in 1..=9 {
        let incarnation = Incarnation([number; 16]);
        if let Some(replication) = store.replication().filter(|_| incarnation != closing.survivor) {
            replication.depart(incarnation).await.unwrap();
        }
    }
    store.close_leases(&closing).await.unwrap()
}

pub(crate) async fn poll(store: &SharedStore, incarnation: Incarnation, position: LogPosition, beat: i64) -> Polled {
    let poll = Poll { incarnation, position, beat, beat_confirmed: beat - 1, flushed: Time::from_millis(beat) };
    replication(store).poll(&poll).await.unwrap()
}

/// Where the log is now.
pub(crate) async fn position(store: &SharedStore) -> LogPosition {
    let (sink, mut parts) = tokio::sync::mpsc::channel(100);
    let (position, ()) = tokio::join!(store.load(sink), async { while parts.recv().await.is_some() {} });
    position.unwrap()
}

fn records(polled: Polled) -> ChangedRecords {
    match polled.changes {
        Changes::Records(records) => records,
        Changes::TooMany => panic!("too many"),
    }
}

fn is_empty(polled: Polled) -> bool {
    let ChangedRecords { plans, accounts, keys, plans_removed } = records(polled);
    plans.is_empty() && accounts.is_empty() && keys.is_empty() && plans_removed.is_empty()
}

/// Silent for an hour, as the database sees it.
pub(crate) async fn silence(shared: &Shared, incarnation: Incarnation) {
    let sql = format!(
        "UPDATE replicas SET seen = seen - interval '1 hour' WHERE incarnation = decode('{:032x}', 'hex')",
        u128::from_be_bytes(incarnation.0)
    );
    shared.sql(&sql).await;
}

/// Closes what the dead hold, as one does who has listened for so long.
async fn bury(store: &SharedStore, survivor: Incarnation, watched: Duration) {
    let closing = Closing { watched, ..Closing::at_start(survivor, NOW, Uncertain::Charge, None) };
    store.close_leases(&closing).await.unwrap();
}

async fn standing(store: &SharedStore, incarnation: Incarnation, beat: i64) -> Standing {
    let at = position(store).await;
    poll(store, incarnation, at, beat).await.standing
}

pub(crate) async fn a_poll_tells_what_has_changed(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    let start = position(store).await;
    assert_eq!(start.revision, store.revision().await.unwrap());
    with_account(store).await;
    insert(store, vec![(1, key(1, "a")), (2, key(2, "a"))]).await;
    let before = replication(store).time().await.unwrap();
    let polled = poll(store, FIRST, start, 1).await;
    assert!(before <= polled.time && polled.time <= replication(store).time().await.unwrap());
    assert_eq!((polled.standing, polled.peers.len(), polled.recalled.len()), (Standing::Registered, 0, 0));
    let then = polled.position;
    assert_eq!(then, position(store).await);
    let found = records(polled);
    assert_eq!(found.plans, [store.plan(&PlanId::parse("free").unwrap()).await.unwrap().unwrap()]);
    assert_eq!(found.accounts, [store.account(&AccountId::parse("acct_a").unwrap()).await.unwrap().unwrap()]);
    let mut keys: Vec<_> = found.keys.iter().map(|one| (one.key.id, one.key.hash, one.retired.len())).collect();
    keys.sort_unstable_by_key(|(id, ..)| *id);
    assert_eq!(keys, [(key_id(1), hash(1), 0), (key_id(2), hash(2), 0)]);
    assert!(is_empty(poll(store, FIRST, then, 2).await));

    // A key that is rotated twice, a plan that comes and goes, and one that changes.
    let mut at = found.keys.iter().find(|one| one.key.id == key_id(1)).unwrap().key.record.revision;
    for (number, grace) in [(11, 100), (12, 200)] {
        let previous = Some(tollgate::domain::PreviousSecret { prefix: "sk".to_owned(), expire_time: later(grace) });
        let rotated = tollgate::domain::Key { previous, ..key(1, "a") };
        let update = Write::UpdateKey { key: rotated, expected: at, new_secret: Some(secret(number)) };
        at = write(store, vec![update]).await.unwrap();
    }
    let made = write(store, vec![Write::InsertPlan(plan("short"))]).await.unwrap();
    write(store, vec![Write::DeletePlan(PlanId::parse("short").unwrap(), made)]).await.unwrap();
    let found = records(poll(store, FIRST, then, 3).await);
    assert_eq!((found.plans.len(), found.accounts.len(), found.keys.len()), (0, 0, 1));
    assert_eq!(found.plans_removed, [PlanId::parse("short").unwrap()]);
    let changed = &found.keys[0];
    assert_eq!((changed.key.id, changed.key.hash, changed.key.record.revision), (key_id(1), hash(12), at));
    let retired: Vec<_> = changed.retired.iter().map(|one| (one.hash, one.current, one.expire_time)).collect();
    assert_eq!(retired, [(hash(11), hash(12), later(200)), (hash(1), hash(12), NOW)]);
}

pub(crate) async fn a_thousand_keys_in_one_poll(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    with_account(store).await;
    let start = position(store).await;
    insert(store, (1..=1_000).map(|number| (number, key(number, "a"))).collect()).await;
    let found = records(poll(store, FIRST, start, 1).await);
    let mut ids: Vec<_> = found.keys.iter().map(|one| one.key.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=1_000).map(key_id).collect::<Vec<_>>());
}

pub(crate) async fn more_changes_than_one_poll_tells(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    let start = position(store).await;
    with_account(store).await;
    let log = |from: u32, to: u32| {
        format!(
            "INSERT INTO changes SELECT revision, 'key', lpad(to_hex(i), 32, '0')
             FROM sequence, generate_series({from}, {to}) AS i"
        )
    };
    // Two were there.
    shared.sql(&log(1, 19_998)).await;
    assert_eq!(records(poll(store, FIRST, start, 1).await).accounts.len(), 1);
    shared.sql(&log(19_999, 19_999)).await;
    let polled = poll(store, FIRST, start, 2).await;
    assert!(matches!(polled.changes, Changes::TooMany));
    assert_eq!((polled.standing, polled.position), (Standing::Registered, position(store).await));
}

pub(crate) async fn a_log_that_does_not_reach_back(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    let mut positions = vec![position(store).await];
    for name in ["a", "b", "c"] {
        write(store, vec![Write::InsertPlan(plan(name))]).await.unwrap();
        positions.push(position(store).await);
    }
    // What is older than it is kept for goes: all up to the second.
    for table in ["commits", "changes"] {
        let kept = positions[2].revision.number();
        shared.sql(&format!("DELETE FROM {table} WHERE revision < {kept}")).await;
    }
    for (beat, at) in (1..).zip(&positions) {
        let polled = poll(store, FIRST, *at, beat).await;
        assert_eq!(polled.standing, Standing::Registered);
        let told = match polled.changes {
            Changes::Records(records) => Some(records.plans.len()),
            Changes::TooMany => None,
        };
        assert_eq!(told, [None, None, Some(1), Some(0)][usize::try_from(beat - 1).unwrap()], "{at:?}");
    }
}

pub(crate) async fn peers_and_what_they_acknowledge(shared: Shared) {
    let store = &shared.store;
    let start = position(store).await;
    for incarnation in [FIRST, SECOND, THIRD] {
        register(store, incarnation).await;
    }
    let revision = with_account(store).await;
    let now = position(store).await;
    poll(store, SECOND, now, 1).await;
    let peers = poll(store, FIRST, start, 1).await.peers;
    let told: Vec<_> = peers.iter().map(|peer| (peer.incarnation, peer.fence, peer.acknowledged)).collect();
    assert_eq!(told, [(SECOND, FENCE, revision), (THIRD, FENCE, Revision::ZERO)]);
    assert_eq!(peers[0].name, "process 2");
    silence(&shared, THIRD).await;
    let peers = poll(store, FIRST, now, 2).await.peers;
    assert!(peers[0].silence < LONG && peers[1].silence >= LONG, "{peers:?}");
    replication(store).depart(THIRD).await.unwrap();
    assert_eq!(poll(store, FIRST, now, 3).await.peers.len(), 1);
    assert_eq!(poll(store, THIRD, now, 1).await.standing, Standing::Buried);
}

/// What a transaction commits that was open while a poll was made is in the next one.
pub(crate) async fn a_change_that_was_under_way_during_a_poll(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    let start = position(store).await;
    let mut other = shared.connect().await;
    let mut transaction = other.begin().await.unwrap();
    for sql in [
        "UPDATE sequence SET revision = revision + 1",
        "INSERT INTO changes (revision, entity, id) SELECT revision, 'plan', 'gone' FROM sequence",
        "INSERT INTO commits (revision, stamp) SELECT revision, 77 FROM sequence",
    ] {
        sqlx::query(sql).execute(&mut *transaction).await.unwrap();
    }
    let polled = poll(store, FIRST, start, 1).await;
    assert_eq!(polled.position, start);
    assert!(is_empty(polled));
    transaction.commit().await.unwrap();
    let polled = poll(store, FIRST, start, 2).await;
    let next = Revision::new(start.revision.number() + 1);
    assert_eq!(polled.position, LogPosition { revision: next, stamp: 77 });
    assert_eq!(records(polled).plans_removed, [PlanId::parse("gone").unwrap()]);
}

/// Each sign that the database is an earlier state of itself.
pub(crate) async fn another_history_is_noticed(shared: Shared) {
    let store = &shared.store;
    let moved = Standing::Moved;
    register(store, FIRST).await;
    with_account(store).await;
    let at = position(store).await;
    assert_eq!(poll(store, FIRST, at, 1).await.standing, Standing::Registered);

    let ahead = LogPosition { revision: Revision::new(at.revision.number() + 1), ..at };
    let polled = poll(store, FIRST, ahead, 2).await;
    assert_eq!(polled.standing, moved, "the revision went back");
    assert!(matches!(polled.changes, Changes::TooMany));
    let other = LogPosition { stamp: at.stamp.wrapping_add(1), ..at };
    assert_eq!(poll(store, FIRST, other, 3).await.standing, moved, "another stamp");
    assert_eq!(poll(store, FIRST, at, 4).await.standing, Standing::Registered);
    // What it has applied of another history is nothing of this one.
    register(store, SECOND).await;
    poll(store, FIRST, ahead, 5).await;
    assert_eq!(poll(store, SECOND, at, 1).await.peers[0].acknowledged, Revision::ZERO);

    shared.sql("UPDATE replicas SET beat = 3").await;
    let behind = Poll { incarnation: FIRST, position: at, beat: 10, beat_confirmed: 5, flushed: NOW };
    for _ in 0..2 {
        assert_eq!(replication(store).poll(&behind).await.unwrap().standing, moved, "its beat went back, for good");
    }
    shared.sql("UPDATE replicas SET beat = 5").await;
    assert_eq!(replication(store).poll(&behind).await.unwrap().standing, Standing::Registered);

    shared.sql("UPDATE sequence SET lineage = 'another/00000001'").await;
    let polled = poll(store, FIRST, at, 11).await;
    assert_eq!(polled.standing, moved, "another timeline");
    // Nothing was lost: what it has applied is there.
    assert!(is_empty(polled));
    assert_eq!(replication(store).register(&replica(THIRD)).await.unwrap(), Registration::Moved);
    assert!(poll(store, FIRST, at, 12).await.peers.iter().all(|peer| peer.incarnation != THIRD));
}

/// A network may hold polls up and hand them on later, one after the other or not.
pub(crate) async fn polls_that_overtake_each_other(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    let position = position(store).await;
    let polled = async |beat, beat_confirmed| {
        let flushed = Time::from_millis(0);
        let poll = Poll { incarnation: FIRST, position, beat, beat_confirmed, flushed };
        replication(store).poll(&poll).await.unwrap().standing
    };
    for (beat, beat_confirmed) in [(1, 0), (4, 1), (2, 1), (3, 1), (5, 4), (6, 5)] {
        assert_eq!(polled(beat, beat_confirmed).await, Standing::Registered, "{beat}");
    }
}

pub(crate) async fn who_is_silent_is_buried_by_one_who_listens(shared: Shared) {
    let store = &shared.store;
    for incarnation in [FIRST, SECOND, THIRD] {
        register(store, incarnation).await;
    }
    let silent_after = tollgate::store::silent_after(FENCE);
    silence(&shared, FIRST).await;
    silence(&shared, SECOND).await;
    for watched in [Duration::ZERO, silent_after.checked_sub(Duration::from_millis(1)).unwrap()] {
        bury(store, SECOND, watched).await;
        let count = shared.sql("SELECT count(*) FROM replicas").await;
        assert_eq!(count, "3", "who has not listened for long enough has missed nothing");
    }
    bury(store, SECOND, silent_after).await;
    assert_eq!(standing(store, FIRST, 1).await, Standing::Buried);
    assert_eq!(standing(store, SECOND, 1).await, Standing::Registered, "nobody buries himself");
    assert_eq!(standing(store, THIRD, 1).await, Standing::Registered);
    register(store, FIRST).await;
    assert_eq!(standing(store, FIRST, 1).await, Standing::Registered);
}

pub(crate) async fn a_burial_waits_for_a_poll_and_a_poll_for_a_burial(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    register(store, SECOND).await;
    let at = position(store).await;
    silence(&shared, FIRST).await;
    let mut other = shared.connect().await;

    // A poll of the silent one, which has written its row and not ended.
    let mut polling = other.begin().await.unwrap();
    sqlx::query("UPDATE replicas SET seen = clock_timestamp()").execute(&mut *polling).await.unwrap();
    let burial = tokio::spawn({
        let store = store.clone();
        async move { bury(&store, SECOND, LONG).await }
    });
    shared.until_one_waits_for_a_lock().await;
    polling.commit().await.unwrap();
    burial.await.unwrap();
    assert_eq!(poll(store, FIRST, at, 1).await.standing, Standing::Registered, "it was not silent after all");

    // A burial that has not ended.
    let mut burying = other.begin().await.unwrap();
    sqlx::query("DELETE FROM replicas WHERE incarnation = $1")
        .bind(FIRST.0.as_slice())
        .execute(&mut *burying)
        .await
        .unwrap();
    let polled = tokio::spawn({
        let store = store.clone();
        async move { poll(&store, FIRST, at, 2).await.standing }
    });
    shared.until_one_waits_for_a_lock().await;
    burying.commit().await.unwrap();
    assert_eq!(polled.await.unwrap(), Standing::Buried);
}

pub(crate) async fn a_poll_that_is_given_up_is_in_nobodys_way(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    let at = position(store).await;
    let mut other = shared.connect().await;
    for beat in 1..4 {
        let mut transaction = other.begin().await.unwrap();
        sqlx::query("SELECT FROM replicas FOR UPDATE").execute(&mut *transaction).await.unwrap();
        let hung = tokio::spawn({
            let store = store.clone();
            async move { poll(&store, FIRST, at, beat).await }
        });
        shared.until_one_waits_for_a_lock().await;
        hung.abort();
        assert!(hung.await.unwrap_err().is_cancelled());
        transaction.rollback().await.unwrap();
        assert_eq!(poll(store, FIRST, at, beat).await.standing, Standing::Registered);
    }
}

pub(crate) async fn hints_come_with_changes_and_after_a_break(shared: Shared) {
    let store = &shared.store;
    let next = async || tokio::time::timeout(Duration::from_mins(1), replication(store).hint()).await.unwrap();
    // The first says that it listens.
    next().await;
    let other = shared.open().await;
    let revision = with_account(&other).await;
    next().await;
    let mut connection = shared.connect().await;
    let mut ended: Vec<i32> = Vec::new();
    for _ in 0..2 {
        let listeners = "SELECT pg_terminate_backend(pid), pid FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> ALL ($1)";
        let listener = sqlx::query(listeners).bind(&ended).fetch_one(&mut connection).await.unwrap();
        ended.push(listener.get(1));
        // Something may have been missed.
        next().await;
    }
    let revoked = KeyStatus::Revoked(Revocation { time: NOW, reason: String::new(), actor: String::new() });
    insert(&other, vec![(1, tollgate::domain::Key { status: revoked, ..key(1, "a") })]).await;
    next().await;
    assert!(store.revision().await.unwrap() > revision);
}

/// The log as it is while the database is written to at the same time.
pub(crate) async fn polls_while_commits_go_on(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    with_account(store).await;
    let start = position(store).await;
    let mut at = start;
    let writer = tokio::spawn({
        let store = shared.open().await;
        async move {
            for number in 1..=150 {
                store.commit(commit(vec![Write::InsertKey(key(number, "a"), secret(number))])).await.unwrap();
            }
        }
    });
    let (mut found, mut beat) = (Vec::new(), 0);
    while found.len() < 150 {
        beat += 1;
        let is_done = writer.is_finished();
        let polled = poll(store, FIRST, at, beat).await;
        assert_eq!(polled.standing, Standing::Registered);
        at = polled.position;
        // Each change comes once, and those of one poll are all that there are up to its position.
        found.extend(records(polled).keys.into_iter().map(|one| one.key.record.revision));
        found.sort_unstable();
        let expected = start.revision.number() + 1..=at.revision.number();
        assert_eq!(found, expected.map(Revision::new).collect::<Vec<_>>());
        assert!(!is_done || found.len() == 150);
    }
}

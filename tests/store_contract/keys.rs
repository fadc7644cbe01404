//! Names, hashes, rotation and revocation of keys.

use tollgate::domain::{Key, KeyStatus, PreviousSecret, Revision, Revocation};
use tollgate::store::{CommitError, RetiredSecret, SharedStore, Write};

use crate::load::load;
use crate::records::{NOW, account, all_keys, commit, hash, insert, key, key_id, later, secret, with_account, write};

fn revoked(mut key: Key) -> Key {
    key.status = KeyStatus::Revoked(Revocation { time: NOW, reason: "gone".to_owned(), actor: "system".to_owned() });
    key
}

fn named(number: u64, account: &str, name: &str) -> Key {
    Key { name: name.to_owned(), ..key(number, account) }
}

fn update(key: Key, expected: Revision) -> Write {
    Write::UpdateKey { key, expected, new_secret: None }
}

pub(crate) async fn names_are_unique_among_keys_that_are_not_revoked(store: SharedStore) {
    with_account(&store).await;
    write(&store, vec![Write::InsertAccount(account("b", "free"))]).await.unwrap();
    let first = insert(&store, vec![(1, named(1, "a", "ci"))]).await;
    let taken = |result| match result {
        Err(CommitError::NameTaken(name)) => name,
        other => panic!("{other:?}"),
    };
    let again = vec![Write::InsertKey(named(2, "a", "ci"), secret(2))];
    assert_eq!(taken(write(&store, again.clone()).await), "ci");
    // Case tells names apart, and another account has names of its own.
    insert(&store, vec![(3, named(3, "a", "CI")), (4, named(4, "b", "ci"))]).await;
    let revision = insert(&store, vec![(5, named(5, "a", "other"))]).await;
    assert_eq!(taken(write(&store, vec![update(named(5, "a", "ci"), revision)]).await), "ci");
    let both =
        vec![Write::InsertKey(named(6, "a", "twice"), secret(6)), Write::InsertKey(named(7, "a", "twice"), secret(7))];
    assert_eq!(taken(write(&store, both).await), "twice");
    let first = write(&store, vec![update(revoked(named(1, "a", "ci")), first)]).await.unwrap();
    write(&store, again).await.unwrap();
    // It does not come back, since somebody else has its name now.
    assert_eq!(taken(write(&store, vec![update(named(1, "a", "ci"), first)]).await), "ci");
    insert(&store, vec![(8, revoked(named(8, "a", "ci")))]).await;
}

pub(crate) async fn hashes_are_unique_over_current_and_retired_secrets(store: SharedStore) {
    with_account(&store).await;
    let first = insert(&store, vec![(1, key(1, "a")), (2, key(2, "a"))]).await;
    let rotate =
        |number, expected, new| Write::UpdateKey { key: key(number, "a"), expected, new_secret: Some(secret(new)) };
    let second = write(&store, vec![rotate(1, first, 11)]).await.unwrap();
    let place = |result| match result {
        Err(CommitError::HashTaken(place)) => place,
        other => panic!("{other:?}"),
    };
    // Of another key, of itself now, of itself before.
    for (write_, wanted) in [(rotate(1, second, 2), 0), (rotate(1, second, 11), 0), (rotate(1, second, 1), 0)] {
        assert_eq!(place(write(&store, vec![write_]).await), wanted);
    }
    let new = |number, new| Write::InsertKey(key(number, "a"), secret(new));
    for taken in [11, 1, 2, 30] {
        let writes = vec![new(30, 30), new(31, 31), new(32, taken), new(33, 33)];
        assert_eq!(place(write(&store, writes).await), 2, "{taken}");
    }
    assert_eq!(store.keys(&all_keys()).await.unwrap().len(), 2);
}

pub(crate) async fn many_keys_at_once(store: SharedStore) {
    with_account(&store).await;
    let keys: Vec<_> = (1..=2_345).map(|number| (number, key(number, "a"))).collect();
    let revision = insert(&store, keys).await;
    let read = store.keys(&all_keys()).await.unwrap();
    assert_eq!(read.len(), 2_345);
    for (number, stored) in (1..).zip(&read) {
        assert_eq!(stored.key, Key { revision, ..key(number, "a") });
        assert_eq!(stored.hash, hash(number));
    }
}

pub(crate) async fn one_wrong_key_among_many_is_told(store: SharedStore) {
    with_account(&store).await;
    insert(&store, vec![(9_999, key(9_999, "a"))]).await;
    let wrong = [
        (key(9_000, "a"), 9_999),
        (named(9_000, "a", "key 9999"), 9_000),
        (key(9_999, "a"), 9_000),
        (key(9_000, "nobody"), 9_000),
        // An earlier one of the same commit, in another statement.
        (key(9_000, "a"), 5),
        (named(9_000, "a", "key 5"), 9_000),
    ];
    for (i, (wrong, number)) in wrong.into_iter().enumerate() {
        let mut writes: Vec<_> = (1..=1_500).map(|number| Write::InsertKey(key(number, "a"), secret(number))).collect();
        writes.insert(1_400, Write::InsertKey(wrong, secret(number)));
        let result = write(&store, writes).await;
        match (i, result) {
            (0 | 4, Err(CommitError::HashTaken(1_400)))
            | (2, Err(CommitError::IdTaken))
            | (3, Err(CommitError::NoParent)) => {}
            (1, Err(CommitError::NameTaken(name))) => assert_eq!(name, "key 9999"),
            (5, Err(CommitError::NameTaken(name))) => assert_eq!(name, "key 5"),
            (_, other) => panic!("{i}: {other:?}"),
        }
        assert_eq!(store.keys(&all_keys()).await.unwrap().len(), 1);
    }
}

pub(crate) async fn rotation_retires_the_secret(store: SharedStore) {
    with_account(&store).await;
    let mut revision = insert(&store, vec![(1, key(1, "a"))]).await;
    for (at, new, expire_time) in [(10, 11, later(1_000)), (20, 12, later(2_000)), (30, 13, later(3_000))] {
        let mut rotated = key(1, "a");
        rotated.previous = Some(PreviousSecret { prefix: "sk_old".to_owned(), expire_time });
        let mut rotation =
            commit(vec![Write::UpdateKey { key: rotated.clone(), expected: revision, new_secret: Some(secret(new)) }]);
        rotation.time = later(at);
        revision = store.commit(rotation).await.unwrap();
        let read = store.key(key_id(1)).await.unwrap().unwrap();
        assert_eq!(read.key, Key { revision, ..rotated });
        assert_eq!(read.hash, hash(new));
    }
    let current = hash(13);
    let retired = |number, expire_time| RetiredSecret { hash: hash(number), current, expire_time };
    let mut loaded = load(&store).await.retired;
    loaded.sort_by_key(|retired| retired.expire_time);
    // The ones before the last ended when they were replaced in turn.
    assert_eq!(loaded, [retired(1, later(20)), retired(11, later(30)), retired(12, later(3_000))]);

    // Without a time of grace it ends with the rotation.
    let mut at_once =
        commit(vec![Write::UpdateKey { key: key(1, "a"), expected: revision, new_secret: Some(secret(14)) }]);
    at_once.time = later(40);
    store.commit(at_once).await.unwrap();
    let ended: Vec<_> = load(&store).await.retired.into_iter().map(|retired| retired.expire_time).collect();
    assert!(ended.iter().all(|time| *time <= later(40)), "{ended:?}");
    assert_eq!(store.key(key_id(1)).await.unwrap().unwrap().key.previous, None);
}

pub(crate) async fn the_grace_of_a_retired_secret_can_be_changed(store: SharedStore) {
    with_account(&store).await;
    let revision = insert(&store, vec![(1, key(1, "a")), (2, key(2, "a"))]).await;
    let with_grace = |expire_time| Key {
        previous: Some(PreviousSecret { prefix: "sk_old".to_owned(), expire_time }),
        ..key(1, "a")
    };
    let rotation = Write::UpdateKey { key: with_grace(later(100)), expected: revision, new_secret: Some(secret(11)) };
    let revision = write(&store, vec![rotation]).await.unwrap();
    write(&store, vec![update(with_grace(later(50)), revision)]).await.unwrap();
    assert_eq!(store.key(key_id(1)).await.unwrap().unwrap().key.previous, with_grace(later(50)).previous);
    assert_eq!(load(&store).await.retired[0].expire_time, later(50));
}

pub(crate) async fn revoked_keys_stay(store: SharedStore) {
    with_account(&store).await;
    let revision = insert(&store, vec![(1, key(1, "a"))]).await;
    let rotation = Write::UpdateKey { key: key(1, "a"), expected: revision, new_secret: Some(secret(11)) };
    let revision = write(&store, vec![rotation]).await.unwrap();
    write(&store, vec![update(revoked(key(1, "a")), revision)]).await.unwrap();
    assert!(store.key(key_id(1)).await.unwrap().unwrap().key.is_revoked());
    let loaded = load(&store).await;
    assert_eq!((loaded.keys.len(), loaded.retired.len()), (1, 1));
    // Neither of its secrets can be had again.
    for number in [1, 11] {
        let result = write(&store, vec![Write::InsertKey(key(2, "a"), secret(number))]).await;
        assert!(matches!(result, Err(CommitError::HashTaken(0))), "{result:?}");
    }
}

pub(crate) async fn renewals_are_found(store: SharedStore) {
    with_account(&store).await;
    let renewing = |number, expire_time, status| Key {
        expire_time: Some(expire_time),
        auto_renew_millis: Some(1_000),
        status,
        ..key(number, "a")
    };
    let keys = vec![
        renewing(1, later(30), KeyStatus::Active),
        renewing(2, later(20), KeyStatus::Active),
        renewing(3, later(10), KeyStatus::Disabled),
        revoked(renewing(4, later(10), KeyStatus::Active)),
        Key { expire_time: Some(later(10)), ..key(5, "a") },
        key(6, "a"),
        renewing(7, later(40), KeyStatus::Active),
    ];
    insert(&store, (1..).zip(keys).collect()).await;
    let found = async |time, rows_max| {
        let mut ids: Vec<_> =
            store.keys_to_renew(time, 5, rows_max).await.unwrap().into_iter().map(|stored| stored.key.id).collect();
        ids.sort_unstable();
        ids
    };
    // A quarter of the period, 250 ms, is more than the 5 ms that are given at most.
    assert_eq!(found(later(34), 10).await, [key_id(1), key_id(2)]);
    assert_eq!(found(later(35), 10).await, [key_id(1), key_id(2), key_id(7)]);
    assert_eq!(found(later(35), 2).await.len(), 2);
    assert_eq!(found(later(14), 10).await, []);
}

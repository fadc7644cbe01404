//! Commits: whole or not at all, and in order.

use std::collections::BTreeSet;
use std::time::Duration;

use tollgate::domain::{Activity, KeyStatus, PreviousSecret, Revision, Revocation};
use tollgate::store::{CommitError, Guard, SharedStore, Write};

use crate::records::{
    NOW, account, account_id, all_keys, commit, insert, key, key_id, later, plan, plan_id, policy, secret,
    with_account, write,
};

pub(crate) async fn revisions_are_dense_and_in_the_order_of_commits(store: SharedStore) {
    assert_eq!(store.revision().await.unwrap(), Revision::ZERO);
    with_account(&store).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16_u64 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut made = Vec::new();
            for i in 0..8 {
                let number = task * 100 + i + 1;
                let revision = insert(&store, vec![(number, key(number, "a"))]).await;
                // What a commit has returned is there, and whoever commits later has a later revision.
                assert!(store.revision().await.unwrap() >= revision);
                assert_eq!(store.key(key_id(number)).await.unwrap().unwrap().key.revision, revision);
                made.push(revision);
            }
            made
        });
    }
    let mut all = BTreeSet::new();
    while let Some(made) = tasks.join_next().await {
        let made = made.unwrap();
        assert!(made.is_sorted());
        all.extend(made.into_iter().map(Revision::number));
    }
    assert_eq!(all, (2..=129).collect());
    assert_eq!(store.revision().await.unwrap(), Revision::new(129));
}

pub(crate) async fn a_commit_that_fails_leaves_nothing(store: SharedStore) {
    let before = with_account(&store).await;
    let writes = vec![
        Write::InsertPlan(plan("other")),
        Write::InsertKey(key(1, "a"), secret(1)),
        Write::UpdateAccount(account("a", "other"), before),
        Write::InsertKey(key(2, "nobody"), secret(2)),
    ];
    assert!(matches!(write(&store, writes).await, Err(CommitError::NoParent)));
    assert_eq!(store.revision().await.unwrap(), before);
    assert_eq!(store.plan(&plan_id("other")).await.unwrap(), None);
    assert_eq!(store.keys(&all_keys()).await.unwrap(), []);
    assert_eq!(store.account(&account_id("a")).await.unwrap().unwrap().plan, plan_id("free"));
    // And the next is as if it had not been.
    assert_eq!(insert(&store, vec![(1, key(1, "a"))]).await.number(), before.number() + 1);
}

pub(crate) async fn what_is_written_is_read(store: SharedStore) {
    let revision = with_account(&store).await;
    let mut wanted = plan("free");
    wanted.revision = revision;
    assert_eq!(store.plan(&plan_id("free")).await.unwrap(), Some(wanted));
    let mut wanted = account("a", "free");
    wanted.revision = revision;
    assert_eq!(store.account(&account_id("a")).await.unwrap(), Some(wanted));

    let mut full = key(1, "a");
    full.description = "two\nlines, 'quoted'".to_owned();
    full.policy = policy();
    full.metadata = [("n".to_owned(), "v\u{e9}".to_owned())].into();
    full.expire_time = Some(later(5));
    full.auto_renew_millis = Some(86_400_000);
    full.update_time = later(-1);
    full.rotate_time = Some(later(-2));
    let revision = insert(&store, vec![(1, full.clone())]).await;
    full.revision = revision;
    let read = store.key(key_id(1)).await.unwrap().unwrap();
    assert_eq!((read.key, read.hash, read.activity), (full.clone(), secret(1).hash, None::<Activity>));

    full.status =
        KeyStatus::Revoked(Revocation { time: later(3), reason: "leaked".to_owned(), actor: "key_x".to_owned() });
    full.expire_time = None;
    full.auto_renew_millis = None;
    let update = Write::UpdateKey { key: full.clone(), expected: revision, new_secret: None };
    full.revision = write(&store, vec![update]).await.unwrap();
    assert_eq!(store.key(key_id(1)).await.unwrap().unwrap().key, full);

    let revision = store.account(&account_id("a")).await.unwrap().unwrap().revision;
    let mut changed = account("a", "free");
    changed.credits = None;
    changed.revision = write(&store, vec![Write::UpdateAccount(changed.clone(), revision)]).await.unwrap();
    assert_eq!(store.account(&account_id("a")).await.unwrap(), Some(changed));
    let mut changed = plan("free");
    changed.monthly_credits = None;
    changed.keys_max = None;
    changed.revision = write(&store, vec![Write::UpdatePlan(changed.clone(), revision)]).await.unwrap();
    assert_eq!(store.plan(&plan_id("free")).await.unwrap(), Some(changed));
}

pub(crate) async fn a_stale_record_is_not_written(store: SharedStore) {
    let old = with_account(&store).await;
    let old_key = insert(&store, vec![(1, key(1, "a"))]).await;
    write(&store, vec![Write::UpdateAccount(account("a", "free"), old)]).await.unwrap();
    write(&store, vec![Write::UpdatePlan(plan("free"), old)]).await.unwrap();
    let update = |number, expected, new_secret| Write::UpdateKey { key: key(number, "a"), expected, new_secret };
    let last = write(&store, vec![update(1, old_key, None)]).await.unwrap();
    for stale in [
        Write::UpdateAccount(account("a", "free"), old),
        Write::UpdateAccount(account("b", "free"), old),
        Write::UpdatePlan(plan("free"), old),
        Write::UpdatePlan(plan("none"), old),
        Write::DeletePlan(plan_id("free"), old),
        Write::DeletePlan(plan_id("none"), old),
        update(1, old_key, None),
        update(1, old_key, Some(secret(2))),
        update(2, old_key, None),
        update(2, old_key, Some(secret(2))),
    ] {
        let result = write(&store, vec![stale.clone()]).await;
        assert!(matches!(result, Err(CommitError::Stale)), "{stale:?}: {result:?}");
    }
    assert_eq!(store.revision().await.unwrap(), last);
}

pub(crate) async fn ids_are_taken_once(store: SharedStore) {
    with_account(&store).await;
    insert(&store, vec![(1, key(1, "a"))]).await;
    let mut other = key(1, "a");
    other.name = "other".to_owned();
    for taken in [
        Write::InsertPlan(plan("free")),
        Write::InsertAccount(account("a", "free")),
        Write::InsertKey(other, secret(9)),
    ] {
        let result = write(&store, vec![taken]).await;
        assert!(matches!(result, Err(CommitError::IdTaken)), "{result:?}");
    }
}

pub(crate) async fn parents_must_exist(store: SharedStore) {
    let revision = with_account(&store).await;
    let key_revision = insert(&store, vec![(1, key(1, "a"))]).await;
    for orphan in [
        Write::InsertAccount(account("b", "none")),
        Write::UpdateAccount(account("a", "none"), revision),
        Write::InsertKey(key(2, "none"), secret(2)),
        Write::UpdateKey { key: key(1, "none"), expected: key_revision, new_secret: None },
    ] {
        let result = write(&store, vec![orphan]).await;
        assert!(matches!(result, Err(CommitError::NoParent)), "{result:?}");
    }
}

pub(crate) async fn a_plan_in_use_stays(store: SharedStore) {
    let revision = with_account(&store).await;
    let delete = Write::DeletePlan(plan_id("free"), revision);
    assert!(matches!(write(&store, vec![delete.clone()]).await, Err(CommitError::PlanInUse)));
    let moved = vec![Write::InsertPlan(plan("other")), Write::UpdateAccount(account("a", "other"), revision)];
    write(&store, moved).await.unwrap();
    write(&store, vec![delete]).await.unwrap();
    assert_eq!(store.plan(&plan_id("free")).await.unwrap(), None);
}

pub(crate) async fn guards_on_revisions(store: SharedStore) {
    let revision = with_account(&store).await;
    let guarded = |guard: Guard, number| {
        let mut commit = commit(vec![Write::InsertKey(key(number, "a"), secret(number))]);
        commit.guards = vec![guard];
        commit
    };
    store.commit(guarded(Guard::AccountAt(account_id("a"), revision), 1)).await.unwrap();
    store.commit(guarded(Guard::PlanAt(plan_id("free"), revision), 2)).await.unwrap();
    for broken in [
        Guard::AccountAt(account_id("a"), Revision::new(99)),
        Guard::AccountAt(account_id("none"), revision),
        Guard::PlanAt(plan_id("free"), Revision::ZERO),
        Guard::PlanAt(plan_id("none"), revision),
    ] {
        let result = store.commit(guarded(broken.clone(), 3)).await;
        assert!(matches!(result, Err(CommitError::Stale)), "{broken:?}: {result:?}");
    }
    assert_eq!(store.keys(&all_keys()).await.unwrap().len(), 2);
}

pub(crate) async fn guards_on_the_number_of_keys(store: SharedStore) {
    let mut bootstrap = commit(vec![
        Write::InsertPlan(plan("free")),
        Write::InsertAccount(account("a", "free")),
        Write::InsertAccount(account("b", "free")),
        Write::InsertKey(key(1, "a"), secret(1)),
    ]);
    bootstrap.guards = vec![Guard::NoKeys];
    let revision = store.commit(bootstrap).await.unwrap();
    let at_most = |keys_max, numbers: &[u64]| {
        let mut commit =
            commit(numbers.iter().map(|&number| Write::InsertKey(key(number, "a"), secret(number))).collect());
        commit.guards = vec![Guard::KeysAtMost(account_id("a"), keys_max)];
        commit
    };
    assert!(matches!(store.commit(at_most(2, &[2, 3])).await, Err(CommitError::TooManyKeys)));
    store.commit(at_most(3, &[2, 3])).await.unwrap();
    assert!(matches!(store.commit(at_most(3, &[4])).await, Err(CommitError::TooManyKeys)));
    // Keys of others don't count, nor do those that are revoked.
    insert(&store, vec![(5, key(5, "b"))]).await;
    let mut revoked = key(1, "a");
    revoked.status = KeyStatus::Revoked(Revocation { time: NOW, reason: String::new(), actor: "system".to_owned() });
    write(&store, vec![Write::UpdateKey { key: revoked, expected: revision, new_secret: None }]).await.unwrap();
    store.commit(at_most(3, &[4])).await.unwrap();

    let mut late = commit(vec![Write::InsertPlan(plan("late"))]);
    late.guards = vec![Guard::NoKeys];
    assert!(matches!(store.commit(late).await, Err(CommitError::NotEmpty)));
}

pub(crate) async fn a_commit_whose_caller_goes_away_is_whole(store: SharedStore) {
    with_account(&store).await;
    let mut number = 1;
    for micros in 0..60 {
        let writes: Vec<Write> = (0..50)
            .map(|_| {
                number += 1;
                Write::InsertKey(key(number, "a"), secret(number))
            })
            .collect();
        let given_up = tokio::time::timeout(Duration::from_micros(micros * 40), write(&store, writes)).await;
        drop(given_up);
    }
    // Whoever comes next finds a store that works.
    insert(&store, vec![(1, key(1, "a"))]).await;
    let keys = store.keys(&all_keys()).await.unwrap();
    let mut sizes = std::collections::BTreeMap::new();
    for key in &keys {
        *sizes.entry(key.key.revision).or_insert(0) += 1;
    }
    sizes.pop_last();
    assert!(sizes.values().all(|&size| size == 50), "{sizes:?}");
    assert_eq!(sizes.len() + 2, usize::try_from(store.revision().await.unwrap().number()).unwrap());
}

pub(crate) async fn an_account_its_plan_and_its_keys_in_one_commit(store: SharedStore) {
    let mut rotated = key(3, "a");
    rotated.previous = Some(PreviousSecret { prefix: "sk_old".to_owned(), expire_time: later(9) });
    let first = insert_all(&store).await;
    let second = write(
        &store,
        vec![
            Write::UpdateKey { key: rotated, expected: first, new_secret: Some(secret(33)) },
            Write::InsertKey(key(4, "a"), secret(4)),
            Write::UpdatePlan(plan("free"), first),
            Write::InsertKey(key(5, "a"), secret(5)),
        ],
    )
    .await
    .unwrap();
    let revisions: Vec<_> =
        store.keys(&all_keys()).await.unwrap().into_iter().map(|stored| stored.key.revision).collect();
    assert_eq!(revisions, [first, first, second, second, second]);
}

async fn insert_all(store: &SharedStore) -> Revision {
    let writes = vec![
        Write::InsertPlan(plan("free")),
        Write::InsertAccount(account("a", "free")),
        Write::InsertKey(key(1, "a"), secret(1)),
        Write::InsertKey(key(2, "a"), secret(2)),
        Write::InsertKey(key(3, "a"), secret(3)),
    ];
    write(store, writes).await.unwrap()
}

//! The snapshot that the index is made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tollgate::decision::KeyRecord;
use tollgate::domain::{Account, Environment, Key, KeyId, KeyStatus, Plan, PreviousSecret, Revision, Revocation};
use tollgate::store::{Loaded, LoadedKey, RetiredSecret, SharedStore, Write};

use crate::records::{
    NOW, account, account_id, all_keys, hash, insert, key, key_id, later, plan, policy, secret, with_account, write,
};

#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) plans: Vec<Plan>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) keys: BTreeMap<KeyId, LoadedKey>,
    pub(crate) retired: Vec<RetiredSecret>,
}

/// Loads all, and holds the order to what is promised.
pub(crate) async fn load(store: &SharedStore) -> Snapshot {
    let (sender, mut receiver) = mpsc::channel(4);
    let loading = tokio::spawn({
        let store = Arc::clone(store);
        async move { store.load(sender).await }
    });
    let mut snapshot = Snapshot::default();
    let mut expected = None;
    while let Some(loaded) = receiver.recv().await {
        match loaded {
            Loaded::SecretsExpected(secrets) => {
                assert!(expected.replace(secrets).is_none() && snapshot.plans.is_empty(), "once, and first");
            }
            Loaded::Plans(plans) => {
                assert!(snapshot.accounts.is_empty());
                snapshot.plans.extend(plans);
            }
            Loaded::Accounts(accounts) => {
                assert!(snapshot.keys.is_empty());
                for account in &accounts {
                    assert!(snapshot.plans.iter().any(|plan| plan.id == account.plan));
                }
                snapshot.accounts.extend(accounts);
            }
            Loaded::Keys(keys) => {
                assert!(snapshot.retired.is_empty());
                for key in keys {
                    assert!(snapshot.keys.insert(key.id, key).is_none(), "sent twice");
                }
            }
            Loaded::RetiredSecrets(retired) => snapshot.retired.extend(retired),
        }
    }
    snapshot.revision = loading.await.unwrap().unwrap().revision;
    assert!(expected.unwrap() >= snapshot.keys.len() + snapshot.retired.len());
    snapshot
}

pub(crate) async fn an_empty_store(store: SharedStore) {
    let snapshot = load(&store).await;
    assert_eq!(snapshot.revision, Revision::ZERO);
    assert!(snapshot.plans.is_empty() && snapshot.accounts.is_empty() && snapshot.keys.is_empty());
    assert!(snapshot.retired.is_empty());
}

pub(crate) async fn all_that_was_committed(store: SharedStore) {
    with_account(&store).await;
    let full = Key {
        policy: policy(),
        metadata: [("a".to_owned(), "b\"\\\u{e9}".to_owned())].into(),
        expire_time: Some(later(-5)),
        environment: Environment::Test,
        name: "näme, with \"everything\" {1}".to_owned(),
        ..key(2, "a")
    };
    let revoked = Key {
        status: KeyStatus::Revoked(Revocation { time: NOW, reason: "r".to_owned(), actor: "s".to_owned() }),
        ..key(3, "a")
    };
    let disabled = Key { status: KeyStatus::Disabled, ..key(4, "a") };
    let revision = insert(&store, vec![(1, key(1, "a")), (2, full), (3, revoked), (4, disabled)]).await;
    let rotated =
        Key { previous: Some(PreviousSecret { prefix: "p".to_owned(), expire_time: later(7) }), ..key(1, "a") };
    let rotation = Write::UpdateKey { key: rotated, expected: revision, new_secret: Some(secret(11)) };
    write(&store, vec![rotation, Write::InsertPlan(plan("other")), Write::InsertAccount(account("b", "other"))])
        .await
        .unwrap();

    let snapshot = load(&store).await;
    assert_eq!(snapshot.revision, store.revision().await.unwrap());
    assert_eq!(snapshot.plans, store.plans(None, 10).await.unwrap());
    let mut accounts = snapshot.accounts;
    accounts.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(accounts, store.accounts(None, 10).await.unwrap());
    let stored = store.keys(&all_keys()).await.unwrap();
    assert_eq!(snapshot.keys.len(), stored.len());
    for stored in stored {
        let loaded = &snapshot.keys[&stored.key.id];
        assert_eq!((&loaded.account_id, loaded.hash), (&stored.key.account_id, stored.hash));
        assert_eq!(loaded.record, KeyRecord::new(&stored.key, Arc::new(stored.key.policy.clone()), None));
    }
    assert_eq!(snapshot.retired, [RetiredSecret { hash: hash(1), current: hash(11), expire_time: later(7) }]);
}

pub(crate) async fn more_than_one_chunk_and_equal_policies_shared(store: SharedStore) {
    with_account(&store).await;
    let keys = (1..=9_001).map(|number| (number, Key { policy: policy(), ..key(number, "a") })).collect();
    insert(&store, keys).await;
    let snapshot = load(&store).await;
    assert_eq!(snapshot.keys.len(), 9_001);
    let first = &snapshot.keys[&key_id(1)].record.policy;
    assert_eq!(**first, policy());
    for (number, (id, loaded)) in (1..).zip(&snapshot.keys) {
        assert_eq!((*id, loaded.hash), (key_id(number), hash(number)));
        assert!(Arc::ptr_eq(first, &loaded.record.policy));
        assert_eq!(loaded.account_id, account_id("a"));
    }
}

pub(crate) async fn a_snapshot_while_commits_go_on(store: SharedStore) {
    with_account(&store).await;
    // One key for each revision, so that a snapshot tells by its keys of which revision it is.
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for number in 1..=200 {
                insert(&store, vec![(number, key(number, "a"))]).await;
            }
        }
    });
    while !writer.is_finished() {
        let snapshot = load(&store).await;
        assert_eq!(i64::try_from(snapshot.keys.len()).unwrap(), snapshot.revision.number() - 1);
        assert!(snapshot.keys.values().all(|key| key.record.revision <= snapshot.revision));
    }
    writer.await.unwrap();
}

pub(crate) async fn a_receiver_that_goes_away(store: SharedStore) {
    with_account(&store).await;
    insert(&store, (1..=5_000).map(|number| (number, key(number, "a"))).collect()).await;
    let revision = store.revision().await.unwrap();
    for kept in 0..4 {
        let (sender, mut receiver) = mpsc::channel(1);
        let loading = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.load(sender).await }
        });
        for _ in 0..kept {
            receiver.recv().await.unwrap();
        }
        drop(receiver);
        assert_eq!(loading.await.unwrap().unwrap().revision, revision);
    }
}

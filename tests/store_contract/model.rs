//! A random series of commits, against a model that knows nothing of tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use tollgate::decision::KeyRecord;
use tollgate::domain::{
    Account, AccountId, Key, KeyId, KeyStatus, Plan, PlanId, PreviousSecret, Revision, Revocation, SecretHash, Time,
};
use tollgate::store::{CommitError, RetiredSecret, SharedStore, Write};

use crate::load::load;
use crate::records::{account, all_keys, commit, hash, key, key_id, later, plan, plan_id, secret};

/// What to do, in small numbers, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    InsertPlan(u8),
    UpdatePlan(u8, bool),
    DeletePlan(u8, bool),
    InsertAccount(u8, u8),
    UpdateAccount(u8, u8, bool),
    InsertKey { key: u64, account: u8, name: u8, hash: u64 },
    RenameKey { key: u64, name: u8, stale: bool },
    RevokeKey(u64),
    RotateKey { key: u64, hash: u64, grace: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (plan, account, name) = (0..3_u8, 0..3_u8, 0..25_u8);
    let (key, hash) = (1..40_u64, 1..250_u64);
    prop_oneof![
        1 => plan.clone().prop_map(Step::InsertPlan),
        1 => (plan.clone(), prop::bool::weighted(0.2)).prop_map(|(p, s)| Step::UpdatePlan(p, s)),
        1 => (plan.clone(), prop::bool::weighted(0.2)).prop_map(|(p, s)| Step::DeletePlan(p, s)),
        2 => (account.clone(), plan.clone()).prop_map(|(a, p)| Step::InsertAccount(a, p)),
        1 => (account.clone(), plan, prop::bool::weighted(0.2)).prop_map(|(a, p, s)| Step::UpdateAccount(a, p, s)),
        6 => (key.clone(), account, name.clone(), hash.clone())
            .prop_map(|(key, account, name, hash)| Step::InsertKey { key, account, name, hash }),
        2 => (key.clone(), name, prop::bool::weighted(0.2))
            .prop_map(|(key, name, stale)| Step::RenameKey { key, name, stale }),
        1 => key.clone().prop_map(Step::RevokeKey),
        4 => (key, hash, 0..100_i64).prop_map(|(key, hash, grace)| Step::RotateKey { key, hash, grace }),
    ]
}

#[derive(Clone, Debug, Default)]
struct Model {
    revision: i64,
    plans: BTreeMap<PlanId, Plan>,
    accounts: BTreeMap<AccountId, Account>,
    keys: BTreeMap<KeyId, (Key, SecretHash)>,
    retired: Vec<(SecretHash, KeyId, Time)>,
}

impl Model {
    fn plan_revision(&self, id: &PlanId, stale: bool) -> Revision {
        self.plans.get(id).filter(|_| !stale).map_or(Revision::ZERO, |plan| plan.revision)
    }

    /// The write that a step makes, going by what there is.
    fn write(&self, step: &Step) -> Write {
        let plan_name = |number: &u8| format!("p{number}");
        match step {
            Step::InsertPlan(p) => Write::InsertPlan(plan(&plan_name(p))),
            Step::UpdatePlan(p, stale) => {
                let mut plan = plan(&plan_name(p));
                plan.monthly_credits = Some(u64::try_from(self.revision).unwrap());
                let expected = self.plan_revision(&plan.id, *stale);
                Write::UpdatePlan(plan, expected)
            }
            Step::DeletePlan(p, stale) => {
                let id = plan_id(&plan_name(p));
                let expected = self.plan_revision(&id, *stale);
                Write::DeletePlan(id, expected)
            }
            Step::InsertAccount(a, p) => Write::InsertAccount(account(&a.to_string(), &plan_name(p))),
            Step::UpdateAccount(a, p, stale) => {
                let account = account(&a.to_string(), &plan_name(p));
                let old = self.accounts.get(&account.id).filter(|_| !stale);
                let expected = old.map_or(Revision::ZERO, |account| account.revision);
                Write::UpdateAccount(account, expected)
            }
            Step::InsertKey { key: k, account, name, hash } => {
                let key = Key { name: name.to_string(), ..key(*k, &account.to_string()) };
                Write::InsertKey(key, secret(*hash))
            }
            Step::RenameKey { key: k, name, stale } => {
                let (mut key, expected) = self.key(*k);
                key.name = name.to_string();
                Write::UpdateKey { key, expected: if *stale { Revision::ZERO } else { expected }, new_secret: None }
            }
            Step::RevokeKey(k) => {
                let (mut key, expected) = self.key(*k);
                let actor = "system".to_owned();
                key.status = KeyStatus::Revoked(Revocation { time: later(1), reason: String::new(), actor });
                Write::UpdateKey { key, expected, new_secret: None }
            }
            Step::RotateKey { key: k, hash, grace } => {
                let (mut key, expected) = self.key(*k);
                let expire_time = later(self.revision + grace);
                key.previous = Some(PreviousSecret { prefix: key.prefix.clone(), expire_time });
                Write::UpdateKey { key, expected, new_secret: Some(secret(*hash)) }
            }
        }
    }

    fn key(&self, number: u64) -> (Key, Revision) {
        match self.keys.get(&key_id(number)) {
            Some((key, _)) => (key.clone(), key.revision),
            None => (key(number, "0"), Revision::ZERO),
        }
    }

    fn apply(&mut self, write: &Write, place: usize) -> Result<(), CommitError> {
        let revision = Revision::new(self.revision);
        match write {
            Write::InsertPlan(plan) if self.plans.contains_key(&plan.id) => return Err(CommitError::IdTaken),
            Write::UpdatePlan(plan, expected) if self.plan_revision(&plan.id, false) != *expected => {
                return Err(CommitError::Stale);
            }
            Write::UpdatePlan(plan, _) if !self.plans.contains_key(&plan.id) => return Err(CommitError::Stale),
            Write::InsertPlan(plan) | Write::UpdatePlan(plan, _) => {
                self.plans.insert(plan.id.clone(), Plan { revision, ..plan.clone() });
            }
            Write::DeletePlan(id, expected) => {
                if self.plans.get(id).map(|plan| plan.revision) != Some(*expected) {
                    return Err(CommitError::Stale);
                }
                if self.accounts.values().any(|account| account.plan == *id) {
                    return Err(CommitError::PlanInUse);
                }
                self.plans.remove(id);
            }
            Write::InsertAccount(account) | Write::UpdateAccount(account, _) => {
                let old = self.accounts.get(&account.id).map(|account| account.revision);
                match (write, old) {
                    (Write::InsertAccount(_), Some(_)) => return Err(CommitError::IdTaken),
                    (Write::UpdateAccount(_, expected), old) if old != Some(*expected) => {
                        return Err(CommitError::Stale);
                    }
                    _ if !self.plans.contains_key(&account.plan) => return Err(CommitError::NoParent),
                    _ => {}
                }
                self.accounts.insert(account.id.clone(), Account { revision, ..account.clone() });
            }
            Write::InsertKey(key, secret) => {
                if !self.accounts.contains_key(&key.account_id) {
                    return Err(CommitError::NoParent);
                }
                if self.keys.contains_key(&key.id) {
                    return Err(CommitError::IdTaken);
                }
                self.take_hash(secret.hash, place)?;
                self.take_name(key)?;
                self.keys.insert(key.id, (Key { revision, ..key.clone() }, secret.hash));
            }
            Write::UpdateKey { key, expected, new_secret } => {
                let old = self.keys.get(&key.id).filter(|(old, _)| old.revision == *expected);
                let mut current = old.ok_or(CommitError::Stale)?.1;
                if let Some(new) = new_secret {
                    self.take_hash(new.hash, place)?;
                    self.retire(key, current);
                    current = new.hash;
                }
                self.take_name(key)?;
                self.keys.insert(key.id, (Key { revision, ..key.clone() }, current));
            }
        }
        Ok(())
    }

    fn retire(&mut self, key: &Key, hash: SecretHash) {
        let now = later(self.revision);
        for (_, of, expire_time) in &mut self.retired {
            if *of == key.id {
                *expire_time = (*expire_time).min(now);
            }
        }
        self.retired.push((hash, key.id, key.previous.as_ref().unwrap().expire_time));
    }

    fn take_hash(&self, hash: SecretHash, place: usize) -> Result<(), CommitError> {
        let current = self.keys.values().any(|(_, taken)| *taken == hash);
        let retired = self.retired.iter().any(|(taken, ..)| *taken == hash);
        if current || retired { Err(CommitError::HashTaken(place)) } else { Ok(()) }
    }

    fn take_name(&self, key: &Key) -> Result<(), CommitError> {
        let taken = self.keys.values().any(|(other, _)| {
            other.id != key.id
                && !other.is_revoked()
                && (&other.account_id, &other.name) == (&key.account_id, &key.name)
        });
        if taken && !key.is_revoked() { Err(CommitError::NameTaken(key.name.clone())) } else { Ok(()) }
    }

    async fn check(&self, store: &SharedStore) {
        assert_eq!(store.plans(None, 100).await.unwrap(), self.plans.values().cloned().collect::<Vec<_>>());
        assert_eq!(store.accounts(None, 100).await.unwrap(), self.accounts.values().cloned().collect::<Vec<_>>());
        let read = store.keys(&all_keys()).await.unwrap();
        let read: Vec<_> = read.into_iter().map(|stored| (stored.key, stored.hash)).collect();
        assert_eq!(read, self.keys.values().cloned().collect::<Vec<_>>());

        let snapshot = load(store).await;
        assert_eq!(snapshot.revision.number(), self.revision);
        assert_eq!(snapshot.keys.len(), self.keys.len());
        for (key, hash) in self.keys.values() {
            let loaded = &snapshot.keys[&key.id];
            assert_eq!((loaded.hash, &loaded.account_id), (*hash, &key.account_id));
            assert_eq!(loaded.record, KeyRecord::new(key, Arc::new(key.policy.clone()), None));
        }
        let order = |mut secrets: Vec<RetiredSecret>| {
            secrets.sort_by_key(|retired| *retired.hash.as_bytes());
            secrets
        };
        let wanted = self.retired.iter().map(|(hash, id, expire_time)| RetiredSecret {
            hash: *hash,
            current: self.keys[id].1,
            expire_time: *expire_time,
        });
        assert_eq!(order(snapshot.retired), order(wanted.collect()));
    }
}

pub(crate) async fn reads_are_those_of_the_model(store: SharedStore) {
    assert!(hash(1) != hash(2));
    // A fixed seed: the same series every time, so that a failure can be found again.
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let strategy = prop::collection::vec(step(), 1..3);
    let mut model = Model::default();
    let (mut made, mut refused) = (0, BTreeMap::<String, u32>::new());
    for round in 0..600 {
        let steps = strategy.new_tree(&mut runner).unwrap().current();
        let mut next = Model { revision: model.revision + 1, ..model.clone() };
        let mut writes = Vec::new();
        let mut result = Ok(());
        for (place, step) in steps.iter().enumerate() {
            let write = next.write(step);
            writes.push(write.clone());
            if result.is_ok() {
                result = next.apply(&write, place);
            }
        }
        let mut commit = commit(writes);
        commit.time = later(next.revision);
        let alone = commit.writes.len() == 1;
        match (store.commit(commit).await, result) {
            (Ok(revision), Ok(())) => {
                model = next;
                assert_eq!(revision.number(), model.revision);
                made += 1;
            }
            (Err(got), Err(wanted)) => {
                // Of several that are wrong, the store may name any.
                if alone {
                    assert_eq!(format!("{got:?}"), format!("{wanted:?}"), "{steps:?}");
                }
                *refused.entry(format!("{wanted:?}").split('(').next().unwrap().to_owned()).or_default() += 1;
            }
            (got, wanted) => panic!("{got:?} instead of {wanted:?}: {steps:?}"),
        }
        if round % 20 == 0 {
            model.check(&store).await;
        }
    }
    model.check(&store).await;
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
    // The series is worth its time: commits were made, and each reason for refusing one came up.
    assert!(made > 100 && refused.len() == 6, "{made} made, refused: {refused:?}");
}

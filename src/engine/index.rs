//! Every key in memory, by the hash of its secret, so that a check does no I/O and a miss is final.
//!
//! Readers take no lock. Writers come one at a time, from the engine after its commit, or from the loader at start; what
//! they write is compared by revision, so that an older state never replaces a newer one.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use papaya::HashMap as LockFreeMap;
use tokio::sync::watch;

use crate::decision::{AccountTerms, KeyPhase, KeyRecord, PreviousHash};
use crate::domain::{Account, AccountId, Environment, KeyId, Plan, PlanId, Policy, Revision, SecretHash, Time, TopUps};
use crate::store::{LoadedKey, RetiredSecret};

use super::meter::{AccountMeter, KeyMeter};

/// A key. One of these stands for it as long as the process lives; what can change about it is behind `record`.
#[derive(Debug)]
pub(super) struct KeyEntry {
    pub(super) id: KeyId,
    pub(super) account: Arc<AccountEntry>,
    pub(super) record: ArcSwap<KeyRecord>,
    meter: Mutex<Option<Box<KeyMeter>>>,
    /// The second in which it was last noted as a caller.
    pub(super) touched_seconds: AtomicU32,
}

impl KeyEntry {
    fn new(id: KeyId, account: Arc<AccountEntry>, record: KeyRecord) -> Self {
        let record = ArcSwap::from_pointee(record);
        Self { id, account, record, meter: Mutex::new(None), touched_seconds: AtomicU32::new(0) }
    }

    /// Runs a closure on the key's meter, under its lock.
    pub(super) fn with_meter<T>(&self, run: impl FnOnce(&mut KeyMeter) -> T) -> T {
        run(self.lock_meter().meter())
    }

    /// The same, where it has one: most keys of a large store are asleep.
    pub(super) fn with_made_meter<T>(&self, run: impl FnOnce(&mut KeyMeter) -> T) -> Option<T> {
        lock(&self.meter).as_deref_mut().map(run)
    }

    /// The key's meter, locked until the guard is dropped. Whoever holds one and takes another must go by one order.
    pub(super) fn lock_meter(&self) -> KeyMeterGuard<'_> {
        KeyMeterGuard(lock(&self.meter))
    }

    /// Whether it has not been noted as a caller in this second yet.
    pub(super) fn is_first_touch_in(&self, now: Time) -> bool {
        let second = u32::try_from(now.seconds()).unwrap_or(0);
        self.touched_seconds.load(Ordering::Relaxed) != second
            && self.touched_seconds.swap(second, Ordering::Relaxed) != second
    }
}

/// A key's meter under its lock.
#[derive(Debug)]
pub(super) struct KeyMeterGuard<'a>(MutexGuard<'a, Option<Box<KeyMeter>>>);

impl KeyMeterGuard<'_> {
    /// The meter, made where the key had none.
    pub(super) fn meter(&mut self) -> &mut KeyMeter {
        self.0.get_or_insert_with(|| Box::new(KeyMeter::new()))
    }
}

/// An account, likewise.
#[derive(Debug)]
pub(super) struct AccountEntry {
    pub(super) state: ArcSwap<AccountState>,
    live: Mutex<AccountMeter>,
    test: Mutex<AccountMeter>,
    /// Calls of its keys that wait for the store, or are in it.
    pub(super) calls: AtomicUsize,
    /// Operations of its keys that are under way.
    pub(super) operations: AtomicUsize,
}

/// What can change about an account.
#[derive(Debug)]
pub(super) struct AccountState {
    pub(super) account: Account,
    pub(super) plan: Arc<Plan>,
    pub(super) terms: Arc<AccountTerms>,
}

impl AccountEntry {
    fn new(account: Account, plan: Arc<Plan>) -> Self {
        let state = ArcSwap::from_pointee(AccountState::new(account, plan));
        Self {
            state,
            live: Mutex::default(),
            test: Mutex::default(),
            calls: AtomicUsize::new(0),
            operations: AtomicUsize::new(0),
        }
    }

    /// Its id.
    pub(super) fn id(&self) -> AccountId {
        self.state.load().account.id.clone()
    }

    /// The meter that the keys of one environment share.
    pub(super) fn meter(&self, environment: Environment) -> MutexGuard<'_, AccountMeter> {
        match environment {
            Environment::Live => lock(&self.live),
            Environment::Test => lock(&self.test),
        }
    }
}

impl AccountState {
    fn new(mut account: Account, plan: Arc<Plan>) -> Self {
        // What was topped up when is asked of the store alone.
        account.top_ups = TopUps::of(account.top_ups.sum);
        let terms = Arc::new(AccountTerms::new(&account, &plan));
        Self { account, plan, terms }
    }
}

/// What a hash leads to.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) entry: Arc<KeyEntry>,
    /// Whether a rotation has replaced the secret.
    pub(super) retired: bool,
}

impl Found {
    /// Until when the secret with this hash verifies, by a record of its key. Absent where it is the key's present one.
    pub(super) fn secret_expire_time(&self, hash: &SecretHash, record: &KeyRecord) -> Option<Time> {
        let previous = record.previous.as_ref().filter(|previous| previous.hash == *hash);
        self.retired.then(|| previous.map_or(Time::from_millis(i64::MIN), |previous| previous.expire_time))
    }
}

/// All keys, accounts and plans.
#[derive(Debug)]
pub(super) struct Index {
    secrets: LockFreeMap<SecretHash, Found, RandomState>,
    /// The same keys by their ids. Checks find a key by its secret, so this is made when somebody first names one by its id:
    /// it takes some 50 bytes a key, which most deployments would have for nothing.
    ids: OnceLock<LockFreeMap<KeyId, Arc<KeyEntry>, RandomState>>,
    accounts: LockFreeMap<AccountId, Arc<AccountEntry>, RandomState>,
    plans: Mutex<HashMap<PlanId, Arc<Plan>>>,
    /// Equal policies share one allocation.
    policies: Mutex<HashSet<Arc<Policy>>>,
    /// The revision up to which every change is applied.
    revision: AtomicI64,
    /// Tells those who wait for a revision. Its own value lies behind a lock, which checks do without.
    revision_watch: watch::Sender<Revision>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            secrets: LockFreeMap::with_hasher(RandomState::default()),
            ids: OnceLock::new(),
            accounts: LockFreeMap::with_hasher(RandomState::default()),
            plans: Mutex::default(),
            policies: Mutex::default(),
            revision: AtomicI64::new(0),
            revision_watch: watch::Sender::new(Revision::ZERO),
        }
    }

    /// Makes room for so many secrets.
    pub(super) fn reserve(&self, secrets: usize) {
        self.secrets.pin().reserve(secrets);
    }

    /// The key that a secret with this hash is, or was, of.
    pub(super) fn find(&self, hash: &SecretHash) -> Option<Found> {
        self.secrets.pin().get(hash).cloned()
    }

    /// The key with this id. Absent also while [`Self::fill_ids`] has not been called.
    pub(super) fn find_by_id(&self, id: &KeyId) -> Option<Arc<KeyEntry>> {
        self.ids.get()?.pin().get(id).cloned()
    }

    /// Whether keys can be found by their ids.
    pub(super) fn has_ids(&self) -> bool {
        self.ids.get().is_some()
    }

    /// Makes keys findable by their ids. The caller keeps out every other writer meanwhile: a key that came in during the
    /// scan might be missed by it, and does not yet find the map to put itself into.
    pub(super) fn fill_ids(&self) {
        self.ids.get_or_init(|| {
            let secrets = self.secrets.pin();
            let ids = LockFreeMap::with_capacity_and_hasher(secrets.len(), RandomState::default());
            let pinned = ids.pin();
            for Found { entry, .. } in secrets.values() {
                pinned.insert(entry.id, Arc::clone(entry));
            }
            drop(pinned);
            ids
        });
    }

    /// Visits every key at least once, whatever is changed meanwhile.
    pub(super) fn for_each_key(&self, mut visit: impl FnMut(&Arc<KeyEntry>)) {
        self.secrets.pin().values().for_each(|found| visit(&found.entry));
    }

    /// Visits every account.
    pub(super) fn for_each_account(&self, visit: impl FnMut(&Arc<AccountEntry>)) {
        self.accounts.pin().values().for_each(visit);
    }

    /// An account by its id.
    pub(super) fn account(&self, id: &AccountId) -> Option<Arc<AccountEntry>> {
        self.accounts.pin().get(id).cloned()
    }

    /// Secrets that it holds, retired ones included.
    pub(super) fn secrets_len(&self) -> usize {
        self.secrets.len()
    }

    /// Accounts that it holds.
    pub(super) fn accounts_len(&self) -> usize {
        self.accounts.len()
    }

    /// The revision up to which every change is applied.
    pub(super) fn revision(&self) -> Revision {
        Revision::new(self.revision.load(Ordering::Acquire))
    }

    /// Follows [`Self::revision`].
    pub(super) fn watch_revision(&self) -> watch::Receiver<Revision> {
        self.revision_watch.subscribe()
    }

    /// Says that every change up to this revision is applied.
    pub(super) fn set_revision(&self, revision: Revision) {
        let before = self.revision.fetch_max(revision.number(), Ordering::AcqRel);
        if before < revision.number() {
            self.revision_watch.send_replace(self.revision());
        }
    }

    /// Says that what is applied is the state of this revision, which may be an earlier one than before.
    pub(super) fn put_revision(&self, revision: Revision) {
        self.revision.store(revision.number(), Ordering::Release);
        self.revision_watch.send_replace(revision);
    }

    /// Puts a plan in, and its new terms before every account that is on it.
    pub(super) fn put_plan(&self, plan: Plan) {
        let mut plans = lock(&self.plans);
        if plans.get(&plan.id).is_some_and(|old| old.revision > plan.revision) {
            return;
        }
        let plan = Arc::new(plan);
        plans.insert(plan.id.clone(), Arc::clone(&plan));
        for entry in self.accounts.pin().values() {
            let state = entry.state.load();
            if state.account.plan == plan.id {
                entry.state.store(Arc::new(AccountState::new(state.account.clone(), Arc::clone(&plan))));
            }
        }
    }

    /// Takes a plan out. No account is on it.
    pub(super) fn remove_plan(&self, id: &PlanId) {
        lock(&self.plans).remove(id);
    }

    /// Puts an account in. False if its plan is not there.
    pub(super) fn put_account(&self, account: Account) -> bool {
        // Under the lock of the plans, so that a plan's change and an account's can't miss each other.
        let plans = lock(&self.plans);
        let Some(plan) = plans.get(&account.plan).cloned() else { return false };
        let accounts = self.accounts.pin();
        match accounts.get(&account.id) {
            Some(entry) => {
                if entry.state.load().account.revision <= account.revision {
                    entry.state.store(Arc::new(AccountState::new(account, plan)));
                }
            }
            None => {
                accounts.insert(account.id.clone(), Arc::new(AccountEntry::new(account, plan)));
            }
        }
        true
    }

    /// Puts a key in that is not there yet. False if its account is not there.
    pub(super) fn insert_key(&self, loaded: LoadedKey) -> bool {
        let Some(account) = self.account(&loaded.account_id) else { return false };
        let entry = Arc::new(KeyEntry::new(loaded.id, account, loaded.record));
        if let Some(ids) = self.ids.get() {
            ids.pin().insert(entry.id, Arc::clone(&entry));
        }
        self.secrets.pin().insert(loaded.hash, Found { entry, retired: false });
        true
    }

    /// Puts a key in as it is now, whether it is there or not, with the secrets that rotations have replaced. False if its account
    /// is not there.
    pub(super) fn put_key(&self, loaded: LoadedKey, retired: &[RetiredSecret]) -> bool {
        self.put_key_among(loaded, retired, &HashMap::new())
    }

    /// The same, where what is there is also known by the keys' ids: by the secrets alone, one that was rotated may not be found.
    pub(super) fn put_key_among(
        &self,
        loaded: LoadedKey,
        retired: &[RetiredSecret],
        entries: &HashMap<KeyId, Arc<KeyEntry>>,
    ) -> bool {
        let secrets = self.secrets.pin();
        let of_this = |hash: &SecretHash| secrets.get(hash).filter(|found| found.entry.id == loaded.id);
        let present = of_this(&loaded.hash);
        let before = present.or_else(|| retired.iter().find_map(|secret| of_this(&secret.hash)));
        let Some(entry) = before.map(|found| &found.entry).or_else(|| entries.get(&loaded.id)).map(Arc::clone) else {
            let hash = loaded.hash;
            let placed = self.insert_key(loaded);
            if let Some(Found { entry, .. }) = self.find(&hash).filter(|_| placed) {
                self.put_retired(&entry, retired);
            }
            return placed;
        };
        if entry.record.load().revision > loaded.record.revision {
            return true;
        }
        // First the new secret, then the record that names the old one as its previous, then the end of the old one.
        let is_new = present.is_none_or(|found| found.retired);
        if is_new {
            secrets.insert(loaded.hash, Found { entry: Arc::clone(&entry), retired: false });
        }
        if entry.record.load().revision < loaded.record.revision {
            entry.record.store(Arc::new(loaded.record));
        }
        self.put_retired(&entry, retired);
        true
    }

    fn put_retired(&self, entry: &Arc<KeyEntry>, retired: &[RetiredSecret]) {
        let secrets = self.secrets.pin();
        for secret in retired {
            if secrets.get(&secret.hash).is_none_or(|found| !found.retired) {
                secrets.insert(secret.hash, Found { entry: Arc::clone(entry), retired: true });
            }
        }
    }

    /// Lets whatever comes next replace what is there, also where it is of an earlier revision.
    pub(super) fn forget_revisions(&self) {
        let mut plans = lock(&self.plans);
        for plan in plans.values_mut() {
            *plan = Arc::new(Plan { revision: Revision::ZERO, ..Plan::clone(plan) });
        }
        for entry in self.accounts.pin().values() {
            let state = entry.state.load();
            let account = Account { revision: Revision::ZERO, ..state.account.clone() };
            entry.state.store(Arc::new(AccountState::new(account, Arc::clone(&state.plan))));
        }
        for Found { entry, .. } in self.secrets.pin().values() {
            let record = KeyRecord::clone(&entry.record.load());
            entry.record.store(Arc::new(KeyRecord { revision: Revision::ZERO, ..record }));
        }
    }

    /// Takes all other plans out. No account is on them.
    pub(super) fn retain_plans(&self, ids: &HashSet<PlanId>) {
        lock(&self.plans).retain(|id, _| ids.contains(id));
    }

    /// Takes all other secrets out.
    pub(super) fn retain_secrets(&self, hashes: &HashSet<SecretHash>) {
        self.secrets.pin().retain(|hash, _| hashes.contains(hash));
    }

    /// All keys by their ids.
    pub(super) fn entries(&self) -> HashMap<KeyId, Arc<KeyEntry>> {
        self.secrets.pin().values().map(|found| (found.entry.id, Arc::clone(&found.entry))).collect()
    }

    /// The ids of keys that are revoked, and the secrets that rotations have replaced.
    pub(super) fn ended(&self) -> (Vec<KeyId>, Vec<SecretHash>) {
        let (mut revoked, mut retired) = (Vec::new(), Vec::new());
        for (hash, found) in &self.secrets.pin() {
            if found.retired {
                retired.push(*hash);
            } else if found.entry.record.load().phase == KeyPhase::Revoked {
                revoked.push(found.entry.id);
            }
        }
        (revoked, retired)
    }

    /// Puts a changed record in the place of the one before.
    pub(super) fn update_key(&self, hash: &SecretHash, record: KeyRecord) {
        let secrets = self.secrets.pin();
        let Some(found) = secrets.get(hash) else { return };
        let record = Arc::new(record);
        found.entry.record.rcu(|old| Arc::clone(if old.revision > record.revision { old } else { &record }));
    }

    /// Gives a key a new secret. `record` names the present one as its previous.
    pub(super) fn rotate_key(&self, present: &SecretHash, new: SecretHash, record: KeyRecord) {
        let Some(Found { entry, .. }) = self.find(present) else { return };
        let secrets = self.secrets.pin();
        secrets.insert(new, Found { entry: Arc::clone(&entry), retired: false });
        self.update_key(present, record);
        secrets.insert(*present, Found { entry, retired: true });
    }

    /// Puts in a secret that a rotation replaced. Of several of one key the one that verifies for longest is the
    /// previous one; a rotation ends all others.
    pub(super) fn add_retired(&self, retired: &RetiredSecret) {
        let Some(Found { entry, .. }) = self.find(&retired.current) else { return };
        let record = entry.record.load();
        if record.previous.as_ref().is_none_or(|previous| previous.expire_time < retired.expire_time) {
            let previous = PreviousHash { hash: retired.hash, expire_time: retired.expire_time };
            entry.record.store(Arc::new(KeyRecord { previous: Some(Arc::new(previous)), ..KeyRecord::clone(&record) }));
        }
        self.secrets.pin().insert(retired.hash, Found { entry, retired: true });
    }

    /// The shared copy of a policy.
    pub(super) fn intern(&self, policy: &Policy) -> Arc<Policy> {
        let mut policies = lock(&self.policies);
        if let Some(known) = policies.get(policy) {
            return Arc::clone(known);
        }
        // Those that no key has any more make room before there are too many.
        if policies.len() >= POLICIES_SWEPT_AT && policies.len().is_power_of_two() {
            policies.retain(|policy| Arc::strong_count(policy) > 1);
        }
        let policy = Arc::new(policy.clone());
        policies.insert(Arc::clone(&policy));
        policy
    }
}

const POLICIES_SWEPT_AT: usize = 1_024;

/// A lock whose holder panicked still guards data that is whole: every critical section here leaves it so at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A store that fails, or with which the process ends, at a call that was chosen before; and a book of what it has granted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tollgate::domain::{Account, AccountId, KeyId, Plan, PlanId, Revision, Time, UsageRow};
use tollgate::store::{
    ClosedLease, Commit, CommitError, Incarnation, KeyQuery, LeaseBatch, Leased, Loaded, SharedStore, Store,
    StoreError, StoredKey, Uncertain, UsageFlush, UsageQuery,
};

/// Which call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Lease,
    CloseLeases,
    RecordUsage,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// It is carried out, and only the answer gets lost.
    pub(crate) carried_out: bool,
    /// The process ends with it.
    pub(crate) fatal: bool,
}

/// Units of a budget in a slot, by what the store calls both.
pub(crate) type Units = BTreeMap<(String, i64), u64>;

/// What outlives processes: what is to go wrong, and what has come of it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// How many more calls go well before one does not.
    pub(crate) planned: BTreeMap<Call, (u32, Trouble)>,
    /// The process is gone: none of its calls reaches the store.
    pub(crate) dead: bool,
    pub(crate) failures: u64,
    /// Granted, and not given back.
    pub(crate) granted: Units,
    /// Leased as far as the store has been told.
    leased: Units,
    /// Units that the process may take for its own and the store does not, since this was last taken out.
    pub(crate) torn: Vec<((String, i64), u64)>,
    /// Units of leases that were closed, since this was last taken out, and of how many the process was told.
    pub(crate) closed: u64,
    pub(crate) closed_told: u64,
}

impl Book {
    /// What is to become of a call.
    fn turn(&mut self, call: Call) -> Result<Option<Trouble>, StoreError> {
        if self.dead {
            return Err(lost());
        }
        match self.planned.remove(&call) {
            Some((0, trouble)) => {
                self.dead = trouble.fatal;
                self.failures += 1;
                Ok(Some(trouble))
            }
            Some((more, trouble)) => {
                self.planned.insert(call, (more - 1, trouble));
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn note(&mut self, batch: &LeaseBatch, leased: &[Leased]) {
        for (ask, answer) in batch.asks.iter().zip(leased) {
            let place = |slot: i64| (ask.budget.as_str().to_owned(), slot);
            for one in &ask.settled {
                let place = place(one.slot.number());
                let granted = self.granted.entry(place.clone()).or_default();
                *granted = granted.checked_sub(one.returned).expect("more is given back than was granted");
                let leased = self.leased.entry(place).or_default();
                *leased = leased.checked_sub(one.spent + one.returned).expect("more is settled than was leased");
            }
            let place = place(answer.state.slot().number());
            *self.granted.entry(place.clone()).or_default() += answer.granted;
            *self.leased.entry(place).or_default() += answer.granted;
        }
    }

    /// Notes what was told and never heard.
    fn told_in_vain(&mut self, batch: &LeaseBatch) {
        for ask in &batch.asks {
            let place = |slot: i64| (ask.budget.as_str().to_owned(), slot);
            self.torn.extend(ask.settled.iter().map(|one| (place(one.slot.number()), one.returned)));
        }
    }

    /// Notes what was granted to nobody.
    fn answered_in_vain(&mut self, batch: &LeaseBatch, leased: &[Leased]) {
        let places = batch
            .asks
            .iter()
            .zip(leased)
            .map(|(ask, answer)| ((ask.budget.as_str().to_owned(), answer.state.slot().number()), answer.granted));
        self.torn.extend(places);
    }

    /// Exactly what was leased and not reported is closed.
    fn close(&mut self, closed: &[ClosedLease], in_vain: bool) {
        let found: Units =
            closed.iter().map(|lease| ((lease.budget.as_str().to_owned(), lease.slot.number()), lease.units)).collect();
        self.leased.retain(|_, units| *units > 0);
        assert_eq!(found, std::mem::take(&mut self.leased), "leases of processes that are gone");
        let units: u64 = found.values().sum();
        self.closed += units;
        self.closed_told += if in_vain { 0 } else { units };
    }
}

fn lost() -> StoreError {
    StoreError::Unavailable("the test has it so".to_owned())
}

/// What all stores of a test share.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    book: Mutex<Book>,
    /// Held during a call, so that no process is taken down in the midst of one but where that is meant.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

impl Desk {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Carries out a call as it is planned. `before` and `after` note what came of it.
    async fn run<T>(
        &self,
        call: Call,
        run: impl Future<Output = Result<T, StoreError>>,
        before: impl FnOnce(&mut Book),
        after: impl FnOnce(&mut Book, &T, bool),
    ) -> Result<T, StoreError> {
        let _gate = self.gate.lock().await;
        let trouble = self.book().turn(call)?;
        if trouble.is_some_and(|trouble| !trouble.carried_out) {
            before(&mut self.book());
            return Err(lost());
        }
        let answer = run.await?;
        after(&mut self.book(), &answer, trouble.is_some());
        trouble.map_or(Ok(answer), |_| Err(lost()))
    }
}

#[derive(Debug)]
pub(crate) struct TroubledStore {
    pub(crate) inner: SharedStore,
    pub(crate) desk: Arc<Desk>,
}

#[async_trait]
impl Store for TroubledStore {
    async fn record_usage(&self, flush: &UsageFlush) -> Result<(), StoreError> {
        self.desk.run(Call::RecordUsage, self.inner.record_usage(flush), |_| (), |_, (), _| ()).await
    }

    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        let after = |book: &mut Book, leased: &Vec<Leased>, in_vain: bool| {
            book.note(batch, leased);
            if in_vain {
                book.answered_in_vain(batch, leased);
            }
        };
        self.desk.run(Call::Lease, self.inner.lease(batch), |book| book.told_in_vain(batch), after).await
    }

    async fn close_leases(
        &self,
        survivor: Incarnation,
        now: Time,
        policy: Uncertain,
    ) -> Result<Vec<ClosedLease>, StoreError> {
        let after = |book: &mut Book, closed: &Vec<ClosedLease>, in_vain: bool| book.close(closed, in_vain);
        self.desk.run(Call::CloseLeases, self.inner.close_leases(survivor, now, policy), |_| (), after).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.inner.commit(commit).await
    }

    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<Revision, StoreError> {
        self.inner.load(sink).await
    }

    async fn key(&self, id: KeyId) -> Result<Option<StoredKey>, StoreError> {
        self.inner.key(id).await
    }

    async fn keys(&self, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
        self.inner.keys(query).await
    }

    async fn keys_to_renew(&self, now: Time, lead: i64, rows_max: u32) -> Result<Vec<StoredKey>, StoreError> {
        self.inner.keys_to_renew(now, lead, rows_max).await
    }

    async fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        self.inner.account(id).await
    }

    async fn accounts(&self, after: Option<&AccountId>, rows_max: u32) -> Result<Vec<Account>, StoreError> {
        self.inner.accounts(after, rows_max).await
    }

    async fn plan(&self, id: &PlanId) -> Result<Option<Plan>, StoreError> {
        self.inner.plan(id).await
    }

    async fn plans(&self, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError> {
        self.inner.plans(after, rows_max).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        self.inner.usage(query).await
    }

    async fn pepper_ids(&self) -> Result<Vec<String>, StoreError> {
        self.inner.pepper_ids().await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn verify(&self) -> Result<Vec<String>, StoreError> {
        self.inner.verify().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

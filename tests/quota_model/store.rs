//! A store that fails, or with which the process ends, at a call that was chosen before; and a book of what it has granted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tollgate::decision::quota::Slot;
use tollgate::domain::{Account, AccountId, BudgetId, KeyId, OperationId, Plan, PlanId, Revision, Time, UsageRow};
use tollgate::store::{
    Closed, Closing, Commit, CommitError, KeyQuery, LeaseBatch, Leased, Loaded, LogPosition, Operation, OperationBatch,
    RecordError, Recorded, Refund, SharedStore, Store, StoreError, StoredKey, UncertainRow, UsageFlush, UsageQuery,
};

/// Which call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Lease,
    CloseLeases,
    RecordUsage,
    RecordOperations,
    RefundOperation,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) outcome: Carried,
    /// The process ends with it.
    pub(crate) fatal: bool,
}

/// What becomes of a call that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// It is carried out, and only the answer gets lost.
    Out,
    /// It is not.
    Not,
    /// It is not, and that is known.
    NotForSure,
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
    /// The latest slot of each budget of which the store is to know that it has begun.
    pub(crate) heard: BTreeMap<String, i64>,
    /// Leased as far as the store has been told, with the number of the counter.
    leased: BTreeMap<(String, i64, Option<u32>), u64>,
    /// Units that the process may take for its own and the store does not, or the other way round, since this was last taken out.
    pub(crate) torn: Vec<((String, i64), u64)>,
    /// Units of leases that were closed, since this was last taken out, and of how many the process was told.
    pub(crate) closed: u64,
    pub(crate) closed_told: u64,
    /// What was charged and what was given back, since this was last taken out.
    pub(crate) recorded: Vec<Operation>,
    pub(crate) refunded: Vec<Operation>,
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
            let budget = || ask.budget.as_str().to_owned();
            // One of a lease that never was tells of a counter only.
            for one in ask.settled.iter().filter(|one| one.spent + one.returned > 0) {
                let granted = self.granted.entry((budget(), one.slot.number())).or_default();
                *granted = granted.checked_sub(one.returned).expect("more is given back than was granted");
                self.take(budget(), one.slot.number(), one.cell, one.spent + one.returned);
            }
            let state = &answer.state;
            let here = (state.slot().number(), ask.cell, answer.granted);
            let ahead = (state.next_slot().number(), ask.ahead_cell, answer.ahead);
            for (slot, cell, units) in [here, ahead].into_iter().filter(|(_, _, units)| *units > 0) {
                *self.granted.entry((budget(), slot)).or_default() += units;
                *self.leased.entry((budget(), slot, cell.map(|cell| cell.number))).or_default() += units;
            }
            let begun = ask.settled.iter().any(|one| one.spent > 0 && one.slot == state.slot());
            if answer.granted > 0 || answer.ahead > 0 || begun {
                let heard = self.heard.entry(budget()).or_insert(i64::MIN);
                *heard = state.slot().number().max(*heard);
            }
        }
    }

    /// Takes units out of a lease.
    fn take(&mut self, budget: String, slot: i64, cell: Option<u32>, units: u64) {
        let leased = self.leased.entry((budget, slot, cell)).or_default();
        *leased = leased.checked_sub(units).expect("more is settled than was leased");
    }

    fn tear(&mut self, budget: &BudgetId, slot: Slot, units: u64) {
        if units > 0 {
            self.torn.push(((budget.as_str().to_owned(), slot.number()), units));
        }
    }

    /// Notes what was told and never heard.
    fn told_in_vain(&mut self, batch: &LeaseBatch) {
        for ask in &batch.asks {
            ask.settled.iter().for_each(|one| self.tear(&ask.budget, one.slot, one.returned));
        }
    }

    /// Notes what was granted to nobody.
    fn answered_in_vain(&mut self, batch: &LeaseBatch, leased: &[Leased]) {
        for (ask, answer) in batch.asks.iter().zip(leased) {
            self.tear(&ask.budget, answer.state.slot(), answer.granted);
            self.tear(&ask.budget, answer.state.next_slot(), answer.ahead);
        }
    }

    /// Exactly what was leased and not reported is closed.
    fn close(&mut self, closed: &Closed, is_known: bool, in_vain: bool) {
        let mut leased = std::mem::take(&mut self.leased);
        leased.retain(|_, units| *units > 0);
        let mut found = Units::new();
        for lease in &closed.uncertain {
            *found.entry((lease.budget.as_str().to_owned(), lease.slot.number())).or_default() += lease.units;
        }
        if is_known {
            assert_eq!((closed.known, &found), (leased.len(), &Units::new()), "leases of a process with a journal");
        } else {
            let leased: Units = leased.into_iter().map(|((budget, slot, _), units)| ((budget, slot), units)).collect();
            assert_eq!((closed.known, &found), (0, &leased), "leases of processes that are gone");
        }
        let units: u64 = found.values().sum();
        self.closed += units;
        self.closed_told += if in_vain { 0 } else { units };
    }

    fn record(&mut self, batch: &OperationBatch, recorded: &[Recorded]) {
        for (named, recorded) in batch.operations.iter().zip(recorded) {
            assert_eq!(*recorded, Recorded::New, "what is known is not charged again");
            for charge in &named.operation.charges {
                self.take(charge.budget.as_str().to_owned(), charge.slot.number(), charge.cell, charge.units);
            }
            self.recorded.push(named.operation.clone());
        }
    }

    fn record_in_vain(&mut self, batch: &OperationBatch) {
        for charge in batch.operations.iter().flat_map(|named| &named.operation.charges) {
            self.tear(&charge.budget, charge.slot, charge.units);
        }
    }

    fn refund(&mut self, refund: &Refund, in_vain: bool) {
        let Refund::Done(operation) = refund else { return };
        for charge in &operation.charges {
            let place = (charge.budget.as_str().to_owned(), charge.slot.number());
            let granted = self.granted.entry(place).or_default();
            *granted = granted.checked_sub(charge.units).expect("more is given back than was charged");
            if in_vain {
                self.tear(&charge.budget, charge.slot, charge.units);
            }
        }
        self.refunded.push(operation.clone());
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

    /// Carries out a call as it is planned. `before` and `after` note what came of it. Where it goes wrong, tells whether it is
    /// sure that it was not carried out.
    async fn run<T>(
        &self,
        call: Call,
        run: impl Future<Output = Result<T, StoreError>>,
        before: impl FnOnce(&mut Book),
        after: impl FnOnce(&mut Book, &T, bool),
    ) -> Result<T, (StoreError, bool)> {
        let _gate = self.gate.lock().await;
        let trouble = self.book().turn(call).map_err(|error| (error, false))?;
        match trouble.map(|trouble| trouble.outcome) {
            Some(Carried::NotForSure) if call == Call::RecordOperations => return Err((lost(), true)),
            Some(Carried::Not | Carried::NotForSure) => {
                before(&mut self.book());
                return Err((lost(), false));
            }
            Some(Carried::Out) | None => {}
        }
        let answer = run.await.map_err(|error| (error, false))?;
        after(&mut self.book(), &answer, trouble.is_some());
        trouble.map_or(Ok(answer), |_| Err((lost(), false)))
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
        let recorded = self.desk.run(Call::RecordUsage, self.inner.record_usage(flush), |_| (), |_, (), _| ()).await;
        recorded.map_err(|(error, _)| error)
    }

    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        let after = |book: &mut Book, leased: &Vec<Leased>, in_vain: bool| {
            book.note(batch, leased);
            if in_vain {
                book.answered_in_vain(batch, leased);
            }
        };
        let leased = self.desk.run(Call::Lease, self.inner.lease(batch), |book| book.told_in_vain(batch), after).await;
        leased.map_err(|(error, _)| error)
    }

    async fn close_leases(&self, closing: &Closing<'_>) -> Result<Closed, StoreError> {
        let is_known = closing.known.is_some();
        let after = |book: &mut Book, closed: &Closed, in_vain: bool| book.close(closed, is_known, in_vain);
        let run = self.inner.close_leases(closing);
        self.desk.run(Call::CloseLeases, run, |_| (), after).await.map_err(|(error, _)| error)
    }

    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
        let run = async {
            // Its own failures are none that the test has made.
            Ok(self.inner.record_operations(batch).await.unwrap())
        };
        let after = |book: &mut Book, recorded: &Vec<Recorded>, _: bool| book.record(batch, recorded);
        let before = |book: &mut Book| book.record_in_vain(batch);
        let recorded = self.desk.run(Call::RecordOperations, run, before, after).await;
        recorded.map_err(
            |(error, not_written)| {
                if not_written { RecordError::NotWritten(error) } else { RecordError::Unknown(error) }
            },
        )
    }

    async fn refund_operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Refund, StoreError> {
        let run = self.inner.refund_operation(account_id, id, now);
        let after = |book: &mut Book, refund: &Refund, in_vain: bool| book.refund(refund, in_vain);
        self.desk.run(Call::RefundOperation, run, |_| (), after).await.map_err(|(error, _)| error)
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.inner.commit(commit).await
    }

    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError> {
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

    async fn uncertain(
        &self,
        account: &AccountId,
        key: Option<KeyId>,
        hours: Range<i64>,
        rows_max: u32,
    ) -> Result<Vec<UncertainRow>, StoreError> {
        self.inner.uncertain(account, key, hours, rows_max).await
    }

    async fn operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Option<Operation>, StoreError> {
        self.inner.operation(account_id, id, now).await
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

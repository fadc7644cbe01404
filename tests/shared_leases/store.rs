//! A store that several processes share, in memory as far as leases go: what it is to do is written at the trait. It also holds
//! those who use it to what they have been granted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tollgate::ambient::Clock;
use tollgate::decision::quota::State;
use tollgate::domain::*;
use tollgate::store::*;

/// For how long no more is granted than is needed.
const TIGHT: Duration = Duration::from_secs(1);

/// A lease: whose, of which budget, for which slot, under which counter.
type Row = ([u8; 16], String, i64, Option<u32>);

/// What the store holds.
#[derive(Debug, Default)]
pub(crate) struct Books {
    states: HashMap<String, State>,
    leases: BTreeMap<Row, u64>,
    recalls: BTreeSet<([u8; 16], BudgetId)>,
    tight: HashMap<String, Duration>,
    /// Whose leases were closed.
    closed: BTreeSet<[u8; 16]>,
    /// Asks that somebody waited for.
    pub(crate) needing: u64,
    /// How many rows each flush had.
    pub(crate) flushes: Vec<usize>,
}

impl Books {
    /// Units that a process holds and has not told to be spent.
    pub(crate) fn held(&self, by: Incarnation) -> u64 {
        self.leases.iter().filter(|((one, ..), _)| *one == by.0).map(|(_, units)| units).sum()
    }

    /// Closes the leases of a process; they count as spent.
    pub(crate) fn close(&mut self, of: Incarnation) {
        self.closed.insert(of.0);
        self.leases.retain(|(one, ..), _| *one != of.0);
        self.recalls.retain(|(one, _)| *one != of.0);
    }

    fn require_open(&self, by: Incarnation) -> Result<(), StoreError> {
        if self.closed.contains(&by.0) {
            return Err(StoreError::Unavailable("the process is not registered".to_owned()));
        }
        Ok(())
    }

    /// Takes units out of a lease, which must be there.
    fn take(&mut self, row: &Row, units: u64) {
        if units > 0 {
            let leased = self.leases.entry(row.clone()).or_default();
            *leased = leased.checked_sub(units).unwrap_or_else(|| panic!("more is settled than was leased: {row:?}"));
        }
        self.leases.retain(|_, units| *units > 0);
    }

    fn answer(&mut self, by: Incarnation, ask: &LeaseAsk, now: Time, at: Duration) -> Leased {
        let id = ask.budget.as_str().to_owned();
        let now = now.max(ask.reached);
        let mut state = self.states.get(&id).cloned().unwrap_or_else(|| State::new(&ask.rule, &ask.zone, now));
        state.advance(&ask.rule, &ask.zone, now);
        for one in &ask.settled {
            state.give_back(one.slot, one.returned);
            self.take(&(by.0, id.clone(), one.slot.number(), one.cell), one.spent + one.returned);
        }
        if ask.recalled {
            assert_eq!((ask.wanted, ask.ahead), (0, 0), "what was called back is not taken again at once");
            self.release(by, &ask.budget);
        }
        let tight = self.tight.get(&id).is_some_and(|until| at < *until);
        let granted = state.grant(&ask.rule, if tight { ask.needed } else { ask.wanted });
        let others: BTreeSet<[u8; 16]> = self.leases.keys().filter(|row| row.1 == id).map(|row| row.0).collect();
        let others: Vec<[u8; 16]> = others.into_iter().filter(|other| *other != by.0).collect();
        let elsewhere = granted < ask.needed && !others.is_empty();
        if elsewhere {
            self.recalls.extend(others.into_iter().map(|other| (other, ask.budget.clone())));
            self.tight.insert(id.clone(), at + TIGHT);
        }
        let ahead = if tight || elsewhere { 0 } else { state.grant_ahead(&ask.rule, ask.ahead) };
        let number = |cell: Option<Cell>| cell.map(|cell| cell.number);
        let here = (state.slot(), number(ask.cell), granted);
        for (slot, cell, units) in [here, (state.next_slot(), number(ask.ahead_cell), ahead)] {
            *self.leases.entry((by.0, id.clone(), slot.number(), cell)).or_default() += units;
        }
        self.leases.retain(|_, units| *units > 0);
        self.needing += u64::from(ask.needed > 0);
        self.states.insert(id, state.clone());
        Leased { granted, ahead, elsewhere, state }
    }

    fn release(&mut self, by: Incarnation, budget: &BudgetId) {
        self.recalls.remove(&(by.0, budget.clone()));
    }
}

/// The store.
#[derive(Debug)]
pub(crate) struct SharedBooks {
    pub(crate) inner: SharedStore,
    clock: Clock,
    books: Mutex<Books>,
    hint: tokio::sync::Notify,
    /// Held by a test that has operations wait.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// Told when one is there.
    pub(crate) at_gate: tokio::sync::Notify,
}

impl SharedBooks {
    pub(crate) fn new(inner: SharedStore, clock: Clock) -> Arc<Self> {
        let notify = tokio::sync::Notify::new;
        let (books, gate) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Self { inner, clock, books, hint: notify(), gate, at_gate: notify() })
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

#[async_trait]
impl Replication for SharedBooks {
    async fn register(&self, _: &Replica) -> Result<Registration, StoreError> {
        Ok(Registration::Done)
    }

    async fn poll(&self, poll: &Poll) -> Result<Polled, StoreError> {
        let books = self.books();
        let standing =
            if books.require_open(poll.incarnation).is_ok() { Standing::Registered } else { Standing::Buried };
        let recalled = books.recalls.iter().filter(|(by, _)| *by == poll.incarnation.0);
        let recalled = recalled.map(|(_, budget)| budget.clone()).collect();
        let (time, changes) = (self.clock.now(), Changes::Records(ChangedRecords::default()));
        Ok(Polled { standing, time, position: poll.position, changes, recalled, peers: Vec::new() })
    }

    async fn depart(&self, _: Incarnation) -> Result<(), StoreError> {
        Ok(())
    }

    async fn restate(&self, _: &Restatement) -> Result<Revived, StoreError> {
        Ok(Revived::default())
    }

    async fn conclude_restating(
        &self,
        _: Incarnation,
        _: &MoveId,
        _: Duration,
        _: Time,
    ) -> Result<Conclusion, StoreError> {
        Ok(Conclusion::Ended)
    }

    async fn adopt(&self, _: Time) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn time(&self) -> Result<Time, StoreError> {
        Ok(self.clock.now())
    }

    fn reset(&self) {}

    async fn hint(&self) {
        self.hint.notified().await;
    }
}

#[async_trait]
impl Store for SharedBooks {
    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        // As if it took a while.
        tokio::task::yield_now().await;
        let mut books = self.books();
        books.require_open(batch.incarnation)?;
        let at = self.clock.monotonic();
        batch.released.iter().for_each(|budget| books.release(batch.incarnation, budget));
        let leased: Vec<Leased> =
            batch.asks.iter().map(|ask| books.answer(batch.incarnation, ask, batch.now, at)).collect();
        if leased.iter().any(|leased| leased.elsewhere) {
            self.hint.notify_waiters();
        }
        Ok(leased)
    }

    async fn close_leases(&self, _: &Closing<'_>) -> Result<Closed, StoreError> {
        Ok(Closed::default())
    }

    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
        self.at_gate.notify_one();
        let _gate = self.gate.lock().await;
        {
            let mut books = self.books();
            books.require_open(batch.incarnation).map_err(RecordError::NotWritten)?;
            for charge in batch.operations.iter().flat_map(|named| &named.operation.charges) {
                let row = (batch.incarnation.0, charge.budget.as_str().to_owned(), charge.slot.number(), charge.cell);
                books.take(&row, charge.units);
            }
        }
        self.inner.record_operations(batch).await
    }

    fn replication(&self) -> Option<&dyn Replication> {
        Some(self)
    }

    async fn refund_operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Refund, StoreError> {
        self.inner.refund_operation(account_id, id, now).await
    }

    async fn record_usage(&self, flush: &UsageFlush) -> Result<(), StoreError> {
        self.books().flushes.push(flush.deltas.len());
        self.inner.record_usage(flush).await
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

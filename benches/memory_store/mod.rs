//! A store that hands out what it was made with, grants leases, and keeps nothing else.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tollgate::decision::quota::State;
use tollgate::domain::{Account, AccountId, KeyId, OperationId, Plan, PlanId, Revision, Time, UsageRow};
use tollgate::store::{
    Closed, Closing, Commit, CommitError, KeyQuery, LeaseBatch, Leased, Loaded, LogPosition, Operation, OperationBatch,
    RecordError, Recorded, Refund, Store, StoreError, StoredKey, UncertainRow, UsageFlush, UsageQuery,
};

#[derive(Debug)]
pub(crate) struct MemoryStore {
    loaded: Mutex<Vec<Loaded>>,
    budgets: Mutex<HashMap<String, State>>,
}

impl MemoryStore {
    pub(crate) fn new(loaded: Vec<Loaded>) -> Self {
        Self { loaded: Mutex::new(loaded), budgets: Mutex::default() }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError> {
        let parts = std::mem::take(&mut *self.loaded.lock().unwrap_or_else(PoisonError::into_inner));
        for part in parts {
            if sink.send(part).await.is_err() {
                break;
            }
        }
        Ok(LogPosition { revision: Revision::new(1), stamp: 0 })
    }

    async fn commit(&self, _: Commit) -> Result<Revision, CommitError> {
        Ok(Revision::new(1))
    }

    async fn record_usage(&self, _: &UsageFlush) -> Result<(), StoreError> {
        Ok(())
    }

    async fn key(&self, _: KeyId) -> Result<Option<StoredKey>, StoreError> {
        Ok(None)
    }

    async fn keys(&self, _: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
        Ok(Vec::new())
    }

    async fn keys_to_renew(&self, _: Time, _: i64, _: u32) -> Result<Vec<StoredKey>, StoreError> {
        Ok(Vec::new())
    }

    async fn account(&self, _: &AccountId) -> Result<Option<Account>, StoreError> {
        Ok(None)
    }

    async fn accounts(&self, _: Option<&AccountId>, _: u32) -> Result<Vec<Account>, StoreError> {
        Ok(Vec::new())
    }

    async fn plan(&self, _: &PlanId) -> Result<Option<Plan>, StoreError> {
        Ok(None)
    }

    async fn plans(&self, _: Option<&PlanId>, _: u32) -> Result<Vec<Plan>, StoreError> {
        Ok(Vec::new())
    }

    async fn usage(&self, _: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = |ask: &tollgate::store::LeaseAsk| {
            let fresh = || State::new(&ask.rule, &ask.zone, batch.now);
            let state = budgets.entry(ask.budget.to_string()).or_insert_with(fresh);
            state.advance(&ask.rule, &ask.zone, batch.now);
            let granted = state.grant(&ask.rule, ask.wanted);
            let ahead = state.grant_ahead(&ask.rule, ask.ahead);
            Leased { granted, ahead, elsewhere: false, state: state.clone() }
        };
        Ok(batch.asks.iter().map(grant).collect())
    }

    async fn close_leases(&self, _: &Closing<'_>) -> Result<Closed, StoreError> {
        Ok(Closed::default())
    }

    async fn uncertain(
        &self,
        _: &AccountId,
        _: Option<KeyId>,
        _: Range<i64>,
        _: u32,
    ) -> Result<Vec<UncertainRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn operation(&self, _: &AccountId, _: &OperationId, _: Time) -> Result<Option<Operation>, StoreError> {
        Ok(None)
    }

    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
        Ok(vec![Recorded::New; batch.operations.len()])
    }

    async fn refund_operation(&self, _: &AccountId, _: &OperationId, _: Time) -> Result<Refund, StoreError> {
        Ok(Refund::Unknown)
    }

    async fn pepper_ids(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(Revision::new(1))
    }

    async fn verify(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    async fn close(&self) {}
}

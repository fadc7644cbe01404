//! A store that counts how long its operations take.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{
    Closed, Closing, Commit, CommitError, KeyQuery, LeaseBatch, Leased, Loaded, LogPosition, Operation, OperationBatch,
    RecordError, Recorded, Refund, Replication, SharedStore, Store, StoreError, StoredKey, UncertainRow, UsageFlush,
    UsageQuery,
};
use crate::ambient::Clock;
use crate::domain::{Account, AccountId, KeyId, OperationId, Plan, PlanId, Revision, Time, UsageRow};
use crate::telemetry::metrics::Metrics;

/// Another store, measured.
#[derive(Debug)]
pub struct MeteredStore {
    inner: SharedStore,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl MeteredStore {
    /// Of a store.
    #[must_use]
    pub fn new(inner: SharedStore, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { inner, clock, metrics }
    }

    async fn measured<T, E>(
        &self,
        operation: &'static str,
        run: impl Future<Output = Result<T, E>>,
        failed: impl FnOnce(&E) -> bool,
    ) -> Result<T, E> {
        let start = self.clock.monotonic();
        let result = run.await;
        let took = self.clock.monotonic().saturating_sub(start);
        self.metrics.store(operation, took, result.as_ref().is_err_and(failed));
        result
    }

    async fn read<T>(
        &self,
        operation: &'static str,
        run: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.measured(operation, run, |_| true).await
    }
}

#[async_trait]
impl Store for MeteredStore {
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        // That a name is taken is an answer, not a failure.
        let failed = |error: &CommitError| matches!(error, CommitError::Store(_));
        self.measured("commit", self.inner.commit(commit), failed).await
    }

    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError> {
        self.read("load", self.inner.load(sink)).await
    }

    async fn key(&self, id: KeyId) -> Result<Option<StoredKey>, StoreError> {
        self.read("key", self.inner.key(id)).await
    }

    async fn keys(&self, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
        self.read("keys", self.inner.keys(query)).await
    }

    async fn keys_to_renew(
        &self,
        now: Time,
        lead_millis_max: i64,
        rows_max: u32,
    ) -> Result<Vec<StoredKey>, StoreError> {
        self.read("keys_to_renew", self.inner.keys_to_renew(now, lead_millis_max, rows_max)).await
    }

    async fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        self.read("account", self.inner.account(id)).await
    }

    async fn accounts(&self, after: Option<&AccountId>, rows_max: u32) -> Result<Vec<Account>, StoreError> {
        self.read("accounts", self.inner.accounts(after, rows_max)).await
    }

    async fn plan(&self, id: &PlanId) -> Result<Option<Plan>, StoreError> {
        self.read("plan", self.inner.plan(id)).await
    }

    async fn plans(&self, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError> {
        self.read("plans", self.inner.plans(after, rows_max)).await
    }

    async fn record_usage(&self, flush: &UsageFlush) -> Result<(), StoreError> {
        self.read("record_usage", self.inner.record_usage(flush)).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        self.read("usage", self.inner.usage(query)).await
    }

    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        self.read("lease", self.inner.lease(batch)).await
    }

    async fn close_leases(&self, closing: &Closing<'_>) -> Result<Closed, StoreError> {
        self.read("close_leases", self.inner.close_leases(closing)).await
    }

    async fn uncertain(
        &self,
        account: &AccountId,
        key: Option<KeyId>,
        hours: Range<i64>,
        rows_max: u32,
    ) -> Result<Vec<UncertainRow>, StoreError> {
        self.read("uncertain", self.inner.uncertain(account, key, hours, rows_max)).await
    }

    async fn operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Option<Operation>, StoreError> {
        self.read("operation", self.inner.operation(account_id, id, now)).await
    }

    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
        self.measured("record_operations", self.inner.record_operations(batch), |_| true).await
    }

    async fn refund_operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Refund, StoreError> {
        self.read("refund_operation", self.inner.refund_operation(account_id, id, now)).await
    }

    async fn pepper_ids(&self) -> Result<Vec<String>, StoreError> {
        self.read("pepper_ids", self.inner.pepper_ids()).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.read("revision", self.inner.revision()).await
    }

    async fn verify(&self) -> Result<Vec<String>, StoreError> {
        self.read("verify", self.inner.verify()).await
    }

    fn replication(&self) -> Option<&dyn Replication> {
        self.inner.replication()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

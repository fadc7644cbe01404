//! The embedded store: one SQLite file, for one process.
//!
//! A connection of its own writes ([`writer`]), a few read beside it, and none of them is closed while the store is
//! open. A write runs in a task of its own: one that has begun is carried through even where its caller has gone away.
//!
//! SQL is written out where it is run, at run time; what a column is, `migrations/sqlite` says. To add one, add a
//! migration, then its place in [`rows`](super::shared::rows), and a case in `tests/store_contract.rs`.

mod commit;
mod dump;
mod error;
mod insert_keys;
mod leases;
mod load;
mod lock;
mod open;
mod operations;
mod read;
mod schema;
mod usage;
mod writer;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tokio::sync::mpsc;
use tokio::task::JoinError;

pub use error::OpenError;
pub(super) use error::from_sqlite;
pub use open::OpenMode;

use self::lock::Lock;
use self::writer::Writer;
use super::shared::tables::Table;
use super::shared::usage::MergedFlush;
use super::{
    Closed, Closing, Commit, CommitError, KeyQuery, LeaseBatch, Leased, Loaded, LogPosition, Operation, OperationBatch,
    RecordError, Recorded, Refund, Store, StoreError, StoredKey, UncertainRow, UsageFlush, UsageQuery,
};
use crate::domain::{Account, AccountId, KeyId, OperationId, Plan, PlanId, Revision, Time, UsageRow};

/// A store in a file.
pub struct SqliteStore {
    writer: Arc<Writer>,
    readers: SqlitePool,
    snapshot_options: SqliteConnectOptions,
    lock: Mutex<Option<Lock>>,
}

impl SqliteStore {
    /// Opens the database at `path`, and brings its schema up to date. No other process has it open until
    /// [`Store::close`], or the end of this one.
    pub async fn open(path: &Path, mode: OpenMode) -> Result<Self, OpenError> {
        let opened = open::open(path, mode).await?;
        Ok(Self {
            writer: Arc::new(opened.writer),
            readers: opened.readers,
            snapshot_options: opened.snapshot_options,
            lock: Mutex::new(Some(opened.lock)),
        })
    }

    /// Sends all rows of a table, as whole lines of text. Nobody writes meanwhile.
    pub(super) async fn dump(&self, table: &Table, sink: mpsc::Sender<Vec<u8>>) -> Result<(), StoreError> {
        dump::dump(&self.readers, table, sink).await
    }

    /// The last revision that was committed.
    pub(super) async fn last_revision(&self) -> Result<Revision, StoreError> {
        read::revision(&self.readers).await
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.snapshot_options.get_filename()).finish_non_exhaustive()
    }
}

/// Only a panic or the end of the runtime ends a write's task before it answers.
fn died(error: &JoinError) -> StoreError {
    StoreError::Unavailable(format!("the write was broken off: {error}"))
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let writer = Arc::clone(&self.writer);
        let written = tokio::spawn(async move { commit::commit(&writer, &commit).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError> {
        load::load(&self.writer, &self.snapshot_options, sink).await
    }

    async fn key(&self, id: KeyId) -> Result<Option<StoredKey>, StoreError> {
        read::key(&self.readers, id).await
    }

    async fn keys(&self, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
        read::keys(&self.readers, query).await
    }

    async fn keys_to_renew(
        &self,
        now: Time,
        lead_millis_max: i64,
        rows_max: u32,
    ) -> Result<Vec<StoredKey>, StoreError> {
        read::keys_to_renew(&self.readers, now, lead_millis_max, rows_max).await
    }

    async fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        read::account(&self.readers, id).await
    }

    async fn accounts(&self, after: Option<&AccountId>, rows_max: u32) -> Result<Vec<Account>, StoreError> {
        read::accounts(&self.readers, after, rows_max).await
    }

    async fn plan(&self, id: &PlanId) -> Result<Option<Plan>, StoreError> {
        read::plan(&self.readers, id).await
    }

    async fn plans(&self, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError> {
        read::plans(&self.readers, after, rows_max).await
    }

    async fn record_usage(&self, flush: &UsageFlush) -> Result<(), StoreError> {
        let (writer, flush) = (Arc::clone(&self.writer), MergedFlush::new(flush));
        let written = tokio::spawn(async move { usage::record(&writer, &flush).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        usage::sums(&self.readers, query).await
    }

    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        let (writer, batch) = (Arc::clone(&self.writer), batch.clone());
        let written = tokio::spawn(async move { leases::lease(&writer, &batch).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn close_leases(&self, closing: &Closing<'_>) -> Result<Closed, StoreError> {
        leases::close(&self.writer, closing).await
    }

    async fn uncertain(
        &self,
        account: &AccountId,
        key: Option<KeyId>,
        hours: Range<i64>,
        rows_max: u32,
    ) -> Result<Vec<UncertainRow>, StoreError> {
        leases::uncertain(&self.readers, account, key, hours, rows_max).await
    }

    async fn operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Option<Operation>, StoreError> {
        operations::operation(&self.readers, account_id, id, now).await
    }

    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
        let (writer, batch) = (Arc::clone(&self.writer), batch.clone());
        let written = tokio::spawn(async move { operations::record(&writer, &batch).await });
        written.await.map_err(|error| RecordError::Unknown(died(&error)))?
    }

    async fn refund_operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Refund, StoreError> {
        let (writer, account_id, id) = (Arc::clone(&self.writer), account_id.clone(), id.clone());
        let written = tokio::spawn(async move { operations::refund(&writer, &account_id, &id, now).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn pepper_ids(&self) -> Result<Vec<String>, StoreError> {
        read::pepper_ids(&self.readers).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        read::revision(&self.readers).await
    }

    async fn verify(&self) -> Result<Vec<String>, StoreError> {
        read::verify(&self.readers).await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock {
            lock.release();
        }
    }
}

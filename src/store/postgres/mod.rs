//! The shared store: a PostgreSQL database, for any number of processes.
//!
//! Whatever authorises is read on the primary. All that is written is written in transactions of READ COMMITTED whose order is the
//! order of the locks that they take first: the row of `sequence` for a commit, the rows of `budgets` in the order of their
//! ids for leases. A write runs in a task of its own: one that has begun is carried through even where its caller has gone away.
//!
//! Nothing waits for longer than it was told to: [`database`] holds every use of a connection against the clock, and what was
//! broken off takes its connection with it.
//!
//! SQL is written out where it is run, at run time; what a column is, `migrations/postgres` says. To add one, add a
//! migration ([`schema`]), then its place in [`rows`](super::shared::rows), and a case in `tests/store_contract.rs`.

mod commit;
mod database;
mod error;
mod hints;
mod insert_keys;
mod leases;
mod load;
mod open;
mod operations;
mod read;
mod replication;
mod restating;
mod restore;
mod schema;
mod standing;
mod usage;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinError;

pub use error::OpenError;
pub(super) use error::from_server;
pub use open::Health;
pub use restore::{Copied, CopiedTable, CopyError};
pub use schema::Migrated;

use self::database::Database;
use self::hints::Hints;
use self::replication::Pollers;
use self::standing::Beats;
use super::shared::usage::MergedFlush;
use super::sqlite::SqliteStore;
use super::{
    Closed, Closing, Commit, CommitError, Conclusion, Incarnation, KeyQuery, LeaseBatch, Leased, Loaded, LogPosition,
    MoveId, Operation, OperationBatch, Poll, Polled, RecordError, Recorded, Refund, Registration, Replica, Replication,
    Restatement, Revived, Store, StoreError, StoredKey, UncertainRow, UsageFlush, UsageQuery,
};
use crate::domain::{Account, AccountId, KeyId, OperationId, Plan, PlanId, Revision, Time, UsageRow};

/// Which database, and how it is used.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// `postgres://…`, with the parameters of libpq that sqlx knows.
    pub url: SecretString,
    /// The file that holds the password, where the URL has none.
    pub password_file: Option<PathBuf>,
    /// Connections that this process opens: one for polls, one that listens for hints, the others for all else. At least 3.
    pub connections_max: u32,
    /// How long connecting, or waiting for a connection, may take.
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// For how long the log of changes is kept.
    pub log_kept: Duration,
}

/// A store on a server.
#[derive(Debug)]
pub struct PostgresStore {
    database: Arc<Database>,
    /// Connections of their own, so that polls never wait for anything else.
    polls: Arc<Database>,
    pollers: Pollers,
    /// Commits of one process go one after the other: the server would have them wait too, each with a connection.
    commits: Arc<Mutex<()>>,
    beats: Arc<Beats>,
    hints: Hints,
    log_kept: Duration,
}

impl PostgresStore {
    /// Opens a database that [`PostgresStore::migrate`] has prepared. Changes nothing.
    pub async fn open(options: &PostgresOptions) -> Result<Self, OpenError> {
        let opened = open::open(options).await?;
        Ok(Self {
            database: Arc::new(opened.database),
            polls: Arc::new(opened.polls),
            pollers: Pollers::default(),
            commits: Arc::default(),
            beats: Arc::default(),
            hints: Hints::new(),
            log_kept: options.log_kept,
        })
    }

    /// Brings the database's schema to what this version knows. Several may do so at once.
    pub async fn migrate(options: &PostgresOptions) -> Result<Migrated, OpenError> {
        open::migrate(options).await
    }

    /// Fills this store, which is empty, with all that another holds that nobody works on; all of it, or nothing.
    pub async fn copy_from(&self, source: &SqliteStore) -> Result<Copied, CopyError> {
        restore::copy(&self.database, source).await
    }

    /// Looks at the server and the schema, and tells what it found, without opening a store on it.
    pub async fn look(options: &PostgresOptions) -> Result<Health, OpenError> {
        open::look(options).await
    }
}

/// Only a panic or the end of the runtime ends a write's task before it answers.
fn died(error: &JoinError) -> StoreError {
    StoreError::Unavailable(format!("the write was broken off: {error}"))
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let (database, log_kept) = (Arc::clone(&self.database), self.log_kept);
        let turn = Arc::clone(&self.commits).lock_owned();
        let written = tokio::spawn(async move {
            let _turn = turn.await;
            commit::commit(&database, &commit, log_kept).await
        });
        written.await.map_err(|error| died(&error))?
    }

    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError> {
        load::load(&self.database, sink).await
    }

    async fn key(&self, id: KeyId) -> Result<Option<StoredKey>, StoreError> {
        read::key(&self.database, id).await
    }

    async fn keys(&self, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
        read::keys(&self.database, query).await
    }

    async fn keys_to_renew(
        &self,
        now: Time,
        lead_millis_max: i64,
        rows_max: u32,
    ) -> Result<Vec<StoredKey>, StoreError> {
        read::keys_to_renew(&self.database, now, lead_millis_max, rows_max).await
    }

    async fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        read::account(&self.database, id).await
    }

    async fn accounts(&self, after: Option<&AccountId>, rows_max: u32) -> Result<Vec<Account>, StoreError> {
        read::accounts(&self.database, after, rows_max).await
    }

    async fn plan(&self, id: &PlanId) -> Result<Option<Plan>, StoreError> {
        read::plan(&self.database, id).await
    }

    async fn plans(&self, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError> {
        read::plans(&self.database, after, rows_max).await
    }

    async fn record_usage(&self, flush: &UsageFlush) -> Result<(), StoreError> {
        let (database, flush) = (Arc::clone(&self.database), MergedFlush::new(flush));
        let written = tokio::spawn(async move { usage::record(&database, &flush).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        usage::sums(&self.database, query).await
    }

    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
        let (database, beats, batch) = (Arc::clone(&self.database), Arc::clone(&self.beats), batch.clone());
        let written = tokio::spawn(async move { leases::lease(&database, &beats, &batch).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn close_leases(&self, closing: &Closing<'_>) -> Result<Closed, StoreError> {
        leases::close(&self.database, closing).await
    }

    async fn uncertain(
        &self,
        account: &AccountId,
        key: Option<KeyId>,
        hours: Range<i64>,
        rows_max: u32,
    ) -> Result<Vec<UncertainRow>, StoreError> {
        leases::uncertain(&self.database, account, key, hours, rows_max).await
    }

    async fn operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Option<Operation>, StoreError> {
        operations::operation(&self.database, account_id, id, now).await
    }

    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
        let (database, beats, batch) = (Arc::clone(&self.database), Arc::clone(&self.beats), batch.clone());
        let written = tokio::spawn(async move { operations::record(&database, &beats, &batch).await });
        written.await.map_err(|error| RecordError::Unknown(died(&error)))?
    }

    async fn refund_operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Refund, StoreError> {
        let (database, account_id, id) = (Arc::clone(&self.database), account_id.clone(), id.clone());
        let written = tokio::spawn(async move { operations::refund(&database, &account_id, &id, now).await });
        written.await.map_err(|error| died(&error))?
    }

    async fn pepper_ids(&self) -> Result<Vec<String>, StoreError> {
        read::pepper_ids(&self.database).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        read::revision(&self.database).await
    }

    async fn verify(&self) -> Result<Vec<String>, StoreError> {
        read::verify(&self.database).await
    }

    fn replication(&self) -> Option<&dyn Replication> {
        Some(self)
    }

    async fn close(&self) {
        self.hints.close();
        self.pollers.clear();
        self.polls.close().await;
        self.database.close().await;
    }
}

#[async_trait]
impl Replication for PostgresStore {
    async fn register(&self, replica: &Replica) -> Result<Registration, StoreError> {
        replication::register(&self.database, replica).await
    }

    async fn poll(&self, poll: &Poll) -> Result<Polled, StoreError> {
        replication::poll(&self.polls, &self.pollers, &self.beats, poll).await
    }

    async fn depart(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        replication::depart(&self.database, incarnation).await
    }

    async fn restate(&self, restatement: &Restatement) -> Result<Revived, StoreError> {
        restating::restate(&self.database, restatement).await
    }

    async fn conclude_restating(
        &self,
        incarnation: Incarnation,
        of: &MoveId,
        waited: Duration,
        now: Time,
    ) -> Result<Conclusion, StoreError> {
        restating::conclude(&self.database, incarnation, of, waited, now).await
    }

    async fn adopt(&self, now: Time) -> Result<Revision, StoreError> {
        restating::adopt(&self.database, now).await
    }

    fn reset(&self) {
        self.database.reset();
        self.polls.reset();
        self.pollers.clear();
    }

    async fn time(&self) -> Result<Time, StoreError> {
        replication::time(&self.database).await
    }

    async fn hint(&self) {
        let database = Arc::clone(&self.database);
        self.hints.next(move || database.connect_options(), self.database.limits().connect_timeout).await;
    }
}

//! Connections, and what every use of one obeys.
//!
//! The server ends what takes too long (`statement_timeout` and its like, see [`open`](super::open)); but where the network
//! swallows everything, its word does not arrive either. So each use has a limit of its own here, a little above the server's; and
//! all that are under way end at once where it is known that what they wait for will not come ([`Database::reset`]).
//!
//! sqlx takes a connection back into its pool whatever became of it. A [`Session`] that was not [ended](Session::end) well, be it
//! that a statement failed or that its future was dropped half-way, closes its connection instead: nobody gets one whose state is
//! not known, and closing rolls back.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::error::is_refused_login;
use super::open::read_password;
use crate::store::StoreError;

/// What the server's own word that it was too slow may take to arrive.
const WORD: Duration = Duration::from_secs(1);

/// Connections to one database.
pub(super) struct Database {
    pool: PgPool,
    limits: Limits,
    password_file: Option<PathBuf>,
    in_use: Arc<AtomicU32>,
    dead: Arc<Notify>,
}

/// How many, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections_max: u32,
    pub(super) connect_timeout: Duration,
    pub(super) statement_timeout: Duration,
}

/// How long a client waits for a statement, if the connection does not prove dead before.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    limit: Duration,
    dead: Arc<Notify>,
}

impl Patience {
    /// For so many statements.
    pub(super) fn times(mut self, statements: u32) -> Self {
        self.limit = self.limit.saturating_mul(statements);
        self
    }

    /// What comes of it, or why it was given up.
    async fn hold<T>(&self, run: impl Future<Output = T>) -> Result<T, StoreError> {
        tokio::select! {
            held = timeout(self.limit, run) => held.map_err(|_| silent(self.limit)),
            () = self.dead.notified() => {
                Err(StoreError::Unavailable("the connection has stopped answering, while another works".to_owned()))
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Database {
    /// Connects when it is first needed.
    pub(super) fn new(connect: PgConnectOptions, limits: Limits, password_file: Option<PathBuf>) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(limits.connections_max)
            // A connection that breaks says so to whoever uses it first, and is closed; asking each before its use would cost a
            // round trip every time.
            .test_before_acquire(false)
            .acquire_timeout(limits.connect_timeout)
            .idle_timeout(Some(Duration::from_mins(10)))
            .max_lifetime(Some(Duration::from_hours(1)))
            .connect_lazy_with(connect);
        Self { pool, limits, password_file, in_use: Arc::new(AtomicU32::new(0)), dead: Arc::default() }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    fn patience(&self) -> Patience {
        Patience { limit: self.limits.statement_timeout + WORD, dead: Arc::clone(&self.dead) }
    }

    /// Gives up all that is under way, and closes what waits to be used: these connections are dead.
    pub(super) fn reset(&self) {
        self.dead.notify_waiters();
        while let Some(mut idle) = self.pool.try_acquire() {
            idle.close_on_drop();
        }
    }

    /// With what it connects, for a connection that is none of the pool's.
    pub(super) fn connect_options(&self) -> PgConnectOptions {
        self.pool.connect_options().as_ref().clone()
    }

    /// A connection for one use.
    pub(super) async fn session(&self) -> Result<Session, StoreError> {
        let connection = match self.pool.acquire().await {
            Err(error) if is_refused_login(&error) && self.read_password_again() => self.pool.acquire().await,
            acquired => acquired,
        };
        let connection = connection.map_err(|error| self.not_acquired(error))?;
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Ok(Session { connection, is_sound: false, in_use: Arc::clone(&self.in_use), patience: self.patience() })
    }

    /// Whether there is a connection that nobody uses, or none was made yet.
    pub(super) fn has_room(&self) -> bool {
        self.in_use.load(Ordering::Relaxed) < self.limits.connections_max
    }

    /// Whether the file holds a password by which a login that was refused may work now.
    fn read_password_again(&self) -> bool {
        let Some(password) = self.password_file.as_deref().and_then(|path| read_password(path).ok()) else {
            return false;
        };
        let connect = self.connect_options().password(secrecy::ExposeSecret::expose_secret(&password));
        self.pool.set_connect_options(connect);
        true
    }

    fn not_acquired(&self, error: sqlx::Error) -> StoreError {
        let Limits { connections_max, connect_timeout, .. } = self.limits;
        if !matches!(error, sqlx::Error::PoolTimedOut) {
            return error.into();
        }
        StoreError::Unavailable(if self.in_use.load(Ordering::Relaxed) >= connections_max {
            format!(
                "all of its {connections_max} connections were busy for {connect_timeout:?}; raise `store.pool_max`, or \
                 find out what keeps the server so long"
            )
        } else {
            format!(
                "no connection could be made within {connect_timeout:?} (`store.connect_timeout`): is the server there?"
            )
        })
    }

    /// All rows of one statement.
    pub(super) async fn all(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, StoreError> {
        let mut session = self.session().await?;
        let rows = statement(&self.patience(), query.fetch_all(session.connection())).await?;
        session.end();
        Ok(rows)
    }

    /// The row of one statement that gives at most one.
    pub(super) async fn optional(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Option<PgRow>, StoreError> {
        Ok(self.all(query).await?.pop())
    }

    /// The row of one statement that gives one.
    pub(super) async fn one(&self, query: Query<'_, Postgres, PgArguments>) -> Result<PgRow, StoreError> {
        self.optional(query).await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    /// Begins a transaction that reads what is committed, statement by statement.
    pub(super) async fn begin(&self) -> Result<Transaction, StoreError> {
        let mut session = self.session().await?;
        statement(&self.patience(), sqlx::raw_sql("BEGIN").execute(session.connection())).await?;
        Ok(Transaction { session })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection that is in use. Closes it where it is dropped without [`Session::end`].
pub(super) struct Session {
    connection: PoolConnection<Postgres>,
    is_sound: bool,
    in_use: Arc<AtomicU32>,
    patience: Patience,
}

impl Session {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// How long to wait for one statement.
    pub(super) fn patience(&self) -> Patience {
        self.patience.clone()
    }

    /// Gives the connection back for others to use: all that was begun on it has come to its end.
    pub(super) fn end(mut self) {
        self.is_sound = true;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_sound {
            self.connection.close_on_drop();
        }
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A transaction. Rolls back where it is dropped.
pub(super) struct Transaction {
    session: Session,
}

impl Transaction {
    /// For its statements, which are to be held against the clock: see [`within`].
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.session.connection()
    }

    /// How long to wait for one statement.
    pub(super) fn patience(&self) -> Patience {
        self.session.patience()
    }

    /// Makes it durable. Where this fails, [`StoreError::Unavailable`] says whether it is known that nothing was written.
    ///
    /// The server waits for its synchronous standbys, where it has any, as long as it takes: `statement_timeout` does not hold there
    /// (it would end the wait, and not the commit). Who gives up first is this process.
    pub(super) async fn commit(mut self) -> Result<(), CommitFailure> {
        let patience = self.patience();
        match patience.hold(sqlx::raw_sql("COMMIT").execute(self.session.connection())).await {
            Ok(Ok(_)) => {
                self.session.end();
                Ok(())
            }
            Ok(Err(error)) if was_rolled_back(&error) => Err(CommitFailure::NotWritten(error.into())),
            Ok(Err(error)) => Err(CommitFailure::Unknown(StoreError::from(error))),
            Err(given_up) => Err(CommitFailure::Unknown(given_up)),
        }
    }

    /// Undoes it. Does not fail: a connection that can't say so is closed, which undoes it too.
    pub(super) async fn rollback(mut self) {
        let patience = self.patience();
        if let Ok(Ok(_)) = patience.hold(sqlx::raw_sql("ROLLBACK").execute(self.session.connection())).await {
            self.session.end();
        }
    }
}

/// Why a transaction did not end well.
#[derive(Debug)]
pub(super) enum CommitFailure {
    /// Nothing of it was written.
    NotWritten(StoreError),
    /// The answer was lost: it was written, or not.
    Unknown(StoreError),
}

impl From<CommitFailure> for StoreError {
    fn from(failure: CommitFailure) -> Self {
        match failure {
            CommitFailure::NotWritten(error) => error,
            CommitFailure::Unknown(error) => {
                Self::Unavailable(format!("whether it was written is not known, because the answer was lost: {error}"))
            }
        }
    }
}

/// An ERROR in answer to a COMMIT undoes it. What ends the session (FATAL) may also come after it was done.
fn was_rolled_back(error: &sqlx::Error) -> bool {
    let database =
        error.as_database_error().and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>());
    database.is_some_and(|error| matches!(error.severity(), sqlx::postgres::PgSeverity::Error))
}

/// Holds one statement against the clock.
pub(super) async fn statement<T>(
    patience: &Patience,
    run: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    within(patience, async { run.await.map_err(StoreError::from) }).await
}

/// Holds all that a connection is used for against the clock.
pub(super) async fn within<T, E: From<StoreError>>(
    patience: &Patience,
    run: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    patience.hold(run).await?
}

fn silent(limit: Duration) -> StoreError {
    StoreError::Unavailable(format!("the server did not answer within {limit:?} (`store.statement_timeout`)"))
}

//! The one connection that writes.
//!
//! SQLite has one writer at a time; a queue in front of one connection is fair, where many connections would poll for
//! the lock and time out. A transaction takes the connection out of its place, and puts it back only after a COMMIT or
//! ROLLBACK that worked. So one that is given up half-way, be it that its task was dropped or that SQLite rolled back by
//! itself (as it does when the disk is full), takes its connection with it: closing rolls back, and the next
//! transaction begins on a fresh one.

use std::sync::Arc;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::store::StoreError;

pub(super) struct Writer {
    options: SqliteConnectOptions,
    place: Arc<Mutex<Place>>,
}

enum Place {
    Here(Box<SqliteConnection>),
    /// Taken, or given up.
    Gone,
    Closed,
}

/// A transaction of the writer. Rolls back where it is dropped.
pub(super) struct Transaction {
    place: OwnedMutexGuard<Place>,
    connection: Box<SqliteConnection>,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, connection: SqliteConnection) -> Self {
        Self { options, place: Arc::new(Mutex::new(Place::Here(Box::new(connection)))) }
    }

    /// Waits its turn, and begins.
    pub(super) async fn begin(&self) -> Result<Transaction, StoreError> {
        let mut place = Arc::clone(&self.place).lock_owned().await;
        let mut connection = match std::mem::replace(&mut *place, Place::Gone) {
            Place::Here(connection) => connection,
            Place::Gone => Box::new(SqliteConnection::connect_with(&self.options).await?),
            Place::Closed => {
                *place = Place::Closed;
                return Err(sqlx::Error::PoolClosed.into());
            }
        };
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        Ok(Transaction { place, connection })
    }

    /// Nothing is written while what this returns is held.
    pub(super) async fn pause(&self) -> impl Drop + Send + use<> {
        Arc::clone(&self.place).lock_owned().await
    }

    /// Brings all that is in the log into the file, and closes.
    pub(super) async fn close(&self) {
        let mut place = self.place.lock().await;
        if let Place::Here(mut connection) = std::mem::replace(&mut *place, Place::Closed) {
            let written = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *connection).await;
            if let Err(error) = written.and(connection.close().await) {
                tracing::warn!(%error, "the database was left with a log, which the next start reads");
            }
        }
    }
}

impl Transaction {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Makes it durable.
    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query("COMMIT").execute(&mut *self.connection).await?;
        *self.place = Place::Here(self.connection);
        Ok(())
    }

    /// Undoes it. Does not fail: where SQLite has undone it already, the connection goes too.
    pub(super) async fn rollback(mut self) {
        if sqlx::query("ROLLBACK").execute(&mut *self.connection).await.is_ok() {
            *self.place = Place::Here(self.connection);
        }
    }
}

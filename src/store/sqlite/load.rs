//! Reads all that a check needs, fast enough to start with a million keys in seconds.
//!
//! Rows one by one would cost a hop between threads each, so SQLite packs a few thousand into one text, which is taken
//! apart elsewhere ([`packed`]) while SQLite packs the next.
//!
//! Two connections share the work. Their read transactions begin while the writer is held back, so both see the state of
//! one revision, whatever is committed later.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::read;
use super::writer::Writer;
use crate::domain::Revision;
use crate::store::shared::intern::{Intern, Interned};
use crate::store::shared::packed;
use crate::store::{Loaded, LogPosition, StoreError};

const CONNECTIONS: usize = 2;

/// Rowids of one text.
const ROWS_MAX: i64 = 2_000;

/// A table, and how it is packed.
struct Packed {
    range: &'static str,
    chunk: &'static str,
    parse: fn(&str, &mut Intern) -> Result<Loaded, StoreError>,
}

const ACCOUNTS: Packed = Packed {
    range: "SELECT min(rowid), max(rowid) FROM accounts",
    chunk: "SELECT group_concat(concat_ws(char(31), id, plan_id, revision, body), char(30))
            FROM accounts WHERE rowid >= $1 AND rowid < $2",
    parse: packed::accounts,
};

const KEYS: Packed = Packed {
    range: "SELECT min(rowid), max(rowid) FROM keys",
    chunk: "SELECT group_concat(concat_ws(char(31), hex(id), account_id, name, hex(secret_hash), environment, status,
              ifnull(expire_time, ''), revision, policy, metadata), char(30))
            FROM keys WHERE rowid >= $1 AND rowid < $2",
    parse: packed::keys,
};

const RETIRED: Packed = Packed {
    range: "SELECT min(rowid), max(rowid) FROM retired_secrets",
    chunk: "SELECT group_concat(concat_ws(char(31), hex(r.hash), hex(k.secret_hash), r.expire_time), char(30))
            FROM retired_secrets AS r JOIN keys AS k ON k.id = r.key_id WHERE r.rowid >= $1 AND r.rowid < $2",
    parse: packed::retired_secrets,
};

pub(super) async fn load(
    writer: &Writer,
    options: &SqliteConnectOptions,
    sink: mpsc::Sender<Loaded>,
) -> Result<LogPosition, StoreError> {
    let (mut connections, revision) = begin_snapshot(writer, options).await?;
    let position = LogPosition { revision, stamp: 0 };
    let interned = Arc::new(Interned::default());
    if let Some(connection) = connections.first_mut() {
        // Rows are never deleted, so the last rowid is their number.
        let secrets: i64 = sqlx::query_scalar(
            "SELECT ifnull((SELECT max(rowid) FROM keys), 0) + ifnull((SELECT max(rowid) FROM retired_secrets), 0)",
        )
        .fetch_one(&mut *connection)
        .await?;
        if sink.send(Loaded::SecretsExpected(usize::try_from(secrets).unwrap_or(0))).await.is_err() {
            return Ok(position);
        }
        let rows = sqlx::query("SELECT id, revision, body FROM plans ORDER BY id").fetch_all(connection).await?;
        let plans = rows.iter().map(read::plan_row).collect::<Result<_, _>>()?;
        if sink.send(Loaded::Plans(plans)).await.is_err() {
            return Ok(position);
        }
    }
    for table in [&ACCOUNTS, &KEYS, &RETIRED] {
        connections = send_table(table, connections, &interned, &sink).await?;
    }
    for connection in connections {
        connection.close().await?;
    }
    Ok(position)
}

/// Connections that see the same state, and its revision.
async fn begin_snapshot(
    writer: &Writer,
    options: &SqliteConnectOptions,
) -> Result<(Vec<SqliteConnection>, Revision), StoreError> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        connections.push(SqliteConnection::connect_with(options).await?);
    }
    let paused = writer.pause().await;
    let mut revision = 0;
    for connection in &mut connections {
        // A transaction sees the state at its first read.
        sqlx::query("BEGIN").execute(&mut *connection).await?;
        revision = sqlx::query_scalar("SELECT revision FROM sequence WHERE id = 1").fetch_one(&mut *connection).await?;
    }
    drop(paused);
    Ok((connections, Revision::new(revision)))
}

/// Sends all rows of a table. Ends early where nobody receives them.
async fn send_table(
    table: &'static Packed,
    mut connections: Vec<SqliteConnection>,
    interned: &Arc<Interned>,
    sink: &mpsc::Sender<Loaded>,
) -> Result<Vec<SqliteConnection>, StoreError> {
    let Some(connection) = connections.first_mut() else { return Ok(connections) };
    let (Some(first), Some(last)): (Option<i64>, Option<i64>) =
        sqlx::query_as(table.range).fetch_one(connection).await?
    else {
        return Ok(connections);
    };
    let next = Arc::new(AtomicI64::new(first));
    let mut tasks = JoinSet::new();
    for connection in connections {
        let (next, intern, sink) = (Arc::clone(&next), Intern::new(Arc::clone(interned)), sink.clone());
        tasks.spawn(send_chunks(table, connection, next, last, intern, sink));
    }
    let mut returned = Vec::with_capacity(CONNECTIONS);
    while let Some(task) = tasks.join_next().await {
        returned.push(task.map_err(|error| died(&error))??);
    }
    Ok(returned)
}

/// Takes the next chunk of rowids until there is none.
async fn send_chunks(
    table: &'static Packed,
    mut connection: SqliteConnection,
    next: Arc<AtomicI64>,
    last: i64,
    mut intern: Intern,
    sink: mpsc::Sender<Loaded>,
) -> Result<SqliteConnection, StoreError> {
    loop {
        let start = next.fetch_add(ROWS_MAX, Ordering::Relaxed);
        if start > last {
            return Ok(connection);
        }
        let text: Option<String> = sqlx::query_scalar(table.chunk)
            .bind(start)
            .bind(start.saturating_add(ROWS_MAX))
            .fetch_one(&mut connection)
            .await?;
        let Some(text) = text else { continue };
        let parsed = tokio::task::spawn_blocking(move || ((table.parse)(&text, &mut intern), intern));
        let (loaded, returned) = parsed.await.map_err(|error| died(&error))?;
        intern = returned;
        if sink.send(loaded?).await.is_err() {
            return Ok(connection);
        }
    }
}

fn died(error: &JoinError) -> StoreError {
    StoreError::Unavailable(format!("loading was broken off: {error}"))
}

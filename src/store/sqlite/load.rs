//! Reads all that a check needs, fast enough to start with a million keys in seconds.
//!
//! Rows one by one would cost a hop between threads each, so SQLite packs a few thousand into one text, which is taken
//! apart elsewhere while SQLite packs the next: fields end with [`FIELD`], rows with [`ROW`]. No column that is packed can
//! hold either: names have no control characters, JSON escapes them, and the rest is words and numbers.
//!
//! Two connections share the work. Their read transactions begin while the writer is held back, so both see the state of
//! one revision, whatever is committed later.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::intern::{Intern, Interned};
use super::writer::Writer;
use super::{read, rows};
use crate::decision::{Expiry, KeyPhase, KeyRecord};
use crate::domain::{Account, KeyId, Revision, SecretHash, Time};
use crate::store::{Loaded, LoadedKey, LogPosition, RetiredSecret, StoreError};

const CONNECTIONS: usize = 2;

/// Rowids of one text.
const ROWS_MAX: i64 = 2_000;

const FIELD: char = '\u{1f}';
const ROW: char = '\u{1e}';

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
    parse: |text, _| Ok(Loaded::Accounts(parse_rows(text, account)?)),
};

const KEYS: Packed = Packed {
    range: "SELECT min(rowid), max(rowid) FROM keys",
    chunk: "SELECT group_concat(concat_ws(char(31), hex(id), account_id, name, hex(secret_hash), environment, status,
              ifnull(expire_time, ''), revision, policy, metadata), char(30))
            FROM keys WHERE rowid >= $1 AND rowid < $2",
    parse: |text, intern| Ok(Loaded::Keys(parse_rows(text, |fields| key(fields, intern))?)),
};

const RETIRED: Packed = Packed {
    range: "SELECT min(rowid), max(rowid) FROM retired_secrets",
    chunk: "SELECT group_concat(concat_ws(char(31), hex(r.hash), hex(k.secret_hash), r.expire_time), char(30))
            FROM retired_secrets AS r JOIN keys AS k ON k.id = r.key_id WHERE r.rowid >= $1 AND r.rowid < $2",
    parse: |text, _| Ok(Loaded::RetiredSecrets(parse_rows(text, retired_secret)?)),
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

/// The fields of a row, in order.
type Fields<'a> = std::str::Split<'a, char>;

fn parse_rows<T>(
    text: &str,
    mut parse: impl FnMut(&mut Fields<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut parsed = Vec::with_capacity(usize::try_from(ROWS_MAX).unwrap_or(0));
    for row in text.split(ROW) {
        let mut fields = row.split(FIELD);
        parsed.push(parse(&mut fields)?);
        if fields.next().is_some() {
            return Err(misshapen("control characters"));
        }
    }
    Ok(parsed)
}

fn misshapen(what: &str) -> StoreError {
    StoreError::Corrupt(format!("a row that has {what} where none are expected"))
}

fn field<'a>(fields: &mut Fields<'a>) -> Result<&'a str, StoreError> {
    fields.next().ok_or_else(|| misshapen("no further columns"))
}

fn number(text: &str) -> Result<i64, StoreError> {
    text.parse().map_err(|_| misshapen("letters"))
}

fn bytes<const N: usize>(hex: &str) -> Result<[u8; N], StoreError> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return Err(misshapen("too many or too few bytes"));
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = digit(*high).zip(digit(*low)).ok_or_else(|| misshapen("letters"))?;
        *byte = high << 4 | low;
    }
    Ok(bytes)
}

fn account(fields: &mut Fields<'_>) -> Result<Account, StoreError> {
    let (id, plan_id, revision) = (field(fields)?, field(fields)?, number(field(fields)?)?);
    rows::account(id, plan_id, revision, field(fields)?)
}

fn key(fields: &mut Fields<'_>, intern: &mut Intern) -> Result<LoadedKey, StoreError> {
    let id = KeyId::from_bytes(bytes(field(fields)?)?);
    let account_id = intern.account_id(field(fields)?)?;
    let name = field(fields)?.into();
    let hash = SecretHash::from_bytes(bytes(field(fields)?)?);
    let environment = rows::environment(field(fields)?)?;
    let phase = match field(fields)? {
        "active" => KeyPhase::Active,
        "disabled" => KeyPhase::Disabled,
        "revoked" => KeyPhase::Revoked,
        status => return Err(StoreError::Corrupt(format!("key `{id}`: `{status}` is no status"))),
    };
    let expiry = Expiry::new(match field(fields)? {
        "" => None,
        millis => Some(Time::from_millis(number(millis)?)),
    });
    let revision = Revision::new(number(field(fields)?)?);
    let policy = intern.policy(id, field(fields)?)?;
    let metadata = intern.metadata(id, field(fields)?)?;
    let record = KeyRecord { name, policy, metadata, expiry, previous: None, revision, environment, phase };
    Ok(LoadedKey { id, account_id, hash, record })
}

fn retired_secret(fields: &mut Fields<'_>) -> Result<RetiredSecret, StoreError> {
    Ok(RetiredSecret {
        hash: SecretHash::from_bytes(bytes(field(fields)?)?),
        current: SecretHash::from_bytes(bytes(field(fields)?)?),
        expire_time: Time::from_millis(number(field(fields)?)?),
    })
}

//! Reads all that a check needs, fast enough to start with a million keys in seconds.
//!
//! The server packs some thousand rows into one text, which is taken apart elsewhere ([`packed`]) while it packs the next. Two
//! connections share the work: the first exports its snapshot, so both see the state of one revision, whatever is committed
//! later. A table is split by the places of its pages, which no later change adds to what the snapshot sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::Row as _;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::database::{Database, Session, statement};
use super::read;
use crate::domain::Revision;
use crate::store::shared::intern::{Intern, Interned};
use crate::store::shared::packed;
use crate::store::{Loaded, LogPosition, StoreError};

/// Pages of one text; a page holds some ten to twenty keys.
const PAGES_MAX: i64 = 128;

/// How long a connection may wait for the receiver.
const RECEIVER_TIMEOUT: Duration = Duration::from_mins(1);

/// A table, and how it is packed.
struct Packed {
    pages: &'static str,
    chunk: &'static str,
    parse: fn(&str, &mut Intern) -> Result<Loaded, StoreError>,
}

const ACCOUNTS: Packed = Packed {
    pages: "SELECT pg_relation_size('accounts') / current_setting('block_size')::bigint",
    chunk: "SELECT string_agg(concat_ws(chr(31), id, plan_id, revision, body), chr(30))
            FROM accounts WHERE ctid >= $1::text::tid AND ctid < $2::text::tid",
    parse: packed::accounts,
};

const KEYS: Packed = Packed {
    pages: "SELECT pg_relation_size('keys') / current_setting('block_size')::bigint",
    chunk: "SELECT string_agg(concat_ws(chr(31), encode(id, 'hex'), account_id, name, encode(secret_hash, 'hex'), environment,
              status, coalesce(expire_time::text, ''), revision, policy, metadata), chr(30))
            FROM keys WHERE ctid >= $1::text::tid AND ctid < $2::text::tid",
    parse: packed::keys,
};

const RETIRED: Packed = Packed {
    pages: "SELECT pg_relation_size('retired_secrets') / current_setting('block_size')::bigint",
    chunk: "SELECT string_agg(concat_ws(chr(31), encode(r.hash, 'hex'), encode(k.secret_hash, 'hex'), r.expire_time), chr(30))
            FROM retired_secrets AS r JOIN keys AS k ON k.id = r.key_id
            WHERE r.ctid >= $1::text::tid AND r.ctid < $2::text::tid",
    parse: packed::retired_secrets,
};

pub(super) async fn load(database: &Database, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError> {
    let (mut first, snapshot, position) = begin_snapshot(database).await?;
    let patience = first.patience();
    let expected = sqlx::query_scalar("SELECT (SELECT count(*) FROM keys) + (SELECT count(*) FROM retired_secrets)");
    let secrets: i64 = statement(&patience, expected.fetch_one(first.connection())).await?;
    if sink.send(Loaded::SecretsExpected(usize::try_from(secrets).unwrap_or(0))).await.is_err() {
        return Ok(position);
    }
    let plans = sqlx::query("SELECT id, revision, body FROM plans ORDER BY id").fetch_all(first.connection());
    let plans = statement(&patience, plans).await?.iter().map(read::plan_row).collect::<Result<_, _>>()?;
    if sink.send(Loaded::Plans(plans)).await.is_err() {
        return Ok(position);
    }
    let mut sessions = vec![first];
    if database.has_room() {
        let mut second = database.session().await?;
        begin(&mut second, Some(&snapshot)).await?;
        sessions.push(second);
    }
    let interned = Arc::new(Interned::default());
    for table in [&ACCOUNTS, &KEYS, &RETIRED] {
        sessions = send_table(table, sessions, &interned, &sink).await?;
    }
    for mut session in sessions {
        statement(&patience, sqlx::raw_sql("COMMIT").execute(session.connection())).await?;
        session.end();
    }
    Ok(position)
}

/// A connection that sees one state, by what others can see the same, and which it is.
async fn begin_snapshot(database: &Database) -> Result<(Session, String, LogPosition), StoreError> {
    let mut session = database.session().await?;
    let patience = session.patience();
    begin(&mut session, None).await?;
    let row = sqlx::query(
        "SELECT pg_export_snapshot(), s.revision, c.stamp FROM sequence AS s JOIN commits AS c ON c.revision = s.revision
         WHERE s.id = 1",
    );
    let row = statement(&patience, row.fetch_one(session.connection())).await?;
    let position = LogPosition { revision: Revision::new(row.try_get(1)?), stamp: row.try_get(2)? };
    Ok((session, row.try_get(0)?, position))
}

async fn begin(session: &mut Session, snapshot: Option<&str>) -> Result<(), StoreError> {
    let waits = RECEIVER_TIMEOUT.as_millis();
    // What the server made of digits and dashes.
    let take = snapshot.map_or_else(String::new, |snapshot| format!("SET TRANSACTION SNAPSHOT '{snapshot}';"));
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {take} SET LOCAL idle_in_transaction_session_timeout = {waits}"
    );
    let patience = session.patience();
    statement(&patience, sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(session.connection())).await?;
    Ok(())
}

/// Sends all rows of a table. Ends early where nobody receives them.
async fn send_table(
    table: &'static Packed,
    mut sessions: Vec<Session>,
    interned: &Arc<Interned>,
    sink: &mpsc::Sender<Loaded>,
) -> Result<Vec<Session>, StoreError> {
    let Some(session) = sessions.first_mut() else { return Ok(sessions) };
    let patience = session.patience();
    let pages: i64 = statement(&patience, sqlx::query_scalar(table.pages).fetch_one(session.connection())).await?;
    let next = Arc::new(AtomicI64::new(0));
    let mut tasks = JoinSet::new();
    for session in sessions {
        let (next, intern, sink) = (Arc::clone(&next), Intern::new(Arc::clone(interned)), sink.clone());
        tasks.spawn(send_chunks(table, session, next, pages, intern, sink));
    }
    let mut returned = Vec::with_capacity(tasks.len());
    while let Some(task) = tasks.join_next().await {
        returned.push(task.map_err(|error| died(&error))??);
    }
    Ok(returned)
}

/// Takes the next chunk of pages until there is none.
async fn send_chunks(
    table: &'static Packed,
    mut session: Session,
    next: Arc<AtomicI64>,
    pages: i64,
    mut intern: Intern,
    sink: mpsc::Sender<Loaded>,
) -> Result<Session, StoreError> {
    let patience = session.patience();
    loop {
        let start = next.fetch_add(PAGES_MAX, Ordering::Relaxed);
        if start >= pages {
            return Ok(session);
        }
        let end = start.saturating_add(PAGES_MAX);
        let chunk = sqlx::query_scalar(table.chunk).bind(format!("({start},0)")).bind(format!("({end},0)"));
        let text: Option<String> = statement(&patience, chunk.fetch_one(session.connection())).await?;
        let Some(text) = text else { continue };
        let parsed = tokio::task::spawn_blocking(move || ((table.parse)(&text, &mut intern), intern));
        let (loaded, returned) = parsed.await.map_err(|error| died(&error))?;
        intern = returned;
        if sink.send(loaded?).await.is_err() {
            return Ok(session);
        }
    }
}

fn died(error: &JoinError) -> StoreError {
    StoreError::Unavailable(format!("loading was broken off: {error}"))
}

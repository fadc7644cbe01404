//! Leases. What becomes of them is `store::ledger`'s; here it is read and written.
//!
//! # Locks
//!
//! Rows of `replicas`, `operations` and `budgets` are locked in this order, and within a table in the order of their keys, by all
//! that is written here and in [`operations`](super::operations); so nobody waits in a ring. A process writes rows of `leases` of its
//! own, under the lock of their budget, or those of a process that it has taken out. `recalls` and `usage_hourly` come last; where one
//! statement writes both them and `leases`, PostgreSQL chooses the order, which nobody else's waits for. Whoever
//! grants or charges holds the row of its process against deletion: one that is taken out of the list has no grant under way.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::LazyLock;

use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row as _};

use super::database::{Database, Transaction, statement};
use super::standing::{Beats, is_moved, moved, refusal, standing};
use crate::decision::quota::State;
use crate::domain::{AccountId, BudgetId, KeyId, Time};
use crate::store::ledger::{self, LeaseKey, LeaseRow, Move, Round};
use crate::store::{Closed, ClosedLease, Closing, LeaseBatch, Leased, StoreError, Uncertain, UncertainRow};

/// The rows of the budgets `$2`, for the process `$1` whose last poll was `$3`; none where it is not registered. A row is tight
/// for a second; what is further ahead was written by another clock, before a failover.
const LOCK: &str = "
WITH me AS MATERIALIZED (SELECT beat FROM replicas WHERE incarnation = $1 FOR KEY SHARE)
SELECT b.id, b.state,
  coalesce(b.tight_until > clock_timestamp() AND b.tight_until <= clock_timestamp() + interval '1 second', false)
FROM budgets AS b WHERE b.id = ANY ($2) AND (SELECT beat FROM me) >= $3
ORDER BY b.id FOR UPDATE OF b";

/// Makes rows that can be locked. Never in the transaction that locks: a row that another inserts would be waited for out of
/// order.
static MAKE_ROOM: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH made AS (
           INSERT INTO budgets (id) SELECT id FROM unnest($2::text[]) AS new (id) ORDER BY id COLLATE \"C\" ON CONFLICT DO NOTHING)
         SELECT beat, is_moved FROM {} AS standing",
        standing()
    )
});

/// Changes leases of the process `$1` by `$2` to `$6`: budgets, slots, counters, units and what of them was spent. Parts of a `WITH`.
pub(super) const MOVE: &str = "
moved AS MATERIALIZED (
  SELECT * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
    WITH ORDINALITY AS m (budget, slot, cell, units, settled, place)),
locked AS MATERIALIZED (
  SELECT l.budget, l.slot, l.cell, l.units + m.units AS units, m.settled
  FROM moved AS m
  JOIN leases AS l ON l.incarnation = $1 AND l.budget = m.budget AND l.slot = m.slot AND l.cell = m.cell
  ORDER BY l.budget, l.slot, l.cell FOR UPDATE OF l),
changed AS (
  UPDATE leases AS l SET units = k.units, settled = l.settled + k.settled FROM locked AS k
  WHERE l.incarnation = $1 AND l.budget = k.budget AND l.slot = k.slot AND l.cell = k.cell AND k.units > 0),
ended AS (
  DELETE FROM leases AS l USING locked AS k
  WHERE l.incarnation = $1 AND l.budget = k.budget AND l.slot = k.slot AND l.cell = k.cell AND k.units <= 0)";

/// Writes a round down: after [`MOVE`]'s, `$7` and `$8` are the bases and accounts of new leases, `$9` and `$10` states, `$11` budgets
/// that fall short, `$12` those that are no longer called back. Returns who else holds units of those that fall short.
static WRITE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH {MOVE},
         added AS (
           INSERT INTO leases (incarnation, budget, slot, cell, units, settled, base, account)
           SELECT $1, m.budget, m.slot, m.cell, m.units, m.settled, new.base, new.account
           FROM moved AS m
           JOIN unnest($7::bigint[], $8::text[]) WITH ORDINALITY AS new (base, account, place) USING (place)
           WHERE m.units > 0 AND NOT EXISTS (
             SELECT FROM locked AS k WHERE k.budget = m.budget AND k.slot = m.slot AND k.cell = m.cell)),
         others AS MATERIALIZED (
           SELECT DISTINCT budget, incarnation FROM leases
           WHERE budget = ANY ($11::text[]) AND incarnation <> $1 AND units > 0),
         called AS (
           INSERT INTO recalls (incarnation, budget)
           SELECT incarnation, budget FROM others JOIN replicas USING (incarnation) ORDER BY 2, 1
           ON CONFLICT DO NOTHING RETURNING incarnation),
         told AS MATERIALIZED (SELECT pg_notify('tollgate', '') WHERE EXISTS (SELECT FROM called)),
         answered AS (DELETE FROM recalls WHERE incarnation = $1 AND budget = ANY ($12::text[])),
         written AS (
           UPDATE budgets AS b SET state = coalesce(new.state, b.state),
             tight_until = CASE WHEN new.is_short THEN clock_timestamp() + interval '1 second' ELSE b.tight_until END
           FROM (
             SELECT coalesce(n.id, o.budget) AS id, n.state, o.budget IS NOT NULL AS is_short
             FROM unnest($9::text[], $10::text[]) AS n (id, state)
             FULL JOIN (SELECT DISTINCT budget FROM others) AS o ON o.budget = n.id) AS new
           WHERE b.id = new.id)
         SELECT beat, is_moved, (SELECT count(*) FROM told),
           ARRAY(SELECT DISTINCT budget FROM others) AS elsewhere FROM {} AS standing",
        standing()
    )
});

/// Adds to what is uncertain: the end of an `INSERT INTO uncertain_hourly AS u`.
pub(super) const ADD_UNCERTAIN: &str = "
ON CONFLICT (account, budget, hour, given_back)
DO UPDATE SET units = least(u.units::numeric + excluded.units, 9223372036854775807)::bigint";

/// Of the process `$1`: the budgets `$2` are not called back any more. What it has leased of them without knowing it, because
/// an answer was lost, stays granted, and is uncertain in the hour `$3`: nobody waits for it.
static RELEASE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH released AS (DELETE FROM recalls WHERE incarnation = $1 AND budget = ANY ($2)),
         locked AS MATERIALIZED (
           SELECT l.incarnation, l.budget, l.slot, l.cell FROM leases AS l
           WHERE l.incarnation = $1 AND l.budget = ANY ($2) AND (SELECT NOT {} FROM sequence AS s WHERE s.id = 1)
           ORDER BY l.budget, l.slot, l.cell FOR UPDATE OF l),
         lost AS (
           DELETE FROM leases AS l USING locked AS k
           WHERE (l.incarnation, l.budget, l.slot, l.cell) = (k.incarnation, k.budget, k.slot, k.cell)
           RETURNING l.account, l.budget, l.units)
         INSERT INTO uncertain_hourly AS u (account, budget, hour, given_back, units)
         SELECT account, budget, $3, false, least(sum(units), 9223372036854775807)::bigint FROM lost
         WHERE units > 0 GROUP BY account, budget ORDER BY account, budget
         {ADD_UNCERTAIN}",
        is_moved()
    )
});

/// Grants in four steps: begin, lock and read, write, commit.
pub(super) async fn lease(database: &Database, beats: &Beats, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
    if !batch.released.is_empty() {
        release(database, batch).await?;
    }
    if batch.asks.is_empty() {
        return Ok(Vec::new());
    }
    let ids: BTreeSet<&str> = batch.asks.iter().map(|ask| ask.budget.as_str()).collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    let confirmed = beats.confirmed(batch.incarnation);
    // Rows of budgets stay, so the second time all of them are there, unless the process was taken out in between.
    for _ in 0..3 {
        let mut transaction = database.begin().await?;
        let lock = sqlx::query(LOCK).bind(batch.incarnation.0.as_slice()).bind(&ids).bind(confirmed);
        let rows = fetch_all(&mut transaction, lock).await?;
        if rows.len() == ids.len() {
            let leased = grant(&mut transaction, batch, &rows, confirmed).await?;
            transaction.commit().await?;
            return Ok(leased);
        }
        transaction.rollback().await;
        let make_room = sqlx::query(MAKE_ROOM.as_str()).bind(batch.incarnation.0.as_slice()).bind(&ids);
        refusal(&database.one(make_room).await?, confirmed)?;
    }
    Err(StoreError::Unavailable("rows of budgets that were made are not there".to_owned()))
}

/// By itself: rows of leases are locked in one order, once in a transaction.
async fn release(database: &Database, batch: &LeaseBatch) -> Result<(), StoreError> {
    let released: Vec<&str> = batch.released.iter().map(BudgetId::as_str).collect();
    let release = sqlx::query(RELEASE.as_str()).bind(batch.incarnation.0.as_slice()).bind(released);
    database.all(release.bind(batch.now.hour())).await.map(drop)
}

async fn grant(
    transaction: &mut Transaction,
    batch: &LeaseBatch,
    rows: &[PgRow],
    confirmed: i64,
) -> Result<Vec<Leased>, StoreError> {
    let mut before = HashMap::with_capacity(rows.len());
    let mut tight = HashSet::new();
    for row in rows {
        let (id, state): (String, Option<&str>) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(2)? {
            tight.insert(id.clone());
        }
        if let Some(state) = state {
            let state = ledger::decode(&id, state)?;
            before.insert(id, state);
        }
    }
    let Round { mut leased, states, moves } = ledger::round(batch, &before, &tight)?;
    let asked = || batch.asks.iter().zip(&leased);
    let short: Vec<&str> =
        asked().filter(|(ask, one)| one.granted < ask.needed).map(|(ask, _)| ask.budget.as_str()).collect();
    let recalled: Vec<&str> = batch.asks.iter().filter(|ask| ask.recalled).map(|ask| ask.budget.as_str()).collect();
    let (ids, states): (Vec<&str>, Vec<&str>) = states.iter().map(|(id, state)| (*id, state.as_str())).unzip();
    let bases: Vec<i64> = moves.iter().map(|(_, change)| change.base).collect();
    let accounts: Vec<&str> = moves.iter().map(|(_, change)| change.account).collect();
    let write = sqlx::query(WRITE.as_str()).bind(batch.incarnation.0.as_slice());
    let write = bind_moves(write, &moves).bind(bases).bind(accounts).bind(ids).bind(states).bind(short).bind(recalled);
    let row = fetch_all(transaction, write).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
    // Asked again now that the budgets are locked: who restates what it knows of them does so after this, or has been seen here.
    refusal(&row, confirmed)?;
    let elsewhere: HashSet<String> = row.try_get::<Vec<String>, _>("elsewhere")?.into_iter().collect();
    for (ask, one) in batch.asks.iter().zip(&mut leased) {
        one.elsewhere = one.granted < ask.needed && elsewhere.contains(ask.budget.as_str());
    }
    Ok(leased)
}

type Query<'q> = sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>;

/// What [`MOVE`] takes after the process.
pub(super) fn bind_moves<'q>(query: Query<'q>, moves: &[(LeaseKey<'_>, Move<'_>)]) -> Query<'q> {
    let budgets: Vec<String> = moves.iter().map(|((budget, ..), _)| (*budget).to_owned()).collect();
    let slots: Vec<i64> = moves.iter().map(|((_, slot, _), _)| *slot).collect();
    let cells: Vec<i64> = moves.iter().map(|((.., cell), _)| *cell).collect();
    let units: Vec<i64> = moves.iter().map(|(_, change)| change.units).collect();
    let settled: Vec<i64> = moves.iter().map(|(_, change)| change.settled).collect();
    query.bind(budgets).bind(slots).bind(cells).bind(units).bind(settled)
}

/// All rows of one statement of a transaction.
pub(super) async fn fetch_all(transaction: &mut Transaction, query: Query<'_>) -> Result<Vec<PgRow>, StoreError> {
    let patience = transaction.patience();
    statement(&patience, query.fetch_all(transaction.connection())).await
}

/// Budgets that have a state, and these; all that are asked for are locked until the transaction ends.
pub(super) async fn lock_states(
    transaction: &mut Transaction,
    ids: &BTreeSet<&str>,
) -> Result<HashMap<String, State>, StoreError> {
    let ids: Vec<&str> = ids.iter().copied().collect();
    let lock = sqlx::query("SELECT id, state FROM budgets WHERE id = ANY ($1) ORDER BY id FOR UPDATE");
    let mut states = HashMap::new();
    for row in fetch_all(transaction, lock.bind(ids)).await? {
        let id: String = row.try_get(0)?;
        if let Some(state) = row.try_get(1)? {
            let state = ledger::decode(&id, state)?;
            states.insert(id, state);
        }
    }
    Ok(states)
}

/// Writes states back that were locked.
pub(super) async fn write_states(
    transaction: &mut Transaction,
    states: &HashMap<String, State>,
) -> Result<(), StoreError> {
    if states.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = states.keys().map(String::as_str).collect();
    let states: Vec<String> = states.values().map(ledger::encode).collect::<Result<_, _>>()?;
    let write = sqlx::query(
        "UPDATE budgets AS b SET state = new.state FROM unnest($1::text[], $2::text[]) AS new (id, state) WHERE b.id = new.id",
    );
    fetch_all(transaction, write.bind(ids).bind(states)).await?;
    Ok(())
}

/// Takes out the process `$2`, and those that have been silent for as long as they may be and no longer than `$3` milliseconds,
/// but not `$1`. A row that is being written to is waited for, and asked again.
pub(super) static BURY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH silent AS MATERIALIZED (
           SELECT r.incarnation FROM replicas AS r
           WHERE r.incarnation <> $1
             AND (r.incarnation = $2 OR ({SILENT_MILLIS} <= $3 AND r.seen < clock_timestamp() - {SILENT_MILLIS} * interval '1 ms'))
           ORDER BY r.incarnation FOR UPDATE)
         DELETE FROM replicas AS r USING silent AS s WHERE r.incarnation = s.incarnation"
    )
});

/// [`silent_after`](crate::store::silent_after) of `replicas AS r`, in milliseconds, rounded up.
pub(super) const SILENT_MILLIS: &str = "(r.fence_millis + (r.fence_millis + 19) / 20 + 250)";

/// Who holds leases and is not registered, nor `$1`: a probe of the index for each process that has any.
const GONE: &str = "
WITH RECURSIVE holders AS (
  (SELECT incarnation FROM leases ORDER BY incarnation LIMIT 1)
  UNION ALL
  SELECT (SELECT l.incarnation FROM leases AS l WHERE l.incarnation > h.incarnation ORDER BY l.incarnation LIMIT 1)
  FROM holders AS h WHERE h.incarnation IS NOT NULL)
SELECT h.incarnation, h.budgets FROM (
  SELECT h.incarnation, ARRAY(SELECT DISTINCT l.budget FROM leases AS l WHERE l.incarnation = h.incarnation) AS budgets
  FROM holders AS h
  WHERE h.incarnation <> $1 AND NOT EXISTS (SELECT FROM replicas AS r WHERE r.incarnation = h.incarnation)) AS h";

const END: &str = "
WITH forgotten AS (
  DELETE FROM recalls AS c WHERE c.incarnation <> $1 AND NOT EXISTS (
    SELECT FROM replicas AS r WHERE r.incarnation = c.incarnation))
DELETE FROM leases WHERE incarnation = ANY ($2) AND budget = ANY ($3)
RETURNING incarnation, budget, slot, cell, units, base, settled, account";

/// Ends the leases of processes that are gone.
pub(super) async fn close(database: &Database, closing: &Closing<'_>) -> Result<Closed, StoreError> {
    let mut transaction = database.begin().await?;
    match close_all(&mut transaction, closing).await {
        Ok(closed) => Ok(transaction.commit().await.map(|()| closed)?),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn close_all(transaction: &mut Transaction, closing: &Closing<'_>) -> Result<Closed, StoreError> {
    let Closing { survivor, now, policy, known, watched } = *closing;
    let (survivor, known_incarnation) = (survivor.0.as_slice(), known.map(|known| known.incarnation.0.as_slice()));
    let watched = i64::try_from(watched.as_millis()).unwrap_or(i64::MAX);
    let bury = sqlx::query(BURY.as_str()).bind(survivor).bind(known_incarnation).bind(watched);
    fetch_all(transaction, bury).await?;
    let gone = fetch_all(transaction, sqlx::query(GONE).bind(survivor)).await?;
    if gone.is_empty() {
        return Ok(Closed::default());
    }
    let mut incarnations: Vec<Vec<u8>> = Vec::new();
    let mut budgets: Vec<String> = Vec::new();
    for row in &gone {
        incarnations.push(row.try_get(0)?);
        budgets.append(&mut row.try_get(1)?);
    }
    let budgets: BTreeSet<&str> = budgets.iter().map(String::as_str).collect();
    let mut states = lock_states(transaction, &budgets).await?;
    refuse_moved(transaction).await?;
    // Another may have closed them while this waited.
    let end = sqlx::query(END).bind(survivor).bind(incarnations).bind(budgets.into_iter().collect::<Vec<_>>());
    let rows = fetch_all(transaction, end).await?;
    let mut rows: Vec<LeaseRow> = rows.iter().map(lease_row).collect::<Result<_, _>>()?;
    rows.sort_by(|a, b| (&a.budget, a.slot, &a.incarnation, a.cell).cmp(&(&b.budget, b.slot, &b.incarnation, b.cell)));
    let (closed, unspent) = ledger::close(rows, known);
    let refunded = if policy == Uncertain::Refund { closed.uncertain.as_slice() } else { &[] };
    for lease in unspent.iter().chain(refunded) {
        if let Some(state) = states.get_mut(lease.budget.as_str()) {
            state.give_back(lease.slot, lease.units);
        }
    }
    write_states(transaction, &states).await?;
    note_uncertain(transaction, &closed.uncertain, policy, now).await?;
    Ok(closed)
}

/// Nothing is given back while the database may be an earlier state of itself: it would be given back twice.
async fn refuse_moved(transaction: &mut Transaction) -> Result<(), StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| format!("SELECT {} FROM sequence AS s WHERE s.id = 1", is_moved()));
    let row = fetch_all(transaction, sqlx::query(SQL.as_str())).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
    if row.try_get(0)? { Err(moved()) } else { Ok(()) }
}

pub(super) fn lease_row(row: &PgRow) -> Result<LeaseRow, StoreError> {
    Ok(LeaseRow {
        incarnation: row.try_get("incarnation")?,
        budget: row.try_get("budget")?,
        slot: row.try_get("slot")?,
        cell: row.try_get("cell")?,
        units: row.try_get("units")?,
        base: row.try_get("base")?,
        settled: row.try_get("settled")?,
        account: row.try_get("account")?,
    })
}

async fn note_uncertain(
    transaction: &mut Transaction,
    uncertain: &[ClosedLease],
    policy: Uncertain,
    now: Time,
) -> Result<(), StoreError> {
    static NOTE: LazyLock<String> = LazyLock::new(|| {
        format!(
            "INSERT INTO uncertain_hourly AS u (account, budget, hour, given_back, units)
             SELECT account, budget, $4, $5, units
             FROM unnest($1::text[], $2::text[], $3::bigint[]) AS new (account, budget, units)
             ORDER BY account, budget {ADD_UNCERTAIN}"
        )
    });
    let sums = ledger::sums(uncertain);
    if sums.is_empty() {
        return Ok(());
    }
    let accounts: Vec<&str> = sums.iter().map(|((account, _), _)| *account).collect();
    let budgets: Vec<&str> = sums.iter().map(|((_, budget), _)| *budget).collect();
    let units: Vec<i64> = sums.iter().map(|(_, units)| *units).collect();
    let note = sqlx::query(NOTE.as_str())
        .bind(accounts)
        .bind(budgets)
        .bind(units)
        .bind(now.hour())
        .bind(policy == Uncertain::Refund);
    fetch_all(transaction, note).await?;
    Ok(())
}

/// What was found uncertain of an account's budgets, or of those of one of its keys.
pub(super) async fn uncertain(
    database: &Database,
    account: &AccountId,
    key: Option<KeyId>,
    hours: Range<i64>,
    rows_max: u32,
) -> Result<Vec<UncertainRow>, StoreError> {
    let rows = database.all(
        // `0` comes after `/`: what begins with the key and a `/`.
        sqlx::query(
            "SELECT budget, hour, given_back, units FROM uncertain_hourly
             WHERE account = $1 AND hour >= $2 AND hour < $3 AND ($4 IS NULL OR (budget > $4 || '/' AND budget < $4 || '0'))
             ORDER BY budget, hour, given_back LIMIT $5",
        )
        .bind(account.as_str())
        .bind(hours.start)
        .bind(hours.end)
        .bind(key.map(|key| key.to_string()))
        .bind(i64::from(rows_max)),
    );
    rows.await?
        .iter()
        .map(|row| {
            let (budget, units): (String, i64) = (row.try_get(0)?, row.try_get(3)?);
            Ok(UncertainRow {
                budget: BudgetId::stored(budget),
                hour: row.try_get(1)?,
                given_back: row.try_get(2)?,
                units: u64::try_from(units).unwrap_or(0),
            })
        })
        .collect()
}

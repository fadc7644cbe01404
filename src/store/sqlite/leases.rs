//! Leases. What becomes of them is `store::ledger`'s; here it is read and written.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::writer::Writer;
use crate::decision::quota::State;
use crate::domain::{AccountId, BudgetId, KeyId, Time};
use crate::store::ledger::{self, LeaseKey, LeaseRow, Move};
use crate::store::{
    Closed, ClosedLease, Closing, Incarnation, LeaseBatch, Leased, StoreError, Uncertain, UncertainRow,
};

/// Rows of one statement: few enough for SQLite's 32,766 parameters at eight each.
const ROWS_MAX: usize = 2_000;

pub(super) async fn lease(writer: &Writer, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
    let mut transaction = writer.begin().await?;
    match grant(transaction.connection(), batch).await {
        Ok(leased) => transaction.commit().await.map(|()| leased),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn grant(connection: &mut SqliteConnection, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
    let ids: Vec<&str> = batch.asks.iter().map(|ask| ask.budget.as_str()).collect();
    let before = states(connection, &ids).await?;
    // One process has them all: nothing is called back from another.
    let round = ledger::round(batch, &before, &HashSet::new())?;
    for rows in round.states.chunks(ROWS_MAX) {
        write_states(connection, rows).await?;
    }
    for rows in round.moves.chunks(ROWS_MAX) {
        move_leases(connection, batch.incarnation, rows).await?;
    }
    Ok(round.leased)
}

pub(super) async fn states(
    connection: &mut SqliteConnection,
    ids: &[&str],
) -> Result<HashMap<String, State>, StoreError> {
    let ids = serde_json::to_string(ids).map_err(|error| StoreError::Corrupt(format!("names of budgets: {error}")))?;
    let rows = sqlx::query("SELECT b.id, b.state FROM json_each($1) AS asked JOIN budgets AS b ON b.id = asked.value")
        .bind(ids)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let (id, state): (String, &str) = (row.try_get(0)?, row.try_get(1)?);
            let state = ledger::decode(&id, state)?;
            Ok((id, state))
        })
        .collect()
}

async fn write_states(connection: &mut SqliteConnection, rows: &[(&str, String)]) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO budgets (id, state) ");
    query.push_values(rows, |mut row, (id, state)| {
        row.push_bind(*id).push_bind(state.as_str());
    });
    query.push(" ON CONFLICT (id) DO UPDATE SET state = excluded.state");
    query.build().persistent(false).execute(connection).await?;
    Ok(())
}

/// Adds to what is leased for slots of budgets, or where it is below 0 takes from that.
pub(super) async fn move_leases(
    connection: &mut SqliteConnection,
    incarnation: Incarnation,
    rows: &[(LeaseKey<'_>, Move<'_>)],
) -> Result<(), StoreError> {
    let (more, less): (Vec<_>, Vec<_>) = rows.iter().copied().partition(|(_, change)| change.units > 0);
    if !more.is_empty() {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO leases (incarnation, budget, slot, cell, units, settled, base, account) ",
        );
        query.push_values(more, |mut row, ((budget, slot, cell), change)| {
            row.push_bind(incarnation.0.as_slice()).push_bind(budget).push_bind(slot).push_bind(cell);
            row.push_bind(change.units).push_bind(change.settled).push_bind(change.base).push_bind(change.account);
        });
        query.push(
            " ON CONFLICT (incarnation, budget, slot, cell)
              DO UPDATE SET units = units + excluded.units, settled = settled + excluded.settled",
        );
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    if !less.is_empty() {
        let mut query = QueryBuilder::<Sqlite>::new(
            "UPDATE leases SET units = max(units + column4, 0), settled = settled + column5 FROM (",
        );
        query.push_values(less, |mut row, ((budget, slot, cell), change)| {
            row.push_bind(budget).push_bind(slot).push_bind(cell);
            row.push_bind(change.units).push_bind(change.settled);
        });
        query.push(") WHERE budget = column1 AND slot = column2 AND cell = column3 AND incarnation = ");
        query.push_bind(incarnation.0.as_slice());
        query.build().persistent(false).execute(&mut *connection).await?;
        sqlx::query("DELETE FROM leases WHERE units = 0").execute(connection).await?;
    }
    Ok(())
}

/// Ends the leases of every process but this one.
pub(super) async fn close(writer: &Writer, closing: &Closing<'_>) -> Result<Closed, StoreError> {
    let mut transaction = writer.begin().await?;
    match close_all(transaction.connection(), closing).await {
        Ok(closed) => transaction.commit().await.map(|()| closed),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn close_all(connection: &mut SqliteConnection, closing: &Closing<'_>) -> Result<Closed, StoreError> {
    let Closing { survivor, now, policy, known, watched: _ } = *closing;
    let rows = sqlx::query(
        "SELECT incarnation, budget, slot, cell, units, base, settled, account FROM leases WHERE incarnation <> $1",
    )
    .bind(survivor.0.as_slice())
    .fetch_all(&mut *connection)
    .await?;
    let (closed, unspent) = ledger::close(rows.iter().map(lease_row).collect::<Result<_, _>>()?, known);
    give_back(connection, &unspent).await?;
    if policy == Uncertain::Refund {
        give_back(connection, &closed.uncertain).await?;
    }
    note_uncertain(connection, &closed.uncertain, policy, now).await?;
    sqlx::query("DELETE FROM leases WHERE incarnation <> $1").bind(survivor.0.as_slice()).execute(connection).await?;
    Ok(closed)
}

fn lease_row(row: &SqliteRow) -> Result<LeaseRow, StoreError> {
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
    connection: &mut SqliteConnection,
    uncertain: &[ClosedLease],
    policy: Uncertain,
    now: Time,
) -> Result<(), StoreError> {
    let sums = ledger::sums(uncertain);
    for sums in sums.chunks(ROWS_MAX) {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO uncertain_hourly (account, budget, hour, given_back, units) ");
        query.push_values(sums, |mut row, ((account, budget), units)| {
            row.push_bind(*account).push_bind(*budget).push_bind(now.hour()).push_bind(policy == Uncertain::Refund);
            row.push_bind(*units);
        });
        query.push(" ON CONFLICT (account, budget, hour, given_back) DO UPDATE SET units = units + excluded.units");
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// What was found uncertain of an account's budgets, or of those of one of its keys.
pub(super) async fn uncertain(
    readers: &SqlitePool,
    account: &AccountId,
    key: Option<KeyId>,
    hours: Range<i64>,
    rows_max: u32,
) -> Result<Vec<UncertainRow>, StoreError> {
    let mut query =
        QueryBuilder::<Sqlite>::new("SELECT budget, hour, given_back, units FROM uncertain_hourly WHERE account = ");
    query.push_bind(account.as_str()).push(" AND hour >= ").push_bind(hours.start);
    query.push(" AND hour < ").push_bind(hours.end);
    if let Some(key) = key {
        // `0` comes after `/`: what begins with the key and a `/`.
        query.push(" AND budget > ").push_bind(format!("{key}/")).push(" AND budget < ").push_bind(format!("{key}0"));
    }
    query.push(" ORDER BY budget, hour, given_back LIMIT ").push_bind(rows_max);
    let rows = query.build().fetch_all(readers).await?;
    rows.iter()
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

async fn give_back(connection: &mut SqliteConnection, closed: &[ClosedLease]) -> Result<(), StoreError> {
    for leases in closed.chunks(ROWS_MAX) {
        let ids: Vec<&str> = leases.iter().map(|lease| lease.budget.as_str()).collect();
        let mut states = states(connection, &ids).await?;
        for lease in leases {
            if let Some(state) = states.get_mut(lease.budget.as_str()) {
                state.give_back(lease.slot, lease.units);
            }
        }
        write_all(connection, &states).await?;
    }
    Ok(())
}

/// Writes states back that were read together.
pub(super) async fn write_all(
    connection: &mut SqliteConnection,
    states: &HashMap<String, State>,
) -> Result<(), StoreError> {
    let rows: Result<Vec<(&str, String)>, StoreError> =
        states.iter().map(|(id, state)| Ok((id.as_str(), ledger::encode(state)?))).collect();
    let rows = rows?;
    if rows.is_empty() { Ok(()) } else { write_states(connection, &rows).await }
}

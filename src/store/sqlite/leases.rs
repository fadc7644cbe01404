//! Leases. The arithmetic is `decision::quota`'s; here it is given the states, and what comes of it is written down.

use std::collections::{BTreeMap, HashMap};

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::writer::Writer;
use crate::decision::quota::{Slot, State};
use crate::domain::{BudgetId, Time};
use crate::store::{ClosedLease, Incarnation, LeaseAsk, LeaseBatch, Leased, StoreError, Uncertain};

/// Rows of one statement: few enough for SQLite's 32,766 parameters at four each.
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
    let mut after: BTreeMap<&str, State> = BTreeMap::new();
    let mut leased = Vec::with_capacity(batch.asks.len());
    for ask in &batch.asks {
        let id = ask.budget.as_str();
        // One that is asked for twice goes on from what the first has left.
        let one = answer(ask, after.get(id).or_else(|| before.get(id)).cloned(), batch.now);
        // That time has passed is no news: it would be found out again.
        if one.granted > 0 || ask.settled.iter().any(|one| one.returned > 0) || after.contains_key(id) {
            after.insert(id, one.state.clone());
        }
        leased.push(one);
    }
    let rows: Result<Vec<_>, StoreError> = after.iter().map(|(id, state)| Ok((*id, encode(state)?))).collect();
    let rows = rows?;
    for rows in rows.chunks(ROWS_MAX) {
        write_states(connection, rows).await?;
    }
    let mut moved: BTreeMap<(&str, i64), i64> = BTreeMap::new();
    for (ask, leased) in batch.asks.iter().zip(&leased) {
        for (slot, units) in moves(ask, leased) {
            let sum = moved.entry((ask.budget.as_str(), slot.number())).or_default();
            *sum = sum.saturating_add(units);
        }
    }
    let moved: Vec<_> =
        moved.into_iter().filter(|(_, units)| *units != 0).map(|((id, slot), units)| (id, slot, units)).collect();
    for rows in moved.chunks(ROWS_MAX) {
        move_leases(connection, batch.incarnation, rows).await?;
    }
    Ok(leased)
}

/// What one ask makes of a budget.
fn answer(ask: &LeaseAsk, before: Option<State>, now: Time) -> Leased {
    let LeaseAsk { rule, zone, settled, wanted, .. } = ask;
    let mut state = before.unwrap_or_else(|| State::new(rule, zone, now));
    state.advance(rule, zone, now);
    for one in settled {
        state.give_back(one.slot, one.returned);
    }
    let granted = state.grant(rule, *wanted);
    Leased { granted, state }
}

/// How the leases of a budget change: what is added to those of a slot, or, below 0, is no longer leased.
fn moves<'a>(ask: &'a LeaseAsk, leased: &Leased) -> impl Iterator<Item = (Slot, i64)> + use<'a> {
    let signed = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
    let granted = (leased.state.slot(), signed(leased.granted));
    let settled = ask.settled.iter().map(move |one| (one.slot, -signed(one.spent.saturating_add(one.returned))));
    settled.chain([granted])
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
            let state = serde_json::from_str(state)
                .map_err(|error| StoreError::Corrupt(format!("the state of the budget `{id}`: {error}")))?;
            Ok((id, state))
        })
        .collect()
}

fn encode(state: &State) -> Result<String, StoreError> {
    serde_json::to_string(state).map_err(|error| StoreError::Corrupt(format!("the state of a budget: {error}")))
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
    rows: &[(&str, i64, i64)],
) -> Result<(), StoreError> {
    let (more, less): (Vec<_>, Vec<_>) = rows.iter().copied().partition(|(_, _, units)| *units > 0);
    if !more.is_empty() {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO leases (incarnation, budget, slot, units) ");
        query.push_values(more, |mut row, (budget, slot, units)| {
            row.push_bind(incarnation.0.as_slice()).push_bind(budget).push_bind(slot).push_bind(units);
        });
        query.push(" ON CONFLICT (incarnation, budget, slot) DO UPDATE SET units = units + excluded.units");
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    if !less.is_empty() {
        let mut query = QueryBuilder::<Sqlite>::new("UPDATE leases SET units = max(units + column3, 0) FROM (");
        query.push_values(less, |mut row, (budget, slot, units)| {
            row.push_bind(budget).push_bind(slot).push_bind(units);
        });
        query.push(") WHERE budget = column1 AND slot = column2 AND incarnation = ");
        query.push_bind(incarnation.0.as_slice());
        query.build().persistent(false).execute(&mut *connection).await?;
        sqlx::query("DELETE FROM leases WHERE units = 0").execute(connection).await?;
    }
    Ok(())
}

/// Ends the leases of every process but this one.
pub(super) async fn close(
    writer: &Writer,
    survivor: Incarnation,
    now: Time,
    policy: Uncertain,
) -> Result<Vec<ClosedLease>, StoreError> {
    let mut transaction = writer.begin().await?;
    match close_all(transaction.connection(), survivor, now, policy).await {
        Ok(closed) => transaction.commit().await.map(|()| closed),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn close_all(
    connection: &mut SqliteConnection,
    survivor: Incarnation,
    now: Time,
    policy: Uncertain,
) -> Result<Vec<ClosedLease>, StoreError> {
    let rows = sqlx::query("SELECT budget, slot, sum(units) FROM leases WHERE incarnation <> $1 GROUP BY budget, slot")
        .bind(survivor.0.as_slice())
        .fetch_all(&mut *connection)
        .await?;
    let closed: Result<Vec<ClosedLease>, StoreError> = rows
        .iter()
        .map(|row| {
            let units: i64 = row.try_get(2)?;
            Ok(ClosedLease {
                budget: BudgetId::stored(row.try_get(0)?),
                slot: Slot::new(row.try_get(1)?),
                units: u64::try_from(units).unwrap_or(0),
            })
        })
        .collect();
    let closed = closed?;
    match policy {
        Uncertain::Charge => note_uncertain(connection, &closed, now).await?,
        Uncertain::Refund => give_back(connection, &closed).await?,
    }
    sqlx::query("DELETE FROM leases WHERE incarnation <> $1").bind(survivor.0.as_slice()).execute(connection).await?;
    Ok(closed)
}

async fn note_uncertain(
    connection: &mut SqliteConnection,
    closed: &[ClosedLease],
    now: Time,
) -> Result<(), StoreError> {
    for leases in closed.chunks(ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO uncertain_hourly (budget, hour, units) ");
        query.push_values(leases, |mut row, lease| {
            row.push_bind(lease.budget.as_str())
                .push_bind(now.hour())
                .push_bind(i64::try_from(lease.units).unwrap_or(i64::MAX));
        });
        query.push(" ON CONFLICT (budget, hour) DO UPDATE SET units = units + excluded.units");
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
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
        states.iter().map(|(id, state)| Ok((id.as_str(), encode(state)?))).collect();
    let rows = rows?;
    if rows.is_empty() { Ok(()) } else { write_states(connection, &rows).await }
}

//! Leases. The arithmetic is `decision::quota`'s; here it is given the states, and what comes of it is written down.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::writer::Writer;
use crate::decision::quota::{Slot, State};
use crate::domain::{AccountId, BudgetId, KeyId, Time};
use crate::store::{
    Cell, Closed, ClosedLease, Closing, Incarnation, KnownSpends, LeaseAsk, LeaseBatch, Leased, StoreError, Uncertain,
    UncertainRow,
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
    let mut after: BTreeMap<&str, State> = BTreeMap::new();
    let mut leased = Vec::with_capacity(batch.asks.len());
    for ask in &batch.asks {
        let id = ask.budget.as_str();
        // One that is asked for twice goes on from what the first has left.
        let (one, kept) = answer(ask, after.get(id).or_else(|| before.get(id)), batch.now);
        if let Some(state) = kept {
            after.insert(id, state);
        }
        leased.push(one);
    }
    let rows: Result<Vec<_>, StoreError> = after.iter().map(|(id, state)| Ok((*id, encode(state)?))).collect();
    let rows = rows?;
    for rows in rows.chunks(ROWS_MAX) {
        write_states(connection, rows).await?;
    }
    let mut moved: BTreeMap<LeaseKey<'_>, Move<'_>> = BTreeMap::new();
    for (ask, leased) in batch.asks.iter().zip(&leased) {
        for (slot, cell, change) in moves(ask, leased) {
            moved.entry((ask.budget.as_str(), slot.number(), cell)).or_default().add(change);
        }
    }
    let moved: Vec<_> = moved.into_iter().filter(|(_, change)| change.units != 0 || change.settled != 0).collect();
    for rows in moved.chunks(ROWS_MAX) {
        move_leases(connection, batch.incarnation, rows).await?;
    }
    Ok(leased)
}

/// Which lease of a process: the budget, the slot and the number of the counter.
pub(super) type LeaseKey<'a> = (&'a str, i64, i64);

/// In the place of a counter's number where there is none.
const NO_CELL: i64 = -1;

pub(super) fn cell_number(cell: Option<u32>) -> i64 {
    cell.map_or(NO_CELL, i64::from)
}

/// How a lease changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Move<'a> {
    /// What is added to its units, or, below 0, is no longer leased.
    units: i64,
    /// What of that was spent.
    settled: i64,
    /// What its counter stands at less that, should it be new.
    base: i64,
    account: &'a str,
}

impl Move<'_> {
    /// Units that the store charges itself, so that no counter has them.
    pub(super) fn charged(units: u64) -> Self {
        Self { units: i64::try_from(units).unwrap_or(i64::MAX).saturating_neg(), ..Self::default() }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.units = self.units.saturating_add(other.units);
        self.settled = self.settled.saturating_add(other.settled);
        (self.base, self.account) = (other.base, other.account);
    }
}

/// What one ask makes of a budget, and what is to be written down of that.
fn answer(ask: &LeaseAsk, before: Option<&State>, now: Time) -> (Leased, Option<State>) {
    let LeaseAsk { rule, zone, settled, reached, wanted, ahead, .. } = ask;
    let now = now.max(*reached);
    let give_back = |state: &mut State| settled.iter().for_each(|one| state.give_back(one.slot, one.returned));
    let mut state = before.cloned().unwrap_or_else(|| State::new(rule, zone, now));
    state.advance(rule, zone, now);
    give_back(&mut state);
    let granted = state.grant(rule, *wanted);
    let ahead = state.grant_ahead(rule, *ahead);
    // That time has passed is no news: it would be found out again. That units were spent in this slot is, as they may have been
    // granted before it began: a clock that is set back must not lead back to before it.
    let begun = settled.iter().any(|one| one.spent > 0 && one.slot == state.slot());
    let kept = if granted > 0 || ahead > 0 || begun {
        Some(state.clone())
    } else if settled.iter().any(|one| one.returned > 0) {
        before.cloned().map(|mut state| {
            give_back(&mut state);
            state
        })
    } else {
        None
    };
    (Leased { granted, ahead, elsewhere: false, state }, kept)
}

/// How the leases of a budget change. What is granted comes last, so that its counter is what a new lease begins with.
fn moves<'a>(ask: &'a LeaseAsk, leased: &Leased) -> impl Iterator<Item = (Slot, i64, Move<'a>)> + use<'a> {
    let signed = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
    let account = ask.account.as_str();
    let granted = |slot: Slot, units: u64, cell: Option<Cell>| {
        let told = ask.settled.iter().filter(|one| one.slot == slot && one.cell == cell.map(|cell| cell.number));
        let told = told.map(|one| one.spent).fold(0, u64::saturating_add);
        let base = cell.map_or(0, |cell| cell.value).wrapping_sub(told).cast_signed();
        (slot, cell_number(cell.map(|cell| cell.number)), Move { units: signed(units), settled: 0, base, account })
    };
    let here = granted(leased.state.slot(), leased.granted, ask.cell);
    let ahead = granted(leased.state.next_slot(), leased.ahead, ask.ahead_cell);
    let settled = ask.settled.iter().map(move |one| {
        let units = -signed(one.spent.saturating_add(one.returned));
        (one.slot, cell_number(one.cell), Move { units, settled: signed(one.spent), base: 0, account })
    });
    settled.chain([here, ahead])
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
    let mut unspent = Vec::new();
    let mut closed = Closed::default();
    for row in &rows {
        let (lease, spent) = closed_lease(row, known)?;
        match spent {
            Some(spent) => {
                closed.known += 1;
                unspent.push(ClosedLease { units: lease.units.saturating_sub(spent), ..lease });
            }
            None => closed.uncertain.push(lease),
        }
    }
    give_back(connection, &unspent).await?;
    if policy == Uncertain::Refund {
        give_back(connection, &closed.uncertain).await?;
    }
    note_uncertain(connection, &closed.uncertain, policy, now).await?;
    sqlx::query("DELETE FROM leases WHERE incarnation <> $1").bind(survivor.0.as_slice()).execute(connection).await?;
    Ok(closed)
}

/// A lease, and what was spent of its units where that is known.
fn closed_lease(row: &SqliteRow, known: Option<&KnownSpends>) -> Result<(ClosedLease, Option<u64>), StoreError> {
    let units: i64 = row.try_get("units")?;
    let lease = ClosedLease {
        budget: BudgetId::stored(row.try_get("budget")?),
        account: row.try_get("account")?,
        slot: Slot::new(row.try_get("slot")?),
        units: u64::try_from(units).unwrap_or(0),
    };
    let incarnation: &[u8] = row.try_get("incarnation")?;
    let (base, settled): (i64, i64) = (row.try_get("base")?, row.try_get("settled")?);
    let cell = u32::try_from(row.try_get::<i64, _>("cell")?).ok();
    let known = known.filter(|known| known.incarnation.0 == incarnation);
    let spent = known.zip(cell).map(|(known, cell)| {
        let counter = known.counters.get(&cell).copied().unwrap_or(0);
        // More than there was, where the two do not belong together: then all of it is gone.
        counter.wrapping_sub(base.cast_unsigned()).wrapping_sub(settled.cast_unsigned())
    });
    Ok((lease, spent))
}

async fn note_uncertain(
    connection: &mut SqliteConnection,
    uncertain: &[ClosedLease],
    policy: Uncertain,
    now: Time,
) -> Result<(), StoreError> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for lease in uncertain {
        let sum = sums.entry((&lease.account, lease.budget.as_str())).or_default();
        *sum = sum.saturating_add(lease.units);
    }
    let sums: Vec<_> = sums.into_iter().collect();
    for sums in sums.chunks(ROWS_MAX) {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO uncertain_hourly (account, budget, hour, given_back, units) ");
        query.push_values(sums, |mut row, ((account, budget), units)| {
            row.push_bind(*account).push_bind(*budget).push_bind(now.hour()).push_bind(policy == Uncertain::Refund);
            row.push_bind(i64::try_from(*units).unwrap_or(i64::MAX));
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
        states.iter().map(|(id, state)| Ok((id.as_str(), encode(state)?))).collect();
    let rows = rows?;
    if rows.is_empty() { Ok(()) } else { write_states(connection, &rows).await }
}

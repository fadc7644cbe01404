//! Operations: rows that say what was charged, written with the charge itself.

use std::collections::{HashMap, HashSet};

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::writer::Writer;
use super::{leases, usage};
use crate::domain::{AccountId, OperationId, Time, Verdict};
use crate::store::ledger::{self, OperationName, operation_name, signed};
use crate::store::shared::rows;
use crate::store::{Operation, OperationBatch, RecordError, Recorded, Refund, StoreError, forgotten_at};

/// Rows of one statement: few enough for SQLite's 32,766 parameters at nine each.
const ROWS_MAX: usize = 1_000;
/// Rows that are older than is remembered and go in one transaction: also what a clock that jumped ahead loses at once.
const FORGOTTEN_MAX: u32 = 2_000;

const COLUMNS: &str = "key_id, environment, cost, credits, charges, time, refund_time";

pub(super) async fn operation(
    readers: &SqlitePool,
    account_id: &AccountId,
    id: &OperationId,
    now: Time,
) -> Result<Option<Operation>, StoreError> {
    let row = select((account_id.as_str(), id.digest()), now).build().fetch_optional(readers).await?;
    row.as_ref().map(parse).transpose()
}

/// The one of this name that is remembered.
fn select((account_id, id): OperationName<'_>, now: Time) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("SELECT ");
    query.push(COLUMNS).push(" FROM operations WHERE account_id = ").push_bind(account_id.to_owned());
    query.push(" AND id = ").push_bind(id.to_vec()).push(" AND time > ").push_bind(forgotten_at(now).millis());
    query
}

fn parse(row: &SqliteRow) -> Result<Operation, StoreError> {
    let (cost, credits): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
    Ok(Operation {
        key_id: rows::key_id(row.try_get(0)?)?,
        environment: rows::environment(row.try_get(1)?)?,
        cost: u64::try_from(cost).unwrap_or(0),
        credits: u64::try_from(credits).unwrap_or(0),
        charges: ledger::decode_charges(row.try_get(4)?)?,
        time: Time::from_millis(row.try_get(5)?),
        refund_time: row.try_get::<Option<i64>, _>(6)?.map(Time::from_millis),
    })
}

pub(super) async fn record(writer: &Writer, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
    let mut transaction = writer.begin().await.map_err(RecordError::NotWritten)?;
    match charge(transaction.connection(), batch).await {
        Ok(recorded) => transaction.commit().await.map(|()| recorded).map_err(RecordError::Unknown),
        Err(error) => {
            transaction.rollback().await;
            Err(RecordError::NotWritten(error))
        }
    }
}

async fn charge(connection: &mut SqliteConnection, batch: &OperationBatch) -> Result<Vec<Recorded>, StoreError> {
    let first = ledger::first_of_each(&batch.operations);
    let rows: Vec<_> = first.iter().map(|(name, operation)| (*name, *operation)).collect();
    let mut new = HashSet::new();
    for rows in rows.chunks(ROWS_MAX) {
        insert(connection, rows, batch.now, &mut new).await?;
    }
    let charged: Vec<&Operation> =
        rows.iter().filter(|(name, _)| new.contains(&owned(*name))).map(|(_, operation)| *operation).collect();
    for taken in ledger::taken(&charged).chunks(ROWS_MAX) {
        leases::move_leases(connection, batch.incarnation, taken).await?;
    }
    for deltas in ledger::used(&charged).chunks(ROWS_MAX) {
        usage::add_deltas(connection, deltas).await?;
    }
    let mut recorded = Vec::with_capacity(batch.operations.len());
    for named in &batch.operations {
        // The first of several of one name is the one that is new.
        recorded.push(if new.remove(&owned(operation_name(named))) {
            Recorded::New
        } else {
            let row = select(operation_name(named), batch.now).build().fetch_one(&mut *connection).await?;
            Recorded::Known(parse(&row)?)
        });
    }
    forget(connection, batch.now).await?;
    Ok(recorded)
}

fn owned((account_id, id): OperationName<'_>) -> (String, Vec<u8>) {
    (account_id.to_owned(), id.to_vec())
}

/// Puts in those of which there is none that is remembered, and notes which these are.
async fn insert(
    connection: &mut SqliteConnection,
    operations: &[(OperationName<'_>, &Operation)],
    now: Time,
    new: &mut HashSet<(String, Vec<u8>)>,
) -> Result<(), StoreError> {
    let charges: Result<Vec<_>, _> =
        operations.iter().map(|(_, operation)| ledger::encode_charges(&operation.charges)).collect();
    let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO operations (account_id, id, ");
    query.push(COLUMNS).push(") ");
    query.push_values(operations.iter().zip(charges?), |mut row, (((account_id, id), operation), charges)| {
        let Operation { key_id, environment, cost, credits, time, refund_time, charges: _ } = operation;
        row.push_bind(*account_id).push_bind(*id).push_bind(key_id.as_bytes().as_slice());
        row.push_bind(environment.to_string()).push_bind(signed(*cost)).push_bind(signed(*credits)).push_bind(charges);
        row.push_bind(time.millis()).push_bind(refund_time.map(Time::millis));
    });
    query.push(
        " ON CONFLICT (account_id, id) DO UPDATE SET key_id = excluded.key_id, environment = excluded.environment,
           cost = excluded.cost, credits = excluded.credits, charges = excluded.charges, time = excluded.time,
           refund_time = excluded.refund_time
         WHERE operations.time <= ",
    );
    query.push_bind(forgotten_at(now).millis()).push(" RETURNING account_id, id");
    for row in query.build().persistent(false).fetch_all(connection).await? {
        new.insert((row.try_get(0)?, row.try_get(1)?));
    }
    Ok(())
}

async fn forget(connection: &mut SqliteConnection, now: Time) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM operations WHERE rowid IN
           (SELECT rowid FROM operations WHERE time <= $1 ORDER BY time LIMIT $2)",
    )
    .bind(forgotten_at(now).millis())
    .bind(FORGOTTEN_MAX)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn refund(
    writer: &Writer,
    account_id: &AccountId,
    id: &OperationId,
    now: Time,
) -> Result<Refund, StoreError> {
    let mut transaction = writer.begin().await?;
    match give_back(transaction.connection(), (account_id.as_str(), id.digest()), now).await {
        Ok(refund) => transaction.commit().await.map(|()| refund),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn give_back(
    connection: &mut SqliteConnection,
    name: OperationName<'_>,
    now: Time,
) -> Result<Refund, StoreError> {
    let Some(row) = select(name, now).build().fetch_optional(&mut *connection).await? else {
        return Ok(Refund::Unknown);
    };
    let mut operation = parse(&row)?;
    if operation.refund_time.is_some() {
        return Ok(Refund::DoneBefore(operation));
    }
    operation.refund_time = Some(now);
    let (account_id, id) = name;
    sqlx::query("UPDATE operations SET refund_time = $1 WHERE account_id = $2 AND id = $3")
        .bind(now.millis())
        .bind(account_id)
        .bind(id)
        .execute(&mut *connection)
        .await?;
    let ids: Vec<&str> = operation.charges.iter().map(|charge| charge.budget.as_str()).collect();
    let mut states: HashMap<_, _> = leases::states(connection, &ids).await?;
    for charge in &operation.charges {
        if let Some(state) = states.get_mut(charge.budget.as_str()) {
            state.give_back(charge.slot, charge.units);
        }
    }
    leases::write_all(connection, &states).await?;
    sqlx::query(
        "UPDATE usage_hourly SET credits = max(credits - $1, 0) WHERE key_id = $2 AND hour = $3 AND verdict = $4",
    )
    .bind(signed(operation.credits))
    .bind(operation.key_id.as_bytes().as_slice())
    .bind(operation.time.hour())
    .bind(Verdict::Allowed.number())
    .execute(connection)
    .await?;
    Ok(Refund::Done(operation))
}

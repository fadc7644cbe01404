//! Operations: rows that say what was charged, written with the charge itself. [`leases`](super::leases) says in which order rows
//! are locked.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::database::{CommitFailure, Database, Transaction};
use super::leases::{MOVE, bind_moves, fetch_all, lock_states, write_states};
use super::standing::{Beats, is_moved, moved, refusal, standing};
use crate::decision::quota::State;
use crate::domain::{AccountId, OperationId, Time, Verdict};
use crate::store::ledger::{self, OperationName, operation_name, signed};
use crate::store::shared::rows;
use crate::store::{Operation, OperationBatch, RecordError, Recorded, Refund, StoreError, forgotten_at};

/// Rows that are older than is remembered and go in one transaction: also what a clock that jumped ahead loses at once.
const FORGOTTEN_MAX: i64 = 2_000;

/// What [`parse`] reads, of `operations AS o`.
const COLUMNS: &str = "o.key_id, o.environment, o.cost, o.credits, o.charges, o.time, o.refund_time";

pub(super) async fn operation(
    database: &Database,
    account_id: &AccountId,
    id: &OperationId,
    now: Time,
) -> Result<Option<Operation>, StoreError> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        format!("SELECT {COLUMNS} FROM operations AS o WHERE o.account_id = $1 AND o.id = $2 AND o.time > $3")
    });
    let query = sqlx::query(SQL.as_str()).bind(account_id.as_str()).bind(id.digest().as_slice());
    let row = database.optional(query.bind(forgotten_at(now).millis())).await?;
    row.as_ref().map(parse).transpose()
}

fn parse(row: &PgRow) -> Result<Operation, StoreError> {
    let (cost, credits): (i64, i64) = (row.try_get("cost")?, row.try_get("credits")?);
    Ok(Operation {
        key_id: rows::key_id(row.try_get("key_id")?)?,
        environment: rows::environment(row.try_get("environment")?)?,
        cost: u64::try_from(cost).unwrap_or(0),
        credits: u64::try_from(credits).unwrap_or(0),
        charges: ledger::decode_charges(row.try_get("charges")?)?,
        time: Time::from_millis(row.try_get("time")?),
        refund_time: row.try_get::<Option<i64>, _>("refund_time")?.map(Time::from_millis),
    })
}

/// Puts in those of which there is none that is remembered at `$3`, for the process `$1` whose last poll was `$2`; returns which.
/// Of two processes that record one name, the second waits for the first.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH me AS MATERIALIZED (SELECT beat FROM replicas WHERE incarnation = $1 FOR KEY SHARE),
         added AS (
           INSERT INTO operations AS o (account_id, id, key_id, environment, cost, credits, charges, time, refund_time)
           SELECT * FROM unnest($4::text[], $5::bytea[], $6::bytea[], $7::text[], $8::bigint[], $9::bigint[], $10::text[],
             $11::bigint[], $12::bigint[]) AS new (account_id, id)
           WHERE (SELECT beat FROM me) >= $2
           ORDER BY new.account_id COLLATE \"C\", new.id
           ON CONFLICT (account_id, id) DO UPDATE SET key_id = excluded.key_id, environment = excluded.environment,
             cost = excluded.cost, credits = excluded.credits, charges = excluded.charges, time = excluded.time,
             refund_time = excluded.refund_time
           WHERE o.time <= $3
           RETURNING o.account_id, o.id)
         SELECT standing.beat, standing.is_moved, added.account_id, added.id FROM {} AS standing LEFT JOIN added ON true",
        standing()
    )
});

/// Charges what is new, after [`MOVE`]'s: counts it (`$7` keys, `$8` hours, `$9` requests, `$10` credits, `$11` verdict), forgets some
/// rows of up to `$12`, at most `$13`, and returns those of the names `$14` and `$15`, which were there before.
static CHARGE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH {MOVE},
         used AS (
           INSERT INTO usage_hourly AS u (key_id, hour, verdict, requests, credits)
           SELECT new.key_id, new.hour, $11, new.requests, new.credits
           FROM unnest($7::bytea[], $8::bigint[], $9::bigint[], $10::bigint[]) AS new (key_id, hour, requests, credits)
           WHERE EXISTS (SELECT FROM keys AS k WHERE k.id = new.key_id)
           ORDER BY new.key_id, new.hour
           ON CONFLICT (key_id, hour, verdict) DO UPDATE SET
             requests = least(u.requests::numeric + excluded.requests, 9223372036854775807)::bigint,
             credits = least(u.credits::numeric + excluded.credits, 9223372036854775807)::bigint),
         forgotten AS (
           DELETE FROM operations WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM operations WHERE time <= $12 ORDER BY time LIMIT $13 FOR UPDATE SKIP LOCKED)))
         SELECT o.account_id, o.id, {COLUMNS}
         FROM unnest($14::text[], $15::bytea[]) AS known (account_id, id)
         JOIN operations AS o ON o.account_id = known.account_id AND o.id = known.id AND o.time > $12"
    )
});

pub(super) async fn record(
    database: &Database,
    beats: &Beats,
    batch: &OperationBatch,
) -> Result<Vec<Recorded>, RecordError> {
    let mut transaction = database.begin().await.map_err(RecordError::NotWritten)?;
    match charge(&mut transaction, beats.confirmed(batch.incarnation), batch).await {
        Ok(recorded) => match transaction.commit().await {
            Ok(()) => Ok(recorded),
            Err(CommitFailure::NotWritten(error)) => Err(RecordError::NotWritten(error)),
            Err(CommitFailure::Unknown(error)) => Err(RecordError::Unknown(error)),
        },
        Err(error) => {
            transaction.rollback().await;
            Err(RecordError::NotWritten(error))
        }
    }
}

/// An account's id and an operation's.
type Name = (String, Vec<u8>);

fn owned((account_id, id): OperationName<'_>) -> Name {
    (account_id.to_owned(), id.to_vec())
}

async fn charge(
    transaction: &mut Transaction,
    confirmed: i64,
    batch: &OperationBatch,
) -> Result<Vec<Recorded>, StoreError> {
    let first = ledger::first_of_each(&batch.operations);
    let rows: Vec<_> = first.into_iter().collect();
    let mut new = insert(transaction, confirmed, batch, &rows).await?;
    let (charged, known): (Vec<_>, Vec<_>) = rows.iter().partition(|(name, _)| new.contains(&owned(*name)));
    let charged: Vec<&Operation> = charged.into_iter().map(|(_, operation)| operation).collect();
    // Those that are new can be in the batch again.
    let repeated = batch.operations.len() > rows.len();
    let known: Vec<OperationName<'_>> = if repeated { &rows } else { &known }.iter().map(|(name, _)| *name).collect();
    let known = write_down(transaction, batch, &charged, &known).await?;
    batch
        .operations
        .iter()
        .map(|named| {
            // The first of several of one name is the one that is new.
            let name = owned(operation_name(named));
            if new.remove(&name) {
                return Ok(Recorded::New);
            }
            let gone = || StoreError::Unavailable("an operation was forgotten while it was asked for again".to_owned());
            known.get(&name).cloned().map(Recorded::Known).ok_or_else(gone)
        })
        .collect()
}

async fn insert(
    transaction: &mut Transaction,
    confirmed: i64,
    batch: &OperationBatch,
    rows: &[(OperationName<'_>, &Operation)],
) -> Result<HashSet<Name>, StoreError> {
    let all = || rows.iter().map(|(_, operation)| *operation);
    let charges: Vec<String> =
        all().map(|operation| ledger::encode_charges(&operation.charges)).collect::<Result<_, _>>()?;
    let query = sqlx::query(INSERT.as_str())
        .bind(batch.incarnation.0.as_slice())
        .bind(confirmed)
        .bind(forgotten_at(batch.now).millis())
        .bind(rows.iter().map(|((account_id, _), _)| *account_id).collect::<Vec<_>>())
        .bind(rows.iter().map(|((_, id), _)| *id).collect::<Vec<_>>())
        .bind(all().map(|operation| operation.key_id.as_bytes().as_slice()).collect::<Vec<_>>())
        .bind(all().map(|operation| operation.environment.to_string()).collect::<Vec<_>>())
        .bind(all().map(|operation| signed(operation.cost)).collect::<Vec<_>>())
        .bind(all().map(|operation| signed(operation.credits)).collect::<Vec<_>>())
        .bind(charges)
        .bind(all().map(|operation| operation.time.millis()).collect::<Vec<_>>())
        .bind(all().map(|operation| operation.refund_time.map(Time::millis)).collect::<Vec<_>>());
    let added = fetch_all(transaction, query).await?;
    refusal(added.first().ok_or(sqlx::Error::RowNotFound)?, confirmed)?;
    let mut new = HashSet::new();
    for row in &added {
        if let (Some(account_id), Some(id)) = (row.try_get("account_id")?, row.try_get("id")?) {
            new.insert((account_id, id));
        }
    }
    Ok(new)
}

async fn write_down(
    transaction: &mut Transaction,
    batch: &OperationBatch,
    charged: &[&Operation],
    known: &[OperationName<'_>],
) -> Result<HashMap<Name, Operation>, StoreError> {
    let used = ledger::used(charged);
    let query = sqlx::query(CHARGE.as_str()).bind(batch.incarnation.0.as_slice());
    let query = bind_moves(query, &ledger::taken(charged))
        .bind(used.iter().map(|delta| delta.key_id.as_bytes().as_slice()).collect::<Vec<_>>())
        .bind(used.iter().map(|delta| delta.hour).collect::<Vec<_>>())
        .bind(used.iter().map(|delta| signed(delta.requests)).collect::<Vec<_>>())
        .bind(used.iter().map(|delta| signed(delta.credits)).collect::<Vec<_>>())
        .bind(i16::from(Verdict::Allowed.number()))
        .bind(forgotten_at(batch.now).millis())
        .bind(FORGOTTEN_MAX)
        .bind(known.iter().map(|(account_id, _)| *account_id).collect::<Vec<_>>())
        .bind(known.iter().map(|(_, id)| *id).collect::<Vec<_>>());
    let rows = fetch_all(transaction, query).await?;
    rows.iter().map(|row| Ok(((row.try_get("account_id")?, row.try_get("id")?), parse(row)?))).collect()
}

pub(super) async fn refund(
    database: &Database,
    account_id: &AccountId,
    id: &OperationId,
    now: Time,
) -> Result<Refund, StoreError> {
    let mut transaction = database.begin().await?;
    match give_back(&mut transaction, (account_id.as_str(), id.digest()), now).await {
        Ok(refund) => Ok(transaction.commit().await.map(|()| refund)?),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn give_back(
    transaction: &mut Transaction,
    (account_id, id): OperationName<'_>,
    now: Time,
) -> Result<Refund, StoreError> {
    static SELECT: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT {COLUMNS}, (SELECT {} FROM sequence AS s WHERE s.id = 1) AS is_moved
             FROM operations AS o WHERE o.account_id = $1 AND o.id = $2 AND o.time > $3 FOR UPDATE OF o",
            is_moved()
        )
    });
    let select = sqlx::query(SELECT.as_str()).bind(account_id).bind(id).bind(forgotten_at(now).millis());
    let Some(row) = fetch_all(transaction, select).await?.pop() else {
        return Ok(Refund::Unknown);
    };
    let mut operation = parse(&row)?;
    if operation.refund_time.is_some() {
        return Ok(Refund::DoneBefore(operation));
    }
    if row.try_get("is_moved")? {
        return Err(moved());
    }
    operation.refund_time = Some(now);
    let ids: BTreeSet<&str> = operation.charges.iter().map(|charge| charge.budget.as_str()).collect();
    let mut states: HashMap<String, State> = lock_states(transaction, &ids).await?;
    for charge in &operation.charges {
        if let Some(state) = states.get_mut(charge.budget.as_str()) {
            state.give_back(charge.slot, charge.units);
        }
    }
    write_states(transaction, &states).await?;
    let write = sqlx::query(
        "WITH refunded AS (UPDATE operations SET refund_time = $1 WHERE account_id = $2 AND id = $3)
         UPDATE usage_hourly SET credits = greatest(credits - $4, 0) WHERE key_id = $5 AND hour = $6 AND verdict = $7",
    )
    .bind(now.millis())
    .bind(account_id)
    .bind(id)
    .bind(signed(operation.credits))
    .bind(operation.key_id.as_bytes().as_slice())
    .bind(operation.time.hour())
    .bind(i16::from(Verdict::Allowed.number()));
    fetch_all(transaction, write).await?;
    Ok(Refund::Done(operation))
}

//! After the database went back to an earlier state: processes restate what they know, until all have.
//!
//! The move is marked before anything is merged, and grants look for the mark once they have locked their budgets. So what was
//! granted before is in the states that are merged, and nothing is granted while they are.
//!
//! Locks: the row of `sequence`, then all of `replicas` in the order of their names, then the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::database::{Database, Transaction};
use super::leases::{ADD_UNCERTAIN, SILENT_MILLIS, fetch_all, lock_states, write_states};
use super::replication::{BEAT_RESTATED, millis};
use super::schema::LINEAGE;
use crate::ambient::random;
use crate::decision::quota::State;
use crate::domain::{KeyId, Revision, Time};
use crate::store::shared::rows;
use crate::store::{Conclusion, Incarnation, MoveId, RESTATING_PATIENCE, Restatement, Revived, StoreError};

pub(super) async fn restate(database: &Database, restatement: &Restatement) -> Result<Revived, StoreError> {
    let mut transaction = database.begin().await?;
    let of = mark(&mut transaction, restatement).await?;
    transaction.commit().await?;
    merge(database, restatement).await?;
    let ids: Vec<&[u8]> = restatement.revoked.iter().map(|id| id.as_bytes().as_slice()).collect();
    let hashes: Vec<&[u8]> = restatement.replaced.iter().map(|hash| hash.as_bytes().as_slice()).collect();
    Ok(Revived {
        of,
        revoked: key_ids(database, "SELECT id FROM keys WHERE id = ANY ($1) AND status <> 'revoked'", ids).await?,
        replaced: key_ids(database, "SELECT id FROM keys WHERE secret_hash = ANY ($1) AND status = 'active'", hashes)
            .await?,
    })
}

async fn key_ids(database: &Database, sql: &'static str, of: Vec<&[u8]>) -> Result<Vec<KeyId>, StoreError> {
    if of.is_empty() {
        return Ok(Vec::new());
    }
    let found = database.all(sqlx::query(sql).bind(of)).await?;
    found.iter().map(|row| rows::key_id(row.try_get(0)?)).collect()
}

/// Marks the move, and who is waited for.
async fn mark(transaction: &mut Transaction, restatement: &Restatement) -> Result<MoveId, StoreError> {
    let Restatement { replica, revision, peers, .. } = restatement;
    let mark = sqlx::query(
        "UPDATE sequence SET moving = coalesce(moving, gen_random_uuid()),
           moving_since = coalesce(moving_since, clock_timestamp()), moving_floor = greatest(moving_floor, revision, $1)
         WHERE id = 1 RETURNING moving::text",
    );
    let marked = fetch_all(transaction, mark.bind(revision.number())).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
    fetch_all(transaction, sqlx::query("SELECT FROM replicas ORDER BY incarnation FOR UPDATE")).await?;
    // Another server's clock may have been ahead, and none that is registered was seen later than now.
    fetch_all(transaction, sqlx::query("UPDATE replicas SET seen = clock_timestamp() WHERE seen > clock_timestamp()"))
        .await?;
    // Its own next poll gives the number that the later ones are held against.
    let insert = sqlx::query(
        "INSERT INTO replicas (incarnation, name, fence_millis, beat, acknowledged, seen, flushed)
         VALUES ($1, $2, $3, $4, 0, clock_timestamp(), 0)
         ON CONFLICT (incarnation) DO UPDATE SET name = excluded.name, fence_millis = excluded.fence_millis,
           beat = excluded.beat, acknowledged = 0, seen = excluded.seen",
    );
    let insert = insert.bind(replica.incarnation.0.as_slice()).bind(&replica.name).bind(millis(replica.fence).max(1));
    let insert = insert.bind(BEAT_RESTATED);
    fetch_all(transaction, insert).await?;
    let insert = sqlx::query(
        "INSERT INTO replicas (incarnation, name, fence_millis, beat, acknowledged, seen, flushed)
         SELECT incarnation, name, fence_millis, 0, 0, clock_timestamp(), 0
         FROM unnest($1::bytea[], $2::text[], $3::bigint[]) AS new (incarnation, name, fence_millis) ORDER BY incarnation
         ON CONFLICT DO NOTHING",
    )
    .bind(peers.iter().map(|peer| peer.incarnation.0.as_slice()).collect::<Vec<_>>())
    .bind(peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>())
    .bind(peers.iter().map(|peer| millis(peer.fence).max(1)).collect::<Vec<_>>());
    fetch_all(transaction, insert).await?;
    Ok(MoveId(marked.try_get(0)?))
}

/// Each budget at the most that anybody was told.
async fn merge(database: &Database, restatement: &Restatement) -> Result<(), StoreError> {
    let mut told: BTreeMap<&str, State> = BTreeMap::new();
    for (budget, state) in &restatement.budgets {
        told.entry(budget.as_str()).and_modify(|most| most.most(state)).or_insert_with(|| state.clone());
    }
    if told.is_empty() {
        return Ok(());
    }
    let ids: BTreeSet<&str> = told.keys().copied().collect();
    // Not in the transaction that locks them, where they would be waited for out of order.
    let make_room = sqlx::query(
        "INSERT INTO budgets (id) SELECT id FROM unnest($1::text[]) AS new (id) ORDER BY id COLLATE \"C\" ON CONFLICT DO NOTHING",
    );
    database.all(make_room.bind(ids.iter().copied().collect::<Vec<_>>())).await?;
    let mut transaction = database.begin().await?;
    let mut states = lock_states(&mut transaction, &ids).await?;
    for (id, state) in told {
        match states.get_mut(id) {
            Some(stored) => stored.most(&state),
            None => _ = states.insert(id.to_owned(), state),
        }
    }
    write_states(&mut transaction, &states).await?;
    Ok(transaction.commit().await?)
}

/// What is locked before a move ends.
struct Locked {
    /// The move that is under way.
    moving: Option<MoveId>,
    /// The last one that has ended.
    moved: Option<MoveId>,
    /// Whether the database is another than that which was written last.
    is_foreign: bool,
    replicas: Vec<PgRow>,
}

/// `waited`: for how long this process has, by its own clock.
async fn lock(transaction: &mut Transaction, waited: Duration) -> Result<Locked, StoreError> {
    static SEQUENCE: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT s.moving::text, s.moved::text, s.lineage <> {LINEAGE} FROM sequence AS s WHERE s.id = 1 FOR UPDATE OF s"
        )
    });
    static REPLICAS: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT r.incarnation, r.name, coalesce(r.restated = s.moving, false) AS is_restated,
               silence.millis > {SILENT_MILLIS} AS is_silent,
               least(silence.millis, $1::bigint) > greatest({SILENT_MILLIS}, {}) AS is_given_up
             FROM sequence AS s, replicas AS r, LATERAL (
               SELECT extract(epoch FROM clock_timestamp() - greatest(r.seen, s.moving_since)) * 1000 AS millis) AS silence
             WHERE s.id = 1 ORDER BY r.incarnation FOR UPDATE OF r",
            RESTATING_PATIENCE.as_millis(),
        )
    });
    let waited = i64::try_from(waited.as_millis()).unwrap_or(i64::MAX);
    let sequence = fetch_all(transaction, sqlx::query(SEQUENCE.as_str())).await?;
    let sequence = sequence.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(Locked {
        moving: sequence.try_get::<Option<String>, _>(0)?.map(MoveId),
        moved: sequence.try_get::<Option<String>, _>(1)?.map(MoveId),
        is_foreign: sequence.try_get(2)?,
        replicas: fetch_all(transaction, sqlx::query(REPLICAS.as_str()).bind(waited)).await?,
    })
}

pub(super) async fn conclude(
    database: &Database,
    incarnation: Incarnation,
    of: &MoveId,
    waited: Duration,
    now: Time,
) -> Result<Conclusion, StoreError> {
    let mut transaction = database.begin().await?;
    match conclude_in(&mut transaction, incarnation, of, waited, now).await {
        Ok(conclusion) => Ok(transaction.commit().await.map(|()| conclusion)?),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn conclude_in(
    transaction: &mut Transaction,
    incarnation: Incarnation,
    of: &MoveId,
    waited: Duration,
    now: Time,
) -> Result<Conclusion, StoreError> {
    let Locked { moving, moved, is_foreign, replicas } = lock(transaction, waited).await?;
    if moving.as_ref() != Some(of) {
        let has_ended = moving.is_none() && moved.as_ref() == Some(of) && !is_foreign;
        return Ok(if has_ended { Conclusion::Ended } else { Conclusion::Another });
    }
    let note = sqlx::query(
        "UPDATE replicas SET restated = (SELECT moving FROM sequence WHERE id = 1), seen = clock_timestamp()
         WHERE incarnation = $1",
    );
    fetch_all(transaction, note.bind(incarnation.0.as_slice())).await?;
    let mut is_there = false;
    for row in &replicas {
        if row.try_get::<&[u8], _>("incarnation")? == incarnation.0 {
            is_there = true;
        } else if !row.try_get("is_restated")? && !row.try_get("is_given_up")? {
            return Ok(Conclusion::Waiting);
        }
    }
    if !is_there {
        return Ok(Conclusion::Another);
    }
    end(transaction, now).await?;
    Ok(Conclusion::Ended)
}

pub(super) async fn adopt(database: &Database, now: Time) -> Result<Revision, StoreError> {
    let mut transaction = database.begin().await?;
    match adopt_in(&mut transaction, now).await {
        Ok(revision) => Ok(transaction.commit().await.map(|()| revision)?),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn adopt_in(transaction: &mut Transaction, now: Time) -> Result<Revision, StoreError> {
    for row in &lock(transaction, Duration::ZERO).await?.replicas {
        let name: &str = row.try_get("name")?;
        if row.try_get("is_restated")? {
            return Err(StoreError::Unavailable(format!(
                "`{name}` remembers what was granted, and has said so: processes that are there go on by themselves"
            )));
        }
        if !row.try_get("is_silent")? {
            return Err(StoreError::Unavailable(format!(
                "`{name}` was there a moment ago: stop it, or wait until it has been silent for longer than its fence"
            )));
        }
    }
    end(transaction, now).await
}

/// The database is from now on what it is: all that was leased counts as spent, and who has not restated is out.
async fn end(transaction: &mut Transaction, now: Time) -> Result<Revision, StoreError> {
    static END: LazyLock<String> = LazyLock::new(|| {
        format!(
            "WITH ended AS (
               UPDATE sequence SET lineage = {LINEAGE}, moved = moving, moving = NULL, moving_since = NULL, moving_floor = 0,
                 revision = greatest(revision, moving_floor) + 1
               WHERE id = 1 RETURNING revision),
             told AS MATERIALIZED (SELECT pg_notify('tollgate', ''))
             INSERT INTO commits (revision, stamp) SELECT ended.revision, $1 FROM ended, told RETURNING revision"
        )
    });
    static UNCERTAIN: LazyLock<String> = LazyLock::new(|| {
        format!(
            "WITH ended AS (DELETE FROM leases RETURNING account, budget, units),
             forgotten AS (DELETE FROM recalls)
             INSERT INTO uncertain_hourly AS u (account, budget, hour, given_back, units)
             SELECT account, budget, $1, false, least(sum(units), 9223372036854775807)::bigint FROM ended
             WHERE units > 0 GROUP BY account, budget ORDER BY account, budget {ADD_UNCERTAIN}"
        )
    });
    fetch_all(transaction, sqlx::query(UNCERTAIN.as_str()).bind(now.hour())).await?;
    let out = sqlx::query(
        "DELETE FROM replicas WHERE restated IS NULL OR restated IS DISTINCT FROM (SELECT moving FROM sequence WHERE id = 1)",
    );
    fetch_all(transaction, out).await?;
    let mut stamp = [0; 8];
    random::fill(&mut stamp).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let row = fetch_all(transaction, sqlx::query(END.as_str()).bind(i64::from_be_bytes(stamp))).await?.pop();
    Ok(Revision::new(row.ok_or(sqlx::Error::RowNotFound)?.try_get(0)?))
}

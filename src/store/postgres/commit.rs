//! One transaction that changes records.
//!
//! It begins with the row of `sequence`, which it holds to its end, so there is one at a time and none meets what another is
//! about to write. Statements are few, and of a fixed text: many rows go as arrays.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult};
use sqlx::query::Query;
use sqlx::{Postgres, QueryBuilder, Row as _};

use super::database::{Database, Transaction, within};
use super::insert_keys::insert_keys;
use crate::ambient::random;
use crate::domain::{Key, Revision, Time};
use crate::store::shared::new_keys::NewKey;
use crate::store::shared::rows;
use crate::store::shared::writes::{account_query, changed, free, one_row, plan_query, taken_query};
use crate::store::{Commit, CommitError, Guard, StoreError, StoredSecret, Write};

/// Statements that a commit may wait for, each as long as one may take, before it is given up.
const STATEMENTS_MAX: u32 = 4;

pub(super) async fn commit(database: &Database, commit: &Commit, log_kept: Duration) -> Result<Revision, CommitError> {
    let mut transaction = database.begin().await?;
    let patience = transaction.patience().times(STATEMENTS_MAX);
    match within(&patience, apply(&mut transaction, commit, log_kept)).await {
        Ok(revision) if commit.rehearsal => {
            transaction.rollback().await;
            Ok(revision)
        }
        Ok(revision) => {
            transaction.commit().await.map_err(StoreError::from)?;
            Ok(revision)
        }
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn apply(transaction: &mut Transaction, commit: &Commit, log_kept: Duration) -> Result<Revision, CommitError> {
    let connection = transaction.connection();
    let revision: i64 =
        sqlx::query_scalar("UPDATE sequence SET revision = revision + 1 WHERE id = 1 RETURNING revision")
            .fetch_one(&mut *connection)
            .await
            .map_err(StoreError::from)?;
    let revision = Revision::new(revision);
    check_before(connection, &commit.guards).await?;

    let mut writes = commit.writes.as_slice();
    while let Some((write, rest)) = writes.split_first() {
        let place = commit.writes.len() - writes.len();
        writes = rest;
        match write {
            Write::InsertKey(..) => {
                let new_keys = NewKey::run(&commit.writes, place);
                writes = rest.get(new_keys.len() - 1..).unwrap_or(&[]);
                insert_keys(connection, revision, &new_keys).await?;
            }
            Write::UpdateKey { key, expected, new_secret } => {
                if let Some(new_secret) = new_secret {
                    retire_secret(connection, (revision, commit.time), key, *expected).await?;
                    free(taken_query(new_secret).fetch_one(&mut *connection).await, place)?;
                } else if let Some(previous) = &key.previous {
                    extend_retired(connection, key, previous.expire_time).await?;
                }
                update_key(connection, revision, key, *expected, new_secret.as_ref()).await?;
            }
            Write::InsertAccount(account) => write_one(connection, account_query(revision, account, None)?).await?,
            Write::UpdateAccount(account, expected) => {
                write_one(connection, account_query(revision, account, Some(*expected))?).await?;
            }
            Write::InsertPlan(plan) => write_one(connection, plan_query(revision, plan, None)?).await?,
            Write::UpdatePlan(plan, expected) => {
                write_one(connection, plan_query(revision, plan, Some(*expected))?).await?;
            }
            Write::DeletePlan(id, expected) => {
                let deleted = sqlx::query("DELETE FROM plans WHERE id = $1 AND revision = $2")
                    .bind(id.as_str())
                    .bind(expected.number())
                    .execute(&mut *connection)
                    .await;
                one_row(rows_of(deleted), || CommitError::PlanInUse, || CommitError::PlanInUse)?;
            }
        }
    }
    for guard in &commit.guards {
        check_after(connection, guard).await?;
    }
    log(connection, revision, commit, log_kept).await?;
    Ok(revision)
}

fn rows_of(result: Result<PgQueryResult, sqlx::Error>) -> Result<u64, sqlx::Error> {
    result.map(|done| done.rows_affected())
}

/// What must hold before anything is written. All in one statement, whose text depends on the kinds of the guards alone.
async fn check_before(connection: &mut PgConnection, guards: &[Guard]) -> Result<(), CommitError> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT ");
    let mut broken = Vec::with_capacity(guards.len());
    for guard in guards {
        let table = match guard {
            Guard::AccountAt(id, revision) => Some(("accounts", id.as_str(), revision)),
            Guard::PlanAt(id, revision) => Some(("plans", id.as_str(), revision)),
            Guard::NoKeys => None,
            Guard::KeysAtMost(..) => continue,
        };
        query.push(if broken.is_empty() { "" } else { ", " });
        if let Some((table, id, revision)) = table {
            query.push("EXISTS (SELECT 1 FROM ").push(table).push(" WHERE id = ").push_bind(id);
            query.push(" AND revision = ").push_bind(revision.number()).push(")");
            broken.push(CommitError::Stale);
        } else {
            query.push("NOT EXISTS (SELECT 1 FROM keys)");
            broken.push(CommitError::NotEmpty);
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    let row = query.build().fetch_one(connection).await.map_err(StoreError::from)?;
    for (place, error) in broken.into_iter().enumerate() {
        if !row.try_get::<bool, _>(place).map_err(StoreError::from)? {
            return Err(error);
        }
    }
    Ok(())
}

/// What must hold once all is written.
async fn check_after(connection: &mut PgConnection, guard: &Guard) -> Result<(), CommitError> {
    let Guard::KeysAtMost(account_id, keys_max) = guard else { return Ok(()) };
    // One row more than allowed is enough to know.
    let keys: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT 1 FROM keys WHERE account_id = $1 AND status <> 'revoked' LIMIT $2 + 1) AS k",
    )
    .bind(account_id.as_str())
    .bind(i64::from(*keys_max))
    .fetch_one(connection)
    .await
    .map_err(StoreError::from)?;
    if keys > i64::from(*keys_max) { Err(CommitError::TooManyKeys) } else { Ok(()) }
}

/// Keeps the secret that a rotation replaces, for its grace period, and ends that of all before it.
async fn retire_secret(
    connection: &mut PgConnection,
    (revision, time): (Revision, Time),
    key: &Key,
    expected: Revision,
) -> Result<(), CommitError> {
    let expire_time = key.previous.as_ref().map_or(time, |previous| previous.expire_time);
    let retired = sqlx::query(
        "WITH cut AS (UPDATE retired_secrets SET expire_time = $2 WHERE key_id = $1 AND expire_time > $2)
         INSERT INTO retired_secrets (hash, key_id, pepper_id, expire_time, revision)
         SELECT secret_hash, id, pepper_id, $3, $4 FROM keys WHERE id = $1 AND revision = $5",
    )
    .bind(key.id.as_bytes().as_slice())
    .bind(time.millis())
    .bind(expire_time.millis())
    .bind(revision.number())
    .bind(expected.number())
    .execute(connection)
    .await;
    one_row(rows_of(retired), || CommitError::Stale, || CommitError::Stale)
}

/// Sets until when the secret before the last rotation verifies.
async fn extend_retired(connection: &mut PgConnection, key: &Key, expire_time: Time) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE retired_secrets SET expire_time = $2 WHERE expire_time <> $2 AND hash =
         (SELECT hash FROM retired_secrets WHERE key_id = $1 ORDER BY revision DESC LIMIT 1)",
    )
    .bind(key.id.as_bytes().as_slice())
    .bind(expire_time.millis())
    .execute(connection)
    .await?;
    Ok(())
}

async fn update_key(
    connection: &mut PgConnection,
    revision: Revision,
    key: &Key,
    expected: Revision,
    new_secret: Option<&StoredSecret>,
) -> Result<(), CommitError> {
    let updated = sqlx::query(
        "UPDATE keys SET account_id = $3, name = $4, environment = $5, prefix = $6, status = $7, create_time = $8,
           expire_time = $9, auto_renew_millis = $10, revision = $11, policy = $12, metadata = $13, body = $14,
           secret_hash = coalesce($15, secret_hash), pepper_id = CASE WHEN $15 IS NULL THEN pepper_id ELSE $16 END
         WHERE id = $1 AND revision = $2",
    )
    .bind(key.id.as_bytes().as_slice())
    .bind(expected.number())
    .bind(key.account_id.as_str())
    .bind(&key.name)
    .bind(key.environment.as_str())
    .bind(&key.prefix)
    .bind(rows::status_word(&key.status))
    .bind(key.create_time.millis())
    .bind(key.expire_time.map(Time::millis))
    .bind(key.auto_renew_millis)
    .bind(revision.number())
    .bind(rows::to_json(&key.policy)?)
    .bind(rows::to_json(&key.metadata)?)
    .bind(rows::key_body(key)?)
    .bind(new_secret.map(|secret| secret.hash.as_bytes().as_slice()))
    .bind(new_secret.and_then(|secret| secret.pepper_id.as_deref()))
    .execute(connection)
    .await;
    // The id stays and the hash is known to be free, so that only the name can be taken.
    one_row(rows_of(updated), || CommitError::NameTaken(key.name.clone()), || CommitError::NoParent)
}

/// Writes a plan or an account.
async fn write_one(connection: &mut PgConnection, query: Query<'_, Postgres, PgArguments>) -> Result<(), CommitError> {
    let rows = rows_of(query.execute(connection).await);
    one_row(rows, || CommitError::IdTaken, || CommitError::NoParent)
}

/// The log of changes with the revision's stamp, the audit trail, and word to the other processes, which leaves with the commit.
///
/// On the way goes what of the log is older than it is kept for: from its beginning and without gaps, so that what is left is
/// complete from its first revision on. That one is kept for as long as its successor is: who has applied it knows what it has missed.
const LOG: &str = "
    WITH changed AS (
      INSERT INTO changes (revision, entity, id)
      SELECT $1, entity, id FROM unnest($2::text[], $3::text[]) AS c (entity, id) ON CONFLICT DO NOTHING),
    event AS (
      INSERT INTO audit_events (revision, seq, time, actor, action, subject, details)
      SELECT $1, place - 1, $4, $5, action, subject, details
      FROM unnest($6::text[], $7::text[], $8::text[]) WITH ORDINALITY AS e (action, subject, details, place)),
    stamped AS (INSERT INTO commits (revision, stamp) VALUES ($1, $9)),
    first AS (
      SELECT revision, max(time) OVER (ORDER BY revision) < clock_timestamp() - $10 * interval '1 second' AS is_old
      FROM (SELECT revision, time FROM commits ORDER BY revision LIMIT 16) AS c),
    forgotten AS (
      DELETE FROM commits WHERE revision < (SELECT max(revision) FROM first WHERE is_old) RETURNING revision),
    forgotten_changes AS (DELETE FROM changes USING forgotten WHERE changes.revision = forgotten.revision)
    SELECT pg_notify('tollgate', '')";

/// Of which record a write is. A key by its bytes in hexadecimal digits, by which a poll looks it up.
fn logged(write: &Write) -> (&'static str, String) {
    match write {
        Write::InsertKey(key, _) | Write::UpdateKey { key, .. } => {
            ("key", format!("{:032x}", u128::from_be_bytes(*key.id.as_bytes())))
        }
        Write::InsertAccount(_)
        | Write::UpdateAccount(..)
        | Write::InsertPlan(_)
        | Write::UpdatePlan(..)
        | Write::DeletePlan(..) => changed(write),
    }
}

async fn log(
    connection: &mut PgConnection,
    revision: Revision,
    commit: &Commit,
    log_kept: Duration,
) -> Result<(), StoreError> {
    let mut stamp = [0; 8];
    random::fill(&mut stamp).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let (entities, ids): (Vec<&str>, Vec<String>) = commit.writes.iter().map(logged).unzip();
    sqlx::query(LOG)
        .bind(revision.number())
        .bind(entities)
        .bind(ids)
        .bind(commit.time.millis())
        .bind(&commit.actor)
        .bind(commit.events.iter().map(|event| event.action).collect::<Vec<_>>())
        .bind(commit.events.iter().map(|event| event.subject.as_str()).collect::<Vec<_>>())
        .bind(commit.events.iter().map(|event| event.details.as_str()).collect::<Vec<_>>())
        .bind(i64::from_be_bytes(stamp))
        .bind(log_kept.as_secs_f64())
        .execute(connection)
        .await?;
    Ok(())
}

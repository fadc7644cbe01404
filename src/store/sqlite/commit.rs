//! One transaction that changes records.

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::insert_keys::insert_keys;
use super::writer::Writer;
use crate::domain::{Key, Revision, Time};
use crate::store::shared::new_keys::NewKey;
use crate::store::shared::rows;
use crate::store::shared::writes::{account_query, changed, free, one_row, plan_query, taken_query};
use crate::store::{AuditEvent, Commit, CommitError, Guard, StoreError, StoredSecret, Write};

pub(super) async fn commit(writer: &Writer, commit: &Commit) -> Result<Revision, CommitError> {
    let mut transaction = writer.begin().await?;
    match apply(transaction.connection(), commit).await {
        Ok(revision) if commit.rehearsal => {
            transaction.rollback().await;
            Ok(revision)
        }
        Ok(revision) => {
            transaction.commit().await?;
            Ok(revision)
        }
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn apply(connection: &mut SqliteConnection, commit: &Commit) -> Result<Revision, CommitError> {
    for guard in &commit.guards {
        check_before(connection, guard).await?;
    }
    let revision: i64 =
        sqlx::query_scalar("UPDATE sequence SET revision = revision + 1 WHERE id = 1 RETURNING revision")
            .fetch_one(&mut *connection)
            .await
            .map_err(StoreError::from)?;
    let revision = Revision::new(revision);

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
                    .await
                    .map(|done| done.rows_affected());
                one_row(deleted, || CommitError::PlanInUse, || CommitError::PlanInUse)?;
            }
        }
    }
    for guard in &commit.guards {
        check_after(connection, guard).await?;
    }
    log_changes(connection, revision, &commit.writes).await?;
    log_events(connection, revision, commit).await?;
    Ok(revision)
}

/// What must hold before anything is written.
async fn check_before(connection: &mut SqliteConnection, guard: &Guard) -> Result<(), CommitError> {
    let (sql, id, revision) = match guard {
        Guard::AccountAt(id, revision) => ("SELECT revision FROM accounts WHERE id = $1", id.as_str(), revision),
        Guard::PlanAt(id, revision) => ("SELECT revision FROM plans WHERE id = $1", id.as_str(), revision),
        Guard::KeysAtMost(..) => return Ok(()),
        Guard::NoKeys => {
            let some: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM keys)")
                .fetch_one(connection)
                .await
                .map_err(StoreError::from)?;
            return if some { Err(CommitError::NotEmpty) } else { Ok(()) };
        }
    };
    let found: Option<i64> =
        sqlx::query_scalar(sql).bind(id).fetch_optional(connection).await.map_err(StoreError::from)?;
    if found == Some(revision.number()) { Ok(()) } else { Err(CommitError::Stale) }
}

/// What must hold once all is written.
async fn check_after(connection: &mut SqliteConnection, guard: &Guard) -> Result<(), CommitError> {
    let Guard::KeysAtMost(account_id, keys_max) = guard else { return Ok(()) };
    // One row more than allowed is enough to know.
    let keys: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT 1 FROM keys WHERE account_id = $1 AND status <> 'revoked' LIMIT $2 + 1)",
    )
    .bind(account_id.as_str())
    .bind(*keys_max)
    .fetch_one(connection)
    .await
    .map_err(StoreError::from)?;
    if keys > i64::from(*keys_max) { Err(CommitError::TooManyKeys) } else { Ok(()) }
}

/// Keeps the secret that a rotation replaces, for its grace period, and ends that of all before it.
async fn retire_secret(
    connection: &mut SqliteConnection,
    (revision, time): (Revision, Time),
    key: &Key,
    expected: Revision,
) -> Result<(), CommitError> {
    let id = key.id.as_bytes().as_slice();
    sqlx::query("UPDATE retired_secrets SET expire_time = $2 WHERE key_id = $1 AND expire_time > $2")
        .bind(id)
        .bind(time.millis())
        .execute(&mut *connection)
        .await
        .map_err(StoreError::from)?;
    let expire_time = key.previous.as_ref().map_or(time, |previous| previous.expire_time);
    let retired = sqlx::query(
        "INSERT INTO retired_secrets (hash, key_id, pepper_id, expire_time, revision)
         SELECT secret_hash, id, pepper_id, $3, $4 FROM keys WHERE id = $1 AND revision = $2",
    )
    .bind(id)
    .bind(expected.number())
    .bind(expire_time.millis())
    .bind(revision.number())
    .execute(connection)
    .await
    .map(|done| done.rows_affected());
    one_row(retired, || CommitError::Stale, || CommitError::Stale)
}

/// Sets until when the secret before the last rotation verifies.
async fn extend_retired(connection: &mut SqliteConnection, key: &Key, expire_time: Time) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE retired_secrets SET expire_time = $2 WHERE expire_time <> $2 AND rowid =
         (SELECT rowid FROM retired_secrets WHERE key_id = $1 ORDER BY revision DESC LIMIT 1)",
    )
    .bind(key.id.as_bytes().as_slice())
    .bind(expire_time.millis())
    .execute(connection)
    .await?;
    Ok(())
}

async fn update_key(
    connection: &mut SqliteConnection,
    revision: Revision,
    key: &Key,
    expected: Revision,
    new_secret: Option<&StoredSecret>,
) -> Result<(), CommitError> {
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE keys SET account_id = ");
    query.push_bind(key.account_id.as_str());
    query.push(", name = ").push_bind(&key.name);
    query.push(", environment = ").push_bind(key.environment.as_str());
    query.push(", prefix = ").push_bind(&key.prefix);
    query.push(", status = ").push_bind(rows::status_word(&key.status));
    query.push(", create_time = ").push_bind(key.create_time.millis());
    query.push(", expire_time = ").push_bind(key.expire_time.map(Time::millis));
    query.push(", auto_renew_millis = ").push_bind(key.auto_renew_millis);
    query.push(", revision = ").push_bind(revision.number());
    query.push(", policy = ").push_bind(rows::to_json(&key.policy)?);
    query.push(", metadata = ").push_bind(rows::to_json(&key.metadata)?);
    query.push(", body = ").push_bind(rows::key_body(key)?);
    if let Some(StoredSecret { hash, pepper_id }) = new_secret {
        query.push(", secret_hash = ").push_bind(hash.as_bytes().as_slice());
        query.push(", pepper_id = ").push_bind(pepper_id);
    }
    query.push(" WHERE id = ").push_bind(key.id.as_bytes().as_slice());
    query.push(" AND revision = ").push_bind(expected.number());
    // The id stays and the hash is known to be free, so that only the name can be taken.
    one_row(
        query.build().execute(connection).await.map(|done| done.rows_affected()),
        || CommitError::NameTaken(key.name.clone()),
        || CommitError::NoParent,
    )
}

/// Writes a plan or an account.
async fn write_one(
    connection: &mut SqliteConnection,
    query: Query<'_, Sqlite, SqliteArguments>,
) -> Result<(), CommitError> {
    let rows = query.execute(connection).await.map(|done| done.rows_affected());
    one_row(rows, || CommitError::IdTaken, || CommitError::NoParent)
}

/// Rows of one statement: few enough for SQLite's 32,766 parameters at seven each.
const LOG_ROWS_MAX: usize = 2_000;
/// Statements of more rows than this are not worth a place among the prepared ones: there is one for each number.
pub(super) const PREPARED_ROWS_MAX: usize = 8;

async fn log_changes(
    connection: &mut SqliteConnection,
    revision: Revision,
    writes: &[Write],
) -> Result<(), StoreError> {
    for writes in writes.chunks(LOG_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO changes (revision, entity, id) ");
        query.push_values(writes, |mut row, write| {
            let (entity, id) = changed(write);
            row.push_bind(revision.number()).push_bind(entity).push_bind(id);
        });
        query.build().persistent(writes.len() <= PREPARED_ROWS_MAX).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn log_events(connection: &mut SqliteConnection, revision: Revision, commit: &Commit) -> Result<(), StoreError> {
    let numbered: Vec<(i64, &AuditEvent)> = (0_i64..).zip(&commit.events).collect();
    for events in numbered.chunks(LOG_ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO audit_events (revision, seq, time, actor, action, subject, details) ",
        );
        query.push_values(events, |mut row, (seq, event)| {
            let AuditEvent { action, subject, details } = event;
            row.push_bind(revision.number()).push_bind(*seq).push_bind(commit.time.millis()).push_bind(&commit.actor);
            row.push_bind(*action).push_bind(subject).push_bind(details);
        });
        query.build().persistent(events.len() <= PREPARED_ROWS_MAX).execute(&mut *connection).await?;
    }
    Ok(())
}

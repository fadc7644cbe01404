//! What both engines make of the writes of a commit.

use sqlx::query::{Query, QueryScalar};
use sqlx::{Database, Encode, Type};

use super::rows;
use crate::domain::{Account, Plan, Revision};
use crate::store::{CommitError, StoreError, StoredSecret, Write};

/// Of which record a write is, in the words of the log of changes.
pub(in crate::store) fn changed(write: &Write) -> (&'static str, String) {
    match write {
        Write::InsertKey(key, _) | Write::UpdateKey { key, .. } => ("key", key.id.to_string()),
        Write::InsertAccount(account) | Write::UpdateAccount(account, _) => ("account", account.id.as_str().to_owned()),
        Write::InsertPlan(plan) | Write::UpdatePlan(plan, _) => ("plan", plan.id.as_str().to_owned()),
        Write::DeletePlan(id, _) => ("plan", id.as_str().to_owned()),
    }
}

/// Told apart: what was not unique, what refers to nothing or is referred to, what is not there as expected, and what
/// has nothing to do with the records.
pub(in crate::store) fn one_row(
    rows: Result<u64, sqlx::Error>,
    not_unique: impl FnOnce() -> CommitError,
    no_reference: impl FnOnce() -> CommitError,
) -> Result<(), CommitError> {
    match rows {
        Ok(0) => Err(CommitError::Stale),
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(not_unique()),
        Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => Err(no_reference()),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// Inserts an account, or updates what `expected` left.
pub(in crate::store) fn account_query<'q, DB>(
    revision: Revision,
    account: &'q Account,
    expected: Option<Revision>,
) -> Result<Query<'q, DB, DB::Arguments>, StoreError>
where
    DB: Database,
    &'q str: Encode<'q, DB> + Type<DB>,
    String: Encode<'q, DB> + Type<DB>,
    i64: Encode<'q, DB> + Type<DB>,
{
    let sql = match expected {
        None => "INSERT INTO accounts (id, plan_id, revision, body) VALUES ($1, $2, $3, $4)",
        Some(_) => "UPDATE accounts SET plan_id = $2, revision = $3, body = $4 WHERE id = $1 AND revision = $5",
    };
    let query = sqlx::query(sql)
        .bind(account.id.as_str())
        .bind(account.plan.as_str())
        .bind(revision.number())
        .bind(rows::account_body(account)?);
    Ok(match expected {
        Some(expected) => query.bind(expected.number()),
        None => query,
    })
}

/// Inserts a plan, or updates what `expected` left.
pub(in crate::store) fn plan_query<'q, DB>(
    revision: Revision,
    plan: &'q Plan,
    expected: Option<Revision>,
) -> Result<Query<'q, DB, DB::Arguments>, StoreError>
where
    DB: Database,
    &'q str: Encode<'q, DB> + Type<DB>,
    String: Encode<'q, DB> + Type<DB>,
    i64: Encode<'q, DB> + Type<DB>,
{
    let sql = match expected {
        None => "INSERT INTO plans (id, revision, body) VALUES ($1, $2, $3)",
        Some(_) => "UPDATE plans SET revision = $2, body = $3 WHERE id = $1 AND revision = $4",
    };
    let query = sqlx::query(sql).bind(plan.id.as_str()).bind(revision.number()).bind(rows::plan_body(plan)?);
    Ok(match expected {
        Some(expected) => query.bind(expected.number()),
        None => query,
    })
}

/// Whether a key has this hash, or had it before a rotation. Asked after the old secret was retired, so that a rotation to the
/// same secret is refused too.
pub(in crate::store) fn taken_query<'q, DB>(secret: &'q StoredSecret) -> QueryScalar<'q, DB, bool, DB::Arguments>
where
    DB: Database,
    (bool,): for<'r> sqlx::FromRow<'r, DB::Row>,
    &'q [u8]: Encode<'q, DB> + Type<DB>,
{
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM keys WHERE secret_hash = $1)
             OR EXISTS (SELECT 1 FROM retired_secrets WHERE hash = $1)",
    )
    .bind(secret.hash.as_bytes().as_slice())
}

/// The answer to [`taken_query`] about the secret of the write at this place.
pub(in crate::store) fn free(taken: Result<bool, sqlx::Error>, place: usize) -> Result<(), CommitError> {
    if taken.map_err(StoreError::from)? { Err(CommitError::HashTaken(place)) } else { Ok(()) }
}

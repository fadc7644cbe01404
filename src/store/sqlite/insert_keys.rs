//! Many new keys in few statements, since an import brings a thousand at a time and a statement costs more than a row.
//! Which key broke a rule is looked for only after a statement has failed.

use std::collections::HashSet;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::commit::PREPARED_ROWS_MAX;
use crate::domain::{Revision, Time};
use crate::store::shared::new_keys::{Existing, NewKey};
use crate::store::shared::rows;
use crate::store::{CommitError, StoreError};

/// Rows of one statement: few enough for SQLite's 32,766 parameters at 15 each.
const ROWS_MAX: usize = 1_000;

pub(super) async fn insert_keys(
    connection: &mut SqliteConnection,
    revision: Revision,
    new_keys: &[NewKey<'_>],
) -> Result<(), CommitError> {
    for new_keys in new_keys.chunks(ROWS_MAX) {
        // No constraint spans both tables that hold hashes.
        let retired = taken_hashes(connection, "SELECT hash FROM retired_secrets WHERE hash IN (", new_keys).await?;
        if !retired.is_empty() {
            let offender = find_offender(connection, new_keys, retired).await?;
            return Err(offender.unwrap_or(CommitError::HashTaken(0)));
        }
        match insert(connection, revision, new_keys).await? {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() || error.is_foreign_key_violation() => {
                let offender = find_offender(connection, new_keys, retired).await?;
                return Err(offender.unwrap_or_else(|| StoreError::from(sqlx::Error::Database(error)).into()));
            }
            Err(error) => return Err(StoreError::from(error).into()),
        }
    }
    Ok(())
}

async fn insert(
    connection: &mut SqliteConnection,
    revision: Revision,
    new_keys: &[NewKey<'_>],
) -> Result<Result<sqlx::sqlite::SqliteQueryResult, sqlx::Error>, StoreError> {
    let mut documents = Vec::with_capacity(new_keys.len());
    for NewKey { key, .. } in new_keys {
        documents.push((rows::to_json(&key.policy)?, rows::to_json(&key.metadata)?, rows::key_body(key)?));
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO keys (id, account_id, name, environment, prefix, status, create_time, expire_time,
             auto_renew_millis, revision, secret_hash, pepper_id, policy, metadata, body) ",
    );
    query.push_values(new_keys.iter().zip(documents), |mut row, (new_key, (policy, metadata, body))| {
        let NewKey { key, secret, .. } = new_key;
        row.push_bind(key.id.as_bytes().as_slice())
            .push_bind(key.account_id.as_str())
            .push_bind(&key.name)
            .push_bind(key.environment.as_str())
            .push_bind(&key.prefix)
            .push_bind(rows::status_word(&key.status))
            .push_bind(key.create_time.millis())
            .push_bind(key.expire_time.map(Time::millis))
            .push_bind(key.auto_renew_millis)
            .push_bind(revision.number())
            .push_bind(secret.hash.as_bytes().as_slice())
            .push_bind(&secret.pepper_id)
            .push_bind(policy)
            .push_bind(metadata)
            .push_bind(body);
    });
    Ok(query.build().persistent(new_keys.len() <= PREPARED_ROWS_MAX).execute(connection).await)
}

async fn taken_hashes(
    connection: &mut SqliteConnection,
    sql: &'static str,
    new_keys: &[NewKey<'_>],
) -> Result<HashSet<Vec<u8>>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(sql);
    let mut list = query.separated(", ");
    for new_key in new_keys {
        list.push_bind(new_key.secret.hash.as_bytes().as_slice());
    }
    query.push(")");
    let taken: Vec<Vec<u8>> =
        query.build_query_scalar().persistent(new_keys.len() <= PREPARED_ROWS_MAX).fetch_all(connection).await?;
    Ok(taken.into_iter().collect())
}

/// The first of these keys that breaks a rule.
async fn find_offender(
    connection: &mut SqliteConnection,
    new_keys: &[NewKey<'_>],
    retired: HashSet<Vec<u8>>,
) -> Result<Option<CommitError>, StoreError> {
    let mut hashes = taken_hashes(connection, "SELECT secret_hash FROM keys WHERE secret_hash IN (", new_keys).await?;
    hashes.extend(retired);
    let existing = Existing {
        accounts: existing_accounts(connection, new_keys).await?,
        ids: existing_ids(connection, new_keys).await?,
        names: existing_names(connection, new_keys).await?,
        hashes,
    };
    Ok(existing.offender(new_keys))
}

async fn existing_accounts(
    connection: &mut SqliteConnection,
    new_keys: &[NewKey<'_>],
) -> Result<HashSet<String>, StoreError> {
    let asked: HashSet<&str> = new_keys.iter().map(|new_key| new_key.key.account_id.as_str()).collect();
    let mut query = QueryBuilder::<Sqlite>::new("SELECT id FROM accounts WHERE id IN (");
    let mut list = query.separated(", ");
    for id in asked {
        list.push_bind(id);
    }
    query.push(")");
    let found: Vec<String> = query.build_query_scalar().persistent(false).fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

async fn existing_ids(
    connection: &mut SqliteConnection,
    new_keys: &[NewKey<'_>],
) -> Result<HashSet<Vec<u8>>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT id FROM keys WHERE id IN (");
    let mut list = query.separated(", ");
    for new_key in new_keys {
        list.push_bind(new_key.key.id.as_bytes().as_slice());
    }
    query.push(")");
    let found: Vec<Vec<u8>> = query.build_query_scalar().persistent(false).fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

async fn existing_names(
    connection: &mut SqliteConnection,
    new_keys: &[NewKey<'_>],
) -> Result<HashSet<(String, String)>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("WITH asked (account_id, name) AS (");
    query.push_values(new_keys, |mut row, new_key| {
        row.push_bind(new_key.key.account_id.as_str()).push_bind(&new_key.key.name);
    });
    // An IN would go through the whole index.
    query.push(
        ") SELECT k.account_id, k.name FROM asked CROSS JOIN keys AS k INDEXED BY keys_by_name
         ON k.account_id = asked.account_id AND k.name = asked.name AND k.status <> 'revoked'",
    );
    let found: Vec<(String, String)> = query.build_query_as().persistent(false).fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

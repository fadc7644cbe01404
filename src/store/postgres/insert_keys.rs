//! Many new keys in one statement, since an import brings a thousand at a time. An error would end the transaction, so what breaks a
//! rule is passed over, and which key that is, is looked for only where one is missing in the end.

use std::collections::HashSet;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::domain::{Revision, Time};
use crate::store::shared::new_keys::{Existing, NewKey};
use crate::store::shared::rows;
use crate::store::{CommitError, StoreError};

pub(super) async fn insert_keys(
    connection: &mut PgConnection,
    revision: Revision,
    new_keys: &[NewKey<'_>],
) -> Result<(), CommitError> {
    let inserted = insert(connection, revision, new_keys).await?;
    if inserted.len() == new_keys.len() {
        return Ok(());
    }
    let offender = existing(connection, revision, &inserted, new_keys).await?.offender(new_keys);
    let unknown = || StoreError::Corrupt("new keys were not inserted, and none of them breaks a rule".to_owned());
    Err(offender.unwrap_or_else(|| unknown().into()))
}

// No constraint spans both tables that hold hashes.
const INSERT: &str = "
    INSERT INTO keys (id, account_id, name, environment, prefix, status, create_time, expire_time, auto_renew_millis,
      revision, secret_hash, pepper_id, policy, metadata, body)
    SELECT id, account_id, name, environment, prefix, status, create_time, expire_time, auto_renew_millis,
      $1, secret_hash, pepper_id, policy, metadata, body
    FROM unnest($2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[],
      $10::bigint[], $11::bytea[], $12::text[], $13::text[], $14::text[], $15::text[])
      AS n (id, account_id, name, environment, prefix, status, create_time, expire_time, auto_renew_millis,
        secret_hash, pepper_id, policy, metadata, body)
    WHERE EXISTS (SELECT 1 FROM accounts AS a WHERE a.id = n.account_id)
      AND NOT EXISTS (SELECT 1 FROM retired_secrets AS r WHERE r.hash = n.secret_hash)
    ON CONFLICT DO NOTHING RETURNING id";

/// Returns the ids of those that were inserted.
async fn insert(
    connection: &mut PgConnection,
    revision: Revision,
    new_keys: &[NewKey<'_>],
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut policies = Vec::with_capacity(new_keys.len());
    let mut metadata = Vec::with_capacity(new_keys.len());
    let mut bodies = Vec::with_capacity(new_keys.len());
    for NewKey { key, .. } in new_keys {
        policies.push(rows::to_json(&key.policy)?);
        metadata.push(rows::to_json(&key.metadata)?);
        bodies.push(rows::key_body(key)?);
    }
    let keys = || new_keys.iter().map(|new_key| new_key.key);
    let inserted = sqlx::query_scalar(INSERT)
        .bind(revision.number())
        .bind(ids(new_keys))
        .bind(keys().map(|key| key.account_id.as_str()).collect::<Vec<_>>())
        .bind(keys().map(|key| key.name.as_str()).collect::<Vec<_>>())
        .bind(keys().map(|key| key.environment.as_str()).collect::<Vec<_>>())
        .bind(keys().map(|key| key.prefix.as_str()).collect::<Vec<_>>())
        .bind(keys().map(|key| rows::status_word(&key.status)).collect::<Vec<_>>())
        .bind(keys().map(|key| key.create_time.millis()).collect::<Vec<_>>())
        .bind(keys().map(|key| key.expire_time.map(Time::millis)).collect::<Vec<_>>())
        .bind(keys().map(|key| key.auto_renew_millis).collect::<Vec<_>>())
        .bind(hashes(new_keys))
        .bind(new_keys.iter().map(|new_key| new_key.secret.pepper_id.as_deref()).collect::<Vec<_>>())
        .bind(policies)
        .bind(metadata)
        .bind(bodies)
        .fetch_all(connection)
        .await?;
    Ok(inserted)
}

fn ids<'a>(new_keys: &'a [NewKey<'_>]) -> Vec<&'a [u8]> {
    new_keys.iter().map(|new_key| new_key.key.id.as_bytes().as_slice()).collect()
}

fn hashes<'a>(new_keys: &'a [NewKey<'_>]) -> Vec<&'a [u8]> {
    new_keys.iter().map(|new_key| new_key.secret.hash.as_bytes().as_slice()).collect()
}

/// What there is of all that the keys name, without those that were just inserted.
async fn existing(
    connection: &mut PgConnection,
    revision: Revision,
    inserted: &[Vec<u8>],
    new_keys: &[NewKey<'_>],
) -> Result<Existing, StoreError> {
    let accounts: Vec<&str> = new_keys.iter().map(|new_key| new_key.key.account_id.as_str()).collect();
    let names: Vec<&str> = new_keys.iter().map(|new_key| new_key.key.name.as_str()).collect();
    let found = sqlx::query_scalar("SELECT id FROM accounts WHERE id = ANY ($1)").bind(&accounts);
    let accounts_found: Vec<String> = found.fetch_all(&mut *connection).await?;
    let found = sqlx::query_scalar("SELECT hash FROM retired_secrets WHERE hash = ANY ($1)").bind(hashes(new_keys));
    let retired: Vec<Vec<u8>> = found.fetch_all(&mut *connection).await?;
    let mut existing = Existing {
        accounts: accounts_found.into_iter().collect(),
        ids: HashSet::new(),
        names: HashSet::new(),
        hashes: retired.into_iter().collect(),
    };
    let found = sqlx::query(
        "WITH found AS (
           SELECT * FROM keys WHERE id = ANY ($3)
           UNION ALL SELECT * FROM keys WHERE secret_hash = ANY ($4)
           UNION ALL SELECT k.* FROM unnest($5::text[], $6::text[]) AS n (account_id, name)
             JOIN keys AS k ON k.account_id = n.account_id AND k.name = n.name AND k.status <> 'revoked')
         SELECT id, secret_hash, account_id, name, status <> 'revoked' FROM found
         WHERE NOT (revision = $1 AND id = ANY ($2))",
    )
    .bind(revision.number())
    .bind(inserted)
    .bind(ids(new_keys))
    .bind(hashes(new_keys))
    .bind(&accounts)
    .bind(&names)
    .fetch_all(connection)
    .await?;
    for row in found {
        existing.ids.insert(row.try_get(0)?);
        existing.hashes.insert(row.try_get(1)?);
        if row.try_get(4)? {
            existing.names.insert((row.try_get(2)?, row.try_get(3)?));
        }
    }
    Ok(existing)
}

//! Reads of single records and of pages.

use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row as _};

use super::database::Database;
use crate::domain::{Account, AccountId, KeyId, Plan, PlanId, Revision, Time};
use crate::store::shared::key_query::{ACTIVITY_JOIN, push_wanted};
use crate::store::shared::rows::{self, KEY_COLUMNS};
use crate::store::{KeyQuery, StoreError, StoredKey};

pub(super) async fn key(database: &Database, id: KeyId) -> Result<Option<StoredKey>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT ");
    query.push(KEY_COLUMNS).push(" FROM keys AS k").push(ACTIVITY_JOIN);
    query.push(" WHERE k.id = ").push_bind(id.as_bytes().as_slice());
    let row = database.optional(query.build()).await?;
    row.map(|row| rows::key(&row)).transpose()
}

pub(super) async fn keys(database: &Database, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
    database.all(list_sql(query).build()).await?.iter().map(rows::key).collect()
}

fn list_sql(wanted: &KeyQuery) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT ");
    query.push(KEY_COLUMNS).push(" FROM keys AS k").push(ACTIVITY_JOIN);
    push_wanted(&mut query, wanted);
    query
}

pub(super) async fn keys_to_renew(
    database: &Database,
    now: Time,
    lead_millis_max: i64,
    rows_max: u32,
) -> Result<Vec<StoredKey>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT ");
    query.push(KEY_COLUMNS).push(" FROM keys AS k").push(ACTIVITY_JOIN);
    // What the index can tell first: nothing is due earlier than the longest lead.
    query.push(" WHERE k.status = 'active' AND k.auto_renew_millis IS NOT NULL AND k.expire_time <= ");
    query.push_bind(now.plus_millis(lead_millis_max).millis());
    query.push(" AND k.expire_time - least(k.auto_renew_millis / 4, ").push_bind(lead_millis_max);
    query.push(") <= ").push_bind(now.millis());
    query.push(" ORDER BY k.expire_time, k.id LIMIT ").push_bind(i64::from(rows_max));
    database.all(query.build()).await?.iter().map(rows::key).collect()
}

pub(super) async fn account(database: &Database, id: &AccountId) -> Result<Option<Account>, StoreError> {
    let query = sqlx::query("SELECT id, plan_id, revision, body FROM accounts WHERE id = $1").bind(id.as_str());
    database.optional(query).await?.map(|row| account_row(&row)).transpose()
}

pub(super) async fn accounts(
    database: &Database,
    after: Option<&AccountId>,
    rows_max: u32,
) -> Result<Vec<Account>, StoreError> {
    let query = sqlx::query("SELECT id, plan_id, revision, body FROM accounts WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after.map_or("", AccountId::as_str))
        .bind(i64::from(rows_max));
    database.all(query).await?.iter().map(account_row).collect()
}

fn account_row(row: &PgRow) -> Result<Account, StoreError> {
    rows::account(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)
}

pub(super) async fn plan(database: &Database, id: &PlanId) -> Result<Option<Plan>, StoreError> {
    let query = sqlx::query("SELECT id, revision, body FROM plans WHERE id = $1").bind(id.as_str());
    database.optional(query).await?.map(|row| plan_row(&row)).transpose()
}

pub(super) async fn plans(database: &Database, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError> {
    let query = sqlx::query("SELECT id, revision, body FROM plans WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after.map_or("", PlanId::as_str))
        .bind(i64::from(rows_max));
    database.all(query).await?.iter().map(plan_row).collect()
}

pub(super) fn plan_row(row: &PgRow) -> Result<Plan, StoreError> {
    rows::plan(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)
}

pub(super) async fn pepper_ids(database: &Database) -> Result<Vec<String>, StoreError> {
    // From one value to the next along each index, instead of through all of its entries.
    let query = sqlx::query(
        "WITH RECURSIVE
           used(id) AS (
             SELECT min(pepper_id) FROM keys WHERE pepper_id IS NOT NULL
             UNION ALL SELECT (SELECT min(pepper_id) FROM keys WHERE pepper_id > used.id) FROM used WHERE id IS NOT NULL),
           retired(id) AS (
             SELECT min(pepper_id) FROM retired_secrets WHERE pepper_id IS NOT NULL
             UNION ALL SELECT (SELECT min(pepper_id) FROM retired_secrets WHERE pepper_id > retired.id)
             FROM retired WHERE id IS NOT NULL)
         SELECT id FROM used WHERE id IS NOT NULL UNION SELECT id FROM retired WHERE id IS NOT NULL ORDER BY id",
    );
    database.all(query).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

pub(super) async fn revision(database: &Database) -> Result<Revision, StoreError> {
    let row = database.one(sqlx::query("SELECT revision FROM sequence WHERE id = 1")).await?;
    Ok(Revision::new(row.try_get(0)?))
}

/// What each line of [`verify`] asks: what is wrong, and how often.
const DAMAGE: &str = "
    SELECT 'indexes that are not valid, which REINDEX mends', count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
      WHERE c.relnamespace = current_schema()::regnamespace AND NOT (i.indisvalid AND i.indisready)
    UNION ALL SELECT 'constraints that do not hold for all rows', count(*) FROM pg_constraint
      WHERE connamespace = current_schema()::regnamespace AND NOT convalidated
    UNION ALL SELECT 'numbers of the last revision that are missing', 1 - count(*) FROM sequence
    UNION ALL SELECT 'revisions in the log after the last one', count(*) FROM commits AS c, sequence AS s WHERE c.revision > s.revision
    UNION ALL SELECT 'stamps of the last revision that are missing', count(*) FROM sequence AS s
      WHERE NOT EXISTS (SELECT 1 FROM commits AS c WHERE c.revision = s.revision)
    UNION ALL SELECT 'changes of revisions that are not in the log', count(*) FROM changes AS h
      WHERE h.revision > (SELECT min(revision) FROM commits) AND NOT EXISTS (SELECT 1 FROM commits AS c WHERE c.revision = h.revision)";

/// Indexes that can't be relied on, and a log that does not fit its numbers. Damage of the files, only the server's own tools find
/// (`pg_checksums`, `amcheck`).
pub(super) async fn verify(database: &Database) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for row in database.all(sqlx::query(DAMAGE)).await? {
        let (what, times): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
        if times != 0 {
            found.push(format!("{what}: {times}"));
        }
    }
    Ok(found)
}

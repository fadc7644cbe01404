//! Reads of single records and of pages.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};

use crate::domain::{Account, AccountId, KeyId, Plan, PlanId, Revision, Time};
use crate::store::shared::key_query::{ACTIVITY_JOIN, prefix_end, push_wanted};
use crate::store::shared::rows::{self, KEY_COLUMNS};
use crate::store::{KeyQuery, StoreError, StoredKey};

pub(super) async fn key(readers: &SqlitePool, id: KeyId) -> Result<Option<StoredKey>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
    query.push(KEY_COLUMNS).push(" FROM keys AS k").push(ACTIVITY_JOIN);
    query.push(" WHERE k.id = ").push_bind(id.as_bytes().as_slice());
    let row = query.build().fetch_optional(readers).await?;
    row.map(|row| rows::key(&row)).transpose()
}

/// A prefix that more keys than this have is met soon enough by going through all keys in order; the index would have
/// all of them sorted.
const RARE_PREFIX_ROWS_MAX: i64 = 10_000;

pub(super) async fn keys(readers: &SqlitePool, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError> {
    let by_prefix = match (&query.account_id, &query.prefix) {
        (None, Some(prefix)) => is_rare(readers, prefix).await?,
        _ => false,
    };
    let rows = list_sql(query, by_prefix).build().fetch_all(readers).await?;
    rows.iter().map(rows::key).collect()
}

async fn is_rare(readers: &SqlitePool, prefix: &str) -> Result<bool, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT count(*) FROM (SELECT 1 FROM keys WHERE prefix >= ");
    query.push_bind(prefix).push(" AND prefix < ").push_bind(prefix_end(prefix));
    query.push(" LIMIT ").push_bind(RARE_PREFIX_ROWS_MAX + 1).push(")");
    let keys: i64 = query.build_query_scalar().fetch_one(readers).await?;
    Ok(keys <= RARE_PREFIX_ROWS_MAX)
}

/// The index is named, because without statistics SQLite would choose among them by the look of the conditions.
fn list_sql(wanted: &KeyQuery, by_prefix: bool) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
    query.push(KEY_COLUMNS).push(" FROM keys AS k");
    query.push(match wanted.account_id {
        Some(_) => " INDEXED BY keys_by_account",
        None if by_prefix => " INDEXED BY keys_by_prefix",
        None => " INDEXED BY sqlite_autoindex_keys_1",
    });
    query.push(ACTIVITY_JOIN);
    push_wanted(&mut query, wanted);
    query
}

pub(super) async fn keys_to_renew(
    readers: &SqlitePool,
    now: Time,
    lead_millis_max: i64,
    rows_max: u32,
) -> Result<Vec<StoredKey>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
    query.push(KEY_COLUMNS).push(" FROM keys AS k INDEXED BY keys_to_renew").push(ACTIVITY_JOIN);
    // What the index can tell first: nothing is due earlier than the longest lead.
    query.push(" WHERE k.status = 'active' AND k.auto_renew_millis IS NOT NULL AND k.expire_time <= ");
    query.push_bind(now.plus_millis(lead_millis_max).millis());
    query.push(" AND k.expire_time - min(k.auto_renew_millis / 4, ").push_bind(lead_millis_max);
    query.push(") <= ").push_bind(now.millis());
    query.push(" ORDER BY k.expire_time, k.rowid LIMIT ").push_bind(rows_max);
    let rows = query.build().fetch_all(readers).await?;
    rows.iter().map(rows::key).collect()
}

pub(super) async fn account(readers: &SqlitePool, id: &AccountId) -> Result<Option<Account>, StoreError> {
    let row = sqlx::query("SELECT id, plan_id, revision, body FROM accounts WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(readers)
        .await?;
    row.map(|row| account_row(&row)).transpose()
}

pub(super) async fn accounts(
    readers: &SqlitePool,
    after: Option<&AccountId>,
    rows_max: u32,
) -> Result<Vec<Account>, StoreError> {
    let rows = sqlx::query("SELECT id, plan_id, revision, body FROM accounts WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after.map_or("", AccountId::as_str))
        .bind(rows_max)
        .fetch_all(readers)
        .await?;
    rows.iter().map(account_row).collect()
}

fn account_row(row: &SqliteRow) -> Result<Account, StoreError> {
    rows::account(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)
}

pub(super) async fn plan(readers: &SqlitePool, id: &PlanId) -> Result<Option<Plan>, StoreError> {
    let row = sqlx::query("SELECT id, revision, body FROM plans WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(readers)
        .await?;
    row.map(|row| plan_row(&row)).transpose()
}

pub(super) async fn plans(
    readers: &SqlitePool,
    after: Option<&PlanId>,
    rows_max: u32,
) -> Result<Vec<Plan>, StoreError> {
    let rows = sqlx::query("SELECT id, revision, body FROM plans WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after.map_or("", PlanId::as_str))
        .bind(rows_max)
        .fetch_all(readers)
        .await?;
    rows.iter().map(plan_row).collect()
}

pub(super) fn plan_row(row: &SqliteRow) -> Result<Plan, StoreError> {
    rows::plan(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)
}

pub(super) async fn pepper_ids(readers: &SqlitePool) -> Result<Vec<String>, StoreError> {
    // From one value to the next along each index, instead of through all of its entries.
    let ids = sqlx::query_scalar(
        "WITH RECURSIVE
           used(id) AS (
             SELECT min(pepper_id) FROM keys WHERE pepper_id IS NOT NULL
             UNION ALL SELECT (SELECT min(pepper_id) FROM keys WHERE pepper_id > used.id) FROM used WHERE id IS NOT NULL),
           retired(id) AS (
             SELECT min(pepper_id) FROM retired_secrets WHERE pepper_id IS NOT NULL
             UNION ALL SELECT (SELECT min(pepper_id) FROM retired_secrets WHERE pepper_id > retired.id)
             FROM retired WHERE id IS NOT NULL)
         SELECT id FROM used WHERE id IS NOT NULL UNION SELECT id FROM retired WHERE id IS NOT NULL ORDER BY id",
    )
    .fetch_all(readers)
    .await?;
    Ok(ids)
}

pub(super) async fn revision(readers: &SqlitePool) -> Result<Revision, StoreError> {
    let revision = sqlx::query_scalar("SELECT revision FROM sequence WHERE id = 1").fetch_one(readers).await?;
    Ok(Revision::new(revision))
}

/// Damage of the file, references to nothing, and a sequence behind what it numbered.
pub(super) async fn verify(readers: &SqlitePool) -> Result<Vec<String>, StoreError> {
    let mut found: Vec<String> = sqlx::query_scalar("PRAGMA quick_check").fetch_all(readers).await?;
    found.retain(|line| line != "ok");
    let orphans: Vec<(String, i64)> = sqlx::query_as(
        "SELECT \"table\" || ' refers to ' || parent || ' that are not there', count(*)
         FROM pragma_foreign_key_check GROUP BY 1",
    )
    .fetch_all(readers)
    .await?;
    found.extend(orphans.into_iter().map(|(what, rows)| format!("{what}: {rows} rows")));
    let numbers: (Option<i64>, Option<i64>) =
        sqlx::query_as("SELECT (SELECT revision FROM sequence WHERE id = 1), (SELECT max(revision) FROM changes)")
            .fetch_one(readers)
            .await?;
    match numbers {
        (None, _) => found.push("the number of the last revision is missing".to_owned()),
        (Some(last), Some(logged)) if logged > last => {
            found.push(format!("the last revision is said to be {last}, but there are changes of revision {logged}"));
        }
        (Some(_), _) => {}
    }
    Ok(found)
}

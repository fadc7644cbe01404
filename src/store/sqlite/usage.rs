//! What was used: sums that flushes add to, and that queries add up.

use std::fmt::Write as _;
use std::sync::LazyLock;

use sqlx::sqlite::SqlitePool;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::writer::Writer;
use crate::domain::{Activity, UsageDelta, UsageRow};
use crate::store::shared::usage::{MergedFlush, hours, sum_row};
use crate::store::{StoreError, UsageOf, UsageQuery};

/// Rows of one statement: few enough for SQLite's 32,766 parameters at five each.
const ROWS_MAX: usize = 2_000;

pub(super) async fn record(writer: &Writer, flush: &MergedFlush) -> Result<(), StoreError> {
    let mut transaction = writer.begin().await?;
    match add(transaction.connection(), flush).await {
        Ok(()) => transaction.commit().await,
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

async fn add(connection: &mut SqliteConnection, flush: &MergedFlush) -> Result<(), StoreError> {
    let first = sqlx::query("INSERT OR IGNORE INTO usage_flushes (id, time) VALUES ($1, $2)")
        .bind(flush.id.as_slice())
        .bind(flush.time)
        .execute(&mut *connection)
        .await?;
    if first.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query("DELETE FROM usage_flushes WHERE time < $1")
        .bind(flush.ids_forgotten_at())
        .execute(&mut *connection)
        .await?;
    for deltas in flush.deltas.chunks(ROWS_MAX) {
        add_deltas(connection, deltas).await?;
    }
    for activities in flush.activities.chunks(ROWS_MAX) {
        set_activities(connection, activities).await?;
    }
    Ok(())
}

// Counts are added up to the largest number, where SQLite would turn to floating point.
const ADD_HEAD: &str = "INSERT INTO usage_hourly (key_id, hour, verdict, requests, credits) SELECT * FROM (VALUES ";
const ADD_TAIL: &str = ") WHERE EXISTS (SELECT 1 FROM keys WHERE id = column1)
    ON CONFLICT (key_id, hour, verdict) DO UPDATE SET
      requests = min(requests + excluded.requests, 9223372036854775807),
      credits = min(credits + excluded.credits, 9223372036854775807)";

/// The statement of a full chunk, always the same text, so that it is prepared once.
static ADD_FULL: LazyLock<String> = LazyLock::new(|| add_sql(ROWS_MAX));

fn add_sql(rows: usize) -> String {
    let mut sql = String::from(ADD_HEAD);
    for row in 0..rows {
        sql.push_str(if row == 0 { "(?,?,?,?,?)" } else { ",(?,?,?,?,?)" });
    }
    sql.push_str(ADD_TAIL);
    sql
}

/// Adds to the sums; each of them once at most.
pub(super) async fn add_deltas(connection: &mut SqliteConnection, deltas: &[UsageDelta]) -> Result<(), StoreError> {
    let full = deltas.len() == ROWS_MAX;
    let mut query = if full {
        sqlx::query(ADD_FULL.as_str())
    } else {
        sqlx::query(sqlx::AssertSqlSafe(add_sql(deltas.len()))).persistent(false)
    };
    for delta in deltas {
        query = query
            .bind(delta.key_id.as_bytes().as_slice())
            .bind(delta.hour)
            .bind(delta.verdict.number())
            .bind(i64::try_from(delta.requests).unwrap_or(i64::MAX))
            .bind(i64::try_from(delta.credits).unwrap_or(i64::MAX));
    }
    query.execute(connection).await?;
    Ok(())
}

async fn set_activities(connection: &mut SqliteConnection, activities: &[Activity]) -> Result<(), StoreError> {
    let mut query =
        QueryBuilder::<Sqlite>::new("INSERT INTO key_activity (key_id, last_used_time, last_used_ip) SELECT * FROM (");
    query.push_values(activities, |mut row, activity| {
        row.push_bind(activity.key_id.as_bytes().as_slice())
            .push_bind(activity.last_used_time.millis())
            .push_bind(activity.last_used_ip.map(|ip| ip.to_string()));
    });
    query.push(
        ") WHERE EXISTS (SELECT 1 FROM keys WHERE id = column1)
         ON CONFLICT (key_id) DO UPDATE SET
           last_used_time = excluded.last_used_time, last_used_ip = excluded.last_used_ip
         WHERE excluded.last_used_time >= last_used_time",
    );
    query.build().persistent(false).execute(connection).await?;
    Ok(())
}

/// The credits of many rows may be more than SQLite's `sum` bears, so their upper and lower halves are summed apart.
pub(super) async fn sums(readers: &SqlitePool, wanted: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
    let (Some((start, _)), Some((_, end))) = (wanted.buckets.first(), wanted.buckets.last()) else {
        return Ok(Vec::new());
    };
    // To which bucket each hour belongs: a join on equality, which SQLite does by an index of its own, if the type is told.
    let mut query = QueryBuilder::<Sqlite>::new(
        "WITH bucket (hour, place) AS MATERIALIZED (SELECT CAST(value ->> 0 AS INTEGER), value ->> 1 FROM json_each(",
    );
    query.push_bind(hours_json(&wanted.buckets)).push(")) SELECT b.place, ");
    query.push(if wanted.by_key { "k.id" } else { "NULL" });
    query.push(
        ", k.environment, u.verdict, sum(u.requests >> 32), sum(u.requests & 4294967295),
           sum(u.credits >> 32), sum(u.credits & 4294967295)
         FROM keys AS k CROSS JOIN usage_hourly AS u ON u.key_id = k.id AND u.hour >= ",
    );
    query.push_bind(*start).push(" AND u.hour < ").push_bind(*end);
    query.push(" CROSS JOIN bucket AS b ON b.hour = u.hour WHERE ");
    match &wanted.of {
        UsageOf::Account(id) => query.push("k.account_id = ").push_bind(id.as_str()),
        UsageOf::Key(id) => query.push("k.id = ").push_bind(id.as_bytes().as_slice()),
    };
    query.push(" GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT ").push_bind(wanted.rows_max);
    let rows = query.build().fetch_all(readers).await?;
    rows.iter().map(sum_row).collect()
}

/// `[[hour,place],…]` of all hours of the buckets.
fn hours_json(buckets: &[(i64, i64)]) -> String {
    let mut json = String::from("[");
    for (hour, place) in hours(buckets) {
        if json.len() > 1 {
            json.push(',');
        }
        if write!(json, "[{hour},{place}]").is_err() {
            // Writing to a string does not fail.
            return json;
        }
    }
    json.push(']');
    json
}

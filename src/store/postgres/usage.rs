//! What was used: sums that flushes add to, and that queries add up.

use sqlx::postgres::PgConnection;
use sqlx::{Postgres, QueryBuilder};

use super::database::{Database, within};
use crate::domain::{Activity, UsageDelta, UsageRow};
use crate::store::shared::usage::{MergedFlush, hours, sum_row};
use crate::store::{StoreError, UsageOf, UsageQuery};

/// Statements that a flush may wait for, each as long as one may take, before it is given up.
const STATEMENTS_MAX: u32 = 3;

/// Ids of flushes that are too old to be sent again and go in one transaction.
const FORGOTTEN_MAX: i64 = 1_000;

pub(super) async fn record(database: &Database, flush: &MergedFlush) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    let patience = transaction.patience().times(STATEMENTS_MAX);
    match within(&patience, add(transaction.connection(), flush)).await {
        Ok(()) => Ok(transaction.commit().await?),
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

/// The flush's id decides: a second one with it waits for the first to end, and adds nothing if that was written.
async fn add(connection: &mut PgConnection, flush: &MergedFlush) -> Result<(), StoreError> {
    let first = sqlx::query("INSERT INTO usage_flushes (id, time) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(flush.id.as_slice())
        .bind(flush.time)
        .execute(&mut *connection)
        .await?;
    if first.rows_affected() == 0 {
        return Ok(());
    }
    // What another flush is deleting is left to it.
    sqlx::query(
        "DELETE FROM usage_flushes WHERE id IN
         (SELECT id FROM usage_flushes WHERE time < $1 ORDER BY time LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(flush.ids_forgotten_at())
    .bind(FORGOTTEN_MAX)
    .execute(&mut *connection)
    .await?;
    add_deltas(connection, &flush.deltas).await?;
    set_activities(connection, &flush.activities).await
}

/// Adds to the sums; each of them once at most, and in their order, so that two that add at once don't wait in a circle. Counts are
/// added up to the largest number.
pub(super) async fn add_deltas(connection: &mut PgConnection, deltas: &[UsageDelta]) -> Result<(), StoreError> {
    if deltas.is_empty() {
        return Ok(());
    }
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO usage_hourly AS u (key_id, hour, verdict, requests, credits)
         SELECT d.* FROM unnest($1::bytea[], $2::bigint[], $3::smallint[], $4::bigint[], $5::bigint[])
           AS d (key_id, hour, verdict, requests, credits)
         WHERE EXISTS (SELECT 1 FROM keys AS k WHERE k.id = d.key_id) ORDER BY d.key_id, d.hour, d.verdict
         ON CONFLICT (key_id, hour, verdict) DO UPDATE SET
           requests = u.requests + least(excluded.requests, 9223372036854775807 - u.requests),
           credits = u.credits + least(excluded.credits, 9223372036854775807 - u.credits)",
    )
    .bind(deltas.iter().map(|delta| delta.key_id.as_bytes().as_slice()).collect::<Vec<_>>())
    .bind(deltas.iter().map(|delta| delta.hour).collect::<Vec<_>>())
    .bind(deltas.iter().map(|delta| i16::from(delta.verdict.number())).collect::<Vec<_>>())
    .bind(deltas.iter().map(|delta| count(delta.requests)).collect::<Vec<_>>())
    .bind(deltas.iter().map(|delta| count(delta.credits)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn set_activities(connection: &mut PgConnection, activities: &[Activity]) -> Result<(), StoreError> {
    if activities.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO key_activity AS a (key_id, last_used_time, last_used_ip)
         SELECT n.* FROM unnest($1::bytea[], $2::bigint[], $3::text[]) AS n (key_id, last_used_time, last_used_ip)
         WHERE EXISTS (SELECT 1 FROM keys AS k WHERE k.id = n.key_id) ORDER BY n.key_id
         ON CONFLICT (key_id) DO UPDATE SET
           last_used_time = excluded.last_used_time, last_used_ip = excluded.last_used_ip
         WHERE excluded.last_used_time >= a.last_used_time",
    )
    .bind(activities.iter().map(|activity| activity.key_id.as_bytes().as_slice()).collect::<Vec<_>>())
    .bind(activities.iter().map(|activity| activity.last_used_time.millis()).collect::<Vec<_>>())
    .bind(activities.iter().map(|activity| activity.last_used_ip.map(|ip| ip.to_string())).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// The halves of the numbers are summed apart, as [`sum_row`] joins them.
pub(super) async fn sums(database: &Database, wanted: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
    let (Some((start, _)), Some((_, end))) = (wanted.buckets.first(), wanted.buckets.last()) else {
        return Ok(Vec::new());
    };
    let (bucket_hours, places): (Vec<i64>, Vec<i64>) = hours(&wanted.buckets).unzip();
    let mut query = QueryBuilder::<Postgres>::new("SELECT b.place, ");
    query.push(if wanted.by_key { "k.id" } else { "NULL::bytea" });
    query.push(
        ", k.environment, u.verdict::bigint, sum(u.requests >> 32)::bigint, sum(u.requests & 4294967295)::bigint,
           sum(u.credits >> 32)::bigint, sum(u.credits & 4294967295)::bigint
         FROM keys AS k JOIN usage_hourly AS u ON u.key_id = k.id AND u.hour >= ",
    );
    query.push_bind(*start).push(" AND u.hour < ").push_bind(*end);
    query.push(" JOIN unnest(").push_bind(bucket_hours).push("::bigint[], ").push_bind(places);
    query.push("::bigint[]) AS b (hour, place) ON b.hour = u.hour WHERE ");
    match &wanted.of {
        UsageOf::Account(id) => query.push("k.account_id = ").push_bind(id.as_str()),
        UsageOf::Key(id) => query.push("k.id = ").push_bind(id.as_bytes().as_slice()),
    };
    query.push(" GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT ").push_bind(i64::from(wanted.rows_max));
    database.all(query.build()).await?.iter().map(sum_row).collect()
}

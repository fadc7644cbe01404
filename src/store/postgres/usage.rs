//! What was used: sums that flushes add to, and that queries add up.

use sqlx::{Postgres, QueryBuilder};

use super::database::Database;
use crate::domain::UsageRow;
use crate::store::shared::usage::{MergedFlush, hours, sum_row};
use crate::store::{StoreError, UsageOf, UsageQuery};

/// Ids of flushes that are too old to be sent again and go with one flush.
const FORGOTTEN_MAX: i64 = 1_000;

/// The flush `$1` of the time `$2`, unless it is there already: a second one with its id waits for the first to end, and adds nothing
/// if that was written. Its id is kept from now on, however old what it tells is: other processes forget ids by their time. `$3` and `$4`: how old the ids are that go, and how many. What another flush is deleting is left to it.
///
/// `$5` to `$9` are added to the sums, up to the largest number; `$10` to `$12` are the last uses of keys. Each row is written once at
/// most, and rows in their order, the sums before the last uses, so that two that write at once don't wait in a circle.
const RECORD: &str = "
WITH flush AS (
  INSERT INTO usage_flushes (id, time) VALUES ($1, greatest($2, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint))
  ON CONFLICT DO NOTHING RETURNING id),
forgotten AS (
  DELETE FROM usage_flushes WHERE EXISTS (SELECT FROM flush) AND id IN
    (SELECT id FROM usage_flushes WHERE time < $3 ORDER BY time LIMIT $4 FOR UPDATE SKIP LOCKED)),
added AS (
  INSERT INTO usage_hourly AS u (key_id, hour, verdict, requests, credits)
  SELECT d.* FROM unnest($5::bytea[], $6::bigint[], $7::smallint[], $8::bigint[], $9::bigint[])
    AS d (key_id, hour, verdict, requests, credits)
  WHERE EXISTS (SELECT FROM flush) AND EXISTS (SELECT FROM keys AS k WHERE k.id = d.key_id)
  ORDER BY d.key_id, d.hour, d.verdict
  ON CONFLICT (key_id, hour, verdict) DO UPDATE SET
    requests = u.requests + least(excluded.requests, 9223372036854775807 - u.requests),
    credits = u.credits + least(excluded.credits, 9223372036854775807 - u.credits)
  RETURNING verdict)
INSERT INTO key_activity AS a (key_id, last_used_time, last_used_ip)
SELECT n.* FROM unnest($10::bytea[], $11::bigint[], $12::text[]) AS n (key_id, last_used_time, last_used_ip)
WHERE EXISTS (SELECT FROM flush) AND (SELECT count(*) FROM added) >= 0 AND EXISTS (SELECT FROM keys AS k WHERE k.id = n.key_id)
ORDER BY n.key_id
ON CONFLICT (key_id) DO UPDATE SET last_used_time = excluded.last_used_time, last_used_ip = excluded.last_used_ip
WHERE excluded.last_used_time >= a.last_used_time";

pub(super) async fn record(database: &Database, flush: &MergedFlush) -> Result<(), StoreError> {
    let MergedFlush { deltas, activities, .. } = flush;
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let query = sqlx::query(RECORD)
        .bind(flush.id.as_slice())
        .bind(flush.time)
        .bind(flush.ids_forgotten_at())
        .bind(FORGOTTEN_MAX)
        .bind(deltas.iter().map(|delta| delta.key_id.as_bytes().as_slice()).collect::<Vec<_>>())
        .bind(deltas.iter().map(|delta| delta.hour).collect::<Vec<_>>())
        .bind(deltas.iter().map(|delta| i16::from(delta.verdict.number())).collect::<Vec<_>>())
        .bind(deltas.iter().map(|delta| count(delta.requests)).collect::<Vec<_>>())
        .bind(deltas.iter().map(|delta| count(delta.credits)).collect::<Vec<_>>())
        .bind(activities.iter().map(|activity| activity.key_id.as_bytes().as_slice()).collect::<Vec<_>>())
        .bind(activities.iter().map(|activity| activity.last_used_time.millis()).collect::<Vec<_>>())
        .bind(activities.iter().map(|activity| activity.last_used_ip.map(|ip| ip.to_string())).collect::<Vec<_>>());
    database.all(query).await.map(drop)
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

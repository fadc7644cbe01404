//! What was used, as far as both engines write and sum it alike.

use sqlx::{ColumnIndex, Decode, Row, Type};

use super::rows;
use crate::domain::{Activity, UsageDelta, UsageRow, Verdict};
use crate::store::{StoreError, UsageFlush};

/// How long the ids of flushes are kept; a flush is sent again within seconds, or never.
const FLUSH_IDS_KEPT_MILLIS: i64 = 24 * 3_600_000;

/// A flush, with one row for each of the table's.
pub(in crate::store) struct MergedFlush {
    pub(in crate::store) id: [u8; 16],
    pub(in crate::store) time: i64,
    pub(in crate::store) deltas: Vec<UsageDelta>,
    pub(in crate::store) activities: Vec<Activity>,
}

impl MergedFlush {
    /// In the order of the tables, so that neighbours are written together.
    pub(in crate::store) fn new(flush: &UsageFlush) -> Self {
        let mut deltas = flush.deltas.clone();
        deltas.sort_unstable_by_key(|delta| (delta.key_id, delta.hour, delta.verdict));
        deltas.dedup_by(|delta, kept| {
            let same = (delta.key_id, delta.hour, delta.verdict) == (kept.key_id, kept.hour, kept.verdict);
            if same {
                kept.requests = kept.requests.saturating_add(delta.requests);
                kept.credits = kept.credits.saturating_add(delta.credits);
            }
            same
        });
        let mut activities = flush.activities.clone();
        // The latest of each key first, which is the one that stays.
        activities.sort_by_key(|activity| (activity.key_id, std::cmp::Reverse(activity.last_used_time)));
        activities.dedup_by_key(|activity| activity.key_id);
        Self { id: flush.id, time: flush.time.millis(), deltas, activities }
    }
    /// Before when the ids of flushes need not be known any more.
    pub(in crate::store) fn ids_forgotten_at(&self) -> i64 {
        self.time.saturating_sub(FLUSH_IDS_KEPT_MILLIS)
    }
}

/// To which bucket each hour belongs, by its place.
pub(in crate::store) fn hours(buckets: &[(i64, i64)]) -> impl Iterator<Item = (i64, i64)> {
    (0_i64..).zip(buckets).flat_map(|(place, (start, end))| (*start..*end).map(move |hour| (hour, place)))
}

/// A row of a bucket's place, a key's id where it is by key, an environment, a verdict, and the upper and lower halves of requests
/// and of credits: the sums of whole ones may be more than an integer bears.
pub(in crate::store) fn sum_row<'r, R: Row>(row: &'r R) -> Result<UsageRow, StoreError>
where
    usize: ColumnIndex<R>,
    &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let (place, number): (i64, i64) = (row.try_get(0)?, row.try_get(3)?);
    Ok(UsageRow {
        bucket: usize::try_from(place).map_err(|error| StoreError::Corrupt(format!("a bucket's place: {error}")))?,
        key_id: row.try_get::<Option<&'r [u8]>, _>(1)?.map(rows::key_id).transpose()?,
        environment: rows::environment(row.try_get(2)?)?,
        verdict: u8::try_from(number)
            .ok()
            .and_then(Verdict::from_number)
            .ok_or_else(|| StoreError::Corrupt(format!("usage of the verdict {number}, which is unknown")))?,
        requests: joined(row.try_get(4)?, row.try_get(5)?),
        credits: joined(row.try_get(6)?, row.try_get(7)?),
    })
}

/// The sum whose halves these are.
fn joined(upper: i64, lower: i64) -> u64 {
    let (upper, lower) = (u64::try_from(upper).unwrap_or(0), u64::try_from(lower).unwrap_or(0));
    upper.saturating_mul(1 << 32).saturating_add(lower)
}

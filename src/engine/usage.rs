//! Usage on its way from the meters to the store, and back out of it.
//!
//! A check counts in its key's meter. The first one since the last flush puts the key into a queue, so that a flush
//! visits only keys that were used. The buffer is bounded by what is counted, not by how often: an hour in which the
//! store is away costs one cell for each key and verdict.

use std::collections::HashMap;
use std::iter::Peekable;
use std::ops::Range;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{ToSpan as _, Unit, ZonedRound};
use sha2::{Digest as _, Sha256};

use crate::domain::{AccountId, Activity, Environment, KeyId, Time, TimeZone, UsageDelta, Verdict};
use crate::journal::UsageCell;
use crate::store::{Incarnation, StoreError, UncertainRow, UsageFlush, UsageOf, UsageQuery};

use super::index::KeyEntry;
use super::meter::{Drained, KeyMeter};
use super::{Engine, Error};

/// Most rows of one transaction, so that a change of a key never waits long for the flush before it.
pub(super) const FLUSH_ROWS_MAX: usize = 4_000;
/// Most rows that the store may answer a report with.
const REPORT_ROWS_MAX: u32 = 50_000;
/// Most budgets and hours in which something was uncertain.
const UNCERTAIN_ROWS_MAX: u32 = 1_000;
/// Most buckets of an answer.
const BUCKETS_MAX: usize = 10_000;

/// The keys that were used since the last flush.
#[derive(Debug)]
pub(super) struct UsageBuffer {
    /// What names this process's flushes, from its start to its end: what it leases may come to be under another name, but its journal
    /// has only this one.
    process: Incarnation,
    queue: Mutex<Vec<Arc<KeyEntry>>>,
    flushing: tokio::sync::Mutex<Flushing>,
    as_of: Mutex<Option<Time>>,
}

/// Flushes that were taken out of the meters and are not in the store yet, oldest first.
#[derive(Debug, Default)]
struct Flushing {
    pending: std::collections::VecDeque<Pending>,
    /// Of the last flush.
    number: u64,
    /// What will be complete when they are.
    taken_at: Option<Time>,
}

/// A flush, and where it stands for the case that this process is killed.
#[derive(Debug)]
struct Pending {
    flush: UsageFlush,
    cells: Vec<UsageCell>,
}

impl UsageBuffer {
    pub(super) fn new(process: Incarnation) -> Self {
        Self { process, queue: Mutex::default(), flushing: tokio::sync::Mutex::default(), as_of: Mutex::default() }
    }

    pub(super) fn enqueue(&self, entry: Arc<KeyEntry>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn drain(&self) -> Vec<Arc<KeyEntry>> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keys that wait to be flushed.
    pub(super) fn pending_len(&self) -> usize {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn set_as_of(&self, time: Time) {
        *self.as_of.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    /// Everything up to this time is in the store.
    pub(super) fn as_of(&self) -> Option<Time> {
        *self.as_of.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Writes what was counted to the store. What cannot be written is kept, and sent again under the same id, so that
    /// it counts once even if only the answer was lost. Returns how many rows were written.
    pub async fn flush_usage(&self) -> Result<usize, StoreError> {
        let mut flushing = self.usage.flushing.lock().await;
        let mut written = self.write_pending(&mut flushing).await?;
        let now = self.clock.now();
        let entries = self.usage.drain();
        flushing.taken_at = Some(now);
        let mut entries = entries.iter().peekable();
        while entries.peek().is_some() {
            flushing.number += 1;
            let number = flushing.number;
            flushing.pending.push_back(collect(flush_id(self.usage.process, number), number, &mut entries, now));
        }
        written += self.write_pending(&mut flushing).await?;
        Ok(written)
    }

    async fn write_pending(&self, flushing: &mut Flushing) -> Result<usize, StoreError> {
        let mut written = 0;
        while let Some(Pending { flush, .. }) = flushing.pending.front() {
            let result = self.store.record_usage(flush).await;
            Self::note_store(&self.writing_fails, result.as_ref().err(), "written");
            result?;
            written += flush.deltas.len();
            if let Some(Pending { cells, .. }) = flushing.pending.pop_front() {
                self.journal().free_usage_cells(cells);
            }
        }
        if let Some(taken_at) = flushing.taken_at.take() {
            self.usage.set_as_of(taken_at);
        }
        Ok(written)
    }

    /// Keys whose usage waits to be flushed, and up to when everything is.
    #[must_use]
    pub fn usage_lag(&self) -> (usize, Option<Time>) {
        (self.usage.pending_len(), self.usage.as_of())
    }

    /// Sums usage.
    pub(super) async fn report(&self, of: UsageOf, span: &Span, by_key: bool) -> Result<UsageReport, Error> {
        let as_of = self.usage_complete_to();
        let query = UsageQuery { of, buckets: span.hours(), by_key, rows_max: REPORT_ROWS_MAX };
        let rows = self.read(self.store.usage(&query)).await?;
        if rows.len() >= usize::try_from(REPORT_ROWS_MAX).unwrap_or(usize::MAX) {
            return Err(too_large());
        }
        let mut report = UsageReport { buckets: Vec::new(), totals: UsageSum::default(), as_of, uncertain: Vec::new() };
        for row in rows {
            let Some((start, _)) = span.buckets.get(row.bucket) else { continue };
            let same = |bucket: &UsageBucket| {
                bucket.start == *start && bucket.key_id == row.key_id && bucket.environment == row.environment
            };
            if !report.buckets.last().is_some_and(same) {
                let sum = UsageSum::default();
                report.buckets.push(UsageBucket {
                    start: *start,
                    key_id: row.key_id,
                    environment: row.environment,
                    sum,
                });
            }
            if let Some(bucket) = report.buckets.last_mut() {
                bucket.sum.add(row.verdict, row.requests, row.credits);
            }
            report.totals.add(row.verdict, row.requests, row.credits);
        }
        if report.buckets.len() > BUCKETS_MAX {
            return Err(too_large());
        }
        Ok(report)
    }

    /// What was found uncertain.
    pub(super) async fn uncertain(
        &self,
        account: &AccountId,
        key: Option<KeyId>,
        span: &Span,
    ) -> Result<Vec<UncertainRow>, Error> {
        self.read(self.store.uncertain(account, key, span.all_hours(), UNCERTAIN_ROWS_MAX)).await
    }
}

/// What the store knows a flush by: unlike any other of this process or another, and the same whenever it is sent, also by the
/// process that finds it in the journal of this one.
pub(super) fn flush_id(incarnation: Incarnation, number: u64) -> [u8; 16] {
    let hash =
        Sha256::new_with_prefix("usage").chain_update(incarnation.0).chain_update(number.to_be_bytes()).finalize();
    hash.first_chunk().copied().unwrap_or_default()
}

/// Takes out of the meters what they have counted.
/// Of the next keys, as many as go into one flush: a key that could not be told of for hours has a row for each.
fn collect(id: [u8; 16], number: u64, entries: &mut Peekable<slice::Iter<'_, Arc<KeyEntry>>>, time: Time) -> Pending {
    let mut flush = UsageFlush { id, time, deltas: Vec::new(), activities: Vec::new() };
    let mut cells = Vec::new();
    while flush.deltas.len().max(flush.activities.len()) < FLUSH_ROWS_MAX {
        let Some(entry) = entries.next() else { break };
        let Drained { usage, last_use } = entry.with_meter(KeyMeter::drain);
        cells.extend(usage.iter().filter_map(|count| count.cell).inspect(|cell| cell.mark(number)));
        flush.deltas.extend(usage.into_iter().map(|count| UsageDelta {
            key_id: entry.id,
            hour: count.hour,
            verdict: count.verdict,
            requests: count.requests,
            credits: count.credits,
        }));
        flush.activities.extend(last_use.map(|(last_used_time, last_used_ip)| Activity {
            key_id: entry.id,
            last_used_time,
            last_used_ip,
        }));
    }
    Pending { flush, cells }
}

fn too_large() -> Error {
    let message = format!(
        "the answer would have more than {BUCKETS_MAX} buckets; ask for a shorter time or a coarser granularity"
    );
    Error::invalid("granularity", message)
}

/// What was used, in buckets.
#[derive(Debug)]
pub struct UsageReport {
    /// In order of start, key and environment.
    pub buckets: Vec<UsageBucket>,
    /// Their sum.
    pub totals: UsageSum,
    /// Up to when it is complete.
    pub as_of: Option<Time>,
    /// Units of which nobody knows whether they were spent.
    pub uncertain: Vec<UncertainRow>,
}

/// One hour, day or month.
#[derive(Debug)]
pub struct UsageBucket {
    /// Its first moment.
    pub start: Time,
    /// The key, where grouped by key.
    pub key_id: Option<KeyId>,
    /// The keys' environment.
    pub environment: Environment,
    /// What was used.
    pub sum: UsageSum,
}

/// Checks, by how they ended.
#[derive(Debug, Default)]
pub struct UsageSum {
    /// How many ended so.
    pub by_verdict: HashMap<Verdict, u64>,
    /// Credits charged, in cost units.
    pub credits: u64,
}

impl UsageSum {
    fn add(&mut self, verdict: Verdict, requests: u64, credits: u64) {
        *self.by_verdict.entry(verdict).or_default() += requests;
        self.credits += credits;
    }

    /// All of them.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.by_verdict.values().sum()
    }

    /// Those that were allowed.
    #[must_use]
    pub fn allowed(&self) -> u64 {
        self.by_verdict.get(&Verdict::Allowed).copied().unwrap_or(0)
    }
}

/// Length of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// An hour.
    Hour,
    /// A day in the account's time zone.
    Day,
    /// A month in the account's time zone.
    Month,
}

impl Granularity {
    /// Most buckets of one kind in an answer.
    const fn buckets_max(self) -> usize {
        match self {
            Self::Hour => 31 * 24,
            Self::Day => 400,
            Self::Month => 120,
        }
    }
}

/// A stretch of time, cut into buckets.
#[derive(Debug)]
pub(super) struct Span {
    buckets: Vec<(Time, Time)>,
}

impl Span {
    /// From the bucket that holds `start` to the one that holds the last moment before `end`.
    pub(super) fn new(granularity: Granularity, zone: &TimeZone, start: Time, end: Time) -> Result<Self, Error> {
        if end <= start {
            return Err(Error::invalid("end_time", format!("`{end}` is not after `{start}`, where the report begins")));
        }
        let out_of_range = |_| Error::invalid("start_time", "lies outside the years that the calendar knows");
        let first = jiff::Timestamp::from_millisecond(start.millis()).map_err(out_of_range)?;
        let local = first.to_zoned(zone.as_jiff().clone());
        let (mut cursor, step) = match granularity {
            Granularity::Hour => {
                (local.round(ZonedRound::new().smallest(Unit::Hour).mode(jiff::RoundMode::Trunc)), 1.hour())
            }
            Granularity::Day => (local.start_of_day(), 1.day()),
            Granularity::Month => (local.first_of_month().and_then(|first| first.start_of_day()), 1.month()),
        };
        let mut buckets = Vec::new();
        loop {
            let from = cursor.map_err(out_of_range)?;
            let begins = Time::from_millis(from.timestamp().as_millisecond());
            if begins >= end {
                return Ok(Self { buckets });
            }
            if buckets.len() >= granularity.buckets_max() {
                let message =
                    format!("at most {} buckets of this granularity fit into one answer", granularity.buckets_max());
                return Err(Error::invalid("start_time", message));
            }
            cursor = from.checked_add(step);
            let ends = cursor.as_ref().map_or(Time::MAX, |next| Time::from_millis(next.timestamp().as_millisecond()));
            buckets.push((begins, ends));
        }
    }

    /// From the first hour of the first bucket to the last one's end.
    fn all_hours(&self) -> Range<i64> {
        let hours = self.hours();
        hours.first().zip(hours.last()).map_or(0..0, |((start, _), (_, end))| *start..*end)
    }

    /// The buckets in whole hours since 1970: an hour belongs to the bucket in which it began.
    fn hours(&self) -> Vec<(i64, i64)> {
        let first_hour = |time: &Time| -(-time.millis()).div_euclid(3_600_000);
        self.buckets.iter().map(|(start, end)| (first_hour(start), first_hour(end))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        Time::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn spans_are_cut_on_the_accounts_calendar() {
        let berlin = TimeZone::parse("Europe/Berlin").unwrap();
        let days =
            Span::new(Granularity::Day, &berlin, at("2026-03-28T12:00:00Z"), at("2026-03-30T00:00:00Z")).unwrap();
        let lengths: Vec<i64> = days.hours().iter().map(|(start, end)| end - start).collect();
        assert_eq!(lengths, [24, 23, 24]);
        assert_eq!(days.buckets[0].0, at("2026-03-27T23:00:00Z"));
        let months =
            Span::new(Granularity::Month, &TimeZone::UTC, at("2026-01-31T23:00:00Z"), at("2026-03-01T00:00:00Z"))
                .unwrap();
        assert_eq!(months.buckets.len(), 2);
        let hours =
            Span::new(Granularity::Hour, &TimeZone::UTC, at("2026-01-01T00:59:59Z"), at("2026-01-01T01:00:00.001Z"))
                .unwrap();
        assert_eq!(hours.buckets.len(), 2);
        // An hour that began before local midnight belongs to the day in which it began.
        let kolkata = TimeZone::parse("Asia/Kolkata").unwrap();
        let day =
            Span::new(Granularity::Day, &kolkata, at("2026-01-02T00:00:00Z"), at("2026-01-02T00:00:01Z")).unwrap();
        assert_eq!(day.hours(), [(at("2026-01-01T19:00:00Z").hour(), at("2026-01-02T19:00:00Z").hour())]);
    }

    #[test]
    fn a_span_has_bounds() {
        let day = |days: i64| at("2026-01-01T00:00:00Z").plus_millis(days * 86_400_000);
        assert!(Span::new(Granularity::Day, &TimeZone::UTC, day(0), day(400)).is_ok());
        assert!(Span::new(Granularity::Day, &TimeZone::UTC, day(0), day(401)).is_err());
        assert!(Span::new(Granularity::Day, &TimeZone::UTC, day(1), day(1)).is_err());
        assert!(Span::new(Granularity::Hour, &TimeZone::UTC, Time::from_millis(i64::MIN), day(1)).is_err());
    }
}

//! Taking over from processes that ended without a word.
//!
//! What they had leased and what they had counted is settled with the store, as far as their journal tells; then the journal
//! is begun anew. Each step does nothing the second time, so that a process that is killed here takes nothing with it.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::domain::{Time, UsageDelta};
use crate::journal::{Journal, Left, LeftUsage, Opened};
use crate::store::{Closed, Closing, Incarnation, KnownSpends, StoreError, UsageFlush};

use super::Engine;
use super::usage::{FLUSH_ROWS_MAX, flush_id};

impl Engine {
    /// Settles what processes before this one left. They must be known to be gone. Called before anything is leased, and by
    /// [`Engine::load`].
    pub async fn take_over(&self) -> Result<(), StoreError> {
        let opened = self.options.journal.as_deref().and_then(open);
        let left = opened.as_ref().and_then(read);
        self.close_leases(left.as_ref()).await?;
        if let Some(left) = left {
            self.record_left_usage(left).await?;
        }
        if let Some(opened) = opened {
            // It is the first to be set: nobody is served yet.
            _ = self.journal.set(begin(&opened, self.incarnation())?);
        }
        Ok(())
    }

    async fn close_leases(&self, left: Option<&Left>) -> Result<(), StoreError> {
        let known =
            left.map(|left| KnownSpends { incarnation: Incarnation(left.incarnation), counters: left.spends.clone() });
        let policy = self.options.uncertain;
        let (survivor, now) = (self.incarnation(), self.clock.now());
        let closing = Closing::at_start(survivor, now, policy, known.as_ref());
        let Closed { known, uncertain } = self.store.close_leases(&closing).await?;
        let units = uncertain.iter().map(|lease| lease.units).fold(0, u64::saturating_add);
        self.leases.uncertain.store(units, Ordering::Relaxed);
        if known > 0 {
            tracing::info!(
                leases = known,
                "the process before was killed: what it had leased and not spent was given back"
            );
        }
        if units > 0 {
            tracing::warn!(
                leases = uncertain.len(),
                units,
                ?policy,
                "a process before ended without a word: nobody knows whether it spent what it had leased last"
            );
        }
        Ok(())
    }

    /// Sends what was counted under the ids under which it was sent before, so that it counts once. What was not sent has ids
    /// too that are the same whenever it is.
    async fn record_left_usage(&self, left: Left) -> Result<(), StoreError> {
        let Left { incarnation, spends: _, mut usage } = left;
        let checks = usage.iter().map(|one| one.requests).fold(0, u64::saturating_add);
        if checks == 0 {
            return Ok(());
        }
        // Of those with the same number the order stays, which is that of the file.
        usage.sort_by_key(|one| one.flush);
        let unsent = usage.partition_point(|one| one.flush == 0);
        let (unsent, sent) = usage.split_at(unsent);
        let sent = sent.chunk_by(|one, other| one.flush == other.flush);
        let sent = sent.filter_map(|part| Some((part.first()?.flush, part)));
        // Counted down, so that these numbers are no flush's.
        let unsent = (1..=u64::MAX).rev().zip(unsent.chunks(FLUSH_ROWS_MAX));
        for (number, part) in sent.chain(unsent) {
            let id = flush_id(Incarnation(incarnation), number);
            let deltas = part.iter().map(delta).collect();
            // As if long ago: a later time would have the store forget the ids of other flushes that are still to be told apart.
            let flush = UsageFlush { id, time: Time::from_millis(0), deltas, activities: Vec::new() };
            self.store.record_usage(&flush).await?;
        }
        tracing::info!(checks, "what the process before had counted and not written was written");
        Ok(())
    }
}

fn delta(left: &LeftUsage) -> UsageDelta {
    let LeftUsage { flush: _, key, hour, verdict, requests, credits } = *left;
    UsageDelta { key_id: key, hour, verdict, requests, credits }
}

fn open(path: &Path) -> Option<Opened> {
    Opened::open(path).inspect_err(|error| warn(path, error)).ok()
}

fn read(opened: &Opened) -> Option<Left> {
    opened.left().inspect_err(|error| warn(opened.path(), error)).ok().flatten()
}

/// A new journal in the place of what was left, which is in the store. None where that can't be made; then what was left must at
/// least not be found again, or it would count twice.
fn begin(opened: &Opened, incarnation: Incarnation) -> Result<Journal, StoreError> {
    opened.begin(incarnation.0).or_else(|error| {
        warn(opened.path(), &error);
        let path = opened.path().display();
        let stuck = |error| StoreError::Unavailable(format!("the journal `{path}` can't be marked as read: {error}"));
        opened.forget().map_err(stuck)?;
        Ok(Journal::default())
    })
}

fn warn(path: &Path, error: &std::io::Error) {
    let path = path.display();
    tracing::warn!(%path, %error, "no journal is kept: if this process is killed, the last second of usage is lost and leases are uncertain");
}

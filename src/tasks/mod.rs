//! What runs beside the calls. Each task takes no input: it has a period and a wake, looks at the state, and does what is
//! due, so that a restart, a failure and an ordinary round are the same path.
//!
//! | task | does | after a crash |
//! | --- | --- | --- |
//! | `flush` | writes usage to the store | the next process finds in the journal what was counted since the last round; nothing counts twice |
//! | `lease` | asks the store for what checks may spend | the next process finds in the journal what was spent; without one, all that was leased counts as spent |
//! | `renew` | extends the expiry of keys that renew themselves | the next round finds the same keys still due |
//! | `follow` | asks the database that several processes share what has changed | starts from a snapshot |
//! | `bury` | closes the leases of processes that fell silent | another process does it |
//! | `freshness` | says whether the process is ready: it is not while it has had no word from that database | starts from the state |
//! | `observe` | sets the gauges of `/metrics` | starts from the state |

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Error, LeaseStats, ReplicaStats};
use crate::telemetry::Condition;
use crate::telemetry::metrics::Metrics;

const RENEW_PERIOD: Duration = Duration::from_secs(15);
const BURY_PERIOD: Duration = Duration::from_secs(1);
const FRESHNESS_PERIOD: Duration = Duration::from_millis(50);
const OBSERVE_PERIOD: Duration = Duration::from_secs(1);

/// The tasks of a process.
#[derive(Debug)]
pub struct Tasks {
    stop: CancellationToken,
    handles: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Starts them on the current runtime. The index is loaded.
    #[must_use]
    pub fn start(engine: &Arc<Engine>, metrics: &Arc<Metrics>, fresh: Condition, flush_period: Duration) -> Self {
        let stop = CancellationToken::new();
        let follow = tokio::spawn({
            let (engine, stop) = (Arc::clone(engine), stop.clone());
            async move { engine.follow(stop.cancelled()).await }
        });
        let bury = every(BURY_PERIOD, stop.clone(), {
            let engine = Arc::clone(engine);
            move || {
                let engine = Arc::clone(&engine);
                async move { engine.bury_the_silent().await }
            }
        });
        fresh.set(engine.is_fresh());
        let freshness = every(FRESHNESS_PERIOD, stop.clone(), {
            let engine = Arc::clone(engine);
            move || {
                fresh.set(engine.is_fresh());
                std::future::ready(())
            }
        });
        let flush = every(flush_period, stop.clone(), {
            let (engine, metrics) = (Arc::clone(engine), Arc::clone(metrics));
            move || flush(Arc::clone(&engine), Arc::clone(&metrics))
        });
        let lease = tokio::spawn({
            let (engine, stop) = (Arc::clone(engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        let renew = every(RENEW_PERIOD, stop.clone(), {
            let engine = Arc::clone(engine);
            move || renew(Arc::clone(&engine))
        });
        let observe = every(OBSERVE_PERIOD, stop.clone(), {
            let (engine, metrics) = (Arc::clone(engine), Arc::clone(metrics));
            move || {
                observe(&engine, &metrics);
                std::future::ready(())
            }
        });
        Self { stop, handles: vec![flush, lease, renew, observe, follow, bury, freshness] }
    }

    /// Lets each finish the round that it is in, and ends it.
    pub async fn stop(self) {
        self.stop.cancel();
        for handle in self.handles {
            if let Err(error) = handle.await {
                tracing::error!(%error, "a task ended by a panic");
            }
        }
    }
}

/// Runs a round at once and then every so often, until it is told to stop. Rounds never overlap.
fn every<F, Fut>(period: Duration, stop: CancellationToken, mut round: F) -> JoinHandle<()>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => round().await,
            }
        }
    })
}

/// Writes usage to the store. Where it can't be, it waits in memory; the engine says so in the log.
pub async fn flush(engine: Arc<Engine>, metrics: Arc<Metrics>) {
    let clock = engine.clock();
    let start = clock.monotonic();
    match engine.flush_usage().await {
        Ok(_) => metrics.usage_flushed(clock.now(), clock.monotonic().saturating_sub(start)),
        Err(_) => metrics.usage_flush_failed(),
    }
}

async fn renew(engine: Arc<Engine>) {
    match engine.renew_keys().await {
        // That the store fails is in the log already.
        Ok(0) | Err(Error::Unavailable(_)) => {}
        Ok(keys) => tracing::info!(keys, "keys renewed themselves"),
        Err(error) => tracing::error!(%error, "keys could not renew themselves; it is tried again in {RENEW_PERIOD:?}"),
    }
}

fn observe(engine: &Engine, metrics: &Metrics) {
    let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let (keys, accounts, revision) = engine.index_size();
    metrics.index_keys.set(gauge(keys));
    metrics.index_accounts.set(gauge(accounts));
    metrics.revision.set(revision.number());
    let LeaseStats { rounds, waits, uncertain_units, is_journal_on } = engine.lease_stats();
    metrics.journal_on.set(i64::from(is_journal_on));
    for (counter, total) in [
        (&metrics.lease_rounds, rounds),
        (&metrics.lease_waits, waits),
        (&metrics.lease_uncertain_units, uncertain_units),
    ] {
        counter.inc_by(total.saturating_sub(counter.get()));
    }
    if let Some(ReplicaStats { fence_age, fenced, log_lag, alive }) = engine.replica_stats() {
        metrics.replica_fence_age.set(fence_age.as_secs_f64());
        metrics.replica_fenced.set(i64::from(fenced));
        metrics.replica_log_lag.set(log_lag);
        metrics.replicas_alive.set(gauge(alive));
    } else {
        metrics.replicas_alive.set(1);
    }
    metrics.usage_pending_rows.set(gauge(engine.usage_lag().0));
}

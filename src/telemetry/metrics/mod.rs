//! The metrics, each with a field or a method. What every check touches is counted in shards of its thread; the rest
//! is plain atomics of `prometheus-client`.
//!
//! To add one: a field here, registered by [`Metrics::new`] with its unit last in the name and without `_total`, which
//! counters are given when they are written out. Labels come from sets that are fixed in the code, never from callers.

mod exposition;
mod process;
mod rpc;
mod sharded;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use crate::domain::{Time, Verdict};

pub use exposition::Format;
use rpc::RpcDurations;
pub use rpc::RpcLabel;
use sharded::Counters;

/// One label, of a fixed set of values.
type Label = [(&'static str, &'static str); 1];
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

/// Why a connection was turned away, or closed before it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// As many are open as may be.
    ConnectionsMax,
    /// The peer did not begin to speak HTTP/2 in time, or spoke something else.
    Preface,
    /// The TLS handshake failed or took too long.
    TlsHandshake,
    /// The system could not accept it, for want of file descriptors for instance.
    Accept,
}

impl Refusal {
    const ALL: [Self; 4] = [Self::ConnectionsMax, Self::Preface, Self::TlsHandshake, Self::Accept];

    fn label(self) -> Label {
        let name = match self {
            Self::ConnectionsMax => "connections_max",
            Self::Preface => "preface",
            Self::TlsHandshake => "tls_handshake",
            Self::Accept => "accept",
        };
        [("reason", name)]
    }
}

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub struct Metrics {
    /// `tollgate_index_keys`: keys in the index.
    pub index_keys: Gauge,
    /// `tollgate_index_accounts`: accounts in the index.
    pub index_accounts: Gauge,
    /// `tollgate_revision`: the revision of the store up to which the index is current.
    pub revision: Gauge,
    /// `tollgate_usage_pending_rows`: rows of usage that wait to be written.
    pub usage_pending_rows: Gauge,
    /// `tollgate_lease_rounds_total`: times that the store was asked for leases.
    pub lease_rounds: Counter,
    /// `tollgate_lease_waits_total`: times that a check waited for a lease.
    pub lease_waits: Counter,
    /// `tollgate_lease_uncertain_units_total`: cost units that processes before this one had leased and not reported.
    pub lease_uncertain_units: Counter,
    /// `tollgate_replica_fence_age_seconds`: since the start of the last poll of the shared database that was answered.
    pub replica_fence_age: Gauge<f64, AtomicU64>,
    /// `tollgate_replica_fenced`: 1 where that is too long ago to admit anything.
    pub replica_fenced: Gauge,
    /// `tollgate_replica_log_lag_revisions`: revisions that the last poll told of and that are not applied.
    pub replica_log_lag: Gauge,
    /// `tollgate_replicas_alive`: processes that share the database and are not fenced, this one included.
    pub replicas_alive: Gauge,
    /// `tollgate_journal_on`: 1 where what is spent is kept for the case that this process is killed.
    pub journal_on: Gauge,
    /// `tollgate_connections`: open gRPC connections.
    pub connections: Gauge,
    /// `tollgate_requests_shed_total`: requests turned away because too many were under way.
    pub requests_shed: Counter,
    /// `tollgate_request_timeouts_total`: requests that were given up at their deadline.
    pub request_timeouts: Counter,
    usage_last_flush: Gauge<f64, AtomicU64>,
    usage_flush_duration: Histogram,
    usage_flush_errors: Counter,
    store_duration: Histograms,
    store_errors: Family<Label, Counter>,
    connections_refused: Family<Label, Counter>,
    checks: Arc<Checks>,
    rpcs: Arc<RpcDurations>,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them, at 0.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            index_keys: Gauge::default(),
            index_accounts: Gauge::default(),
            revision: Gauge::default(),
            usage_pending_rows: Gauge::default(),
            lease_rounds: Counter::default(),
            lease_waits: Counter::default(),
            lease_uncertain_units: Counter::default(),
            replica_fence_age: Gauge::default(),
            replica_fenced: Gauge::default(),
            replica_log_lag: Gauge::default(),
            replicas_alive: Gauge::default(),
            journal_on: Gauge::default(),
            connections: Gauge::default(),
            requests_shed: Counter::default(),
            request_timeouts: Counter::default(),
            usage_last_flush: Gauge::default(),
            usage_flush_duration: histogram(),
            usage_flush_errors: Counter::default(),
            store_duration: Family::new_with_constructor(histogram),
            store_errors: Family::default(),
            connections_refused: Family::default(),
            checks: Arc::new(Checks(Counters::new(Verdict::ALL.len()))),
            rpcs: Arc::new(RpcDurations::new()),
            registry: Registry::default(),
        };
        for refusal in Refusal::ALL {
            metrics.connections_refused.get_or_create(&refusal.label()).inc_by(0);
        }
        metrics.register();
        metrics.register_replica();
        metrics
    }

    fn register(&mut self) {
        self.registry.register_collector(Box::<process::Process>::default());
        let own = self.registry.sub_registry_with_prefix("tollgate");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let build_info = Family::<Label, Gauge>::default();
        build_info.get_or_create(&version).set(1);
        own.register("build_info", "The version that runs, as a label", build_info);
        own.register_collector(Box::new(Arc::clone(&self.checks)));
        own.register_collector(Box::new(Arc::clone(&self.rpcs)));

        own.register("index_keys", "Keys in the index", self.index_keys.clone());
        own.register("index_accounts", "Accounts in the index", self.index_accounts.clone());
        own.register("revision", "Revision of the store up to which the index is current", self.revision.clone());

        own.register("usage_pending_rows", "Rows of usage waiting to be written", self.usage_pending_rows.clone());
        own.register("usage_flush_errors", "Failed writes of usage", self.usage_flush_errors.clone());
        own.register_with_unit(
            "usage_flush_duration",
            "Time that a write of usage took",
            Unit::Seconds,
            self.usage_flush_duration.clone(),
        );
        own.register_with_unit(
            "usage_last_flush_timestamp",
            "When usage was last written, since 1970; 0 before the first time",
            Unit::Seconds,
            self.usage_last_flush.clone(),
        );
        own.register_with_unit(
            "store_duration",
            "Time that an operation of the store took",
            Unit::Seconds,
            self.store_duration.clone(),
        );
        own.register("store_errors", "Failed operations of the store", self.store_errors.clone());

        own.register("lease_rounds", "Times that the store was asked for leases", self.lease_rounds.clone());
        own.register("lease_waits", "Times that a check waited for a lease", self.lease_waits.clone());
        own.register(
            "lease_uncertain_units",
            "Cost units leased by processes that ended without a word, of which nobody knows whether they were spent",
            self.lease_uncertain_units.clone(),
        );

        own.register(
            "journal_on",
            "1 where nothing is lost or uncertain if this process is killed, 0 where no journal can be kept",
            self.journal_on.clone(),
        );

        own.register("connections", "Open gRPC connections", self.connections.clone());
        own.register(
            "connections_refused",
            "Connections turned away or closed before use",
            self.connections_refused.clone(),
        );
        own.register(
            "requests_shed",
            "Requests turned away because too many were under way",
            self.requests_shed.clone(),
        );
        own.register("request_timeouts", "Requests given up at their deadline", self.request_timeouts.clone());
    }

    fn register_replica(&mut self) {
        let own = self.registry.sub_registry_with_prefix("tollgate");
        own.register(
            "replica_fence_age_seconds",
            "Since the start of the last poll of the shared database that was answered",
            self.replica_fence_age.clone(),
        );
        own.register(
            "replica_fenced",
            "1 where nothing is admitted because that is too long ago",
            self.replica_fenced.clone(),
        );
        own.register(
            "replica_log_lag_revisions",
            "Revisions that the last poll told of and that are not applied",
            self.replica_log_lag.clone(),
        );
        own.register(
            "replicas_alive",
            "Processes that share the database and are not fenced, this one included",
            self.replicas_alive.clone(),
        );
    }

    /// Counts a check.
    pub fn check(&self, verdict: Verdict) {
        self.checks.0.add(usize::from(verdict.number()) - 1, 1);
    }

    /// Counts a call that was answered with `code`.
    pub fn rpc(&self, rpc: RpcLabel, code: Code, took: Duration) {
        self.rpcs.record(rpc, code, took);
    }

    /// Counts an operation of the store. Its name is lower case with `_`, as in `create_key`.
    pub fn store(&self, operation: &'static str, took: Duration, failed: bool) {
        let label = [("operation", operation)];
        self.store_duration.get_or_create(&label).observe(took.as_secs_f64());
        // Made in any case, so that a first error is seen as an increase from 0.
        self.store_errors.get_or_create(&label).inc_by(u64::from(failed));
    }

    /// Counts a write of usage that succeeded and ended at `now`.
    pub fn usage_flushed(&self, now: Time, took: Duration) {
        self.usage_flush_duration.observe(took.as_secs_f64());
        let millis = u64::try_from(now.millis()).unwrap_or(0);
        self.usage_last_flush.set(Duration::from_millis(millis).as_secs_f64());
    }

    /// Counts a write of usage that failed.
    pub fn usage_flush_failed(&self) {
        self.usage_flush_errors.inc();
    }

    /// Counts a connection that was turned away.
    pub fn refused(&self, refusal: Refusal) {
        self.connections_refused.get_or_create(&refusal.label()).inc();
    }

    /// Everything as text.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        exposition::encode(&self.registry, format)
    }
}

fn histogram() -> Histogram {
    Histogram::new(rpc::bounds_seconds())
}

/// `tollgate_checks_total`, at the place of each verdict's number less one.
struct Checks(Counters);

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checks").finish_non_exhaustive()
    }
}

impl Collector for Checks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric =
            encoder.encode_descriptor("checks", "Checks answered, by verdict.", None, MetricType::Counter)?;
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            let labels = [("verdict", verdict.name())];
            metric.encode_family(&labels)?.encode_counter::<Label, _, f64>(&self.0.sum(index), None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::new();
        metrics.check(Verdict::Allowed);
        metrics.check(Verdict::Throttled);
        metrics.rpc(RpcLabel::from_path("/tollgate.v1.KeyService/CheckKey"), Code::Ok, Duration::from_micros(60));
        metrics.rpc(RpcLabel::OTHER, Code::Unimplemented, Duration::from_secs(11));
        metrics.index_keys.set(7);
        metrics.store("create_key", Duration::from_millis(2), false);
        metrics.usage_flushed(Time::from_millis(1_500), Duration::from_millis(3));
        metrics.refused(Refusal::Preface);
        let text = metrics.encode(Format::Prometheus).unwrap();
        for line in [
            "# TYPE tollgate_checks_total counter",
            "tollgate_checks_total{verdict=\"ALLOWED\"} 1",
            "tollgate_checks_total{verdict=\"REVOKED\"} 0",
            "tollgate_checks_total{verdict=\"THROTTLED\"} 1",
            "tollgate_rpc_duration_seconds_bucket{le=\"0.00005\",rpc=\"tollgate.v1.KeyService/CheckKey\",code=\"OK\"} 0",
            "tollgate_rpc_duration_seconds_bucket{le=\"0.0001\",rpc=\"tollgate.v1.KeyService/CheckKey\",code=\"OK\"} 1",
            "tollgate_rpc_duration_seconds_bucket{le=\"10.0\",rpc=\"other\",code=\"UNIMPLEMENTED\"} 0",
            "tollgate_rpc_duration_seconds_bucket{le=\"+Inf\",rpc=\"other\",code=\"UNIMPLEMENTED\"} 1",
            "tollgate_rpc_duration_seconds_sum{rpc=\"other\",code=\"UNIMPLEMENTED\"} 11.0",
            "tollgate_index_keys 7",
            "tollgate_store_errors_total{operation=\"create_key\"} 0",
            "tollgate_usage_last_flush_timestamp_seconds 1.5",
            "tollgate_connections_refused_total{reason=\"preface\"} 1",
            "tollgate_connections_refused_total{reason=\"tls_handshake\"} 0",
            "tollgate_requests_shed_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "`{line}` is missing in\n{text}");
        }
        let open = metrics.encode(Format::OpenMetrics).unwrap();
        assert!(open.ends_with("# EOF\n") && open.contains("# TYPE tollgate_checks counter\n"), "{open}");
    }
}

//! How long calls took, by method and outcome.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use tonic::Code;

use super::sharded::Counters;

/// Every method that is served, with the hot ones first, because the table is searched in order. A method that is not
/// here counts as `other`; a test compares the table with the contract.
const METHODS: [&str; 29] = [
    "tollgate.v1.KeyService/CheckKey",
    "envoy.service.auth.v3.Authorization/Check",
    "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
    "grpc.health.v1.Health/Check",
    "tollgate.v1.KeyService/CreateKey",
    "tollgate.v1.KeyService/GetKey",
    "tollgate.v1.KeyService/ListKeys",
    "tollgate.v1.KeyService/UpdateKey",
    "tollgate.v1.KeyService/RotateKey",
    "tollgate.v1.KeyService/RevokeKey",
    "tollgate.v1.KeyService/GetUsage",
    "tollgate.v1.KeyService/GetSelf",
    "tollgate.v1.KeyService/GetLimits",
    "tollgate.v1.KeyService/RefundCheck",
    "tollgate.v1.KeyService/ImportKeys",
    "tollgate.v1.AccountService/CreateAccount",
    "tollgate.v1.AccountService/GetAccount",
    "tollgate.v1.AccountService/ListAccounts",
    "tollgate.v1.AccountService/UpdateAccount",
    "tollgate.v1.AccountService/AdjustCredits",
    "tollgate.v1.PlanService/CreatePlan",
    "tollgate.v1.PlanService/GetPlan",
    "tollgate.v1.PlanService/ListPlans",
    "tollgate.v1.PlanService/UpdatePlan",
    "tollgate.v1.PlanService/DeletePlan",
    "grpc.health.v1.Health/Watch",
    "grpc.health.v1.Health/List",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Which method was called, as a metric may say it: one of a fixed set, whatever paths callers think up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RpcLabel(usize);

impl RpcLabel {
    /// Any method that is not served.
    pub const OTHER: Self = Self(METHODS.len());

    /// By the path of the request, as in `/tollgate.v1.KeyService/CheckKey`.
    #[must_use]
    pub fn from_path(path: &str) -> Self {
        let name = path.strip_prefix('/').unwrap_or_default();
        METHODS.iter().position(|method| *method == name).map_or(Self::OTHER, Self)
    }

    /// The method's full name, as in `tollgate.v1.KeyService/CheckKey`, or `other`.
    #[must_use]
    pub fn name(self) -> &'static str {
        METHODS.get(self.0).copied().unwrap_or("other")
    }
}

/// Every code, at the place of its number.
const CODES: [(Code, &str); 17] = [
    (Code::Ok, "OK"),
    (Code::Cancelled, "CANCELLED"),
    (Code::Unknown, "UNKNOWN"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::Aborted, "ABORTED"),
    (Code::OutOfRange, "OUT_OF_RANGE"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Internal, "INTERNAL"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::DataLoss, "DATA_LOSS"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
];

/// Upper bounds of the buckets but the last, in nanoseconds: 50 µs to 10 s.
const BOUNDS_NS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Upper bounds of latency histograms, in seconds.
pub(super) fn bounds_seconds() -> impl Iterator<Item = f64> {
    BOUNDS_NS.into_iter().map(|ns| Duration::from_nanos(ns).as_secs_f64())
}

/// Counters of a series: the buckets, the last of them unbounded, and the sum in nanoseconds.
const SERIES_LEN: usize = BOUNDS_NS.len() + 2;
const SUM: usize = SERIES_LEN - 1;

/// `tollgate_rpc_duration_seconds`. Recording takes two additions in the thread's own shard.
pub(super) struct RpcDurations(Counters);

impl RpcDurations {
    pub(super) fn new() -> Self {
        Self(Counters::new((METHODS.len() + 1) * CODES.len() * SERIES_LEN))
    }

    pub(super) fn record(&self, rpc: RpcLabel, code: Code, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.iter().take_while(|bound| ns > **bound).count();
        let series = series(rpc.0, usize::try_from(i32::from(code)).unwrap_or(0));
        self.0.add(series + bucket, 1);
        self.0.add(series + SUM, ns);
    }
}

fn series(rpc: usize, code: usize) -> usize {
    (rpc * CODES.len() + code) * SERIES_LEN
}

impl fmt::Debug for RpcDurations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcDurations").finish_non_exhaustive()
    }
}

impl Collector for RpcDurations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "rpc_duration",
            "Time from a call's arrival to its answer.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for rpc in 0..=METHODS.len() {
            for (code, (_, code_name)) in CODES.iter().enumerate() {
                let series = series(rpc, code);
                let buckets: Vec<(f64, u64)> = bounds_seconds()
                    .chain([f64::INFINITY])
                    .enumerate()
                    .map(|(i, bound)| (bound, self.0.sum(series + i)))
                    .collect();
                let count = buckets.iter().map(|(_, n)| n).sum();
                if count == 0 {
                    continue;
                }
                let sum = Duration::from_nanos(self.0.sum(series + SUM)).as_secs_f64();
                let labels = [("rpc", RpcLabel(rpc).name()), ("code", code_name)];
                metric.encode_family(&labels)?.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_method_of_the_contract_has_its_label() {
        let files = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap();
        let mut served = 0;
        for file in files.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    assert_eq!(RpcLabel::from_path(&format!("/{name}")).name(), name, "missing in METHODS");
                    served += 1;
                }
            }
        }
        assert!(served >= 22, "only {served} methods");
    }

    #[test]
    fn invented_methods_share_one_label() {
        for path in ["", "/", "/tollgate.v1.KeyService/Nope", "tollgate.v1.KeyService/CheckKey", "//x"] {
            assert_eq!(RpcLabel::from_path(path).name(), "other", "{path}");
        }
    }

    #[test]
    fn codes_stand_at_the_place_of_their_numbers() {
        for (number, (code, _)) in (0..).zip(CODES) {
            assert_eq!(i32::from(code), number);
        }
    }
}

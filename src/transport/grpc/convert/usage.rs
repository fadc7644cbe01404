//! Usage.

use crate::domain::{Invalid, KeyId, Subject, Time};
use crate::engine::{Error, Granularity, UsageReport, UsageSum};
use crate::proto::v1;
use crate::store::{UncertainRow, UsageOf};

use super::fields::{Violations, account_id_from, environment_to, known, optional_time_from, timestamp_to};
use super::limit::units_to;

/// What is asked for.
#[derive(Debug)]
pub(in crate::transport::grpc) struct UsageRequest {
    pub(in crate::transport::grpc) of: Option<UsageOf>,
    pub(in crate::transport::grpc) granularity: Granularity,
    pub(in crate::transport::grpc) time: (Option<Time>, Option<Time>),
    pub(in crate::transport::grpc) by_key: bool,
}

pub(in crate::transport::grpc) fn usage_from(request: v1::GetUsageRequest) -> Result<UsageRequest, Error> {
    let v1::GetUsageRequest { account_id, key_id, start_time, end_time, granularity, group_by_key } = request;
    let mut violations = Violations::default();
    let start = optional_time_from(&mut violations, "start_time", start_time.as_ref());
    let end = optional_time_from(&mut violations, "end_time", end_time.as_ref());
    let granularity = violations.take_or("granularity", granularity_from(granularity), || Granularity::Day);
    if !account_id.is_empty() && !key_id.is_empty() {
        violations.add("key_id", "goes without `account_id`: name one of the two");
    }
    violations.check()?;
    let of = match (account_id.as_str(), key_id.as_str()) {
        ("", "") => None,
        ("", id) => Some(UsageOf::Key(KeyId::parse(id).ok_or_else(|| Error::no_key(id))?)),
        (id, _) => Some(UsageOf::Account(account_id_from("account_id", id)?)),
    };
    Ok(UsageRequest { of, granularity, time: (start, end), by_key: group_by_key })
}

fn granularity_from(granularity: i32) -> Result<Granularity, Invalid> {
    Ok(match known(granularity, "GRANULARITY_HOUR, GRANULARITY_DAY and GRANULARITY_MONTH")? {
        v1::Granularity::Unspecified | v1::Granularity::Day => Granularity::Day,
        v1::Granularity::Hour => Granularity::Hour,
        v1::Granularity::Month => Granularity::Month,
    })
}

pub(in crate::transport::grpc) fn usage_to(report: &UsageReport) -> v1::GetUsageResponse {
    let buckets = report.buckets.iter().map(|bucket| v1::UsageBucket {
        start_time: Some(timestamp_to(bucket.start)),
        key_id: bucket.key_id.map(|id| id.to_string()).unwrap_or_default(),
        environment: environment_to(bucket.environment).into(),
        ..sum_to(&bucket.sum)
    });
    v1::GetUsageResponse {
        buckets: buckets.collect(),
        totals: Some(sum_to(&report.totals)),
        as_of: report.as_of.map(timestamp_to),
        uncertain: report.uncertain.iter().map(uncertain_to).collect(),
    }
}

fn uncertain_to(row: &UncertainRow) -> v1::UncertainUnits {
    let UncertainRow { budget, hour, given_back, units } = row;
    let hour = Some(timestamp_to(Time::from_millis(hour.saturating_mul(3_600_000))));
    let common =
        v1::UncertainUnits { hour, units: units_to(*units), given_back: *given_back, ..v1::UncertainUnits::default() };
    match budget.parse() {
        Some((Subject::Key(id), name)) => {
            v1::UncertainUnits { budget: name.to_owned(), key_id: id.to_string(), ..common }
        }
        Some((Subject::Account(_, environment), name)) => {
            let environment = environment_to(environment).into();
            v1::UncertainUnits { budget: name.to_owned(), environment, ..common }
        }
        None => v1::UncertainUnits { budget: budget.to_string(), ..common },
    }
}

fn sum_to(sum: &UsageSum) -> v1::UsageBucket {
    let by_verdict = sum.by_verdict.iter().map(|(verdict, requests)| (verdict.name().to_owned(), units_to(*requests)));
    v1::UsageBucket {
        requests: units_to(sum.requests()),
        allowed: units_to(sum.allowed()),
        denied: units_to(sum.requests().saturating_sub(sum.allowed())),
        by_verdict: by_verdict.collect(),
        credits: units_to(sum.credits),
        ..v1::UsageBucket::default()
    }
}

//! Limits.

use crate::domain::{Algorithm, Invalid, Limit, LimitName, Period, UNITS_MAX};
use crate::proto::v1;

use super::fields::known;

pub(super) fn limit_from(limit: &v1::Limit) -> Result<Limit, Invalid> {
    let v1::Limit { name, capacity, period, period_seconds, algorithm } = limit;
    let name = LimitName::parse(name)?;
    let labelled = |message: String| Invalid::new(format!("`{name}`: {message}"));
    let capacity = units_from(*capacity).map_err(|error| labelled(format!("`capacity` {error}")))?;
    let algorithm = match known(*algorithm, "ALGORITHM_FIXED_WINDOW and ALGORITHM_SLIDING_WINDOW")
        .map_err(|error| labelled(format!("`algorithm` {error}")))?
    {
        v1::Algorithm::Unspecified | v1::Algorithm::FixedWindow => Algorithm::FixedWindow,
        v1::Algorithm::SlidingWindow => Algorithm::SlidingWindow,
    };
    let period = period_from(*period, *period_seconds).map_err(|error| labelled(format!("`period` {error}")))?;
    Ok(Limit { name, capacity, period, algorithm })
}

fn period_from(period: i32, seconds: i32) -> Result<Period, Invalid> {
    const NAMES: &str = "PERIOD_MINUTE, PERIOD_HOUR, PERIOD_DAY, PERIOD_MONTH and PERIOD_SECONDS";
    let named = match known(period, NAMES)? {
        v1::Period::Unspecified => return Err(Invalid::new(format!("must be set; allowed are {NAMES}"))),
        v1::Period::Seconds => return Period::seconds(i64::from(seconds)),
        v1::Period::Minute => Period::Minute,
        v1::Period::Hour => Period::Hour,
        v1::Period::Day => Period::Day,
        v1::Period::Month => Period::Month,
    };
    if seconds != 0 {
        return Err(Invalid::new("goes with `period_seconds` only where it is PERIOD_SECONDS"));
    }
    Ok(named)
}

/// A capacity, allowance or the like.
pub(super) fn units_from(units: i64) -> Result<u64, Invalid> {
    let units = u64::try_from(units).map_err(|_| Invalid::new(format!("`{units}` is negative")))?;
    if units > UNITS_MAX {
        return Err(Invalid::new(format!("`{units}` is more than {UNITS_MAX}")));
    }
    Ok(units)
}

/// Units are far below where an `i64` ends.
pub(super) fn units_to(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

pub(super) fn limit_to(limit: &Limit) -> v1::Limit {
    let (period, period_seconds) = period_to(limit.period);
    v1::Limit {
        name: limit.name.to_string(),
        capacity: units_to(limit.capacity),
        period: period.into(),
        period_seconds,
        algorithm: algorithm_to(limit.algorithm).into(),
    }
}

pub(super) fn period_to(period: Period) -> (v1::Period, i32) {
    match period {
        Period::Minute => (v1::Period::Minute, 0),
        Period::Hour => (v1::Period::Hour, 0),
        Period::Day => (v1::Period::Day, 0),
        Period::Month => (v1::Period::Month, 0),
        Period::Seconds(seconds) => (v1::Period::Seconds, i32::try_from(seconds).unwrap_or(i32::MAX)),
    }
}

pub(super) fn algorithm_to(algorithm: Algorithm) -> v1::Algorithm {
    match algorithm {
        Algorithm::FixedWindow => v1::Algorithm::FixedWindow,
        Algorithm::SlidingWindow => v1::Algorithm::SlidingWindow,
    }
}

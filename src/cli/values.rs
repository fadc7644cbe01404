//! How values are written on the command line.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use prost_types::Timestamp;

use crate::ambient::Clock;
use crate::config::{parse_duration, period};
use crate::domain;
use crate::proto::v1::{Algorithm, Environment, Limit, Period};

/// A length of time: `500ms`, `30s`, `15m`, `12h`, `90d`.
pub(super) fn length(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a number and `ms`, `s`, `m`, `h` or `d`, as in `30s`".into())
}

/// The same on the wire.
pub(super) fn wire_length(length: Duration) -> Result<prost_types::Duration, String> {
    length.try_into().map_err(|_| "is too long".into())
}

/// A point in time that lies ahead: RFC 3339, or a length of time from now.
pub(super) fn time_ahead(text: &str) -> Result<Timestamp, String> {
    moment(text, 1)
}

/// A point in time that has passed: RFC 3339, or a length of time before now.
pub(super) fn time_ago(text: &str) -> Result<Timestamp, String> {
    moment(text, -1)
}

fn moment(text: &str, sign: i64) -> Result<Timestamp, String> {
    if let Some(length) = parse_duration(text) {
        let millis = i64::try_from(length.as_millis()).map_err(|_| "is too long".to_owned())?;
        let at = Clock::system().now().plus_millis(millis.saturating_mul(sign));
        // Whole seconds: nobody who writes `30d` means its milliseconds.
        return Ok(Timestamp { seconds: at.seconds(), nanos: 0 });
    }
    // A date alone, which the wire's own parser takes, leaves open in which zone.
    let time = text.parse::<jiff::Timestamp>().ok().and_then(|_| text.parse().ok());
    time.ok_or_else(|| "expected a time such as `2027-01-01T00:00:00Z`, or a length of time such as `30d`".into())
}

/// `NAME=CAPACITY/PERIOD`, and `:sliding` for a sliding window.
pub(super) fn limit(text: &str) -> Result<Limit, String> {
    const SHAPE: &str = "expected `NAME=CAPACITY/PERIOD`, as in `per-minute=100/minute` or `burst=10/1s:sliding`";
    let (name, rest) = text.split_once('=').ok_or(SHAPE)?;
    let (capacity, window) = rest.split_once('/').ok_or(SHAPE)?;
    let (window, algorithm) = match window.split_once(':') {
        None | Some((_, "fixed")) => (window.split(':').next().unwrap_or(window), Algorithm::FixedWindow),
        Some((window, "sliding")) => (window, Algorithm::SlidingWindow),
        Some((_, other)) => return Err(format!("`{other}` is neither `fixed` nor `sliding`")),
    };
    let name = domain::LimitName::parse(name).map_err(|error| error.to_string())?;
    let capacity = capacity.parse().map_err(|_| SHAPE)?;
    let period = period(window).map_err(|error| error.to_string())?;
    let (period, period_seconds) = wire_period(period);
    Ok(Limit { name: name.to_string(), capacity, period: period.into(), period_seconds, algorithm: algorithm.into() })
}

/// A period on the wire.
pub(super) fn wire_period(period: domain::Period) -> (Period, i32) {
    match period {
        domain::Period::Minute => (Period::Minute, 0),
        domain::Period::Hour => (Period::Hour, 0),
        domain::Period::Day => (Period::Day, 0),
        domain::Period::Month => (Period::Month, 0),
        domain::Period::Seconds(seconds) => (Period::Seconds, i32::try_from(seconds).unwrap_or(i32::MAX)),
    }
}

/// A limit as [`limit`] reads it.
pub(super) fn show_limit(limit: &Limit) -> String {
    let sliding = if limit.algorithm() == Algorithm::SlidingWindow { ":sliding" } else { "" };
    format!("{}={}/{}{sliding}", limit.name, limit.capacity, show_period(limit.period(), limit.period_seconds))
}

/// A period as [`limit`] reads it.
pub(super) fn show_period(period: Period, seconds: i32) -> String {
    match period {
        Period::Seconds => format!("{seconds}s"),
        Period::Unspecified | Period::Minute | Period::Hour | Period::Day | Period::Month => {
            super::out::short(period.as_str_name(), "PERIOD_")
        }
    }
}

/// `KEY=VALUE`.
pub(super) fn entry(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected `KEY=VALUE`")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Notes as they are shown.
pub(super) fn show_metadata(metadata: &BTreeMap<String, String>) -> String {
    let entries: Vec<String> = metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    entries.join(", ")
}

/// Live or test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum EnvironmentArg {
    /// Production.
    Live,
    /// Development.
    Test,
}

impl EnvironmentArg {
    /// On the wire, where absence is a value of its own.
    pub(super) fn wire(arg: Option<Self>) -> i32 {
        match arg {
            None => Environment::Unspecified.into(),
            Some(Self::Live) => Environment::Live.into(),
            Some(Self::Test) => Environment::Test.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_and_are_shown_alike() {
        for text in ["per-minute=100/minute", "burst=10/1s:sliding", "m=0/month", "d=1/day", "q=5/900s"] {
            assert_eq!(show_limit(&limit(text).unwrap()), text);
        }
        assert_eq!(show_limit(&limit("a=1/15m:fixed").unwrap()), "a=1/900s");
        for wrong in
            ["", "a", "a=1", "a=x/minute", "a=1/fortnight", "a=1/minute:leaky", "A=1/minute", "a=1/1500ms", "a=1/0s"]
        {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_absolute_or_counted_from_now() {
        assert_eq!(time_ahead("2027-01-01T00:00:00Z").unwrap().seconds, 1_798_761_600);
        let apart = time_ahead("30d").unwrap().seconds - time_ago("1h").unwrap().seconds;
        assert!((30 * 86_400 + 3_600..30 * 86_400 + 3_602).contains(&apart));
        for wrong in ["", "tomorrow", "30", "2027-01-01", "-30d"] {
            assert!(time_ahead(wrong).is_err(), "{wrong}");
        }
    }
}

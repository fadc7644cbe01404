//! Limits: how much, and over what time.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Invalid, shown};

/// The largest capacity or allowance, in cost units: far above any use, far below where sums overflow.
pub const UNITS_MAX: u64 = 1_000_000_000_000_000;

const PERIOD_SECONDS_MAX: u32 = 31_536_000;

/// At most `capacity` cost units in each `period`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// What it is called; unique in its list.
    pub name: LimitName,
    /// Cost units per period, up to [`UNITS_MAX`].
    pub capacity: u64,
    /// Length of the window.
    pub period: Period,
    /// How the window moves.
    pub algorithm: Algorithm,
}

impl Limit {
    /// Whether what was spent under `other` counts against this: the same name, window and movement, whatever the
    /// capacity.
    #[must_use]
    pub fn continues(&self, other: &Self) -> bool {
        self.name == other.name && self.period == other.period && self.algorithm == other.algorithm
    }
}

/// A limit's name: 1 to 32 characters of `a-z`, `0-9`, `-` and `_`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LimitName(Arc<str>);

impl LimitName {
    /// From its text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let word = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if text.len() > 32 || !word || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(Invalid::new(format!(
                "`{}` is no limit's name: 1 to 32 characters of `a-z`, `0-9`, `-` and `_`, beginning with a letter, are expected",
                shown(text)
            )));
        }
        Ok(Self(Arc::from(text)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Length of a limit's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// 60 seconds.
    Minute,
    /// 3,600 seconds.
    Hour,
    /// A calendar day in the account's time zone.
    Day,
    /// A calendar month in the account's time zone.
    Month,
    /// So many seconds, 1 to 31,536,000.
    Seconds(u32),
}

impl Period {
    /// So many seconds.
    pub fn seconds(seconds: i64) -> Result<Self, Invalid> {
        match u32::try_from(seconds) {
            Ok(seconds @ 1..=PERIOD_SECONDS_MAX) => Ok(Self::Seconds(seconds)),
            _ => Err(Invalid::new(format!("`{seconds}` is not between 1 and {PERIOD_SECONDS_MAX} seconds"))),
        }
    }

    /// Length in milliseconds of a sliding window, which does not follow the calendar: a day has 24 hours, a month 31
    /// days.
    #[must_use]
    pub fn sliding_millis(self) -> i64 {
        const HOUR: i64 = 3_600_000;
        match self {
            Self::Minute => 60_000,
            Self::Hour => HOUR,
            Self::Day => 24 * HOUR,
            Self::Month => 31 * 24 * HOUR,
            Self::Seconds(seconds) => i64::from(seconds) * 1_000,
        }
    }
}

/// How a limit's window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Aligned to the calendar.
    FixedWindow,
    /// Any stretch of one period holds at most the capacity.
    SlidingWindow,
}

/// Checks a list of limits: at most so many, each name once.
pub(super) fn check_list(limits: &[Limit], limits_max: usize) -> Result<(), Invalid> {
    if limits.len() > limits_max {
        return Err(Invalid::new(format!("has {} limits; at most {limits_max} are allowed", limits.len())));
    }
    for (i, limit) in limits.iter().enumerate() {
        if limit.capacity > UNITS_MAX {
            return Err(Invalid::new(format!(
                "`{}` has a capacity of {}; at most {UNITS_MAX} is allowed",
                limit.name, limit.capacity
            )));
        }
        if limits.iter().take(i).any(|earlier| earlier.name == limit.name) {
            return Err(Invalid::new(format!(
                "`{}` stands there twice; a limit's name must be unique in its list",
                limit.name
            )));
        }
    }
    Ok(())
}

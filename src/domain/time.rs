//! Points in time, and the zones that days and months are counted in.

use std::fmt;

use jiff::tz::TimeZoneDatabase;
use serde::{Deserialize, Serialize};

use super::{Invalid, shown};

/// A point in time: milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(i64);

impl Time {
    /// The latest time that an expiry may name: 9999-12-31T23:59:59Z, the last that RFC 3339 can write.
    pub const MAX: Self = Self(253_402_300_799_000);

    /// From milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Whole hours since the epoch, rounded down: the number of the usage hour that holds this time.
    #[must_use]
    pub const fn hour(self) -> i64 {
        self.0.div_euclid(3_600_000)
    }

    /// This much later, or earlier where `millis` is negative; stops at the ends of the range.
    #[must_use]
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this; negative where this is the earlier one.
    #[must_use]
    pub const fn millis_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Time {
    /// RFC 3339 in UTC, as in `2026-01-15T10:30:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(timestamp) => fmt::Display::fmt(&timestamp, f),
            Err(_) => write!(f, "{} ms since 1970", self.0),
        }
    }
}

/// An IANA time zone, from the database that is built into the binary, so that the same account has the same days on
/// every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeZone(jiff::tz::TimeZone);

impl TimeZone {
    /// Coordinated Universal Time.
    pub const UTC: Self = Self(jiff::tz::TimeZone::UTC);

    /// A zone by its IANA name; the empty name is UTC.
    pub fn parse(name: &str) -> Result<Self, Invalid> {
        if name.is_empty() || name == "UTC" {
            return Ok(Self::UTC);
        }
        TimeZoneDatabase::bundled().get(name).map(Self).map_err(|_| {
            Invalid::new(format!(
                "no time zone is called `{}`; an IANA name such as `Europe/Berlin` is expected",
                shown(name)
            ))
        })
    }

    /// Its IANA name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// For calendar arithmetic.
    pub(crate) fn as_jiff(&self) -> &jiff::tz::TimeZone {
        &self.0
    }
}

impl Serialize for TimeZone {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TimeZone {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_iana_names_alone() {
        assert_eq!(TimeZone::parse("").unwrap().name(), "UTC");
        assert_eq!(TimeZone::parse("Europe/Berlin").unwrap().name(), "Europe/Berlin");
        for wrong in ["Mars/Olympus", "CET-1CEST", "../etc/passwd", "Europe/Berlin\0", "+02:00"] {
            assert!(TimeZone::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(Time::from_millis(-1).seconds(), -1);
        assert_eq!(Time::from_millis(-1).hour(), -1);
        assert_eq!(Time::from_millis(3_600_000).hour(), 1);
    }
}

//! Where on the calendar a window begins and ends.

use jiff::civil::{Date, Time as CivilTime};
use serde::{Deserialize, Serialize};

use crate::domain::{Period, Time, TimeZone};

/// A stretch of time: from `start`, up to but without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its first moment.
    pub start: Time,
    /// The first moment after it.
    pub end: Time,
}

impl Window {
    /// The one that never ends. Clocks that are before its beginning are in it too.
    pub const ETERNAL: Self = Self { start: Time::from_millis(0), end: Time::from_millis(i64::MAX) };

    /// Whether the moment lies in it.
    #[must_use]
    pub fn contains(self, time: Time) -> bool {
        self.start <= time && time < self.end
    }
}

/// How time is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calendar {
    /// Minutes, hours, days, months, or so many seconds.
    Period(Period),
    /// Months that begin on this day, 1 to 31; in a shorter month on its last day.
    MonthFrom(u8),
    /// Not at all: one window, [`Window::ETERNAL`].
    Never,
}

/// The window that holds `now`. Days and months begin where the zone's clock shows midnight, or at the first moment
/// after it where the clock skips midnight; minutes and hours follow the zone's offset at `now`; other lengths are
/// counted from 1970. Outside the years that the calendar knows, a window is what is left of time.
#[must_use]
pub fn window_at(calendar: Calendar, zone: &TimeZone, now: Time) -> Window {
    match calendar {
        Calendar::Period(Period::Minute) => aligned(now, 60_000, 0),
        Calendar::Period(Period::Hour) => aligned(now, 3_600_000, offset_millis(zone, now)),
        Calendar::Period(Period::Seconds(seconds)) => aligned(now, i64::from(seconds) * 1_000, 0),
        Calendar::Period(Period::Day) => civil(zone, now, |date| Some((date, date.tomorrow().ok()?))),
        Calendar::Period(Period::Month) => month_from(1, zone, now),
        Calendar::MonthFrom(day) => month_from(day, zone, now),
        Calendar::Never => Window::ETERNAL,
    }
}

fn aligned(now: Time, length: i64, offset: i64) -> Window {
    let start = now.millis().saturating_add(offset).div_euclid(length).saturating_mul(length).saturating_sub(offset);
    Window { start: Time::from_millis(start), end: Time::from_millis(start.saturating_add(length)) }
}

fn offset_millis(zone: &TimeZone, now: Time) -> i64 {
    jiff::Timestamp::from_millisecond(now.millis())
        .map_or(0, |timestamp| i64::from(zone.as_jiff().to_offset(timestamp).seconds()) * 1_000)
}

fn month_from(day: u8, zone: &TimeZone, now: Time) -> Window {
    let day = i8::try_from(day).unwrap_or(31);
    let reset_in = |month: Date| month.with().day(day.min(month.days_in_month())).build().ok();
    civil(zone, now, |date| {
        let this = reset_in(date.first_of_month())?;
        if date >= this {
            let next = date.last_of_month().tomorrow().ok()?;
            Some((this, reset_in(next)?))
        } else {
            let before = date.first_of_month().yesterday().ok()?.first_of_month();
            Some((reset_in(before)?, this))
        }
    })
}

/// From the first moment of one local date to that of another.
fn civil(zone: &TimeZone, now: Time, dates: impl FnOnce(Date) -> Option<(Date, Date)>) -> Window {
    let window = || {
        let timestamp = jiff::Timestamp::from_millisecond(now.millis()).ok()?;
        let date = timestamp.to_zoned(zone.as_jiff().clone()).date();
        let (first, next) = dates(date)?;
        Some(Window { start: first_moment(zone, first)?, end: first_moment(zone, next)? })
    };
    window().unwrap_or(Window { start: now, end: Time::MAX.plus_millis(1_000) })
}

fn first_moment(zone: &TimeZone, date: Date) -> Option<Time> {
    let midnight = date.to_datetime(CivilTime::midnight()).to_zoned(zone.as_jiff().clone()).ok()?;
    Some(Time::from_millis(midnight.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Time {
        Time::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn windows_on_the_calendar() {
        let day = Calendar::Period(Period::Day);
        let month = Calendar::Period(Period::Month);
        let rows = [
            (
                Calendar::Period(Period::Minute),
                "UTC",
                "2026-02-03T04:05:06Z",
                "2026-02-03T04:05:00Z",
                "2026-02-03T04:06:00Z",
            ),
            (
                Calendar::Period(Period::Hour),
                "UTC",
                "2026-02-03T04:05:06Z",
                "2026-02-03T04:00:00Z",
                "2026-02-03T05:00:00Z",
            ),
            (
                Calendar::Period(Period::Hour),
                "Asia/Kolkata",
                "2026-02-03T04:05:06Z",
                "2026-02-03T03:30:00Z",
                "2026-02-03T04:30:00Z",
            ),
            (
                Calendar::Period(Period::Seconds(10)),
                "UTC",
                "2026-02-03T04:05:06Z",
                "2026-02-03T04:05:00Z",
                "2026-02-03T04:05:10Z",
            ),
            (day, "UTC", "2026-02-03T23:59:59.999Z", "2026-02-03T00:00:00Z", "2026-02-04T00:00:00Z"),
            // The clocks of Berlin go forward: 23 hours; and back: 25.
            (day, "Europe/Berlin", "2026-03-29T10:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            (day, "Europe/Berlin", "2026-10-25T10:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            // In Cairo midnight itself is skipped.
            (day, "Africa/Cairo", "2026-04-24T10:00:00Z", "2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z"),
            (month, "UTC", "2024-02-29T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
            (month, "America/New_York", "2026-03-01T04:59:59Z", "2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z"),
            (Calendar::MonthFrom(15), "UTC", "2026-02-14T00:00:00Z", "2026-01-15T00:00:00Z", "2026-02-15T00:00:00Z"),
            (Calendar::MonthFrom(15), "UTC", "2026-02-15T00:00:00Z", "2026-02-15T00:00:00Z", "2026-03-15T00:00:00Z"),
            (Calendar::MonthFrom(31), "UTC", "2026-02-10T00:00:00Z", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"),
            (Calendar::MonthFrom(31), "UTC", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"),
            (Calendar::MonthFrom(29), "UTC", "2024-02-29T01:00:00Z", "2024-02-29T00:00:00Z", "2024-03-29T00:00:00Z"),
            (Calendar::MonthFrom(31), "UTC", "2026-01-01T00:00:00Z", "2025-12-31T00:00:00Z", "2026-01-31T00:00:00Z"),
        ];
        for (calendar, zone, now, start, end) in rows {
            let window = window_at(calendar, &TimeZone::parse(zone).unwrap(), at(now));
            assert_eq!((window.start, window.end), (at(start), at(end)), "{calendar:?} in {zone} at {now}");
        }
    }

    #[test]
    fn one_window_never_ends() {
        for now in ["1970-01-01T00:00:00Z", "2026-02-03T04:05:06Z", "9998-12-31T23:59:59Z"] {
            for zone in ["UTC", "Pacific/Apia"] {
                let window = window_at(Calendar::Never, &TimeZone::parse(zone).unwrap(), at(now));
                assert!(window == Window::ETERNAL && window.contains(at(now)));
            }
        }
        // Clocks that are out of order find the same one.
        for millis in [i64::MIN, -1, i64::MAX] {
            assert_eq!(window_at(Calendar::Never, &TimeZone::UTC, Time::from_millis(millis)), Window::ETERNAL);
        }
    }

    proptest! {
        /// Windows hold the moment that they were asked for, and lie side by side without gap or overlap.
        #[test]
        fn windows_tile_time(
            seconds in -60_000_000_000_i64..250_000_000_000,
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Africa/Cairo"]),
            calendar in prop::sample::select(vec![
                Calendar::Period(Period::Minute), Calendar::Period(Period::Seconds(7)), Calendar::Period(Period::Day),
                Calendar::Period(Period::Month), Calendar::MonthFrom(29), Calendar::MonthFrom(30), Calendar::MonthFrom(31),
            ]),
        ) {
            let zone = TimeZone::parse(zone).unwrap();
            let now = Time::from_millis(seconds * 1_000 + 1);
            let window = window_at(calendar, &zone, now);
            prop_assert!(window.contains(now));
            prop_assert_eq!(window_at(calendar, &zone, window.start), window);
            prop_assert_eq!(window_at(calendar, &zone, window.end).start, window.end);
            prop_assert_eq!(window_at(calendar, &zone, window.start.plus_millis(-1)).end, window.start);
        }
    }
}

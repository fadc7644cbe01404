//! How time is cut into slots: a window of the calendar, or a sixtieth of a sliding one's period. A slot is named by its first
//! millisecond where it is a window, and else by its number.

use std::ops::RangeInclusive;

use jiff::civil::Date;
use jiff::tz::TimeZone;

const DAY: i64 = 86_400_000;
/// A sliding window's; the one that is under way comes on top.
const SLOTS: i64 = 60;

/// How time is cut, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Window {
    /// Windows of so long, one after the other.
    Fixed(i64),
    /// From this day of the month to the next, or from the month's last day where it is shorter.
    MonthFrom(i8),
    /// Any stretch of so long.
    Sliding(i64),
    /// All of time.
    Forever,
}

impl Window {
    /// The slot of a time.
    pub(crate) fn slot(self, now: i64) -> i64 {
        match self {
            Self::Fixed(length) => now.div_euclid(length) * length,
            Self::MonthFrom(day) => {
                let mut date = date_of(now);
                while !begins(date, day) {
                    date = date.yesterday().unwrap();
                }
                first_moment(date)
            }
            Self::Sliding(period) => (now * 1_000).div_euclid(slot_micros(period)),
            Self::Forever => 0,
        }
    }

    /// When all that was spent in a slot is back.
    pub(crate) fn reset(self, slot: i64) -> i64 {
        match self {
            Self::Fixed(length) => slot + length,
            Self::MonthFrom(day) => {
                let mut date = date_of(slot).tomorrow().unwrap();
                while !begins(date, day) {
                    date = date.tomorrow().unwrap();
                }
                first_moment(date)
            }
            Self::Sliding(period) => first_milli((slot + SLOTS + 1) * slot_micros(period)),
            Self::Forever => i64::MAX,
        }
    }

    /// The slot with such a reset time, if there is one.
    pub(crate) fn slot_that_resets_at(self, reset: i64) -> i64 {
        match self {
            Self::Fixed(_) | Self::MonthFrom(_) => self.slot(reset - 1),
            Self::Sliding(period) => reset * 1_000 / slot_micros(period) - SLOTS - 1,
            Self::Forever => 0,
        }
    }

    /// The first slot in which what was spent in this one is back.
    pub(crate) fn leaves_at(self, slot: i64) -> i64 {
        match self {
            Self::Fixed(_) | Self::MonthFrom(_) | Self::Forever => self.reset(slot),
            Self::Sliding(_) => slot + SLOTS + 1,
        }
    }

    /// The slots that count while this one is under way.
    pub(crate) fn counted(self, slot: i64) -> RangeInclusive<i64> {
        match self {
            Self::Fixed(_) | Self::MonthFrom(_) | Self::Forever => slot..=slot,
            Self::Sliding(_) => slot - SLOTS..=slot,
        }
    }
}

fn slot_micros(period: i64) -> i64 {
    (period * 1_000 + SLOTS - 1) / SLOTS
}

/// The first whole millisecond.
fn first_milli(micros: i64) -> i64 {
    (micros + 999).div_euclid(1_000)
}

fn date_of(millis: i64) -> Date {
    jiff::Timestamp::from_millisecond(millis).unwrap().to_zoned(TimeZone::UTC).date()
}

fn first_moment(date: Date) -> i64 {
    let moment = date.to_zoned(TimeZone::UTC).unwrap().timestamp().as_millisecond();
    assert_eq!(moment % DAY, 0);
    moment
}

fn begins(date: Date, day: i8) -> bool {
    date.day() == day.min(date.days_in_month())
}

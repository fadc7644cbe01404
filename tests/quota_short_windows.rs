//! Sliding windows of a few seconds, of which a slot is a few milliseconds: they too give nearly all that they have.
#![cfg(test)]

use tollgate::decision::quota::{Rule, State};
use tollgate::domain::{Algorithm, Limit, LimitName, Period, Time, TimeZone};

/// What a window of so many seconds admits in 20 of its periods where more is asked for than there is, in hundredths of what it may.
fn share(seconds: u32, capacity: u64) -> u64 {
    let limit = Limit {
        name: LimitName::parse("l").unwrap(),
        capacity,
        period: Period::Seconds(seconds),
        algorithm: Algorithm::SlidingWindow,
    };
    let rule = Rule::of(&limit);
    let mut state = State::new(&rule, &TimeZone::UTC, Time::from_millis(0));
    let (period, mut admitted) = (i64::from(seconds) * 1_000, 0);
    let per_milli = capacity.div_ceil(u64::from(seconds) * 1_000);
    // The first ten fill it and let it find its pace.
    for now in 0..30 * period {
        state.advance(&rule, &TimeZone::UTC, Time::from_millis(now));
        let granted = state.grant(&rule, per_milli);
        if now >= 10 * period {
            admitted += granted;
        }
    }
    admitted * 10_000 / (20 * capacity)
}

#[test]
fn a_short_sliding_window_gives_98_percent_too() {
    let short: Vec<(u32, u64)> = (1..=15)
        .map(|seconds| (seconds, share(seconds, u64::from(seconds) * 1_000)))
        .filter(|(_, share)| *share < 9_800)
        .collect();
    assert!(short.is_empty(), "seconds, and hundredths of a percent: {short:?}");
}

//! The clock, as a handle that is passed to whoever needs the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use crate::domain::Time;

/// Tells the time. Cheap to clone; a reading costs about what the system's own costs (some 25 ns), and takes no lock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { start: Instant },
    Manual(Arc<Hands>),
}

impl Clock {
    /// The system's clocks. The monotonic one starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    pub fn system() -> Self {
        Self(Source::System { start: Instant::now() })
    }

    /// A clock that stands at `start` until the handle that comes with it moves it.
    #[must_use]
    pub fn manual(start: Time) -> (Self, ManualClock) {
        let hands = Arc::new(Hands { wall_ms: AtomicI64::new(start.millis()), monotonic_ns: AtomicU64::new(0) });
        (Self(Source::Manual(Arc::clone(&hands))), ManualClock(hands))
    }

    /// The wall clock. It may step in either direction when the system's administrator or NTP sets it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System { .. } => from_system(SystemTime::now()),
            Source::Manual(hands) => Time::from_millis(hands.wall_ms.load(Relaxed)),
        }
    }

    /// Time since this clock was made. It never steps back, and stands still while the machine is suspended.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Source::System { start } => start.elapsed(),
            Source::Manual(hands) => Duration::from_nanos(hands.monotonic_ns.load(Relaxed)),
        }
    }
}

fn from_system(at: SystemTime) -> Time {
    let millis = match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
    };
    Time::from_millis(millis)
}

#[derive(Debug)]
struct Hands {
    wall_ms: AtomicI64,
    monotonic_ns: AtomicU64,
}

/// Moves a manual [`Clock`] and all its clones.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Hands>);

impl ManualClock {
    /// Lets time pass, on both clocks.
    pub fn advance(&self, by: Duration) {
        self.0.monotonic_ns.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.0.wall_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Relaxed);
    }

    /// Sets the wall clock alone, forward or back, as an administrator would.
    pub fn set(&self, now: Time) {
        self.0.wall_ms.store(now.millis(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let (clock, hands) = Clock::manual(Time::from_millis(1_000));
        let other = clock.clone();
        assert_eq!((clock.now().millis(), clock.monotonic()), (1_000, Duration::ZERO));
        hands.advance(Duration::from_millis(1_500));
        assert_eq!((other.now().millis(), other.monotonic()), (2_500, Duration::from_millis(1_500)));
        hands.set(Time::from_millis(10));
        assert_eq!((clock.now().millis(), clock.monotonic()), (10, Duration::from_millis(1_500)));
    }

    #[test]
    fn the_system_clock_tells_this_century() {
        let clock = Clock::system();
        let earlier = clock.monotonic();
        assert!((Time::from_millis(1_700_000_000_000)..Time::MAX).contains(&clock.now()));
        assert!(clock.monotonic() >= earlier);
    }

    #[test]
    fn times_before_1970_are_negative() {
        let at = SystemTime::UNIX_EPOCH - Duration::from_millis(5);
        assert_eq!(from_system(at).millis(), -5);
    }
}

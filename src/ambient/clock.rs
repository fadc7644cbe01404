//! The clock, as a handle that is passed to whoever needs the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::domain::Time;

/// Tells the time. Cheap to clone; a reading costs about what the system's own costs (some 25 ns), and takes no lock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { start: Duration, steered: Arc<AtomicI64> },
    Manual(Arc<Hands>),
}

/// In the place of an offset: the wall clock is the system's.
const NOT_STEERED: i64 = i64::MIN;

impl Clock {
    /// The system's clocks. The monotonic one starts now.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System { start: boot_time(), steered: Arc::new(AtomicI64::new(NOT_STEERED)) })
    }

    /// A clock that stands at `start` until the handle that comes with it moves it.
    #[must_use]
    pub fn manual(start: Time) -> (Self, ManualClock) {
        let hands = Arc::new(Hands { wall_ms: AtomicI64::new(start.millis()), monotonic_ns: AtomicU64::new(0) });
        (Self(Source::Manual(Arc::clone(&hands))), ManualClock(hands))
    }

    /// The wall clock. The system's may step in either direction when its administrator or NTP sets it; one that is steered goes on
    /// with the monotonic clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    pub fn now(&self) -> Time {
        match &self.0 {
            Source::System { start, steered } => match steered.load(Relaxed) {
                NOT_STEERED => from_system(SystemTime::now()),
                offset => Time::from_millis(offset.saturating_add(millis(boot_time().saturating_sub(*start)))),
            },
            Source::Manual(hands) => Time::from_millis(hands.wall_ms.load(Relaxed)),
        }
    }

    /// Time since this clock was made. It never steps back, and goes on while the machine is suspended.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Source::System { start, .. } => boot_time().saturating_sub(*start),
            Source::Manual(hands) => Duration::from_nanos(hands.monotonic_ns.load(Relaxed)),
        }
    }

    /// Makes the wall clock, of this and all its clones, another machine's: that stood at `time` at some moment after `sent` and before
    /// `received` by the monotonic clock. It moves no more than that takes, so that it does not jump with every answer's
    /// delay. Does nothing to a manual clock.
    pub fn steer(&self, time: Time, sent: Duration, received: Duration) {
        let Source::System { steered, .. } = &self.0 else { return };
        let (least, most) = (time.millis() - millis(received), time.millis() - millis(sent));
        let before = steered.load(Relaxed);
        let offset = if before == NOT_STEERED { most } else { before.clamp(least, most.max(least)) };
        steered.store(offset, Relaxed);
    }
}

/// Time since the machine was started, sleep included: a process that was suspended with its machine must not take what it
/// knew for fresh.
fn boot_time() -> Duration {
    let read = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(read.tv_sec).unwrap_or(0), u32::try_from(read.tv_nsec).unwrap_or(0))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
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
    fn a_steered_clock_is_the_other_one_within_the_delay_of_its_answer() {
        let clock = Clock::system();
        let at = |ms: i64| Time::from_millis(1_000_000 + ms);
        let offset = |clock: &Clock| clock.now().millis() - millis(clock.monotonic());
        let ms = Duration::from_millis;
        clock.steer(at(100), ms(40), ms(100));
        assert!((1_000_000..=1_000_061).contains(&offset(&clock)), "{}", offset(&clock));
        // An answer that took longer says nothing new; one that took less says more, and the machine at the other end may be set.
        clock.steer(at(200), ms(0), ms(200));
        assert!((1_000_060..=1_000_061).contains(&offset(&clock)), "{}", offset(&clock));
        clock.steer(at(300), ms(280), ms(300));
        assert!((1_000_020..=1_000_021).contains(&offset(&clock)), "{}", offset(&clock));
        clock.steer(at(3_600_400), ms(399), ms(400));
        assert!((4_600_000..=4_600_002).contains(&offset(&clock)), "{}", offset(&clock));
    }

    #[test]
    fn times_before_1970_are_negative() {
        let at = SystemTime::UNIX_EPOCH - Duration::from_millis(5);
        assert_eq!(from_system(at).millis(), -5);
    }
}

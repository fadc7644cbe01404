//! Until when this process may admit without further word from the store that it shares.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ambient::Clock;

use super::{Engine, Error};

/// A moment of the monotonic clock. Moved on by each successful poll, and looked at last before an answer.
#[derive(Debug)]
pub(super) struct Fence(AtomicU64);

/// Of a process that has the store for itself: nobody else can change what it knows.
const NONE: u64 = u64::MAX;
const SHUT: u64 = 0;

impl Fence {
    pub(super) fn new(is_shared: bool) -> Self {
        Self(AtomicU64::new(if is_shared { SHUT } else { NONE }))
    }

    /// Admissions are safe until then. Never earlier than was said before.
    pub(super) fn extend(&self, until: Duration) {
        let until = u64::try_from(until.as_nanos()).unwrap_or(NONE - 1).min(NONE - 1);
        self.0.fetch_max(until, Ordering::AcqRel);
    }

    /// Nothing may be admitted until it is extended again.
    pub(super) fn shut(&self) {
        self.0.store(SHUT, Ordering::Release);
    }

    pub(super) fn is_open(&self, clock: &Clock) -> bool {
        match self.0.load(Ordering::Acquire) {
            NONE => true,
            _ if cfg!(feature = "mutate-fence") => true,
            until => clock.monotonic().as_nanos() < u128::from(until),
        }
    }
}

impl Engine {
    /// Whether what this process knows is fresh enough to admit by it.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fence.is_open(&self.clock)
    }

    /// Fails where what this process knows may be too old to admit by it.
    pub(super) fn require_fresh(&self) -> Result<(), Error> {
        if self.is_fresh() { Ok(()) } else { Err(Self::fenced()) }
    }

    #[cold]
    fn fenced() -> Error {
        Error::Unavailable(
            "this process has had no word from the database for longer than `replicas.fence`, so it can't know which keys are revoked"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Time;

    #[test]
    fn it_opens_for_a_time_and_never_by_itself() {
        let (clock, hands) = Clock::manual(Time::from_millis(0));
        assert!(Fence::new(false).is_open(&clock));
        let fence = Fence::new(true);
        assert!(!fence.is_open(&clock));
        fence.extend(Duration::from_secs(5));
        // One that began earlier and is answered later takes nothing back.
        fence.extend(Duration::from_secs(4));
        hands.advance(Duration::from_millis(4_999));
        assert!(fence.is_open(&clock));
        hands.set(Time::from_millis(i64::MIN / 2));
        hands.advance(Duration::from_millis(1));
        assert!(!fence.is_open(&clock));
        fence.extend(Duration::from_secs(9));
        assert!(fence.is_open(&clock));
        fence.shut();
        assert!(!fence.is_open(&clock));
    }
}

//! Charges of the last seconds, so that a call that is sent again is charged once.
//!
//! A proxy that got no answer in time asks again, with the same call to the letter. Whether the first one was charged it
//! can't know, but this process does: it remembers, for each charge, the key and what names the call. The memory is
//! short, bounded, and of this process alone; what must never be charged twice has an operation id.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::domain::KeyId;

/// What names a call: the same where it is sent again, and never the same for two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt<'a>(&'a [u8]);

impl<'a> Attempt<'a> {
    /// By the call itself, to the letter. Something in it must be the sender's own and drawn anew for each call, because
    /// two requests of a client can be equal, and a client can make them so.
    #[must_use]
    pub const fn of(call: &'a [u8]) -> Self {
        Self(call)
    }
}

/// How long a charge is remembered at least, unless there are too many. At most it is twice as long.
const REMEMBERED: Duration = Duration::from_secs(5);
const SHARDS: usize = 16;
/// Charges of one generation of a shard: two million in all, some 80 MB where there are as many in so short a time.
const CHARGES_MAX: usize = 65_536;

/// The memory.
#[derive(Debug)]
pub(super) struct Attempts {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// Two generations, so that forgetting takes no search.
#[derive(Debug, Default)]
struct Shard {
    since: Duration,
    recent: HashSet<Charged, RandomState>,
    before: HashSet<Charged, RandomState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Charged {
    key: KeyId,
    call: u64,
}

impl Attempts {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::default() }
    }

    /// Whether this call was charged to the key.
    pub(super) fn was_charged(&self, key: KeyId, attempt: Attempt<'_>, now: Duration) -> bool {
        let charged = self.charged(key, attempt);
        self.with_shard(charged, now, |shard| shard.recent.contains(&charged) || shard.before.contains(&charged))
    }

    /// Notes that it was.
    pub(super) fn note(&self, key: KeyId, attempt: Attempt<'_>, now: Duration) {
        let charged = self.charged(key, attempt);
        self.with_shard(charged, now, |shard| {
            if shard.recent.len() >= CHARGES_MAX {
                shard.turn(now);
            }
            shard.recent.insert(charged);
        });
    }

    fn charged(&self, key: KeyId, Attempt(call): Attempt<'_>) -> Charged {
        Charged { key, call: self.hasher.hash_one(call) }
    }

    fn with_shard<T>(&self, charged: Charged, now: Duration, run: impl FnOnce(&mut Shard) -> T) -> T {
        let place = usize::try_from(charged.call % 16).unwrap_or(0);
        let [first, ..] = &self.shards;
        let mut shard = self.shards.get(place).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_sub(shard.since);
        if age >= REMEMBERED {
            if age >= 2 * REMEMBERED {
                shard.recent.clear();
            }
            shard.turn(now);
        }
        run(&mut shard)
    }
}

impl Shard {
    /// Begins a new generation, and forgets the last but one.
    fn turn(&mut self, now: Duration) {
        std::mem::swap(&mut self.recent, &mut self.before);
        self.recent.clear();
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId::from_bytes([7; 16]);

    fn call(text: &str) -> Attempt<'_> {
        Attempt::of(text.as_bytes())
    }

    #[test]
    fn a_charge_is_remembered_for_seconds_and_not_for_good() {
        let attempts = Attempts::new();
        let at = Duration::from_millis;
        assert!(!attempts.was_charged(KEY, call("1"), at(0)));
        attempts.note(KEY, call("1"), at(4_900));
        for (millis, remembered) in [(4_900, true), (9_899, true), (9_900, true), (15_000, false), (99_000, false)] {
            assert_eq!(attempts.was_charged(KEY, call("1"), at(millis)), remembered, "{millis}");
        }
        attempts.note(KEY, call("1"), at(100_000));
        assert!(!attempts.was_charged(KEY, call("1"), at(120_000)), "after a long silence");
    }

    #[test]
    fn another_key_or_call_is_another_charge() {
        let attempts = Attempts::new();
        attempts.note(KEY, call("12"), Duration::ZERO);
        for other in ["1", "2", "123", ""] {
            assert!(!attempts.was_charged(KEY, call(other), Duration::ZERO), "{other}");
        }
        assert!(!attempts.was_charged(KeyId::from_bytes([8; 16]), call("12"), Duration::ZERO));
        assert!(attempts.was_charged(KEY, call("12"), Duration::ZERO));
    }

    #[test]
    fn a_flood_forgets_rather_than_grows() {
        let attempts = Attempts::new();
        for i in 0..3 * CHARGES_MAX * SHARDS / 2 {
            attempts.note(KEY, call(&i.to_string()), Duration::ZERO);
        }
        let held = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.recent.len() + shard.before.len()
        };
        assert!(attempts.shards.iter().map(held).all(|held| held <= 2 * CHARGES_MAX));
    }
}

//! The system's randomness, and ids made of it.

use std::sync::{Mutex, PoisonError};

use crate::domain::Time;

/// The system gave no randomness. This hardly happens; whatever was to be made of it must not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no randomness: {0}")]
pub struct RandomError(#[from] getrandom::Error);

/// Fills a buffer with bytes fit for secrets.
#[expect(clippy::disallowed_methods, reason = "this is where randomness is drawn")]
pub fn fill(buffer: &mut [u8]) -> Result<(), RandomError> {
    Ok(getrandom::fill(buffer)?)
}

/// Bits of the counter of [`uuid_v7`], as in RFC 9562, section 6.2, method 1.
const COUNTER_BITS: u32 = 42;

/// The millisecond and the counter of the last id.
static LAST: Mutex<(u64, u64)> = Mutex::new((0, 0));

/// A UUID of version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, a counter of 42 bits, 32 random bits. Each is
/// greater than all that this process made before, in the same millisecond too, and after the clock was set back.
///
/// Where the clock was set back, ids go on from the latest time that was seen. The counter starts anywhere in the lower
/// half of its range, so that two processes seldom meet.
pub fn uuid_v7(now: Time) -> Result<[u8; 16], RandomError> {
    let mut random = [0; 12];
    fill(&mut random)?;
    let [a, b, c, d, seed @ ..] = random;
    let seed = u64::from_be_bytes(seed) >> (64 - COUNTER_BITS + 1);
    let now_ms = u64::try_from(now.millis()).unwrap_or(0);

    let (millis, counter) = {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        *last = succeed(*last, now_ms, seed);
        *last
    };
    // ttttttttttttttttttttttttttttttttttttttttttttttttvvvvccccccccccccwwccccccc…rrrrrrrr…
    let bits = u128::from(millis & ((1 << 48) - 1)) << 80
        | 7 << 76
        | u128::from(counter >> 30) << 64
        | 0b10 << 62
        | u128::from(counter & ((1 << 30) - 1)) << 32
        | u128::from(u32::from_be_bytes([a, b, c, d]));
    Ok(bits.to_be_bytes())
}

/// The millisecond and counter after `last`: greater, as a pair.
fn succeed((last_ms, counter): (u64, u64), now_ms: u64, seed: u64) -> (u64, u64) {
    if now_ms > last_ms {
        (now_ms, seed)
    } else if counter + 1 < 1 << COUNTER_BITS {
        (last_ms, counter + 1)
    } else {
        (last_ms + 1, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_in_order_of_creation_whatever_the_clock_does() {
        // Later than any clock of another test of this process.
        let millis = 250_000_000_000_000;
        let mut last = uuid_v7(Time::from_millis(millis)).unwrap();
        for step in [0, 0, 0, 1, -1_000, 0, 2, i64::MIN, 0] {
            let next = uuid_v7(Time::from_millis(millis.saturating_add(step))).unwrap();
            assert!(next > last, "step {step}: {next:02x?} after {last:02x?}");
            assert_eq!((next[6] >> 4, next[8] >> 6), (7, 0b10), "version and variant");
            last = next;
        }
        assert_eq!(last[..6], (millis + 2).to_be_bytes()[2..]);
    }

    #[test]
    fn a_full_counter_moves_to_the_next_millisecond() {
        let full = (1 << COUNTER_BITS) - 1;
        assert_eq!(succeed((5, full - 1), 5, 9), (5, full));
        assert_eq!(succeed((5, full), 5, 9), (6, 9));
        assert_eq!(succeed((5, full), 7, 9), (7, 9));
        assert_eq!(succeed((5, 3), 4, 9), (5, 4));
    }

    #[test]
    fn two_fills_differ() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        fill(&mut a).unwrap();
        fill(&mut b).unwrap();
        assert_ne!(a, b);
    }
}

//! What ties the lines of the log that are about one call together.

use std::fmt::Write as _;

use http::HeaderMap;

use crate::ambient::random;
use crate::domain::Time;

/// The header that carries it.
pub(super) const HEADER: &str = "x-request-id";
const LEN_MAX: usize = 64;
/// Letters and digits in a row: a hash of 128 bits in hex has 32, a secret sent by mistake 49.
const WORD_MAX: usize = 32;

/// The caller's own id where it sent one that is safe to print, or else a fresh one.
pub(super) fn request_id(headers: &HeaderMap, now: Time) -> String {
    let sent = headers.get(HEADER).and_then(|value| value.to_str().ok()).filter(|id| is_plain(id));
    sent.map_or_else(|| fresh(now), ToOwned::to_owned)
}

/// Whether an id that somebody sent is safe to print.
pub(super) fn is_plain(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let long = |word: &str| word.len() > WORD_MAX;
    (1..=LEN_MAX).contains(&id.len()) && id.bytes().all(plain) && !id.split(['-', '_', '.']).any(long)
}

/// One that nobody else has.
pub(super) fn fresh(now: Time) -> String {
    let mut id = String::with_capacity(32);
    for byte in random::uuid_v7(now).unwrap_or_default() {
        _ = write!(id, "{byte:02x}");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_forge_a_line_is_replaced() {
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, http::HeaderValue::from_bytes(value).unwrap());
            request_id(&headers, Time::from_millis(0))
        };
        for plain in ["a-B_1.2", "0351fa9d4c1b7e2f8a6b5c4d3e2f1a0b", "01890a5d-ac96-774b-bcce-b302099a8057"] {
            assert_eq!(id(plain.as_bytes()), plain);
        }
        let secret = format!("sk_live_{}", "a".repeat(49));
        for wrong in [&b""[..], b"a b", b"a=\"b\"", b"\xff", &[b'a'; 65], secret.as_bytes()] {
            assert_eq!(id(wrong).len(), 32);
        }
    }
}

//! What ties the lines of the log that are about one call together.

use std::fmt::Write as _;

use http::HeaderMap;

use crate::ambient::random;
use crate::domain::Time;

const HEADER: &str = "x-request-id";
const LEN_MAX: usize = 64;

/// The caller's own id where it sent one that is safe to print, or else a fresh one.
pub(super) fn request_id(headers: &HeaderMap, now: Time) -> String {
    let sent = headers.get(HEADER).and_then(|value| value.to_str().ok()).filter(|id| is_plain(id));
    sent.map_or_else(|| fresh(now), ToOwned::to_owned)
}

fn is_plain(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=LEN_MAX).contains(&id.len()) && id.bytes().all(plain)
}

fn fresh(now: Time) -> String {
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
        assert_eq!(id(b"a-B_1.2"), "a-B_1.2");
        for wrong in [&b""[..], b"a b", b"a=\"b\"", b"\xff", &[b'a'; 65]] {
            assert_eq!(id(wrong).len(), 32);
        }
    }
}

//! Tokens that continue a list: the last id of the page, and a mark of the list that it is of, so that the token of one
//! list is refused by another instead of leading somewhere.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::engine::Error;

const MARK_BYTES: usize = 8;

/// The token after `last` of a list; `list` is everything that makes it this list: the method, the caller's view, the
/// conditions.
pub(super) fn page_token(list: &str, last: &str) -> String {
    let mut bytes = mark(list).to_vec();
    bytes.extend_from_slice(last.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// The last id of the page before; absent for the first page.
pub(super) fn last_of_page(list: &str, token: &str) -> Result<Option<String>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong = || {
        let message =
            "is not a token that this list gave; begin with an empty one, and keep the other fields as they were";
        Error::invalid("page_token", message)
    };
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (found, last) = bytes.split_at_checked(MARK_BYTES).ok_or_else(wrong)?;
    if found != mark(list) {
        return Err(wrong());
    }
    String::from_utf8(last.to_vec()).map(Some).map_err(|_| wrong())
}

fn mark(list: &str) -> [u8; MARK_BYTES] {
    let digest: [u8; 32] = Sha256::digest(list.as_bytes()).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_list() {
        let token = page_token("keys of acct_a", "key_1");
        assert_eq!(last_of_page("keys of acct_a", &token).unwrap().as_deref(), Some("key_1"));
        assert_eq!(last_of_page("keys of acct_a", "").unwrap(), None);
        assert!(last_of_page("keys of acct_b", &token).is_err());
        for wrong in ["x", "!!!!", "AAAA", &token[1..], &format!("{token}=")] {
            assert!(last_of_page("keys of acct_a", wrong).is_err(), "{wrong}");
        }
    }
}

//! Names of records.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Invalid, base62, shown};

/// A place in the order of all changes of the store; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(i64);

impl Revision {
    /// Before any change.
    pub const ZERO: Self = Self(0);

    /// From its number.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }

    /// As an entity tag (AIP-154): what `etag` holds of a record that this revision wrote.
    #[must_use]
    pub fn etag(self) -> String {
        format!("r{}", self.0)
    }
}

const KEY_PREFIX: &str = "key_";
/// Base62 digits of 128 bits.
const KEY_DIGITS: usize = 22;

/// A key's name: `key_` and 128 bits in base62. The bits are a UUID of version 7 (RFC 9562), so ids sort in order of creation,
/// as bytes and as text alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 16]);

impl KeyId {
    /// From its bits.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bits.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// From its text. Absent where the text is no key id, which the caller answers like an id that does not exist.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(KEY_PREFIX)?;
        if digits.len() != KEY_DIGITS {
            return None;
        }
        let mut number: u128 = 0;
        for digit in digits.bytes() {
            number = number.checked_mul(62)?.checked_add(u128::from(base62::value(digit)?))?;
        }
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In three parts of up to ten digits: a division of 128 bits for each digit would cost more than a whole check.
        const PART: u128 = 62_u128.pow(10);
        let number = u128::from_be_bytes(self.0);
        let parts = [number / PART / PART, number / PART % PART, number % PART];
        let mut digits = [b'0'; KEY_DIGITS];
        let (first, rest) = digits.split_at_mut(2);
        let (second, third) = rest.split_at_mut(10);
        for (digits, part) in [first, second, third].into_iter().zip(parts) {
            let mut part = u64::try_from(part).unwrap_or(0);
            for digit in digits.iter_mut().rev() {
                *digit = base62::last_digit(part);
                part /= 62;
            }
        }
        f.write_str(KEY_PREFIX)?;
        f.write_str(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const ACCOUNT_PREFIX: &str = "acct_";
const OPERATOR: &str = "acct_operator";

/// An account's name: `acct_` and 1 to 40 letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// The built-in account whose keys act on all accounts.
    #[must_use]
    pub fn operator() -> Self {
        Self(Arc::from(OPERATOR))
    }

    /// Whether this is the built-in operator account.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        &*self.0 == OPERATOR
    }

    /// From its text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let rest = text.strip_prefix(ACCOUNT_PREFIX).unwrap_or_default();
        if rest.is_empty() || rest.len() > 40 || !rest.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Invalid::new(format!(
                "`{}` is no account id: `{ACCOUNT_PREFIX}` and 1 to 40 letters and digits are expected",
                shown(text)
            )));
        }
        Ok(Self(Arc::from(text)))
    }

    /// A fresh one from 128 random or time-ordered bits.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let text = KeyId::from_bytes(bytes).to_string();
        Self(Arc::from(text.replacen(KEY_PREFIX, ACCOUNT_PREFIX, 1)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A plan's name: 1 to 40 characters of `a-z`, `0-9` and `-`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanId(Arc<str>);

impl PlanId {
    /// The built-in plan of the operator account.
    #[must_use]
    pub fn operator() -> Self {
        Self(Arc::from("operator"))
    }

    /// From its text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let word = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if text.len() > 40 || !word || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(Invalid::new(format!(
                "`{}` is no plan id: 1 to 40 characters of `a-z`, `0-9` and `-`, beginning with a letter, are expected",
                shown(text)
            )));
        }
        Ok(Self(Arc::from(text)))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn key_ids_survive_their_text(a: [u8; 16], b: [u8; 16]) {
            let (a, b) = (KeyId(a), KeyId(b));
            prop_assert_eq!(KeyId::parse(&a.to_string()), Some(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_but_its_own_is_a_key_id(text in "key_[0-9A-Za-z]{22}") {
            if let Some(id) = KeyId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn ids_that_are_none() {
        for wrong in [
            "",
            "key_",
            "key_123",
            "key_zzzzzzzzzzzzzzzzzzzzzz",
            "KEY_0000000000000000000000",
            "key_000000000000000000000é",
        ] {
            assert_eq!(KeyId::parse(wrong), None, "{wrong}");
        }
        for wrong in ["", "acct_", "acct_a b", "acct_é", "demo", &format!("acct_{}", "a".repeat(41))] {
            assert!(AccountId::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "Free", "1st", "a b", "a_b", &"a".repeat(41)] {
            assert!(PlanId::parse(wrong).is_err(), "{wrong}");
        }
    }
}

//! Operations: what a client does once, however often it has to ask.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::{Invalid, caps, shown};

/// What a client calls one operation. It is kept as its SHA-256, because clients name operations by what they have at hand,
/// and nothing of a secret that was sent in the wrong place may be written down.
#[derive(Clone)]
pub struct OperationId {
    digest: [u8; 32],
    shown: String,
}

impl OperationId {
    /// 1 to 128 visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let max = caps::OPERATION_ID_CHARS_MAX;
        if text.is_empty() || text.len() > max || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Invalid::new(format!("`{}` is not 1 to {max} visible ASCII characters", shown(text))));
        }
        Ok(Self { digest: Sha256::digest(text.as_bytes()).into(), shown: shown(text) })
    }

    /// What stands for it.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl PartialEq for OperationId {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for OperationId {}

impl fmt::Display for OperationId {
    /// As an error may repeat it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationId({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_visible_ascii() {
        for right in ["x", "order-1/2#~", "550e8400-e29b-41d4-a716-446655440000", &"a".repeat(128)] {
            assert!(OperationId::parse(right).is_ok(), "{right}");
        }
        for wrong in ["", " ", "a b", "a\n", "é", "\u{7f}", &"a".repeat(129)] {
            assert!(OperationId::parse(wrong).is_err(), "{wrong:?}");
        }
        assert_ne!(OperationId::parse("a").unwrap(), OperationId::parse("A").unwrap());
    }

    #[test]
    fn none_shows_a_secret() {
        let secret = format!("sk_live_abcd{}", "E".repeat(45));
        let id = OperationId::parse(&secret).unwrap();
        assert_eq!((id.to_string(), format!("{id:?}")), ("sk_live_abcd…".into(), "OperationId(sk_live_abcd…)".into()));
    }
}

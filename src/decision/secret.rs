//! What a secret looks like, and what is kept of it.
//!
//! `sk_live_` or `sk_test_` (the `sk` is configurable), 256 random bits as 43 base62 digits, and the CRC-32 (ISO-HDLC)
//! of all that as 6 base62 digits. The checksum is no protection; it lets a mistyped key be refused without a look-up,
//! and a secret scanner tell a hit from noise without asking anybody.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::domain::{Environment, Invalid, SecretHash, base62};

const RANDOM_DIGITS: usize = 43;
const CHECKSUM_DIGITS: usize = 6;
/// Random digits that may be shown: 24 of the 256 bits.
const SHOWN_DIGITS: usize = 4;
/// Longest credential that is looked at.
pub const CREDENTIAL_BYTES_MAX: usize = 512;

/// The word that a deployment's secrets begin with, `sk` by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brand(String);

impl Default for Brand {
    fn default() -> Self {
        Self("sk".to_owned())
    }
}

impl Brand {
    /// From its text: 1 to 16 lower-case letters and digits.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let word = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if text.is_empty() || text.len() > 16 || !word {
            return Err(Invalid::new(format!(
                "`{}` is no key prefix: 1 to 16 lower-case letters and digits are expected",
                text.chars().take(32).collect::<String>().escape_debug()
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// Makes the secret that these random bits stand for, and what may be shown of it.
    #[must_use]
    pub fn format(&self, environment: Environment, random: &[u8; 32]) -> (SecretString, String) {
        let mut text = format!("{}_{environment}_", self.0);
        let shown = text.len() + SHOWN_DIGITS;
        text.push_str(&base62(random));
        let checksum = crc32fast::hash(text.as_bytes());
        push_digits(&mut text, checksum);
        let prefix = text.chars().take(shown).collect();
        (SecretString::from(text), prefix)
    }

    /// Tells what a credential can be, without looking it up.
    #[must_use]
    pub fn shape(&self, credential: &str) -> Shape {
        if credential.is_empty() {
            return Shape::Empty;
        }
        if credential.len() > CREDENTIAL_BYTES_MAX || !all(credential, |b| b.is_ascii_graphic()) {
            return Shape::Malformed;
        }
        let Some(rest) = credential.strip_prefix(self.0.as_str()).and_then(|rest| rest.strip_prefix('_')) else {
            return Shape::Foreign;
        };
        let Some(digits) = rest.strip_prefix("live_").or_else(|| rest.strip_prefix("test_")) else {
            return Shape::Foreign;
        };
        if digits.len() != RANDOM_DIGITS + CHECKSUM_DIGITS || !all(digits, |b| b.is_ascii_alphanumeric()) {
            return Shape::ForeignOrDamaged;
        }
        let Some((covered, checksum)) = credential.split_at_checked(credential.len() - CHECKSUM_DIGITS) else {
            return Shape::Malformed;
        };
        if parse_digits(checksum) == Some(crc32fast::hash(covered.as_bytes())) { Shape::Own } else { Shape::Malformed }
    }
}

/// Whether every byte is of a kind. Goes through all of them, which several at a time takes less than to stop at the first
/// that is not.
fn all(text: &str, kind: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |so_far, byte| so_far & kind(byte))
}

/// What a credential can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// There is none.
    Empty,
    /// It cannot be a key: too long, not printable ASCII, or its checksum is wrong.
    Malformed,
    /// In our format, with the right checksum.
    Own,
    /// Not in our format: a key that was imported, or none.
    Foreign,
    /// Begins like ours, but is not of its length: a key that was imported, or ours with a part cut off. Malformed where
    /// it is not found.
    ForeignOrDamaged,
}

/// Turns credentials into what is stored of them.
#[derive(Clone)]
pub struct Hasher {
    /// The active one first. Keyed once, because the two blocks of a key cost more than the credential itself.
    peppers: Vec<(String, Hmac<Sha256>)>,
}

impl Hasher {
    /// Without a pepper.
    #[must_use]
    pub const fn plain() -> Self {
        Self { peppers: Vec::new() }
    }

    /// With these peppers, each an id and a secret; the first is used for new keys, the others still verify.
    #[must_use]
    pub fn with_peppers(peppers: &[(String, Vec<u8>)]) -> Self {
        let keyed = |secret: &Vec<u8>| Hmac::<Sha256>::new_from_slice(secret).ok();
        Self { peppers: peppers.iter().filter_map(|(id, secret)| Some((id.clone(), keyed(secret)?))).collect() }
    }

    /// The ids of its peppers, the active one first.
    pub fn pepper_ids(&self) -> impl Iterator<Item = &str> {
        self.peppers.iter().map(|(id, _)| id.as_str())
    }

    /// What is stored of a new secret, and the id of the pepper, if one is in use.
    #[must_use]
    pub fn hash_new(&self, secret: &SecretString) -> (SecretHash, Option<String>) {
        match self.peppers.first() {
            Some((id, keyed)) => (peppered(keyed, secret.expose_secret()), Some(id.clone())),
            None => (plain(secret.expose_secret()), None),
        }
    }

    /// Every hash under which a credential of this shape may be stored, the likeliest first. One, where no pepper is in use.
    pub fn candidates<'a>(&'a self, credential: &'a str, shape: Shape) -> impl Iterator<Item = SecretHash> + 'a {
        let peppers = match shape {
            Shape::Own => self.peppers.as_slice(),
            Shape::Empty | Shape::Malformed | Shape::Foreign | Shape::ForeignOrDamaged => &[],
        };
        let peppered = peppers.iter().map(move |(_, keyed)| peppered(keyed, credential));
        peppered.chain(std::iter::once_with(move || plain(credential)))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pepper_ids()).finish()
    }
}

fn plain(credential: &str) -> SecretHash {
    SecretHash::from_bytes(Sha256::digest(credential.as_bytes()).into())
}

fn peppered(keyed: &Hmac<Sha256>, credential: &str) -> SecretHash {
    let mut mac = keyed.clone();
    mac.update(credential.as_bytes());
    SecretHash::from_bytes(mac.finalize().into_bytes().into())
}

/// 256 bits as 43 digits, by long division, the most significant first.
fn base62(bytes: &[u8; 32]) -> String {
    let mut number = *bytes;
    let mut digits = [0_u8; RANDOM_DIGITS];
    for digit in digits.iter_mut().rev() {
        let mut remainder: u32 = 0;
        for byte in &mut number {
            let value = remainder * 256 + u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            remainder = value % 62;
        }
        *digit = u8::try_from(remainder).unwrap_or(0);
    }
    digits.iter().map(|&digit| char::from(base62::last_digit(u64::from(digit)))).collect()
}

fn push_digits(text: &mut String, number: u32) {
    let mut digits = [b'0'; CHECKSUM_DIGITS];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = base62::last_digit(u64::from(rest));
        rest /= 62;
    }
    text.extend(digits.iter().map(|&b| char::from(b)));
}

fn parse_digits(text: &str) -> Option<u32> {
    let mut number: u64 = 0;
    for digit in text.bytes() {
        number = number * 62 + u64::from(base62::value(digit)?);
    }
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(environment: Environment, random: &[u8; 32]) -> String {
        Brand::default().format(environment, random).0.expose_secret().to_owned()
    }

    #[test]
    fn the_format_is_fixed() {
        let (secret, prefix) = Brand::default().format(Environment::Live, &[0; 32]);
        assert_eq!(secret.expose_secret(), "sk_live_00000000000000000000000000000000000000000001Vxh1Z");
        assert_eq!(prefix, "sk_live_0000");
        assert_eq!(made(Environment::Test, &[255; 32]), "sk_test_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp146ZkIP");
    }

    #[test]
    fn what_is_refused_without_a_look_up() {
        let brand = Brand::default();
        let good = made(Environment::Live, &[7; 32]);
        assert_eq!(brand.shape(&good), Shape::Own);
        assert_eq!(brand.shape(""), Shape::Empty);
        let other_case: String =
            good.chars().map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c }).collect();
        let rows = [
            (good.replace("live", "test"), Shape::Malformed),
            (format!("{good} "), Shape::Malformed),
            (format!("{good}\n"), Shape::Malformed),
            (format!("{good}x"), Shape::ForeignOrDamaged),
            (good.chars().take(good.len() - 1).collect(), Shape::ForeignOrDamaged),
            ("sk_live_".to_owned(), Shape::ForeignOrDamaged),
            (other_case, Shape::Foreign),
            ("sk_liveé".to_owned(), Shape::Malformed),
            ("a\0b".to_owned(), Shape::Malformed),
            ("x".repeat(513), Shape::Malformed),
            ("x".repeat(512), Shape::Foreign),
            ("abc123".to_owned(), Shape::Foreign),
        ];
        for (credential, expected) in rows {
            assert_eq!(brand.shape(&credential), expected, "{credential:?}");
        }
    }

    #[test]
    fn the_hash_is_plain_sha256_or_hmac() {
        let hex = |hash: SecretHash| {
            let (high, low) = hash.as_bytes().split_at(16);
            let number = |half: &[u8]| u128::from_be_bytes(half.try_into().unwrap());
            format!("{:032x}{:032x}", number(high), number(low))
        };
        let plain = Hasher::plain().hash_new(&SecretString::from("abc"));
        assert_eq!(hex(plain.0), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // RFC 4231, test case 2.
        let hasher = Hasher::with_peppers(&[("p1".to_owned(), b"Jefe".to_vec()), ("p0".to_owned(), vec![1; 32])]);
        let (hash, id) = hasher.hash_new(&SecretString::from("what do ya want for nothing?"));
        assert_eq!(hex(hash), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(id.as_deref(), Some("p1"));
        assert_eq!(hasher.candidates("x", Shape::Own).count(), 3);
        assert_eq!(hasher.candidates("x", Shape::Foreign).count(), 1);
        assert_eq!(format!("{hasher:?}"), r#"["p1", "p0"]"#);
    }

    proptest! {
        #[test]
        fn what_is_made_is_recognised(random: [u8; 32], live: bool) {
            let environment = if live { Environment::Live } else { Environment::Test };
            prop_assert_eq!(Brand::default().shape(&made(environment, &random)), Shape::Own);
        }

        #[test]
        fn different_bits_make_different_secrets(a: [u8; 32], b: [u8; 32]) {
            prop_assume!(a != b);
            prop_assert_ne!(made(Environment::Live, &a), made(Environment::Live, &b));
        }

        #[test]
        fn one_wrong_character_is_noticed(random: [u8; 32], place in 8_usize..57, by in 1_u8..62) {
            let mut bytes = made(Environment::Live, &random).into_bytes();
            let old = base62::DIGITS.iter().position(|&b| b == bytes[place]).unwrap();
            bytes[place] = base62::DIGITS[(old + usize::from(by)) % 62];
            prop_assert_eq!(Brand::default().shape(std::str::from_utf8(&bytes).unwrap()), Shape::Malformed);
        }

        #[test]
        fn anything_at_all_has_a_shape(text in "\\PC{0,600}") {
            let _shape = Brand::default().shape(&text);
        }
    }
}

//! Digits of base 62: `0-9A-Za-z`, whose order is that of their ASCII codes.

/// The digit of each value.
pub const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The last digit of a number.
#[must_use]
pub fn last_digit(number: u64) -> u8 {
    let value = usize::try_from(number % 62).unwrap_or(0);
    DIGITS.get(value).copied().unwrap_or(b'0')
}

/// The value of a digit.
#[must_use]
pub const fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'Z' => Some(digit - b'A' + 10),
        b'a'..=b'z' => Some(digit - b'a' + 36),
        _ => None,
    }
}

//! Bounds on free text, and the error that all parsers of the domain share.

use std::collections::BTreeMap;

use thiserror::Error;

/// A value that breaks a rule of the domain: says what was wrong and what is allowed. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// With this sentence: lower case, the user's input in backticks.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Characters of an input that an error repeats.
const SHOWN_CHARS_MAX: usize = 40;
/// Letters and digits in a row that are repeated; an id has 22, the shortest secret 49.
const SHOWN_WORD_CHARS_MAX: usize = 24;
/// What is left of a longer row: as much as the display prefix of a secret has.
const SHOWN_WORD_CHARS: usize = 4;

/// An input as an error may repeat it: its beginning, on one line, and of what could be a secret that was sent in the
/// wrong place no more than may be shown of it. Errors end up in the logs of whoever called.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        if word.len() > SHOWN_WORD_CHARS_MAX {
            shown.extend(word.chars().take(SHOWN_WORD_CHARS).chain(['…']));
            shown.extend(part.chars().skip(word.len()));
        } else {
            shown.push_str(part);
        }
        if shown.len() > SHOWN_CHARS_MAX * char::MAX_LEN_UTF8 {
            break;
        }
    }
    if let Some((end, _)) = shown.char_indices().nth(SHOWN_CHARS_MAX) {
        shown.truncate(end);
        shown.push('…');
    }
    shown.escape_debug().to_string()
}

/// A key's or an account's own notes.
pub type Metadata = BTreeMap<String, String>;

const NAME_CHARS_MAX: usize = 100;
const DESCRIPTION_CHARS_MAX: usize = 1_000;
const REASON_CHARS_MAX: usize = 500;
const DISPLAY_PREFIX_CHARS_MAX: usize = 20;
const METADATA_ENTRIES_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 40;
const METADATA_VALUE_CHARS_MAX: usize = 200;

/// A name: 1 to 100 characters, no control characters, no white space at its ends.
pub fn parse_name(text: &str) -> Result<String, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("must not be empty"));
    }
    if text.trim() != text {
        return Err(Invalid::new("must not begin or end with white space"));
    }
    bounded(text, NAME_CHARS_MAX)
}

/// A description: up to 1,000 characters; the only control character it may hold is the line feed.
pub fn parse_description(text: &str) -> Result<String, Invalid> {
    bounded(&text.replace('\n', " "), DESCRIPTION_CHARS_MAX)?;
    Ok(text.to_owned())
}

/// Why something was done, as the revocation of a key: up to 500 characters.
pub fn parse_reason(text: &str) -> Result<String, Invalid> {
    bounded(text, REASON_CHARS_MAX)
}

/// What may be shown of an imported key's secret: up to 20 printable ASCII characters.
pub fn parse_display_prefix(text: &str) -> Result<String, Invalid> {
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Invalid::new("must be printable ASCII characters without spaces"));
    }
    bounded(text, DISPLAY_PREFIX_CHARS_MAX)
}

/// Notes: at most 16 entries, keys of 1 to 40 characters of `A-Z a-z 0-9 _ . -`, values of up to 200 characters.
pub fn parse_metadata<'a>(
    entries: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<Metadata, Invalid> {
    if entries.len() > METADATA_ENTRIES_MAX {
        return Err(Invalid::new(format!("has {} entries; at most {METADATA_ENTRIES_MAX} are allowed", entries.len())));
    }
    let mut metadata = Metadata::new();
    for (key, value) in entries {
        let key_is_word = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if key.is_empty() || key.len() > METADATA_KEY_CHARS_MAX || !key_is_word {
            return Err(Invalid::new(format!(
                "the key `{}` is not 1 to {METADATA_KEY_CHARS_MAX} characters of `A-Z a-z 0-9 _ . -`",
                shown(key)
            )));
        }
        let value = bounded(value, METADATA_VALUE_CHARS_MAX)
            .map_err(|error| Invalid::new(format!("the value of `{key}` {error}")))?;
        metadata.insert(key.clone(), value);
    }
    Ok(metadata)
}

pub(super) fn bounded(text: &str, chars_max: usize) -> Result<String, Invalid> {
    let chars = text.chars().count();
    if chars > chars_max {
        return Err(Invalid::new(format!("has {chars} characters; at most {chars_max} are allowed")));
    }
    if text.chars().any(char::is_control) {
        return Err(Invalid::new("must not hold control characters"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_repeats_no_secret() {
        let secret = format!("sk_live_abcd{}", "E".repeat(45));
        for (text, expected) in [
            ("tasks:read:all", "tasks:read:all"),
            ("key_0351Td6GPkqoSKmJ8KXdbc", "key_0351Td6GPkqoSKmJ8KXdbc"),
            (secret.as_str(), "sk_live_abcd…"),
            (&format!("?key={secret}&b"), "?key=sk_live_abcd…&b"),
            ("a\nb\u{1b}[31m", "a\\nb\\u{1b}[31m"),
            (&"é ".repeat(40), &format!("{}…", "é ".repeat(20))),
            (&"a ".repeat(100_000), &format!("{}…", "a ".repeat(20))),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn text_is_bounded_in_characters_not_bytes() {
        assert!(parse_name(&"é".repeat(100)).is_ok());
        assert_eq!(
            parse_name(&"é".repeat(101)).unwrap_err().to_string(),
            "has 101 characters; at most 100 are allowed"
        );
        for wrong in ["", " a", "a\n", "a\0b", "a\u{1b}[31m"] {
            assert!(parse_name(wrong).is_err(), "{wrong:?}");
        }
        assert!(parse_description("two\nlines").is_ok());
        assert!(parse_description("a\tb").is_err());
    }

    #[test]
    fn metadata_is_bounded_in_every_direction() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(parse_metadata(one("team.a-b_c", "ü").iter()).is_ok());
        for wrong in
            [one("", "v"), one(&"k".repeat(41), "v"), one("a b", "v"), one("k", &"v".repeat(201)), one("k", "a\r\nb")]
        {
            assert!(parse_metadata(wrong.iter()).is_err(), "{wrong:?}");
        }
        let many: BTreeMap<String, String> = (0..17).map(|i| (format!("k{i}"), String::new())).collect();
        assert!(parse_metadata(many.iter()).is_err());
    }
}

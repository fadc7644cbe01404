//! The file that peppers are read from.
//!
//! One line for each pepper: an id, white space, and at least 32 bytes in base64. The first is used for new keys; the
//! others still verify, and may be taken out once no stored key names them. Empty lines and lines that begin with `#` are
//! passed over.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use thiserror::Error;

use crate::decision::secret::Hasher;

const PEPPER_BYTES_MIN: usize = 32;

/// Why a pepper file cannot be used. Holds none of its secrets.
#[derive(Debug, Error)]
pub enum PepperError {
    /// It cannot be read.
    #[error("the pepper file `{path}` cannot be read: {error}")]
    Read {
        /// Where it was looked for.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A line is not as it should be.
    #[error("line {line} of the pepper file is wrong: {message}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: &'static str,
    },
    /// There is no pepper in it.
    #[error("the pepper file holds no pepper; a line has an id, a space, and 32 or more random bytes in base64")]
    Empty,
    /// Stored keys were hashed with a pepper that is not there.
    #[error(
        "stored keys were hashed with the pepper `{0}`, which the pepper file does not hold (or `keys.pepper_file` is not \
         set); put it back, or these keys cannot be verified"
    )]
    Lost(String),
}

/// Reads a pepper file.
pub fn read(path: &Path) -> Result<Hasher, PepperError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| PepperError::Read { path: path.display().to_string(), error })?;
    parse(&text)
}

fn parse(text: &str) -> Result<Hasher, PepperError> {
    let mut peppers: Vec<(String, Vec<u8>)> = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let wrong = |message| PepperError::Line { line, message };
        if content.trim().is_empty() || content.starts_with('#') {
            continue;
        }
        let (id, secret) =
            content.split_once(char::is_whitespace).ok_or_else(|| wrong("an id, a space and a secret are expected"))?;
        let word = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if id.is_empty() || id.len() > 32 || !word {
            return Err(wrong("the id must be 1 to 32 letters, digits, `-` and `_`"));
        }
        if peppers.iter().any(|(known, _)| known == id) {
            return Err(wrong("the id stands there twice"));
        }
        let secret = BASE64_STANDARD.decode(secret.trim()).map_err(|_| wrong("the secret is not in base64"))?;
        if secret.len() < PEPPER_BYTES_MIN {
            return Err(wrong("the secret has fewer than 32 bytes"));
        }
        peppers.push((id.to_owned(), secret));
    }
    if peppers.is_empty() {
        return Err(PepperError::Empty);
    }
    Ok(Hasher::with_peppers(&peppers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pepper_file_and_what_is_none() {
        let secret = BASE64_STANDARD.encode([7; 32]);
        let hasher = parse(&format!("# newest first\n\np2 {secret}\np1\t{secret}\n")).unwrap();
        assert_eq!(hasher.pepper_ids().collect::<Vec<_>>(), ["p2", "p1"]);
        let short = BASE64_STANDARD.encode([7; 31]);
        for wrong in [
            "",
            "# nothing",
            "p1",
            "p1 !!!",
            &format!("p1 {short}"),
            &format!("p 1 {secret}"),
            &format!("é {secret}"),
            &format!("p1 {secret}\np1 {secret}"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(!error.contains(&secret), "{error}");
        }
    }
}

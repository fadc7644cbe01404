//! Pages of a list, and the tokens that continue them: the last id of the page, and a mark of the list that it is of, so
//! that the token of one list is refused by another instead of leading somewhere.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message;
use sha2::{Digest as _, Sha256};

use crate::domain::caps;
use crate::engine::Error;

/// Bytes of the rows of a page, half of what clients take by default.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A page that is asked for.
#[derive(Debug)]
pub(super) struct Page {
    mark: u64,
    /// The last id of the page before; absent for the first page.
    after: Option<String>,
    rows_max: u32,
}

impl Page {
    /// `list` is everything that makes it this list: the method, the caller's view, the conditions.
    pub(super) fn asked(list: &str, page_token: &str, page_size: i32) -> Result<Self, Error> {
        let mark = mark(list);
        Ok(Self { mark, after: after(mark, page_token)?, rows_max: rows_max(page_size)? })
    }

    /// The id after which the page begins. What is no id did not come from here, and is refused, since beginning anew
    /// would send whoever follows the tokens round in circles.
    pub(super) fn after<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Error> {
        self.after.as_deref().map(|id| parse(id).ok_or_else(wrong_token)).transpose()
    }

    /// One row more than the page has, which tells whether there is another.
    pub(super) fn rows_to_read(&self) -> u32 {
        self.rows_max + 1
    }

    /// Cuts what was read down to the page, which ends early where its rows are large. Returns the token of the next; empty
    /// on the last.
    pub(super) fn cut<T: Message>(&self, rows: &mut Vec<T>, id: impl FnOnce(&T) -> String) -> String {
        let mut bytes = 0;
        let fits = |row: &&T| {
            bytes += row.encoded_len();
            bytes <= PAGE_BYTES_MAX
        };
        let rows_max = usize::try_from(self.rows_max).unwrap_or(usize::MAX);
        let kept = rows.iter().take_while(fits).count().max(1).min(rows_max);
        if rows.len() <= kept {
            return String::new();
        }
        rows.truncate(kept);
        rows.last().map(|row| page_token(self.mark, &id(row))).unwrap_or_default()
    }
}

fn rows_max(page_size: i32) -> Result<u32, Error> {
    match u32::try_from(page_size) {
        Ok(0) => Ok(caps::PAGE_SIZE_DEFAULT),
        // As AIP-158 has it, more than the most is the most.
        Ok(size) => Ok(size.min(caps::PAGE_SIZE_MAX)),
        Err(_) => Err(Error::invalid("page_size", format!("`{page_size}` is negative"))),
    }
}

fn page_token(mark: u64, id: &str) -> String {
    let mut bytes = mark.to_be_bytes().to_vec();
    bytes.extend_from_slice(id.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn after(mark: u64, page_token: &str) -> Result<Option<String>, Error> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(page_token).map_err(|_| wrong_token())?;
    let (found, id) = bytes.split_first_chunk().ok_or_else(wrong_token)?;
    if u64::from_be_bytes(*found) != mark {
        return Err(wrong_token());
    }
    String::from_utf8(id.to_vec()).map(Some).map_err(|_| wrong_token())
}

fn wrong_token() -> Error {
    let message = "is not a token that this list gave; begin with an empty one, and keep the other fields as they were";
    Error::invalid("page_token", message)
}

fn mark(list: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(list.as_bytes()).into();
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_list() {
        let first = Page::asked("keys of acct_a", "", 2).unwrap();
        let mut rows = ["key_1", "key_2", "key_3"].map(str::to_owned).to_vec();
        let token = first.cut(&mut rows, Clone::clone);
        assert_eq!(rows, ["key_1", "key_2"]);
        let second = Page::asked("keys of acct_a", &token, 2).unwrap();
        assert_eq!(second.after(|id| Some(id.to_owned())).unwrap().as_deref(), Some("key_2"));
        assert!(second.after(|_| None::<()>).is_err());
        assert_eq!(second.cut(&mut rows, Clone::clone), "");
        assert!(Page::asked("keys of acct_b", &token, 2).is_err());
        for wrong in ["x", "!!!!", "AAAA", &format!("{token}="), &format!("A{token}")] {
            assert!(Page::asked("keys of acct_a", wrong, 2).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_page_of_large_rows_ends_early_but_is_never_empty() {
        let page = Page::asked("l", "", 10).unwrap();
        let mut rows: Vec<String> = vec!["x".repeat(900_000); 5];
        assert_ne!(page.cut(&mut rows, |_| "id".to_owned()), "");
        assert_eq!(rows.len(), 2);
        let mut rows: Vec<String> = vec!["x".repeat(3_000_000); 2];
        assert_ne!(page.cut(&mut rows, |_| "id".to_owned()), "");
        assert_eq!(rows.len(), 1);
    }

    #[test]
    fn sizes_have_bounds() {
        let rows = |size| Page::asked("l", "", size).map(|page| page.rows_max);
        assert_eq!([rows(0).unwrap(), rows(1).unwrap(), rows(5_000).unwrap()], [100, 1, 1_000]);
        assert!(rows(-1).is_err());
    }
}

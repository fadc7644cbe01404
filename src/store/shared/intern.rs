//! Equal things once. Keys are many, and their accounts, policies and notes are few; they are known by the text that they
//! are stored as, and are parsed only the first time.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::{HashMap, HashMapExt as _};

use super::rows;
use crate::domain::{AccountId, KeyId, Metadata, Policy};
use crate::store::StoreError;

/// Where everything differs there is nothing to share, and remembering it all would only cost memory.
const ENTRIES_MAX: usize = 65_536;

type Known<T> = HashMap<Box<str>, T>;

/// What all who load have met.
#[derive(Default)]
pub(in crate::store) struct Interned {
    account_ids: Mutex<Known<AccountId>>,
    policies: Mutex<Known<Arc<Policy>>>,
    metadata: Mutex<Known<Arc<Metadata>>>,
}

/// What one of them has met, so that it seldom has to wait for the others.
pub(in crate::store) struct Intern {
    interned: Arc<Interned>,
    account_ids: Known<AccountId>,
    policies: Known<Arc<Policy>>,
    metadata: Known<Arc<Metadata>>,
}

impl Intern {
    pub(in crate::store) fn new(interned: Arc<Interned>) -> Self {
        Self { interned, account_ids: Known::new(), policies: Known::new(), metadata: Known::new() }
    }

    pub(in crate::store) fn account_id(&mut self, text: &str) -> Result<AccountId, StoreError> {
        known(&mut self.account_ids, &self.interned.account_ids, text, rows::parse_account_id)
    }

    pub(in crate::store) fn policy(&mut self, key: KeyId, text: &str) -> Result<Arc<Policy>, StoreError> {
        known(&mut self.policies, &self.interned.policies, text, |text| {
            rows::from_json(|| format!("key `{key}`"), text).map(Arc::new)
        })
    }

    /// No notes are the same as none.
    pub(in crate::store) fn metadata(&mut self, key: KeyId, text: &str) -> Result<Option<Arc<Metadata>>, StoreError> {
        if text == "{}" {
            return Ok(None);
        }
        let metadata = known(&mut self.metadata, &self.interned.metadata, text, |text| {
            rows::from_json(|| format!("key `{key}`"), text).map(Arc::new)
        })?;
        Ok((!metadata.is_empty()).then_some(metadata))
    }
}

fn known<T: Clone>(
    mine: &mut Known<T>,
    shared: &Mutex<Known<T>>,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    if let Some(value) = mine.get(text) {
        return Ok(value.clone());
    }
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let value = if let Some(value) = shared.get(text) {
        value.clone()
    } else {
        let value = parse(text)?;
        if shared.len() < ENTRIES_MAX {
            shared.insert(text.into(), value.clone());
        }
        value
    };
    if mine.len() < ENTRIES_MAX {
        mine.insert(text.into(), value.clone());
    }
    Ok(value)
}

//! Keys to insert, and which of them breaks a rule.

use std::collections::HashSet;

use crate::domain::Key;
use crate::store::{CommitError, StoredSecret, Write};

/// A key to insert, and its place among the writes of its commit.
#[derive(Clone, Copy)]
pub(in crate::store) struct NewKey<'a> {
    pub(in crate::store) place: usize,
    pub(in crate::store) key: &'a Key,
    pub(in crate::store) secret: &'a StoredSecret,
}

impl<'a> NewKey<'a> {
    /// The new keys among these writes from this place on, up to the first write of another kind.
    pub(in crate::store) fn run(writes: &'a [Write], place: usize) -> Vec<Self> {
        let keys = writes.iter().enumerate().skip(place).map_while(|(place, write)| match write {
            Write::InsertKey(key, secret) => Some(NewKey { place, key, secret }),
            Write::UpdateKey { .. }
            | Write::InsertAccount(_)
            | Write::UpdateAccount(..)
            | Write::InsertPlan(_)
            | Write::UpdatePlan(..)
            | Write::DeletePlan(..) => None,
        });
        keys.collect()
    }
}

/// What is stored of all that new keys name.
pub(in crate::store) struct Existing {
    /// Accounts that there are.
    pub(in crate::store) accounts: HashSet<String>,
    /// Ids of keys that are taken.
    pub(in crate::store) ids: HashSet<Vec<u8>>,
    /// Names of keys that are taken, each with its account.
    pub(in crate::store) names: HashSet<(String, String)>,
    /// Hashes that are or were a key's.
    pub(in crate::store) hashes: HashSet<Vec<u8>>,
}

impl Existing {
    /// What is wrong with the first of these keys that breaks a rule, against what is stored or an earlier one of them.
    pub(in crate::store) fn offender(mut self, new_keys: &[NewKey<'_>]) -> Option<CommitError> {
        new_keys.iter().find_map(|NewKey { place, key, secret }| {
            if !self.accounts.contains(key.account_id.as_str()) {
                return Some(CommitError::NoParent);
            }
            if !self.ids.insert(key.id.as_bytes().to_vec()) {
                return Some(CommitError::IdTaken);
            }
            if !self.hashes.insert(secret.hash.as_bytes().to_vec()) {
                return Some(CommitError::HashTaken(*place));
            }
            let name = (key.account_id.as_str().to_owned(), key.name.clone());
            if !key.is_revoked() && !self.names.insert(name) {
                return Some(CommitError::NameTaken(key.name.clone()));
            }
            None
        })
    }
}

//! What both engines make of the writes of a commit.

use crate::store::{CommitError, StoreError, Write};

/// Of which record a write is, in the words of the log of changes.
pub(in crate::store) fn changed(write: &Write) -> (&'static str, String) {
    match write {
        Write::InsertKey(key, _) | Write::UpdateKey { key, .. } => ("key", key.id.to_string()),
        Write::InsertAccount(account) | Write::UpdateAccount(account, _) => ("account", account.id.as_str().to_owned()),
        Write::InsertPlan(plan) | Write::UpdatePlan(plan, _) => ("plan", plan.id.as_str().to_owned()),
        Write::DeletePlan(id, _) => ("plan", id.as_str().to_owned()),
    }
}

/// Told apart: what was not unique, what refers to nothing or is referred to, what is not there as expected, and what
/// has nothing to do with the records.
pub(in crate::store) fn one_row(
    rows: Result<u64, sqlx::Error>,
    not_unique: impl FnOnce() -> CommitError,
    no_reference: impl FnOnce() -> CommitError,
) -> Result<(), CommitError> {
    match rows {
        Ok(0) => Err(CommitError::Stale),
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(not_unique()),
        Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => Err(no_reference()),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

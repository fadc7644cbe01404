//! Why a call could not be served.

use std::fmt;

use thiserror::Error;

use crate::domain::{AccountId, Invalid, Verdict, shown};
use crate::store::StoreError;

/// Why a call could not be served. The text is for the caller, and holds no secret.
#[derive(Debug, Error)]
pub enum Error {
    /// The request breaks a rule of the contract.
    #[error("{}", violations_text(.0))]
    Invalid(Vec<Violation>),
    /// There is no such record, or none that the caller may know of.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// What was looked for: `key`, `account` or `plan`.
        kind: &'static str,
        /// By which id.
        id: String,
    },
    /// A name or an id is in use.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state of a record does not permit the call.
    #[error("{message}")]
    Precondition {
        /// Which condition, as in `KEY_REVOKED`.
        kind: &'static str,
        /// Of which record.
        subject: String,
        /// The sentence for people.
        message: String,
    },
    /// The record has changed since the caller read it.
    #[error("the {kind} has changed since `{etag}`; read it again and repeat the change")]
    Stale {
        /// What has changed.
        kind: &'static str,
        /// The etag that the caller sent.
        etag: String,
    },
    /// The caller's key may not do this.
    #[error("{0}")]
    PermissionDenied(String),
    /// There is no caller, or its key is not in use.
    #[error("{message}")]
    Unauthenticated {
        /// What a check of the caller's key would have answered.
        verdict: Verdict,
        /// The sentence for people.
        message: String,
    },
    /// It cannot be done in time, but may be later.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of this program, or of what it stored.
    #[error("{0}")]
    Internal(String),
}

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path, as in `key.scopes[0]`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl Error {
    /// Of one field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), message: message.into() }])
    }

    /// Of one field, from a rule of the domain.
    pub fn invalid_field(field: impl Into<String>, error: &Invalid) -> Self {
        Self::invalid(field, error.to_string())
    }

    /// There is no such key.
    pub fn no_key(id: impl fmt::Display) -> Self {
        Self::NotFound { kind: "key", id: shown(&id.to_string()) }
    }

    /// There is no such account.
    pub fn no_account(id: impl fmt::Display) -> Self {
        let id = id.to_string();
        let id = if AccountId::parse(&id).is_ok() { id } else { shown(&id) };
        Self::NotFound { kind: "account", id }
    }

    /// There is no such plan.
    pub fn no_plan(id: impl fmt::Display) -> Self {
        Self::NotFound { kind: "plan", id: shown(&id.to_string()) }
    }
}

fn violations_text(violations: &[Violation]) -> String {
    let texts: Vec<String> = violations.iter().map(|v| format!("`{}`: {}", v.field, v.message)).collect();
    texts.join("; ")
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => {
                Self::Unavailable("the key store cannot be reached or written; see the server's log".to_owned())
            }
            StoreError::Corrupt(_) => {
                Self::Internal("the key store holds something unreadable; see the server's log".to_owned())
            }
        }
    }
}

//! What is decided on.

use std::sync::Arc;

use crate::domain::{Environment, Key, KeyStatus, Metadata, Policy, Revision, SecretHash, Time};

/// What a check needs of a key. Small, because every process holds one for every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key's name for people, handed out with the answer.
    pub name: Box<str>,
    /// What it may do; shared with the other keys of which the same is true.
    pub policy: Arc<Policy>,
    /// The owner's notes, where there are any.
    pub metadata: Option<Arc<Metadata>>,
    /// From when on it is refused.
    pub expiry: Expiry,
    /// The secret before the last rotation, where there was one.
    pub previous: Option<Arc<PreviousHash>>,
    /// The revision that wrote it.
    pub revision: Revision,
    /// Production or development.
    pub environment: Environment,
    /// In use, switched off, or ended.
    pub phase: KeyPhase,
}

/// From when on a key is refused, if ever; in half the space of an `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(Time);

impl Expiry {
    const NEVER: Time = Time::from_millis(i64::MAX);

    /// At this time, or never.
    #[must_use]
    pub fn new(time: Option<Time>) -> Self {
        Self(time.unwrap_or(Self::NEVER))
    }

    /// The time, if there is one.
    #[must_use]
    pub fn time(self) -> Option<Time> {
        Some(self.0).filter(|time| *time != Self::NEVER)
    }
}

/// A secret that a rotation replaced, and until when it verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviousHash {
    /// Its hash.
    pub hash: SecretHash,
    /// Until when it verifies.
    pub expire_time: Time,
}

/// What was done to a key, without the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPhase {
    /// In use.
    Active,
    /// Switched off.
    Disabled,
    /// Ended for good.
    Revoked,
}

impl KeyRecord {
    /// Of a key; `policy` is the key's own, shared where possible.
    #[must_use]
    pub fn new(key: &Key, policy: Arc<Policy>, previous: Option<Arc<PreviousHash>>) -> Self {
        Self {
            name: key.name.as_str().into(),
            policy,
            metadata: (!key.metadata.is_empty()).then(|| Arc::new(key.metadata.clone())),
            expiry: Expiry::new(key.expire_time),
            previous,
            revision: key.revision,
            environment: key.environment,
            phase: match key.status {
                KeyStatus::Active => KeyPhase::Active,
                KeyStatus::Disabled => KeyPhase::Disabled,
                KeyStatus::Revoked(_) => KeyPhase::Revoked,
            },
        }
    }
}

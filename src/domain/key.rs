//! API keys.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AccountId, Invalid, KeyId, Limit, Metadata, Restrictions, Revision, Scope, Time, caps, limit};

/// An API key, all but its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name in the system.
    pub id: KeyId,
    /// The account that owns it.
    pub account_id: AccountId,
    /// Its name for people, unique among the account's keys that are not revoked.
    pub name: String,
    /// More for people.
    pub description: String,
    /// Production or development.
    pub environment: Environment,
    /// What may be shown of the secret.
    pub prefix: String,
    /// What it may do.
    pub policy: Policy,
    /// In use, switched off, or ended.
    pub status: KeyStatus,
    /// When it was made.
    pub create_time: Time,
    /// When it was last changed.
    pub update_time: Time,
    /// From when on it is refused.
    pub expire_time: Option<Time>,
    /// By how many milliseconds its expiry extends itself before it comes.
    pub auto_renew_millis: Option<i64>,
    /// When it was last rotated.
    pub rotate_time: Option<Time>,
    /// The secret before the last rotation.
    pub previous: Option<PreviousSecret>,
    /// The owner's notes, handed out with each check.
    pub metadata: Metadata,
    /// The revision that wrote it.
    pub revision: Revision,
}

impl Key {
    /// The state that its holder sees at `now`.
    #[must_use]
    pub fn status_at(&self, now: Time) -> Status {
        let expired = self.expire_time.is_some_and(|expire_time| expire_time <= now);
        match self.status {
            KeyStatus::Revoked(_) => Status::Revoked,
            KeyStatus::Active | KeyStatus::Disabled if expired => Status::Expired,
            KeyStatus::Active => Status::Active,
            KeyStatus::Disabled => Status::Disabled,
        }
    }

    /// Whether it has been ended.
    #[must_use]
    pub const fn is_revoked(&self) -> bool {
        matches!(self.status, KeyStatus::Revoked(_))
    }
}

/// What a key may do. Many keys share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// Its scopes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Scope>,
    /// Whence and for what it may be used.
    #[serde(default, skip_serializing_if = "is_unrestricted")]
    pub restrictions: Restrictions,
    /// Limits of the key alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

fn is_unrestricted(restrictions: &Restrictions) -> bool {
    *restrictions == Restrictions::default()
}

impl Policy {
    /// Checks sizes and that nothing stands there twice. Says which field is wrong.
    pub fn check(&self) -> Result<(), (&'static str, Invalid)> {
        check_scopes(&self.scopes).map_err(|error| ("scopes", error))?;
        self.restrictions.check_sizes().map_err(|error| ("restrictions", error))?;
        limit::check_list(&self.limits, caps::LIMITS_MAX).map_err(|error| ("limits", error))
    }
}

/// At most so many scopes, each once.
pub(super) fn check_scopes(scopes: &[Scope]) -> Result<(), Invalid> {
    let max = caps::SCOPES_MAX;
    if scopes.len() > max {
        return Err(Invalid::new(format!("has {} scopes; at most {max} are allowed", scopes.len())));
    }
    for (i, scope) in scopes.iter().enumerate() {
        if scopes.iter().take(i).any(|earlier| earlier == scope) {
            return Err(Invalid::new(format!("`{scope}` stands there twice")));
        }
    }
    Ok(())
}

/// Production or development.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Counts against live limits and credits.
    Live,
    /// Never uses credits or live limits.
    Test,
}

impl Environment {
    /// As it stands in a secret: `live` or `test`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
        }
    }

    /// From [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "live" => Some(Self::Live),
            "test" => Some(Self::Test),
            _ => None,
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was done to a key. What time did to it is in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyStatus {
    /// In use.
    Active,
    /// Switched off.
    Disabled,
    /// Ended for good.
    Revoked(Revocation),
}

/// The end of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When.
    pub time: Time,
    /// Why.
    pub reason: String,
    /// Who: a key's id, or `system`.
    pub actor: String,
}

/// A key's state as its holder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In use.
    Active,
    /// Switched off.
    Disabled,
    /// Ended for good.
    Revoked,
    /// Past its expiry.
    Expired,
}

/// The secret before the last rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousSecret {
    /// What may be shown of it.
    pub prefix: String,
    /// Until when it still verifies.
    pub expire_time: Time,
}

/// What is kept of a secret: its SHA-256, or its HMAC-SHA-256 under a pepper. It does not print, because for a key of
/// little entropy a hash is as good as the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// From its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for the store and the index.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

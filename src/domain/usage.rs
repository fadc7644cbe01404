//! What was used.

use std::net::IpAddr;

use super::{Environment, KeyId, Time, Verdict};

/// Checks of one key that ended in one verdict in one hour, since the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageDelta {
    /// The key.
    pub key_id: KeyId,
    /// Number of the hour since 1970.
    pub hour: i64,
    /// How they ended.
    pub verdict: Verdict,
    /// How many.
    pub requests: u64,
    /// Credits charged for them, in cost units.
    pub credits: u64,
}

/// When and whence a key was last used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The key.
    pub key_id: KeyId,
    /// When.
    pub last_used_time: Time,
    /// Whence, where the check told it.
    pub last_used_ip: Option<IpAddr>,
}

/// A sum of usage, as the store answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// Place of the bucket among those asked for.
    pub bucket: usize,
    /// The key, where grouped by key.
    pub key_id: Option<KeyId>,
    /// The keys' environment.
    pub environment: Environment,
    /// How the checks ended.
    pub verdict: Verdict,
    /// How many.
    pub requests: u64,
    /// Credits charged for them, in cost units.
    pub credits: u64,
}

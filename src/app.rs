//! The composition root.

use std::error::Error;

use secrecy::SecretString;

use crate::config::{Config, PlanChange};
use crate::domain::Plan;

/// Why a command of the server's side failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The first operator key.
#[derive(Debug)]
pub struct Bootstrapped {
    /// Its id.
    pub key_id: String,
    /// The operator account.
    pub account_id: String,
    /// The whole key.
    pub secret: SecretString,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub what: String,
    /// What to do about it; empty where it is fine.
    pub advice: String,
}

/// Serves until told to stop.
pub fn serve(_config: &Config, _dev: bool) -> Result<(), Failure> {
    Err("not built yet".into())
}

/// Makes the first operator key, in an empty store.
pub fn bootstrap(_config: &Config) -> Result<Bootstrapped, Failure> {
    Err("not built yet".into())
}

/// Brings the store's schema up to date, and says what it did.
pub fn migrate(_config: &Config) -> Result<String, Failure> {
    Err("not built yet".into())
}

/// Makes the store hold these plans, where no server runs. Returns what it did, or with `dry_run` would do.
pub fn apply_plans(
    _config: &Config,
    _wanted: &[Plan],
    _prune: bool,
    _dry_run: bool,
) -> Result<Vec<PlanChange<Plan>>, Failure> {
    Err("not built yet".into())
}

/// Looks at what commonly goes wrong.
#[must_use]
pub fn doctor(_config: &Config) -> Vec<Finding> {
    vec![Finding { ok: false, what: "not built yet".into(), advice: String::new() }]
}

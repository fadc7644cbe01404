//! The composition root: puts the parts together, and takes them apart in order.

mod adopt;
mod dev;
mod doctor;
mod plans;
mod serve;
mod setup;
mod store_copy;

use std::error::Error;

use secrecy::SecretString;

use crate::config::{Config, Database};
use crate::store::postgres::{Migrated, PostgresStore};

pub use adopt::adopt;
pub use dev::{DevInfo, DevSecrets};
pub use doctor::{Finding, doctor};
pub use plans::apply_plans;
pub use serve::{Ready, serve};
pub use store_copy::copy_store;

use setup::Parts;

/// Why a command of the server's side failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// An operator's key.
#[derive(Debug)]
pub struct Bootstrapped {
    /// Its id.
    pub key_id: String,
    /// The operator account.
    pub account_id: String,
    /// The whole key.
    pub secret: SecretString,
}

/// Makes the first operator key, in a store without keys; with `again` also in another, for an operator who has lost
/// theirs.
pub fn bootstrap(config: &Config, again: bool) -> Result<Bootstrapped, Failure> {
    setup::block_on(async {
        let parts = Parts::open(config).await?;
        let made = parts.engine.bootstrap(again).await;
        parts.close().await;
        let made = made?;
        Ok(Bootstrapped {
            key_id: made.key.id.to_string(),
            account_id: made.key.account_id.to_string(),
            secret: made.secret,
        })
    })
}

/// Brings the store's schema up to date, and says what it did.
pub fn migrate(config: &Config) -> Result<String, Failure> {
    let database = setup::database_url(config);
    setup::block_on(async {
        if let Database::Postgres(url) = &config.store.database {
            let Migrated { from, to } = PostgresStore::migrate(&setup::postgres_options(config, url)).await?;
            return Ok(if from == to {
                format!("the schema of {database} is up to date (version {to})")
            } else {
                format!("the schema of {database} was brought from version {from} to {to}")
            });
        }
        let parts = Parts::open(config).await?;
        let revision = parts.engine.index_size().2;
        parts.close().await;
        Ok(format!("the schema of {database} is up to date (revision {} of its records)", revision.number()))
    })
}

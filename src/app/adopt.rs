//! Taking a database as it is, on an operator's word.

use crate::config::Config;
use crate::domain::KeyId;
use crate::engine::{Caller, Error};

use super::Failure;
use super::setup::{Parts, block_on, database_url};

/// What the keys' stories say.
const REASON: &str = "revoked again after the database was restored";

/// Takes the database as it is, and revokes these keys. Returns what it did. Those that are not there are no fault: they were made
/// after the backup, and are gone with what came after it.
pub fn adopt(config: &Config, revoke: &[KeyId]) -> Result<String, Failure> {
    block_on(async {
        let parts = Parts::open(config).await?;
        let done = adopt_parts(&parts, revoke).await;
        parts.close().await;
        let (revision, revoked) = done?;
        let database = database_url(config);
        Ok(format!(
            "{database} is taken as it is, at revision {revision}; {revoked} of {} keys were revoked in it",
            revoke.len()
        ))
    })
}

async fn adopt_parts(parts: &Parts, revoke: &[KeyId]) -> Result<(i64, usize), Failure> {
    let Some(shared) = parts.store.replication() else {
        return Err(
            "only a PostgreSQL database is taken over like this; a SQLite file needs nothing of the kind".into()
        );
    };
    // First these: a server may start as soon as the database is taken over.
    let mut revoked = 0;
    for id in revoke {
        match parts.engine.revoke_key(&Caller::System, *id, REASON).await {
            Ok(_) => revoked += 1,
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let revision = shared.adopt(parts.engine.clock().now()).await?;
    Ok((revision.number(), revoked))
}

//! Moving an embedded store to a server.

use std::sync::Arc;

use crate::config::{Config, Database};
use crate::store::SharedStore;
use crate::store::Store as _;
use crate::store::postgres::{Copied, PostgresStore};
use crate::store::sqlite::{OpenMode, SqliteStore};

use super::Failure;
use super::setup::{Parts, block_on, database_url, postgres_options};

/// Copies all that the database of `from` holds into the one of `to`, which is empty. The source is first settled as by the next
/// start of a server on it: what its last process leased goes back as far as its journal tells, the rest is uncertain. It stays as
/// it is then, and belongs to nobody else meanwhile.
pub fn copy_store(from: &Config, to: &Config) -> Result<Copied, Failure> {
    let Database::Sqlite(path) = &from.store.database else {
        return Err("a store is copied from a SQLite file: `--from sqlite:PATH`".into());
    };
    let Database::Postgres(url) = &to.store.database else {
        return Err("a store is copied to a PostgreSQL database: `--to postgres://USER@HOST/DATABASE`".into());
    };
    block_on(async {
        // First the destination, which is what more often is not as it should be.
        let destination = PostgresStore::open(&postgres_options(to, url)).await?;
        let source = match SqliteStore::open(path, OpenMode::MustExist).await {
            Ok(source) => Arc::new(source),
            Err(error) => {
                destination.close().await;
                return Err(error.into());
            }
        };
        let shared: SharedStore = Arc::<SqliteStore>::clone(&source);
        let result = copy(from, shared, &source, &destination).await;
        source.close().await;
        destination.close().await;
        result.map_err(|error| format!("{} was not copied: {error}", database_url(from)).into())
    })
}

async fn copy(
    from: &Config,
    shared: SharedStore,
    source: &SqliteStore,
    destination: &PostgresStore,
) -> Result<Copied, Failure> {
    let parts = Parts::on(shared, from)?;
    parts.engine.take_over().await?;
    Ok(destination.copy_from(source).await?)
}

//! What every command of the server's side begins with: the store, and the engine on it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::ambient::Clock;
use crate::config::{self, Config, Database, PostgresUrl};
use crate::decision::secret::{Brand, Hasher};
use crate::engine::{Engine, Options, ReplicaOptions, pepper};
use crate::store::metered::MeteredStore;
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::sqlite::{OpenMode, SqliteStore};
use crate::store::{SharedStore, Uncertain};
use crate::telemetry::metrics::Metrics;

use super::Failure;

/// Threads for whatever waits for the store or the HTTP port. Few, because the work is done by the workers of the gRPC
/// port and the threads of the store.
const BACKGROUND_THREADS: usize = 2;

/// The store and the engine.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) store: SharedStore,
    pub(super) engine: Arc<Engine>,
    pub(super) metrics: Arc<Metrics>,
}

impl Parts {
    /// Opens the store, creating it and bringing its schema up to date where it is a file. The index is still empty. A process that serves
    /// says how it takes part where several share the store.
    pub(super) async fn prepare(config: &Config, replica: Option<ReplicaOptions>) -> Result<Self, Failure> {
        let options = options(config, replica)?;
        Ok(Self::put_together(open_store(config).await?, options))
    }

    /// The same on a store that is open.
    pub(super) fn on(store: SharedStore, config: &Config) -> Result<Self, Failure> {
        Ok(Self::put_together(store, options(config, None)?))
    }

    fn put_together(store: SharedStore, options: Options) -> Self {
        let clock = Clock::system();
        let metrics = Arc::new(Metrics::new());
        let store: SharedStore = Arc::new(MeteredStore::new(store, clock.clone(), Arc::clone(&metrics)));
        let engine = Arc::new(Engine::new(Arc::clone(&store), clock, options));
        Self { store, engine, metrics }
    }

    /// The same, with the index filled, for a command that serves nobody.
    pub(super) async fn open(config: &Config) -> Result<Self, Failure> {
        let parts = Self::prepare(config, None).await?;
        match parts.engine.load_index().await {
            Ok(_) => Ok(parts),
            Err(error) => {
                parts.close().await;
                Err(error.into())
            }
        }
    }

    pub(super) async fn close(&self) {
        self.store.close().await;
    }
}

fn options(config: &Config, replica: Option<ReplicaOptions>) -> Result<Options, Failure> {
    Ok(Options {
        brand: Brand::parse(&config.keys.prefix)?,
        hasher: match &config.keys.pepper_file {
            Some(path) => pepper::read(path)?,
            None => Hasher::plain(),
        },
        key_checks_per_second: u32::try_from(config.check.key_checks_per_second).unwrap_or(u32::MAX),
        uncertain: match config.limits.uncertain {
            config::Uncertain::Charge => Uncertain::Charge,
            config::Uncertain::Refund => Uncertain::Refund,
        },
        journal: journal_path(config),
        replica,
    })
}

async fn open_store(config: &Config) -> Result<SharedStore, Failure> {
    match &config.store.database {
        Database::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path, OpenMode::Create).await?)),
        Database::Postgres(url) => Ok(Arc::new(PostgresStore::open(&postgres_options(config, url)).await?)),
    }
}

/// How a database on a server is used.
pub(super) fn postgres_options(config: &Config, url: &PostgresUrl) -> PostgresOptions {
    let store = &config.store;
    PostgresOptions {
        url: url.secret().clone(),
        password_file: store.password_file.clone(),
        connections_max: u32::try_from(store.pool_max).unwrap_or(u32::MAX),
        connect_timeout: store.connect_timeout,
        statement_timeout: store.statement_timeout,
        log_kept: config.replicas.log_kept,
    }
}

/// Prepares a database on a server in which there is nothing yet. A file is prepared whenever it is opened.
pub(super) async fn migrate_empty(config: &Config) -> Result<(), Failure> {
    let Database::Postgres(url) = &config.store.database else { return Ok(()) };
    let options = postgres_options(config, url);
    if PostgresStore::look(&options).await?.schema == 0 {
        PostgresStore::migrate(&options).await?;
    }
    Ok(())
}

/// Beside the database where that is a file. What is on a server has no place beside it that is this process's own, so there it
/// has to be named.
fn journal_path(config: &Config) -> Option<PathBuf> {
    match (&config.limits.journal, &config.store.database) {
        (config::Journal::Auto, Database::Sqlite(path)) => Some(path.with_added_extension("spent")),
        (config::Journal::Auto, Database::Postgres(_)) | (config::Journal::Off, _) => None,
        (config::Journal::At(path), _) => Some(path.clone()),
    }
}

/// The database as it may be shown.
pub(super) fn database_url(config: &Config) -> String {
    config.store.database.to_string()
}

/// Runs on a runtime for what waits.
pub(super) fn block_on<T>(run: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("tollgate-background")
        .enable_all()
        .build()?;
    runtime.block_on(run)
}

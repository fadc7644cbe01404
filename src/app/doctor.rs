//! Looks at what commonly goes wrong, without changing anything.

use crate::config::{Config, Database};
use crate::engine::pepper;
use crate::store::Store;
use crate::store::postgres::{Health, PostgresOptions, PostgresStore};
use crate::store::sqlite::{OpenError, OpenMode, SqliteStore};

use super::setup::{block_on, database_url, postgres_options};

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

impl Finding {
    fn fine(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), advice: String::new() }
    }

    fn wrong(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), advice: advice.into() }
    }
}

/// Looks at the ports, the pepper file, the certificates and the store.
#[must_use]
pub fn doctor(config: &Config) -> Vec<Finding> {
    let mut findings =
        vec![port("server.grpc_addr", config.server.grpc_addr), port("server.http_addr", config.server.http_addr)];
    if let Some(path) = &config.keys.pepper_file {
        findings.push(match pepper::read(path) {
            Ok(hasher) => Finding::fine(format!("the pepper file holds {} peppers", hasher.pepper_ids().count())),
            Err(error) => Finding::wrong(error.to_string(), "correct the file, or `keys.pepper_file`"),
        });
    }
    let tls = &config.server.tls;
    for (name, file) in
        [("cert_file", &tls.cert_file), ("key_file", &tls.key_file), ("client_ca_file", &tls.client_ca_file)]
    {
        let Some(path) = file else { continue };
        findings.push(match std::fs::File::open(path) {
            Ok(_) => Finding::fine(format!("`server.tls.{name}` can be read")),
            Err(error) => Finding::wrong(
                format!("`server.tls.{name}`, {}: {error}", path.display()),
                "correct the path or its permissions",
            ),
        });
    }
    let store = block_on(async { Ok(store(config).await) });
    findings.extend(store.unwrap_or_else(|error| vec![Finding::wrong(error.to_string(), "")]));
    findings
}

fn port(setting: &str, addr: std::net::SocketAddr) -> Finding {
    match std::net::TcpListener::bind(addr) {
        Ok(_) => Finding::fine(format!("`{setting}`, {addr}, is free")),
        Err(error) => Finding::wrong(
            format!("`{setting}`, {addr}, cannot be listened on: {error}"),
            "fine if Tollgate serves there now; else choose another, or end what holds it",
        ),
    }
}

async fn store(config: &Config) -> Vec<Finding> {
    let url = database_url(config);
    match &config.store.database {
        Database::Sqlite(path) if !path.exists() => {
            vec![Finding::fine(format!("{url} does not exist yet; `tollgate bootstrap` and `tollgate serve` make it"))]
        }
        Database::Sqlite(path) => match SqliteStore::open(path, OpenMode::AsItIs).await {
            Ok(store) => records(&url, &store).await,
            Err(error @ OpenError::NotMigrated { .. }) => vec![Finding::fine(error.to_string())],
            Err(error) => vec![Finding::wrong(format!("{url} cannot be opened: {error}"), "")],
        },
        Database::Postgres(parsed) => server(&url, &postgres_options(config, parsed)).await,
    }
}

/// A server: whether it is reached, which it is, and whether the schema is the right one.
async fn server(url: &str, options: &PostgresOptions) -> Vec<Finding> {
    let health = match PostgresStore::look(options).await {
        Ok(health) => health,
        Err(error) => return vec![Finding::wrong(format!("{url} cannot be used: {error}"), "")],
    };
    let Health { version, schema, schema_known, refusal, warnings } = health;
    let mut findings = vec![Finding::fine(format!(
        "{url} is PostgreSQL {version}, with schema {schema}; this version of Tollgate knows {schema_known}"
    ))];
    findings.extend(warnings.into_iter().map(|warning| Finding::wrong(warning, "")));
    if let Some(refusal) = refusal {
        findings.push(Finding::wrong(refusal, ""));
        return findings;
    }
    findings.extend(match PostgresStore::open(options).await {
        Ok(store) => records(url, &store).await,
        Err(error) => vec![Finding::wrong(format!("{url} cannot be opened: {error}"), "")],
    });
    findings
}

/// What the store says of its records. Closes it.
async fn records(url: &str, store: &dyn Store) -> Vec<Finding> {
    let mut findings = vec![match store.revision().await {
        Ok(revision) => Finding::fine(format!("{url} is at revision {}", revision.number())),
        Err(error) => Finding::wrong(error.to_string(), ""),
    }];
    findings.extend(match store.verify().await {
        Ok(damage) if damage.is_empty() => vec![Finding::fine(format!("{url} shows no damage"))],
        Ok(damage) => damage.into_iter().map(|what| Finding::wrong(what, "restore a backup")).collect(),
        Err(error) => vec![Finding::wrong(error.to_string(), "")],
    });
    store.close().await;
    findings
}

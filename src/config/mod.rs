//! What an operator can set, as plain data: other parts map it to what they need.
//!
//! A setting has one name, `section.key`, from which its environment variable and its flag follow by one rule
//! ([`Key::flag`], [`Key::env`]). Later sources win: file, environment, flags.
//!
//! # Adding a setting
//!
//! A field here with its default, one row in [`KEYS`], and a row in `docs/configuration.md`, which a test compares with
//! the table.

mod keys;
mod load;
mod plans_file;
mod postgres_url;
mod rule;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::domain::Verdict;

pub use keys::{KEYS, Key};
pub use load::{Error, Loaded, Origin, Problem, Sources, load};
pub(crate) use plans_file::period;
pub use plans_file::{ComparablePlan, PlanChange, PlansError, diff_plans, parse_plans};
pub use postgres_url::PostgresUrl;
pub(crate) use rule::parse_duration;

/// Every setting of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where records are kept.
    pub store: Store,
    /// How several processes share them.
    pub replicas: Replicas,
    /// Addresses and bounds.
    pub server: Server,
    /// How checks are answered.
    pub check: Check,
    /// How edges are answered: Envoy and other proxies.
    pub edge: Edge,
    /// How keys are made.
    pub keys: Keys,
    /// How limits are kept.
    pub limits: Limits,
    /// How usage is recorded.
    pub usage: Usage,
    /// What is written to the log.
    pub log: Log,
}

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// The database.
    pub database: Database,
    /// The file that holds the password of the database's user.
    pub password_file: Option<PathBuf>,
    /// Connections to a database server.
    pub pool_max: usize,
    /// How long connecting to a database server may take.
    pub connect_timeout: Duration,
    /// How long one statement may take there.
    pub statement_timeout: Duration,
}

/// How several processes share one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// For how long a process admits without word from the database.
    pub fence: Duration,
    /// How often it asks the database what has changed.
    pub poll_interval: Duration,
    /// For how long the log of changes is kept.
    pub log_kept: Duration,
}

/// A database by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// A SQLite file, `sqlite:PATH`.
    Sqlite(PathBuf),
    /// A database on a PostgreSQL server, `postgres://…`.
    Postgres(PostgresUrl),
}

/// Addresses and bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// Where metrics and health are served over HTTP.
    pub http_addr: SocketAddr,
    /// Worker threads; 0: one a core.
    pub workers: usize,
    /// Open connections.
    pub connections_max: usize,
    /// Concurrent calls on one connection.
    pub streams_per_connection_max: usize,
    /// Calls in progress on all connections; more are refused as `RESOURCE_EXHAUSTED`.
    pub in_flight_max: usize,
    /// How long a call may take, `ImportKeys` left out.
    pub request_timeout: Duration,
    /// How long `ImportKeys` may take.
    pub import_timeout: Duration,
    /// How long a new connection may stay silent.
    pub first_byte_timeout: Duration,
    /// How long a TLS handshake may take.
    pub tls_handshake_timeout: Duration,
    /// After how much silence a connection is pinged.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take.
    pub keepalive_timeout: Duration,
    /// After how long a connection is asked to go away.
    pub connection_age_max: Duration,
    /// How long its calls then have to finish.
    pub connection_age_grace: Duration,
    /// How long calls have to finish on shutdown.
    pub drain_timeout: Duration,
    /// Size of a request message, in bytes.
    pub message_bytes_max: usize,
    /// Size of a message of `ImportKeys`, in bytes.
    pub import_message_bytes_max: usize,
    /// Whether server reflection is served.
    pub reflection: bool,
    /// Certificates.
    pub tls: Tls,
}

/// Certificates, in PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate chain; TLS is on where it is set.
    pub cert_file: Option<PathBuf>,
    /// The certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Authorities of client certificates; clients must show one where it is set.
    pub client_ca_file: Option<PathBuf>,
}

/// How checks are answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Whether `CheckKey` needs a caller.
    pub auth: CheckAuth,
    /// Checks a second that one key may have; 0: no ceiling.
    pub key_checks_per_second: usize,
    /// HTTP statuses that differ from the verdicts' own.
    pub http_status: BTreeMap<Verdict, u16>,
}

/// Whether `CheckKey` needs a caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckAuth {
    /// A caller with `tollgate:check`.
    #[default]
    Required,
    /// Whoever reaches the port.
    Off,
}

/// How edges are answered: Envoy and other proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Headers that may carry the key, beside `Authorization`.
    pub credential_headers: Vec<String>,
    /// Query parameter that may.
    pub credential_query: Option<String>,
    /// Whether the key is taken out before the upstream.
    pub strip_credential: bool,
    /// What the headers begin with that tell the upstream whose request it is.
    pub identity_prefix: String,
    /// The realm of `WWW-Authenticate`.
    pub realm: String,
    /// How denials are written.
    pub message_format: MessageFormat,
    /// Names of client certificates that may check without a key.
    pub client_names: Vec<String>,
    /// Proxies whose forwarded headers `/v1/check` believes.
    pub trusted_proxies: Vec<IpNet>,
}

/// How denials are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MessageFormat {
    /// A JSON object of Tollgate's own.
    #[default]
    Json,
    /// `application/problem+json` (RFC 9457).
    Problem,
}

/// How keys are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// What secrets begin with.
    pub prefix: String,
    /// The peppers under which secrets are hashed.
    pub pepper_file: Option<PathBuf>,
}

/// How limits are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Where a process keeps what it spends for the case that it is killed.
    pub journal: Journal,
    /// What becomes of what a process had leased that ended without a word.
    pub uncertain: Uncertain,
}

/// Where a process keeps what it spends and counts, for the case that it is killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Journal {
    /// In a file beside the database, where that is a file.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// In this file.
    At(PathBuf),
}

/// What becomes of units of which nobody knows whether they were spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uncertain {
    /// They count as spent, so no limit is exceeded.
    #[default]
    Charge,
    /// They are given back, so nobody pays for what they did not get.
    Refund,
}

/// How usage is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How often it is written to the store.
    pub flush_interval: Duration,
}

/// What is written to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// Which lines, in the syntax of `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// For people or for machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Coloured lines.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// What is allowed but dangerous, in sentences for the operator.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let addr = self.server.grpc_addr;
        if !addr.ip().is_loopback() && self.server.tls.cert_file.is_none() {
            warnings.push(format!(
                "`server.grpc_addr` is `{addr}`, which other machines reach, and TLS is off: keys cross the network in the \
                 clear; set `server.tls.cert_file` and `server.tls.key_file`, or listen on a loopback address"
            ));
        }
        if !addr.ip().is_loopback() && self.check.auth == CheckAuth::Off {
            warnings.push(format!(
                "`check.auth` is `off` and `server.grpc_addr` is `{addr}`: WHOEVER REACHES THIS PORT CAN TEST KEYS AND SPEND \
                 THEIR LIMITS; set `check.auth` to `required`, or listen on a loopback address"
            ));
        }
        if let Some(everybody) = self.edge.trusted_proxies.iter().find(|net| net.prefix_len() == 0) {
            warnings.push(format!(
                "`edge.trusted_proxies` has `{everybody}`: WHOEVER REACHES `server.http_addr` IS BELIEVED TO BE A PROXY; name \
                 the proxies' own addresses"
            ));
        }
        warnings
    }

    /// What no single setting can say: settings that contradict each other, each with the key to blame.
    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let tls = &self.server.tls;
        match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => {
                found.push(("server.tls.cert_file", "needs `server.tls.key_file`, its private key".into()));
            }
            (None, Some(_)) => {
                found.push(("server.tls.key_file", "needs `server.tls.cert_file`, its certificate".into()));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if tls.client_ca_file.is_some() && tls.cert_file.is_none() {
            found.push(("server.tls.client_ca_file", "needs `server.tls.cert_file`: TLS is off without one".into()));
        }
        let edge = &self.edge;
        if !edge.client_names.is_empty() && tls.client_ca_file.is_none() {
            found.push(("edge.client_names", "needs `server.tls.client_ca_file`: no certificate is asked for".into()));
        }
        // Envoy takes headers out after it has put others in, so one that is both would be lost.
        if let Some(name) = edge.credential_headers.iter().find(|name| name.starts_with(&edge.identity_prefix)) {
            let why = format!("`{name}` begins with `edge.identity_prefix`, as only the headers of the identity may");
            found.push(("edge.credential_headers", why));
        }
        if self.replicas.poll_interval > self.replicas.fence / 2 {
            found.push((
                "replicas.poll_interval",
                "must be at most half of `replicas.fence`, which would end between polls".into(),
            ));
        }
        if self.server.grpc_addr == self.server.http_addr && self.server.grpc_addr.port() != 0 {
            found.push(("server.http_addr", "must differ from `server.grpc_addr`".into()));
        }
        found
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            database: Database::Sqlite(PathBuf::from("tollgate.sqlite")),
            password_file: None,
            pool_max: 8,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            fence: Duration::from_secs(5),
            poll_interval: Duration::from_millis(200),
            log_kept: Duration::from_hours(24),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], 50_051)),
            http_addr: SocketAddr::from(([127, 0, 0, 1], 8_080)),
            workers: 0,
            connections_max: 10_000,
            streams_per_connection_max: 1_000,
            in_flight_max: 10_000,
            request_timeout: Duration::from_secs(10),
            import_timeout: Duration::from_mins(10),
            first_byte_timeout: Duration::from_secs(10),
            tls_handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            connection_age_max: Duration::from_hours(1),
            connection_age_grace: Duration::from_mins(1),
            drain_timeout: Duration::from_secs(20),
            message_bytes_max: 64 << 10,
            import_message_bytes_max: 1 << 20,
            reflection: true,
            tls: Tls::default(),
        }
    }
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            credential_headers: vec!["x-api-key".into()],
            credential_query: None,
            strip_credential: true,
            identity_prefix: "x-auth-".into(),
            realm: "api".into(),
            message_format: MessageFormat::Json,
            client_names: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self { prefix: "sk".into(), pepper_file: None }
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self { flush_interval: Duration::from_secs(1) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".into() }
    }
}

//! Reaches the server: where it is, by whose password, how its connections are set, and whether it will do.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::time::timeout;
use zeroize::Zeroize as _;

use super::database::{Database, Limits};
use super::schema::{self, Found, Migrated};
use super::{OpenError, PostgresOptions};

/// The first version that has what is used here.
const VERSION_MIN: i32 = 150_000;

/// Of a process's connections one polls, and one listens.
const CONNECTIONS_APART: u32 = 2;
/// Polls that may be under way at once: only where one is not answered is there a second.
const POLLS_MAX: u32 = 8;

/// A process that has little of the processor is not one that hangs.
const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// A server and a database on it, as they may be shown.
#[derive(Clone, Debug)]
pub(super) struct Place(String);

impl Place {
    pub(super) fn of(connect: &PgConnectOptions) -> Self {
        let database = connect.get_database().unwrap_or_else(|| connect.get_username());
        Self(match connect.get_socket() {
            Some(socket) => format!("the database `{database}` at {}", socket.display()),
            None => format!("the database `{database}` at {}:{}", connect.get_host(), connect.get_port()),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All that holds the database open.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) polls: Database,
}

/// What a look at a server found.
#[derive(Clone, Debug)]
pub struct Health {
    /// Its version, as it says it.
    pub version: String,
    /// The schema of the database; 0 where it is empty.
    pub schema: i64,
    /// The schema that this version of Tollgate knows.
    pub schema_known: i64,
    /// Why this version of Tollgate can't work on it, where it can't.
    pub refusal: Option<String>,
    /// What is allowed but dangerous, in sentences for the operator.
    pub warnings: Vec<String>,
}

pub(super) async fn open(options: &PostgresOptions) -> Result<Opened, OpenError> {
    let (connect, place) = connect_options(options)?;
    let server = look_at(&connect, &place, options).await?;
    server.refusal(&place)?;
    schema::check(server.schema, &place)?;
    for warning in server.warnings(&connect, &place) {
        tracing::warn!("{warning}");
    }
    if server.schema.version > schema::known() {
        tracing::info!(
            schema = server.schema.version,
            known = schema::known(),
            "the schema is a later, compatible one"
        );
    }
    let limits = |connections_max| Limits {
        connections_max,
        connect_timeout: options.connect_timeout,
        statement_timeout: options.statement_timeout,
    };
    let shared = options.connections_max.saturating_sub(CONNECTIONS_APART).max(1);
    // A password that the URL has is not looked for anywhere else.
    let password_file = password_file(options).map(Path::to_owned);
    Ok(Opened {
        database: Database::new(connect.clone(), limits(shared), password_file.clone()),
        polls: Database::new(connect, limits(POLLS_MAX), password_file),
    })
}

pub(super) async fn migrate(options: &PostgresOptions) -> Result<Migrated, OpenError> {
    let (connect, place) = connect_options(options)?;
    look_at(&connect, &place, options).await?.refusal(&place)?;
    let mut connection = reach(&connect, &place, options.connect_timeout).await?;
    let migrated = schema::migrate(&mut connection, &place).await?;
    connection.close().await.map_err(|error| OpenError::from_sqlx(&place, error))?;
    Ok(migrated)
}

pub(super) async fn look(options: &PostgresOptions) -> Result<Health, OpenError> {
    let (connect, place) = connect_options(options)?;
    let server = look_at(&connect, &place, options).await?;
    let refusal = server.refusal(&place).and_then(|()| schema::check(server.schema, &place)).err();
    Ok(Health {
        warnings: server.warnings(&connect, &place),
        version: server.version,
        schema: server.schema.version,
        schema_known: schema::known(),
        refusal: refusal.map(|error| error.to_string()),
    })
}

/// What a server says of itself.
struct Server {
    version: String,
    version_number: i32,
    is_standby: bool,
    is_fsync_on: bool,
    encoding: String,
    schema: Found,
}

impl Server {
    /// Why it will not do, whatever the schema.
    fn refusal(&self, place: &Place) -> Result<(), OpenError> {
        let place = place.to_string();
        if self.version_number < VERSION_MIN {
            return Err(OpenError::TooOld { place, found: self.version.clone() });
        }
        if self.is_standby {
            return Err(OpenError::Standby { place });
        }
        if self.encoding != "UTF8" {
            return Err(OpenError::Encoding { place, encoding: self.encoding.clone() });
        }
        Ok(())
    }

    fn warnings(&self, connect: &PgConnectOptions, place: &Place) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.is_fsync_on {
            warnings.push(format!(
                "{place} has `fsync` off: WHAT WAS ANSWERED MAY BE LOST IF ITS MACHINE GOES DOWN; turn it on"
            ));
        }
        let is_weak = matches!(connect.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
        if is_weak && !is_local(connect) {
            warnings.push(format!(
                "{place} is on another machine and TLS is not required: hashes of keys, and who may do what, cross the \
                 network where others may read and change them; add `sslmode=verify-full` to the URL"
            ));
        }
        warnings
    }
}

/// Whether what is sent there stays on this machine.
fn is_local(connect: &PgConnectOptions) -> bool {
    let host = connect.get_host().trim_matches(['[', ']']);
    let is_loopback = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    connect.get_socket().is_some() || is_loopback || host == "localhost" || host.starts_with('/')
}

async fn reach(connect: &PgConnectOptions, place: &Place, limit: Duration) -> Result<PgConnection, OpenError> {
    match timeout(limit, connect.connect()).await {
        Ok(connected) => connected.map_err(|error| OpenError::from_sqlx(place, error)),
        Err(_) => Err(OpenError::Unavailable {
            place: place.to_string(),
            cause: format!("no answer within {limit:?} (`store.connect_timeout`)"),
        }),
    }
}

async fn look_at(connect: &PgConnectOptions, place: &Place, options: &PostgresOptions) -> Result<Server, OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(place, error);
    let look = async {
        let mut connection = reach(connect, place, options.connect_timeout).await?;
        let row = sqlx::query(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::integer, pg_is_in_recovery(),
               current_setting('fsync') = 'on', current_setting('server_encoding')",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
        let schema = schema::find(&mut connection, place).await?;
        connection.close().await.map_err(failed)?;
        Ok(Server {
            version: row.try_get(0).map_err(failed)?,
            version_number: row.try_get(1).map_err(failed)?,
            is_standby: row.try_get(2).map_err(failed)?,
            is_fsync_on: row.try_get(3).map_err(failed)?,
            encoding: row.try_get(4).map_err(failed)?,
            schema,
        })
    };
    let limit = options.connect_timeout + options.statement_timeout;
    timeout(limit, look).await.unwrap_or_else(|_| {
        Err(OpenError::Unavailable { place: place.to_string(), cause: format!("no answer within {limit:?}") })
    })
}

/// What a URL may have behind its `?`. sqlx would write any other with its value into the log.
const PARAMETERS: [&str; 17] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

fn connect_options(options: &PostgresOptions) -> Result<(PgConnectOptions, Place), OpenError> {
    let url = options.url.expose_secret();
    let mut has_root_certificate = false;
    for name in parameters(url) {
        if !PARAMETERS.contains(&name) && !name.starts_with("options[") {
            return Err(OpenError::Url(format!("`{name}` is none of its parameters: {}", PARAMETERS.join(", "))));
        }
        has_root_certificate |= matches!(name, "sslrootcert" | "ssl-root-cert" | "ssl-ca");
    }
    // What sqlx finds wrong may quote the URL.
    let mut connect = PgConnectOptions::from_str(url).map_err(|_| {
        OpenError::Url(
            "expected `postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full`, with one host, and everything that is \
             no letter or digit percent-encoded in the user and the password"
                .to_owned(),
        )
    })?;
    // As libpq has it: who names an authority wants certificates to be checked.
    if has_root_certificate && matches!(connect.get_ssl_mode(), PgSslMode::Require) {
        connect = connect.ssl_mode(PgSslMode::VerifyCa);
    }
    if let Some(path) = password_file(options) {
        connect = connect.password(read_password(path)?.expose_secret());
    }
    let place = Place::of(&connect);
    Ok((configure(connect, options.statement_timeout), place))
}

fn parameters(url: &str) -> impl Iterator<Item = &str> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').map_or(parameter, |(name, _)| name))
}

/// How each connection is set, whatever the server's or the user's defaults are.
fn configure(connect: PgConnectOptions, statement_timeout: Duration) -> PgConnectOptions {
    let millis = |time: Duration| time.as_millis().to_string();
    connect
        .application_name("tollgate")
        .options([
            // A transaction counts once it is on the disk, and on that of the synchronous standbys where there are any.
            ("synchronous_commit", "on"),
            ("default_transaction_isolation", "read committed"),
            // Plans of long queries would cost more than they save.
            ("jit", "off"),
        ])
        .options([
            ("statement_timeout", millis(statement_timeout)),
            // Shorter, each, than what waits for it: so one who hangs in a transaction fails alone.
            ("lock_timeout", millis(statement_timeout / 2)),
            ("idle_in_transaction_session_timeout", millis((statement_timeout / 4).max(IDLE_TIMEOUT_MIN))),
            // The server's side of a connection whose client is gone holds its locks no longer either.
            ("client_connection_check_interval", millis(Duration::from_secs(1))),
            ("tcp_user_timeout", millis(statement_timeout)),
            ("tcp_keepalives_idle", "10".to_owned()),
            ("tcp_keepalives_interval", "3".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
        ])
        .disable_statement_logging()
}

fn password_file(options: &PostgresOptions) -> Option<&Path> {
    let url = options.url.expose_secret();
    let authority = url.split_once("://").map_or("", |(_, rest)| rest).split(['/', '?']).next().unwrap_or("");
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let has_password = user.contains(':') || parameters(url).any(|name| name == "password");
    options.password_file.as_deref().filter(|_| !has_password)
}

/// A password takes no more.
const PASSWORD_BYTES_MAX: u64 = 4_096;

/// The first line of the file. It is read again where the server refuses the password, so it can be replaced at any time.
pub(super) fn read_password(path: &Path) -> Result<SecretString, OpenError> {
    let wrong = |cause: String| OpenError::PasswordFile { path: path.to_owned(), cause };
    let unreadable = |error: std::io::Error| wrong(format!("cannot be read: {error}; correct `store.password_file`"));
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.permissions().mode() & 0o007 != 0 {
        return Err(wrong("can be read or written by every user of this machine; `chmod o= FILE`".to_owned()));
    }
    let mut text = String::new();
    file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    let password = SecretString::from(text.lines().next().unwrap_or("").to_owned());
    text.zeroize();
    if password.expose_secret().is_empty() {
        return Err(wrong("is empty; write the password into its first line".to_owned()));
    }
    Ok(password)
}

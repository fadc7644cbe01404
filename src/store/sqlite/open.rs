//! Opens the file: lock, look, connect, migrate, in this order, so that nothing is touched that is in use or is not ours.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::writer::Writer;
use super::{OpenError, lock::Lock, schema};

/// What to do where there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Make it, readable by its owner alone.
    Create,
    /// Say so.
    MustExist,
    /// Say so, and also where the schema is not the present one: nothing is changed.
    AsItIs,
}

/// All that holds the database open.
pub(super) struct Opened {
    pub(super) lock: Lock,
    pub(super) writer: Writer,
    pub(super) readers: SqlitePool,
    pub(super) snapshot_options: SqliteConnectOptions,
}

const READERS: u32 = 4;

/// How long a statement waits for a lock of SQLite's own, which only a tool beside Tollgate holds, such as a backup; and
/// a read for a connection.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn open(path: &Path, mode: OpenMode) -> Result<Opened, OpenError> {
    check_sqlite_version(path).await?;
    let path = &resolve(path, mode)?;
    let lock = Lock::take(path)?;
    check_or_create(path)?;
    let failed = |error: sqlx::Error| OpenError::from_sqlx(path, error);

    // A file that is not ours keeps its journal mode.
    let mut connection = SqliteConnection::connect_with(&options(path)).await.map_err(failed)?;
    let found = schema::check(&mut connection, path).await?;
    if mode == OpenMode::AsItIs && found < schema::known() {
        return Err(OpenError::NotMigrated { path: path.clone(), found, known: schema::known() });
    }
    connection.close().await.map_err(failed)?;

    // Each of its own pragmas is per connection, but the journal mode, which stays in the file.
    let writer_options = options(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", "-16384")
        // Keys and hashes fall all over their indexes: a page that many commits change is written back once in 32 MB of
        // log, instead of once in 4.
        .pragma("wal_autocheckpoint", "8000")
        // What a large import leaves of the log is given back.
        .pragma("journal_size_limit", "67108864");
    let mut connection = SqliteConnection::connect_with(&writer_options).await.map_err(failed)?;
    schema::migrate(&mut connection, path).await?;

    let reader_options = options(path).pragma("query_only", "ON");
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        // A connection to a file does not go stale, and making one costs a thread.
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .acquire_timeout(BUSY_TIMEOUT)
        .connect_with(reader_options.clone())
        .await
        .map_err(failed)?;
    Ok(Opened { lock, writer: Writer::new(writer_options, connection), readers, snapshot_options: reader_options })
}

/// What is common to all connections.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("trusted_schema", "OFF")
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging()
}

/// Versions from 3.7.0 to 3.51.2 can corrupt a WAL database when two connections write or checkpoint at once
/// (<https://sqlite.org/wal.html>, "the WAL-reset bug").
const SQLITE_MIN: (u32, u32, u32) = (3, 51, 3);

async fn check_sqlite_version(path: &Path) -> Result<(), OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(path, error);
    let mut connection =
        SqliteConnection::connect_with(&SqliteConnectOptions::new().in_memory(true)).await.map_err(failed)?;
    let found: String =
        sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut connection).await.map_err(failed)?;
    connection.close().await.map_err(failed)?;
    if parse_version(&found) < Some(SQLITE_MIN) { Err(OpenError::SqliteTooOld { found }) } else { Ok(()) }
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// The file itself, through any links, so that a database has one lock by whatever name it is opened.
fn resolve(path: &Path, mode: OpenMode) -> Result<PathBuf, OpenError> {
    match fs::canonicalize(path) {
        Ok(path) if path.is_file() => Ok(path),
        Ok(path) => Err(OpenError::NotAFile(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = path.file_name().ok_or_else(|| OpenError::NotAFile(path.to_owned()))?;
            let folder = fs::canonicalize(parent).map_err(|error| OpenError::from_io(path, &error))?;
            if mode != OpenMode::Create {
                return Err(OpenError::Missing(path.to_owned()));
            }
            Ok(folder.join(name))
        }
        Err(error) => Err(OpenError::from_io(path, &error)),
    }
}

/// The first bytes of every SQLite database but an empty one.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Makes the file where it is missing; looks whether it is a database where it is not.
fn check_or_create(path: &Path) -> Result<(), OpenError> {
    let failed = |error: io::Error| OpenError::from_io(path, &error);
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let mut head = Vec::with_capacity(MAGIC.len());
    file.take(16).read_to_end(&mut head).map_err(failed)?;
    if head.is_empty() || head == MAGIC { Ok(()) } else { Err(OpenError::NotADatabase(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(parse_version("3.51.2") < Some(SQLITE_MIN));
        assert!(parse_version("3.9.0") < Some(SQLITE_MIN));
        assert!(parse_version("3.51.3") >= Some(SQLITE_MIN));
        assert!(parse_version("3.100.0") >= Some(SQLITE_MIN));
        assert!(parse_version("unknown") < Some(SQLITE_MIN));
    }
}

//! What can go wrong with the file, told in the words of whoever has to mend it.

use std::io;
use std::path::{Path, PathBuf};

use sqlx::error::DatabaseError;
use sqlx::sqlite::SqliteError;
use thiserror::Error;

use crate::store::StoreError;

/// Why the store could not be opened. Says what to do.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing is there, and it was not asked for to be made.
    #[error("there is no database `{}`; `tollgate bootstrap` or `tollgate serve` makes one", .0.display())]
    Missing(PathBuf),
    /// The folder that the file should be in does not exist.
    #[error("the folder of the database `{}` does not exist; make it, or name another path", .0.display())]
    NoFolder(PathBuf),
    /// A folder, a device or the like.
    #[error("`{}` is not a regular file; name the path of a file for the database", .0.display())]
    NotAFile(PathBuf),
    /// A file with other content.
    #[error("`{}` is not an SQLite database; name another path, or move the file away", .0.display())]
    NotADatabase(PathBuf),
    /// A database of another program.
    #[error("`{}` is a database of another program than Tollgate; name another path", .0.display())]
    Foreign(PathBuf),
    /// In use.
    #[error(
        "the database `{}` is in use by {holder}; a database serves one process: stop that one first, or name another path",
        .path.display()
    )]
    Locked {
        /// The database.
        path: PathBuf,
        /// The process that uses it, as in `process 4711`.
        holder: String,
    },
    /// This user may not, or the file system is read-only.
    #[error(
        "`{}` cannot be read and written: {cause}; Tollgate's user needs both, of the file and of the folder",
        .path.display()
    )]
    NotWritable {
        /// What cannot be opened.
        path: PathBuf,
        /// As the system says it.
        cause: String,
    },
    /// Written by a later version.
    #[error(
        "the database `{}` has schema {found}, and this version of Tollgate knows schemas up to {known}; run the version that wrote it, or a later one, or restore a backup made before the upgrade",
        .path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The last that this version knows.
        known: i64,
    },
    /// Written by an earlier version, where nothing is to be changed.
    #[error("the database `{}` has schema {found}, and this version of Tollgate works on {known}; `tollgate migrate`, or the next start, brings it there", .path.display())]
    NotMigrated {
        /// The database.
        path: PathBuf,
        /// Its schema; 0 where it is empty.
        found: i64,
        /// The one that this version knows.
        known: i64,
    },
    /// Damaged.
    #[error("the database `{}` is damaged: {cause}; restore it from a backup", .path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// As SQLite says it.
        cause: String,
    },
    /// Linked against an SQLite that is known to lose data.
    #[error(
        "SQLite {found} can corrupt a database in WAL mode; 3.51.3 or a later one is needed: build Tollgate with the SQLite that comes with it"
    )]
    SqliteTooOld {
        /// Its version.
        found: String,
    },
    /// Anything else, such as a full disk.
    #[error("the database `{}` cannot be opened: {cause}", .path.display())]
    Unavailable {
        /// The database.
        path: PathBuf,
        /// As the system says it.
        cause: String,
    },
}

impl OpenError {
    /// From an error of the file system at this path.
    pub(super) fn from_io(path: &Path, error: &io::Error) -> Self {
        let (path, cause) = (path.to_owned(), error.to_string());
        #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds are many, and grow")]
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoFolder(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::NotWritable { path, cause },
            _ => Self::Unavailable { path, cause },
        }
    }

    /// From an error of SQLite, met while this database was opened.
    pub(super) fn from_sqlx(path: &Path, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        match primary_code(&error) {
            Some(NOT_A_DATABASE) => Self::NotADatabase(path),
            Some(READ_ONLY | PERMISSION) => Self::NotWritable { path, cause: error.to_string() },
            _ => match StoreError::from(error) {
                StoreError::Unavailable(cause) => Self::Unavailable { path, cause },
                StoreError::Corrupt(cause) => Self::Corrupt { path, cause },
            },
        }
    }
}

// Primary result codes, https://sqlite.org/rescode.html.
const PERMISSION: i32 = 3;
const READ_ONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const MISMATCH: i32 = 20;
const NOT_A_DATABASE: i32 = 26;

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    database_code(error.as_database_error()?)
}

/// The lowest byte of an extended result code.
fn database_code(error: &dyn DatabaseError) -> Option<i32> {
    let code: i32 = error.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// What an error of SQLite means.
pub(in crate::store) fn from_sqlite(error: &SqliteError) -> StoreError {
    let message = error.message();
    match database_code(error) {
        Some(code @ (CORRUPT | MISMATCH | NOT_A_DATABASE)) => {
            StoreError::Corrupt(format!("{message} (SQLite result {code})"))
        }
        Some(code @ FULL) => {
            StoreError::Unavailable(format!("{message} (SQLite result {code}): free some space on its disk"))
        }
        Some(code) => StoreError::Unavailable(format!("{message} (SQLite result {code})")),
        None => StoreError::Unavailable(message.to_owned()),
    }
}

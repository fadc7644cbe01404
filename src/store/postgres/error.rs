//! What can go wrong with the server, told in the words of whoever has to mend it.
//!
//! Of what PostgreSQL says only the message is passed on, never the detail: that quotes values of rows. Neither holds a password.

use std::path::PathBuf;

use sqlx::postgres::PgDatabaseError;
use thiserror::Error;

use super::open::Place;
use crate::store::StoreError;

/// Why the store could not be opened. Says what to do. Holds no password.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is none, or has a parameter that is not known.
    #[error("the URL of the database cannot be used: {0}")]
    Url(String),
    /// The password file cannot be used.
    #[error("the password file `{}` {cause}", .path.display())]
    PasswordFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong, and what to do.
        cause: String,
    },
    /// The server refuses the user or the password.
    #[error(
        "{place} refuses the login: {cause}; check the user, `store.password_file` or the password in the URL, and the server's pg_hba.conf"
    )]
    Login {
        /// Where.
        place: String,
        /// As the server says it.
        cause: String,
    },
    /// There is no such database.
    #[error("{place}: {cause}; make it with `createdb`, or name another in the URL")]
    NoDatabase {
        /// Where.
        place: String,
        /// As the server says it.
        cause: String,
    },
    /// The connection could not be secured.
    #[error(
        "{place} could not be reached by TLS: {cause}; check `sslmode` and `sslrootcert` in the URL, and the server's certificate"
    )]
    Tls {
        /// Where.
        place: String,
        /// What was wrong.
        cause: String,
    },
    /// Nothing was migrated yet.
    #[error("{place} is empty; prepare it: `tollgate migrate --database postgres://…`")]
    Empty {
        /// Where.
        place: String,
    },
    /// A database of another program.
    #[error("{place} holds tables of another program than Tollgate; name a database, or a schema, of its own")]
    Foreign {
        /// Where.
        place: String,
    },
    /// Written by an earlier version.
    #[error(
        "{place} has schema {found}, and this version of Tollgate works on {known}; bring it there: `tollgate migrate --database postgres://…`"
    )]
    NotMigrated {
        /// Where.
        place: String,
        /// Its schema.
        found: i64,
        /// The one that this version knows.
        known: i64,
    },
    /// Written by a later version, which earlier ones can't work beside.
    #[error(
        "{place} has schema {found}, on which this version of Tollgate, which knows {known}, cannot work; run the version that migrated it, or a later one"
    )]
    NewerSchema {
        /// Where.
        place: String,
        /// Its schema.
        found: i64,
        /// The last that this version knows.
        known: i64,
    },
    /// The server is too old.
    #[error("{place} is PostgreSQL {found}; 15 or a later one is needed")]
    TooOld {
        /// Where.
        place: String,
        /// Its version.
        found: String,
    },
    /// What authorises is read on the primary.
    #[error(
        "{place} is a standby, which may lag behind; name the primary, or an address that leads to whichever server it is"
    )]
    Standby {
        /// Where.
        place: String,
    },
    /// Text is stored as UTF-8.
    #[error(
        "{place} has the encoding {encoding}; make a database with `createdb --encoding=UTF8 --template=template0`"
    )]
    Encoding {
        /// Where.
        place: String,
        /// As the server names it.
        encoding: String,
    },
    /// What is stored makes no sense.
    #[error("{place} is damaged: {cause}; restore it from a backup")]
    Corrupt {
        /// Where.
        place: String,
        /// As the server says it.
        cause: String,
    },
    /// Anything else, such as a server that is down.
    #[error("{place} cannot be used: {cause}")]
    Unavailable {
        /// Where.
        place: String,
        /// What was wrong.
        cause: String,
    },
}

impl OpenError {
    /// From an error that was met while this database was opened.
    pub(super) fn from_sqlx(place: &Place, error: sqlx::Error) -> Self {
        let place = place.to_string();
        if let Some(database) = postgres_error(&error) {
            let cause = database.message().to_owned();
            match database.code() {
                INVALID_PASSWORD | INVALID_AUTHORIZATION => return Self::Login { place, cause },
                NO_SUCH_DATABASE => return Self::NoDatabase { place, cause },
                _ => {}
            }
        }
        // What rustls finds wrong with a certificate comes as an error of the stream.
        #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds are many, and grow")]
        let broken_tls = match &error {
            sqlx::Error::Tls(cause) => Some(cause.to_string()),
            sqlx::Error::Io(cause) if cause.kind() == std::io::ErrorKind::InvalidData => Some(cause.to_string()),
            _ => None,
        };
        match broken_tls {
            Some(cause) => Self::Tls { place, cause },
            None => Self::from_store(place, StoreError::from(error)),
        }
    }

    pub(super) fn from_store(place: String, error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::Unavailable { place, cause },
            StoreError::Corrupt(cause) => Self::Corrupt { place, cause },
        }
    }
}

// SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html.
const INVALID_AUTHORIZATION: &str = "28000";
const INVALID_PASSWORD: &str = "28P01";
const NO_SUCH_DATABASE: &str = "3D000";

fn postgres_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// Whether the server knows the user or the password not.
pub(super) fn is_refused_login(error: &sqlx::Error) -> bool {
    postgres_error(error).is_some_and(|error| matches!(error.code(), INVALID_PASSWORD | INVALID_AUTHORIZATION))
}

/// What an error of the server means, and what to do about it.
pub(in crate::store) fn from_server(error: &PgDatabaseError) -> StoreError {
    let code = error.code();
    let advice = match code {
        "57014" if error.message().contains("statement timeout") => {
            ": raise `store.statement_timeout`, or find out what keeps the server so long"
        }
        "55P03" => ": another transaction held it for too long",
        "40001" | "40P01" => ": another transaction was in its way; it may work the next time",
        "53300" => ": raise `max_connections` of the server, or lower `store.pool_max`",
        "53100" => ": free some space on its disk",
        "57P01" | "57P02" | "57P03" => ": the server is stopping or starting",
        "25006" => ": the server is a standby, or was told to be read-only; name the primary",
        "42501" => ": the user of the database may not do this; grant it, or make it the owner of the tables",
        "42P01" | "42703" | "42883" => ": the schema is not the one that this version knows; `tollgate migrate`",
        INVALID_AUTHORIZATION | INVALID_PASSWORD => ": check the user and the password",
        _ => "",
    };
    let message = format!("{} (PostgreSQL {code}){advice}", error.message());
    match code.get(..2) {
        // Data that is corrupted, or that no column of its type should hold.
        Some("XX" | "22") => StoreError::Corrupt(message),
        _ => StoreError::Unavailable(message),
    }
}

//! What sqlx says, in the words of the store.

use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

use crate::store::{StoreError, postgres, sqlite};

impl From<sqlx::Error> for StoreError {
    /// No engine quotes a bound value in the message of an error, nor does sqlx, so that no hash gets out here.
    fn from(error: sqlx::Error) -> Self {
        if let Some(database) = error.as_database_error() {
            if let Some(error) = database.try_downcast_ref::<SqliteError>() {
                return sqlite::from_sqlite(error);
            }
            if let Some(error) = database.try_downcast_ref::<PgDatabaseError>() {
                return postgres::from_server(error);
            }
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds are many, and grow")]
        match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::RowNotFound => Self::Corrupt(error.to_string()),
            sqlx::Error::PoolTimedOut => Self::Unavailable("all of its connections are busy".to_owned()),
            sqlx::Error::PoolClosed => Self::Unavailable("it has been closed".to_owned()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

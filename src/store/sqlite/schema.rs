//! Brings a database to the schema that this version knows.
//!
//! To change the schema add a file to `migrations/sqlite` and a line here; neither is changed once released. Migrations
//! only go forward, and expand first: what the version before reads stays until a release later.

use std::path::Path;

use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::OpenError;

/// In order; the schema's number is how many of them have been applied, kept in SQLite's `user_version`.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/sqlite/0001_initial.sql"),
    include_str!("../../../migrations/sqlite/0002_budgets.sql"),
    include_str!("../../../migrations/sqlite/0003_journal.sql"),
    include_str!("../../../migrations/sqlite/0004_operations.sql"),
    include_str!("../../../migrations/sqlite/0005_one_allowance.sql"),
];

/// Marks a database as Tollgate's: `tlgt` in SQLite's `application_id`.
const APPLICATION_ID: i64 = 0x746c_6774;

/// The schema that this version knows.
pub(super) fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Checks that the database is Tollgate's, or empty, and not newer than this version. Returns how many migrations have
/// been applied. Only reads.
pub(super) async fn check(connection: &mut SqliteConnection, path: &Path) -> Result<i64, OpenError> {
    let known = known();
    let found = version(connection, path).await?;
    if found > known {
        return Err(OpenError::NewerSchema { path: path.to_owned(), found, known });
    }
    Ok(found)
}

/// Applies what is missing, each migration in a transaction.
pub(super) async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(path, error);
    let found = check(connection, path).await?;
    for (migration, number) in MIGRATIONS.iter().zip(1_i64..) {
        if number <= found {
            continue;
        }
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        sqlx::raw_sql(*migration).execute(&mut *transaction).await.map_err(failed)?;
        let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(marks)).execute(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        tracing::info!(path = %path.display(), schema = number, "migrated the database");
    }
    Ok(())
}

/// How many migrations have been applied; 0 for an empty database.
async fn version(connection: &mut SqliteConnection, path: &Path) -> Result<i64, OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(path, error);
    let row = sqlx::query(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
         FROM pragma_application_id, pragma_user_version",
    )
    .fetch_one(connection)
    .await
    .map_err(failed)?;
    let application_id: i64 = row.try_get(0).map_err(failed)?;
    let version: i64 = row.try_get(1).map_err(failed)?;
    let objects: i64 = row.try_get(2).map_err(failed)?;
    match (application_id, version, objects) {
        (APPLICATION_ID, version, _) => Ok(version),
        (0, 0, 0) => Ok(0),
        _ => Err(OpenError::Foreign(path.to_owned())),
    }
}

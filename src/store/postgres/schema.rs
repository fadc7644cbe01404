//! Brings a database to the schema that this version knows.
//!
//! To change the schema add a file to `migrations/postgres` and a line here; neither is changed once released. Migrations
//! only go forward, and expand first: processes of the version before go on working beside this one while they are replaced. Each says
//! which is the oldest schema whose processes can.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::error::OpenError;
use super::open::Place;
use crate::ambient::random;

struct Migration {
    name: &'static str,
    /// The oldest version whose processes can go on working beside it.
    compatible_from: i64,
    sql: &'static str,
}

/// In order; the schema's version is how many of them have been applied.
const MIGRATIONS: &[Migration] = &[Migration {
    name: "0001_initial",
    compatible_from: 1,
    sql: include_str!("../../../migrations/postgres/0001_initial.sql"),
}];

/// Which history of which database this is: the system's identifier and the timeline that it writes now, which a promotion
/// changes at once (the one of the last checkpoint only follows). An expression in SQL, of type `text`; fails on a standby.
pub(super) const LINEAGE: &str = "((SELECT system_identifier::text FROM pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8))";

/// Held by whoever migrates: `tlgt` in ASCII.
const ADVISORY_LOCK: i64 = 0x746c_6774;

/// What came of migrating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The schema that was found; 0 in an empty database.
    pub from: i64,
    /// The schema that it has now.
    pub to: i64,
}

/// The schema that this version knows.
pub(super) fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// What a database says of its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// How many migrations have been applied.
    pub(super) version: i64,
    /// The oldest version whose processes can work on it.
    pub(super) compatible_from: i64,
}

/// Refuses a schema that this version can't work on. A later one will do if it says that it is compatible.
pub(super) fn check(found: Found, place: &Place) -> Result<(), OpenError> {
    let (known, place) = (known(), place.to_string());
    let Found { version: found, compatible_from } = found;
    match found {
        0 => Err(OpenError::Empty { place }),
        _ if found < known => Err(OpenError::NotMigrated { place, found, known }),
        _ if found > known && compatible_from > known => Err(OpenError::NewerSchema { place, found, known }),
        _ => Ok(()),
    }
}

/// What schema a database has. Only reads.
pub(super) async fn find(connection: &mut PgConnection, place: &Place) -> Result<Found, OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(place, error);
    // Tables of extensions are nobody's, and none counts that lies in another schema.
    let row = sqlx::query(
        "SELECT to_regclass('schema_migrations') IS NOT NULL,
           (SELECT count(*) FROM pg_class AS c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
              AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e'))",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(failed)?;
    let (is_migrated, tables): (bool, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    match (is_migrated, tables) {
        (true, _) => {}
        (false, 0) => return Ok(Found { version: 0, compatible_from: 0 }),
        (false, _) => return Err(OpenError::Foreign { place: place.to_string() }),
    }
    let found: Result<(Option<i64>, Option<i64>), sqlx::Error> =
        sqlx::query_as("SELECT max(version), max(compatible_from) FROM schema_migrations").fetch_one(connection).await;
    match found {
        Ok((version, compatible_from)) => {
            Ok(Found { version: version.unwrap_or(0), compatible_from: compatible_from.unwrap_or(0) })
        }
        // Another program has a table of this name, with other columns or types.
        Err(sqlx::Error::ColumnDecode { .. }) => Err(OpenError::Foreign { place: place.to_string() }),
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == "42703") => {
            Err(OpenError::Foreign { place: place.to_string() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Applies what is missing, all of it or nothing. Who comes while another migrates waits for it.
pub(super) async fn migrate(connection: &mut PgConnection, place: &Place) -> Result<Migrated, OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(place, error);
    let mut transaction = connection.begin().await.map_err(failed)?;
    // A migration takes as long as it takes; but it must not wait long for a lock, because all others then wait behind it.
    sqlx::raw_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(ADVISORY_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    sqlx::raw_sql("SET LOCAL lock_timeout = '10s'").execute(&mut *transaction).await.map_err(failed)?;
    let found = find(&mut transaction, place).await?;
    let from = found.version;
    if from >= known() {
        check(found, place)?;
        return Ok(Migrated { from, to: from });
    }
    if from == 0 {
        begin(&mut transaction, place).await?;
    }
    for (migration, number) in MIGRATIONS.iter().zip(1_i64..) {
        if number <= from {
            continue;
        }
        sqlx::raw_sql(migration.sql).execute(&mut *transaction).await.map_err(failed)?;
        sqlx::query("INSERT INTO schema_migrations (version, name, compatible_from) VALUES ($1, $2, $3)")
            .bind(number)
            .bind(migration.name)
            .bind(migration.compatible_from)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    if from == 0 {
        number(&mut transaction, place).await?;
    }
    transaction.commit().await.map_err(failed)?;
    tracing::info!(%place, from, to = known(), "migrated the database");
    Ok(Migrated { from, to: known() })
}

/// The table of what was applied.
async fn begin(connection: &mut PgConnection, place: &Place) -> Result<(), OpenError> {
    sqlx::raw_sql(
        "CREATE TABLE schema_migrations (
           version         bigint PRIMARY KEY CHECK (version > 0),
           name            text NOT NULL,
           compatible_from bigint NOT NULL,
           applied_at      timestamptz NOT NULL DEFAULT clock_timestamp()
         )",
    )
    .execute(connection)
    .await
    .map_err(|error| OpenError::from_sqlx(place, error))?;
    Ok(())
}

/// The revision before the first, and whose history begins with it.
async fn number(connection: &mut PgConnection, place: &Place) -> Result<(), OpenError> {
    let failed = |error: sqlx::Error| OpenError::from_sqlx(place, error);
    let mut stamp = [0; 8];
    random::fill(&mut stamp)
        .map_err(|error| OpenError::Unavailable { place: place.to_string(), cause: error.to_string() })?;
    let first = format!("INSERT INTO sequence (id, revision, lineage) VALUES (1, 0, {LINEAGE})");
    sqlx::query(sqlx::AssertSqlSafe(first)).execute(&mut *connection).await.map_err(failed)?;
    sqlx::query("INSERT INTO commits (revision, stamp) VALUES (0, $1)")
        .bind(i64::from_be_bytes(stamp))
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_schema_will_do_if_it_says_so() {
        let place = Place::of(&sqlx::postgres::PgConnectOptions::new_without_pgpass());
        let known = known();
        let checked = |version, compatible_from| check(Found { version, compatible_from }, &place);
        assert!(matches!(checked(0, 0), Err(OpenError::Empty { .. })));
        assert!(checked(known, known).is_ok());
        assert!(checked(known + 1, known).is_ok());
        assert!(matches!(checked(known + 1, known + 1), Err(OpenError::NewerSchema { .. })));
    }

    #[test]
    fn each_migration_leaves_room_for_the_version_before() {
        for (migration, version) in MIGRATIONS.iter().zip(1_i64..) {
            assert!(migration.compatible_from <= version, "{}", migration.name);
            assert!(migration.name.starts_with(&format!("{version:04}_")), "{}", migration.name);
        }
    }
}

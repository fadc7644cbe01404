//! Fills an empty database with all that an embedded store holds, in one transaction: what arrived is compared with what was sent
//! before it is made durable.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::database::{Database, Transaction};
use super::schema::LINEAGE;
use crate::ambient::random;
use crate::domain::Revision;
use crate::store::StoreError;
use crate::store::shared::tables::{TABLES, Table, Tally};
use crate::store::sqlite::SqliteStore;

/// A table that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedTable {
    /// Its name.
    pub name: &'static str,
    /// How many rows it has.
    pub rows: u64,
    /// SHA-256 of the rows, in hexadecimal digits; the same on both sides.
    pub checksum: String,
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The tables.
    pub tables: Vec<CopiedTable>,
    /// The last revision, with which the destination goes on.
    pub revision: Revision,
}

/// Why nothing was copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// It holds something, or a process works on it.
    #[error(
        "the destination is not empty: there are rows in {0}; name a database that `tollgate migrate` has just prepared"
    )]
    NotEmpty(String),
    /// It was moved since it was migrated.
    #[error(
        "the destination was restored or moved after it was migrated; name one that `tollgate migrate` has just prepared"
    )]
    Moved,
    /// What was written is not what was read.
    #[error("`{table}` arrived as {arrived} rows that are not the {sent} that were sent; nothing was written")]
    Differs {
        /// Which table.
        table: &'static str,
        /// Rows that were read from the source.
        sent: u64,
        /// Rows that the destination then had.
        arrived: u64,
    },
    /// The source could not be read.
    #[error("reading failed: {0}")]
    Source(StoreError),
    /// The destination could not be written.
    #[error("writing failed: {0}")]
    Destination(#[from] StoreError),
}

/// Tables of which each must be empty too, but that nothing is copied into.
const OTHERS: [&str; 4] = ["changes", "leases", "recalls", "replicas"];

pub(super) async fn copy(database: &Database, source: &SqliteStore) -> Result<Copied, CopyError> {
    let mut transaction = database.begin().await?;
    let copied = copy_all(&mut transaction, source).await?;
    transaction.commit().await.map_err(StoreError::from)?;
    Ok(copied)
}

async fn copy_all(transaction: &mut Transaction, source: &SqliteStore) -> Result<Copied, CopyError> {
    let connection = transaction.connection();
    // It takes as long as it takes.
    run(connection, "SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL bytea_output = 'hex'").await?;
    let names: Vec<&str> = TABLES.iter().map(|table| table.name).chain(OTHERS).collect();
    run(connection, &format!("LOCK TABLE sequence, {} IN SHARE ROW EXCLUSIVE MODE", names.join(", "))).await?;
    run(connection, "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").await?;
    require_empty(connection, &names).await?;
    let revision = source.last_revision().await.map_err(CopyError::Source)?;

    let mut tables = Vec::with_capacity(TABLES.len());
    for table in TABLES {
        let (sent, sent_checksum) = copy_table(connection, table, source).await?;
        let (arrived, checksum) = look_at(connection, table).await?;
        if (arrived, &checksum) != (sent, &sent_checksum) {
            return Err(CopyError::Differs { table: table.name, sent, arrived });
        }
        tables.push(CopiedTable { name: table.name, rows: arrived, checksum });
    }
    number(connection, revision).await?;
    // Whoever starts next needs to know how large the tables are.
    run(connection, &format!("ANALYZE {}", names.join(", "))).await?;
    Ok(Copied { tables, revision })
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), StoreError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(())
}

async fn require_empty(connection: &mut PgConnection, names: &[&str]) -> Result<(), CopyError> {
    let filled: Vec<String> = names.iter().map(|name| format!("EXISTS (SELECT 1 FROM {name})")).collect();
    let sql = format!("SELECT lineage = {LINEAGE}, revision > 0, {} FROM sequence", filled.join(", "));
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(connection).await.map_err(StoreError::from)?;
    let is = |place: usize| row.try_get::<bool, _>(place).map_err(StoreError::from);
    if !is(0)? {
        return Err(CopyError::Moved);
    }
    for (place, name) in std::iter::once(&"the log").chain(names).enumerate() {
        if is(place + 1)? {
            return Err(CopyError::NotEmpty((*name).to_owned()));
        }
    }
    Ok(())
}

/// Returns how many rows were sent, and their checksum.
async fn copy_table(
    connection: &mut PgConnection,
    table: &Table,
    source: &SqliteStore,
) -> Result<(u64, String), CopyError> {
    let (sink, mut lines) = mpsc::channel::<Vec<u8>>(4);
    let receive = async move {
        let sql = format!("COPY {} ({}) FROM STDIN", table.name, table.column_names());
        let mut copy = connection.copy_in_raw(&sql).await?;
        let mut tally = Tally::default();
        while let Some(chunk) = lines.recv().await {
            tally.add(&chunk);
            copy.send(chunk.as_slice()).await?;
        }
        copy.finish().await?;
        Ok::<_, sqlx::Error>(tally.finish())
    };
    let (sent, received) = tokio::join!(source.dump(table, sink), receive);
    let received = received.map_err(StoreError::from)?;
    sent.map_err(CopyError::Source)?;
    Ok(received)
}

/// The same of what is there now.
async fn look_at(connection: &mut PgConnection, table: &Table) -> Result<(u64, String), CopyError> {
    let sql = format!("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT", table.column_names(), table.name, table.key);
    let mut lines = connection.copy_out_raw(&sql).await.map_err(StoreError::from)?;
    let mut tally = Tally::default();
    while let Some(line) = lines.next().await {
        tally.add(&line.map_err(StoreError::from)?);
    }
    Ok(tally.finish())
}

/// Goes on with the source's revisions; the log begins with the last one.
async fn number(connection: &mut PgConnection, revision: Revision) -> Result<(), StoreError> {
    let mut stamp = [0; 8];
    random::fill(&mut stamp).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    sqlx::query(
        "WITH first AS (DELETE FROM commits), last AS (UPDATE sequence SET revision = $1)
         INSERT INTO commits (revision, stamp) VALUES ($1, $2) ON CONFLICT (revision) DO UPDATE SET stamp = excluded.stamp",
    )
    .bind(revision.number())
    .bind(i64::from_be_bytes(stamp))
    .execute(connection)
    .await?;
    Ok(())
}

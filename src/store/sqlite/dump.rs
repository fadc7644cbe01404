//! All rows of a table, as lines of text.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use crate::store::StoreError;
use crate::store::shared::tables::{Kind, Table, push_bytes, push_text};

/// Lines are sent together, about so many bytes at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Sends whole lines, in the order of the table's key. Ends early, without error, where nobody receives them.
pub(super) async fn dump(readers: &SqlitePool, table: &Table, sink: mpsc::Sender<Vec<u8>>) -> Result<(), StoreError> {
    let sql = format!("SELECT {} FROM {} ORDER BY {}", table.column_names(), table.name, table.key);
    let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(readers);
    let mut chunk = Vec::new();
    while let Some(row) = rows.next().await {
        push_row(&mut chunk, table, &row?)?;
        if chunk.len() >= CHUNK_BYTES && sink.send(std::mem::take(&mut chunk)).await.is_err() {
            return Ok(());
        }
    }
    if !chunk.is_empty() {
        // Whoever is gone needs it no more.
        _ = sink.send(chunk).await;
    }
    Ok(())
}

fn push_row(line: &mut Vec<u8>, table: &Table, row: &SqliteRow) -> Result<(), StoreError> {
    for (place, column) in table.columns.iter().enumerate() {
        if place > 0 {
            line.push(b'\t');
        }
        let is_there = match column.kind {
            Kind::Integer => {
                row.try_get::<Option<i64>, _>(place)?.map(|number| line.extend(number.to_string().into_bytes()))
            }
            Kind::Boolean => {
                row.try_get::<Option<i64>, _>(place)?.map(|number| line.push(if number == 0 { b'f' } else { b't' }))
            }
            Kind::Text => row.try_get::<Option<&str>, _>(place)?.map(|text| push_text(line, text)),
            Kind::Bytes => row.try_get::<Option<&[u8]>, _>(place)?.map(|bytes| push_bytes(line, bytes)),
        };
        if is_there.is_none() {
            line.extend(br"\N");
        }
    }
    line.push(b'\n');
    Ok(())
}

//! Who may be granted anything, and whether the database is the one that it was.

use std::sync::{Mutex, PoisonError};

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::schema::LINEAGE;
use crate::store::{Incarnation, StoreError};

/// The number of the last poll of this process that succeeded. A database that knows only of earlier ones has gone back.
#[derive(Debug, Default)]
pub(super) struct Beats(Mutex<Option<(Incarnation, i64)>>);

impl Beats {
    pub(super) fn confirm(&self, incarnation: Incarnation, beat: i64) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.filter(|(of, _)| *of == incarnation).map_or(0, |(_, beat)| beat);
        *last = Some((incarnation, beat.max(before)));
    }

    /// 0 where there was none.
    pub(super) fn confirmed(&self, incarnation: Incarnation) -> i64 {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(of, _)| *of == incarnation).map_or(0, |(_, beat)| beat)
    }
}

/// A statement's own row for [`refusal`], of the process `$1`: to be read from as `standing`.
pub(super) fn standing() -> String {
    format!(
        "(SELECT (SELECT beat FROM replicas WHERE incarnation = $1) AS beat, {} AS is_moved
          FROM sequence AS s WHERE s.id = 1)",
        is_moved()
    )
}

/// Whether the database moved since it was last written, or processes restate what they know: a condition on `sequence AS s`.
pub(super) fn is_moved() -> String {
    format!("(s.moving IS NOT NULL OR s.lineage <> {LINEAGE})")
}

/// Why nothing is granted to a process, where that is so; from columns `beat` and `is_moved`.
pub(super) fn refusal(row: &PgRow, confirmed: i64) -> Result<(), StoreError> {
    if row.try_get("is_moved")? {
        return Err(moved());
    }
    match row.try_get::<Option<i64>, _>("beat")? {
        None => Err(StoreError::Unavailable("this process is not registered (any more)".to_owned())),
        Some(beat) if beat < confirmed => Err(moved()),
        Some(_) => Ok(()),
    }
}

pub(super) fn moved() -> StoreError {
    StoreError::Unavailable(
        "the database was restored or failed over, and nothing is granted before all processes have said what they know"
            .to_owned(),
    )
}

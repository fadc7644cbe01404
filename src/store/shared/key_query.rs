//! Which keys are wanted, as conditions of a statement on `keys AS k`.

use sqlx::{Database, Encode, QueryBuilder, Type};

use crate::domain::{Status, Time};
use crate::store::KeyQuery;

pub(in crate::store) const ACTIVITY_JOIN: &str = " LEFT JOIN key_activity AS a ON a.key_id = k.id";

/// Above every text that begins so: no character is greater. Both bounds are needed for an index to serve.
pub(in crate::store) fn prefix_end(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

/// The conditions, the order and the limit.
pub(in crate::store) fn push_wanted<DB>(query: &mut QueryBuilder<DB>, wanted: &KeyQuery)
where
    DB: Database,
    Vec<u8>: for<'q> Encode<'q, DB> + Type<DB>,
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let KeyQuery { account_id, status, environment, prefix, unused_since, expires_before, after, rows_max, now } =
        wanted;
    // No bytes at all are before every id.
    query.push(" WHERE k.id > ").push_bind(after.as_ref().map_or(Vec::new(), |id| id.as_bytes().to_vec()));
    if let Some(account_id) = account_id {
        query.push(" AND k.account_id = ").push_bind(account_id.as_str().to_owned());
    }
    if let Some(status) = status {
        push_status(query, *status, *now);
    }
    if let Some(environment) = environment {
        query.push(" AND k.environment = ").push_bind(environment.as_str().to_owned());
    }
    if let Some(prefix) = prefix {
        query.push(" AND k.prefix >= ").push_bind(prefix.clone());
        query.push(" AND k.prefix < ").push_bind(prefix_end(prefix));
    }
    if let Some(time) = unused_since {
        query.push(" AND k.create_time < ").push_bind(time.millis());
        query.push(" AND (a.last_used_time IS NULL OR a.last_used_time < ").push_bind(time.millis()).push(")");
    }
    if let Some(time) = expires_before {
        query.push(" AND k.expire_time < ").push_bind(time.millis());
    }
    query.push(" ORDER BY k.id LIMIT ").push_bind(i64::from(*rows_max));
}

/// As `Key::status_at` has it.
fn push_status<DB>(query: &mut QueryBuilder<DB>, status: Status, now: Time)
where
    DB: Database,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let (condition, until) = match status {
        Status::Active => (" AND k.status = 'active' AND (k.expire_time IS NULL OR k.expire_time > ", ")"),
        Status::Disabled => (" AND k.status = 'disabled' AND (k.expire_time IS NULL OR k.expire_time > ", ")"),
        Status::Expired => (" AND k.status <> 'revoked' AND k.expire_time <= ", ""),
        Status::Revoked => {
            query.push(" AND k.status = 'revoked'");
            return;
        }
    };
    query.push(condition).push_bind(now.millis()).push(until);
}

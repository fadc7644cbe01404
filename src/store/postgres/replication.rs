//! The list of processes, and polls.
//!
//! A poll is one statement, so what it tells is the state at one moment, after it began. The row of the process is written in it:
//! where another is taking that out, the poll waits, and finds it gone.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::database::{Database, Session, statement};
use super::leases::fetch_all;
use super::standing::{Beats, is_moved};
use crate::ambient::random;
use crate::domain::{BudgetId, PlanId, Revision, Time};
use crate::store::shared::intern::Intern;
use crate::store::shared::{packed, rows};
use crate::store::{
    ChangedKey, ChangedRecords, Changes, Incarnation, Loaded, LogPosition, Peer, Poll, Polled, Registration, Replica,
    RetiredSecret, Standing, StoreError,
};

/// The beat of a process that has restated what it knows: its next poll gives another.
pub(super) const BEAT_RESTATED: i64 = i64::MAX;
/// Changes that one poll tells of.
const CHANGES_MAX: i64 = 20_000;

/// In whole milliseconds, never shorter.
pub(super) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// It takes a revision, though nothing is changed: so a database that goes back to before it is told from one in which the process
/// was taken out.
pub(super) async fn register(database: &Database, replica: &Replica) -> Result<Registration, StoreError> {
    static LOCK: LazyLock<String> =
        LazyLock::new(|| format!("SELECT {} FROM sequence AS s WHERE s.id = 1 FOR UPDATE OF s", is_moved()));
    let mut transaction = database.begin().await?;
    let locked = fetch_all(&mut transaction, sqlx::query(LOCK.as_str())).await?;
    if locked.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)? {
        transaction.rollback().await;
        return Ok(Registration::Moved);
    }
    let insert = sqlx::query(
        "INSERT INTO replicas (incarnation, name, fence_millis, beat, acknowledged, seen, flushed)
         VALUES ($1, $2, $3, 0, 0, clock_timestamp(), floor(extract(epoch FROM clock_timestamp()) * 1000))
         ON CONFLICT (incarnation) DO UPDATE SET name = excluded.name, fence_millis = excluded.fence_millis, seen = excluded.seen",
    );
    let insert = insert.bind(replica.incarnation.0.as_slice()).bind(&replica.name).bind(millis(replica.fence).max(1));
    fetch_all(&mut transaction, insert).await?;
    let mut stamp = [0; 8];
    random::fill(&mut stamp).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let taken = sqlx::query(
        "WITH taken AS (UPDATE sequence SET revision = revision + 1 WHERE id = 1 RETURNING revision)
         INSERT INTO commits (revision, stamp) SELECT revision, $1 FROM taken",
    );
    fetch_all(&mut transaction, taken.bind(i64::from_be_bytes(stamp))).await?;
    transaction.commit().await?;
    Ok(Registration::Done)
}

pub(super) async fn depart(database: &Database, incarnation: Incarnation) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    // First its row, for which those wait who are granting it something.
    for sql in ["DELETE FROM replicas WHERE incarnation = $1", "DELETE FROM recalls WHERE incarnation = $1"] {
        fetch_all(&mut transaction, sqlx::query(sql).bind(incarnation.0.as_slice())).await?;
    }
    Ok(transaction.commit().await?)
}

pub(super) async fn time(database: &Database) -> Result<Time, StoreError> {
    let row = database.one(sqlx::query("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")).await?;
    Ok(Time::from_millis(row.try_get(0)?))
}

/// Of the process `$1`, which has applied revision `$2` with the stamp `$3`; its poll `$4`, the one that succeeded before it `$5`;
/// at most `$6` changes; all that it counted up to `$7` is in the store.
///
/// `is_known`: the log has that revision, and all after it. Where it has others of that age, or none so late, the history is
/// another. What such a process has applied says nothing of this history, so it acknowledges none of it.
///
/// Records are looked up one by one (`OFFSET 0`), whatever the planner expects: mostly there are none.
/// A poll that was overtaken by a later one, on another connection, leaves the later one's beat.
static POLL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH status AS MATERIALIZED (
           SELECT s.revision, s.moving, coalesce(last.stamp, 0) AS stamp,
             here.stamp IS NOT DISTINCT FROM $3 AS is_known,
             {is_moved} OR s.revision < $2 OR coalesce(m.beat < $5, false) OR (here.stamp IS DISTINCT FROM $3
               AND (SELECT min(revision) FROM commits) <= $2) AS is_moved
           FROM sequence AS s
           LEFT JOIN commits AS last ON last.revision = s.revision
           LEFT JOIN commits AS here ON here.revision = $2
           LEFT JOIN replicas AS m ON m.incarnation = $1
           WHERE s.id = 1),
         beat AS (
           UPDATE replicas AS r SET seen = clock_timestamp(),
             beat = CASE WHEN r.beat = {BEAT_RESTATED} THEN $4 WHEN r.beat >= $5 OR s.moving IS NOT NULL THEN greatest(r.beat, $4)
               ELSE r.beat END,
             acknowledged = CASE WHEN s.is_moved THEN 0 ELSE $2 END, flushed = greatest(r.flushed, $7)
           FROM status AS s WHERE r.incarnation = $1 RETURNING r.incarnation),
         logged AS MATERIALIZED (
           SELECT entity, id FROM changes
           WHERE revision > $2 AND revision <= (SELECT CASE WHEN is_known THEN revision ELSE $2 END FROM status)
           ORDER BY revision LIMIT $6 + 1),
         changed AS MATERIALIZED (
           SELECT DISTINCT entity, id FROM logged WHERE (SELECT count(*) FROM logged) <= $6),
         changed_keys AS MATERIALIZED (
           SELECT k.* FROM changed AS c
           CROSS JOIN LATERAL (SELECT * FROM keys AS k WHERE k.id = decode(c.id, 'hex') OFFSET 0) AS k
           WHERE c.entity = 'key'),
         changed_plans AS MATERIALIZED (
           SELECT c.id, p.revision, p.body FROM changed AS c
           LEFT JOIN LATERAL (SELECT * FROM plans AS p WHERE p.id = c.id OFFSET 0) AS p ON true
           WHERE c.entity = 'plan'),
         others AS MATERIALIZED (SELECT * FROM replicas WHERE incarnation <> $1)
         SELECT s.revision, s.stamp, s.is_moved,
           EXISTS (SELECT FROM beat) AS is_registered,
           s.is_known AND (SELECT count(*) FROM logged) <= $6 AS is_complete,
           floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS time,
           ARRAY(SELECT budget FROM recalls WHERE incarnation = $1) AS recalled,
           ARRAY(SELECT incarnation FROM others ORDER BY incarnation) AS peers,
           ARRAY(SELECT name FROM others ORDER BY incarnation) AS names,
           ARRAY(SELECT fence_millis FROM others ORDER BY incarnation) AS fences,
           ARRAY(SELECT acknowledged FROM others ORDER BY incarnation) AS acknowledged,
           ARRAY(SELECT flushed FROM others ORDER BY incarnation) AS flushed,
           ARRAY(SELECT greatest(floor(extract(epoch FROM clock_timestamp() - seen) * 1000), 0)::bigint FROM others
             ORDER BY incarnation) AS silences,
           ARRAY(SELECT id FROM changed_plans ORDER BY id) AS plan_ids,
           ARRAY(SELECT revision FROM changed_plans ORDER BY id) AS plan_revisions,
           ARRAY(SELECT body FROM changed_plans ORDER BY id) AS plan_bodies,
           (SELECT string_agg(concat_ws(chr(31), a.id, a.plan_id, a.revision, a.body), chr(30)) FROM changed AS c
            CROSS JOIN LATERAL (SELECT * FROM accounts AS a WHERE a.id = c.id OFFSET 0) AS a
            WHERE c.entity = 'account') AS accounts,
           (SELECT string_agg(concat_ws(chr(31), encode(id, 'hex'), account_id, name, encode(secret_hash, 'hex'), environment,
              status, coalesce(expire_time::text, ''), revision, policy, metadata), chr(30)) FROM changed_keys) AS keys,
           (SELECT string_agg(concat_ws(chr(31), encode(r.hash, 'hex'), encode(k.secret_hash, 'hex'), r.expire_time), chr(30)
              ORDER BY r.revision DESC) FROM changed_keys AS k
            CROSS JOIN LATERAL (SELECT * FROM retired_secrets AS r WHERE r.key_id = k.id OFFSET 0) AS r) AS retired
         FROM status AS s",
        is_moved = is_moved(),
    )
});

/// Connections that have polled, to be polled on again at once: a pool would first ask each whether it is well.
#[derive(Default)]
pub(super) struct Pollers(Mutex<Vec<Session>>);

/// More are used where polls are not answered, and not kept.
const POLLERS_MAX: usize = 2;

impl std::fmt::Debug for Pollers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pollers").finish_non_exhaustive()
    }
}

impl Pollers {
    fn take(&self) -> Option<Session> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, session: Session) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < POLLERS_MAX {
            kept.push(session);
        } else {
            session.end();
        }
    }

    /// Closes those that wait.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// `polls` has connections that nothing else uses.
pub(super) async fn poll(
    polls: &Database,
    pollers: &Pollers,
    beats: &Beats,
    poll: &Poll,
) -> Result<Polled, StoreError> {
    let Poll { incarnation, position, beat, beat_confirmed, flushed } = *poll;
    let query = sqlx::query(POLL.as_str())
        .bind(incarnation.0.as_slice())
        .bind(position.revision.number())
        .bind(position.stamp)
        .bind(beat)
        .bind(beat_confirmed)
        .bind(CHANGES_MAX)
        .bind(flushed.millis());
    let mut session = match pollers.take() {
        Some(session) => session,
        None => polls.session().await?,
    };
    let patience = session.patience();
    let row = statement(&patience, query.fetch_one(session.connection())).await?;
    pollers.keep(session);
    let standing = if row.try_get("is_moved")? {
        Standing::Moved
    } else if row.try_get("is_registered")? {
        beats.confirm(incarnation, beat);
        Standing::Registered
    } else {
        Standing::Buried
    };
    let recalled: Vec<String> = row.try_get("recalled")?;
    Ok(Polled {
        standing,
        time: Time::from_millis(row.try_get("time")?),
        position: LogPosition { revision: Revision::new(row.try_get("revision")?), stamp: row.try_get("stamp")? },
        changes: if row.try_get("is_complete")? { Changes::Records(records(&row)?) } else { Changes::TooMany },
        recalled: recalled.into_iter().map(BudgetId::stored).collect(),
        peers: peers(&row)?,
    })
}

fn peers(row: &PgRow) -> Result<Vec<Peer>, StoreError> {
    let incarnations: Vec<Vec<u8>> = row.try_get("peers")?;
    let (names, fences): (Vec<String>, Vec<i64>) = (row.try_get("names")?, row.try_get("fences")?);
    let (acknowledged, silences): (Vec<i64>, Vec<i64>) = (row.try_get("acknowledged")?, row.try_get("silences")?);
    let flushed: Vec<i64> = row.try_get("flushed")?;
    let length = |millis: i64| Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    incarnations
        .into_iter()
        .zip(names)
        .zip(fences.into_iter().zip(acknowledged).zip(silences.into_iter().zip(flushed)))
        .map(|((incarnation, name), ((fence, acknowledged), (silence, flushed)))| {
            let incarnation = incarnation
                .try_into()
                .map_err(|_| StoreError::Corrupt(format!("the process `{name}` has a name of the wrong length")))?;
            Ok(Peer {
                incarnation: Incarnation(incarnation),
                name,
                fence: length(fence),
                acknowledged: Revision::new(acknowledged),
                silence: length(silence),
                flushed: Time::from_millis(flushed),
            })
        })
        .collect()
}

fn records(row: &PgRow) -> Result<ChangedRecords, StoreError> {
    let mut records = ChangedRecords::default();
    let ids: Vec<String> = row.try_get("plan_ids")?;
    let (revisions, bodies): (Vec<Option<i64>>, Vec<Option<String>>) =
        (row.try_get("plan_revisions")?, row.try_get("plan_bodies")?);
    for (id, plan) in ids.iter().zip(revisions.into_iter().zip(bodies)) {
        if let (Some(revision), Some(body)) = plan {
            records.plans.push(rows::plan(id, revision, &body)?);
        } else {
            let removed = PlanId::parse(id).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            records.plans_removed.push(removed);
        }
    }
    let mut intern = Intern::new(Arc::default());
    if let Some(text) = row.try_get("accounts")?
        && let Loaded::Accounts(accounts) = packed::accounts(text, &mut intern)?
    {
        records.accounts = accounts;
    }
    if let Some(text) = row.try_get("keys")?
        && let Loaded::Keys(keys) = packed::keys(text, &mut intern)?
    {
        records.keys = keys.into_iter().map(|key| ChangedKey { key, retired: Vec::new() }).collect();
    }
    if let Some(text) = row.try_get("retired")?
        && let Loaded::RetiredSecrets(retired) = packed::retired_secrets(text, &mut intern)?
    {
        give_out(retired, &mut records.keys);
    }
    Ok(records)
}

/// To each key its own, in their order.
fn give_out(retired: Vec<RetiredSecret>, keys: &mut [ChangedKey]) {
    let mut of_key: std::collections::HashMap<_, _> =
        keys.iter_mut().map(|key| (key.key.hash, &mut key.retired)).collect();
    for secret in retired {
        if let Some(of_key) = of_key.get_mut(&secret.current) {
            of_key.push(secret);
        }
    }
}

//! The database has gone back to an earlier state of itself, or may have: what this process remembers is told to it.
//!
//! A backup that was restored, or a standby that was promoted before it had everything, lacks revocations that were acknowledged and
//! grants that were spent. Until every process has said what it knows, nothing is granted and nothing admitted.

use std::convert::Infallible;
use std::time::Duration;

use crate::decision::quota::State;
use crate::domain::{BudgetId, Key, KeyId, KeyStatus, Revision, Revocation, SecretHash, Time};
use crate::store::{
    AuditEvent, Commit, CommitError, Conclusion, MoveId, Replication, Restatement, Revived, StoreError, StoredKey,
    Write,
};

use super::replica::Share;
use super::{COMMIT_TRIES_MAX, Engine};

/// Of one call to the store: budgets, which are locked and merged, and names, which are looked up.
const BUDGETS_MAX: usize = 2_000;
const NAMES_MAX: usize = 20_000;
/// How often this process lets itself be heard of while it tells what it knows.
const HEARD_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait for the others before looking again, and how often to look before the next poll.
const OTHERS_WAIT: Duration = Duration::from_millis(50);
const OTHERS_LOOKS_MAX: u32 = 100;

const ACTOR: &str = "system";

/// What this process knew when the database was found to have gone back.
#[derive(Debug)]
pub(super) struct Remembered {
    /// When that was, by the monotonic clock.
    found: Duration,
    revision: Revision,
    budgets: Vec<(BudgetId, State)>,
    revoked: Vec<KeyId>,
    /// Secrets that rotations had replaced.
    replaced: Vec<SecretHash>,
    /// The move in which all of it was told.
    told: Option<MoveId>,
}

impl Engine {
    /// Takes a step out of the move: tells what is remembered, unless that is done, and, where all others have, begins anew from what
    /// the store has. The fence is shut, and the next poll that finds all in order opens it.
    pub(super) async fn restate(&self, store: &dyn Replication, share: &Share) -> Result<(), StoreError> {
        let mut remembered = share.remembered.lock().await;
        let is_news = remembered.is_none();
        let known = remembered.get_or_insert_with(|| self.remember());
        if is_news {
            tracing::error!(
                revision = known.revision.number(),
                "THE DATABASE HAS GONE BACK to an earlier state, or was failed over: nothing is admitted until every process has told it \
                 what was revoked and granted since"
            );
            share.note_move();
            // Nothing that was sent to the database that was there before is answered any more.
            store.reset();
            self.forget_leases(self.leases.incarnation()).await;
        }
        if known.told.is_none() {
            known.told = tokio::select! {
                told = self.tell(store, share, known) => Some(told?),
                never = self.stay_heard_of(store, share) => match never {},
            };
        }
        let of = known.told.clone().unwrap_or_default();
        // Not by a poll: one that comes after the others have ended the move tells of another database than this process knows.
        for _ in 0..OTHERS_LOOKS_MAX {
            let now = self.clock.monotonic();
            let waited = now.saturating_sub(known.found).min(share.in_contact_for(now));
            match store.conclude_restating(self.leases.incarnation(), &of, waited, self.clock.now()).await? {
                Conclusion::Ended => {
                    drop(remembered);
                    return self.begin_anew_after_move(share).await.map(drop);
                }
                Conclusion::Waiting => tokio::time::sleep(OTHERS_WAIT).await,
                Conclusion::Another => {
                    known.told = None;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether there is something that the database has yet to be told.
    pub(super) async fn has_to_restate(&self, share: &Share) -> bool {
        share.remembered.lock().await.as_ref().is_some_and(|known| known.told.is_none())
    }

    /// Polls, so that the others don't give this process up while it tells what it knows. What comes of that is heard later.
    async fn stay_heard_of(&self, store: &dyn Replication, share: &Share) -> Infallible {
        loop {
            tokio::time::sleep(HEARD_INTERVAL).await;
            _ = tokio::time::timeout(HEARD_INTERVAL, store.poll(&self.next_poll(share))).await;
        }
    }

    /// Where a move has ended that this process took part in, but has not seen the end of: takes up what the database now has. True
    /// where that was to be done. What was remembered is of no use for a further move.
    pub(super) async fn begin_anew_after_move(&self, share: &Share) -> Result<bool, StoreError> {
        let mut remembered = share.remembered.lock().await;
        if remembered.is_none() {
            return Ok(false);
        }
        self.reload(share, true).await?;
        share.forget_beats();
        *remembered = None;
        tracing::warn!(
            revision = share.position().revision.number(),
            "the database is taken as it is now; changes other than revocations that it had lost are lost"
        );
        Ok(true)
    }

    fn remember(&self) -> Remembered {
        let (revoked, replaced) = self.index.ended();
        Remembered {
            found: self.clock.monotonic(),
            revision: self.index.revision(),
            budgets: self.remembered_budgets(),
            revoked,
            replaced,
            told: None,
        }
    }

    /// Tells all that was known, and ends again what had ended. In one and the same move, which is returned.
    async fn tell(&self, store: &dyn Replication, share: &Share, known: &Remembered) -> Result<MoveId, StoreError> {
        let mut budgets = known.budgets.chunks(BUDGETS_MAX);
        let (mut revoked, mut replaced) = (known.revoked.chunks(NAMES_MAX), known.replaced.chunks(NAMES_MAX));
        let rounds = budgets.len().max(revoked.len()).max(replaced.len()).max(1);
        let mut told = Revived::default();
        for round in 0..rounds {
            let restatement = Restatement {
                replica: share.replica(self.leases.incarnation()),
                revision: known.revision,
                peers: share.seen.borrow().peers.clone(),
                budgets: budgets.next().unwrap_or_default().to_vec(),
                revoked: revoked.next().unwrap_or_default().to_vec(),
                replaced: replaced.next().unwrap_or_default().to_vec(),
            };
            let more = store.restate(&restatement).await?;
            if round > 0 && more.of != told.of {
                return Err(StoreError::Unavailable("it went back again while it was told what it lacked".to_owned()));
            }
            told.of = more.of;
            told.revoked.extend(more.revoked);
            told.replaced.extend(more.replaced);
        }
        self.end_revived(&told).await?;
        Ok(told.of)
    }

    async fn end_revived(&self, revived: &Revived) -> Result<(), StoreError> {
        for id in &revived.revoked {
            self.end_again(*id, "revoked before the database went back to an earlier state", |key, revocation| {
                key.status = KeyStatus::Revoked(revocation);
            })
            .await?;
        }
        if !revived.revoked.is_empty() {
            tracing::error!(keys = revived.revoked.len(), "the database had lost revocations; they were made again");
        }
        self.disable_revived(&revived.replaced).await
    }

    /// A secret that was replaced, perhaps because it had leaked, is the key's own again, and its successor unknown. The key is switched
    /// off, for its owner to decide.
    async fn disable_revived(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        for id in keys {
            self.end_again(*id, "its rotation was lost when the database went back to an earlier state", |key, _| {
                if !key.is_revoked() {
                    key.status = KeyStatus::Disabled;
                }
            })
            .await?;
            tracing::error!(key = %id, "the database had lost the rotation of a key; it was disabled, rotate it again");
        }
        Ok(())
    }

    async fn end_again(&self, id: KeyId, reason: &str, end: impl Fn(&mut Key, Revocation)) -> Result<(), StoreError> {
        for _ in 0..COMMIT_TRIES_MAX {
            let Some(StoredKey { key: before, .. }) = self.store.key(id).await? else { return Ok(()) };
            let now = self.clock.now();
            let mut key = Key { update_time: now, ..before.clone() };
            end(&mut key, Revocation { time: now, reason: reason.to_owned(), actor: ACTOR.to_owned() });
            if before.is_revoked() || key.status == before.status {
                return Ok(());
            }
            match self.commit(ending(key, before.revision, reason, now)).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Stale) => {}
                Err(CommitError::Store(error)) => return Err(error),
                Err(error) => return Err(StoreError::Corrupt(format!("key `{id}` can't be ended again: {error}"))),
            }
        }
        Err(StoreError::Unavailable(format!("key `{id}` is changed by others again and again")))
    }
}

fn ending(key: Key, expected: Revision, reason: &str, now: Time) -> Commit {
    let action = if key.is_revoked() { "key.revoke" } else { "key.update" };
    let details = serde_json::json!({ "reason": reason }).to_string();
    Commit {
        rehearsal: false,
        time: now,
        actor: ACTOR.to_owned(),
        guards: Vec::new(),
        events: vec![AuditEvent { action, subject: key.id.to_string(), details }],
        writes: vec![Write::UpdateKey { key, expected, new_secret: None }],
    }
}

//! What other processes have changed, put into the index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::decision::{KeyRecord, PreviousHash};
use crate::domain::KeyId;
use crate::store::{ChangedKey, ChangedRecords, Changes, Loaded, LogPosition, StoreError};

use super::Engine;
use super::index::KeyEntry;
use super::load::PARTS_WAITING_MAX;
use super::replica::Share;

impl Engine {
    /// Applies what a poll has brought: everything between two positions.
    pub(super) async fn apply(
        &self,
        share: &Share,
        from: LogPosition,
        to: LogPosition,
        changes: Changes,
    ) -> Result<(), StoreError> {
        let applied = share.position();
        if to.revision <= applied.revision {
            return Ok(());
        }
        let orphans = match changes {
            // What lies between was told to an earlier poll, and is applied.
            Changes::Records(records) if from.revision <= applied.revision => {
                let _writing = self.writing.lock().await;
                self.apply_records(records)
            }
            Changes::Records(_) | Changes::TooMany => return self.reload(share, false).await,
        };
        if orphans > 0 {
            tracing::error!(records = orphans, "changes are of records that are not there; all is loaded anew");
            return self.reload(share, false).await;
        }
        share.set_position(to);
        self.index.set_revision(to.revision);
        Ok(())
    }

    /// Returns how many had no place.
    fn apply_records(&self, records: ChangedRecords) -> usize {
        let ChangedRecords { plans, accounts, keys, plans_removed } = records;
        for plan in plans {
            self.index.put_plan(plan);
        }
        let mut orphans =
            accounts.into_iter().map(|account| self.index.put_account(account)).filter(|put| !put).count();
        orphans += keys.into_iter().map(|key| self.apply_changed_key(key)).filter(|put| !put).count();
        for id in &plans_removed {
            self.index.remove_plan(id);
        }
        orphans
    }

    /// As [`Self::put`], into an index that has records already.
    fn put_again(&self, part: Loaded, entries: &HashMap<KeyId, Arc<KeyEntry>>) -> usize {
        match part {
            Loaded::Keys(keys) => {
                keys.into_iter().map(|key| self.index.put_key_among(key, &[], entries)).filter(|placed| !placed).count()
            }
            Loaded::SecretsExpected(_) | Loaded::Plans(_) | Loaded::Accounts(_) | Loaded::RetiredSecrets(_) => {
                self.put(part)
            }
        }
    }

    fn apply_changed_key(&self, changed: ChangedKey) -> bool {
        let ChangedKey { mut key, retired } = changed;
        key.record.policy = self.index.intern(&key.record.policy);
        let previous = retired.first().map(|last| PreviousHash { hash: last.hash, expire_time: last.expire_time });
        key.record = KeyRecord { previous: previous.map(Arc::new), ..key.record };
        self.index.put_key(key, &retired)
    }

    /// Loads everything anew, beside what is there: what has budgets and usage in memory keeps them. `back` where the store may hold
    /// earlier states than the index: then it has what the store has, and nothing else.
    pub(super) async fn reload(&self, share: &Share, back: bool) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        if back {
            self.index.forget_revisions();
        }
        let entries = self.index.entries();
        let (sink, mut parts) = mpsc::channel(PARTS_WAITING_MAX);
        let (mut orphans, mut plans, mut hashes) = (0, HashSet::new(), HashSet::new());
        let fill = async {
            while let Some(part) = parts.recv().await {
                match &part {
                    Loaded::Plans(some) => plans.extend(some.iter().map(|plan| plan.id.clone())),
                    Loaded::Keys(some) if back => hashes.extend(some.iter().map(|key| key.hash)),
                    Loaded::RetiredSecrets(some) if back => hashes.extend(some.iter().map(|secret| secret.hash)),
                    Loaded::SecretsExpected(_) | Loaded::Accounts(_) | Loaded::Keys(_) | Loaded::RetiredSecrets(_) => {}
                }
                orphans += self.put_again(part, &entries);
            }
        };
        let (position, ()) = tokio::join!(self.store.load(sink), fill);
        let position = position?;
        if orphans > 0 {
            return Err(StoreError::Corrupt(format!("{orphans} records belong to none that is there")));
        }
        self.index.retain_plans(&plans);
        if back {
            self.index.retain_secrets(&hashes);
        }
        tracing::info!(revision = position.revision.number(), "all keys, accounts and plans were loaded anew");
        share.set_position(position);
        self.index.put_revision(position.revision);
        Ok(())
    }
}

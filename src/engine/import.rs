//! Taking over keys that another system made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::decision::KeyRecord;
use crate::domain::{Account, AccountId, Key, Plan, SecretHash, Time};
use crate::store::{AuditEvent, Commit, CommitError, Guard, LoadedKey, StoredSecret, Write};

use super::index::Index;
use super::key::{admit, assemble, create_error, created_details, guards, new_id};
use super::{Caller, Engine, Error, NewKey, commit_error};

/// A key to take over.
#[derive(Clone, Debug)]
pub struct ImportRow {
    /// SHA-256 of its secret.
    pub hash: SecretHash,
    /// What may be shown of its secret.
    pub prefix: String,
    /// When it was made, where that is known.
    pub create_time: Option<Time>,
    /// The rest.
    pub new: NewKey,
}

/// What became of a row.
#[derive(Debug)]
pub enum ImportOutcome {
    /// It is a key now, or in a dry run could be.
    Imported,
    /// Its hash is already a key of the same account.
    AlreadyPresent,
    /// It was refused.
    Refused(Error),
}

/// What a dry run would have done so far: the store does not know of it.
#[derive(Debug, Default)]
pub struct Rehearsal {
    hashes: HashMap<SecretHash, AccountId>,
    names: HashSet<(AccountId, String)>,
    keys: HashMap<AccountId, u32>,
}

/// A row that may be committed: its place in the batch, and what to write.
struct Candidate {
    place: usize,
    key: Key,
    hash: SecretHash,
    account: Account,
    plan: Arc<Plan>,
}

impl Engine {
    /// Takes over a batch of keys, and says of each what became of it, in their order. A refused row does not keep the
    /// others from being committed. With a rehearsal nothing is; it goes on from batch to batch.
    pub async fn import_keys(
        &self,
        caller: &Caller,
        rows: Vec<ImportRow>,
        mut rehearsal: Option<&mut Rehearsal>,
    ) -> Result<Vec<ImportOutcome>, Error> {
        caller.require("tollgate:keys:write")?;
        let now = self.clock.now();
        let mut outcomes: Vec<ImportOutcome> = Vec::with_capacity(rows.len());
        let mut candidates: Vec<Candidate> = Vec::with_capacity(rows.len());
        let mut in_batch = HashMap::new();
        let seen = rehearsal.as_deref_mut().map_or(&mut in_batch, |rehearsal| &mut rehearsal.hashes);
        for (place, row) in rows.into_iter().enumerate() {
            let outcome = match self.candidate(caller, place, row, seen, now) {
                Ok(Some(candidate)) => {
                    candidates.push(candidate);
                    ImportOutcome::Imported
                }
                Ok(None) => ImportOutcome::AlreadyPresent,
                Err(error @ (Error::Unavailable(_) | Error::Internal(_))) => return Err(error),
                Err(error) => ImportOutcome::Refused(error),
            };
            outcomes.push(outcome);
        }
        let mut refused = Vec::new();
        if let Some(rehearsal) = rehearsal.as_deref_mut() {
            candidates.retain(|Candidate { place, key, .. }| {
                let free = rehearsal.names.insert((key.account_id.clone(), key.name.clone()));
                if !free {
                    refused.push((*place, commit_error(CommitError::NameTaken(key.name.clone()))));
                }
                free
            });
        }
        refused.extend(self.commit_candidates(caller, candidates, rehearsal, now).await?);
        for (place, error) in refused {
            if let Some(outcome) = outcomes.get_mut(place) {
                *outcome = ImportOutcome::Refused(error);
            }
        }
        Ok(outcomes)
    }

    fn candidate(
        &self,
        caller: &Caller,
        place: usize,
        row: ImportRow,
        seen: &mut HashMap<SecretHash, AccountId>,
        now: Time,
    ) -> Result<Option<Candidate>, Error> {
        let ImportRow { hash, prefix, create_time, new } = row;
        let (account, plan) = self.home_of(caller, new.account_id.as_ref())?;
        let present = self.index.find(&hash).map(|found| found.entry.account.state.load().account.id.clone());
        if let Some(owner) = present.as_ref().or_else(|| seen.get(&hash)) {
            return if *owner == account.id { Ok(None) } else { Err(taken()) };
        }
        if create_time.is_some_and(|time| time > now) {
            return Err(Error::invalid("key.create_time", "lies in the future"));
        }
        let key = assemble(new, account.id.clone(), new_id(now)?, prefix, create_time.unwrap_or(now), now)?;
        admit(&key, &account, &plan, now)?;
        caller.require_covers(&key)?;
        seen.insert(hash, account.id.clone());
        Ok(Some(Candidate { place, key, hash, account, plan }))
    }

    /// Commits candidates together; where the store refuses them, each half apart, down to the one that is to blame.
    async fn commit_candidates(
        &self,
        caller: &Caller,
        all: Vec<Candidate>,
        mut rehearsal: Option<&mut Rehearsal>,
        now: Time,
    ) -> Result<Vec<(usize, Error)>, Error> {
        let mut refused = Vec::new();
        let mut batches = vec![all];
        while let Some(mut batch) = batches.pop() {
            let Some(first) = batch.first() else { continue };
            let (place, plan) = (first.place, Arc::clone(&first.plan));
            match self.commit_batch(caller, &batch, rehearsal.as_deref_mut(), now).await {
                Ok(()) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
                Err(error) if batch.len() == 1 => refused.push((place, create_error(error, &plan))),
                Err(_) => {
                    // The earlier half is popped, and so committed, first.
                    let later = batch.split_off(batch.len() / 2);
                    batches.push(later);
                    batches.push(batch);
                }
            }
        }
        Ok(refused)
    }

    async fn commit_batch(
        &self,
        caller: &Caller,
        batch: &[Candidate],
        rehearsal: Option<&mut Rehearsal>,
        now: Time,
    ) -> Result<(), CommitError> {
        let secret = |hash| StoredSecret { hash, pepper_id: None };
        let event =
            |key: &Key| AuditEvent { action: "key.import", subject: key.id.to_string(), details: created_details(key) };
        // For one commit alone, so that an import never keeps a revocation waiting for longer than that.
        let changing = self.changing.lock().await;
        let commit = Commit {
            time: now,
            actor: caller.name(),
            guards: guards_of(batch, rehearsal.as_deref()),
            events: batch.iter().map(|candidate| event(&candidate.key)).collect(),
            writes: batch.iter().map(|c| Write::InsertKey(c.key.clone(), secret(c.hash))).collect(),
            rehearsal: rehearsal.is_some(),
        };
        let revision = self.commit(commit).await?;
        if let Some(rehearsal) = rehearsal {
            for Candidate { key, .. } in batch {
                *rehearsal.keys.entry(key.account_id.clone()).or_default() += 1;
            }
            return Ok(());
        }
        let apply = |index: &Index| {
            for Candidate { key, hash, .. } in batch {
                let key = Key { revision, ..key.clone() };
                let record = KeyRecord::new(&key, index.intern(&key.policy), None);
                index.insert_key(LoadedKey { id: key.id, account_id: key.account_id, hash: *hash, record });
            }
        };
        self.apply_own(revision, apply).await;
        drop(changing);
        Ok(())
    }
}

/// What must hold for a batch, each account once. In a rehearsal an account has room for fewer, because the store does not
/// know of those before.
fn guards_of(batch: &[Candidate], rehearsal: Option<&Rehearsal>) -> Vec<Guard> {
    let mut accounts = HashSet::new();
    let first_of_each = batch.iter().filter(|candidate| accounts.insert(&candidate.account.id));
    let all = first_of_each.flat_map(|candidate| guards(&candidate.account, &candidate.plan));
    let rehearsed = |account: &AccountId| rehearsal.and_then(|rehearsal| rehearsal.keys.get(account)).copied();
    let mut guards: Vec<Guard> = Vec::new();
    for guard in all {
        let guard = match guard {
            Guard::KeysAtMost(account, keys_max) => {
                let before = rehearsed(&account).unwrap_or(0);
                Guard::KeysAtMost(account, keys_max.saturating_sub(before))
            }
            Guard::AccountAt(..) | Guard::PlanAt(..) | Guard::NoKeys => guard,
        };
        if !guards.contains(&guard) {
            guards.push(guard);
        }
    }
    guards
}

fn taken() -> Error {
    Error::AlreadyExists("there is another key with the same secret".to_owned())
}

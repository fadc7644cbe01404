//! Filling the index from the store, at start.

use thiserror::Error;
use tokio::sync::mpsc;

use crate::domain::Revision;
use crate::store::{Loaded, StoreError};

use super::Engine;
use super::pepper::PepperError;

/// Parts of the snapshot that wait to be put into the index.
pub(super) const PARTS_WAITING_MAX: usize = 8;

/// Why the index could not be filled.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys could not be verified.
    #[error(transparent)]
    Pepper(#[from] PepperError),
    /// A record belongs to one that is not there.
    #[error("the store holds {0} that belong to no account, or accounts that belong to no plan; run `tollgate doctor`")]
    Orphans(usize),
    /// The database was restored or failed over while nobody was there to remember.
    #[error(
        "the database was restored, moved or failed over while no Tollgate was running, so nobody knows whether keys that were revoked \
         since are in use in it again; look at docs/operations.md, and run `tollgate store adopt` to take it as it is"
    )]
    Moved,
}

impl Engine {
    /// Takes over from the processes before this one, and fills the index. Until it returns, checks of keys that are not there
    /// yet would be answered UNKNOWN, so nobody may be served before.
    pub async fn load(&self) -> Result<Revision, LoadError> {
        self.await_settled().await?;
        self.take_over().await?;
        let revision = self.load_index().await?;
        self.join().await?;
        Ok(revision)
    }

    /// Fills the index with all that the store holds, for a process that serves nobody.
    pub async fn load_index(&self) -> Result<Revision, LoadError> {
        let known: Vec<&str> = self.hasher.pepper_ids().collect();
        let used = self.store.pepper_ids().await?;
        if let Some(lost) = used.into_iter().find(|id| !known.contains(&id.as_str())) {
            return Err(PepperError::Lost(lost).into());
        }
        let _changing = self.changing.lock().await;
        let (sink, mut parts) = mpsc::channel(PARTS_WAITING_MAX);
        let mut orphans = 0;
        let fill = async {
            while let Some(part) = parts.recv().await {
                orphans += self.put(part);
            }
        };
        let (position, ()) = tokio::join!(self.store.load(sink), fill);
        let position = position?;
        let revision = position.revision;
        if orphans > 0 {
            return Err(LoadError::Orphans(orphans));
        }
        self.index.set_revision(revision);
        if let Some((_, share)) = self.shared() {
            share.set_position(position);
        }
        Ok(revision)
    }

    /// Puts a part in. Returns how many records had no place.
    pub(super) fn put(&self, part: Loaded) -> usize {
        match part {
            Loaded::SecretsExpected(secrets) => {
                self.index.reserve(secrets);
                0
            }
            Loaded::Plans(plans) => {
                for plan in plans {
                    self.index.put_plan(plan);
                }
                0
            }
            Loaded::Accounts(accounts) => {
                accounts.into_iter().map(|account| self.index.put_account(account)).filter(|placed| !placed).count()
            }
            Loaded::Keys(keys) => {
                keys.into_iter().map(|key| self.index.insert_key(key)).filter(|placed| !placed).count()
            }
            Loaded::RetiredSecrets(retired) => {
                for secret in &retired {
                    self.index.add_retired(secret);
                }
                0
            }
        }
    }
}

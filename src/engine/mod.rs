//! The engine: finds the records that a call is about, lets `decision` decide, and keeps what comes of it.
//!
//! It owns the index, the budgets and the usage on its way to the store. Checks run to their end without waiting.
//! Changes run one at a time: read, decide, commit, apply to the index. Whoever calls a change must let it run to its end
//! even if the client goes away, or the index would miss what the store has (`transport` spawns them).

mod account;
mod acknowledge;
mod adjust;
mod all_or_none;
mod apply;
mod ask;
mod attempt;
mod authority;
#[cfg(test)]
mod books_tests;
mod budget;
mod budget_list;
#[cfg(test)]
mod budget_tests;
mod bury;
mod check;
mod demand;
mod error;
mod fence;
mod forget;
mod import;
mod index;
#[cfg(test)]
mod index_tests;
mod joint;
mod key;
mod key_read;
mod lease;
mod lent;
mod load;
mod meter;
mod operation;
mod operation_desk;
mod others;
pub mod pepper;
mod plan;
mod purse;
mod recover;
mod renew;
mod replica;
mod reserve;
mod restate;
mod usage;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::ambient::Clock;
use crate::decision::secret::{Brand, Hasher};
use crate::domain::Revision;
use crate::journal::Journal;
use crate::store::{Commit, CommitError, SharedStore, StoreError, Uncertain};

pub use account::AccountPatch;
pub use adjust::{Adjusted, CreditAdjustment};
pub use attempt::Attempt;
pub use authority::{Caller, KeyCaller};
pub use check::{Answer, COST_MAX, Check, Subject};
pub use error::{Error, Violation};
pub use import::{ImportOutcome, ImportRow, Rehearsal};
pub use joint::{Payer, Share};
pub use key::{KeyPatch, MadeKey, NewKey, RevokedKey};
pub use key_read::{KeyFilter, KeyView, SelfView};
pub use lease::LeaseStats;
pub use load::LoadError;
pub use meter::{Charge, CreditStatus, Level, LimitStatus, nearest_limit};
pub use plan::PlanPatch;
pub use replica::{ReplicaOptions, ReplicaStats};
pub use usage::{Granularity, UsageBucket, UsageReport, UsageSum};

/// Times that a change is tried again when another process changed the same record in between.
const COMMIT_TRIES_MAX: u32 = 4;

/// What the configuration says to the engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// What secrets begin with.
    pub brand: Brand,
    /// Turns credentials into what is stored of them.
    pub hasher: Hasher,
    /// Checks of one key that are allowed in one second; 0: no ceiling.
    pub key_checks_per_second: u32,
    /// What becomes of leases of processes that ended without a word, where nobody knows what they spent.
    pub uncertain: Uncertain,
    /// Where this process keeps what it spends for the case that it is killed. Absent: nowhere.
    pub journal: Option<PathBuf>,
    /// How it takes part where several processes share the store. Absent for one that serves nobody.
    pub replica: Option<ReplicaOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            brand: Brand::default(),
            hasher: Hasher::plain(),
            key_checks_per_second: 0,
            uncertain: Uncertain::Charge,
            journal: None,
            replica: None,
        }
    }
}

/// Keys, accounts, plans and what is left of their budgets.
#[derive(Debug)]
pub struct Engine {
    store: SharedStore,
    clock: Clock,
    brand: Brand,
    hasher: Hasher,
    options: Options,
    index: index::Index,
    usage: usage::UsageBuffer,
    attempts: attempt::Attempts,
    leases: lease::LeaseDesk,
    journal: OnceLock<Journal>,
    operations: operation_desk::OperationDesk,
    /// Held from the first read of a change until it is in the index, so that revisions are applied in their order. Nothing
    /// is put into the index but under it.
    changing: tokio::sync::Mutex<()>,
    /// Where several processes share the store, the index is written under this, as polls tell, and never by a change itself.
    writing: tokio::sync::Mutex<()>,
    /// What is known of the others, where there are any.
    share: Option<replica::Share>,
    fence: fence::Fence,
    following_fails: AtomicBool,
    writing_fails: AtomicBool,
    reading_fails: AtomicBool,
}

impl Engine {
    /// With an empty index: [`Self::load`] fills it.
    #[must_use]
    pub fn new(store: SharedStore, clock: Clock, options: Options) -> Self {
        let incarnation = Self::draw_incarnation(&clock);
        let shared = store.replication().is_some();
        let share = options.replica.clone().filter(|_| shared).map(replica::Share::new);
        Self {
            store,
            clock,
            brand: options.brand.clone(),
            hasher: options.hasher.clone(),
            options,
            index: index::Index::new(),
            usage: usage::UsageBuffer::new(incarnation),
            attempts: attempt::Attempts::new(),
            leases: lease::LeaseDesk::new(incarnation, shared),
            journal: OnceLock::new(),
            operations: operation_desk::OperationDesk::new(),
            changing: tokio::sync::Mutex::new(()),
            writing: tokio::sync::Mutex::new(()),
            fence: fence::Fence::new(share.is_some()),
            share,
            following_fails: AtomicBool::new(false),
            writing_fails: AtomicBool::new(false),
            reading_fails: AtomicBool::new(false),
        }
    }

    /// Secrets and accounts in the index, and its revision.
    #[must_use]
    pub fn index_size(&self) -> (usize, usize, Revision) {
        (self.index.secrets_len(), self.index.accounts_len(), self.index.revision())
    }

    /// Where what is spent is kept for the case that this process is killed.
    fn journal(&self) -> &Journal {
        self.journal.get_or_init(Journal::default)
    }

    /// The clock that it goes by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Waits until every change up to a revision is in the index, but no longer than `timeout`.
    pub async fn await_revision(&self, revision: Revision, timeout: Duration) -> Result<(), Error> {
        if self.index.revision() >= revision {
            return Ok(());
        }
        let _hurry = self.share.as_ref().map(replica::Share::hurry);
        let mut watch: watch::Receiver<Revision> = self.index.watch_revision();
        match tokio::time::timeout(timeout, watch.wait_for(|current| *current >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable(format!(
                "this process has applied revision {} and not yet {}, which `min_revision` asks for",
                self.index.revision().number(),
                revision.number()
            ))),
        }
    }

    /// Lets this change in, and no other until the guard is dropped. It is decided by all that was changed before, also by others
    /// that share the store.
    async fn begin_change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Error> {
        let changing = self.changing.lock().await;
        if self.share.is_some() {
            self.catch_up().await?;
        }
        Ok(changing)
    }

    /// Has a change that this process has committed in the index when it returns. Where several share the store, the next poll brings
    /// it, in the order of all revisions.
    async fn apply_own(&self, revision: Revision, apply: impl FnOnce(&index::Index)) {
        if self.share.is_some() {
            self.await_own(revision).await;
        } else {
            apply(&self.index);
            self.index.set_revision(revision);
        }
    }

    /// Commits, and logs a store that cannot. The caller then says [`Self::apply_own`].
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let result = self.store.commit(commit).await;
        let failure = match &result {
            Err(CommitError::Store(error)) => Some(error),
            Ok(_) | Err(_) => None,
        };
        Self::note_store(&self.writing_fails, failure, "written");
        result
    }

    /// Logs that the store fails where that is news, and that it works again.
    fn note_store(fails: &AtomicBool, failure: Option<&StoreError>, done: &'static str) {
        match (fails.swap(failure.is_some(), Ordering::Relaxed), failure) {
            (false, Some(error)) => {
                tracing::error!(%error, "the store cannot be {done}; calls that need it are answered UNAVAILABLE");
            }
            (true, None) => tracing::info!("the store can be {done} again"),
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Passes on what was read, and logs a store that cannot be.
    async fn read<T>(&self, reading: impl Future<Output = Result<T, StoreError>>) -> Result<T, Error> {
        let result = reading.await;
        Self::note_store(&self.reading_fails, result.as_ref().err(), "read");
        Ok(result?)
    }
}

/// What a change that the store refused means where nothing more particular is known.
fn commit_error(error: CommitError) -> Error {
    match error {
        CommitError::Store(error) => error.into(),
        CommitError::Stale => {
            Error::Unavailable("another process keeps changing the same record; repeat the call".to_owned())
        }
        CommitError::NameTaken(name) => Error::AlreadyExists(format!("the account has another key called `{name}`")),
        CommitError::HashTaken(_) => Error::AlreadyExists("there is another key with the same secret".to_owned()),
        CommitError::IdTaken => Error::AlreadyExists("the id is taken".to_owned()),
        CommitError::NoParent => Error::Internal("the record belongs to one that does not exist".to_owned()),
        CommitError::PlanInUse => Error::Internal("accounts are on the plan".to_owned()),
        CommitError::TooManyKeys => Error::Internal("the account has no room for another key".to_owned()),
        CommitError::NotEmpty => Error::Precondition {
            kind: "NOT_EMPTY",
            subject: "store".to_owned(),
            message: "the store holds keys already; with --again another operator's key is made all the same"
                .to_owned(),
        },
    }
}

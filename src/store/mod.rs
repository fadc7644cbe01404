//! Where keys, accounts, plans and usage are kept: one trait in the domain's own types, one adapter for each engine.
//!
//! # Writing
//!
//! The only way to change a record is [`Store::commit`]: one transaction that takes the next revision from a single
//! locked row (so that the order of revisions is the order of commits), holds its [`Guard`]s, makes its [`Write`]s, and
//! adds a row of the change log and of the audit trail for each. The rules of the domain are the engine's; the store
//! holds only what must be true of several records at once: that a name or a hash is unique, that a record has not
//! changed since it was read, that a plan in use stays.
//!
//! # Adding an adapter
//!
//! Implement [`Store`], and run `tests/store_contract.rs` on it: every case there is written against the trait alone. A
//! change of the trait needs a case there.

mod lease;
mod ledger;
pub mod metered;
mod operation;
pub mod postgres;
mod replication;
mod shared;
pub mod sqlite;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::decision::KeyRecord;
use crate::domain::{
    Account, AccountId, Activity, Environment, Key, KeyId, OperationId, Plan, PlanId, Revision, SecretHash, Status,
    Time, UsageDelta, UsageRow,
};

pub use lease::{
    Cell, Closed, ClosedLease, Closing, Incarnation, KnownSpends, LeaseAsk, LeaseBatch, Leased, Settled, Uncertain,
    UncertainRow,
};
pub use operation::{
    NamedOperation, OPERATIONS_KEPT_MILLIS, Operation, OperationBatch, OperationCharge, RecordError, Recorded, Refund,
    forgotten_at,
};

pub use replication::{
    ChangedKey, ChangedRecords, Changes, Conclusion, LogPosition, MoveId, Peer, Poll, Polled, RESTATING_PATIENCE,
    Registration, Replica, Replication, Restatement, Revived, Standing, silent_after,
};

/// A store that other parts share.
pub type SharedStore = Arc<dyn Store>;

/// What every storage engine does.
///
/// Absence is `Ok(None)` or an empty list. All calls but [`Store::commit`], [`Store::record_usage`], [`Store::lease`],
/// [`Store::close_leases`], [`Store::record_operations`] and [`Store::refund_operation`] only read.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync {
    /// Makes all of these changes durable, or none. Returns the revision at which they exist.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError>;

    /// Sends a consistent snapshot of all that a check needs: how much it is, plans, then accounts, then keys in any order, then retired
    /// secrets; returns the place in the log of which it is the state. Ends early, without error, where the receiver is gone.
    async fn load(&self, sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError>;

    /// A key by its id.
    async fn key(&self, id: KeyId) -> Result<Option<StoredKey>, StoreError>;

    /// Keys in the order of their ids, from the first after `query.after`, at most `query.rows_max`.
    async fn keys(&self, query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError>;

    /// Keys that are ACTIVE, renew themselves and have no more left than a quarter of their period, or `lead_millis_max` if
    /// that is less; those that expire first, at most `rows_max`.
    async fn keys_to_renew(&self, now: Time, lead_millis_max: i64, rows_max: u32)
    -> Result<Vec<StoredKey>, StoreError>;

    /// An account by its id.
    async fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError>;

    /// Accounts in the order of their ids, from the first after `after`, at most `rows_max`.
    async fn accounts(&self, after: Option<&AccountId>, rows_max: u32) -> Result<Vec<Account>, StoreError>;

    /// A plan by its id.
    async fn plan(&self, id: &PlanId) -> Result<Option<Plan>, StoreError>;

    /// Plans in the order of their ids, from the first after `after`, at most `rows_max`.
    async fn plans(&self, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError>;

    /// Adds usage, once: a flush whose id has been seen changes nothing, so that one whose answer was lost can be sent
    /// again. Deltas of keys that do not exist are dropped.
    async fn record_usage(&self, flush: &UsageFlush) -> Result<(), StoreError>;

    /// Sums usage over the buckets of the query, in the order bucket, key, environment, verdict; at most `rows_max` rows.
    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError>;

    /// Grants leases and settles earlier ones, all of the batch or none. The answers are in the order of the asks. What is granted
    /// was never granted before and is never again, whatever happens to the process that got it.
    async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError>;

    /// Ends the leases of processes that are gone. What of them was not spent goes back, as far as it is known;
    /// [`Closing::policy`] says what becomes of the rest.
    async fn close_leases(&self, closing: &Closing<'_>) -> Result<Closed, StoreError>;

    /// What was found uncertain of an account's budgets, or of those of one of its keys, from hour `start` to before hour `end`; in the
    /// order of the budgets' names and the hours, at most `rows_max`.
    async fn uncertain(
        &self,
        account: &AccountId,
        key: Option<KeyId>,
        hours: Range<i64>,
        rows_max: u32,
    ) -> Result<Vec<UncertainRow>, StoreError>;

    /// An operation of an account, where it is remembered at `now`, which is for [`OPERATIONS_KEPT_MILLIS`] after its time.
    async fn operation(
        &self,
        account_id: &AccountId,
        id: &OperationId,
        now: Time,
    ) -> Result<Option<Operation>, StoreError>;

    /// Charges operations, each under a name of which none is remembered yet: writes its row, takes what it is charged from the
    /// leases of the incarnation, and counts it as a check that was allowed; of all that are new, or of none. The answers are in
    /// the order of the operations; where two have one name, the first is charged. Some of those that are not remembered any
    /// more are deleted on the way, so that they don't pile up.
    async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError>;

    /// Gives an operation back, once: its charges as far as their windows are still open, and its credits in the usage of its
    /// hour. The row stays for as long as it would have.
    async fn refund_operation(&self, account_id: &AccountId, id: &OperationId, now: Time)
    -> Result<Refund, StoreError>;

    /// The ids of the peppers that stored secrets were hashed with.
    async fn pepper_ids(&self) -> Result<Vec<String>, StoreError>;

    /// What processes that share the store need beyond this. Absent where one process has it for itself.
    fn replication(&self) -> Option<&dyn Replication> {
        None
    }

    /// The last revision that was committed.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Looks for damage. Returns what it found, in words; empty where all is well.
    async fn verify(&self) -> Result<Vec<String>, StoreError>;

    /// Writes out what is still to be written, and lets go of the database.
    async fn close(&self);
}

/// One transaction.
#[derive(Clone, Debug)]
pub struct Commit {
    /// When, by the caller's clock.
    pub time: Time,
    /// Who: a key's id, or `system`.
    pub actor: String,
    /// What must hold for it to be made.
    pub guards: Vec<Guard>,
    /// What it changes. The `revision` of the records in it is ignored: they get the commit's own.
    pub writes: Vec<Write>,
    /// What the audit trail says of it, an event for each write.
    pub events: Vec<AuditEvent>,
    /// Undo it at the end: to learn whether it could be made. The revision that comes back is then of no use.
    pub rehearsal: bool,
}

/// What must hold for a commit to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The account is as this revision left it.
    AccountAt(AccountId, Revision),
    /// The plan is as this revision left it.
    PlanAt(PlanId, Revision),
    /// With the keys that this commit adds, the account has at most so many that are not revoked.
    KeysAtMost(AccountId, u32),
    /// There is no key at all.
    NoKeys,
}

/// One change of one record.
#[derive(Clone, Debug)]
pub enum Write {
    /// A new key.
    InsertKey(Key, StoredSecret),
    /// A key in place of what `expected` left, and where it was rotated its new secret.
    UpdateKey {
        /// The key as it shall be.
        key: Key,
        /// The revision that it is based on.
        expected: Revision,
        /// The new secret. The one that it replaces verifies until `key.previous.expire_time`; all that were replaced
        /// before it stop verifying at the commit's time, if they have not yet.
        new_secret: Option<StoredSecret>,
    },
    /// A new account.
    InsertAccount(Account),
    /// An account in place of what this revision left.
    UpdateAccount(Account, Revision),
    /// A new plan.
    InsertPlan(Plan),
    /// A plan in place of what this revision left.
    UpdatePlan(Plan, Revision),
    /// No plan in place of what this revision left.
    DeletePlan(PlanId, Revision),
}

/// What is kept of a secret, and how it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    /// The hash.
    pub hash: SecretHash,
    /// The pepper under which it was made. Absent for a plain SHA-256.
    pub pepper_id: Option<String>,
}

/// A line of the audit trail. Never holds a secret or a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// What was done, as in `key.revoke`.
    pub action: &'static str,
    /// To what: the record's id.
    pub subject: String,
    /// What changed, as a JSON object.
    pub details: String,
}

/// A key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// The key.
    pub key: Key,
    /// The hash of its secret.
    pub hash: SecretHash,
    /// When and whence it was last used.
    pub activity: Option<Activity>,
}

/// Which keys to list. All conditions that are set must hold.
#[derive(Clone, Debug)]
pub struct KeyQuery {
    /// Of this account.
    pub account_id: Option<AccountId>,
    /// In this state at `now`.
    pub status: Option<Status>,
    /// Of this environment.
    pub environment: Option<Environment>,
    /// With a display prefix that begins so, letter by letter.
    pub prefix: Option<String>,
    /// Made before this time and not used at or after it.
    pub unused_since: Option<Time>,
    /// Expiring before this time.
    pub expires_before: Option<Time>,
    /// With an id after this.
    pub after: Option<KeyId>,
    /// At most so many.
    pub rows_max: u32,
    /// Tells which keys are expired.
    pub now: Time,
}

/// A part of the snapshot that the index is made from.
#[derive(Debug)]
pub enum Loaded {
    /// How many secrets will come, about, so that room for them can be made at once: a map that grows as they come ends up
    /// a third larger. Sent first.
    SecretsExpected(usize),
    /// Plans.
    Plans(Vec<Plan>),
    /// Accounts. Their plans have been sent before.
    Accounts(Vec<Account>),
    /// Keys. Their accounts have been sent before.
    Keys(Vec<LoadedKey>),
    /// Secrets that rotations replaced. Their keys have been sent before.
    RetiredSecrets(Vec<RetiredSecret>),
}

/// What a check needs of a key.
#[derive(Debug)]
pub struct LoadedKey {
    /// Its id.
    pub id: KeyId,
    /// Its account.
    pub account_id: AccountId,
    /// The hash of its secret.
    pub hash: SecretHash,
    /// What is decided on.
    pub record: KeyRecord,
}

/// A secret that a rotation replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetiredSecret {
    /// Its hash.
    pub hash: SecretHash,
    /// The hash of the secret that its key has now.
    pub current: SecretHash,
    /// Until when it verifies.
    pub expire_time: Time,
}

/// Usage to add, and when keys were last used.
#[derive(Clone, Debug)]
pub struct UsageFlush {
    /// Unlike that of any other flush.
    pub id: [u8; 16],
    /// When, by the caller's clock.
    pub time: Time,
    /// Usage since the flush before. Several may be of the same key, hour and verdict.
    pub deltas: Vec<UsageDelta>,
    /// Last uses. An older one than what is stored is passed over.
    pub activities: Vec<Activity>,
}

/// Which usage to sum.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// Of which keys.
    pub of: UsageOf,
    /// From which hour to which, the latter exclusive; in order, and apart.
    pub buckets: Vec<(i64, i64)>,
    /// Rows for each key, instead of for all.
    pub by_key: bool,
    /// At most so many rows.
    pub rows_max: u32,
}

/// Whose usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageOf {
    /// Of all keys of an account.
    Account(AccountId),
    /// Of one key.
    Key(KeyId),
}

/// Why a commit was not made. Nothing has changed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// A record is not as the commit expected it, or a guard on a revision does not hold: read it again.
    #[error("the record has changed in the meantime")]
    Stale,
    /// Another key of the account, not revoked, has this name.
    #[error("the account has another key called `{0}`")]
    NameTaken(String),
    /// Another secret has this hash; the place of the write that holds it.
    #[error("there is another key with the same secret")]
    HashTaken(usize),
    /// There is a record with this id.
    #[error("the id is taken")]
    IdTaken,
    /// The account's plan, or the key's account, does not exist.
    #[error("the record belongs to one that does not exist")]
    NoParent,
    /// Accounts are on the plan.
    #[error("accounts are on this plan")]
    PlanInUse,
    /// The account would have more keys than [`Guard::KeysAtMost`] allows.
    #[error("the account has no room for another key")]
    TooManyKeys,
    /// [`Guard::NoKeys`] does not hold.
    #[error("the store holds keys already")]
    NotEmpty,
    /// The store could not be reached or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the store could not answer. The message is for operators, and holds no secret.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// It may work later: the disk is full, the file cannot be written, the database is away.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What is stored makes no sense to this version.
    #[error("the store holds something that this version cannot read: {0}")]
    Corrupt(String),
}

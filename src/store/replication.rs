//! What several processes need of a store that they share, beyond [`Store`](super::Store).
//!
//! # The fence
//!
//! A process polls the log of changes, and admits only until its *fence*, a length of its own choice, after the start of its last
//! poll that succeeded. It is registered with that length. So a change has reached everybody once each process that is registered
//! has either acknowledged its revision or been silent for [`silent_after`] since the commit: the latter have fenced themselves.
//! Three things make that so:
//!
//! - a process registers before the first poll that opens its fence, so one that is not in the list sees the change in that poll;
//! - a poll fails unless the row of the process is there when it ends, and a row is taken out only after the silence that it was
//!   registered with;
//! - what a poll returns is one consistent state, which holds every change that was committed before the poll began.
//!
//! # The lineage
//!
//! A database that is restored from a backup, or a standby promoted before it had everything, is an earlier state of the same
//! records. Polls find that out: by the number of the process's last poll, by the stamp of the last revision that it applied, and
//! by the database's own timeline. Nothing is granted then until every process has *restated* what it knows
//! ([`Replication::restate`]), or is given up: what it alone remembered is lost with it, so one that is only slow to find the
//! database again is waited for longer than for its fence ([`RESTATING_PATIENCE`]).

use std::time::Duration;

use async_trait::async_trait;

use super::{Incarnation, LoadedKey, RetiredSecret, StoreError};
use crate::decision::quota::State;
use crate::domain::{Account, BudgetId, KeyId, Plan, PlanId, Revision, SecretHash, Time};

/// A place in the log of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The last revision.
    pub revision: Revision,
    /// What the commit of that revision drew at random, so that another history with the same number is told apart. 0 where
    /// one process has the store, and there is no other history.
    pub stamp: i64,
}

/// After how much silence a process with this fence admits nothing: the fence, and a margin for clocks that run at different
/// rates.
#[must_use]
pub fn silent_after(fence: Duration) -> Duration {
    fence + fence / 20 + Duration::from_millis(250)
}

/// For how long at least a process is waited for that has yet to restate what it knows, be its fence ever so short.
pub const RESTATING_PATIENCE: Duration = Duration::from_secs(10);

/// What several processes need of a store that they share.
#[async_trait]
pub trait Replication: std::fmt::Debug + Send + Sync {
    /// Adds this process to those whose acknowledgement counts, durably.
    async fn register(&self, replica: &Replica) -> Result<Registration, StoreError>;

    /// Says that this process is there, and what it has applied; returns what it has missed. One statement, on the primary.
    async fn poll(&self, poll: &Poll) -> Result<Polled, StoreError>;

    /// Takes this process out, which has given its leases back and admits nothing any more.
    async fn depart(&self, incarnation: Incarnation) -> Result<(), StoreError>;

    /// After the database went back to an earlier state: merges what this process remembers of budgets, so that each stands at
    /// the most that anybody was told to be granted, and makes the process part of those who are waited for. Returns what had
    /// ended and has not in the store, for the process to end it again before it concludes.
    async fn restate(&self, restatement: &Restatement) -> Result<Revived, StoreError>;

    /// Says that all that this process knew is in the store again, as of this move, and ends that where everybody has said so, or is
    /// given up: silent for [`silent_after`] and [`RESTATING_PATIENCE`] since the move began by the database's clock, and for as long
    /// as `waited` says, which is for how long this process has watched by a clock that nobody sets. Units leased by anybody then count
    /// as uncertain and spent, and grants go on.
    async fn conclude_restating(
        &self,
        incarnation: Incarnation,
        of: &MoveId,
        waited: Duration,
        now: Time,
    ) -> Result<Conclusion, StoreError>;

    /// Takes the database as it is, on the word of an operator: it was restored, or moved, while no process was there to
    /// remember. Fails where a process may still be there.
    async fn adopt(&self, now: Time) -> Result<Revision, StoreError>;

    /// The database's clock.
    async fn time(&self) -> Result<Time, StoreError>;

    /// Breaks off all that is under way on connections that have stopped answering: a poll was answered that was sent later.
    fn reset(&self);

    /// Waits until another process may have changed something that a poll would tell. Only a hint: it may miss, and may come for
    /// nothing.
    async fn hint(&self);
}

/// A process that shares the store.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Which.
    pub incarnation: Incarnation,
    /// What operators know it by: the host and the process.
    pub name: String,
    /// For how long after the start of a poll it admits.
    pub fence: Duration,
}

/// What came of registering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// It is registered.
    Done,
    /// Not, because the database is not where it was when it was last written: it was restored or failed over. The processes that
    /// remember will say so; or, where there is none, an operator must ([`Replication::adopt`]).
    Moved,
}

/// What a process says when it polls.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// Who.
    pub incarnation: Incarnation,
    /// What it has applied, and so acknowledges.
    pub position: LogPosition,
    /// The number of this poll, which grows by at least one with each that is tried.
    pub beat: i64,
    /// The number of its last one that succeeded; 0 before the first.
    pub beat_confirmed: i64,
    /// Up to when all that it counted is in the store.
    pub flushed: Time,
}

/// What a poll tells.
#[derive(Debug)]
pub struct Polled {
    /// Whether this process still counts.
    pub standing: Standing,
    /// The database's clock.
    pub time: Time,
    /// The last revision of which `changes` tells.
    pub position: LogPosition,
    /// What has changed since the position that was polled for.
    pub changes: Changes,
    /// Budgets of which this process is asked to give back what it has not spent.
    pub recalled: Vec<BudgetId>,
    /// The others.
    pub peers: Vec<Peer>,
}

/// Whether a process still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Registered,
    /// It was silent for too long: its leases were closed, and it must register anew under another name.
    Buried,
    /// The database is an earlier state of itself, or may be.
    Moved,
}

/// What has changed.
#[derive(Debug)]
pub enum Changes {
    /// All of it, in any order within a list.
    Records(ChangedRecords),
    /// More than a poll returns, or than the log holds: the whole has to be loaded anew.
    TooMany,
}

/// Records as they are at the position of the poll. Apply them in the order of the fields.
#[derive(Debug, Default)]
pub struct ChangedRecords {
    /// Plans that are new or were changed.
    pub plans: Vec<Plan>,
    /// Accounts that are new or were changed.
    pub accounts: Vec<Account>,
    /// Keys that are new or were changed.
    pub keys: Vec<ChangedKey>,
    /// Plans that are gone.
    pub plans_removed: Vec<PlanId>,
}

/// A key that is new or was changed.
#[derive(Debug)]
pub struct ChangedKey {
    /// The key.
    pub key: LoadedKey,
    /// All secrets that rotations replaced, the last one first.
    pub retired: Vec<RetiredSecret>,
}

/// Another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub incarnation: Incarnation,
    /// What operators know it by.
    pub name: String,
    /// The fence that it is registered with.
    pub fence: Duration,
    /// The revision that it has applied.
    pub acknowledged: Revision,
    /// For how long it has been silent, by the database's clock.
    pub silence: Duration,
    /// Up to when all that it counted is in the store; when it was registered, before its first poll.
    pub flushed: Time,
}

/// What a process remembers, after the database went back.
#[derive(Debug)]
pub struct Restatement {
    /// Who.
    pub replica: Replica,
    /// The last revision that it knows to have been given out.
    pub revision: Revision,
    /// Those that it knew of, in the case that the database does not.
    pub peers: Vec<Peer>,
    /// What it was told last of each budget, at most some thousands of them, as of all lists here; it is called again with more.
    pub budgets: Vec<(BudgetId, State)>,
    /// Keys that it knows to be revoked.
    pub revoked: Vec<KeyId>,
    /// Secrets that it knows rotations to have replaced.
    pub replaced: Vec<SecretHash>,
}

/// Which time it is that the database was found to have gone back: drawn by who finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveId(pub String);

/// How a move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// Others have yet to restate what they know.
    Waiting,
    /// It has ended.
    Ended,
    /// The database went back again, and lacks what this process has restated.
    Another,
}

/// What had ended before the database went back to an earlier state, and has not in that.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Revived {
    /// The move in which it was told.
    pub of: MoveId,
    /// Keys that were revoked and are not.
    pub revoked: Vec<KeyId>,
    /// Keys in use whose secret is one that was replaced.
    pub replaced: Vec<KeyId>,
}

//! Operations: checks that are charged once, however often they are sent.

use thiserror::Error;

use super::{Incarnation, StoreError};
use crate::decision::quota::Slot;
use crate::domain::{AccountId, BudgetId, Environment, KeyId, OperationId, Time};

/// For how long an operation is remembered, in milliseconds of the caller's clock.
pub const OPERATIONS_KEPT_MILLIS: i64 = 24 * 3_600_000;

/// The last time of which operations are no longer remembered at `now`.
#[must_use]
pub const fn forgotten_at(now: Time) -> Time {
    now.plus_millis(-OPERATIONS_KEPT_MILLIS)
}

/// A check that was allowed and charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The key that was checked.
    pub key_id: KeyId,
    /// The key's environment.
    pub environment: Environment,
    /// Cost units.
    pub cost: u64,
    /// Cost units of it that were counted as credits.
    pub credits: u64,
    /// When it was charged, by the clock of the process that did.
    pub time: Time,
    /// What each budget was charged.
    pub charges: Vec<OperationCharge>,
    /// When it was given back, where it was.
    pub refund_time: Option<Time>,
}

/// What one budget was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationCharge {
    /// Which.
    pub budget: BudgetId,
    /// The slot that the units were granted for.
    pub slot: Slot,
    /// The number of the counter that they were granted with, in the process that charges it. Not kept.
    pub cell: Option<u32>,
    /// Cost units.
    pub units: u64,
}

/// An operation under its name.
#[derive(Clone, Debug)]
pub struct NamedOperation {
    /// The account of the key.
    pub account_id: AccountId,
    /// Unique among the account's operations.
    pub id: OperationId,
    /// The operation.
    pub operation: Operation,
}

/// Operations to charge, in one transaction.
#[derive(Clone, Debug)]
pub struct OperationBatch {
    /// Who holds the leases that they are charged to.
    pub incarnation: Incarnation,
    /// When, by its clock.
    pub now: Time,
    /// In this order.
    pub operations: Vec<NamedOperation>,
}

/// What became of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is charged.
    New,
    /// This one was there before; nothing is charged.
    Known(Operation),
}

/// Why operations were not recorded.
#[derive(Clone, Debug, Error)]
pub enum RecordError {
    /// None of them is charged, and none will be.
    #[error(transparent)]
    NotWritten(StoreError),
    /// Nobody knows whether all of them are charged, or none.
    #[error("whether it was written is not known: {0}")]
    Unknown(StoreError),
}

/// What came of giving an operation back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refund {
    /// This one was given back.
    Done(Operation),
    /// This one had been given back before.
    DoneBefore(Operation),
    /// There is none under this name.
    Unknown,
}

//! Leases: what processes may spend of the budgets that they share.

use std::collections::HashMap;
use std::time::Duration;

use crate::decision::quota::{Rule, Slot, State};
use crate::domain::{AccountId, BudgetId, Time, TimeZone};

/// A process, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(pub [u8; 16]);

/// What one process asks and says of its leases, in one transaction.
#[derive(Clone, Debug)]
pub struct LeaseBatch {
    /// Who.
    pub incarnation: Incarnation,
    /// When, by its clock.
    pub now: Time,
    /// In this order, also where a budget is asked for twice.
    pub asks: Vec<LeaseAsk>,
    /// Budgets that were called back and of which nothing is held, nor reserved by operations, so that there is nothing to ask or say: they are not called
    /// back any more. Should the store know better, as where an answer of it was lost, then what it granted is as good as spent.
    /// Empty where one process has the store.
    pub released: Vec<BudgetId>,
}

/// What is asked and said of one budget.
#[derive(Clone, Debug)]
pub struct LeaseAsk {
    /// Which.
    pub budget: BudgetId,
    /// Whose keys spend it.
    pub account: AccountId,
    /// What it is held against now.
    pub rule: Rule,
    /// Where its days and months begin.
    pub zone: TimeZone,
    /// What has become of earlier leases since this was last said.
    pub settled: Vec<Settled>,
    /// When the slot began in which it was spent from last. The store may not have heard of that yet, where the units were
    /// granted ahead, and the clock may have been set back since: the state moves on at least to there.
    pub reached: Time,
    /// Units to be granted, as many of them as there are; 0 asks only how it stands.
    pub wanted: u64,
    /// Those of them that checks wait for. Where units have been called back from other processes lately, no more is granted.
    pub needed: u64,
    /// Whether this gives back all that is not spent because it was called back: then it is not called back any more. Nothing is
    /// wanted with it, so that those come first who called it back. What operations have reserved stays leased.
    pub recalled: bool,
    /// The counter in which what is spent of them will be counted.
    pub cell: Option<Cell>,
    /// Units to be granted after that for the slot after the one that is reached, as many of them as there are.
    pub ahead: u64,
    /// The counter of those.
    pub ahead_cell: Option<Cell>,
}

/// A counter of the journal of the process that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its number there.
    pub number: u32,
    /// What it stands at, with all that `settled` tells to be spent.
    pub value: u64,
}

/// Units of one lease that are no longer leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The slot that they were granted for.
    pub slot: Slot,
    /// The number of the counter that they were granted with.
    pub cell: Option<u32>,
    /// Units spent.
    pub spent: u64,
    /// Units that never will be.
    pub returned: u64,
}

/// How a budget stands after its part of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// Units granted, for the slot in which the state is.
    pub granted: u64,
    /// Units granted for the slot after that.
    pub ahead: u64,
    /// Whether other processes, which have now been asked to give them back, hold units of it while fewer were granted than are
    /// needed. Never where one process has the store.
    pub elsewhere: bool,
    /// The state.
    pub state: State,
}

/// What to do with the leases of processes that ended without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncertain {
    /// They count as spent.
    Charge,
    /// They are given back.
    Refund,
}

/// Whose leases to close, and how.
#[derive(Clone, Copy, Debug)]
pub struct Closing<'a> {
    /// Who closes them; not its own. Where one process has the store, all others are known to be gone. Where several share it, those
    /// are that are not registered, and those that are taken out of the list by this call: they have been silent for
    /// [`silent_after`](super::silent_after) their fence.
    pub survivor: Incarnation,
    /// When, by its clock.
    pub now: Time,
    /// What becomes of what nobody knows.
    pub policy: Uncertain,
    /// The process before this one, with its journal: it is gone, too.
    pub known: Option<&'a KnownSpends>,
    /// For how long this process has polled without a break: silence is told of others only as far as one has listened.
    pub watched: Duration,
}

impl<'a> Closing<'a> {
    /// By a process that has just started.
    #[must_use]
    pub const fn at_start(survivor: Incarnation, now: Time, policy: Uncertain, known: Option<&'a KnownSpends>) -> Self {
        Self { survivor, now, policy, known, watched: Duration::ZERO }
    }
}

/// What is known of the spending of a process that is gone, from its journal.
#[derive(Clone, Debug)]
pub struct KnownSpends {
    /// Which process.
    pub incarnation: Incarnation,
    /// What its counters stand at, by their numbers; one that is not named is at 0.
    pub counters: HashMap<u32, u64>,
}

/// What became of the leases of processes that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Leases of which it is known what was spent; the rest of them was given back.
    pub known: usize,
    /// Those of which it is not.
    pub uncertain: Vec<ClosedLease>,
}

/// A lease of a process that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedLease {
    /// Of which budget.
    pub budget: BudgetId,
    /// Whose keys spent it.
    pub account: String,
    /// For which slot.
    pub slot: Slot,
    /// Units of which nobody knows whether they were spent.
    pub units: u64,
}

/// Units of which nobody knows whether they were spent, as they were found in one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UncertainRow {
    /// Of which budget.
    pub budget: BudgetId,
    /// Number of the hour since 1970.
    pub hour: i64,
    /// Whether they were given back; else they count as spent.
    pub given_back: bool,
    /// Cost units.
    pub units: u64,
}

//! What granting, closing and charging make of the rows that every adapter keeps alike. The arithmetic is
//! `decision::quota`'s; adapters read the states, hand them in here, and write down what comes of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Cell, Closed, ClosedLease, KnownSpends, LeaseAsk, LeaseBatch, Leased, NamedOperation, Operation, OperationCharge,
    StoreError,
};
use crate::decision::quota::{Slot, State};
use crate::domain::{BudgetId, Time, UsageDelta, Verdict};

/// Which lease of a process: the budget, the slot and the number of the counter.
pub(super) type LeaseKey<'a> = (&'a str, i64, i64);

/// In the place of a counter's number where there is none.
const NO_CELL: i64 = -1;

fn cell_number(cell: Option<u32>) -> i64 {
    cell.map_or(NO_CELL, i64::from)
}

/// For a column: beyond the largest number that one holds, that number.
pub(super) fn signed(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

/// How a lease changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Move<'a> {
    /// What is added to its units, or, below 0, is no longer leased.
    pub(super) units: i64,
    /// What of that was spent.
    pub(super) settled: i64,
    /// What its counter stands at less that, should it be new.
    pub(super) base: i64,
    pub(super) account: &'a str,
}

impl Move<'_> {
    fn add(&mut self, other: Self) {
        self.units = self.units.saturating_add(other.units);
        self.settled = self.settled.saturating_add(other.settled);
        (self.base, self.account) = (other.base, other.account);
    }
}

/// What a batch makes of its budgets.
#[derive(Debug)]
pub(super) struct Round<'a> {
    /// The answers, in the order of the asks.
    pub(super) leased: Vec<Leased>,
    /// Budgets whose state is to be written down, in the order of their names.
    pub(super) states: Vec<(&'a str, String)>,
    /// Leases that change, in the order of their keys.
    pub(super) moves: Vec<(LeaseKey<'a>, Move<'a>)>,
}

/// Answers a batch. `before` are the states that are kept; of budgets that `tight` names, no more is granted than is needed.
pub(super) fn round<'a>(
    batch: &'a LeaseBatch,
    before: &HashMap<String, State>,
    tight: &HashSet<String>,
) -> Result<Round<'a>, StoreError> {
    let mut after: BTreeMap<&str, State> = BTreeMap::new();
    let mut leased = Vec::with_capacity(batch.asks.len());
    for ask in &batch.asks {
        let id = ask.budget.as_str();
        // One that is asked for twice goes on from what the first has left.
        let (one, kept) = answer(ask, after.get(id).or_else(|| before.get(id)), batch.now, tight.contains(id));
        if let Some(state) = kept {
            after.insert(id, state);
        }
        leased.push(one);
    }
    let mut moved: BTreeMap<LeaseKey<'_>, Move<'_>> = BTreeMap::new();
    for (ask, leased) in batch.asks.iter().zip(&leased) {
        for (slot, cell, change) in moves(ask, leased) {
            moved.entry((ask.budget.as_str(), slot.number(), cell)).or_default().add(change);
        }
    }
    Ok(Round {
        leased,
        states: after.iter().map(|(id, state)| Ok((*id, encode(state)?))).collect::<Result<_, StoreError>>()?,
        moves: moved.into_iter().filter(|(_, change)| change.units != 0 || change.settled != 0).collect(),
    })
}

/// What one ask makes of a budget, and what is to be written down of that.
fn answer(ask: &LeaseAsk, before: Option<&State>, now: Time, tight: bool) -> (Leased, Option<State>) {
    let LeaseAsk { rule, zone, settled, reached, wanted, needed, ahead, .. } = ask;
    let now = now.max(*reached);
    let (wanted, ahead) = if tight { ((*wanted).min(*needed), 0) } else { (*wanted, *ahead) };
    let give_back = |state: &mut State| settled.iter().for_each(|one| state.give_back(one.slot, one.returned));
    let mut state = before.cloned().unwrap_or_else(|| State::new(rule, zone, now));
    state.advance(rule, zone, now);
    give_back(&mut state);
    let granted = state.grant(rule, wanted);
    let ahead = state.grant_ahead(rule, ahead);
    // That time has passed is no news: it would be found out again. That units were spent in this slot is, as they may have been
    // granted before it began: a clock that is set back must not lead back to before it.
    let begun = settled.iter().any(|one| one.spent > 0 && one.slot == state.slot());
    let kept = if granted > 0 || ahead > 0 || begun {
        Some(state.clone())
    } else if settled.iter().any(|one| one.returned > 0) {
        before.cloned().map(|mut state| {
            give_back(&mut state);
            state
        })
    } else {
        None
    };
    (Leased { granted, ahead, elsewhere: false, state }, kept)
}

/// How the leases of a budget change. What is granted comes last, so that its counter is what a new lease begins with.
fn moves<'a>(ask: &'a LeaseAsk, leased: &Leased) -> impl Iterator<Item = (Slot, i64, Move<'a>)> + use<'a> {
    let account = ask.account.as_str();
    let granted = |slot: Slot, units: u64, cell: Option<Cell>| {
        let told = ask.settled.iter().filter(|one| one.slot == slot && one.cell == cell.map(|cell| cell.number));
        let told = told.map(|one| one.spent).fold(0, u64::saturating_add);
        let base = cell.map_or(0, |cell| cell.value).wrapping_sub(told).cast_signed();
        (slot, cell_number(cell.map(|cell| cell.number)), Move { units: signed(units), settled: 0, base, account })
    };
    let here = granted(leased.state.slot(), leased.granted, ask.cell);
    let ahead = granted(leased.state.next_slot(), leased.ahead, ask.ahead_cell);
    let settled = ask.settled.iter().map(move |one| {
        let units = -signed(one.spent.saturating_add(one.returned));
        (one.slot, cell_number(one.cell), Move { units, settled: signed(one.spent), base: 0, account })
    });
    settled.chain([here, ahead])
}

/// A state for a column.
pub(super) fn encode(state: &State) -> Result<String, StoreError> {
    serde_json::to_string(state).map_err(|error| StoreError::Corrupt(format!("the state of a budget: {error}")))
}

/// A state from its column.
pub(super) fn decode(budget: &str, text: &str) -> Result<State, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Corrupt(format!("the state of the budget `{budget}`: {error}")))
}

/// A row of the leases of a process that is gone.
#[derive(Debug)]
pub(super) struct LeaseRow {
    pub(super) incarnation: Vec<u8>,
    pub(super) budget: String,
    pub(super) slot: i64,
    pub(super) cell: i64,
    pub(super) units: i64,
    pub(super) base: i64,
    pub(super) settled: i64,
    pub(super) account: String,
}

/// Tells leases of which it is known what was spent from the others. Returns beside that what goes back of the former.
pub(super) fn close(rows: Vec<LeaseRow>, known: Option<&KnownSpends>) -> (Closed, Vec<ClosedLease>) {
    let mut unspent = Vec::new();
    let mut closed = Closed::default();
    for row in rows {
        let (lease, spent) = closed_lease(row, known);
        match spent {
            Some(spent) => {
                closed.known += 1;
                unspent.push(ClosedLease { units: lease.units.saturating_sub(spent), ..lease });
            }
            None => closed.uncertain.push(lease),
        }
    }
    (closed, unspent)
}

/// A lease, and what was spent of its units where that is known.
fn closed_lease(row: LeaseRow, known: Option<&KnownSpends>) -> (ClosedLease, Option<u64>) {
    let known = known.filter(|known| known.incarnation.0.as_slice() == row.incarnation.as_slice());
    let spent = known.zip(u32::try_from(row.cell).ok()).map(|(known, cell)| {
        let counter = known.counters.get(&cell).copied().unwrap_or(0);
        // More than there was, where the two do not belong together: then all of it is gone.
        counter.wrapping_sub(row.base.cast_unsigned()).wrapping_sub(row.settled.cast_unsigned())
    });
    let lease = ClosedLease {
        budget: BudgetId::stored(row.budget),
        account: row.account,
        slot: Slot::new(row.slot),
        units: u64::try_from(row.units).unwrap_or(0),
    };
    (lease, spent)
}

/// Units for each account and budget, in the order of their names.
pub(super) fn sums(leases: &[ClosedLease]) -> Vec<((&str, &str), i64)> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for lease in leases {
        let sum = sums.entry((&lease.account, lease.budget.as_str())).or_default();
        *sum = sum.saturating_add(lease.units);
    }
    sums.into_iter().map(|(of, units)| (of, signed(units))).collect()
}

/// An account's id and the digest of an operation's.
pub(super) type OperationName<'a> = (&'a str, &'a [u8]);

pub(super) fn operation_name(named: &NamedOperation) -> OperationName<'_> {
    (named.account_id.as_str(), named.id.digest())
}

/// Of several operations of one name the first, in the order of their names.
pub(super) fn first_of_each(operations: &[NamedOperation]) -> BTreeMap<OperationName<'_>, &Operation> {
    let mut first = BTreeMap::new();
    for named in operations {
        first.entry(operation_name(named)).or_insert(&named.operation);
    }
    first
}

/// What is taken from the leases of the process that charges these. No counter has it: the store charges it itself.
pub(super) fn taken<'a>(charged: &[&'a Operation]) -> Vec<(LeaseKey<'a>, Move<'a>)> {
    let mut taken: BTreeMap<LeaseKey<'_>, Move<'_>> = BTreeMap::new();
    for OperationCharge { budget, slot, cell, units } in charged.iter().flat_map(|operation| &operation.charges) {
        let lease = (budget.as_str(), slot.number(), cell_number(*cell));
        let change = Move { units: signed(*units).saturating_neg(), ..Move::default() };
        taken.entry(lease).or_default().add(change);
    }
    taken.into_iter().collect()
}

/// The checks as they are counted, each cell once, in the order of the table.
pub(super) fn used(charged: &[&Operation]) -> Vec<UsageDelta> {
    let mut cells: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for operation in charged {
        let (requests, credits) = cells.entry((operation.key_id, operation.time.hour())).or_default();
        *requests += 1;
        *credits = credits.saturating_add(operation.credits);
    }
    let delta = |((key_id, hour), (requests, credits))| UsageDelta {
        key_id,
        hour,
        verdict: Verdict::Allowed,
        requests,
        credits,
    };
    cells.into_iter().map(delta).collect()
}

/// Charges for a column: triples of budget, slot and units.
pub(super) fn encode_charges(charges: &[OperationCharge]) -> Result<String, StoreError> {
    let triple = |charge: &OperationCharge| (charge.budget.to_string(), charge.slot.number(), charge.units);
    serde_json::to_string(&charges.iter().map(triple).collect::<Vec<_>>())
        .map_err(|error| StoreError::Corrupt(format!("the charges of an operation: {error}")))
}

/// Charges from their column.
pub(super) fn decode_charges(text: &str) -> Result<Vec<OperationCharge>, StoreError> {
    let charges: Vec<(String, i64, u64)> = serde_json::from_str(text)
        .map_err(|error| StoreError::Corrupt(format!("the charges of an operation: {error}")))?;
    let charge = |(budget, slot, units)| OperationCharge {
        budget: BudgetId::stored(budget),
        slot: Slot::new(slot),
        cell: None,
        units,
    };
    Ok(charges.into_iter().map(charge).collect())
}

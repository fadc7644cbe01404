//! What the store is asked of one budget.

use crate::decision::quota::{Rule, Slot};
use crate::domain::Time;
use crate::journal::SpendCell;
use crate::store::{Cell, Leased, Settled};

/// What the store is to be asked of a budget.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) rule: Rule,
    pub(super) settled: Vec<Settled>,
    /// When the slot began in which something was spent; long ago where that is none.
    pub(super) reached: Time,
    pub(super) wanted: u64,
    /// Those of them that checks wait for.
    pub(super) needed: u64,
    /// Of the slot after that.
    pub(super) ahead: u64,
    /// In which what is spent of them is counted.
    pub(super) cells: Cells,
    /// Counters that are free as soon as the store was told.
    pub(super) freed: Vec<SpendCell>,
}

/// The counters of what is granted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cells {
    pub(super) here: Option<SpendCell>,
    pub(super) ahead: Option<SpendCell>,
}

/// Which lease of a budget.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseName {
    pub(super) slot: Slot,
    pub(super) cell: Option<SpendCell>,
}

/// How soon the store is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Nobody waits for it: a lease is to be filled up before it is empty.
    Later,
    /// It has just been asked, and others have not given back yet what was called back.
    Soon,
    /// A check waits.
    Now,
}

impl Ask {
    /// Sends back units of a budget that is there no more, and is now held against `rule`. Absent where that is nothing.
    pub(super) fn returning(rule: Rule, units: impl IntoIterator<Item = (LeaseName, u64)>) -> Option<Self> {
        let returned = |(LeaseName { slot, cell }, returned)| Settled { slot, cell: number(cell), spent: 0, returned };
        let settled: Vec<Settled> = units.into_iter().filter(|(_, units)| *units > 0).map(returned).collect();
        let reached = Time::from_millis(i64::MIN);
        let cells = Cells::default();
        let ask = Self { rule, settled, reached, wanted: 0, needed: 0, ahead: 0, cells, freed: Vec::new() };
        (!ask.settled.is_empty()).then_some(ask)
    }

    /// Sends back what was granted to such a budget.
    pub(super) fn return_grant(rule: Rule, leased: &Leased, cells: Cells) -> Option<Self> {
        let Leased { granted, ahead, state, .. } = leased;
        let here = LeaseName { slot: state.slot(), cell: cells.here };
        let next = LeaseName { slot: state.next_slot(), cell: cells.ahead };
        Self::returning(rule, [(here, *granted), (next, *ahead)])
    }
}

impl Cells {
    /// As the store is told of them.
    pub(super) fn told(self) -> (Option<Cell>, Option<Cell>) {
        let told = |cell: SpendCell| Cell { number: cell.number(), value: cell.value() };
        (self.here.map(told), self.ahead.map(told))
    }
}

impl LeaseName {
    pub(super) fn is(self, other: Self) -> bool {
        self.slot == other.slot && number(self.cell) == number(other.cell)
    }
}

pub(super) fn number(cell: Option<SpendCell>) -> Option<u32> {
    cell.map(SpendCell::number)
}

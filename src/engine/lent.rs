//! What one process holds of one budget in one slot, and what becomes of it.

use crate::decision::quota::Slot;
use crate::journal::SpendCell;
use crate::store::Settled;

use super::ask::number;

/// Units granted to this process, to be spent in one slot alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) slot: Slot,
    pub(super) units: u64,
    /// Units spent and not yet told to the store.
    pub(super) spent: u64,
    /// Where what is spent is counted for the case that this process is killed.
    pub(super) cell: Option<SpendCell>,
}

/// What became of units of a lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) slot: Slot,
    pub(super) cell: Option<SpendCell>,
    pub(super) spent: u64,
    pub(super) returned: u64,
    /// Whether that was the last of it, so that its counter may be another's once the store knows.
    pub(super) over: bool,
}

impl Lease {
    pub(super) const fn of(slot: Slot) -> Self {
        Self { slot, units: 0, spent: 0, cell: None }
    }

    /// What becomes of it where nothing more is spent.
    pub(super) const fn ended(self) -> Outcome {
        let Self { slot, units, spent, cell } = self;
        Outcome { slot, cell, spent, returned: units, over: true }
    }
}

impl Outcome {
    pub(super) fn is_of(&self, slot: Slot, cell: Option<SpendCell>) -> bool {
        self.slot == slot && number(self.cell) == number(cell)
    }

    pub(super) fn settled(self) -> Settled {
        let Self { slot, cell, spent, returned, over: _ } = self;
        Settled { slot, cell: number(cell), spent, returned }
    }
}

//! What is remembered of operations, as their documentation has it.

use std::collections::BTreeMap;

use crate::DAY;
use crate::terms::Charge;

/// An operation that was charged.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Unlike that of any other.
    pub(crate) number: u64,
    pub(crate) key: usize,
    pub(crate) cost: u64,
    pub(crate) credits: u64,
    pub(crate) time: i64,
    pub(crate) charges: Vec<Charge>,
    pub(crate) refunded: bool,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing.
    No,
    /// This check.
    Same,
    /// Another key or cost.
    Other,
    /// This check, and it was given back.
    Refunded,
}

/// By their names.
#[derive(Debug, Default)]
pub(crate) struct Operations(BTreeMap<usize, Operation>);

impl Operations {
    /// The one of this name that is remembered.
    pub(crate) fn find(&self, id: usize, now: i64) -> Option<&Operation> {
        self.0.get(&id).filter(|one| now - one.time < DAY)
    }

    pub(crate) fn known(&self, id: usize, key: usize, cost: u64, now: i64) -> Known {
        match self.find(id, now) {
            None => Known::No,
            Some(one) if (one.key, one.cost) != (key, cost) => Known::Other,
            Some(one) => {
                if one.refunded {
                    Known::Refunded
                } else {
                    Known::Same
                }
            }
        }
    }

    /// One was charged. Those that are older than is remembered are gone with that, also for a clock that is set back.
    pub(crate) fn record(&mut self, id: usize, operation: Operation) {
        self.0.retain(|_, one| operation.time - one.time < DAY);
        self.0.insert(id, operation);
    }

    /// Gives back. Returns what.
    pub(crate) fn refund(&mut self, id: usize) -> &Operation {
        let one = self.0.get_mut(&id).unwrap();
        one.refunded = true;
        one
    }
}

//! What was admitted and when, held against the definition of a limit: in no window more than its capacity. It knows neither the
//! model nor what became of units that were not spent.

use std::collections::BTreeMap;

use crate::terms::{BudgetKey, Told, budget_key};
use crate::window::Window;

/// Of each budget, the windows that it was spent in, or the moments where it has no fixed ones, and how much.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<BudgetKey, Vec<Admitted>>);

#[derive(Debug)]
struct Admitted {
    at: i64,
    units: u64,
    /// Which operation it was, where it was one.
    operation: Option<u64>,
}

impl History {
    /// Notes what was admitted at a time. Says which window holds too much.
    pub(crate) fn admit(&mut self, told: &Told, units: u64, now: i64, operation: Option<u64>) -> Result<(), String> {
        let spent = self.0.entry(budget_key(told.owner, &told.limit)).or_default();
        let (at, length) = match told.limit.window {
            // The window is told by its end.
            Window::Fixed(length) => {
                if told.reset <= now || told.reset % length != 0 {
                    return Err(format!("no window of the calendar ends at {} after {now}", told.reset));
                }
                (told.reset, 1)
            }
            Window::MonthFrom(_) => (told.reset, 1),
            Window::Forever => (0, 1),
            // Units come back at most a sixtieth late. Where the clock went back, time goes on from where it was seen to be.
            Window::Sliding(period) => {
                let seen = told.reset - period - (period + 59) / 60;
                (spent.last().map_or(now, |last| now.max(last.at)).max(seen), period)
            }
        };
        spent.push(Admitted { at, units, operation });
        let ends = spent.iter().map(|one| one.at).filter(|end| (at..at + length).contains(end));
        for end in ends {
            let in_window = spent.iter().filter(|one| (end - length + 1..=end).contains(&one.at));
            let in_window: u64 = in_window.map(|one| one.units).sum();
            if in_window > told.limit.capacity {
                return Err(format!("{in_window} units up to {end}: {told:?}, {spent:?}"));
            }
        }
        Ok(())
    }

    /// An operation was given back.
    pub(crate) fn refund(&mut self, operation: u64) {
        let all = self.0.values_mut().flatten();
        all.filter(|one| one.operation == Some(operation)).for_each(|one| one.units = 0);
    }
}

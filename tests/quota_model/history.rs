//! What was admitted and when, held against the definition of a limit: in no window more than its capacity. It knows neither the
//! model nor what became of units that were not spent.

use std::collections::BTreeMap;

use crate::model::{BudgetKey, Told, budget_key};
use crate::window::Window;

/// Of each budget, the windows that it was spent in, or the moments where it has no fixed ones, and how much.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<BudgetKey, Vec<(i64, u64)>>);

impl History {
    /// Notes what was admitted at a time. Says which window holds too much.
    pub(crate) fn admit(&mut self, told: &Told, units: u64, now: i64) -> Result<(), String> {
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
            // Units come back at most a sixtieth late. Where the clock went back, time goes on from where it was seen to be.
            Window::Sliding(period) => {
                let seen = told.reset - period - (period + 59) / 60;
                (spent.last().map_or(now, |(last, _)| now.max(*last)).max(seen), period)
            }
        };
        if spent.last().is_some_and(|(last, _)| *last > at) {
            return Err(format!("a window that was over is open again: {told:?}, {spent:?}"));
        }
        spent.push((at, units));
        let in_window: u64 = spent.iter().filter(|(then, _)| *then > at - length).map(|(_, units)| units).sum();
        if in_window > told.limit.capacity {
            return Err(format!("{in_window} units up to {at}: {told:?}, {spent:?}"));
        }
        Ok(())
    }
}

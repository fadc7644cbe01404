//! Operations, what gives them back, and top-ups, in the engine and the model.

use std::sync::Arc;
use std::time::Duration;

use tollgate::decision::Request;
use tollgate::domain::Verdict;
use tollgate::engine::{Check, CreditAdjustment, Error};
use tollgate::store;

use super::{ME, Result, World};
use crate::names;
use crate::operations::{Known, Operation};
use crate::terms::Charge;

impl World {
    /// A check under the name of an operation.
    pub(super) async fn operation(&mut self, id: usize, key: usize, cost: u64, spend: bool) -> Result<()> {
        let known = self.operations.known(id, key, cost, self.model.now);
        let credential = &self.keys[key].1;
        let request = Request::default();
        let check = Check { credential, request, cost, consume: spend, within: None, attempt: None };
        let answer = self.engine().check_operation(&check, &names::operation_id(id), self.clock.now()).await;
        self.note_torn();
        let recorded = std::mem::take(&mut self.desk.book().recorded).pop();
        let number = self.operations_charged;
        let charged = match (answer, known) {
            (Ok(answer), Known::Same) => self.judge(key, 0, false, &answer, None)?.and(None),
            (Ok(answer), Known::No) => {
                let charged = self.judge(key, cost, spend, &answer, Some(number))?.filter(|_| spend);
                if spend && charged.is_none() {
                    self.count(key, answer.verdict, 0);
                }
                charged
            }
            (Err(Error::AlreadyExists(_)), Known::Other)
            | (Err(Error::Precondition { kind: "OPERATION_REFUNDED", .. }), Known::Refunded) => None,
            (Err(Error::Unavailable(_)), _) => {
                self.note_failure()?;
                let charges = recorded.as_ref().map(|operation| self.charges(operation));
                if let Some(charges) = &charges {
                    self.model.charge_unseen(key, cost, charges)?;
                }
                charges
            }
            (answer, known) => return Err(format!("{answer:?} of what is known as {known:?}")),
        };
        let recorded_charges = recorded.as_ref().map(|operation| self.charges(operation));
        if recorded_charges != charged.clone().map(sorted) || (recorded.is_some() && known != Known::No) {
            return Err(format!("{charged:?} charged, {recorded:?} recorded, {known:?} before"));
        }
        if let (Some(recorded), Some(charges)) = (recorded, charged) {
            let credits = if self.model.is_counting_credits(key) { cost } else { 0 };
            let store::Operation { cost: cost_found, credits: credits_found, time, .. } = recorded;
            if (cost_found, credits_found, time.millis()) != (cost, credits, self.model.now) {
                return Err(format!("not what was charged: {recorded:?}"));
            }
            let time = self.model.now;
            self.operations.record(id, Operation { number, key, cost, credits, time, charges, refunded: false });
            self.operations_charged += 1;
            // It is in the store at once.
            self.count(key, Verdict::Allowed, credits);
            let written = self.written.entry((key, Verdict::Allowed)).or_default();
            *written = (written.0 + 1, written.1 + credits);
        }
        Ok(())
    }

    /// What was charged, in the model's words and in order.
    fn charges(&self, operation: &store::Operation) -> Vec<Charge> {
        let charges = operation.charges.iter();
        sorted(charges.map(|one| (self.budgets[one.budget.as_str()], one.slot.number(), one.units)).collect())
    }

    /// Gives an operation back.
    pub(super) async fn refund(&mut self, id: usize) -> Result<()> {
        let known = self.operations.find(id, self.model.now).cloned();
        let name = names::operation_id(id);
        let answer = {
            let engine = Arc::clone(self.engine());
            tokio::select! {
                answer = engine.refund_check(ME, Some(&self.account), &name) => Some(answer),
                () = self.death() => None,
            }
        };
        self.note_torn();
        let refunded = std::mem::take(&mut self.desk.book().refunded).pop();
        match (&answer, &known) {
            (Some(Ok(units)), Some(known)) if *units == known.cost && refunded.is_some() => {}
            (Some(Err(Error::NotFound { .. })), None) if refunded.is_none() => {}
            (Some(Err(Error::Precondition { kind: "OPERATION_REFUNDED", .. })), Some(known))
                if known.refunded && refunded.is_none() => {}
            (Some(Err(Error::Unavailable(_))), _) => self.note_failure()?,
            (None, _) => {}
            (answer, known) => return Err(format!("{answer:?} of {known:?}; given back: {refunded:?}")),
        }
        if refunded.is_some() {
            if known.is_none_or(|known| known.refunded) {
                return Err(format!("{refunded:?} was given back"));
            }
            let Operation { number, key, credits, charges, .. } = self.operations.refund(id);
            self.model.refund(charges);
            self.history.refund(*number);
            for usage in [&mut self.counted, &mut self.written] {
                usage.get_mut(&(*key, Verdict::Allowed)).unwrap().1 -= credits;
            }
        }
        Ok(())
    }

    /// Returns when the process is gone.
    async fn death(&self) {
        while !self.desk.book().dead {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What goes wrong in the midst of a call is the end of it that is lost.
        drop(self.desk.gate.lock().await);
    }

    /// Tops up, or takes away.
    pub(super) async fn adjust(&mut self, amount: i64) -> Result<()> {
        let adjustment = CreditAdjustment { amount, reason: String::new(), operation_id: None };
        let answer = self.engine().adjust_credits(ME, &self.account, &adjustment).await;
        self.note_torn();
        let left = self.model.top_ups_left();
        let taken = if amount < 0 { amount.unsigned_abs() } else { 0 };
        match answer {
            Ok(adjusted) => {
                self.model.topped_up = self.model.topped_up.checked_add_signed(amount).ok_or("less than nothing")?;
                let right = taken <= *left.end() && adjusted.account.top_ups.sum == self.model.topped_up;
                right.then_some(()).ok_or_else(|| format!("{adjusted:?}, and {left:?} were left"))
            }
            Err(Error::Precondition { kind: "NOT_ENOUGH_CREDITS", .. }) if taken > *left.start() => Ok(()),
            Err(Error::Unavailable(_)) => self.note_failure(),
            Err(error) => Err(format!("{error}; {left:?} were left")),
        }
    }
}

fn sorted(mut charges: Vec<Charge>) -> Vec<Charge> {
    charges.sort();
    charges
}

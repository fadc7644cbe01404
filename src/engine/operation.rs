//! Checks that are charged once, however often they are sent, and giving back what they were charged.
//!
//! A usual check is charged in memory, to units that are leased. One with an operation's id is charged in the store, in one
//! transaction with the row that remembers it and with its count in the usage: it is there before the answer, or not at all. The
//! units come from the leases all the same, and are taken out of them first, so that an operation costs one transaction for
//! many and waits for no lease more often than other checks do.
//!
//! Whatever ends the process in between, the units are still leased by the store's books, and go the way of a dead process's
//! leases. Where the store fails before it could commit, they are put back; where nobody knows whether it has, they are not, and
//! the books tell at the next start.

use std::sync::Arc;

use crate::domain::{AccountId, Environment, OperationId, Time, Verdict};
use crate::store::{Incarnation, NamedOperation, Operation, RecordError, Recorded, Refund};

use super::ask::Urgency;
use super::check::{Answer, Asked, Check};
use super::index::{AccountEntry, KeyEntry};
use super::lease::{Holder, Ticket, WAIT_MAX};
use super::meter::{AccountMeter, Charge, Charged, Counted, KeyMeter, Wants};
use super::reserve::{Held, refresh};
use super::{Caller, Engine, Error};

/// A check that may, with its cost out of the leases.
#[derive(Debug)]
struct Reservation {
    /// The name under which it was leased.
    incarnation: Incarnation,
    asked: Asked,
    charge: Charge,
    of_key: Vec<Held>,
    of_account: Vec<Held>,
}

/// What came of trying to reserve a cost.
#[derive(Debug)]
enum Tried {
    Denied(Answer),
    Reserved(Box<Reservation>),
}

impl Engine {
    /// [`Self::check`] under the name of an operation: where it is allowed it is charged once for the name, and remembered for a
    /// day. One that is sent again is answered as allowed, with what is left now; a check that only peeks likewise. It is first
    /// asked whether the key may, and what is denied is not remembered.
    ///
    /// Fails with [`Error::AlreadyExists`] where the name stands for another key or cost, and with [`Error::Precondition`]
    /// where it was given back. The caller lets it run to its end even if the client goes away.
    pub async fn check_operation(&self, check: &Check<'_>, id: &OperationId, now: Time) -> Result<Answer, Error> {
        self.require_fresh()?;
        let answer = self.operate(check, id, now).await?;
        // Sent again once it is fresh, it is answered as it was charged.
        self.require_fresh().map(|()| answer)
    }

    async fn operate(&self, check: &Check<'_>, id: &OperationId, now: Time) -> Result<Answer, Error> {
        let asked = match self.asked(check, now) {
            Ok(asked) => asked,
            Err(unidentified) => return Ok(unidentified.into()),
        };
        // The store need not be asked.
        if let Err(verdict) = asked.authorized {
            return Ok(self.deny(asked, check, Charge::denied(verdict), now));
        }
        let _place = self.operations.place(&asked.entry.account)?;
        let account_id = asked.subject.terms.account_id.clone();
        let _turn = self.operations.turn(&account_id, id).await;
        if let Some(known) = self.read(self.store.operation(&account_id, id, self.clock.now())).await? {
            return self.answer_again(check, id, &known).await;
        }
        if !check.consume {
            return self.check(check, self.clock.now()).await;
        }
        let reservation = match self.after_leases(|| self.try_reserve(check, self.clock.now())).await? {
            Tried::Denied(answer) => return Ok(answer),
            Tried::Reserved(reservation) => reservation,
        };
        let operation = reservation.operation(check);
        let named = NamedOperation { account_id, id: id.clone(), operation };
        match self.record_operation(named, reservation.incarnation).await {
            Ok(Recorded::New) => {
                let Reservation { incarnation: _, asked, charge, of_key, of_account } = *reservation;
                let queue = |meter: &mut KeyMeter| {
                    meter.charged_reserved(&of_key);
                    meter.touch(check.request.client_ip, self.clock.now())
                };
                asked.entry.account.meter(asked.environment()).charged_reserved(&of_account);
                if asked.entry.with_meter(queue) {
                    self.usage.enqueue(Arc::clone(&asked.entry));
                }
                Ok(asked.answer(check, charge))
            }
            // Another process was first.
            Ok(Recorded::Known(known)) => {
                self.put_back(&reservation);
                self.answer_again(check, id, &known).await
            }
            Err(RecordError::NotWritten(error)) => {
                self.put_back(&reservation);
                Err(error.into())
            }
            Err(RecordError::Unknown(error)) => Err(error.into()),
        }
    }

    /// Gives back what an operation was charged, once. Returns how many cost units that were. What its budgets have left is
    /// known when this returns. Without an account, it is the caller's own.
    pub async fn refund_check(
        &self,
        caller: &Caller,
        account_id: Option<&AccountId>,
        id: &OperationId,
    ) -> Result<u64, Error> {
        caller.require("tollgate:check")?;
        let account_id = account_id.or_else(|| caller.own_account());
        let account_id =
            account_id.ok_or_else(|| Error::invalid("account_id", "must be set by an operator's caller"))?;
        let account = self.index.account(account_id).filter(|_| caller.sees(account_id));
        let account = account.ok_or_else(|| Error::no_account(account_id))?;
        let result = self.store.refund_operation(account_id, id, self.clock.now()).await;
        Self::note_store(&self.writing_fails, result.as_ref().err(), "written");
        match result? {
            Refund::Done(operation) => {
                self.learn(&account, &operation).await;
                Ok(operation.cost)
            }
            // The answer of the first time may have been lost, and what follows it with it.
            Refund::DoneBefore(operation) => {
                self.learn(&account, &operation).await;
                Err(refunded(id))
            }
            Refund::Unknown => Err(Error::NotFound { kind: "operation", id: id.to_string() }),
        }
    }

    /// Answers a check that is refused, and counts it.
    fn deny(&self, asked: Asked, check: &Check<'_>, charge: Charge, now: Time) -> Answer {
        let counted = Counted { verdict: charge.verdict, credits: 0, client_ip: check.request.client_ip };
        let count = |meter: &mut KeyMeter| meter.count(asked.entry.id, counted, self.journal(), now);
        if check.consume && asked.entry.with_meter(count) {
            self.usage.enqueue(Arc::clone(&asked.entry));
        }
        asked.answer(check, charge)
    }

    /// Decides, and takes the cost out of the leases.
    fn try_reserve(&self, check: &Check<'_>, now: Time) -> Result<Tried, Ticket> {
        let asked = match self.asked(check, now) {
            Ok(asked) => asked,
            Err(unidentified) => return Ok(Tried::Denied(unidentified.into())),
        };
        if let Err(verdict) = asked.authorized {
            return Ok(Tried::Denied(self.deny(asked, check, Charge::denied(verdict), now)));
        }
        let (entry, environment) = (&asked.entry, asked.environment());
        let (mut of_key, mut of_account) = (Vec::new(), Vec::new());
        let reserve = |key: &mut KeyMeter, account: Option<&mut AccountMeter>| {
            let key = key.reserve(entry.id, check.cost, now, &mut of_key);
            Wants::refill(key, account.is_some_and(|it| it.reserve(environment, check.cost, now, &mut of_account)))
        };
        let (incarnation, charged) = entry.with_meter(|meter| {
            // Under the lock of the key, whose leases are forgotten under it before the name changes.
            let incarnation = self.incarnation();
            let charged = self.charge(meter, entry, check.cost, Some(reserve), now);
            if let Charged::Done(Charge { verdict: Verdict::Allowed, .. }, _) = charged {
                meter.keep_pace(now);
            }
            (incarnation, charged)
        });
        match charged {
            Charged::Wait(wants) => Err(self.enqueue_wants(entry, environment, wants)),
            Charged::Done(charge, wants) => {
                if wants.urgency().is_some() {
                    self.enqueue_wants(entry, environment, wants);
                }
                if charge.verdict == Verdict::Allowed {
                    Ok(Tried::Reserved(Box::new(Reservation { incarnation, asked, charge, of_key, of_account })))
                } else {
                    Ok(Tried::Denied(self.deny(asked, check, charge, now)))
                }
            }
        }
    }

    /// Puts back what was reserved and not charged.
    fn put_back(&self, reservation: &Reservation) {
        let Reservation { asked, of_key, of_account, .. } = reservation;
        let (entry, environment) = (&asked.entry, asked.environment());
        entry.with_meter(|meter| meter.unreserve(of_key));
        entry.account.meter(environment).unreserve(of_account);
        // So that they are looked through when nobody uses them.
        let holders = [Holder::Key(Arc::clone(entry)), Holder::Pool(Arc::clone(&entry.account), environment)];
        self.leases.enqueue(holders, Urgency::Later);
    }

    /// Answers a check that was charged before.
    async fn answer_again(&self, check: &Check<'_>, id: &OperationId, known: &Operation) -> Result<Answer, Error> {
        let attempt = || {
            let now = self.clock.now();
            let asked = match self.asked(check, now) {
                Ok(asked) => asked,
                Err(unidentified) => return Ok(Ok(unidentified.into())),
            };
            if let Err(verdict) = asked.authorized {
                return Ok(Ok(self.deny(asked, check, Charge::denied(verdict), now)));
            }
            if let Err(error) = require_same(&asked, check, id, known) {
                return Ok(Err(error));
            }
            match asked.entry.with_meter(|meter| self.peek_charge(meter, &asked.entry, now)) {
                Charged::Wait(wants) => Err(self.enqueue_wants(&asked.entry, asked.environment(), wants)),
                Charged::Done(charge, _) => {
                    // It is no further check, whatever their pace.
                    let charge = Charge { verdict: Verdict::Allowed, retry_after_millis: None, ..charge };
                    Ok(Ok(asked.answer(check, charge)))
                }
            }
        };
        self.after_leases(attempt).await?
    }

    /// Has the budgets that an operation was charged to ask the store how they stand. Where that fails, they learn it when they
    /// next ask: what was given back is in the store.
    async fn learn(&self, account: &Arc<AccountEntry>, operation: &Operation) {
        let key = self.read(self.store.key(operation.key_id)).await.ok().flatten();
        let key = key.and_then(|stored| self.index.find(&stored.hash)).map(|found| found.entry);
        let asking = async {
            loop {
                let ticket = self.want_to_know(key.as_ref(), account, operation.environment);
                if self.leases.served_afresh(ticket).await.is_ok() {
                    return;
                }
                // Not at once: whatever ails the store is not over in a microsecond.
                tokio::time::sleep(WAIT_MAX / 20).await;
            }
        };
        _ = tokio::time::timeout(WAIT_MAX, asking).await;
    }

    fn want_to_know(
        &self,
        key: Option<&Arc<KeyEntry>>,
        account: &Arc<AccountEntry>,
        environment: Environment,
    ) -> Ticket {
        if let Some(entry) = key {
            entry.with_meter(refresh);
        }
        refresh(&mut *account.meter(environment));
        let pool = Holder::Pool(Arc::clone(account), environment);
        let key = key.map(|entry| Holder::Key(Arc::clone(entry)));
        self.leases.enqueue(key.into_iter().chain([pool]), Urgency::Now)
    }
}

impl Reservation {
    /// As the store is to remember it.
    fn operation(&self, check: &Check<'_>) -> Operation {
        Operation {
            key_id: self.asked.entry.id,
            environment: self.asked.environment(),
            cost: check.cost,
            credits: self.charge.credits.map_or(0, |_| check.cost),
            // It is given its time when it is written.
            time: Time::from_millis(0),
            charges: self.of_key.iter().chain(&self.of_account).map(Held::charge).collect(),
            refund_time: None,
        }
    }
}

/// Refuses to take a check for an operation that it is not.
fn require_same(asked: &Asked, check: &Check<'_>, id: &OperationId, known: &Operation) -> Result<(), Error> {
    let Operation { key_id, cost, .. } = known;
    if *key_id != asked.entry.id {
        return Err(Error::AlreadyExists(format!("the operation `{id}` is one of another key, `{key_id}`")));
    }
    if *cost != check.cost {
        return Err(Error::AlreadyExists(format!("the operation `{id}` has another cost, {cost}")));
    }
    if known.refund_time.is_some() { Err(refunded(id)) } else { Ok(()) }
}

fn refunded(id: &OperationId) -> Error {
    Error::Precondition {
        kind: "OPERATION_REFUNDED",
        subject: id.to_string(),
        message: format!("the operation `{id}` was given back; what is charged anew needs another id"),
    }
}

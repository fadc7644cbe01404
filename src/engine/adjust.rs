//! Topping up an account's credits, and taking away what was.

use std::sync::Arc;

use serde_json::json;

use crate::decision::quota::Rule;
use crate::domain::{Account, AccountId, BudgetId, Environment, Time, UNITS_MAX, shown};
use crate::store::{Commit, CommitError, LeaseAsk, LeaseBatch, Write};

use super::account::{event, require_admin};
use super::all_or_none::Budgets as _;
use super::ask::Urgency;
use super::index::AccountEntry;
use super::lease::Holder;
use super::meter::CreditStatus;
use super::{COMMIT_TRIES_MAX, Caller, Engine, Error, commit_error};

/// What to give to an account, or to take away.
#[derive(Clone, Debug)]
pub struct CreditAdjustment {
    /// Cost units given, or, below 0, taken away; not 0.
    pub amount: i64,
    /// Why, for the audit trail.
    pub reason: String,
    /// What the caller calls it. The same again within the account's last hundred changes nothing.
    pub operation_id: Option<String>,
}

/// An account that was adjusted.
#[derive(Debug)]
pub struct Adjusted {
    /// As it is now.
    pub account: Account,
    /// Its credits now. Absent where they are not counted, or could not be read any more.
    pub credits: Option<CreditStatus>,
}

impl Engine {
    /// Adds to an account's top-ups, or takes from what is left of them.
    pub async fn adjust_credits(
        &self,
        caller: &Caller,
        id: &AccountId,
        adjustment: &CreditAdjustment,
    ) -> Result<Adjusted, Error> {
        require_admin(caller)?;
        let account = self.commit_adjustment(caller, id, adjustment).await?;
        // It is made, whatever can be read of it.
        let credits = match self.index.account(id) {
            Some(entry) => self.credits_of(&entry).await.ok().flatten(),
            None => None,
        };
        Ok(Adjusted { account, credits })
    }

    async fn commit_adjustment(
        &self,
        caller: &Caller,
        id: &AccountId,
        adjustment: &CreditAdjustment,
    ) -> Result<Account, Error> {
        let CreditAdjustment { amount, reason, operation_id } = adjustment;
        let moves = self.moves();
        let changing = self.begin_change().await?;
        for _ in 0..COMMIT_TRIES_MAX {
            let old = self.read(self.store.account(id)).await?.ok_or_else(|| Error::no_account(id))?;
            let made = operation_id.as_deref().and_then(|id| old.top_ups.find(id));
            if let Some(made) = made {
                if made.amount == *amount {
                    return Ok(old);
                }
                let message =
                    format!("the operation `{}` was an adjustment by {}", shown(&made.operation_id), made.amount);
                return Err(Error::AlreadyExists(message));
            }
            if *amount < 0 {
                self.require_left(&old, amount.unsigned_abs()).await?;
            }
            let now = self.clock.now();
            let top_ups = old.top_ups.adjusted(*amount, operation_id.as_deref(), now);
            let top_ups = top_ups.ok_or_else(|| too_many(&old))?;
            let details = json!({ "amount": amount, "reason": reason, "operation_id": operation_id });
            let account = Account { top_ups, update_time: now, ..old.clone() };
            let commit = Commit {
                rehearsal: false,
                time: now,
                actor: caller.name(),
                guards: Vec::new(),
                events: vec![event("account.adjust_credits", id.as_str(), details.to_string())],
                writes: vec![Write::UpdateAccount(account.clone(), old.revision)],
            };
            match self.commit(commit).await {
                Ok(revision) => {
                    let account = self.apply_account(Account { revision, ..account }).await;
                    drop(changing);
                    self.await_everybody(revision, moves).await?;
                    return Ok(account);
                }
                Err(CommitError::Stale) => {}
                Err(error) => return Err(commit_error(error)),
            }
        }
        Err(commit_error(CommitError::Stale))
    }

    /// Refuses to take away what was spent. Checks go on meanwhile: what they spend between this and the commit is then owed,
    /// and comes off the next top-ups.
    async fn require_left(&self, account: &Account, units: u64) -> Result<(), Error> {
        let left = self.top_ups_left(account).await?;
        if units <= left {
            return Ok(());
        }
        let message =
            format!("the account has {left} topped-up credits left; no more than that can be taken away, not {units}");
        Err(Error::Precondition { kind: "NOT_ENOUGH_CREDITS", subject: account.id.to_string(), message })
    }

    async fn top_ups_left(&self, account: &Account) -> Result<u64, Error> {
        let entry = self.index.account(&account.id).ok_or_else(|| Error::no_account(&account.id))?;
        if let Some(credits) = self.credits_of(&entry).await? {
            return Ok(credits.topped_up_remaining);
        }
        // Where credits are not counted no meter holds them. What one had leased when they still were goes back first.
        let ticket = self.leases.enqueue([Holder::Pool(Arc::clone(&entry), Environment::Live)], Urgency::Now);
        self.leases.served(ticket).await?;
        let rule = Rule::of_top_ups(account.top_ups.sum);
        let budget = BudgetId::of_top_ups(&account.id);
        let ask = LeaseAsk {
            budget,
            account: account.id.clone(),
            rule,
            zone: account.time_zone.clone(),
            settled: Vec::new(),
            reached: Time::from_millis(i64::MIN),
            wanted: 0,
            needed: 0,
            recalled: false,
            cell: None,
            ahead: 0,
            ahead_cell: None,
        };
        let (incarnation, now) = (self.incarnation(), self.clock.now());
        let batch = LeaseBatch { incarnation, now, asks: vec![ask], released: Vec::new() };
        let leased = self.store.lease(&batch).await;
        Self::note_store(&self.writing_fails, leased.as_ref().err(), "written");
        Ok(leased?.first().map_or(0, |leased| leased.state.available(&rule)))
    }

    /// How an account's credits stand. Absent where they are not counted.
    async fn credits_of(&self, entry: &Arc<AccountEntry>) -> Result<Option<CreditStatus>, Error> {
        let attempt = || {
            let now = self.clock.now();
            let mut meter = entry.meter(Environment::Live);
            meter.advance(&Arc::clone(&entry.state.load().terms), Environment::Live, now);
            let old = self.leases.clock(&self.clock).is_some_and(|clock| meter.freshen(clock.monotonic()));
            let Some(purse) = &meter.credits else { return Ok(None) };
            if purse.is_asked() && !old {
                return Ok(Some(CreditStatus::of(purse, false, now)));
            }
            meter.want(0, 0);
            drop(meter);
            Err(self.leases.enqueue([Holder::Pool(Arc::clone(entry), Environment::Live)], Urgency::Now))
        };
        self.after_leases(attempt).await
    }
}

fn too_many(account: &Account) -> Error {
    let sum = account.top_ups.sum;
    let message = format!("the account's adjustments come to {sum} credits already; at most {UNITS_MAX} are allowed");
    Error::Precondition { kind: "TOO_MANY_CREDITS", subject: account.id.to_string(), message }
}

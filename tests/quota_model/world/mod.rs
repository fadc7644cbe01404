//! The engine and the model, side by side, and how a step is taken in both.

mod operations;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tollgate::ambient::{Clock, ManualClock};
use tollgate::decision::Request;
use tollgate::domain::{self, AccountId, KeyId, Time, Verdict};
use tollgate::engine::{AccountPatch, Answer, Caller, Check, Engine, Granularity, KeyPatch, PlanPatch};
use tollgate::store::UsageOf;

use crate::history::History;
use crate::model::Model;
use crate::names;
use crate::operations::Operations;
use crate::process::Process;
use crate::store::Desk;
use crate::terms::{BudgetKey, Charge, Credits, Outcome, Terms, budget_key};
use crate::{Change, END, HOUR, KEYS, MINUTE, SECOND, START, Step};

type Result<T, E = String> = std::result::Result<T, E>;
/// Requests and credits of each key, by how they ended.
type Usage = BTreeMap<(usize, Verdict), (u64, u64)>;

const ME: &Caller = &Caller::System;
pub(crate) struct World {
    folder: TempDir,
    /// Whether processes have one.
    journal: bool,
    clock: Clock,
    hands: ManualClock,
    desk: Arc<Desk>,
    /// Absent only between two of them.
    process: Option<Process>,
    model: Model,
    operations: Operations,
    /// How many there have been.
    operations_charged: u64,
    history: History,
    account: AccountId,
    keys: Vec<(KeyId, String)>,
    /// What the store calls each budget that there can be.
    budgets: HashMap<String, BudgetKey>,
    /// What was counted, and what of it is in the store for sure.
    counted: Usage,
    written: Usage,
    /// Checks that got no answer.
    errors: u64,
    /// Failures before this process.
    failures_before: u64,
}

impl World {
    pub(crate) async fn new(plans: Vec<Terms>, reset_day: i8, journal: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hands) = Clock::manual(Time::from_millis(START));
        let desk = Arc::<Desk>::default();
        let process = Process::start(folder.path(), &clock, &desk, journal).await.unwrap();
        let engine = &process.engine;
        for (number, terms) in plans.iter().enumerate() {
            engine.create_plan(ME, names::plan(number, terms)).await.unwrap();
        }
        let account =
            engine.create_account(ME, names::account(engine.new_account_id().unwrap(), reset_day)).await.unwrap().id;
        let mut keys = Vec::new();
        for live in KEYS {
            let made = engine.create_key(ME, names::new_key(&account, keys.len(), live)).await.unwrap();
            keys.push((made.key.id, made.secret.expose_secret().to_owned()));
        }
        let budgets = names::all_budgets(&account, &keys, reset_day);
        let model = Model::new(plans, KEYS.map(|live| (Vec::new(), live)).to_vec(), reset_day, START);
        let (counted, written) = Default::default();
        let history = History::default();
        Self {
            folder,
            journal,
            clock,
            hands,
            desk,
            process: Some(process),
            model,
            operations: Operations::default(),
            operations_charged: 0,
            history,
            account,
            keys,
            budgets,
            counted,
            written,
            errors: 0,
            failures_before: 0,
        }
    }

    /// Takes a step. Says what is wrong.
    pub(crate) async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Checks { key, units, times, spend } => {
                for _ in 0..*times {
                    self.check(*key, *units, *spend).await?;
                    if self.desk.book().dead {
                        break;
                    }
                }
            }
            Step::Clock(millis) => self.set_clock(self.model.now + millis),
            Step::Across { key, units, before, seconds } => {
                self.set_clock((self.model.now.div_euclid(MINUTE) + 1) * MINUTE - before);
                for _ in 0..*seconds {
                    self.check(*key, *units, true).await?;
                    self.set_clock(self.model.now + SECOND);
                    if self.desk.book().dead {
                        break;
                    }
                }
            }
            Step::Operation { id, key, units, spend } => self.operation(*id, *key, *units, *spend).await?,
            Step::Refund(id) => self.refund(*id).await?,
            Step::Adjust(amount) => self.adjust(*amount).await?,
            Step::Flush => {
                if self.engine().flush_usage().await.is_ok() {
                    self.audit_usage(true).await?;
                }
            }
            Step::Trouble(call, after, trouble) => _ = self.desk.book().planned.insert(*call, (*after, *trouble)),
            Step::Restart => return self.restart().await,
            Step::Crash => return self.crash().await,
            Step::Change(change) => self.change(change).await,
        }
        // Where it can't be told any more what a check was charged to, the process ends, and it can.
        if self.desk.book().dead || self.model.is_split_in_doubt() { self.crash().await } else { Ok(()) }
    }

    /// Ends in order; what is left must be what the model says, and usage what was answered.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.desk.book().planned.clear();
        self.restart().await?;
        for key in 0..KEYS.len() {
            self.check(key, 0, false).await?;
        }
        self.audit_usage(true).await?;
        self.process.take().unwrap().end().await;
        Ok(())
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.process.as_ref().unwrap().engine
    }

    async fn check(&mut self, key: usize, units: u64, spend: bool) -> Result<()> {
        let credential = &self.keys[key].1;
        let request = Request::default();
        let check = Check { credential, request, cost: units, consume: spend, within: None, attempt: None };
        let answer = self.engine().check(&check, self.clock.now()).await;
        self.note_torn();
        let Ok(answer) = answer else { return self.note_failure() };
        let charges = self.judge(key, units, spend, &answer, None)?;
        if spend {
            self.count(key, answer.verdict, if charges.is_some() && answer.credits.is_some() { units } else { 0 });
        }
        Ok(())
    }

    /// Holds an answer against the model and the history. Returns what was charged, where it was allowed.
    fn judge(
        &mut self,
        key: usize,
        units: u64,
        spend: bool,
        answer: &Answer,
        operation: Option<u64>,
    ) -> Result<Option<Vec<Charge>>> {
        let told = names::told(key, answer, self.model.reset_day, self.model.topped_up);
        let outcome = names::outcome(answer.verdict)?;
        let charges = self.model.judge(key, units, spend, (outcome, &told))?;
        for (key, _, units) in &charges {
            let told = told.iter().find(|told| budget_key(told.owner, &told.limit) == *key).unwrap();
            self.history.admit(told, *units, self.model.now, operation)?;
        }
        Ok((outcome == Outcome::Allowed).then_some(charges))
    }

    fn count(&mut self, key: usize, verdict: Verdict, credits: u64) {
        let counted = self.counted.entry((key, verdict)).or_default();
        *counted = (counted.0 + 1, counted.1 + credits);
    }

    /// There was no answer.
    fn note_failure(&mut self) -> Result<()> {
        self.errors += 1;
        let why = self.errors <= self.desk.book().failures;
        why.then_some(()).ok_or_else(|| "there was no answer, though the store did not fail".to_owned())
    }

    /// Tells the model what the store's failures have cost.
    fn note_torn(&mut self) {
        for ((budget, slot), units) in self.desk.book().torn.drain(..) {
            self.model.tear(self.budgets[&budget], slot, units);
        }
        if self.model.forward_only {
            self.set_clock(self.model.latest);
        }
    }

    fn set_clock(&mut self, now: i64) {
        let earliest = if self.model.forward_only { self.model.latest } else { START };
        let now = now.clamp(earliest, END);
        self.hands.set(Time::from_millis(now));
        self.model.set_clock(now);
    }

    async fn change(&mut self, change: &Change) {
        let engine = Arc::clone(self.engine());
        match change {
            Change::Rotate(key) => {
                let (id, secret) = &mut self.keys[*key];
                let made = engine.rotate_key(ME, *id, 0, None).await.unwrap();
                *secret = made.secret.expose_secret().to_owned();
            }
            Change::Move(to) => {
                let patch = AccountPatch { plan: Some(names::plan_id(*to)), ..AccountPatch::default() };
                engine.update_account(ME, &self.account, patch, None).await.unwrap();
                self.model.plan = *to;
            }
            Change::Account(terms) => {
                let patch = AccountPatch {
                    key_limits: Some(terms.key_limits.iter().map(names::limit_to).collect()),
                    account_limits: Some(terms.account_limits.iter().map(names::limit_to).collect()),
                    credits: Some(match terms.credits {
                        Credits::Unsaid => None,
                        Credits::Uncounted => Some(domain::CreditOverride::Uncounted),
                        Credits::Counted(units) => Some(domain::CreditOverride::Allowance(units)),
                    }),
                    ..AccountPatch::default()
                };
                engine.update_account(ME, &self.account, patch, None).await.unwrap();
                self.model.account = terms.clone();
            }
            Change::Key(key, limits) => {
                let limits_to = limits.iter().map(names::limit_to).collect();
                let patch = KeyPatch { limits: Some(limits_to), ..KeyPatch::default() };
                engine.update_key(ME, self.keys[*key].0, patch, None).await.unwrap();
                self.model.keys[*key].0.clone_from(limits);
            }
            Change::Plan(number, terms) => self.set_plan(*number, terms.clone()).await,
            Change::Capacity(number, capacity) => {
                let mut terms = self.model.plans[*number].clone();
                for limit in terms.key_limits.iter_mut().chain(&mut terms.account_limits) {
                    limit.capacity = *capacity;
                }
                terms.credits = terms.credits.counted().map_or(terms.credits, |_| Credits::Counted(*capacity));
                self.set_plan(*number, terms).await;
            }
        }
    }

    async fn set_plan(&mut self, number: usize, terms: Terms) {
        let domain::Plan { id, key_limits, account_limits, monthly_credits, .. } = names::plan(number, &terms);
        let patch = PlanPatch {
            key_limits: Some(key_limits),
            account_limits: Some(account_limits),
            monthly_credits: Some(monthly_credits),
            ..PlanPatch::default()
        };
        self.engine().update_plan(ME, &id, patch, None).await.unwrap();
        self.model.plans[number] = terms;
    }

    async fn restart(&mut self) -> Result<()> {
        let next = self.start_next(async |process| process.end().await).await?;
        let (orderly, failed) = next;
        self.audit_leases(orderly, failed)?;
        self.audit_usage(orderly || self.journal).await
    }

    async fn crash(&mut self) -> Result<()> {
        let ended = async |process: Process| {
            process.crash().await;
            false
        };
        let (_, failed) = self.start_next(ended).await?;
        self.audit_leases(false, failed)?;
        self.audit_usage(self.journal).await
    }

    /// Another process in the place of this one. Tells whether this one has ended in order, and whether its store ever failed.
    async fn start_next(&mut self, end: impl AsyncFnOnce(Process) -> bool) -> Result<(bool, bool)> {
        let orderly = end(self.process.take().unwrap()).await;
        let failed = self.desk.book().failures > self.failures_before;
        // What is planned goes wrong once, and there are two calls that it can be.
        for _ in 0..3 {
            self.process = Process::start(self.folder.path(), &self.clock, &self.desk, self.journal).await;
            if self.process.is_some() {
                self.failures_before = self.desk.book().failures;
                return Ok((orderly, failed));
            }
        }
        Err("no process can start".to_owned())
    }

    /// What processes before this one had leased and not reported is lost, and not a unit more; with a journal, nothing is.
    fn audit_leases(&mut self, orderly: bool, failed: bool) -> Result<()> {
        self.note_torn();
        let (granted, heard, closed, told) = {
            let mut book = self.desk.book();
            let closed = (std::mem::take(&mut book.closed), std::mem::take(&mut book.closed_told));
            (book.granted.clone(), book.heard.clone(), closed.0, closed.1)
        };
        let granted = granted.into_iter().map(|((id, slot), units)| ((self.budgets[&id], slot), units)).collect();
        let heard = heard.into_iter().map(|(id, slot)| (self.budgets[&id], slot)).collect();
        let (sunk, torn) = self.model.begin(&granted, &heard, self.journal)?;
        self.note_torn();
        if self.journal {
            for ((id, slot), units) in &mut self.desk.book().granted {
                *units = self.model.spent(self.budgets[id], *slot);
            }
        }
        let uncertain = self.engine().lease_stats().uncertain_units;
        if sunk > closed || uncertain != told {
            return Err(format!("{sunk} units are lost; {closed} were closed, {told} of them told, {uncertain} shown"));
        }
        if orderly && (sunk > torn || (!failed && closed > 0)) {
            return Err(format!("{sunk} units are lost and {closed} closed, though all went well; {torn} were torn"));
        }
        Ok(())
    }

    /// Usage in the store is what was counted; where a process is gone, at least what was written before.
    async fn audit_usage(&mut self, exact: bool) -> Result<()> {
        let of = Some(UsageOf::Account(self.account.clone()));
        let time = (Some(Time::from_millis(START)), Some(Time::from_millis(END + HOUR)));
        let report = self.engine().usage(ME, of, Granularity::Month, time, true).await.unwrap();
        let mut found = Usage::new();
        for bucket in report.buckets {
            let key = self.keys.iter().position(|(id, _)| Some(*id) == bucket.key_id).unwrap();
            for (verdict, requests) in bucket.sum.by_verdict {
                let credits = if verdict == Verdict::Allowed { bucket.sum.credits } else { 0 };
                let sum = found.entry((key, verdict)).or_default();
                *sum = (sum.0 + requests, sum.1 + credits);
            }
        }
        let within = |low: &Usage, high: &Usage| {
            low.iter().all(|(place, low)| {
                let high = high.get(place).copied().unwrap_or_default();
                low.0 <= high.0 && low.1 <= high.1
            })
        };
        let right =
            if exact { found == self.counted } else { within(&self.written, &found) && within(&found, &self.counted) };
        if !right {
            return Err(format!(
                "usage: {found:?} in the store; written {:?}, counted {:?}",
                self.written, self.counted
            ));
        }
        self.counted.clone_from(&found);
        self.written = found;
        Ok(())
    }
}

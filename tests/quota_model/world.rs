//! The engine and the model, side by side, and how a step is taken in both.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tollgate::ambient::{Clock, ManualClock};
use tollgate::decision::Request;
use tollgate::domain::{
    self, AccountId, BudgetId, Environment, KeyId, Metadata, Period, PlanId, Subject, Time, Verdict,
};
use tollgate::engine::{
    AccountPatch, Answer, Caller, Check, Engine, Granularity, KeyPatch, Level, LimitStatus, NewKey, PlanPatch,
};
use tollgate::store::UsageOf;

use crate::history::History;
use crate::model::{BudgetKey, CREDITS, Credits, Limit, Model, Outcome, Owner, Terms, Told, budget_key};
use crate::process::Process;
use crate::store::Desk;
use crate::window::Window;
use crate::{Change, DAY, HOUR, KEYS, MINUTE, NAMES, RESET_DAYS, Step, WINDOWS};

type Result<T, E = String> = std::result::Result<T, E>;
/// Requests and credits of each key, by how they ended.
type Usage = BTreeMap<(usize, Verdict), (u64, u64)>;

const ME: &Caller = &Caller::System;
/// 2026-01-30T23:58:20Z: a month, a day and an hour are about to end.
const START: i64 = 1_769_817_500_000;
const END: i64 = START + 5 * 366 * DAY;

pub(crate) struct World {
    folder: TempDir,
    clock: Clock,
    hands: ManualClock,
    desk: Arc<Desk>,
    /// Absent only between two of them.
    process: Option<Process>,
    model: Model,
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
    pub(crate) async fn new(plans: Vec<Terms>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hands) = Clock::manual(Time::from_millis(START));
        let desk = Arc::<Desk>::default();
        let process = Process::start(folder.path(), &clock, &desk).await.unwrap();
        let engine = &process.engine;
        for (number, terms) in plans.iter().enumerate() {
            engine.create_plan(ME, plan(number, terms)).await.unwrap();
        }
        let account = engine.create_account(ME, account(engine.new_account_id().unwrap())).await.unwrap().id;
        let mut keys = Vec::new();
        for live in KEYS {
            let made = engine.create_key(ME, new_key(&account, keys.len(), live)).await.unwrap();
            keys.push((made.key.id, made.secret.expose_secret().to_owned()));
        }
        let budgets = all_budgets(&account, &keys);
        let model = Model::new(plans, KEYS.map(|live| (Vec::new(), live)).to_vec(), START);
        let (counted, written) = Default::default();
        let history = History::default();
        Self {
            folder,
            clock,
            hands,
            desk,
            process: Some(process),
            model,
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
            Step::Clock(millis) => {
                let now = (self.model.now + millis).clamp(START, END);
                self.hands.set(Time::from_millis(now));
                self.model.set_clock(now);
            }
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
        if self.desk.book().dead { self.crash().await } else { Ok(()) }
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
        let failures = self.note_torn();
        let Ok(answer) = answer else {
            self.errors += 1;
            let why = self.errors <= failures;
            return why.then_some(()).ok_or_else(|| "a check got no answer, though the store did not fail".to_owned());
        };
        let told = self.told(key, &answer);
        let outcome = outcome(answer.verdict)?;
        self.model.judge(key, units, spend, (outcome, &told))?;
        if spend {
            let admitted = outcome == Outcome::Allowed;
            let credits = if admitted && answer.credits.is_some() { units } else { 0 };
            let counted = self.counted.entry((key, answer.verdict)).or_default();
            *counted = (counted.0 + 1, counted.1 + credits);
            for told in told.iter().filter(|_| admitted && units > 0) {
                self.history.admit(told, units, self.model.now)?;
            }
        }
        Ok(())
    }

    /// Tells the model what the store's failures have cost. Returns how many there were.
    fn note_torn(&mut self) -> u64 {
        let mut book = self.desk.book();
        for ((budget, slot), units) in book.torn.drain(..) {
            self.model.tear(self.budgets[&budget], slot, units);
        }
        book.failures
    }

    /// An answer, in the model's words and order.
    fn told(&self, key: usize, answer: &Answer) -> Vec<Told> {
        let pool = if KEYS[key] { Owner::Live } else { Owner::Test };
        let told = |status: &LimitStatus| Told {
            limit: limit_from(&status.limit),
            owner: if status.level == Level::Key { Owner::Key(key) } else { pool },
            remaining: status.remaining,
            reset: status.reset_time.millis(),
            exceeded: status.exceeded,
        };
        let mut all: Vec<Told> = answer.limits.iter().map(told).collect();
        all.sort_by_key(|told| (told.owner, told.limit.name));
        all.extend(answer.credits.map(|status| Told {
            limit: Limit { name: CREDITS, capacity: status.allowance, window: Window::MonthFrom(self.model.reset_day) },
            owner: pool,
            remaining: status.remaining,
            reset: status.reset_time.millis(),
            exceeded: status.exceeded,
        }));
        all
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
                let patch = AccountPatch { plan: Some(plan_id(*to)), ..AccountPatch::default() };
                engine.update_account(ME, &self.account, patch, None).await.unwrap();
                self.model.plan = *to;
            }
            Change::Account(terms, day) => {
                let patch = AccountPatch {
                    key_limits: Some(terms.key_limits.iter().map(limit_to).collect()),
                    account_limits: Some(terms.account_limits.iter().map(limit_to).collect()),
                    credits: Some(match terms.credits {
                        Credits::Unsaid => None,
                        Credits::Uncounted => Some(domain::CreditOverride::Uncounted),
                        Credits::Counted(units) => Some(domain::CreditOverride::Allowance(units)),
                    }),
                    credits_reset_day: Some(u8::try_from(*day).unwrap()),
                    ..AccountPatch::default()
                };
                engine.update_account(ME, &self.account, patch, None).await.unwrap();
                (self.model.account, self.model.reset_day) = (terms.clone(), *day);
            }
            Change::Key(key, limits) => {
                let limits_to = limits.iter().map(limit_to).collect();
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
        let domain::Plan { id, key_limits, account_limits, monthly_credits, .. } = plan(number, &terms);
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
        self.audit_usage(orderly).await
    }

    async fn crash(&mut self) -> Result<()> {
        let ended = async |process: Process| {
            process.crash().await;
            false
        };
        let (_, failed) = self.start_next(ended).await?;
        self.audit_leases(false, failed)?;
        self.audit_usage(false).await
    }

    /// Another process in the place of this one. Tells whether this one has ended in order, and whether its store ever failed.
    async fn start_next(&mut self, end: impl AsyncFnOnce(Process) -> bool) -> Result<(bool, bool)> {
        let orderly = end(self.process.take().unwrap()).await;
        let failed = self.desk.book().failures > self.failures_before;
        // What is planned goes wrong once.
        for _ in 0..2 {
            self.process = Process::start(self.folder.path(), &self.clock, &self.desk).await;
            if self.process.is_some() {
                self.failures_before = self.desk.book().failures;
                return Ok((orderly, failed));
            }
        }
        Err("no process can start".to_owned())
    }

    /// What processes before this one had leased and not reported is lost, and not a unit more.
    fn audit_leases(&mut self, orderly: bool, failed: bool) -> Result<()> {
        self.note_torn();
        let (granted, closed, told) = {
            let mut book = self.desk.book();
            (book.granted.clone(), std::mem::take(&mut book.closed), std::mem::take(&mut book.closed_told))
        };
        let granted = granted.into_iter().map(|((id, slot), units)| ((self.budgets[&id], slot), units)).collect();
        let (sunk, torn) = self.model.sink(&granted)?;
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

fn outcome(verdict: Verdict) -> Result<Outcome> {
    let all = [
        (Verdict::Allowed, Outcome::Allowed),
        (Verdict::RateLimited, Outcome::RateLimited),
        (Verdict::CreditsExhausted, Outcome::CreditsExhausted),
    ];
    let found = all.iter().find(|(one, _)| *one == verdict);
    found.map(|(_, outcome)| *outcome).ok_or_else(|| format!("the check ended in {verdict:?}"))
}

fn limit_to(limit: &Limit) -> domain::Limit {
    let (period, algorithm) = match limit.window {
        Window::Fixed(MINUTE) => (Period::Minute, domain::Algorithm::FixedWindow),
        Window::Fixed(HOUR) => (Period::Hour, domain::Algorithm::FixedWindow),
        Window::Fixed(DAY) => (Period::Day, domain::Algorithm::FixedWindow),
        Window::MonthFrom(1) => (Period::Month, domain::Algorithm::FixedWindow),
        Window::Sliding(MINUTE) => (Period::Minute, domain::Algorithm::SlidingWindow),
        Window::Sliding(millis) => {
            (Period::Seconds(u32::try_from(millis / 1_000).unwrap()), domain::Algorithm::SlidingWindow)
        }
        Window::Fixed(_) | Window::MonthFrom(_) => panic!("no limit has {:?}", limit.window),
    };
    domain::Limit { name: domain::LimitName::parse(limit.name).unwrap(), capacity: limit.capacity, period, algorithm }
}

fn limit_from(limit: &domain::Limit) -> Limit {
    let mut all = NAMES.iter().flat_map(|name| WINDOWS.map(|window| Limit { name, capacity: limit.capacity, window }));
    all.find(|one| limit_to(one) == *limit).unwrap()
}

/// By what the store calls them.
fn all_budgets(account: &AccountId, keys: &[(KeyId, String)]) -> HashMap<String, BudgetKey> {
    let of_keys = keys.iter().enumerate().map(|(place, (id, _))| (Owner::Key(place), Subject::Key(*id)));
    let pools = [(Owner::Live, Environment::Live), (Owner::Test, Environment::Test)];
    let of_account = pools.map(|(owner, environment)| (owner, Subject::Account(account.clone(), environment)));
    let mut all = HashMap::new();
    for (owner, subject) in of_keys.chain(of_account) {
        for (name, window) in NAMES.iter().flat_map(|name| WINDOWS.map(|window| (name, window))) {
            let limit = Limit { name, capacity: 0, window };
            let id = BudgetId::of_limit(&subject, &limit_to(&limit));
            all.insert(id.as_str().to_owned(), budget_key(owner, &limit));
        }
    }
    for day in RESET_DAYS {
        let limit = Limit { name: CREDITS, capacity: 0, window: Window::MonthFrom(day) };
        let id = BudgetId::of_credits(account, u8::try_from(day).unwrap());
        all.insert(id.as_str().to_owned(), budget_key(Owner::Live, &limit));
    }
    all
}

fn plan_id(number: usize) -> PlanId {
    PlanId::parse(&format!("plan{number}")).unwrap()
}

fn plan(number: usize, terms: &Terms) -> domain::Plan {
    domain::Plan {
        id: plan_id(number),
        display_name: String::new(),
        api_access: true,
        key_limits: terms.key_limits.iter().map(limit_to).collect(),
        account_limits: terms.account_limits.iter().map(limit_to).collect(),
        monthly_credits: terms.credits.counted(),
        allowed_scopes: Vec::new(),
        keys_max: None,
        create_time: Time::from_millis(START),
        update_time: Time::from_millis(START),
        revision: domain::Revision::ZERO,
    }
}

fn account(id: AccountId) -> domain::Account {
    domain::Account {
        id,
        name: "Test".to_owned(),
        plan: plan_id(0),
        status: domain::AccountStatus::Active,
        time_zone: domain::TimeZone::UTC,
        key_limits: Vec::new(),
        account_limits: Vec::new(),
        credits: None,
        credits_reset_day: 1,
        metadata: Metadata::new(),
        create_time: Time::from_millis(START),
        update_time: Time::from_millis(START),
        revision: domain::Revision::ZERO,
    }
}

fn new_key(account: &AccountId, number: usize, live: bool) -> NewKey {
    NewKey {
        account_id: Some(account.clone()),
        name: format!("k{number}"),
        description: String::new(),
        environment: if live { Environment::Live } else { Environment::Test },
        policy: domain::Policy::default(),
        expire_time: None,
        auto_renew_millis: None,
        metadata: Metadata::new(),
    }
}

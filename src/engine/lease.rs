//! Asking the store for leases, for many budgets in one transaction.
//!
//! A check whose budgets hold its cost asks nobody. One that has to wait puts its key, and its account, into a queue;
//! whoever finds no round under way goes with all that is queued to the store, and the others wait for that. So there is one
//! question for each budget at a time, and as many budgets in a transaction as came together while the last one ran.
//!
//! Where other processes share the store, it is spared what nobody waits for: leases that are to be filled up before they are
//! empty are gathered for a while, and units that others have been asked for are asked for again after a moment, not at once.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::ambient::Clock;
use crate::domain::{BudgetId, Environment, Subject, Time};
use crate::store::{Incarnation, LeaseBatch, Leased, StoreError};

use super::ask::{Cells, Urgency};
use super::budget::Budget;
use super::budget_list::{Asking, Round};
use super::index::{AccountEntry, KeyEntry};
use super::meter::{Asked, AskedFor, Wants};
use super::others::Said;
use super::{Engine, Error};

/// How long a check waits for the store.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(2);
/// How long those are gathered for whom nobody waits: leases are filled up when they hold half a second's demand.
const GATHERED: Duration = Duration::from_millis(250);
/// How long others are given to give units back before they are asked for again.
const RECALL_PACE: Duration = Duration::from_millis(10);
/// Asks of one transaction.
const ASKS_MAX: usize = 4_000;
/// Holders whose leases are looked through in one round beside those who wait, so that nobody waits long for that.
const TIDIED_MAX: usize = 1_000;

/// Whose budgets want something.
#[derive(Clone, Debug)]
pub(super) enum Holder {
    Key(Arc<KeyEntry>),
    Pool(Arc<AccountEntry>, Environment),
}

/// The queue, and the rounds.
#[derive(Debug)]
pub(super) struct LeaseDesk {
    /// Whether other processes share the store.
    shared: bool,
    incarnation: Mutex<Incarnation>,
    queue: Mutex<Queue>,
    /// Who has something leased, or to tell.
    open: Mutex<VecDeque<Holder>>,
    wake: tokio::sync::Notify,
    /// Held by whoever asks the store.
    asking: tokio::sync::Mutex<()>,
    begun: AtomicU64,
    done: watch::Sender<Done>,
    asked: AtomicU64,
    waits: AtomicU64,
    pub(super) uncertain: AtomicU64,
}

/// Who is in the next round.
#[derive(Debug, Default)]
struct Queue {
    holders: Vec<Holder>,
    /// What was called back from this process.
    recalled: BTreeSet<BudgetId>,
    /// How soon it is to be, if there is any reason for one.
    urgency: Option<Urgency>,
}

/// What leases have come to since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseStats {
    /// Times that the store was asked.
    pub rounds: u64,
    /// Times that a check waited for it.
    pub waits: u64,
    /// Units that processes before this one had leased, and of which nobody knows whether they spent them.
    pub uncertain_units: u64,
    /// Whether what is spent is kept for the case that this process is killed.
    pub is_journal_on: bool,
}

/// How far the rounds have come.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    round: u64,
    /// The last one that failed.
    failed: u64,
}

/// A place in the next round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl LeaseDesk {
    pub(super) fn new(incarnation: Incarnation, shared: bool) -> Self {
        Self {
            shared,
            incarnation: Mutex::new(incarnation),
            queue: Mutex::default(),
            open: Mutex::default(),
            wake: tokio::sync::Notify::new(),
            asking: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(Done::default()),
            asked: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            uncertain: AtomicU64::new(0),
        }
    }

    /// The clock that tells how old the store's word is, where other processes share it.
    pub(super) fn clock<'a>(&self, clock: &'a Clock) -> Option<&'a Clock> {
        self.shared.then_some(clock)
    }

    /// The name under which this process holds leases.
    pub(super) fn incarnation(&self) -> Incarnation {
        *lock(&self.incarnation)
    }

    /// Waits until nobody asks the store, and keeps everybody from it. The round that was to be next is none: who waits for it is
    /// told so by [`Self::go_on`].
    pub(super) async fn interrupt(&self) -> (tokio::sync::MutexGuard<'_, ()>, u64) {
        let asking = self.asking.lock().await;
        let (round, _) = self.begin();
        lock(&self.open).clear();
        (asking, round)
    }

    /// Goes on under another name after [`Self::interrupt`].
    pub(super) fn go_on(&self, round: u64, incarnation: Incarnation) {
        *lock(&self.incarnation) = incarnation;
        self.end(round, true);
    }

    /// Queues those who want something.
    pub(super) fn enqueue(&self, holders: impl IntoIterator<Item = Holder>, urgency: Urgency) -> Ticket {
        let urgency = if self.shared { urgency } else { Urgency::Now };
        let ticket = {
            let mut queue = lock(&self.queue);
            queue.holders.extend(holders);
            queue.urgency = queue.urgency.max(Some(urgency));
            Ticket(self.begun.load(Ordering::Relaxed) + 1)
        };
        self.wake.notify_one();
        ticket
    }

    /// Waits until the next round is due.
    async fn due(&self) {
        let urgency = || lock(&self.queue).urgency;
        loop {
            let before = urgency();
            let pause = match before {
                Some(Urgency::Now) => return,
                Some(Urgency::Soon) => RECALL_PACE,
                Some(Urgency::Later) => GATHERED,
                None => {
                    self.wake.notified().await;
                    continue;
                }
            };
            let more_urgent = async {
                while urgency() == before {
                    self.wake.notified().await;
                }
            };
            if tokio::time::timeout(pause, more_urgent).await.is_err() {
                return;
            }
        }
    }

    fn begin(&self) -> (u64, Queue) {
        let mut queue = lock(&self.queue);
        let round = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        (round, std::mem::take(&mut *queue))
    }

    fn end(&self, round: u64, failed: bool) {
        self.done.send_modify(|done| {
            done.round = round;
            if failed {
                done.failed = round;
            }
        });
    }

    /// Waits for the round of a ticket. Fails also where the one before it failed, which may have taken up what was wanted.
    pub(super) async fn served_afresh(&self, ticket: Ticket) -> Result<(), Error> {
        self.served(ticket).await?;
        let Done { failed, .. } = *self.done.borrow();
        if failed > 0 && failed + 1 >= ticket.0 { Err(away()) } else { Ok(()) }
    }

    /// Waits for the round of a ticket.
    pub(super) async fn served(&self, Ticket(round): Ticket) -> Result<(), Error> {
        let mut done = self.done.subscribe();
        match done.wait_for(|done| done.round >= round).await {
            Ok(done) if done.failed != round => Ok(()),
            Ok(_) | Err(_) => Err(away()),
        }
    }
}

fn away() -> Error {
    Error::Unavailable("the limits of the key cannot be read or written now; see the server's log".to_owned())
}

impl Engine {
    /// Queues a key and its account, as far as each wants something and is not queued yet.
    pub(super) fn enqueue_wants(&self, entry: &Arc<KeyEntry>, environment: Environment, wants: Wants) -> Ticket {
        let key = wants.key.map(|_| Holder::Key(Arc::clone(entry)));
        let pool = wants.account.map(|_| Holder::Pool(Arc::clone(&entry.account), environment));
        self.leases.enqueue(key.into_iter().chain(pool), wants.urgency().unwrap_or(Urgency::Later))
    }

    /// Gives back, as soon as may be, what is not spent of these budgets: other processes need it. The store is told in any case, also
    /// where there is nothing.
    pub fn recall(&self, budgets: &[BudgetId]) {
        if budgets.is_empty() {
            return;
        }
        lock(&self.leases.queue).recalled.extend(budgets.iter().cloned());
        self.leases.enqueue([], Urgency::Now);
    }

    /// Tries again after each answer of the store, as long as it takes, but not too long: others may spend what was waited for.
    pub(super) async fn after_leases<T>(&self, mut attempt: impl FnMut() -> Result<T, Ticket>) -> Result<T, Error> {
        let attempts = async {
            loop {
                match attempt() {
                    Ok(done) => return Ok(done),
                    Err(ticket) => {
                        self.leases.waits.fetch_add(1, Ordering::Relaxed);
                        self.leases.served(ticket).await?;
                    }
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, attempts).await.unwrap_or_else(|_| Err(away()))
    }

    /// Asks the store whenever somebody waits, and gives back once a second what is not in use, until it is told to stop. It
    /// must be let run to that end, or what the store has just granted is lost.
    pub async fn serve_leases(&self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let tidied_max = tokio::select! {
                biased;
                () = &mut stop => return,
                // Before those who wait, of whom there may always be some.
                _ = seconds.tick() => lock(&self.leases.open).len(),
                () = self.leases.due() => 0,
            };
            // Those that come to be open meanwhile have their turn in a second.
            for tidied in (0..=tidied_max).step_by(TIDIED_MAX) {
                tokio::select! {
                    biased;
                    () = &mut stop => return,
                    () = std::future::ready(()) => {}
                }
                // That the store fails is in the log; those who wait are told.
                _ = self.lease_round(Asking::Tidy, TIDIED_MAX.min(tidied_max - tidied)).await;
            }
        }
    }

    /// What leases have come to.
    #[must_use]
    pub fn lease_stats(&self) -> LeaseStats {
        LeaseStats {
            rounds: self.leases.asked.load(Ordering::Relaxed),
            waits: self.leases.waits.load(Ordering::Relaxed),
            uncertain_units: self.leases.uncertain.load(Ordering::Relaxed),
            is_journal_on: self.journal().is_on(),
        }
    }

    /// Gives back every lease: this process ends.
    pub async fn return_leases(&self) -> Result<(), StoreError> {
        let open = lock(&self.leases.open).len();
        self.lease_round(Asking::Last, open).await
    }

    /// Asks for all who are queued, and looks through the leases of so many others.
    async fn lease_round(&self, mode: Asking, others_max: usize) -> Result<(), StoreError> {
        let _asking = self.leases.asking.lock().await;
        let (round, Queue { holders: queued, recalled, urgency: _ }) = self.leases.begin();
        let recall = Recall::new(recalled);
        let mut recalled: Vec<Holder> = self.recalled_holders(&recall);
        let others: Vec<Holder> = {
            let mut open = lock(&self.leases.open);
            let others = others_max.min(open.len());
            open.drain(..others).collect()
        };
        others.iter().for_each(Holder::unlist);
        recalled.extend(queued);
        let mut holders: Vec<(Holder, Asking)> = others.into_iter().map(|holder| (holder, mode)).collect();
        holders.extend(recalled.into_iter().map(|holder| (holder, Asking::Wanted)));
        // Of one that is there for both reasons, the one that looks through its leases comes first, and does both.
        holders.sort_by_key(|(holder, _)| holder.place());
        holders.dedup_by_key(|(holder, _)| holder.place());
        let result = self.ask_for(&holders, recall).await;
        let open = holders.into_iter().map(|(holder, _)| holder).filter(Holder::list);
        lock(&self.leases.open).extend(open);
        self.leases.end(round, result.is_err());
        result
    }

    /// Those who may hold units of what was called back. A key is looked for among those who have something leased: it would take
    /// a map of all keys to find it by its id.
    fn recalled_holders(&self, recall: &Recall) -> Vec<Holder> {
        if recall.subjects.is_empty() {
            return Vec::new();
        }
        let pools = recall.subjects.iter().filter_map(|subject| match subject {
            Subject::Account(id, environment) => Some(Holder::Pool(self.index.account(id)?, *environment)),
            Subject::Key(_) => None,
        });
        let open = lock(&self.leases.open);
        let keys = open.iter().filter(|holder| matches!(holder, Holder::Key(_)) && recall.is_of(holder));
        pools.chain(keys.cloned()).collect()
    }

    /// Asks for each of these, and says of what was called back that nothing more is held.
    async fn ask_for(&self, holders: &[(Holder, Asking)], recall: Recall) -> Result<(), StoreError> {
        let (now, at) = (self.clock.now(), self.leases.clock(&self.clock).map(Clock::monotonic));
        let mut asked = Vec::new();
        for (holder, mode) in holders {
            if recall.is_of(holder) {
                holder.recall(&recall.budgets);
            }
            let round = Round { journal: self.journal(), now, at, mode: *mode };
            asked.extend(holder.asks(round).into_iter().map(|asked| (holder.clone(), asked)));
        }
        let mut released = recall.budgets.clone();
        for (_, Asked { ask, .. }) in &mut asked {
            ask.recalled = recall.budgets.contains(&ask.budget);
            released.remove(&ask.budget);
        }
        self.ask_store(asked, released.into_iter().collect(), now).await
    }

    async fn ask_store(
        &self,
        asked: Vec<(Holder, Asked)>,
        mut released: Vec<BudgetId>,
        now: Time,
    ) -> Result<(), StoreError> {
        let mut asked = asked.into_iter();
        loop {
            let part: Vec<(Holder, Asked)> = asked.by_ref().take(ASKS_MAX).collect();
            if part.is_empty() && released.is_empty() {
                return Ok(());
            }
            let mut asks = Vec::with_capacity(part.len());
            let mut waiting = Vec::with_capacity(part.len());
            for (holder, Asked { of, ask, cells, freed }) in part {
                waiting.push((holder, of, cells, freed, ask.needed));
                asks.push(ask);
            }
            let released = std::mem::take(&mut released);
            let batch = LeaseBatch { incarnation: self.incarnation(), now, asks, released };
            self.leases.asked.fetch_add(1, Ordering::Relaxed);
            let result = self.store.lease(&batch).await;
            Self::note_store(&self.writing_fails, result.as_ref().err(), "written");
            if result.is_err() {
                let cells = waiting.iter().flat_map(|(_, _, Cells { here, ahead }, ..)| [here, ahead]);
                cells.flatten().for_each(|cell| self.journal().retire_spend_cell(*cell));
            }
            for ((holder, of, cells, freed, needed), leased) in waiting.into_iter().zip(result?) {
                let unused = cells.ahead.filter(|_| leased.ahead == 0);
                for cell in freed.into_iter().chain(unused) {
                    self.journal().free_spend_cell(cell);
                }
                let said = Said::of(needed, leased.granted, leased.elsewhere).filter(|_| self.leases.shared);
                holder.grant(&of, leased, cells, said);
            }
        }
    }
}

/// What was called back from this process.
#[derive(Debug)]
struct Recall {
    budgets: BTreeSet<BudgetId>,
    /// Whose they are.
    subjects: HashSet<Subject>,
}

impl Recall {
    fn new(budgets: BTreeSet<BudgetId>) -> Self {
        let subjects = budgets.iter().filter_map(|budget| Some(budget.parse()?.0)).collect();
        Self { budgets, subjects }
    }

    fn is_of(&self, holder: &Holder) -> bool {
        !self.subjects.is_empty() && self.subjects.contains(&holder.subject())
    }
}

impl Holder {
    fn asks(&self, round: Round<'_>) -> Vec<Asked> {
        match self {
            Self::Key(entry) => entry.with_meter(|meter| meter.asks(entry.id, round)),
            Self::Pool(account, environment) => account.meter(*environment).asks(*environment, round),
        }
    }

    fn grant(&self, of: &AskedFor, leased: Leased, cells: Cells, said: Option<Said>) {
        match self {
            Self::Key(entry) => entry.with_meter(|meter| {
                meter.grant(of, leased, cells);
                said.zip(meter.budget_mut(of)).into_iter().for_each(|(said, budget)| budget.hear(said));
            }),
            Self::Pool(account, environment) => {
                let mut meter = account.meter(*environment);
                meter.grant(of, leased, cells);
                said.zip(meter.budget_mut(of)).into_iter().for_each(|(said, budget)| budget.hear(said));
            }
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Key(entry) => Subject::Key(entry.id),
            Self::Pool(account, environment) => Subject::Account(account.id(), *environment),
        }
    }

    /// Has those of its budgets give everything back that are among these.
    fn recall(&self, recalled: &BTreeSet<BudgetId>) {
        let recall = |(id, budget): (BudgetId, &mut Budget)| {
            if recalled.contains(&id) {
                budget.recall();
            }
        };
        match self {
            Self::Key(entry) => entry.with_meter(|meter| meter.named_mut(entry.id).into_iter().for_each(recall)),
            Self::Pool(account, environment) => {
                account.meter(*environment).named_mut(*environment).into_iter().for_each(recall);
            }
        }
    }

    /// Whether it is open and not yet listed as such; it then is.
    fn list(&self) -> bool {
        match self {
            Self::Key(entry) => {
                entry.with_meter(|meter| meter.budgets.is_open() && !std::mem::replace(&mut meter.listed, true))
            }
            Self::Pool(account, environment) => {
                let mut meter = account.meter(*environment);
                meter.is_open() && !std::mem::replace(&mut meter.listed, true)
            }
        }
    }

    /// Unlike that of any other.
    fn place(&self) -> (usize, bool) {
        match self {
            Self::Key(entry) => (Arc::as_ptr(entry).addr(), false),
            Self::Pool(account, environment) => (Arc::as_ptr(account).addr(), *environment == Environment::Test),
        }
    }

    fn unlist(&self) {
        match self {
            Self::Key(entry) => entry.with_meter(|meter| meter.listed = false),
            Self::Pool(account, environment) => account.meter(*environment).listed = false,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Asking the store for leases, for many budgets in one transaction.
//!
//! A check whose budgets hold its cost asks nobody. One that has to wait puts its key, and its account, into a queue;
//! whoever finds no round under way goes with all that is queued to the store, and the others wait for that. So there is one
//! question for each budget at a time, and as many budgets in a transaction as came together while the last one ran.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::{Environment, Time};
use crate::journal::Journal;
use crate::store::{Incarnation, LeaseBatch, Leased, StoreError};

use super::ask::Cells;
use super::budget_list::Asking;
use super::index::{AccountEntry, KeyEntry};
use super::meter::{Asked, AskedFor, Wants};
use super::{Engine, Error};

/// How long a check waits for the store.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(2);
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
    pub(super) incarnation: Incarnation,
    queue: Mutex<Vec<Holder>>,
    /// Who has something leased, or to tell.
    open: Mutex<VecDeque<Holder>>,
    wake: tokio::sync::Notify,
    begun: AtomicU64,
    done: watch::Sender<Done>,
    asked: AtomicU64,
    waits: AtomicU64,
    pub(super) uncertain: AtomicU64,
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
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            queue: Mutex::default(),
            open: Mutex::default(),
            wake: tokio::sync::Notify::new(),
            begun: AtomicU64::new(0),
            done: watch::Sender::new(Done::default()),
            asked: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            uncertain: AtomicU64::new(0),
        }
    }

    /// Queues those who want something.
    pub(super) fn enqueue(&self, holders: impl IntoIterator<Item = Holder>) -> Ticket {
        let ticket = {
            let mut queue = lock(&self.queue);
            queue.extend(holders);
            Ticket(self.begun.load(Ordering::Relaxed) + 1)
        };
        self.wake.notify_one();
        ticket
    }

    fn begin(&self) -> (u64, Vec<Holder>) {
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
        let key = wants.key.then(|| Holder::Key(Arc::clone(entry)));
        let pool = wants.account.then(|| Holder::Pool(Arc::clone(&entry.account), environment));
        self.leases.enqueue(key.into_iter().chain(pool))
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
                () = self.leases.wake.notified() => 0,
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
        let (round, queued) = self.leases.begin();
        let others: Vec<Holder> = {
            let mut open = lock(&self.leases.open);
            let others = others_max.min(open.len());
            open.drain(..others).collect()
        };
        others.iter().for_each(Holder::unlist);
        let now = self.clock.now();
        let mut holders: Vec<(Holder, Asking)> = others.into_iter().map(|holder| (holder, mode)).collect();
        holders.extend(queued.into_iter().map(|holder| (holder, Asking::Wanted)));
        // Of one that is there for both reasons, the one that looks through its leases comes first, and does both.
        holders.sort_by_key(|(holder, _)| holder.place());
        holders.dedup_by_key(|(holder, _)| holder.place());
        let mut asked = Vec::new();
        for (holder, mode) in &holders {
            asked.extend(holder.asks(self.journal(), now, *mode).into_iter().map(|asked| (holder.clone(), asked)));
        }
        let result = self.ask_store(asked, now).await;
        let open = holders.into_iter().map(|(holder, _)| holder).filter(Holder::list);
        lock(&self.leases.open).extend(open);
        self.leases.end(round, result.is_err());
        result
    }

    async fn ask_store(&self, asked: Vec<(Holder, Asked)>, now: Time) -> Result<(), StoreError> {
        let mut asked = asked.into_iter();
        loop {
            let part: Vec<(Holder, Asked)> = asked.by_ref().take(ASKS_MAX).collect();
            if part.is_empty() {
                return Ok(());
            }
            let mut asks = Vec::with_capacity(part.len());
            let mut waiting = Vec::with_capacity(part.len());
            for (holder, Asked { of, ask, cells, freed }) in part {
                asks.push(ask);
                waiting.push((holder, of, cells, freed));
            }
            let batch = LeaseBatch { incarnation: self.leases.incarnation, now, asks, released: Vec::new() };
            self.leases.asked.fetch_add(1, Ordering::Relaxed);
            let result = self.store.lease(&batch).await;
            Self::note_store(&self.writing_fails, result.as_ref().err(), "written");
            if result.is_err() {
                let cells = waiting.iter().flat_map(|(_, _, Cells { here, ahead }, _)| [here, ahead]);
                cells.flatten().for_each(|cell| self.journal().retire_spend_cell(*cell));
            }
            for ((holder, of, cells, freed), leased) in waiting.into_iter().zip(result?) {
                let unused = cells.ahead.filter(|_| leased.ahead == 0);
                for cell in freed.into_iter().chain(unused) {
                    self.journal().free_spend_cell(cell);
                }
                holder.grant(&of, leased, cells);
            }
        }
    }
}

impl Holder {
    fn asks(&self, journal: &Journal, now: Time, mode: Asking) -> Vec<Asked> {
        match self {
            Self::Key(entry) => entry.with_meter(|meter| meter.asks(entry.id, journal, now, mode)),
            Self::Pool(account, environment) => account.meter(*environment).asks(*environment, journal, now, mode),
        }
    }

    fn grant(&self, of: &AskedFor, leased: Leased, cells: Cells) {
        match self {
            Self::Key(entry) => entry.with_meter(|meter| meter.grant(of, leased, cells)),
            Self::Pool(account, environment) => account.meter(*environment).grant(of, leased, cells),
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

//! Writing operations to the store: of one name one at a time, of all together in as few transactions as may be.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use crate::domain::{AccountId, OperationId};
use crate::store::{Incarnation, NamedOperation, OperationBatch, RecordError, Recorded, StoreError};

use super::index::AccountEntry;
use super::{Engine, Error};

/// Operations of one transaction.
const BATCH_MAX: usize = 1_000;
/// Operations under way, in all and of one account: each may wait for some seconds, also after its caller has gone.
const UNDER_WAY_MAX: usize = 16_384;
const UNDER_WAY_PER_ACCOUNT_MAX: usize = 2_048;
/// Two of different names that meet in one wait for each other, which is slower and not wrong.
const TURNS: usize = 1_024;

type Answer = Result<Recorded, RecordError>;

/// An operation on its way to the store.
#[derive(Debug)]
struct Queued {
    /// Who leased what it is charged.
    incarnation: Incarnation,
    named: NamedOperation,
    sender: oneshot::Sender<Answer>,
}

/// Who has their turn, and the queue for the store.
#[derive(Debug)]
pub(super) struct OperationDesk {
    turns: Box<[tokio::sync::Mutex<()>; TURNS]>,
    hasher: RandomState,
    queue: Mutex<VecDeque<Queued>>,
    /// Held by whoever writes for all that are queued.
    writing: tokio::sync::Mutex<()>,
    under_way: Semaphore,
}

/// A place among the operations under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    account: Arc<AccountEntry>,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.account.operations.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OperationDesk {
    pub(super) fn new() -> Self {
        Self {
            turns: Box::new(std::array::from_fn(|_| tokio::sync::Mutex::new(()))),
            hasher: RandomState::default(),
            queue: Mutex::default(),
            writing: tokio::sync::Mutex::new(()),
            under_way: Semaphore::new(UNDER_WAY_MAX),
        }
    }

    /// A place for another operation of this account.
    pub(super) fn place(&self, account: &Arc<AccountEntry>) -> Result<Place<'_>, Error> {
        let full = || Error::Unavailable("too many operations are under way; try again after a moment".to_owned());
        let permit = self.under_way.try_acquire().map_err(|_| full())?;
        let before = account.operations.fetch_add(1, Ordering::Relaxed);
        let place = Place { account: Arc::clone(account), _permit: permit };
        if before < UNDER_WAY_PER_ACCOUNT_MAX { Ok(place) } else { Err(full()) }
    }

    /// Waits until no other operation of this name is under way.
    pub(super) async fn turn(&self, account_id: &AccountId, id: &OperationId) -> tokio::sync::MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one((account_id, id.digest()));
        let [first, ..] = &*self.turns;
        let place = usize::try_from(hash).unwrap_or(0) % TURNS;
        self.turns.get(place).unwrap_or(first).lock().await
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Has the store charge an operation to leases that were granted under this name, together with all that others bring meanwhile.
    pub(super) async fn record_operation(&self, named: NamedOperation, incarnation: Incarnation) -> Answer {
        let (sender, mut answer) = oneshot::channel();
        self.operations.queue().push_back(Queued { incarnation, named, sender });
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or_else(|_| Err(given_up())),
                _writing = self.operations.writing.lock() => self.record_queued().await,
            }
        }
    }

    async fn record_queued(&self) {
        let queued: Vec<_> = {
            let mut queue = self.operations.queue();
            let count = queue.len().min(BATCH_MAX);
            queue.drain(..count).collect()
        };
        if queued.is_empty() {
            return;
        }
        let (now, incarnation) = (self.clock.now(), self.incarnation());
        let (mut operations, mut senders) = (Vec::with_capacity(queued.len()), Vec::with_capacity(queued.len()));
        for Queued { incarnation: leased_by, mut named, sender } in queued {
            if leased_by == incarnation {
                named.operation.time = now;
                operations.push(named);
                senders.push(sender);
            } else {
                _ = sender.send(Err(RecordError::NotWritten(closed())));
            }
        }
        if operations.is_empty() {
            return;
        }
        let batch = OperationBatch { incarnation, now, operations };
        let result = self.store.record_operations(&batch).await;
        let failure = result.as_ref().err().map(|(RecordError::NotWritten(error) | RecordError::Unknown(error))| error);
        Self::note_store(&self.writing_fails, failure, "written");
        // Whoever does not wait any more can't be told.
        match result {
            Ok(recorded) => {
                for (sender, recorded) in senders.into_iter().zip(recorded) {
                    _ = sender.send(Ok(recorded));
                }
            }
            Err(error) => {
                for sender in senders {
                    _ = sender.send(Err(error.clone()));
                }
            }
        }
    }
}

/// What it was to be charged to was forgotten since.
fn closed() -> StoreError {
    StoreError::Unavailable("the leases of this process were closed; repeat the call".to_owned())
}

/// Whoever wrote for all was stopped in the middle of it.
fn given_up() -> RecordError {
    RecordError::Unknown(StoreError::Unavailable("the write was broken off".to_owned()))
}

//! Operations where the store fails in the middle of them, and where two processes share it.
#![cfg(test)]

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tollgate::ambient::Clock;
use tollgate::decision::Request;
use tollgate::domain::{
    Account, AccountId, Algorithm, KeyId, Limit, LimitName, OperationId, Period, Plan, PlanId, Revision, Time,
    UsageRow, Verdict,
};
use tollgate::engine::{Answer, Caller, Check, Engine, Error, KeyPatch, Options};
use tollgate::store::sqlite::{OpenMode, SqliteStore};
use tollgate::store::*;

const CAPACITY: u64 = 1_000;
const START: Time = Time::from_millis(1_800_000_000_000);

/// What happens to the next write of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It fails before anything is written.
    Refused,
    /// So it does, but only after leases were looked through.
    RefusedLate,
    /// Nobody learns that it was written.
    AnswerLost,
    /// Nobody learns that it was not.
    Lost,
}

/// A store that fails when it is told to.
#[derive(Debug)]
struct FaultyStore {
    inner: SqliteStore,
    next: Mutex<Option<Fault>>,
}

fn away() -> StoreError {
    StoreError::Unavailable("a test".to_owned())
}

/// The store, with these calls passed on.
macro_rules! passing_on {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for FaultyStore {
            $(
                async fn $name(&self, $($argument: $type),*) -> $answer {
                    self.inner.$name($($argument),*).await
                }
            )*

            async fn record_operations(&self, batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError> {
                let fault = self.next.lock().unwrap().take();
                match fault {
                    None => self.inner.record_operations(batch).await,
                    Some(Fault::Refused) => Err(RecordError::NotWritten(away())),
                    Some(Fault::RefusedLate) => {
                        tokio::time::sleep(Duration::from_millis(2_500)).await;
                        Err(RecordError::NotWritten(away()))
                    }
                    Some(Fault::Lost) => Err(RecordError::Unknown(away())),
                    Some(Fault::AnswerLost) => {
                        self.inner.record_operations(batch).await.unwrap();
                        Err(RecordError::Unknown(away()))
                    }
                }
            }
        }
    };
}

passing_on! {
    fn commit(commit: Commit) -> Result<Revision, CommitError>;
    fn load(sink: mpsc::Sender<Loaded>) -> Result<LogPosition, StoreError>;
    fn key(id: KeyId) -> Result<Option<StoredKey>, StoreError>;
    fn keys(query: &KeyQuery) -> Result<Vec<StoredKey>, StoreError>;
    fn keys_to_renew(now: Time, lead_millis_max: i64, rows_max: u32) -> Result<Vec<StoredKey>, StoreError>;
    fn account(id: &AccountId) -> Result<Option<Account>, StoreError>;
    fn accounts(after: Option<&AccountId>, rows_max: u32) -> Result<Vec<Account>, StoreError>;
    fn plan(id: &PlanId) -> Result<Option<Plan>, StoreError>;
    fn plans(after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, StoreError>;
    fn record_usage(flush: &UsageFlush) -> Result<(), StoreError>;
    fn usage(query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError>;
    fn lease(batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError>;
    fn close_leases(closing: &Closing<'_>) -> Result<Closed, StoreError>;
    fn uncertain(
        account: &AccountId, key: Option<KeyId>, hours: Range<i64>, rows_max: u32
    ) -> Result<Vec<UncertainRow>, StoreError>;
    fn operation(account_id: &AccountId, id: &OperationId, now: Time) -> Result<Option<Operation>, StoreError>;
    fn refund_operation(account_id: &AccountId, id: &OperationId, now: Time) -> Result<Refund, StoreError>;
    fn pepper_ids() -> Result<Vec<String>, StoreError>;
    fn revision() -> Result<Revision, StoreError>;
    fn verify() -> Result<Vec<String>, StoreError>;
    fn close() -> ();
}

/// An engine on a store that others may share.
struct Process {
    engine: Arc<Engine>,
    stop: CancellationToken,
    leasing: JoinHandle<()>,
}

impl Process {
    async fn start(store: &Arc<FaultyStore>) -> Self {
        let store: SharedStore = Arc::<FaultyStore>::clone(store);
        let engine = Arc::new(Engine::new(store, Clock::manual(START).0, Options::default()));
        engine.load().await.unwrap();
        let stop = CancellationToken::new();
        let leasing = tokio::spawn({
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        Self { engine, stop, leasing }
    }

    async fn operate(&self, secret: &str, id: &str, cost: u64) -> Result<Answer, Error> {
        let request = Request::default();
        let check = Check { credential: secret, request, cost, consume: true, within: None, attempt: None };
        self.engine.check_operation(&check, &OperationId::parse(id).unwrap(), START).await
    }

    /// What is left of each limit.
    async fn left(&self, secret: &str) -> Vec<u64> {
        let request = Request::default();
        let check = Check { credential: secret, request, cost: 0, consume: false, within: None, attempt: None };
        let answer = self.engine.check(&check, START).await.unwrap();
        answer.limits.iter().map(|limit| limit.remaining).collect()
    }

    /// Ends in order.
    async fn end(self) {
        self.stop.cancel();
        self.leasing.await.unwrap();
        self.engine.return_leases().await.unwrap();
    }
}

/// A store with one key, which has a limit of each kind. Its secret.
async fn store() -> (TempDir, Arc<FaultyStore>, String) {
    let folder = tempfile::tempdir().unwrap();
    let inner = SqliteStore::open(&folder.path().join("db"), OpenMode::Create).await.unwrap();
    let store = Arc::new(FaultyStore { inner, next: Mutex::new(None) });
    let process = Process::start(&store).await;
    let made = process.engine.bootstrap(false).await.unwrap();
    let limit = |name: &str, algorithm| Limit {
        name: LimitName::parse(name).unwrap(),
        capacity: CAPACITY,
        period: Period::Hour,
        algorithm,
    };
    let limits = vec![limit("fixed", Algorithm::FixedWindow), limit("sliding", Algorithm::SlidingWindow)];
    let patch = KeyPatch { limits: Some(limits), ..KeyPatch::default() };
    process.engine.update_key(&Caller::System, made.key.id, patch, None).await.unwrap();
    process.end().await;
    (folder, store, made.secret.expose_secret().to_owned())
}

/// What processes that are gone had leased, which is given back.
async fn outstanding(store: &FaultyStore) -> Vec<u64> {
    let closed = store
        .close_leases(&Closing::at_start(Incarnation([9; 16]), START, Uncertain::Refund, None))
        .await
        .unwrap()
        .uncertain;
    closed.iter().map(|lease| lease.units).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_certainly_not_written_is_put_back() {
    let (_folder, store, secret) = store().await;
    let process = Process::start(&store).await;
    *store.next.lock().unwrap() = Some(Fault::Refused);
    let failed = process.operate(&secret, "op", 600).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    assert_eq!(process.left(&secret).await, [CAPACITY; 2]);
    assert_eq!(process.operate(&secret, "op", 600).await.unwrap().verdict, Verdict::Allowed);
    *store.next.lock().unwrap() = Some(Fault::Refused);
    assert!(process.operate(&secret, "op-2", 100).await.is_err());
    process.end().await;
    assert_eq!(outstanding(&store).await, [0_u64; 0]);
    assert_eq!(Process::start(&store).await.left(&secret).await, [400; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_back_is_found_when_the_process_ends() {
    let (_folder, store, secret) = store().await;
    let process = Process::start(&store).await;
    // All that there is, so that no lease is open meanwhile.
    *store.next.lock().unwrap() = Some(Fault::RefusedLate);
    assert!(process.operate(&secret, "op", CAPACITY).await.is_err());
    // Leases are looked through once a second.
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    process.end().await;
    assert_eq!(outstanding(&store).await, [0_u64; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_written_is_not_put_back_and_charged_once() {
    let (_folder, store, secret) = store().await;
    let process = Process::start(&store).await;
    *store.next.lock().unwrap() = Some(Fault::AnswerLost);
    let failed = process.operate(&secret, "op", 100).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    assert_eq!(process.left(&secret).await, [900; 2]);
    assert_eq!(process.operate(&secret, "op", 100).await.unwrap().verdict, Verdict::Allowed);
    assert_eq!(process.left(&secret).await, [900; 2]);
    // This one was not written, which nobody knows: what it took is as good as spent.
    *store.next.lock().unwrap() = Some(Fault::Lost);
    assert!(process.operate(&secret, "op-2", 200).await.is_err());
    assert_eq!(process.left(&secret).await, [700; 2]);
    assert_eq!(process.operate(&secret, "op-2", 200).await.unwrap().verdict, Verdict::Allowed);
    assert_eq!(process.left(&secret).await, [500; 2]);
    process.end().await;
    // The store's books tell, once the process is gone.
    assert_eq!(outstanding(&store).await, [200, 200]);
    assert_eq!(Process::start(&store).await.left(&secret).await, [700; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_one_charges_an_operation() {
    const OPERATIONS: u64 = 60;
    let (_folder, store, secret) = store().await;
    let processes = [Arc::new(Process::start(&store).await), Arc::new(Process::start(&store).await)];
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..OPERATIONS * 4 {
        let process = Arc::clone(&processes[usize::from(i % 2 == 0)]);
        let (secret, id) = (secret.clone(), format!("op-{}", i / 4));
        calls.spawn(async move { process.operate(&secret, &id, 3).await.unwrap().verdict });
    }
    assert!(calls.join_all().await.iter().all(|verdict| *verdict == Verdict::Allowed));
    for process in processes {
        Arc::into_inner(process).unwrap().end().await;
    }
    assert_eq!(outstanding(&store).await, [0_u64; 0]);
    assert_eq!(Process::start(&store).await.left(&secret).await, [CAPACITY - 3 * OPERATIONS; 2]);
}

//! What the store is asked: nothing for what is refused, and one question at a time for each budget, however many wait.
#![cfg(test)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tollgate::ambient::{Clock, ManualClock};
use tollgate::decision::Request;
use tollgate::domain::{
    Account, AccountId, Algorithm, CreditOverride, KeyId, Limit, LimitName, OperationId, Period, Plan, PlanId,
    Revision, Time, UsageRow, Verdict,
};
use tollgate::engine::{AccountPatch, Answer, Caller, Check, Engine, KeyPatch, Options};
use tollgate::store::sqlite::{OpenMode, SqliteStore};
use tollgate::store::*;

/// The beginning of a minute.
const START: Time = Time::from_millis(1_800_000_000_000);
/// How long the store takes for a question.
const SLOW: Duration = Duration::from_millis(20);
/// More than the second after which leases are looked through.
const A_ROUND: Duration = Duration::from_millis(1_300);

/// A store that notes what it is asked, and takes its time for leases.
#[derive(Debug)]
struct NotedStore {
    inner: SqliteStore,
    /// Calls of any kind.
    calls: AtomicUsize,
    /// Budgets asked for in each question.
    questions: Mutex<Vec<Vec<String>>>,
    under_way: Mutex<BTreeSet<String>>,
    /// Budgets of which a second question came while one was under way.
    doubled: Mutex<Vec<String>>,
}

/// The store, with these calls counted and passed on.
macro_rules! passing_on {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for NotedStore {
            $(
                async fn $name(&self, $($argument: $type),*) -> $answer {
                    self.calls.fetch_add(1, Ordering::SeqCst);
                    self.inner.$name($($argument),*).await
                }
            )*

            async fn lease(&self, batch: &LeaseBatch) -> Result<Vec<Leased>, StoreError> {
                self.calls.fetch_add(1, Ordering::SeqCst);
                let budgets: Vec<String> = batch.asks.iter().map(|ask| ask.budget.as_str().to_owned()).collect();
                for budget in &budgets {
                    if !self.under_way.lock().unwrap().insert(budget.clone()) {
                        self.doubled.lock().unwrap().push(budget.clone());
                    }
                }
                self.questions.lock().unwrap().push(budgets.clone());
                tokio::time::sleep(SLOW).await;
                let leased = self.inner.lease(batch).await;
                self.under_way.lock().unwrap().retain(|budget| !budgets.contains(budget));
                leased
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
    fn record_operations(batch: &OperationBatch) -> Result<Vec<Recorded>, RecordError>;
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

impl NotedStore {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn questions(&self) -> usize {
        self.questions.lock().unwrap().len()
    }
}

/// An engine with one key, and the store that it asks.
struct Process {
    _folder: TempDir,
    store: Arc<NotedStore>,
    engine: Arc<Engine>,
    clock: Clock,
    hands: ManualClock,
    secret: String,
    stop: CancellationToken,
    leasing: JoinHandle<()>,
}

fn limit(name: &str, capacity: u64, algorithm: Algorithm) -> Limit {
    Limit { name: LimitName::parse(name).unwrap(), capacity, period: Period::Minute, algorithm }
}

impl Process {
    /// With two limits of the key's own, one that is the account's, and its credits.
    async fn start(own: [u64; 2], pool: u64, credits: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(NotedStore {
            inner: SqliteStore::open(&folder.path().join("db"), OpenMode::Create).await.unwrap(),
            calls: AtomicUsize::new(0),
            questions: Mutex::default(),
            under_way: Mutex::default(),
            doubled: Mutex::default(),
        });
        let (clock, hands) = Clock::manual(START);
        let shared: SharedStore = Arc::<NotedStore>::clone(&store);
        let engine = Arc::new(Engine::new(shared, clock.clone(), Options::default()));
        engine.load().await.unwrap();
        let made = engine.bootstrap(false).await.unwrap();
        let [fixed, sliding] = own;
        let limits =
            vec![limit("fixed", fixed, Algorithm::FixedWindow), limit("sliding", sliding, Algorithm::SlidingWindow)];
        let patch = KeyPatch { limits: Some(limits), ..KeyPatch::default() };
        engine.update_key(&Caller::System, made.key.id, patch, None).await.unwrap();
        let patch = AccountPatch {
            account_limits: Some(vec![limit("pool", pool, Algorithm::FixedWindow)]),
            credits: Some(Some(CreditOverride::Allowance(credits))),
            ..AccountPatch::default()
        };
        engine.update_account(&Caller::System, &made.key.account_id, patch, None).await.unwrap();
        let stop = CancellationToken::new();
        let leasing = tokio::spawn({
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        let secret = made.secret.expose_secret().to_owned();
        Self { _folder: folder, store, engine, clock, hands, secret, stop, leasing }
    }

    async fn check(&self, cost: u64, consume: bool) -> Answer {
        let request = Request::default();
        let check = Check { credential: &self.secret, request, cost, consume, within: None, attempt: None };
        self.engine.check(&check, self.clock.now()).await.unwrap()
    }

    async fn end(self) {
        assert_eq!(*self.store.doubled.lock().unwrap(), Vec::<String>::new());
        self.stop.cancel();
        self.leasing.await.unwrap();
        self.engine.return_leases().await.unwrap();
        self.store.close().await;
    }
}

/// Whichever budget it is that lacks the units.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_refused_checks_asks_the_store_nothing() {
    const PLENTY: u64 = 1_000_000;
    let rows = [
        ([10, PLENTY], PLENTY, PLENTY, Verdict::RateLimited),
        ([PLENTY, 10], PLENTY, PLENTY, Verdict::RateLimited),
        ([PLENTY, PLENTY], 10, PLENTY, Verdict::RateLimited),
        ([PLENTY, PLENTY], PLENTY, 10, Verdict::CreditsExhausted),
    ];
    for (own, pool, credits, refusal) in rows {
        let process = Process::start(own, pool, credits).await;
        for _ in 0..10 {
            assert_eq!(process.check(1, true).await.verdict, Verdict::Allowed);
        }
        // Nothing was used lately, and what was leased has gone back.
        process.hands.set(START.plus_millis(5_000));
        assert_eq!(process.check(1, true).await.verdict, refusal);
        tokio::time::sleep(2 * A_ROUND).await;
        let before = process.store.calls();
        for _ in 0..10_000 {
            assert_eq!(process.check(1, true).await.verdict, refusal);
            assert_eq!(process.check(1, false).await.verdict, refusal);
        }
        tokio::time::sleep(A_ROUND).await;
        assert_eq!(process.store.calls(), before, "{own:?} {pool} {credits}");
        // It was remembered for this slot alone.
        process.hands.set(START.plus_millis(61_000));
        let verdict = process.check(1, true).await.verdict;
        let expected = if refusal == Verdict::RateLimited { Verdict::Allowed } else { refusal };
        assert_eq!(verdict, expected);
        assert_eq!(process.store.calls() > before, refusal == Verdict::RateLimited);
        process.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_wait_one_question_is_under_way() {
    let process = Arc::new(Process::start([300, 100_000], 100_000, 100_000).await);
    let before = process.store.questions();
    let mut checks = JoinSet::new();
    for _ in 0..500 {
        let process = Arc::clone(&process);
        checks.spawn(async move { process.check(1, true).await.verdict });
    }
    let admitted = checks.join_all().await.into_iter().filter(|verdict| *verdict == Verdict::Allowed).count();
    assert_eq!(admitted, 300);
    let asked = process.store.questions.lock().unwrap().split_off(before);
    assert!(asked.len() <= 6, "{} questions for 500 checks at once", asked.len());
    // All that the first check needs is asked for together.
    assert_eq!(asked[0].len(), 4, "{asked:?}");
    Arc::into_inner(process).unwrap().end().await;
}

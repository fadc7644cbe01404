//! Several engines on one store, as several processes would be: what they admit together, how often they ask, and what becomes of
//! units that one holds and another needs. In memory, and where a machine has PostgreSQL on that.
#![cfg(test)]

mod moves;
mod store;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tollgate::ambient::{Clock, ManualClock};
use tollgate::decision::Request;
use tollgate::domain::*;
use tollgate::engine::{Caller, Check, CreditAdjustment, Engine, KeyPatch, NewKey, Options, ReplicaOptions};
use tollgate::store::postgres::{PostgresOptions, PostgresStore};
use tollgate::store::sqlite::{OpenMode, SqliteStore};
use tollgate::store::{Incarnation, SharedStore};

use store::SharedBooks;
use support::postgres::{Database, Postgres};

/// Noon of a day, so that no window ends.
const START: i64 = 1_800_014_400_000 - 1_800_014_400_000 % 86_400_000 + 43_200_000;
/// For how long a denial is believed, and units that others hold are sought.
const SECOND: Duration = Duration::from_secs(1);
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the processes share.
enum Shared {
    Memory(Arc<SharedBooks>),
    /// Each of them has connections of its own.
    Postgres(Box<(Postgres, Database)>),
}

/// On what a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Memory,
    Postgres,
}

/// A store that is shared, a key on it, and its clock.
struct World {
    shared: Shared,
    clock: Clock,
    hands: ManualClock,
    key: KeyId,
    secret: String,
    /// Of other keys with the same limits.
    others: Vec<String>,
    _folder: tempfile::TempDir,
}

/// One of the processes.
struct Process {
    engine: Arc<Engine>,
    stop: CancellationToken,
    following: Option<(CancellationToken, JoinHandle<()>)>,
    secret: String,
}

fn limit(capacity: u64, period: Period) -> Limit {
    let name = LimitName::parse("l").unwrap();
    Limit { name, capacity, period, algorithm: Algorithm::FixedWindow }
}

impl World {
    /// In memory, with a key that has these limits.
    async fn new(limits: Vec<Limit>) -> Self {
        Self::with(limits, None, 0).await
    }

    /// The same with so many other keys; and where `credits` are given, an allowance and what is topped up, the key is of an account
    /// with so many.
    async fn with(limits: Vec<Limit>, credits: Option<(u64, i64)>, others: usize) -> Self {
        Self::on(On::Memory, limits, credits, others).await.unwrap()
    }

    /// The same on one or the other. Absent where the machine lacks that.
    async fn on(on: On, limits: Vec<Limit>, credits: Option<(u64, i64)>, others: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hands) = Clock::manual(Time::from_millis(START));
        let (shared, inner): (Shared, SharedStore) = match on {
            On::Memory => {
                let inner = SqliteStore::open(&folder.path().join("db"), OpenMode::Create).await.unwrap();
                let inner: SharedStore = Arc::new(inner);
                (Shared::Memory(SharedBooks::new(Arc::clone(&inner), clock.clone())), inner)
            }
            On::Postgres => {
                let server = Postgres::start()?;
                let database = server.new_database();
                PostgresStore::migrate(&options(&database)).await.unwrap();
                let inner: SharedStore = Arc::new(connect(&database).await);
                (Shared::Postgres(Box::new((server, database))), inner)
            }
        };
        let alone = Engine::new(Arc::clone(&inner), clock.clone(), Options::default());
        alone.load().await.unwrap();
        let operators_key = async || {
            let made = alone.bootstrap(true).await.unwrap();
            // Its name is the second in which it was made.
            hands.advance(SECOND);
            let patch = KeyPatch { limits: Some(limits.clone()), ..KeyPatch::default() };
            alone.update_key(&Caller::System, made.key.id, patch, None).await.unwrap();
            (made.key.id, made.secret.expose_secret().to_owned())
        };
        let (key, secret) = match credits {
            None => operators_key().await,
            Some((allowance, topped_up)) => of_customer(&alone, limits.clone(), allowance, topped_up).await,
        };
        let mut secrets = Vec::new();
        for _ in 0..others {
            secrets.push(operators_key().await.1);
        }
        Some(Self { shared, clock, hands, key, secret, others: secrets, _folder: folder })
    }

    /// What the store in memory is.
    fn store(&self) -> &Arc<SharedBooks> {
        match &self.shared {
            Shared::Memory(store) => store,
            Shared::Postgres(_) => panic!("it is not in memory"),
        }
    }

    /// Units that a process holds and has not told to be spent.
    fn held(&self, process: &Process) -> u64 {
        match &self.shared {
            Shared::Memory(store) => store.books().held(process.incarnation()),
            Shared::Postgres(postgres) => {
                let (server, database) = &**postgres;
                let incarnation = u128::from_be_bytes(process.incarnation().0);
                let of = format!("incarnation = decode('{incarnation:032x}', 'hex')");
                let sum = server.sql(&database.name, &format!("SELECT coalesce(sum(units), 0) FROM leases WHERE {of}"));
                sum.trim().parse().unwrap()
            }
        }
    }

    /// Another process.
    async fn start(&self) -> Process {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        // Its clock stands still between the steps of a test.
        let fence = Duration::from_mins(1);
        let replica = ReplicaOptions { name, fence, poll_interval: Duration::from_millis(20) };
        let options = Options { replica: Some(replica), ..Options::default() };
        let store: SharedStore = match &self.shared {
            Shared::Memory(store) => store.clone(),
            Shared::Postgres(postgres) => Arc::new(connect(&postgres.1).await),
        };
        let engine = Arc::new(Engine::new(store, self.clock.clone(), options));
        engine.load().await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn({
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        let mut process = Process { engine, stop, following: None, secret: self.secret.clone() };
        process.follow();
        process
    }

    async fn start_all<const N: usize>(&self) -> [Process; N] {
        let mut started = Vec::new();
        for _ in 0..N {
            started.push(self.start().await);
        }
        started.try_into().unwrap_or_else(|_| unreachable!())
    }

    /// Lets the clock go on in small steps, as fast as may be, until something has come to its end. How far it went.
    async fn pass_until<T>(&self, run: impl Future<Output = T>) -> (T, Duration) {
        let begun = self.clock.monotonic();
        let mut run = std::pin::pin!(run);
        loop {
            tokio::select! {
                biased;
                done = &mut run => return (done, self.clock.monotonic().saturating_sub(begun)),
                () = tokio::time::sleep(Duration::from_millis(5)) => self.hands.advance(Duration::from_millis(10)),
            }
        }
    }
}

fn options(database: &Database) -> PostgresOptions {
    PostgresOptions {
        url: database.url().into(),
        password_file: Some(database.password_file.clone()),
        connections_max: 8,
        connect_timeout: PATIENCE,
        statement_timeout: PATIENCE,
        log_kept: Duration::from_hours(24),
    }
}

async fn connect(database: &Database) -> PostgresStore {
    PostgresStore::open(&options(database)).await.unwrap()
}

/// A key of a customer with credits.
async fn of_customer(engine: &Engine, limits: Vec<Limit>, allowance: u64, topped_up: i64) -> (KeyId, String) {
    engine.bootstrap(false).await.unwrap();
    let zero = Time::from_millis(0);
    let plan = Plan {
        id: PlanId::parse("p").unwrap(),
        display_name: String::new(),
        api_access: true,
        key_limits: vec![],
        account_limits: vec![],
        monthly_credits: Some(allowance),
        allowed_scopes: vec![],
        keys_max: None,
        create_time: zero,
        update_time: zero,
        revision: Revision::ZERO,
    };
    engine.create_plan(&Caller::System, plan.clone()).await.unwrap();
    let account = Account {
        id: AccountId::parse("acct_a").unwrap(),
        name: "a".to_owned(),
        plan: plan.id,
        status: AccountStatus::Active,
        time_zone: TimeZone::UTC,
        key_limits: vec![],
        account_limits: vec![],
        credits: None,
        credits_reset_day: 1,
        top_ups: TopUps::default(),
        metadata: Metadata::new(),
        create_time: zero,
        update_time: zero,
        revision: Revision::ZERO,
    };
    let account = engine.create_account(&Caller::System, account).await.unwrap();
    let adjustment = CreditAdjustment { amount: topped_up, reason: "test".to_owned(), operation_id: None };
    tokio::select! {
        () = engine.serve_leases(std::future::pending()) => unreachable!(),
        adjusted = engine.adjust_credits(&Caller::System, &account.id, &adjustment) => drop(adjusted.unwrap()),
    }
    let new = NewKey {
        account_id: Some(account.id),
        name: "k".to_owned(),
        description: String::new(),
        environment: Environment::Live,
        policy: Policy { limits, ..Policy::default() },
        expire_time: None,
        auto_renew_millis: None,
        metadata: Metadata::new(),
    };
    let made = engine.create_key(&Caller::System, new).await.unwrap();
    (made.key.id, made.secret.expose_secret().to_owned())
}

impl Process {
    fn ask(&self, cost: u64, consume: bool) -> Check<'_> {
        Check { credential: &self.secret, request: Request::default(), cost, consume, within: None, attempt: None }
    }

    async fn verdict(&self, cost: u64) -> Verdict {
        self.engine.check(&self.ask(cost, true), self.engine.clock().now()).await.unwrap().verdict
    }

    /// So many checks at once. How many were admitted; every other one was refused for want of units.
    async fn check_at_once(&self, checks: u64, cost: u64) -> u64 {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..checks {
            let (engine, secret) = (Arc::clone(&self.engine), self.secret.clone());
            all.spawn(async move {
                let request = Request::default();
                let check = Check { credential: &secret, request, cost, consume: true, within: None, attempt: None };
                engine.check(&check, engine.clock().now()).await.unwrap().verdict
            });
        }
        let verdicts = all.join_all().await;
        let refused = |verdict: &&Verdict| matches!(verdict, Verdict::RateLimited | Verdict::CreditsExhausted);
        let admitted = verdicts.iter().filter(|verdict| **verdict == Verdict::Allowed).count();
        assert_eq!(admitted + verdicts.iter().filter(refused).count(), verdicts.len());
        u64::try_from(admitted).unwrap()
    }

    /// Hears what the store tells.
    fn follow(&mut self) {
        let following = CancellationToken::new();
        let (engine, stop) = (Arc::clone(&self.engine), following.clone());
        let task = tokio::spawn(async move { engine.follow(stop.cancelled()).await });
        self.following = Some((following, task));
    }

    /// Hears nothing any more, once what it was told last is done.
    async fn fall_deaf(&mut self) {
        let (following, task) = self.following.take().unwrap();
        following.cancel();
        task.await.unwrap();
    }

    fn incarnation(&self) -> Incarnation {
        self.engine.incarnation()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
        self.following.iter().for_each(|(following, _)| following.cancel());
    }
}

/// Three processes, each of which is asked so often at once, admit all that there is and no more.
async fn admits_exactly(on: On, checks: u64, cost: u64, capacity: u64) {
    let Some(world) = World::on(on, vec![limit(capacity, Period::Day)], None, 0).await else { return };
    let [a, b, c] = world.start_all().await;
    let admitted =
        tokio::join!(a.check_at_once(checks, cost), b.check_at_once(checks, cost), c.check_at_once(checks, cost));
    assert_eq!(admitted.0 + admitted.1 + admitted.2, capacity / cost, "{admitted:?}");
}

/// As much as there is, one check after the other, each by the next process: leases grow, and are called back.
async fn in_turn_they_admit_what_there_is(on: On) {
    let Some(world) = World::on(on, vec![limit(400, Period::Day)], None, 0).await else { return };
    let all: [Process; 3] = world.start_all().await;
    let mut admitted = 0;
    for turn in 0..450 {
        let verdict = all[turn % 3].verdict(1).await;
        assert_eq!(verdict == Verdict::Allowed, admitted < 400, "{turn}");
        admitted += u64::from(verdict == Verdict::Allowed);
    }
}

async fn credits_are_one_purse_for_all(on: On) {
    let Some(world) = World::on(on, vec![], Some((60, 40)), 0).await else { return };
    let [a, b, c] = world.start_all().await;
    let admitted = tokio::join!(a.check_at_once(70, 1), b.check_at_once(70, 1), c.check_at_once(70, 1));
    assert_eq!(admitted.0 + admitted.1 + admitted.2, 100, "{admitted:?}");
}

/// The rest of a budget lies with others in parts, each too small. Returns how much it is.
async fn scattered(on: On) -> Option<(World, [Process; 3], u64)> {
    let world = World::on(on, vec![limit(80, Period::Day)], None, 0).await?;
    let all: [Process; 3] = world.start_all().await;
    for process in &all[..2] {
        for cost in [10, 1] {
            assert_eq!(process.verdict(cost).await, Verdict::Allowed);
        }
        assert!(world.held(process) > 1, "nothing is leased beyond what is spent");
    }
    Some((world, all, 80 - 2 * 11))
}

async fn units_that_others_hold_are_found(on: On) {
    let Some((_world, [a, b, c], left)) = scattered(on).await else { return };
    assert_eq!(c.verdict(left).await, Verdict::Allowed);
    for process in [a, b, c] {
        assert_eq!(process.verdict(1).await, Verdict::RateLimited);
    }
}

async fn who_does_not_give_back_is_waited_for_a_second(on: On) {
    let Some((world, [mut a, b, c], left)) = scattered(on).await else { return };
    a.fall_deaf().await;
    let (verdict, passed) = world.pass_until(c.verdict(left)).await;
    assert_eq!(verdict, Verdict::RateLimited);
    assert!(passed >= SECOND, "{passed:?}");
    // It is remembered for a second, and then not.
    assert_eq!(c.verdict(left).await, Verdict::RateLimited);
    a.follow();
    world.hands.advance(SECOND);
    assert_eq!(world.pass_until(c.verdict(left)).await.0, Verdict::Allowed);
    drop((a, b));
}

macro_rules! on_both {
    ($($name:ident: $run:ident($($argument:expr),*);)*) => {
        mod memory {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $run(On::Memory $(, $argument)*).await;
                }
            )*
        }

        mod postgres {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $run(On::Postgres $(, $argument)*).await;
                }
            )*
        }
    };
}

on_both! {
    a_hundred_of_three_hundred: admits_exactly(100, 1, 100);
    fifty_of_three_hundred_that_cost_ten: admits_exactly(100, 10, 500);
    one_of_a_thousand: admits_exactly(334, 1, 1);
    one_that_takes_all: admits_exactly(50, 7, 13);
    in_turn: in_turn_they_admit_what_there_is();
    credits: credits_are_one_purse_for_all();
    units_elsewhere: units_that_others_hold_are_found();
    units_that_do_not_come: who_does_not_give_back_is_waited_for_a_second();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_remembered_for_a_second() {
    let world = World::new(vec![limit(20, Period::Day)]).await;
    let [a, b] = world.start_all().await;
    // Reserved, and given back later.
    let id = OperationId::parse("op").unwrap();
    let check = b.ask(20, true);
    let now = world.clock.now();
    assert_eq!(b.engine.check_operation(&check, &id, now).await.unwrap().verdict, Verdict::Allowed);
    assert_eq!(a.verdict(1).await, Verdict::RateLimited);
    let asked = world.store().books().needing;
    for _ in 0..9 {
        world.hands.advance(SECOND / 10);
        assert_eq!(a.check_at_once(20, 1).await, 0);
    }
    assert_eq!(world.store().books().needing, asked, "within a second nothing is asked");
    for second in 1..=5 {
        for _ in 0..10 {
            world.hands.advance(SECOND / 10);
            assert_eq!(a.check_at_once(20, 1).await, 0);
        }
        let asked = world.store().books().needing - asked;
        assert!((1..=second + 1).contains(&asked), "{asked} times in {second} seconds");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_spend_is_seen_within_a_second() {
    let world = World::new(vec![limit(1_000, Period::Day)]).await;
    let [a, b] = world.start_all().await;
    let left = async || {
        let answer = b.engine.check(&b.ask(0, false), b.engine.clock().now()).await.unwrap();
        answer.limits[0].remaining
    };
    assert_eq!(left().await, 1_000);
    assert_eq!(a.verdict(300).await, Verdict::Allowed);
    assert_eq!(left().await, 1_000, "it was asked just now");
    world.hands.advance(SECOND);
    assert_eq!(left().await, 700);
}

/// Leases of many keys run low at different times, and nobody waits for any of them to be filled up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_filled_up_together() {
    const KEYS: usize = 60;
    let world = World::with(vec![limit(1_000_000, Period::Day)], None, KEYS).await;
    let [mut a] = world.start_all().await;
    let mut spend = async |key: &String, cost: u64| {
        a.secret.clone_from(key);
        assert_eq!(a.verdict(cost).await, Verdict::Allowed);
        a.engine.lease_stats()
    };
    // Of the second ten units there are then ten more, which is about a second's demand.
    for key in &world.others {
        spend(key, 10).await;
        spend(key, 1).await;
    }
    let time = Clock::system();
    let (before, begun) = (spend(&world.others[0], 0).await, time.monotonic());
    for key in &world.others {
        // Less than half of that is left.
        spend(key, 6).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (after, passed) = (spend(&world.others[0], 0).await, time.monotonic().saturating_sub(begun));
    assert_eq!(after.waits, before.waits);
    // Once in 250 ms, and once a second for what is idle.
    let most = passed.as_millis() / 250 + u128::from(passed.as_secs()) + 2;
    let rounds = u128::from(after.rounds - before.rounds);
    assert!((1..=most).contains(&rounds), "{rounds} rounds in {passed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_forgotten_is_spent_or_told() {
    let world = World::new(vec![limit(100, Period::Day)]).await;
    let [mut a, b] = world.start_all().await;
    a.fall_deaf().await;
    for cost in [20, 1] {
        assert_eq!(a.verdict(cost).await, Verdict::Allowed);
    }
    let before = a.incarnation();
    let leased = world.store().books().held(before);
    assert!(leased > 1);
    // An operation is under way meanwhile: what it has reserved is of the old name.
    let gate = world.store().gate.lock().await;
    let operation = tokio::spawn({
        let (engine, secret) = (Arc::clone(&a.engine), a.secret.clone());
        async move {
            let request = Request::default();
            let check = Check { credential: &secret, request, cost: 2, consume: true, within: None, attempt: None };
            engine.check_operation(&check, &OperationId::parse("op").unwrap(), engine.clock().now()).await
        }
    });
    tokio::time::timeout(PATIENCE, world.store().at_gate.notified()).await.unwrap();
    world.store().books().close(before);
    let after = Incarnation([9; 16]);
    a.engine.forget_leases(after).await;
    assert_eq!(a.incarnation(), after);
    drop(gate);
    assert!(operation.await.unwrap().is_err(), "its leases were closed before it was charged");
    // What is told now must have been granted under the new name: the store holds it to that.
    let left = 100 - leased - 20;
    let mut admitted = 0;
    while a.verdict(1).await == Verdict::Allowed {
        admitted += 1;
    }
    assert_eq!(admitted, left, "what was leased before counts as spent");
    assert_eq!(b.verdict(1).await, Verdict::RateLimited);
    a.engine.return_leases().await.unwrap();
    assert_eq!(world.store().books().held(after), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_granted_is_remembered() {
    let world = World::with(vec![limit(100, Period::Day)], Some((50, 5)), 0).await;
    let [a] = world.start_all().await;
    assert!(a.engine.remembered_budgets().is_empty());
    for cost in [20, 1] {
        assert_eq!(a.verdict(cost).await, Verdict::Allowed);
    }
    let remembered = a.engine.remembered_budgets();
    let held = world.held(&a);
    assert!(held > 2);
    let mut left = 0;
    for (id, state) in remembered {
        let rule = tollgate::decision::quota::Rule::of(&limit(100, Period::Day));
        let capacity = match id.parse().unwrap() {
            (Subject::Key(key), "l") => {
                assert_eq!(key, world.key);
                100
            }
            (Subject::Account(..), "credits") => 50,
            (Subject::Account(..), "top-ups") => 5,
            other => panic!("{other:?}"),
        };
        left += state.available(&tollgate::decision::quota::Rule { capacity, ..rule });
    }
    // All that is leased or spent, and nothing else, is granted; the last check is told to the store with the next round.
    assert_eq!(left, 100 + 50 + 5 - 2 * 20 - held);
    // When the windows are over, only what has none.
    world.hands.advance(Duration::from_hours(24 * 40));
    assert!(a.engine.remembered_budgets().iter().all(|(id, _)| id.as_str().ends_with("//top-ups")));
}

/// What could not be told for long goes to the store in parts, each of which is told within a statement's time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_has_a_bounded_number_of_rows() {
    const KEYS: usize = 50;
    const HOURS: usize = 100;
    let world = World::with(Vec::new(), None, KEYS).await;
    let [mut a] = world.start_all().await;
    for _ in 0..HOURS {
        for secret in &world.others {
            a.secret.clone_from(secret);
            assert_eq!(a.verdict(1).await, Verdict::Allowed);
        }
        world.hands.advance(Duration::from_hours(1));
        while !a.engine.is_fresh() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    a.engine.flush_usage().await.unwrap();
    let flushes = world.store().books().flushes.clone();
    assert_eq!(flushes.iter().sum::<usize>(), KEYS * HOURS);
    assert!(flushes.len() > 1 && flushes.iter().all(|rows| *rows < 4_000 + HOURS), "{flushes:?}");
}

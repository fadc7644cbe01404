//! The real gRPC stack over a real socket, on a store of its own and a clock that the test moves.
//!
//! A server starts with the plan `basic`, which bounds nothing, and the accounts `acct_a` and `acct_b` on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use prost_types::{FieldMask, Timestamp};
use secrecy::ExposeSecret as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions as _, Row as _};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::ambient::{Clock, ManualClock};
use tollgate::domain::{self, Time};
use tollgate::engine::{Engine, Options};
use tollgate::proto::v1::*;
use tollgate::store::sqlite::{OpenMode, SqliteStore};
use tollgate::store::{SharedStore, Uncertain};
use tollgate::tasks;
use tollgate::telemetry::metrics::Metrics;
use tollgate::transport::HttpStatuses;
use tollgate::transport::edge::{self, Edge};
use tollgate::transport::grpc::{Api, Router, classify};
use tollgate::transport::server::{self, ServerHandle, ServerOptions};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::server::HealthReporter;
use tonic_types::StatusExt as _;

use crate::client::Client;

/// The account that most tests are about.
pub(crate) const ACCOUNT: &str = "acct_a";
/// Another, on the same plan.
pub(crate) const OTHER_ACCOUNT: &str = "acct_b";
/// The plan of both.
pub(crate) const PLAN: &str = "basic";
/// When every server starts: a Tuesday.
pub(crate) const START: &str = "2026-03-10T12:00:00Z";
const DATABASE: &str = "tollgate.db";
const JOURNAL: &str = "tollgate.db.spent";
/// Largest message but those of an import.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Largest message of an import.
pub(crate) const IMPORT_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What differs from a server with the defaults.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) key_checks_per_second: u32,
    pub(crate) check_needs_caller: bool,
    pub(crate) http_statuses: BTreeMap<domain::Verdict, u16>,
    pub(crate) reflection: bool,
    pub(crate) edge: edge::Settings,
    pub(crate) uncertain: Uncertain,
    pub(crate) journal: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key_checks_per_second: 0,
            check_needs_caller: true,
            http_statuses: BTreeMap::new(),
            reflection: true,
            edge: edge::Settings::default(),
            uncertain: Uncertain::Charge,
            journal: true,
        }
    }
}

/// A server that serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) engine: Arc<Engine>,
    pub(crate) clock: ManualClock,
    pub(crate) channel: Channel,
    /// Calls with the key of `tollgate bootstrap`.
    pub(crate) operator: Client,
    pub(crate) operator_key_id: String,
    pub(crate) operator_secret: String,
    pub(crate) health: HealthReporter,
    callers: AtomicUsize,
    serving: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    store: SharedStore,
    handle: ServerHandle,
    leasing: (CancellationToken, tokio::task::JoinHandle<()>),
    folder: TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hands) = Clock::manual(time(START));
        let served = Self::serve(folder, (clock, hands), settings, None).await;
        served.plan(plan(PLAN)).await;
        served.account(account(ACCOUNT, PLAN)).await;
        served.account(account(OTHER_ACCOUNT, PLAN)).await;
        served
    }

    /// Stops it, and starts another on what it left.
    pub(crate) async fn restart(self, settings: Settings) -> Self {
        let Self { engine, clock, operator_key_id, operator_secret, store, handle, leasing, folder, .. } = self;
        handle.shutdown().await;
        leasing.0.cancel();
        leasing.1.await.unwrap();
        engine.return_leases().await.unwrap();
        store.close().await;
        let clock = (engine.clock().clone(), clock);
        // The journal is in use as long as it lives.
        drop(engine);
        Self::serve(folder, clock, settings, Some((operator_key_id, operator_secret))).await
    }

    /// The same where the first one has no time to tidy up.
    pub(crate) async fn kill(self, settings: Settings) -> Self {
        let Self { engine, clock, operator_key_id, operator_secret, store, handle, leasing, folder, .. } = self;
        leasing.1.abort();
        assert!(leasing.1.await.unwrap_err().is_cancelled());
        handle.shutdown().await;
        store.close().await;
        let clock = (engine.clock().clone(), clock);
        // The journal is in use as long as it lives.
        drop(engine);
        Self::serve(folder, clock, settings, Some((operator_key_id, operator_secret))).await
    }

    async fn serve(
        folder: TempDir,
        (clock, hands): (Clock, ManualClock),
        settings: Settings,
        operator: Option<(String, String)>,
    ) -> Self {
        let Settings { key_checks_per_second, check_needs_caller, http_statuses, reflection, edge, .. } = settings;
        let journal = settings.journal.then(|| folder.path().join(JOURNAL));
        let store = SqliteStore::open(&folder.path().join(DATABASE), OpenMode::Create).await.unwrap();
        let store: SharedStore = Arc::new(store);
        let options = Options { key_checks_per_second, uncertain: settings.uncertain, journal, ..Options::default() };
        let engine = Arc::new(Engine::new(Arc::clone(&store), clock, options));
        engine.load().await.unwrap();
        assert_eq!(engine.lease_stats().is_journal_on, settings.journal);
        let (operator_key_id, operator_secret) = if let Some(operator) = operator {
            operator
        } else {
            let made = engine.bootstrap(false).await.unwrap();
            (made.key.id.to_string(), made.secret.expose_secret().to_owned())
        };
        let stop = CancellationToken::new();
        let leasing = tokio::spawn({
            let (engine, stop) = (Arc::clone(&engine), stop.clone());
            async move { engine.serve_leases(stop.cancelled()).await }
        });
        let leasing = (stop, leasing);
        let metrics = Arc::new(Metrics::new());
        let serving = Arc::new(AtomicBool::new(true));
        let (health, health_service) = tonic_health::server::health_reporter();
        let statuses = HttpStatuses::with(&http_statuses);
        let edge = Edge::new(Arc::clone(&engine), Arc::clone(&metrics), statuses.clone(), edge);
        let api = Arc::new(Api {
            engine: Arc::clone(&engine),
            metrics: Arc::clone(&metrics),
            runtime: tokio::runtime::Handle::current(),
            serving: Arc::clone(&serving),
            check_needs_caller,
            edge_names: Vec::new(),
            edge: Arc::new(edge),
            http_statuses: statuses,
            message_bytes_max: MESSAGE_BYTES_MAX,
            import_message_bytes_max: IMPORT_MESSAGE_BYTES_MAX,
            reflection,
        });
        let addr = ([127, 0, 0, 1], 0).into();
        let options = ServerOptions { addr, workers: 1, classify, ..ServerOptions::default() };
        let router = move || Router::new(&api, health_service.clone());
        let handle = server::start(options, Arc::clone(&metrics), router).unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", handle.local_addr())).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            operator: Client::new(channel.clone(), &[&operator_secret]),
            engine,
            clock: hands,
            channel,
            operator_key_id,
            operator_secret,
            health,
            callers: AtomicUsize::new(1),
            serving,
            metrics,
            store,
            handle,
            leasing,
            folder,
        }
    }

    /// A client that calls with this key.
    pub(crate) fn caller(&self, secret: &str) -> Client {
        Client::new(self.channel.clone(), &[secret])
    }

    /// A client that calls without any.
    pub(crate) fn anonymous(&self) -> Client {
        Client::new(self.channel.clone(), &[])
    }

    /// A client with a new key of this account that has these scopes.
    pub(crate) async fn caller_of(&self, account_id: &str, scopes: &[&str]) -> Client {
        let name = format!("caller {}", self.callers.fetch_add(1, Ordering::Relaxed));
        let key = Key { account_id: account_id.to_owned(), scopes: strings(scopes), ..key(&name) };
        self.caller(&self.key(key).await.secret)
    }

    pub(crate) async fn plan(&self, plan: Plan) -> Plan {
        self.operator.create_plan(CreatePlanRequest { plan: Some(plan) }).await.unwrap()
    }

    pub(crate) async fn account(&self, account: Account) -> Account {
        self.operator.create_account(CreateAccountRequest { account: Some(account) }).await.unwrap()
    }

    /// Makes a key, as the operator.
    pub(crate) async fn key(&self, key: Key) -> CreateKeyResponse {
        self.operator.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap()
    }

    /// A key without anything to it; its id and its secret.
    pub(crate) async fn plain_key(&self, name: &str) -> (String, String) {
        let made = self.key(key(name)).await;
        (made.key.unwrap().id, made.secret)
    }

    pub(crate) async fn get_key(&self, id: &str) -> Key {
        self.operator.get_key(GetKeyRequest { id: id.to_owned() }).await.unwrap()
    }

    /// Changes the fields of a key that the paths name.
    pub(crate) async fn change_key(&self, key: Key, paths: &[&str]) -> Key {
        self.operator.update_key(UpdateKeyRequest { key: Some(key), update_mask: mask(paths) }).await.unwrap()
    }

    pub(crate) async fn change_account(&self, account: Account, paths: &[&str]) -> Account {
        let request = UpdateAccountRequest { account: Some(account), update_mask: mask(paths) };
        self.operator.update_account(request).await.unwrap()
    }

    pub(crate) async fn change_plan(&self, plan: Plan, paths: &[&str]) -> Plan {
        self.operator.update_plan(UpdatePlanRequest { plan: Some(plan), update_mask: mask(paths) }).await.unwrap()
    }

    pub(crate) async fn revoke(&self, id: &str) -> RevokeKeyResponse {
        let request = RevokeKeyRequest { id: id.to_owned(), reason: "a test".to_owned() };
        self.operator.revoke_key(request).await.unwrap()
    }

    /// Rotates a key; its new secret.
    pub(crate) async fn rotate(&self, id: &str, grace_seconds: i64) -> String {
        let grace_period = Some(prost_types::Duration { seconds: grace_seconds, nanos: 0 });
        let request = RotateKeyRequest { id: id.to_owned(), grace_period, ..RotateKeyRequest::default() };
        self.operator.rotate_key(request).await.unwrap().secret
    }

    /// Checks a credential for one cost unit, as the operator.
    pub(crate) async fn check(&self, key: &str) -> CheckKeyResponse {
        self.ask(of(key)).await
    }

    /// The verdict of that.
    pub(crate) async fn verdict(&self, key: &str) -> Verdict {
        self.check(key).await.verdict()
    }

    pub(crate) async fn ask(&self, request: CheckKeyRequest) -> CheckKeyResponse {
        self.operator.check_key(request).await.unwrap()
    }

    /// Writes to the store what was counted.
    pub(crate) async fn flush(&self) {
        tasks::flush(Arc::clone(&self.engine), Arc::clone(&self.metrics)).await;
    }

    /// Lets so many seconds pass.
    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Sets the wall clock.
    pub(crate) fn set_time(&self, text: &str) {
        self.clock.set(time(text));
    }

    pub(crate) fn now(&self) -> Timestamp {
        timestamp_of(self.engine.clock().now().millis())
    }

    /// This many seconds from now.
    #[expect(clippy::unnecessary_wraps, reason = "messages hold times as options")]
    pub(crate) fn in_seconds(&self, seconds: i64) -> Option<Timestamp> {
        Some(timestamp_of(self.engine.clock().now().millis() + seconds * 1_000))
    }

    /// As while the index is being loaded, or after that.
    pub(crate) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    /// What stands in the database file, in text.
    pub(crate) async fn rows(&self, sql: &'static str) -> Vec<Vec<String>> {
        let options = SqliteConnectOptions::new().filename(self.folder.path().join(DATABASE)).read_only(true);
        let mut connection = options.connect().await.unwrap();
        let rows: Vec<SqliteRow> = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        rows.iter().map(|row| (0..row.len()).map(|column| row.get::<String, _>(column)).collect()).collect()
    }

    /// The files of the database, one after the other.
    pub(crate) fn database_bytes(&self) -> Vec<u8> {
        let files = ["", "-wal"].map(|suffix| self.folder.path().join(format!("{DATABASE}{suffix}")));
        files.iter().flat_map(|file| std::fs::read(file).unwrap_or_default()).collect()
    }
}

/// A key of the account that most tests are about.
pub(crate) fn key(name: &str) -> Key {
    Key { account_id: ACCOUNT.to_owned(), name: name.to_owned(), ..Key::default() }
}

pub(crate) fn plan(id: &str) -> Plan {
    Plan { id: id.to_owned(), api_access: true, ..Plan::default() }
}

pub(crate) fn account(id: &str, plan: &str) -> Account {
    Account { id: id.to_owned(), name: format!("account {id}"), plan: plan.to_owned(), ..Account::default() }
}

pub(crate) fn limit(name: &str, capacity: i64, period: Period) -> Limit {
    Limit { name: name.to_owned(), capacity, period: period.into(), ..Limit::default() }
}

/// A check of a credential.
pub(crate) fn of(key: &str) -> CheckKeyRequest {
    CheckKeyRequest { key: key.to_owned(), ..CheckKeyRequest::default() }
}

/// The same, of a client at this address.
pub(crate) fn of_from(key: &str, client_ip: &str) -> CheckKeyRequest {
    let context = CheckContext { client_ip: client_ip.to_owned(), ..CheckContext::default() };
    CheckKeyRequest { context: Some(context), ..of(key) }
}

pub(crate) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// None of the paths: no mask at all.
pub(crate) fn mask(paths: &[&str]) -> Option<FieldMask> {
    (!paths.is_empty()).then(|| FieldMask { paths: strings(paths) })
}

fn time(text: &str) -> Time {
    Time::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

fn timestamp_of(millis: i64) -> Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1_000)).unwrap() * 1_000_000;
    Timestamp { seconds: millis.div_euclid(1_000), nanos }
}

/// From its text in RFC 3339.
pub(crate) fn at(text: &str) -> Timestamp {
    timestamp_of(time(text).millis())
}

/// The status of a call that has to fail with this code, and to say why.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> Status {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!status.message().is_empty(), "{status:?}");
    status
}

/// The fields that an `INVALID_ARGUMENT` names in its details.
pub(crate) fn invalid<T: std::fmt::Debug>(result: Result<T, Status>) -> Vec<String> {
    let status = refused(result, Code::InvalidArgument);
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{violations:?}");
    violations.into_iter().map(|violation| violation.field).collect()
}

/// The condition that a `FAILED_PRECONDITION` names in its details.
pub(crate) fn precondition<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = refused(result, Code::FailedPrecondition);
    status.get_details_precondition_failure().unwrap().violations[0].r#type.clone()
}

/// The reason that the details give.
pub(crate) fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "tollgate.v1");
    info.reason
}

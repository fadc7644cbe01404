//! A Tollgate with customers, and the API that it protects.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Runtime;
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::plan_service_client::PlanServiceClient;
use tollgate::proto::v1::*;

use crate::support::postgres::Database;
use crate::support::{Bearer, Home, Keys, Server, eventually, run, text, tollgate};
use crate::upstream::Upstream;

/// The account that most keys are of; its plan bounds nothing.
pub(crate) const ACCOUNT: &str = "acct_open";
/// An account that may spend [`CREDITS`] a month.
pub(crate) const PREPAID: &str = "acct_prepaid";
/// An account that is suspended after its keys were made.
pub(crate) const SUSPENDED: &str = "acct_suspended";
/// An account whose plan has lost API access after its keys were made.
pub(crate) const WITHOUT_ACCESS: &str = "acct_denied";
pub(crate) const CREDITS: i64 = 3;

/// A key that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) secret: String,
}

#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) upstream: Upstream,
    pub(crate) server: Server,
    /// What an edge shows: it has the scope `tollgate:check`, and no other.
    pub(crate) caller: String,
    pub(crate) home: Home,
    arguments: Vec<String>,
    made: AtomicUsize,
    // Last, so that what runs on it is there while the others end.
    runtime: Runtime,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("=== Tollgate's log\n{}", self.home.log());
        }
    }
}

impl Rig {
    /// With these flags of `serve`.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::at(Home::new(), arguments)
    }

    /// On a database of PostgreSQL, of which it is the first user.
    pub(crate) fn on(database: &Database) -> Self {
        let flags = database_flags(database);
        let commanded = |command: &[&str]| text(&run(tollgate(command).args(&flags), ""));
        commanded(&["migrate"]);
        let made: serde_json::Value = serde_json::from_str(&commanded(&["bootstrap", "--output=json"])).unwrap();
        let home = Home { token: made["secret"].as_str().unwrap().to_owned(), ..Home::empty() };
        Self::at(home, &flags.each_ref().map(String::as_str))
    }

    fn at(home: Home, arguments: &[&str]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // How long a change may take is not what is tested, and the disk may be busy.
        let arguments: Vec<&str> = ["--request-timeout=1m"].iter().chain(arguments).copied().collect();
        let server = home.serve(&arguments);
        let mut rig = Self {
            upstream: Upstream::start(&runtime),
            server,
            caller: String::new(),
            home,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            made: AtomicUsize::new(0),
            runtime,
        };
        rig.customers();
        // A key of the operator's own account may check those of all accounts.
        let operator = Key { account_id: "acct_operator".into(), ..key() };
        rig.caller = rig.key(Key { scopes: vec!["tollgate:check".into()], ..operator }).secret;
        rig
    }

    /// Waits for what is asked of a client.
    pub(crate) fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    fn customers(&self) {
        let token = &self.home.token;
        self.wait(async {
            let channel = self.server.channel().await;
            let mut plans = PlanServiceClient::with_interceptor(channel.clone(), Bearer::new(token));
            let mut accounts = AccountServiceClient::with_interceptor(channel, Bearer::new(token));
            for (id, plan, credits) in [
                (ACCOUNT, "open", None),
                (PREPAID, "prepaid", Some(CREDITS)),
                (SUSPENDED, "plus", None),
                (WITHOUT_ACCESS, "denied", None),
            ] {
                let plan = Plan { id: plan.into(), api_access: true, monthly_credits: credits, ..Plan::default() };
                let account = Account { id: id.into(), name: id.into(), plan: plan.id.clone(), ..Account::default() };
                plans.create_plan(CreatePlanRequest { plan: Some(plan) }).await.unwrap();
                accounts.create_account(CreateAccountRequest { account: Some(account) }).await.unwrap();
            }
        });
    }

    /// Suspends [`SUSPENDED`], and takes the API away from [`WITHOUT_ACCESS`].
    pub(crate) fn turn_customers_away(&self) {
        let token = &self.home.token;
        self.wait(async {
            let channel = self.server.channel().await;
            let mut plans = PlanServiceClient::with_interceptor(channel.clone(), Bearer::new(token));
            let mut accounts = AccountServiceClient::with_interceptor(channel, Bearer::new(token));
            let plan = Plan { id: "denied".into(), ..Plan::default() };
            plans
                .update_plan(UpdatePlanRequest { plan: Some(plan), update_mask: Some(mask("api_access")) })
                .await
                .unwrap();
            let status = AccountStatus::Suspended.into();
            let account = Account { id: SUSPENDED.into(), status, ..Account::default() };
            let request = UpdateAccountRequest { account: Some(account), update_mask: Some(mask("status")) };
            accounts.update_account(request).await.unwrap();
        });
    }

    pub(crate) async fn keys(&self) -> Keys {
        self.server.keys(&self.home.token).await
    }

    /// Makes a key like this one.
    pub(crate) fn key(&self, mut key: Key) -> Made {
        if key.name.is_empty() {
            key.name = format!("key {}", self.made.fetch_add(1, Ordering::Relaxed));
        }
        let request = CreateKeyRequest { key: Some(key) };
        let made = self.wait(async { self.keys().await.create_key(request).await.unwrap().into_inner() });
        Made { id: made.key.unwrap().id, secret: made.secret }
    }

    /// A key without anything to it.
    pub(crate) fn plain_key(&self) -> Made {
        self.key(key())
    }

    /// A key that has so many units a month.
    pub(crate) fn limited_key(&self, capacity: i64) -> Made {
        self.key(Key { limits: vec![monthly(capacity)], ..key() })
    }

    /// What is left of the one limit of a key, without charging it.
    pub(crate) fn left(&self, made: &Made) -> i64 {
        let request =
            CheckKeyRequest { key: made.secret.clone(), mode: Mode::Peek.into(), ..CheckKeyRequest::default() };
        let answer = self.wait(async { self.keys().await.check_key(request).await.unwrap().into_inner() });
        assert_eq!(answer.limits.len(), 1, "{answer:?}");
        answer.limits[0].remaining
    }

    /// How often a key was checked, and how often it may be: this makes one more check, and waits until that is counted.
    pub(crate) fn checks_counted(&self, made: &Made, check: impl FnOnce(), expected: i64) -> i64 {
        check();
        let mut counted = 0;
        eventually("its usage", || {
            let usage = GetUsageRequest { key_id: made.id.clone(), ..GetUsageRequest::default() };
            let usage = self.wait(async { self.keys().await.get_usage(usage).await.unwrap().into_inner() });
            counted = usage.totals.map_or(0, |totals| totals.requests);
            counted >= expected
        });
        counted
    }

    pub(crate) fn revoke(&self, made: &Made) {
        let request = RevokeKeyRequest { id: made.id.clone(), ..RevokeKeyRequest::default() };
        self.wait(async { self.keys().await.revoke_key(request).await.unwrap() });
    }

    /// Changes a field of a key.
    pub(crate) fn update(&self, made: &Made, key: Key, field: &str) {
        let key = Key { id: made.id.clone(), ..key };
        let request = UpdateKeyRequest { key: Some(key), update_mask: Some(mask(field)) };
        self.wait(async { self.keys().await.update_key(request).await.unwrap() });
    }

    /// Starts Tollgate again where it was, after it was killed.
    pub(crate) fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// With further flags. After flags of TLS, only edges reach it.
    pub(crate) fn restart_with(&mut self, more: &[&str]) {
        self.server.kill();
        self.arguments.extend(more.iter().map(ToString::to_string));
        let (grpc, http) = (self.server.grpc, self.server.http);
        let addresses = [format!("--grpc-addr={grpc}"), format!("--http-addr={http}")];
        let arguments: Vec<&str> = self.arguments.iter().chain(&addresses).map(String::as_str).collect();
        self.server = self.home.serve(&arguments);
    }

    pub(crate) fn grpc(&self) -> SocketAddr {
        self.server.grpc
    }
}

/// Of `serve` on such a database, with a fence that does not shut only because the machine has much to do.
pub(crate) fn database_flags(database: &Database) -> [String; 3] {
    [
        format!("--database={}?sslmode=disable", database.url()),
        format!("--password-file={}", database.password_file.display()),
        "--replicas-fence=15s".to_owned(),
    ]
}

fn mask(field: &str) -> prost_types::FieldMask {
    prost_types::FieldMask { paths: vec![field.to_owned()] }
}

/// A key of [`ACCOUNT`] without anything to it, still to be made.
pub(crate) fn key() -> Key {
    Key { account_id: ACCOUNT.into(), ..Key::default() }
}

/// A limit whose window does not end during a test, but once a month.
pub(crate) fn monthly(capacity: i64) -> Limit {
    Limit { name: "per-month".into(), capacity, period: Period::Month.into(), ..Limit::default() }
}

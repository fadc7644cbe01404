//! Processes of the real binary on one PostgreSQL, each behind a network of its own.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::plan_service_client::PlanServiceClient;
use tollgate::proto::v1::*;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::history::{Answer, now, since};
use crate::proxy::Proxy;
use crate::support::postgres::{Database, Postgres, free_port};
use crate::support::{Bearer, GLANCE, Keys, PATIENCE, Server, dice, hex, run, said, serve_command, skipped, tollgate};

/// A plan that bounds nothing.
pub(crate) const PLAN: &str = "open";
/// No window of this length ends while a test runs.
const YEAR_SECONDS: i32 = 31_536_000;

/// A fence that does not shut only because the machine has much to do.
pub(crate) const LONG: Duration = Duration::from_secs(15);
/// One for which a test can wait.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) replicas: usize,
    pub(crate) fence: Duration,
    /// The place of one with another fence.
    pub(crate) fence_of: Option<(usize, Duration)>,
    /// Further flags of `serve`.
    pub(crate) flags: &'a [&'a str],
    /// Whether each keeps a journal of its own.
    pub(crate) journal: bool,
    /// The place of one whose wall clock is wrong by this, such as `-3600`, in seconds.
    pub(crate) wrong_clock: Option<(usize, &'a str)>,
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Self { replicas: 3, fence: LONG, fence_of: None, flags: &[], journal: false, wrong_clock: None }
    }
}

/// One of them. Its addresses stay the same, however often it is started.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) proxy: Proxy,
    /// Where it is, or was, while it does not run.
    pub(crate) server: Option<Server>,
    grpc: SocketAddr,
    dir: PathBuf,
    flags: Vec<String>,
    wrong_clock: Option<String>,
}

impl Replica {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(&mut self) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let mut command = serve_command(&self.dir, &flags);
        if let Some(by) = &self.wrong_clock {
            command.env("LD_PRELOAD", faketime().unwrap()).env("FAKETIME", by);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        self.server = None;
        self.server = Some(Server::started(&mut command, &self.dir.join("log")));
    }

    pub(crate) fn running(&mut self) -> &mut Server {
        self.server.as_mut().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.server = None;
    }

    /// Has it start where it must not. What it says.
    pub(crate) fn refused(&self) -> String {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let output = run(&mut serve_command(&self.dir, &flags), "");
        assert!(!output.status.success(), "{}", said(&output));
        said(&output)
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) {
        self.running().stop();
        self.server = None;
    }

    /// All of its threads stand still, until [`Self::resume`].
    pub(crate) fn hang(&self) {
        self.server.as_ref().unwrap().hang();
    }

    pub(crate) fn resume(&self) {
        self.server.as_ref().unwrap().signal("CONT");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The value of a metric, 0 where it is not there.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.server.as_ref().unwrap().get("/metrics").1;
        let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        lines.filter_map(|value| value.parse::<f64>().ok()).sum()
    }
}

/// A library that tells a program another time.
pub(crate) fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|file| file.is_file());
    if found.is_none() {
        skipped("there is no libfaketime.so.1 in a folder of /usr/lib (Debian: faketime)");
    }
    found
}

/// A key that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) account_id: String,
    pub(crate) secret: String,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    // First, so that they are gone before their database.
    pub(crate) replicas: Vec<Replica>,
    pub(crate) postgres: Postgres,
    pub(crate) database: Database,
    /// The operator's secret.
    pub(crate) token: String,
    /// A server of before, with the file of the password.
    former: Option<Postgres>,
    home: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (place, replica) in self.replicas.iter().enumerate() {
                let log = replica.log();
                let lines: Vec<&str> = log.lines().collect();
                println!(
                    "=== the end of replica {place}'s log\n{}",
                    lines[lines.len().saturating_sub(25)..].join("\n")
                );
            }
        }
    }
}

impl Cluster {
    /// Starts one. Nothing, and a word about it, where the machine lacks PostgreSQL.
    pub(crate) fn start(shape: Shape<'_>) -> Option<Self> {
        Some(Self::on(Postgres::start()?, shape))
    }

    pub(crate) fn on(postgres: Postgres, shape: Shape<'_>) -> Self {
        let database = postgres.new_database();
        let home = tempfile::tempdir().unwrap();
        let token = database.bootstrap();
        let mut cluster = Self { replicas: Vec::new(), postgres, database, token, former: None, home };
        for place in 0..shape.replicas {
            let replica = cluster.prepare(place, shape);
            cluster.replicas.push(replica);
        }
        for replica in &mut cluster.replicas {
            replica.start();
        }
        cluster
    }

    fn prepare(&self, place: usize, shape: Shape<'_>) -> Replica {
        let dir = self.home.path().join(place.to_string());
        fs::create_dir(&dir).unwrap();
        let proxy = Proxy::start(self.postgres.addr());
        let grpc = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let fence = shape.fence_of.filter(|(other, _)| *other == place).map_or(shape.fence, |(_, fence)| fence);
        let mut flags = self.database.access_through(proxy.addr()).to_vec();
        flags.extend([
            format!("--grpc-addr={grpc}"),
            format!("--replicas-fence={}ms", fence.as_millis()),
            // The tests are about who admits what, and not about how soon a stranger's machine writes.
            "--usage-flush-interval=100ms".to_owned(),
            "--request-timeout=1m".to_owned(),
        ]);
        let journal = if shape.journal { dir.join("journal").display().to_string() } else { "off".to_owned() };
        flags.push(format!("--limits-journal={journal}"));
        flags.extend(shape.flags.iter().map(ToString::to_string));
        let wrong_clock = shape.wrong_clock.filter(|(wrong, _)| *wrong == place).map(|(_, by)| by.to_owned());
        Replica { proxy, server: None, grpc, dir, flags, wrong_clock }
    }

    /// A folder that is gone with the cluster.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// A connection to a replica, which is made again whenever it has broken.
    pub(crate) fn channel(&self, replica: usize) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.replicas[replica].grpc)).unwrap();
        endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
    }

    pub(crate) fn keys(&self, replica: usize) -> Keys {
        KeyServiceClient::with_interceptor(self.channel(replica), Bearer::new(&self.token))
    }

    fn accounts(&self, replica: usize) -> AccountServiceClient<InterceptedService<Channel, Bearer>> {
        AccountServiceClient::with_interceptor(self.channel(replica), Bearer::new(&self.token))
    }

    /// A new account on a plan without limits, with these of its own, and with credits.
    pub(crate) async fn account(&self, account_limits: Vec<Limit>, monthly_credits: Option<i64>) -> String {
        let mut plans = PlanServiceClient::with_interceptor(self.channel(0), Bearer::new(&self.token));
        let plan = Plan { id: PLAN.into(), api_access: true, ..Plan::default() };
        let made = plans.create_plan(CreatePlanRequest { plan: Some(plan) }).await;
        assert!(made.as_ref().err().is_none_or(|status| status.code() == Code::AlreadyExists), "{made:?}");
        let account = Account {
            name: "Test".into(),
            plan: PLAN.into(),
            account_limits,
            monthly_credits,
            credits_reset_day: distant_day(),
            ..Account::default()
        };
        let request = CreateAccountRequest { account: Some(account) };
        self.accounts(0).create_account(request).await.unwrap().into_inner().id
    }

    /// The ids of an account's keys by their names.
    async fn ids(&self, client: &mut Keys, account_id: &str) -> HashMap<String, String> {
        let (mut ids, mut page_token) = (HashMap::new(), String::new());
        loop {
            let account_id = account_id.to_owned();
            let request = ListKeysRequest { account_id, page_size: 1_000, page_token, ..ListKeysRequest::default() };
            let page = client.list_keys(request).await.unwrap().into_inner();
            ids.extend(page.keys.into_iter().map(|key| (key.name, key.id)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return ids;
            }
        }
    }

    /// New keys, all at once. They are known to all replicas.
    pub(crate) async fn make_keys(&self, account_id: &str, number: usize, limits: &[Limit]) -> Vec<Made> {
        let batch = dice(u64::MAX);
        let secrets: Vec<String> = (0..number).map(|place| format!("imported-{batch}-{place:06}")).collect();
        let row = |secret: &String| {
            let (account_id, name) = (account_id.to_owned(), secret.clone());
            let key = Some(Key { account_id, name, limits: limits.to_vec(), ..Key::default() });
            let hash = hex(&Sha256::digest(secret.as_bytes()));
            ImportKeysRequest { dry_run: false, key: Some(ImportedKey { hash, key }) }
        };
        let rows: Vec<ImportKeysRequest> = secrets.iter().map(row).collect();
        let mut client = self.keys(0);
        let imported = client.import_keys(tokio_stream::iter(rows)).await.unwrap().into_inner();
        assert_eq!(imported.imported, i64::try_from(number).unwrap(), "{imported:?}");
        for replica in 0..self.len() {
            let key = secrets[0].clone();
            let min_revision = imported.revision;
            let request = CheckKeyRequest { key, mode: Mode::Peek.into(), min_revision, ..CheckKeyRequest::default() };
            assert!(self.keys(replica).check_key(request).await.unwrap().into_inner().allowed);
        }
        let ids = self.ids(&mut client, account_id).await;
        let made = |secret: String| Made { id: ids[&secret].clone(), account_id: account_id.to_owned(), secret };
        secrets.into_iter().map(made).collect()
    }

    /// Waits until a replica admits this key, and says how long that took.
    pub(crate) async fn serves(&self, replica: usize, key: &Made) -> Duration {
        let begun = now();
        let mut client = self.keys(replica);
        loop {
            let request = CheckKeyRequest { key: key.secret.clone(), ..CheckKeyRequest::default() };
            let answer = tokio::time::timeout(PATIENCE / 10, client.check_key(request)).await;
            if answer.is_ok_and(|answer| Answer::of_check(&answer) == Answer::Admitted) {
                return since(begun);
            }
            assert!(since(begun) < PATIENCE, "replica {replica} never serves again");
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// What the usage report of an account says once all replicas that run have written what they counted.
    pub(crate) async fn usage(&self, account_id: &str) -> Usage {
        let asked_at = self.database_millis();
        let mut usage = None;
        // Each says up to when it has written its own.
        for replica in (0..self.len()).filter(|replica| self.replicas[*replica].server.is_some()) {
            let (mut client, begun) = (self.keys(replica), now());
            loop {
                let request = GetUsageRequest { account_id: account_id.to_owned(), ..GetUsageRequest::default() };
                let report = client.get_usage(request).await.unwrap().into_inner();
                let as_of = report.as_of.map_or(0, |time| time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000);
                let totals = report.totals.unwrap_or_default();
                usage = Some(Usage { allowed: totals.allowed, denied: totals.denied, credits: totals.credits });
                if as_of > asked_at {
                    break;
                }
                assert!(since(begun) < PATIENCE, "usage is never complete: {as_of} of {asked_at}");
                tokio::time::sleep(GLANCE * 4).await;
            }
        }
        usage.unwrap()
    }

    /// The database's clock, in milliseconds since 1970.
    pub(crate) fn database_millis(&self) -> i64 {
        let answer = self.postgres.sql("postgres", "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint");
        answer.parse().unwrap()
    }

    /// From now on, replicas reach this server instead.
    pub(crate) fn turn_to(&mut self, postgres: Postgres) {
        self.replicas.iter().for_each(|replica| replica.proxy.turn_to(postgres.addr()));
        self.database.addr = postgres.addr();
        self.former = Some(std::mem::replace(&mut self.postgres, postgres));
    }

    /// Units that are leased, of all limits, as the store knows of it.
    pub(crate) fn leased(&self) -> i64 {
        self.postgres.sql(&self.database.name, "SELECT coalesce(sum(units), 0)::bigint FROM leases").parse().unwrap()
    }

    /// Those of them that no registered replica holds.
    pub(crate) fn leased_to_nobody(&self) -> i64 {
        let query = "SELECT coalesce(sum(units), 0)::bigint FROM leases WHERE incarnation NOT IN \
                     (SELECT incarnation FROM replicas)";
        self.postgres.sql(&self.database.name, query).parse().unwrap()
    }

    pub(crate) fn heal(&self) {
        self.replicas.iter().for_each(|replica| replica.proxy.heal());
    }

    /// Ends all replicas in order, and says what `doctor` finds wrong after that.
    pub(crate) fn damage(&mut self) -> Vec<String> {
        self.replicas.iter_mut().filter(|replica| replica.server.is_some()).for_each(Replica::stop);
        let mut doctor = tollgate(&["doctor", "--output=json", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0"]);
        let output = run(doctor.args(self.database.access()), "");
        let findings: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        findings.iter().filter(|finding| finding["ok"] != true).map(ToString::to_string).collect()
    }
}

/// What a usage report says in total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) allowed: i64,
    pub(crate) denied: i64,
    pub(crate) credits: i64,
}

/// A limit of so many units whose window does not end while a test runs.
pub(crate) fn yearly(capacity: i64) -> Limit {
    seconds(YEAR_SECONDS, capacity)
}

/// A limit of so many units in windows of so many seconds.
pub(crate) fn seconds(period_seconds: i32, capacity: i64) -> Limit {
    Limit { name: "units".into(), capacity, period: Period::Seconds.into(), period_seconds, ..Limit::default() }
}

/// A day of the month that does not begin while a test runs.
fn distant_day() -> i32 {
    let now = jiff::Timestamp::from_millisecond(tollgate::ambient::Clock::system().now().millis()).unwrap();
    if (8..22).contains(&now.to_zoned(jiff::tz::TimeZone::UTC).day()) { 1 } else { 15 }
}

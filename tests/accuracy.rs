//! The real binary over real sockets, with as many checks in flight as a row says: exactly as many are admitted as there are
//! units for, and all that can be asked afterwards says the same. No tolerance.
#![cfg(test)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::postgres::Postgres;
use support::{Bearer, GLANCE, Home, Keys, PATIENCE, Server, stopwatch};
use tokio::task::JoinSet;
use tollgate::ambient::Clock;
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::plan_service_client::PlanServiceClient;
use tollgate::proto::v1::*;

/// To each node.
const CONNECTIONS: usize = 4;
const PLAN: &str = "open";
/// No window of this length ends while a test runs.
const YEAR_SECONDS: i32 = 31_536_000;

/// How many nodes, how many units there are, what a check costs, how many are in flight, and how many there are in all.
#[derive(Clone, Copy, Debug)]
struct Row {
    nodes: usize,
    credits: i64,
    cost: i64,
    concurrency: usize,
    requests: usize,
}

const fn row(nodes: usize, credits: i64, cost: i64, concurrency: usize, requests: usize) -> Row {
    Row { nodes, credits, cost, concurrency, requests }
}

impl Row {
    /// How many of so many requests are admitted where they have the units to themselves.
    fn admitted_of(self, requests: usize) -> usize {
        requests.min(usize::try_from(self.credits / self.cost).unwrap())
    }
}

/// What other systems publish for their limiters, who allow themselves a tolerance.
const PUBLISHED: [Row; 2] = [row(1, 100, 1, 50, 200), row(1, 1_000, 1, 1_000, 1_000)];
const OWN: [Row; 6] = [
    row(1, 1_000, 1, 1_000, 2_000),
    row(1, 1_000, 10, 50, 200),
    // Two units are left of which no check can be paid.
    row(1, 100, 7, 50, 200),
    row(1, 5, 7, 10, 20),
    row(1, 0, 1, 10, 20),
    row(1, 1_000_000_000, 1_000, 100, 200),
];
/// For several keys; they divide the requests evenly.
const SHARED: [Row; 3] = [row(1, 100, 1, 50, 200), row(1, 1_000, 3, 1_000, 1_000), row(1, 3_000, 7, 100, 300)];

/// For replicas that share a database.
const REPLICATED: [Row; 3] = [row(3, 100, 1, 100, 300), row(5, 500, 10, 20, 100), row(3, 1, 1, 1_000, 1_000)];

/// Where the units are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Budget {
    Credits,
    /// A limit of each key.
    Key(Algorithm),
    /// A limit of the account, pooled over its keys.
    Pool(Algorithm),
}

const FIXED: Algorithm = Algorithm::FixedWindow;
const SLIDING: Algorithm = Algorithm::SlidingWindow;

impl Budget {
    fn limits(self, level: Level, capacity: i64) -> Vec<Limit> {
        let (own, algorithm) = match self {
            Self::Credits => return Vec::new(),
            Self::Key(algorithm) => (Level::Key, algorithm),
            Self::Pool(algorithm) => (Level::Account, algorithm),
        };
        let limit = Limit {
            name: "units".into(),
            capacity,
            period: Period::Seconds.into(),
            period_seconds: YEAR_SECONDS,
            algorithm: algorithm.into(),
        };
        if own == level { vec![limit] } else { Vec::new() }
    }

    fn refusal(self) -> Verdict {
        if self == Self::Credits { Verdict::CreditsExhausted } else { Verdict::RateLimited }
    }

    /// What is left, of an answer that has nothing but this budget in it.
    fn left(self, limits: &[LimitState], credits: Option<&CreditState>) -> i64 {
        match (self, limits, credits) {
            (Self::Credits, [], Some(credits)) => credits.remaining,
            (Self::Key(_) | Self::Pool(_), [limit], None) => limit.remaining,
            _ => panic!("{self:?}: {limits:?}, {credits:?}"),
        }
    }
}

/// The processes of one store. The embedded one has one, and PostgreSQL any number.
struct Cluster {
    servers: Vec<Server>,
    home: Home,
    _postgres: Option<Postgres>,
}

impl Cluster {
    /// Nothing, and a word about it, where it takes PostgreSQL and there is none.
    async fn start(nodes: usize) -> Option<Self> {
        let flush = "--usage-flush-interval=100ms";
        let (home, servers, postgres) = if nodes == 1 {
            let home = Home::new();
            let servers = vec![home.serve(&[flush])];
            (home, servers, None)
        } else {
            let postgres = Postgres::start()?;
            let database = postgres.new_database();
            let home = Home { token: database.bootstrap(), ..Home::empty() };
            let access = database.access();
            // They stand still for as long as it takes until all have asked.
            let flags = [flush, "--replicas-fence=1m", &access[0], &access[1]];
            let servers = (0..nodes).map(|_| home.serve(&flags)).collect();
            (home, servers, Some(postgres))
        };
        let mut plans = PlanServiceClient::with_interceptor(servers[0].channel().await, Bearer::new(&home.token));
        let plan = Plan { id: PLAN.into(), api_access: true, ..Plan::default() };
        plans.create_plan(CreatePlanRequest { plan: Some(plan) }).await.unwrap();
        Some(Self { servers, home, _postgres: postgres })
    }

    /// Connections to all nodes, in turn, on which calls have been answered, so that as many streams are open at once as the
    /// server allows.
    async fn clients(&self, subject: &Subject) -> Vec<Keys> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            for server in &self.servers {
                let mut client = server.keys(&self.home.token).await;
                let key = subject.keys[0].1.clone();
                let min_revision = subject.revision;
                let request =
                    CheckKeyRequest { key, mode: Mode::Peek.into(), min_revision, ..CheckKeyRequest::default() };
                client.check_key(request).await.unwrap();
                clients.push(client);
            }
        }
        clients
    }
}

/// An account with a budget, and its keys.
struct Subject {
    account_id: String,
    /// Ids and secrets.
    keys: Vec<(String, String)>,
    /// At which all of it exists.
    revision: i64,
}

impl Subject {
    async fn make(cluster: &Cluster, row: Row, budget: Budget, keys: usize) -> Self {
        let (server, token) = (&cluster.servers[0], &cluster.home.token);
        let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, Bearer::new(token));
        let account = Account {
            name: "Test".into(),
            plan: PLAN.into(),
            account_limits: budget.limits(Level::Account, row.credits),
            monthly_credits: (budget == Budget::Credits).then_some(row.credits),
            credits_reset_day: distant_day(),
            ..Account::default()
        };
        let made = accounts.create_account(CreateAccountRequest { account: Some(account) }).await.unwrap();
        let account_id = made.into_inner().id;
        let mut client = server.keys(token).await;
        let (mut made, mut revision) = (Vec::new(), 0);
        for number in 0..keys {
            let limits = budget.limits(Level::Key, row.credits);
            let key = Key { account_id: account_id.clone(), name: format!("k{number}"), limits, ..Key::default() };
            let answer = client.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
            revision = answer.revision;
            made.push((answer.key.unwrap().id, answer.secret));
        }
        Self { account_id, keys: made, revision }
    }
}

/// A day of the month that does not begin while a test runs.
fn distant_day() -> i32 {
    let now = jiff::Timestamp::from_millisecond(Clock::system().now().millis()).unwrap();
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).day();
    if (8..22).contains(&today) { 1 } else { 15 }
}

/// The answers, by the key that was checked.
type Answers = Vec<Vec<CheckKeyResponse>>;

/// Sends the checks. As many as the row says are under way before the first of them is answered.
async fn check_all(cluster: &Cluster, subject: &Subject, row: Row) -> Answers {
    let clients = cluster.clients(subject).await;
    let secrets: Arc<[String]> = subject.keys.iter().map(|(_, secret)| secret.clone()).collect();
    let (next, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    cluster.servers.iter().for_each(Server::hang);
    let mut lanes = JoinSet::new();
    for lane in 0..row.concurrency {
        let mut client = clients[lane % clients.len()].clone();
        let (secrets, next, asked) = (Arc::clone(&secrets), Arc::clone(&next), Arc::clone(&asked));
        lanes.spawn(async move {
            let mut answers = Vec::new();
            loop {
                let turn = next.fetch_add(1, Ordering::SeqCst);
                if turn >= row.requests {
                    return answers;
                }
                let place = turn % secrets.len();
                let request =
                    CheckKeyRequest { key: secrets[place].clone(), cost: Some(row.cost), ..Default::default() };
                asked.fetch_add(1, Ordering::SeqCst);
                answers.push((place, client.check_key(request).await.unwrap().into_inner()));
            }
        });
    }
    until("all lanes have asked", async || asked.load(Ordering::SeqCst) == row.concurrency.min(row.requests)).await;
    cluster.servers.iter().for_each(|server| server.signal("CONT"));
    let mut answers: Answers = vec![Vec::new(); secrets.len()];
    for (place, answer) in lanes.join_all().await.into_iter().flatten() {
        answers[place].push(answer);
    }
    answers
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let elapsed = stopwatch();
    while !holds().await {
        assert!(elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(GLANCE).await;
    }
}

/// Checks that share a budget: as many are admitted as there are units for, each of them is told what is left after it and no
/// other one, and all others are refused for want of units. Returns what is left.
fn assert_exact(answers: &[&CheckKeyResponse], row: Row, budget: Budget) -> i64 {
    let admitted = row.admitted_of(answers.len());
    let mut left_after = Vec::new();
    for answer in answers {
        let left = budget.left(&answer.limits, answer.credits.as_ref());
        if answer.allowed {
            assert_eq!((answer.verdict(), answer.http_status), (Verdict::Allowed, 200));
            left_after.push(left);
        } else {
            assert_eq!((answer.verdict(), answer.http_status), (budget.refusal(), 429), "{answer:?}");
            assert_eq!(left, row.credits - i64::try_from(admitted).unwrap() * row.cost, "refused too early");
            let exceeded = answer.limits.iter().map(|limit| limit.exceeded);
            assert!(exceeded.chain(answer.credits.as_ref().map(|credits| credits.exceeded)).all(|exceeded| exceeded));
        }
    }
    assert_eq!(left_after.len(), admitted, "{row:?} {budget:?}");
    left_after.sort_unstable_by(|a, b| b.cmp(a));
    let expected: Vec<i64> = (1..).map(|turn| row.credits - turn * row.cost).take(admitted).collect();
    if row.nodes == 1 {
        assert_eq!(left_after, expected, "{row:?} {budget:?}");
    }
    expected.last().copied().unwrap_or(row.credits)
}

/// All that can be asked of what is left says the same, on each node.
async fn assert_left(cluster: &Cluster, key: &(String, String), row: Row, budget: Budget, left: i64) {
    let (id, secret) = key;
    for server in &cluster.servers {
        let mut operator = server.keys(&cluster.home.token).await;
        let request = CheckKeyRequest {
            key: secret.clone(),
            cost: Some(row.cost),
            mode: Mode::Peek.into(),
            ..Default::default()
        };
        let peek = operator.check_key(request).await.unwrap().into_inner();
        let verdict = if row.cost <= left { Verdict::Allowed } else { budget.refusal() };
        assert_eq!((peek.verdict(), budget.left(&peek.limits, peek.credits.as_ref())), (verdict, left));
        let told = operator.get_limits(GetLimitsRequest { id: id.clone() }).await.unwrap().into_inner();
        assert_eq!(budget.left(&told.limits, told.credits.as_ref()), left);
        let mut own = server.keys(secret).await;
        let told = own.get_self(GetSelfRequest {}).await.unwrap().into_inner();
        let credits = (budget == Budget::Credits).then_some(left);
        assert_eq!((told.credits_remaining, told.monthly_allowance), (credits, credits.map(|_| row.credits)));
        let of_limits = |limits: &[LimitState]| limits.iter().map(|limit| limit.remaining).collect::<Vec<i64>>();
        assert_eq!(of_limits(&told.limits), of_limits(&peek.limits));
    }
}

/// What is counted once all of it is in the store: each check, and what those that were admitted cost in credits.
async fn assert_counted(cluster: &Cluster, subject: &Subject, row: Row, budget: Budget, answers: &Answers) {
    let asked_at = Clock::system().now().millis();
    let request =
        GetUsageRequest { account_id: subject.account_id.clone(), group_by_key: true, ..GetUsageRequest::default() };
    let mut usage = GetUsageResponse::default();
    for server in &cluster.servers {
        let mut operator = server.keys(&cluster.home.token).await;
        until("usage up to now", async || {
            usage = operator.get_usage(request.clone()).await.unwrap().into_inner();
            let as_of = usage.as_of.map_or(0, |as_of| as_of.seconds * 1_000 + i64::from(as_of.nanos) / 1_000_000);
            as_of > asked_at
        })
        .await;
    }
    let count = |answers: &mut dyn Iterator<Item = &CheckKeyResponse>| {
        let (admitted, all) = answers.fold((0, 0), |(admitted, all), one| (admitted + i64::from(one.allowed), all + 1));
        (all, admitted, all - admitted, if budget == Budget::Credits { admitted * row.cost } else { 0 })
    };
    let told = |bucket: &UsageBucket| (bucket.requests, bucket.allowed, bucket.denied, bucket.credits);
    let totals = usage.totals.as_ref().unwrap();
    assert_eq!(told(totals), count(&mut answers.iter().flatten()));
    let refused = totals.by_verdict.get(budget.refusal().as_str_name().trim_start_matches("VERDICT_"));
    assert_eq!(refused.copied().unwrap_or(0), totals.denied, "{totals:?}");
    for ((id, _), answers) in subject.keys.iter().zip(answers) {
        // Of two days, if midnight has passed.
        let buckets = usage.buckets.iter().filter(|bucket| bucket.key_id == *id).map(told);
        let sum = buckets.reduce(|a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2, a.3 + b.3));
        assert_eq!(sum, Some(count(&mut answers.iter())), "{id}");
    }
}

async fn run(rows: &[Row], budgets: &[Budget], keys: usize) {
    let Some(cluster) = Cluster::start(rows[0].nodes).await else { return };
    for (row, budget) in rows.iter().flat_map(|row| budgets.iter().map(move |budget| (*row, *budget))) {
        assert_eq!((row.nodes, row.requests % keys), (cluster.servers.len(), 0));
        let subject = Subject::make(&cluster, row, budget, keys).await;
        let answers = check_all(&cluster, &subject, row).await;
        let of_all: Vec<&CheckKeyResponse> = answers.iter().flatten().collect();
        assert_eq!(of_all.len(), row.requests);
        let groups: Vec<Vec<&CheckKeyResponse>> = match budget {
            Budget::Credits | Budget::Pool(_) => vec![of_all],
            Budget::Key(_) => answers.iter().map(|of_key| of_key.iter().collect()).collect(),
        };
        let left: Vec<i64> = groups.iter().map(|group| assert_exact(group, row, budget)).collect();
        for (place, key) in subject.keys.iter().enumerate() {
            assert_left(&cluster, key, row, budget, left[place % left.len()]).await;
        }
        assert_counted(&cluster, &subject, row, budget, &answers).await;
        println!("{row:?} {budget:?} {keys} keys: {left:?} left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credits_are_spent_to_the_unit() {
    run(&PUBLISHED, &[Budget::Credits], 1).await;
    run(&OWN, &[Budget::Credits], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_spent_to_the_unit() {
    let budgets = [Budget::Key(FIXED), Budget::Key(SLIDING), Budget::Pool(FIXED), Budget::Pool(SLIDING)];
    run(&PUBLISHED, &budgets, 1).await;
    run(&OWN, &budgets, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_share_what_is_their_accounts_and_nothing_else() {
    let budgets =
        [Budget::Credits, Budget::Pool(FIXED), Budget::Pool(SLIDING), Budget::Key(FIXED), Budget::Key(SLIDING)];
    run(&SHARED, &budgets, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_spend_what_they_share_to_the_unit() {
    for row in REPLICATED {
        run(&[row], &[Budget::Credits, Budget::Key(FIXED), Budget::Pool(SLIDING)], 1).await;
    }
}

/// While checks go on, no answer says more or less than what was asked before it and could be asked until it: those of limits and
/// credits at once, the usage report up to the time that it names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_agree_while_checks_go_on() {
    const CAPACITY: i64 = 1_000_000;
    let Some(cluster) = Cluster::start(1).await else { return };
    let (server, token) = (&cluster.servers[0], &cluster.home.token);
    let subject = Subject::make(&cluster, row(1, CAPACITY, 1, 4, 0), Budget::Credits, 1).await;
    let (id, secret) = subject.keys[0].clone();
    let (sent, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut lanes = JoinSet::new();
    for _ in 0..4 {
        let (mut client, secret) = (server.keys(token).await, secret.clone());
        let (sent, answered) = (Arc::clone(&sent), Arc::clone(&answered));
        lanes.spawn(async move {
            loop {
                let request = CheckKeyRequest { key: secret.clone(), ..Default::default() };
                sent.fetch_add(1, Ordering::SeqCst);
                assert!(client.check_key(request).await.unwrap().into_inner().allowed);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let count = |counter: &AtomicUsize| i64::try_from(counter.load(Ordering::SeqCst)).unwrap();
    let mut client = server.keys(token).await;
    let mut itself = server.keys(&secret).await;
    let clock = Clock::system();
    for _ in 0..20 {
        let (least, asked_at) = (count(&answered), clock.now());
        let limits = client.get_limits(GetLimitsRequest { id: id.clone() }).await.unwrap().into_inner();
        let me = itself.get_self(GetSelfRequest {}).await.unwrap().into_inner();
        let most = count(&sent);
        for left in [limits.credits.unwrap().remaining, me.credits_remaining.unwrap()] {
            assert!((least..=most).contains(&(CAPACITY - left)), "{left} left after {least} to {most}");
        }
        // The report is behind, and says how far.
        loop {
            let request = GetUsageRequest { key_id: id.clone(), ..GetUsageRequest::default() };
            let report = client.get_usage(request).await.unwrap().into_inner();
            let totals = report.totals.unwrap();
            assert!(totals.credits <= count(&sent) && totals.credits == totals.allowed, "{totals:?}");
            if report
                .as_of
                .is_some_and(|as_of| as_of.seconds * 1_000 + i64::from(as_of.nanos) / 1_000_000 > asked_at.millis())
            {
                assert!(totals.credits >= least, "{totals:?} after {least}");
                break;
            }
        }
    }
    lanes.abort_all();
}

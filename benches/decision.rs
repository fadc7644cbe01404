//! What a decision costs, whole and in parts, without the network. The target is less than 2 µs for a check with three
//! limits among a million keys.
//!
//! ```sh
//! cargo bench --bench decision
//! cargo bench --bench decision -- check            # some of them
//! cargo bench --bench decision -- --test           # each once, among few keys: whether they still run
//! ```
#![cfg(test)]

use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use divan::Bencher;
use secrecy::ExposeSecret as _;
use tollgate::ambient::Clock;
use tollgate::decision::quota::{Rule, State};
use tollgate::decision::restriction::{Endpoint, endpoint_allowed};
use tollgate::decision::secret::{Brand, Hasher, Shape};
use tollgate::decision::window::{Calendar, window_at};
use tollgate::decision::{AccountTerms, Expiry, KeyPhase, KeyRecord, Request, authorize};
use tollgate::domain::{
    Account, AccountId, AccountStatus, Algorithm, EndpointPattern, Environment, KeyId, Limit, LimitName, Metadata,
    Period, Plan, PlanId, Policy, Restrictions, Revision, Scope, ScopeRef, SecretHash, Time, TimeZone, TopUps,
    UNITS_MAX, Verdict,
};
use tollgate::engine::{Answer, Check, Engine, Options};
use tollgate::store::{Loaded, LoadedKey};

use memory_store::MemoryStore;

mod memory_store;

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

/// Keys in the index.
static KEYS: LazyLock<usize> =
    LazyLock::new(|| if std::env::args().any(|argument| argument == "--test") { 1_000 } else { 1_000_000 });
/// Keys of which the secret is known, and that are therefore checked. More than the processor's caches hold.
const KEYS_CHECKED_MAX: usize = 1 << 17;

const NOW: Time = Time::from_millis(1_770_000_000_000);

fn limit(name: &str, period: Period, algorithm: Algorithm) -> Limit {
    Limit { name: LimitName::parse(name).unwrap(), capacity: UNITS_MAX, period, algorithm }
}

fn three_limits() -> Vec<Limit> {
    vec![
        limit("per-minute", Period::Minute, Algorithm::FixedWindow),
        limit("per-hour", Period::Hour, Algorithm::FixedWindow),
        limit("per-day", Period::Day, Algorithm::FixedWindow),
    ]
}

fn plan(id: &str, key_limits: Vec<Limit>, account_limits: Vec<Limit>, monthly_credits: Option<u64>) -> Plan {
    Plan {
        id: PlanId::parse(id).unwrap(),
        display_name: id.to_owned(),
        api_access: true,
        key_limits,
        account_limits,
        monthly_credits,
        allowed_scopes: Vec::new(),
        keys_max: None,
        create_time: NOW,
        update_time: NOW,
        revision: Revision::new(1),
    }
}

fn account(id: &str, plan: &Plan) -> Account {
    Account {
        id: AccountId::parse(id).unwrap(),
        name: id.to_owned(),
        plan: plan.id.clone(),
        status: AccountStatus::Active,
        time_zone: TimeZone::parse("Europe/Berlin").unwrap(),
        key_limits: Vec::new(),
        account_limits: Vec::new(),
        credits: None,
        credits_reset_day: 1,
        top_ups: TopUps::default(),
        metadata: Metadata::default(),
        create_time: NOW,
        update_time: NOW,
        revision: Revision::new(1),
    }
}

fn policy() -> Policy {
    let scopes = ["tasks:read", "tasks:write", "projects:read"].map(|scope| Scope::parse(scope).unwrap());
    Policy { scopes: scopes.into(), ..Policy::default() }
}

fn record(name: &str, policy: &Arc<Policy>) -> KeyRecord {
    KeyRecord {
        name: name.into(),
        policy: Arc::clone(policy),
        metadata: None,
        expiry: Expiry::new(None),
        previous: None,
        revision: Revision::new(1),
        environment: Environment::Live,
        phase: KeyPhase::Active,
    }
}

/// Bits that differ from number to number, and look random (`SplitMix64`).
fn bits(number: usize) -> [u8; 32] {
    let mut state = u64::try_from(number).unwrap();
    let mut bits = [0; 32];
    for word in bits.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (z ^ (z >> 31)).to_be_bytes();
    }
    bits
}

fn secret(number: usize) -> String {
    Brand::default().format(Environment::Live, &bits(number)).0.expose_secret().to_owned()
}

/// An engine full of keys, and the secrets of some.
struct Full {
    engine: Arc<Engine>,
    /// Asks the store for leases, and waits where a check has to.
    runtime: tokio::runtime::Runtime,
    secrets: Vec<String>,
    next: AtomicUsize,
}

impl Full {
    fn new(plan: &Plan) -> Self {
        let account = account("acct_a", plan);
        let policy = Arc::new(policy());
        let secrets: Vec<String> = (0..KEYS_CHECKED_MAX.min(*KEYS)).map(secret).collect();
        let key = |number: usize| LoadedKey {
            id: KeyId::from_bytes(*bits(number).first_chunk().unwrap()),
            account_id: account.id.clone(),
            hash: secrets.get(number).map_or_else(|| SecretHash::from_bytes(bits(number)), |secret| hash_of(secret)),
            record: record(&format!("key {number}"), &policy),
        };
        let keys = (0..*KEYS).map(key).collect();
        let loaded =
            vec![Loaded::Plans(vec![plan.clone()]), Loaded::Accounts(vec![account.clone()]), Loaded::Keys(keys)];
        let store = Arc::new(MemoryStore::new(loaded));
        let engine = Arc::new(Engine::new(store, Clock::system(), Options::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(engine.load()).unwrap();
        runtime.spawn({
            let engine = Arc::clone(&engine);
            async move { engine.serve_leases(std::future::pending()).await }
        });
        assert_eq!(engine.index_size().0, *KEYS);
        Self { engine, runtime, secrets, next: AtomicUsize::new(0) }
    }

    /// One key after another, in an order that no processor foresees.
    fn next_secret(&self) -> &str {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.secrets[turn.wrapping_mul(0x9e37_79b1) % self.secrets.len()]
    }

    /// A check to its end: as a rule that is its first step.
    fn answer(&self, check: &Check<'_>) -> Answer {
        let mut answer = pin!(self.engine.check(black_box(check), self.engine.clock().now()));
        match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer.unwrap(),
            Poll::Pending => self.runtime.block_on(answer).unwrap(),
        }
    }

    /// A whole check: it must be allowed, and by so many limits.
    fn check(&self, credential: &str, limits: usize) {
        let all_of = vec![ScopeRef::parse("tasks:read").unwrap()];
        let request = Request { all_of, ..Request::default() };
        let check = Check { credential, request, cost: 1, consume: true, within: None, attempt: None };
        let answer = black_box(self.answer(&check));
        assert_eq!((answer.verdict, answer.limits.len()), (Verdict::Allowed, limits));
    }

    fn refuse(&self, credential: &str, verdict: Verdict) {
        let check =
            Check { credential, request: Request::default(), cost: 1, consume: true, within: None, attempt: None };
        assert_eq!(black_box(self.answer(&check)).verdict, verdict);
    }
}

fn hash_of(secret: &str) -> SecretHash {
    Hasher::plain().candidates(secret, Shape::Own).next().unwrap()
}

/// Three limits a key.
static KEY_LIMITS: LazyLock<Full> = LazyLock::new(|| Full::new(&plan("free", three_limits(), Vec::new(), None)));
/// One limit a key, one that the account's keys share, and credits.
static POOLED: LazyLock<Full> = LazyLock::new(|| {
    let [minute, hour, _] = three_limits().try_into().unwrap();
    Full::new(&plan("pooled", vec![minute], vec![hour], Some(UNITS_MAX)))
});

/// Whole checks: `Engine::check`, among a million keys.
mod check {
    use super::*;

    /// Checks of a sample. Fewer would tell what the first ones after divan's own work cost.
    const ANY_KEY: u32 = 1_000;

    #[divan::bench(threads = [1, 2])]
    fn three_limits_one_key(bencher: Bencher<'_, '_>) {
        let full = &*KEY_LIMITS;
        bencher.bench(|| full.check(&full.secrets[0], 3));
    }

    #[divan::bench(threads = [1, 2], sample_size = ANY_KEY)]
    fn three_limits_any_key(bencher: Bencher<'_, '_>) {
        let full = &*KEY_LIMITS;
        full.secrets.iter().for_each(|secret| full.check(secret, 3));
        bencher.bench(|| full.check(full.next_secret(), 3));
    }

    #[divan::bench(threads = [1, 2], sample_size = ANY_KEY)]
    fn pooled_limit_and_credits_any_key(bencher: Bencher<'_, '_>) {
        let full = &*POOLED;
        full.secrets.iter().for_each(|secret| full.check(secret, 2));
        bencher.bench(|| full.check(full.next_secret(), 2));
    }

    #[divan::bench]
    fn unknown_key(bencher: Bencher<'_, '_>) {
        let (full, forged) = (&*KEY_LIMITS, secret(usize::MAX));
        bencher.bench(|| full.refuse(&forged, Verdict::Unknown));
    }

    #[divan::bench]
    fn damaged_key(bencher: Bencher<'_, '_>) {
        let full = &*KEY_LIMITS;
        let damaged = full.secrets[0].replacen("live", "test", 1);
        bencher.bench(|| full.refuse(&damaged, Verdict::Malformed));
    }
}

/// Its parts.
mod part {
    use super::*;

    #[divan::bench]
    fn secret_shape(bencher: Bencher<'_, '_>) {
        let (brand, secret) = (Brand::default(), secret(0));
        assert_eq!(brand.shape(&secret), Shape::Own);
        bencher.bench(|| brand.shape(black_box(&secret)));
    }

    #[divan::bench]
    fn secret_hash(bencher: Bencher<'_, '_>) {
        let secret = secret(0);
        bencher.bench(|| hash_of(black_box(&secret)));
    }

    #[divan::bench]
    fn secret_hash_with_pepper(bencher: Bencher<'_, '_>) {
        let (hasher, secret) = (Hasher::with_peppers(&[("p1".to_owned(), vec![7; 32])]), secret(0));
        bencher.bench(|| hasher.candidates(black_box(&secret), Shape::Own).next());
    }

    #[divan::bench]
    fn authorize_plain(bencher: Bencher<'_, '_>) {
        bench_authorize(bencher, policy(), &Request::default());
    }

    #[divan::bench]
    fn authorize_restricted(bencher: Bencher<'_, '_>) {
        let endpoints = ["GET /v1/tasks/*", "POST /v1/tasks", "GET /v1/projects/**"];
        let restrictions = Restrictions {
            allowed_ips: ["10.0.0.0/8", "192.0.2.0/24"].map(|net| Restrictions::parse_ip(net).unwrap()).into(),
            allowed_referrers: Vec::new(),
            allowed_endpoints: endpoints.map(|endpoint| EndpointPattern::parse(endpoint).unwrap()).into(),
        };
        let request = Request {
            all_of: vec![ScopeRef::parse("projects:read").unwrap()],
            client_ip: Some([192, 0, 2, 7].into()),
            endpoint: endpoint("/v1/projects/17/tasks"),
            ..Request::default()
        };
        bench_authorize(bencher, Policy { restrictions, ..policy() }, &request);
    }

    fn bench_authorize(bencher: Bencher<'_, '_>, policy: Policy, request: &Request<'_>) {
        let plan = plan("free", three_limits(), Vec::new(), None);
        let (record, terms) = (record("a", &Arc::new(policy)), AccountTerms::new(&account("acct_a", &plan), &plan));
        assert_eq!(authorize(&record, None, &terms, request, NOW), Ok(()));
        bencher.bench(|| authorize(black_box(&record), None, &terms, black_box(request), NOW));
    }

    fn endpoint(path: &str) -> Endpoint<'_> {
        Endpoint { method: Some("GET"), host: Some("api.example.com"), path: Some(path) }
    }

    /// The longest list of the costliest patterns, none of which matches.
    #[divan::bench]
    fn endpoint_worst_case(bencher: Bencher<'_, '_>) {
        let pattern = EndpointPattern::parse(&format!("GET /{}b", "*a".repeat(140))).unwrap();
        let (patterns, path) = (vec![pattern; 64], format!("/{}", "a".repeat(4_000)));
        bencher.bench(|| endpoint_allowed(black_box(&patterns), endpoint(&path)));
    }

    #[divan::bench(args = ["minute in UTC", "day in Europe/Berlin", "month in Europe/Berlin"])]
    fn next_window(bencher: Bencher<'_, '_>, name: &str) {
        let (period, zone) = name.split_once(" in ").unwrap();
        let period = match period {
            "minute" => Period::Minute,
            "day" => Period::Day,
            _ => Period::Month,
        };
        let zone = TimeZone::parse(zone).unwrap();
        bencher.bench(|| window_at(Calendar::Period(period), &zone, black_box(NOW)));
    }

    #[divan::bench]
    fn fixed_window_grant(bencher: Bencher<'_, '_>) {
        bench_grant(bencher, Algorithm::FixedWindow);
    }

    /// With a grant in each of its slots.
    #[divan::bench]
    fn sliding_window_grant(bencher: Bencher<'_, '_>) {
        bench_grant(bencher, Algorithm::SlidingWindow);
    }

    fn bench_grant(bencher: Bencher<'_, '_>, algorithm: Algorithm) {
        let rule = Rule::of(&limit("a", Period::Minute, algorithm));
        let mut state = State::new(&rule, &TimeZone::UTC, NOW);
        let mut take = |now: Time| {
            state.advance(&rule, &TimeZone::UTC, now);
            (state.grant(&rule, 1), state.reset_time(now))
        };
        (0..60).for_each(|second| assert_eq!(take(NOW.plus_millis(second * 1_000)).0, 1));
        bencher.bench_local(|| take(black_box(NOW.plus_millis(59_000))));
    }
}

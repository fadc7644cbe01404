//! Clients that check without a pause, on all replicas at once, and write down what they were told.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::proto::v1::{CheckKeyRequest, RefundCheckRequest, RevokeKeyRequest};
use tonic::{Code, Status};

use crate::history::{Answer, Call, History, Kind, now};
use crate::replicas::{Cluster, Made};
use crate::support::{Keys, dice};

/// After how long a client asks no further.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
/// Repeats a run as far as the clients are concerned.
const SEED: &str = "TOLLGATE_TEST_SEED";

/// Numbers that follow from a seed: what a client asks. When it does is up to the machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// With the seed of this run, which is printed.
    pub(crate) fn of_this_run() -> Self {
        let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| dice(1 << 32));
        println!("{SEED}={seed}");
        Self(seed)
    }

    /// Others, for the client of this number.
    pub(crate) fn fork(&self, number: u64) -> Self {
        let mut forked = Self(self.0 ^ number.wrapping_mul(0xA076_1D64_78BD_642F));
        forked.next();
        forked
    }

    /// `SplitMix64`.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    /// Clients of each replica.
    pub(crate) clients: usize,
    /// Between two calls of a client.
    pub(crate) pause: Duration,
    pub(crate) cost_max: i64,
    /// Of a hundred calls, how many are operations; each is asked for by several clients, of several replicas.
    pub(crate) operations: usize,
    /// Of a hundred operations, how many are given back.
    pub(crate) refunds: usize,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { clients: 4, pause: Duration::from_millis(2), cost_max: 1, operations: 0, refunds: 0 }
    }
}

/// Clients that go on until they are told to end.
#[derive(Debug)]
pub(crate) struct Load {
    ending: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Of all replicas.
    pub(crate) fn start(cluster: &Cluster, keys: &Arc<Vec<Made>>, history: &Arc<History>, traffic: Traffic) -> Self {
        Self::start_on(cluster, 0..cluster.len(), keys, history, traffic)
    }

    /// Of these replicas.
    pub(crate) fn start_on(
        cluster: &Cluster,
        replicas: Range<usize>,
        keys: &Arc<Vec<Made>>,
        history: &Arc<History>,
        traffic: Traffic,
    ) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let dice = Dice::of_this_run();
        let mut clients = JoinSet::new();
        for number in 0..traffic.clients * replicas.len() {
            let replica = replicas.start + number % replicas.len();
            let client = Client {
                keys: cluster.keys(replica),
                replica,
                made: Arc::clone(keys),
                history: Arc::clone(history),
                traffic,
                dice: dice.fork(u64::try_from(number).unwrap()),
            };
            clients.spawn(client.go_on(Arc::clone(&ending)));
        }
        Self { ending, clients }
    }

    pub(crate) async fn end(self) {
        self.ending.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
    }
}

#[derive(Debug)]
struct Client {
    keys: Keys,
    replica: usize,
    made: Arc<Vec<Made>>,
    history: Arc<History>,
    traffic: Traffic,
    dice: Dice,
}

impl Client {
    async fn go_on(mut self, ending: Arc<AtomicBool>) {
        // Operations are new over time, and each is tried by most clients.
        let mut turn = 0;
        while !ending.load(Ordering::Relaxed) {
            turn += 1;
            if self.dice.below(100) < self.traffic.operations {
                let number = turn / 10 * 8 + self.dice.below(8);
                self.operation(number).await;
            } else {
                let (key, cost) = (self.dice.below(self.made.len()), 1 + self.cost());
                check(&mut self.keys, self.replica, (key, &self.made[key]), cost, &self.history).await;
            }
            tokio::time::sleep(self.traffic.pause).await;
        }
    }

    fn cost(&mut self) -> i64 {
        i64::try_from(self.dice.below(usize::try_from(self.traffic.cost_max).unwrap())).unwrap()
    }

    async fn operation(&mut self, number: usize) {
        let key = number % self.made.len();
        let cost = 1 + i64::try_from(number).unwrap() % self.traffic.cost_max;
        let operation_id = format!("operation-{number}");
        let number = u64::try_from(number).unwrap();
        let request = CheckKeyRequest {
            key: self.made[key].secret.clone(),
            cost: Some(cost),
            operation_id: operation_id.clone(),
            ..CheckKeyRequest::default()
        };
        let start = now();
        let answer = Answer::of_check(&in_time(self.keys.check_key(request)).await);
        let mut call =
            Call { start, end: now(), replica: self.replica, key, kind: Kind::Operation(number), cost, answer };
        self.history.record(call);
        if answer == Answer::Admitted && self.dice.below(100) < self.traffic.refunds {
            call.start = now();
            let account_id = self.made[key].account_id.clone();
            let request = RefundCheckRequest { operation_id, account_id };
            call.answer = Answer::of_change(&in_time(self.keys.refund_check(request)).await);
            call.kind = Kind::Refund(number);
            call.end = now();
            self.history.record(call);
        }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(DEADLINE, call).await;
    answer.unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "the client waits no longer")))
}

/// Checks a key by its place, and writes down what came of it.
pub(crate) async fn check(
    client: &mut Keys,
    replica: usize,
    (key, made): (usize, &Made),
    cost: i64,
    history: &History,
) -> Answer {
    let request = CheckKeyRequest { key: made.secret.clone(), cost: Some(cost), ..CheckKeyRequest::default() };
    let start = now();
    let answer = Answer::of_check(&in_time(client.check_key(request)).await);
    history.record(Call { start, end: now(), replica, key, kind: Kind::Check, cost, answer });
    answer
}

/// Revokes a key by its place; waits for as long as that takes. Returns for how long it did.
pub(crate) async fn revoke(
    client: &mut Keys,
    replica: usize,
    (key, made): (usize, &Made),
    history: &History,
) -> (Answer, Duration) {
    let start = now();
    let request = RevokeKeyRequest { id: made.id.clone(), reason: "a test".into() };
    let answer = Answer::of_change(&client.revoke_key(request).await);
    let end = now();
    history.record(Call { start, end, replica, key, kind: Kind::Revoke, cost: 0, answer });
    (answer, end.saturating_sub(start))
}

//! A key that is revoked is admitted nowhere from the moment on at which `RevokeKey` has returned, whatever happens to replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::checker::revocations_hold;
use crate::history::{Answer, History, Tally, now, since};
use crate::load::{Load, Traffic, check, revoke};
use crate::replicas::{Cluster, LONG, Made, SHORT, Shape};
use crate::support::{GLANCE, Keys, PATIENCE};

/// In all, by how many at once.
const HEALTHY: usize = 1_000;
const REVOKERS: usize = 8;
/// In each test with a fault: how often the fault comes, and how many keys are revoked while it is there.
const ROUNDS: usize = 2;
const OF_A_ROUND: usize = 10;
const FENCE: Duration = SHORT;

/// A cluster with keys and clients.
struct Scene {
    cluster: Cluster,
    keys: Arc<Vec<Made>>,
    history: Arc<History>,
    load: Load,
}

impl Scene {
    /// Keys, the last of which is never revoked.
    async fn open(keys: usize, fence: Duration) -> Option<Self> {
        let cluster = Cluster::start(Shape { fence, ..Shape::default() })?;
        let account = cluster.account(Vec::new(), None).await;
        let (keys, history) =
            (Arc::new(cluster.make_keys(&account, keys + 1, &[]).await), Arc::new(History::default()));
        let load = Load::start(&cluster, &keys, &history, Traffic::default());
        Some(Self { cluster, keys, history, load })
    }

    /// Revokes keys at these replicas, several at once, and checks each on all replicas at once when its revocation returns.
    /// Returns how long the revocations took, in order.
    async fn revoke(&self, keys: std::ops::Range<usize>, at: &[usize]) -> Vec<Duration> {
        let next = Arc::new(AtomicUsize::new(keys.start));
        let mut revokers = JoinSet::new();
        for number in 0..REVOKERS {
            let replica = at[number % at.len()];
            let mut client = self.cluster.keys(replica);
            let mut checkers: Vec<_> = (0..self.cluster.len()).map(|replica| self.cluster.keys(replica)).collect();
            let (next, made, history) = (Arc::clone(&next), Arc::clone(&self.keys), Arc::clone(&self.history));
            let end = keys.end;
            revokers.spawn(async move {
                let mut took = Vec::new();
                loop {
                    let key = next.fetch_add(1, Ordering::Relaxed);
                    if key >= end {
                        return took;
                    }
                    took.push(revoked(&mut client, replica, (key, &made[key]), &history).await);
                    let mut checks = JoinSet::new();
                    for (replica, client) in checkers.iter_mut().enumerate() {
                        let (mut client, made, history) = (client.clone(), Arc::clone(&made), Arc::clone(&history));
                        checks.spawn(async move {
                            check(&mut client, replica, (key, &made[key]), 1, &history).await;
                        });
                    }
                    checks.join_all().await;
                }
            });
        }
        let mut took: Vec<Duration> = revokers.join_all().await.into_iter().flatten().collect();
        took.sort_unstable();
        took
    }

    async fn close(self, revoked: usize) {
        // Those that are late, or were asleep.
        for replica in 0..self.cluster.len() {
            let mut client = self.cluster.keys(replica);
            for key in 0..revoked.min(ROUNDS * OF_A_ROUND) {
                check(&mut client, replica, (key, &self.keys[key]), 1, &self.history).await;
            }
        }
        self.load.end().await;
        let judged = revocations_hold(&self.history.calls()).unwrap();
        println!("{judged:?}, of {:?} in all", self.history.tally(Duration::ZERO, None));
        assert_eq!(judged.revoked, revoked);
        assert!(judged.checks_after >= revoked * self.cluster.len(), "each was denied by each replica");
    }
}

/// Revokes a key for sure: also by a replica that a busy machine keeps from its polls for a while.
async fn revoked(client: &mut Keys, replica: usize, key: (usize, &Made), history: &History) -> Duration {
    let begun = now();
    loop {
        match revoke(client, replica, key, history).await {
            (Answer::Done, took) => return took,
            (answer, _) => assert!(since(begun) < PATIENCE, "{answer:?} for key {} by replica {replica}", key.0),
        }
        tokio::time::sleep(GLANCE).await;
    }
}

fn percentiles(took: &[Duration]) -> String {
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    format!("half within {:?}, 99 % within {:?}, all within {:?}", at(50), at(99), at(100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_admitted_by_no_replica_under_load() {
    let Some(scene) = Scene::open(HEALTHY, LONG).await else { return };
    let took = scene.revoke(0..HEALTHY, &[0, 1, 2]).await;
    println!("{HEALTHY} revocations: {}", percentiles(&took));
    let Tally { admitted, failed, .. } = scene.history.tally(Duration::ZERO, None);
    assert!(admitted > 0 && failed == 0, "{failed} checks failed");
    scene.close(HEALTHY).await;
}

/// Revokes while one replica after the other suffers, for longer than its fence.
async fn despite(what: &str, hurt: impl Fn(&Cluster, usize), help: impl Fn(&Cluster, usize)) {
    let Some(scene) = Scene::open(ROUNDS * OF_A_ROUND, FENCE).await else { return };
    let last = scene.keys.len() - 1;
    for round in 0..ROUNDS {
        let victim = (round + 1) % scene.cluster.len();
        let others: Vec<usize> = (0..scene.cluster.len()).filter(|replica| *replica != victim).collect();
        hurt(&scene.cluster, victim);
        let begun = now();
        let took = scene.revoke(round * OF_A_ROUND..(round + 1) * OF_A_ROUND, &others).await;
        println!("{what}: {}", percentiles(&took));
        tokio::time::sleep((begun + FENCE * 2).saturating_sub(now())).await;
        help(&scene.cluster, victim);
        let again = scene.cluster.serves(victim, &scene.keys[last]).await;
        println!("{what}: served again after {again:?}");
    }
    scene.close(ROUNDS * OF_A_ROUND).await;
}

fn heal(cluster: &Cluster, victim: usize) {
    cluster.replicas[victim].proxy.heal();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_admitted_by_no_replica_that_is_cut_off() {
    despite("cut off", |cluster, victim| cluster.replicas[victim].proxy.refuse(), heal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_admitted_by_no_replica_that_hears_nothing() {
    despite("black hole", |cluster, victim| cluster.replicas[victim].proxy.black_hole(), heal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_admitted_by_no_replica_that_is_heard_and_hears_nothing() {
    despite("half open", |cluster, victim| cluster.replicas[victim].proxy.half_open(), heal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_admitted_by_no_replica_that_hears_late() {
    despite("slow", |cluster, victim| cluster.replicas[victim].proxy.slow(FENCE * 2 / 5), heal).await;
}

/// It answers what waited for it as soon as it goes on, before it can have heard anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_admitted_by_no_replica_that_stood_still() {
    despite(
        "stopped",
        |cluster, victim| cluster.replicas[victim].hang(),
        |cluster, victim| cluster.replicas[victim].resume(),
    )
    .await;
}

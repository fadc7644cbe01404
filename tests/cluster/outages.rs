//! A replica that does not reach PostgreSQL answers for as long as its fence says, and then not at all.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::proto::v1::{ListKeysRequest, RevokeKeyRequest};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::history::{Answer, History, Tally, now, since};
use crate::load::{Load, Traffic};
use crate::replicas::{Cluster, LONG, Made, Replica, SHORT, Shape, yearly};
use crate::support::{create, eventually};

/// It must be less than this until a replica serves again, on any machine.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// A cluster with keys, half of them with a limit that is not used up, and clients. The replica at place 1 has this fence.
async fn open(fence: Duration) -> Option<(Cluster, Arc<Vec<Made>>, Arc<History>, Load)> {
    let cluster = Cluster::start(Shape { fence_of: Some((1, fence)), ..Shape::default() })?;
    let account = cluster.account(Vec::new(), None).await;
    let mut keys = cluster.make_keys(&account, 4, &[]).await;
    keys.extend(cluster.make_keys(&account, 4, &[yearly(1_000_000)]).await);
    let (keys, history) = (Arc::new(keys), Arc::new(History::default()));
    let load = Load::start(&cluster, &keys, &history, Traffic::default());
    tokio::time::sleep(Duration::from_secs(2)).await;
    Some((cluster, keys, history, load))
}

/// What became of the checks of keys without limits at one replica, of those that began since then.
fn plain(history: &History, replica: usize, since: Duration) -> Tally {
    let mut tally = Tally::default();
    for call in history.calls().iter().filter(|call| call.replica == replica && call.key < 4 && call.start >= since) {
        match call.answer {
            Answer::Admitted | Answer::Done => tally.admitted += 1,
            Answer::Denied(_) => tally.denied += 1,
            Answer::Failed(_) => tally.failed += 1,
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_shorter_than_the_fence_is_not_noticed() {
    let Some((cluster, _, history, load)) = open(Duration::from_secs(10)).await else { return };
    let since = now();
    cluster.replicas[1].proxy.black_hole();
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.replicas[1].proxy.heal();
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.end().await;
    let tally = plain(&history, 1, since);
    println!("{tally:?}, and with limits {:?}", history.tally(since, Some(1)));
    assert!(tally.admitted > 0);
    assert_eq!((tally.denied, tally.failed), (0, 0), "keys without limits");
    assert_eq!(history.tally(since, None).denied, 0, "a limit that can't be asked for is no reason to deny");
    // Those with limits may wait for what the one that is cut off had begun.
    assert_eq!((plain(&history, 0, since).failed, plain(&history, 2, since).failed), (0, 0));
}

/// Also what a poll brings that began long ago opens no fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_the_fence_ends_all_admissions_until_it_is_over() {
    let fence = SHORT;
    let Some((cluster, keys, history, load)) = open(fence).await else { return };
    let begun = now();
    cluster.replicas[1].proxy.black_hole();
    let shut = now() + fence;
    tokio::time::sleep(fence * 4).await;
    says_that_it_is_cut_off(&cluster).await;
    changes_nothing(&cluster, &keys).await;
    let healed = now();
    cluster.replicas[1].proxy.heal();
    let again = cluster.serves(1, &keys[0]).await;
    println!("served again after {again:?}");
    assert!(again < RECOVERY_MAX);
    let with_limit = cluster.serves(1, &keys[7]).await;
    println!("with a limit {with_limit:?} later");
    let victim = &cluster.replicas[1];
    eventually("it is ready, and no longer fenced", || is_ready(victim) && victim.metric(FENCED) < 0.5);
    eventually("all are there", || cluster.replicas.iter().all(|replica| replica.metric(ALIVE) > 2.5));
    let asked = now();
    while health(&cluster, 1).await != ServingStatus::Serving {
        assert!(since(asked) < RECOVERY_MAX, "health follows readiness");
    }
    assert!(!names(&cluster, &keys[0].account_id).await.iter().any(|name| name == NOT_MADE));
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.end().await;
    {
        let calls = history.calls();
        let of_victim = calls.iter().filter(|call| call.replica == 1 && call.start > shut && call.end < healed);
        let answers: Vec<Answer> = of_victim.map(|call| call.answer).collect();
        assert!(answers.len() > 10, "{answers:?}");
        assert!(answers.iter().all(|answer| matches!(answer, Answer::Failed(_))), "{answers:?}");
    }
    assert_eq!((plain(&history, 0, begun).failed, plain(&history, 2, begun).failed), (0, 0));
    assert_eq!(plain(&history, 1, healed + again).failed, 0, "it goes on");
    assert_eq!(history.tally(begun, None).denied, 0, "nothing was half revoked");
}

const FENCED: &str = "tollgate_replica_fenced";
const ALIVE: &str = "tollgate_replicas_alive";
/// What keys are called whose making failed.
const NOT_MADE: &str = "not made";
/// Changes at once. One after the other, each with all of its patience, they would take longer than the test waits.
const CHANGES: usize = 20;

fn is_ready(replica: &Replica) -> bool {
    replica.server.as_ref().unwrap().get("/readyz").0 == 200
}

async fn health(cluster: &Cluster, replica: usize) -> ServingStatus {
    let mut client = HealthClient::new(cluster.channel(replica));
    client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

/// The replica at place 1, to those who watch it; and what the others say of that.
async fn says_that_it_is_cut_off(cluster: &Cluster) {
    let victim = &cluster.replicas[1];
    assert!(!is_ready(victim));
    assert_eq!(health(cluster, 1).await, ServingStatus::NotServing);
    eventually("it says so", || victim.metric(FENCED) > 0.5);
    assert!(victim.metric("tollgate_replica_fence_age_seconds") > SHORT.as_secs_f64());
    for other in [0, 2] {
        let replica = &cluster.replicas[other];
        eventually("the others miss it", || (1.5..2.5).contains(&replica.metric(ALIVE)));
        assert!(is_ready(replica) && replica.metric(FENCED) < 0.5);
    }
}

/// Changes that the replica at place 1 is asked for are refused, all of them, and soon.
async fn changes_nothing(cluster: &Cluster, keys: &[Made]) {
    let mut changes = JoinSet::new();
    for number in 0..CHANGES {
        let (mut client, key) = (cluster.keys(1), keys[3].clone());
        changes.spawn(async move {
            if number == 0 {
                let request = RevokeKeyRequest { id: key.id, ..RevokeKeyRequest::default() };
                return client.revoke_key(request).await.map(drop);
            }
            create(&mut client, &key.account_id, NOT_MADE).await.map(drop)
        });
    }
    let made = tokio::time::timeout(Duration::from_secs(20), changes.join_all()).await;
    for made in made.expect("changes don't wait for each other in vain") {
        assert_eq!(made.unwrap_err().code(), Code::Unavailable);
    }
}

async fn names(cluster: &Cluster, account_id: &str) -> Vec<String> {
    let request = ListKeysRequest { account_id: account_id.to_owned(), page_size: 1_000, ..ListKeysRequest::default() };
    let keys = cluster.keys(0).list_keys(request).await.unwrap().into_inner().keys;
    keys.into_iter().map(|key| key.name).collect()
}

/// The other end of all connections is gone, and nobody says so; new ones are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_are_replaced_within_the_fence() {
    let Some((cluster, keys, history, load)) = open(Duration::from_secs(5)).await else { return };
    let since = now();
    cluster.replicas[1].proxy.lose();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let tally = plain(&history, 1, since);
    println!("{tally:?}, and with limits {:?}", history.tally(since, Some(1)));
    println!("with a limit {:?} later", cluster.serves(1, &keys[7]).await);
    load.end().await;
    assert!(tally.admitted > 0);
    assert_eq!((tally.denied, tally.failed), (0, 0), "keys without limits");
    assert_eq!(history.tally(since, None).denied, 0, "a limit that can't be asked for is no reason to deny");
}

/// A round trip takes two seconds of a fence of five.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_network_is_not_noticed_within_the_fence() {
    let Some((cluster, keys, history, load)) = open(Duration::from_secs(5)).await else { return };
    let since = now();
    cluster.replicas[1].proxy.slow(Duration::from_secs(1));
    tokio::time::sleep(Duration::from_secs(8)).await;
    let slow = plain(&history, 1, since);
    cluster.replicas[1].proxy.heal();
    cluster.serves(1, &keys[7]).await;
    load.end().await;
    println!("{slow:?} without limits, {:?} in all", history.tally(since, Some(1)));
    assert!(slow.admitted > 0);
    assert_eq!((slow.denied, slow.failed), (0, 0), "keys without limits");
    assert_eq!((plain(&history, 0, since).failed, plain(&history, 2, since).failed), (0, 0));
}

/// Each is ended in order and started again while clients check on all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_replaced_one_by_one_and_the_others_go_on() {
    let Some((mut cluster, keys, history, load)) = open(LONG).await else { return };
    for place in 0..cluster.len() {
        let since = now();
        cluster.replicas[place].stop();
        cluster.replicas[place].start();
        cluster.serves(place, &keys[0]).await;
        for other in (0..cluster.len()).filter(|other| *other != place) {
            let tally = history.tally(since, Some(other));
            assert!(tally.admitted > 0);
            assert_eq!((tally.denied, tally.failed), (0, 0), "replica {other}, while {place} was replaced");
        }
    }
    load.end().await;
    assert_eq!(cluster.leased_to_nobody(), 0);
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

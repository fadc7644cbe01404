//! No limit admits more than it has, whichever replicas spend it, and whatever happens to them; and what was charged is in the
//! usage report.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::proto::v1::{Algorithm, Key, Limit, UpdateKeyRequest, Verdict};

use crate::checker::{
    Bounds, Weight, Windows, agrees, charged, operations_stay, refusals, within, within_spans, within_windows,
};
use crate::history::{Answer, History, epoch_millis, now, since};
use crate::load::{Load, Traffic, check};
use crate::replicas::{Cluster, Made, SHORT, Shape, seconds, yearly};
use crate::support::PATIENCE;

const POOL: i64 = 900;
const OWN: i64 = 500;
const CREDITS: i64 = 700;
/// What a key has that all replicas are asked for at once, and how many clients of each ask.
const ALONE: i64 = 60;
const CLIENTS_ALONE: i64 = 6;
/// Checks of one key by one replica, before the next has its turn.
const DRAINED_AT_ONCE: usize = 100;
/// A denial may be remembered for a second.
const FORGOTTEN: Duration = Duration::from_millis(1_200);

/// Keys of three accounts: with a pooled limit, with a limit of each key, and with credits.
pub(crate) struct Books {
    pub(crate) keys: Arc<Vec<Made>>,
    pub(crate) history: Arc<History>,
    /// Which keys share how much.
    budgets: Vec<(&'static str, Vec<usize>, i64)>,
    accounts: Vec<(String, Vec<usize>)>,
}

impl Books {
    pub(crate) async fn open(cluster: &Cluster) -> Self {
        let pooled = cluster.account(vec![yearly(POOL)], None).await;
        let own = cluster.account(Vec::new(), None).await;
        let credits = cluster.account(Vec::new(), Some(CREDITS)).await;
        let mut keys = cluster.make_keys(&pooled, 3, &[]).await;
        keys.extend(cluster.make_keys(&own, 2, &[yearly(OWN)]).await);
        keys.extend(cluster.make_keys(&credits, 2, &[]).await);
        let budgets = vec![
            ("pool", vec![0, 1, 2], POOL),
            ("own", vec![3], OWN),
            ("own", vec![4], OWN),
            ("credits", vec![5, 6], CREDITS),
        ];
        let accounts = vec![(pooled, vec![0, 1, 2]), (own, vec![3, 4]), (credits, vec![5, 6])];
        Self { keys: Arc::new(keys), history: Arc::new(History::default()), budgets, accounts }
    }

    /// Takes all that is left, of all replicas, until all of them deny all keys; or until there was more than there can be.
    pub(crate) async fn drain(&self, cluster: &Cluster) {
        let begun = now();
        let running: Vec<usize> =
            (0..cluster.len()).filter(|replica| cluster.replicas[*replica].server.is_some()).collect();
        loop {
            let mut is_quiet = true;
            for replica in &running {
                let mut client = cluster.keys(*replica);
                for key in self.keys.iter().enumerate() {
                    for _ in 0..DRAINED_AT_ONCE {
                        let answer = check(&mut client, *replica, key, 1, &self.history).await;
                        is_quiet &= matches!(answer, Answer::Denied(_));
                        if answer != Answer::Admitted {
                            break;
                        }
                    }
                }
            }
            if is_quiet || self.overdrawn().is_some() {
                return;
            }
            let tally = self.history.tally(begun, None);
            assert!(since(begun) < PATIENCE * 2, "the limits are never used up: {tally:?}");
            tokio::time::sleep(FORGOTTEN).await;
        }
    }

    /// What of a limit was admitted that it has not.
    fn overdrawn(&self) -> Option<String> {
        let calls = self.history.calls();
        self.budgets.iter().find_map(|(_, keys, capacity)| within(&calls, keys, *capacity).err())
    }

    /// What was admitted of each limit is at most what it has; and, `lost` units set aside, no less, once it is used up.
    pub(crate) fn judge_limits(&self, lost: i64) {
        let calls = self.history.calls();
        for (what, keys, capacity) in &self.budgets {
            let bounds = within(&calls, keys, *capacity).unwrap();
            println!("{what}: {bounds:?} of {capacity}");
            agrees(&format!("{what} is used up"), bounds, *capacity, lost).unwrap();
        }
        println!("{} operations were asked for again", operations_stay(&calls).unwrap());
    }

    /// The same, where what nobody knows of counts as spent: no more, and not next to nothing either.
    pub(crate) fn judge_capacity(&self) {
        let calls = self.history.calls();
        for (what, keys, capacity) in &self.budgets {
            let bounds = within(&calls, keys, *capacity).unwrap();
            println!("{what}: {bounds:?} of {capacity}");
            assert!(bounds.high > capacity / 20, "{what}: {bounds:?} of {capacity}");
        }
    }

    /// The usage report tells what was admitted; of that, as much as `lost` checks may be missing.
    pub(crate) async fn judge_usage(&self, cluster: &Cluster, lost: i64) {
        for (account, keys) in &self.accounts {
            let usage = cluster.usage(account).await;
            let (checks, units) = {
                let calls = self.history.calls();
                (charged_checks(&calls, keys), charged(&calls, keys, Weight::Cost))
            };
            println!("{usage:?}, of {checks:?} checks and {units:?} units");
            agrees("checks in the usage report", less(checks, lost), usage.allowed, 0).unwrap();
            if keys.contains(&5) {
                agrees("credits in the usage report", less(units, lost * 3), usage.credits, 0).unwrap();
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::as_conversions, reason = "some hundred")]
fn whole(number: f64) -> i64 {
    number as i64
}

fn less(bounds: Bounds, by: i64) -> Bounds {
    Bounds { low: bounds.low - by, ..bounds }
}

/// Checks that the usage report counts as allowed: what is given back stays a check.
fn charged_checks(calls: &[crate::history::Call], keys: &[usize]) -> Bounds {
    let kept: Vec<_> =
        calls.iter().filter(|call| !matches!(call.kind, crate::history::Kind::Refund(_))).copied().collect();
    charged(&kept, keys, Weight::One)
}

/// Clients that use most of the limits up in some seconds, with operations among them, of which some are given back.
pub(crate) const TRAFFIC: Traffic =
    Traffic { clients: 2, pause: Duration::from_millis(5), cost_max: 3, operations: 20, refunds: 20 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_replicas_share_are_used_up_to_the_unit() {
    let Some(mut cluster) = Cluster::start(Shape::default()) else { return };
    let books = Books::open(&cluster).await;
    let load = Load::start(&cluster, &books.keys, &books.history, TRAFFIC);
    tokio::time::sleep(Duration::from_secs(6)).await;
    load.end().await;
    books.drain(&cluster).await;
    books.judge_limits(0);
    books.judge_usage(&cluster, 0).await;
    assert_eq!(books.history.tally(Duration::ZERO, None).failed, 0);
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

/// Asks each of the replicas for all there is of a limit, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_was_granted_no_other_is() {
    let Some(cluster) = Cluster::start(Shape::default()) else { return };
    let account = cluster.account(Vec::new(), None).await;
    let key = cluster.make_keys(&account, 1, &[yearly(ALONE)]).await.remove(0);
    let history = Arc::new(History::default());
    let mut asking = JoinSet::new();
    for replica in 0..cluster.len() {
        for _ in 0..CLIENTS_ALONE {
            let (mut client, key, history) = (cluster.keys(replica), key.clone(), Arc::clone(&history));
            asking.spawn(async move {
                for _ in 0..ALONE / CLIENTS_ALONE {
                    check(&mut client, replica, (0, &key), 1, &history).await;
                }
            });
        }
    }
    asking.join_all().await;
    let bounds = within(&history.calls(), &[0], ALONE).unwrap();
    println!("{bounds:?} of {ALONE}, {:?}", history.tally(Duration::ZERO, None));
    agrees("the limit is used up", bounds, ALONE, 0).unwrap();
}

/// Of which some are granted already that it does not have any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_lowered_denies_on_all_replicas() {
    let Some(cluster) = Cluster::start(Shape::default()) else { return };
    let account = cluster.account(Vec::new(), None).await;
    let made = cluster.make_keys(&account, 1, &[yearly(ALONE)]).await.remove(0);
    let history = History::default();
    for turn in 0..ALONE / 2 {
        let replica = usize::try_from(turn).unwrap() % cluster.len();
        assert_eq!(check(&mut cluster.keys(replica), replica, (0, &made), 1, &history).await, Answer::Admitted);
    }
    let key = Key { id: made.id.clone(), limits: vec![yearly(ALONE / 4)], ..Key::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["limits".to_owned()] });
    cluster.keys(0).update_key(UpdateKeyRequest { key: Some(key), update_mask }).await.unwrap();
    for replica in 0..cluster.len() {
        let answer = check(&mut cluster.keys(replica), replica, (0, &made), 1, &history).await;
        assert_eq!(answer, Answer::Denied(Verdict::RateLimited), "replica {replica}");
    }
}

/// What each knew of its spending is in its journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_killed_and_started_again_lose_nothing() {
    let Some(mut cluster) = Cluster::start(Shape { journal: true, ..Shape::default() }) else { return };
    let books = Books::open(&cluster).await;
    let load = Load::start(&cluster, &books.keys, &books.history, TRAFFIC);
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(300 + 170 * round)).await;
        let place = usize::try_from(round).unwrap() % cluster.len();
        cluster.replicas[place].kill();
        cluster.replicas[place].start();
    }
    load.end().await;
    books.drain(&cluster).await;
    books.judge_limits(0);
    books.judge_usage(&cluster, 0).await;
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

/// Its leases count as spent once it has been silent for long enough; the others have the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_held_that_never_comes_back_counts_as_spent() {
    let Some(mut cluster) = Cluster::start(Shape { fence_of: Some((0, SHORT)), ..Shape::default() }) else { return };
    let books = Books::open(&cluster).await;
    let load = Load::start(&cluster, &books.keys, &books.history, TRAFFIC);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.replicas[0].kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.end().await;
    books.drain(&cluster).await;
    let uncertain = cluster.replicas[1..].iter().map(|replica| replica.metric("tollgate_lease_uncertain_units_total"));
    let uncertain: f64 = uncertain.sum();
    println!("{uncertain} units are uncertain");
    assert!(uncertain > 0.0, "it held leases");
    books.judge_limits(whole(uncertain));
    // Its last counts are gone with it.
    let sum = books.history.tally(Duration::ZERO, Some(0)).admitted;
    books.judge_usage(&cluster, i64::try_from(sum).unwrap()).await;
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_while_postgresql_is_killed_and_restarted() {
    let Some(mut cluster) = Cluster::start(Shape::default()) else { return };
    let books = Books::open(&cluster).await;
    let load = Load::start(&cluster, &books.keys, &books.history, TRAFFIC);
    for end in [crate::support::postgres::Postgres::kill, crate::support::postgres::Postgres::stop] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        end(&cluster.postgres);
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.postgres.start_again();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.end().await;
    books.drain(&cluster).await;
    // An ask for a lease whose answer was lost may have been granted: nobody spends that.
    let lost = cluster.leased();
    println!("{lost} units are leased, and nobody knows of them");
    books.judge_limits(lost);
    books.judge_usage(&cluster, 0).await;
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

/// Of fixed windows and of sliding ones, which end many times while the test runs: less than clients ask for.
const WINDOW: Duration = Duration::from_secs(2);
const OF_A_WINDOW: i64 = 60;
/// How far what a replica knows of the database's clock may be off on a busy machine.
const CLOCK_SLACK: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_window_admits_more_than_it_has_whatever_befalls_replicas_and_database() {
    let Some(mut cluster) = Cluster::start(Shape { fence: SHORT, ..Shape::default() }) else { return };
    let account = cluster.account(Vec::new(), None).await;
    let fixed = seconds(i32::try_from(WINDOW.as_secs()).unwrap(), OF_A_WINDOW);
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..fixed.clone() };
    let mut keys = cluster.make_keys(&account, 2, &[fixed]).await;
    keys.extend(cluster.make_keys(&account, 2, &[sliding]).await);
    let (keys, history) = (Arc::new(keys), Arc::new(History::default()));
    let load = Load::start(&cluster, &keys, &history, Traffic::default());
    tokio::time::sleep(WINDOW).await;
    cluster.replicas[0].kill();
    cluster.replicas[0].start();
    cluster.replicas[1].proxy.black_hole();
    tokio::time::sleep(WINDOW).await;
    cluster.replicas[1].proxy.heal();
    tokio::time::sleep(WINDOW).await;
    cluster.postgres.kill();
    cluster.postgres.start_again();
    tokio::time::sleep(WINDOW * 3).await;
    load.end().await;
    let windows = Windows { length: WINDOW, epoch_millis: epoch_millis(), slack: CLOCK_SLACK };
    let calls = history.calls();
    for key in 0..keys.len() {
        let most = if key < 2 {
            within_windows(&calls, &[key], OF_A_WINDOW, windows).unwrap().1
        } else {
            within_spans(&calls, &[key], OF_A_WINDOW, WINDOW.saturating_sub(CLOCK_SLACK * 2)).unwrap()
        };
        println!("key {key}: at most {most} of {OF_A_WINDOW}");
        assert!(refusals(&calls, key) > 0, "the limit is reached");
    }
}

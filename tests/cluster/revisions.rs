//! What one replica was told, the others know: at once where they are asked to, and whatever they missed.

use std::sync::Arc;
use std::time::Duration;

use tollgate::proto::v1::*;
use tonic::Code;

use crate::checker::{Windows, revocations_hold, within_windows};
use crate::history::{Answer, History, epoch_millis, now, since};
use crate::load::{Load, Traffic, check, revoke};
use crate::replicas::{Cluster, SHORT, Shape, faketime, seconds};
use crate::support::{GLANCE, PATIENCE, create};

/// So often a key is made at one replica and checked at another.
const MADE: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_at_one_replica_is_known_to_the_others_when_they_are_asked_for_its_revision() {
    let Some(cluster) = Cluster::start(Shape::default()) else { return };
    let account = cluster.account(Vec::new(), None).await;
    let mut clients: Vec<_> = (0..cluster.len()).map(|replica| cluster.keys(replica)).collect();
    let mut late = 0;
    for turn in 0..MADE {
        let made = create(&mut clients[turn % 3], &account, &format!("key {turn}")).await.unwrap();
        loop {
            let key = made.secret.clone();
            let request = CheckKeyRequest { key, min_revision: made.revision, ..CheckKeyRequest::default() };
            match clients[(turn + 1) % 3].check_key(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    assert!(answer.allowed && answer.revision >= made.revision, "{turn}: {answer:?}");
                    break;
                }
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            }
            late += 1;
        }
    }
    println!("{late} of {MADE} checks had to be asked again");
    assert!(late < MADE / 2);
}

/// It loads all anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_for_longer_than_the_log_is_kept_catches_up() {
    let shape = Shape { fence: SHORT, flags: &["--replicas-log-kept=1s"], ..Shape::default() };
    let Some(mut cluster) = Cluster::start(shape) else { return };
    let account = cluster.account(Vec::new(), None).await;
    let keys = cluster.make_keys(&account, 30, &[]).await;
    let history = History::default();
    let revisions = |cluster: &Cluster| {
        let query = "SELECT count(*) FROM changes WHERE revision <= (SELECT max(revision) - 20 FROM changes)";
        cluster.postgres.sql(&cluster.database.name, query)
    };
    cluster.replicas[1].hang();
    cluster.replicas[2].proxy.refuse();
    let mut client = cluster.keys(0);
    for revoked in keys.iter().enumerate().take(10) {
        let (answer, _) = revoke(&mut client, 0, revoked, &history).await;
        assert_eq!(answer, Answer::Done);
    }
    let mut made = Vec::new();
    // Changes cut the log behind them.
    let begun = now();
    while made.len() < 40 || revisions(&cluster) != "0" {
        made.push(create(&mut client, &account, &format!("made {}", made.len())).await.unwrap());
        tokio::time::sleep(GLANCE * 10).await;
        assert!(since(begun) < PATIENCE, "the log is never cut");
    }
    cluster.replicas[1].resume();
    cluster.heal();
    for replica in 0..cluster.len() {
        cluster.serves(replica, &keys[29]).await;
        let mut client = cluster.keys(replica);
        for (key, revoked) in keys.iter().enumerate().take(11) {
            let answer = check(&mut client, replica, (key, revoked), 1, &history).await;
            assert_eq!(answer == Answer::Admitted, key == 10, "replica {replica}, key {key}: {answer:?}");
        }
        for made in &made {
            let request = CheckKeyRequest { key: made.secret.clone(), ..CheckKeyRequest::default() };
            let answer = client.check_key(request).await.unwrap().into_inner();
            assert!(answer.allowed, "replica {replica}: {answer:?}");
        }
    }
    println!("{:?}", revocations_hold(&history.calls()).unwrap());
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

/// Of a window of two seconds: less than clients ask for.
const CAPACITY: i64 = 60;

/// Windows, expiry and hours of usage go by the database's clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_wall_clock_is_wrong_counts_time_as_the_others_do() {
    if faketime().is_none() {
        return;
    }
    for by in ["+3600", "-3600"] {
        let Some(mut cluster) = Cluster::start(Shape { wrong_clock: Some((1, by)), ..Shape::default() }) else {
            return;
        };
        let account = cluster.account(Vec::new(), None).await;
        let keys = Arc::new(cluster.make_keys(&account, 2, &[seconds(2, CAPACITY)]).await);
        let in_millis = |millis: i64| {
            let at = cluster.database_millis() + millis;
            let nanos = i32::try_from(at.rem_euclid(1_000)).unwrap() * 1_000_000;
            Some(prost_types::Timestamp { seconds: at.div_euclid(1_000), nanos })
        };
        let mut secrets = Vec::new();
        for (name, expires) in [("long", 1_800_000), ("short", 4_000)] {
            let key = Key {
                account_id: account.clone(),
                name: name.into(),
                expire_time: in_millis(expires),
                ..Key::default()
            };
            let made = cluster.keys(1).create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
            secrets.push((made.secret, made.revision));
        }
        let verdicts = async || {
            let mut verdicts = Vec::new();
            for (secret, revision) in &secrets {
                for replica in 0..cluster.len() {
                    let request =
                        CheckKeyRequest { key: secret.clone(), min_revision: *revision, ..CheckKeyRequest::default() };
                    verdicts.push(cluster.keys(replica).check_key(request).await.unwrap().into_inner().verdict());
                }
            }
            verdicts
        };
        let expired_at = now() + Duration::from_secs(5);
        assert_eq!(verdicts().await, [Verdict::Allowed; 6], "clock {by}");
        let history = Arc::new(History::default());
        let load = Load::start(&cluster, &keys, &history, Traffic::default());
        tokio::time::sleep(expired_at.saturating_sub(now())).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        load.end().await;
        let denied = [Verdict::Expired; 3];
        assert_eq!(verdicts().await, [[Verdict::Allowed; 3], denied].concat(), "clock {by}");
        let windows = Windows {
            length: Duration::from_secs(2),
            epoch_millis: epoch_millis(),
            // How far what a replica knows of the database's clock may be off: half of what a poll takes.
            slack: Duration::from_millis(50),
        };
        for key in 0..keys.len() {
            let found = within_windows(&history.calls(), &[key], CAPACITY, windows).unwrap();
            println!("clock {by}, key {key}: {found:?} windows, and units in one of them");
            assert!(found.1 > CAPACITY / 2, "the limit is reached");
        }
        hours_are_right(&cluster, &account).await;
        assert_eq!(cluster.damage(), Vec::<String>::new());
    }
}

async fn hours_are_right(cluster: &Cluster, account: &str) {
    cluster.usage(account).await;
    let now_seconds = cluster.database_millis() / 1_000;
    let request = GetUsageRequest {
        account_id: account.to_owned(),
        granularity: Granularity::Hour.into(),
        start_time: Some(prost_types::Timestamp { seconds: now_seconds - 7_200, nanos: 0 }),
        end_time: Some(prost_types::Timestamp { seconds: now_seconds + 7_200, nanos: 0 }),
        ..GetUsageRequest::default()
    };
    let report = cluster.keys(0).get_usage(request).await.unwrap().into_inner();
    let hours: Vec<i64> =
        report.buckets.iter().filter_map(|bucket| bucket.start_time.map(|time| time.seconds)).collect();
    assert!(!hours.is_empty());
    // The test itself may have begun in the hour before.
    let begun = (now_seconds - 60).div_euclid(3_600) * 3_600;
    assert!(hours.iter().all(|hour| (begun..=now_seconds).contains(hour)), "{hours:?} at {now_seconds}");
}

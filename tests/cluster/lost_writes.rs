//! PostgreSQL goes back to an earlier state, by a standby that had not everything or by a backup, while replicas run: what was
//! revoked stays revoked, and what was charged stays charged.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tollgate::proto::v1::Verdict;

use crate::checker::revocations_hold;
use crate::history::{Answer, History, now, since};
use crate::limits::{Books, TRAFFIC};
use crate::load::{Load, Traffic, check, revoke};
use crate::replicas::{Cluster, Made, Replica, SHORT, Shape};
use crate::support::{PATIENCE, eventually, postgres::Postgres, run, text, tollgate};

const REVOKED: usize = 10;
const RECOVERY_MAX: Duration = PATIENCE;

/// Revokes keys and spends limits that the database then forgets: `remember` is called before, `forget` after.
async fn forgotten<T>(remember: impl FnOnce(&Cluster) -> T, forget: impl FnOnce(&mut Cluster, T)) {
    let Some(mut cluster) = Cluster::start(Shape { fence: SHORT, ..Shape::default() }) else { return };
    let books = Books::open(&cluster).await;
    let account = cluster.account(Vec::new(), None).await;
    let keys: Arc<Vec<Made>> = Arc::new(cluster.make_keys(&account, REVOKED + 1, &[]).await);
    let history = Arc::new(History::default());
    let spending = Load::start(&cluster, &books.keys, &books.history, TRAFFIC);
    let checking = Load::start(&cluster, &keys, &history, Traffic { clients: 2, ..Traffic::default() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let remembered = remember(&cluster);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for key in 0..REVOKED {
        let replica = key % cluster.len();
        let mut client = cluster.keys(replica);
        let (answer, _) = revoke(&mut client, replica, (key, &keys[key]), &history).await;
        assert_eq!(answer, Answer::Done);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;

    let begun = now();
    forget(&mut cluster, remembered);
    let lost = "SELECT count(*) FROM keys WHERE status = 'revoked'";
    println!("{} revocations are left in the database", cluster.postgres.sql(&cluster.database.name, lost));
    eventually("they are revoked again", || cluster.postgres.sql(&cluster.database.name, lost) == REVOKED.to_string());
    for replica in 0..cluster.len() {
        cluster.serves(replica, &keys[REVOKED]).await;
    }
    println!("served again after {:?}", since(begun));
    assert!(cluster.replicas.iter().all(|replica| replica.log().contains("THE DATABASE HAS GONE BACK")));
    assert!(since(begun) < RECOVERY_MAX);
    for replica in 0..cluster.len() {
        let mut client = cluster.keys(replica);
        for key in 0..REVOKED {
            let answer = check(&mut client, replica, (key, &keys[key]), 1, &history).await;
            assert!(matches!(answer, Answer::Denied(_)), "{answer:?}");
        }
    }
    checking.end().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    spending.end().await;
    // One that starts anew reads what the others have restated.
    cluster.replicas[2].kill();
    cluster.replicas[2].start();
    let mut client = cluster.keys(2);
    for key in 0..REVOKED {
        let answer = check(&mut client, 2, (key, &keys[key]), 1, &history).await;
        assert!(matches!(answer, Answer::Denied(_)), "{answer:?}");
    }
    let judged = revocations_hold(&history.calls()).unwrap();
    println!("{judged:?}");
    assert_eq!(judged.revoked, REVOKED);
    books.drain(&cluster).await;
    books.judge_capacity();
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lags_takes_over() {
    let remember = |cluster: &Cluster| {
        let standby = cluster.postgres.standby();
        cluster.postgres.is_followed_by(&standby);
        standby.hold_back();
        standby
    };
    let forget = |cluster: &mut Cluster, standby: Postgres| {
        cluster.postgres.kill();
        standby.promote();
        cluster.turn_to(standby);
    };
    forgotten(remember, forget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_under_running_replicas() {
    forgotten(|cluster| cluster.postgres.back_up(), |cluster, backup| cluster.postgres.restore(&backup)).await;
}

/// What it alone was granted is not granted again, although it has been fenced for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_while_the_database_goes_back_is_waited_for() {
    let Some(mut cluster) = Cluster::start(Shape { fence: SHORT, ..Shape::default() }) else { return };
    let books = Books::open(&cluster).await;
    let backup = cluster.postgres.back_up();
    let spending = Load::start_on(&cluster, 2..3, &books.keys, &books.history, TRAFFIC);
    tokio::time::sleep(Duration::from_secs(2)).await;
    spending.end().await;
    cluster.replicas[2].hang();
    cluster.postgres.restore(&backup);
    tokio::time::sleep(SHORT * 5).await;
    cluster.replicas[2].resume();
    for replica in 0..cluster.len() {
        cluster.serves(replica, &books.keys[0]).await;
    }
    books.drain(&cluster).await;
    books.judge_capacity();
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

/// Nothing but grants is lost: no revision tells that the database went back, and no process that polled before is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_from_before_all_replicas_were_replaced() {
    let Some(mut cluster) = Cluster::start(Shape { fence: SHORT, ..Shape::default() }) else { return };
    let books = Books::open(&cluster).await;
    let backup = cluster.postgres.back_up();
    for place in 0..cluster.len() {
        cluster.replicas[place].stop();
        cluster.replicas[place].start();
    }
    let spending = Load::start(&cluster, &books.keys, &books.history, TRAFFIC);
    tokio::time::sleep(Duration::from_secs(2)).await;
    spending.end().await;
    cluster.postgres.restore(&backup);
    for replica in 0..cluster.len() {
        cluster.serves(replica, &books.keys[0]).await;
    }
    books.drain(&cluster).await;
    books.judge_capacity();
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

/// Nobody remembers what it lacks, so an operator has to say it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_went_back_while_no_replica_ran_is_not_served_until_an_operator_has_looked() {
    let Some(mut cluster) = Cluster::start(Shape { fence: SHORT, ..Shape::default() }) else { return };
    let account = cluster.account(Vec::new(), None).await;
    let keys = cluster.make_keys(&account, 2, &[]).await;
    let history = History::default();
    let standby = cluster.postgres.standby();
    cluster.postgres.is_followed_by(&standby);
    standby.hold_back();
    assert_eq!(revoke(&mut cluster.keys(0), 0, (0, &keys[0]), &history).await.0, Answer::Done);
    cluster.replicas.iter_mut().for_each(Replica::stop);
    cluster.postgres.stop();
    standby.promote();
    cluster.turn_to(standby);
    let refusal = cluster.replicas[0].refused();
    assert!(refusal.contains("tollgate store adopt"), "{refusal}");

    let ids = cluster.home().join("ids");
    fs::write(&ids, format!("{}\n", keys[0].id)).unwrap();
    let adopted = run(tollgate(&["store", "adopt", "--revoke"]).arg(&ids).args(cluster.database.access()), "");
    assert!(text(&adopted).contains("1 of 1 keys"), "{adopted:?}");
    cluster.replicas.iter_mut().for_each(Replica::start);
    for replica in 0..cluster.len() {
        cluster.serves(replica, &keys[1]).await;
        let answer = check(&mut cluster.keys(replica), replica, (0, &keys[0]), 1, &history).await;
        assert_eq!(answer, Answer::Denied(Verdict::Revoked));
    }
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

//! PostgreSQL's disk fills up: changes fail and leave nothing behind, and go on where there is room again.

use std::collections::HashSet;

use tollgate::proto::v1::{ListKeysRequest, RevokeKeyRequest};
use tonic::Code;

use crate::history::{now, since};
use crate::replicas::{Cluster, SHORT, Shape};
use crate::support::postgres::{Postgres, SmallDisk};
use crate::support::{GLANCE, PATIENCE, create};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_changes_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(128) else { return };
    let Some(postgres) = Postgres::start_in(Some(disk.path()), "") else { return };
    let mut cluster = Cluster::on(postgres, Shape { fence: SHORT, ..Shape::default() });
    let account = cluster.account(Vec::new(), None).await;
    let keys = cluster.make_keys(&account, 3, &[]).await;
    let (mut made, mut unknown) = (HashSet::new(), 0);
    disk.fill();
    let begun = now();
    let mut failures = 0;
    // What is in its log already may leave room for a few.
    while failures < 5 {
        assert!(since(begun) < PATIENCE, "the disk never fills up: {} were made", made.len());
        let replica = (made.len() + failures) % cluster.len();
        match create(&mut cluster.keys(replica), &account, &format!("key {} {failures}", made.len())).await {
            Ok(answer) => {
                made.insert(answer.key.unwrap().id);
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                failures += 1;
                unknown += 1;
            }
        }
    }
    println!("{} were made before it was full", made.len());
    let revoke = |key: usize| RevokeKeyRequest { id: keys[key].id.clone(), reason: "a test".into() };
    let refused = cluster.keys(0).revoke_key(revoke(0)).await;
    println!("{refused:?}");

    disk.free();
    for replica in 0..cluster.len() {
        cluster.serves(replica, &keys[2]).await;
    }
    let begun = now();
    while let Err(status) = cluster.keys(0).revoke_key(revoke(1)).await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(since(begun) < PATIENCE, "{status:?}");
        tokio::time::sleep(GLANCE).await;
    }
    made.insert(create(&mut cluster.keys(1), &account, "afterwards").await.unwrap().key.unwrap().id);
    let mut listed = HashSet::new();
    let mut page_token = String::new();
    loop {
        let request = ListKeysRequest { account_id: account.clone(), page_token, ..ListKeysRequest::default() };
        let page = cluster.keys(2).list_keys(request).await.unwrap().into_inner();
        listed.extend(page.keys.into_iter().map(|key| key.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(made.is_subset(&listed), "what was acknowledged is there");
    let more = listed.len() - made.len() - keys.len();
    println!("{more} of {unknown} that failed are there: their answers were lost");
    assert!(more <= unknown);
    assert_eq!(cluster.damage(), Vec::<String>::new());
}

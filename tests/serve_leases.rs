//! The real binary, stopped in order under load: every unit that it had leased and not spent is there again, without the help of
//! a journal.
#![cfg(test)]

mod support;

use support::Home;
use tollgate::proto::v1::*;

const ROUNDS: i64 = 5;
const CLIENTS: i64 = 4;
const CHECKS: i64 = 100;
const CAPACITY: i64 = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_returns_every_lease() {
    let arguments = ["--limits-journal", "off"];
    let home = Home::new();
    let mut server = home.serve(&arguments);
    let (_, secret) = support::budgeted_key(&server, &home.token, CAPACITY).await;
    for round in 1..=ROUNDS {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CLIENTS {
            let (mut client, secret) = (server.keys(&home.token).await, secret.clone());
            clients.spawn(async move {
                for _ in 0..CHECKS {
                    let request = CheckKeyRequest { key: secret.clone(), ..CheckKeyRequest::default() };
                    assert!(client.check_key(request).await.unwrap().into_inner().allowed);
                }
            });
        }
        clients.join_all().await;
        // At once: nothing has gone back for want of use.
        server.stop();
        server = home.serve(&arguments);
        let (_, metrics) = server.get("/metrics");
        assert!(metrics.contains("\ntollgate_lease_uncertain_units_total 0\n"), "{metrics}");
        let request = CheckKeyRequest { key: secret.clone(), cost: Some(0), ..CheckKeyRequest::default() };
        let left = server.keys(&home.token).await.check_key(request).await.unwrap().into_inner();
        let expected = CAPACITY - round * CLIENTS * CHECKS;
        let of_limits: Vec<i64> = left.limits.iter().map(|limit| limit.remaining).collect();
        assert_eq!((of_limits, left.credits.unwrap().remaining), (vec![expected; 3], expected), "round {round}");
    }
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

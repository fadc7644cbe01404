//! Envoy before three Tollgates that share a PostgreSQL database: what a client sees of there being three.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tollgate::proto::v1::{Key, RevokeKeyRequest};

use crate::proxy::{Edge, Envoy};
use crate::rig::{Made, Rig, database_flags, key, monthly};
use crate::support::postgres::Postgres;
use crate::support::{Home, Server, eventually};
use crate::wire::get;

const CAPACITY: i64 = 40;

/// The rig has the first, and this the others.
struct Replicas {
    edge: Edge,
    rig: Rig,
    more: Vec<(Home, Server)>,
    flags: Vec<String>,
    // Last: those above end before it.
    _postgres: Postgres,
}

impl Replicas {
    fn start() -> Option<Self> {
        let postgres = Postgres::start()?;
        let database = postgres.new_database();
        let rig = Rig::on(&database);
        let flags = database_flags(&database).to_vec();
        let more: Vec<(Home, Server)> = (0..2).map(|_| start(Home::empty(), &flags, None)).collect();
        let addresses: Vec<SocketAddr> =
            std::iter::once(rig.server.grpc).chain(more.iter().map(|(_, server)| server.grpc)).collect();
        let edge = Envoy::replicas(&rig, &addresses).start()?;
        Some(Self { edge, rig, more, flags, _postgres: postgres })
    }

    fn status(&self, made: &Made) -> u16 {
        get("/v1/me").bearer(&made.secret).send(self.edge.addr).status
    }

    /// One is stopped in order, and another takes its address.
    fn replace(&mut self, place: usize) {
        let (home, mut old) = self.more.remove(place);
        old.stop();
        self.more.insert(place, start(home, &self.flags, Some(old.grpc)));
    }
}

fn start(home: Home, flags: &[String], grpc: Option<SocketAddr>) -> (Home, Server) {
    let addr = grpc.map(|addr| format!("--grpc-addr={addr}"));
    let flags: Vec<&str> = flags.iter().chain(&addr).map(String::as_str).collect();
    let server = home.serve(&flags);
    (home, server)
}

#[test]
fn what_is_made_and_ended_at_one_replica_holds_at_all() {
    let Some(replicas) = Replicas::start() else { return };
    // Each at the replica that its secret leads to.
    let made: Vec<Made> = (0..12).map(|_| replicas.rig.plain_key()).collect();
    for made in &made {
        eventually("the key is known", || replicas.status(made) == 200);
    }
    let (_, another) = &replicas.more[1];
    for made in &made {
        let request = RevokeKeyRequest { id: made.id.clone(), ..RevokeKeyRequest::default() };
        replicas.rig.wait(async {
            another.keys(&replicas.rig.home.token).await.revoke_key(request).await.unwrap();
        });
        assert_eq!(replicas.status(made), 401);
    }
}

#[test]
fn a_limit_is_a_limit_while_replicas_come_and_go() {
    let Some(mut replicas) = Replicas::start() else { return };
    let made: Vec<Made> = (0..6).map(|_| replicas.rig.key(Key { limits: vec![monthly(CAPACITY)], ..key() })).collect();
    let mut admitted = vec![0; made.len()];
    let ask = |replicas: &Replicas, admitted: &mut Vec<i64>, times: usize| {
        for (made, admitted) in made.iter().zip(admitted) {
            for _ in 0..times {
                match replicas.status(made) {
                    200 => *admitted += 1,
                    429 | 503 => {}
                    status => panic!("{status}"),
                }
            }
        }
    };
    ask(&replicas, &mut admitted, 10);
    replicas.more[0].1.kill();
    ask(&replicas, &mut admitted, 10);
    // In order: what it had not spent is there for others.
    replicas.replace(1);
    ask(&replicas, &mut admitted, 40);
    for made in &made {
        eventually("nothing is left", || replicas.status(made) == 429);
    }
    assert!(admitted.iter().all(|admitted| (20..=CAPACITY).contains(admitted)), "{admitted:?}");
}

#[test]
fn nobody_notices_that_replicas_are_replaced_one_by_one() {
    let Some(mut replicas) = Replicas::start() else { return };
    let made: Vec<Made> = (0..6).map(|_| replicas.rig.plain_key()).collect();
    for made in &made {
        eventually("the key is known", || replicas.status(made) == 200);
    }
    let (edge, over) = (replicas.edge.addr, AtomicBool::new(false));
    let statuses = std::thread::scope(|threads| {
        let asking: Vec<_> = made
            .iter()
            .map(|made| {
                let over = &over;
                threads.spawn(move || {
                    let mut statuses = Vec::new();
                    while !over.load(SeqCst) {
                        statuses.push(get("/v1/me").bearer(&made.secret).send(edge).status);
                    }
                    statuses
                })
            })
            .collect();
        for place in [0, 1, 0] {
            replicas.replace(place);
        }
        over.store(true, SeqCst);
        asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect::<Vec<u16>>()
    });
    let refused = statuses.iter().filter(|status| **status != 200).count();
    assert_eq!(refused, 0, "of {}", statuses.len());
}

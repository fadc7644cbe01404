//! Envoy before several Tollgates: which one it asks, and what becomes of requests when some of them are away.
//!
//! These share no database, which is not Envoy's to know: what is asked of them is keys that nobody has.

use std::net::SocketAddr;

use crate::proxy::{Edge, Envoy};
use crate::rig::Rig;
use crate::support::{Home, Server, dice, eventually, http_get};
use crate::wire::get;

/// Each replica gets some of so many, but for one case in some ten thousand.
const KEYS: usize = 32;
const CALLS: u64 = 4;

struct Replicas {
    rig: Rig,
    more: Vec<(Home, Server)>,
    edge: Edge,
}

impl Replicas {
    /// Three, where there is an Envoy.
    fn start() -> Option<Self> {
        let rig = Rig::new(&["--check-auth=off"]);
        let more: Vec<(Home, Server)> = (0..2)
            .map(|_| {
                let home = Home::new();
                let server = home.serve(&["--check-auth=off"]);
                (home, server)
            })
            .collect();
        let addresses: Vec<SocketAddr> =
            std::iter::once(rig.server.grpc).chain(more.iter().map(|(_, server)| server.grpc)).collect();
        let edge = Envoy::replicas(&rig, &addresses).start()?;
        let replicas = Self { rig, more, edge };
        // Envoy begins once it has resolved the first of several names, and adds the others as soon as it knows that they are well.
        eventually("Envoy asks all of them", || {
            assert_eq!(replicas.status(&secrets(1)[0]), 401);
            replicas.asked().iter().all(|calls| *calls > 0)
        });
        Some(replicas)
    }

    /// How many keys that it does not have each has been asked for.
    fn asked(&self) -> Vec<u64> {
        let servers = std::iter::once(&self.rig.server).chain(self.more.iter().map(|(_, server)| server));
        servers.map(|server| unknown(server.http)).collect()
    }

    fn status(&self, secret: &str) -> u16 {
        get("/v1/me").bearer(secret).send(self.edge.addr).status
    }
}

/// Of all edges.
fn unknown(http: SocketAddr) -> u64 {
    // One that was killed counts no more.
    let page = http_get(http, "/metrics").map_or_else(|_| String::new(), |(_, page)| page);
    page.lines()
        .filter(|line| line.starts_with("tollgate_checks_total") && line.contains(r#"verdict="UNKNOWN""#))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

fn secrets(number: usize) -> Vec<String> {
    (0..number).map(|_| format!("nobody-{:016x}", dice(u64::MAX))).collect()
}

#[test]
fn a_key_has_a_replica_and_another_when_that_is_away() {
    let Some(mut replicas) = Replicas::start() else { return };
    let secrets = secrets(KEYS);
    let mut owners = vec![0; 3];
    for secret in &secrets {
        let before = replicas.asked();
        for _ in 0..CALLS {
            assert_eq!(replicas.status(secret), 401);
        }
        let grown: Vec<u64> = replicas.asked().iter().zip(before).map(|(now, then)| now - then).collect();
        let owner = grown.iter().position(|calls| *calls == CALLS);
        owners[owner.unwrap_or_else(|| panic!("one replica is asked for one key: {grown:?}"))] += 1;
        assert_eq!(grown.iter().sum::<u64>(), CALLS);
    }
    assert!(owners.iter().all(|keys| *keys > 0), "{owners:?}");

    // Nobody notices, not even before Envoy has noticed: what failed is tried elsewhere.
    replicas.more[0].1.kill();
    let statuses: Vec<u16> = secrets.iter().map(|secret| replicas.status(secret)).collect();
    assert_eq!(statuses, [401; KEYS]);

    // Two of three: those that are away are asked no more, although they are the most.
    replicas.more[1].1.kill();
    let mut answered = || secrets.iter().all(|secret| replicas.status(secret) == 401);
    eventually("the one that is left is asked for all", &mut answered);
    for _ in 0..3 {
        assert!(answered());
    }

    replicas.rig.server.kill();
    for call in [get("/v1/me").bearer(&secrets[0]), get("/v1/me")] {
        assert_eq!(call.send(replicas.edge.addr).status, 503);
    }
    replicas.rig.upstream.assert_untouched();
}

#[test]
fn without_a_credential_any_replica_does() {
    let Some(replicas) = Replicas::start() else { return };
    for _ in 0..CALLS {
        assert_eq!(get("/v1/me").send(replicas.edge.addr).status, 401);
    }
    // Too long for the metadata of a call, and so in it only in part.
    assert_eq!(replicas.status(&"k".repeat(30_000)), 401);
    replicas.rig.upstream.assert_untouched();
}

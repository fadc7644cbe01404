//! Keys that are bound to networks, and clients that say they are elsewhere.

use tollgate::proto::v1::{Key, Restrictions};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::{Made, Rig, key};
use crate::wire::{Call, get};

const ELSEWHERE: &str = "203.0.113.7";
/// Headers by which proxies tell each other of the client.
const TOLD: [&str; 9] = [
    "X-Forwarded-For",
    "X-Real-IP",
    "X-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Envoy-External-Address",
    "X-Envoy-Peer-Metadata",
    "Forwarded",
    "X-Cluster-Client-IP",
];

fn bound(rig: &Rig, network: &str) -> Made {
    let restrictions = Some(Restrictions { allowed_ips: vec![network.into()], ..Restrictions::default() });
    rig.key(Key { restrictions, ..key() })
}

fn lying(made: &Made, address: &str) -> Call {
    TOLD.iter().fold(get("/v1/me").bearer(&made.secret), |call, name| {
        call.header(name, if *name == "Forwarded" { format!("for={address}") } else { address.to_owned() })
    })
}

#[track_caller]
fn assert_status(rig: &Rig, edge: &Edge, call: &Call, status: u16) {
    let answer = call.send(edge.addr);
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(rig.upstream.take().len(), usize::from(status == 200));
}

#[test]
fn clients_do_not_choose_their_address() {
    let rig = Rig::new(&[]);
    let (here, there) = (bound(&rig, "127.0.0.0/8"), bound(&rig, "203.0.113.0/24"));
    let sent =
        "                          - { key: x-client-ip, value: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\" }\n";
    for (name, envoy) in [
        ("as shipped", Envoy::shipped(&rig)),
        ("without x-client-ip, by the connection", Envoy::shipped(&rig).replace(sent, "", 1)),
    ] {
        let Some(edge) = envoy.start() else { return };
        let mut cases = Cases::default();
        cases.run(&format!("{name}: a key for here"), || {
            assert_status(&rig, &edge, &get("/v1/me").bearer(&here.secret), 200);
            assert_status(&rig, &edge, &lying(&here, ELSEWHERE), 200);
        });
        cases.run(&format!("{name}: a key for elsewhere"), || {
            assert_status(&rig, &edge, &get("/v1/me").bearer(&there.secret), 403);
            assert_status(&rig, &edge, &lying(&there, ELSEWHERE), 403);
            assert_status(&rig, &edge, &lying(&there, &format!("{ELSEWHERE}, 127.0.0.1")), 403);
        });
    }
}

#[test]
fn behind_a_trusted_proxy_the_address_is_the_one_that_it_tells() {
    let rig = Rig::new(&[]);
    let (here, there) = (bound(&rig, "127.0.0.0/8"), bound(&rig, "203.0.113.0/24"));
    let Some(edge) = Envoy::shipped(&rig).replace("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1", 1).start()
    else {
        return;
    };
    let mut cases = Cases::default();
    let forwarded = |made: &Made, value: &str| get("/v1/me").bearer(&made.secret).header("X-Forwarded-For", value);
    cases.run("the one that the proxy tells", || assert_status(&rig, &edge, &forwarded(&there, ELSEWHERE), 200));
    cases.run("not the one that the client told the proxy", || {
        assert_status(&rig, &edge, &forwarded(&there, &format!("{ELSEWHERE}, 198.51.100.1")), 403);
        assert_status(&rig, &edge, &forwarded(&there, &format!("198.51.100.1, {ELSEWHERE}")), 200);
    });
    cases.run("not the proxy's own", || assert_status(&rig, &edge, &forwarded(&here, ELSEWHERE), 403));
}

/// What Envoy says of the client is not understood, or says nothing: whoever is bound to a network stays outside.
#[test]
fn an_address_that_is_none_opens_nothing() {
    let rig = Rig::new(&[]);
    let (here, free) = (bound(&rig, "0.0.0.0/0"), rig.plain_key());
    let sent = "{ key: x-client-ip, value: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\" }";
    let instead = |value: &str| sent.replace("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", value);
    for (name, value) in
        [("with a port", "%DOWNSTREAM_REMOTE_ADDRESS%"), ("a name", "localhost"), ("two", "127.0.0.1, 127.0.0.1")]
    {
        let Some(edge) = Envoy::shipped(&rig).replace(sent, &instead(value), 1).start() else { return };
        let mut cases = Cases::default();
        cases.run(&format!("{name}: bound to a network"), || {
            let answer = get("/v1/me").bearer(&here.secret).send(edge.addr);
            answer.assert_denied(403, "IP_DENIED", "Address not allowed");
            rig.upstream.assert_untouched();
        });
        cases.run(&format!("{name}: bound to none"), || {
            assert_status(&rig, &edge, &get("/v1/me").bearer(&free.secret), 200);
        });
    }
}

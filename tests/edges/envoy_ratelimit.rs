//! Checking and charging as two calls: `ext_authz` looks, and Envoy's rate limit filter charges.

use tollgate::proto::v1::Key;

use crate::case::Cases;
use crate::proxy::Envoy;
use crate::rig::{CREDITS, PREPAID, Rig, key};
use crate::wire::get;

#[test]
fn a_request_is_charged_once_by_the_rate_limit_filter() {
    let mut rig = Rig::new(&[]);
    let envoy =
        Envoy::ratelimit(&rig).route("/charged", "mode: consume, cost: \"3\"").route("/public", "mode: \"off\"");
    let Some(edge) = envoy.start() else { return };
    let mut cases = Cases::default();
    cases.run("each request is charged by the one or by the other", || {
        let made = rig.limited_key(10);
        for (target, told, left) in [("/a", 10, 9), ("/b", 9, 8), ("/charged", 5, 5), ("/a", 5, 4)] {
            let answer = get(target).bearer(&made.secret).send(edge.addr);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(rig.left(&made), left, "{target}");
            // `ext_authz` tells, which looks before the other charges.
            assert_eq!(answer.number("x-ratelimit-remaining"), told, "{target}: {answer:?}");
        }
        assert_eq!(rig.upstream.take().len(), 4);
    });
    cases.run("what is used up", || {
        let made = rig.limited_key(1);
        assert_eq!(get("/a").bearer(&made.secret).send(edge.addr).status, 200);
        rig.upstream.take();
        assert_eq!(get("/a").bearer(&made.secret).send(edge.addr).status, 429);
        rig.upstream.assert_untouched();
    });
    cases.run("credits", || {
        let made = rig.key(Key { account_id: PREPAID.into(), ..key() });
        let statuses: Vec<u16> = (0..=CREDITS).map(|_| get("/a").bearer(&made.secret).send(edge.addr).status).collect();
        assert_eq!(statuses, [200, 200, 200, 429]);
        assert_eq!(rig.upstream.take().len(), 3);
    });
    cases.run("without a key nothing is charged, and nothing passes", || {
        get("/a").send(edge.addr).assert_denied(401, "MISSING", "Missing API key");
        rig.upstream.assert_untouched();
    });
    cases.run("where no key is asked for, nobody is charged", || {
        assert_eq!(get("/public").send(edge.addr).status, 200);
        rig.upstream.one();
    });
    rig.server.kill();
    cases.run("an outage lets nobody pass", || {
        assert_eq!(get("/a").bearer("sk_live_nobody").send(edge.addr).status, 503);
        rig.upstream.assert_untouched();
    });
}

/// The two calls may go to different servers. Where the one that charges is away, nothing passes for free.
#[test]
fn what_cannot_be_charged_does_not_pass() {
    let rig = Rig::new(&[]);
    let made = rig.limited_key(10);
    let mut cases = Cases::default();
    let call = "rate_limit_service: { transport_api_version: V3, grpc_service: *call }";
    let other = |how: &str| {
        format!(
            "rate_limit_service: {{ transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: {how} }}, timeout: 30s }} }}"
        )
    };
    for (name, how) in [("a server that refuses Envoy", "tollgate"), ("a server that knows no rate limits", "upstream")]
    {
        let Some(edge) = Envoy::ratelimit(&rig).replace(call, &other(how), 1).start() else { return };
        cases.run(name, || {
            let answer = get("/a").bearer(&made.secret).send(edge.addr);
            assert!(matches!(answer.status, 500 | 503), "{answer:?}");
            rig.upstream.take().iter().for_each(|seen| assert_ne!(seen.target, "/a", "{seen:?}"));
        });
    }
    assert_eq!(rig.left(&made), 10);
}

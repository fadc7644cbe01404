//! A check whose answer is lost is made again, and charged once.

use crate::case::Cases;
use crate::lossy::Lossy;
use crate::proxy::Envoy;
use crate::rig::Rig;
use crate::wire::{Call, get};

#[test]
fn a_check_that_envoy_repeats_is_charged_once() {
    let rig = Rig::new(&[]);
    let lossy = Lossy::to(rig.grpc());
    let (from, to) = (rig.grpc().port(), lossy.addr.port());
    let envoy = Envoy::shipped(&rig).replace(&format!("port_value: {from} "), &format!("port_value: {to} "), 1);
    let Some(edge) = envoy.route("/t/dear", "cost: \"7\"").start() else { return };
    let mut cases = Cases::default();
    let send = |call: &Call, lost: usize| {
        lossy.lose(lost);
        let status = call.send(edge.addr).status;
        assert_eq!(lossy.left(), 0, "as many answers were to be lost");
        status
    };
    cases.run("nothing is lost", || {
        let made = rig.limited_key(100);
        assert_eq!(send(&get("/a").bearer(&made.secret), 0), 200);
        assert_eq!(rig.left(&made), 99);
    });
    cases.run("the first answer is lost", || {
        let made = rig.limited_key(100);
        assert_eq!(send(&get("/a").bearer(&made.secret), 1), 200);
        assert_eq!(rig.left(&made), 99);
        assert_eq!(send(&get("/t/dear").bearer(&made.secret), 1), 200);
        assert_eq!(rig.left(&made), 92);
    });
    cases.run("the first answer is lost: usage has it once", || {
        let made = rig.limited_key(100);
        assert_eq!(send(&get("/a").bearer(&made.secret), 1), 200);
        // One more is counted after all that was before.
        let once_more = || assert_eq!(send(&get("/a").bearer(&made.secret), 0), 200);
        assert_eq!(rig.checks_counted(&made, once_more, 2), 2);
    });
    cases.run("the last unit, and the answer is lost", || {
        let made = rig.limited_key(1);
        rig.upstream.take();
        assert_eq!(send(&get("/a").bearer(&made.secret), 1), 200, "it was paid for");
        rig.upstream.one();
        assert_eq!(send(&get("/a").bearer(&made.secret), 0), 429);
        rig.upstream.assert_untouched();
    });
    cases.run("both answers are lost", || {
        let made = rig.limited_key(100);
        rig.upstream.take();
        assert_eq!(send(&get("/a").bearer(&made.secret), 2), 503);
        rig.upstream.assert_untouched();
        assert_eq!(rig.left(&made), 99, "charged once, though nobody got anything for it");
    });
    cases.run("a denial whose answer is lost", || {
        assert_eq!(send(&get("/a"), 1), 401);
    });
    cases.run("a client that repeats its request's id pays each time", || {
        let made = rig.limited_key(100);
        let call = get("/a").bearer(&made.secret).header("X-Request-Id", "mine");
        for left in [99, 98, 97] {
            assert_eq!(send(&call, 0), 200);
            assert_eq!(rig.left(&made), left);
        }
        assert_eq!(send(&call, 1), 200);
        assert_eq!(rig.left(&made), 96);
    });
}

/// Envoy may be told to keep the ids that clients choose. They still don't get anything for free.
#[test]
fn a_request_id_that_clients_choose_saves_them_nothing() {
    let rig = Rig::new(&[]);
    let keep = "use_remote_address: true\n                preserve_external_request_id: true";
    let Some(edge) = Envoy::shipped(&rig).replace("use_remote_address: true", keep, 1).start() else { return };
    let made = rig.limited_key(100);
    for left in [99, 98, 97] {
        let id = "6f0a5a0c-2f3c-4d0e-9a3b-0123456789ab";
        assert_eq!(get("/a").bearer(&made.secret).header("X-Request-Id", id).send(edge.addr).status, 200);
        assert_eq!(rig.upstream.one().all("x-request-id"), [id]);
        assert_eq!(rig.left(&made), left);
    }
    let mut cases = Cases::default();
    let long = "x".repeat(8_000);
    for id in ["\"quoted\" \\ <b>", "a, b", "%0d%0aSet-Cookie: x=y", "\u{e9}", &long] {
        cases.run(&format!("denied with the id {id:.20}"), || {
            let answer = get("/a").header("X-Request-Id", id).send(edge.addr);
            answer.assert_denied(401, "MISSING", "Missing API key");
            assert_eq!(answer.header("set-cookie"), None);
            assert!(answer.body.len() < 1_000 && answer.body.is_ascii(), "{answer:?}");
        });
    }
}

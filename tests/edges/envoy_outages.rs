//! Tollgate is gone, hangs, or refuses Envoy: nothing passes unchecked.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::Rig;
use crate::support::eventually;
use crate::wire::get;

/// Nobody passes: not with a key, not without, not where none is asked for.
#[track_caller]
fn assert_closed(rig: &Rig, edge: &Edge, secret: &str) {
    for call in [get("/v1/me").bearer(secret), get("/v1/me"), get("/public/a")] {
        let answer = call.send(edge.addr);
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    rig.upstream.assert_untouched();
}

#[test]
fn nothing_passes_while_tollgate_is_away() {
    let mut rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let made = rig.plain_key();
    let allowed = || get("/v1/me").bearer(&made.secret).send(edge.addr).status == 200;
    assert!(allowed());
    rig.upstream.take();
    rig.server.kill();
    assert_closed(&rig, &edge, &made.secret);
    assert_eq!(get("/healthz").send(edge.addr).status, 200, "a route that asks nobody works");
    rig.upstream.take();
    rig.restart();
    eventually("checks work again", allowed);
}

/// Stopped in order and started again, under traffic: each request is decided or turned away, and none slips through.
#[test]
fn nobody_slips_through_a_restart() {
    let mut rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let (made, over) = (rig.plain_key(), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let (edge, made, over) = (&edge, &made, &over);
        for secret in [Some(&made.secret), None, None] {
            threads.spawn(move || {
                while !over.load(SeqCst) {
                    let call = secret.map_or(get("/nobody"), |secret| get("/key").bearer(secret));
                    let (status, decided) = (call.send(edge.addr).status, if secret.is_some() { 200 } else { 401 });
                    assert!(status == decided || status == 503, "{status}");
                }
            });
        }
        let allowed = || get("/key").bearer(&made.secret).send(edge.addr).status == 200;
        eventually("traffic", || rig.upstream.take().len() > 3);
        rig.server.stop();
        rig.restart();
        eventually("checks work again", allowed);
        over.store(true, SeqCst);
    });
    assert!(rig.upstream.take().iter().all(|seen| seen.target == "/key"));
}

/// A process that is stopped holds its connections open and says nothing.
#[test]
fn nothing_passes_while_tollgate_hangs() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).impatient().start() else { return };
    let made = rig.plain_key();
    let allowed = || get("/v1/me").bearer(&made.secret).send(edge.addr).status == 200;
    eventually("a check in time", allowed);
    rig.upstream.take();
    rig.server.hang();
    assert_closed(&rig, &edge, &made.secret);
    rig.server.signal("CONT");
    eventually("checks work again", allowed);
}

#[test]
fn nothing_passes_an_envoy_that_tollgate_refuses() {
    let rig = Rig::new(&[]);
    let made = rig.plain_key();
    let revoked = rig.key(tollgate::proto::v1::Key { scopes: vec!["tollgate:check".into()], ..crate::rig::key() });
    rig.revoke(&revoked);
    let authorization =
        "                          - { key: authorization, value: \"Bearer %ENVIRONMENT(TOLLGATE_TOKEN)%\" }\n";
    let mut cases = Cases::default();
    for (name, envoy) in [
        ("a key that nobody has", Envoy::shipped(&rig).token("sk_live_nobody")),
        ("a customer's key", Envoy::shipped(&rig).token(&made.secret)),
        ("a key that was revoked", Envoy::shipped(&rig).token(&revoked.secret)),
        ("an empty key", Envoy::shipped(&rig).token("")),
        ("no key", Envoy::shipped(&rig).replace(authorization, "", 1)),
    ] {
        let Some(edge) = envoy.start() else { return };
        cases.run(name, || assert_closed(&rig, &edge, &made.secret));
    }
}

/// Envoy fails open where it is told so, by an error of any kind. The shipped file doesn't; that Tollgate's errors are errors to
/// Envoy, and denials are not, shows here.
#[test]
fn denials_hold_even_where_envoy_fails_open() {
    let mut rig = Rig::new(&[]);
    let envoy = Envoy::shipped(&rig).replace("failure_mode_allow: false", "failure_mode_allow: true", 1);
    let Some(edge) = envoy.start() else { return };
    let mut cases = Cases::default();
    cases.run("denials", || {
        assert_eq!(get("/v1/me").send(edge.addr).status, 401);
        assert_eq!(get("/v1/me").bearer("sk_live_nobody").send(edge.addr).status, 401);
        let made = rig.limited_key(1);
        get("/v1/me").bearer(&made.secret).send(edge.addr);
        rig.upstream.take();
        assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 429);
        rig.upstream.assert_untouched();
    });
    cases.run("an outage, which lets nobody say who they are", || {
        rig.server.kill();
        let forged = get("/v1/me").header("x-auth-key-id", "forged").header("x-auth-plan", "forged").send(edge.addr);
        assert_eq!(forged.status, 200, "this Envoy was told to fail open: {forged:?}");
        assert!(!rig.upstream.one().text().contains("forged"));
    });
}

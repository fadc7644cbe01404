//! Caddy in front of the API.

use crate::case::Cases;
use crate::http_edges;
use crate::proxy::{Config, Edge, caddy};
use crate::rig::Rig;
use crate::wire::get;

#[test]
fn caddy_lets_pass_whom_tollgate_lets() {
    let rig = Rig::new(&[]);
    let Some(edge) = caddy(&rig, |config| config) else { return };
    let mut cases = Cases::default();
    http_edges::holds(&rig, &edge, &mut cases);
    rig.upstream.take();
    cases.run("a client that has its own key dropped on the way", || {
        let made = rig.plain_key();
        let call = get("/v1/me").bearer(&made.secret).header("Connection", "authorization").send(edge.addr);
        call.assert_denied(401, "MISSING", "Missing API key");
        rig.upstream.assert_untouched();
    });
}

#[test]
fn nothing_passes_caddy_while_tollgate_is_away() {
    let mut rig = Rig::new(&[]);
    let caller = rig.caller.clone();
    let policy = |config: Config, to: &str| config.replace("/v1/check?scopes=tasks:read\n", to, 1);
    let Some(edge) = caddy(&rig, |config| policy(config, "/v1/check\n")) else { return };
    rig.caller = "sk_live_nobody".into();
    let Some(refused) = caddy(&rig, |config| config) else { return };
    rig.caller = caller;
    let Some(wrong) = caddy(&rig, |config| policy(config, "/v1/check?scopes=tasks\n")) else { return };
    let timeout = "response_header_timeout 30s";
    let Some(impatient) = caddy(&rig, |config| config.replace(timeout, "response_header_timeout 250ms", 1)) else {
        return;
    };
    let mut cases = Cases::default();
    let made = rig.plain_key();
    let closed = |edge: &Edge, target: &str, status: u16, code: &str| {
        let answer = get(target).bearer(&made.secret).send(edge.addr);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &code.into()), "{answer:?}");
        rig.upstream.assert_untouched();
    };
    cases.run("a Caddy whose key is refused", || closed(&refused, "/v1/me", 503, "CALLER_REFUSED"));
    cases.run("a policy that can't be read", || closed(&wrong, "/v1/tasks", 500, "POLICY_INVALID"));
    cases.run("a client's query as the policy", || closed(&edge, "/v1/tasks?mode=off", 500, "POLICY_INVALID"));
    rig.server.hang();
    cases.run("a Tollgate that hangs", || {
        let answer = get("/v1/me").bearer(&made.secret).send(impatient.addr);
        assert!(matches!(answer.status, 502..=504), "{answer:?}");
        rig.upstream.assert_untouched();
    });
    rig.server.signal("CONT");
    rig.server.kill();
    let answer = get("/v1/me").bearer(&made.secret).send(edge.addr);
    assert!(matches!(answer.status, 502..=504), "a Tollgate that is gone: {answer:?}");
    rig.upstream.assert_untouched();
}

//! nginx in front of the API.

use crate::case::Cases;
use crate::http_edges;
use crate::proxy::{Edge, nginx};
use crate::rig::Rig;
use crate::wire::get;

#[test]
fn nginx_lets_pass_whom_tollgate_lets() {
    let rig = Rig::new(&[]);
    let Some(edge) = nginx(&rig, |config| config) else { return };
    let mut cases = Cases::default();
    http_edges::holds(&rig, &edge, &mut cases);
    let made = rig.plain_key();
    cases.run("the log names the key's id, and not the key", || {
        get("/logged?x=hidden").bearer(&made.secret).send(edge.addr);
        assert_eq!(edge.logged("/logged")["key_id"], made.id.as_str());
        let log = serde_json::Value::Array(edge.access_log()).to_string();
        assert!(!log.contains(&made.secret) && !log.contains("hidden"), "{log}");
    });
    rig.upstream.take();
    cases.run("the check itself can't be called", || {
        for target in ["/_tollgate/key", "/_tollgate/tasks", "/_tollgate/", "//_tollgate/key", "/%5ftollgate/key"] {
            assert_eq!(get(target).bearer(&made.secret).send(edge.addr).status, 404, "{target}");
        }
        rig.upstream.assert_untouched();
    });
}

#[test]
fn nothing_passes_nginx_while_tollgate_is_away() {
    let mut rig = Rig::new(&[]);
    let caller = rig.caller.clone();
    let Some(edge) = nginx(&rig, |config| config) else { return };
    rig.caller = "sk_live_nobody".into();
    let Some(refused) = nginx(&rig, |config| config.replace("scopes=tasks:read;", "scopes=tasks;", 1)) else { return };
    rig.caller = caller;
    let Some(wrong) = nginx(&rig, |config| config.replace("scopes=tasks:read;", "scopes=tasks;", 1)) else { return };
    let Some(impatient) = nginx(&rig, |config| config.replace("read_timeout 30s", "read_timeout 250ms", 1)) else {
        return;
    };
    let mut cases = Cases::default();
    let made = rig.plain_key();
    let closed = |edge: &Edge, target: &str, status: u16, code: &str| {
        let answer = get(target).bearer(&made.secret).send(edge.addr);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &code.into()), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        rig.upstream.assert_untouched();
    };
    cases.run("an nginx whose key is refused", || closed(&refused, "/v1/me", 503, "CALLER_REFUSED"));
    cases.run("a policy that can't be read", || closed(&wrong, "/v1/tasks", 500, "POLICY_INVALID"));
    rig.server.hang();
    cases.run("a Tollgate that hangs", || closed(&impatient, "/v1/me", 503, "UNAVAILABLE"));
    rig.server.signal("CONT");
    rig.server.kill();
    let answer = get("/v1/me").bearer(&made.secret).send(edge.addr);
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (503, &"UNAVAILABLE".into()),
        "a Tollgate that is gone: {answer:?}"
    );
    rig.upstream.assert_untouched();
}

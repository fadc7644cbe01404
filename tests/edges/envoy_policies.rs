//! What a route asks, as its `context_extensions` say it.

use tollgate::proto::v1::{Environment, Key};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::{Made, Rig, key};
use crate::wire::{call, get};

fn with(rig: &Rig, scopes: &[&str]) -> Made {
    rig.key(Key {
        scopes: scopes.iter().map(ToString::to_string).collect(),
        limits: vec![crate::rig::monthly(1_000)],
        ..key()
    })
}

#[test]
fn routes_have_policies_of_their_own() {
    let rig = Rig::new(&[]);
    let envoy = Envoy::shipped(&rig)
        .route("/t/all", "scopes: \"tasks:read, tasks:write\"")
        .route("/t/both", "scopes: \"tasks:read\", any_scopes: \"a:read b:read\"")
        .route("/t/live", "environment: live")
        .route("/t/test", "environment: test")
        .route("/t/free", "cost: \"0\"")
        .route("/t/peek", "mode: peek")
        .route("/t/dear", "cost: \"1001\"")
        .route("/t/problem", "message_format: problem");
    let Some(edge) = envoy.start() else { return };
    let mut cases = Cases::default();
    scopes(&rig, &edge, &mut cases);
    costs(&rig, &edge, &mut cases);
    modes(&rig, &edge, &mut cases);
    cases.run("the environment", || {
        let live = rig.plain_key();
        let test = rig.key(Key { environment: Environment::Test.into(), ..key() });
        for (target, made, status) in
            [("/t/live", &live, 200), ("/t/live", &test, 403), ("/t/test", &live, 403), ("/t/test", &test, 200)]
        {
            assert_eq!(get(target).bearer(&made.secret).send(edge.addr).status, status, "{target}");
        }
    });
    cases.run("denials as problems", || {
        let answer = get("/t/problem").send(edge.addr);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!((answer.status, &answer.json()["title"]), (401, &"Missing API key".into()));
    });
    cases.run("clients name no policy", || {
        let made = with(&rig, &["tasks:read"]);
        let forged = get("/t/all?scopes=tasks:read&mode=off&cost=0").header("X-Tollgate-Scopes", "tasks:read");
        let forged =
            forged.header("X-Tollgate-Mode", "off").header("x-envoy-auth-context", "mode=off").bearer(&made.secret);
        forged.send(edge.addr).assert_denied(403, "SCOPE_DENIED", "Insufficient permissions");
        assert_eq!(
            get("/v1/me?cost=0&mode=off").bearer(&made.secret).header("X-Tollgate-Cost", "0").send(edge.addr).status,
            200
        );
        assert_eq!(rig.left(&made), 999);
    });
}

fn scopes(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let rows: [(&str, &str, &str, &[&str], u16); 12] = [
        ("all of them: one is missing", "GET", "/t/all", &["tasks:read"], 403),
        ("all of them: none is", "GET", "/t/all", &["tasks:write", "tasks:read"], 200),
        ("all of them: by a wildcard", "GET", "/t/all", &["tasks:*"], 200),
        ("one of them: neither is there", "GET", "/v1/tasks", &["other:read"], 403),
        ("one of them: the first is", "GET", "/v1/tasks/7", &["tasks:read"], 200),
        ("one of them: the second is", "GET", "/v1/tasks", &["tasks:write"], 200),
        ("by method: reading is not writing", "POST", "/v1/tasks", &["tasks:read"], 403),
        ("by method: writing", "DELETE", "/v1/tasks/7", &["tasks:write"], 200),
        ("both kinds: one kind is missing", "GET", "/t/both", &["tasks:read"], 403),
        ("both kinds", "GET", "/t/both", &["tasks:read", "b:read"], 200),
        ("no scope of one's own needs none", "GET", "/v1/me", &[], 200),
        ("no scope where some are asked for", "GET", "/v1/tasks", &[], 403),
    ];
    for (name, method, target, scopes, status) in rows {
        cases.run(name, || {
            let made = with(rig, scopes);
            let answer = call(method, target).bearer(&made.secret).send(edge.addr);
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(rig.upstream.take().len(), usize::from(status == 200));
            if status == 403 {
                assert_eq!(rig.left(&made), 1_000, "what is refused is not charged");
            }
        });
    }
}

fn costs(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let writer = with(rig, &["tasks:write"]);
    let mut left = 1_000;
    for (name, method, target, cost, status) in [
        ("a route without a cost", "GET", "/v1/me", 1, 200),
        ("a route with one", "POST", "/v1/tasks", 5, 200),
        ("a route that is free", "GET", "/t/free", 0, 200),
        ("a route that costs more than there is", "GET", "/t/dear", 0, 429),
    ] {
        cases.run(name, || {
            let answer = call(method, target).bearer(&writer.secret).send(edge.addr);
            assert_eq!(answer.status, status, "{answer:?}");
            left -= cost;
            assert_eq!(rig.left(&writer), left);
        });
    }
    rig.upstream.take();
}

fn modes(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    cases.run("peek decides and charges nothing", || {
        let made = rig.limited_key(1);
        for _ in 0..3 {
            assert_eq!(get("/t/peek").bearer(&made.secret).send(edge.addr).status, 200);
        }
        assert_eq!(rig.left(&made), 1);
        assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
        get("/t/peek").bearer(&made.secret).send(edge.addr).assert_denied(429, "RATE_LIMITED", "Rate limit exceeded");
        get("/t/peek").send(edge.addr).assert_denied(401, "MISSING", "Missing API key");
    });
    cases.run("peek tells the other filters whom to charge", || {
        let made = rig.limited_key(1);
        get("/t/peek/told").bearer(&made.secret).send(edge.addr);
        let line = edge.logged("/t/peek/told");
        assert_eq!(line["tollgate"]["uncharged_key_id"], made.id.as_str(), "{line}");
    });
    cases.run("off lets everybody pass but those with a key that can't be used", || {
        rig.upstream.take();
        let spent = rig.limited_key(1);
        get("/v1/me").bearer(&spent.secret).send(edge.addr);
        let revoked = rig.plain_key();
        rig.revoke(&revoked);
        assert_eq!(get("/public/a").send(edge.addr).status, 200);
        assert_eq!(get("/public/a").bearer(&spent.secret).send(edge.addr).status, 200);
        assert_eq!(rig.upstream.take().len(), 3);
        get("/public/a").bearer(&revoked.secret).send(edge.addr).assert_denied(401, "REVOKED", "Invalid API key");
        let two = get("/public/a").bearer(&spent.secret).header("X-API-Key", &spent.secret).send(edge.addr);
        two.assert_denied(401, "MALFORMED", "Invalid API key");
        let basic = get("/public/a").header("Authorization", "Basic dTpw").send(edge.addr);
        basic.assert_denied(401, "MALFORMED", "Invalid API key");
        rig.upstream.assert_untouched();
        assert_eq!(get("/publicly").send(edge.addr).status, 401, "another path");
    });
}

/// Whoever made a mistake believes that the route is protected.
#[test]
fn a_policy_that_cannot_be_read_lets_nobody_pass() {
    let rig = Rig::new(&["--log-format=json"]);
    let wrong = [
        "scope: \"tasks:read\"",
        "Scopes: \"tasks:read\"",
        "scopes: \"\"",
        "scopes: \" , \"",
        "scopes: tasks",
        "scopes: \"tasks:read;tasks:write\"",
        "any_scopes: \"\"",
        "cost: \"\"",
        "cost: \"-1\"",
        "cost: \"1.5\"",
        "cost: \"1e3\"",
        "cost: \"1000000000001\"",
        "cost: \"18446744073709551617\"",
        "environment: prod",
        "environment: Live",
        "mode: \"Off\"",
        "mode: \"\"",
        "mode: none",
        "message_format: xml",
        "tenant: acme",
        "\"\": \"1\"",
        "mode: off, scopes: \"tasks\"",
    ];
    // What YAML takes for no text must be quoted, or Envoy refuses the file.
    let quoted = |policy: &str| policy.replace("mode: off", "mode: \"off\"");
    let envoy = wrong
        .iter()
        .enumerate()
        .fold(Envoy::shipped(&rig), |envoy, (i, policy)| envoy.route(&format!("/wrong/{i}"), &quoted(policy)));
    let Some(edge) = envoy.start() else { return };
    let mut cases = Cases::default();
    let made = with(&rig, &["tasks:*", "tasks:read", "tasks:write"]);
    for (i, policy) in wrong.iter().enumerate() {
        cases.run(policy, || {
            let target = format!("/wrong/{i}");
            for call in [get(&target), get(&target).bearer(&made.secret), get(&target).bearer("sk_live_short")] {
                let answer = call.send(edge.addr);
                assert_eq!((answer.status, &answer.json()["code"]), (500, &"POLICY_INVALID".into()), "{answer:?}");
                assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
            }
            rig.upstream.assert_untouched();
        });
    }
    cases.run("the operator is told what is wrong, the client is not", || {
        let answer = get("/wrong/9").send(edge.addr);
        assert!(!answer.body.contains("cost"), "{answer:?}");
        let line = edge.logged("/wrong/9");
        assert!(line["tollgate"]["message"].as_str().unwrap().contains("`cost`"), "{line}");
        assert!(rig.home.log().contains("POLICY_INVALID"), "{}", rig.home.log());
    });
    cases.run("and charged nothing", || assert_eq!(rig.left(&made), 1_000));
    cases.run("the other routes work", || assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 200));
}

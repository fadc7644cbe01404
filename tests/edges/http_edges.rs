//! What holds behind every proxy that asks `/v1/check`.

use tollgate::proto::v1::{Environment, Key, Restrictions};

use crate::case::Cases;
use crate::proxy::Edge;
use crate::readings::{generous, spellings};
use crate::rig::{ACCOUNT, Made, Rig, key, monthly};
use crate::wire::{call, curl, get};

/// Who may passes, with who it is; who may not is told why.
pub(crate) fn holds(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    identity(rig, edge, cases);
    tunnels(rig, edge, cases);
    passing(rig, edge, cases);
    credentials(rig, edge, cases);
    policies(rig, edge, cases);
    whence(rig, edge, cases);
    paths(rig, edge, cases);
}

fn identity(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let made = rig.key(Key { scopes: vec!["tasks:read".into()], ..key() });
    let forged = |target: &str| {
        let names = [
            "X-Auth-Key-Id",
            "x-auth-key-id",
            "X-Auth-Account-Id",
            "X-Auth-Plan",
            "X-Auth-Environment",
            "X-Auth-Scopes",
        ];
        let aliases =
            ["x_auth_key_id", "X_Auth_Plan", "x.auth.key-id", "X-Auth_Key-Id", "X-Auth.Scopes", "x_auth-plan"];
        names.iter().chain(&aliases).fold(get(target), |call, name| call.header(name, "forged"))
    };
    cases.run("who it is", || {
        assert_eq!(forged("/v1/me?a=1").bearer(&made.secret).send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert_eq!(seen.target, "/v1/me?a=1");
        for (name, value) in [
            ("key-id", &*made.id),
            ("account-id", ACCOUNT),
            ("plan", "open"),
            ("environment", "live"),
            ("scopes", "tasks:read"),
        ] {
            assert_eq!(seen.all(&format!("x-auth-{name}")), [value], "{seen:?}");
        }
        assert!(!seen.text().contains("forged") && !seen.text().contains(&made.secret), "{seen:?}");
        assert!(!seen.text().contains(&rig.caller) && !seen.text().contains("x-tollgate"), "{seen:?}");
    });
    cases.run("a key without scopes", || {
        assert_eq!(forged("/v1/me").header("X-API-Key", &rig.plain_key().secret).send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert!(!seen.text().contains("forged"), "{seen:?}");
    });
    cases.run("headers that a client wants dropped on the way", || {
        for named in [
            "x-auth-key-id, x-auth-scopes",
            "X-Auth-Plan",
            "keep-alive, X-AUTH-KEY-ID",
            "x-tollgate-token, x-forwarded-for",
        ] {
            let call = get("/v1/me").bearer(&made.secret).header("Connection", named);
            assert_eq!(call.send(edge.addr).status, 200, "{named}");
            let seen = rig.upstream.one();
            assert_eq!(
                (seen.all("x-auth-key-id"), seen.all("x-auth-plan")),
                (vec![&*made.id], vec!["open"]),
                "{named}"
            );
        }
    });
    cases.run("where nobody is asked", || {
        assert_eq!(forged("/healthz").send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert!(!seen.text().contains("forged") && !seen.text().contains("x-auth"), "{seen:?}");
    });
}

fn tunnels(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let made = rig.plain_key();
    cases.run("a tunnel that the API would open", || {
        for (target, upgrades) in [
            ("/healthz", &["h2c"][..]),
            ("/v1/me", &["h2c"]),
            ("/healthz", &["h2c", "websocket"]),
            ("/healthz", &["websocket", "h2c"]),
            ("/healthz", &["websocket, h2c"]),
            ("/healthz", &["H2C"]),
        ] {
            let call = get(target).bearer(&made.secret).header("Connection", "Upgrade, HTTP2-Settings");
            let call = call.header("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA");
            let call = upgrades.iter().fold(call, |call, upgrade| call.header("Upgrade", upgrade));
            assert_eq!(call.send(edge.addr).status, 200, "{target} {upgrades:?}");
            let seen = rig.upstream.one();
            assert!(seen.all("upgrade").is_empty(), "{target} {upgrades:?}: {seen:?}");
        }
    });
}

fn passing(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let made = rig.plain_key();
    cases.run("the upstream's own errors are its own", || {
        for status in [401, 403, 429, 500, 503] {
            let sent = get(&format!("/v1/status/{status}")).bearer(&made.secret).send(edge.addr);
            assert_eq!((sent.status, sent.body.contains("/status/")), (status, true), "{sent:?}");
        }
    });
    rig.upstream.take();
    cases.run("many headers", || {
        let many = (0..150).fold(get("/v1/me"), |sent, i| sent.header(&format!("X-{i}"), "x"));
        let sent = many.bearer(&made.secret).send(edge.addr);
        assert_eq!(sent.status, 200, "{sent:?}");
        rig.upstream.take();
    });
    cases.run("a body reaches the upstream, and not the check", || {
        let body = "x".repeat(200_000);
        assert_eq!(call("POST", "/v1/upload").bearer(&made.secret).body(&body).send(edge.addr).status, 200);
        assert_eq!(rig.upstream.one().body.len(), body.len());
    });
}

fn credentials(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let made = rig.plain_key();
    let bearer = format!("Bearer {}", made.secret);
    cases.run("no key", || {
        let answer = get("/v1/me").send(edge.addr);
        answer.assert_denied(401, "MISSING", "Missing API key");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"api\""));
        assert_eq!(answer.header("x-tollgate-body"), None);
        rig.upstream.assert_untouched();
    });
    cases.run("a wrong key", || {
        let answer = get("/v1/me").bearer("sk_live_nobody").send(edge.addr);
        answer.assert_denied(401, "MALFORMED", "Invalid API key");
        assert!(answer.header("www-authenticate").unwrap().contains("error=\"invalid_token\""), "{answer:?}");
        rig.upstream.assert_untouched();
    });
    let rows: [(&str, &[(&str, &str)]); 6] = [
        ("two Authorization", &[("Authorization", &bearer), ("Authorization", &bearer)]),
        ("two X-API-Key", &[("X-API-Key", &made.secret), ("X-API-Key", "sk_live_nobody")]),
        ("two X-API-Key, the good one last", &[("X-API-Key", "sk_live_nobody"), ("X-API-Key", &made.secret)]),
        ("two kinds", &[("X-API-Key", &made.secret), ("Authorization", &bearer)]),
        ("Basic", &[("Authorization", "Basic dTpw")]),
        ("two in one", &[("Authorization", &format!("{bearer}, {bearer}"))]),
    ];
    for (name, headers) in rows {
        cases.run(name, || {
            let answer =
                headers.iter().fold(get("/v1/me"), |call, (name, value)| call.header(name, value)).send(edge.addr);
            assert!(matches!(answer.status, 400 | 401), "{answer:?}");
            rig.upstream.assert_untouched();
        });
    }
    cases.run("a key that was revoked just now", || {
        let made = rig.plain_key();
        assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
        rig.upstream.take();
        rig.revoke(&made);
        get("/v1/me").bearer(&made.secret).send(edge.addr).assert_denied(401, "REVOKED", "Invalid API key");
        rig.upstream.assert_untouched();
    });
}

fn policies(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let with = |scopes: &[&str], capacity| {
        let scopes = scopes.iter().map(ToString::to_string).collect();
        rig.key(Key { scopes, limits: vec![monthly(capacity)], ..key() })
    };
    cases.run("each location has its policy", || {
        let made = with(&["tasks:read"], 100);
        for (target, status, left) in [("/v1/me", 200, 99), ("/v1/tasks/7", 200, 98), ("/v1/reports", 403, 98)] {
            assert_eq!(get(target).bearer(&made.secret).send(edge.addr).status, status, "{target}");
            assert_eq!(rig.left(&made), left);
        }
        assert_eq!(rig.upstream.take().len(), 2);
        let answer = get("/v1/reports").bearer(&made.secret).send(edge.addr);
        answer.assert_denied(403, "SCOPE_DENIED", "Insufficient permissions");
        assert!(answer.header("www-authenticate").unwrap().contains("scope=\"reports:read\""), "{answer:?}");
        rig.upstream.assert_untouched();
    });
    cases.run("a cost, and what is left of a limit as curl shows it", || {
        let made = with(&["reports:read"], 12);
        let (bearer, url) =
            (format!("Authorization: Bearer {}", made.secret), format!("http://{}/v1/reports", edge.addr));
        for left in [7, 2] {
            let Some(answer) = curl(&["--header", &bearer, &url]) else { return };
            assert_eq!(
                (answer.status, answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining")),
                (200, 12, left)
            );
            assert!(answer.header("ratelimit").unwrap().contains(&format!("r={left}")), "{answer:?}");
        }
        rig.upstream.take();
        let Some(answer) = curl(&["--header", &bearer, &url]) else { return };
        answer.assert_denied(429, "RATE_LIMITED", "Rate limit exceeded");
        assert!(answer.number("retry-after") > 0 && answer.number("x-ratelimit-remaining") == 2, "{answer:?}");
        assert!(answer.header("ratelimit-policy").is_some());
        rig.upstream.assert_untouched();
    });
    cases.run("clients name no policy", || {
        let made = with(&["tasks:read"], 100);
        let forged = get("/v1/reports?scopes=tasks:read&mode=off").header("X-Tollgate-Scopes", "tasks:read");
        let forged = forged.header("X-Tollgate-Mode", "off").header("X-Tollgate-Token", "forged").bearer(&made.secret);
        assert_eq!(forged.send(edge.addr).status, 403);
        rig.upstream.assert_untouched();
        let beside = get("/v1/me?mode=peek").header("X-Tollgate-Cost", "0").bearer(&made.secret);
        assert_eq!(beside.send(edge.addr).status, 200);
        assert_eq!(rig.left(&made), 99);
    });
    cases.run("a test key", || {
        let made = rig.key(Key { environment: Environment::Test.into(), ..key() });
        rig.upstream.take();
        assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
        assert_eq!(rig.upstream.one().all("x-auth-environment"), ["test"]);
    });
}

fn whence(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let of = |network: &str| {
        let restrictions = Some(Restrictions { allowed_ips: vec![network.into()], ..Restrictions::default() });
        rig.key(Key { restrictions, ..key() })
    };
    cases.run("clients do not choose their address", || {
        rig.upstream.take();
        for (made, status) in [(of("127.0.0.0/8"), 200), (of("203.0.113.0/24"), 403)] {
            let names = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP"];
            let lying =
                names.iter().fold(get("/v1/me").bearer(&made.secret), |call, name| call.header(name, "203.0.113.7"));
            assert_eq!(lying.send(edge.addr).status, status);
            assert_eq!(rig.upstream.take().len(), usize::from(status == 200));
        }
    });
    cases.run("a site that is told twice is none", || {
        let of = |restrictions: Restrictions| rig.key(Key { restrictions: Some(restrictions), ..key() });
        let bound = of(Restrictions { allowed_referrers: vec!["good.example".into()], ..Restrictions::default() });
        let from = |made: &Made, sites: &[&str]| {
            let call = sites.iter().fold(get("/v1/me").bearer(&made.secret), |call, site| call.header("Referer", site));
            call.send(edge.addr).status
        };
        assert_eq!(from(&bound, &["https://good.example/a"]), 200);
        assert_eq!(from(&bound, &["https://good.example/a", "https://bad.example/"]), 403);
        assert_eq!(from(&bound, &["https://bad.example/", "https://good.example/a"]), 403);
        assert_eq!(from(&of(Restrictions::default()), &["https://a.example/", "https://b.example/"]), 200);
        assert_eq!(rig.upstream.take().len(), 2);
    });
    cases.run("clients do not choose the path and the method that are checked", || {
        let allowed_endpoints = vec!["GET /v1/tasks/*".to_owned()];
        let restrictions = Some(Restrictions { allowed_endpoints, ..Restrictions::default() });
        let made = rig.key(Key { restrictions, scopes: vec!["tasks:read".into()], ..key() });
        assert_eq!(get("/v1/tasks/7?a=/admin").bearer(&made.secret).send(edge.addr).status, 200);
        rig.upstream.one();
        let lying = |method: &str, target: &str| {
            let call =
                call(method, target).header("X-Forwarded-Uri", "/v1/tasks/7").header("X-Forwarded-Method", "GET");
            call.header("X-Original-URL", "/v1/tasks/7").bearer(&made.secret).send(edge.addr).status
        };
        for (method, target) in [
            ("GET", "/admin"),
            ("POST", "/v1/tasks/7"),
            ("GET", "/v1/tasks/../admin"),
            ("GET", "/v1/tasks/%2e%2e/admin"),
            ("GET", "/v1/tasks/..%2fadmin"),
            ("GET", "/v1/tasks/..;/admin"),
            ("GET", "/v1//tasks/7"),
            ("GET", "/v1/tasks/7;x"),
            ("GET", "/%61dmin"),
            ("GET", "/v1/tasks/%2561"),
        ] {
            let status = lying(method, target);
            assert!(matches!(status, 400 | 403), "{method} {target}: {status}");
        }
        rig.upstream.assert_untouched();
    });
}

/// Whatever spelling a request has, it gets no further than the policy of what a generous server reads.
fn paths(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let made = rig.key(Key { scopes: vec!["tasks:read".into()], ..key() });
    rig.upstream.take();
    for spelling in spellings("/v1/reports") {
        for (who, secret) in [("nobody", None), ("no scope", Some(&made.secret))] {
            cases.run(&format!("{who}: {spelling}"), || {
                let call = get(&spelling);
                let answer = secret.map_or(call.clone(), |secret| call.bearer(secret)).send(edge.addr);
                for seen in rig.upstream.take() {
                    let read = generous(&seen.target);
                    assert!(!read.starts_with("/v1/reports"), "`{}` is `{read}`: {answer:?}", seen.target);
                    assert!(secret.is_some() || read == "/healthz", "{seen:?}");
                }
            });
        }
    }
    // An API that resolves no dots takes these for tasks and reports, whatever the proxy takes them for.
    for leading_out in [
        "/v1/reports/../../healthz",
        "/v1/reports/%2e%2e/%2E%2E/healthz",
        "/v1/reports/.%2e/../healthz",
        "/v1/reports/./../../healthz",
        "/v1/reports/../tasks",
        "/v1/reports/..",
        "/v1/reports/..?x=1",
        "/healthz#/v1/reports",
    ] {
        cases.run(leading_out, || {
            let answer = get(leading_out).bearer(&made.secret).send(edge.addr);
            assert!(rig.upstream.take().is_empty() && answer.status == 400, "{answer:?}");
        });
    }
    cases.run("dots that are none", || {
        assert_eq!(get("/v1/tasks/..a/.well-known/a..b/...?x=/../").bearer(&made.secret).send(edge.addr).status, 200);
    });
    cases.run("plainly", || assert_eq!(get("/v1/tasks/7?x=;%25").bearer(&made.secret).send(edge.addr).status, 200));
}

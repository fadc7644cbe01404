//! What the upstream and the client get of a request that passes Envoy.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tollgate::proto::v1::{Environment, Key};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::{ACCOUNT, Made, Rig, key};
use crate::upstream::Seen;
use crate::wire::{call, curl, get};

/// The headers that tell the upstream whose request it is.
const IDENTITY: [&str; 5] =
    ["x-auth-key-id", "x-auth-account-id", "x-auth-plan", "x-auth-environment", "x-auth-scopes"];

/// Every identity header once, with these values.
#[track_caller]
fn assert_identity(seen: &Seen, values: [&str; 5]) {
    for (name, value) in IDENTITY.iter().zip(values) {
        assert_eq!(seen.all(name), [value], "`{name}`: {seen:?}");
    }
}

fn reader(rig: &Rig) -> Made {
    rig.key(Key { scopes: vec!["tasks:read".into(), "tasks:write".into()], ..key() })
}

#[test]
fn the_upstream_learns_who_it_is_from_tollgate_alone() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let mut cases = Cases::default();
    let made = reader(&rig);
    let live = [made.id.as_str(), ACCOUNT, "open", "live", "tasks:read tasks:write"];
    cases.run("a live key with scopes", || {
        assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
        assert_identity(&rig.upstream.one(), live);
    });
    cases.run("a test key without scopes", || {
        let made = rig.key(Key { environment: Environment::Test.into(), ..key() });
        assert_eq!(get("/v1/me").header("X-API-Key", &made.secret).send(edge.addr).status, 200);
        assert_identity(&rig.upstream.one(), [&made.id, ACCOUNT, "open", "test", ""]);
    });
    let forged = |target: &str| {
        let mut forged = get(target);
        for name in IDENTITY {
            forged = forged.header(name, "forged").header(&name.to_uppercase(), "forged again");
        }
        forged.header("X-Auth-Other", "forged").header("x-envoy-auth-failure-mode-allowed", "true")
    };
    cases.run("identity headers of a client beside its key", || {
        assert_eq!(forged("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert_identity(&seen, live);
        assert!(!seen.text().contains("forged") && !seen.text().contains("failure-mode"), "{seen:?}");
    });
    cases.run("identity headers of a client without a key, where none is asked for", || {
        assert_eq!(forged("/public/page").send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert_identity(&seen, [""; 5]);
        assert!(!seen.text().contains("forged"), "{seen:?}");
    });
    cases.run("a key where none is asked for", || {
        assert_eq!(forged("/public/page").bearer(&made.secret).send(edge.addr).status, 200);
        assert_identity(&rig.upstream.one(), live);
    });
    cases.run("identity headers of a client where nobody is asked", || {
        assert_eq!(forged("/healthz").send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert!(!seen.text().contains("forged") && !seen.text().contains("x-auth-"), "{seen:?}");
    });
    dropped(&rig, &edge, &mut cases, &made);
    cases.run("names that frameworks read as identity headers", || {
        let dotted = get("/v1/me").header("x.auth.key-id", "forged").header("X-Auth.Key-Id", "forged");
        assert_eq!(dotted.bearer(&made.secret).send(edge.addr).status, 200);
        assert!(!rig.upstream.one().text().contains("forged"));
        for name in ["x_auth_key_id", "X_Auth_Key_Id", "x-auth_key-id"] {
            let refused = get("/v1/me").header(name, "forged").bearer(&made.secret).send(edge.addr);
            assert_eq!(refused.status, 400, "{name}: {refused:?}");
        }
        rig.upstream.assert_untouched();
    });
}

fn dropped(rig: &Rig, edge: &Edge, cases: &mut Cases, made: &Made) {
    cases.run("headers that a client wants dropped on the way", || {
        for named in ["x-auth-key-id, x-auth-scopes", "X-Auth-Plan", "keep-alive, X-AUTH-KEY-ID", "x-tollgate-token"] {
            let call = get("/v1/me").bearer(&made.secret).header("Connection", named);
            assert_eq!(call.send(edge.addr).status, 200, "{named}");
            let seen = rig.upstream.one();
            assert_eq!(
                (seen.all("x-auth-key-id"), seen.all("x-auth-plan")),
                (vec![&*made.id], vec!["open"]),
                "{named}"
            );
        }
        let call = get("/v1/me").bearer(&made.secret).header("Connection", "authorization").send(edge.addr);
        call.assert_denied(401, "MISSING", "Missing API key");
        let call = get("/v1/me").bearer(&made.secret).header("Connection", "x-forwarded-for").send(edge.addr);
        assert_eq!(call.status, 400, "{call:?}");
        rig.upstream.assert_untouched();
    });
}

/// Tollgate does not lean on the filter that removes identity headers.
#[test]
fn identity_headers_are_overwritten_where_envoy_lets_them_in() {
    let rig = Rig::new(&[]);
    let made = reader(&rig);
    for (mode, envoy) in [
        ("raw headers", Envoy::shipped(&rig).without_stripping()),
        ("text headers", Envoy::shipped(&rig).without_stripping().text_headers()),
    ] {
        let Some(edge) = envoy.start() else { return };
        let mut cases = Cases::default();
        let forged = |target: &str| {
            IDENTITY.iter().fold(get(target), |forged, name| forged.header(name, "forged").header(name, "forged again"))
        };
        cases.run(&format!("{mode}: a key"), || {
            assert_eq!(forged("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
            assert_identity(&rig.upstream.one(), [&made.id, ACCOUNT, "open", "live", "tasks:read tasks:write"]);
        });
        cases.run(&format!("{mode}: nobody"), || {
            assert_eq!(forged("/public/page").send(edge.addr).status, 200);
            assert_identity(&rig.upstream.one(), [""; 5]);
        });
    }
}

#[test]
fn requests_pass_as_they_are_without_their_key() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let mut cases = Cases::default();
    let made = rig.plain_key();
    for name in ["Authorization", "authorization", "X-API-Key", "x-api-key"] {
        cases.run(&format!("the key of `{name}` goes no further"), || {
            let value = if name.eq_ignore_ascii_case("authorization") { "Bearer " } else { "" };
            let value = format!("{value}{}", made.secret);
            assert_eq!(get("/v1/me?x=1").header(name, value).send(edge.addr).status, 200);
            let seen = rig.upstream.one();
            assert!(!seen.text().contains(&made.secret) && seen.target == "/v1/me?x=1", "{seen:?}");
            assert!(seen.all("authorization").is_empty() && seen.all("x-api-key").is_empty(), "{seen:?}");
        });
    }
    cases.run("an Authorization of another scheme beside the key is the upstream's", || {
        let sent =
            get("/v1/me").header("Authorization", "Basic dTpw").header("X-API-Key", &made.secret).send(edge.addr);
        assert_eq!(sent.status, 200);
        assert_eq!(rig.upstream.one().all("authorization"), ["Basic dTpw"]);
    });
    cases.run("a body of two megabytes", || {
        let body = "x".repeat(2 << 20);
        assert_eq!(call("POST", "/v1/upload").bearer(&made.secret).body(&body).send(edge.addr).status, 200);
        assert_eq!(rig.upstream.one().body.len(), body.len());
    });
    cases.run("headers of fifty kilobytes", || {
        let sent = get("/v1/me").header("X-Large", "x".repeat(50 << 10)).bearer(&made.secret).send(edge.addr);
        assert_eq!(sent.status, 200, "{sent:?}");
        assert_eq!(rig.upstream.one().all("x-large")[0].len(), 50 << 10);
    });
    cases.run("as many and as large headers as Envoy takes", || {
        let large = (0..85).fold(get("/v1/me"), |sent, i| sent.header(&format!("X-{i}"), "x".repeat(690)));
        let sent = large.bearer(&made.secret).send(edge.addr);
        assert_eq!(sent.status, 200, "{sent:?}");
        rig.upstream.one();
    });
    cases.run("headers that are larger than Envoy takes", || {
        let sent = get("/v1/me").header("X-Large", "x".repeat(100 << 10)).bearer(&made.secret).send(edge.addr);
        assert_eq!(sent.status, 431, "{sent:?}");
        rig.upstream.assert_untouched();
    });
    cases.run("many headers", || {
        let many = (0..80).fold(get("/v1/me"), |sent, i| sent.header(&format!("X-{i}"), "x"));
        assert_eq!(many.bearer(&made.secret).send(edge.addr).status, 200);
        rig.upstream.one();
    });
    cases.run("the upstream's own errors are its own", || {
        for status in [401, 403, 429, 500, 503] {
            let sent = get(&format!("/v1/status/{status}")).bearer(&made.secret).send(edge.addr);
            assert_eq!((sent.status, sent.body.contains("/status/")), (status, true), "{sent:?}");
            assert_eq!(sent.header("www-authenticate"), None);
        }
    });
    log_cases(&rig, &edge, &mut cases, &made);
}

fn log_cases(rig: &Rig, edge: &Edge, cases: &mut Cases, made: &Made) {
    cases.run("the access log says who it was", || {
        get("/logged/allowed?key=hidden").bearer(&made.secret).send(edge.addr);
        let line = edge.logged("/logged/allowed");
        let told = &line["tollgate"];
        assert_eq!(told["verdict"], "ALLOWED", "{line}");
        assert_eq!((&told["key_id"], &told["account_id"]), (&made.id.as_str().into(), &ACCOUNT.into()), "{line}");
        assert_eq!((&told["plan"], &told["environment"]), (&"open".into(), &"live".into()), "{line}");
        assert_eq!(told["charged"].as_f64(), Some(1.0), "{line}");
        assert!(told.get("uncharged_key_id").is_none() && told["request_id"].is_string(), "{line}");
    });
    cases.run("the access log says who was denied", || {
        let poor = rig.limited_key(1);
        get("/logged/first").bearer(&poor.secret).send(edge.addr);
        get("/logged/denied").bearer(&poor.secret).send(edge.addr);
        let line = edge.logged("/logged/denied");
        let told = &line["tollgate"];
        assert_eq!((&told["verdict"], &told["key_id"]), (&"RATE_LIMITED".into(), &poor.id.as_str().into()), "{line}");
        assert_eq!(line["status"], 429, "{line}");
    });
    cases.run("no key is in the log, whole or in part", || {
        let log = serde_json::Value::Array(edge.access_log()).to_string();
        let (part, _) = made.secret.split_at(16);
        assert!(!log.contains(part) && !log.contains("hidden"), "{log}");
        assert!(!rig.home.log().contains(part), "{}", rig.home.log());
    });
}

#[test]
fn what_is_left_of_a_limit_is_told() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).route("/t/cost", "cost: \"3\"").start() else { return };
    let mut cases = Cases::default();
    cases.run("as curl shows it", || {
        let made = rig.limited_key(10);
        let bearer = format!("Authorization: Bearer {}", made.secret);
        for (http, target, left) in
            [("--http1.1", "/a", 9), ("--http2-prior-knowledge", "/t/cost", 6), ("--http1.1", "/a", 5)]
        {
            let Some(seen) = curl(&[http, "--header", &bearer, &format!("http://{}{target}", edge.addr)]) else {
                return;
            };
            assert_eq!(seen.status, 200, "{seen:?}");
            assert_eq!((seen.number("x-ratelimit-limit"), seen.number("x-ratelimit-remaining")), (10, left));
            assert!(seen.number("x-ratelimit-reset") > 1_700_000_000, "seconds since 1970: {seen:?}");
            assert_eq!(seen.header("ratelimit-policy"), Some("\"per-month\";q=10"), "{seen:?}");
            let state = seen.header("ratelimit").unwrap();
            assert!(state.starts_with(&format!("\"per-month\";r={left};t=")), "{seen:?}");
            assert_eq!(seen.header("retry-after"), None);
        }
        assert_eq!(rig.left(&made), 5);
    });
    cases.run("once, where the upstream has such a header too", || {
        let made = rig.limited_key(10);
        let seen = get("/a").header("x-echo-limit", "77").bearer(&made.secret).send(edge.addr);
        assert_eq!(seen.number("x-ratelimit-limit"), 10, "{seen:?}");
    });
    cases.run("not at all, where there is no limit", || {
        let seen = get("/a").bearer(&rig.plain_key().secret).send(edge.addr);
        assert!(seen.headers.iter().all(|(name, _)| !name.contains("ratelimit")), "{seen:?}");
    });
    cases.run("credits", || {
        let made = rig.key(Key { account_id: crate::rig::PREPAID.into(), ..key() });
        let seen = get("/a").bearer(&made.secret).send(edge.addr);
        assert_eq!(seen.number("x-ratelimit-remaining"), crate::rig::CREDITS - 1, "{seen:?}");
    });
    cases.run("an admission says nothing else of Tollgate's", || {
        let seen = get("/a").bearer(&rig.plain_key().secret).send(edge.addr);
        assert!(
            seen.headers.iter().all(|(name, _)| !name.starts_with("x-auth-") && !name.contains("tollgate")),
            "{seen:?}"
        );
    });
}

/// Whoever revokes a key and then asks finds that it has ended, however busy the key is.
#[test]
fn a_key_that_is_revoked_under_traffic_is_refused_by_the_next_request() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let made = rig.plain_key();
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                while !over.load(SeqCst) {
                    let status = get("/busy").bearer(&made.secret).send(edge.addr).status;
                    assert!(status == 200 || status == 401, "{status}");
                }
            });
        }
        crate::support::eventually("traffic", || !rig.upstream.take().is_empty());
        rig.revoke(&made);
        let next = get("/next").bearer(&made.secret).send(edge.addr);
        over.store(true, SeqCst);
        next.assert_denied(401, "REVOKED", "Invalid API key");
    });
    assert!(rig.upstream.take().iter().all(|seen| seen.target != "/next"));
}

#[test]
fn a_limit_holds_for_requests_at_once() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let made = rig.limited_key(50);
    let allowed = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for _ in 0..10 {
                    match get("/a").bearer(&made.secret).send(edge.addr).status {
                        200 => _ = allowed.fetch_add(1, SeqCst),
                        status => assert_eq!(status, 429),
                    }
                }
            });
        }
    });
    assert_eq!((allowed.load(SeqCst), rig.upstream.take().len(), rig.left(&made)), (50, 50, 0));
}

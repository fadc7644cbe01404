//! What a client is told that may not.

use tollgate::ambient::Clock;
use tollgate::proto::v1::{Environment, Key, Restrictions, Status};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::{CREDITS, PREPAID, Rig, SUSPENDED, WITHOUT_ACCESS, key};
use crate::support::eventually;
use crate::wire::{Answer, call, curl, get};

fn restricted(restrictions: Restrictions) -> Key {
    Key { restrictions: Some(restrictions), ..key() }
}

#[track_caller]
fn assert_challenge(answer: &Answer, begin: &str) {
    let challenge = answer.header("www-authenticate").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(challenge.starts_with(begin), "{challenge}");
}

#[test]
fn every_denial_has_its_status_and_its_words() {
    let rig = Rig::new(&[]);
    let envoy = Envoy::shipped(&rig)
        .route("/t/live", "environment: live")
        .route("/t/scopes", "scopes: \"tasks:read tasks:write\"");
    let Some(edge) = envoy.start() else { return };
    let mut cases = Cases::default();
    credentials(&rig, &edge, &mut cases);
    permissions(&rig, &edge, &mut cases);
    accounts(&rig, &edge, &mut cases);
    limits(&rig, &edge, &mut cases);
    forms(&edge, &mut cases);
}

fn credentials(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let denied = |name: &str, secret: &str, code: &str, error: &str| {
        let answer = get("/v1/me").bearer(secret).send(edge.addr);
        answer.assert_denied(401, code, error);
        assert_challenge(&answer, "Bearer realm=\"api\", error=\"invalid_token\", error_description=\"");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{name}");
        assert!(!answer.body.contains(secret), "{answer:?}");
        rig.upstream.assert_untouched();
    };
    cases.run("no key", || {
        let answer = get("/v1/me").send(edge.addr);
        answer.assert_denied(401, "MISSING", "Missing API key");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"api\""));
        rig.upstream.assert_untouched();
    });
    let mut damaged = rig.plain_key().secret;
    let last = damaged.pop().unwrap();
    damaged.push(if last == 'x' { 'y' } else { 'x' });
    cases.run("a damaged key", || denied("damaged", &damaged, "MALFORMED", "Invalid API key"));
    cases.run("a key of somebody else", || {
        denied("unknown", "not-ours-but-a-key-for-somebody-else", "UNKNOWN", "Invalid API key");
    });
    cases.run("a revoked key", || {
        let made = rig.plain_key();
        rig.revoke(&made);
        denied("revoked", &made.secret, "REVOKED", "Invalid API key");
    });
    cases.run("a disabled key", || {
        let made = rig.plain_key();
        rig.update(&made, Key { status: Status::Disabled.into(), ..Key::default() }, "status");
        denied("disabled", &made.secret, "DISABLED", "Disabled API key");
    });
    cases.run("an expired key", || {
        let seconds = Clock::system().now().plus_millis(2_000).seconds();
        let expire_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
        let made = rig.key(Key { expire_time, ..key() });
        eventually("its expiry", || get("/v1/me").bearer(&made.secret).send(edge.addr).status == 401);
        rig.upstream.take();
        denied("expired", &made.secret, "EXPIRED", "Expired API key");
    });
}

fn permissions(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    cases.run("a key without the scopes", || {
        let made = rig.key(Key { scopes: vec!["tasks:read".into()], ..key() });
        let answer = get("/t/scopes").bearer(&made.secret).send(edge.addr);
        answer.assert_denied(403, "SCOPE_DENIED", "Insufficient permissions");
        assert_challenge(&answer, "Bearer realm=\"api\", error=\"insufficient_scope\", error_description=\"");
        assert!(answer.header("www-authenticate").unwrap().contains("scope=\"tasks:"), "{answer:?}");
        assert!(answer.json()["message"].as_str().unwrap().contains("tasks:write"), "{answer:?}");
    });
    let rows = [
        (
            "a test key where live is asked for",
            "/t/live",
            Key { environment: Environment::Test.into(), ..key() },
            "WRONG_ENVIRONMENT",
            "Wrong environment",
        ),
        (
            "from another address",
            "/v1/me",
            restricted(Restrictions { allowed_ips: vec!["203.0.113.0/24".into()], ..Restrictions::default() }),
            "IP_DENIED",
            "Address not allowed",
        ),
        (
            "from another site",
            "/v1/me",
            restricted(Restrictions { allowed_referrers: vec!["example.com".into()], ..Restrictions::default() }),
            "REFERRER_DENIED",
            "Referrer not allowed",
        ),
        (
            "for another endpoint",
            "/v1/me",
            restricted(Restrictions { allowed_endpoints: vec!["GET /v1/tasks/*".into()], ..Restrictions::default() }),
            "ENDPOINT_DENIED",
            "Endpoint not allowed",
        ),
    ];
    for (name, target, key, code, error) in rows {
        cases.run(name, || {
            let answer = get(target).bearer(&rig.key(key).secret).send(edge.addr);
            answer.assert_denied(403, code, error);
            assert_eq!(answer.header("www-authenticate"), None, "{answer:?}");
            rig.upstream.assert_untouched();
        });
    }
    cases.run("from the site that a key is for", || {
        let referrers = Restrictions { allowed_referrers: vec!["*.example.com".into()], ..Restrictions::default() };
        let made = rig.key(restricted(referrers));
        let from =
            |header: &str, value: &str| get("/v1/me").bearer(&made.secret).header(header, value).send(edge.addr).status;
        assert_eq!(from("Referer", "https://app.example.com/page"), 200);
        assert_eq!(from("Referer", "https://app.example.com.evil.test/page"), 403);
        assert_eq!(from("Referer", "https://evil.test/app.example.com"), 403);
        let two = get("/v1/me")
            .bearer(&made.secret)
            .header("Referer", "https://evil.test/")
            .header("Referer", "https://app.example.com/");
        assert_eq!(two.send(edge.addr).status, 403);
        assert_eq!(rig.upstream.take().len(), 1);
    });
}

fn accounts(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    let of = |account: &str| rig.key(Key { account_id: account.into(), ..key() }).secret;
    let (suspended, without) = (of(SUSPENDED), of(WITHOUT_ACCESS));
    rig.turn_customers_away();
    for (name, secret, code, error) in [
        ("a key of a suspended account", suspended, "ACCOUNT_SUSPENDED", "Account suspended"),
        ("a key of a plan without API access", without, "PLAN_DENIED", "Plan without API access"),
    ] {
        cases.run(name, || {
            get("/v1/me").bearer(&secret).send(edge.addr).assert_denied(403, code, error);
            rig.upstream.assert_untouched();
        });
    }
}

fn limits(rig: &Rig, edge: &Edge, cases: &mut Cases) {
    cases.run("a limit that is used up", || {
        let made = rig.limited_key(2);
        let call = get("/v1/me").bearer(&made.secret);
        for _ in 0..2 {
            assert_eq!(call.send(edge.addr).status, 200);
        }
        rig.upstream.take();
        let answer = call.send(edge.addr);
        answer.assert_denied(429, "RATE_LIMITED", "Rate limit exceeded");
        assert!(answer.number("retry-after") > 0, "{answer:?}");
        assert_eq!((answer.number("x-ratelimit-limit"), answer.number("x-ratelimit-remaining")), (2, 0));
        assert!(answer.number("x-ratelimit-reset") > 1_700_000_000);
        assert!(answer.header("ratelimit").unwrap().starts_with("\"per-month\";r=0;t="), "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), None);
        rig.upstream.assert_untouched();
    });
    cases.run("credits that are used up", || {
        let made = rig.key(Key { account_id: PREPAID.into(), ..key() });
        for _ in 0..CREDITS {
            assert_eq!(get("/v1/me").bearer(&made.secret).send(edge.addr).status, 200);
        }
        rig.upstream.take();
        let answer = get("/v1/me").bearer(&made.secret).send(edge.addr);
        answer.assert_denied(429, "CREDITS_EXHAUSTED", "Credits exhausted");
        assert!(answer.number("retry-after") > 0, "{answer:?}");
        rig.upstream.assert_untouched();
    });
}

fn forms(edge: &Edge, cases: &mut Cases) {
    for http in ["--http1.1", "--http2-prior-knowledge"] {
        cases.run(&format!("as curl shows it with {http}"), || {
            let Some(answer) = curl(&[http, &format!("http://{}/v1/me", edge.addr)]) else { return };
            answer.assert_denied(401, "MISSING", "Missing API key");
        });
    }
    cases.run("HEAD has no body, and the same head", || {
        let answer = call("HEAD", "/v1/me").send(edge.addr);
        assert_eq!((answer.status, answer.body.as_str()), (401, ""), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    });
    cases.run("the request's id is in the body", || {
        let answer = get("/v1/id").send(edge.addr);
        let line = edge.logged("/v1/id");
        assert_eq!(answer.json()["request_id"], line["request_id"], "{answer:?} {line}");
    });
}

/// Envoy refuses mutations that would split a response, where it is told to; Tollgate makes none either way.
#[test]
fn nothing_that_anybody_writes_splits_a_response() {
    let rig = Rig::new(&[]);
    let envoy = Envoy::shipped(&rig).replace("validate_mutations: true", "validate_mutations: false", 1);
    let Some(edge) = envoy.route("/t/scopes", "scopes: \"tasks:read tasks:write\"").start() else { return };
    let mut cases = Cases::default();
    cases.run("what clients and customers write", || {
        let names = ["a\r\nSet-Cookie: stolen=1", "b\nc", "d\"e\\f"];
        for name in names {
            let metadata = [("note".to_owned(), name.to_owned())].into();
            for made in [Key { name: name.to_owned(), ..key() }, Key { metadata, ..key() }] {
                let scopes = vec!["tasks:read".to_owned()];
                let request = tollgate::proto::v1::CreateKeyRequest { key: Some(Key { scopes, ..named(made) }) };
                // A name that would is not taken in the first place; what is taken must do no harm.
                let Ok(made) = rig.wait(async { rig.keys().await.create_key(request).await }) else { continue };
                let answer = get("/t/scopes")
                    .bearer(&made.into_inner().secret)
                    .header("X-Request-Id", "\"; x=\"y")
                    .send(edge.addr);
                answer.assert_denied(403, "SCOPE_DENIED", "Insufficient permissions");
                assert_eq!(answer.header("set-cookie"), None, "{answer:?}");
            }
        }
        for target in ["/%0d%0aSet-Cookie:%20a=b", "/a%22%5c%0a", "/v1/me?x=%0d%0aSet-Cookie:%20a=b"] {
            let answer = get(target).header("Referer", "https://a/\"\\%0d%0aSet-Cookie:a=b").send(edge.addr);
            assert!(answer.status >= 400 && answer.header("set-cookie").is_none(), "{answer:?}");
        }
        rig.upstream.assert_untouched();
    });
}

fn named(made: Key) -> Key {
    let name = if made.name.is_empty() { "with metadata".to_owned() } else { made.name };
    Key { name, ..made }
}

#[test]
fn settings_of_the_edge_hold() {
    let rig = Rig::new(&[
        "--check-http-status=UNKNOWN=403,MALFORMED=403,REVOKED=403",
        "--edge-realm=shop",
        "--edge-message-format=problem",
        "--edge-identity-prefix=x-customer-",
        "--edge-credential-headers=x-shop-key,x-api-key",
        "--edge-strip-credential=false",
    ]);
    let Some(edge) = Envoy::shipped(&rig).route("/t/json", "message_format: json").start() else { return };
    let mut cases = Cases::default();
    let made = rig.plain_key();
    cases.run("401 without a key, 403 with a wrong one", || {
        assert_eq!(get("/v1/me").send(edge.addr).status, 401);
        assert_eq!(get("/v1/me").bearer("not-ours-but-a-key-for-somebody-else").send(edge.addr).status, 403);
        assert_eq!(get("/v1/me").bearer("sk_live_short").send(edge.addr).status, 403);
        let answer = get("/t/json").bearer("not-ours-but-a-key-for-somebody-else").send(edge.addr);
        answer.assert_denied(403, "UNKNOWN", "Invalid API key");
        rig.upstream.assert_untouched();
    });
    cases.run("the realm, and problems of RFC 9457", || {
        let answer = get("/v1/me").send(edge.addr);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"shop\""));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let body = answer.json();
        assert_eq!(
            (&body["type"], &body["title"], &body["status"]),
            (&"about:blank".into(), &"Missing API key".into(), &401.into())
        );
        assert_eq!(body["code"], "MISSING");
        assert!(body["detail"].is_string() && body["request_id"].is_string(), "{body}");
    });
    cases.run("identity headers of another name, and the key is kept", || {
        assert_eq!(get("/v1/me").header("X-Shop-Key", &made.secret).send(edge.addr).status, 200);
        let seen = rig.upstream.one();
        assert_eq!(
            (seen.all("x-customer-key-id"), seen.all("x-shop-key")),
            (vec![&*made.id], vec![&*made.secret]),
            "{seen:?}"
        );
        assert!(seen.all("x-auth-key-id").is_empty(), "{seen:?}");
    });
    cases.run("two credential headers", || {
        let two = get("/t/json").header("X-Shop-Key", &made.secret).header("X-API-Key", &made.secret).send(edge.addr);
        two.assert_denied(403, "MALFORMED", "Invalid API key");
        rig.upstream.assert_untouched();
    });
}

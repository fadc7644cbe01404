//! Exactly one credential, wherever and however often a client sends it.

use tollgate::proto::v1::{Key, Restrictions};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::{Made, Rig, key};
use crate::wire::{curl, get};

#[test]
fn a_request_has_exactly_one_credential() {
    let rig = Rig::new(&[]);
    let (good, other) = (rig.limited_key(1_000), rig.plain_key());
    for (mode, envoy) in [("raw", Envoy::shipped(&rig)), ("text", Envoy::shipped(&rig).text_headers())] {
        // Only one host, so that there are requests for which there is no route.
        let Some(edge) =
            envoy.replace("domains: [\"*\"]", "domains: [api.example.com, \"a,b\", \"*.test\"]", 1).start()
        else {
            return;
        };
        let mut cases = Cases::default();
        let before = rig.left(&good);
        malformed(&rig, &edge, &mut cases, mode, &good.secret, &other.secret);
        assert_eq!(rig.left(&good), before, "{mode}: what is refused is not charged");
        accepted(&rig, &edge, &mut cases, mode, &good);
        hosts(&rig, &edge, &mut cases, mode);
    }
}

type Headers = Vec<(&'static str, Vec<u8>)>;

fn malformed(rig: &Rig, edge: &Edge, cases: &mut Cases, mode: &str, good: &str, other: &str) {
    let bearer = |key: &str| format!("Bearer {key}").into_bytes();
    let key = |key: &str| key.as_bytes().to_vec();
    let rows: Vec<(&str, Headers)> = vec![
        ("two Authorization", vec![("Authorization", bearer(good)), ("Authorization", bearer(other))]),
        (
            "two Authorization, the wrong one first",
            vec![("Authorization", bearer("no")), ("authorization", bearer(good))],
        ),
        ("the same Authorization twice", vec![("Authorization", bearer(good)), ("Authorization", bearer(good))]),
        ("Bearer and Basic", vec![("Authorization", bearer(good)), ("Authorization", b"Basic dTpw".to_vec())]),
        ("Basic and Bearer", vec![("Authorization", b"Basic dTpw".to_vec()), ("Authorization", bearer(good))]),
        ("two X-API-Key", vec![("X-API-Key", key(good)), ("X-API-Key", key(other))]),
        ("the same X-API-Key twice", vec![("X-API-Key", key(good)), ("x-api-key", key(good))]),
        ("X-API-Key and an empty one", vec![("X-API-Key", key(good)), ("X-API-Key", Vec::new())]),
        ("Authorization and X-API-Key", vec![("Authorization", bearer(good)), ("X-API-Key", key(other))]),
        ("Authorization and the same X-API-Key", vec![("Authorization", bearer(good)), ("X-API-Key", key(good))]),
        ("two keys in one Authorization", vec![("Authorization", bearer(&format!("{good},{other}")))]),
        ("two Bearers in one Authorization", vec![("Authorization", bearer(&format!("{good},Bearer {other}")))]),
        ("a comma after the key", vec![("Authorization", bearer(&format!("{good},")))]),
        ("two keys in one X-API-Key", vec![("X-API-Key", key(&format!("{good}, {other}")))]),
        ("Basic", vec![("Authorization", b"Basic dTpw".to_vec())]),
        ("the key without a scheme", vec![("Authorization", key(good))]),
        ("Bearer without a key", vec![("Authorization", b"Bearer".to_vec())]),
        ("two spaces", vec![("Authorization", bearer(&format!(" {good}")))]),
        ("words after the key", vec![("Authorization", bearer(&format!("{good} x")))]),
        ("an empty X-API-Key", vec![("X-API-Key", Vec::new())]),
        ("a byte that is no text", vec![("Authorization", [bearer(good), vec![0xff]].concat())]),
        ("letters beyond ASCII", vec![("X-API-Key", [key(good), "é".into()].concat())]),
        ("a tab in the key", vec![("X-API-Key", [b"sk\t".to_vec(), key(good)].concat())]),
        ("quotes", vec![("X-API-Key", format!("\"{good}\"").into_bytes())]),
    ];
    for (name, headers) in rows {
        cases.run(&format!("{mode}: {name}"), || {
            let call = headers.iter().fold(get("/v1/me"), |call, (name, value)| call.header(name, value));
            let answer = call.send(edge.addr);
            answer.assert_denied(401, "MALFORMED", "Invalid API key");
            let challenge = answer.header("www-authenticate").unwrap();
            assert!(challenge.starts_with("Bearer realm=\"api\", error=\"invalid_token\""), "{challenge}");
            rig.upstream.assert_untouched();
        });
    }
    cases.run(&format!("{mode}: two X-API-Key over HTTP/2"), || {
        let headers =
            [format!("X-API-Key: {good}"), format!("X-API-Key: {other}"), format!("Authorization: Bearer {good}")];
        for pair in [[0, 1], [1, 0], [0, 0], [0, 2], [2, 2]] {
            let [first, second] = pair.map(|i| headers[i].as_str());
            let arguments = ["--http2-prior-knowledge", "-H", first, "-H", second, &format!("http://{}/", edge.addr)];
            let host = ["-H", "Host: api.example.com"];
            let Some(answer) = curl(&[&arguments[..], &host].concat()) else { return };
            answer.assert_denied(401, "MALFORMED", "Invalid API key");
        }
        rig.upstream.assert_untouched();
    });
    cases.run(&format!("{mode}: none, beside headers of like names"), || {
        let call = get("/v1/me?api_key=x").header("X-API-Keys", good).header("Proxy-Authorization", bearer(good));
        call.send(edge.addr).assert_denied(401, "MISSING", "Missing API key");
        rig.upstream.assert_untouched();
    });
}

fn accepted(rig: &Rig, edge: &Edge, cases: &mut Cases, mode: &str, good: &Made) {
    let rows = [
        ("Bearer", "Authorization", format!("Bearer {}", good.secret)),
        ("the scheme in small letters", "authorization", format!("bearer {}", good.secret)),
        ("the scheme in capitals", "AUTHORIZATION", format!("BEARER {}", good.secret)),
        ("spaces around the value, which are none of it", "X-API-Key", format!("  {}  ", good.secret)),
        ("X-API-Key", "X-API-Key", good.secret.clone()),
    ];
    for (name, header, value) in rows {
        cases.run(&format!("{mode}: {name}"), || {
            assert_eq!(get("/v1/me").header(header, value).send(edge.addr).status, 200);
            assert_eq!(rig.upstream.one().all("x-auth-key-id"), [&good.id]);
        });
    }
    cases.run(&format!("{mode}: a path that is no text"), || {
        let answer =
            get("/v1/caf%C3%A9?x=%ff").bearer(&good.secret).header("X-Name", [b'a', 0xff, 0xfe]).send(edge.addr);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(rig.upstream.one().target, "/v1/caf%C3%A9?x=%ff");
    });
}

fn hosts(rig: &Rig, edge: &Edge, cases: &mut Cases, mode: &str) {
    let restrictions =
        |endpoint: &str| Some(Restrictions { allowed_endpoints: vec![endpoint.into()], ..Restrictions::default() });
    let here = rig.key(Key { restrictions: restrictions("GET api.example.com/**"), ..key() });
    cases.run(&format!("{mode}: the host that a key is for"), || {
        assert_eq!(get("/v1/me").bearer(&here.secret).send(edge.addr).status, 200);
        rig.upstream.one();
        let other = get("/v1/me").header("Host", "other.test").bearer(&here.secret).send(edge.addr);
        other.assert_denied(403, "ENDPOINT_DENIED", "Endpoint not allowed");
        rig.upstream.assert_untouched();
    });
    cases.run(&format!("{mode}: two hosts are none"), || {
        for hosts in [["api.example.com", "other.test"], ["other.test", "api.example.com"], ["a", "b"]] {
            let call = get("/v1/me").header("Host", hosts[0]).header("Host", hosts[1]).bearer(&here.secret);
            let answer = call.send(edge.addr);
            assert!(matches!(answer.status, 400 | 403 | 404), "{hosts:?}: {answer:?}");
        }
        rig.upstream.assert_untouched();
    });
    cases.run(&format!("{mode}: where there is no route nobody is asked"), || {
        let answer = get("/v1/me").header("Host", "nowhere.example").send(edge.addr);
        assert_eq!((answer.status, answer.body.as_str()), (404, ""), "{answer:?}");
        rig.upstream.assert_untouched();
    });
}

#[test]
fn a_key_in_the_query_goes_no_further() {
    let rig = Rig::new(&["--edge-credential-query=api_key"]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let mut cases = Cases::default();
    let made = rig.plain_key();
    let secret = &made.secret;
    // Envoy puts the other parameters in the order of their names.
    for (name, target, arrives) in [
        ("alone", format!("/v1/query-alone?api_key={secret}"), "/v1/query-alone"),
        ("first", format!("/v1/query-first?api_key={secret}&a=1"), "/v1/query-first?a=1"),
        ("between", format!("/v1/query-between?a=1&api_key={secret}&b=%20x"), "/v1/query-between?a=1&b=%20x"),
        (
            "beside like names",
            format!("/v1/query-like?xapi_key=1&api_key={secret}&api_key2=2"),
            "/v1/query-like?api_key2=2&xapi_key=1",
        ),
    ] {
        cases.run(name, || {
            assert_eq!(get(&target).send(edge.addr).status, 200);
            let seen = rig.upstream.one();
            assert_eq!((seen.target.as_str(), seen.all("x-auth-key-id")[0]), (arrives, made.id.as_str()));
            assert!(!seen.text().contains(secret), "{seen:?}");
            edge.logged(arrives.split('?').next().unwrap());
            assert!(!serde_json::Value::Array(edge.access_log()).to_string().contains(secret));
        });
    }
    for (name, target, bearer) in [
        ("twice", format!("/v1/me?api_key={secret}&api_key={secret}"), false),
        ("beside a header", format!("/v1/me?api_key={secret}"), true),
        ("empty beside a header", "/v1/me?api_key=".to_owned(), true),
        ("empty", "/v1/me?api_key=".to_owned(), false),
        ("two in one", format!("/v1/me?api_key={secret},{secret}"), false),
    ] {
        cases.run(name, || {
            let call = if bearer { get(&target).bearer(secret) } else { get(&target) };
            call.send(edge.addr).assert_denied(401, "MALFORMED", "Invalid API key");
            rig.upstream.assert_untouched();
        });
    }
    cases.run("under a name in another spelling there is none", || {
        get(&format!("/v1/me?API_KEY={secret}")).send(edge.addr).assert_denied(401, "MISSING", "Missing API key");
        rig.upstream.assert_untouched();
    });
}

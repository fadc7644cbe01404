//! `/v1/check` of the real binary, as proxies call it. `tests/edges` has the proxies themselves.
#![cfg(test)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;
use support::{Home, Keys, PATIENCE, Server};
use tollgate::proto::v1::*;

/// Names with their values.
type Headers<'a> = &'a [(&'a str, &'a str)];

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// The value of a header; absent where it is not there, and a failure where it is twice.
    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.head.lines().filter_map(|line| line.split_once(": ")).filter(|(found, _)| *found == name);
        let value = found.next().map(|(_, value)| value);
        assert!(found.next().is_none(), "`{name}` is there twice: {}", self.head);
        value
    }

    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"));
        body["code"].as_str().unwrap().to_owned()
    }
}

fn send(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(server.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n").unwrap();
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n").unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// A server, a proxy's token, and keys of an account.
struct Rig {
    server: Server,
    keys: Keys,
    account: String,
    token: String,
    _home: Home,
}

impl Rig {
    async fn new(arguments: &[&str]) -> Self {
        let home = Home::new();
        let server = home.serve(arguments);
        let mut keys = server.keys(&home.token).await;
        let account = server.account(&home.token).await;
        let proxy = Key {
            account_id: "acct_operator".into(),
            name: "proxy".into(),
            scopes: vec!["tollgate:check".into()],
            ..Key::default()
        };
        let token = keys.create_key(CreateKeyRequest { key: Some(proxy) }).await.unwrap().into_inner().secret;
        Self { server, keys, account, token, _home: home }
    }

    async fn key(&mut self, name: &str, restrictions: Restrictions, limits: Vec<Limit>) -> (String, String) {
        let key = Key {
            account_id: self.account.clone(),
            name: name.into(),
            scopes: vec!["tasks:read".into()],
            restrictions: Some(restrictions),
            limits,
            ..Key::default()
        };
        let made = self.keys.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
        (made.key.unwrap().id, made.secret)
    }

    /// As a proxy that has said who it is, for a request of its client.
    fn check(&self, query: &str, headers: &[(&str, &str)]) -> Answer {
        let mut sent = vec![("x-tollgate-token", self.token.as_str())];
        if !headers.iter().any(|(name, _)| *name == "x-forwarded-uri") {
            sent.push(("x-forwarded-uri", "/v1/tasks?page=2"));
        }
        sent.extend(headers);
        send(&self.server, "GET", &format!("/v1/check{query}"), &sent)
    }
}

#[tokio::test]
async fn a_request_passes_or_is_answered_as_the_client_shall_see_it() {
    let mut rig = Rig::new(&[]).await;
    let limit = Limit { name: "per-day".into(), capacity: 3, period: Period::Day.into(), ..Limit::default() };
    let (id, secret) = rig.key("a", Restrictions::default(), vec![limit]).await;
    let bearer = format!("Bearer {secret}");
    let key = ("authorization", bearer.as_str());

    let passed = rig.check("?scopes=tasks:read&cost=2", &[key, ("x-auth-plan", "spoofed")]);
    assert_eq!((passed.status, passed.body.as_str()), (200, ""));
    assert_eq!(passed.header("x-auth-key-id"), Some(id.as_str()));
    for (name, value) in [
        ("x-auth-account-id", rig.account.as_str()),
        ("x-auth-plan", "open"),
        ("x-auth-environment", "live"),
        ("x-auth-scopes", "tasks:read"),
        ("x-ratelimit-limit", "3"),
        ("x-ratelimit-remaining", "1"),
    ] {
        assert_eq!(passed.header(name), Some(value), "{passed:?}");
    }
    assert!(!passed.head.contains(&secret));

    let rows: [(&str, Headers<'_>, u16, &str); 5] = [
        ("", &[], 401, "MISSING"),
        ("", &[("x-api-key", "other")], 401, "UNKNOWN"),
        ("", &[key, ("x-api-key", "other")], 401, "MALFORMED"),
        ("?scopes=tasks:write", &[key], 403, "SCOPE_DENIED"),
        ("?cost=2", &[key], 429, "RATE_LIMITED"),
    ];
    for (query, headers, status, code) in rows {
        let answer = rig.check(query, headers);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-tollgate-body"), Some(answer.body.as_str()));
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401 || code == "SCOPE_DENIED");
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
    let problem = rig.check("?message_format=problem", &[]);
    assert_eq!(problem.header("content-type"), Some("application/problem+json"));

    let nobody = rig.check("?mode=off", &[("x-auth-key-id", "spoofed")]);
    assert_eq!((nobody.status, nobody.header("x-auth-key-id")), (200, Some("")));
}

#[tokio::test]
async fn any_method_asks_and_bodies_are_not_read() {
    let mut rig = Rig::new(&[]).await;
    let (_, secret) = rig.key("a", Restrictions::default(), Vec::new()).await;
    let headers = [("x-tollgate-token", rig.token.as_str()), ("x-api-key", &secret), ("content-length", "0")];
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        assert_eq!(send(&rig.server, method, "/v1/check", &headers).status, 200, "{method}");
        let denied = send(&rig.server, method, "/v1/check", &headers[..1]);
        assert_eq!(denied.status, 401, "{method}");
        assert_eq!(denied.body.is_empty(), method == "HEAD", "{method}");
    }
}

#[tokio::test]
async fn the_request_is_what_a_proxy_says_that_is_believed() {
    let mut rig = Rig::new(&["--edge-trusted-proxies=203.0.113.0/24"]).await;
    let bound = Restrictions {
        allowed_ips: vec!["192.0.2.0/24".into()],
        allowed_endpoints: vec!["GET api.example.com/v1/tasks/*".into()],
        ..Restrictions::default()
    };
    let (_, secret) = rig.key("bound", bound, Vec::new()).await;
    let told = [
        ("x-api-key", secret.as_str()),
        ("x-forwarded-for", "198.51.100.1, 192.0.2.7, 203.0.113.9"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-host", "api.example.com"),
        ("x-forwarded-uri", "/v1/tasks/7?all"),
    ];
    assert_eq!(rig.check("", &told).status, 200);
    for (name, value, code) in [
        ("x-forwarded-for", "192.0.2.7, 198.51.100.1", "IP_DENIED"),
        ("x-forwarded-for", "192.0.2.7, nonsense", "IP_DENIED"),
        ("x-forwarded-method", "POST", "ENDPOINT_DENIED"),
        ("x-forwarded-host", "evil.example.com", "ENDPOINT_DENIED"),
        ("x-forwarded-uri", "/v1/tasks/../admin", "ENDPOINT_DENIED"),
    ] {
        let changed = told.map(|(told, before)| (told, if told == name { value } else { before }));
        let answer = rig.check("", &changed);
        assert_eq!((answer.status, answer.code().as_str()), (403, code), "{name}: {value}");
    }
    let twice = rig.check("", &[&told[..], &[("x-forwarded-uri", "/v1/tasks/8")]].concat());
    assert_eq!((twice.status, twice.code().as_str()), (500, "POLICY_INVALID"));
}

#[tokio::test]
async fn what_a_client_sends_too_often_is_no_fault_of_the_proxy() {
    let mut rig = Rig::new(&[]).await;
    let bound = Restrictions { allowed_referrers: vec!["example.com".into()], ..Restrictions::default() };
    let (_, bound) = rig.key("bound", bound, Vec::new()).await;
    let (_, free) = rig.key("free", Restrictions::default(), Vec::new()).await;
    let referrer = ("referer", "https://example.com/");
    assert_eq!(rig.check("", &[("x-api-key", &bound), referrer]).status, 200);
    assert_eq!(rig.check("", &[("x-api-key", &bound), referrer, referrer]).code(), "REFERRER_DENIED");
    assert_eq!(rig.check("", &[("x-api-key", &free), referrer, referrer]).status, 200);
    let many: Vec<String> = (0..500).map(|i| format!("x-many-{i}")).collect();
    let mut sent: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
    sent.push(("x-api-key", &free));
    assert_eq!(rig.check("", &sent).status, 200);
}

#[tokio::test]
async fn who_has_not_said_who_it_is_is_refused() {
    let mut rig = Rig::new(&[]).await;
    let (_, secret) = rig.key("a", Restrictions::default(), Vec::new()).await;
    let key = ("x-api-key", secret.as_str());
    for headers in [&[key][..], &[key, ("x-tollgate-token", "wrong")], &[key, ("x-tollgate-token", &secret)]] {
        let answer = send(&rig.server, "GET", "/v1/check?mode=off", headers);
        assert_eq!((answer.status, answer.code().as_str()), (503, "CALLER_REFUSED"), "{answer:?}");
        assert!(!answer.body.contains("token"), "the client is not told: {}", answer.body);
    }
    let log = rig.server.log();
    assert!(log.contains("x-tollgate-token"), "the operator is: {log}");
    assert!(!log.contains(&secret));
}

#[tokio::test]
async fn an_address_can_say_who_a_proxy_is() {
    let mut rig = Rig::new(&["--edge-trusted-proxies=127.0.0.1"]).await;
    let bound = Restrictions { allowed_ips: vec!["192.0.2.7".into()], ..Restrictions::default() };
    let (_, secret) = rig.key("bound", bound, Vec::new()).await;
    let told = [("x-api-key", secret.as_str()), ("x-forwarded-for", "192.0.2.7")];
    assert_eq!(send(&rig.server, "GET", "/v1/check", &told).status, 200);
    // A key that is sent beside it has to be good.
    let wrong = [&told[..], &[("x-tollgate-token", "wrong")]].concat();
    assert_eq!(send(&rig.server, "GET", "/v1/check", &wrong).status, 503);
}

#[tokio::test]
async fn where_anybody_may_ask_nobody_is_believed() {
    let mut rig = Rig::new(&["--check-auth=off"]).await;
    let near = Restrictions { allowed_ips: vec!["127.0.0.1".into()], ..Restrictions::default() };
    let far = Restrictions { allowed_ips: vec!["192.0.2.7".into()], ..Restrictions::default() };
    let (_, near) = rig.key("near", near, Vec::new()).await;
    let (_, far) = rig.key("far", far, Vec::new()).await;
    for (secret, told, status) in [(&near, false, 200), (&near, true, 403), (&far, true, 403), (&far, false, 403)] {
        let mut headers = vec![("x-api-key", secret.as_str())];
        headers.extend(Some(("x-forwarded-for", "192.0.2.7")).filter(|_| told));
        assert_eq!(send(&rig.server, "GET", "/v1/check", &headers).status, status, "{told}");
    }
}

#[tokio::test]
async fn clients_cannot_write_the_policy() {
    let rig = Rig::new(&[]).await;
    let rows: [(&str, Headers<'_>); 6] = [
        ("?mode=off", &[("x-forwarded-uri", "/tasks?mode=off")]),
        ("", &[("x-tollgate-mode", "off")]),
        ("?headers=scopes", &[("x-tollgate-scopes", "tasks:read"), ("x-tollgate-mode", "off")]),
        ("?headers=mode", &[("x-tollgate-mode", "off"), ("x-tollgate-mode", "off")]),
        ("?scope=tasks:read", &[]),
        ("?cost=", &[]),
    ];
    for (query, headers) in rows {
        let answer = rig.check(query, headers);
        assert_eq!((answer.status, answer.code().as_str()), (500, "POLICY_INVALID"), "{query} {headers:?}");
    }
    let without_uri = [("x-tollgate-token", rig.token.as_str())];
    assert_eq!(send(&rig.server, "GET", "/v1/check?mode=off", &without_uri).status, 500);
    assert_eq!(rig.check("?headers=mode", &[("x-tollgate-mode", "off")]).status, 200, "set by the proxy");
}

//! What each outcome says, to the client and to the upstream.

use tollgate::domain::Verdict;
use tollgate::proto::v1::*;
use tollgate::transport::edge::{self, IdentityNames, MessageFormat};

use super::*;
use crate::harness::{Settings, account, key, limit, plan, strings};

#[tokio::test]
async fn a_request_that_passes_says_whose_it_is_and_loses_its_key() {
    let server = Server::start().await;
    let scopes = strings(&["tasks:read", "tasks:write"]);
    let made = server.key(Key { scopes, ..key("a") }).await;
    let spoofed = [("authorization", format!("Bearer {}", made.secret)), ("x-auth-plan", "enterprise".to_owned())];
    let spoofed: Vec<(&str, &str)> = spoofed.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let answer = ask(&server, request(&spoofed, &[("scopes", "tasks:read"), ("cost", "3")])).await;
    let ok = allowed(&answer);
    let id = made.key.unwrap().id;
    let expected = [
        ("x-auth-account-id", "acct_a"),
        ("x-auth-environment", "live"),
        ("x-auth-key-id", id.as_str()),
        ("x-auth-plan", "basic"),
        ("x-auth-scopes", "tasks:read tasks:write"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(headers(&ok.headers), BTreeMap::from(expected));
    assert_eq!(ok.headers_to_remove, ["authorization"]);
    assert!(ok.query_parameters_to_remove.is_empty());
    assert!(ok.response_headers_to_add.is_empty(), "nothing is limited");
    for (name, value) in [("verdict", "ALLOWED"), ("key_id", &id), ("plan", "basic"), ("charged", "3")] {
        assert_eq!(metadata(&answer, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(metadata(&answer, "uncharged_key_id"), None);
    assert!(!format!("{answer:?}").contains(&made.secret));
}

#[tokio::test]
async fn what_is_left_is_told_with_every_answer() {
    let server = Server::start().await;
    server.plan(Plan { monthly_credits: Some(500), ..plan("counted") }).await;
    server.account(account("acct_counted", "counted")).await;
    let limits = vec![limit("per-minute", 10, Period::Minute)];
    let made = server.key(Key { account_id: "acct_counted".to_owned(), limits, ..key("a") }).await;
    let left = headers(&allowed(&ask(&server, with_key(&made.secret, &[("cost", "8")])).await).response_headers_to_add);
    let minute = server.now().seconds + 60;
    let rows = [
        ("x-ratelimit-limit", "10".to_owned()),
        ("x-ratelimit-remaining", "2".to_owned()),
        ("x-ratelimit-reset", minute.to_string()),
        ("ratelimit-policy", "\"per-minute\";q=10;w=60, \"credits\";q=500".to_owned()),
    ];
    for (name, value) in rows {
        assert_eq!(left[name], value, "{name}");
    }
    assert!(left["ratelimit"].starts_with("\"per-minute\";r=2;t=60, \"credits\";r=492;t="), "{left:?}");

    server.advance(20);
    let answer = ask(&server, with_key(&made.secret, &[("cost", "3")])).await;
    let (status, told, body) = denied(&answer);
    assert_eq!((status, verdict(&answer).as_str()), (429, "RATE_LIMITED"));
    assert_eq!(told["retry-after"], "40");
    assert_eq!((told["x-ratelimit-remaining"].as_str(), told["x-ratelimit-limit"].as_str()), ("2", "10"));
    assert_eq!(told["content-type"], "application/json");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((body["error"].as_str(), body["code"].as_str()), (Some("Rate limit exceeded"), Some("RATE_LIMITED")));
    assert!(body["message"].as_str().unwrap().contains("per-minute"), "{body}");
    assert_eq!(body["request_id"].as_str().unwrap().len(), 32);
}

#[tokio::test]
async fn each_denial_has_its_status_and_its_challenge() {
    let server = Server::start().await;
    let restricted = Restrictions { allowed_ips: strings(&["198.51.100.0/24"]), ..Restrictions::default() };
    let elsewhere = server.key(Key { restrictions: Some(restricted), ..key("elsewhere") }).await.secret;
    let (id, revoked) = server.plain_key("revoked").await;
    server.revoke(&id).await;
    let (_, plain) = server.plain_key("plain").await;
    let scoped: &[(&str, &str)] = &[("scopes", "tasks:write"), ("any_scopes", "a:b c:d")];
    let rows: [(CheckRequest, i32, i32, &str, &str); 6] = [
        (request(&[], &[]), 401, 16, "MISSING", "Bearer realm=\"api\""),
        (with_key("sk_live_x", &[]), 401, 16, "MALFORMED", "invalid_token"),
        (with_key("other", &[]), 401, 16, "UNKNOWN", "invalid_token"),
        (with_key(&revoked, &[]), 401, 16, "REVOKED", "error_description=\"the API key is revoked\""),
        (with_key(&elsewhere, &[]), 403, 7, "IP_DENIED", ""),
        (with_key(&plain, scoped), 403, 7, "SCOPE_DENIED", "insufficient_scope"),
    ];
    for (request, http_status, code, name, challenge) in rows {
        let answer = ask(&server, request).await;
        assert_eq!((verdict(&answer).as_str(), answer.status.as_ref().unwrap().code), (name, code));
        let (status, told, body) = denied(&answer);
        assert_eq!(status, http_status, "{name}");
        let found = told.get("www-authenticate").map_or("", String::as_str);
        assert!(found.contains(challenge) && found.is_empty() == challenge.is_empty(), "{name}: {found}");
        assert_eq!(found.contains("scope=\"tasks:write a:b c:d\""), name == "SCOPE_DENIED", "{found}");
        assert!(body.contains(&format!("\"code\":\"{name}\"")), "{body}");
        assert_eq!(told["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn clients_that_speak_grpc_are_told_in_trailers() {
    let server = Server::start().await;
    let made = server.key(Key { limits: vec![limit("tight", 1, Period::Hour)], ..key("a") }).await;
    let rows = [
        (String::new(), "scopes", "a:b", "16"),
        (made.secret.clone(), "scopes", "a:b", "7"),
        (made.secret.clone(), "cost", "2", "8"),
    ];
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=1"] {
        for (secret, name, value, code) in &rows {
            let bearer = format!("Bearer {secret}");
            let mut sent = vec![("content-type", content_type)];
            sent.extend(Some(("authorization", bearer.as_str())).filter(|_| !secret.is_empty()));
            let (_, told, body) = denied(&ask(&server, request(&sent, &[(name, value)])).await);
            assert_eq!((told["grpc-status"].as_str(), body.as_str()), (*code, ""));
            assert!(!told["grpc-message"].is_empty() && !told.contains_key("content-type"), "{told:?}");
        }
    }
    let web = [("content-type", "application/grpc-web")];
    assert!(!denied(&ask(&server, request(&web, &[])).await).1.contains_key("grpc-status"));
}

#[tokio::test]
async fn the_configuration_changes_names_statuses_and_forms() {
    let settings = Settings {
        http_statuses: BTreeMap::from([(Verdict::Unknown, 403)]),
        edge: edge::Settings {
            credential_headers: vec!["x-key".to_owned()],
            credential_query: Some("key".to_owned()),
            strip_credential: true,
            identity: IdentityNames::with_prefix("x-caller-"),
            realm: "tasks".to_owned(),
            message_format: MessageFormat::Problem,
        },
        ..Settings::default()
    };
    let server = Server::start_with(settings).await;
    let (id, secret) = server.plain_key("a").await;

    let ok = allowed(&ask(&server, request(&[("x-key", &secret)], &[])).await);
    assert_eq!(headers(&ok.headers)["x-caller-key-id"], id);
    assert_eq!(ok.headers_to_remove, ["x-key"]);
    let mut by_query = request(&[], &[]);
    http(&mut by_query).path = format!("/v1/tasks?page=2&key={secret}");
    let ok = allowed(&ask(&server, by_query).await);
    assert_eq!((ok.headers_to_remove.len(), ok.query_parameters_to_remove), (0, vec!["key".to_owned()]));
    assert_eq!(verdict(&ask(&server, request(&[("x-api-key", &secret)], &[])).await), "MISSING");

    let (status, told, body) = denied(&ask(&server, with_key("other", &[])).await);
    assert_eq!((status, told["content-type"].as_str()), (403, "application/problem+json"));
    assert!(told["www-authenticate"].starts_with("Bearer realm=\"tasks\", error=\"invalid_token\""));
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let page = [("type", "about:blank"), ("title", "Invalid API key"), ("code", "UNKNOWN")];
    for (member, value) in page {
        assert_eq!(body[member], value, "{body}");
    }
    assert_eq!(body["status"], 403);
    let (_, told, _) = denied(&ask(&server, with_key("other", &[("message_format", "json")])).await);
    assert_eq!(told["content-type"], "application/json", "a route may differ");
}

#[tokio::test]
async fn a_key_may_stay_where_the_upstream_wants_it() {
    let edge = edge::Settings { strip_credential: false, ..edge::Settings::default() };
    let server = Server::start_with(Settings { edge, ..Settings::default() }).await;
    let (_, secret) = server.plain_key("a").await;
    assert!(allowed(&ask(&server, with_key(&secret, &[])).await).headers_to_remove.is_empty());
}

#[tokio::test]
async fn two_credentials_are_refused_in_either_header_mode() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("a").await;
    let bearer = format!("Bearer {secret}");
    let pairs = [
        [("authorization", bearer.as_str()), ("authorization", "Bearer other")],
        [("x-api-key", secret.as_str()), ("x-api-key", secret.as_str())],
        [("authorization", bearer.as_str()), ("x-api-key", secret.as_str())],
    ];
    for pair in pairs {
        assert_eq!(verdict(&ask(&server, request(&pair, &[])).await), "MALFORMED", "{:?}", pair.map(|(name, _)| name));
    }
    let mut joined = request(&[], &[]);
    let value = format!("{bearer},Bearer other");
    http(&mut joined).headers = BTreeMap::from([("authorization".to_owned(), value)]);
    http(&mut joined).header_map = None;
    assert_eq!(verdict(&ask(&server, joined.clone()).await), "MALFORMED");
    http(&mut joined).headers.insert("authorization".to_owned(), bearer.clone());
    allowed(&ask(&server, joined.clone()).await);
    // Both modes at once are two.
    http(&mut joined).header_map = http(&mut with_key(&secret, &[])).header_map.clone();
    assert_eq!(verdict(&ask(&server, joined).await), "MALFORMED");
}

#[tokio::test]
async fn the_clients_request_id_comes_back_if_it_is_safe_to_print() {
    let server = Server::start().await;
    for (sent, same) in [("0351fa9d-4c1b", true), ("a\" b", false)] {
        let answer = ask(&server, request(&[("x-request-id", sent)], &[])).await;
        let (_, _, body) = denied(&answer);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["request_id"] == sent, same, "{body}");
        assert_eq!(metadata(&answer, "request_id").is_some(), same);
    }
}

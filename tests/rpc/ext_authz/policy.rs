//! What a route's `context_extensions` say.

use tollgate::proto::v1::*;

use super::*;
use crate::harness::{key, limit, of, strings};

#[tokio::test]
async fn scopes_and_environment_are_those_of_the_route() {
    let server = Server::start().await;
    let made = server.key(Key { scopes: strings(&["tasks:read", "files:*"]), ..key("a") }).await;
    let environment = Environment::Test.into();
    let test = server.key(Key { environment, ..key("t") }).await;
    let rows: [(&str, Pairs<'_>, &str); 8] = [
        (&made.secret, &[("scopes", "tasks:read,files:write")], "ALLOWED"),
        (&made.secret, &[("scopes", "tasks:read tasks:write")], "SCOPE_DENIED"),
        (&made.secret, &[("any_scopes", "tasks:write,files:read")], "ALLOWED"),
        (&made.secret, &[("any_scopes", "tasks:write,a:b")], "SCOPE_DENIED"),
        (&made.secret, &[("scopes", "tasks:read"), ("any_scopes", "a:b")], "SCOPE_DENIED"),
        (&made.secret, &[("environment", "live")], "ALLOWED"),
        (&made.secret, &[("environment", "test")], "WRONG_ENVIRONMENT"),
        (&test.secret, &[("environment", "test")], "ALLOWED"),
    ];
    for (secret, policy, expected) in rows {
        assert_eq!(verdict(&ask(&server, with_key(secret, policy)).await), expected, "{policy:?}");
    }
}

#[tokio::test]
async fn cost_is_charged_peeked_at_or_nothing() {
    let server = Server::start().await;
    let made = server.key(Key { limits: vec![limit("hourly", 10, Period::Hour)], ..key("a") }).await;
    let remaining =
        || async { server.ask(CheckKeyRequest { cost: Some(0), ..of(&made.secret) }).await.limits[0].remaining };
    for (policy, left) in [
        (vec![("cost", "4")], 6),
        (vec![("cost", "0")], 6),
        (vec![("cost", "4"), ("mode", "peek")], 6),
        (vec![("mode", "off")], 6),
        (vec![], 5),
        (vec![("cost", "5"), ("mode", "consume")], 0),
    ] {
        let answer = ask(&server, with_key(&made.secret, &policy)).await;
        allowed(&answer);
        assert_eq!(remaining().await, left, "{policy:?}");
        // A rate limit filter behind is told of the key only where it has not been charged.
        let uncharged = metadata(&answer, "charged").as_deref() == Some("0");
        assert_eq!(metadata(&answer, "uncharged_key_id").is_some(), uncharged, "{policy:?}");
    }
    assert_eq!(verdict(&ask(&server, with_key(&made.secret, &[("mode", "peek")])).await), "RATE_LIMITED");
    allowed(&ask(&server, with_key(&made.secret, &[("mode", "off")])).await);
}

#[tokio::test]
async fn a_route_that_is_off_identifies_those_who_say_who_they_are() {
    let server = Server::start().await;
    let off: &[(&str, &str)] = &[("mode", "off"), ("scopes", "tasks:read"), ("cost", "7"), ("environment", "test")];
    let ok = allowed(&ask(&server, request(&[("x-auth-key-id", "key_spoofed")], off)).await);
    assert_eq!(headers(&ok.headers).len(), 5);
    assert!(headers(&ok.headers).values().all(String::is_empty), "nobody, and not whom the client names");
    assert!(ok.headers_to_remove.is_empty());

    let (id, secret) = server.plain_key("a").await;
    let answer = ask(&server, with_key(&secret, off)).await;
    assert_eq!(headers(&allowed(&answer).headers)["x-auth-key-id"], id);
    server.flush().await;
    assert_eq!(server.get_key(&id).await.usage.unwrap().requests_today, 0);
    server.revoke(&id).await;
    assert_eq!(verdict(&ask(&server, with_key(&secret, off)).await), "REVOKED");
    assert_eq!(verdict(&ask(&server, with_key("nonsense", off)).await), "UNKNOWN");
    assert_eq!(verdict(&ask(&server, request(&[("x-api-key", "")], off)).await), "MALFORMED");
}

#[tokio::test]
async fn a_policy_that_is_not_understood_lets_nothing_pass() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("a").await;
    let rows: [(&str, &str); 10] = [
        ("scope", "tasks:read"),
        ("tenant", "acme"),
        ("scopes", ""),
        ("scopes", "tasks"),
        ("any_scopes", "a:b;c:d"),
        ("cost", "-1"),
        ("cost", "1e3"),
        ("environment", "production"),
        ("mode", "OFF"),
        ("message_format", "html"),
    ];
    for (name, value) in rows {
        for request in [with_key(&secret, &[(name, value)]), request(&[], &[("mode", "off"), (name, value)])] {
            let answer = ask(&server, request).await;
            let (status, told, body) = failed(&answer);
            assert_eq!((status, told["content-type"].as_str()), (500, "application/json"), "{name}={value}");
            assert!(body.contains("POLICY_INVALID") && !body.contains(name), "the client is not told: {body}");
            assert!(metadata(&answer, "message").unwrap().contains(name), "the operator is: {answer:?}");
        }
    }
    assert_eq!(server.check(&secret).await.verdict(), Verdict::Allowed);
}

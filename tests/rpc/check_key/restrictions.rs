//! Environment, address, referrer, endpoint and scopes.

use tollgate::proto::v1::{Environment as E, Verdict as V, *};

use crate::harness::{PLAN, Server, account, key, of, plan, strings};

type Scopes = &'static [&'static str];

/// Checks with one context, field by field.
fn within(secret: &str, change: impl FnOnce(&mut CheckContext)) -> CheckKeyRequest {
    let mut context = CheckContext::default();
    change(&mut context);
    CheckKeyRequest { context: Some(context), ..of(secret) }
}

#[tokio::test]
async fn environments_are_kept_apart() {
    let server = Server::start().await;
    let live = server.key(Key { environment: Environment::Live.into(), ..key("live") }).await.secret;
    let test = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await.secret;
    let (_, unset) = server.plain_key("unset").await;
    let rows = [
        (&live, E::Live, V::Allowed),
        (&live, E::Test, V::WrongEnvironment),
        (&test, E::Test, V::Allowed),
        (&test, E::Live, V::WrongEnvironment),
        (&test, E::Unspecified, V::Allowed),
        (&unset, E::Live, V::Allowed),
    ];
    for (secret, environment, expected) in rows {
        let request = CheckKeyRequest { environment: environment.into(), ..of(secret) };
        assert_eq!(server.ask(request).await.verdict(), expected, "{environment:?}");
    }
}

#[tokio::test]
async fn addresses() {
    let server = Server::start().await;
    let restrictions = Restrictions {
        allowed_ips: strings(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"]),
        ..Restrictions::default()
    };
    let secret = server.key(Key { restrictions: Some(restrictions), ..key("k") }).await.secret;
    let rows = [
        ("10.1.2.3", true),
        ("11.1.2.3", false),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("2001:db8:1::1", true),
        ("2001:db9::1", false),
        ("::1", true),
        ("::ffff:10.1.2.3", true),
        ("::ffff:11.1.2.3", false),
        ("", false),
    ];
    for (client_ip, allowed) in rows {
        let request = within(&secret, |context| context.client_ip = client_ip.to_owned());
        let expected = if allowed { Verdict::Allowed } else { Verdict::IpDenied };
        assert_eq!(server.ask(request).await.verdict(), expected, "{client_ip}");
    }
    assert_eq!(server.verdict(&secret).await, Verdict::IpDenied);
}

#[tokio::test]
async fn referrers() {
    let server = Server::start().await;
    let restrictions =
        Restrictions { allowed_referrers: strings(&["example.com", "*.Example.org"]), ..Restrictions::default() };
    let secret = server.key(Key { restrictions: Some(restrictions), ..key("k") }).await.secret;
    let rows = [
        ("https://example.com/page?x=1", true),
        ("example.com", true),
        ("https://EXAMPLE.com:8443/", true),
        ("https://www.example.com/", false),
        ("https://a.example.org/", true),
        ("https://a.b.example.org/", true),
        ("https://example.org/", false),
        ("https://example.com.evil.net/", false),
        ("https://example.com@evil.net/", false),
        ("", false),
    ];
    for (referrer, allowed) in rows {
        let request = within(&secret, |context| context.referrer = referrer.to_owned());
        let expected = if allowed { Verdict::Allowed } else { Verdict::ReferrerDenied };
        assert_eq!(server.ask(request).await.verdict(), expected, "{referrer}");
    }
}

#[tokio::test]
async fn endpoints() {
    let server = Server::start().await;
    let patterns = ["GET /v1/tasks/*", "* /v2/**", "POST api.example.com/v1/notes", "GET /files/*.json"];
    let restrictions = Restrictions { allowed_endpoints: strings(&patterns), ..Restrictions::default() };
    let secret = server.key(Key { restrictions: Some(restrictions), ..key("k") }).await.secret;
    let rows = [
        ("GET", "", "/v1/tasks/7", true),
        ("GET", "any.example.net", "/v1/tasks/7?x=/../y", true),
        ("POST", "", "/v1/tasks/7", false),
        ("get", "", "/v1/tasks/7", false),
        ("GET", "", "/v1/tasks/7/notes", false),
        ("GET", "", "/v1/tasks/", false),
        ("DELETE", "", "/v2", true),
        ("DELETE", "", "/v2/a/b", true),
        ("DELETE", "", "/v22", false),
        ("POST", "api.example.com", "/v1/notes", true),
        ("POST", "API.Example.com", "/v1/notes", true),
        ("POST", "other.example.com", "/v1/notes", false),
        ("POST", "", "/v1/notes", false),
        ("GET", "", "/files/a.json", true),
        ("GET", "", "/files/a.xml", false),
        ("GET", "", "", false),
        ("", "", "/v2/a", false),
        // Servers read these differently.
        ("GET", "", "/v2/../v1/admin", false),
        ("GET", "", "/v2/%2e%2e/admin", false),
        ("GET", "", "/v2//admin", false),
        ("GET", "", "/v2/a%2Fb", false),
        ("GET", "", "/v2/a;b", false),
        ("GET", "", "/v2/a\\b", false),
    ];
    for (method, host, path, allowed) in rows {
        let request = within(&secret, |context| {
            (context.method, context.host, context.path) = (method.to_owned(), host.to_owned(), path.to_owned());
        });
        let expected = if allowed { Verdict::Allowed } else { Verdict::EndpointDenied };
        assert_eq!(server.ask(request).await.verdict(), expected, "{method} {host}{path}");
    }
}

#[tokio::test]
async fn scopes_are_granted_and_the_missing_ones_named() {
    let server = Server::start().await;
    let held = |name: &str, scopes: &[&str]| Key { scopes: strings(scopes), ..key(name) };
    let narrow = server.key(held("narrow", &["tasks:read", "notes:*"])).await.secret;
    let admin = server.key(held("admin", &["admin:*"])).await.secret;
    let rows: [(&str, Scopes, Scopes, Scopes); 14] = [
        (&narrow, &[], &[], &[]),
        (&narrow, &["tasks:read"], &[], &[]),
        (&narrow, &["notes:write", "notes:*"], &[], &[]),
        (&narrow, &["notes:sub:write"], &[], &["notes:sub:write"]),
        (&narrow, &["tasks:*"], &[], &["tasks:*"]),
        (&narrow, &["tasks:read", "tasks:write", "users:read"], &[], &["tasks:write", "users:read"]),
        (&narrow, &[], &["users:read", "tasks:read"], &[]),
        (&narrow, &[], &["users:read", "users:write"], &["users:read", "users:write"]),
        (&narrow, &["users:read"], &["tasks:read"], &["users:read"]),
        (&narrow, &["tasks:write"], &["users:read"], &["tasks:write", "users:read"]),
        (&admin, &["tasks:write", "users:*"], &[], &[]),
        (&admin, &["tollgate:admin"], &[], &["tollgate:admin"]),
        (&admin, &["tollgate:keys:read"], &["tasks:read"], &["tollgate:keys:read"]),
        (&admin, &["tollgates:read"], &[], &[]),
    ];
    for (secret, all_of, any_of, missing) in rows {
        let request = CheckKeyRequest { all_of: strings(all_of), any_of: strings(any_of), ..of(secret) };
        let answer = server.ask(request).await;
        let expected = if missing.is_empty() { Verdict::Allowed } else { Verdict::ScopeDenied };
        assert_eq!((answer.verdict(), answer.missing_scopes), (expected, strings(missing)), "{all_of:?} {any_of:?}");
        assert!(missing.iter().all(|scope| answer.message.contains(scope)), "{}", answer.message);
    }
}

#[tokio::test]
async fn a_plan_takes_scopes_away_on_the_next_check_but_never_tollgates_own() {
    let server = Server::start().await;
    server.plan(plan("narrowed")).await;
    server.account(account("acct_n", "narrowed")).await;
    let scopes = strings(&["tasks:read", "notes:read", "tollgate:check"]);
    let secret = server.key(Key { account_id: "acct_n".to_owned(), scopes, ..key("k") }).await.secret;
    let admin = Key { account_id: "acct_n".to_owned(), scopes: strings(&["admin:*"]), ..key("admin") };
    let admin = server.key(admin).await.secret;
    let asking = |scope: &str| CheckKeyRequest { all_of: strings(&[scope]), ..of(&secret) };
    let allows = async |scope: &str| server.ask(asking(scope)).await.allowed;
    assert!(allows("tasks:read").await && allows("notes:read").await);
    let change = Plan { allowed_scopes: strings(&["notes:*"]), ..plan("narrowed") };
    server.change_plan(change, &["allowed_scopes"]).await;
    assert!(!allows("tasks:read").await && allows("notes:read").await && allows("tollgate:check").await);
    // What is told of the key is what it may do.
    assert_eq!(server.check(&secret).await.scopes, ["notes:read", "tollgate:check"]);
    assert_eq!(server.check(&admin).await.scopes, ["notes:*"]);
    server.change_plan(plan("narrowed"), &["allowed_scopes"]).await;
    assert_eq!(server.check(&secret).await.scopes, ["tasks:read", "notes:read", "tollgate:check"]);
}

#[tokio::test]
async fn changed_restrictions_hold_from_the_next_check_on() {
    let server = Server::start().await;
    server.account(account("acct_r", PLAN)).await;
    let (id, secret) = server.plain_key("k").await;
    let from = |ip: &str| within(&secret, |context| context.client_ip = ip.to_owned());
    assert!(server.ask(from("192.0.2.1")).await.allowed);
    let restrictions = Some(Restrictions { allowed_ips: strings(&["10.0.0.0/8"]), ..Restrictions::default() });
    server.change_key(Key { id: id.clone(), restrictions, ..Key::default() }, &["restrictions"]).await;
    assert_eq!(server.ask(from("192.0.2.1")).await.verdict(), Verdict::IpDenied);
    assert!(server.ask(from("10.0.0.1")).await.allowed);
    server.change_key(Key { id, ..Key::default() }, &["restrictions"]).await;
    assert!(server.ask(from("192.0.2.1")).await.allowed);
}

//! Every answer that a check can have, and which comes first.

use std::collections::BTreeMap;

use tollgate::decision::secret::Brand;
use tollgate::domain;
use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, OTHER_ACCOUNT, PLAN, Server, Settings, account, key, limit, of, plan, refused, strings};

/// In our format, with the right checksum, and nobody's.
fn forged() -> String {
    use secrecy::ExposeSecret as _;
    Brand::default().format(domain::Environment::Live, &[42; 32]).0.expose_secret().to_owned()
}

fn restricted(name: &str) -> Key {
    let restrictions = Restrictions {
        allowed_ips: strings(&["192.0.2.0/24"]),
        allowed_referrers: strings(&["example.com"]),
        allowed_endpoints: strings(&["GET /v1/*"]),
    };
    Key { restrictions: Some(restrictions), ..key(name) }
}

fn context() -> CheckContext {
    CheckContext {
        client_ip: "192.0.2.7".to_owned(),
        referrer: "https://example.com/".to_owned(),
        method: "GET".to_owned(),
        path: "/v1/x".to_owned(),
        ..CheckContext::default()
    }
}

/// A request for each verdict.
pub(crate) async fn requests(server: &Server) -> Vec<(Verdict, CheckKeyRequest)> {
    let (_, allowed) = server.plain_key("allowed").await;
    let (revoked_id, revoked) = server.plain_key("revoked").await;
    server.revoke(&revoked_id).await;
    let (rotated_id, rotated) = server.plain_key("rotated").await;
    server.rotate(&rotated_id, 0).await;
    let expired = server.key(Key { expire_time: server.in_seconds(60), ..key("expired") }).await.secret;
    let (disabled_id, disabled) = server.plain_key("disabled").await;
    let status = Status::Disabled.into();
    server.change_key(Key { id: disabled_id, status, ..Key::default() }, &["status"]).await;
    let suspended = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("suspended") }).await.secret;
    let status = AccountStatus::Suspended.into();
    server.change_account(Account { id: OTHER_ACCOUNT.to_owned(), status, ..Account::default() }, &["status"]).await;
    server.plan(plan("closing")).await;
    server.account(account("acct_c", "closing")).await;
    let without_plan = server.key(Key { account_id: "acct_c".to_owned(), ..key("without plan") }).await.secret;
    server.change_plan(Plan { api_access: false, ..plan("closing") }, &["api_access"]).await;
    let restricted = server.key(restricted("restricted")).await.secret;
    let limited = Key { limits: vec![limit("none", 0, Period::Hour)], ..key("limited") };
    let limited = server.key(limited).await.secret;
    server.account(Account { monthly_credits: Some(0), ..account("acct_d", PLAN) }).await;
    let without_credits = server.key(Key { account_id: "acct_d".to_owned(), ..key("k") }).await.secret;
    let (_, throttled) = server.plain_key("throttled").await;
    server.advance(60);
    assert_eq!(server.verdict(&throttled).await, Verdict::Allowed);

    let restricted_in = |context| CheckKeyRequest { context: Some(context), ..of(&restricted) };
    let test = Environment::Test.into();
    let mut damaged = allowed.clone();
    damaged.replace_range(10..11, if damaged[10..].starts_with('a') { "b" } else { "a" });
    vec![
        (Verdict::Allowed, of(&allowed)),
        (Verdict::Missing, of("")),
        (Verdict::Malformed, of(&damaged)),
        (Verdict::Unknown, of(&forged())),
        (Verdict::Revoked, of(&revoked)),
        (Verdict::RotatedOut, of(&rotated)),
        (Verdict::Expired, of(&expired)),
        (Verdict::Disabled, of(&disabled)),
        (Verdict::AccountSuspended, of(&suspended)),
        (Verdict::PlanDenied, of(&without_plan)),
        (Verdict::WrongEnvironment, CheckKeyRequest { environment: test, ..of(&allowed) }),
        (Verdict::IpDenied, restricted_in(CheckContext { client_ip: String::new(), ..context() })),
        (Verdict::ReferrerDenied, restricted_in(CheckContext { referrer: String::new(), ..context() })),
        (Verdict::EndpointDenied, restricted_in(CheckContext { path: String::new(), ..context() })),
        (Verdict::ScopeDenied, CheckKeyRequest { all_of: strings(&["tasks:read"]), ..of(&allowed) }),
        (Verdict::RateLimited, of(&limited)),
        (Verdict::CreditsExhausted, of(&without_credits)),
        (Verdict::Throttled, of(&throttled)),
    ]
}

fn default_status(verdict: Verdict) -> i32 {
    match i32::from(verdict) {
        1 => 200,
        2..=8 => 401,
        9..=15 => 403,
        _ => 429,
    }
}

#[tokio::test]
async fn every_verdict_has_its_status_and_its_words() {
    let server = Server::start_with(Settings { key_checks_per_second: 1, ..Settings::default() }).await;
    let requests = requests(&server).await;
    let numbers: Vec<i32> = requests.iter().map(|(verdict, _)| i32::from(*verdict)).collect();
    assert_eq!(numbers, (1..=18).collect::<Vec<i32>>());
    for (expected, request) in requests {
        let secret = request.key.clone();
        let answer = server.ask(request).await;
        assert_eq!(answer.verdict(), expected);
        assert_eq!(answer.http_status, default_status(expected), "{expected:?}");
        assert_eq!(answer.allowed, expected == Verdict::Allowed);
        assert_eq!(answer.message.is_empty(), expected == Verdict::Allowed, "{expected:?}: {:?}", answer.message);
        assert_eq!(answer.revision, server.engine.index_size().2.number());
        let identified = i32::from(expected) == 1 || i32::from(expected) > 4;
        assert_eq!(answer.key_id.starts_with("key_"), identified, "{expected:?}");
        assert_eq!(answer.account_id.is_empty(), !identified);
        assert_eq!(answer.plan.is_empty(), !identified);
        assert_eq!(answer.key_name.is_empty(), !identified);
        assert_eq!(answer.environment == 0, !identified);
        assert!(secret.is_empty() || !format!("{answer:?}").contains(&secret), "{expected:?} tells the secret");
    }
}

#[tokio::test]
async fn the_status_of_each_verdict_can_be_set() {
    let overrides: BTreeMap<domain::Verdict, u16> =
        (600..).zip(domain::Verdict::ALL).map(|(status, verdict)| (verdict, status)).collect();
    let one = BTreeMap::from([(domain::Verdict::Unknown, 403)]);
    let all = Settings { key_checks_per_second: 1, http_statuses: overrides, ..Settings::default() };
    let server = Server::start_with(all).await;
    for (expected, request) in requests(&server).await {
        let answer = server.ask(request).await;
        assert_eq!((answer.verdict(), answer.http_status), (expected, 599 + i32::from(expected)));
    }
    let server = Server::start_with(Settings { http_statuses: one, ..Settings::default() }).await;
    assert_eq!(server.check(&forged()).await.http_status, 403);
    assert_eq!(server.check("").await.http_status, 401);
}

/// Each step makes the same check wrong in one way more, so that an earlier verdict takes the place of the later one.
#[tokio::test]
async fn the_first_reason_in_the_contracts_order_is_given() {
    let server = Server::start_with(Settings { key_checks_per_second: 1, ..Settings::default() }).await;
    let made = server.key(Key { expire_time: server.in_seconds(60), ..restricted("k") }).await;
    let (id, secret) = (made.key.unwrap().id, made.secret);
    let mut request = CheckKeyRequest { context: Some(context()), ..of(&secret) };
    let expect = async |verdict: Verdict, request: &CheckKeyRequest| {
        assert_eq!(server.ask(request.clone()).await.verdict(), verdict);
    };
    let of_account = || Account { id: ACCOUNT.to_owned(), ..Account::default() };
    let of_key = || Key { id: id.clone(), ..Key::default() };
    let context_of = |request: &mut CheckKeyRequest, change: fn(&mut CheckContext)| {
        change(request.context.as_mut().unwrap());
    };

    expect(Verdict::Allowed, &request).await;
    expect(Verdict::Throttled, &request).await;
    server.change_account(Account { monthly_credits: Some(0), ..of_account() }, &["monthly_credits"]).await;
    expect(Verdict::CreditsExhausted, &request).await;
    server.change_key(Key { limits: vec![limit("none", 0, Period::Day)], ..of_key() }, &["limits"]).await;
    expect(Verdict::RateLimited, &request).await;
    request.any_of = strings(&["tasks:read"]);
    expect(Verdict::ScopeDenied, &request).await;
    context_of(&mut request, |context| context.method = "POST".to_owned());
    expect(Verdict::EndpointDenied, &request).await;
    context_of(&mut request, |context| context.referrer = "https://example.org/".to_owned());
    expect(Verdict::ReferrerDenied, &request).await;
    context_of(&mut request, |context| context.client_ip = "2001:db8::1".to_owned());
    expect(Verdict::IpDenied, &request).await;
    request.environment = Environment::Test.into();
    expect(Verdict::WrongEnvironment, &request).await;
    server.change_plan(Plan { api_access: false, ..plan(PLAN) }, &["api_access"]).await;
    expect(Verdict::PlanDenied, &request).await;
    let status = AccountStatus::Suspended.into();
    server.change_account(Account { status, ..of_account() }, &["status"]).await;
    expect(Verdict::AccountSuspended, &request).await;
    server.change_key(Key { status: Status::Disabled.into(), ..of_key() }, &["status"]).await;
    expect(Verdict::Disabled, &request).await;
    server.advance(60);
    expect(Verdict::Expired, &request).await;
    server.rotate(&id, 0).await;
    expect(Verdict::RotatedOut, &request).await;
    server.revoke(&id).await;
    expect(Verdict::Revoked, &request).await;
}

#[tokio::test]
async fn an_identified_key_is_described() {
    let server = Server::start().await;
    let metadata = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    let wanted = Key {
        environment: Environment::Test.into(),
        scopes: strings(&["tasks:read", "notes:*"]),
        expire_time: server.in_seconds(3_600),
        metadata: metadata.clone(),
        ..key("described")
    };
    let made = server.key(wanted).await;
    let (key, answer) = (made.key.unwrap(), server.check(&made.secret).await);
    assert_eq!((&answer.key_id, answer.account_id.as_str(), answer.plan.as_str()), (&key.id, ACCOUNT, PLAN));
    assert_eq!((answer.key_name.as_str(), answer.environment()), ("described", Environment::Test));
    assert_eq!((answer.scopes, answer.metadata), (key.scopes, metadata));
    assert_eq!(answer.expire_time, key.expire_time);
    assert_eq!(answer.revision, made.revision);
}

#[tokio::test]
async fn an_answer_waits_for_the_revision_that_it_is_asked_for() {
    let server = Server::start().await;
    let made = server.key(key("k")).await;
    for min_revision in [0, 1, made.revision] {
        let answer = server.ask(CheckKeyRequest { min_revision, ..of(&made.secret) }).await;
        assert!(answer.allowed && answer.revision >= min_revision);
    }
    let later = CheckKeyRequest { min_revision: made.revision + 1, ..of(&made.secret) };
    let status = refused(server.operator.check_key(later).await, Code::Unavailable);
    assert!(status.message().contains("min_revision"), "{status:?}");
}

#[tokio::test]
async fn without_check_auth_anybody_may_check_and_nothing_else() {
    let server = Server::start_with(Settings { check_needs_caller: false, ..Settings::default() }).await;
    let (id, secret) = server.plain_key("k").await;
    let anonymous = server.anonymous();
    assert!(anonymous.check_key(of(&secret)).await.unwrap().allowed);
    // A caller's key is not looked at, so that its account does not narrow what is known either.
    let other = server.caller_of(OTHER_ACCOUNT, &[]).await;
    assert!(other.check_key(of(&secret)).await.unwrap().allowed);
    refused(anonymous.get_key(GetKeyRequest { id }).await, Code::Unauthenticated);
}

#[tokio::test]
async fn nothing_is_decided_while_the_index_is_loaded() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    server.set_serving(false);
    refused(server.operator.check_key(of(&secret)).await, Code::Unavailable);
    refused(server.operator.get_self(GetSelfRequest {}).await, Code::Unavailable);
    server.set_serving(true);
    assert!(server.check(&secret).await.allowed);
}

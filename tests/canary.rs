//! Secrets are used in every way that a client may get wrong, and then looked for wherever this program leaves a trace:
//! not one is found, nor a part of it, nor what could stand for it.
#![cfg(test)]
#![expect(clippy::large_futures, reason = "each runs once, and most of it is the requests")]

mod support;

use std::collections::HashMap;
use std::fmt::Debug;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tollgate::proto::envoy::config::core::v3::{HeaderMap, HeaderValue};
use tollgate::proto::envoy::extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use tollgate::proto::envoy::service::auth::v3::attribute_context::{self, HttpRequest};
use tollgate::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tollgate::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use tollgate::proto::envoy::service::ratelimit::v3::RateLimitRequest;
use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use tollgate::proto::v1::{
    CheckContext, CheckKeyRequest, CreateKeyRequest, GetAccountRequest, GetKeyRequest, GetLimitsRequest,
    GetPlanRequest, GetSelfRequest, GetUsageRequest, ImportKeysRequest, ImportedKey, Key, KeyFilter, Limit,
    ListKeysRequest, RefundCheckRequest, Restrictions, RevokeKeyRequest, RotateKeyRequest, UpdateKeyRequest,
    account_service_client::AccountServiceClient, key_service_client::KeyServiceClient,
    plan_service_client::PlanServiceClient,
};
use tonic::{Request, Response, Status};

use support::{Bearer, Home, Keys, Server, create, dice, files, hex, run, said};

/// So many bytes of a secret, wherever they stand, give it away; the prefix that is shown has 4 of its digits.
const PART: usize = 16;
const TRACE: [&str; 2] = ["--log-filter=trace", "--log-format=json"];

/// What must be nowhere, and what was seen.
#[derive(Debug, Default)]
struct Canary {
    /// Parts of what must not be seen, and what they are of.
    parts: HashMap<Vec<u8>, String>,
    /// Parts of the hashes as the database holds them, and nothing else may.
    raw_hashes: HashMap<Vec<u8>, String>,
    seen: Vec<(String, Vec<u8>)>,
}

impl Canary {
    /// Adds a secret whose first characters may be shown.
    fn secret(&mut self, what: &str, secret: &str) {
        let random = secret.rsplit('_').next().unwrap();
        self.add(what, random.as_bytes());
        self.hash(what, &Sha256::digest(secret));
    }

    fn hash(&mut self, what: &str, hash: &[u8]) {
        let hex = hex(hash);
        self.add(&format!("the hash of {what} in hex"), hex.as_bytes());
        self.add(&format!("the hash of {what} in hex"), hex.to_uppercase().as_bytes());
        self.add(&format!("the hash of {what} in base64"), BASE64_STANDARD.encode(hash).as_bytes());
        self.add(&format!("the hash of {what} in base64"), BASE64_URL_SAFE_NO_PAD.encode(hash).as_bytes());
        let parts = hash.windows(PART).map(|part| (part.to_vec(), format!("the hash of {what}")));
        self.raw_hashes.extend(parts);
        // As a list of numbers, which is how a debug format writes bytes.
        let list = hash[..8].iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.add(&format!("the hash of {what} in numbers"), list.as_bytes());
    }

    fn add(&mut self, what: &str, bytes: &[u8]) {
        assert!(bytes.len() >= PART, "{what} is too short to look for");
        self.parts.extend(bytes.windows(PART).map(|part| (part.to_vec(), what.to_owned())));
    }

    fn saw(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.seen.push((place.into(), bytes.into()));
    }

    /// Keeps all that an answer or a refusal holds.
    fn answer<T: Debug>(&mut self, place: &str, answer: Result<Response<T>, Status>) {
        match answer {
            Ok(answer) => self.saw(place, format!("{answer:?}")),
            Err(status) => {
                self.saw(format!("{place}: the message"), status.message());
                self.saw(format!("{place}: the details"), status.details());
                self.saw(format!("{place}: the trailers"), format!("{:?} {status:?}", status.metadata()));
            }
        }
    }

    fn command(&mut self, server: &Server, token: &str, arguments: &[&str], input: &str) {
        let output = run(&mut server.client_command(token, arguments), input);
        // What was typed is on the screen already.
        let place = format!("`tollgate {}`", arguments.iter().take(2).copied().collect::<Vec<_>>().join(" "));
        self.saw(place, said(&output));
    }

    /// Everything that the process left so far. The log only grows, and is read at the end.
    fn traces(&mut self, home: &Home, when: &str) {
        for (name, bytes) in files(home.path()).into_iter().filter(|(name, _)| name != "log") {
            self.saw(format!("the file `{name}` {when}"), bytes);
        }
    }

    fn is_nowhere(&self) {
        // Nearly every place is passed over by its first bytes alone.
        let mut begins = vec![false; 1 << 24];
        for part in self.parts.keys().chain(self.raw_hashes.keys()) {
            begins[first_bytes(part)] = true;
        }
        let mut found = Vec::new();
        for (place, bytes) in &self.seen {
            let is_database = place.starts_with("the file `t.sqlite");
            let what = bytes.windows(PART).filter(|part| begins[first_bytes(part)]).find_map(|part| {
                let hash = if is_database { None } else { self.raw_hashes.get(part) };
                self.parts.get(part).or(hash).map(|what| (what, part))
            });
            if let Some((what, part)) = what {
                let line = bytes.split(|byte| *byte == b'\n').find(|line| line.windows(PART).any(|p| p == part));
                let line: String = String::from_utf8_lossy(line.unwrap_or_default()).chars().take(400).collect();
                found.push(format!("{what} is in {place}: {line}"));
            }
        }
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }
}

fn first_bytes(part: &[u8]) -> usize {
    part[..3].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_leave_no_trace() {
    scenario(Home::new(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_peppers_leave_no_trace() {
    let mut home = Home::empty();
    let pepper: Vec<u8> = (0..32).map(|_| u8::try_from(dice(256)).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peppers");
    std::fs::write(&file, format!("p1 {}\n", BASE64_STANDARD.encode(&pepper))).unwrap();
    let flag = format!("--keys-pepper-file={}", file.display());
    let made = support::text(&run(
        support::tollgate(&["bootstrap", "--output=json", &flag]).arg(support::database(home.path())),
        "",
    ));
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    made["secret"].as_str().unwrap().clone_into(&mut home.token);
    let mut canary = scenario(home, &[&flag]).await;
    canary.add("the pepper", &pepper);
    canary.hash("the pepper", &pepper);
    canary.is_nowhere();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_tells_its_secrets_to_the_terminal_alone() {
    let home = Home::empty();
    let mut server = home.serve(&[&["--dev"], &TRACE[..]].concat());
    let mut canary = Canary::default();
    let printed = server.printed();
    let secrets: Vec<&str> = printed.lines().filter_map(|line| line.split("key  ").nth(1)).map(str::trim).collect();
    assert_eq!(secrets.len(), 3, "{printed}");
    for secret in &secrets {
        canary.secret("a demo key", secret);
    }
    let mut keys = server.keys(secrets[0]).await;
    for secret in &secrets {
        canary.answer("CheckKey", keys.check_key(check(secret)).await);
    }
    canary.saw("/metrics", server.get("/metrics").1);
    canary.traces(&home, "of a demo");
    server.stop();
    let mut again = home.serve(&[&["--dev"], &TRACE[..]].concat());
    canary.saw("the second start's output", again.printed());
    again.stop();
    canary.traces(&home, "of a demo that has ended");
    canary.saw("the log of a demo", home.log());
    canary.is_nowhere();
}

/// Keys of every origin, in all hands.
async fn scenario(home: Home, arguments: &[&str]) -> Canary {
    let mut canary = Canary::default();
    let mut server = home.serve(&[&TRACE[..], arguments].concat());
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    canary.secret("the operator's key", &home.token);

    let created = create(&mut keys, &account, "canary").await.unwrap();
    let id = created.key.unwrap().id;
    canary.secret("a created key", &created.secret);
    let request = RotateKeyRequest {
        id: id.clone(),
        grace_period: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..RotateKeyRequest::default()
    };
    let rotated = keys.rotate_key(request).await.unwrap().into_inner().secret;
    canary.secret("a rotated key", &rotated);
    let by_command = run(
        &mut server
            .client_command(&home.token, &["keys", "create", "--account", &account, "--name=cli", "--output=json"]),
        "",
    );
    let by_command: serde_json::Value = serde_json::from_slice(&by_command.stdout).unwrap();
    let by_command = by_command["secret"].as_str().unwrap().to_owned();
    canary.secret("a key of the command line", &by_command);
    let imported = import(&mut canary, &server, &mut keys, &home.token, &account).await;

    for secret in [&created.secret, &rotated, &by_command, &imported, &home.token] {
        checks(&mut canary, &mut keys, secret).await;
        look_ups(&mut canary, &server, &mut keys, secret, &id).await;
        writes(&mut canary, &mut keys, secret, &account, &id).await;
        misplaced_credentials(&mut canary, &server, secret).await;
        edges(&mut canary, &server, &home.token, secret).await;
        commands(&mut canary, &server, &home.token, secret);
    }
    canary.traces(&home, "in use");
    let revoke = RevokeKeyRequest { id: id.clone(), reason: "over".into() };
    canary.answer("RevokeKey", keys.revoke_key(revoke).await);
    for secret in [&created.secret, &rotated] {
        canary.answer("CheckKey after the end", keys.check_key(check(secret)).await);
        canary.answer("GetSelf after the end", server.keys(secret).await.get_self(GetSelfRequest {}).await);
    }
    canary.saw("/metrics", server.get("/metrics").1);
    canary.traces(&home, "after a revocation");
    server.stop();
    canary.traces(&home, "after the end");
    let log = home.log();
    assert!(log.contains("\"level\":\"TRACE\"") && log.contains("answered"), "the log is not at trace");
    canary.saw("the log", log);
    println!("{} places, {} bytes", canary.seen.len(), canary.seen.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
    canary.is_nowhere();
    canary
}

fn check(secret: &str) -> CheckKeyRequest {
    CheckKeyRequest { key: secret.to_owned(), ..CheckKeyRequest::default() }
}

/// A key of another system, by its hash; also by a hash that is wrong, or another account's.
async fn import(canary: &mut Canary, server: &Server, keys: &mut Keys, token: &str, account: &str) -> String {
    let random: String =
        (0..40).map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz"[usize::try_from(dice(26)).unwrap()])).collect();
    let secret = format!("legacy_{random}");
    canary.secret("an imported key", &secret);
    let hash = hex(&Sha256::digest(&secret));
    let short = hash.split_at(1).1;
    let row = |hash: &str, account: &str, name: &str| ImportKeysRequest {
        dry_run: false,
        key: Some(ImportedKey {
            hash: hash.to_owned(),
            key: Some(Key {
                account_id: account.to_owned(),
                name: name.to_owned(),
                prefix: "legacy_".into(),
                ..Key::default()
            }),
        }),
    };
    let rows = [
        row(&hash, account, "imported"),
        row(short, account, "short"),
        row(&format!("{short}g"), account, "no digit"),
        row(&secret, account, "the secret itself"),
        row(&hash, "acct_operator", "another account's"),
        row(&hash, account, "twice"),
        row(&hash, &secret, "an account like that"),
    ];
    canary.answer("ImportKeys", keys.import_keys(tokio_stream::iter(rows)).await);
    let answer = keys.check_key(check(&secret)).await.unwrap().into_inner();
    assert!(answer.allowed, "{answer:?}");
    let rows = [
        format!("{{\"hash\": \"{short}\", \"account_id\": \"{account}\", \"name\": \"short\"}}\n"),
        format!("{{\"hash\": \"{hash}\", \"account_id\": \"{account}\", \"name\": \"twice\"}}\n"),
        format!("{{\"hash\": \"{hash}\", \"name\": \"of nobody\"\n{{\"secret\": \"{secret}\"}}\n\"{hash}\"\n"),
        format!("{{\"hash\": \"{hash}\", \"account_id\": \"{hash}\", \"name\": \"{hash}{hash}\"}}\n"),
    ];
    canary.command(server, token, &["keys", "import", "-"], &rows.concat());
    canary.command(server, token, &["keys", "import", "-", "--dry-run", "--output=json"], &rows.concat());
    secret
}

/// Longer than any field may be.
fn long(secret: &str) -> String {
    secret.repeat(30)
}

/// A secret where it belongs, and in the other fields of a check.
async fn checks(canary: &mut Canary, keys: &mut Keys, secret: &str) {
    let text = || secret.to_owned();
    let check_requests = [
        check(secret),
        check(&format!("{secret}x")),
        check(&format!("Bearer {secret}")),
        check(&secret.to_lowercase()),
        check(&long(secret)),
        CheckKeyRequest { all_of: vec![text()], ..check(secret) },
        CheckKeyRequest { operation_id: text(), ..check(secret) },
        CheckKeyRequest { cost: Some(-1), ..check(secret) },
        CheckKeyRequest { environment: 99, ..check(secret) },
        CheckKeyRequest { min_revision: i64::MAX, ..check(secret) },
        CheckKeyRequest {
            context: Some(CheckContext { client_ip: text(), ..CheckContext::default() }),
            ..check(secret)
        },
        CheckKeyRequest {
            context: Some(CheckContext {
                client_ip: "192.0.2.1".into(),
                referrer: format!("https://example.com/?key={secret}"),
                method: "GET".into(),
                host: "example.com".into(),
                path: format!("/v1/tasks?api_key={secret}"),
            }),
            ..check(secret)
        },
    ];
    for request in check_requests {
        canary.answer("CheckKey", keys.check_key(request).await);
    }
}

/// A secret in place of what is looked for.
async fn look_ups(canary: &mut Canary, server: &Server, keys: &mut Keys, secret: &str, id: &str) {
    let text = || secret.to_owned();
    canary.answer("GetKey", keys.get_key(GetKeyRequest { id: text() }).await);
    canary.answer("GetLimits", keys.get_limits(GetLimitsRequest { id: text() }).await);
    canary.answer("RotateKey", keys.rotate_key(RotateKeyRequest { id: text(), ..RotateKeyRequest::default() }).await);
    let etag = RotateKeyRequest { id: id.to_owned(), etag: text(), ..RotateKeyRequest::default() };
    canary.answer("RotateKey", keys.rotate_key(etag).await);
    canary.answer("RevokeKey", keys.revoke_key(RevokeKeyRequest { id: text(), reason: String::new() }).await);
    canary.answer("RevokeKey", keys.revoke_key(RevokeKeyRequest { id: id.to_owned(), reason: long(secret) }).await);
    canary.answer(
        "RefundCheck",
        keys.refund_check(RefundCheckRequest { operation_id: text(), account_id: text() }).await,
    );
    for request in [
        GetUsageRequest { key_id: text(), ..GetUsageRequest::default() },
        GetUsageRequest { account_id: text(), ..GetUsageRequest::default() },
    ] {
        canary.answer("GetUsage", keys.get_usage(request).await);
    }
    let filter = Some(KeyFilter { prefix: text(), ..KeyFilter::default() });
    for request in [
        ListKeysRequest { account_id: text(), ..ListKeysRequest::default() },
        ListKeysRequest { page_token: text(), ..ListKeysRequest::default() },
        ListKeysRequest { filter, ..ListKeysRequest::default() },
    ] {
        canary.answer("ListKeys", keys.list_keys(request).await);
    }
    let channel = server.channel().await;
    let mut accounts = AccountServiceClient::new(channel.clone());
    let mut request = Request::new(GetAccountRequest { id: text() });
    request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    canary.answer("GetAccount", accounts.get_account(request).await);
    let mut plans = PlanServiceClient::new(channel.clone());
    let mut request = Request::new(GetPlanRequest { id: text() });
    request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    canary.answer("GetPlan", plans.get_plan(request).await);
    let mut plans = PlanServiceClient::with_interceptor(channel, Bearer::new(secret));
    canary.answer("GetPlan", plans.get_plan(GetPlanRequest { id: text() }).await);
}

/// A secret in place of what is to be written.
async fn writes(canary: &mut Canary, keys: &mut Keys, secret: &str, account: &str, id: &str) {
    let (text, long) = (|| secret.to_owned(), long(secret));
    let key = || Key { account_id: account.to_owned(), name: "wrong".into(), ..Key::default() };
    for key in [
        Key { account_id: text(), ..key() },
        Key { name: long.clone(), ..key() },
        Key { description: long.clone(), ..key() },
        Key { scopes: vec![text()], ..key() },
        Key { scopes: vec![format!("{secret}:re ad")], ..key() },
        Key { metadata: [(long.clone(), text())].into(), ..key() },
        Key { metadata: [("a".to_owned(), long.clone())].into(), ..key() },
        Key { limits: vec![Limit { name: text(), capacity: 1, period: 1, ..Limit::default() }], ..key() },
        Key { restrictions: Some(Restrictions { allowed_ips: vec![text()], ..Restrictions::default() }), ..key() },
        Key {
            restrictions: Some(Restrictions { allowed_referrers: vec![text()], ..Restrictions::default() }),
            ..key()
        },
        Key {
            restrictions: Some(Restrictions { allowed_endpoints: vec![text()], ..Restrictions::default() }),
            ..key()
        },
    ] {
        canary.answer("CreateKey", keys.create_key(CreateKeyRequest { key: Some(key.clone()) }).await);
        let key = Some(Key { id: id.to_owned(), ..key });
        canary.answer("UpdateKey", keys.update_key(UpdateKeyRequest { key, update_mask: None }).await);
    }
    for (id, etag, path) in [(secret, "", "name"), (id, secret, "name"), (id, "", secret)] {
        let key = Some(Key { id: id.to_owned(), etag: etag.to_owned(), name: "a".into(), ..Key::default() });
        let update_mask = Some(prost_types::FieldMask { paths: vec![path.to_owned()] });
        canary.answer("UpdateKey", keys.update_key(UpdateKeyRequest { key, update_mask }).await);
    }
}

/// A secret where credentials stand, or nearly.
async fn misplaced_credentials(canary: &mut Canary, server: &Server, secret: &str) {
    let channel = server.channel().await;
    let mut myself = KeyServiceClient::with_interceptor(channel.clone(), Bearer::new(secret));
    canary.answer("GetSelf", myself.get_self(GetSelfRequest {}).await);
    let plain = KeyServiceClient::new(channel.clone());
    for (name, value) in [
        ("authorization", format!("Basic {secret}")),
        ("authorization", secret.to_owned()),
        ("authorization", format!("Bearer  {secret}")),
        ("authorization", format!("Bearer {secret} {secret}")),
        ("authorization", format!("Bearer {secret}x")),
        ("authorization", format!("Bearer {}", secret.repeat(30))),
        ("x-api-key", secret.to_owned()),
        ("x-request-id", secret.to_owned()),
        ("x-request-id", format!("a-{secret}")),
        ("traceparent", secret.to_owned()),
        ("grpc-timeout", secret.to_owned()),
        ("user-agent", secret.to_owned()),
    ] {
        let mut request = Request::new(GetSelfRequest {});
        request.metadata_mut().insert(name, value.parse().unwrap());
        canary.answer(&format!("GetSelf with {name}"), plain.clone().get_self(request).await);
        let mut request = Request::new(check(secret));
        request.metadata_mut().insert(name, value.parse().unwrap());
        canary.answer(&format!("CheckKey with {name}"), plain.clone().check_key(request).await);
    }
    for path in [format!("/tollgate.v1.KeyService/{secret}"), format!("/{secret}/CheckKey")] {
        let mut raw = tonic::client::Grpc::new(channel.clone());
        raw.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<GetSelfRequest, Key>::default();
        canary.answer("no such call", raw.unary(Request::new(GetSelfRequest {}), path.parse().unwrap(), codec).await);
    }
    for path in [format!("/{secret}"), format!("/metrics?key={secret}"), format!("/healthz/{secret}")] {
        canary.saw("an answer of the HTTP port", server.get(&path).1);
    }
}

/// A secret where a client of a proxy, or the proxy, may put it.
async fn edges(canary: &mut Canary, server: &Server, token: &str, secret: &str) {
    let bearer = format!("Bearer {secret}");
    let uri = format!("/v1/tasks?api_key={secret}&mode=off");
    for (name, value) in [
        ("authorization", bearer.as_str()),
        ("authorization", secret),
        ("x-api-key", secret),
        ("x-request-id", secret),
        ("referer", &uri),
        ("content-type", secret),
        ("x-forwarded-uri", &uri),
        ("x-forwarded-host", secret),
        ("x-forwarded-for", secret),
        ("x-tollgate-mode", secret),
        ("x-tollgate-token", secret),
    ] {
        for query in ["", "?mode=off", "?headers=mode", "?cost=1&scopes=a:b"] {
            let mut headers = vec![(name, value)];
            headers.extend(Some(("x-tollgate-token", token)).filter(|(token, _)| *token != name));
            headers.extend(Some(("x-forwarded-uri", "/")).filter(|(uri, _)| *uri != name));
            canary.saw(format!("/v1/check with {name}"), support::http_send(server.http, query, &headers));
        }
        let header =
            HeaderValue { key: name.to_owned(), raw_value: value.as_bytes().to_vec(), ..HeaderValue::default() };
        let http = HttpRequest {
            id: secret.to_owned(),
            path: uri.clone(),
            header_map: Some(HeaderMap { headers: vec![header] }),
            ..HttpRequest::default()
        };
        for (setting, value) in [("cost", "1"), ("mode", "off"), ("scopes", secret), (secret, "1")] {
            let attributes = AttributeContext {
                request: Some(attribute_context::Request { http: Some(http.clone()) }),
                context_extensions: [(setting.to_owned(), value.to_owned())].into(),
                ..AttributeContext::default()
            };
            let mut request = Request::new(CheckRequest { attributes: Some(attributes) });
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            request.metadata_mut().insert("x-client-ip", secret.parse().unwrap());
            let answer = AuthorizationClient::new(server.channel().await).check(request).await;
            canary.answer(&format!("Check with {name}, {setting}"), answer);
        }
    }
    let entry = |key: &str| Entry { key: key.to_owned(), value: secret.to_owned() };
    for entries in [vec![entry("key_id")], vec![entry("account_id")], vec![entry(secret)]] {
        let descriptors = vec![RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }];
        let mut request = Request::new(RateLimitRequest { domain: secret.to_owned(), descriptors, hits_addend: 1 });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = RateLimitServiceClient::new(server.channel().await).should_rate_limit(request).await;
        canary.answer("ShouldRateLimit", answer);
    }
}

/// A secret in the wrong place of a command.
fn commands(canary: &mut Canary, server: &Server, token: &str, secret: &str) {
    canary.command(server, token, &["check"], secret);
    canary.command(server, token, &["check", "--all-of", "tasks:read", "--output=json"], secret);
    canary.command(server, token, &["keys", "get", secret], "");
    canary.command(server, token, &["keys", "list", "--prefix", secret], "");
    canary.command(server, token, &["keys", "list"], "");
    canary.command(server, token, &["usage", "--key", secret], "");
    canary.command(server, token, &["accounts", "get", secret], "");
    canary.command(server, token, &["plans", "get", secret], "");
    canary.command(server, secret, &["me"], "");
    canary.command(server, &format!("{secret}x"), &["me"], "");
    canary.command(server, &format!("Bearer {secret}"), &["me"], "");
}

/// What the search itself is worth.
#[test]
fn a_canary_that_sings_is_heard() {
    let secret = "sk_live_0123456789abcdefghijABCDEFGHIJ0123456789abc012345";
    let mut canary = Canary::default();
    canary.secret("a key", secret);
    canary.saw("the log", format!("prefix sk_live_0123 and {secret}"));
    assert!(std::panic::catch_unwind(|| canary.is_nowhere()).is_err());
    canary.seen.clear();
    canary.saw("the file `t.sqlite` in use", Sha256::digest(secret).to_vec());
    canary.saw("the log", "sk_live_0123");
    canary.is_nowhere();
    canary.saw("the log", format!("{:?}", Sha256::digest(secret).as_slice()));
    assert!(std::panic::catch_unwind(|| canary.is_nowhere()).is_err());
}

/// An error repeats what was typed, and that may be a key where none belongs.
#[test]
fn no_error_repeats_a_key_that_was_typed() {
    let key = format!("sk_live_{}", "Ab1".repeat(16));
    let long = format!("--{key}");
    let limit = format!("--limit={key}");
    let rows: [&[&str]; 5] =
        [&["check", &key], &[&key], &["check", &long], &["keys", "create", &limit], &["usage", "--granularity", &key]];
    for arguments in rows {
        let output = run(&mut support::tollgate(arguments), "");
        assert_eq!(support::code(&output), 2, "{arguments:?}");
        let said = said(&output);
        assert!(!said.contains(&key) && said.contains("sk_live_Ab1"), "{said}");
    }
}

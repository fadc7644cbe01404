//! What the command line sends, and what it makes of answers that a real server seldom gives.
#![cfg(test)]

use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use prost_types::Timestamp;
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tollgate::proto::v1::key_service_server::{KeyService, KeyServiceServer};
use tollgate::proto::v1::*;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Answers as told, and remembers what it was asked.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    authorization: Option<String>,
    listed: Vec<ListKeysRequest>,
    updated: Option<UpdateKeyRequest>,
    checked: Option<CheckKeyRequest>,
    usage: Option<GetUsageRequest>,
    imported: Vec<ImportKeysRequest>,
    rows: usize,
}

macro_rules! unasked {
    ($($method:ident($request:ty) -> $answer:ty;)+) => {
        // As `async_trait` writes a method, which does not look into other macros.
        $(fn $method<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$answer>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("not in this test")) })
        })+
    };
}

#[tonic::async_trait]
impl KeyService for Fake {
    async fn check_key(&self, request: Request<CheckKeyRequest>) -> Result<Response<CheckKeyResponse>, Status> {
        let mut seen = self.0.lock().unwrap();
        let authorization = request.metadata().get("authorization");
        seen.authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        seen.checked = Some(request.into_inner());
        let limit = LimitState {
            name: "m".into(),
            capacity: 5,
            period: Period::Seconds.into(),
            period_seconds: 9,
            ..Default::default()
        };
        Ok(Response::new(CheckKeyResponse {
            verdict: Verdict::RateLimited.into(),
            message: "used up\u{1b}[31m".into(),
            key_id: "key_1".into(),
            limits: vec![limit],
            retry_after: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            revision: 9_007_199_254_740_993,
            ..Default::default()
        }))
    }

    async fn get_key(&self, request: Request<GetKeyRequest>) -> Result<Response<Key>, Status> {
        let mut details = ErrorDetails::with_bad_request_violation("key.scopes[0]", "`x` is no scope");
        details.add_bad_request_violation("key.limits[1].capacity", "must not be negative");
        details.add_precondition_failure_violation("PLAN", "plan `free`", "has no room for another key");
        let code: i32 = request.into_inner().id.parse().unwrap();
        Err(Status::with_error_details(Code::from(code), "it is wrong", details))
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        let request = request.into_inner();
        let from: usize = request.page_token.parse().unwrap_or(0);
        let to = (from + usize::try_from(request.page_size).unwrap()).min(2_500);
        self.0.lock().unwrap().listed.push(request);
        let key =
            |i: usize| Key { id: format!("key_{i}"), expire_time: Some(Timestamp::default()), ..Default::default() };
        let next_page_token = if to < 2_500 { to.to_string() } else { String::new() };
        Ok(Response::new(ListKeysResponse { keys: (from..to).map(key).collect(), next_page_token }))
    }

    async fn update_key(&self, request: Request<UpdateKeyRequest>) -> Result<Response<Key>, Status> {
        let request = request.into_inner();
        self.0.lock().unwrap().updated = Some(request.clone());
        Ok(Response::new(request.key.unwrap()))
    }

    async fn get_usage(&self, request: Request<GetUsageRequest>) -> Result<Response<GetUsageResponse>, Status> {
        self.0.lock().unwrap().usage = Some(request.into_inner());
        std::future::pending().await
    }

    async fn refund_check(
        &self,
        request: Request<RefundCheckRequest>,
    ) -> Result<Response<RefundCheckResponse>, Status> {
        let RefundCheckRequest { operation_id, account_id } = request.into_inner();
        if operation_id == "unknown" {
            return Err(Status::not_found("there is no operation `unknown`"));
        }
        let refunded = i64::try_from(operation_id.len() * 100 + account_id.len()).unwrap();
        Ok(Response::new(RefundCheckResponse { refunded }))
    }

    async fn import_keys(
        &self,
        request: Request<Streaming<ImportKeysRequest>>,
    ) -> Result<Response<ImportKeysResponse>, Status> {
        let mut rows = request.into_inner();
        while let Some(row) = rows.next().await {
            let row = row?;
            let mut seen = self.0.lock().unwrap();
            seen.rows += usize::from(row.key.is_some());
            if seen.imported.len() < 10 {
                seen.imported.push(row);
            }
        }
        let rows = i64::try_from(self.0.lock().unwrap().rows).unwrap();
        let error = |row| ImportError { row, field: "key.name".into(), message: "is taken".into() };
        let errors = vec![error(0), error(rows - 1)];
        Ok(Response::new(ImportKeysResponse { imported: rows - 2, failed: 2, errors, ..Default::default() }))
    }

    unasked! {
        create_key(CreateKeyRequest) -> CreateKeyResponse;
        rotate_key(RotateKeyRequest) -> RotateKeyResponse;
        revoke_key(RevokeKeyRequest) -> RevokeKeyResponse;
        get_self(GetSelfRequest) -> GetSelfResponse;
        get_limits(GetLimitsRequest) -> GetLimitsResponse;
    }
}

/// A server with the fake, for as long as the test runs.
struct Server {
    fake: Fake,
    endpoint: String,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let fake = Fake::default();
        let service = KeyServiceServer::new(fake.clone());
        let router = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { fake, endpoint, _runtime: runtime }
    }

    fn run(&self, arguments: &[&str], input: impl FnOnce(&mut dyn std::io::Write)) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(arguments)
            .env_clear()
            .env("TOLLGATE_TOKEN", "sk_live_caller")
            .env("TOLLGATE_ENDPOINT", &self.endpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        input(&mut child.stdin.take().unwrap());
        child.wait_with_output().unwrap()
    }
}

fn no_input(_: &mut dyn std::io::Write) {}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_refund_says_what_came_back() {
    let server = Server::start();
    let output = server.run(&["refund", "op-1", "--account", "acct_a"], no_input);
    assert_eq!((code(&output), stdout(&output).trim()), (0, "refunded  406"));
    let output = server.run(&["--output", "json", "refund", "op-1"], no_input);
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer, serde_json::json!({ "refunded": 400 }));
    let output = server.run(&["refund", "unknown"], no_input);
    assert_eq!(code(&output), 4);
    assert!(stderr(&output).contains("there is no operation `unknown`"), "{}", stderr(&output));
}

#[test]
fn a_check_sends_all_that_it_was_told_and_a_denial_exits_with_3() {
    let server = Server::start();
    let arguments = [
        "check",
        "--all-of",
        "a:b",
        "--any-of",
        "c:d",
        "--any-of",
        "e:f",
        "--env",
        "test",
        "--cost",
        "0",
        "--peek",
        "--client-ip",
        "10.0.0.1",
        "--referrer",
        "https://r",
        "--method",
        "GET",
        "--host",
        "h",
        "--path",
        "/p",
        "--operation-id",
        "op",
        "--min-revision",
        "7",
    ];
    let output = server.run(&arguments, |stdin| stdin.write_all(b"sk_test_checked\r\n").unwrap());
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let context = CheckContext {
        client_ip: "10.0.0.1".into(),
        referrer: "https://r".into(),
        method: "GET".into(),
        host: "h".into(),
        path: "/p".into(),
    };
    let expected = CheckKeyRequest {
        key: "sk_test_checked".into(),
        all_of: vec!["a:b".into()],
        any_of: vec!["c:d".into(), "e:f".into()],
        environment: Environment::Test.into(),
        cost: Some(0),
        context: Some(context),
        mode: Mode::Peek.into(),
        operation_id: "op".into(),
        min_revision: 7,
    };
    let seen = server.fake.0.lock().unwrap();
    assert_eq!(seen.checked, Some(expected));
    assert_eq!(seen.authorization.as_deref(), Some("Bearer sk_live_caller"));
    let table = stdout(&output);
    for expected in ["RATE_LIMITED", r"used up\u{1b}[31m", "9s", "1.5"] {
        assert!(table.contains(expected), "{expected} in:\n{table}");
    }
}

#[test]
fn json_has_the_contracts_names_and_leaves_nothing_out() {
    let server = Server::start();
    let output = server.run(&["check", "--output", "json"], |stdin| stdin.write_all(b"k").unwrap());
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(answer["allowed"], false);
    assert_eq!(answer["verdict"], "VERDICT_RATE_LIMITED");
    assert_eq!(answer["revision"], 9_007_199_254_740_993_i64);
    assert_eq!(answer["retry_after"], "1.500s");
    assert_eq!(answer["limits"][0]["period_seconds"], 9);
    assert_eq!(answer["missing_scopes"], Value::Array(Vec::new()));
}

#[test]
fn every_status_has_its_exit_code_and_names_what_is_wrong() {
    let server = Server::start();
    let rows = [
        (Code::NotFound, 4),
        (Code::Unauthenticated, 5),
        (Code::PermissionDenied, 5),
        (Code::Unavailable, 6),
        (Code::DeadlineExceeded, 6),
        (Code::InvalidArgument, 1),
        (Code::FailedPrecondition, 1),
        (Code::Aborted, 1),
        (Code::ResourceExhausted, 1),
        (Code::Unimplemented, 1),
        (Code::Internal, 1),
    ];
    for (status, expected) in rows {
        let output = server.run(&["keys", "get", &i32::from(status).to_string()], no_input);
        let said = stderr(&output);
        assert_eq!(code(&output), expected, "{status:?}: {said}");
        assert!(said.starts_with("error: it is wrong\n"), "{said}");
        assert!(
            said.contains("\n  key.scopes[0]: `x` is no scope\n  key.limits[1].capacity: must not be negative\n"),
            "{said}"
        );
        assert!(said.contains("\n  plan `free`: has no room for another key\n"), "{said}");
        assert_eq!(said.contains("hint: set TOLLGATE_TOKEN"), status == Code::Unauthenticated, "{said}");
    }
}

#[test]
fn a_list_follows_its_pages_up_to_its_bound() {
    let server = Server::start();
    let output = server.run(&["keys", "list", "--max", "2100", "--status", "active", "--output", "json"], no_input);
    let list: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((list["keys"].as_array().unwrap().len(), &list["next_page_token"]), (2_100, &"2100".into()));
    let sizes: Vec<i32> = server.fake.0.lock().unwrap().listed.drain(..).map(|request| request.page_size).collect();
    assert_eq!(sizes, [1_000, 1_000, 100]);
    let output = server.run(&["keys", "list", "--page-token", "2100"], no_input);
    assert_eq!((stdout(&output).lines().count(), stderr(&output).as_str()), (401, ""));
    let output = server.run(&["keys", "list"], no_input);
    assert!(stderr(&output).contains("there are more than these 1000"), "{}", stderr(&output));
}

#[test]
fn an_update_names_what_it_changes() {
    let server = Server::start();
    let arguments = [
        "keys",
        "update",
        "key_1",
        "--name",
        "n",
        "--status",
        "disabled",
        "--allow-ip",
        "10.0.0.0/8",
        "--clear",
        "limits",
        "--clear",
        "expires",
        "--etag",
        "r5",
    ];
    let output = server.run(&arguments, no_input);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let UpdateKeyRequest { key, update_mask } = server.fake.0.lock().unwrap().updated.clone().unwrap();
    let (key, mut paths) = (key.unwrap(), update_mask.unwrap().paths);
    paths.sort();
    assert_eq!(paths, ["expire_time", "limits", "name", "restrictions", "status"]);
    assert_eq!((key.id.as_str(), key.name.as_str(), key.etag.as_str()), ("key_1", "n", "r5"));
    assert_eq!(
        (key.status(), key.restrictions.unwrap().allowed_ips),
        (tollgate::proto::v1::Status::Disabled, vec!["10.0.0.0/8".into()])
    );
}

#[test]
fn a_call_takes_no_longer_than_it_may() {
    let server = Server::start();
    let output = server.run(&["usage", "--account", "acct_a", "--by-key", "--timeout", "200ms"], no_input);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    let request = server.fake.0.lock().unwrap().usage.clone().unwrap();
    assert_eq!(
        (request.account_id.as_str(), request.granularity(), request.group_by_key),
        ("acct_a", Granularity::Day, true)
    );
}

#[test]
fn an_import_is_a_stream_whose_errors_have_lines() {
    const ROWS: usize = 20_000;
    let server = Server::start();
    let output = server.run(&["keys", "import", "-", "--dry-run", "--output", "json"], |stdin| {
        writeln!(stdin, "{{\"hash\": 1}}\n").unwrap();
        for i in 0..ROWS {
            writeln!(stdin, "{{\"hash\": \"h{i}\", \"name\": \"n{i}\", \"environment\": \"test\"}}").unwrap();
        }
    });
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&report["imported"], &report["failed"]), (&(ROWS - 2).into(), &3.into()));
    let errors = report["errors"].as_array().unwrap();
    let lines: Vec<u64> = errors.iter().map(|error| error["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [1, 3, 20_002]);
    let seen = server.fake.0.lock().unwrap();
    assert_eq!(seen.rows, ROWS);
    assert_eq!(seen.imported[0], ImportKeysRequest { dry_run: true, key: None });
    assert_eq!(seen.imported[1].key.as_ref().unwrap().hash, "h0");
}

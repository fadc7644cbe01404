//! The process as an operator meets it: what keeps it from starting, what it warns of, what it tells.
#![cfg(test)]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use sqlx::Connection as _;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::{CheckKeyRequest, GetKeyRequest, GetSelfRequest, GetUsageRequest, RotateKeyRequest, Verdict};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request};

use support::{
    Bearer, Home, PATIENCE, Server, code, command, create, database, eventually, run, said, serve_command, stopwatch,
    text, tollgate, tool,
};

/// Starts what must not start: its exit code and all that it wrote.
fn refusal(command: &mut Command) -> (i32, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let elapsed = stopwatch();
    while child.try_wait().unwrap().is_none() && elapsed() < PATIENCE {
        std::thread::sleep(support::GLANCE);
    }
    _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let said = said(&output);
    assert!(!said.contains("panicked") && !said.contains("tollgate ready"), "{said}");
    (code(&output), said)
}

fn assert_refused(home: &Home, arguments: &[&str], reasons: &[&str]) {
    let (code, said) = refusal(&mut serve_command(home.path(), arguments));
    assert_eq!(code, 1, "{arguments:?}: {said}");
    for reason in reasons {
        assert!(said.contains(reason), "`{reason}` for {arguments:?}: {said}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let home = Home::empty();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let reason = format!("the address `{taken}` is in use by another process");
    for flag in ["--grpc-addr", "--http-addr"] {
        assert_refused(&home, &[&format!("{flag}={taken}")], &[&reason]);
    }
    drop(holder);
    assert_refused(&home, &[&format!("--grpc-addr={taken}"), &format!("--http-addr={taken}")], &["must differ"]);
    assert_refused(&home, &["--grpc-addr=192.0.2.1:0"], &["cannot listen on `192.0.2.1:0`"]);
    let server = Home::empty();
    let server = server.serve(&[&format!("--grpc-addr={taken}")]);
    assert_refused(&home, &[&format!("--grpc-addr={}", server.grpc)], &[&reason]);
}

#[test]
fn a_database_that_is_none_is_left_alone() {
    let home = Home::empty();
    let file = home.path().join("notes.txt");
    let notes = "no database, but worth keeping\n".repeat(1_000);
    std::fs::write(&file, &notes).unwrap();
    let flag = format!("--database=sqlite:{}", file.display());
    assert_refused(&home, &[&flag], &["notes.txt", "is not an SQLite database"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), notes);
    for suffix in ["-wal", "-shm", "-journal"] {
        assert!(!home.path().join(format!("notes.txt{suffix}")).exists());
    }
    let begins_well = [&b"SQLite format 3\0"[..], &[0xa5; 8_192]].concat();
    std::fs::write(&file, &begins_well).unwrap();
    let (code, said) = refusal(&mut serve_command(home.path(), &[&flag]));
    assert!(code == 1 && said.contains("notes.txt") && !said.contains("stack backtrace"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), begins_well);
    let folder = format!("--database=sqlite:{}", home.path().display());
    assert_refused(&home, &[&folder], &["is not a regular file"]);
    let nowhere = format!("--database=sqlite:{}", home.path().join("no/such/t.sqlite").display());
    assert_refused(&home, &[&nowhere], &["does not exist"]);
}

#[test]
fn a_second_process_on_one_database_is_refused() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    assert_refused(&home, &[], &["is in use by process", "stop that one first"]);
    std::os::unix::fs::symlink(home.path().join("t.sqlite"), home.path().join("alias.sqlite")).unwrap();
    let alias = format!("--database=sqlite:{}", home.path().join("alias.sqlite").display());
    assert_refused(&home, &[&alias], &["is in use by process"]);
    for arguments in [&["bootstrap", "--again"][..], &["migrate"], &["plans", "apply", "deploy/plans.toml"]] {
        let (code, said) = refusal(tollgate(arguments).arg(database(home.path())));
        assert!(code == 1 && said.contains("is in use by process"), "{arguments:?}: {said}");
    }
    let me = run(&mut server.client_command(&home.token, &["me"]), "");
    text(&me);
    server.stop();
    home.serve(&[]).stop();
}

#[test]
fn a_configuration_with_a_typo_is_refused() {
    let home = Home::empty();
    let file = home.path().join("tollgate.toml");
    let flag = format!("--config={}", file.display());
    for (content, reasons) in [
        (
            "[server]\ngrpc_adr = \"127.0.0.1:0\"\n",
            &["`server.grpc_adr`", "line 2", "did you mean `server.grpc_addr`?"][..],
        ),
        ("[sever]\nworkers = 1\n", &["`sever", "line 1"]),
        ("[server]\nworkers = \"many\"\n", &["`server.workers`", "a whole number"]),
        ("[server\n", &["line 1"]),
        ("[log]\nfilter = \"tollgate=loud\"\n", &["log"]),
    ] {
        std::fs::write(&file, content).unwrap();
        assert_refused(&home, &[&flag], reasons);
    }
    assert_refused(&home, &["--config=/no/such/file.toml"], &["/no/such/file.toml"]);
    let (code, said) = refusal(serve_command(home.path(), &[]).env("TOLLGATE_GRPC_ADR", "127.0.0.1:0"));
    assert!(code == 1 && said.contains("TOLLGATE_GRPC_ADR"), "{said}");
    let (code, said) = refusal(&mut serve_command(home.path(), &["--grcp-addr=127.0.0.1:0"]));
    assert!(code == 2 && said.contains("--grpc-addr"), "{said}");
    assert!(!home.path().join("t.sqlite").exists(), "a wrong configuration touches no database");
}

#[test]
fn a_pepper_that_is_lost_is_told_before_anyone_is_refused() {
    let home = Home::empty();
    let file = home.path().join("peppers");
    let flag = format!("--keys-pepper-file={}", file.display());
    assert_refused(&home, &[&flag], &["the pepper file", "cannot be read"]);
    std::fs::write(&file, "p1 c2hvcnQ=\n").unwrap();
    assert_refused(&home, &[&flag], &["line 1 of the pepper file", "fewer than 32 bytes"]);
    std::fs::write(&file, format!("p1 {}=\n", "A".repeat(43))).unwrap();
    let made = run(tollgate(&["bootstrap", &flag]).arg(database(home.path())), "");
    text(&made);
    assert_refused(&home, &[], &["the pepper `p1`"]);
    home.serve(&[&flag]).stop();
}

/// Neither address is ever bound: a port in use ends the start before.
#[test]
fn an_address_that_others_reach_is_warned_of() {
    let home = Home::empty();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("--http-addr={}", holder.local_addr().unwrap());
    for (addr, auth, warnings) in [
        ("0.0.0.0:0", "required", &["keys cross the network in the clear"][..]),
        ("[::]:0", "off", &["keys cross the network in the clear", "WHOEVER REACHES THIS PORT"]),
        ("127.0.0.1:0", "off", &[]),
    ] {
        let arguments = [&taken, &format!("--grpc-addr={addr}"), &format!("--check-auth={auth}"), "--log-format=json"];
        let (code, said) = refusal(&mut serve_command(home.path(), &arguments));
        assert!(code == 1 && said.contains("is in use"), "{said}");
        let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let warned: Vec<Value> = lines.filter(|line| line["level"] == "WARN").collect();
        assert_eq!(warned.len(), warnings.len(), "{addr} {auth}: {said}");
        for (line, warning) in warned.iter().zip(warnings) {
            assert!(line["message"].as_str().unwrap().contains(warning), "{line}");
        }
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, in files of a directory; their paths.
    fn issue(&self, home: &Home, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap().pem();
        (file(home, &format!("{name}.pem"), &cert), file(home, &format!("{name}.key"), &key.serialize_pem()))
    }
}

fn file(home: &Home, name: &str, content: &str) -> String {
    let path = home.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// A call over TLS: what became of it.
async fn self_over_tls(addr: SocketAddr, token: &str, tls: ClientTlsConfig) -> Result<(), Code> {
    let endpoint = Endpoint::from_shared(format!("https://{addr}")).unwrap().tls_config(tls).unwrap();
    let mut keys = KeyServiceClient::with_interceptor(endpoint.connect_lazy(), Bearer::new(token));
    keys.get_self(GetSelfRequest {}).await.map(drop).map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_mutual_tls_end_to_end() {
    let home = Home::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (cert, key) = authority.issue(&home, "server");
    let (other_cert, other_key) = stranger.issue(&home, "stranger");
    let ca = file(&home, "ca.pem", &authority.0.pem());
    let tls = [format!("--tls-cert-file={cert}"), format!("--tls-key-file={key}")];
    let [cert_flag, key_flag] = [&*tls[0], &*tls[1]];
    let trusting = |pem: String| ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));

    let server = home.serve(&[cert_flag, key_flag]);
    assert_eq!(self_over_tls(server.grpc, &home.token, trusting(authority.0.pem())).await, Ok(()));
    assert_eq!(self_over_tls(server.grpc, &home.token, trusting(stranger.0.pem())).await, Err(Code::Unavailable));
    let plain = Endpoint::from_shared(server.endpoint()).unwrap().connect_lazy();
    let mut plain = KeyServiceClient::with_interceptor(plain, Bearer::new(&home.token));
    assert!(plain.get_self(GetSelfRequest {}).await.is_err(), "no call goes through in the clear");
    let endpoint = format!("--endpoint=https://localhost:{}", server.grpc.port());
    let ca_flag = format!("--ca-file={ca}");
    text(&run(tollgate(&["me", &endpoint, &ca_flag]).env("TOLLGATE_TOKEN", &home.token), ""));
    assert_eq!(text(&run(&mut tollgate(&["health", &endpoint, &ca_flag]), "")), "SERVING\n");
    drop(server);

    let server = home.serve(&[cert_flag, key_flag, &format!("--tls-client-ca-file={ca}")]);
    let identity =
        |(cert, key): &(String, String)| Identity::from_pem(std::fs::read(cert).unwrap(), std::fs::read(key).unwrap());
    let client = authority.issue(&home, "client");
    let trusted = trusting(authority.0.pem());
    let with = |who: &(String, String)| trusted.clone().identity(identity(who));
    assert_eq!(self_over_tls(server.grpc, &home.token, with(&client)).await, Ok(()));
    assert!(self_over_tls(server.grpc, &home.token, trusted.clone()).await.is_err(), "without a certificate");
    let other = (other_cert, other_key);
    assert!(self_over_tls(server.grpc, &home.token, with(&other)).await.is_err(), "with another's certificate");
    let endpoint = format!("--endpoint=https://localhost:{}", server.grpc.port());
    let (cert_arg, key_arg) = (format!("--client-cert={}", client.0), format!("--client-key={}", client.1));
    let me = &["me", &endpoint, &ca_flag, &cert_arg, &key_arg];
    text(&run(tollgate(me).env("TOLLGATE_TOKEN", &home.token), ""));
    let without = run(tollgate(&["me", &endpoint, &ca_flag]).env("TOLLGATE_TOKEN", &home.token), "");
    assert_eq!(code(&without), 6, "{}", said(&without));
}

#[test]
fn tls_files_that_cannot_be_used_are_named() {
    let home = Home::empty();
    let (authority, text) = (Authority::new(), file(&home, "text.pem", "not PEM"));
    let ((cert, key), (_, other_key)) = (authority.issue(&home, "a"), authority.issue(&home, "b"));
    for (cert, key, ca, reason) in [
        (&*cert, "", "", "needs `server.tls.key_file`"),
        ("", &*key, "", "needs `server.tls.cert_file`"),
        ("", "", &*cert, "needs `server.tls.cert_file`"),
        ("/no/such.pem", &key, "", "cannot read the certificate file `/no/such.pem`"),
        (&text, &key, "", "text.pem"),
        (&cert, &text, "", "text.pem"),
        (&cert, &other_key, "", "cannot be used together"),
        (&cert, &key, &text, "client CA file"),
    ] {
        let flags = [("cert", cert), ("key", key), ("client-ca", ca)];
        let flags = flags.iter().filter(|(_, path)| !path.is_empty());
        let flags: Vec<String> = flags.map(|(name, path)| format!("--tls-{name}-file={path}")).collect();
        assert_refused(&home, &flags.iter().map(String::as_str).collect::<Vec<_>>(), &[reason]);
    }
}

/// Calls of many kinds, so that every metric has been used.
async fn traffic(server: &Server, home: &Home) {
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let made = create(&mut keys, &account, "one").await.unwrap();
    let id = made.key.unwrap().id;
    keys.rotate_key(RotateKeyRequest { id: id.clone(), ..RotateKeyRequest::default() }).await.unwrap();
    for key in [&*made.secret, "", "é", "unknown"] {
        let request = CheckKeyRequest { key: key.into(), ..CheckKeyRequest::default() };
        keys.check_key(request).await.unwrap();
    }
    for id in ["no id", &id] {
        _ = keys.get_key(GetKeyRequest { id: id.into() }).await;
    }
    _ = server.keys("nobody").await.get_self(GetSelfRequest {}).await;
    for path in ["/tollgate.v1.KeyService/Nothing", "/a.b/c", "/a.b/d"] {
        let mut raw = tonic::client::Grpc::new(server.channel().await);
        raw.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<GetSelfRequest, GetSelfRequest>::default();
        let answer = raw.unary(Request::new(GetSelfRequest {}), path.parse().unwrap(), codec).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_can_be_read_by_prometheus() {
    let home = Home::new();
    let server = home.serve(&[]);
    traffic(&server, &home).await;
    let mut metrics = String::new();
    eventually("usage is flushed", || {
        metrics = server.get("/metrics").1;
        metrics.lines().any(|line| line.starts_with("tollgate_usage_last_flush_timestamp_seconds 1"))
    });
    for line in [
        "tollgate_checks_total{verdict=\"ROTATED_OUT\"} 1",
        "tollgate_checks_total{verdict=\"MISSING\"} 1",
        "tollgate_checks_total{verdict=\"MALFORMED\"} 1",
        "tollgate_checks_total{verdict=\"UNKNOWN\"} 1",
        "tollgate_rpc_duration_seconds_count{rpc=\"tollgate.v1.KeyService/CreateKey\",code=\"OK\"} 1",
        "tollgate_rpc_duration_seconds_count{rpc=\"tollgate.v1.KeyService/GetKey\",code=\"NOT_FOUND\"} 1",
        "tollgate_rpc_duration_seconds_count{rpc=\"tollgate.v1.KeyService/GetSelf\",code=\"UNAUTHENTICATED\"} 1",
        // However many names callers make up, they have one line.
        "tollgate_rpc_duration_seconds_count{rpc=\"other\",code=\"UNIMPLEMENTED\"} 3",
    ] {
        assert!(metrics.lines().any(|found| found == line), "`{line}` is missing in\n{metrics}");
    }
    assert!(
        metrics.lines().any(|line| line.starts_with("tollgate_store_duration_seconds_count{operation=\"commit\"}"))
    );
    let Some(promtool) = tool("TOLLGATE_TEST_PROMTOOL", "promtool") else { return };
    let checked = run(command(promtool).args(["check", "metrics"]), &metrics);
    assert!(code(&checked) == 0 && said(&checked).is_empty(), "{}", said(&checked));
}

#[test]
fn probes_answer() {
    let home = Home::new();
    let server = home.serve(&[]);
    assert_eq!(server.get("/healthz"), (200, "ok\n".into()));
    let (status, body) = server.get("/readyz");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body), (200, serde_json::json!({ "ready": true, "missing": [] })));
    assert_eq!(server.get("/").0, 404);
    for service in ["", "tollgate.v1.KeyService", "tollgate.v1.AccountService", "tollgate.v1.PlanService"]
        .into_iter()
        .chain(["envoy.service.auth.v3.Authorization", "envoy.service.ratelimit.v3.RateLimitService"])
    {
        let health = run(tollgate(&["health", "--service", service]).env("TOLLGATE_ENDPOINT", server.endpoint()), "");
        assert_eq!(text(&health), "SERVING\n", "`{service}`");
    }
    let health =
        run(tollgate(&["health", "--service=no.such.Service"]).env("TOLLGATE_ENDPOINT", server.endpoint()), "");
    assert_eq!(code(&health), 1, "{}", said(&health));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_a_call_has_its_request_id() {
    let home = Home::new();
    let server = home.serve(&["--log-format=json", "--log-filter=info,tollgate=debug"]);
    let mut keys = KeyServiceClient::new(server.channel().await);
    let asked = |id: Option<&str>| {
        let mut request = Request::new(GetSelfRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {}", home.token).parse().unwrap());
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        request
    };
    keys.get_self(asked(Some("of-the-caller-1"))).await.unwrap();
    keys.get_self(asked(None)).await.unwrap();
    keys.get_self(asked(Some("forged\" level=\"ERROR"))).await.unwrap();
    let answered = || -> Vec<Value> {
        let log = server.log();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
        lines.filter(|line| line["message"] == "answered").collect()
    };
    eventually("three calls in the log", || answered().len() == 3);
    let ids: Vec<String> = answered()
        .iter()
        .map(|line| {
            assert_eq!(line["span"]["rpc"], "tollgate.v1.KeyService/GetSelf", "{line}");
            line["span"]["request_id"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
        })
        .collect();
    assert_eq!(ids[0], "of-the-caller-1");
    assert!(ids[1].len() == 32 && ids[2].len() == 32 && ids[1] != ids[2], "{ids:?}");
}

/// A clock that was set back between two runs: what is stored lies in the future, and nothing stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_back_stops_nothing() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let made = create(&mut keys, &account, "early").await.unwrap();
    let check = || CheckKeyRequest { key: made.secret.clone(), ..CheckKeyRequest::default() };
    assert!(keys.check_key(check()).await.unwrap().into_inner().allowed);
    server.stop();
    let path = format!("sqlite:{}", home.path().join("t.sqlite").display());
    let mut connection = sqlx::SqliteConnection::connect(&path).await.unwrap();
    for statement in [
        "UPDATE keys SET create_time = create_time + 864000000",
        "UPDATE key_activity SET last_used_time = last_used_time + 864000000",
        "UPDATE usage_hourly SET hour = hour + 240",
        "UPDATE usage_flushes SET time = time + 864000000",
    ] {
        let done = sqlx::query(statement).execute(&mut connection).await.unwrap();
        assert!(done.rows_affected() > 0, "{statement}");
    }
    connection.close().await.unwrap();

    let mut server = home.serve(&[]);
    let mut keys = server.keys(&home.token).await;
    assert_eq!(keys.check_key(check()).await.unwrap().into_inner().verdict(), Verdict::Allowed);
    create(&mut keys, &account, "late").await.unwrap();
    let id = made.key.unwrap().id;
    let rotated = keys.rotate_key(RotateKeyRequest { id: id.clone(), ..RotateKeyRequest::default() }).await.unwrap();
    let key = rotated.into_inner().secret;
    assert!(keys.check_key(CheckKeyRequest { key, ..CheckKeyRequest::default() }).await.unwrap().into_inner().allowed);
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
    let server = home.serve(&[]);
    let usage = GetUsageRequest { key_id: id, ..GetUsageRequest::default() };
    let totals = server.keys(&home.token).await.get_usage(usage).await.unwrap().into_inner().totals.unwrap();
    assert_eq!(totals.allowed, 2, "what was counted since is told");
}

//! The HTTP port.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate::domain::{Time, Verdict};
use tollgate::telemetry::Readiness;
use tollgate::telemetry::metrics::{Format, Metrics, RpcLabel};
use tollgate::transport::http::{HttpOptions, HttpServer, routes};

use crate::support::{PATIENCE, closed};

fn options() -> HttpOptions {
    HttpOptions {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        header_read_timeout: PATIENCE * 2,
        ..HttpOptions::default()
    }
}

fn start(options: HttpOptions, readiness: Readiness) -> HttpServer {
    HttpServer::start(options, routes(readiness, Arc::new(Metrics::new()))).unwrap()
}

/// The whole answer to a request, which is the first line and further headers.
async fn ask(server: &HttpServer, request: &str) -> String {
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let request = format!("{request}\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
    answer
}

#[tokio::test]
async fn probes_follow_the_conditions() {
    let readiness = Readiness::new();
    let store = readiness.require("store");
    let server = start(options(), readiness);
    let answer = ask(&server, "GET /readyz HTTP/1.1").await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with(r#"{"missing":["store"],"ready":false}"#),
        "{answer}"
    );
    assert!(ask(&server, "GET /healthz HTTP/1.1").await.starts_with("HTTP/1.1 200 "), "alive though not ready");
    store.set(true);
    let answer = ask(&server, "GET /readyz HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"missing":[],"ready":true}"#), "{answer}");
    store.set(false);
    assert!(ask(&server, "GET /readyz HTTP/1.1").await.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn scrapers_choose_the_format() {
    let server = start(options(), Readiness::new());
    let answer = ask(&server, "GET /metrics HTTP/1.1").await;
    assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    assert!(answer.contains("\ntollgate_checks_total{verdict=\"ALLOWED\"} 0\n") && !answer.contains("# EOF"));
    let answer = ask(&server, "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text; version=1.0.0").await;
    assert!(
        answer.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("# EOF\n"));
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let server = start(options(), Readiness::new());
    let answer = ask(&server, "GET /nope?secret=1 HTTP/1.1").await;
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.ends_with(r#"{"error":"there is nothing at `/nope`"}"#),
        "{answer}"
    );
    let answer = ask(&server, "POST /metrics HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains(r#"{"error":"#), "{answer}");
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = start(options(), Readiness::new());
    let request = format!("GET / HTTP/1.1\r\nx-long: {}", "x".repeat(64 * 1024));
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    // It may be cut off while it is being sent.
    drop(stream.write_all(request.as_bytes()).await);
    closed(stream).await;
}

#[tokio::test]
async fn silent_connections_are_closed_and_hold_nobody_up_for_long() {
    let header_read_timeout = Duration::from_millis(200);
    let server = start(HttpOptions { connections_max: 1, header_read_timeout, ..options() }, Readiness::new());
    let silent = TcpStream::connect(server.local_addr()).await.unwrap();
    assert!(ask(&server, "GET /healthz HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
    closed(silent).await;
}

#[tokio::test]
async fn the_shutdown_cuts_what_hangs() {
    let drain_timeout = Duration::from_millis(200);
    let server = start(HttpOptions { drain_timeout, ..options() }, Readiness::new());
    let addr = server.local_addr();
    let mut half = TcpStream::connect(addr).await.unwrap();
    half.write_all(b"GET /metrics HT").await.unwrap();
    tokio::time::timeout(PATIENCE, server.shutdown()).await.expect("the shutdown never ends");
    closed(half).await;
    TcpStream::connect(addr).await.unwrap_err();
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else {
        let required = std::env::var("TOLLGATE_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
        assert!(!required, "promtool is not installed (Debian package prometheus)");
        println!("SKIPPED: promtool is not installed (Debian package prometheus)");
        return;
    };
    let metrics = Metrics::new();
    metrics.check(Verdict::Allowed);
    metrics.rpc(RpcLabel::OTHER, tonic::Code::Ok, Duration::from_millis(1));
    metrics.store("create_key", Duration::from_millis(1), true);
    metrics.usage_flushed(Time::from_millis(1), Duration::from_millis(1));
    let text = metrics.encode(Format::Prometheus).unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

//! No peer can hold more than its share: silence, connections, requests and time all end.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tollgate::transport::server::{RequestClass, ServerOptions};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;

use crate::support::{PATIENCE, ask, call, closed, eventually, mute_peer, options, start};

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn silent_connections_are_closed() {
    let server = start(ServerOptions { first_byte_timeout: SOON, ..options() });
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(server.raw().await);
    }
    for stream in silent {
        closed(stream).await;
    }
    let refused = r#"tollgate_connections_refused_total{reason="preface"}"#;
    eventually("all are counted", || server.metric(refused) >= 300.0).await;
    eventually("none is open", || server.metric("tollgate_connections") < 1.0).await;
    call(&server.client().await, "").await.unwrap();
}

#[tokio::test]
async fn half_a_preface_is_not_enough() {
    let server = start(ServerOptions { first_byte_timeout: SOON, ..options() });
    let mut stream = server.raw().await;
    stream.write_all(b"PRI * HTTP/2").await.unwrap();
    closed(stream).await;
}

#[tokio::test]
async fn another_protocol_is_refused_at_once() {
    let server = start(options());
    let mut stream = server.raw().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    closed(stream).await;
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_closed() {
    let server = start(ServerOptions { keepalive_interval: SOON, keepalive_timeout: SOON, ..options() });
    let client = server.client().await;
    closed(mute_peer(&server).await).await;
    call(&client, "").await.unwrap();
}

#[tokio::test]
async fn connections_have_a_cap() {
    let server = start(ServerOptions { connections_max: 2, ..options() });
    let (first, second) = (server.client().await, server.client().await);
    call(&first, "").await.unwrap();
    call(&second, "").await.unwrap();
    closed(server.raw().await).await;
    let refused = r#"tollgate_connections_refused_total{reason="connections_max"}"#;
    assert!(server.metric(refused) >= 1.0);
    call(&first, "").await.unwrap();
    drop(second);
    eventually("a place is free", || server.metric("tollgate_connections") < 2.0).await;
    call(&server.client().await, "").await.unwrap();
}

#[tokio::test]
async fn one_request_too_many_is_shed() {
    let server = start(ServerOptions { in_flight_max: 1, ..options() });
    let (client, other) = (server.client().await, server.client().await);
    let first = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "gate").await }
    });
    server.begun(1).await;
    for client in [&client, &other] {
        let status = call(client, "").await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("too many requests"), "{status}");
    }
    assert_eq!(server.stage.begun.load(SeqCst), 1);
    assert!(server.metric("tollgate_requests_shed_total") >= 2.0);
    server.stage.open_gate();
    first.await.unwrap().unwrap();
    call(&other, "").await.unwrap();
}

#[tokio::test]
async fn hot_requests_count_only_while_they_wait() {
    let server = start(ServerOptions { in_flight_max: 1, classify: |_| RequestClass::Hot, ..options() });
    let client = server.client().await;
    let first = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "gate").await }
    });
    server.begun(1).await;
    assert_eq!(call(&client, "gate").await.unwrap_err().code(), Code::ResourceExhausted);
    server.stage.open_gate();
    first.await.unwrap().unwrap();
    call(&client, "gate").await.unwrap();
}

#[tokio::test]
async fn a_request_past_its_time_is_dropped() {
    for class in [|_: &str| RequestClass::Ordinary, |_: &str| RequestClass::Hot] {
        let server = start(ServerOptions { request_timeout: SOON, classify: class, ..options() });
        let client = server.client().await;
        assert_eq!(call(&client, "hang").await.unwrap_err().code(), Code::DeadlineExceeded);
        assert!(server.stage.dropped.load(SeqCst));
        assert!(server.metric("tollgate_request_timeouts_total") >= 1.0);
        call(&client, "").await.unwrap();
    }
}

#[tokio::test]
async fn long_requests_have_a_limit_of_their_own() {
    let server = start(ServerOptions {
        request_timeout: Duration::ZERO,
        long_request_timeout: PATIENCE,
        classify: |_| RequestClass::Long,
        ..options()
    });
    let client = server.client().await;
    let waiting = tokio::spawn(async move { call(&client, "gate").await });
    server.begun(1).await;
    server.stage.open_gate();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn callers_can_ask_for_less_time() {
    let server = start(options());
    let mut request = Request::new(HealthCheckRequest { service: "hang".to_owned() });
    request.set_timeout(SOON);
    // The client gives up at the same moment, so its own status may come first.
    server.client().await.check(request).await.unwrap_err();
    eventually("the server gives up", || server.stage.dropped.load(SeqCst)).await;
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let server = start(options());
    let client = server.client().await;
    assert_eq!(call(&client, "panic").await.unwrap_err().code(), Code::Internal);
    call(&client, "").await.unwrap();
}

/// Run by the test below, in a process that may open few files.
#[tokio::test]
#[ignore = "wants a process of its own"]
async fn few_descriptors() {
    let server = start(options());
    let mut streams = Vec::new();
    while let Ok(stream) = tokio::net::TcpStream::connect(server.handle.local_addr()).await {
        streams.push(stream);
    }
    let refused = r#"tollgate_connections_refused_total{reason="accept"}"#;
    eventually("accepting fails", || server.metric(refused) >= 1.0).await;
    // Time to spin in, which is what must not happen. A slow machine counts less, never more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(server.metric(refused) < 50.0, "the acceptor spins");
    drop(streams);
    eventually("all are closed", || server.metric("tollgate_connections") < 1.0).await;
    call(&server.client().await, "").await.unwrap();
}

#[test]
fn a_server_out_of_descriptors_waits_and_recovers() {
    let inner = format!("{}::few_descriptors", module_path!().split_once("::").unwrap().1);
    let output = std::process::Command::new("sh")
        .args(["-c", r#"ulimit -n 96 && exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &inner, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn services_know_their_peer() {
    let server = start(options());
    let client = server.client().await;
    let peer = ask(&client, "peer").await;
    assert!(peer.starts_with("127.0.0.1:") && peer.ends_with(" false None"), "{peer}");
}

//! How connections and servers end, and that callers hardly notice.

use std::collections::HashSet;
use std::time::Duration;

use tokio::net::TcpStream;
use tollgate::transport::server::ServerOptions;

use crate::support::{PATIENCE, ask, call, closed, eventually, mute_peer, options, start};

#[tokio::test]
async fn an_old_connection_is_replaced_without_an_error() {
    let server = start(ServerOptions {
        connection_age_max: Some(Duration::from_millis(100)),
        connection_age_grace: PATIENCE,
        ..options()
    });
    let client = server.client().await;
    let mut peers = HashSet::new();
    let replaced = tokio::time::timeout(PATIENCE, async {
        while peers.len() < 4 {
            let answer = ask(&client, "peer").await;
            // tonic's channel gives up a call that it has queued, and not sent, when the connection goes at that moment.
            if !answer.contains("operation was canceled") {
                peers.insert(answer);
            }
        }
    });
    assert!(replaced.await.is_ok(), "one connection stays for ever");
    assert!(peers.iter().all(|peer| peer.starts_with("127.0.0.1:")), "a call failed: {peers:?}");
}

#[tokio::test]
async fn an_old_connection_that_does_not_go_is_cut() {
    let soon = Duration::from_millis(100);
    let server = start(ServerOptions { connection_age_max: Some(soon), connection_age_grace: soon, ..options() });
    closed(mute_peer(&server).await).await;
}

#[tokio::test]
async fn the_shutdown_finishes_what_began() {
    let server = start(ServerOptions { drain_timeout: PATIENCE, ..options() });
    let addr = server.handle.local_addr();
    let client = server.client().await;
    let call = tokio::spawn(async move { call(&client, "gate").await });
    server.begun(1).await;
    let stage = server.stage;
    let mut shutdown = tokio::spawn(server.handle.shutdown());
    let refused = tokio::time::timeout(PATIENCE, async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    refused.await.expect("the listener stays open");
    let early = tokio::time::timeout(Duration::from_millis(100), &mut shutdown).await;
    assert!(early.is_err(), "the shutdown did not wait");
    stage.open_gate();
    call.await.unwrap().unwrap();
    tokio::time::timeout(PATIENCE, shutdown).await.expect("the shutdown never ends").unwrap();
}

#[tokio::test]
async fn no_peer_holds_the_shutdown_open() {
    let server = start(ServerOptions { drain_timeout: Duration::from_millis(300), ..options() });
    let (silent, mute) = (server.raw().await, mute_peer(&server).await);
    let client = server.client().await;
    let hanging = tokio::spawn(async move { call(&client, "hang").await });
    server.begun(1).await;
    tokio::time::timeout(PATIENCE, server.handle.shutdown()).await.expect("the shutdown never ends");
    closed(silent).await;
    closed(mute).await;
    assert!(hanging.await.unwrap().is_err());
}

#[tokio::test]
async fn a_dropped_server_stops() {
    let server = start(options());
    let addr = server.handle.local_addr();
    drop(server.handle);
    let mut refused = false;
    for _ in 0..1_000 {
        refused = TcpStream::connect(addr).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused, "the listener stays open");
    eventually("its threads let go of the metrics", || std::sync::Arc::strong_count(&server.metrics) == 1).await;
}

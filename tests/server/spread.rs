//! Where a server listens, and that all of its workers serve.

use std::collections::HashMap;
use std::net::SocketAddr;

use tollgate::transport::ListenError;
use tollgate::transport::server::{ServerOptions, StartError};

use crate::support::{TestServer, ask, call, options, start, try_start};

#[tokio::test]
async fn every_worker_gets_its_share() {
    let server = start(ServerOptions { workers: 4, ..options() });
    let mut clients = Vec::new();
    let mut shares = HashMap::<String, usize>::new();
    for _ in 0..12 {
        let client = server.client().await;
        *shares.entry(ask(&client, "worker").await).or_default() += 1;
        clients.push(client);
    }
    assert_eq!(shares.len(), 4, "{shares:?}");
    assert!(shares.values().all(|connections| *connections == 3), "{shares:?}");
}

fn second(addr: SocketAddr) -> Result<TestServer, StartError> {
    try_start(ServerOptions { addr, ..options() })
}

#[tokio::test]
async fn a_port_in_use_is_refused() {
    let server = start(options());
    let addr = server.handle.local_addr();
    let error = second(addr).unwrap_err();
    assert!(matches!(error, StartError::Listen(ListenError::InUse(_))), "{error:?}");
    assert_eq!(error.to_string(), format!("the address `{addr}` is in use by another process"));
    call(&server.client().await, "").await.unwrap();
}

#[tokio::test]
async fn a_port_is_free_as_soon_as_its_server_has_ended() {
    let server = start(options());
    let addr = server.handle.local_addr();
    let client = server.client().await;
    call(&client, "").await.unwrap();
    server.handle.shutdown().await;
    second(addr).unwrap().handle.shutdown().await;
}

#[tokio::test]
async fn an_address_of_another_machine_is_refused() {
    let error = second(SocketAddr::from(([192, 0, 2, 1], 0))).unwrap_err();
    assert!(error.to_string().starts_with("cannot listen on `192.0.2.1:0`: "), "{error}");
}

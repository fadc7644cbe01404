//! How a server begins and ends: not ready until it knows every key, and gone only when what it began is done.
#![cfg(test)]

mod support;

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use sqlx::Connection as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::{
    CheckKeyRequest, GetSelfRequest, ImportKeysRequest, ImportKeysResponse, ImportedKey, Key, ListKeysRequest,
};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use support::{
    Bearer, GLANCE, Home, PATIENCE, Server, channel, create, dice, eventually, hex, http_get, serve_command,
};

/// An import that stays under way until it is told to end.
struct LongImport {
    rows: mpsc::Sender<ImportKeysRequest>,
    account: String,
    answer: JoinHandle<Result<ImportKeysResponse, Status>>,
}

impl LongImport {
    /// Begins one, and returns when the server has begun with it too.
    async fn begin(server: &Server, token: &str, account: &str) -> Self {
        let mut keys = KeyServiceClient::with_interceptor(server.channel().await, Bearer::new(token));
        let (rows, receiver) = mpsc::channel(1);
        let mut importing = keys.clone();
        let answer = tokio::spawn(async move {
            importing.import_keys(ReceiverStream::new(receiver)).await.map(tonic::Response::into_inner)
        });
        let import = Self { rows, account: account.to_owned(), answer };
        // The channel takes a second row only when the first is on its way, after the head of the call; and what is
        // called on the same connection after that is answered only after the head has been read.
        import.row("first").await;
        import.row("second").await;
        keys.get_self(GetSelfRequest {}).await.unwrap();
        import
    }

    async fn row(&self, name: &str) {
        let hash: Vec<u8> = (0..32).map(|_| u8::try_from(dice(256)).unwrap()).collect();
        let key = Key { account_id: self.account.clone(), name: name.to_owned(), ..Key::default() };
        let key = Some(ImportedKey { hash: hex(&hash), key: Some(key) });
        self.rows.send(ImportKeysRequest { dry_run: false, key }).await.unwrap();
    }

    async fn end(self) -> Result<ImportKeysResponse, Status> {
        drop(self.rows);
        self.answer.await.unwrap()
    }
}

/// Waits until the server says that it no longer wants calls.
fn not_ready(server: &Server) {
    eventually("not ready", || server.get("/readyz").0 == 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_at_the_end_is_finished() {
    for signal in ["TERM", "INT"] {
        let home = Home::new();
        let mut server = home.serve(&[]);
        let account = server.account(&home.token).await;
        let mut health = HealthClient::new(server.channel().await);
        let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        let import = LongImport::begin(&server, &home.token, &account).await;

        server.signal(signal);
        let told = tokio::time::timeout(PATIENCE, watch.message()).await.expect("health says nothing");
        assert_eq!(told.unwrap().unwrap().status(), ServingStatus::NotServing);
        not_ready(&server);
        assert!(server.get("/readyz").1.contains("running"), "it says why");
        eventually("no new connections", || TcpStream::connect(server.grpc).is_err());
        import.row("third").await;
        assert!(server.is_running());
        let imported = import.end().await.unwrap();
        assert_eq!((imported.imported, imported.failed), (3, 0), "{imported:?}");
        // A client that watches health does not hold up the end.
        assert!(watch.message().await.unwrap().is_none());
        let status = server.ended();
        assert_eq!(status.code(), Some(0), "{}", server.log());
        assert!(server.log().contains("stopped"), "{}", server.log());
        assert!(!server.log().contains("cut connections"), "{}", server.log());
        let log = home.path().join("t.sqlite-wal");
        assert!(!log.exists(), "all is in the database file");

        let server = home.serve(&[]);
        let listed = ListKeysRequest { account_id: account, ..ListKeysRequest::default() };
        let listed = server.keys(&home.token).await.list_keys(listed).await.unwrap().into_inner().keys;
        assert_eq!(listed.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["first", "second", "third"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let home = Home::new();
        // Far longer than any test waits.
        let mut server = home.serve(&["--drain-timeout=1h"]);
        let account = server.account(&home.token).await;
        let import = LongImport::begin(&server, &home.token, &account).await;
        server.signal("TERM");
        not_ready(&server);
        assert!(server.is_running());
        server.signal(second);
        let status = server.ended();
        assert_eq!(status.code(), Some(1));
        assert!(server.log().contains("stopped by a second signal"), "{}", server.log());
        assert!(import.end().await.is_err());
        assert_eq!(home.damage(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_too_long_at_the_end_is_cut() {
    let home = Home::new();
    let mut server = home.serve(&["--drain-timeout=1s"]);
    let account = server.account(&home.token).await;
    let import = LongImport::begin(&server, &home.token, &account).await;
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
    assert!(server.log().contains("cut connections"), "{}", server.log());
    assert!(import.end().await.is_err());
    assert_eq!(home.damage(), Vec::<String>::new());
}

/// A store that takes a while to load, and the secret of one of its keys.
async fn large_store() -> (Home, String) {
    const KEYS: u32 = 150_000;
    let home = Home::new();
    let mut server = home.serve(&[]);
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let secret = create(&mut keys, &account, "one of many").await.unwrap().secret;
    server.stop();
    let path = format!("sqlite:{}", home.path().join("t.sqlite").display());
    let mut connection = sqlx::SqliteConnection::connect(&path).await.unwrap();
    let inserted = sqlx::query(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $1)
         INSERT INTO keys (id, account_id, name, environment, prefix, status, create_time, revision, secret_hash, policy,
                           metadata, body)
         SELECT randomblob(16), account_id, 'number ' || n, environment, prefix, status, create_time, revision,
                randomblob(32), policy, metadata, body
         FROM keys, numbers WHERE name = 'one of many'",
    );
    assert_eq!(inserted.bind(KEYS).execute(&mut connection).await.unwrap().rows_affected(), u64::from(KEYS));
    connection.close().await.unwrap();
    (home, secret)
}

/// A server that has not said yet that it is ready.
struct Starting(Child);

impl Drop for Starting {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Starting {
    fn new(home: &Home) -> Self {
        Self(serve_command(home.path(), &[]).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The gRPC and the HTTP address that it listens on, from what the system knows of the process.
    fn addresses(&mut self) -> (SocketAddr, SocketAddr) {
        let mut found = Vec::new();
        eventually("both ports", || {
            assert!(self.0.try_wait().unwrap().is_none(), "it has ended");
            found = listening(self.0.id());
            found.len() == 2
        });
        let http = found.iter().position(|addr| http_get(*addr, "/healthz").is_ok()).expect("one of them is HTTP");
        (found[1 - http], found[http])
    }
}

/// The addresses on which a process listens (proc(5), `/proc/net/tcp`).
fn listening(pid: u32) -> Vec<SocketAddr> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: Vec<String> =
        links.filter_map(|link| fs::read_link(link.path()).ok()).map(|link| link.display().to_string()).collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == "0A" && sockets.contains(&format!("socket:[{}]", row[9])))
        .map(|row| {
            let port = u16::from_str_radix(row[1].split(':').nth(1).unwrap(), 16).unwrap();
            SocketAddr::from(([127, 0, 0, 1], port))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_answered_before_every_key_is_known() {
    if !fs::exists("/proc/net/tcp").unwrap() {
        println!("SKIPPED: there is no /proc to find the ports in");
        return;
    }
    let (home, secret) = large_store().await;
    let mut starting = Starting::new(&home);
    let (grpc, http) = starting.addresses();
    let channel = channel(grpc).await;
    let mut keys = KeyServiceClient::with_interceptor(channel.clone(), Bearer::new(&home.token));
    let mut health = HealthClient::new(channel);
    let (mut before, mut after) = (0, 0);
    while after < 20 {
        let serving = health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
        let (status, body) = http_get(http, "/readyz").unwrap();
        let request = CheckKeyRequest { key: secret.clone(), ..CheckKeyRequest::default() };
        let checked = keys.check_key(request).await.map(|answer| answer.into_inner().allowed);
        let unknown = keys.get_self(GetSelfRequest {}).await.map_err(|status| status.code());
        // Each was asked after the one before: what one says of readiness holds for those that follow.
        if status == 200 || serving == ServingStatus::Serving {
            assert_eq!(status, 200, "health was SERVING before: {body}");
            assert_eq!(checked.map_err(|status| status.code()), Ok(true), "it was ready before");
            assert!(unknown.is_ok());
            after += 1;
        } else {
            assert_eq!(status, 503);
            assert!(before == 0 || after == 0, "ready no more");
            assert!(body.contains("index"), "it says what is missing: {body}");
            match checked {
                Ok(allowed) => assert!(allowed, "a key is refused while the index is loaded"),
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            }
            before += 1;
        }
        tokio::time::sleep(GLANCE).await;
    }
    // How often depends on the machine: where it is never, this run has shown nothing of the time before.
    println!("asked {before} times before it was ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_while_it_loads_ends_it_in_order() {
    if !fs::exists("/proc/net/tcp").unwrap() {
        println!("SKIPPED: there is no /proc to find the ports in");
        return;
    }
    let (home, _) = large_store().await;
    let mut starting = Starting::new(&home);
    starting.addresses();
    support::signal(starting.0.id(), "TERM");
    let mut code = None;
    eventually("its end", || {
        code = starting.0.try_wait().unwrap();
        code.is_some()
    });
    let mut printed = String::new();
    starting.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    println!("it printed: {printed:?}");
    assert_eq!(code.unwrap().code(), Some(0), "{}", home.log());
    assert_eq!(home.damage(), Vec::<String>::new());
}

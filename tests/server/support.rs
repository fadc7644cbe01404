//! A server with a service that waits, hangs or answers as a test wants, and clients for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tollgate::telemetry::metrics::{Format, Metrics};
use tollgate::transport::server::{self, PeerInfo, ServerHandle, ServerOptions, StartError};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Longer than anything here can take on a machine that still works. Whatever waits for it fails, never passes.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What the service saw, and what holds its answers back.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    /// Calls of `gate` and `hang` that began.
    pub(crate) begun: AtomicUsize,
    /// Whether a call of `hang` was dropped.
    pub(crate) dropped: AtomicBool,
    workers: AtomicUsize,
    gate: Gate,
}

#[derive(Debug)]
struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Stage {
    /// Lets calls of `gate` go on.
    pub(crate) fn open_gate(&self) {
        self.gate.0.add_permits(1_000);
    }
}

/// Answers by the service's name that is asked for: `gate` waits for the gate, `hang` for ever, `peer` and `worker`
/// tell who asks and who answers, `panic` does, anything else is served at once.
struct Actor {
    stage: Arc<Stage>,
    worker: usize,
}

#[tonic::async_trait]
impl Health for Actor {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "gate" => {
                self.stage.begun.fetch_add(1, SeqCst);
                self.stage.gate.0.acquire().await.unwrap().forget();
            }
            "hang" => {
                let _told = TellDrop(Arc::clone(&self.stage));
                self.stage.begun.fetch_add(1, SeqCst);
                std::future::pending::<()>().await;
            }
            "peer" => {
                let peer = request.extensions().get::<PeerInfo>().unwrap();
                let certificate = peer.client_certificate().map(server::ClientCertificate::sha256);
                let text = format!("{} {} {certificate:?}", peer.remote(), peer.is_encrypted());
                return Err(Status::not_found(text));
            }
            "panic" => panic!("as the test wanted"),
            "worker" => return Err(Status::not_found(self.worker.to_string())),
            _ => {}
        }
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

struct TellDrop(Arc<Stage>);

impl Drop for TellDrop {
    fn drop(&mut self) {
        self.0.dropped.store(true, SeqCst);
    }
}

#[derive(Debug)]
pub(crate) struct TestServer {
    pub(crate) handle: ServerHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stage: Arc<Stage>,
}

/// Options of a server on a port of its own, whose limits are out of every test's way.
pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        workers: 2,
        request_timeout: PATIENCE * 2,
        first_byte_timeout: PATIENCE * 2,
        tls_handshake_timeout: PATIENCE * 2,
        ..ServerOptions::default()
    }
}

pub(crate) fn start(options: ServerOptions) -> TestServer {
    try_start(options).unwrap()
}

pub(crate) fn try_start(options: ServerOptions) -> Result<TestServer, StartError> {
    let (metrics, stage) = (Arc::new(Metrics::new()), Arc::new(Stage::default()));
    let shared = Arc::clone(&stage);
    let service = move || {
        let worker = shared.workers.fetch_add(1, SeqCst);
        HealthServer::new(Actor { stage: Arc::clone(&shared), worker })
    };
    let handle = server::start(options, Arc::clone(&metrics), service)?;
    Ok(TestServer { handle, metrics, stage })
}

impl TestServer {
    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> HealthClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.handle.local_addr())).unwrap();
        HealthClient::new(endpoint.connect().await.unwrap())
    }

    pub(crate) async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.handle.local_addr()).await.unwrap()
    }

    /// The value of one line of the metrics.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.encode(Format::Prometheus).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no `{series}` in\n{text}")).parse().unwrap()
    }

    pub(crate) async fn begun(&self, calls: usize) {
        eventually("calls have begun", || self.stage.begun.load(SeqCst) >= calls).await;
    }
}

pub(crate) async fn call(client: &HealthClient<Channel>, service: &str) -> Result<(), Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    client.clone().check(request).await.map(drop)
}

/// What a service that answers by an error's message says.
pub(crate) async fn ask(client: &HealthClient<Channel>, service: &str) -> String {
    call(client, service).await.unwrap_err().message().to_owned()
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// Waits until the other side has closed a connection, whatever it says before.
pub(crate) async fn closed(mut stream: TcpStream) {
    let mut buffer = [0; 1_024];
    let waited = tokio::time::timeout(PATIENCE, async { while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {} });
    assert!(waited.await.is_ok(), "the connection stays open");
}

/// The preface and an empty SETTINGS frame: a peer that from then on says nothing, not even to a ping.
pub(crate) async fn mute_peer(server: &TestServer) -> TcpStream {
    let mut stream = server.raw().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // Its first answer, SETTINGS, says that the connection is served.
    stream.read_exact(&mut [0; 9]).await.unwrap();
    stream
}

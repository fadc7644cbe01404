//! Serving, from the first line of the log to the last.
//!
//! Start: the log, the store, both ports (which answer UNAVAILABLE and not ready), the index, the tasks, ready. Stop, on
//! SIGTERM or SIGINT: not ready, a moment for callers to see it, the gRPC port (no new connections, calls under way
//! finish), the HTTP port, the tasks, the last usage, the store. A second signal ends the process at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::ambient::host_name;
use crate::config::{CheckAuth, Config, Database, LogFormat, MessageFormat};
use crate::engine::ReplicaOptions;
use crate::store::silent_after;
use crate::tasks::Tasks;
use crate::telemetry::{self, Condition, Conditions, Readiness};
use crate::transport::HttpStatuses;
use crate::transport::edge::{self, Edge, IdentityNames};
use crate::transport::grpc::{self, Api, Router};
use crate::transport::http::{self, HttpOptions, HttpServer};
use crate::transport::http_check::{self, HttpCheck};
use crate::transport::server::{self, ServerHandle, ServerOptions, TlsFiles};

use super::setup::{Parts, block_on, database_url, migrate_empty};
use super::{DevInfo, Failure, dev};

/// How long callers have, at the end, to see that health says `NOT_SERVING` before connections are told to go.
const FAREWELL: Duration = Duration::from_millis(100);

/// A server that serves.
#[derive(Debug)]
pub struct Ready {
    /// Where it serves gRPC.
    pub grpc_addr: SocketAddr,
    /// Where it serves HTTP.
    pub http_addr: SocketAddr,
    /// The demo, where it was asked for.
    pub demo: Option<DevInfo>,
}

/// Serves until told to stop. `demo` makes a demo account in an empty store. `on_ready` is called once, when calls are
/// answered.
pub fn serve(config: &Config, demo: bool, on_ready: impl FnOnce(&Ready)) -> Result<(), Failure> {
    let format = match config.log.format {
        LogFormat::Auto => telemetry::log::LogFormat::Auto,
        LogFormat::Pretty => telemetry::log::LogFormat::Pretty,
        LogFormat::Json => telemetry::log::LogFormat::Json,
    };
    telemetry::log::init(format, &config.log.filter)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    block_on(run(config, demo, on_ready))
}

async fn run(config: &Config, demo: bool, on_ready: impl FnOnce(&Ready)) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    if demo {
        migrate_empty(config).await?;
    }
    let parts = Parts::prepare(config, Some(replica(config))).await?;
    let result = serve_parts(config, demo, &parts, &mut stop, on_ready).await;
    parts.close().await;
    if result.is_ok() {
        tracing::info!("stopped");
    }
    result
}

async fn serve_parts(
    config: &Config,
    demo: bool,
    parts: &Parts,
    stop: &mut Stop,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), Failure> {
    let readiness = Readiness::new();
    let index = readiness.require("index");
    let fresh = readiness.require("fresh");
    let running = readiness.require("running");
    running.set(true);
    let (mut reporter, health) = tonic_health::server::health_reporter();
    set_health(&reporter, ServingStatus::NotServing).await;
    let serving = Arc::new(AtomicBool::new(false));
    let edge = Arc::new(edge(config, parts));
    let http_options = HttpOptions { addr: config.server.http_addr, ..HttpOptions::default() };
    let routes = http::routes(readiness.clone(), Arc::clone(&parts.metrics))
        .merge(http_check::routes(http_check(config, parts, &edge, &serving)));
    let http = HttpServer::start(http_options, routes)?;
    let api = Arc::new(api(config, parts, &edge, &serving));
    let server = server::start(options(config), Arc::clone(&parts.metrics), move || Router::new(&api, health.clone()))?;

    let result = tokio::select! {
        loaded = load(config, demo, parts, fresh, &server, &http) => loaded.map(Some),
        () = stop.asked() => Ok(None),
    };
    let tasks = match result {
        Ok(Some((ready, tasks))) => {
            serving.store(true, Ordering::Release);
            index.set(true);
            let mut conditions = readiness.watch();
            // First, so that who has heard that it is ready never hears from its health that it is not.
            set_health(&reporter, health_of(&conditions.borrow_and_update())).await;
            on_ready(&ready);
            tokio::select! {
                () = tell_health(conditions, &reporter) => {}
                () = stop.asked() => {}
            }
            Some(tasks)
        }
        Ok(None) => None,
        Err(error) => {
            server.shutdown().await;
            http.shutdown().await;
            return Err(error);
        }
    };
    tracing::info!("stopping: calls under way have {:?} to finish", config.server.drain_timeout);
    running.set(false);
    set_health(&reporter, ServingStatus::NotServing).await;
    let orderly = async {
        tokio::time::sleep(FAREWELL).await;
        end_watches(&mut reporter).await;
        server.shutdown().await;
        http.shutdown().await;
        if let Some(tasks) = tasks {
            tasks.stop().await;
        }
        let rest = if parts.engine.lease_stats().is_journal_on {
            "waits in the journal for the next start"
        } else {
            "is lost"
        };
        let unwritten = |error| format!("stopped; what was used since usage was last written {rest}: {error}");
        let returned = parts.engine.return_leases().await;
        let flushed = parts.engine.flush_usage().await.map(drop);
        let departed = parts.engine.depart().await;
        flushed.and(returned).and(departed).map_err(|error| unwritten(error).into())
    };
    tokio::select! {
        flushed = orderly => flushed,
        () = stop.asked() => Err("stopped by a second signal, before all usage was written and all leases went back".into()),
    }
}

/// Health follows readiness, for as long as it is polled.
async fn tell_health(mut conditions: watch::Receiver<Conditions>, reporter: &HealthReporter) {
    while conditions.changed().await.is_ok() {
        let health = health_of(&conditions.borrow_and_update());
        set_health(reporter, health).await;
    }
    std::future::pending::<()>().await;
}

fn health_of(conditions: &Conditions) -> ServingStatus {
    if conditions.are_met() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// How this process takes part where several share the store.
fn replica(config: &Config) -> ReplicaOptions {
    let host = host_name();
    ReplicaOptions {
        name: format!("{host}/{}", std::process::id()),
        fence: config.replicas.fence,
        poll_interval: config.replicas.poll_interval,
    }
}

/// Fills the index, starts the tasks, and makes the demo.
async fn load(
    config: &Config,
    demo: bool,
    parts: &Parts,
    fresh: Condition,
    server: &ServerHandle,
    http: &HttpServer,
) -> Result<(Ready, Tasks), Failure> {
    let clock = parts.engine.clock();
    let start = clock.monotonic();
    let revision = parts.engine.load().await?;
    let took = clock.monotonic().saturating_sub(start);
    let (keys, accounts, _) = parts.engine.index_size();
    let (grpc_addr, http_addr) = (server.local_addr(), http.local_addr());
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(keys, accounts, revision = revision.number(), took_ms, %grpc_addr, %http_addr, "the index is loaded");
    let tasks = Tasks::start(&parts.engine, &parts.metrics, fresh, config.usage.flush_interval);
    let mut ready = Ready { grpc_addr, http_addr, demo: None };
    if demo {
        ready.demo = Some(dev::prepare(&parts.engine, database_url(config), grpc_addr, http_addr).await?);
    } else if keys == 0 {
        tracing::warn!("there is no key yet, so nobody can call: stop, run `tollgate bootstrap`, and start again");
    }
    Ok((ready, tasks))
}

/// What decides for Envoy and for other proxies.
fn edge(config: &Config, parts: &Parts) -> Edge {
    let told = &config.edge;
    let settings = edge::Settings {
        credential_headers: told.credential_headers.clone(),
        credential_query: told.credential_query.clone(),
        strip_credential: told.strip_credential,
        identity: IdentityNames::with_prefix(&told.identity_prefix),
        realm: told.realm.clone(),
        message_format: match told.message_format {
            MessageFormat::Json => edge::MessageFormat::Json,
            MessageFormat::Problem => edge::MessageFormat::Problem,
        },
    };
    let statuses = HttpStatuses::with(&config.check.http_status);
    Edge::new(Arc::clone(&parts.engine), Arc::clone(&parts.metrics), statuses, settings)
}

fn http_check(config: &Config, parts: &Parts, edge: &Arc<Edge>, serving: &Arc<AtomicBool>) -> HttpCheck {
    HttpCheck {
        engine: Arc::clone(&parts.engine),
        edge: Arc::clone(edge),
        serving: Arc::clone(serving),
        needs_caller: config.check.auth == CheckAuth::Required,
        trusted_proxies: config.edge.trusted_proxies.clone(),
    }
}

fn api(config: &Config, parts: &Parts, edge: &Arc<Edge>, serving: &Arc<AtomicBool>) -> Api {
    Api {
        engine: Arc::clone(&parts.engine),
        metrics: Arc::clone(&parts.metrics),
        runtime: tokio::runtime::Handle::current(),
        serving: Arc::clone(serving),
        check_needs_caller: config.check.auth == CheckAuth::Required,
        edge_names: config.edge.client_names.clone(),
        edge: Arc::clone(edge),
        http_statuses: HttpStatuses::with(&config.check.http_status),
        message_bytes_max: config.server.message_bytes_max,
        import_message_bytes_max: config.server.import_message_bytes_max,
        reflection: config.server.reflection,
    }
}

fn options(config: &Config) -> ServerOptions {
    let defaults = ServerOptions::default();
    let server = &config.server;
    let tls = &server.tls;
    let files = tls.cert_file.clone().zip(tls.key_file.clone());
    ServerOptions {
        addr: server.grpc_addr,
        workers: if server.workers == 0 { defaults.workers } else { server.workers },
        connections_max: server.connections_max,
        streams_per_connection_max: u32::try_from(server.streams_per_connection_max).unwrap_or(u32::MAX),
        in_flight_max: server.in_flight_max,
        request_timeout: server.request_timeout,
        long_request_timeout: server.import_timeout,
        // As long as a process that is cut off may go on admitting.
        await_timeout: match config.store.database {
            Database::Sqlite(_) => Duration::ZERO,
            Database::Postgres(_) => silent_after(config.replicas.fence),
        },
        classify: grpc::classify,
        first_byte_timeout: server.first_byte_timeout,
        tls_handshake_timeout: server.tls_handshake_timeout,
        keepalive_interval: server.keepalive_interval,
        keepalive_timeout: server.keepalive_timeout,
        connection_age_max: Some(server.connection_age_max),
        connection_age_grace: server.connection_age_grace,
        drain_timeout: server.drain_timeout,
        tls: files.map(|(cert, key)| TlsFiles { cert, key, client_ca: tls.client_ca_file.clone() }),
        ..defaults
    }
}

async fn set_health(reporter: &HealthReporter, status: ServingStatus) {
    for service in services() {
        reporter.set_service_status(service, status).await;
    }
}

/// Ends the calls that watch the health of a service: they never end by themselves, and the drain would wait for them.
async fn end_watches(reporter: &mut HealthReporter) {
    for service in services() {
        reporter.clear_service_status(service).await;
    }
}

/// What health tells of. The empty name is the server as a whole.
fn services() -> impl Iterator<Item = &'static str> {
    std::iter::once("").chain(grpc::SERVICES)
}

/// The signals that ask the process to stop.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, Failure> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

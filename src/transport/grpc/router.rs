//! Brings a call to its service, counts it, and gives its lines in the log a name.
//!
//! Checks go straight to the generated service; tonic's own router, with its boxed layers, would cost more than the check
//! itself. They are counted, and have no span unless the log is at debug.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;
use tracing::Instrument as _;

use crate::proto::DESCRIPTORS;
use crate::proto::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use crate::proto::envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitServiceServer;
use crate::proto::v1::account_service_server::AccountServiceServer;
use crate::proto::v1::key_service_server::{KeyServiceServer, SERVICE_NAME as KEY_SERVICE};
use crate::proto::v1::plan_service_server::PlanServiceServer;
use crate::telemetry::metrics::RpcLabel;
use crate::transport::request_id::request_id;
use crate::transport::server::{PeerInfo, RequestClass};

use super::Api;
use super::account_service::Accounts;
use super::ext_authz::{self, ExtAuthz};
use super::hot;
use super::key_service::Keys;
use super::plan_service::Plans;
use super::rate_limit::RateLimits;

const CHECK_KEY: &str = "/tollgate.v1.KeyService/CheckKey";
const EXT_AUTHZ: &str = "/envoy.service.auth.v3.Authorization/Check";
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Changes that may take something away, and so wait for every process that shares the store.
const AWAITED: [&str; 6] = [
    "/tollgate.v1.KeyService/UpdateKey",
    "/tollgate.v1.KeyService/RotateKey",
    "/tollgate.v1.KeyService/RevokeKey",
    "/tollgate.v1.AccountService/UpdateAccount",
    "/tollgate.v1.AccountService/AdjustCredits",
    "/tollgate.v1.PlanService/UpdatePlan",
];
const IMPORT_KEYS: &str = "/tollgate.v1.KeyService/ImportKeys";

/// How the server bounds a call.
#[must_use]
pub fn classify(path: &str) -> RequestClass {
    match path {
        CHECK_KEY | EXT_AUTHZ | SHOULD_RATE_LIMIT => RequestClass::Hot,
        IMPORT_KEYS => RequestClass::Long,
        path if AWAITED.contains(&path) => RequestClass::Awaited,
        _ => RequestClass::Ordinary,
    }
}

/// Everything that is served on the gRPC port. A clone is a reference count, which no other worker touches if each has a
/// router of its own.
#[derive(Clone, Debug)]
pub struct Router(Arc<Services>);

#[derive(Debug)]
struct Services {
    api: Arc<Api>,
    checks: Keys,
    edges: ExtAuthz,
    authorization: AuthorizationServer<ExtAuthz>,
    keys: KeyServiceServer<Keys>,
    imports: KeyServiceServer<Keys>,
    rate_limits: RateLimitServiceServer<RateLimits>,
    rest: Routes,
}

type Request = http::Request<Incoming>;
type Response = http::Response<Body>;
type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl Router {
    /// Of these services; `health` is served beside them.
    #[must_use]
    pub fn new<H: tonic_health::pb::health_server::Health>(
        api: &Arc<Api>,
        health: tonic_health::pb::health_server::HealthServer<H>,
    ) -> Self {
        let bytes_max = api.message_bytes_max;
        let service = || KeyServiceServer::new(Keys(Arc::clone(api)));
        let accounts = AccountServiceServer::new(Accounts(Arc::clone(api))).max_decoding_message_size(bytes_max);
        let plans = PlanServiceServer::new(Plans(Arc::clone(api))).max_decoding_message_size(bytes_max);
        let mut routes = Routes::builder();
        routes.add_service(accounts).add_service(plans).add_service(health);
        if api.reflection {
            let builder = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            // Both can only fail on descriptors that do not decode; a test asks for them.
            if let (Ok(v1), Ok(v1alpha)) = (builder().build_v1(), builder().build_v1alpha()) {
                routes.add_service(v1).add_service(v1alpha);
            }
        }
        Self(Arc::new(Services {
            api: Arc::clone(api),
            checks: Keys(Arc::clone(api)),
            edges: ExtAuthz(Arc::clone(api)),
            authorization: AuthorizationServer::new(ExtAuthz(Arc::clone(api)))
                .max_decoding_message_size(ext_authz::MESSAGE_BYTES_MAX),
            keys: service().max_decoding_message_size(bytes_max),
            imports: service().max_decoding_message_size(api.import_message_bytes_max),
            rate_limits: RateLimitServiceServer::new(RateLimits(Arc::clone(api))).max_decoding_message_size(bytes_max),
            rest: routes.routes().prepare(),
        }))
    }

    fn dispatch(&self, request: Request) -> Answer {
        let path = request.uri().path();
        if path == CHECK_KEY && hot::is_plain(&request) {
            Box::pin(Arc::clone(&self.0).check(request))
        } else if path == EXT_AUTHZ && hot::is_plain(&request) {
            Box::pin(Arc::clone(&self.0).authorize(request))
        } else if path == EXT_AUTHZ {
            self.0.authorization.clone().call(request)
        } else if path == SHOULD_RATE_LIMIT {
            self.0.rate_limits.clone().call(request)
        } else if path == IMPORT_KEYS {
            self.0.imports.clone().call(request)
        } else if path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .is_some_and(|(name, _)| name == KEY_SERVICE)
        {
            self.0.keys.clone().call(request)
        } else {
            Box::pin(self.0.rest.clone().call(request))
        }
    }
}

impl Services {
    /// A check, without what tonic needs for more than one message.
    async fn check(self: Arc<Self>, request: Request) -> Result<Response, Infallible> {
        let (head, body) = request.into_parts();
        let bytes_max = self.api.message_bytes_max;
        let Some(body) = hot::read(body, bytes_max).await else {
            return Ok(Status::cancelled("the call was broken off").into_http());
        };
        let Some(message) = hot::message(&body, bytes_max) else {
            return self.keys.clone().call(http::Request::from_parts(head, Full::new(body))).await;
        };
        let metadata = MetadataMap::from_headers(head.headers);
        let request = tonic::Request::from_parts(metadata, head.extensions, message);
        Ok(hot::response(self.checks.answer_check(&request).await))
    }
}

impl Services {
    /// The same for Envoy.
    async fn authorize(self: Arc<Self>, request: Request) -> Result<Response, Infallible> {
        let (head, body) = request.into_parts();
        let Some(body) = hot::read(body, ext_authz::MESSAGE_BYTES_MAX).await else {
            return Ok(Status::cancelled("the call was broken off").into_http());
        };
        let Some(message) = hot::encoded(&body, ext_authz::MESSAGE_BYTES_MAX) else {
            return self.authorization.clone().call(http::Request::from_parts(head, Full::new(body))).await;
        };
        let metadata = MetadataMap::from_headers(head.headers);
        Ok(hot::response(self.edges.answer(&metadata, head.extensions.get::<PeerInfo>(), message).await))
    }
}

impl Service<Request> for Router {
    type Response = Response;
    type Error = Infallible;
    type Future = Counted;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Counted {
        let api = &self.0.api;
        let clock = api.engine.clock();
        let rpc = RpcLabel::from_path(request.uri().path());
        let start = clock.monotonic();
        let spanless = classify(request.uri().path()) == RequestClass::Hot && !tracing::enabled!(tracing::Level::DEBUG);
        let answer = if spanless {
            self.dispatch(request)
        } else {
            let id = request_id(request.headers(), clock.now());
            let peer = request.extensions().get::<PeerInfo>().map(|peer| peer.remote().to_string());
            let span = tracing::info_span!("call", request_id = %id, rpc = rpc.name(), peer);
            let answer = self.dispatch(request);
            Box::pin(logged(answer, Arc::clone(api), start).instrument(span))
        };
        Counted { answer, services: Arc::clone(&self.0), rpc, start }
    }
}

/// A call, with a line in the log at its end.
async fn logged(answer: Answer, api: Arc<Api>, start: Duration) -> Result<Response, Infallible> {
    let response = answer.await?;
    let took = api.engine.clock().monotonic().saturating_sub(start);
    tracing::debug!(code = ?code_of(&response), took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX), "answered");
    Ok(response)
}

/// A call that is counted when its answer begins.
pub struct Counted {
    answer: Answer,
    services: Arc<Services>,
    rpc: RpcLabel,
    start: Duration,
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counted").field("rpc", &self.rpc).finish_non_exhaustive()
    }
}

impl Future for Counted {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(Ok(mut response)) = self.answer.as_mut().poll(context) else { return Poll::Pending };
        let code = blame_sender(&mut response);
        let api = &self.services.api;
        let took = api.engine.clock().monotonic().saturating_sub(self.start);
        api.metrics.rpc(self.rpc, code, took);
        Poll::Ready(Ok(response))
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// tonic answers INTERNAL to a message that does not decode, which is the sender's fault: `INVALID_ARGUMENT`. Returns the
/// code that the answer then has.
fn blame_sender(response: &mut Response) -> Code {
    let code = code_of(response);
    let undecodable = |message: &HeaderValue| message.as_bytes().starts_with(b"failed%20to%20decode");
    if code == Code::Internal && response.headers().get("grpc-message").is_some_and(undecodable) {
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from_static("3"));
        return Code::InvalidArgument;
    }
    code
}

/// The code of an answer without a body is in its head; one with a body went well up to here.
fn code_of(response: &Response) -> Code {
    response.headers().get(GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

//! gRPC: who calls, what they want in the domain's types, and what comes of it in the wire's.

mod account_service;
mod asker;
mod convert;
mod ext_authz;
mod hot;
mod key_service;
mod page;
mod plan_service;
mod rate_limit;
mod router;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use tracing::Instrument as _;

use crate::domain::{Time, Verdict};
use crate::engine::{Caller, Engine, Error};
use crate::proto::envoy::service::auth::v3::authorization_server;
use crate::proto::envoy::service::ratelimit::v3::rate_limit_service_server;
use crate::proto::v1::{account_service_server, key_service_server, plan_service_server};
use crate::telemetry::metrics::Metrics;
use crate::transport::edge::Edge;
use crate::transport::server::PeerInfo;

pub use super::HttpStatuses;

pub use router::{Router, classify};

/// The names of the services, by which health is asked for.
pub const SERVICES: [&str; 5] = [
    key_service_server::SERVICE_NAME,
    account_service_server::SERVICE_NAME,
    plan_service_server::SERVICE_NAME,
    authorization_server::SERVICE_NAME,
    rate_limit_service_server::SERVICE_NAME,
];

/// What the services of all workers share.
#[derive(Debug)]
pub struct Api {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Where calls and checks are counted.
    pub metrics: Arc<Metrics>,
    /// The runtime of everything that waits for the store. Calls run there to their end, also when their client goes
    /// away, because a change that is in the store must reach the index.
    pub runtime: tokio::runtime::Handle,
    /// Whether the index is loaded. Until then every call but those of health and reflection is UNAVAILABLE.
    pub serving: Arc<AtomicBool>,
    /// Whether a check needs a caller.
    pub check_needs_caller: bool,
    /// Client certificates that may check without a key, by a name in them.
    pub edge_names: Vec<String>,
    /// Decides for Envoy.
    pub edge: Arc<Edge>,
    /// What an edge should send for a verdict.
    pub http_statuses: HttpStatuses,
    /// Bounds on messages.
    pub message_bytes_max: usize,
    /// The same for those of an import.
    pub import_message_bytes_max: usize,
    /// Whether the contract can be asked for.
    pub reflection: bool,
}

impl Api {
    /// Refuses to answer from an index that is not complete.
    fn require_serving(&self) -> Result<(), Status> {
        if self.serving.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Status::unavailable("the index is being loaded"))
        }
    }

    /// Who calls.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        self.caller_at(request, self.engine.clock().now())
    }

    /// The same, where the time is known: on some machines reading the clock costs as much as hashing a key.
    fn caller_at<T>(&self, request: &Request<T>, now: Time) -> Result<Caller, Status> {
        self.require_serving()?;
        let credential = bearer(request.metadata()).map_err(|error| status::status_from(&error))?;
        let peer = request.extensions().get::<PeerInfo>().map(|peer| peer.remote().ip());
        self.engine.authenticate(credential, peer, now).map_err(|error| status::status_from(&error))
    }

    /// Runs a call that reads or changes the store, to its end whatever becomes of its client. It may outlive the call, and
    /// so has a bound of its own.
    async fn run<T, F, Fut>(self: &Arc<Self>, caller: Caller, call: F) -> Result<T, Status>
    where
        F: FnOnce(Arc<Engine>, Caller) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let Some(place) = caller.place(STORE_CALLS_PER_ACCOUNT_MAX) else {
            return Err(Status::resource_exhausted(
                "the account has too many calls under way; try again after a moment",
            ));
        };
        let call = call(Arc::clone(&self.engine), caller);
        let task = async move {
            let result = call.await;
            drop(place);
            result
        };
        self.to_its_end(task).await
    }

    /// Runs a call in a task of its own, to its end whatever becomes of its client.
    async fn to_its_end<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Status> {
        match self.runtime.spawn(task.instrument(tracing::Span::current())).await {
            Ok(result) => result.map_err(|error| status::status_from(&error)),
            Err(error) if error.is_panic() => {
                tracing::error!(%error, "a call ended in a fault of this program");
                Err(Status::new(Code::Internal, "a fault of this program; see the server's log"))
            }
            Err(_) => Err(Status::new(Code::Unavailable, "the server is shutting down")),
        }
    }
}

/// Calls that wait for the store, or are in it, for one customer's account: none keeps the others from revoking a key.
const STORE_CALLS_PER_ACCOUNT_MAX: usize = 32;

/// The key in `authorization: Bearer <key>` (RFC 6750, section 2.1).
fn bearer(metadata: &MetadataMap) -> Result<&str, Error> {
    let refused = |verdict, message: &str| Error::Unauthenticated { verdict, message: message.to_owned() };
    let mut values = metadata.as_ref().get_all(http::header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(refused(Verdict::Missing, "a key is required: send `authorization: Bearer <key>` in the metadata"));
    };
    if values.next().is_some() {
        return Err(refused(Verdict::Malformed, "there is more than one `authorization` in the metadata"));
    }
    let wrong = || refused(Verdict::Malformed, "`authorization` is not of the form `Bearer <key>`");
    let (scheme, credential) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(wrong)?;
    if !scheme.eq_ignore_ascii_case("bearer") || credential.contains(' ') {
        return Err(wrong());
    }
    Ok(credential)
}

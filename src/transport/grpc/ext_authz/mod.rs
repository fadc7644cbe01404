//! `envoy.service.auth.v3.Authorization`: Envoy asks for each request whether it may pass.
//!
//! What Envoy makes of an answer is not what one would think in several places; `answer.rs` has them, and
//! `tests/edges` holds each against the real Envoy.

mod answer;
mod view;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::proto::envoy::service::auth::v3::authorization_server::Authorization;
use crate::proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use crate::transport::edge::{Fault, Inquiry};
use crate::transport::server::PeerInfo;

use super::Api;
use view::View;

/// Largest message: Envoy's own bound on a client's headers is 60 KiB by default, and several fields repeat them. It
/// leaves room for no bodies, which Envoy sends only where it is told to.
pub(super) const MESSAGE_BYTES_MAX: usize = 512 << 10;

/// Metadata in which Envoy tells the client's address, where its configuration says so.
const CLIENT_IP: &str = "x-client-ip";

/// The service. A clone is a reference count.
#[derive(Clone, Debug)]
pub(super) struct ExtAuthz(pub(super) Arc<Api>);

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let message = request.get_ref().encode_to_vec();
        let peer = request.extensions().get::<PeerInfo>();
        self.answer(request.metadata(), peer, &message).await.map(Response::new)
    }
}

impl ExtAuthz {
    /// Answers a message, for the generated service and for the short way round it. A fault of the caller, which is Envoy, is
    /// a status; Envoy takes it for an error, as it does an `error_response`.
    pub(super) async fn answer(
        &self,
        metadata: &MetadataMap,
        peer: Option<&PeerInfo>,
        message: &[u8],
    ) -> Result<CheckResponse, Status> {
        let settings = &self.0.edge.settings;
        let view = || wire::check_request(message).map_err(|_| Status::invalid_argument("the message does not decode"));
        if self.0.require_serving().is_err() {
            return self.fault(&Fault::Unavailable("the index is being loaded".to_owned()), &view()?);
        }
        let now = self.0.engine.clock().now();
        let asker = self.0.asker(metadata, peer, now).inspect_err(|status| {
            // Envoy keeps what it is told to itself, so the operator would find it nowhere.
            let from = peer.map(|peer| format!(" (from {})", peer.remote().ip())).unwrap_or_default();
            self.0.edge.faults.tell(&Fault::Caller(format!("{}{from}", status.message())));
        })?;
        let view = view()?;
        let policy = match view.policy() {
            Ok(policy) => policy,
            Err(fault) => return self.fault(&fault, &view),
        };
        let format = policy.message_format.unwrap_or(settings.message_format);
        // Somebody who speaks for another is no client, also where what it says of the other is not to be believed.
        let client_ip = match client_ip(metadata) {
            ClientIp::Told(ip) => ip.filter(|_| asker.is_known()),
            ClientIp::Untold => view.source(),
        };
        let inquiry = Inquiry {
            credential: view.credential(settings),
            policy,
            client_ip,
            referrer: view.referrer(),
            endpoint: view.endpoint(),
            attempt: view.attempt(message),
            within: asker.within(),
        };
        let decision = match self.0.edge.decide(&inquiry, now).await {
            Ok(decision) => decision,
            Err(fault) => return self.fault(&fault, &view),
        };
        let about = answer::About { settings, request_id: view.request_id(), format, grpc: view.is_grpc(), now };
        Ok(about.answer(decision))
    }

    /// As an `error_response`; but where others share the store, one of them may be able to decide: then it is a status, of which
    /// alone Envoy's retries take notice.
    fn fault(&self, fault: &Fault, view: &View<'_>) -> Result<CheckResponse, Status> {
        let edge = &self.0.edge;
        edge.faults.tell(fault);
        if let Fault::Unavailable(message) = fault
            && self.0.engine.is_shared()
        {
            return Err(Status::unavailable(message));
        }
        let (settings, now) = (&edge.settings, self.0.engine.clock().now());
        let format = settings.message_format;
        let about = answer::About { settings, request_id: view.request_id(), format, grpc: view.is_grpc(), now };
        Ok(about.fault(fault))
    }
}

/// What Envoy says of the client's address.
enum ClientIp {
    /// An address, or something that is none: then nobody knows, and a key that is bound to addresses is refused.
    Told(Option<IpAddr>),
    Untold,
}

fn client_ip(metadata: &MetadataMap) -> ClientIp {
    let mut values = metadata.get_all(CLIENT_IP).iter();
    let Some(first) = values.next() else { return ClientIp::Untold };
    let one = values.next().is_none().then_some(first);
    ClientIp::Told(one.and_then(|value| value.to_str().ok()?.parse().ok()))
}

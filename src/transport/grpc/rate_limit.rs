//! `envoy.service.ratelimit.v3.RateLimitService`: what Envoy's rate limit filter calls, with keys and accounts by their ids.
//!
//! The filter lets a request pass when the call fails, unless it is configured otherwise. So a key that is unknown or not
//! in use is answered `OVER_LIMIT`, and errors are kept for what is wrong with the filter's configuration.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::Verdict;
use crate::engine::{Payer, Share};
use crate::proto::envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitService;
use crate::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use crate::transport::server::PeerInfo;

use super::Api;
use super::convert;
use super::status::status_from;

/// The service. A clone is a reference count.
#[derive(Clone, Debug)]
pub(super) struct RateLimits(pub(super) Arc<Api>);

impl RateLimits {
    /// Sees to it that the keys can be found. Waits once in the life of the process.
    async fn find_keys(&self, shares: &[Share]) -> Result<(), Status> {
        let engine = &self.0.engine;
        let names_key = |share: &Share| matches!(share.payer, Payer::Key { .. });
        if engine.finds_keys_by_id() || !shares.iter().any(names_key) {
            return Ok(());
        }
        let engine = Arc::clone(engine);
        let found = self.0.runtime.spawn(async move { engine.find_keys_by_id().await }).await;
        found.map_err(|_| Status::unavailable("the server is shutting down"))
    }
}

#[tonic::async_trait]
impl RateLimitService for RateLimits {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let api = &*self.0;
        let peer = request.extensions().get::<PeerInfo>();
        let asker = api.asker(request.metadata(), peer, api.engine.clock().now())?;
        let shares = convert::shares_from(request.get_ref()).map_err(|error| status_from(&error))?;
        self.find_keys(&shares).await?;
        let now = api.engine.clock().now();
        let charges = api.engine.charge_together(&shares, asker.within()).await.map_err(|error| status_from(&error))?;
        let refused = charges.iter().map(|charge| charge.verdict).find(|verdict| *verdict != Verdict::Allowed);
        api.metrics.check(refused.unwrap_or(Verdict::Allowed));
        Ok(Response::new(convert::charges_to(&charges, now)))
    }
}

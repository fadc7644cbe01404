//! What every edge has in common: proxies that ask, for each request of their clients, whether it may pass.
//!
//! An adapter (`grpc::ext_authz`, `http_check`) reads its protocol into an [`Inquiry`], and writes the [`Decision`] back.
//! What is between is the same for all: the route's policy ([`policy`]), the one credential of a request
//! ([`credential`]), and what is told to the client and to the upstream ([`reply`], [`rate_limit`]).

mod credential;
mod fault;
mod policy;
mod rate_limit;
mod reply;

use std::net::IpAddr;
use std::sync::Arc;

use crate::decision::Request;
use crate::decision::restriction::Endpoint;
use crate::domain::{AccountId, Time, Verdict};
use crate::engine::{Answer, Attempt, Check, Engine};
use crate::telemetry::metrics::Metrics;
use crate::transport::HttpStatuses;

pub(in crate::transport) use credential::{Credential, Place, Search};
pub(in crate::transport) use fault::Fault;
pub(in crate::transport) use policy::{Mode, NAMES as POLICY_NAMES, Policy, PolicyBuilder};
pub(in crate::transport) use reply::{Allowed, Decision, Denied, Identity, header_value};

pub use fault::FaultLog;
pub use reply::IdentityNames;

/// What the configuration says to the edges.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Headers that may carry the key, beside `Authorization`; lower case.
    pub credential_headers: Vec<String>,
    /// Query parameter that may.
    pub credential_query: Option<String>,
    /// Whether the key is taken out before the upstream.
    pub strip_credential: bool,
    /// Names of the headers that tell the upstream whose request it is.
    pub identity: IdentityNames,
    /// The realm of `WWW-Authenticate`, without characters that would need escaping.
    pub realm: String,
    /// How denials are written where the route says nothing else.
    pub message_format: MessageFormat,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            credential_headers: vec!["x-api-key".to_owned()],
            credential_query: None,
            strip_credential: true,
            identity: IdentityNames::with_prefix("x-auth-"),
            realm: "api".to_owned(),
            message_format: MessageFormat::Json,
        }
    }
}

/// How denials are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageFormat {
    /// `{"error", "code", "message", "request_id"}`.
    Json,
    /// `application/problem+json` (RFC 9457), with `code` and `request_id` as extensions.
    Problem,
}

/// Decides for edges. Shared by all that ask.
#[derive(Debug)]
pub struct Edge {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    http_statuses: HttpStatuses,
    /// What the configuration says.
    pub settings: Settings,
    /// Where faults of a route's policy are told, to the operator.
    pub faults: FaultLog,
}

/// A request of a client, as an edge tells it.
#[derive(Debug)]
pub(in crate::transport) struct Inquiry<'a> {
    pub(in crate::transport) credential: Credential<'a>,
    pub(in crate::transport) policy: Policy<'a>,
    /// Absent where it is unknown, or where whoever tells it is not to be believed.
    pub(in crate::transport) client_ip: Option<IpAddr>,
    pub(in crate::transport) referrer: Option<&'a str>,
    pub(in crate::transport) endpoint: Endpoint<'a>,
    /// What tells an inquiry that is sent again from another one.
    pub(in crate::transport) attempt: Option<Attempt<'a>>,
    /// If set, keys of other accounts are unknown.
    pub(in crate::transport) within: Option<&'a AccountId>,
}

impl Edge {
    /// On this engine.
    #[must_use]
    pub fn new(engine: Arc<Engine>, metrics: Arc<Metrics>, http_statuses: HttpStatuses, settings: Settings) -> Self {
        let faults = FaultLog::new(engine.clock().clone());
        Self { engine, metrics, http_statuses, settings, faults }
    }

    /// What the edge shall do with the request.
    pub(in crate::transport) async fn decide<'a>(
        &self,
        inquiry: &Inquiry<'a>,
        now: Time,
    ) -> Result<Decision<'a>, Fault> {
        let (key, place) = match inquiry.credential {
            Credential::One { key, place } => (key, place),
            Credential::Absent if inquiry.policy.mode == Mode::Off => {
                return Ok(Decision::Allowed(Allowed::anonymous()));
            }
            Credential::Absent => return Ok(self.refuse(Verdict::Missing)),
            Credential::Unclear => return Ok(self.refuse(Verdict::Malformed)),
        };
        let check = check_of(key, inquiry);
        let answer = self.engine.check(&check, now).await.map_err(|error| Fault::Unavailable(error.to_string()))?;
        self.metrics.check(answer.verdict);
        if answer.verdict == Verdict::Allowed {
            let charged = if inquiry.policy.mode == Mode::Consume { inquiry.policy.cost } else { 0 };
            Ok(Decision::Allowed(Allowed { place: Some(place), charged, answer: Some(answer) }))
        } else {
            Ok(self.deny(answer))
        }
    }

    /// Denies without a look at any key.
    fn refuse<'a>(&self, verdict: Verdict) -> Decision<'a> {
        self.metrics.check(verdict);
        self.deny(self.engine.unidentified(verdict))
    }

    fn deny<'a>(&self, answer: Answer) -> Decision<'a> {
        let status = self.http_statuses.of(answer.verdict);
        Decision::Denied(Box::new(Denied { status, answer }))
    }
}

/// The engine's question. A route that only identifies asks for nothing but a key in use, from where it may be used.
fn check_of<'a>(credential: &'a str, inquiry: &'a Inquiry<'_>) -> Check<'a> {
    let Inquiry { policy, client_ip, referrer, endpoint, attempt, within, .. } = inquiry;
    let whence = Request { client_ip: *client_ip, referrer: *referrer, endpoint: *endpoint, ..Request::default() };
    let (request, cost) = match policy.mode {
        Mode::Off => (whence, 0),
        Mode::Consume | Mode::Peek => {
            let (all_of, any_of) = (policy.scopes.clone(), policy.any_scopes.clone());
            (Request { all_of, any_of, environment: policy.environment, ..whence }, policy.cost)
        }
    };
    Check { credential, request, cost, consume: policy.mode == Mode::Consume, within: *within, attempt: *attempt }
}

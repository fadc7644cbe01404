//! `/v1/check`: the check for proxies that ask over HTTP: nginx's `auth_request`, Traefik's `ForwardAuth`, Caddy's
//! `forward_auth`.
//!
//! Such a proxy hands its client's headers on, and some hand the client's query on too. So whatever steers the check is
//! read only from where a client can't write: from the query of the URL that the operator gave the proxy, unless the
//! client's own query holds the same; from those headers that this URL names, because the operator has the proxy set
//! them; and from `X-Forwarded-*` of a proxy that has said who it is.

mod forwarded;
mod policy;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use axum::routing::any;
use ipnet::IpNet;

use super::edge::{Decision, Edge, Fault, Identity, Inquiry, MessageFormat, Search, header_value};
use super::request_id;
use crate::decision::restriction::ip_allowed;
use crate::domain::{AccountId, Time};
use crate::engine::{Caller, Engine};
use forwarded::Forwarded;

/// Header in which a proxy sends its own key, because `Authorization` is its client's.
const TOKEN: &str = "x-tollgate-token";
/// Header that repeats the body of a refusal, for proxies that can't hand a body on.
const BODY: &str = "x-tollgate-body";

/// What the endpoint needs.
#[derive(Debug)]
pub struct HttpCheck {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Decides.
    pub edge: Arc<Edge>,
    /// Whether the index is loaded.
    pub serving: Arc<AtomicBool>,
    /// Whether a check needs a caller.
    pub needs_caller: bool,
    /// Networks of proxies that are believed without a key.
    pub trusted_proxies: Vec<IpNet>,
}

/// Who asks.
struct Asker {
    /// Whether what it forwards is to be believed.
    believed: bool,
    /// The one account whose keys it may ask for.
    within: Option<AccountId>,
}

/// The endpoint, to be merged into the HTTP port's.
pub fn routes(check: HttpCheck) -> axum::Router {
    axum::Router::new().route("/v1/check", any(answer)).with_state(Arc::new(check))
}

type Answer = Response<String>;

async fn answer(
    State(check): State<Arc<HttpCheck>>,
    Extension(peer): Extension<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let now = check.engine.clock().now();
    let request_id = request_id::request_id(&headers, now);
    let answered = check.answer(peer.ip().to_canonical(), &uri, &headers, &request_id, now).await;
    answered.unwrap_or_else(|fault| {
        check.edge.faults.tell(&fault);
        let (content_type, body) = fault.body(check.edge.settings.message_format, &request_id);
        let retry_after = fault.retry_after_seconds().map(|seconds| ("retry-after", seconds.to_string()));
        refusal(fault.http_status(), retry_after, content_type, body)
    })
}

impl HttpCheck {
    async fn answer(
        &self,
        peer: IpAddr,
        uri: &Uri,
        headers: &HeaderMap,
        request_id: &str,
        now: Time,
    ) -> Result<Answer, Fault> {
        if !self.serving.load(Ordering::Acquire) {
            return Err(Fault::Unavailable("the index is being loaded".to_owned()));
        }
        let settings = &self.edge.settings;
        let asker = self.asker(peer, headers, now)?;
        let forwarded = if asker.believed {
            Forwarded::read(headers, &self.trusted_proxies)?
        } else {
            Forwarded::by(peer, headers)
        };
        let told = policy::Told::read(uri.query().unwrap_or_default(), headers, &forwarded)?;
        let policy = told.policy()?;
        let format = policy.message_format.unwrap_or(settings.message_format);
        let mut search = Search::new(&settings.credential_headers, settings.credential_query.as_deref());
        for (name, value) in headers {
            search.header(name.as_str().as_bytes(), value.as_bytes());
        }
        if let Some(uri) = forwarded.endpoint.path {
            search.path(uri);
        }
        let inquiry = Inquiry {
            credential: search.finish(),
            policy,
            client_ip: forwarded.client_ip,
            // The client's own: sent twice it is no fault of the proxy's, and meets no restriction.
            referrer: forwarded::single(headers, "referer").unwrap_or_default(),
            endpoint: forwarded.endpoint,
            // No proxy that asks over HTTP names its calls in a way that its clients could not.
            attempt: None,
            within: asker.within.as_ref(),
        };
        let decision = self.edge.decide(&inquiry, now).await?;
        Ok(self.tell(&decision, format, request_id, now))
    }

    /// A key that is sent comes first: it may be good for fewer accounts than the address is.
    fn asker(&self, peer: IpAddr, headers: &HeaderMap, now: Time) -> Result<Asker, Fault> {
        let refused = |why: String| Fault::Caller(format!("{why} (from {peer})"));
        if let Some(token) = forwarded::single(headers, TOKEN)? {
            let caller = self.engine.authenticate(token, Some(peer), now);
            let checks = caller.and_then(|caller| caller.require("tollgate:check").map(|()| caller));
            let caller = checks.map_err(|error| refused(format!("`{TOKEN}`: {error}")))?;
            return Ok(Asker { believed: true, within: caller_account(&caller) });
        }
        let believed = !self.trusted_proxies.is_empty() && ip_allowed(&self.trusted_proxies, Some(peer));
        // Where none is needed, that is meant for a sidecar; this port is open to all who watch, as a rule.
        if !believed && (self.needs_caller || !peer.is_loopback()) {
            return Err(refused(format!("it sends no `{TOKEN}`, and is none of `edge.trusted_proxies`")));
        }
        Ok(Asker { believed, within: None })
    }

    fn tell(&self, decision: &Decision<'_>, format: MessageFormat, request_id: &str, now: Time) -> Answer {
        let settings = &self.edge.settings;
        match decision {
            Decision::Allowed(allowed) => {
                let mut answer = Response::new(String::new());
                let identity = Identity::of(allowed.answer.as_ref()).into_headers(&settings.identity);
                put(&mut answer, identity);
                put(&mut answer, allowed.client_headers(now));
                answer
            }
            Decision::Denied(denied) => {
                let (content_type, body) = denied.body(format, request_id);
                refusal(denied.status, denied.client_headers(settings, now), content_type, body)
            }
        }
    }
}

fn caller_account(caller: &Caller) -> Option<AccountId> {
    caller.own_account().cloned()
}

/// An answer that lets nothing pass.
fn refusal<N: AsRef<str>>(
    status: u16,
    headers: impl IntoIterator<Item = (N, String)>,
    content_type: &str,
    body: String,
) -> Answer {
    let mut answer = Response::new(body.clone());
    // A status that is none would be 200.
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
    put(&mut answer, headers);
    put(
        &mut answer,
        [("content-type", content_type.to_owned()), ("cache-control", "no-store".to_owned()), (BODY, body)],
    );
    answer
}

fn put<N: AsRef<str>>(answer: &mut Answer, headers: impl IntoIterator<Item = (N, String)>) {
    for (name, value) in headers {
        let pair = (HeaderName::from_bytes(name.as_ref().as_bytes()), HeaderValue::try_from(header_value(value)));
        // Names are those of the code and of the configuration, which has tested them; values are made to fit.
        if let (Ok(name), Ok(value)) = pair {
            answer.headers_mut().insert(name, value);
        }
    }
}

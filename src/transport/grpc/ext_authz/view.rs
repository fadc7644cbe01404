//! What Envoy tells of a request, as it stands in the message.

use std::net::IpAddr;

use crate::decision::restriction::Endpoint;
use crate::engine::Attempt;
use crate::transport::edge::{Credential, Fault, Policy, PolicyBuilder, Search, Settings};
use crate::transport::request_id;

/// The parts of a `CheckRequest` that matter. All bytes are the client's, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View<'a> {
    /// Envoy's: the number of the stream, random, and the same when Envoy asks again.
    pub(super) id: &'a [u8],
    pub(super) method: &'a [u8],
    /// With the query.
    pub(super) path: &'a [u8],
    pub(super) host: &'a [u8],
    /// Of `headers` and of `header_map`, whichever Envoy sends.
    pub(super) headers: Vec<(&'a [u8], &'a [u8])>,
    /// Envoy's: the address of its direct peer.
    pub(super) source_address: &'a [u8],
    /// The operator's: the policy of the route.
    pub(super) extensions: Vec<(&'a [u8], &'a [u8])>,
}

/// Text that can be handed on; bytes that are none count as absent, and meet no restriction.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

impl<'a> View<'a> {
    /// The value of a header that is sent once.
    fn header(&self, name: &[u8]) -> Option<&'a [u8]> {
        let mut values = self.headers.iter().filter(|(found, _)| *found == name);
        let first = values.next()?;
        values.next().is_none().then_some(first.1)
    }

    pub(super) fn policy(&self) -> Result<Policy<'a>, Fault> {
        let mut policy = PolicyBuilder::default();
        for (name, value) in &self.extensions {
            let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
                return Err(Fault::Policy("a setting is not UTF-8".to_owned()));
            };
            policy.set(name, value)?;
        }
        Ok(policy.build())
    }

    pub(super) fn credential(&self, settings: &'a Settings) -> Credential<'a> {
        let mut search = Search::new(&settings.credential_headers, settings.credential_query.as_deref());
        for (name, value) in &self.headers {
            search.header(name, value);
        }
        if let Some(path) = text(self.path) {
            search.path(path);
        }
        search.finish()
    }

    pub(super) fn endpoint(&self) -> Endpoint<'a> {
        Endpoint { method: text(self.method), host: text(self.host), path: text(self.path) }
    }

    pub(super) fn referrer(&self) -> Option<&'a str> {
        self.header(b"referer").and_then(text)
    }

    /// The direct peer of Envoy.
    pub(super) fn source(&self) -> Option<IpAddr> {
        text(self.source_address)?.parse().ok()
    }

    /// The id that Envoy gave the request, or let its client give it.
    pub(super) fn request_id(&self) -> Option<&'a str> {
        self.header(request_id::HEADER.as_bytes()).and_then(text).filter(|id| request_id::is_plain(id))
    }

    /// What names this call, which is the message that this is a view of. Clients can make two requests of theirs equal in
    /// all but the number of the stream; so what has no number may not count as sent again, or a client would pay once for
    /// many.
    pub(super) fn attempt(&self, message: &'a [u8]) -> Option<Attempt<'a>> {
        (!self.id.is_empty()).then(|| Attempt::of(message))
    }

    /// Whether the client speaks gRPC, so that it looks for its error in trailers.
    pub(super) fn is_grpc(&self) -> bool {
        let Some(content_type) = self.header(b"content-type") else { return false };
        let Some(rest) = content_type.strip_prefix(b"application/grpc") else { return false };
        matches!(rest, [] | [b'+' | b';', ..])
    }
}

//! Who asks for a check: a service, or an edge that asks for its clients.

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::domain::{AccountId, Time};
use crate::engine::{Caller, Error};
use crate::transport::server::PeerInfo;

use super::status::status_from;
use super::{Api, bearer};

/// Who asks.
#[derive(Debug)]
pub(super) enum Asker {
    /// The holder of a key with `tollgate:check`.
    Key(Caller),
    /// The holder of a client certificate with a name that the configuration has.
    Certificate,
    /// Anybody, where a check needs no caller.
    Anybody,
}

impl Asker {
    /// The one account whose keys it may ask for; absent where it may for all.
    pub(super) fn within(&self) -> Option<&AccountId> {
        match self {
            Self::Key(caller) => caller.own_account(),
            Self::Certificate | Self::Anybody => None,
        }
    }

    /// Whether it has said who it is, so that what it tells of its clients is to be believed.
    pub(super) const fn is_known(&self) -> bool {
        match self {
            Self::Key(_) | Self::Certificate => true,
            Self::Anybody => false,
        }
    }
}

impl Api {
    /// Who asks for a check; refuses those who may not. Where anybody may, a key that is refused makes its sender anybody.
    pub(super) fn asker(&self, metadata: &MetadataMap, peer: Option<&PeerInfo>, now: Time) -> Result<Asker, Status> {
        self.require_serving()?;
        // As a constant it is not looked for by its letters each time.
        if !metadata.as_ref().contains_key(http::header::AUTHORIZATION) {
            let certificate = peer.and_then(PeerInfo::client_certificate);
            if certificate.is_some_and(|it| it.names().iter().any(|name| self.edge_names.contains(name))) {
                return Ok(Asker::Certificate);
            }
            if !self.check_needs_caller {
                return Ok(Asker::Anybody);
            }
        }
        match self.checking_key(metadata, peer, now) {
            Ok(caller) => Ok(Asker::Key(caller)),
            Err(_) if !self.check_needs_caller => Ok(Asker::Anybody),
            Err(error) => Err(status_from(&error)),
        }
    }

    fn checking_key(&self, metadata: &MetadataMap, peer: Option<&PeerInfo>, now: Time) -> Result<Caller, Error> {
        let peer = peer.map(|peer| peer.remote().ip());
        let caller = self.engine.authenticate(bearer(metadata)?, peer, now)?;
        caller.require("tollgate:check")?;
        Ok(caller)
    }
}

//! Who is at the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use webpki::EndEntityCert;

/// The peer of a connection. Every request carries one among its extensions; a clone is a reference count.
#[derive(Clone, Debug)]
pub struct PeerInfo(Arc<Peer>);

#[derive(Debug)]
struct Peer {
    remote: SocketAddr,
    encrypted: bool,
    certificate: Option<ClientCertificate>,
}

impl PeerInfo {
    pub(super) fn plain(remote: SocketAddr) -> Self {
        Self::new(remote, false, None)
    }

    pub(super) fn tls(remote: SocketAddr, certificate: Option<&CertificateDer<'_>>) -> Self {
        Self::new(remote, true, certificate.map(ClientCertificate::new))
    }

    fn new(remote: SocketAddr, encrypted: bool, certificate: Option<ClientCertificate>) -> Self {
        // On a socket for both families, IPv4 peers have addresses such as `::ffff:192.0.2.1`.
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        Self(Arc::new(Peer { remote, encrypted, certificate }))
    }

    /// Where it connects from: a proxy's address, where there is one between.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.0.remote
    }

    /// Whether the connection is under TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.0.encrypted
    }

    /// The certificate that it showed, verified against the configured issuers; absent without mutual TLS.
    #[must_use]
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.0.certificate.as_ref()
    }
}

/// A verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    sha256: [u8; 32],
    names: Vec<String>,
}

impl ClientCertificate {
    fn new(der: &CertificateDer<'_>) -> Self {
        let mut names = Vec::new();
        // It was parsed before, to be verified.
        if let Ok(certificate) = EndEntityCert::try_from(der) {
            names.extend(certificate.valid_dns_names().map(ToOwned::to_owned));
            names.extend(certificate.valid_uri_names().map(ToOwned::to_owned));
        }
        Self { sha256: Sha256::digest(der.as_ref()).into(), names }
    }

    /// Its DNS and URI names (RFC 5280, section 4.2.1.6). The subject's common name is none (RFC 9525, section 1.2).
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// SHA-256 of its DER form: what `openssl x509 -fingerprint -sha256` prints.
    #[must_use]
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
}

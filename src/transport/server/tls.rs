//! TLS: reading the files, and reading them again when they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use super::TlsFiles;

/// Why TLS files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("cannot read the {what} `{}`: {source}", path.display())]
    Read {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("the {what} `{}` holds none that can be read: PEM is expected, with a line `-----BEGIN {label}-----`", path.display())]
    Pem {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The label that is looked for.
        label: &'static str,
    },
    /// The certificate and the key are not of one pair, or not of a kind that can be used.
    #[error("the certificate `{}` and the private key `{}` cannot be used together: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The issuers of client certificates can't be used.
    #[error("the client CA file `{}` cannot be used: {reason}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The server's side of TLS, as of the last files that could be used.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
    /// What was read last, whether or not it could be used, so that a broken set is reported once.
    seen: Mutex<Contents>,
}

impl Tls {
    pub(super) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let seen = Contents::read(&files)?;
        let config = ArcSwap::from_pointee(seen.configure(&files)?);
        Ok(Self { files, config, seen: Mutex::new(seen) })
    }

    /// For one connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Uses the files as they are now, for connections to come. On error all stays as it was.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Contents::read(&self.files)?;
        self.config.store(Arc::new(seen.configure(&self.files)?));
        Ok(())
    }

    /// The same, if they hold something new. Modification times would not do: what mounts secrets swaps links.
    pub(super) fn reload_if_changed(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // One that can't be read now is being replaced, as a rule.
        let Ok(now) = Contents::read(&self.files) else { return };
        if now == *seen {
            return;
        }
        *seen = now;
        match seen.configure(&self.files) {
            Ok(config) => {
                self.config.store(Arc::new(config));
                tracing::info!(cert = %self.files.cert.display(), "took new TLS files into use");
            }
            Err(error) => tracing::warn!(%error, "keeping the old TLS files: the new ones cannot be used"),
        }
    }
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // There is a private key in it.
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

const CERT: &str = "certificate file";
const KEY: &str = "private key file";
const CLIENT_CA: &str = "client CA file";

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read =
            |what, path: &Path| fs::read(path).map_err(|source| TlsError::Read { what, path: path.to_owned(), source });
        Ok(Self {
            cert: read(CERT, &files.cert)?,
            key: read(KEY, &files.key)?,
            client_ca: files.client_ca.as_deref().map(|path| read(CLIENT_CA, path)).transpose()?,
        })
    }

    fn configure(&self, files: &TlsFiles) -> Result<ServerConfig, TlsError> {
        let chain = certificates(CERT, &files.cert, &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| TlsError::Pem {
            what: KEY,
            path: files.key.clone(),
            label: "PRIVATE KEY",
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = |source| TlsError::Pair { cert: files.cert.clone(), key: files.key.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                let broken = |reason: String| TlsError::ClientCa { path: path.clone(), reason };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(CLIENT_CA, path, pem)? {
                    roots.add(certificate).map_err(|error| broken(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| broken(error.to_string()))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(what: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap_or_default();
    if found.is_empty() {
        return Err(TlsError::Pem { what, path: path.to_owned(), label: "CERTIFICATE" });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_taken_when_they_change_and_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem"), client_ca: None };
        let renew = || {
            let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            fs::write(&files.cert, pair.cert.pem()).unwrap();
            fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();
        };
        renew();
        let tls = Tls::load(files.clone()).unwrap();
        let first = tls.config.load_full();
        let in_use = |config: &Arc<ServerConfig>| Arc::ptr_eq(config, &tls.config.load_full());
        tls.reload_if_changed();
        assert!(in_use(&first), "nothing changed");

        fs::remove_file(&files.key).unwrap();
        tls.reload_if_changed();
        fs::write(&files.key, "half a key").unwrap();
        tls.reload_if_changed();
        tls.reload_if_changed();
        assert!(in_use(&first), "what is broken is not used");

        renew();
        tls.reload_if_changed();
        assert!(!in_use(&first), "the new files are used");
    }
}

//! TLS and mutual TLS, with files that are right, wrong, and replaced.

use std::fs;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tollgate::transport::server::{ServerOptions, TlsFiles};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::health_client::HealthClient;

use crate::support::{TestServer, ask, call, closed, eventually, options, start, try_start};

struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Issued {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self) -> Issued {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        Issued { cert: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new(server: &Issued) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.write(server);
        files
    }

    fn write(&self, server: &Issued) {
        fs::write(self.dir.path().join("cert.pem"), &server.cert).unwrap();
        fs::write(self.dir.path().join("key.pem"), &server.key).unwrap();
    }

    fn tls(&self, client_ca: Option<&Authority>) -> TlsFiles {
        let path = self.dir.path();
        if let Some(authority) = client_ca {
            fs::write(path.join("ca.pem"), authority.0.pem()).unwrap();
        }
        let client_ca = client_ca.map(|_| path.join("ca.pem"));
        TlsFiles { cert: path.join("cert.pem"), key: path.join("key.pem"), client_ca }
    }
}

fn serve(tls: TlsFiles) -> TestServer {
    start(ServerOptions { tls: Some(tls), ..options() })
}

/// A client that trusts one authority. It connects at its first call.
fn client(server: &TestServer, trusted: &Authority, identity: Option<&Issued>) -> HealthClient<Channel> {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted.0.pem())).domain_name("localhost");
    if let Some(issued) = identity {
        tls = tls.identity(Identity::from_pem(&issued.cert, &issued.key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", server.handle.local_addr())).unwrap();
    HealthClient::new(endpoint.tls_config(tls).unwrap().connect_lazy())
}

#[tokio::test]
async fn those_who_trust_the_issuer_can_call() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let files = Files::new(&authority.issue());
    let server = serve(files.tls(None));
    let peer = ask(&client(&server, &authority, None), "peer").await;
    assert!(peer.starts_with("127.0.0.1:") && peer.ends_with(" true None"), "{peer}");
    call(&client(&server, &stranger, None), "").await.unwrap_err();
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_right_issuer() {
    let (authority, issuer, stranger) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::new(&authority.issue());
    let server = serve(files.tls(Some(&issuer)));
    let peer = ask(&client(&server, &authority, Some(&issuer.issue())), "peer").await;
    assert!(peer.contains(" true Some(["), "{peer}");
    call(&client(&server, &authority, None), "").await.unwrap_err();
    call(&client(&server, &authority, Some(&stranger.issue())), "").await.unwrap_err();
    let refused = r#"tollgate_connections_refused_total{reason="tls_handshake"}"#;
    eventually("both are counted", || server.metric(refused) >= 2.0).await;
}

#[tokio::test]
async fn a_stalled_handshake_is_closed() {
    let files = Files::new(&Authority::new().issue());
    let tls_handshake_timeout = Duration::from_millis(200);
    let server = start(ServerOptions { tls: Some(files.tls(None)), tls_handshake_timeout, ..options() });
    let silent = server.raw().await;
    let mut half = server.raw().await;
    half.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    closed(silent).await;
    closed(half).await;
}

#[tokio::test]
async fn new_files_are_taken_into_use() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Files::new(&old.issue());
    let server = serve(files.tls(None));
    let open = client(&server, &old, None);
    call(&open, "").await.unwrap();

    files.write(&new.issue());
    server.handle.reload().unwrap();
    call(&client(&server, &new, None), "").await.unwrap();
    call(&client(&server, &old, None), "").await.unwrap_err();
    call(&open, "").await.expect("an open connection goes on");
}

#[tokio::test]
async fn broken_files_leave_the_old_in_use() {
    let authority = Authority::new();
    let files = Files::new(&authority.issue());
    let server = serve(files.tls(None));
    // A new certificate beside the old key: half of a replacement.
    fs::write(files.dir.path().join("cert.pem"), authority.issue().cert).unwrap();
    let error = server.handle.reload().unwrap_err().to_string();
    assert!(error.contains("cannot be used together"), "{error}");
    call(&client(&server, &authority, None), "").await.unwrap();
    fs::remove_file(files.dir.path().join("cert.pem")).unwrap();
    server.handle.reload().unwrap_err();
    call(&client(&server, &authority, None), "").await.unwrap();
}

#[test]
fn a_server_does_not_start_on_files_that_cannot_be_used() {
    let authority = Authority::new();
    let issued = authority.issue();
    let spoil = |file: &str, content: &str| {
        let files = Files::new(&issued);
        let tls = files.tls(Some(&authority));
        fs::write(files.dir.path().join(file), content).unwrap();
        try_start(ServerOptions { tls: Some(tls), ..options() }).unwrap_err().to_string()
    };
    let other = authority.issue();
    for (file, content, said) in [
        ("cert.pem", "", "-----BEGIN CERTIFICATE-----"),
        ("cert.pem", &*issued.key, "-----BEGIN CERTIFICATE-----"),
        ("key.pem", "nonsense", "-----BEGIN PRIVATE KEY-----"),
        ("key.pem", &*other.key, "cannot be used together"),
        ("ca.pem", "", "client CA file"),
    ] {
        let error = spoil(file, content);
        assert!(error.contains(said) && error.contains(file), "{error}");
    }
    let missing = TlsFiles { cert: "/nonexistent/cert.pem".into(), ..Files::new(&issued).tls(None) };
    let error = try_start(ServerOptions { tls: Some(missing), ..options() }).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the certificate file `/nonexistent/cert.pem`: "), "{error}");
}

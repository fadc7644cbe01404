//! Envoy says who it is by a client certificate.

use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

use crate::case::Cases;
use crate::proxy::Envoy;
use crate::rig::Rig;
use crate::wire::get;

/// The name that the shipped configuration expects of Tollgate.
const SERVER: &str = "tollgate.internal";

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap());
        std::fs::write(folder.join(format!("{name}.ca")), made.0.pem()).unwrap();
        made
    }

    /// A certificate and its key, as `NAME.crt` and `NAME.key`.
    fn issue(&self, folder: &Path, name: &str, names: Vec<SanType>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        // Without a name of its own it would pass for its issuer's.
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.0).unwrap().pem();
        std::fs::write(folder.join(format!("{name}.crt")), cert).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(Ia5String::try_from(name).unwrap())
}

/// What a case is about: Envoy's certificate, whose authority it trusts, whether it shows a key, and what comes of it.
struct Row {
    name: &'static str,
    certificate: Option<&'static str>,
    trusts: &'static str,
    key: bool,
    status: u16,
}

/// The shipped configuration with its commented part.
fn envoy(rig: &Rig, folder: &Path, row: &Row) -> Envoy {
    let path = |name: &str| folder.join(name).display().to_string();
    let certificate = row.certificate.unwrap_or("envoy");
    let mut envoy = Envoy::shipped(rig)
        .uncomment("transport_socket:")
        .replace("/etc/envoy/client.crt", &path(&format!("{certificate}.crt")), 1)
        .replace("/etc/envoy/client.key", &path(&format!("{certificate}.key")), 1)
        .replace("/etc/envoy/tollgate-ca.crt", &path(&format!("{}.ca", row.trusts)), 1);
    if row.certificate.is_none() {
        let (chain, key) = (path("envoy.crt"), path("envoy.key"));
        let shown = format!(
            "        tls_certificates:\n          - certificate_chain: {{ filename: {chain} }}\n            private_key: {{ filename: {key} }}\n"
        );
        envoy = envoy.replace(&format!("    {shown}").replace("\n  ", "\n      "), "", 1);
    }
    if !row.key {
        let header =
            "                          - { key: authorization, value: \"Bearer %ENVIRONMENT(TOLLGATE_TOKEN)%\" }\n";
        envoy = envoy.replace(header, "", 1);
    }
    envoy
}

#[test]
fn envoy_may_show_a_certificate_instead_of_a_key() {
    let mut rig = Rig::new(&[]);
    let made = rig.plain_key();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (ours, stranger) = (Authority::new(folder, "ours"), Authority::new(folder, "stranger"));
    ours.issue(folder, "server", vec![dns(SERVER)]);
    ours.issue(folder, "envoy", vec![dns("other.internal"), dns("envoy.internal")]);
    ours.issue(folder, "spiffe", vec![uri("spiffe://example.org/envoy")]);
    ours.issue(folder, "unnamed", vec![dns("not-envoy.internal"), dns("envoy.internal.example.org")]);
    stranger.issue(folder, "forged", vec![dns("envoy.internal")]);
    let path = |name: &str| folder.join(name).display().to_string();
    rig.restart_with(&[
        &format!("--tls-cert-file={}", path("server.crt")),
        &format!("--tls-key-file={}", path("server.key")),
        &format!("--tls-client-ca-file={}", path("ours.ca")),
        "--edge-client-names=envoy.internal,spiffe://example.org/envoy",
    ]);
    let row = |name, certificate, key, status| Row { name, certificate, trusts: "ours", key, status };
    let mut cases = Cases::default();
    for row in [
        row("a certificate that is named, by DNS", Some("envoy"), false, 200),
        row("a certificate that is named, by URI", Some("spiffe"), false, 200),
        row("a certificate that is named, and a key", Some("envoy"), true, 200),
        row("a certificate that is not named", Some("unnamed"), false, 503),
        row("a certificate that is not named, and a key", Some("unnamed"), true, 200),
        row("a certificate of another authority", Some("forged"), true, 503),
        row("no certificate", None, true, 503),
        Row {
            name: "a Tollgate that Envoy does not know",
            certificate: Some("envoy"),
            trusts: "stranger",
            key: true,
            status: 503,
        },
    ] {
        let Some(edge) = envoy(&rig, folder, &row).start() else { return };
        cases.run(row.name, || {
            let answer = get("/v1/me").bearer(&made.secret).send(edge.addr);
            assert_eq!(answer.status, row.status, "{answer:?}");
            assert_eq!(rig.upstream.take().len(), usize::from(row.status == 200));
            let nobody = get("/v1/me").send(edge.addr);
            assert_eq!(nobody.status, if row.status == 200 { 401 } else { 503 }, "{nobody:?}");
        });
    }
}

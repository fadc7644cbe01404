//! gRPC clients behind Envoy: they see the status that a denial means, and its message.

use std::path::PathBuf;

use tollgate::proto::v1::{CheckKeyRequest, Key, Restrictions};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::case::Cases;
use crate::proxy::{Edge, Envoy};
use crate::rig::{Rig, key};
use crate::support::{command, run, skipped, text};
use crate::wire::curl;

/// A call of the upstream's echo: what came back, or why not.
fn echo(rig: &Rig, edge: &Edge, path: &str, secret: Option<&str>) -> Result<String, Status> {
    rig.wait(async {
        let mut client = tonic::client::Grpc::new(crate::support::channel(edge.addr).await);
        client.ready().await.unwrap();
        let mut request = Request::new(CheckKeyRequest { key: "hello".into(), ..CheckKeyRequest::default() });
        if let Some(secret) = secret {
            let value: MetadataValue<Ascii> = format!("Bearer {secret}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let codec = tonic_prost::ProstCodec::<CheckKeyRequest, CheckKeyRequest>::default();
        let answer = client.unary(request, path.parse().unwrap(), codec).await?;
        Ok(answer.into_inner().key)
    })
}

const ECHO: &str = "/echo.Echo/Say";
const GUARDED: &str = "/tasks.Tasks/Delete";

fn start(rig: &Rig) -> Option<Edge> {
    Envoy::shipped(rig).route("/tasks.Tasks", "scopes: \"tasks:write\"").route("/wrong.Policy", "cost: x").start()
}

#[test]
fn a_grpc_client_is_told_by_its_own_codes() {
    let mut rig = Rig::new(&[]);
    let Some(edge) = start(&rig) else { return };
    let mut cases = Cases::default();
    let made = rig.limited_key(2);
    let denied = |path: &str, secret: Option<&str>, code: Code, says: &str| {
        let status = echo(&rig, &edge, path, secret).unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(says), "{status:?}");
        rig.upstream.assert_untouched();
    };
    cases.run("allowed", || {
        assert_eq!(echo(&rig, &edge, ECHO, Some(&made.secret)).unwrap(), "hello");
        let seen = rig.upstream.one();
        assert_eq!((seen.target.as_str(), seen.all("x-auth-key-id")), (ECHO, vec![&*made.id]), "{seen:?}");
        assert!(seen.all("authorization").is_empty(), "{seen:?}");
    });
    cases.run("no key: UNAUTHENTICATED", || denied(ECHO, None, Code::Unauthenticated, "key"));
    cases.run("a wrong key: UNAUTHENTICATED", || denied(ECHO, Some("sk_live_nobody"), Code::Unauthenticated, "key"));
    cases.run("no permission: PERMISSION_DENIED", || {
        denied(GUARDED, Some(&made.secret), Code::PermissionDenied, "tasks:write");
    });
    cases.run("a key that is bound to a method of gRPC", || {
        let allowed_endpoints = vec!["POST /echo.Echo/*".to_owned()];
        let restrictions = Some(Restrictions { allowed_endpoints, ..Restrictions::default() });
        let bound = rig.key(Key { restrictions, ..key() });
        assert!(echo(&rig, &edge, ECHO, Some(&bound.secret)).is_ok());
        rig.upstream.take();
        denied("/other.Echo/Say", Some(&bound.secret), Code::PermissionDenied, "endpoint");
    });
    cases.run("no units left: RESOURCE_EXHAUSTED, which is not tried again", || {
        assert!(echo(&rig, &edge, ECHO, Some(&made.secret)).is_ok());
        rig.upstream.take();
        denied(ECHO, Some(&made.secret), Code::ResourceExhausted, "per-month");
    });
    cases.run("a wrong policy: no admission", || {
        let status = echo(&rig, &edge, "/wrong.Policy/Call", Some(&made.secret)).unwrap_err();
        assert!(matches!(status.code(), Code::Internal | Code::Unknown | Code::Unavailable), "{status:?}");
        rig.upstream.assert_untouched();
    });
    cases.run("the denial on the wire", || {
        let url = format!("http://{}{ECHO}", edge.addr);
        let arguments =
            ["--http2-prior-knowledge", "--header", "content-type: application/grpc", "--header", "te: trailers"];
        let Some(answer) = curl(&[&arguments[..], &["--data", "", &url]].concat()) else { return };
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("16")), "{answer:?}");
        assert!(answer.header("grpc-message").is_some() && answer.body.is_empty(), "{answer:?}");
    });
    rig.server.kill();
    cases.run("an outage: UNAVAILABLE", || {
        let status = echo(&rig, &edge, ECHO, Some(&made.secret)).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        rig.upstream.assert_untouched();
    });
}

const PYTHON: &str = r#"
import sys, grpc
address, secret, path = sys.argv[1:4]
metadata = [("authorization", "Bearer " + secret)] if secret else []
with grpc.insecure_channel(address) as channel:
    call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
    try:
        answer = call(b"hello", metadata=metadata, timeout=60)
        print("OK", answer.decode())
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"#;

#[test]
fn a_python_client_is_told_the_same() {
    let Some(python) = std::env::var_os("TOLLGATE_TEST_PYTHON").map(PathBuf::from) else {
        skipped("TOLLGATE_TEST_PYTHON names no Python with grpcio");
        return;
    };
    let rig = Rig::new(&[]);
    let Some(edge) = start(&rig) else { return };
    let mut cases = Cases::default();
    let say = |secret: &str, path: &str| {
        let mut call = command(&python);
        call.args(["-c", PYTHON, &edge.addr.to_string(), secret, path]).env("GRPC_VERBOSITY", "NONE");
        text(&run(&mut call, "")).trim().to_owned()
    };
    let made = rig.key(Key { limits: vec![crate::rig::monthly(1)], ..key() });
    for (name, secret, path, begin) in [
        ("no key", "", ECHO, "UNAUTHENTICATED "),
        ("a wrong key", "sk_live_nobody", ECHO, "UNAUTHENTICATED "),
        ("no permission", &*made.secret, GUARDED, "PERMISSION_DENIED "),
        ("allowed", &made.secret, ECHO, "OK hello"),
        ("no units left", &made.secret, ECHO, "RESOURCE_EXHAUSTED "),
    ] {
        cases.run(name, || {
            let said = say(secret, path);
            assert!(said.starts_with(begin) && said.len() > begin.len() - 1, "{said}");
            assert_eq!(rig.upstream.take().len(), usize::from(begin.starts_with("OK")));
        });
    }
}

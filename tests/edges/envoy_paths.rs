//! One path has many spellings: a key that is bound to endpoints opens no other one by any of them.

use tollgate::proto::v1::{Key, Restrictions};

use crate::case::Cases;
use crate::proxy::Envoy;
use crate::readings::{generous, spellings};
use crate::rig::{Made, Rig, key};
use crate::wire::{call, get};

fn bound(rig: &Rig) -> Made {
    let allowed_endpoints = ["GET /v1/tasks", "GET /v1/tasks/*", "GET /files/**"].map(ToOwned::to_owned).to_vec();
    let restrictions = Some(Restrictions { allowed_endpoints, ..Restrictions::default() });
    rig.key(Key { restrictions, scopes: vec!["tasks:read".into()], ..key() })
}

/// Spellings that some server reads as `/admin` or as another path that the key is not for.
const TRICKS: [&str; 32] = [
    "/admin",
    "//admin",
    "/x/../admin",
    "/./admin",
    "/%61dmin",
    "/ADMIN",
    "/admin;x",
    "/v1/tasks/../admin",
    "/v1/tasks/%2e%2e/admin",
    "/v1/tasks/%2E%2E/%2e%2e/admin",
    "/v1/tasks/..%2fadmin",
    "/v1/tasks/..%2f..%2fadmin",
    "/v1/tasks/..%5cadmin",
    "/v1/tasks/..\\admin",
    "/v1/tasks/..;/admin",
    "/v1/tasks/;/../admin",
    "/v1/tasks/1;admin=true",
    "/v1/tasks/%252e%252e%252fadmin",
    "/v1/tasks/%2561",
    "/v1/tasks/%00",
    "/v1/tasks/1%00.html",
    "/v1//tasks/1",
    "/v1/tasks//1/../../admin",
    "/v1/tasks/.",
    "/v1/tasks/..",
    "/files/../admin",
    "/files/a/../../admin",
    "/files/%2e%2e%2fadmin",
    "/files//admin",
    "/files/..;/admin",
    "/files/%u002e%u002e/admin",
    "http://other.example/admin",
];

/// What the upstream may have got in the end: a plain path that the key is for.
fn is_allowed(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let within = path == "/v1/tasks" || path.starts_with("/v1/tasks/") || path.starts_with("/files/");
    within && !["..", "//", "%", ";", "\\"].iter().any(|trick| path.contains(trick))
}

#[test]
fn no_spelling_of_a_path_opens_another_endpoint() {
    let rig = Rig::new(&[]);
    let made = bound(&rig);
    for (mode, envoy) in [
        ("normalised", Envoy::shipped(&rig)),
        ("as they come", Envoy::shipped(&rig).raw_paths()),
        ("as they come, as text", Envoy::shipped(&rig).raw_paths().text_headers()),
    ] {
        let Some(edge) = envoy.start() else { return };
        let mut cases = Cases::default();
        for trick in TRICKS {
            cases.run(&format!("{mode}: {trick}"), || {
                let answer = get(trick).bearer(&made.secret).send(edge.addr);
                let reached = rig.upstream.take();
                assert!(reached.iter().all(|seen| is_allowed(&seen.target)), "{reached:?}");
                // Where Envoy itself makes an allowed path of it, it may pass, but never where paths are left as they come.
                let refused = matches!(answer.status, 400 | 403 | 404 | 307);
                assert!(refused || (mode == "normalised" && answer.status == 200), "{answer:?}");
                if refused {
                    assert!(reached.is_empty(), "{reached:?}");
                }
            });
        }
        for good in
            ["/v1/tasks", "/v1/tasks/7", "/v1/tasks/7?next=/../admin&x=%2f;..", "/files/a/b.txt", "/v1/tasks/a-b_c~d"]
        {
            cases.run(&format!("{mode}: {good} is allowed"), || {
                assert_eq!(get(good).bearer(&made.secret).send(edge.addr).status, 200);
                assert_eq!(rig.upstream.one().target, good);
            });
        }
        for method in ["POST", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "get"] {
            cases.run(&format!("{mode}: {method} is no GET"), || {
                let call = call(method, "/files/a").header("X-HTTP-Method-Override", "GET").bearer(&made.secret);
                let answer = call.send(edge.addr);
                assert!(matches!(answer.status, 400 | 403), "{answer:?}");
                rig.upstream.assert_untouched();
            });
        }
        cases.run(&format!("{mode}: headers that name another path are not read"), || {
            let call = get("/admin").header("X-Original-URL", "/v1/tasks").header("X-Forwarded-Uri", "/v1/tasks");
            let call = call.header("x-envoy-original-path", "/v1/tasks").bearer(&made.secret);
            call.send(edge.addr).assert_denied(403, "ENDPOINT_DENIED", "Endpoint not allowed");
            rig.upstream.assert_untouched();
        });
    }
}

/// The shipped routes: whatever spelling a request has, it gets no further than the policy of what a generous server reads.
#[test]
fn no_spelling_of_a_path_escapes_the_policy_of_its_route() {
    let rig = Rig::new(&[]);
    let Some(edge) = Envoy::shipped(&rig).start() else { return };
    let mut cases = Cases::default();
    let (without, reader) = (rig.plain_key(), rig.key(Key { scopes: vec!["tasks:read".into()], ..key() }));
    for spelling in spellings("/v1/tasks") {
        for (who, method, secret) in [
            ("nobody", "GET", None),
            ("no scope", "GET", Some(&without.secret)),
            ("no right to write", "POST", Some(&reader.secret)),
        ] {
            cases.run(&format!("{who}: {method} {spelling}"), || {
                let call = call(method, &spelling);
                let answer = secret.map_or(call.clone(), |secret| call.bearer(secret)).send(edge.addr);
                for seen in rig.upstream.take() {
                    let read = generous(&seen.target);
                    assert!(!read.starts_with("/v1/tasks"), "`{}` is `{read}`: {answer:?}", seen.target);
                    assert!(secret.is_some() || read.starts_with("/public") || read == "/healthz", "{seen:?}");
                }
            });
        }
    }
    cases.run("plainly", || {
        assert_eq!(get("/v1/tasks/7").bearer(&reader.secret).send(edge.addr).status, 200);
        assert_eq!(get("/public/a").send(edge.addr).status, 200);
    });
}

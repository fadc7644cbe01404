//! Traefik's configuration, which no Traefik runs here: it can be read, and what it makes Traefik ask is answered.

use std::path::PathBuf;

use serde_json::Value;
use tollgate::proto::v1::Key;

use crate::rig::{Rig, key};
use crate::support::{command, run, skipped, text};
use crate::wire::{Call, get};

const READ: &str =
    "import json, sys; from ruamel.yaml import YAML; print(json.dumps(YAML(typ='safe').load(sys.stdin)))";

fn shipped() -> Option<Value> {
    let Some(python) = std::env::var_os("TOLLGATE_TEST_PYTHON").map(PathBuf::from) else {
        skipped("TOLLGATE_TEST_PYTHON names no Python with ruamel.yaml");
        return None;
    };
    let yaml = include_str!("../../deploy/traefik.yaml");
    Some(serde_json::from_str(&text(&run(command(python).args(["-c", READ]), yaml))).unwrap())
}

#[test]
fn what_traefik_is_told_to_ask_is_answered() {
    let Some(config) = shipped() else { return };
    let rig = Rig::new(&["--edge-trusted-proxies=127.0.0.0/8"]);
    let reader = rig.key(Key { scopes: vec!["tasks:read".into()], ..key() });
    let mut asked = 0;
    for (name, middleware) in config["http"]["middlewares"].as_object().unwrap() {
        let Some(forward) = middleware.get("forwardAuth") else { continue };
        asked += 1;
        assert_eq!(forward["trustForwardHeader"], false, "{name}");
        assert!(forward["authResponseHeadersRegex"].as_str().unwrap().starts_with("(?i)^x[-_.]auth"), "{name}");
        let passed: Vec<&str> =
            forward["authRequestHeaders"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(passed.contains(&"Authorization") && passed.contains(&"X-API-Key"), "{name}: {passed:?}");
        let ours = |header: &&str| header.starts_with("X-Forwarded") || header.starts_with("X-Tollgate");
        assert!(!passed.iter().any(ours), "{name}: {passed:?}");
        let target = forward["address"].as_str().unwrap().strip_prefix("http://127.0.0.1:8080").unwrap();
        let ask = || -> Call {
            let ask = get(target).header("X-Forwarded-Method", "POST").header("X-Forwarded-Uri", "/v1/tasks?a=b");
            let ask = ask.header("X-Forwarded-Host", "api.example.com").header("X-Forwarded-Proto", "https");
            ask.header("X-Forwarded-For", "198.51.100.7")
        };
        let allowed = ask().bearer(&reader.secret).send(rig.server.http);
        assert_eq!((allowed.status, allowed.header("x-auth-key-id")), (200, Some(&*reader.id)), "{name}: {allowed:?}");
        ask().send(rig.server.http).assert_denied(401, "MISSING", "Missing API key");
        let plain = ask().bearer(&rig.plain_key().secret).send(rig.server.http);
        assert_eq!(plain.status, if target.contains("scopes") { 403 } else { 200 }, "{name}: {plain:?}");
    }
    assert_eq!(asked, 2);
}

#[test]
fn every_router_of_traefik_asks_and_gives_no_key_away() {
    let Some(config) = shipped() else { return };
    let middlewares = &config["http"]["middlewares"];
    for (name, router) in config["http"]["routers"].as_object().unwrap() {
        let chain: Vec<&str> = router["middlewares"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let asks = chain.iter().position(|name| middlewares[name].get("forwardAuth").is_some()).unwrap();
        let removes = chain.iter().position(|name| {
            let headers = &middlewares[name]["headers"]["customRequestHeaders"];
            ["Authorization", "X-API-Key"].iter().all(|key| headers[key] == "")
        });
        assert!(removes.is_some_and(|removes| removes > asks), "{name}: {chain:?}");
    }
}

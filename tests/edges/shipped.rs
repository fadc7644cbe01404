//! What stands in `deploy/` is loaded as it is by those that it is for.

use crate::support::{command, run, text, tool};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

#[test]
fn envoy_takes_both_files() {
    let Some(envoy) = tool("TOLLGATE_TEST_ENVOY", "envoy") else { return };
    for name in ["envoy.yaml", "envoy-ratelimit.yaml"] {
        let mut validate = command(&envoy);
        validate.args(["--mode", "validate", "--log-level", "error", "-c", &format!("{DEPLOY}/{name}")]);
        assert!(text(&run(&mut validate, "")).contains("OK"), "{name}");
    }
}

#[test]
fn caddy_takes_its_file() {
    let Some(caddy) = tool("TOLLGATE_TEST_CADDY", "caddy") else { return };
    let (file, home) = (format!("{DEPLOY}/Caddyfile"), tempfile::tempdir().unwrap());
    let mut validate = command(&caddy);
    validate.args(["validate", "--adapter", "caddyfile", "--config", &file]).env("HOME", home.path());
    text(&run(&mut validate, ""));
}

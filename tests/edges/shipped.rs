//! What stands in `deploy/` is loaded as it is by those that it is for.

use crate::support::{command, run, text, tool};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

#[test]
fn envoy_takes_its_files() {
    let Some(envoy) = tool("TOLLGATE_TEST_ENVOY", "envoy") else { return };
    for name in ["envoy.yaml", "envoy-ratelimit.yaml", "envoy-replicas.yaml"] {
        let mut validate = command(&envoy);
        validate.args(["--mode", "validate", "--log-level", "error", "-c", &format!("{DEPLOY}/{name}")]);
        assert!(text(&run(&mut validate, "")).contains("OK"), "{name}");
    }
}

/// `envoy-replicas.yaml` is `envoy.yaml` and what it marks, so that no setting about safety is in one of them alone.
#[test]
fn envoy_for_replicas_is_the_other_one_and_what_it_marks() {
    let lines = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(format!("{DEPLOY}/{name}")).unwrap();
        text.lines().skip_while(|line| line.starts_with('#')).map(str::to_owned).collect()
    };
    let mut alone = lines("envoy.yaml");
    // The address of the one server, in three lines.
    let address = alone.iter().position(|line| line.trim() == "cluster_name: tollgate").unwrap();
    alone.drain(address - 1..=address + 1);
    let (mut common, mut marked) = (Vec::new(), false);
    for line in lines("envoy-replicas.yaml") {
        match line.trim() {
            "# replicas {" => marked = true,
            "# }" => marked = false,
            _ if !marked => common.push(line),
            _ => {}
        }
    }
    assert_eq!(common, alone);
}

#[test]
fn caddy_takes_its_file() {
    let Some(caddy) = tool("TOLLGATE_TEST_CADDY", "caddy") else { return };
    let (file, home) = (format!("{DEPLOY}/Caddyfile"), tempfile::tempdir().unwrap());
    let mut validate = command(&caddy);
    validate.args(["validate", "--adapter", "caddyfile", "--config", &file]).env("HOME", home.path());
    text(&run(&mut validate, ""));
}

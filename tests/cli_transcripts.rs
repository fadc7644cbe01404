//! What the binary says and with which code it exits, as far as no server is needed.
#![cfg(test)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// The binary in an empty directory and without the variables of whoever runs the tests.
fn tollgate(arguments: &[&str], env: &[(&str, &str)], input: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.toml"), "[server]\ngrpc_adr = \"127.0.0.1:1\"\n").unwrap();
    std::fs::write(dir.path().join("token"), "sk_live_x\n").unwrap();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOLLGATE_") {
            command.env_remove(name);
        }
    }
    let mut child = command
        .args(arguments)
        .envs(env.iter().copied())
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads no input may be gone already.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A port on which nothing listens.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let output = tollgate(&["--help"], &[], "");
    assert_eq!(code(&output), 0);
    let help = stdout(&output);
    let documented = include_str!("../docs/cli.md");
    for command in [
        "serve",
        "bootstrap",
        "migrate",
        "keys",
        "accounts",
        "plans",
        "check",
        "usage",
        "me",
        "config",
        "doctor",
        "health",
        "completions",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} in:\n{help}");
        assert!(documented.contains(&format!("| `{command}")), "{command} in docs/cli.md");
    }
    assert!(help.contains("Exit codes:") && help.contains("3  the check was denied"));
    for group in ["keys", "accounts", "plans", "config"] {
        let help = stdout(&tollgate(&[group, "--help"], &[], ""));
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        for command in commands.filter_map(|line| line.split_whitespace().next()).filter(|command| *command != "help") {
            assert!(
                documented.contains(&format!("`{group} {command}`")) || documented.contains(&format!("`{command}`"))
            );
        }
    }
}

#[test]
fn every_setting_is_a_flag_of_serve() {
    let help = stdout(&tollgate(&["serve", "--help"], &[], ""));
    for key in tollgate::config::KEYS {
        assert!(help.contains(&format!("--{} <VALUE>", key.flag())), "{}", key.name);
    }
}

#[test]
fn what_is_not_understood_exits_with_2() {
    for arguments in [
        &["serv"][..],
        &[],
        &["keys", "create"],
        &["keys", "list", "--token", "sk_live_x"],
        &["keys", "create", "--name", "n", "--limit", "100"],
        &["keys", "create", "--name", "n", "--expires", "tomorrow"],
        &["accounts", "adjust-credits", "acct_a", "5"],
        &["accounts", "adjust-credits", "acct_a", "five", "--reason", "r"],
        &["check", "sk_live_x"],
        &["serve", "--grpc-adr", "127.0.0.1:1"],
        &["keys", "list", "--max", "0"],
        &["usage", "--key", "k", "--account", "a"],
    ] {
        let output = tollgate(arguments, &[("TOLLGATE_TOKEN", "x")], "");
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty());
    }
    let output = tollgate(&["keys", "update", "key_1"], &[("TOLLGATE_TOKEN", "x")], "");
    assert_eq!((code(&output), stderr(&output).contains("nothing to change")), (2, true));
    let output = tollgate(&["keys", "update", "key_1", "--scope", "a:b", "--clear", "scopes"], &[], "");
    assert_eq!((code(&output), stderr(&output).contains("both set and cleared")), (2, true));
}

#[test]
fn a_good_configuration_is_said_to_be_valid() {
    let output = tollgate(&["config", "check", "--workers", "2"], &[("TOLLGATE_GRPC_ADDR", "127.0.0.1:1")], "");
    assert_eq!(code(&output), 0);
    assert_eq!(
        stdout(&output),
        format!(
            "the configuration is valid: no file, 2 of {} settings are set, the others at their defaults\n",
            tollgate::config::KEYS.len()
        )
    );
    let open = ["config", "check", "--grpc-addr", "0.0.0.0:1", "--output", "json"];
    let json: serde_json::Value = serde_json::from_str(&stdout(&tollgate(&open, &[], ""))).unwrap();
    assert_eq!(json["ok"], true);
    assert!(json["warnings"][0].as_str().unwrap().contains("TLS is off"));
}

#[test]
fn a_bad_configuration_is_refused_by_whoever_reads_it() {
    let env = [("TOLLGATE_USAGE_FLUSH_INTERVAL", "50ms")];
    let expected = "error: the configuration is wrong\n  \
        `server.grpc_adr` (bad.toml, line 2): unknown; did you mean `server.grpc_addr`?\n  \
        `usage.flush_interval` (environment variable TOLLGATE_USAGE_FLUSH_INTERVAL): `50ms` is not allowed; expected a length \
        of time from `100ms` to `10s`\n";
    for command in
        [&["config", "check"][..], &["config", "show"], &["serve"], &["bootstrap"], &["migrate"], &["doctor"]]
    {
        let arguments = [command, &["--config", "bad.toml"]].concat();
        let output = tollgate(&arguments, &env, "");
        assert_eq!((code(&output), stderr(&output).as_str()), (1, expected), "{command:?}");
    }
    let documented = include_str!("../docs/configuration.md").replace("(tollgate.toml, ", "(bad.toml, ");
    assert!(documented.contains(expected), "docs/configuration.md shows something else");
}

#[test]
fn what_config_show_prints_is_a_configuration() {
    let output = tollgate(&["config", "show", "--check-http-status", "UNKNOWN=403"], &[], "");
    assert!(stdout(&output).contains("http_status = { UNKNOWN = 403 }  # flag --check-http-status\n"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shown.toml");
    std::fs::write(&path, stdout(&output)).unwrap();
    let output = tollgate(&["config", "check", "--config", path.to_str().unwrap()], &[], "");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, expected) in [("bash", "_tollgate()"), ("zsh", "#compdef tollgate"), ("fish", "complete -c tollgate")] {
        let output = tollgate(&["completions", shell], &[], "");
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains(expected), "{shell}");
    }
}

#[test]
fn without_a_server_the_code_is_6_and_the_hint_says_what_to_do() {
    let endpoint = nowhere();
    for command in [&["keys", "list"][..], &["me"], &["accounts", "get", "acct_a"], &["plans", "list"], &["check"]] {
        let arguments = [command, &["--endpoint", &endpoint]].concat();
        let output = tollgate(&arguments, &[("TOLLGATE_TOKEN", "sk_live_x")], "sk_live_y\n");
        let said = stderr(&output);
        assert_eq!(code(&output), 6, "{command:?}: {said}");
        assert!(said.contains(&format!("can't connect to `{endpoint}`")) && said.contains("refused"), "{said}");
        assert!(said.contains("hint: is `tollgate serve` running there?"), "{said}");
        assert!(!said.contains("sk_live_"), "{said}");
    }
    let output = tollgate(&["health", "--endpoint", &endpoint], &[], "");
    assert_eq!(code(&output), 1, "a probe has two answers");
}

#[test]
fn without_a_callers_key_nothing_is_sent() {
    let output = tollgate(&["keys", "list", "--endpoint", &nowhere()], &[], "");
    assert_eq!(code(&output), 5);
    assert!(stderr(&output).contains("set TOLLGATE_TOKEN"), "{}", stderr(&output));
    let output = tollgate(&["me", "--token-file", "empty"], &[], "");
    assert_eq!((code(&output), stderr(&output).as_str()), (5, "error: `empty` holds no key\n"));
    let output = tollgate(&["me", "--token-file", "missing"], &[], "");
    assert_eq!((code(&output), stderr(&output).contains("`missing` can't be read")), (1, true));
    let output = tollgate(&["me"], &[("TOLLGATE_TOKEN", "sk\u{1}hunter2")], "");
    assert_eq!((code(&output), stderr(&output).contains("hunter2")), (5, false));
    let output = tollgate(&["me", "--token-file", "token", "--endpoint", &nowhere()], &[], "");
    assert_eq!(code(&output), 6);
}

#[test]
fn endpoints_that_are_none() {
    let env = [("TOLLGATE_TOKEN", "sk_live_x")];
    for endpoint in ["", "127.0.0.1:50051", "ftp://127.0.0.1", "http://", "https://127.0.0.1:1"] {
        let output = tollgate(&["me", "--endpoint", endpoint], &env, "");
        assert_eq!(code(&output), 2, "{endpoint}: {}", stderr(&output));
    }
    let output = tollgate(&["me", "--endpoint", "http://192.0.2.1:1", "--timeout", "1s"], &env, "");
    assert_eq!(code(&output), 6);
    assert!(stderr(&output).contains("in the clear"), "{}", stderr(&output));
}

#[test]
fn files_are_read_before_anything_is_sent() {
    let env = [("TOLLGATE_TOKEN", "sk_live_x")];
    for arguments in
        [&["keys", "import", "missing"][..], &["plans", "apply", "missing"], &["check", "--key-file", "missing"]]
    {
        let output = tollgate(arguments, &env, "");
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).contains("`missing`"), "{}", stderr(&output));
    }
    let output = tollgate(&["plans", "apply", "bad.toml"], &env, "");
    assert_eq!((code(&output), stderr(&output).contains("`bad.toml`: ")), (1, true));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

//! Services in other languages call Tollgate as the README shows: the examples, against the real server.
#![cfg(test)]

mod support;

#[path = "../examples/check_key.rs"]
#[expect(dead_code, unreachable_pub, reason = "it is a program of its own, whose `main` is not run here")]
mod check_key;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tollgate::proto::v1::Verdict;
use tollgate::proto::v1::key_service_client::KeyServiceClient;

use support::{Home, PATIENCE, Server, code, command, eventually, run, said, skipped, text};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/check_key.py");
const README: &str = include_str!("../README.md");

/// A server with the demo, its operator key, and its live key.
fn demo(home: &Home) -> (Server, String, String) {
    let server = home.serve(&["--dev"]);
    let printed = server.printed();
    let key = |name: &str| {
        printed.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let (operator, live) = (key("operator key"), key("live key"));
    assert!(operator.starts_with("sk_") && live.starts_with("sk_"), "{printed}");
    (server, operator, live)
}

/// Python with the packages that the README names.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("TOLLGATE_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        skipped("TOLLGATE_TEST_PYTHON names no Python with grpcio and grpcio-tools");
    }
    python
}

/// Runs the command with which the README and the example make the stubs, into a folder.
fn stubs(python: &Path, folder: &Path) {
    let begin = "python -m grpc_tools.protoc";
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let commands = [README, &example].map(|text| {
        let from = text.find(begin).expect("it says how to make the stubs");
        let to = from + text.get(from..).unwrap().find("http}.proto").unwrap() + "http}.proto".len();
        text.get(from..to).unwrap().replace(['\\', '\n'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
    });
    assert_eq!(commands[0], commands[1], "the README and the example differ");
    let line = commands[0].replacen("python", "\"$PYTHON\"", 1).replace("_out=.", "_out=\"$OUT\"");
    let made = run(
        command("bash")
            .args(["-c", &line])
            .env("PYTHON", python)
            .env("OUT", folder)
            .current_dir(env!("CARGO_MANIFEST_DIR")),
        "",
    );
    text(&made);
}

#[test]
fn a_python_service_checks_keys() {
    let Some(python) = python() else { return };
    let home = Home::empty();
    let (mut server, operator, live) = demo(&home);
    let folder = tempfile::tempdir().unwrap();
    stubs(&python, folder.path());
    let mut call = command(&python);
    call.arg(EXAMPLE).env("PYTHONPATH", folder.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    call.env("TOLLGATE_ADDR", server.grpc.to_string()).env("TOLLGATE_TOKEN", &operator);

    let allowed = patiently(&mut call, &format!("{live}\n"));
    assert_eq!(text(&allowed), "allowed: Demo live of acct_demo\n");
    let unknown = patiently(&mut call, "sk_live_nobody\n");
    assert_eq!(code(&unknown), 3, "{}", said(&unknown));
    assert!(said(&unknown).starts_with("denied, HTTP 401: "), "{}", said(&unknown));
    call.env("TOLLGATE_TOKEN", "sk_live_nobody");
    let stranger = patiently(&mut call, &format!("{live}\n"));
    assert_eq!(code(&stranger), 6);
    assert!(said(&stranger).contains("UNAUTHENTICATED"), "{}", said(&stranger));
    server.kill();
    let gone = run(call.env("TOLLGATE_TOKEN", &operator), &format!("{live}\n"));
    assert_eq!(code(&gone), 6, "what can't be known is no admission: {}", said(&gone));
}

/// Runs it again where it gave up waiting, which the examples do soon, on a machine that is busy.
fn patiently(call: &mut Command, key: &str) -> Output {
    let mut output = run(call, key);
    eventually("an answer in time", || {
        let late = said(&output).contains("DEADLINE_EXCEEDED");
        if late {
            output = run(call, key);
        }
        !late
    });
    output
}

/// What the README quotes is what runs.
#[test]
fn the_readme_quotes_the_examples() {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let example: String = example.split_whitespace().collect();
    let from = README.find("answer = stub.CheckKey(").expect("the README shows a check in Python");
    let quoted: String = README.get(from..).unwrap().split("```").next().unwrap().split_whitespace().collect();
    assert!(example.contains(&quoted), "{quoted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rust_service_checks_keys() {
    let home = Home::empty();
    let (server, operator, live) = demo(&home);
    let client = KeyServiceClient::new(server.channel().await);
    let check = async |key: &str| loop {
        // It gives up soon, on a machine that is busy too.
        if let Ok(answer) = check_key::check_key(client.clone(), &operator, key).await {
            return answer;
        }
    };
    let answer = tokio::time::timeout(PATIENCE, check(&live)).await.unwrap();
    assert_eq!((answer.allowed, answer.key_name.as_str()), (true, "Demo live"));
    let answer = tokio::time::timeout(PATIENCE, check("sk_live_nobody")).await.unwrap();
    assert_eq!((answer.allowed, answer.verdict()), (false, Verdict::Malformed));
    assert!(check_key::check_key(client.clone(), &live.replace("live", "test"), &live).await.is_err());
}

//! A newcomer's first minutes: `serve --dev`, and what it prints, pasted into a shell.
#![cfg(test)]

mod support;

use std::path::Path;

use support::{Home, Server, code, command, run, said, text, tool};

/// The demo's keys, as the first start prints them.
fn secrets(printed: &str) -> Vec<String> {
    let keys = printed.lines().filter_map(|line| line.trim().split_once("key  "));
    keys.map(|(_, secret)| secret.trim().to_owned()).filter(|secret| secret.starts_with("sk_")).collect()
}

/// The printed lines that are commands of a program.
fn commands<'a>(printed: &'a str, program: &str) -> Vec<&'a str> {
    printed.lines().filter(|line| line.starts_with("  ")).map(str::trim).filter(|line| line.contains(program)).collect()
}

/// Pastes a line where the server was started.
fn paste(line: &str, path: &Path, variables: &[(&str, &str)]) -> String {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::join_paths(std::iter::once(path.to_owned()).chain(std::env::split_paths(&folders)));
    let mut shell = command("bash");
    shell.args(["-c", line]).env("PATH", folders.unwrap()).envs(variables.iter().copied());
    let output = run(shell.current_dir(env!("CARGO_MANIFEST_DIR")), "");
    assert_eq!(code(&output), 0, "{line}\n{}", said(&output));
    text(&output)
}

/// What the log says must not be a secret, and no part of it.
fn assert_log_is_clean(log: &str, secrets: &[String]) {
    assert!(!log.is_empty());
    for secret in secrets {
        let shown = secret.split_at("sk_live_".len() + 8).0;
        assert!(!log.contains(shown), "a secret is in the log:\n{log}");
    }
}

fn first_start(home: &Home) -> (Server, String, Vec<String>) {
    let server = home.serve(&["--dev"]);
    let printed = server.printed();
    let secrets = secrets(&printed);
    assert_eq!(secrets.len(), 3, "{printed}");
    assert!(printed.contains("acct_demo") && printed.contains(&server.grpc.to_string()), "{printed}");
    (server, printed, secrets)
}

#[test]
fn the_tollgate_lines_work_as_printed() {
    let home = Home::empty();
    let (server, printed, secrets) = first_start(&home);
    let lines = commands(&printed, "TOLLGATE_TOKEN=");
    let [check, create, usage] = lines[..] else { panic!("a check, a key and the usage are expected:\n{printed}") };
    assert!(paste(check, home.path(), &[]).contains("ALLOWED"));
    let made = paste(create, home.path(), &[]);
    assert!(made.contains("secret  sk_live_"), "{made}");
    // As the text says, it takes about a second.
    support::eventually("the check in the usage", || paste(usage, home.path(), &[]).contains("ALLOWED=1"));
    assert_log_is_clean(&server.log(), &secrets);
}

#[test]
fn the_curl_line_works_as_printed() {
    let Some(_) = tool("TOLLGATE_TEST_CURL", "curl") else { return };
    let home = Home::empty();
    let (_server, printed, _) = first_start(&home);
    let [line] = commands(&printed, "curl -i")[..] else { panic!("one line is expected:\n{printed}") };
    let answer = paste(line, home.path(), &[]);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-auth-account-id: acct_demo"), "{answer}");
}

#[test]
fn the_grpcurl_lines_work_as_printed() {
    let Some(grpcurl) = tool("TOLLGATE_TEST_GRPCURL", "grpcurl") else { return };
    let home = Home::empty();
    let (_server, printed, _) = first_start(&home);
    let lines = commands(&printed, "grpcurl -plaintext");
    let [check, create, usage] = lines[..] else { panic!("a check, a key and the usage are expected:\n{printed}") };
    let folder = grpcurl.parent().unwrap();
    let json = |line: &str| -> serde_json::Value {
        let answer = paste(line, folder, &[]);
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{line}\n{answer}"))
    };
    let checked = json(check);
    assert_eq!((&checked["allowed"], &checked["verdict"]), (&true.into(), &"VERDICT_ALLOWED".into()), "{checked}");
    let made = json(create);
    assert!(made["secret"].as_str().unwrap().starts_with("sk_live_"), "{made}");
    support::eventually("the check in the usage", || json(usage)["totals"]["allowed"] == "1");
}

#[test]
fn a_second_start_keeps_what_is_there_and_says_so() {
    let home = Home::empty();
    let (mut server, printed, secrets) = first_start(&home);
    let create = commands(&printed, "TOLLGATE_TOKEN=")[1];
    paste(create, home.path(), &[]);
    server.stop();
    drop(server);

    let server = home.serve(&["--dev"]);
    let printed = server.printed();
    assert!(printed.contains("what it holds is kept"), "{printed}");
    assert!(!printed.contains("sk_live_") && !printed.contains("sk_test_"), "{printed}");
    let [operator, live, _] = &secrets[..] else { unreachable!() };
    let variables = [("TOLLGATE_TOKEN", operator.as_str()), ("LIVE_KEY", live)];
    let lines: Vec<&str> = commands(&printed, "TOLLGATE_TOKEN=\"$").into_iter().collect();
    let check = lines.iter().find(|line| line.contains(" check")).unwrap();
    assert!(paste(check, home.path(), &variables).contains("ALLOWED"));
    let listed = run(&mut server.client_command(operator, &["keys", "list"]), "");
    assert!(text(&listed).contains("from the command line"), "{}", said(&listed));
    assert_log_is_clean(&server.log(), &secrets);
}

/// Where the standard output is no terminal, say a file, it holds them all the same; the log never.
#[test]
fn secrets_are_on_standard_output_alone() {
    let home = Home::empty();
    let server = home.serve(&["--dev", "--log-filter=trace", "--log-format=pretty"]);
    let secrets = secrets(&server.printed());
    assert_eq!(secrets.len(), 3);
    assert_log_is_clean(&server.log(), &secrets);
}

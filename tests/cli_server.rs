//! The command line against a server: the binary serves, and the binary calls.
#![cfg(test)]

mod support;

use std::process::{Command, Output};

use serde_json::Value;

use support::{Home, code, run, text};

/// A server on a database of its own.
struct Server {
    server: support::Server,
    home: Home,
}

impl Server {
    /// With an operator key from `bootstrap`, and the demo's plans.
    fn start() -> Self {
        let home = Home::new();
        let server = Self { server: home.serve(&[]), home };
        let plans = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/plans.toml");
        assert_eq!(
            text(&server.run(&["plans", "apply", plans])),
            "enterprise: created\nfree: created\nprofessional: created\n"
        );
        server
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.server.client_command(&self.home.token, arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments), "")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        json(&self.run(&[arguments, &["--output", "json"]].concat()))
    }

    /// Checks a key, and returns the answer and the exit code.
    fn check(&self, key: &str, arguments: &[&str]) -> (Value, i32) {
        let arguments = [&["check", "--output", "json"], arguments].concat();
        let output = run(&mut self.command(&arguments), key);
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        (answer, code(&output))
    }

    /// A new account on the free plan, by its id.
    fn account(&self) -> String {
        let made = self.json(&["accounts", "create", "--name", "Test", "--plan", "free"]);
        made["id"].as_str().unwrap().to_owned()
    }
}

/// What a command said beside its answer.
fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Of a command that did what it was told: exactly one document.
fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

#[test]
fn the_life_of_a_key() {
    let server = Server::start();
    let account = server.account();
    let created = server.run(&[
        "keys",
        "create",
        "--account",
        &account,
        "--name",
        "one",
        "--scope",
        "tasks:read",
        "--output",
        "json",
    ]);
    assert!(said(&created).contains("can't be shown again"));
    let created = json(&created);
    let (secret, id) = (created["secret"].as_str().unwrap(), created["key"]["id"].as_str().unwrap());
    assert_eq!(created["key"]["environment"], "ENVIRONMENT_LIVE");
    assert_eq!(created["key"]["status"], "STATUS_ACTIVE");

    let (answer, exit) = server.check(secret, &["--all-of", "tasks:read"]);
    assert_eq!((&answer["verdict"], exit), (&"VERDICT_ALLOWED".into(), 0));
    assert_eq!(answer["http_status"], 200, "64-bit numbers and fields of 0 are there: {answer}");
    let (answer, exit) = server.check(&format!("{secret}\r\n"), &["--all-of", "tasks:write", "--peek"]);
    assert_eq!((&answer["verdict"], exit), (&"VERDICT_SCOPE_DENIED".into(), 3));
    assert_eq!((answer["allowed"].as_bool(), &answer["missing_scopes"][0]), (Some(false), &"tasks:write".into()));

    let updated =
        server.json(&["keys", "update", id, "--scope", "tasks:write", "--metadata", "team=a", "--expires", "30d"]);
    assert_eq!((&updated["scopes"][0], &updated["metadata"]["team"]), (&"tasks:write".into(), &"a".into()));
    let cleared = server.json(&["keys", "update", id, "--clear", "metadata", "--clear", "expires"]);
    assert!(cleared["metadata"].as_object().is_none_or(serde_json::Map::is_empty) && cleared["expire_time"].is_null());
    let stale = server.run(&["keys", "update", id, "--name", "two", "--etag", updated["etag"].as_str().unwrap()]);
    assert_eq!(code(&stale), 1, "{}", said(&stale));

    let rotated = server.json(&["keys", "rotate", id, "--grace-period", "1h"]);
    let new_secret = rotated["secret"].as_str().unwrap();
    assert_eq!((server.check(secret, &[]).1, server.check(new_secret, &[]).1), (0, 0));
    let revoked = server.json(&["keys", "revoke", id, "--reason", "leaked"]);
    assert_eq!(
        (&revoked["key"]["status"], &revoked["key"]["revoke_reason"]),
        (&"STATUS_REVOKED".into(), &"leaked".into())
    );
    assert_eq!(server.check(new_secret, &[]).0["verdict"], "VERDICT_REVOKED");
}

#[test]
fn tables_are_for_people() {
    let server = Server::start();
    let account = server.account();
    let created = text(&server.run(&[
        "keys",
        "create",
        "--account",
        &account,
        "--name",
        "one",
        "--limit",
        "burst=2/1h:sliding",
        "--allow-ip",
        "10.0.0.0/8",
    ]));
    let secret = created.lines().next().unwrap().strip_prefix("secret  ").unwrap().to_owned();
    assert!(secret.starts_with("sk_live_"), "{created}");
    assert!(created.contains("burst=2/3600s:sliding") && created.contains("10.0.0.0/8"), "{created}");
    let list = text(&server.run(&["keys", "list", "--account", &account]));
    assert!(list.starts_with("ID ") && list.contains("one") && list.contains("never"), "{list}");
    assert!(!list.contains(&secret) && !list.contains('\u{1b}'), "{list}");
    let checked = text(&run(&mut server.command(&["check", "--client-ip", "10.1.2.3"]), &secret));
    for expected in ["ALLOWED", "burst", "per-minute", "credits", "free"] {
        assert!(checked.contains(expected), "{expected} in:\n{checked}");
    }
    let plans = text(&server.run(&["plans", "list"]));
    assert!(plans.contains("per-hour=1000/hour, per-minute=100/minute"), "{plans}");
    for arguments in [&["accounts", "get", &account][..], &["accounts", "list"], &["plans", "get", "free"], &["me"]] {
        assert!(!text(&server.run(arguments)).is_empty(), "{arguments:?}");
    }
    assert_eq!(text(&server.run(&["health"])), "SERVING\n");
}

#[test]
fn what_fails_has_its_code_and_names_the_field() {
    let server = Server::start();
    let missing = server.run(&["keys", "get", "key_0000000000000000000000"]);
    assert_eq!(code(&missing), 4, "{}", said(&missing));
    let wrong = server.run(&["keys", "create", "--account", &server.account(), "--name", "n", "--scope", "tasks"]);
    assert_eq!((code(&wrong), said(&wrong).contains("key.scopes")), (1, true), "{}", said(&wrong));
    let mut stranger = server.command(&["keys", "list"]);
    let stranger = run(stranger.env("TOLLGATE_TOKEN", "sk_live_nobody"), "");
    assert_eq!((code(&stranger), said(&stranger).contains("hint: ")), (5, true), "{}", said(&stranger));
    assert!(!said(&stranger).contains("nobody"));
    assert_eq!(server.check("not a key", &[]).1, 3);
}

#[test]
fn suspending_an_account_stops_its_keys() {
    let server = Server::start();
    let account = server.account();
    let made = server.json(&["keys", "create", "--account", &account, "--name", "one"]);
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(server.json(&["accounts", "suspend", &account])["status"], "ACCOUNT_STATUS_SUSPENDED");
    assert_eq!(server.check(secret, &[]).0["verdict"], "VERDICT_ACCOUNT_SUSPENDED");
    server.json(&["accounts", "resume", &account]);
    assert_eq!(server.check(secret, &[]).1, 0);
    let updated = server.json(&["accounts", "update", &account, "--plan", "professional", "--monthly-credits", "-1"]);
    assert_eq!((&updated["plan"], &updated["monthly_credits"]), (&"professional".into(), &(-1).into()));
}

#[test]
fn credits_are_given_and_taken_away() {
    let server = Server::start();
    let account = server.account();
    let adjust = ["accounts", "adjust-credits", &account];
    let invoice = [&adjust[..], &["700", "--reason", "paid", "--operation-id", "invoice-7"]].concat();
    let given = server.json(&invoice);
    assert_eq!((&given["account"]["topped_up_credits"], &given["credits"]["remaining"]), (&700.into(), &1_200.into()));
    assert_eq!(server.json(&invoice)["credits"]["topped_up_remaining"], 700);
    let taken = text(&server.run(&[&adjust[..], &["--reason", "booked twice", "-100"]].concat()));
    assert!(taken.lines().any(|line| line.split_whitespace().eq(["topped", "up", "600"])), "{taken}");
    assert!(taken.lines().any(|line| line.starts_with("top-ups ") && line.contains("600  ")), "{taken}");
    assert!(taken.lines().any(|line| line.starts_with("credits ") && line.contains("500  ")), "{taken}");
    let too_much = server.run(&[&adjust[..], &["-601", "--reason", "all of it"]].concat());
    assert_eq!((code(&too_much), said(&too_much).contains("600 topped-up credits left")), (1, true));
    let again = server.run(&[&adjust[..], &["7", "--reason", "paid", "--operation-id", "invoice-7"]].concat());
    assert_eq!((code(&again), said(&again).contains("`invoice-7`")), (1, true), "{}", said(&again));
    assert_eq!(server.json(&["accounts", "get", &account])["topped_up_credits"], 600);
}

#[test]
fn plans_are_changed_only_where_they_differ() {
    let server = Server::start();
    let file = server.home.path().join("plans.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "[plans.free]\nmonthly_credits = 7\n[plans.new]\n").unwrap();
    let apply = ["plans", "apply", path, "--prune"];
    let dry = text(&server.run(&[&apply[..], &["--dry-run"]].concat()));
    assert_eq!(
        dry,
        "free: would be updated\nnew: would be created\nenterprise: would be deleted\nprofessional: would be deleted\n"
    );
    let done = server.json(&apply);
    let changes: Vec<&str> =
        done["plans"].as_array().unwrap().iter().map(|plan| plan["change"].as_str().unwrap()).collect();
    assert_eq!(changes, ["updated", "created", "deleted", "deleted"]);
    assert_eq!(text(&server.run(&apply)), "free: unchanged\nnew: unchanged\n");
    assert_eq!(server.json(&["plans", "get", "free"])["monthly_credits"], 7);
    assert_eq!(text(&server.run(&["plans", "delete", "new"])), "new: deleted\n");
}

#[test]
fn an_import_says_which_lines_failed() {
    let server = Server::start();
    let account = server.account();
    let row = |hash: char, name: &str, more: &str| {
        let hash: String = std::iter::repeat_n(hash, 64).collect();
        format!("{{\"hash\": \"{hash}\", \"account_id\": \"{account}\", \"name\": \"{name}\"{more}}}\n")
    };
    let file = [
        row('a', "one", ", \"environment\": \"test\", \"prefix\": \"old_\""),
        "\n".into(),
        "no json\n".into(),
        row('b', "two", ", \"scopes\": [\"wrong\"]"),
        row('c', "three", ""),
    ]
    .concat();
    let import = ["keys", "import", "-", "--output", "json"];
    let dry = run(&mut server.command(&[&import[..], &["--dry-run"]].concat()), &file);
    assert_eq!(code(&dry), 1, "{}", said(&dry));
    let output = run(&mut server.command(&import), &file);
    assert_eq!(code(&output), 1);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["imported"], &report["failed"]), (&2.into(), &2.into()), "{report}");
    let lines: Vec<u64> =
        report["errors"].as_array().unwrap().iter().map(|error| error["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [3, 4]);
    let again = run(&mut server.command(&["keys", "import", "-"]), &row('a', "one", ""));
    assert!(text(&again).contains("already present  1"), "{}", text(&again));
}

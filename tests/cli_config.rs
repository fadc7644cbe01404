//! Settings: where they come from, which source wins, and what is said of wrong ones.
#![cfg(test)]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tollgate::config::{CheckAuth, Config, Database, KEYS, Loaded, Origin, Sources, load};
use tollgate::domain::Verdict;

fn sources(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> (Sources, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, file).unwrap();
    let sources = Sources {
        file: Some(path),
        env: env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect(),
        flags: flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
    };
    (sources, dir)
}

fn loaded(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Loaded {
    let (sources, _dir) = sources(file, env, flags);
    load(&sources).unwrap()
}

fn problem(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> String {
    let (sources, dir) = sources(file, env, flags);
    let error = load(&sources).unwrap_err().to_string();
    error.replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn nothing_set_is_the_default() {
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.origins.is_empty());
    assert!(loaded.config.warnings().is_empty());
}

#[test]
fn the_environment_beats_the_file_and_flags_beat_both() {
    let file = "[server]\ngrpc_addr = \"127.0.0.1:1\"\nhttp_addr = \"127.0.0.1:2\"\nworkers = 3\n";
    let env = [("TOLLGATE_GRPC_ADDR", "127.0.0.1:10"), ("TOLLGATE_HTTP_ADDR", "127.0.0.1:20")];
    let loaded = loaded(file, &env, &[("server.grpc_addr", "127.0.0.1:100")]);
    assert_eq!(loaded.config.server.grpc_addr, SocketAddr::from(([127, 0, 0, 1], 100)));
    assert_eq!(loaded.config.server.http_addr, SocketAddr::from(([127, 0, 0, 1], 20)));
    assert_eq!(loaded.config.server.workers, 3);
    assert_eq!(loaded.origins["server.grpc_addr"], Origin::Flag("--grpc-addr".into()));
    assert_eq!(loaded.origins["server.http_addr"], Origin::Env("TOLLGATE_HTTP_ADDR".into()));
    assert!(matches!(loaded.origins["server.workers"], Origin::File(_, 4)));
}

#[test]
fn every_kind_of_value_is_read_from_a_file() {
    let file = r#"
        [store]
        database = "sqlite:/var/lib/tollgate/t.sqlite"
        [server]
        request_timeout = "5s"
        connection_age_max = "2h"
        message_bytes_max = "1MiB"
        reflection = false
        [server.tls]
        cert_file = "c.pem"
        key_file = "k.pem"
        [check]
        auth = "off"
        http_status = { UNKNOWN = 403, REVOKED = 403 }
        [keys]
        prefix = "tk9"
        [log]
        format = "json"
        filter = "info,tollgate=debug"
    "#;
    let env = [("TOLLGATE_CHECK_HTTP_STATUS", "REVOKED=410,THROTTLED=503")];
    let config = loaded(file, &env, &[]).config;
    assert_eq!(config.store.database, Database::Sqlite(PathBuf::from("/var/lib/tollgate/t.sqlite")));
    assert_eq!(config.server.request_timeout, Duration::from_secs(5));
    assert_eq!(config.server.connection_age_max, Duration::from_hours(2));
    assert_eq!(config.server.message_bytes_max, 1 << 20);
    assert!(!config.server.reflection);
    assert_eq!(config.server.tls.cert_file, Some(PathBuf::from("c.pem")));
    assert_eq!(config.check.auth, CheckAuth::Off);
    let statuses = [(Verdict::Unknown, 403), (Verdict::Revoked, 410), (Verdict::Throttled, 503)];
    assert_eq!(config.check.http_status, statuses.into());
}

#[test]
fn a_wrong_value_is_named_with_its_place_and_what_is_allowed() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "server",
            "grpc_addr = \"localhost:50051\"",
            "`localhost:50051` is not allowed; expected an IP address and a port",
        ),
        ("server", "workers = -1", "`-1` is not allowed; expected a whole number from 0 to 1024"),
        ("server", "workers = \"4\"", "`4` is not allowed; expected a whole number"),
        ("server", "workers = 99999999999999999999999", "is not allowed"),
        ("server", "connections_max = 1.5", "a fraction is not allowed"),
        ("server", "request_timeout = 30", "`30` is not allowed; expected a length of time from `1s` to `1h`"),
        ("server", "request_timeout = \"30\"", "`30` is not allowed"),
        ("server", "request_timeout = \"2h\"", "`2h` is not allowed"),
        ("server", "request_timeout = \"1 s\"", "`1 s` is not allowed"),
        ("server", "message_bytes_max = \"64KB\"", "`64KB` is not allowed; expected a size in `B`, `KiB` or `MiB`"),
        ("server", "message_bytes_max = \"1GiB\"", "is not allowed"),
        ("server", "reflection = \"yes\"", "`yes` is not allowed; expected `true` or `false`"),
        ("server", "tls = \"cert.pem\"", "a section; expected `[server.tls]` and its keys"),
        ("server", "grpc_adr = \"127.0.0.1:1\"", "unknown; did you mean `server.grpc_addr`?"),
        ("server", "database = \"sqlite:x\"", "unknown; did you mean `store.database`?"),
        ("server.tls", "cert_file = \"\"", "expected the path of a file"),
        ("store", "database = \"postgres://u:hunter2 @h/db\"", "this is no URL of a PostgreSQL database"),
        ("store", "database = \"mysql://u:hunter2@h/db\"", "this kind of database is not supported"),
        ("store", "database = \"sqlite::memory:\"", "is not allowed; expected `sqlite:PATH`"),
        ("store", "database = \"t.sqlite\"", "is not allowed; expected `sqlite:PATH`"),
        ("check", "auth = \"on\"", "`on` is not allowed; expected `required` or `off`"),
        ("check", "http_status = { UNKNOWN = 200 }", "`UNKNOWN` has `200`; expected a status from 400 to 599"),
        ("check", "http_status = { UNKOWN = 403 }", "did you mean `UNKNOWN`?"),
        ("check", "http_status = { ALLOWED = 403 }", "`ALLOWED` is no verdict that denies"),
        ("check", "http_status = [403]", "a list is not allowed"),
        ("keys", "prefix = \"SK\"", "`SK` is not allowed; expected 1 to 16 characters"),
        ("usage", "flush_interval = \"50ms\"", "from `100ms` to `10s`"),
        ("log", "filter = \"info,=\"", "is not allowed"),
        ("log", "format = \"xml\"", "`auto` or `pretty` or `json`"),
    ];
    for (section, line, expected) in rows {
        let said = problem(&format!("\n[{section}]\n{line}\n"), &[], &[]);
        assert!(said.contains(expected), "{line}: {said}");
        assert!(said.contains("t.toml, line 3"), "{line}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
        let key = format!("`{section}.{}`", line.split(' ').next().unwrap());
        assert!(said.contains(&key) || said.contains("not TOML"), "{line}: {said}");
    }
}

#[test]
fn every_setting_refuses_nonsense_by_its_name_from_every_source() {
    let nonsense = "\0 nonsense =,=";
    for key in KEYS {
        let said = problem("", &[(&key.env(), nonsense)], &[]);
        let expected = format!("`{}` (environment variable {}): ", key.name, key.env());
        assert!(said.starts_with(&expected) && said.contains(&key.allowed()), "{said}");
        let said = problem("", &[], &[(key.name, nonsense)]);
        assert!(said.starts_with(&format!("`{}` (flag --{}): ", key.name, key.flag())), "{said}");
    }
}

#[test]
fn all_problems_are_said_at_once() {
    let said = problem("[server]\nworkers = -1\nport = 1\n[log]\nformat = \"x\"\n", &[("TOLLGATE_GRPC_ADR", "x")], &[]);
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(said.contains("environment variable TOLLGATE_GRPC_ADR: unknown; did you mean `TOLLGATE_GRPC_ADDR`?"));
}

#[test]
fn a_file_that_is_no_toml_or_not_there() {
    let said = problem("[server\nworkers = 1", &[], &[]);
    assert!(said.starts_with("t.toml, line 1: not TOML: "), "{said}");
    let said = problem("[server]\nworkers = 1\nworkers = 2\n", &[], &[]);
    assert!(said.starts_with("t.toml, line 3: not TOML: "), "{said}");
    let missing = Sources { file: Some(PathBuf::from("no/such.toml")), ..Sources::default() };
    let said = load(&missing).unwrap_err().to_string();
    assert!(said.starts_with("`no/such.toml` can't be read: "), "{said}");
}

#[test]
fn variables_that_are_no_settings_are_left_alone() {
    let known = [
        ("TOLLGATE_TOKEN", "sk_live_x"),
        ("TOLLGATE_TEST_ANYTHING", "1"),
        ("TOLLGATE_REQUIRE_TOOLS", "1"),
        ("TOLLGATE_BENCH_KEYS", "1"),
        ("PATH", "/bin"),
        // What Kubernetes sets in every pod beside a service that is called `tollgate`.
        ("TOLLGATE_SERVICE_HOST", "10.0.0.1"),
        ("TOLLGATE_SERVICE_PORT", "50051"),
        ("TOLLGATE_SERVICE_PORT_GRPC", "50051"),
        ("TOLLGATE_PORT", "tcp://10.0.0.1:50051"),
        ("TOLLGATE_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("TOLLGATE_PORT_50051_TCP_PROTO", "tcp"),
        ("TOLLGATE_PORT_50051_TCP_PORT", "50051"),
        ("TOLLGATE_PORT_50051_TCP_ADDR", "10.0.0.1"),
    ];
    assert_eq!(loaded("", &known, &[]).config, Config::default());
    for unknown in ["TOLLGATE_PORT", "TOLLGATE_GRPC_PORT", "TOLLGATE_SECRET"] {
        let said = problem("", &[(unknown, "50051-hunter2")], &[]);
        assert!(said.contains(unknown) && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn settings_that_contradict_each_other() {
    let rows = [
        ("[server.tls]\ncert_file = \"c\"", "`server.tls.cert_file` (t.toml, line 2): needs `server.tls.key_file`"),
        ("[server.tls]\nkey_file = \"c\"", "`server.tls.key_file` (t.toml, line 2): needs `server.tls.cert_file`"),
        ("[server.tls]\nclient_ca_file = \"c\"", "needs `server.tls.cert_file`"),
        ("[server]\nhttp_addr = \"127.0.0.1:50051\"", "must differ from `server.grpc_addr`"),
        ("[replicas]\nfence = \"1s\"\npoll_interval = \"501ms\"", "at most half of `replicas.fence`"),
        ("[edge]\nclient_names = [\"envoy\"]", "needs `server.tls.client_ca_file`"),
        ("[edge]\ncredential_headers = [\"x-auth-token\"]", "`x-auth-token` begins with `edge.identity_prefix`"),
    ];
    for (file, expected) in rows {
        let said = problem(file, &[], &[]);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn what_is_dangerous_is_warned_of() {
    let open = ("server.grpc_addr", "0.0.0.0:50051");
    let off = ("check.auth", "off");
    let tls = "[server.tls]\ncert_file = \"c\"\nkey_file = \"k\"";
    assert_eq!(loaded("", &[], &[off]).config.warnings().len(), 0);
    assert_eq!(loaded(tls, &[], &[open]).config.warnings().len(), 0);
    assert_eq!(loaded("", &[], &[open]).config.warnings().len(), 1);
    assert_eq!(loaded(tls, &[], &[open, off]).config.warnings().len(), 1);
    let both = loaded("", &[], &[open, off]).config.warnings();
    assert_eq!(both.len(), 2);
    assert!(both[0].contains("TLS is off") && both[1].contains("WHOEVER REACHES THIS PORT"));
    let everybody = loaded("", &[], &[("edge.trusted_proxies", "10.0.0.0/8,::/0")]).config.warnings();
    assert!(everybody.len() == 1 && everybody[0].contains("`::/0`"), "{everybody:?}");
}

#[test]
fn a_list_is_one_in_the_file_and_separated_by_commas_elsewhere() {
    let file = "[edge]\ncredential_headers = [\"x-key\", \"x-api-key\"]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]";
    let edge = loaded(file, &[], &[]).config.edge;
    assert_eq!(edge.credential_headers, ["x-key", "x-api-key"]);
    assert_eq!(edge.trusted_proxies.len(), 2);
    let edge = loaded(file, &[], &[("edge.credential_headers", "x-a, x-b"), ("edge.trusted_proxies", "")]).config.edge;
    assert_eq!((edge.credential_headers.join(" "), edge.trusted_proxies.len()), ("x-a x-b".to_owned(), 0));
    for (value, expected) in [
        ("[\"x-a\", \"X-Key\"]", "`X-Key` is not allowed; expected a list"),
        ("[\"authorization\"]", "`authorization` is not allowed"),
        ("[\"x-tollgate-token\"]", "`x-tollgate-token` is not allowed"),
        ("[\"x-forwarded-for\"]", "`x-forwarded-for` is not allowed"),
        ("[\"referer\"]", "`referer` is not allowed"),
        ("[1]", "a list is not allowed"),
        ("\"x-key\"", "`x-key` is not allowed; expected a list"),
    ] {
        let said = problem(&format!("[edge]\ncredential_headers = {value}"), &[], &[]);
        assert!(said.contains(expected), "{value}: {said}");
    }
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    for key in KEYS {
        let Some(shown) = key.show(&Config::default()) else { continue };
        let (section, name) = key.name.rsplit_once('.').unwrap();
        let config = loaded(&format!("[{section}]\n{name} = {shown}\n"), &[], &[]).config;
        assert_eq!(config, Config::default(), "{}", key.name);
    }
    let shown = "{ UNKNOWN = 403, REVOKED = 410 }";
    let config = loaded(&format!("[check]\nhttp_status = {shown}"), &[], &[]).config;
    let key = KEYS.iter().find(|key| key.name == "check.http_status").unwrap();
    assert_eq!(key.show(&config).unwrap(), shown);
}

#[test]
fn the_documented_table_is_the_table_of_settings() {
    let documented = include_str!("../docs/configuration.md");
    let cell = |text: &str| text.replace('|', "\\|");
    let row = |key: &tollgate::config::Key| {
        let default = key.show(&Config::default()).map_or_else(|| "not set".to_owned(), |value| format!("`{value}`"));
        format!(
            "| `{}` | `{}` | `--{}` | {} | {} | {} |",
            key.name,
            key.env(),
            key.flag(),
            cell(&default),
            cell(&key.allowed()),
            cell(key.help)
        )
    };
    let expected: Vec<String> = KEYS.iter().map(row).collect();
    let rows: Vec<&str> = documented.lines().filter(|line| line.starts_with("| `") && line.contains("`--")).collect();
    assert!(rows == expected, "docs/configuration.md should have these rows:\n{}\n", expected.join("\n"));
}

#[test]
fn the_example_has_every_setting_at_its_default_and_holds() {
    let example = include_str!("../deploy/tollgate.toml");
    assert_eq!(loaded(example, &[], &[]).config, Config::default());
    let mut rows = 0;
    let mut section = "";
    for line in example.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let Some((name, value)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) else { continue };
        let key = KEYS.iter().find(|key| key.name == format!("{section}.{name}")).unwrap_or_else(|| panic!("{line}"));
        if let Some(default) = key.show(&Config::default()) {
            assert_eq!(value, default, "{section}.{name}");
        }
        let cert = "\n[server.tls]\ncert_file = \"c\"\nkey_file = \"k\"\n";
        let cert = if section == "server.tls" { "" } else { cert };
        let file = format!("[{section}]\n{name} = {value}\n{cert}");
        let (sources, _dir) = sources(&file, &[], &[]);
        // One of the certificate's files alone is a contradiction, which is not what is looked at here.
        if let Err(error) = load(&sources) {
            assert!(section == "server.tls" && error.to_string().contains("needs"), "{line}: {error}");
        }
        rows += 1;
    }
    assert_eq!(rows, KEYS.len());
}

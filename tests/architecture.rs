//! The layers point inward. Each rule is stated as an absence; a new module at the top must be given its rule here.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules at the top, from the inside out. What a layer knows of the others stands in [`NEVER`].
const LAYERS: [&str; 12] = [
    "domain",
    "decision",
    "ambient",
    "telemetry",
    "journal",
    "store",
    "engine",
    "tasks",
    "config",
    "proto",
    "transport",
    "app",
];
/// Beside the layers: what people type, and the two roots.
const EDGES: [&str; 3] = ["cli", "lib", "main"];

/// Who never knows of what. Both are paths: of modules of this crate, and of those or of other crates.
const NEVER: [(&[&str], &[&str]); 7] = [
    (
        &["domain", "decision"],
        &[
            "crate::engine",
            "crate::store",
            "crate::transport",
            "crate::tasks",
            "crate::ambient",
            "crate::cli",
            "crate::config",
            "crate::app",
            "crate::telemetry",
            "crate::proto",
            "tonic",
            "prost",
            "prost_types",
            "sqlx",
            "tokio",
            "tracing",
            "hyper",
            "http",
            "std::fs",
            "std::net::TcpStream",
            "std::thread",
            "std::env",
        ],
    ),
    (&["domain"], &["crate::decision"]),
    (
        &["engine"],
        &[
            "crate::transport",
            "crate::cli",
            "crate::app",
            "crate::tasks",
            "crate::proto",
            "crate::config",
            "tonic",
            "prost",
            "prost_types",
            "sqlx",
            "hyper",
            "http",
        ],
    ),
    (
        &["store"],
        &[
            "crate::engine",
            "crate::transport",
            "crate::cli",
            "crate::app",
            "crate::tasks",
            "crate::proto",
            "crate::config",
            "tonic",
            "prost",
            "prost_types",
            "hyper",
            "http",
        ],
    ),
    (
        &["ambient", "telemetry", "journal", "config", "proto"],
        &["crate::engine", "crate::store", "crate::transport", "crate::app", "crate::cli", "sqlx"],
    ),
    (&["tasks", "transport"], &["crate::app", "crate::cli", "sqlx"]),
    (&["app", "lib", "transport", "tasks"], &["crate::cli"]),
];

/// What only these know of.
const ONLY: [(&[&str], &[&str]); 7] = [
    (&["journal"], &["vmap", "zerocopy"]),
    (&["journal", "ambient"], &["rustix"]),
    (&["store::sqlite", "store::postgres", "store::shared"], &["sqlx"]),
    (&["transport", "cli", "proto"], &["crate::proto"]),
    (&["store::metered", "app", "tasks", "transport", "telemetry"], &["crate::telemetry"]),
    (
        &["ambient"],
        &[
            "std::time::Instant",
            "std::time::SystemTime",
            "time::Instant",
            "time::SystemTime",
            "Timestamp::now",
            "jiff::Timestamp::now",
            "Zoned::now",
            "jiff::Zoned::now",
            "getrandom",
            "rand",
            "uuid",
            "std::hash::RandomState",
        ],
    ),
    (&["transport", "cli", "proto", "app", "telemetry"], &["tonic"]),
];

const LINES_MAX: usize = 600;

/// What stands in a file, so that a rule can be held against it.
#[derive(Debug)]
struct Source {
    /// Its module, as in `store::sqlite`.
    module: String,
    /// All paths of at least two segments in its code, tests left out, from their root.
    paths: BTreeSet<String>,
    lines: usize,
}

#[test]
fn the_layers_point_inward() {
    let violations: Vec<String> = sources().iter().flat_map(violations).collect();
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn every_module_at_the_top_has_its_place() {
    for source in sources() {
        let top = source.module.split("::").next().unwrap();
        assert!(LAYERS.contains(&top) || EDGES.contains(&top), "`{top}` has no rule in tests/architecture.rs");
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let long: Vec<_> = sources().into_iter().filter(|source| source.lines > LINES_MAX).collect();
    assert!(long.is_empty(), "split these: {:?}", long.iter().map(|s| (&s.module, s.lines)).collect::<Vec<_>>());
}

/// The rules are only worth something if a breach is found, however it is written.
#[test]
fn a_planted_violation_is_found() {
    for (module, code) in [
        ("decision::quota", "use crate::engine::Engine;"),
        ("decision::quota", "use crate::{\n    domain::Key,\n    store::{self, Store},\n};"),
        ("decision::quota", "fn now() -> u64 { crate::ambient::Clock::system() }"),
        ("decision::quota", "use super::super::engine;"),
        ("decision::quota", "async fn f() { tokio::time::sleep(x).await }"),
        ("decision::quota", "use std::time::{Duration, SystemTime};"),
        ("domain::key", "#[derive(sqlx::FromRow)] struct Row;"),
        ("domain::key", "tracing::info!(\"a key\");"),
        ("engine::key", "use tonic::Status;"),
        ("engine::key", "use super::super::transport::grpc as outer;"),
        ("engine", "use super::transport::grpc;"),
        ("store::mod_less", "use crate::telemetry::metrics::Metrics;"),
        ("store::sqlite", "use crate::engine::Error;"),
        ("transport::grpc::convert", "use sqlx::Row;"),
        ("app::serve", "use crate::cli::out;"),
        ("app::serve", "use crate::proto::v1;"),
        ("tasks", "let x = std::time::Instant::now();"),
        ("tasks", "use std::time::*;"),
        ("tasks", "use std::time; fn f() { let a = time::Instant::now(); }"),
    ] {
        let source = Source { module: module.to_owned(), paths: paths(module, code), lines: 1 };
        assert!(!violations(&source).is_empty(), "not found in `{module}`: {code} {:?}", source.paths);
    }
    for (module, code) in [
        ("decision::quota", "// use crate::engine::Engine;\n/* tokio::spawn */ const A: &str = \"sqlx::query\";"),
        ("decision::quota", "use std::time::Duration; use super::window; use crate::domain::Key;"),
        ("decision::quota", "#[cfg(test)]\nmod tests {\n    use crate::engine::Engine;\n}"),
        ("decision::quota", "fn f<'a>(text: &'a str) -> char { let c = '\"'; c } // tokio::spawn \""),
        ("store::metered", "use crate::telemetry::metrics::Metrics;"),
        ("engine::key", "use super::Engine; use super::index::{self, Found};"),
    ] {
        let source = Source { module: module.to_owned(), paths: paths(module, code), lines: 1 };
        assert_eq!(violations(&source), Vec::<String>::new(), "{code} {:?}", source.paths);
    }
}

fn violations(source: &Source) -> Vec<String> {
    let is_in = |modules: &[&str]| modules.iter().any(|module| begins(&source.module, module));
    let never = NEVER.iter().filter(|(of, _)| is_in(of));
    let only = ONLY.iter().filter(|(of, _)| !is_in(of));
    let mut found = Vec::new();
    for (_, foreign) in never.chain(only) {
        for path in source.paths.iter().filter(|path| foreign.iter().any(|foreign| begins(path, foreign))) {
            found.push(format!("`{}` must not know of `{path}`", source.module));
        }
    }
    found
}

/// Whether a path is another, or something inside it, or all of what that is inside of.
fn begins(path: &str, with: &str) -> bool {
    let all = path.strip_suffix("*").is_some_and(|all| with.starts_with(all));
    all || path.strip_prefix(with).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 50, "where is the code?");
    let sources = files.iter().filter(|file| file.file_name().is_none_or(|name| name != "tests.rs")).map(|file| {
        let code = fs::read_to_string(file).unwrap();
        let module = file.strip_prefix(&root).unwrap().with_extension("");
        let module: Vec<_> = module.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
        let module = module.join("::");
        Source { paths: paths(&module, &code), lines: code.lines().count(), module }
    });
    sources.collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// All paths in some code, written from their root: `super` and `crate` resolved, groups of a `use` multiplied out.
fn paths(module: &str, code: &str) -> BTreeSet<String> {
    // By convention the tests of a file are its last part.
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
    let tokens = tokens(code);
    let mut found = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_name(&tokens[at]) {
            at = read_path(&tokens, at, &[], &mut found);
        } else {
            at += 1;
        }
    }
    found.iter().filter(|path| path.len() > 1).map(|path| rooted(module, path)).collect()
}

/// Reads the path, or the group of paths, that begins at a token; returns the token after it.
fn read_path(tokens: &[String], mut at: usize, before: &[String], found: &mut BTreeSet<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") if !path.is_empty() => {
                at += 1;
                while let Some(token) = tokens.get(at).filter(|token| *token != "}") {
                    let inner = is_name(token) || token == "{";
                    at = if inner { read_path(tokens, at, &path, found) } else { at + 1 };
                }
                return at + 1;
            }
            Some(name) if is_name(name) || (name == "*" && !path.is_empty()) => {
                path.push(name.to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at).is_some_and(|token| token == "::") {
            at += 1;
        } else {
            break;
        }
    }
    found.insert(path);
    at
}

/// A path from the crate's root, or from another crate.
fn rooted(module: &str, path: &[String]) -> String {
    let mut here: Vec<&str> = std::iter::once("crate").chain(module.split("::")).collect();
    let mut rest = path.iter().map(String::as_str).peekable();
    if !matches!(rest.peek(), Some(&"super" | &"self")) {
        return rest.collect::<Vec<_>>().join("::");
    }
    while let Some(step) = rest.next_if(|step| matches!(*step, "super" | "self")) {
        if step == "super" {
            here.pop();
        }
    }
    here.extend(rest);
    here.join("::")
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Names, `::` and single marks; comments and literals left out.
fn tokens(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let name = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').count();
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            literal(rest, '"')
        } else if first == '\'' {
            // A lifetime, or a character: the latter ends with its mark, and may be one.
            let mut next = rest.chars().skip(1);
            let (body, end) = (next.next(), next.next());
            if body == Some('\\') || end == Some('\'') { literal(rest, '\'') } else { 1 }
        } else if name > 0 {
            found.push(rest.split_at(name).0.to_owned());
            name
        } else if rest.starts_with("::") {
            found.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                found.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = rest.split_at(length).1;
    }
    found
}

/// The length of a literal that begins with a mark and ends with the next that is not escaped.
fn literal(text: &str, mark: char) -> usize {
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        if c == mark && !escaped {
            return place + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

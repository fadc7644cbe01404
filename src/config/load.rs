//! Reads the settings from their sources, and says of every wrong one what it is called, where it stands, and what is
//! allowed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::rule::Raw;
use super::{Config, KEYS, Key};

/// Where settings come from; each is stronger than the one before.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The environment. Names that do not begin with `TOLLGATE_` are passed over.
    pub env: Vec<(OsString, OsString)>,
    /// Settings by flag: their full names and values.
    pub flags: Vec<(&'static str, String)>,
}

/// The settings, and where each comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Where those that are not defaults come from, by full name.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file, by its path and line, from 1.
    File(PathBuf, usize),
    /// A variable of the environment.
    Env(String),
    /// A flag, with its dashes.
    Flag(String),
}

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its full name, where it has one.
    pub key: Option<String>,
    /// Where it stands. Absent for a contradiction between defaults and for a file that can't be read.
    pub origin: Option<Origin>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// Everything that is wrong with the settings; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// In the order of the sources.
    pub problems: Vec<Problem>,
}

/// Variables that are not settings: those of the client commands.
const CLIENT_VARIABLES: [&str; 8] = [
    "TOLLGATE_TOKEN",
    "TOLLGATE_TOKEN_FILE",
    "TOLLGATE_ENDPOINT",
    "TOLLGATE_CONFIG",
    "TOLLGATE_CA_FILE",
    "TOLLGATE_CLIENT_CERT",
    "TOLLGATE_CLIENT_KEY",
    "TOLLGATE_CHECK_KEY",
];

/// Beginnings of variables that the tests and benchmarks read.
const FOREIGN_PREFIXES: [&str; 3] = ["TOLLGATE_TEST_", "TOLLGATE_REQUIRE_", "TOLLGATE_BENCH_"];

/// Reads the settings.
///
/// # Errors
///
/// Everything that is wrong, not only the first.
pub fn load(sources: &Sources) -> Result<Loaded, Error> {
    let mut loading = Loading::default();
    if let Some(path) = &sources.file {
        loading.file(path);
    }
    for (name, value) in &sources.env {
        loading.variable(name, value);
    }
    for (name, value) in &sources.flags {
        if let Some(key) = Key::find(name) {
            loading.set(key, &Raw::Untyped(value), Origin::Flag(format!("--{}", key.flag())));
        }
    }
    loading.finish()
}

/// The known name most like this one, if one is.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 > 0.8).then_some(best.1)
}

#[derive(Default)]
struct Loading {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    problems: Vec<Problem>,
}

impl Loading {
    fn set(&mut self, key: &'static Key, raw: &Raw<'_>, origin: Origin) {
        match key.set(&mut self.config, raw) {
            Ok(()) => {
                self.origins.insert(key.name, origin);
            }
            Err(message) => self.problem(Some(key.name), Some(origin), message),
        }
    }

    fn problem(&mut self, key: Option<&str>, origin: Option<Origin>, message: String) {
        self.problems.push(Problem { key: key.map(str::to_owned), origin, message });
    }

    fn file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                return self.problem(None, None, format!("`{}` can't be read: {error}", path.display()));
            }
        };
        let line = |offset: usize| {
            let before = text.bytes().take(offset);
            Origin::File(path.to_owned(), before.filter(|byte| *byte == b'\n').count() + 1)
        };
        match DeTable::parse(&text) {
            Ok(table) => self.table("", table.get_ref(), &line),
            Err(error) => {
                let origin = error.span().map(|span| line(span.start));
                self.problem(None, origin, format!("not TOML: {}", error.message().to_lowercase()));
            }
        }
    }

    fn table(&mut self, section: &str, table: &DeTable<'_>, line: &impl Fn(usize) -> Origin) {
        for (name, value) in table {
            let full = if section.is_empty() { name.get_ref().to_string() } else { format!("{section}.{name}") };
            let origin = line(name.span().start);
            let inside = format!("{full}.");
            let is_section = KEYS.iter().any(|key| key.name.starts_with(&inside));
            match (Key::find(&full), value.get_ref()) {
                (Some(key), value) => self.set(key, &raw(value), origin),
                (None, DeValue::Table(table)) if is_section => self.table(&full, table, line),
                (None, _) if is_section => {
                    let message = format!("a section; expected `[{full}]` and its keys");
                    self.problem(Some(&full), Some(origin), message);
                }
                (None, _) => {
                    let message = unknown(&full, KEYS.iter().map(|key| key.name.to_owned()));
                    self.problem(Some(&full), Some(origin), message);
                }
            }
        }
    }

    fn variable(&mut self, name: &OsString, value: &OsString) {
        let name = name.to_string_lossy();
        if !name.starts_with("TOLLGATE_")
            || CLIENT_VARIABLES.contains(&&*name)
            || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        {
            return;
        }
        let origin = Origin::Env(name.to_string());
        let key = KEYS.iter().find(|key| key.env() == name);
        match (key, value.to_str()) {
            (Some(key), Some(value)) => self.set(key, &Raw::Untyped(value), origin),
            (Some(key), None) => self.problem(Some(key.name), Some(origin), "not UTF-8".into()),
            (None, value) if is_service_link(&name, value.unwrap_or_default()) => {}
            (None, _) => {
                let message = unknown(&name, KEYS.iter().map(Key::env));
                self.problem(None, Some(origin), message);
            }
        }
    }

    fn finish(mut self) -> Result<Loaded, Error> {
        if self.problems.is_empty() {
            for (name, message) in self.config.contradictions() {
                self.problem(Some(name), self.origins.get(name).cloned(), message);
            }
        }
        if self.problems.is_empty() {
            return Ok(Loaded { config: self.config, origins: self.origins });
        }
        Err(Error { problems: self.problems })
    }
}

/// Variables by which Kubernetes tells every pod of a service whose name begins with `tollgate`. They come unasked, so
/// they are no mistake of the operator's.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.contains("_PORT") && value.contains("://"))
        || ["_PROTO", "_PORT", "_ADDR"]
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|rest| rest.ends_with("_TCP") || rest.ends_with("_UDP")))
}

fn unknown(name: &str, known: impl Iterator<Item = String>) -> String {
    let known: Vec<String> = known.collect();
    // A key under the wrong section is nearer by its last word than by its whole name.
    let last = name.rsplit('.').next().unwrap_or(name);
    let moved = known.iter().find(|full| name.contains('.') && full.rsplit('.').next() == Some(last));
    let near = moved.map(String::as_str).or_else(|| nearest(name, known.iter().map(String::as_str)));
    match near {
        Some(near) => format!("unknown; did you mean `{near}`?"),
        None => "unknown; `docs/configuration.md` lists what is".into(),
    }
}

fn raw<'a>(value: &'a DeValue<'_>) -> Raw<'a> {
    match value {
        DeValue::String(text) => Raw::Text(text),
        DeValue::Integer(number) => {
            let digits = number.as_str();
            i128::from_str_radix(digits, number.radix()).map_or(Raw::Other("a number out of range"), Raw::Integer)
        }
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Table(table) => {
            let entry = |(name, value): (&'a Spanned<_>, &'a Spanned<DeValue<'_>>)| {
                let name: &'a std::borrow::Cow<'_, str> = name.get_ref();
                (&**name, raw(value.get_ref()))
            };
            Raw::Table(table.iter().map(entry).collect())
        }
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            texts.map_or(Raw::Other("a list"), Raw::List)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, &self.origin) {
            (Some(key), Some(origin)) => write!(f, "`{key}` ({origin}): {}", self.message),
            (Some(key), None) => write!(f, "`{key}`: {}", self.message),
            (None, Some(origin)) => write!(f, "{origin}: {}", self.message),
            (None, None) => f.write_str(&self.message),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

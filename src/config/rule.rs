//! What values may be: each rule reads a value, says what is allowed, and writes a value as TOML.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{Database, Journal, PostgresUrl};
use crate::domain::{Verdict, shown};

/// A value as its source gives it.
#[derive(Clone, Debug)]
pub(super) enum Raw<'a> {
    /// Of the environment or a flag, which know no types.
    Untyped(&'a str),
    /// A string of the file.
    Text(&'a str),
    /// An integer of the file.
    Integer(i128),
    /// `true` or `false` in the file.
    Boolean(bool),
    /// A list of strings of the file.
    List(Vec<&'a str>),
    /// A table of the file.
    Table(Vec<(&'a str, Self)>),
    /// Something else of the file, by its name: no setting is one.
    Other(&'static str),
}

impl Raw<'_> {
    /// As it is shown in an error.
    fn shown(&self) -> String {
        match self {
            Self::Untyped(text) | Self::Text(text) => {
                format!("`{}`", text.chars().take(100).collect::<String>().escape_debug())
            }
            Self::Integer(number) => format!("`{number}`"),
            Self::Boolean(value) => format!("`{value}`"),
            Self::List(_) => "a list".into(),
            Self::Table(_) => "a table".into(),
            Self::Other(what) => (*what).into(),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Untyped(text) | Self::Text(text) => Some(text),
            Self::Integer(_) | Self::Boolean(_) | Self::List(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Self::Untyped(text) => text.parse().ok(),
            Self::Integer(number) => Some(*number),
            Self::Text(_) | Self::Boolean(_) | Self::List(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }
}

/// What a value may be.
pub(super) trait Rule {
    /// What it is once read.
    type Value;

    /// Reads a value. Absent where it is not allowed.
    fn read(&self, raw: &Raw<'_>) -> Option<Self::Value>;

    /// What is allowed, for people.
    fn allowed(&self) -> String;

    /// As TOML. Absent where it is not set.
    fn show(&self, value: &Self::Value) -> Option<String>;

    /// Puts the value into its field, or says what is wrong with it.
    fn apply(&self, field: &mut Self::Value, raw: &Raw<'_>) -> Result<(), String> {
        match self.read(raw) {
            Some(value) => {
                *field = value;
                Ok(())
            }
            None => Err(format!("{} is not allowed; expected {}", raw.shown(), self.allowed())),
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// `IP:PORT`.
pub(super) struct Addr;

impl Rule for Addr {
    type Value = SocketAddr;

    fn read(&self, raw: &Raw<'_>) -> Option<SocketAddr> {
        raw.text()?.parse().ok()
    }

    fn allowed(&self) -> String {
        "an IP address and a port, such as `127.0.0.1:50051` or `[::1]:50051`".into()
    }

    fn show(&self, value: &SocketAddr) -> Option<String> {
        Some(quoted(&value.to_string()))
    }
}

/// A whole number.
pub(super) struct Count {
    pub(super) min: usize,
    pub(super) max: usize,
}

impl Rule for Count {
    type Value = usize;

    fn read(&self, raw: &Raw<'_>) -> Option<usize> {
        let number = usize::try_from(raw.integer()?).ok()?;
        (self.min..=self.max).contains(&number).then_some(number)
    }

    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    fn show(&self, value: &usize) -> Option<String> {
        Some(value.to_string())
    }
}

/// `true` or `false`.
pub(super) struct Switch;

impl Rule for Switch {
    type Value = bool;

    fn read(&self, raw: &Raw<'_>) -> Option<bool> {
        match raw {
            Raw::Boolean(value) => Some(*value),
            Raw::Untyped(text) => text.parse().ok(),
            Raw::Text(_) | Raw::Integer(_) | Raw::List(_) | Raw::Table(_) | Raw::Other(_) => None,
        }
    }

    fn allowed(&self) -> String {
        "`true` or `false`".into()
    }

    fn show(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }
}

/// A length of time with its unit.
pub(super) struct Length {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Rule for Length {
    type Value = Duration;

    fn read(&self, raw: &Raw<'_>) -> Option<Duration> {
        let value = parse_duration(raw.text()?)?;
        (self.min..=self.max).contains(&value).then_some(value)
    }

    fn allowed(&self) -> String {
        format!("a length of time from `{}` to `{}`", show_duration(self.min), show_duration(self.max))
    }

    fn show(&self, value: &Duration) -> Option<String> {
        Some(quoted(&show_duration(*value)))
    }
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A whole number and one of `ms`, `s`, `m`, `h` and `d`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*millis).map(Duration::from_millis)
}

/// In the largest unit that leaves no rest.
pub(crate) fn show_duration(value: Duration) -> String {
    let millis = value.as_millis();
    let unit = UNITS.iter().find(|(_, unit)| millis > 0 && millis.is_multiple_of(u128::from(*unit)));
    let (name, unit) = unit.unwrap_or(&("s", 1_000));
    format!("{}{name}", millis / u128::from(*unit))
}

/// A number of bytes with its unit.
pub(super) struct Size {
    pub(super) min: usize,
    pub(super) max: usize,
}

const SIZES: [(&str, usize); 3] = [("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn show_size(value: usize) -> String {
    let unit = SIZES.iter().find(|(_, unit)| value.is_multiple_of(*unit));
    let (name, unit) = unit.unwrap_or(&("B", 1));
    format!("{}{name}", value / unit)
}

impl Rule for Size {
    type Value = usize;

    fn read(&self, raw: &Raw<'_>) -> Option<usize> {
        let text = raw.text()?;
        let (number, unit) = text.split_at_checked(text.find(|c: char| !c.is_ascii_digit())?)?;
        let (_, unit) = SIZES.iter().find(|(name, _)| *name == unit)?;
        let bytes = number.parse::<usize>().ok()?.checked_mul(*unit)?;
        (self.min..=self.max).contains(&bytes).then_some(bytes)
    }

    fn allowed(&self) -> String {
        format!("a size in `B`, `KiB` or `MiB`, from `{}` to `{}`", show_size(self.min), show_size(self.max))
    }

    fn show(&self, value: &usize) -> Option<String> {
        Some(quoted(&show_size(*value)))
    }
}

/// A file's path.
pub(super) struct File;

impl Rule for File {
    type Value = Option<PathBuf>;

    fn read(&self, raw: &Raw<'_>) -> Option<Option<PathBuf>> {
        let text = raw.text().filter(|text| !text.is_empty() && !text.contains('\0'))?;
        Some(Some(PathBuf::from(text)))
    }

    fn allowed(&self) -> String {
        "the path of a file".into()
    }

    fn show(&self, value: &Option<PathBuf>) -> Option<String> {
        value.as_ref().map(|path| quoted(&path.to_string_lossy()))
    }
}

/// Where a journal is kept.
pub(super) struct JournalPlace;

impl Rule for JournalPlace {
    type Value = Journal;

    fn read(&self, raw: &Raw<'_>) -> Option<Journal> {
        match File.read(raw)?? {
            path if path.as_os_str() == "auto" => Some(Journal::Auto),
            path if path.as_os_str() == "off" => Some(Journal::Off),
            path => Some(Journal::At(path)),
        }
    }

    fn allowed(&self) -> String {
        "`auto` for beside a SQLite database, `off`, or the path of a file".into()
    }

    fn show(&self, value: &Journal) -> Option<String> {
        Some(match value {
            Journal::Auto => quoted("auto"),
            Journal::Off => quoted("off"),
            Journal::At(path) => quoted(&path.to_string_lossy()),
        })
    }
}

/// One of a few words.
pub(super) struct Word<T: 'static> {
    pub(super) words: &'static [(&'static str, T)],
}

impl<T: Copy + PartialEq> Rule for Word<T> {
    type Value = T;

    fn read(&self, raw: &Raw<'_>) -> Option<T> {
        let text = raw.text()?;
        self.words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn allowed(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|(word, _)| format!("`{word}`")).collect();
        words.join(" or ")
    }

    fn show(&self, value: &T) -> Option<String> {
        self.words.iter().find(|(_, other)| other == value).map(|(word, _)| quoted(word))
    }
}

/// Text of one form.
pub(super) struct Text {
    pub(super) is_allowed: fn(&str) -> bool,
    pub(super) allowed: &'static str,
}

impl Rule for Text {
    type Value = String;

    fn read(&self, raw: &Raw<'_>) -> Option<String> {
        raw.text().filter(|text| (self.is_allowed)(text)).map(ToOwned::to_owned)
    }

    fn allowed(&self) -> String {
        self.allowed.into()
    }

    fn show(&self, value: &String) -> Option<String> {
        Some(quoted(value))
    }
}

/// The same where it need not be set.
pub(super) struct MaybeText(pub(super) Text);

impl Rule for MaybeText {
    type Value = Option<String>;

    fn read(&self, raw: &Raw<'_>) -> Option<Option<String>> {
        self.0.read(raw).map(Some)
    }

    fn allowed(&self) -> String {
        self.0.allowed()
    }

    fn show(&self, value: &Option<String>) -> Option<String> {
        value.as_ref().and_then(|value| self.0.show(value))
    }
}

/// A list in the file, and its items separated by commas elsewhere.
pub(super) struct List<T> {
    pub(super) item: fn(&str) -> Option<T>,
    pub(super) allowed: &'static str,
}

/// Items of a list, because each may be gone through for each request.
const ITEMS_MAX: usize = 64;

impl<T: ToString> Rule for List<T> {
    type Value = Vec<T>;

    fn read(&self, raw: &Raw<'_>) -> Option<Vec<T>> {
        let items: Vec<&str> = match raw {
            Raw::List(items) => items.clone(),
            Raw::Untyped("") => Vec::new(),
            Raw::Untyped(text) => text.split(',').map(str::trim).collect(),
            Raw::Text(_) | Raw::Integer(_) | Raw::Boolean(_) | Raw::Table(_) | Raw::Other(_) => return None,
        };
        if items.len() > ITEMS_MAX {
            return None;
        }
        items.into_iter().map(self.item).collect()
    }

    fn allowed(&self) -> String {
        format!("a list of at most {ITEMS_MAX} {}", self.allowed)
    }

    fn show(&self, value: &Vec<T>) -> Option<String> {
        let items: Vec<String> = value.iter().map(|item| quoted(&item.to_string())).collect();
        Some(format!("[{}]", items.join(", ")))
    }

    fn apply(&self, field: &mut Vec<T>, raw: &Raw<'_>) -> Result<(), String> {
        if let Some(value) = self.read(raw) {
            *field = value;
            return Ok(());
        }
        // One wrong item says more than the whole list.
        let wrong =
            if let Raw::List(items) = raw { items.iter().find(|item| (self.item)(item).is_none()) } else { None };
        let what = wrong.map_or_else(|| raw.shown(), |item| format!("`{}`", shown(item)));
        Err(format!("{what} is not allowed; expected {}", self.allowed()))
    }
}

/// `sqlite:PATH`.
pub(super) struct DatabaseUrl;

impl Rule for DatabaseUrl {
    type Value = Database;

    fn read(&self, raw: &Raw<'_>) -> Option<Database> {
        if let Some(url) = raw.text().and_then(PostgresUrl::parse) {
            return Some(Database::Postgres(url));
        }
        let path = raw.text()?.strip_prefix("sqlite:")?;
        let path = path.strip_prefix("//").unwrap_or(path);
        // An in-memory database would lose every key at the end of the process, and what follows a `?` are options,
        // which could switch durability off.
        let plain = !path.is_empty() && !path.contains(['\0', '?']) && path != ":memory:";
        plain.then(|| Database::Sqlite(PathBuf::from(path)))
    }

    fn allowed(&self) -> String {
        "`sqlite:PATH`, the path of a file, or `postgres://USER@HOST/DATABASE`".into()
    }

    fn show(&self, value: &Database) -> Option<String> {
        // Without its password: what is shown is for people.
        Some(quoted(&value.to_string()))
    }

    fn apply(&self, field: &mut Database, raw: &Raw<'_>) -> Result<(), String> {
        // The URL may hold a password and is not repeated.
        match self.read(raw) {
            Some(value) => *field = value,
            None if raw.text().is_some_and(|text| text.starts_with("postgres")) => {
                return Err(format!("this is no URL of a PostgreSQL database; expected {}", self.allowed()));
            }
            None if raw.text().is_some_and(|text| text.contains("://") && text.contains('@')) => {
                return Err(format!("this kind of database is not supported; expected {}", self.allowed()));
            }
            None => return Err(format!("{} is not allowed; expected {}", raw.shown(), self.allowed())),
        }
        Ok(())
    }
}

/// What secrets begin with.
pub(super) struct KeyPrefix;

impl Rule for KeyPrefix {
    type Value = String;

    fn read(&self, raw: &Raw<'_>) -> Option<String> {
        let text = raw.text()?;
        let word = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        (word && (1..=16).contains(&text.len())).then(|| text.to_owned())
    }

    fn allowed(&self) -> String {
        "1 to 16 characters of `a-z` and `0-9`".into()
    }

    fn show(&self, value: &String) -> Option<String> {
        Some(quoted(value))
    }
}

/// A filter of the log.
pub(super) struct LogFilter;

impl Rule for LogFilter {
    type Value = String;

    fn read(&self, raw: &Raw<'_>) -> Option<String> {
        let text = raw.text()?;
        (!text.is_empty() && EnvFilter::builder().parse(text).is_ok()).then(|| text.to_owned())
    }

    fn allowed(&self) -> String {
        "`error`, `warn`, `info`, `debug`, `trace` or `off`, or a list such as `info,tollgate=debug`".into()
    }

    fn show(&self, value: &String) -> Option<String> {
        Some(quoted(value))
    }
}

/// HTTP statuses by verdict. A later source changes the verdicts that it names.
pub(super) struct Statuses;

impl Rule for Statuses {
    type Value = BTreeMap<Verdict, u16>;

    fn read(&self, raw: &Raw<'_>) -> Option<BTreeMap<Verdict, u16>> {
        match raw {
            Raw::Table(entries) => entries.iter().map(|(name, status)| entry(name, status)).collect(),
            Raw::Untyped("") => Some(BTreeMap::new()),
            Raw::Untyped(text) => {
                let entries = text.split(',').map(|pair| pair.split_once('='));
                entries.map(|pair| pair.and_then(|(name, status)| entry(name, &Raw::Untyped(status)))).collect()
            }
            Raw::Text(_) | Raw::Integer(_) | Raw::Boolean(_) | Raw::List(_) | Raw::Other(_) => None,
        }
    }

    fn allowed(&self) -> String {
        "verdicts with a status from 400 to 599 each, as in `UNKNOWN = 403`".into()
    }

    fn show(&self, value: &BTreeMap<Verdict, u16>) -> Option<String> {
        let mut text = String::new();
        for (verdict, status) in value {
            let separator = if text.is_empty() { "" } else { ", " };
            write!(text, "{separator}{} = {status}", verdict.name()).ok()?;
        }
        (!text.is_empty()).then(|| format!("{{ {text} }}"))
    }

    fn apply(&self, field: &mut BTreeMap<Verdict, u16>, raw: &Raw<'_>) -> Result<(), String> {
        match self.read(raw) {
            Some(entries) => {
                field.extend(entries);
                Ok(())
            }
            None => Err(explain(raw).unwrap_or_else(|| {
                format!("{} is not allowed; expected {}, separated by commas", raw.shown(), self.allowed())
            })),
        }
    }
}

fn entry(name: &str, status: &Raw<'_>) -> Option<(Verdict, u16)> {
    let status = u16::try_from(status.integer()?).ok().filter(|status| (400..600).contains(status))?;
    Some((denial(name)?, status))
}

/// A verdict that denies: an allowed check is never an HTTP error.
fn denial(name: &str) -> Option<Verdict> {
    Verdict::ALL.into_iter().find(|verdict| verdict.name() == name && *verdict != Verdict::Allowed)
}

/// Which entry of a table is wrong, and why.
fn explain(raw: &Raw<'_>) -> Option<String> {
    let Raw::Table(entries) = raw else { return None };
    let (name, status) = entries.iter().find(|(name, status)| entry(name, status).is_none())?;
    if denial(name).is_some() {
        return Some(format!("`{name}` has {}; expected a status from 400 to 599", status.shown()));
    }
    let names = Verdict::ALL.iter().filter(|verdict| **verdict != Verdict::Allowed).map(|verdict| verdict.name());
    let names: Vec<&str> = names.collect();
    let hint = super::load::nearest(name, names.iter().copied()).map(|near| format!("; did you mean `{near}`?"));
    Some(format!(
        "`{}` is no verdict that denies{}; expected one of {}",
        name.escape_debug(),
        hint.unwrap_or_default(),
        names.join(", ")
    ))
}

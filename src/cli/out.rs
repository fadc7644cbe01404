//! What commands print: tables for people, one JSON document for scripts. Standard output holds the answer, standard
//! error what is said about it.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use prost_types::Timestamp;
use serde::Serialize;

use super::failure::{Failure, Outcome};
use crate::proto::DESCRIPTORS;

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
}

/// Prints a line, or several.
pub(super) fn say(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end_matches('\n'))?;
    Ok(stdout.flush()?)
}

/// Prints a line to standard error. That it can't be read is no reason to fail.
pub(super) fn note(text: &str) {
    _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints any document as JSON.
pub(super) fn json(document: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(document).map_err(|error| Failure::error(error.to_string()))?;
    say(&text)
}

/// A message of the contract as JSON: field and enum names as in the contract, 64-bit integers as numbers.
pub(super) fn message_json(name: &str, message: &impl Message) -> Outcome {
    json(&as_json(name, message)?)
}

fn as_json(name: &str, message: &impl Message) -> Result<serde_json::Value, Failure> {
    let wrong = |error: &dyn std::error::Error| Failure::error(format!("can't write the answer as JSON: {error}"));
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor(name)?, bytes.as_slice()).map_err(|error| wrong(&error))?;
    let options =
        SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| wrong(&error))
}

/// The contract's own description of one of its messages.
pub(super) fn descriptor(name: &str) -> Result<MessageDescriptor, Failure> {
    static POOL: std::sync::LazyLock<Option<DescriptorPool>> =
        std::sync::LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).ok());
    let found = POOL.as_ref().and_then(|pool| pool.get_message_by_name(&format!("tollgate.v1.{name}")));
    found.ok_or_else(|| Failure::error(format!("the contract holds no message `{name}`")))
}

/// Rows below their headings.
pub(super) struct Rows(Table);

impl Rows {
    pub(super) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(headings.iter().map(|heading| heading.to_uppercase()));
        Self(table)
    }

    pub(super) fn add<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| printable(&cell)));
    }

    pub(super) fn print(&self) -> Outcome {
        say(&trimmed(&self.0))
    }
}

/// One record: a name and a value a line.
#[derive(Default)]
pub(super) struct Record(Vec<(&'static str, String)>);

impl Record {
    pub(super) fn add(&mut self, name: &'static str, value: impl Into<String>) -> &mut Self {
        self.0.push((name, value.into()));
        self
    }

    /// Leaves it out where there is nothing to say.
    pub(super) fn add_some(&mut self, name: &'static str, value: &str) -> &mut Self {
        if !value.is_empty() {
            self.add(name, value);
        }
        self
    }

    pub(super) fn print(&self) -> Outcome {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for (name, value) in &self.0 {
            table.add_row([(*name).to_owned(), printable(value)]);
        }
        say(&trimmed(&table))
    }
}

/// Without the blanks that the table pads its lines with.
fn trimmed(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> =
        text.lines().map(|line| line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end())).collect();
    lines.join("\n")
}

/// What a server says never moves the cursor.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// RFC 3339, or `never`.
pub(super) fn time(time: Option<&Timestamp>) -> String {
    time.map_or_else(|| "never".into(), ToString::to_string)
}

/// RFC 3339, or nothing.
pub(super) fn time_or_empty(time: Option<&Timestamp>) -> String {
    time.map(ToString::to_string).unwrap_or_default()
}

/// The last part of an enum's name, in lower case: `live` of `ENVIRONMENT_LIVE`.
pub(super) fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

/// Words separated by commas, or a dash.
pub(super) fn list(words: &[String]) -> String {
    if words.is_empty() { "-".into() } else { words.join(", ") }
}

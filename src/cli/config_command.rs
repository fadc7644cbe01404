//! `tollgate config`: what the settings are, and whether they hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Subcommand;
use serde::Serialize;

use super::config_args::ConfigArgs;
use super::failure::Outcome;
use super::out::{self, Output};
use crate::config::{KEYS, Loaded};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings of a file, the environment and flags, without starting anything.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print every setting as it would hold, as a TOML file, with where it comes from.
    Show {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(command: &ConfigCommand, output: Output) -> Outcome {
    match command {
        ConfigCommand::Check { config } => check(config, output),
        ConfigCommand::Show { config } => show(&config.load()?, output),
    }
}

#[derive(Serialize)]
struct Checked {
    ok: bool,
    warnings: Vec<String>,
}

fn check(args: &ConfigArgs, output: Output) -> Outcome {
    let loaded = args.load()?;
    let warnings = loaded.config.warnings();
    if output == Output::Json {
        return out::json(&Checked { ok: true, warnings });
    }
    for warning in &warnings {
        out::note(&format!("warning: {warning}"));
    }
    let source = args.file().map_or_else(|| "no file".into(), |path| format!("`{}`", path.display()));
    let set = loaded.origins.len();
    out::say(&format!(
        "the configuration is valid: {source}, {set} of {} settings are set, the others at their defaults",
        KEYS.len()
    ))
}

#[derive(Serialize)]
struct Shown {
    /// As TOML. Absent where it is not set.
    value: Option<String>,
    source: String,
}

fn show(loaded: &Loaded, output: Output) -> Outcome {
    let source = |name| loaded.origins.get(name).map_or_else(|| "default".into(), ToString::to_string);
    if output == Output::Json {
        let shown = |key: &'static crate::config::Key| {
            (key.name, Shown { value: key.show(&loaded.config), source: source(key.name) })
        };
        return out::json(&KEYS.iter().map(shown).collect::<BTreeMap<_, _>>());
    }
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        let Some((of, name)) = key.name.rsplit_once('.') else { continue };
        if of != section {
            let blank = if section.is_empty() { "" } else { "\n" };
            _ = writeln!(text, "{blank}[{of}]");
            section = of;
        }
        let line = match key.show(&loaded.config) {
            Some(value) => format!("{name} = {value}  # {}", source(key.name)),
            None => format!("# {name} is not set"),
        };
        _ = writeln!(text, "{line}");
    }
    out::say(&text)
}

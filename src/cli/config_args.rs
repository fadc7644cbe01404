//! One flag for each setting, from the table of settings.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::failure::Failure;
use crate::config::{Config, KEYS, Loaded, Sources, load};

/// The settings that were given on the command line, and the file that holds others.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigArgs {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

impl ConfigArgs {
    /// The settings of a database alone, from the environment and a flag.
    pub(super) fn for_database(file: Option<PathBuf>, database: Option<String>) -> Self {
        Self { file, flags: database.into_iter().map(|url| ("store.database", url)).collect() }
    }

    /// The same with another database.
    pub(super) fn with_database(&self, url: &str) -> Self {
        let mut flags = self.flags.clone();
        flags.retain(|(name, _)| *name != "store.database");
        flags.push(("store.database", url.to_owned()));
        Self { file: self.file.clone(), flags }
    }

    /// Reads all sources.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        let sources = Sources { file: self.file.clone(), env, flags: self.flags.clone() };
        load(&sources).map_err(|error| {
            let lines: Vec<String> = error.problems.iter().map(|problem| format!("\n  {problem}")).collect();
            Failure::error(format!("the configuration is wrong{}", lines.concat()))
        })
    }

    /// Which file is read.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }
}

impl Args for ConfigArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("TOLLGATE_CONFIG")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A file of settings (TOML); the environment and flags are stronger")
            .help_heading("Configuration");
        let defaults = Config::default();
        let flags = KEYS.iter().map(|key| {
            let default = key.show(&defaults).map(|value| format!(", default {value}")).unwrap_or_default();
            Arg::new(key.name)
                .long(key.flag())
                .value_name("VALUE")
                .help(format!("{} [{}{default}]", key.help, key.env()))
                .help_heading("Configuration")
        });
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>("config").cloned();
        let given = KEYS.iter().filter_map(|key| Some((key.name, matches.get_one::<String>(key.name)?.clone())));
        self.flags = given.collect();
        Ok(())
    }
}

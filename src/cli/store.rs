//! Commands on a store as a whole, while no server needs to run.

use std::path::PathBuf;

use clap::Subcommand;

use super::config_args::ConfigArgs;
use super::failure::{Failure, Outcome};
use super::out;
use crate::app;
use crate::domain::{KeyId, shown};

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Take a PostgreSQL database as it is, after it was restored or moved while no server was running.
    ///
    /// Servers refuse to start on such a database, because nobody knows what it has lost: keys that were revoked since may be in use in
    /// it again. What was leased of limits counts as spent.
    Adopt {
        #[command(flatten)]
        config: ConfigArgs,
        /// A file with ids of keys, one a line, that are to be revoked before any server starts.
        #[arg(long, value_name = "FILE")]
        revoke: Option<PathBuf>,
    },
}

pub(super) fn run(command: &StoreCommand) -> Outcome {
    match command {
        StoreCommand::Adopt { config, revoke } => {
            let ids = revoke.as_ref().map(read_ids).transpose()?.unwrap_or_default();
            out::say(&app::adopt(&config.load()?.config, &ids)?)
        }
    }
}

fn read_ids(path: &PathBuf) -> Result<Vec<KeyId>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            // What is no id may be a secret.
            let wrong =
                || Failure::usage(format!("{}, line {number}: `{}` is no id of a key", path.display(), shown(line)));
            KeyId::parse(line).ok_or_else(wrong)
        })
        .collect()
}

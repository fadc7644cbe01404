//! Commands on a store as a whole, while no server needs to run.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::config_args::ConfigArgs;
use super::failure::{Failure, Outcome};
use super::out::{self, Output, Rows};
use crate::app;
use crate::domain::{KeyId, shown};
use crate::store::postgres::Copied;

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
    /// Copy a SQLite store into a PostgreSQL database, once, while no server works on either.
    ///
    /// The database must have been prepared by `tollgate migrate` and hold nothing. All of it is copied and compared before any of it
    /// is there to stay. What the last server on the file had leased is settled as by the next start of one: `limits.journal` and
    /// `limits.uncertain` hold. The file is left as it is then.
    Copy {
        #[command(flatten)]
        config: ConfigArgs,
        /// The SQLite file, as `sqlite:PATH`.
        #[arg(long, value_name = "URL")]
        from: String,
        /// The database, as `postgres://USER@HOST/DATABASE`. Its password is better in `store.password_file`.
        #[arg(long, value_name = "URL")]
        to: String,
    },
}

pub(super) fn run(command: &StoreCommand, output: Output) -> Outcome {
    match command {
        StoreCommand::Adopt { config, revoke } => {
            let ids = revoke.as_ref().map(read_ids).transpose()?.unwrap_or_default();
            out::say(&app::adopt(&config.load()?.config, &ids)?)
        }
        StoreCommand::Copy { config, from, to } => copy(config, from, to, output),
    }
}

fn copy(config: &ConfigArgs, from: &str, to: &str, output: Output) -> Outcome {
    let (from, to) = (config.with_database(from).load()?.config, config.with_database(to).load()?.config);
    let Copied { tables, revision } = app::copy_store(&from, &to)?;
    out::note(&format!(
        "note: {} is now at revision {}; keep {}, and let no server work on it any more",
        to.store.database,
        revision.number(),
        from.store.database
    ));
    if output == Output::Json {
        let rows =
            tables.iter().map(|table| (table.name.to_owned(), json!({ "rows": table.rows, "sha256": table.checksum })));
        return out::json(&json!({ "revision": revision.number(), "tables": rows.collect::<serde_json::Map<_, _>>() }));
    }
    let mut rows = Rows::new(&["TABLE", "ROWS", "SHA-256"]);
    for table in tables {
        rows.add([table.name.to_owned(), table.rows.to_string(), table.checksum]);
    }
    rows.print()
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

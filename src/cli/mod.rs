//! The command line: one binary that serves, and that calls a server.
//!
//! # Adding a command
//!
//! A variant here or in its group's file, with its help; a function that calls one RPC, and prints a table or, with
//! `--output json`, the answer as the contract names its fields; a row in `docs/cli.md`.

mod accounts;
mod check;
mod client;
mod config_args;
mod config_command;
pub mod dev;
mod failure;
mod import;
mod keys;
mod out;
mod plans;
mod refund;
mod server;
mod store;
mod usage;
mod values;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser, Subcommand};

use client::ClientArgs;
use config_args::ConfigArgs;
use failure::{Exit, Outcome};
use out::Output;

use crate::domain::shown;

/// Decides, on every request, whether an API key may do this now, and what it costs.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    client: ClientArgs,
    /// How answers are printed.
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Output")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; the check was allowed
  1  it failed
  2  the command was not understood
  3  the check was denied
  4  no such key, account, plan or operation
  5  no caller's key, or one that may not do this
  6  the server can't be reached, or can't answer now";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve gRPC and HTTP.
    Serve {
        #[command(flatten)]
        config: ConfigArgs,
        /// Make a demo account with keys on an empty database, and print commands to try.
        #[arg(long)]
        dev: bool,
    },
    /// Make the first operator key, in an empty database.
    Bootstrap {
        #[command(flatten)]
        config: ConfigArgs,
        /// Make another operator key although there are keys already, for an operator who has lost theirs.
        #[arg(long)]
        again: bool,
    },
    /// Bring the database's schema up to date.
    Migrate {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Take over, or move, the store as a whole.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Make, change and end keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Make, change and suspend accounts.
    #[command(subcommand)]
    Accounts(accounts::AccountsCommand),
    /// Read, apply and delete plans.
    #[command(subcommand)]
    Plans(plans::PlansCommand),
    /// Ask whether a key may do this now. Exits with 3 where it may not.
    Check(check::CheckArgs),
    /// Give back, once, what a check with an operation's id was charged.
    Refund(refund::RefundArgs),
    /// What a key or an account has used.
    Usage(usage::UsageArgs),
    /// The caller's own key, and what is left of its limits.
    Me,
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(config_command::ConfigCommand),
    /// Look at what commonly goes wrong before a server starts.
    Doctor {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Ask a server whether it serves; for container probes. Exits with 0 or 1.
    Health {
        /// One of its services, as in `tollgate.v1.KeyService`.
        #[arg(long, default_value = "")]
        service: String,
    },
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Cli::try_parse().map_err(shortened) {
        Ok(cli) => run(cli),
        Err(error) => {
            // Help and the version are errors to clap, with the exit code 0. A closed pipe is nobody's mistake.
            _ = error.print();
            let code = u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code());
            return ExitCode::from(code);
        }
    };
    match outcome {
        Ok(()) => ExitCode::from(Exit::Fine.code()),
        Err(failure) => {
            if !failure.message.is_empty() {
                out::note(&format!("error: {}", failure.message));
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

/// An error repeats what was typed, and that may be a key where none belongs.
fn shortened(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(typed)) = error.get(kind) {
            let typed = ContextValue::String(shown(typed));
            error.insert(kind, typed);
        }
    }
    error
}

fn run(cli: Cli) -> Outcome {
    let output = cli.output;
    match cli.command {
        Command::Serve { config, dev } => server::serve(&config, dev),
        Command::Bootstrap { config, again } => server::bootstrap(&config, again, output),
        Command::Migrate { config } => server::migrate(&config),
        Command::Store(command) => store::run(&command, output),
        Command::Doctor { config } => server::doctor(&config, output),
        Command::Config(command) => config_command::run(&command, output),
        Command::Completions { shell } => completions(shell),
        Command::Plans(plans::PlansCommand::Apply(apply)) if apply.is_local() => plans::apply_local(&apply, output),
        command @ (Command::Keys(_)
        | Command::Accounts(_)
        | Command::Plans(_)
        | Command::Check(_)
        | Command::Refund(_)
        | Command::Usage(_)
        | Command::Me
        | Command::Health { .. }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let outcome = runtime.block_on(call(&cli.client, command, output));
            // An import that failed may still wait for its standard input.
            runtime.shutdown_background();
            outcome
        }
    }
}

async fn call(client: &ClientArgs, command: Command, output: Output) -> Outcome {
    match command {
        Command::Keys(command) => keys::run(client, command, output).await,
        Command::Accounts(command) => accounts::run(client, command, output).await,
        Command::Plans(command) => plans::run(client, command, output).await,
        Command::Check(args) => check::run(client, args, output).await,
        Command::Refund(args) => refund::run(client, args, output).await,
        Command::Usage(args) => usage::run(client, args, output).await,
        Command::Me => usage::me(client, output).await,
        Command::Health { service } => server::health(client, service).await,
        Command::Serve { .. }
        | Command::Bootstrap { .. }
        | Command::Migrate { .. }
        | Command::Store(_)
        | Command::Doctor { .. }
        | Command::Config(_)
        | Command::Completions { .. } => Ok(()),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tollgate", &mut script);
    out::say(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_flag_takes_a_secret() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_long().unwrap_or_default();
                assert!(!["token", "secret", "key-secret", "password"].contains(&name), "{name}");
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}

//! `tollgate check`: may this key do this now?

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use clap::Args;

use super::client::ClientArgs;
use super::failure::{Exit, Failure, Outcome};
use super::out::{self, Output, Record, Rows};
use super::values::{self, EnvironmentArg};
use crate::proto::v1::{
    CheckContext, CheckKeyRequest, CheckKeyResponse, CreditState, Environment, Level, LimitState, Mode, Verdict,
};

/// The key is never an argument, because arguments are seen by every user of the machine and kept by the shell.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A file that holds the key to check; `-` is standard input. Where left out, it is `TOLLGATE_CHECK_KEY`, or else
    /// standard input.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A scope that the key must have; can be given several times.
    #[arg(long, value_name = "SCOPE")]
    all_of: Vec<String>,
    /// Scopes of which the key must have one; can be given several times.
    #[arg(long, value_name = "SCOPE")]
    any_of: Vec<String>,
    /// The environment that the key must be of.
    #[arg(long = "env", value_enum)]
    environment: Option<EnvironmentArg>,
    /// Cost units [default: 1].
    #[arg(long, allow_negative_numbers = true)]
    cost: Option<i64>,
    /// Answer only; charge and record nothing.
    #[arg(long)]
    peek: bool,
    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "", hide_default_value = true)]
    client_ip: String,
    /// The client's Referer.
    #[arg(long, default_value = "", hide_default_value = true)]
    referrer: String,
    /// The client's HTTP method.
    #[arg(long, default_value = "", hide_default_value = true)]
    method: String,
    /// The host that the client asked for.
    #[arg(long, default_value = "", hide_default_value = true)]
    host: String,
    /// The path that the client asked for.
    #[arg(long, default_value = "", hide_default_value = true)]
    path: String,
    /// Names what is charged: once for the name in 24 hours, however often this check is sent. 1 to 128 visible ASCII
    /// characters.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    operation_id: String,
    /// Answer only from this revision on.
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    min_revision: i64,
}

pub(super) async fn run(client: &ClientArgs, args: CheckArgs, output: Output) -> Outcome {
    let request = request(args)?;
    let answer = client.connect_perhaps_unknown().await?.keys().check_key(request).await?.into_inner();
    match output {
        Output::Json => out::message_json("CheckKeyResponse", &answer)?,
        Output::Table => show(&answer)?,
    }
    if answer.allowed { Ok(()) } else { Err(Failure::silent(Exit::Denied)) }
}

fn request(args: CheckArgs) -> Result<CheckKeyRequest, Failure> {
    let key = key(args.key_file)?;
    let CheckArgs { client_ip, referrer, method, host, path, .. } = args;
    Ok(CheckKeyRequest {
        key,
        all_of: args.all_of,
        any_of: args.any_of,
        environment: EnvironmentArg::wire(args.environment),
        cost: args.cost,
        context: Some(CheckContext { client_ip, referrer, method, host, path }),
        mode: if args.peek { Mode::Peek } else { Mode::Consume }.into(),
        operation_id: args.operation_id,
        min_revision: args.min_revision,
    })
}

/// A line's end belongs to the file, not to the key; anything else is sent as it is, for the server to judge.
fn key(file: Option<PathBuf>) -> Result<String, Failure> {
    const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
    let standard_input = file.as_deref().is_some_and(|path| path.as_os_str() == "-");
    let mut bytes = Vec::new();
    match (file, std::env::var("TOLLGATE_CHECK_KEY")) {
        (Some(path), _) if !standard_input => {
            let wrong = |error: std::io::Error| Failure::error(format!("`{}` can't be read: {error}", path.display()));
            let file = std::fs::File::open(&path).map_err(wrong)?;
            file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(wrong)?;
        }
        (None, Ok(key)) => return Ok(key),
        (file, _) => {
            let stdin = std::io::stdin();
            if file.is_none() && stdin.is_terminal() {
                return Err(Failure::usage(
                    "no key to check; pipe it in, name its file with --key-file, or set TOLLGATE_CHECK_KEY",
                ));
            }
            stdin.lock().take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::error("the key to check is not UTF-8"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn show(answer: &CheckKeyResponse) -> Outcome {
    let verdict = Verdict::try_from(answer.verdict).unwrap_or_default();
    let mut record = Record::default();
    record.add("allowed", if answer.allowed { "yes" } else { "no" });
    record.add("verdict", verdict.as_str_name().strip_prefix("VERDICT_").unwrap_or_default());
    record.add_some("message", &answer.message).add("http status", answer.http_status.to_string());
    if !answer.key_id.is_empty() {
        let environment = Environment::try_from(answer.environment).unwrap_or_default();
        record.add("key", format!("{} ({})", answer.key_id, answer.key_name));
        record.add("account", format!("{}, plan {}", answer.account_id, answer.plan));
        record.add("environment", out::short(environment.as_str_name(), "ENVIRONMENT_"));
        record.add("scopes", out::list(&answer.scopes)).add("expires", out::time(answer.expire_time.as_ref()));
    }
    record.add_some("missing scopes", &answer.missing_scopes.join(", "));
    record.add_some("metadata", &values::show_metadata(&answer.metadata));
    if let Some(wait) = &answer.retry_after {
        record.add("retry after", wait.to_string());
    }
    record.print()?;
    if answer.limits.is_empty() && answer.credits.is_none() {
        return Ok(());
    }
    out::say("")?;
    show_budgets(&answer.limits, answer.credits.as_ref())
}

/// Limits and credits, and what is left of them.
pub(super) fn show_budgets(limits: &[LimitState], credits: Option<&CreditState>) -> Outcome {
    let mut rows = Rows::new(&["limit", "of", "capacity", "period", "remaining", "resets", "exceeded"]);
    let exceeded = |exceeded: bool| if exceeded { "yes" } else { "no" }.to_owned();
    for limit in limits {
        rows.add([
            limit.name.clone(),
            out::short(Level::try_from(limit.level).unwrap_or_default().as_str_name(), "LEVEL_"),
            limit.capacity.to_string(),
            values::show_period(limit.period(), limit.period_seconds),
            limit.remaining.to_string(),
            out::time(limit.reset_time.as_ref()),
            exceeded(limit.exceeded),
        ]);
    }
    if let Some(credits) = credits {
        rows.add([
            "credits".into(),
            "account".into(),
            credits.allowance.to_string(),
            "month".into(),
            credits.remaining.saturating_sub(credits.topped_up_remaining).to_string(),
            out::time(credits.reset_time.as_ref()),
            exceeded(credits.exceeded),
        ]);
        if credits.topped_up_remaining > 0 {
            rows.add([
                "top-ups".into(),
                "account".into(),
                "-".into(),
                "-".into(),
                credits.topped_up_remaining.to_string(),
                "never".into(),
                exceeded(credits.exceeded),
            ]);
        }
    }
    rows.print()
}

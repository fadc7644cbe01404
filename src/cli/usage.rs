//! `tollgate usage` and `tollgate me`: what was used, and what is left.

use clap::{Args, ValueEnum};
use prost_types::Timestamp;

use super::client::ClientArgs;
use super::failure::Outcome;
use super::out::{self, Output, Record, Rows};
use super::{check, keys, values};
use crate::proto::v1::{Environment, GetSelfRequest, GetUsageRequest, GetUsageResponse, Granularity, UsageBucket};

#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// Of all keys of this account; the caller's own where neither is named.
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "key")]
    account: String,
    /// Of this key alone.
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// From: a time, or a length of time before now such as `7d` [default: 30 days before the end].
    #[arg(long, value_name = "TIME", value_parser = values::time_ago)]
    start: Option<Timestamp>,
    /// Up to: a time, or a length of time before now [default: now].
    #[arg(long, value_name = "TIME", value_parser = values::time_ago)]
    end: Option<Timestamp>,
    /// Length of a row.
    #[arg(long, value_enum, default_value = "day")]
    granularity: GranularityArg,
    /// A row for each key.
    #[arg(long)]
    by_key: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GranularityArg {
    Hour,
    Day,
    Month,
}

pub(super) async fn run(client: &ClientArgs, args: UsageArgs, output: Output) -> Outcome {
    let granularity = match args.granularity {
        GranularityArg::Hour => Granularity::Hour,
        GranularityArg::Day => Granularity::Day,
        GranularityArg::Month => Granularity::Month,
    };
    let request = GetUsageRequest {
        account_id: args.account,
        key_id: args.key,
        start_time: args.start,
        end_time: args.end,
        granularity: granularity.into(),
        group_by_key: args.by_key,
    };
    let usage = client.connect().await?.keys().get_usage(request).await?.into_inner();
    match output {
        Output::Json => out::message_json("GetUsageResponse", &usage),
        Output::Table => show(&usage),
    }
}

fn show(usage: &GetUsageResponse) -> Outcome {
    let mut rows = Rows::new(&["from", "key", "env", "requests", "allowed", "denied", "credits", "verdicts"]);
    for bucket in &usage.buckets {
        rows.add(row(bucket, out::time_or_empty(bucket.start_time.as_ref())));
    }
    if let Some(totals) = &usage.totals {
        rows.add(row(totals, "total".into()));
    }
    rows.print()?;
    if !usage.uncertain.is_empty() {
        out::say("")?;
        let mut rows = Rows::new(&["found", "key", "limit", "uncertain units", "count as"]);
        for one in &usage.uncertain {
            let key = if one.key_id.is_empty() { "-" } else { &one.key_id };
            let fate = if one.given_back { "given back" } else { "spent" };
            let units = one.units.to_string();
            rows.add([out::time(one.hour.as_ref()), key.to_owned(), one.budget.clone(), units, fate.to_owned()]);
        }
        rows.print()?;
        out::note(
            "note: a server that went down without a journal had leased these; nobody knows whether it spent them",
        );
    }
    out::note(&format!("note: complete up to {}", out::time(usage.as_of.as_ref())));
    Ok(())
}

fn row(bucket: &UsageBucket, from: String) -> [String; 8] {
    let verdicts: Vec<String> = bucket.by_verdict.iter().map(|(name, count)| format!("{name}={count}")).collect();
    let environment = match Environment::try_from(bucket.environment).unwrap_or_default() {
        Environment::Unspecified => "-".into(),
        other @ (Environment::Live | Environment::Test) => out::short(other.as_str_name(), "ENVIRONMENT_"),
    };
    let key = if bucket.key_id.is_empty() { "-" } else { &bucket.key_id };
    [
        from,
        key.to_owned(),
        environment,
        bucket.requests.to_string(),
        bucket.allowed.to_string(),
        bucket.denied.to_string(),
        bucket.credits.to_string(),
        out::list(&verdicts),
    ]
}

/// The caller's own key.
pub(super) async fn me(client: &ClientArgs, output: Output) -> Outcome {
    let me = client.connect().await?.keys().get_self(GetSelfRequest {}).await?.into_inner();
    if output == Output::Json {
        return out::message_json("GetSelfResponse", &me);
    }
    let counted = |credits: Option<i64>| credits.map_or_else(|| "not counted".into(), |credits| credits.to_string());
    let mut record = Record::default();
    record.add("tier", &me.tier).add("credits remaining", counted(me.credits_remaining));
    record.add("monthly allowance", counted(me.monthly_allowance));
    record.print()?;
    if !me.limits.is_empty() {
        out::say("")?;
        check::show_budgets(&me.limits, None)?;
    }
    out::say("")?;
    keys::show_key(&me.key.unwrap_or_default(), output)
}

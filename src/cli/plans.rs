//! `tollgate plans`: the tiers that accounts are on, one by one or from a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use prost_types::FieldMask;
use serde::Serialize;

use super::client::{Called, Client, ClientArgs};
use super::config_args::ConfigArgs;
use super::failure::{Failure, Outcome};
use super::out::{self, Output, Record, Rows};
use super::values;
use crate::app;
use crate::config::{ComparablePlan, PlanChange, diff_plans, parse_plans};
use crate::domain;
use crate::proto::v1::plan_service_client::PlanServiceClient;
use crate::proto::v1::{
    Algorithm, CreatePlanRequest, DeletePlanRequest, GetPlanRequest, Limit, ListPlansRequest, ListPlansResponse, Plan,
    UpdatePlanRequest,
};

#[derive(Debug, Subcommand)]
pub(super) enum PlansCommand {
    /// Make the plans of a file what holds: create the new ones, change the others.
    Apply(ApplyArgs),
    /// List plans, by id.
    List,
    /// Show a plan.
    Get {
        /// The plan's id.
        id: String,
    },
    /// Delete a plan that no account is on.
    Delete {
        /// The plan's id.
        id: String,
        /// Delete it only if it has not changed since it had this etag.
        #[arg(long, default_value = "", hide_default_value = true)]
        etag: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// A TOML file of plans, such as deploy/plans.toml.
    file: PathBuf,
    /// Delete plans that are not in the file.
    #[arg(long)]
    prune: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Work on this database directly: `sqlite:PATH`, where no server runs on it, or `postgres://…`.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Work directly on the database that this file of settings names.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ApplyArgs {
    /// Whether it works on a database instead of calling a server.
    pub(super) const fn is_local(&self) -> bool {
        self.database.is_some() || self.config.is_some()
    }

    fn plans(&self) -> Result<Vec<domain::Plan>, Failure> {
        let wrong = |error: String| Failure::error(format!("`{}`: {error}", self.file.display()));
        let text = std::fs::read_to_string(&self.file).map_err(|error| wrong(error.to_string()))?;
        parse_plans(&text).map_err(|error| wrong(error.to_string()))
    }
}

/// Applies plans where no server runs.
pub(super) fn apply_local(args: &ApplyArgs, output: Output) -> Outcome {
    let plans = args.plans()?;
    let loaded = ConfigArgs::for_database(args.config.clone(), args.database.clone()).load()?;
    let changes = app::apply_plans(&loaded.config, &plans, args.prune, args.dry_run)?;
    let mut report = Report::new(args.dry_run, output);
    changes.iter().try_for_each(|change| report.add(change))?;
    report.finish()
}

pub(super) async fn run(client: &ClientArgs, command: PlansCommand, output: Output) -> Outcome {
    match command {
        PlansCommand::Apply(args) => apply(client, &args, output).await,
        PlansCommand::List => list(&all(&client.connect().await?).await?, output),
        PlansCommand::Get { id } => {
            let request = GetPlanRequest { id };
            show(&client.connect().await?.plans().get_plan(request).await?.into_inner(), output)
        }
        PlansCommand::Delete { id, etag } => {
            let request = DeletePlanRequest { id: id.clone(), etag };
            client.connect().await?.plans().delete_plan(request).await?;
            let mut report = Report::new(false, output);
            report.add(&PlanChange::Delete(Plan { id, ..Plan::default() }))?;
            report.finish()
        }
    }
}

async fn apply(client: &ClientArgs, args: &ApplyArgs, output: Output) -> Outcome {
    // The file is read before anything is sent, so that a mistake in its last plan changes nothing.
    let wanted: Vec<Plan> = args.plans()?.iter().map(wire).collect();
    let client = client.connect().await?;
    let existing = all(&client).await?.plans;
    let mut plans = client.plans();
    let mut report = Report::new(args.dry_run, output);
    let mut outcome = Ok(());
    for change in diff_plans(&existing, &wanted, args.prune) {
        if !args.dry_run {
            outcome = make(&mut plans, &change).await;
        }
        if outcome.is_err() {
            break;
        }
        report.add(&change)?;
    }
    // What was done before a failure is told all the same.
    report.finish()?;
    outcome
}

/// Fields that a file says; the contract's names.
const MASK: [&str; 7] =
    ["display_name", "api_access", "key_limits", "account_limits", "monthly_credits", "allowed_scopes", "max_keys"];

async fn make(plans: &mut PlanServiceClient<Called>, change: &PlanChange<Plan>) -> Outcome {
    let named = |id: &str, status: tonic::Status| {
        let failure = Failure::from(status);
        Failure { message: format!("plan `{id}`: {}", failure.message), ..failure }
    };
    match change {
        PlanChange::Create(plan) => {
            let request = CreatePlanRequest { plan: Some(plan.clone()) };
            plans.create_plan(request).await.map_err(|status| named(&plan.id, status))?;
        }
        PlanChange::Update { existing, wanted } => {
            let plan = Plan { etag: existing.etag.clone(), ..wanted.clone() };
            let update_mask = Some(FieldMask { paths: MASK.map(str::to_owned).to_vec() });
            let request = UpdatePlanRequest { plan: Some(plan), update_mask };
            plans.update_plan(request).await.map_err(|status| named(&wanted.id, status))?;
        }
        PlanChange::Delete(plan) => {
            let request = DeletePlanRequest { id: plan.id.clone(), etag: plan.etag.clone() };
            plans.delete_plan(request).await.map_err(|status| named(&plan.id, status))?;
        }
        PlanChange::Keep(_) => {}
    }
    Ok(())
}

/// What was done: a line a plan as it happens, or one document at the end.
#[derive(Serialize)]
struct Report {
    #[serde(skip)]
    output: Output,
    dry_run: bool,
    plans: Vec<Reported>,
}

#[derive(Serialize)]
struct Reported {
    id: String,
    change: &'static str,
}

impl Report {
    const fn new(dry_run: bool, output: Output) -> Self {
        Self { output, dry_run, plans: Vec::new() }
    }

    fn add<P: ComparablePlan>(&mut self, change: &PlanChange<P>) -> Outcome {
        let (id, change) = match change {
            PlanChange::Create(plan) => (plan.id(), "created"),
            PlanChange::Update { wanted, .. } => (wanted.id(), "updated"),
            PlanChange::Keep(plan) => (plan.id(), "unchanged"),
            PlanChange::Delete(plan) => (plan.id(), "deleted"),
        };
        if self.output == Output::Table {
            let would = if self.dry_run && change != "unchanged" { "would be " } else { "" };
            out::say(&format!("{id}: {would}{change}"))?;
        }
        self.plans.push(Reported { id: id.to_owned(), change });
        Ok(())
    }

    fn finish(&self) -> Outcome {
        if self.output == Output::Json { out::json(self) } else { Ok(()) }
    }
}

async fn all(client: &Client) -> Result<ListPlansResponse, Failure> {
    let mut plans = client.plans();
    let mut all = ListPlansResponse::default();
    loop {
        let request = ListPlansRequest { page_size: 1_000, page_token: all.next_page_token };
        let page = plans.list_plans(request).await?.into_inner();
        all.plans.extend(page.plans);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() {
            return Ok(all);
        }
    }
}

impl ComparablePlan for Plan {
    fn id(&self) -> &str {
        &self.id
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self { create_time, update_time, etag, .. } = self.clone();
        Self { create_time, update_time, etag, ..other.clone() } == *self
    }
}

/// A plan of a file on the wire.
fn wire(plan: &domain::Plan) -> Plan {
    let signed = |units: u64| i64::try_from(units).unwrap_or(i64::MAX);
    let limits = |limits: &[domain::Limit]| {
        let wire = |limit: &domain::Limit| {
            let (period, period_seconds) = values::wire_period(limit.period);
            let algorithm = match limit.algorithm {
                domain::Algorithm::FixedWindow => Algorithm::FixedWindow,
                domain::Algorithm::SlidingWindow => Algorithm::SlidingWindow,
            };
            Limit {
                name: limit.name.to_string(),
                capacity: signed(limit.capacity),
                period: period.into(),
                period_seconds,
                algorithm: algorithm.into(),
            }
        };
        limits.iter().map(wire).collect()
    };
    Plan {
        id: plan.id.to_string(),
        display_name: plan.display_name.clone(),
        api_access: plan.api_access,
        key_limits: limits(&plan.key_limits),
        account_limits: limits(&plan.account_limits),
        monthly_credits: plan.monthly_credits.map(signed),
        allowed_scopes: plan.allowed_scopes.iter().map(ToString::to_string).collect(),
        max_keys: plan.keys_max.map_or(0, |keys| i32::try_from(keys).unwrap_or(i32::MAX)),
        create_time: None,
        update_time: None,
        etag: String::new(),
    }
}

fn credits(plan: &Plan) -> String {
    plan.monthly_credits.map_or_else(|| "not counted".into(), |credits| credits.to_string())
}

fn keys_max(plan: &Plan) -> String {
    if plan.max_keys == 0 { "no bound".into() } else { plan.max_keys.to_string() }
}

fn limits(limits: &[Limit]) -> String {
    out::list(&limits.iter().map(values::show_limit).collect::<Vec<_>>())
}

fn list(all: &ListPlansResponse, output: Output) -> Outcome {
    if output == Output::Json {
        return out::message_json("ListPlansResponse", all);
    }
    let mut rows = Rows::new(&["id", "api access", "key limits", "account limits", "monthly credits", "max keys"]);
    for plan in &all.plans {
        rows.add([
            plan.id.clone(),
            if plan.api_access { "yes" } else { "no" }.into(),
            limits(&plan.key_limits),
            limits(&plan.account_limits),
            credits(plan),
            keys_max(plan),
        ]);
    }
    rows.print()
}

fn show(plan: &Plan, output: Output) -> Outcome {
    if output == Output::Json {
        return out::message_json("Plan", plan);
    }
    let scopes = if plan.allowed_scopes.is_empty() { "all".into() } else { plan.allowed_scopes.join(", ") };
    let mut record = Record::default();
    record.add("id", &plan.id).add_some("display name", &plan.display_name);
    record.add("api access", if plan.api_access { "yes" } else { "no" });
    record.add("key limits", limits(&plan.key_limits)).add("account limits", limits(&plan.account_limits));
    record.add("monthly credits", credits(plan)).add("allowed scopes", scopes).add("max keys", keys_max(plan));
    record.add("created", out::time(plan.create_time.as_ref()));
    record.add("changed", out::time(plan.update_time.as_ref())).add("etag", &plan.etag);
    record.print()
}

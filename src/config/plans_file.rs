//! Plans as an operator writes them down: `[plans.ID]` tables of TOML, as in `deploy/plans.toml`.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use super::rule::parse_duration;
use crate::domain::{Algorithm, Invalid, Limit, LimitName, Period, Plan, PlanId, Revision, Scope, Time, parse_name};

/// What is wrong with a file of plans.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlansError {
    /// Not TOML, or not of this form; the message shows the line.
    #[error("{0}")]
    Shape(String),
    /// A value that breaks a rule.
    #[error("`{field}`: {error}")]
    Value {
        /// Which, as in `plans.free.key_limits[0].capacity`.
        field: String,
        /// Why.
        error: Invalid,
    },
}

/// What has to be done for a store to hold the plans of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanChange<P> {
    /// It is not there yet.
    Create(P),
    /// It is there and differs.
    Update {
        /// As it is.
        existing: P,
        /// As it is to be.
        wanted: P,
    },
    /// It is there as it is to be.
    Keep(P),
    /// It is not in the file.
    Delete(P),
}

/// A plan as some layer writes it.
pub trait ComparablePlan: Clone {
    /// Its id.
    fn id(&self) -> &str;

    /// Whether it says the same, times and revisions left out.
    fn says_the_same(&self, other: &Self) -> bool;
}

impl ComparablePlan for Plan {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self { create_time, update_time, revision, .. } = self.clone();
        Self { create_time, update_time, revision, ..other.clone() } == *self
    }
}

/// What has to be done, in the order of the file and then of `existing`. Plans that are not wanted are deleted only
/// with `prune`, and the operator's own never.
#[must_use]
pub fn diff_plans<P: ComparablePlan>(existing: &[P], wanted: &[P], prune: bool) -> Vec<PlanChange<P>> {
    let change = |plan: &P| match existing.iter().find(|other| other.id() == plan.id()) {
        None => PlanChange::Create(plan.clone()),
        Some(same) if same.says_the_same(plan) => PlanChange::Keep(plan.clone()),
        Some(other) => PlanChange::Update { existing: other.clone(), wanted: plan.clone() },
    };
    let is_wanted = |plan: &P| wanted.iter().any(|other| other.id() == plan.id());
    let is_own = |plan: &P| plan.id() == PlanId::operator().as_str();
    let left = existing.iter().filter(|plan| prune && !is_wanted(plan) && !is_own(plan));
    wanted.iter().map(change).chain(left.map(|plan| PlanChange::Delete(plan.clone()))).collect()
}

/// Reads a file of plans. Their times and revisions are zero.
pub fn parse_plans(text: &str) -> Result<Vec<Plan>, PlansError> {
    let file: PlansFile =
        toml::from_str(text).map_err(|error| PlansError::Shape(error.to_string().trim_end().into()))?;
    file.plans.into_iter().map(|(id, spec)| plan(&id, spec)).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlansFile {
    plans: BTreeMap<String, PlanSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanSpec {
    #[serde(default)]
    display_name: String,
    #[serde(default = "yes")]
    api_access: bool,
    #[serde(default)]
    key_limits: Vec<LimitSpec>,
    #[serde(default)]
    account_limits: Vec<LimitSpec>,
    monthly_credits: Option<u64>,
    #[serde(default)]
    allowed_scopes: Vec<String>,
    max_keys: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitSpec {
    name: String,
    capacity: u64,
    period: String,
    #[serde(default = "fixed_window")]
    algorithm: Algorithm,
}

const fn yes() -> bool {
    true
}

const fn fixed_window() -> Algorithm {
    Algorithm::FixedWindow
}

fn plan(id: &str, spec: PlanSpec) -> Result<Plan, PlansError> {
    let at = |field: &str| format!("plans.{id}{}{field}", if field.is_empty() { "" } else { "." });
    let wrong = |field: &str, error| PlansError::Value { field: at(field), error };
    let PlanSpec { display_name, api_access, key_limits, account_limits, monthly_credits, allowed_scopes, max_keys } =
        spec;
    let plan_id = PlanId::parse(id).map_err(|error| wrong("", error))?;
    if plan_id == PlanId::operator() {
        return Err(wrong("", Invalid::new("this plan is built in and can't be changed")));
    }
    if !display_name.is_empty() {
        parse_name(&display_name).map_err(|error| wrong("display_name", error))?;
    }
    let scopes = allowed_scopes.iter().enumerate();
    let scopes =
        scopes.map(|(i, scope)| Scope::parse(scope).map_err(|error| wrong(&format!("allowed_scopes[{i}]"), error)));
    let plan = Plan {
        id: plan_id,
        display_name,
        api_access,
        key_limits: limits(&at("key_limits"), key_limits)?,
        account_limits: limits(&at("account_limits"), account_limits)?,
        monthly_credits,
        allowed_scopes: scopes.collect::<Result<_, _>>()?,
        // On the wire 0 is no bound; a plan on which no key can be had is one without API access.
        keys_max: max_keys.filter(|keys| *keys > 0),
        create_time: Time::from_millis(0),
        update_time: Time::from_millis(0),
        revision: Revision::ZERO,
    };
    plan.check().map_err(|(field, error)| wrong(field, error))?;
    if plan.keys_max.is_some_and(|keys| i32::try_from(keys).is_err()) {
        return Err(wrong("max_keys", Invalid::new(format!("is more than {}", i32::MAX))));
    }
    Ok(plan)
}

fn limits(field: &str, specs: Vec<LimitSpec>) -> Result<Vec<Limit>, PlansError> {
    let limit = |(i, spec): (usize, LimitSpec)| {
        let wrong = |part: &str, error| PlansError::Value { field: format!("{field}[{i}].{part}"), error };
        Ok(Limit {
            name: LimitName::parse(&spec.name).map_err(|error| wrong("name", error))?,
            capacity: spec.capacity,
            period: period(&spec.period).map_err(|error| wrong("period", error))?,
            algorithm: spec.algorithm,
        })
    };
    specs.into_iter().enumerate().map(limit).collect()
}

/// A word, or a length of time in whole seconds.
pub(crate) fn period(text: &str) -> Result<Period, Invalid> {
    match text {
        "minute" => Ok(Period::Minute),
        "hour" => Ok(Period::Hour),
        "day" => Ok(Period::Day),
        "month" => Ok(Period::Month),
        other => {
            let length = parse_duration(other).filter(|length| length.subsec_millis() == 0);
            let seconds = length.and_then(|length| i64::try_from(length.as_secs()).ok()).ok_or_else(|| {
                Invalid::new(format!(
                    "`{}` is no period: `minute`, `hour`, `day`, `month` or a length in whole seconds such as `10s` or \
                     `15m` is expected",
                    other.escape_debug()
                ))
            })?;
            Period::seconds(seconds)
        }
    }
}

//! Making, changing and deleting plans.

use serde_json::{Value, json};

use crate::domain::{Limit, Plan, PlanId, Scope, Time, shown};
use crate::store::{Commit, CommitError, Write};

use super::account::{event, require_admin, require_reader};
use super::key::differences;
use super::{COMMIT_TRIES_MAX, Caller, Engine, Error, commit_error};

/// What to change about a plan. Absent fields stay.
#[derive(Clone, Debug, Default)]
pub struct PlanPatch {
    /// Its name for people.
    pub display_name: Option<String>,
    /// Whether it includes API access at all.
    pub api_access: Option<bool>,
    /// Limits of each key.
    pub key_limits: Option<Vec<Limit>>,
    /// Limits shared by the keys of an account.
    pub account_limits: Option<Vec<Limit>>,
    /// Credits a month.
    pub monthly_credits: Option<Option<u64>>,
    /// The scopes that keys may use.
    pub allowed_scopes: Option<Vec<Scope>>,
    /// Keys an account may have.
    pub keys_max: Option<Option<u32>>,
}

impl Engine {
    /// Makes a plan. Its times and revision are set here.
    pub async fn create_plan(&self, caller: &Caller, plan: Plan) -> Result<Plan, Error> {
        require_admin(caller)?;
        if plan.id == PlanId::operator() {
            return Err(Error::AlreadyExists(format!("`{}` is the built-in plan of the operator account", plan.id)));
        }
        let changing = self.begin_change().await?;
        let now = self.clock.now();
        let plan = Plan { create_time: now, update_time: now, ..plan };
        check_plan(&plan)?;
        let commit = Commit {
            rehearsal: false,
            time: now,
            actor: caller.name(),
            guards: Vec::new(),
            events: vec![event("plan.create", plan.id.as_str(), view(&plan).to_string())],
            writes: vec![Write::InsertPlan(plan.clone())],
        };
        let revision = self.commit(commit).await.map_err(|error| plan_error(error, &plan.id))?;
        let plan = self.apply_plan(Plan { revision, ..plan }).await;
        drop(changing);
        Ok(plan)
    }

    /// One plan.
    pub async fn plan(&self, caller: &Caller, id: &PlanId) -> Result<Plan, Error> {
        require_reader(caller)?;
        let plan = self.read(self.store.plan(id)).await?;
        plan.filter(|plan| self.sees_plan(caller, &plan.id)).ok_or_else(|| Error::no_plan(id))
    }

    /// Plans in the order of their ids.
    pub async fn plans(&self, caller: &Caller, after: Option<&PlanId>, rows_max: u32) -> Result<Vec<Plan>, Error> {
        require_reader(caller)?;
        if caller.own_account().is_none() {
            return self.read(self.store.plans(after, rows_max)).await;
        }
        let Some(own) = self.own_plan(caller) else { return Ok(Vec::new()) };
        let plan = self.read(self.store.plan(&own)).await?;
        Ok(plan.into_iter().filter(|plan| after.is_none_or(|after| plan.id > *after)).collect())
    }

    /// Changes a plan. With an etag only if it is still as that says.
    pub async fn update_plan(
        &self,
        caller: &Caller,
        id: &PlanId,
        patch: PlanPatch,
        etag: Option<&str>,
    ) -> Result<Plan, Error> {
        require_admin(caller)?;
        require_not_built_in(id)?;
        let moves = self.moves();
        let changing = self.begin_change().await?;
        for _ in 0..COMMIT_TRIES_MAX {
            let old = self.plan_at(id, etag).await?;
            let now = self.clock.now();
            let plan = patched(&old, &patch, now);
            check_plan(&plan)?;
            let commit = Commit {
                rehearsal: false,
                time: now,
                actor: caller.name(),
                guards: Vec::new(),
                events: vec![event("plan.update", id.as_str(), differences(&view(&old), &view(&plan)))],
                writes: vec![Write::UpdatePlan(plan.clone(), old.revision)],
            };
            match self.commit(commit).await {
                Ok(revision) => {
                    let plan = self.apply_plan(Plan { revision, ..plan }).await;
                    drop(changing);
                    self.await_everybody(revision, moves).await?;
                    return Ok(plan);
                }
                Err(CommitError::Stale) => {}
                Err(error) => return Err(plan_error(error, id)),
            }
        }
        Err(commit_error(CommitError::Stale))
    }

    /// Deletes a plan that no account is on. With an etag only if it is still as that says.
    pub async fn delete_plan(&self, caller: &Caller, id: &PlanId, etag: Option<&str>) -> Result<(), Error> {
        require_admin(caller)?;
        require_not_built_in(id)?;
        let changing = self.begin_change().await?;
        for _ in 0..COMMIT_TRIES_MAX {
            let old = self.plan_at(id, etag).await?;
            let commit = Commit {
                rehearsal: false,
                time: self.clock.now(),
                actor: caller.name(),
                guards: Vec::new(),
                events: vec![event("plan.delete", id.as_str(), view(&old).to_string())],
                writes: vec![Write::DeletePlan(id.clone(), old.revision)],
            };
            match self.commit(commit).await {
                Ok(revision) => {
                    self.apply_own(revision, |index| index.remove_plan(id)).await;
                    drop(changing);
                    return Ok(());
                }
                Err(CommitError::Stale) => {}
                Err(error) => return Err(plan_error(error, id)),
            }
        }
        Err(commit_error(CommitError::Stale))
    }

    async fn plan_at(&self, id: &PlanId, etag: Option<&str>) -> Result<Plan, Error> {
        let plan = self.read(self.store.plan(id)).await?.ok_or_else(|| Error::no_plan(id))?;
        match etag {
            Some(etag) if etag != plan.revision.etag() => Err(Error::Stale { kind: "plan", etag: shown(etag) }),
            Some(_) | None => Ok(plan),
        }
    }

    fn own_plan(&self, caller: &Caller) -> Option<PlanId> {
        let entry = self.index.account(caller.own_account()?)?;
        Some(entry.state.load().plan.id.clone())
    }

    fn sees_plan(&self, caller: &Caller, id: &PlanId) -> bool {
        caller.own_account().is_none() || self.own_plan(caller).as_ref() == Some(id)
    }

    async fn apply_plan(&self, plan: Plan) -> Plan {
        self.apply_own(plan.revision, |index| index.put_plan(plan.clone())).await;
        plan
    }
}

fn require_not_built_in(id: &PlanId) -> Result<(), Error> {
    if *id != PlanId::operator() {
        return Ok(());
    }
    let message = format!("`{id}` is the built-in plan of the operator account and can be neither changed nor deleted");
    Err(Error::Precondition { kind: "BUILT_IN", subject: id.to_string(), message })
}

fn check_plan(plan: &Plan) -> Result<(), Error> {
    plan.check().map_err(|(field, error)| Error::invalid_field(format!("plan.{field}"), &error))
}

fn plan_error(error: CommitError, id: &PlanId) -> Error {
    if matches!(error, CommitError::PlanInUse) {
        let message = format!("accounts are on the plan `{id}`; move them to another first");
        return Error::Precondition { kind: "PLAN_IN_USE", subject: id.to_string(), message };
    }
    if matches!(error, CommitError::IdTaken) {
        return Error::AlreadyExists(format!("there is a plan `{id}` already"));
    }
    commit_error(error)
}

fn patched(old: &Plan, patch: &PlanPatch, now: Time) -> Plan {
    let patch = patch.clone();
    Plan {
        id: old.id.clone(),
        display_name: patch.display_name.unwrap_or_else(|| old.display_name.clone()),
        api_access: patch.api_access.unwrap_or(old.api_access),
        key_limits: patch.key_limits.unwrap_or_else(|| old.key_limits.clone()),
        account_limits: patch.account_limits.unwrap_or_else(|| old.account_limits.clone()),
        monthly_credits: patch.monthly_credits.unwrap_or(old.monthly_credits),
        allowed_scopes: patch.allowed_scopes.unwrap_or_else(|| old.allowed_scopes.clone()),
        keys_max: patch.keys_max.unwrap_or(old.keys_max),
        create_time: old.create_time,
        update_time: now,
        revision: old.revision,
    }
}

/// What the audit trail compares.
fn view(plan: &Plan) -> Value {
    json!({
        "display_name": plan.display_name,
        "api_access": plan.api_access,
        "key_limits": plan.key_limits,
        "account_limits": plan.account_limits,
        "monthly_credits": plan.monthly_credits,
        "allowed_scopes": plan.allowed_scopes,
        "keys_max": plan.keys_max,
    })
}

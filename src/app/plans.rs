//! Applying a file of plans to a store that no server has open.

use crate::config::{Config, PlanChange, diff_plans};
use crate::domain::{Plan, caps};
use crate::engine::{Caller, Engine, PlanPatch};

use super::Failure;
use super::setup::{Parts, block_on};

/// Makes the store hold these plans. Returns what it did, or with `dry_run` would do.
pub fn apply_plans(
    config: &Config,
    wanted: &[Plan],
    prune: bool,
    dry_run: bool,
) -> Result<Vec<PlanChange<Plan>>, Failure> {
    block_on(async {
        let parts = Parts::open(config).await?;
        let changes = apply(&parts.engine, wanted, prune, dry_run).await;
        parts.close().await;
        changes
    })
}

async fn apply(engine: &Engine, wanted: &[Plan], prune: bool, dry_run: bool) -> Result<Vec<PlanChange<Plan>>, Failure> {
    let changes = diff_plans(&all(engine).await?, wanted, prune);
    if dry_run {
        return Ok(changes);
    }
    for change in &changes {
        match change {
            PlanChange::Keep(_) => {}
            PlanChange::Create(plan) => {
                engine.create_plan(&Caller::System, plan.clone()).await?;
            }
            PlanChange::Update { existing, wanted } => {
                let etag = existing.revision.etag();
                engine.update_plan(&Caller::System, &wanted.id, whole(wanted), Some(&etag)).await?;
            }
            PlanChange::Delete(plan) => {
                engine.delete_plan(&Caller::System, &plan.id, Some(&plan.revision.etag())).await?;
            }
        }
    }
    Ok(changes)
}

async fn all(engine: &Engine) -> Result<Vec<Plan>, Failure> {
    let mut plans: Vec<Plan> = Vec::new();
    loop {
        let after = plans.last().map(|plan| plan.id.clone());
        let page = engine.plans(&Caller::System, after.as_ref(), caps::PAGE_SIZE_MAX).await?;
        if page.is_empty() {
            return Ok(plans);
        }
        plans.extend(page);
    }
}

/// A change of every field.
fn whole(plan: &Plan) -> PlanPatch {
    let plan = plan.clone();
    PlanPatch {
        display_name: Some(plan.display_name),
        api_access: Some(plan.api_access),
        key_limits: Some(plan.key_limits),
        account_limits: Some(plan.account_limits),
        monthly_credits: Some(plan.monthly_credits),
        allowed_scopes: Some(plan.allowed_scopes),
        keys_max: Some(plan.keys_max),
    }
}

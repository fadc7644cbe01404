//! Accounts and plans.

use std::collections::BTreeMap;

use prost_types::FieldMask;

use crate::domain::{
    Account, AccountId, AccountStatus, CreditOverride, Invalid, Plan, PlanId, Revision, Scope, Time, TimeZone, TopUps,
    parse_adjustment, parse_metadata, parse_name, parse_operation_id, parse_reason,
};
use crate::engine::{AccountPatch, Adjusted, CreditAdjustment, Error, PlanPatch};
use crate::proto::v1;

use super::check::credit_state;
use super::fields::{Violations, account_id_from, known, masked, timestamp_to};
use super::limit::{limit_from, limit_to, units_from, units_to};

const ACCOUNT_CHANGEABLE: [&str; 9] = [
    "name",
    "plan",
    "status",
    "time_zone",
    "key_limits",
    "account_limits",
    "monthly_credits",
    "credits_reset_day",
    "metadata",
];
const PLAN_CHANGEABLE: [&str; 7] =
    ["display_name", "api_access", "key_limits", "account_limits", "monthly_credits", "allowed_scopes", "max_keys"];
/// On the wire, credits that are not counted although the plan counts them.
const UNCOUNTED: i64 = -1;
const NEVER: Time = Time::from_millis(0);

/// An account to make. `fresh_id` stands in where the caller chose none.
pub(in crate::transport::grpc) fn account_from(
    account: Option<v1::Account>,
    fresh_id: AccountId,
) -> Result<Account, Error> {
    let account = account.ok_or_else(|| Error::invalid("account", "must be set"))?;
    let mut violations = Violations::default();
    let id = match account.id.as_str() {
        "" => fresh_id,
        id => violations.take_or("account.id", AccountId::parse(id), || fresh_id),
    };
    let account = account_fields_from(&mut violations, account, id);
    violations.check()?;
    Ok(account)
}

fn account_fields_from(violations: &mut Violations, account: v1::Account, id: AccountId) -> Account {
    let v1::Account {
        id: _,
        name,
        plan,
        status,
        time_zone,
        key_limits,
        account_limits,
        monthly_credits,
        credits_reset_day,
        metadata,
        // Set by the server.
        create_time: _,
        update_time: _,
        etag: _,
        topped_up_credits: _,
    } = account;
    let reset_day = if credits_reset_day == 0 { 1 } else { credits_reset_day };
    let reset_day = u8::try_from(reset_day).ok().filter(|day| (1..=31).contains(day));
    let reset_day =
        reset_day.ok_or_else(|| Invalid::new(format!("`{credits_reset_day}` is no day of a month, 1 to 31")));
    Account {
        id,
        name: violations.take("account.name", parse_name(&name)),
        plan: violations.take_or("account.plan", PlanId::parse(&plan), PlanId::operator),
        status: violations.take_or("account.status", account_status_from(status), || AccountStatus::Active),
        time_zone: violations.take_or("account.time_zone", TimeZone::parse(&time_zone), || TimeZone::UTC),
        key_limits: violations.take_list("account.key_limits", &key_limits, limit_from),
        account_limits: violations.take_list("account.account_limits", &account_limits, limit_from),
        credits: violations.take("account.monthly_credits", monthly_credits.map(credits_from).transpose()),
        credits_reset_day: violations.take_or("account.credits_reset_day", reset_day, || 1),
        top_ups: TopUps::default(),
        metadata: violations.take("account.metadata", parse_metadata(metadata.iter())),
        create_time: NEVER,
        update_time: NEVER,
        revision: Revision::ZERO,
    }
}

fn account_status_from(status: i32) -> Result<AccountStatus, Invalid> {
    Ok(match known(status, "ACCOUNT_STATUS_ACTIVE and ACCOUNT_STATUS_SUSPENDED")? {
        v1::AccountStatus::Unspecified | v1::AccountStatus::Active => AccountStatus::Active,
        v1::AccountStatus::Suspended => AccountStatus::Suspended,
    })
}

fn credits_from(credits: i64) -> Result<CreditOverride, Invalid> {
    if credits == UNCOUNTED {
        Ok(CreditOverride::Uncounted)
    } else {
        units_from(credits).map(CreditOverride::Allowance)
    }
}

pub(in crate::transport::grpc) fn account_patch_from(
    account: v1::Account,
    mask: Option<&FieldMask>,
    id: AccountId,
) -> Result<AccountPatch, Error> {
    let mut violations = Violations::default();
    let is_set = |field: &str| match field {
        "name" => !account.name.is_empty(),
        "plan" => !account.plan.is_empty(),
        "status" => account.status != 0,
        "time_zone" => !account.time_zone.is_empty(),
        "key_limits" => !account.key_limits.is_empty(),
        "account_limits" => !account.account_limits.is_empty(),
        "monthly_credits" => account.monthly_credits.is_some(),
        "credits_reset_day" => account.credits_reset_day != 0,
        "metadata" => !account.metadata.is_empty(),
        _ => false,
    };
    let fields = masked(&mut violations, mask, &ACCOUNT_CHANGEABLE, is_set);
    let changes = |field: &str| fields.contains(&field);
    // A field that is not to be changed may be anything.
    let masked_account = v1::Account {
        name: if changes("name") { account.name } else { "-".to_owned() },
        plan: if changes("plan") { account.plan } else { "unchanged".to_owned() },
        status: if changes("status") { account.status } else { 0 },
        time_zone: if changes("time_zone") { account.time_zone } else { String::new() },
        key_limits: if changes("key_limits") { account.key_limits } else { Vec::new() },
        account_limits: if changes("account_limits") { account.account_limits } else { Vec::new() },
        monthly_credits: account.monthly_credits.filter(|_| changes("monthly_credits")),
        credits_reset_day: if changes("credits_reset_day") { account.credits_reset_day } else { 0 },
        metadata: if changes("metadata") { account.metadata } else { BTreeMap::default() },
        ..v1::Account::default()
    };
    let new = account_fields_from(&mut violations, masked_account, id);
    violations.check()?;
    Ok(AccountPatch {
        name: changes("name").then_some(new.name),
        plan: changes("plan").then_some(new.plan),
        status: changes("status").then_some(new.status),
        time_zone: changes("time_zone").then_some(new.time_zone),
        key_limits: changes("key_limits").then_some(new.key_limits),
        account_limits: changes("account_limits").then_some(new.account_limits),
        credits: changes("monthly_credits").then_some(new.credits),
        credits_reset_day: changes("credits_reset_day").then_some(new.credits_reset_day),
        metadata: changes("metadata").then_some(new.metadata),
    })
}

pub(in crate::transport::grpc) fn account_to(account: &Account) -> v1::Account {
    let status = match account.status {
        AccountStatus::Active => v1::AccountStatus::Active,
        AccountStatus::Suspended => v1::AccountStatus::Suspended,
    };
    v1::Account {
        id: account.id.to_string(),
        name: account.name.clone(),
        plan: account.plan.to_string(),
        status: status.into(),
        time_zone: account.time_zone.name().to_owned(),
        key_limits: account.key_limits.iter().map(limit_to).collect(),
        account_limits: account.account_limits.iter().map(limit_to).collect(),
        monthly_credits: account.credits.map(|credits| match credits {
            CreditOverride::Uncounted => UNCOUNTED,
            CreditOverride::Allowance(units) => units_to(units),
        }),
        credits_reset_day: account.credits_reset_day.into(),
        metadata: account.metadata.clone(),
        create_time: Some(timestamp_to(account.create_time)),
        update_time: Some(timestamp_to(account.update_time)),
        etag: account.revision.etag(),
        topped_up_credits: units_to(account.top_ups.sum),
    }
}

/// Whose credits to adjust, and how.
pub(in crate::transport::grpc) fn adjustment_from(
    request: v1::AdjustCreditsRequest,
) -> Result<(AccountId, CreditAdjustment), Error> {
    let v1::AdjustCreditsRequest { account_id, amount, reason, operation_id } = request;
    let mut violations = Violations::default();
    if account_id.is_empty() {
        violations.add("account_id", "must be set");
    }
    let amount = violations.take("amount", parse_adjustment(amount));
    if reason.trim().is_empty() {
        violations.add("reason", "must be set: it is what the audit trail says of this");
    }
    let reason = violations.take("reason", parse_reason(&reason));
    let operation_id = Some(operation_id).filter(|id| !id.is_empty()).map(|id| parse_operation_id(&id)).transpose();
    let operation_id = violations.take("operation_id", operation_id);
    violations.check()?;
    Ok((account_id_from("account_id", &account_id)?, CreditAdjustment { amount, reason, operation_id }))
}

pub(in crate::transport::grpc) fn adjusted_to(adjusted: &Adjusted) -> v1::AdjustCreditsResponse {
    let Adjusted { account, credits } = adjusted;
    v1::AdjustCreditsResponse {
        account: Some(account_to(account)),
        credits: credits.map(credit_state),
        revision: account.revision.number(),
    }
}

pub(in crate::transport::grpc) fn plan_from(plan: Option<v1::Plan>) -> Result<Plan, Error> {
    let plan = plan.ok_or_else(|| Error::invalid("plan", "must be set"))?;
    let mut violations = Violations::default();
    let id = violations.take_or("plan.id", PlanId::parse(&plan.id), PlanId::operator);
    let plan = plan_fields_from(&mut violations, plan, id);
    violations.check()?;
    Ok(plan)
}

fn plan_fields_from(violations: &mut Violations, plan: v1::Plan, id: PlanId) -> Plan {
    let v1::Plan {
        id: _,
        display_name,
        api_access,
        key_limits,
        account_limits,
        monthly_credits,
        allowed_scopes,
        max_keys,
        // Set by the server.
        create_time: _,
        update_time: _,
        etag: _,
    } = plan;
    let display_name = if display_name.is_empty() { Ok(display_name) } else { parse_name(&display_name) };
    let keys_max = u32::try_from(max_keys).map_err(|_| Invalid::new(format!("`{max_keys}` is negative")));
    Plan {
        id,
        display_name: violations.take("plan.display_name", display_name),
        api_access,
        key_limits: violations.take_list("plan.key_limits", &key_limits, limit_from),
        account_limits: violations.take_list("plan.account_limits", &account_limits, limit_from),
        monthly_credits: violations.take("plan.monthly_credits", monthly_credits.map(units_from).transpose()),
        allowed_scopes: violations.take_list("plan.allowed_scopes", &allowed_scopes, |scope| Scope::parse(scope)),
        keys_max: Some(violations.take("plan.max_keys", keys_max)).filter(|keys_max| *keys_max > 0),
        create_time: NEVER,
        update_time: NEVER,
        revision: Revision::ZERO,
    }
}

pub(in crate::transport::grpc) fn plan_patch_from(
    plan: v1::Plan,
    mask: Option<&FieldMask>,
    id: PlanId,
) -> Result<PlanPatch, Error> {
    let mut violations = Violations::default();
    let is_set = |field: &str| match field {
        "display_name" => !plan.display_name.is_empty(),
        "api_access" => plan.api_access,
        "key_limits" => !plan.key_limits.is_empty(),
        "account_limits" => !plan.account_limits.is_empty(),
        "monthly_credits" => plan.monthly_credits.is_some(),
        "allowed_scopes" => !plan.allowed_scopes.is_empty(),
        "max_keys" => plan.max_keys != 0,
        _ => false,
    };
    let fields = masked(&mut violations, mask, &PLAN_CHANGEABLE, is_set);
    let changes = |field: &str| fields.contains(&field);
    // A field that is not to be changed may be anything.
    let masked_plan = v1::Plan {
        display_name: if changes("display_name") { plan.display_name } else { String::new() },
        api_access: plan.api_access,
        key_limits: if changes("key_limits") { plan.key_limits } else { Vec::new() },
        account_limits: if changes("account_limits") { plan.account_limits } else { Vec::new() },
        monthly_credits: plan.monthly_credits.filter(|_| changes("monthly_credits")),
        allowed_scopes: if changes("allowed_scopes") { plan.allowed_scopes } else { Vec::new() },
        max_keys: if changes("max_keys") { plan.max_keys } else { 0 },
        ..v1::Plan::default()
    };
    let new = plan_fields_from(&mut violations, masked_plan, id);
    violations.check()?;
    Ok(PlanPatch {
        display_name: changes("display_name").then_some(new.display_name),
        api_access: changes("api_access").then_some(new.api_access),
        key_limits: changes("key_limits").then_some(new.key_limits),
        account_limits: changes("account_limits").then_some(new.account_limits),
        monthly_credits: changes("monthly_credits").then_some(new.monthly_credits),
        allowed_scopes: changes("allowed_scopes").then_some(new.allowed_scopes),
        keys_max: changes("max_keys").then_some(new.keys_max),
    })
}

pub(in crate::transport::grpc) fn plan_to(plan: &Plan) -> v1::Plan {
    v1::Plan {
        id: plan.id.to_string(),
        display_name: plan.display_name.clone(),
        api_access: plan.api_access,
        key_limits: plan.key_limits.iter().map(limit_to).collect(),
        account_limits: plan.account_limits.iter().map(limit_to).collect(),
        monthly_credits: plan.monthly_credits.map(units_to),
        allowed_scopes: plan.allowed_scopes.iter().map(ToString::to_string).collect(),
        max_keys: plan.keys_max.map_or(0, |keys_max| i32::try_from(keys_max).unwrap_or(i32::MAX)),
        create_time: Some(timestamp_to(plan.create_time)),
        update_time: Some(timestamp_to(plan.update_time)),
        etag: plan.revision.etag(),
    }
}

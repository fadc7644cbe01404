//! Checks.

use std::net::IpAddr;

use crate::decision::Request;
use crate::decision::restriction::Endpoint;
use crate::domain::{AccountId, Invalid, OperationId, Revision, ScopeRef, Verdict, caps};
use crate::engine::{Answer, COST_MAX, Charge, Check, CreditStatus, Error, Level, LimitStatus, nearest_limit};
use crate::proto::v1;
use crate::transport::verdict;

use super::fields::{Violations, account_id_from, duration_to, environment_from, environment_to, known, timestamp_to};
use super::limit::{algorithm_to, period_to, units_to};

/// The check, and the operation that it is, if it is one.
pub(in crate::transport::grpc) fn check_from<'a>(
    request: &'a v1::CheckKeyRequest,
    within: Option<&'a AccountId>,
) -> Result<(Check<'a>, Option<OperationId>), Error> {
    let v1::CheckKeyRequest {
        key,
        all_of,
        any_of,
        environment,
        cost,
        context,
        mode,
        operation_id,
        // Dealt with before it comes to this.
        min_revision: _,
    } = request;
    let mut violations = Violations::default();
    let mut decided = Request {
        all_of: scopes_from(&mut violations, "all_of", all_of),
        any_of: scopes_from(&mut violations, "any_of", any_of),
        environment: violations.take("environment", environment_from(*environment)),
        ..Request::default()
    };
    if let Some(v1::CheckContext { client_ip, referrer, method, host, path }) = context {
        fn told(text: &str) -> Option<&str> {
            Some(text).filter(|text| !text.is_empty())
        }
        let client_ip = told(client_ip).map(str::parse::<IpAddr>);
        let client_ip = client_ip.transpose().map_err(|_| Invalid::new("is neither an IPv4 nor an IPv6 address"));
        decided.client_ip = violations.take("context.client_ip", client_ip);
        decided.referrer = told(referrer);
        decided.endpoint = Endpoint { method: told(method), host: told(host), path: told(path) };
    }
    let asked = cost.unwrap_or(1);
    let cost = u64::try_from(asked).unwrap_or(u64::MAX);
    if cost > COST_MAX {
        violations.add("cost", format!("`{asked}` is not between 0 and {COST_MAX}"));
    }
    let mode: v1::Mode = violations.take("mode", known(*mode, "MODE_CONSUME and MODE_PEEK"));
    let operation = (!operation_id.is_empty()).then(|| OperationId::parse(operation_id)).transpose();
    let operation = violations.take("operation_id", operation);
    violations.check()?;
    let consume = mode != v1::Mode::Peek;
    Ok((Check { credential: key, request: decided, cost, consume, within, attempt: None }, operation))
}

/// Which operation to give back, and of which account if that is said.
pub(in crate::transport::grpc) fn refund_from(
    request: &v1::RefundCheckRequest,
) -> Result<(Option<AccountId>, OperationId), Error> {
    let v1::RefundCheckRequest { operation_id, account_id } = request;
    let operation = OperationId::parse(operation_id).map_err(|error| Error::invalid_field("operation_id", &error))?;
    let account_id = (!account_id.is_empty()).then(|| account_id_from("account_id", account_id)).transpose()?;
    Ok((account_id, operation))
}

pub(in crate::transport::grpc) fn refund_to(units: u64) -> v1::RefundCheckResponse {
    v1::RefundCheckResponse { refunded: units_to(units) }
}

/// A revision to wait for.
pub(in crate::transport::grpc) fn revision_from(number: i64) -> Result<Revision, Error> {
    if number < 0 {
        Err(Error::invalid("min_revision", format!("`{number}` is negative")))
    } else {
        Ok(Revision::new(number))
    }
}

fn scopes_from<'a>(violations: &mut Violations, field: &str, scopes: &'a [String]) -> Vec<ScopeRef<'a>> {
    let max = caps::SCOPES_ASKED_MAX;
    if scopes.len() > max {
        violations.add(field, format!("has {} scopes; at most {max} are allowed", scopes.len()));
        return Vec::new();
    }
    let mut parsed = Vec::with_capacity(scopes.len());
    for (i, scope) in scopes.iter().enumerate() {
        match ScopeRef::parse(scope) {
            Ok(scope) => parsed.push(scope),
            Err(error) => violations.add(format!("{field}[{i}]"), error.to_string()),
        }
    }
    parsed
}

/// The answer. `http_status` is what an edge should send for its verdict.
pub(in crate::transport::grpc) fn check_to(answer: Answer, http_status: u16) -> v1::CheckKeyResponse {
    let message = verdict::message(&answer);
    let Answer { verdict, revision, subject, missing_scopes, limits, credits, retry_after_millis } = answer;
    let mut response = v1::CheckKeyResponse {
        allowed: verdict == Verdict::Allowed,
        verdict: i32::from(verdict.number()),
        message,
        missing_scopes,
        limits: limit_states(&limits),
        credits: credits.map(credit_state),
        retry_after: retry_after_millis.map(duration_to),
        revision: revision.number(),
        http_status: i32::from(http_status),
        ..v1::CheckKeyResponse::default()
    };
    if let Some(subject) = subject {
        let record = &subject.record;
        response.key_id = subject.key_id.to_string();
        response.account_id = subject.terms.account_id.as_str().into();
        response.plan = subject.terms.plan_id.as_str().into();
        response.key_name = (*record.name).into();
        response.environment = environment_to(record.environment).into();
        let scopes = subject.terms.usable_scopes(&record.policy.scopes);
        response.scopes = scopes.map(|scope| scope.as_str().to_owned()).collect();
        response.metadata = record.metadata.as_ref().map(|metadata| (**metadata).clone()).unwrap_or_default();
        response.expire_time = record.expiry.time().map(timestamp_to);
    }
    response
}

pub(in crate::transport::grpc) fn limit_states(limits: &[LimitStatus]) -> Vec<v1::LimitState> {
    let state = |status: &LimitStatus| {
        let LimitStatus { limit, level, remaining, reset_time, exceeded } = status;
        let (period, period_seconds) = period_to(limit.period);
        let level = match level {
            Level::Key => v1::Level::Key,
            Level::Account => v1::Level::Account,
        };
        v1::LimitState {
            name: limit.name.as_str().to_owned(),
            level: level.into(),
            capacity: units_to(limit.capacity),
            period: period.into(),
            period_seconds,
            algorithm: algorithm_to(limit.algorithm).into(),
            remaining: units_to(*remaining),
            reset_time: Some(timestamp_to(*reset_time)),
            exceeded: *exceeded,
        }
    };
    limits.iter().map(state).collect()
}

pub(in crate::transport::grpc) fn credit_state(credits: CreditStatus) -> v1::CreditState {
    let CreditStatus { allowance, remaining, topped_up_remaining, reset_time, exceeded } = credits;
    v1::CreditState {
        allowance: units_to(allowance),
        remaining: units_to(remaining),
        reset_time: Some(timestamp_to(reset_time)),
        exceeded,
        topped_up_remaining: units_to(topped_up_remaining),
    }
}

pub(in crate::transport::grpc) fn limits_to(budgets: &Charge) -> v1::GetLimitsResponse {
    let mut response = v1::GetLimitsResponse {
        limits: limit_states(&budgets.limits),
        credits: budgets.credits.map(credit_state),
        ..v1::GetLimitsResponse::default()
    };
    if let Some(nearest) = nearest_limit(&budgets.limits) {
        response.limit = Some(units_to(nearest.limit.capacity));
        response.remaining = Some(units_to(nearest.remaining));
        response.reset = Some(nearest.reset_time.plus_millis(999).seconds());
        response.reset_at = Some(timestamp_to(nearest.reset_time));
    }
    response
}

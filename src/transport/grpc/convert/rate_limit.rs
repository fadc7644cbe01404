//! What Envoy's rate limit filter asks, and what it is answered.

use std::fmt::Display;

use crate::domain::{AccountId, Algorithm, Invalid, KeyId, Limit, LimitName, Period, Time, Verdict};
use crate::engine::{
    COST_MAX, Charge, CreditStatus, Error, Level, LimitStatus, Payer, Share, Violation, nearest_limit,
};
use crate::proto::envoy::config::core::v3::HeaderValue;
use crate::proto::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use crate::proto::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use crate::proto::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use crate::proto::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use crate::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

use super::fields::{Violations, duration_to};

/// Descriptors of one call, each of which may lock a key and an account.
const DESCRIPTORS_MAX: usize = 32;
/// Entries of a descriptor.
const ENTRIES_MAX: usize = 32;

/// The entries that name who is charged; all others are for other services.
const KEY_ID: &str = "key_id";
const ACCOUNT_ID: &str = "account_id";

/// What each descriptor asks to be charged, in their order.
pub(in crate::transport::grpc) fn shares_from(request: &RateLimitRequest) -> Result<Vec<Share>, Error> {
    // Limits belong to keys and accounts, whatever domain the filter is configured with.
    let RateLimitRequest { domain: _, descriptors, hits_addend } = request;
    let mut violations = Violations::default();
    if descriptors.is_empty() {
        violations.add("descriptors", "must not be empty");
    }
    if descriptors.len() > DESCRIPTORS_MAX {
        let message = format!("has {} descriptors; at most {DESCRIPTORS_MAX} are allowed", descriptors.len());
        return Err(Error::invalid("descriptors", message));
    }
    // As Envoy has it, 0 stands for 1 here, and for 0 in a descriptor.
    let hits = u64::from((*hits_addend).max(1));
    let mut shares = Vec::with_capacity(descriptors.len());
    for (i, descriptor) in descriptors.iter().enumerate() {
        shares.extend(share_from(&mut violations, &format!("descriptors[{i}]"), descriptor, hits));
    }
    violations.check()?;
    Ok(shares)
}

/// Absent only where something was noted to be wrong.
fn share_from(violations: &mut Violations, at: &str, descriptor: &RateLimitDescriptor, hits: u64) -> Option<Share> {
    let RateLimitDescriptor { entries, hits_addend, is_negative_hits } = descriptor;
    if *is_negative_hits {
        violations.add(format!("{at}.is_negative_hits"), "what was charged cannot be given back");
    }
    let cost = hits_addend.unwrap_or(hits);
    if cost > COST_MAX {
        violations.add(format!("{at}.hits_addend"), format!("`{cost}` is not between 0 and {COST_MAX}"));
    }
    let at = format!("{at}.entries");
    if entries.len() > ENTRIES_MAX {
        violations.add(at, format!("has {} entries; at most {ENTRIES_MAX} are allowed", entries.len()));
        return None;
    }
    let parse_key = |text: &str| {
        KeyId::parse(text).ok_or_else(|| Invalid::new("is no key id: `key_` and 22 letters and digits are expected"))
    };
    let mut note = |Violation { field, message }: Violation| violations.add(format!("{at}{field}"), message);
    let key = id_from(entries, KEY_ID, parse_key).map_err(&mut note);
    let account = id_from(entries, ACCOUNT_ID, AccountId::parse).map_err(&mut note);
    let payer = match (key.ok()?, account.ok()?) {
        (Some(id), of) => Payer::Key { id, of },
        (None, Some(id)) => Payer::Account(id),
        (None, None) => {
            violations.add(at, "none of them is called `key_id` or `account_id`, so it is not known what to charge");
            return None;
        }
    };
    Some(Share { payer, cost })
}

/// The id in the one entry that is called so, if there is one.
fn id_from<T>(
    entries: &[Entry],
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Result<Option<T>, Violation> {
    let mut named = entries.iter().enumerate().filter(|(_, entry)| entry.key == name);
    let Some((place, Entry { key: _, value })) = named.next() else { return Ok(None) };
    if let Some((place, _)) = named.next() {
        return Err(Violation { field: format!("[{place}].key"), message: format!("`{name}` stands there twice") });
    }
    parse(value).map(Some).map_err(|error| Violation { field: format!("[{place}].value"), message: error.to_string() })
}

/// The answer: OK where all were charged, with what is left of the limit that is nearest to its end.
pub(in crate::transport::grpc) fn charges_to(charges: &[Charge], now: Time) -> RateLimitResponse {
    let nearest_of_each: Vec<Option<LimitStatus>> = charges.iter().map(nearest).collect();
    let statuses = charges
        .iter()
        .zip(&nearest_of_each)
        .map(|(charge, nearest)| status_to(charge, nearest.as_ref(), now))
        .collect();
    let refused = charges.iter().any(|charge| charge.verdict != Verdict::Allowed);
    let mut headers = Vec::new();
    let nearest_of_all: Vec<LimitStatus> = nearest_of_each.into_iter().flatten().collect();
    if let Some(nearest) = nearest_limit(&nearest_of_all) {
        headers.push(header("x-ratelimit-limit", nearest.limit.capacity));
        headers.push(header("x-ratelimit-remaining", nearest.remaining));
        headers.push(header("x-ratelimit-reset", nearest.reset_time.plus_millis(999).seconds()));
    }
    if let Some(millis) = retry_after_millis(charges).filter(|_| refused) {
        headers.push(header("retry-after", millis.saturating_add(999).div_euclid(1_000)));
    }
    RateLimitResponse {
        overall_code: if refused { Code::OverLimit } else { Code::Ok }.into(),
        statuses,
        response_headers_to_add: headers,
    }
}

fn status_to(charge: &Charge, nearest: Option<&LimitStatus>, now: Time) -> DescriptorStatus {
    let code = if charge.verdict == Verdict::Allowed { Code::Ok } else { Code::OverLimit };
    DescriptorStatus {
        code: code.into(),
        current_limit: nearest.map(|nearest| limit_to(&nearest.limit)),
        limit_remaining: nearest.map_or(0, |nearest| saturated(nearest.remaining)),
        duration_until_reset: nearest.map(|nearest| duration_to(nearest.reset_time.millis_since(now).max(0))),
    }
}

/// What a client should look at: the limit that is nearest to its end. Credits, which then look like a monthly limit, only
/// where they alone are exceeded, or where there is nothing else.
fn nearest(charge: &Charge) -> Option<LimitStatus> {
    let limit = nearest_limit(&charge.limits);
    if let Some(credits @ CreditStatus { remaining, reset_time, exceeded, .. }) = charge.credits
        && (limit.is_none() || charge.verdict == Verdict::CreditsExhausted)
    {
        let limit = Limit {
            name: LimitName::parse("credits").ok()?,
            capacity: credits.capacity(),
            period: Period::Month,
            algorithm: Algorithm::FixedWindow,
        };
        return Some(LimitStatus { limit, level: Level::Account, remaining, reset_time, exceeded });
    }
    limit.cloned()
}

/// When all that were refused can be charged. Absent where that is never, or where it is not known.
fn retry_after_millis(charges: &[Charge]) -> Option<i64> {
    let refused = charges.iter().filter(|charge| charge.verdict != Verdict::Allowed);
    refused.map(|charge| charge.retry_after_millis).try_fold(0, |latest, millis| Some(millis?.max(latest)))
}

/// A limit as Envoy knows it. Where it has no such unit the name tells the period: `burst/7s`.
fn limit_to(limit: &Limit) -> RateLimit {
    let name = limit.name.as_str();
    let (name, unit) = match limit.period {
        Period::Seconds(1) => (name.to_owned(), Unit::Second),
        Period::Minute | Period::Seconds(60) => (name.to_owned(), Unit::Minute),
        Period::Hour | Period::Seconds(3_600) => (name.to_owned(), Unit::Hour),
        Period::Day | Period::Seconds(86_400) => (name.to_owned(), Unit::Day),
        Period::Month => (name.to_owned(), Unit::Month),
        Period::Seconds(seconds) => (format!("{name}/{seconds}s"), Unit::Unknown),
    };
    RateLimit { requests_per_unit: saturated(limit.capacity), unit: unit.into(), name }
}

fn saturated(units: u64) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

fn header(key: &str, value: impl Display) -> HeaderValue {
    HeaderValue { key: key.to_owned(), value: value.to_string(), raw_value: Vec::new() }
}

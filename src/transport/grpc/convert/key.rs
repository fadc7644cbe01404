//! Keys.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_types::FieldMask;
use secrecy::ExposeSecret as _;

use crate::domain::{
    AccountId, EndpointPattern, Environment, Invalid, KeyStatus, Policy, ReferrerPattern, Restrictions, Scope,
    SecretHash, Status, Time, parse_description, parse_display_prefix, parse_metadata, parse_name, parse_reason,
};
use crate::engine::{Charge, Error, ImportRow, KeyFilter, KeyPatch, KeyView, MadeKey, NewKey, SelfView};
use crate::proto::v1;
use crate::store::StoredKey;

use super::check::limit_states;
use super::fields::{
    Violations, duration_to, environment_from, environment_to, known, masked, millis_from, optional_time_from,
    timestamp_to,
};
use super::limit::{limit_from, limit_to, units_to};

/// The fields of a key that can be changed.
const CHANGEABLE: [&str; 9] =
    ["name", "description", "scopes", "restrictions", "limits", "status", "expire_time", "auto_renew", "metadata"];

pub(in crate::transport::grpc) fn new_key_from(key: Option<v1::Key>) -> Result<NewKey, Error> {
    let key = key.ok_or_else(|| Error::invalid("key", "must be set"))?;
    let mut violations = Violations::default();
    let new = fields_from(&mut violations, key);
    violations.check()?;
    Ok(new)
}

fn fields_from(violations: &mut Violations, key: v1::Key) -> NewKey {
    let v1::Key {
        account_id,
        name,
        description,
        environment,
        scopes,
        restrictions,
        limits,
        status,
        expire_time,
        auto_renew,
        metadata,
        // Set by the server; what a caller sends is passed over (AIP-203).
        id: _,
        prefix: _,
        create_time: _,
        update_time: _,
        last_used_time: _,
        last_used_ip: _,
        revoke_time: _,
        revoke_reason: _,
        revoke_actor: _,
        rotate_time: _,
        previous_prefix: _,
        previous_expire_time: _,
        etag: _,
        usage: _,
    } = key;
    let account_id = (!account_id.is_empty()).then(|| AccountId::parse(&account_id)).transpose();
    if !matches!(v1::Status::try_from(status), Ok(v1::Status::Unspecified | v1::Status::Active)) {
        violations.add("key.status", "a key is made ACTIVE; change it afterwards");
    }
    NewKey {
        account_id: violations.take("key.account_id", account_id),
        name: violations.take("key.name", parse_name(&name)),
        description: violations.take("key.description", parse_description(&description)),
        environment: violations.take("key.environment", environment_from(environment)).unwrap_or(Environment::Live),
        policy: Policy {
            scopes: violations.take_list("key.scopes", &scopes, |scope| Scope::parse(scope)),
            restrictions: restrictions_from(violations, restrictions.unwrap_or_default()),
            limits: violations.take_list("key.limits", &limits, limit_from),
        },
        expire_time: optional_time_from(violations, "key.expire_time", expire_time.as_ref()),
        auto_renew_millis: renewal_from(violations, auto_renew.as_ref()),
        metadata: violations.take("key.metadata", parse_metadata(metadata.iter())),
    }
}

fn restrictions_from(violations: &mut Violations, restrictions: v1::Restrictions) -> Restrictions {
    let v1::Restrictions { allowed_ips, allowed_referrers, allowed_endpoints } = restrictions;
    let path = |name: &str| format!("key.restrictions.{name}");
    Restrictions {
        allowed_ips: violations.take_list(&path("allowed_ips"), &allowed_ips, |text| Restrictions::parse_ip(text)),
        allowed_referrers: violations
            .take_list(&path("allowed_referrers"), &allowed_referrers, |text| ReferrerPattern::parse(text)),
        allowed_endpoints: violations
            .take_list(&path("allowed_endpoints"), &allowed_endpoints, |text| EndpointPattern::parse(text)),
    }
}

fn renewal_from(violations: &mut Violations, auto_renew: Option<&v1::AutoRenew>) -> Option<i64> {
    let v1::AutoRenew { period } = auto_renew?;
    let period = period.as_ref().ok_or_else(|| Invalid::new("must be set"));
    violations.take("key.auto_renew.period", period.and_then(millis_from).map(Some))
}

pub(in crate::transport::grpc) fn key_patch_from(key: &v1::Key, mask: Option<&FieldMask>) -> Result<KeyPatch, Error> {
    let mut violations = Violations::default();
    let is_set = |field: &str| match field {
        "name" => !key.name.is_empty(),
        "description" => !key.description.is_empty(),
        "scopes" => !key.scopes.is_empty(),
        "restrictions" => key.restrictions.is_some(),
        "limits" => !key.limits.is_empty(),
        "status" => key.status != 0,
        "expire_time" => key.expire_time.is_some(),
        "auto_renew" => key.auto_renew.is_some(),
        "metadata" => !key.metadata.is_empty(),
        _ => false,
    };
    let fields = masked(&mut violations, mask, &CHANGEABLE, is_set);
    let changes = |field: &str| fields.contains(&field);
    // A field that is not to be changed may be anything, an empty name among others.
    let masked_key = v1::Key {
        name: if changes("name") { key.name.clone() } else { "-".to_owned() },
        description: if changes("description") { key.description.clone() } else { String::new() },
        scopes: if changes("scopes") { key.scopes.clone() } else { Vec::new() },
        restrictions: key.restrictions.clone().filter(|_| changes("restrictions")),
        limits: if changes("limits") { key.limits.clone() } else { Vec::new() },
        expire_time: key.expire_time.filter(|_| changes("expire_time")),
        auto_renew: key.auto_renew.filter(|_| changes("auto_renew")),
        metadata: if changes("metadata") { key.metadata.clone() } else { BTreeMap::default() },
        ..v1::Key::default()
    };
    let enabled = changes("status").then(|| violations.take("key.status", enabled_from(key.status)));
    let new = fields_from(&mut violations, masked_key);
    violations.check()?;
    Ok(KeyPatch {
        name: changes("name").then_some(new.name),
        description: changes("description").then_some(new.description),
        scopes: changes("scopes").then_some(new.policy.scopes),
        restrictions: changes("restrictions").then_some(new.policy.restrictions),
        limits: changes("limits").then_some(new.policy.limits),
        enabled,
        expire_time: changes("expire_time").then_some(new.expire_time),
        auto_renew_millis: changes("auto_renew").then_some(new.auto_renew_millis),
        metadata: changes("metadata").then_some(new.metadata),
    })
}

fn enabled_from(status: i32) -> Result<bool, Invalid> {
    const NAMES: &str = "STATUS_ACTIVE and STATUS_DISABLED";
    match known(status, NAMES)? {
        v1::Status::Active => Ok(true),
        v1::Status::Disabled => Ok(false),
        v1::Status::Revoked => Err(Invalid::new("a key is revoked by RevokeKey")),
        v1::Status::Unspecified | v1::Status::Expired => Err(Invalid::new(format!("allowed are {NAMES}"))),
    }
}

pub(in crate::transport::grpc) fn filter_from(
    account_id: &str,
    filter: Option<v1::KeyFilter>,
) -> Result<KeyFilter, Error> {
    let v1::KeyFilter { status, environment, prefix, unused_since, expires_before } = filter.unwrap_or_default();
    let mut violations = Violations::default();
    let account_id = match account_id {
        "" => None,
        id => Some(AccountId::parse(id).map_err(|_| Error::no_account(id))?),
    };
    let filter = KeyFilter {
        account_id,
        status: violations.take("filter.status", status_from(status)),
        environment: violations.take("filter.environment", environment_from(environment)),
        prefix: (!prefix.is_empty()).then_some(prefix),
        unused_since: optional_time_from(&mut violations, "filter.unused_since", unused_since.as_ref()),
        expires_before: optional_time_from(&mut violations, "filter.expires_before", expires_before.as_ref()),
    };
    violations.check()?;
    Ok(filter)
}

fn status_from(status: i32) -> Result<Option<Status>, Invalid> {
    Ok(match known(status, "STATUS_ACTIVE, STATUS_DISABLED, STATUS_REVOKED and STATUS_EXPIRED")? {
        v1::Status::Unspecified => None,
        v1::Status::Active => Some(Status::Active),
        v1::Status::Disabled => Some(Status::Disabled),
        v1::Status::Revoked => Some(Status::Revoked),
        v1::Status::Expired => Some(Status::Expired),
    })
}

pub(in crate::transport::grpc) fn reason_from(reason: &str) -> Result<String, Error> {
    parse_reason(reason).map_err(|error| Error::invalid_field("reason", &error))
}

pub(in crate::transport::grpc) fn import_row_from(row: v1::ImportedKey) -> Result<ImportRow, Error> {
    let v1::ImportedKey { hash, key } = row;
    let key = key.ok_or_else(|| Error::invalid("key", "must be set"))?;
    let mut violations = Violations::default();
    let hash = violations.take_or("hash", hash_from(&hash), || SecretHash::from_bytes([0; 32]));
    let prefix = violations.take("key.prefix", parse_display_prefix(&key.prefix));
    let create_time = optional_time_from(&mut violations, "key.create_time", key.create_time.as_ref());
    let new = fields_from(&mut violations, key);
    violations.check()?;
    Ok(ImportRow { hash, prefix, create_time, new })
}

/// Padding and the alphabet for URLs are both taken as they come.
fn hash_from(text: &str) -> Result<SecretHash, Invalid> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let wrong = || Invalid::new("is no SHA-256 hash: 64 hexadecimal digits, or its 32 bytes in base64, are expected");
    let bytes = if text.len() == 64 {
        let digit = |place: usize| text.get(place..place + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let signless = text.bytes().all(|b| b.is_ascii_hexdigit());
        (0..64).step_by(2).map(digit).collect::<Option<Vec<u8>>>().filter(|_| signless)
    } else {
        ENGINE.decode(text.replace('-', "+").replace('_', "/")).ok()
    };
    let bytes: [u8; 32] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
    Ok(SecretHash::from_bytes(bytes))
}

pub(in crate::transport::grpc) fn key_to(stored: &StoredKey, now: Time) -> v1::Key {
    let StoredKey { key, hash: _, activity } = stored;
    let revocation = match &key.status {
        KeyStatus::Revoked(revocation) => Some(revocation),
        KeyStatus::Active | KeyStatus::Disabled => None,
    };
    let status = match key.status_at(now) {
        Status::Active => v1::Status::Active,
        Status::Disabled => v1::Status::Disabled,
        Status::Revoked => v1::Status::Revoked,
        Status::Expired => v1::Status::Expired,
    };
    let Restrictions { allowed_ips, allowed_referrers, allowed_endpoints } = &key.policy.restrictions;
    v1::Key {
        id: key.id.to_string(),
        account_id: key.account_id.to_string(),
        name: key.name.clone(),
        description: key.description.clone(),
        environment: environment_to(key.environment).into(),
        prefix: key.prefix.clone(),
        scopes: key.policy.scopes.iter().map(ToString::to_string).collect(),
        restrictions: (key.policy.restrictions != Restrictions::default()).then(|| v1::Restrictions {
            allowed_ips: allowed_ips.iter().map(ToString::to_string).collect(),
            allowed_referrers: allowed_referrers.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            allowed_endpoints: allowed_endpoints.iter().map(ToString::to_string).collect(),
        }),
        limits: key.policy.limits.iter().map(limit_to).collect(),
        status: status.into(),
        create_time: Some(timestamp_to(key.create_time)),
        update_time: Some(timestamp_to(key.update_time)),
        expire_time: key.expire_time.map(timestamp_to),
        last_used_time: activity.map(|activity| timestamp_to(activity.last_used_time)),
        last_used_ip: activity.and_then(|a| a.last_used_ip).map(|ip| ip.to_string()).unwrap_or_default(),
        revoke_time: revocation.map(|revocation| timestamp_to(revocation.time)),
        revoke_reason: revocation.map(|revocation| revocation.reason.clone()).unwrap_or_default(),
        revoke_actor: revocation.map(|revocation| revocation.actor.clone()).unwrap_or_default(),
        auto_renew: key.auto_renew_millis.map(|millis| v1::AutoRenew { period: Some(duration_to(millis)) }),
        rotate_time: key.rotate_time.map(timestamp_to),
        previous_prefix: key.previous.as_ref().map(|previous| previous.prefix.clone()).unwrap_or_default(),
        // A rotation without grace ended it then and there.
        previous_expire_time: key
            .previous
            .as_ref()
            .and_then(|p| key.rotate_time.max(Some(p.expire_time)))
            .map(timestamp_to),
        metadata: key.metadata.clone(),
        etag: key.revision.etag(),
        usage: None,
    }
}

/// A key that was made, with the one copy of its secret that ever leaves.
pub(in crate::transport::grpc) fn created_to(made: MadeKey, now: Time) -> v1::CreateKeyResponse {
    let MadeKey { key, secret, revision } = made;
    let stored = StoredKey { key, hash: SecretHash::from_bytes([0; 32]), activity: None };
    v1::CreateKeyResponse {
        key: Some(key_to(&stored, now)),
        secret: secret.expose_secret().to_owned(),
        revision: revision.number(),
    }
}

/// How long an old secret goes on, in milliseconds.
pub(in crate::transport::grpc) fn grace_from(period: Option<&prost_types::Duration>) -> Result<i64, Error> {
    period.map_or(Ok(0), millis_from).map_err(|error| Error::invalid_field("grace_period", &error))
}

pub(in crate::transport::grpc) fn key_view_to(view: &KeyView, now: Time) -> v1::Key {
    let usage = v1::KeyUsage {
        requests_today: units_to(view.requests_today),
        requests_this_month: units_to(view.requests_this_month),
    };
    v1::Key { usage: Some(usage), ..key_to(&view.stored, now) }
}

pub(in crate::transport::grpc) fn self_to(view: &SelfView, now: Time) -> v1::GetSelfResponse {
    let key = key_to(&view.stored, now);
    let Charge { limits, credits, .. } = &view.budgets;
    v1::GetSelfResponse {
        tier: view.tier.clone(),
        credits_remaining: credits.map(|credits| units_to(credits.remaining)),
        monthly_allowance: credits.map(|credits| units_to(credits.allowance)),
        limits: limit_states(limits),
        create_time: key.create_time,
        last_used_time: key.last_used_time,
        key: Some(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_in_every_form() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let forms = [
            hex,
            &hex.to_uppercase(),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0",
            "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0",
        ];
        for form in forms {
            assert_eq!(hash_from(form).unwrap(), hash_from(hex).unwrap(), "{form}");
        }
        for wrong in [
            "",
            "abc",
            hex.trim_start_matches("ba"),
            &"+a".repeat(32),
            &"zz".repeat(32),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0==",
        ] {
            let error = hash_from(wrong).unwrap_err().to_string();
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }
    }
}

//! Between rows and records. What a row's `body` holds is a type of its own, so that the domain can change without the
//! file; to every member that was added later it gives a default.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::{ColumnIndex, Decode, Row, Type};

use crate::domain::{
    Account, AccountId, AccountStatus, Activity, CreditOverride, Environment, Key, KeyId, KeyStatus, Limit, Metadata,
    Plan, PlanId, PreviousSecret, Revision, Revocation, Scope, SecretHash, Time, TimeZone, TopUps,
};
use crate::store::{StoreError, StoredKey};

#[derive(Serialize, Deserialize)]
struct PlanBody {
    display_name: String,
    api_access: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key_limits: Vec<Limit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    account_limits: Vec<Limit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monthly_credits: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allowed_scopes: Vec<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys_max: Option<u32>,
    create_time: Time,
    update_time: Time,
}

#[derive(Serialize, Deserialize)]
struct AccountBody {
    name: String,
    status: AccountStatus,
    time_zone: TimeZone,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key_limits: Vec<Limit>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    account_limits: Vec<Limit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credits: Option<CreditOverride>,
    credits_reset_day: u8,
    #[serde(default, skip_serializing_if = "TopUps::is_empty")]
    top_ups: TopUps,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    metadata: Metadata,
    create_time: Time,
    update_time: Time,
}

#[derive(Serialize, Deserialize)]
struct KeyBody {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    update_time: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotate_time: Option<Time>,
    /// What may be shown of the last retired secret. Until when it verifies is in its own row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous_prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revocation: Option<RevocationBody>,
}

#[derive(Serialize, Deserialize)]
struct RevocationBody {
    time: Time,
    reason: String,
    actor: String,
}

/// JSON for a column. The types that are written here cannot fail to become JSON.
pub(in crate::store) fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(format!("cannot be written as JSON: {error}")))
}

pub(in crate::store) fn from_json<T: DeserializeOwned>(
    what: impl FnOnce() -> String,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(format!("{}: {error}", what())))
}

pub(in crate::store) fn plan_body(plan: &Plan) -> Result<String, StoreError> {
    to_json(&PlanBody {
        display_name: plan.display_name.clone(),
        api_access: plan.api_access,
        key_limits: plan.key_limits.clone(),
        account_limits: plan.account_limits.clone(),
        monthly_credits: plan.monthly_credits,
        allowed_scopes: plan.allowed_scopes.clone(),
        keys_max: plan.keys_max,
        create_time: plan.create_time,
        update_time: plan.update_time,
    })
}

pub(in crate::store) fn account_body(account: &Account) -> Result<String, StoreError> {
    to_json(&AccountBody {
        name: account.name.clone(),
        status: account.status,
        time_zone: account.time_zone.clone(),
        key_limits: account.key_limits.clone(),
        account_limits: account.account_limits.clone(),
        credits: account.credits,
        credits_reset_day: account.credits_reset_day,
        top_ups: account.top_ups.clone(),
        metadata: account.metadata.clone(),
        create_time: account.create_time,
        update_time: account.update_time,
    })
}

pub(in crate::store) fn key_body(key: &Key) -> Result<String, StoreError> {
    let revocation = match &key.status {
        KeyStatus::Active | KeyStatus::Disabled => None,
        KeyStatus::Revoked(Revocation { time, reason, actor }) => {
            Some(RevocationBody { time: *time, reason: reason.clone(), actor: actor.clone() })
        }
    };
    to_json(&KeyBody {
        description: key.description.clone(),
        update_time: key.update_time,
        rotate_time: key.rotate_time,
        previous_prefix: key.previous.as_ref().map(|previous| previous.prefix.clone()),
        revocation,
    })
}

pub(in crate::store) const fn status_word(status: &KeyStatus) -> &'static str {
    match status {
        KeyStatus::Active => "active",
        KeyStatus::Disabled => "disabled",
        KeyStatus::Revoked(_) => "revoked",
    }
}

pub(in crate::store) fn plan(id: &str, revision: i64, body: &str) -> Result<Plan, StoreError> {
    let what = || format!("plan `{id}`");
    let PlanBody {
        display_name,
        api_access,
        key_limits,
        account_limits,
        monthly_credits,
        allowed_scopes,
        keys_max,
        create_time,
        update_time,
    } = from_json(what, body)?;
    Ok(Plan {
        id: parse_plan_id(id)?,
        display_name,
        api_access,
        key_limits,
        account_limits,
        monthly_credits,
        allowed_scopes,
        keys_max,
        create_time,
        update_time,
        revision: Revision::new(revision),
    })
}

pub(in crate::store) fn account(id: &str, plan_id: &str, revision: i64, body: &str) -> Result<Account, StoreError> {
    let what = || format!("account `{id}`");
    let AccountBody {
        name,
        status,
        time_zone,
        key_limits,
        account_limits,
        credits,
        credits_reset_day,
        top_ups,
        metadata,
        create_time,
        update_time,
    } = from_json(what, body)?;
    Ok(Account {
        id: parse_account_id(id)?,
        name,
        plan: parse_plan_id(plan_id)?,
        status,
        time_zone,
        key_limits,
        account_limits,
        credits,
        credits_reset_day,
        top_ups,
        metadata,
        create_time,
        update_time,
        revision: Revision::new(revision),
    })
}

/// What [`key`] reads, from `keys AS k LEFT JOIN key_activity AS a`.
pub(in crate::store) const KEY_COLUMNS: &str =
    "k.id, k.account_id, k.name, k.environment, k.prefix, k.status, k.create_time,
    k.expire_time, k.auto_renew_millis, k.revision, k.secret_hash, k.policy, k.metadata, k.body,
    (SELECT r.expire_time FROM retired_secrets AS r WHERE r.key_id = k.id ORDER BY r.revision DESC LIMIT 1),
    a.last_used_time, a.last_used_ip";

/// A row of [`KEY_COLUMNS`].
pub(in crate::store) fn key<'r, R: Row>(row: &'r R) -> Result<StoredKey, StoreError>
where
    usize: ColumnIndex<R>,
    &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let id = key_id(row.try_get(0)?)?;
    let what = || format!("key `{id}`");
    let KeyBody { description, update_time, rotate_time, previous_prefix, revocation } =
        from_json(what, row.try_get(13)?)?;
    let status = match (row.try_get::<&'r str, _>(5)?, revocation) {
        ("active", _) => KeyStatus::Active,
        ("disabled", _) => KeyStatus::Disabled,
        ("revoked", Some(RevocationBody { time, reason, actor })) => {
            KeyStatus::Revoked(Revocation { time, reason, actor })
        }
        (status, _) => return Err(StoreError::Corrupt(format!("{}: `{status}` without its story", what()))),
    };
    let previous_expire_time: Option<i64> = row.try_get(14)?;
    let previous = previous_prefix
        .zip(previous_expire_time)
        .map(|(prefix, expire_time)| PreviousSecret { prefix, expire_time: Time::from_millis(expire_time) });
    let key = Key {
        id,
        account_id: parse_account_id(row.try_get(1)?)?,
        name: row.try_get::<&'r str, _>(2)?.to_owned(),
        description,
        environment: environment(row.try_get(3)?)?,
        prefix: row.try_get::<&'r str, _>(4)?.to_owned(),
        policy: from_json(what, row.try_get(11)?)?,
        status,
        create_time: Time::from_millis(row.try_get(6)?),
        update_time,
        expire_time: row.try_get::<Option<i64>, _>(7)?.map(Time::from_millis),
        auto_renew_millis: row.try_get(8)?,
        rotate_time,
        previous,
        metadata: from_json(what, row.try_get(12)?)?,
        revision: Revision::new(row.try_get(9)?),
    };
    Ok(StoredKey { hash: hash(row.try_get(10)?)?, activity: activity(id, row.try_get(15)?, row.try_get(16)?)?, key })
}

fn activity(key_id: KeyId, time: Option<i64>, ip: Option<&str>) -> Result<Option<Activity>, StoreError> {
    let Some(time) = time else { return Ok(None) };
    let last_used_ip: Option<IpAddr> = ip
        .map(str::parse)
        .transpose()
        .map_err(|_| StoreError::Corrupt(format!("key `{key_id}`: last used from what is no address")))?;
    Ok(Some(Activity { key_id, last_used_time: Time::from_millis(time), last_used_ip }))
}

pub(in crate::store) fn key_id(bytes: &[u8]) -> Result<KeyId, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::Corrupt("a key's id is not 16 bytes long".to_owned()))?;
    Ok(KeyId::from_bytes(bytes))
}

pub(in crate::store) fn hash(bytes: &[u8]) -> Result<SecretHash, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::Corrupt("a secret's hash is not 32 bytes long".to_owned()))?;
    Ok(SecretHash::from_bytes(bytes))
}

pub(in crate::store) fn environment(text: &str) -> Result<Environment, StoreError> {
    Environment::parse(text).ok_or_else(|| StoreError::Corrupt(format!("`{text}` is no environment")))
}

pub(in crate::store) fn parse_account_id(text: &str) -> Result<AccountId, StoreError> {
    AccountId::parse(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn parse_plan_id(text: &str) -> Result<PlanId, StoreError> {
    PlanId::parse(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

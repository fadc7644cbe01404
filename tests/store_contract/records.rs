//! Records to write, made from small numbers.

use std::collections::BTreeMap;

use tollgate::domain::{
    Account, AccountId, AccountStatus, Algorithm, CreditOverride, Environment, Key, KeyId, KeyStatus, Limit, LimitName,
    Period, Plan, PlanId, Policy, Restrictions, Revision, Scope, SecretHash, Time, TimeZone, TopUps,
};
use tollgate::store::{AuditEvent, Commit, CommitError, KeyQuery, SharedStore, StoredSecret, Write};

pub(crate) const NOW: Time = Time::from_millis(1_800_000_000_000);

pub(crate) fn later(millis: i64) -> Time {
    NOW.plus_millis(millis)
}

pub(crate) fn plan_id(name: &str) -> PlanId {
    PlanId::parse(name).unwrap()
}

pub(crate) fn account_id(name: &str) -> AccountId {
    AccountId::parse(&format!("acct_{name}")).unwrap()
}

pub(crate) fn key_id(number: u64) -> KeyId {
    KeyId::from_bytes((u128::from(number) << 64).to_be_bytes())
}

/// A hash that has nothing in common with the next one's.
pub(crate) fn hash(number: u64) -> SecretHash {
    let mut bytes = [0; 32];
    for (i, chunk) in (1_u64..).zip(bytes.chunks_mut(8)) {
        chunk.copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7).wrapping_mul(i).to_be_bytes());
    }
    bytes[24..].copy_from_slice(&number.to_be_bytes());
    SecretHash::from_bytes(bytes)
}

pub(crate) fn secret(number: u64) -> StoredSecret {
    StoredSecret { hash: hash(number), pepper_id: None }
}

pub(crate) fn limit(name: &str, capacity: u64) -> Limit {
    Limit {
        name: LimitName::parse(name).unwrap(),
        capacity,
        period: Period::Seconds(90),
        algorithm: Algorithm::SlidingWindow,
    }
}

/// A plan with something in each of its fields.
pub(crate) fn plan(id: &str) -> Plan {
    Plan {
        id: plan_id(id),
        display_name: format!("The `{id}` plan, \"quoted\" \u{1f600}"),
        api_access: true,
        key_limits: vec![limit("burst", 10)],
        account_limits: vec![limit("pool", 1_000_000_000_000_000)],
        monthly_credits: Some(5_000),
        allowed_scopes: vec![Scope::parse("tasks:*").unwrap()],
        keys_max: Some(3),
        create_time: NOW,
        update_time: later(1),
        revision: Revision::ZERO,
    }
}

/// An account with something in each of its fields.
pub(crate) fn account(id: &str, plan: &str) -> Account {
    Account {
        id: account_id(id),
        name: format!("{id} & söhne"),
        plan: plan_id(plan),
        status: AccountStatus::Suspended,
        time_zone: TimeZone::parse("Europe/Berlin").unwrap(),
        key_limits: vec![limit("burst", 1)],
        account_limits: vec![],
        credits: Some(CreditOverride::Allowance(7)),
        credits_reset_day: 31,
        top_ups: TopUps::of(5).adjusted(-2, Some("op-1"), later(1)).unwrap(),
        metadata: BTreeMap::from([("team".to_owned(), "a\"b\\c".to_owned())]),
        create_time: NOW,
        update_time: later(2),
        revision: Revision::ZERO,
    }
}

/// A key that is active and has no more than it needs.
pub(crate) fn key(number: u64, account: &str) -> Key {
    Key {
        id: key_id(number),
        account_id: account_id(account),
        name: format!("key {number}"),
        description: String::new(),
        environment: Environment::Live,
        prefix: format!("sk_live_{number:06}"),
        policy: Policy::default(),
        status: KeyStatus::Active,
        create_time: NOW,
        update_time: NOW,
        expire_time: None,
        auto_renew_millis: None,
        rotate_time: None,
        previous: None,
        metadata: BTreeMap::new(),
        revision: Revision::ZERO,
    }
}

/// A policy with something in each of its fields.
pub(crate) fn policy() -> Policy {
    Policy {
        scopes: vec![Scope::parse("tasks:read").unwrap(), Scope::parse("admin:*").unwrap()],
        restrictions: Restrictions {
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            allowed_referrers: vec![],
            allowed_endpoints: vec![],
        },
        limits: vec![limit("burst", 5)],
    }
}

pub(crate) fn commit(writes: Vec<Write>) -> Commit {
    let events = writes
        .iter()
        .map(|_| AuditEvent { action: "key.create", subject: "key_x".to_owned(), details: "{}".to_owned() })
        .collect();
    Commit { rehearsal: false, time: NOW, actor: "system".to_owned(), guards: vec![], writes, events }
}

pub(crate) async fn write(store: &SharedStore, writes: Vec<Write>) -> Result<Revision, CommitError> {
    store.commit(commit(writes)).await
}

/// A plan `free` and an account `acct_a`, which most cases need.
pub(crate) async fn with_account(store: &SharedStore) -> Revision {
    write(store, vec![Write::InsertPlan(plan("free")), Write::InsertAccount(account("a", "free"))]).await.unwrap()
}

/// Inserts these keys, each with the secret of its number, as `with_account` allows.
pub(crate) async fn insert(store: &SharedStore, keys: Vec<(u64, Key)>) -> Revision {
    let writes = keys.into_iter().map(|(number, key)| Write::InsertKey(key, secret(number))).collect();
    write(store, writes).await.unwrap()
}

pub(crate) fn all_keys() -> KeyQuery {
    KeyQuery {
        account_id: None,
        status: None,
        environment: None,
        prefix: None,
        unused_since: None,
        expires_before: None,
        after: None,
        rows_max: 1_000_000,
        now: NOW,
    }
}

//! Making, changing, rotating and ending keys.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::{Value, json};

use crate::ambient::random;
use crate::decision::{KeyRecord, PreviousHash};
use crate::domain::{
    Account, AccountId, AccountStatus, Environment, Key, KeyId, KeyStatus, Limit, Metadata, Plan, Policy,
    PreviousSecret, Restrictions, Revision, Revocation, Scope, Time, shown,
};
use crate::store::{AuditEvent, Commit, CommitError, Guard, LoadedKey, StoredKey, StoredSecret, Write};

use super::renew::require_renewal;
use super::{COMMIT_TRIES_MAX, Caller, Engine, Error, commit_error};

/// Longest time for which an old secret may go on after a rotation: 90 days.
const GRACE_MILLIS_MAX: i64 = 90 * 86_400_000;
/// The end of a secret that has no grace.
const ENDED: Time = Time::from_millis(0);

/// The condition that a revoked key fails.
const KEY_REVOKED: &str = "KEY_REVOKED";

/// A key to make.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its account. Absent: the caller's own.
    pub account_id: Option<AccountId>,
    /// Its name for people.
    pub name: String,
    /// More for people.
    pub description: String,
    /// Production or development.
    pub environment: Environment,
    /// What it may do.
    pub policy: Policy,
    /// From when on it is refused.
    pub expire_time: Option<Time>,
    /// By how many milliseconds its expiry extends itself.
    pub auto_renew_millis: Option<i64>,
    /// The owner's notes.
    pub metadata: Metadata,
}

/// What to change about a key. Absent fields stay.
#[derive(Clone, Debug, Default)]
pub struct KeyPatch {
    /// Its name for people.
    pub name: Option<String>,
    /// More for people.
    pub description: Option<String>,
    /// Its scopes.
    pub scopes: Option<Vec<Scope>>,
    /// Its restrictions.
    pub restrictions: Option<Restrictions>,
    /// Its limits.
    pub limits: Option<Vec<Limit>>,
    /// Whether it is switched on.
    pub enabled: Option<bool>,
    /// From when on it is refused.
    pub expire_time: Option<Option<Time>>,
    /// By how many milliseconds its expiry extends itself.
    pub auto_renew_millis: Option<Option<i64>>,
    /// The owner's notes.
    pub metadata: Option<Metadata>,
}

/// A key that was made or rotated, and its secret, which nothing else holds.
#[derive(Debug)]
pub struct MadeKey {
    /// The key.
    pub key: Key,
    /// The secret, to be shown once.
    pub secret: SecretString,
    /// The revision at which it exists.
    pub revision: Revision,
}

/// A key that has ended.
#[derive(Debug)]
pub struct RevokedKey {
    /// The key.
    pub stored: StoredKey,
    /// The revision from which on it is refused.
    pub revision: Revision,
}

impl Engine {
    /// Makes a key.
    pub async fn create_key(&self, caller: &Caller, new: NewKey) -> Result<MadeKey, Error> {
        caller.require("tollgate:keys:write")?;
        let changing = self.begin_change().await?;
        let now = self.clock.now();
        let (account, plan) = self.home_of(caller, new.account_id.as_ref())?;
        let key = assemble(new, account.id.clone(), new_id(now)?, String::new(), now, now)?;
        admit(&key, &account, &plan, now)?;
        caller.require_covers(&key)?;
        let (secret, prefix) = self.draw_secret(key.environment)?;
        let key = Key { prefix, ..key };
        let (hash, pepper_id) = self.hasher.hash_new(&secret);
        let commit = Commit {
            rehearsal: false,
            time: now,
            actor: caller.name(),
            guards: guards(&account, &plan),
            events: vec![AuditEvent {
                action: "key.create",
                subject: key.id.to_string(),
                details: created_details(&key),
            }],
            writes: vec![Write::InsertKey(key.clone(), StoredSecret { hash, pepper_id })],
        };
        let revision = self.commit(commit).await.map_err(|error| create_error(error, &plan))?;
        let key = Key { revision, ..key };
        let record = KeyRecord::new(&key, self.index.intern(&key.policy), None);
        let loaded = LoadedKey { id: key.id, account_id: account.id, hash, record };
        self.apply_own(revision, |index| _ = index.insert_key(loaded)).await;
        drop(changing);
        Ok(MadeKey { key, secret, revision })
    }

    /// Changes a key. With an etag only if the key is still as it says.
    pub async fn update_key(
        &self,
        caller: &Caller,
        id: KeyId,
        patch: KeyPatch,
        etag: Option<&str>,
    ) -> Result<StoredKey, Error> {
        caller.require("tollgate:keys:write")?;
        let moves = self.moves();
        let change = |stored: &StoredKey, now: Time| {
            let key = patched(&stored.key, &patch, now)?;
            let (account, plan) = self.home_of(caller, Some(&key.account_id))?;
            if patch.scopes.is_some() {
                require_plan_scopes(&key, &plan)?;
            }
            caller.require_covers(&key)?;
            let changed = changes(&stored.key, &key);
            let event = AuditEvent { action: "key.update", subject: id.to_string(), details: changed };
            Ok(Change { key, new_secret: None, guards: guards_of_update(&account), event })
        };
        let (stored, revision) = self.change_key(caller, id, etag, change).await?;
        self.await_everybody(revision, moves).await?;
        Ok(stored)
    }

    /// Gives a key a new secret. The old one verifies for `grace_millis` more.
    pub async fn rotate_key(
        &self,
        caller: &Caller,
        id: KeyId,
        grace_millis: i64,
        etag: Option<&str>,
    ) -> Result<MadeKey, Error> {
        caller.require("tollgate:keys:write")?;
        let moves = self.moves();
        if !(0..=GRACE_MILLIS_MAX).contains(&grace_millis) {
            return Err(Error::invalid("grace_period", "must be between 0 and 90 days (7776000s)"));
        }
        let mut made = None;
        let change = |stored: &StoredKey, now: Time| {
            require_not_revoked(&stored.key)?;
            caller.require_covers(&stored.key)?;
            let (secret, prefix) = self.draw_secret(stored.key.environment)?;
            let (hash, pepper_id) = self.hasher.hash_new(&secret);
            made = Some(secret);
            // Without grace it is over whatever the clock says, also when it is set back.
            let expire_time = if grace_millis == 0 { ENDED } else { now.plus_millis(grace_millis) };
            let previous = PreviousSecret { prefix: stored.key.prefix.clone(), expire_time };
            let details = json!({ "grace_millis": grace_millis, "prefix": prefix, "previous_prefix": previous.prefix });
            let key = Key {
                prefix,
                rotate_time: Some(now),
                previous: Some(previous),
                update_time: now,
                ..stored.key.clone()
            };
            let event = AuditEvent { action: "key.rotate", subject: id.to_string(), details: details.to_string() };
            Ok(Change { key, new_secret: Some(StoredSecret { hash, pepper_id }), guards: Vec::new(), event })
        };
        let (stored, revision) = self.change_key(caller, id, etag, change).await?;
        // What fails here must not: the new secret is known to nobody else. The old one is then refused everywhere within the fence.
        if let Err(error) = self.await_everybody(revision, moves).await {
            tracing::warn!(%error, key = %id, "the key is rotated");
        }
        let secret = made.ok_or_else(|| Error::Internal("a rotation made no secret".to_owned()))?;
        Ok(MadeKey { key: stored.key, secret, revision })
    }

    /// Ends a key. One that has ended stays as it is.
    pub async fn revoke_key(&self, caller: &Caller, id: KeyId, reason: &str) -> Result<RevokedKey, Error> {
        caller.require("tollgate:keys:write")?;
        let moves = self.moves();
        let change = |stored: &StoredKey, now: Time| {
            require_not_revoked(&stored.key)?;
            let revocation = Revocation { time: now, reason: reason.to_owned(), actor: caller.name() };
            let key = Key { status: KeyStatus::Revoked(revocation), update_time: now, ..stored.key.clone() };
            let details = json!({ "reason": reason }).to_string();
            let event = AuditEvent { action: "key.revoke", subject: id.to_string(), details };
            Ok(Change { key, new_secret: None, guards: Vec::new(), event })
        };
        let revoked = match self.change_key(caller, id, None, change).await {
            Ok((stored, revision)) => RevokedKey { stored, revision },
            Err(Error::Precondition { kind: KEY_REVOKED, .. }) => {
                let stored = self.visible_key(caller, id).await?;
                RevokedKey { revision: stored.key.revision, stored }
            }
            Err(error) => return Err(error),
        };
        self.await_everybody(revoked.revision, moves).await?;
        Ok(revoked)
    }

    /// Reads a key, lets `change` say what shall become of it, commits that and puts it into the index; again where
    /// another process was faster.
    pub(super) async fn change_key(
        &self,
        caller: &Caller,
        id: KeyId,
        etag: Option<&str>,
        mut change: impl FnMut(&StoredKey, Time) -> Result<Change, Error>,
    ) -> Result<(StoredKey, Revision), Error> {
        let changing = self.begin_change().await?;
        for _ in 0..COMMIT_TRIES_MAX {
            let stored = self.visible_key(caller, id).await?;
            let expected = stored.key.revision;
            if let Some(etag) = etag.filter(|etag| *etag != expected.etag()) {
                return Err(Error::Stale { kind: "key", etag: shown(etag) });
            }
            let now = self.clock.now();
            let Change { key, new_secret, guards, event } = change(&stored, now)?;
            let write = Write::UpdateKey { key: key.clone(), expected, new_secret: new_secret.clone() };
            let commit = Commit {
                rehearsal: false,
                time: now,
                actor: caller.name(),
                guards,
                writes: vec![write],
                events: vec![event],
            };
            match self.commit(commit).await {
                Ok(revision) => {
                    let key = Key { revision, ..key };
                    self.apply_own(revision, |_| self.apply_key(&key, &stored, new_secret.as_ref())).await;
                    drop(changing);
                    let hash = new_secret.map_or(stored.hash, |secret| secret.hash);
                    return Ok((StoredKey { key, hash, activity: stored.activity }, revision));
                }
                Err(CommitError::Stale) => {}
                Err(error) => return Err(commit_error(error)),
            }
        }
        Err(commit_error(CommitError::Stale))
    }

    /// Puts a changed key into the index.
    fn apply_key(&self, key: &Key, before: &StoredKey, new_secret: Option<&StoredSecret>) {
        let policy = self.index.intern(&key.policy);
        if let (Some(secret), Some(previous)) = (new_secret, &key.previous) {
            let previous = PreviousHash { hash: before.hash, expire_time: previous.expire_time };
            let record = KeyRecord::new(key, policy, Some(Arc::new(previous)));
            self.index.rotate_key(&before.hash, secret.hash, record);
        } else {
            let previous = self.index.find(&before.hash).and_then(|found| found.entry.record.load().previous.clone());
            self.index.update_key(&before.hash, KeyRecord::new(key, policy, previous));
        }
    }

    /// The account that a call is about, and its plan; as absent to a caller who may not know of it as if it were not
    /// there.
    pub(super) fn home_of(
        &self,
        caller: &Caller,
        account_id: Option<&AccountId>,
    ) -> Result<(Account, Arc<Plan>), Error> {
        let account_id = account_id.or_else(|| caller.own_account());
        let account_id =
            account_id.ok_or_else(|| Error::invalid("key.account_id", "must be set by an operator's caller"))?;
        let entry = self.index.account(account_id).filter(|_| caller.sees(account_id));
        let state = entry.ok_or_else(|| Error::no_account(account_id))?.state.load_full();
        Ok((state.account.clone(), Arc::clone(&state.plan)))
    }

    /// A key, as absent to a caller who may not know of it as if it were not there.
    pub(super) async fn visible_key(&self, caller: &Caller, id: KeyId) -> Result<StoredKey, Error> {
        let stored = self.read(self.store.key(id)).await?;
        stored.filter(|stored| caller.sees(&stored.key.account_id)).ok_or_else(|| Error::no_key(id))
    }

    pub(super) fn draw_secret(&self, environment: Environment) -> Result<(SecretString, String), Error> {
        let mut bits = zeroize::Zeroizing::new([0; 32]);
        random::fill(bits.as_mut_slice()).map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(self.brand.format(environment, &bits))
    }
}

/// A fresh id.
pub(super) fn new_id(now: Time) -> Result<KeyId, Error> {
    let bytes = random::uuid_v7(now).map_err(|error| Error::Unavailable(error.to_string()))?;
    Ok(KeyId::from_bytes(bytes))
}

/// What shall become of a key.
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) new_secret: Option<StoredSecret>,
    pub(super) guards: Vec<Guard>,
    pub(super) event: AuditEvent,
}

/// A key from what a caller asked for.
pub(super) fn assemble(
    new: NewKey,
    account_id: AccountId,
    id: KeyId,
    prefix: String,
    create_time: Time,
    now: Time,
) -> Result<Key, Error> {
    new.policy.check().map_err(|(field, error)| Error::invalid_field(format!("key.{field}"), &error))?;
    require_renewal(new.auto_renew_millis, new.expire_time)?;
    Ok(Key {
        id,
        account_id,
        name: new.name,
        description: new.description,
        environment: new.environment,
        prefix,
        policy: new.policy,
        status: KeyStatus::Active,
        create_time,
        update_time: now,
        expire_time: new.expire_time,
        auto_renew_millis: new.auto_renew_millis,
        rotate_time: None,
        previous: None,
        metadata: new.metadata,
        revision: Revision::ZERO,
    })
}

/// Whether the account and its plan permit this new key.
pub(super) fn admit(key: &Key, account: &Account, plan: &Plan, now: Time) -> Result<(), Error> {
    require_future(key.expire_time, now)?;
    let refused = |kind, message: String| Err(Error::Precondition { kind, subject: account.id.to_string(), message });
    if account.status == AccountStatus::Suspended {
        return refused("ACCOUNT_SUSPENDED", format!("the account `{}` is suspended", account.id));
    }
    if !plan.api_access {
        return refused(
            "PLAN_DENIED",
            format!("the plan `{}` of account `{}` does not include API access", plan.id, account.id),
        );
    }
    require_plan_scopes(key, plan)
}

/// What must still hold when a new key is committed.
pub(super) fn guards(account: &Account, plan: &Plan) -> Vec<Guard> {
    let at = [Guard::AccountAt(account.id.clone(), account.revision), Guard::PlanAt(plan.id.clone(), plan.revision)];
    let room = plan.keys_max.map(|keys_max| Guard::KeysAtMost(account.id.clone(), keys_max));
    at.into_iter().chain(room).collect()
}

fn guards_of_update(account: &Account) -> Vec<Guard> {
    vec![Guard::AccountAt(account.id.clone(), account.revision)]
}

pub(super) fn create_error(error: CommitError, plan: &Plan) -> Error {
    if matches!(error, CommitError::TooManyKeys) {
        let most = plan.keys_max.unwrap_or(0);
        let message = format!("the plan `{}` allows {most} keys that are not revoked; revoke one first", plan.id);
        return Error::Precondition { kind: "TOO_MANY_KEYS", subject: plan.id.to_string(), message };
    }
    commit_error(error)
}

fn require_plan_scopes(key: &Key, plan: &Plan) -> Result<(), Error> {
    match key.policy.scopes.iter().find(|scope| !plan.allows_scope(scope)) {
        Some(scope) => {
            let message = format!("the plan `{}` does not allow the scope `{scope}`", plan.id);
            Err(Error::Precondition { kind: "PLAN_DENIED", subject: plan.id.to_string(), message })
        }
        None => Ok(()),
    }
}

fn require_future(expire_time: Option<Time>, now: Time) -> Result<(), Error> {
    match expire_time {
        Some(time) if time <= now => {
            Err(Error::invalid("key.expire_time", format!("`{time}` is in the past; it is {now}")))
        }
        Some(time) if time > Time::MAX => Err(Error::invalid("key.expire_time", "lies after the year 9999")),
        Some(_) | None => Ok(()),
    }
}

fn require_not_revoked(key: &Key) -> Result<(), Error> {
    if !key.is_revoked() {
        return Ok(());
    }
    let message = format!("the key `{}` is revoked, for good; make another", key.id);
    Err(Error::Precondition { kind: KEY_REVOKED, subject: key.id.to_string(), message })
}

/// The key as the patch makes it.
fn patched(old: &Key, patch: &KeyPatch, now: Time) -> Result<Key, Error> {
    require_not_revoked(old)?;
    let mut key = Key { update_time: now, ..old.clone() };
    if let Some(name) = &patch.name {
        key.name.clone_from(name);
    }
    if let Some(description) = &patch.description {
        key.description.clone_from(description);
    }
    if let Some(scopes) = &patch.scopes {
        key.policy.scopes.clone_from(scopes);
    }
    if let Some(restrictions) = &patch.restrictions {
        key.policy.restrictions.clone_from(restrictions);
    }
    if let Some(limits) = &patch.limits {
        key.policy.limits.clone_from(limits);
    }
    if let Some(enabled) = patch.enabled {
        key.status = if enabled { KeyStatus::Active } else { KeyStatus::Disabled };
    }
    if let Some(expire_time) = patch.expire_time {
        require_future(expire_time, now)?;
        key.expire_time = expire_time;
    }
    if let Some(auto_renew_millis) = patch.auto_renew_millis {
        key.auto_renew_millis = auto_renew_millis;
    }
    if let Some(metadata) = &patch.metadata {
        key.metadata.clone_from(metadata);
    }
    key.policy.check().map_err(|(field, error)| Error::invalid_field(format!("key.{field}"), &error))?;
    require_renewal(key.auto_renew_millis, key.expire_time)?;
    Ok(key)
}

/// Of a new key, what the audit trail keeps.
pub(super) fn created_details(key: &Key) -> String {
    json!({
        "account_id": key.account_id.as_str(),
        "name": key.name,
        "environment": key.environment.as_str(),
        "prefix": key.prefix,
        "policy": key.policy,
        "expire_time": key.expire_time.map(|time| time.to_string()),
    })
    .to_string()
}

/// Of a changed key, the fields that differ, each with the value before and after.
pub(super) fn changes(old: &Key, new: &Key) -> String {
    let view = |key: &Key| {
        json!({
            "name": key.name,
            "description": key.description,
            "scopes": key.policy.scopes,
            "restrictions": key.policy.restrictions,
            "limits": key.policy.limits,
            "enabled": key.status == KeyStatus::Active,
            "expire_time": key.expire_time.map(|time| time.to_string()),
            "auto_renew_millis": key.auto_renew_millis,
            "metadata": key.metadata,
        })
    };
    differences(&view(old), &view(new))
}

/// Of two JSON objects with the same keys, the values that differ.
pub(super) fn differences(old: &Value, new: &Value) -> String {
    let empty = serde_json::Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let changed = new.iter().filter_map(|(field, after)| {
        let before = old.get(field)?;
        (before != after).then(|| (field.clone(), json!({ "from": before, "to": after })))
    });
    Value::Object(changed.collect()).to_string()
}

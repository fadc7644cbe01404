//! Making and changing accounts, and the first operator's key.

use serde_json::{Value, json};

use crate::domain::{
    Account, AccountId, AccountStatus, CreditOverride, Environment, Limit, Metadata, Plan, PlanId, Policy, Revision,
    Scope, Time, TimeZone, TopUps, shown,
};
use crate::store::{AuditEvent, Commit, CommitError, Guard, LoadedKey, StoredSecret, Write};

use super::index::Index;
use super::key::{assemble, created_details, differences, new_id};
use super::{COMMIT_TRIES_MAX, Caller, Engine, Error, MadeKey, NewKey, commit_error};
use crate::decision::KeyRecord;

/// The scopes of the first operator's key: all of Tollgate's own.
const OPERATOR_SCOPES: [&str; 5] =
    ["tollgate:admin", "tollgate:check", "tollgate:keys:read", "tollgate:keys:write", "tollgate:usage:read"];

/// What to change about an account. Absent fields stay.
#[derive(Clone, Debug, Default)]
pub struct AccountPatch {
    /// Its name for people.
    pub name: Option<String>,
    /// The plan that it is on.
    pub plan: Option<PlanId>,
    /// In use or suspended.
    pub status: Option<AccountStatus>,
    /// Where its days and months begin.
    pub time_zone: Option<TimeZone>,
    /// Limits of each of its keys.
    pub key_limits: Option<Vec<Limit>>,
    /// Limits shared by its keys.
    pub account_limits: Option<Vec<Limit>>,
    /// Credits instead of the plan's.
    pub credits: Option<Option<CreditOverride>>,
    /// Day of the month on which credits begin anew.
    pub credits_reset_day: Option<u8>,
    /// The owner's notes.
    pub metadata: Option<Metadata>,
}

impl Engine {
    /// A fresh id for an account.
    pub fn new_account_id(&self) -> Result<AccountId, Error> {
        new_id(self.clock.now()).map(|id| AccountId::from_bytes(*id.as_bytes()))
    }

    /// Makes an account. Its times and revision are set here.
    pub async fn create_account(&self, caller: &Caller, account: Account) -> Result<Account, Error> {
        require_admin(caller)?;
        if account.id.is_operator() {
            return Err(Error::AlreadyExists(format!("`{}` is the built-in operator account", account.id)));
        }
        let changing = self.begin_change().await?;
        let now = self.clock.now();
        let account = Account { create_time: now, update_time: now, ..account };
        check_account(&account)?;
        let commit = Commit {
            rehearsal: false,
            time: now,
            actor: caller.name(),
            guards: Vec::new(),
            events: vec![event("account.create", account.id.as_str(), view(&account).to_string())],
            writes: vec![Write::InsertAccount(account.clone())],
        };
        let revision = self.commit(commit).await.map_err(|error| account_error(error, &account))?;
        let account = self.apply_account(Account { revision, ..account }).await;
        drop(changing);
        Ok(account)
    }

    /// One account.
    pub async fn account(&self, caller: &Caller, id: &AccountId) -> Result<Account, Error> {
        require_reader(caller)?;
        let account = self.read(self.store.account(id)).await?;
        account.filter(|account| caller.sees(&account.id)).ok_or_else(|| Error::no_account(id))
    }

    /// Accounts in the order of their ids.
    pub async fn accounts(
        &self,
        caller: &Caller,
        after: Option<&AccountId>,
        rows_max: u32,
    ) -> Result<Vec<Account>, Error> {
        require_reader(caller)?;
        match caller.own_account() {
            None => self.read(self.store.accounts(after, rows_max)).await,
            Some(own) => {
                let account = self.read(self.store.account(own)).await?;
                Ok(account.into_iter().filter(|account| after.is_none_or(|after| account.id > *after)).collect())
            }
        }
    }

    /// Changes an account. With an etag only if it is still as that says.
    pub async fn update_account(
        &self,
        caller: &Caller,
        id: &AccountId,
        patch: AccountPatch,
        etag: Option<&str>,
    ) -> Result<Account, Error> {
        require_admin(caller)?;
        if id.is_operator() && (patch.plan.is_some() || patch.status.is_some()) {
            let message = "the operator account can neither change its plan nor be suspended, or nobody could undo it";
            return Err(Error::Precondition { kind: "BUILT_IN", subject: id.to_string(), message: message.to_owned() });
        }
        let moves = self.moves();
        let changing = self.begin_change().await?;
        for _ in 0..COMMIT_TRIES_MAX {
            let old = self.read(self.store.account(id)).await?.ok_or_else(|| Error::no_account(id))?;
            if let Some(etag) = etag.filter(|etag| *etag != old.revision.etag()) {
                return Err(Error::Stale { kind: "account", etag: shown(etag) });
            }
            let now = self.clock.now();
            let account = patched(&old, &patch, now);
            check_account(&account)?;
            let commit = Commit {
                rehearsal: false,
                time: now,
                actor: caller.name(),
                guards: Vec::new(),
                events: vec![event("account.update", id.as_str(), differences(&view(&old), &view(&account)))],
                writes: vec![Write::UpdateAccount(account.clone(), old.revision)],
            };
            match self.commit(commit).await {
                Ok(revision) => {
                    let account = self.apply_account(Account { revision, ..account }).await;
                    drop(changing);
                    self.await_everybody(revision, moves).await?;
                    return Ok(account);
                }
                Err(CommitError::Stale) => {}
                Err(error) => return Err(account_error(error, &account)),
            }
        }
        Err(commit_error(CommitError::Stale))
    }

    /// Makes the operator account and its first key. `anew` makes another key where there are some already, for an
    /// operator who has lost theirs.
    pub async fn bootstrap(&self, anew: bool) -> Result<MadeKey, Error> {
        let changing = self.begin_change().await?;
        let now = self.clock.now();
        let (secret, prefix) = self.draw_secret(Environment::Live)?;
        let (hash, pepper_id) = self.hasher.hash_new(&secret);
        let id = new_id(now)?;
        let scopes = OPERATOR_SCOPES.iter().filter_map(|scope| Scope::parse(scope).ok()).collect();
        let new = NewKey {
            account_id: None,
            name: format!("operator {now}"),
            description: "made by `tollgate bootstrap`".to_owned(),
            environment: Environment::Live,
            policy: Policy { scopes, ..Policy::default() },
            expire_time: None,
            auto_renew_millis: None,
            metadata: Metadata::new(),
        };
        let key = assemble(new, AccountId::operator(), id, prefix, now, now)?;
        let (plan, account) = built_in(now);
        let mut writes = vec![Write::InsertKey(key.clone(), StoredSecret { hash, pepper_id })];
        let mut events = vec![event("key.create", &key.id.to_string(), created_details(&key))];
        if self.index.account(&account.id).is_none() {
            events.insert(0, event("account.create", account.id.as_str(), view(&account).to_string()));
            writes.insert(0, Write::InsertAccount(account.clone()));
            events.insert(0, event("plan.create", plan.id.as_str(), "{}".to_owned()));
            writes.insert(0, Write::InsertPlan(plan.clone()));
        }
        let is_first = writes.len() > 1;
        let guards = if anew { Vec::new() } else { vec![Guard::NoKeys] };
        let commit = Commit { rehearsal: false, time: now, actor: "system".to_owned(), guards, writes, events };
        let revision = self.commit(commit).await.map_err(commit_error)?;
        let key = crate::domain::Key { revision, ..key };
        let record = KeyRecord::new(&key, self.index.intern(&key.policy), None);
        let apply = |index: &Index| {
            if is_first {
                index.put_plan(Plan { revision, ..plan });
                index.put_account(Account { revision, ..account });
            }
            index.insert_key(LoadedKey { id, account_id: AccountId::operator(), hash, record });
        };
        self.apply_own(revision, apply).await;
        drop(changing);
        Ok(MadeKey { key, secret, revision })
    }

    pub(super) async fn apply_account(&self, account: Account) -> Account {
        let apply = |index: &Index| _ = index.put_account(account.clone());
        self.apply_own(account.revision, apply).await;
        account
    }
}

/// The plan and the account of operators. It has no limits, because the key of an edge is not what is to be limited.
fn built_in(now: Time) -> (Plan, Account) {
    let plan = Plan {
        id: PlanId::operator(),
        display_name: "Operators".to_owned(),
        api_access: true,
        key_limits: Vec::new(),
        account_limits: Vec::new(),
        monthly_credits: None,
        allowed_scopes: Vec::new(),
        keys_max: None,
        create_time: now,
        update_time: now,
        revision: Revision::ZERO,
    };
    let account = Account {
        id: AccountId::operator(),
        name: "Operators".to_owned(),
        plan: PlanId::operator(),
        status: AccountStatus::Active,
        time_zone: TimeZone::UTC,
        key_limits: Vec::new(),
        account_limits: Vec::new(),
        credits: None,
        credits_reset_day: 1,
        top_ups: TopUps::default(),
        metadata: Metadata::new(),
        create_time: now,
        update_time: now,
        revision: Revision::ZERO,
    };
    (plan, account)
}

pub(super) fn require_admin(caller: &Caller) -> Result<(), Error> {
    caller.require("tollgate:admin")?;
    caller.require_operator()
}

/// Operators' tools that manage accounts and plans hold `tollgate:admin`; customers' that show their own, `tollgate:keys:read`.
pub(super) fn require_reader(caller: &Caller) -> Result<(), Error> {
    caller.require("tollgate:keys:read").or_else(|error| require_admin(caller).map_err(|_| error))
}

pub(super) fn event(action: &'static str, subject: &str, details: String) -> AuditEvent {
    AuditEvent { action, subject: subject.to_owned(), details }
}

fn check_account(account: &Account) -> Result<(), Error> {
    account.check().map_err(|(field, error)| Error::invalid_field(format!("account.{field}"), &error))
}

fn account_error(error: CommitError, account: &Account) -> Error {
    if matches!(error, CommitError::NoParent) {
        let message = format!("there is no plan `{}`", account.plan);
        return Error::Precondition { kind: "NO_SUCH_PLAN", subject: account.plan.to_string(), message };
    }
    if matches!(error, CommitError::IdTaken) {
        return Error::AlreadyExists(format!("there is an account `{}` already", account.id));
    }
    commit_error(error)
}

fn patched(old: &Account, patch: &AccountPatch, now: Time) -> Account {
    let patch = patch.clone();
    Account {
        id: old.id.clone(),
        name: patch.name.unwrap_or_else(|| old.name.clone()),
        plan: patch.plan.unwrap_or_else(|| old.plan.clone()),
        status: patch.status.unwrap_or(old.status),
        time_zone: patch.time_zone.unwrap_or_else(|| old.time_zone.clone()),
        key_limits: patch.key_limits.unwrap_or_else(|| old.key_limits.clone()),
        account_limits: patch.account_limits.unwrap_or_else(|| old.account_limits.clone()),
        credits: patch.credits.unwrap_or(old.credits),
        credits_reset_day: patch.credits_reset_day.unwrap_or(old.credits_reset_day),
        top_ups: old.top_ups.clone(),
        metadata: patch.metadata.unwrap_or_else(|| old.metadata.clone()),
        create_time: old.create_time,
        update_time: now,
        revision: old.revision,
    }
}

/// What the audit trail compares.
fn view(account: &Account) -> Value {
    json!({
        "name": account.name,
        "plan": account.plan,
        "status": account.status,
        "time_zone": account.time_zone,
        "key_limits": account.key_limits,
        "account_limits": account.account_limits,
        "credits": account.credits,
        "credits_reset_day": account.credits_reset_day,
        "metadata": account.metadata,
    })
}

//! Who may call what.
//!
//! A caller is a key. It needs Tollgate's own scope for what it does; a customer's sees and changes its own account alone,
//! an operator's all. What a caller makes or changes can't be wider than the caller's own key: not in scopes, limits,
//! restrictions, expiry or environment, or a narrow key could write itself a wider one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::decision::restriction::ip_allowed;
use crate::decision::{AccountTerms, KeyRecord, account_usable, grants, usable};
use crate::domain::{AccountId, Environment, Key, KeyId, Restrictions, ScopeRef, Time, Verdict};

use super::index::{AccountEntry, Found};
use super::{Engine, Error};

/// Who calls.
#[derive(Clone, Debug)]
pub enum Caller {
    /// This program itself: bootstrap, and its own tasks.
    System,
    /// The holder of a key.
    Key(KeyCaller),
}

/// The holder of a key.
#[derive(Clone, Debug)]
pub struct KeyCaller {
    /// The key.
    pub key_id: KeyId,
    found: Found,
    /// Until when the secret that it was called with verifies: the key's own end, or that of a grace period.
    expire_time: Option<Time>,
    record: Arc<KeyRecord>,
    terms: Arc<AccountTerms>,
}

impl Engine {
    /// Takes the credential of a call for its caller. Refuses one that is not in use, whose account is not, or that may not
    /// be used from the peer's address. A key's other restrictions are about the API that it is for, not about this one.
    pub fn authenticate(&self, credential: &str, peer: Option<IpAddr>, now: Time) -> Result<Caller, Error> {
        let refused = |verdict: Verdict| {
            let message = format!("the key in `authorization` is refused: {verdict}");
            Error::Unauthenticated { verdict, message }
        };
        let (hash, found) = self.identify(credential).map_err(refused)?;
        let record = found.entry.record.load_full();
        let terms = Arc::clone(&found.entry.account.state.load().terms);
        let secret_expire_time = found.secret_expire_time(&hash, &record);
        usable(&record, secret_expire_time, now).map_err(refused)?;
        let expire_time = [record.expiry.time(), secret_expire_time].into_iter().flatten().min();
        account_usable(&terms).map_err(refused)?;
        if !ip_allowed(&record.policy.restrictions.allowed_ips, peer) {
            return Err(refused(Verdict::IpDenied));
        }
        if found.entry.is_first_touch_in(now) && found.entry.with_meter(|meter| meter.touch(peer, now)) {
            self.usage.enqueue(Arc::clone(&found.entry));
        }
        // Last: what was read above may be old by now.
        self.require_fresh()?;
        Ok(Caller::Key(KeyCaller { key_id: found.entry.id, found, expire_time, record, terms }))
    }
}

impl Caller {
    /// What the audit trail calls it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::System => "system".to_owned(),
            Self::Key(caller) => caller.key_id.to_string(),
        }
    }

    /// Refuses a caller whose key lacks one of Tollgate's own scopes.
    pub fn require(&self, scope: &'static str) -> Result<(), Error> {
        let Self::Key(caller) = self else { return Ok(()) };
        if grants(&caller.record, &caller.terms, ScopeRef::own(scope)) {
            return Ok(());
        }
        Err(Error::PermissionDenied(format!("the caller's key `{}` lacks the scope `{scope}`", caller.key_id)))
    }

    /// Refuses a caller that is no operator.
    pub fn require_operator(&self) -> Result<(), Error> {
        match self.own_account() {
            None => Ok(()),
            Some(account) => Err(Error::PermissionDenied(format!(
                "this takes a key of the operator account; the caller's is of `{account}`"
            ))),
        }
    }

    /// The one account that the caller may see and change; absent for those who may all.
    #[must_use]
    pub fn own_account(&self) -> Option<&AccountId> {
        match self {
            Self::System => None,
            Self::Key(caller) => Some(&caller.terms.account_id).filter(|account| !account.is_operator()),
        }
    }

    /// Whether the caller may know of records of this account.
    #[must_use]
    pub fn sees(&self, account: &AccountId) -> bool {
        self.own_account().is_none_or(|own| own == account)
    }

    /// A place among the calls of the caller's account that are under way, unless it has as many as it may. Operators
    /// always have one.
    #[must_use]
    pub fn place(&self, calls_max: usize) -> Option<CallPlace> {
        let Self::Key(caller) = self else { return Some(CallPlace(None)) };
        let account = Arc::clone(&caller.found.entry.account);
        let before = account.calls.fetch_add(1, Ordering::Relaxed);
        let place = CallPlace(Some(account));
        (before < calls_max || self.own_account().is_none()).then_some(place)
    }

    /// The key that calls.
    pub(super) fn key(&self) -> Option<&KeyCaller> {
        match self {
            Self::System => None,
            Self::Key(caller) => Some(caller),
        }
    }

    /// Refuses a caller that would make or leave a key wider than its own. `prefix` stands before the names of fields.
    pub(super) fn require_covers(&self, key: &Key) -> Result<(), Error> {
        let Self::Key(caller) = self else { return Ok(()) };
        let operator = self.own_account().is_none();
        for scope in &key.policy.scopes {
            let free = operator && !scope.is_own();
            if !free && !grants(&caller.record, &caller.terms, scope.as_ref()) {
                return Err(wider("scopes", &format!("it lacks `{scope}`")));
            }
        }
        if operator && !key.account_id.is_operator() { Ok(()) } else { caller.require_covers_bounds(key) }
    }
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub struct CallPlace(Option<Arc<AccountEntry>>);

impl Drop for CallPlace {
    fn drop(&mut self) {
        if let Some(account) = &self.0 {
            account.calls.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl KeyCaller {
    pub(super) fn found(&self) -> &Found {
        &self.found
    }

    /// Everything but scopes.
    fn require_covers_bounds(&self, key: &Key) -> Result<(), Error> {
        let own = &self.record;
        if own.environment == Environment::Test && key.environment == Environment::Live {
            return Err(wider("environment", "it is a test key"));
        }
        if let Some(expire_time) = self.expire_time {
            if key.expire_time.is_none_or(|time| time > expire_time) {
                return Err(wider("expire_time", &format!("it expires at {expire_time}")));
            }
            if key.auto_renew_millis.is_some() {
                return Err(wider("auto_renew", &format!("it expires at {expire_time}")));
            }
        }
        // What counts is what would apply: a key's limit takes the place of the plan's of the same name. The key is of the
        // caller's own account, so the same terms hold for both.
        let terms = Arc::clone(&self.found.entry.account.state.load().terms);
        let limits = terms.limits_of(&key.policy);
        for limit in terms.limits_of(&own.policy).iter() {
            let tight = limits.iter().any(|other| other.continues(limit) && other.capacity <= limit.capacity);
            if !tight {
                let why = format!("it is limited by `{}` to {} per {:?}", limit.name, limit.capacity, limit.period);
                return Err(wider("limits", &why));
            }
        }
        require_covers_restrictions(&own.policy.restrictions, &key.policy.restrictions)
    }
}

fn require_covers_restrictions(own: &Restrictions, other: &Restrictions) -> Result<(), Error> {
    let ips = other.allowed_ips.iter().all(|net| own.allowed_ips.iter().any(|wide| wide.contains(net)));
    if !own.allowed_ips.is_empty() && (other.allowed_ips.is_empty() || !ips) {
        return Err(wider("restrictions.allowed_ips", "it is restricted to fewer networks"));
    }
    if !subset(&other.allowed_referrers, &own.allowed_referrers) {
        return Err(wider("restrictions.allowed_referrers", "it is restricted to fewer hosts"));
    }
    if !subset(&other.allowed_endpoints, &own.allowed_endpoints) {
        return Err(wider("restrictions.allowed_endpoints", "it is restricted to fewer endpoints"));
    }
    Ok(())
}

/// Whether a list restricts at least as much as another: each of its entries stands there too.
fn subset<T: PartialEq>(list: &[T], of: &[T]) -> bool {
    of.is_empty() || (!list.is_empty() && list.iter().all(|entry| of.contains(entry)))
}

fn wider(field: &str, why: &str) -> Error {
    Error::PermissionDenied(format!("`key.{field}` would be wider than the caller's own key allows: {why}"))
}

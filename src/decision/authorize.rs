//! Everything that a check decides before it comes to how much.

use std::net::IpAddr;

use crate::domain::{AccountStatus, Environment, ScopeRef, Time, Verdict};

use super::restriction::{self, Endpoint};
use super::{AccountTerms, KeyPhase, KeyRecord};

/// What is asked of a key, budgets apart.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// Scopes that it must all have.
    pub all_of: Vec<ScopeRef<'a>>,
    /// Scopes of which it must have one.
    pub any_of: Vec<ScopeRef<'a>>,
    /// The environment that it must be of.
    pub environment: Option<Environment>,
    /// The client's address.
    pub client_ip: Option<IpAddr>,
    /// The client's `Referer`.
    pub referrer: Option<&'a str>,
    /// What the client asked for.
    pub endpoint: Endpoint<'a>,
}

/// Holds a key, found by one of its secrets, against a request. Returns the first reason to refuse it, in the order of
/// [`Verdict`]. `secret_expire_time` is set where the secret is one that a rotation replaced.
pub fn authorize(
    record: &KeyRecord,
    secret_expire_time: Option<Time>,
    terms: &AccountTerms,
    request: &Request<'_>,
    now: Time,
) -> Result<(), Verdict> {
    usable(record, secret_expire_time, now)?;
    account_usable(terms)?;
    let restrictions = &record.policy.restrictions;
    if request.environment.is_some_and(|expected| expected != record.environment) {
        return Err(Verdict::WrongEnvironment);
    }
    if !restriction::ip_allowed(&restrictions.allowed_ips, request.client_ip) {
        return Err(Verdict::IpDenied);
    }
    if !restriction::referrer_allowed(&restrictions.allowed_referrers, request.referrer) {
        return Err(Verdict::ReferrerDenied);
    }
    if !restriction::endpoint_allowed(&restrictions.allowed_endpoints, request.endpoint) {
        return Err(Verdict::EndpointDenied);
    }
    let has = |scope: ScopeRef<'_>| grants(record, terms, scope);
    let any = request.any_of.is_empty() || request.any_of.iter().copied().any(has);
    if any && request.all_of.iter().copied().all(has) { Ok(()) } else { Err(Verdict::ScopeDenied) }
}

/// Whether the key itself is in use: REVOKED to DISABLED.
pub fn usable(record: &KeyRecord, secret_expire_time: Option<Time>, now: Time) -> Result<(), Verdict> {
    let over = |time: Option<Time>| time.is_some_and(|time| time <= now);
    if record.phase == KeyPhase::Revoked {
        Err(Verdict::Revoked)
    } else if over(secret_expire_time) {
        Err(Verdict::RotatedOut)
    } else if over(record.expiry.time()) {
        Err(Verdict::Expired)
    } else if record.phase == KeyPhase::Disabled {
        Err(Verdict::Disabled)
    } else {
        Ok(())
    }
}

/// Whether the account is in use, and its plan lets it use the API at all: `ACCOUNT_SUSPENDED` and `PLAN_DENIED`.
pub fn account_usable(terms: &AccountTerms) -> Result<(), Verdict> {
    if terms.status == AccountStatus::Suspended {
        Err(Verdict::AccountSuspended)
    } else if !terms.api_access {
        Err(Verdict::PlanDenied)
    } else {
        Ok(())
    }
}

/// Whether the key holds the scope and the plan lets it use it.
#[must_use]
pub fn grants(record: &KeyRecord, terms: &AccountTerms, scope: ScopeRef<'_>) -> bool {
    scope.is_granted_by(&record.policy.scopes) && terms.allows(scope)
}

/// Of the scopes asked for, those that the key lacks: the missing ones of `all_of`, and the whole of `any_of` if it has
/// none of them.
#[must_use]
pub fn missing_scopes(record: &KeyRecord, terms: &AccountTerms, request: &Request<'_>) -> Vec<String> {
    let lacks = |scope: &&ScopeRef<'_>| !grants(record, terms, **scope);
    let all_of = request.all_of.iter().filter(lacks);
    let none = request.any_of.iter().all(|scope| lacks(&scope));
    let any_of = request.any_of.iter().filter(|_| none);
    all_of.chain(any_of).map(|scope| scope.as_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decision::Expiry;
    use crate::domain::{
        Account, AccountId, EndpointPattern, Plan, PlanId, Policy, ReferrerPattern, Restrictions, Revision, Scope,
        TimeZone, TopUps,
    };

    const NOW: Time = Time::from_millis(1_000_000);

    fn plan() -> Plan {
        Plan {
            id: PlanId::parse("p").unwrap(),
            display_name: String::new(),
            api_access: true,
            key_limits: vec![],
            account_limits: vec![],
            monthly_credits: None,
            allowed_scopes: vec![],
            keys_max: None,
            create_time: NOW,
            update_time: NOW,
            revision: Revision::ZERO,
        }
    }

    fn account() -> Account {
        Account {
            id: AccountId::parse("acct_a").unwrap(),
            name: "a".to_owned(),
            plan: plan().id,
            status: AccountStatus::Active,
            time_zone: TimeZone::UTC,
            key_limits: vec![],
            account_limits: vec![],
            credits: None,
            credits_reset_day: 1,
            top_ups: TopUps::default(),
            metadata: std::collections::BTreeMap::new(),
            create_time: NOW,
            update_time: NOW,
            revision: Revision::ZERO,
        }
    }

    fn scopes(names: &[&str]) -> Vec<Scope> {
        names.iter().map(|name| Scope::parse(name).unwrap()).collect()
    }

    fn record() -> KeyRecord {
        KeyRecord {
            name: "k".into(),
            policy: Arc::new(Policy { scopes: scopes(&["tasks:read", "notes:*"]), ..Policy::default() }),
            metadata: None,
            expiry: Expiry::new(None),
            previous: None,
            revision: Revision::ZERO,
            environment: Environment::Live,
            phase: KeyPhase::Active,
        }
    }

    fn asked<'a>(all_of: &[&'a str], any_of: &[&'a str]) -> Request<'a> {
        let parse = |names: &[&'a str]| names.iter().map(|name| ScopeRef::parse(name).unwrap()).collect();
        Request { all_of: parse(all_of), any_of: parse(any_of), ..Request::default() }
    }

    fn decide(record: &KeyRecord, account: &Account, plan: &Plan, request: &Request<'_>) -> Result<(), Verdict> {
        authorize(record, None, &AccountTerms::new(account, plan), request, NOW)
    }

    #[test]
    fn a_key_without_restrictions_may_do_what_its_scopes_say() {
        type Names = &'static [&'static str];
        let rows: [(Names, Names, bool, Names); 8] = [
            (&[], &[], true, &[]),
            (&["tasks:read"], &[], true, &[]),
            (&["tasks:read", "notes:write"], &[], true, &[]),
            (&["tasks:read", "tasks:write"], &[], false, &["tasks:write"]),
            (&[], &["tasks:write", "tasks:read"], true, &[]),
            (&[], &["tasks:write", "users:read"], false, &["tasks:write", "users:read"]),
            (&["users:read"], &["tasks:read"], false, &["users:read"]),
            (&["users:read"], &["users:write"], false, &["users:read", "users:write"]),
        ];
        let terms = AccountTerms::new(&account(), &plan());
        for (all_of, any_of, expected, missing) in rows {
            let request = asked(all_of, any_of);
            let expected = if expected { Ok(()) } else { Err(Verdict::ScopeDenied) };
            assert_eq!(decide(&record(), &account(), &plan(), &request), expected, "{all_of:?} {any_of:?}");
            assert_eq!(missing_scopes(&record(), &terms, &request), missing);
        }
    }

    #[test]
    fn a_plan_narrows_what_its_keys_may_do_but_not_tollgates_own_scopes() {
        let plan = Plan { allowed_scopes: scopes(&["notes:*"]), ..plan() };
        let held = Policy { scopes: scopes(&["admin:*", "tollgate:check"]), ..Policy::default() };
        let record = KeyRecord { policy: Arc::new(held), ..record() };
        assert_eq!(decide(&record, &account(), &plan, &asked(&["notes:read"], &[])), Ok(()));
        assert_eq!(decide(&record, &account(), &plan, &asked(&["tasks:read"], &[])), Err(Verdict::ScopeDenied));
        assert_eq!(decide(&record, &account(), &plan, &asked(&["tollgate:check"], &[])), Ok(()));
        assert_eq!(decide(&record, &account(), &plan, &asked(&["tollgate:admin"], &[])), Err(Verdict::ScopeDenied));
    }

    /// Each row is wrong in one way more than the one before; the earliest reason in the contract's order is given.
    #[test]
    fn the_first_reason_in_the_contracts_order_is_given() {
        let mut record = record();
        let (mut account, mut plan) = (account(), plan());
        let mut request = asked(&["users:read"], &[]);
        let mut secret_expire_time = None;
        let restrictions = Restrictions {
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap()],
            allowed_referrers: vec![ReferrerPattern::parse("example.com").unwrap()],
            allowed_endpoints: vec![EndpointPattern::parse("GET /").unwrap()],
        };
        record.policy = Arc::new(Policy { restrictions, ..Policy::default() });
        request.client_ip = Some("10.0.0.1".parse().unwrap());
        request.referrer = Some("https://example.com/");
        request.endpoint = Endpoint { method: Some("GET"), host: None, path: Some("/") };
        let mut last_first = vec![
            Verdict::ScopeDenied,
            Verdict::EndpointDenied,
            Verdict::ReferrerDenied,
            Verdict::IpDenied,
            Verdict::WrongEnvironment,
            Verdict::PlanDenied,
            Verdict::AccountSuspended,
            Verdict::Disabled,
            Verdict::Expired,
            Verdict::RotatedOut,
            Verdict::Revoked,
        ];
        for (i, expected) in last_first.clone().into_iter().enumerate() {
            match i {
                0 => {}
                1 => request.endpoint.method = Some("POST"),
                2 => request.referrer = None,
                3 => request.client_ip = None,
                4 => request.environment = Some(Environment::Test),
                5 => plan.api_access = false,
                6 => account.status = AccountStatus::Suspended,
                7 => record.phase = KeyPhase::Disabled,
                8 => record.expiry = Expiry::new(Some(NOW)),
                9 => secret_expire_time = Some(NOW),
                _ => record.phase = KeyPhase::Revoked,
            }
            let terms = AccountTerms::new(&account, &plan);
            assert_eq!(authorize(&record, secret_expire_time, &terms, &request, NOW), Err(expected));
        }
        last_first.reverse();
        assert_eq!(last_first, Verdict::ALL[4..15], "the contract's order");
    }

    #[test]
    fn expiry_is_exclusive() {
        let expiring = |time| KeyRecord { expiry: Expiry::new(Some(time)), ..record() };
        assert_eq!(usable(&expiring(NOW), None, NOW), Err(Verdict::Expired));
        assert_eq!(usable(&expiring(NOW.plus_millis(1)), None, NOW), Ok(()));
        assert_eq!(usable(&record(), Some(NOW.plus_millis(1)), NOW), Ok(()));
        assert_eq!(usable(&record(), Some(NOW), NOW), Err(Verdict::RotatedOut));
    }
}

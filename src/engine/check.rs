//! May this key do this now, and what does it cost? All in memory: nothing here waits for anything but a lock that is
//! held for some hundred nanoseconds.

use std::sync::Arc;

use crate::decision::{AccountTerms, KeyRecord, Request, authorize, missing_scopes, secret::Shape};
use crate::domain::{AccountId, KeyId, Revision, SecretHash, Time, Verdict};

use super::Engine;
use super::attempt::Attempt;
use super::index::{Found, KeyEntry};
use super::meter::{Charge, CreditStatus, KeyMeter, LimitStatus, charge};

/// Most cost units of one check.
pub const COST_MAX: u64 = 1_000_000_000_000;

/// What is asked.
#[derive(Debug)]
pub struct Check<'a> {
    /// The credential, as the client sent it.
    pub credential: &'a str,
    /// What the key must be good for.
    pub request: Request<'a>,
    /// Cost units.
    pub cost: u64,
    /// Whether to charge and record it.
    pub consume: bool,
    /// If set, keys of other accounts are unknown.
    pub within: Option<&'a AccountId>,
    /// What names the call, where it may be sent again and is then to be charged once.
    pub attempt: Option<Attempt<'a>>,
}

/// What is answered.
#[derive(Debug)]
pub struct Answer {
    /// ALLOWED, or the first reason why not.
    pub verdict: Verdict,
    /// The revision that the answer is based on.
    pub revision: Revision,
    /// The key, where it could be identified.
    pub subject: Option<Subject>,
    /// The scopes that it lacks.
    pub missing_scopes: Vec<String>,
    /// Every limit that applies, where it came to that.
    pub limits: Vec<LimitStatus>,
    /// The account's credits, where they are counted and it came to that.
    pub credits: Option<CreditStatus>,
    /// How long until the same check can be allowed, in milliseconds.
    pub retry_after_millis: Option<i64>,
}

/// A key that was identified.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its id.
    pub key_id: KeyId,
    /// What was decided on.
    pub record: Arc<KeyRecord>,
    /// What holds for its account.
    pub terms: Arc<AccountTerms>,
}

impl Engine {
    /// Decides, and where it is allowed and `check.consume` is set, charges.
    #[must_use]
    pub fn check(&self, check: &Check<'_>, now: Time) -> Answer {
        let revision = self.index.revision();
        let (hash, found) = match self.identify(check.credential) {
            Ok(identified) => identified,
            Err(verdict) => return Answer::unidentified(verdict, revision),
        };
        let record = found.entry.record.load_full();
        let terms = Arc::clone(&found.entry.account.state.load().terms);
        if check.within.is_some_and(|within| *within != terms.account_id) {
            return Answer::unidentified(Verdict::Unknown, revision);
        }
        let subject = Subject { key_id: found.entry.id, record, terms };
        let secret_expire_time = found.secret_expire_time(&hash, &subject.record);
        let authorized = authorize(&subject.record, secret_expire_time, &subject.terms, &check.request, now);

        let (charge, queue) = found.entry.with_meter(|meter| {
            let charged_before = authorized.is_ok() && self.was_charged(subject.key_id, check);
            let charge = match authorized {
                Ok(()) if charged_before => self.charge(meter, &found.entry, 0, false, now),
                Ok(()) => self.charge(meter, &found.entry, check.cost, check.consume, now),
                Err(verdict) => Charge { verdict, limits: Vec::new(), credits: None, retry_after_millis: None },
            };
            let queue = check.consume && !charged_before && {
                let allowed_credits = charge.credits.filter(|_| charge.verdict == Verdict::Allowed);
                let credits = allowed_credits.map_or(0, |_| check.cost);
                if let (Verdict::Allowed, Some(attempt)) = (charge.verdict, check.attempt) {
                    self.attempts.note(subject.key_id, attempt, self.clock.monotonic());
                }
                meter.count(charge.verdict, credits, check.request.client_ip, now)
            };
            (charge, queue)
        });
        if queue {
            self.usage.enqueue(found.entry);
        }
        let missing_scopes = if charge.verdict == Verdict::ScopeDenied {
            missing_scopes(&subject.record, &subject.terms, &check.request)
        } else {
            Vec::new()
        };
        let Charge { verdict, limits, credits, retry_after_millis } = charge;
        Answer { verdict, revision, subject: Some(subject), missing_scopes, limits, credits, retry_after_millis }
    }

    /// Whether this is a call that was charged and is sent again. Asked under the lock of the key's meter, so that of two
    /// at once one is charged.
    fn was_charged(&self, key: KeyId, check: &Check<'_>) -> bool {
        let attempt = check.attempt.filter(|_| check.consume);
        attempt.is_some_and(|attempt| self.attempts.was_charged(key, attempt, self.clock.monotonic()))
    }

    /// Answers where there is no credential that could be looked up.
    #[must_use]
    pub fn unidentified(&self, verdict: Verdict) -> Answer {
        Answer::unidentified(verdict, self.index.revision())
    }

    /// Finds the key that a credential is of.
    pub(super) fn identify(&self, credential: &str) -> Result<(SecretHash, Found), Verdict> {
        let shape = self.brand.shape(credential);
        let not_found = match shape {
            Shape::Empty => return Err(Verdict::Missing),
            Shape::Malformed => return Err(Verdict::Malformed),
            Shape::ForeignOrDamaged => Verdict::Malformed,
            Shape::Own | Shape::Foreign => Verdict::Unknown,
        };
        let mut candidates = self.hasher.candidates(credential, shape);
        candidates.find_map(|hash| Some((hash, self.index.find(&hash)?))).ok_or(not_found)
    }

    /// Holds the cost against the budgets. Record and terms are read again under the locks of the meters that they are
    /// applied to, so that of two checks at once none brings back limits that the other has seen replaced.
    fn charge(&self, meter: &mut KeyMeter, entry: &KeyEntry, cost: u64, consume: bool, now: Time) -> Charge {
        let record = entry.record.load();
        let terms = || Arc::clone(&entry.account.state.load().terms);
        let ceiling = self.options.key_checks_per_second;
        let throttled = ceiling > 0 && !meter.is_within_pace(1, ceiling, now);
        let spend = consume && !throttled;
        let seen = terms();
        let mut charged = if seen.account_limits.is_empty() && seen.credits.is_none() {
            meter.advance(&record.policy, &seen, now);
            charge(meter, None, cost, spend, now)
        } else {
            let mut shared = entry.account.meter(record.environment);
            let terms = terms();
            meter.advance(&record.policy, &terms, now);
            shared.advance(&terms, record.environment, now);
            charge(meter, Some(&mut shared), cost, spend, now)
        };
        if charged.verdict == Verdict::Allowed && throttled {
            charged.verdict = Verdict::Throttled;
            charged.retry_after_millis = Some(until_next_second(now));
        }
        charged
    }

    /// What is left of a key's budgets.
    pub(super) fn peek(&self, entry: &KeyEntry) -> Charge {
        let now = self.clock.now();
        entry.with_meter(|meter| self.charge(meter, entry, 0, false, now))
    }
}

/// Milliseconds until a key that is checked too often may be checked again.
pub(super) fn until_next_second(now: Time) -> i64 {
    1_000 - now.millis().rem_euclid(1_000)
}

impl Answer {
    fn unidentified(verdict: Verdict, revision: Revision) -> Self {
        Self {
            verdict,
            revision,
            subject: None,
            missing_scopes: Vec::new(),
            limits: Vec::new(),
            credits: None,
            retry_after_millis: None,
        }
    }
}

//! May this key do this now, and what does it cost? As a rule all in memory, under locks that are held for some hundred
//! nanoseconds; where a budget has nothing leased, the check waits for the store.

use std::sync::Arc;

use crate::decision::{AccountTerms, KeyRecord, Request, authorize, missing_scopes, secret::Shape};
use crate::domain::{AccountId, Environment, KeyId, Revision, SecretHash, Time, Verdict};

use super::all_or_none::Budgets as _;
use super::attempt::Attempt;
use super::index::{Found, KeyEntry};
use super::lease::Ticket;
use super::meter::{
    AccountMeter, Charge, Charged, Counted, CreditStatus, KeyMeter, LimitStatus, Take, Wants, charge, spend,
};
use super::{Engine, Error};

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

/// A check whose key was found.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) entry: Arc<KeyEntry>,
    pub(super) subject: Subject,
    /// Whether the key may, whatever it costs.
    pub(super) authorized: Result<(), Verdict>,
    revision: Revision,
}

/// One whose key was not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unidentified {
    verdict: Verdict,
    revision: Revision,
}

impl Engine {
    /// Decides, and where it is allowed and `check.consume` is set, charges. It waits for the store where a budget has no
    /// units leased and the store has not said that there are none; else it answers at once.
    pub async fn check(&self, check: &Check<'_>, now: Time) -> Result<Answer, Error> {
        self.require_fresh()?;
        let first = match self.try_check(check, now) {
            // Last: what the answer was decided by may be old by now.
            Ok(answer) => return self.require_fresh().map(|()| answer),
            Err(ticket) => ticket,
        };
        let mut first = Some(first);
        // In a box, because most checks don't come here.
        let later = self.after_leases(|| first.take().map_or_else(|| self.try_check(check, self.clock.now()), Err));
        let answer = Box::pin(later).await?;
        self.require_fresh().map(|()| answer)
    }

    /// The same without waiting: where the store has to be asked first, a place among those who wait for it.
    fn try_check(&self, check: &Check<'_>, now: Time) -> Result<Answer, Ticket> {
        let asked = match self.asked(check, now) {
            Ok(asked) => asked,
            Err(unidentified) => return Ok(unidentified.into()),
        };
        let Asked { entry, authorized, .. } = &asked;
        let (charge, queue, wants) =
            match entry.with_meter(|meter| self.charge_and_count(meter, entry, check, *authorized, now)) {
                Charged::Done((charge, queue), wants) => (charge, queue, wants),
                Charged::Wait(wants) => return Err(self.enqueue_wants(entry, asked.environment(), wants)),
            };
        if wants.urgency().is_some() {
            self.enqueue_wants(entry, asked.environment(), wants);
        }
        if queue {
            self.usage.enqueue(Arc::clone(entry));
        }
        Ok(asked.answer(check, charge))
    }

    /// Finds the key, and whether it may.
    pub(super) fn asked(&self, check: &Check<'_>, now: Time) -> Result<Asked, Unidentified> {
        let revision = self.index.revision();
        let (hash, found) = self.identify(check.credential).map_err(|verdict| Unidentified { verdict, revision })?;
        let record = found.entry.record.load_full();
        let terms = Arc::clone(&found.entry.account.state.load().terms);
        if check.within.is_some_and(|within| *within != terms.account_id) {
            return Err(Unidentified { verdict: Verdict::Unknown, revision });
        }
        let subject = Subject { key_id: found.entry.id, record, terms };
        let secret_expire_time = found.secret_expire_time(&hash, &subject.record);
        let authorized = authorize(&subject.record, secret_expire_time, &subject.terms, &check.request, now);
        Ok(Asked { entry: found.entry, subject, authorized, revision })
    }

    /// The part of a check that is under the lock of the key's meter. Tells, beside the charge, whether the key must be put
    /// into the queue for the next flush.
    fn charge_and_count(
        &self,
        meter: &mut KeyMeter,
        entry: &KeyEntry,
        check: &Check<'_>,
        authorized: Result<(), Verdict>,
        now: Time,
    ) -> Charged<(Charge, bool)> {
        let stale = if check.consume || authorized.is_err() { Wants::default() } else { self.freshen(meter, entry) };
        if stale.urgency().is_some() {
            return Charged::Wait(stale);
        }
        let charged_before = authorized.is_ok() && self.was_charged(entry.id, check);
        let charged = match authorized {
            Ok(()) if charged_before => self.peek_charge(meter, entry, now),
            Ok(()) => self.charge(meter, entry, check.cost, check.consume.then_some(spend(check.cost, now)), now),
            Err(verdict) => Charged::Done(Charge::denied(verdict), Wants::default()),
        };
        let (charge, wants) = match charged {
            Charged::Done(charge, wants) => (charge, wants),
            Charged::Wait(wants) => return Charged::Wait(wants),
        };
        let queue = check.consume && !charged_before && {
            let allowed_credits = charge.credits.filter(|_| charge.verdict == Verdict::Allowed);
            let credits = allowed_credits.map_or(0, |_| check.cost);
            if let (Verdict::Allowed, Some(attempt)) = (charge.verdict, check.attempt) {
                self.attempts.note(entry.id, attempt, self.clock.monotonic());
            }
            let counted = Counted { verdict: charge.verdict, credits, client_ip: check.request.client_ip };
            meter.count(entry.id, counted, self.journal(), now)
        };
        Charged::Done((charge, queue), wants)
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
        Unidentified { verdict, revision: self.index.revision() }.into()
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
    pub(super) fn charge(
        &self,
        meter: &mut KeyMeter,
        entry: &KeyEntry,
        cost: u64,
        take: Option<impl Take>,
        now: Time,
    ) -> Charged<Charge> {
        let record = entry.record.load();
        let terms = || Arc::clone(&entry.account.state.load().terms);
        let ceiling = self.options.key_checks_per_second;
        let throttled = ceiling > 0 && !meter.is_within_pace(1, ceiling, now);
        let take = take.filter(|_| !throttled);
        let seen = terms();
        let mut charged = if seen.account_limits.is_empty() && seen.credits.is_none() {
            meter.advance(&record.policy, &seen, now);
            charge(meter, None, cost, take, now, self.leases.clock(&self.clock))
        } else {
            let mut shared = entry.account.meter(record.environment);
            let terms = terms();
            meter.advance(&record.policy, &terms, now);
            shared.advance(&terms, record.environment, now);
            charge(meter, Some(&mut shared), cost, take, now, self.leases.clock(&self.clock))
        };
        if let Charged::Done(charge, _) = &mut charged
            && charge.verdict == Verdict::Allowed
            && throttled
        {
            charge.verdict = Verdict::Throttled;
            charge.retry_after_millis = Some(until_next_second(now));
        }
        charged
    }

    /// What the budgets have left.
    pub(super) fn peek_charge(&self, meter: &mut KeyMeter, entry: &KeyEntry, now: Time) -> Charged<Charge> {
        self.charge(meter, entry, 0, None::<fn(&mut KeyMeter, Option<&mut AccountMeter>) -> Wants>, now)
    }

    /// Where other processes spend, too, has the budgets of which the store was not asked lately ask how they stand. Says whose they
    /// are.
    fn freshen(&self, meter: &mut KeyMeter, entry: &KeyEntry) -> Wants {
        let Some(clock) = self.leases.clock(&self.clock) else { return Wants::default() };
        let at = clock.monotonic();
        let of_key = meter.freshen(at);
        Wants::to_know(of_key, entry.account.meter(entry.record.load().environment).freshen(at))
    }

    /// What is left of a key's budgets.
    pub(super) async fn peek(&self, entry: &Arc<KeyEntry>) -> Result<Charge, Error> {
        let peek = |meter: &mut KeyMeter| match self.freshen(meter, entry) {
            Wants { key: None, account: None } => self.peek_charge(meter, entry, self.clock.now()),
            wants => Charged::Wait(wants),
        };
        let attempt = || match entry.with_meter(peek) {
            Charged::Done(charge, _) => Ok(charge),
            Charged::Wait(wants) => Err(self.enqueue_wants(entry, entry.record.load().environment, wants)),
        };
        self.after_leases(attempt).await
    }
}

/// Milliseconds until a key that is checked too often may be checked again.
pub(super) fn until_next_second(now: Time) -> i64 {
    1_000 - now.millis().rem_euclid(1_000)
}

impl Asked {
    pub(super) fn environment(&self) -> Environment {
        self.subject.record.environment
    }

    /// What is answered.
    pub(super) fn answer(self, check: &Check<'_>, charge: Charge) -> Answer {
        let Self { subject, revision, .. } = self;
        let missing_scopes = if charge.verdict == Verdict::ScopeDenied {
            missing_scopes(&subject.record, &subject.terms, &check.request)
        } else {
            Vec::new()
        };
        let Charge { verdict, limits, credits, retry_after_millis } = charge;
        Answer { verdict, revision, subject: Some(subject), missing_scopes, limits, credits, retry_after_millis }
    }
}

impl From<Unidentified> for Answer {
    fn from(Unidentified { verdict, revision }: Unidentified) -> Self {
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

//! Keys that extend their own expiry.

use crate::domain::{Key, KeyId, KeyStatus, Time};
use crate::store::{AuditEvent, StoredKey};

use super::key::{Change, changes};
use super::{Caller, Engine, Error};

/// Shortest and longest time by which a key may renew itself.
const RENEWAL_MILLIS: std::ops::RangeInclusive<i64> = 3_600_000..=3_650 * 86_400_000;
/// A key renews itself when a quarter of its period is left, or this if it is less.
const RENEWAL_LEAD_MILLIS_MAX: i64 = 86_400_000;
/// That a key is not to be renewed, or not any more.
const NOT_DUE: &str = "NOT_DUE";

impl Engine {
    /// Extends the expiry of every key that renews itself and is due. Returns how many. A key that can't be is no reason to
    /// leave out the others.
    pub async fn renew_keys(&self) -> Result<usize, Error> {
        const ROWS_MAX: u32 = 500;
        let mut renewed = 0;
        loop {
            let now = self.clock.now();
            let due = self.read(self.store.keys_to_renew(now, RENEWAL_LEAD_MILLIS_MAX, ROWS_MAX)).await?;
            let mut of_these = 0;
            // Of what the store finds due; should the two ever disagree, this ends all the same.
            for stored in due.iter().filter(|stored| renewed_expiry(&stored.key, now).is_some()) {
                match self.renew_key(stored.key.id).await {
                    // Another process that shares the store was faster.
                    Err(Error::Precondition { kind: NOT_DUE, .. }) => {}
                    Ok(()) => of_these += 1,
                    Err(error @ Error::Unavailable(_)) => return Err(error),
                    Err(error) => tracing::error!(%error, key = %stored.key.id, "a key could not renew itself"),
                }
            }
            renewed += of_these;
            if of_these == 0 || due.len() < usize::try_from(ROWS_MAX).unwrap_or(usize::MAX) {
                return Ok(renewed);
            }
        }
    }

    async fn renew_key(&self, id: KeyId) -> Result<(), Error> {
        let change = |stored: &StoredKey, now: Time| {
            let Some(expire_time) = renewed_expiry(&stored.key, now) else { return Err(not_due(id)) };
            let key = Key { expire_time: Some(expire_time), update_time: now, ..stored.key.clone() };
            let details = changes(&stored.key, &key);
            let event = AuditEvent { action: "key.renew", subject: id.to_string(), details };
            Ok(Change { key, new_secret: None, guards: Vec::new(), event })
        };
        self.change_key(&Caller::System, id, None, change).await.map(drop)
    }
}

fn not_due(id: KeyId) -> Error {
    let message = format!("the key `{id}` need not be renewed now");
    Error::Precondition { kind: NOT_DUE, subject: id.to_string(), message }
}

pub(super) fn require_renewal(auto_renew_millis: Option<i64>, expire_time: Option<Time>) -> Result<(), Error> {
    let Some(millis) = auto_renew_millis else { return Ok(()) };
    if !RENEWAL_MILLIS.contains(&millis) {
        return Err(Error::invalid(
            "key.auto_renew.period",
            "must be between 1 hour (3600s) and 10 years (315360000s)",
        ));
    }
    if expire_time.is_none() {
        return Err(Error::invalid("key.auto_renew", "needs an `expire_time` to extend"));
    }
    Ok(())
}

/// When a key that renews itself shall expire instead. Absent where it is not due.
fn renewed_expiry(key: &Key, now: Time) -> Option<Time> {
    let (period, expire_time) = (key.auto_renew_millis?, key.expire_time?);
    let lead = (period / 4).min(RENEWAL_LEAD_MILLIS_MAX);
    let due = expire_time.plus_millis(-lead) <= now && key.status == KeyStatus::Active;
    // After a long sleep several periods at once.
    let periods = now.plus_millis(lead).millis_since(expire_time).max(0) / period + 1;
    due.then(|| expire_time.plus_millis(period.saturating_mul(periods)).min(Time::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::key::{NewKey, assemble};
    use super::*;
    use crate::domain::{AccountId, Environment, Metadata, Policy};

    fn key(expire: i64, period: i64) -> Key {
        let new = NewKey {
            account_id: None,
            name: "k".to_owned(),
            description: String::new(),
            environment: Environment::Live,
            policy: Policy::default(),
            expire_time: Some(Time::from_millis(expire)),
            auto_renew_millis: Some(period),
            metadata: Metadata::new(),
        };
        let zero = Time::from_millis(0);
        assemble(new, AccountId::operator(), KeyId::from_bytes([0; 16]), String::new(), zero, zero).unwrap()
    }

    #[test]
    fn a_key_renews_itself_when_a_quarter_is_left() {
        let at = |millis| renewed_expiry(&key(10_000_000, 4_000_000), Time::from_millis(millis)).map(Time::millis);
        let rows = [
            (0, None),
            (8_999_999, None),
            (9_000_000, Some(14_000_000)),
            (12_000_000, Some(14_000_000)),
            (13_500_000, Some(18_000_000)),
            (99_999_999, Some(102_000_000)),
        ];
        for (now, expected) in rows {
            assert_eq!(at(now), expected, "at {now}");
        }
        let disabled = Key { status: KeyStatus::Disabled, ..key(0, 4_000_000) };
        assert_eq!(renewed_expiry(&disabled, Time::from_millis(1)), None);
    }

    #[test]
    fn renewal_has_bounds_and_needs_an_expiry() {
        let some = Some(Time::from_millis(1));
        assert!(require_renewal(Some(3_600_000), some).is_ok());
        assert!(require_renewal(Some(3_599_999), some).is_err());
        assert!(require_renewal(Some(i64::MAX), some).is_err());
        assert!(require_renewal(Some(3_600_000), None).is_err());
    }

    #[test]
    fn the_audit_trail_keeps_what_changed_alone() {
        let old = key(1, 3_600_000);
        let new = Key { name: "n".to_owned(), ..old.clone() };
        assert_eq!(changes(&old, &new), r#"{"name":{"from":"k","to":"n"}}"#);
    }
}

//! Reading keys, and what their holders may know of themselves.

use crate::domain::{AccountId, Environment, KeyId, Status, Time};
use crate::store::{KeyQuery, StoredKey, UsageOf};

use super::meter::Charge;
use super::usage::Span;
use super::{Caller, Engine, Error, Granularity, UsageReport};

/// A key, and how often it was checked.
#[derive(Debug)]
pub struct KeyView {
    /// The key.
    pub stored: StoredKey,
    /// Checks since midnight in the account's time zone.
    pub requests_today: u64,
    /// Checks since the first of the month in the account's time zone.
    pub requests_this_month: u64,
}

/// What a key's holder may know of it.
#[derive(Debug)]
pub struct SelfView {
    /// The key.
    pub stored: StoredKey,
    /// Its account's plan.
    pub tier: String,
    /// What is left of its budgets.
    pub budgets: Charge,
}

/// Which keys to list. All conditions that are set must hold.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    /// Of this account. For a customer's caller its own where absent.
    pub account_id: Option<AccountId>,
    /// In this state.
    pub status: Option<Status>,
    /// Of this environment.
    pub environment: Option<Environment>,
    /// With a display prefix that begins so.
    pub prefix: Option<String>,
    /// Made before this time and not used since.
    pub unused_since: Option<Time>,
    /// Expiring before this time.
    pub expires_before: Option<Time>,
}

impl Engine {
    /// One key, with its usage.
    pub async fn key(&self, caller: &Caller, id: KeyId) -> Result<KeyView, Error> {
        caller.require("tollgate:keys:read")?;
        let stored = self.visible_key(caller, id).await?;
        let now = self.clock.now();
        let (account, _) = self.home_of(caller, Some(&stored.key.account_id))?;
        let count = async |granularity| {
            // The bucket that holds this moment.
            let span = Span::new(granularity, &account.time_zone, now, now.plus_millis(1))?;
            Ok::<u64, Error>(self.report(UsageOf::Key(id), &span, false).await?.totals.requests())
        };
        let requests_today = count(Granularity::Day).await?;
        let requests_this_month = count(Granularity::Month).await?;
        Ok(KeyView { stored, requests_today, requests_this_month })
    }

    /// Keys in the order of their ids, from the first after `after`.
    pub async fn keys(
        &self,
        caller: &Caller,
        filter: KeyFilter,
        after: Option<KeyId>,
        rows_max: u32,
    ) -> Result<Vec<StoredKey>, Error> {
        caller.require("tollgate:keys:read")?;
        let KeyFilter { account_id, status, environment, prefix, unused_since, expires_before } = filter;
        let account_id = match (account_id, caller.own_account()) {
            (None, own) => own.cloned(),
            (Some(asked), own) => {
                let known = self.index.account(&asked).is_some() && own.is_none_or(|own| *own == asked);
                Some(known.then_some(asked.clone()).ok_or_else(|| Error::no_account(asked))?)
            }
        };
        let now = self.clock.now();
        let query =
            KeyQuery { account_id, status, environment, prefix, unused_since, expires_before, after, rows_max, now };
        self.read(self.store.keys(&query)).await
    }

    /// What the caller may know of its own key.
    pub async fn own_key(&self, caller: &Caller) -> Result<SelfView, Error> {
        let own = caller.key().ok_or_else(|| Error::Internal("the caller is no key".to_owned()))?;
        let stored = self.visible_key(caller, own.key_id).await?;
        let tier = own.found().entry.account.state.load().plan.id.to_string();
        Ok(SelfView { stored, tier, budgets: self.peek(&own.found().entry).await? })
    }

    /// What is left of the budgets of a key, or of the caller's own.
    pub async fn budgets(&self, caller: &Caller, id: Option<KeyId>) -> Result<Charge, Error> {
        let Some(id) = id else {
            let own = caller.key().ok_or_else(|| Error::Internal("the caller is no key".to_owned()))?;
            return self.peek(&own.found().entry).await;
        };
        caller.require("tollgate:keys:read")?;
        let stored = self.visible_key(caller, id).await?;
        let found = self.index.find(&stored.hash).ok_or_else(|| Error::no_key(id))?;
        self.peek(&found.entry).await
    }

    /// What a key, or an account, has used. Without either the caller's own account.
    pub async fn usage(
        &self,
        caller: &Caller,
        of: Option<UsageOf>,
        granularity: Granularity,
        time: (Option<Time>, Option<Time>),
        by_key: bool,
    ) -> Result<UsageReport, Error> {
        const DEFAULT_MILLIS: i64 = 30 * 86_400_000;
        caller.require("tollgate:usage:read")?;
        let own = || caller.own_account().cloned().map(UsageOf::Account);
        let of = of
            .or_else(own)
            .ok_or_else(|| Error::invalid("account_id", "an operator's caller must set it, or `key_id`"))?;
        let account_id = match &of {
            UsageOf::Account(account_id) => account_id.clone(),
            UsageOf::Key(id) => self.visible_key(caller, *id).await?.key.account_id,
        };
        let (account, _) = self.home_of(caller, Some(&account_id))?;
        let end = time.1.unwrap_or_else(|| self.clock.now().plus_millis(1));
        let start = time.0.unwrap_or_else(|| end.plus_millis(-DEFAULT_MILLIS));
        let span = Span::new(granularity, &account.time_zone, start, end)?;
        let key = match of {
            UsageOf::Account(_) => None,
            UsageOf::Key(id) => Some(id),
        };
        let uncertain = self.uncertain(&account.id, key, &span).await?;
        Ok(UsageReport { uncertain, ..self.report(of, &span, by_key).await? })
    }
}

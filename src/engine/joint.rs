//! Charging several keys and accounts together, all of them or none.
//!
//! What a key's share is charged to is what a check of the key would be: the key's limits, and its account's pooled limits
//! and credits. An account's share is charged to the account's pooled live limits and credits. Shares may meet in a meter,
//! whose budgets must then cover their sum.
//!
//! All meters stay locked from the first question to the last charge. The locks are taken in one order, so that no two
//! calls wait for each other: those of the keys, by their place in memory, which for as long as the process lives is one order
//! for all, and then those of the accounts, likewise. A check takes one of a key and then one of an account, which fits.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use crate::decision::{AccountTerms, account_usable, usable};
use crate::domain::{AccountId, Environment, KeyId, Time, Verdict};
use crate::journal::Journal;

use super::all_or_none::{Budgets as _, Covers};
use super::ask::Urgency;
use super::check::until_next_second;
use super::index::{AccountEntry, KeyEntry, KeyMeterGuard};
use super::lease::{Holder, Ticket};
use super::meter::{AccountMeter, Charge, Counted, report};
use super::{Engine, Error};

/// Who is charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payer {
    /// A key, and its account with it.
    Key {
        /// The key.
        id: KeyId,
        /// If set, a key of another account is unknown.
        of: Option<AccountId>,
    },
    /// An account, as its live keys charge it.
    Account(AccountId),
}

/// What one of several is charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who.
    pub payer: Payer,
    /// Cost units; 0 asks what is left, and is not counted as a use.
    pub cost: u64,
}

/// A share, with what was found of its payer.
struct Bill {
    cost: u64,
    /// ALLOWED, or why the payer is refused whatever is left of its budgets.
    verdict: Verdict,
    key: Option<Arc<KeyEntry>>,
    pool: Option<(Arc<AccountEntry>, Environment)>,
}

/// A key, under the lock of its meter.
struct KeyPart<'a> {
    entry: &'a Arc<KeyEntry>,
    meter: KeyMeterGuard<'a>,
    /// Cost units of all its shares.
    sum: u64,
    /// Its shares that cost something.
    uses: u32,
    throttled: bool,
}

/// What keys of an account share, under the lock of their meter where the account has budgets.
struct PoolPart<'a> {
    entry: &'a Arc<AccountEntry>,
    environment: Environment,
    terms: Arc<AccountTerms>,
    meter: Option<MutexGuard<'a, AccountMeter>>,
    /// Cost units of all its shares.
    sum: u64,
}

impl Engine {
    /// Whether keys can be named by their ids.
    #[must_use]
    pub fn finds_keys_by_id(&self) -> bool {
        self.index.has_ids()
    }

    /// Makes it so that keys can be named by their ids, unless they can already. It goes through all keys, some 0.3 seconds
    /// for a million, while no change is let in; from then on each key takes some 50 bytes more.
    pub async fn find_keys_by_id(&self) {
        let _changing = self.changing.lock().await;
        let _writing = self.writing.lock().await;
        self.index.fill_ids();
    }

    /// Charges all shares, or where one is refused, none. What is answered of each stands at its place; all were charged if
    /// all are ALLOWED. With `within`, other accounts and their keys are unknown. So are all keys before
    /// [`Self::find_keys_by_id`] has returned.
    ///
    /// Uses are counted as those of a check are, for each share of a key that costs something. A key that was not charged only
    /// because of another share has no use to count.
    pub async fn charge_together(&self, shares: &[Share], within: Option<&AccountId>) -> Result<Vec<Charge>, Error> {
        self.require_fresh()?;
        let charges = self.after_leases(|| self.try_charge_together(shares, within, self.clock.now())).await?;
        self.require_fresh().map(|()| charges)
    }

    fn try_charge_together(
        &self,
        shares: &[Share],
        within: Option<&AccountId>,
        now: Time,
    ) -> Result<Vec<Charge>, Ticket> {
        let bills: Vec<Bill> = shares.iter().map(|share| self.bill(share, within, now)).collect();
        let mut parts = Parts::lock(&bills);
        parts.add_up(&bills, self.options.key_checks_per_second, now);
        if let Some(clock) = self.leases.clock(&self.clock).filter(|_| bills.iter().all(|bill| bill.cost == 0)) {
            let stale = parts.freshen(clock.monotonic());
            if !stale.is_empty() {
                drop(parts);
                return Err(self.leases.enqueue(stale, Urgency::Now));
            }
        }
        let mut cover = parts.cover();
        let spends = !parts.throttled() && bills.iter().all(|bill| bill.verdict == Verdict::Allowed);
        if let Some(clock) = self.leases.clock(&self.clock).filter(|_| spends && cover.short) {
            parts.doubt(clock.monotonic());
            cover = parts.cover();
        }
        if cover.asks(spends) {
            let (holders, urgency) = parts.want(spends && !cover.short);
            drop(parts);
            return Err(self.leases.enqueue(holders, urgency));
        }
        let takes = spends && !cover.lacks();
        let low = if takes { parts.spend(now) } else { Vec::new() };
        let mut used = Vec::new();
        let charges = bills.iter().map(|bill| {
            let charge = parts.charge(bill, !cover.lacks(), now);
            if (takes || charge.verdict != Verdict::Allowed) && parts.count(bill, &charge, self.journal(), now) {
                used.extend(bill.key.clone());
            }
            charge
        });
        let charges = charges.collect();
        drop(parts);
        for entry in used {
            self.usage.enqueue(entry);
        }
        if !low.is_empty() {
            self.leases.enqueue(low, Urgency::Later);
        }
        Ok(charges)
    }

    fn bill(&self, share: &Share, within: Option<&AccountId>, now: Time) -> Bill {
        let cost = share.cost;
        let unknown = Bill { cost, verdict: Verdict::Unknown, key: None, pool: None };
        let known = |account: &AccountId| within.is_none_or(|within| within == account);
        let verdict = |result: Result<(), Verdict>| result.err().unwrap_or(Verdict::Allowed);
        match &share.payer {
            Payer::Key { id, of } => {
                let Some(key) = self.index.find_by_id(id) else { return unknown };
                let terms = Arc::clone(&key.account.state.load().terms);
                if !known(&terms.account_id) || of.as_ref().is_some_and(|of| *of != terms.account_id) {
                    return unknown;
                }
                let record = key.record.load();
                let verdict = verdict(usable(&record, None, now).and_then(|()| account_usable(&terms)));
                let pool = Some((Arc::clone(&key.account), record.environment));
                Bill { cost, verdict, key: Some(Arc::clone(&key)), pool }
            }
            Payer::Account(id) => {
                let Some(account) = self.index.account(id).filter(|_| known(id)) else { return unknown };
                let verdict = verdict(account_usable(&account.state.load().terms));
                Bill { cost, verdict, key: None, pool: Some((account, Environment::Live)) }
            }
        }
    }
}

/// Everything that is charged, under its locks.
struct Parts<'a> {
    keys: Vec<KeyPart<'a>>,
    pools: Vec<PoolPart<'a>>,
}

impl<'a> Parts<'a> {
    fn lock(bills: &'a [Bill]) -> Self {
        let mut keys: Vec<&Arc<KeyEntry>> = bills.iter().filter_map(|bill| bill.key.as_ref()).collect();
        keys.sort_unstable_by_key(|entry| Arc::as_ptr(entry));
        keys.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let key =
            |entry: &'a Arc<KeyEntry>| KeyPart { entry, meter: entry.lock_meter(), sum: 0, uses: 0, throttled: false };
        let keys = keys.into_iter().map(key).collect();

        let charged = bills.iter().filter(|bill| bill.verdict == Verdict::Allowed);
        let mut pools: Vec<&(Arc<AccountEntry>, Environment)> = charged.filter_map(|bill| bill.pool.as_ref()).collect();
        pools.sort_unstable_by_key(|(entry, environment)| (Arc::as_ptr(entry), *environment));
        pools.dedup_by(|a, b| Arc::ptr_eq(&a.0, &b.0) && a.1 == b.1);
        let pools = pools.into_iter().map(|(entry, environment)| PoolPart::lock(entry, *environment)).collect();
        Self { keys, pools }
    }

    /// Brings every meter up to date, and adds up what it is to be charged.
    fn add_up(&mut self, bills: &[Bill], checks_per_second: u32, now: Time) {
        for pool in &mut self.pools {
            if let Some(meter) = &mut pool.meter {
                meter.advance(&pool.terms, pool.environment, now);
            }
        }
        for bill in bills.iter().filter(|bill| bill.verdict == Verdict::Allowed) {
            let Some(pool) = find_pool(&mut self.pools, bill) else { continue };
            pool.sum = pool.sum.saturating_add(bill.cost);
            let Some(key) = find_key(&mut self.keys, bill) else { continue };
            key.meter.meter().advance(&key.entry.record.load().policy, &pool.terms, now);
            key.sum = key.sum.saturating_add(bill.cost);
            key.uses += u32::from(bill.cost > 0);
        }
        for key in self.keys.iter_mut().filter(|key| checks_per_second > 0 && key.uses > 0) {
            key.throttled = !key.meter.meter().is_within_pace(key.uses, checks_per_second, now);
        }
    }

    fn throttled(&self) -> bool {
        self.keys.iter().any(|key| key.throttled)
    }

    /// What the budgets say to the sums of their shares.
    fn cover(&mut self) -> Covers {
        let mut all = Covers::NONE;
        for key in &mut self.keys {
            all = all.and(key.meter.meter().cover(key.sum));
        }
        for PoolPart { meter, sum, .. } in &self.pools {
            all = all.and(meter.as_ref().map_or(Covers::NONE, |meter| meter.cover(*sum)));
        }
        all
    }

    /// Forgets denials that are not to be believed any more at `at`, by the clock that never steps back.
    fn doubt(&mut self, at: Duration) {
        self.keys.iter_mut().for_each(|key| key.meter.meter().doubt(at));
        self.pools.iter_mut().filter_map(|pool| pool.meter.as_mut()).for_each(|meter| meter.doubt(at));
    }

    /// Has the budgets of which the store was not asked lately ask how they stand. Who they are of.
    fn freshen(&mut self, at: Duration) -> Vec<Holder> {
        let keys = self.keys.iter_mut().filter_map(|key| {
            let stale = key.meter.meter().freshen(at);
            stale.then(|| Holder::Key(Arc::clone(key.entry)))
        });
        let pools = self.pools.iter_mut().filter_map(|PoolPart { entry, environment, meter, .. }| {
            let stale = meter.as_mut().is_some_and(|meter| meter.freshen(at));
            stale.then(|| Holder::Pool(Arc::clone(entry), *environment))
        });
        keys.chain(pools).collect()
    }

    /// Has the budgets whose leases are too small want what they lack, or at least to know how they stand. Who they are of, and how
    /// soon.
    fn want(&mut self, takes: bool) -> (Vec<Holder>, Urgency) {
        let wanted = |sum: u64| if takes { sum } else { 0 };
        let (mut holders, mut urgency) = (Vec::new(), Urgency::Soon);
        for key in &mut self.keys {
            if let Some(of_key) = key.meter.meter().want(key.sum, wanted(key.sum)) {
                holders.push(Holder::Key(Arc::clone(key.entry)));
                urgency = urgency.max(of_key);
            }
        }
        for PoolPart { entry, environment, meter, sum, .. } in &mut self.pools {
            if let Some(of_pool) = meter.as_mut().and_then(|meter| meter.want(*sum, wanted(*sum))) {
                holders.push(Holder::Pool(Arc::clone(entry), *environment));
                urgency = urgency.max(of_pool);
            }
        }
        (holders, urgency)
    }

    /// Takes from every budget the sum of its shares, which is leased. Returns those whose leases should be filled up.
    fn spend(&mut self, now: Time) -> Vec<Holder> {
        let mut low = Vec::new();
        for key in &mut self.keys {
            if key.meter.meter().spend(key.sum, now) {
                low.push(Holder::Key(Arc::clone(key.entry)));
            }
        }
        for PoolPart { entry, environment, meter, sum, .. } in &mut self.pools {
            if meter.as_mut().is_some_and(|meter| meter.spend(*sum, now)) {
                low.push(Holder::Pool(Arc::clone(entry), *environment));
            }
        }
        low
    }

    /// What is answered of a share.
    fn charge(&mut self, bill: &Bill, covered: bool, now: Time) -> Charge {
        if bill.verdict != Verdict::Allowed {
            return Charge { verdict: bill.verdict, limits: Vec::new(), credits: None, retry_after_millis: None };
        }
        // What costs nothing lacks nothing, whatever the others ask of the same budgets.
        let asked = |sum: u64| if bill.cost == 0 { 0 } else { sum };
        let key = find_key(&mut self.keys, bill);
        let throttled = bill.cost > 0 && key.as_ref().is_some_and(|key| key.throttled);
        let of_key = key.map(|key| (&*key.meter.meter(), asked(key.sum)));
        let pool = find_pool(&mut self.pools, bill);
        let of_account = pool.and_then(|pool| Some((&**pool.meter.as_ref()?, asked(pool.sum))));
        let mut charge = report(of_key, of_account, covered, now);
        if charge.verdict == Verdict::Allowed && throttled {
            charge.verdict = Verdict::Throttled;
            charge.retry_after_millis = Some(until_next_second(now));
        }
        charge
    }

    /// Counts the use of a key. True if it must be put into the queue for the next flush.
    fn count(&mut self, bill: &Bill, charge: &Charge, journal: &Journal, now: Time) -> bool {
        let Some(key) = find_key(&mut self.keys, bill).filter(|_| bill.cost > 0) else { return false };
        let counted = charge.verdict == Verdict::Allowed && charge.credits.is_some();
        let credits = if counted { bill.cost } else { 0 };
        let counted = Counted { verdict: charge.verdict, credits, client_ip: None };
        let Some(id) = bill.key.as_ref().map(|key| key.id) else { return false };
        key.meter.meter().count(id, counted, journal, now)
    }
}

impl<'a> PoolPart<'a> {
    /// The terms are read again under the lock of the meter that they are applied to, as a check does it.
    fn lock(entry: &'a Arc<AccountEntry>, environment: Environment) -> Self {
        let terms = || Arc::clone(&entry.state.load().terms);
        let seen = terms();
        if seen.account_limits.is_empty() && seen.credits.is_none() {
            return Self { entry, environment, terms: seen, meter: None, sum: 0 };
        }
        let meter = entry.meter(environment);
        Self { entry, environment, terms: terms(), meter: Some(meter), sum: 0 }
    }
}

fn find_key<'p, 'a>(keys: &'p mut [KeyPart<'a>], bill: &Bill) -> Option<&'p mut KeyPart<'a>> {
    let entry = bill.key.as_ref()?;
    keys.iter_mut().find(|key| Arc::ptr_eq(key.entry, entry))
}

fn find_pool<'p, 'a>(pools: &'p mut [PoolPart<'a>], bill: &Bill) -> Option<&'p mut PoolPart<'a>> {
    let (entry, environment) = bill.pool.as_ref()?;
    pools.iter_mut().find(|pool| Arc::ptr_eq(pool.entry, entry) && pool.environment == *environment)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ambient::{Clock, ManualClock};
    use crate::decision::KeyRecord;
    use crate::domain::{
        Account, AccountStatus, Algorithm, CreditOverride, Key, KeyStatus, Limit, LimitName, Metadata, Period, Plan,
        PlanId, Policy, Revision, SecretHash, TimeZone, TopUps,
    };
    use crate::engine::{Level, Options};
    use crate::store::sqlite::{OpenMode, SqliteStore};
    use crate::store::{LoadedKey, SharedStore};

    const MINUTE: i64 = 60_000;
    /// Of a month and topped up, together.
    const CREDITS: u64 = 30;
    const TOPPED_UP: u64 = 13;
    /// Of each payer its place here: the pooled limit of `acct_a`'s live and test keys, credits, and limits of keys.
    type Left = BTreeMap<&'static str, u64>;
    /// Who may be charged, each with its budgets.
    type Payers = Vec<(Payer, Vec<&'static str>)>;

    fn limit(name: &str, capacity: u64) -> Limit {
        let name = LimitName::parse(name).unwrap();
        Limit { name, capacity, period: Period::Minute, algorithm: Algorithm::FixedWindow }
    }

    fn account_id(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    fn put_account(engine: &Engine, id: &str, account_limits: Vec<Limit>, credits: Option<CreditOverride>) {
        let account = Account {
            id: account_id(id),
            name: id.to_owned(),
            plan: PlanId::parse("p").unwrap(),
            status: AccountStatus::Active,
            time_zone: TimeZone::UTC,
            key_limits: vec![],
            account_limits,
            credits,
            credits_reset_day: 1,
            top_ups: TopUps::of(TOPPED_UP),
            metadata: Metadata::new(),
            create_time: Time::from_millis(0),
            update_time: Time::from_millis(0),
            revision: Revision::ZERO,
        };
        assert!(engine.index.put_account(account));
    }

    fn put_key(engine: &Engine, number: u8, account: &str, environment: Environment, limits: Vec<Limit>) -> KeyId {
        let zero = Time::from_millis(0);
        let key = Key {
            id: KeyId::from_bytes([number; 16]),
            account_id: account_id(account),
            name: number.to_string(),
            description: String::new(),
            environment,
            prefix: String::new(),
            policy: Policy { limits, ..Policy::default() },
            status: KeyStatus::Active,
            create_time: zero,
            update_time: zero,
            expire_time: None,
            auto_renew_millis: None,
            rotate_time: None,
            previous: None,
            metadata: Metadata::new(),
            revision: Revision::ZERO,
        };
        let record = KeyRecord::new(&key, engine.index.intern(&key.policy), None);
        let hash = SecretHash::from_bytes([number; 32]);
        assert!(engine.index.insert_key(LoadedKey { id: key.id, account_id: key.account_id, hash, record }));
        key.id
    }

    /// Two accounts, of which one pools; and who may be charged, each with its budgets.
    fn engine(store: &SharedStore) -> (Arc<Engine>, ManualClock, Payers) {
        let (clock, hands) = Clock::manual(Time::from_millis(0));
        let engine = Arc::new(Engine::new(Arc::clone(store), clock, Options::default()));
        engine.index.put_plan(Plan {
            id: PlanId::parse("p").unwrap(),
            display_name: String::new(),
            api_access: true,
            key_limits: vec![],
            account_limits: vec![],
            monthly_credits: None,
            allowed_scopes: vec![],
            keys_max: None,
            create_time: Time::from_millis(0),
            update_time: Time::from_millis(0),
            revision: Revision::ZERO,
        });
        let credits = Some(CreditOverride::Allowance(CREDITS - TOPPED_UP));
        put_account(&engine, "acct_a", vec![limit("pool", full("live"))], credits);
        put_account(&engine, "acct_b", vec![], None);
        let own = |name: &'static str| vec![limit("own", full(name))];
        let k1 = put_key(&engine, 1, "acct_a", Environment::Live, own("k1"));
        // Before the map is made and after it.
        engine.index.fill_ids();
        let k2 = put_key(&engine, 2, "acct_a", Environment::Live, vec![]);
        let k3 = put_key(&engine, 3, "acct_a", Environment::Test, own("k3"));
        let k4 = put_key(&engine, 4, "acct_b", Environment::Live, own("k4"));
        let key = |id| Payer::Key { id, of: None };
        let payers = vec![
            (key(k1), vec!["k1", "live", "credits"]),
            (key(k2), vec!["live", "credits"]),
            (key(k3), vec!["k3", "test"]),
            (key(k4), vec!["k4"]),
            (Payer::Account(account_id("acct_a")), vec!["live", "credits"]),
            (Payer::Account(account_id("acct_b")), vec![]),
        ];
        (engine, hands, payers)
    }

    fn full(budget: &str) -> u64 {
        match budget {
            "credits" => CREDITS,
            "live" | "test" => 12,
            "k1" => 9,
            _ => 7,
        }
    }

    fn left_of(payers: &[(Payer, Vec<&'static str>)], place: usize, charge: &Charge) -> Left {
        let names = payers[place].1.iter().filter(|name| **name != "credits");
        let limits = charge.limits.iter().map(|limit| (limit.remaining, limit.level == Level::Key));
        let mut left: Left = names
            .zip(limits)
            .map(|(name, (remaining, own))| {
                assert_eq!(own, name.starts_with('k'));
                (*name, remaining)
            })
            .collect();
        left.extend(charge.credits.map(|credits| ("credits", credits.remaining)));
        left
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Against a model that adds up what each budget is asked for: all are charged or none, no budget gives more than it
        /// has, and of what is refused it is said why.
        #[test]
        fn all_are_charged_or_none(calls in prop::collection::vec(
            (0..2 * MINUTE / 5, prop::collection::vec((0_usize..6, 0_u64..7), 1..6)), 1..40,
        )) {
            let folder = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let store = runtime.block_on(SqliteStore::open(&folder.path().join("db"), OpenMode::Create)).unwrap();
            let store: SharedStore = Arc::new(store);
            let (engine, hands, payers) = engine(&store);
            runtime.spawn({
                let engine = Arc::clone(&engine);
                async move { engine.serve_leases(std::future::pending()).await }
            });
            let mut left: Left = ["live", "test", "credits", "k1", "k3", "k4"].map(|name| (name, full(name))).into();
            let mut millis = 0;
            for (pause, asked) in calls {
                let minute = millis / MINUTE;
                millis += pause;
                if millis / MINUTE != minute {
                    left.iter_mut().filter(|(name, _)| **name != "credits").for_each(|(name, units)| *units = full(name));
                }
                hands.set(Time::from_millis(millis));
                let shares: Vec<Share> =
                    asked.iter().map(|(place, cost)| Share { payer: payers[*place].0.clone(), cost: *cost }).collect();
                let mut sums = Left::new();
                for (place, cost) in &asked {
                    payers[*place].1.iter().for_each(|budget| *sums.entry(*budget).or_default() += cost);
                }
                let lacks = |budget: &&str| sums[*budget] > left[*budget];
                let expected: Vec<Verdict> = asked.iter().map(|(place, cost)| {
                    let mut lacking = payers[*place].1.iter().filter(|budget| *cost > 0 && lacks(budget));
                    match lacking.next() {
                        None => Verdict::Allowed,
                        Some(&"credits") => Verdict::CreditsExhausted,
                        Some(_) => Verdict::RateLimited,
                    }
                }).collect();
                if expected.iter().all(|verdict| *verdict == Verdict::Allowed) {
                    for (budget, sum) in &sums {
                        *left.get_mut(budget).unwrap() -= sum;
                    }
                }
                let charges = runtime.block_on(engine.charge_together(&shares, None)).unwrap();
                prop_assert_eq!(charges.iter().map(|charge| charge.verdict).collect::<Vec<_>>(), expected);
                for ((place, _), charge) in asked.iter().zip(&charges) {
                    for (budget, units) in left_of(&payers, *place, charge) {
                        prop_assert_eq!(units, left[budget], "{} of {}", budget, place);
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_key_is_found_by_its_id_once_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("db"), OpenMode::Create).await.unwrap();
        let (clock, _) = Clock::manual(Time::from_millis(0));
        let engine = Engine::new(Arc::new(store), clock, Options::default());
        let made = engine.bootstrap(false).await.unwrap();
        let share = Share { payer: Payer::Key { id: made.key.id, of: None }, cost: 1 };
        let verdict = async || engine.charge_together(std::slice::from_ref(&share), None).await.unwrap()[0].verdict;
        assert!(!engine.finds_keys_by_id());
        assert_eq!(verdict().await, Verdict::Unknown);
        engine.find_keys_by_id().await;
        assert!(engine.finds_keys_by_id());
        assert_eq!(verdict().await, Verdict::Allowed);
    }
}

//! Reads of one record, and of pages.

use std::collections::BTreeSet;

use tollgate::domain::{
    Account, AccountId, Activity, Environment, Key, KeyId, KeyStatus, Plan, Revocation, Status, Time,
};
use tollgate::store::{KeyQuery, SharedStore, UsageFlush, Write};

use crate::records::{
    NOW, account, account_id, all_keys, insert, key, key_id, later, plan, plan_id, with_account, write,
};

async fn numbers(store: &SharedStore, query: &KeyQuery) -> Vec<u64> {
    let keys = store.keys(query).await.unwrap();
    keys.iter().map(|stored| number(stored.key.id)).collect()
}

fn number(id: KeyId) -> u64 {
    u64::try_from(u128::from_be_bytes(*id.as_bytes()) >> 64).unwrap()
}

pub(crate) async fn absence_is_no_error(store: SharedStore) {
    assert_eq!(store.key(key_id(1)).await.unwrap(), None);
    assert_eq!(store.account(&account_id("a")).await.unwrap(), None);
    assert_eq!(store.plan(&plan_id("free")).await.unwrap(), None);
    assert_eq!(store.keys(&all_keys()).await.unwrap(), []);
    assert_eq!(store.accounts(None, 10).await.unwrap(), []);
    assert_eq!(store.plans(None, 10).await.unwrap(), []);
    assert_eq!(store.keys_to_renew(Time::MAX, 0, 10).await.unwrap(), []);
    assert_eq!(store.pepper_ids().await.unwrap(), [""; 0]);
}

pub(crate) async fn keys_are_listed_in_the_order_of_their_ids(store: SharedStore) {
    with_account(&store).await;
    insert(&store, [5, 3, 9, 1].map(|number| (number, key(number, "a"))).to_vec()).await;
    insert(&store, vec![(4, key(4, "a"))]).await;
    for account_id in [None, Some(account_id("a"))] {
        let query = KeyQuery { account_id, ..all_keys() };
        assert_eq!(numbers(&store, &query).await, [1, 3, 4, 5, 9]);
        assert_eq!(numbers(&store, &KeyQuery { rows_max: 2, ..query.clone() }).await, [1, 3]);
        assert_eq!(numbers(&store, &KeyQuery { rows_max: 0, ..query.clone() }).await, [0; 0]);
        let after = KeyQuery { after: Some(key_id(3)), rows_max: 2, ..query.clone() };
        assert_eq!(numbers(&store, &after).await, [4, 5]);
        // A page goes on from an id that is not there, too.
        assert_eq!(numbers(&store, &KeyQuery { after: Some(key_id(6)), ..query.clone() }).await, [9]);
        assert_eq!(numbers(&store, &KeyQuery { after: Some(key_id(9)), ..query }).await, [0; 0]);
    }
}

/// Keys 1 to 8 of two accounts, unlike in all that can be filtered by.
async fn with_various_keys(store: &SharedStore) {
    with_account(store).await;
    write(store, vec![Write::InsertAccount(account("b", "free"))]).await.unwrap();
    let revoked = KeyStatus::Revoked(Revocation { time: NOW, reason: String::new(), actor: "system".to_owned() });
    let keys = vec![
        key(1, "a"),
        Key { status: KeyStatus::Disabled, ..key(2, "a") },
        Key { status: revoked.clone(), expire_time: Some(later(-10)), ..key(3, "a") },
        Key { expire_time: Some(NOW), ..key(4, "a") },
        Key { expire_time: Some(later(1)), environment: Environment::Test, ..key(5, "a") },
        Key { expire_time: Some(later(-1)), status: KeyStatus::Disabled, ..key(6, "b") },
        Key { prefix: "SK_LIVE_000007".to_owned(), create_time: later(-100), ..key(7, "b") },
        Key { prefix: "sk%live_x".to_owned(), create_time: later(-100), ..key(8, "b") },
    ];
    insert(store, (1..).zip(keys).collect()).await;
    let used = |number, time| Activity { key_id: key_id(number), last_used_time: time, last_used_ip: None };
    let activities = vec![used(1, later(60)), used(8, later(-50)), used(2, later(10))];
    store.record_usage(&UsageFlush { id: [1; 16], time: NOW, deltas: vec![], activities }).await.unwrap();
}

pub(crate) async fn each_filter_of_keys(store: SharedStore) {
    with_various_keys(&store).await;
    let query = all_keys;
    let status = |status| KeyQuery { status: Some(status), ..query() };
    let environment = |environment| KeyQuery { environment: Some(environment), ..query() };
    let prefix = |prefix: &str| KeyQuery { prefix: Some(prefix.to_owned()), ..query() };
    let unused_since = |time| KeyQuery { unused_since: Some(time), ..query() };
    let expires_before = |time| KeyQuery { expires_before: Some(time), ..query() };
    let rows: Vec<(KeyQuery, Vec<u64>)> = vec![
        (query(), vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (KeyQuery { account_id: Some(account_id("b")), ..query() }, vec![6, 7, 8]),
        (KeyQuery { account_id: Some(account_id("none")), ..query() }, vec![]),
        (status(Status::Active), vec![1, 5, 7, 8]),
        (status(Status::Disabled), vec![2]),
        (status(Status::Revoked), vec![3]),
        (status(Status::Expired), vec![4, 6]),
        (environment(Environment::Test), vec![5]),
        (environment(Environment::Live), vec![1, 2, 3, 4, 6, 7, 8]),
        (prefix(""), vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (prefix("sk_live_0"), vec![1, 2, 3, 4, 5, 6]),
        (prefix("sk_live_000002"), vec![2]),
        (prefix("SK"), vec![7]),
        (prefix("sk%"), vec![8]),
        (prefix("sk_live_000002x"), vec![]),
        (prefix("%"), vec![]),
        (prefix("'; DROP TABLE keys; --"), vec![]),
        // Made before, and not used at or after it.
        (unused_since(later(-100)), vec![]),
        (unused_since(later(-99)), vec![7]),
        (unused_since(later(-50)), vec![7]),
        (unused_since(later(-49)), vec![7, 8]),
        (unused_since(NOW), vec![7, 8]),
        (unused_since(later(60)), vec![2, 3, 4, 5, 6, 7, 8]),
        (unused_since(later(61)), vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (expires_before(NOW), vec![3, 6]),
        (expires_before(later(1)), vec![3, 4, 6]),
        (expires_before(Time::MAX), vec![3, 4, 5, 6]),
    ];
    for (query, wanted) in rows {
        assert_eq!(numbers(&store, &query).await, wanted, "{query:?}");
    }
}

/// Every combination of filters gives what each of them lets through, page by page.
pub(crate) async fn filters_hold_together(store: SharedStore) {
    with_various_keys(&store).await;
    let mut queries = vec![all_keys()];
    let mut with = |change: &dyn Fn(&mut KeyQuery)| {
        let mut changed = queries.clone();
        changed.iter_mut().for_each(change);
        queries.extend(changed);
    };
    with(&|query| query.account_id = Some(account_id("a")));
    with(&|query| query.status = Some(Status::Active));
    with(&|query| query.environment = Some(Environment::Live));
    with(&|query| query.prefix = Some("sk_live_".to_owned()));
    with(&|query| query.unused_since = Some(later(20)));
    with(&|query| query.expires_before = Some(later(1)));
    assert_eq!(queries.len(), 64);
    for query in queries {
        let mut wanted: BTreeSet<u64> = (1..=8).collect();
        for one in [
            KeyQuery { account_id: query.account_id.clone(), ..all_keys() },
            KeyQuery { status: query.status, ..all_keys() },
            KeyQuery { environment: query.environment, ..all_keys() },
            KeyQuery { prefix: query.prefix.clone(), ..all_keys() },
            KeyQuery { unused_since: query.unused_since, ..all_keys() },
            KeyQuery { expires_before: query.expires_before, ..all_keys() },
        ] {
            let passed: BTreeSet<u64> = numbers(&store, &one).await.into_iter().collect();
            wanted.retain(|number| passed.contains(number));
        }
        let mut page = KeyQuery { rows_max: 2, ..query.clone() };
        let mut found = Vec::new();
        loop {
            let keys = store.keys(&page).await.unwrap();
            assert!(keys.len() <= 2);
            let Some(last) = keys.last() else { break };
            page.after = Some(last.key.id);
            found.extend(keys.iter().map(|stored| number(stored.key.id)));
        }
        assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "{query:?}");
    }
}

pub(crate) async fn pages_are_stable_under_inserts(store: SharedStore) {
    with_account(&store).await;
    insert(&store, (1..=20).map(|number| (number * 10, key(number * 10, "a"))).collect()).await;
    let mut page = KeyQuery { account_id: Some(account_id("a")), rows_max: 6, ..all_keys() };
    let (mut found, mut rounds) = (Vec::new(), 1);
    loop {
        let numbers = numbers(&store, &page).await;
        let Some(last) = numbers.last() else { break };
        page.after = Some(key_id(*last));
        found.extend(&numbers);
        // Before the page, and right after it.
        let new = [rounds, last + 1];
        rounds += 1;
        insert(&store, new.map(|number| (number, key(number, "a"))).to_vec()).await;
        if numbers.len() < 6 {
            break;
        }
    }
    assert!(found.is_sorted() && found.windows(2).all(|pair| pair[0] != pair[1]), "{found:?}");
    assert!((1..=20).all(|number| found.contains(&(number * 10))), "{found:?}");
}

pub(crate) async fn accounts_and_plans_are_listed_in_order(store: SharedStore) {
    let names = ["b", "a", "c", "B", "a1"];
    let plans = ["pro", "free", "a-1", "a1"];
    let writes = plans
        .iter()
        .map(|id| Write::InsertPlan(plan(id)))
        .chain(names.iter().map(|id| Write::InsertAccount(account(id, "free"))))
        .collect();
    write(&store, writes).await.unwrap();
    // As bytes are ordered, whatever the language of the database.
    let ids = |accounts: Vec<Account>| accounts.into_iter().map(|account| account.id).collect::<Vec<AccountId>>();
    let wanted = ["B", "a", "a1", "b", "c"].map(account_id);
    assert_eq!(ids(store.accounts(None, 10).await.unwrap()), wanted);
    assert_eq!(ids(store.accounts(None, 2).await.unwrap()), wanted[..2]);
    assert_eq!(ids(store.accounts(Some(&wanted[1]), 2).await.unwrap()), wanted[2..4]);
    assert_eq!(ids(store.accounts(Some(&wanted[4]), 2).await.unwrap()), []);
    let ids = |plans: Vec<Plan>| plans.into_iter().map(|plan| plan.id).collect::<Vec<_>>();
    let wanted = ["a-1", "a1", "free", "pro"].map(plan_id);
    assert_eq!(ids(store.plans(None, 10).await.unwrap()), wanted);
    assert_eq!(ids(store.plans(Some(&wanted[0]), 2).await.unwrap()), wanted[1..3]);
}

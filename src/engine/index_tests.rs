//! The index of a process that shares its store: records come from polls, in any order, and from an earlier state of the database.

use std::collections::HashSet;
use std::sync::Arc;

use super::index::Index;
use crate::decision::{Expiry, KeyPhase, KeyRecord, PreviousHash};
use crate::domain::{
    Account, AccountId, AccountStatus, Environment, KeyId, Metadata, Plan, PlanId, Policy, Revision, SecretHash, Time,
    TimeZone, TopUps,
};
use crate::store::{LoadedKey, RetiredSecret};

fn index() -> Index {
    let index = Index::new();
    let (zero, revision) = (Time::from_millis(0), Revision::new(1));
    index.put_plan(Plan {
        id: PlanId::parse("p").unwrap(),
        display_name: String::new(),
        api_access: true,
        key_limits: vec![],
        account_limits: vec![],
        monthly_credits: None,
        allowed_scopes: vec![],
        keys_max: None,
        create_time: zero,
        update_time: zero,
        revision,
    });
    assert!(index.put_account(Account {
        id: AccountId::parse("acct_a").unwrap(),
        name: "a".to_owned(),
        plan: PlanId::parse("p").unwrap(),
        status: AccountStatus::Active,
        time_zone: TimeZone::UTC,
        key_limits: vec![],
        account_limits: vec![],
        credits: None,
        credits_reset_day: 1,
        top_ups: TopUps::default(),
        metadata: Metadata::new(),
        create_time: zero,
        update_time: zero,
        revision,
    }));
    index
}

const fn hash(number: u8) -> SecretHash {
    SecretHash::from_bytes([number; 32])
}

fn key(secret: u8, revision: i64, phase: KeyPhase) -> LoadedKey {
    let record = KeyRecord {
        name: "k".into(),
        policy: Arc::new(Policy::default()),
        metadata: None,
        expiry: Expiry::new(None),
        previous: None,
        revision: Revision::new(revision),
        environment: Environment::Live,
        phase,
    };
    LoadedKey {
        id: KeyId::from_bytes([1; 16]),
        account_id: AccountId::parse("acct_a").unwrap(),
        hash: hash(secret),
        record,
    }
}

fn rotated(current: u8, retired: &[u8]) -> Vec<RetiredSecret> {
    let expire_time = Time::from_millis(1_000);
    retired.iter().map(|old| RetiredSecret { hash: hash(*old), current: hash(current), expire_time }).collect()
}

/// Of a secret: the revision of its key, whether it is in use, and whether a rotation has replaced it.
fn seen(index: &Index, secret: u8) -> Option<(i64, bool, bool)> {
    let found = index.find(&hash(secret))?;
    let record = found.entry.record.load();
    let is_replaced = found.secret_expire_time(&hash(secret), &record).is_some();
    Some((record.revision.number(), record.phase == KeyPhase::Active, is_replaced))
}

#[test]
fn an_older_record_never_takes_the_place_of_a_newer_one() {
    let index = index();
    assert!(index.put_key(key(7, 5, KeyPhase::Revoked), &[]));
    assert!(index.put_key(key(7, 4, KeyPhase::Active), &[]));
    assert_eq!(seen(&index, 7), Some((5, false, false)));
    assert!(index.put_key(key(7, 6, KeyPhase::Revoked), &[]));
    assert_eq!(seen(&index, 7), Some((6, false, false)));
}

#[test]
fn a_rotated_key_stays_the_same_entry() {
    let index = index();
    assert!(index.put_key(key(7, 2, KeyPhase::Active), &[]));
    let entry = index.find(&hash(7)).unwrap().entry;
    // Two rotations since the last poll.
    let mut twice = key(9, 4, KeyPhase::Active);
    let previous = PreviousHash { hash: hash(8), expire_time: Time::from_millis(1_000) };
    twice.record.previous = Some(Arc::new(previous));
    assert!(index.put_key(twice, &rotated(9, &[8, 7])));
    for secret in [7, 8, 9] {
        assert!(Arc::ptr_eq(&index.find(&hash(secret)).unwrap().entry, &entry), "{secret}");
        assert_eq!(seen(&index, secret), Some((4, true, secret != 9)), "{secret}");
    }
    let record = entry.record.load();
    let until = |secret: u8| index.find(&hash(secret)).unwrap().secret_expire_time(&hash(secret), &record);
    assert_eq!(until(8), Some(Time::from_millis(1_000)));
    assert!(until(7) < Some(Time::from_millis(0)), "the rotation after the next ends a secret at once");
}

#[test]
fn a_key_without_its_account_has_no_place() {
    let index = index();
    let stray = LoadedKey { account_id: AccountId::parse("acct_b").unwrap(), ..key(7, 2, KeyPhase::Active) };
    assert!(!index.put_key(stray, &[]));
    assert!(index.find(&hash(7)).is_none());
}

#[test]
fn an_earlier_state_takes_the_place_of_a_later_one_where_it_is_told_to() {
    let index = index();
    assert!(index.put_key(key(9, 8, KeyPhase::Revoked), &rotated(9, &[7])));
    index.set_revision(Revision::new(8));
    let (revoked, retired) = index.ended();
    assert_eq!((revoked, retired), (vec![KeyId::from_bytes([1; 16])], vec![hash(7)]));

    index.forget_revisions();
    assert!(index.put_key(key(7, 3, KeyPhase::Active), &[]));
    index.retain_secrets(&HashSet::from([hash(7)]));
    index.put_revision(Revision::new(3));
    assert_eq!(seen(&index, 7), Some((3, true, false)), "its own secret again");
    assert!(index.find(&hash(9)).is_none(), "this state never knew the later secret");
    assert_eq!(index.revision(), Revision::new(3));
}

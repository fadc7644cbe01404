//! After the database went back to an earlier state.

use std::time::Duration;

use tollgate::decision::quota::State;
use tollgate::domain::{AccountId, BudgetId, Key, KeyStatus, Revision, Revocation};
use tollgate::store::{
    Conclusion, Incarnation, LeaseAsk, LogPosition, MoveId, Peer, Registration, Restatement, SharedStore, Standing,
    UncertainRow,
};

use crate::Shared;
use crate::records::{NOW, hash, insert, key, key_id, with_account};
use crate::replication::{FENCE, FIRST, SECOND, THIRD, poll, position, register, replica, replication, silence};
use crate::shared_leases::{ask, lease, try_lease};

fn restatement(incarnation: Incarnation, budgets: Vec<(BudgetId, State)>) -> Restatement {
    let (peers, revoked, replaced) = Default::default();
    Restatement { replica: replica(incarnation), revision: Revision::new(50), peers, budgets, revoked, replaced }
}

async fn restate(store: &SharedStore, incarnation: Incarnation, budgets: Vec<(BudgetId, State)>) -> MoveId {
    let revived = replication(store).restate(&restatement(incarnation, budgets)).await.unwrap();
    assert!(revived.revoked.is_empty() && revived.replaced.is_empty());
    revived.of
}

async fn conclude(store: &SharedStore, incarnation: Incarnation, of: &MoveId) -> Conclusion {
    conclude_after(store, incarnation, of, Duration::from_hours(1)).await
}

async fn conclude_after(store: &SharedStore, incarnation: Incarnation, of: &MoveId, waited: Duration) -> Conclusion {
    replication(store).conclude_restating(incarnation, of, waited, NOW).await.unwrap()
}

async fn standing(store: &SharedStore, incarnation: Incarnation, beat: i64) -> Standing {
    let at = position(store).await;
    poll(store, incarnation, at, beat).await.standing
}

/// A state of the budget of [`ask`] of which so many units were granted.
async fn granted(store: &SharedStore, units: u64) -> State {
    let rule = ask("x", 0).rule;
    let mut state = lease(store, FIRST, ask("x", 0)).await.state;
    assert_eq!(state.grant(&rule, units), units);
    state
}

/// The database is now one that another has written.
async fn move_away(shared: &Shared) {
    shared.sql("UPDATE sequence SET lineage = 'another/00000001'").await;
}

pub(crate) async fn what_processes_know_is_merged_before_anything_is_granted(shared: Shared) {
    let store = &shared.store;
    with_account(store).await;
    insert(store, vec![(1, key(1, "a")), (2, key(2, "a"))]).await;
    let revoked = KeyStatus::Revoked(Revocation { time: NOW, reason: String::new(), actor: String::new() });
    insert(store, vec![(3, Key { status: revoked, ..key(3, "a") })]).await;
    register(store, FIRST).await;
    register(store, SECOND).await;
    for (name, units) in [("b", 4), ("c", 9)] {
        lease(store, FIRST, ask(name, units)).await;
    }
    lease(store, SECOND, LeaseAsk { needed: 0, ..ask("b", 1) }).await;
    assert_eq!(standing(store, FIRST, 1).await, Standing::Registered);
    let known = [granted(store, 7).await, granted(store, 8).await, granted(store, 3).await];
    let [seven, eight, three] = known;
    let before = position(store).await;
    move_away(&shared).await;

    let budget = |name: &str| BudgetId::stored(name.to_owned());
    assert_eq!(standing(store, FIRST, 2).await, Standing::Moved);
    let first = Restatement {
        revoked: [2, 3, 4].map(key_id).to_vec(),
        replaced: [1, 3, 9].map(hash).to_vec(),
        ..restatement(FIRST, vec![(budget("b"), seven), (budget("c"), three.clone()), (budget("new"), three)])
    };
    let revived = replication(store).restate(&first).await.unwrap();
    let of = revived.of;
    assert_eq!(revived.revoked, [key_id(2)], "one is revoked, and one was never there");
    assert_eq!(revived.replaced, [key_id(1)], "one is revoked, and one is nobody's");
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Waiting);
    assert_eq!(standing(store, FIRST, 3).await, Standing::Moved);
    assert_eq!(standing(store, SECOND, 1).await, Standing::Moved);
    assert!(try_lease(store, FIRST, vec![ask("b", 1)]).await.is_err());
    assert_eq!(replication(store).register(&replica(THIRD)).await.unwrap(), Registration::Moved);
    restate(store, SECOND, vec![(budget("b"), eight)]).await;
    assert!(try_lease(store, SECOND, vec![ask("b", 1)]).await.is_err());
    // Revocations are written while the database is restated.
    insert(store, vec![(5, key(5, "a"))]).await;
    assert_eq!(conclude(store, SECOND, &of).await, Conclusion::Ended);
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Ended, "it has ended");

    let after = position(store).await;
    assert_eq!(after.revision, Revision::new(51), "above all that anybody was told");
    for (incarnation, beat) in [(FIRST, 4), (SECOND, 2)] {
        assert_eq!(standing(store, incarnation, beat).await, Standing::Registered);
        // Revisions that the database had lost are of another history for good.
        let lost = LogPosition { revision: Revision::new(40), stamp: 1 };
        assert_eq!(poll(store, incarnation, lost, beat + 1).await.standing, Standing::Moved);
        assert_eq!(poll(store, incarnation, before, beat + 2).await.standing, Standing::Registered);
    }
    // Each stands at the most that anybody was told, and what was leased is spent.
    for (name, left) in [("b", 2), ("c", 1), ("new", 7)] {
        assert_eq!(lease(store, FIRST, LeaseAsk { needed: 9, ..ask(name, 9) }).await.granted, left, "{name}");
    }
    let uncertain = store.uncertain(&AccountId::parse("acct_a").unwrap(), None, NOW.hour()..NOW.hour() + 1, 9).await;
    let row = |name: &str, units| UncertainRow { budget: budget(name), hour: NOW.hour(), given_back: false, units };
    assert_eq!(uncertain.unwrap(), [row("b", 5), row("c", 9)]);
}

pub(crate) async fn who_never_comes_is_waited_for_and_given_up(shared: Shared) {
    let store = &shared.store;
    for incarnation in [FIRST, SECOND, THIRD] {
        register(store, incarnation).await;
    }
    move_away(&shared).await;
    let of = restate(store, FIRST, vec![]).await;
    assert_eq!(restate(store, SECOND, vec![]).await, of);
    // One that polls and does not restate is waited for, and so is one that was silent before the move.
    silence(&shared, THIRD).await;
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Waiting);
    assert_eq!(conclude(store, SECOND, &of).await, Conclusion::Waiting);
    assert_eq!(conclude(store, SECOND, &of).await, Conclusion::Waiting);
    shared.sql("UPDATE sequence SET moving_since = moving_since - interval '1 hour'").await;
    assert_eq!(standing(store, THIRD, 1).await, Standing::Moved);
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Waiting, "it was there a moment ago");
    shared.sql("UPDATE replicas SET seen = seen - interval '9 seconds'").await;
    assert_eq!(
        conclude(store, FIRST, &of).await,
        Conclusion::Waiting,
        "it admits nothing any more, but it may yet remember"
    );
    silence(&shared, THIRD).await;
    let nine_seconds = conclude_after(store, FIRST, &of, Duration::from_secs(9)).await;
    assert_eq!(nine_seconds, Conclusion::Waiting, "the database's clock was set");
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Ended);
    assert_eq!(standing(store, FIRST, 1).await, Standing::Registered);
    assert_eq!(standing(store, SECOND, 1).await, Standing::Registered);
    assert_eq!(standing(store, THIRD, 2).await, Standing::Buried);
    assert_eq!(shared.sql("SELECT lineage LIKE 'another%' FROM sequence").await, "f");
}

pub(crate) async fn what_was_told_in_one_move_does_not_count_in_another(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    register(store, SECOND).await;
    move_away(&shared).await;
    let of = restate(store, FIRST, vec![]).await;
    // Restored once more, before anybody has concluded.
    shared.sql("UPDATE sequence SET moving = NULL, moving_since = NULL").await;
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Another, "of which nobody has said anything");
    let further = restate(store, SECOND, vec![]).await;
    assert_ne!(further, of);
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Another);
    assert_eq!(conclude(store, SECOND, &further).await, Conclusion::Waiting, "for the first");
    restate(store, FIRST, vec![]).await;
    assert_eq!(conclude(store, FIRST, &further).await, Conclusion::Ended);
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Another);
    assert_eq!(conclude(store, SECOND, &further).await, Conclusion::Ended);
}

pub(crate) async fn a_process_of_which_the_database_does_not_know_is_waited_for(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    assert_eq!(standing(store, FIRST, 7).await, Standing::Moved, "its beats are lost");
    let missing = Peer {
        incarnation: SECOND,
        name: "the second".to_owned(),
        fence: FENCE,
        acknowledged: Revision::ZERO,
        silence: Duration::ZERO,
        flushed: NOW,
    };
    let told = Restatement { peers: vec![missing], ..restatement(FIRST, vec![]) };
    let of = replication(store).restate(&told).await.unwrap().of;
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Waiting);
    assert_eq!(standing(store, SECOND, 99).await, Standing::Moved);
    restate(store, SECOND, vec![]).await;
    assert_eq!(conclude(store, SECOND, &of).await, Conclusion::Ended);
    for (incarnation, beat) in [(FIRST, 8), (SECOND, 100)] {
        assert_eq!(standing(store, incarnation, beat).await, Standing::Registered);
    }
}

pub(crate) async fn many_budgets_are_restated(shared: Shared) {
    let store = &shared.store;
    register(store, FIRST).await;
    register(store, SECOND).await;
    let (three, five) = (granted(store, 3).await, granted(store, 5).await);
    move_away(&shared).await;
    let budgets = |state: &State, reversed: bool| {
        let mut budgets: Vec<_> = (0..5_000).map(|i| (BudgetId::stored(format!("b{i}")), state.clone())).collect();
        if reversed {
            budgets.reverse();
        }
        budgets
    };
    let (first, second) = tokio::join!(
        tokio::spawn({
            let (store, budgets) = (store.clone(), budgets(&three, false));
            async move { restate(&store, FIRST, budgets).await }
        }),
        tokio::spawn({
            let (store, budgets) = (store.clone(), budgets(&five, true));
            async move { restate(&store, SECOND, budgets).await }
        }),
    );
    let of = first.unwrap();
    assert_eq!(second.unwrap(), of);
    assert_eq!(conclude(store, FIRST, &of).await, Conclusion::Waiting);
    assert_eq!(conclude(store, SECOND, &of).await, Conclusion::Ended);
    let asks = (0..5_000).map(|i| LeaseAsk { needed: 9, ..ask(&format!("b{i}"), 9) }).collect();
    let leased = try_lease(store, FIRST, asks).await.unwrap();
    assert!(leased.iter().all(|leased| leased.granted == 5));
}

pub(crate) async fn a_database_is_adopted_where_nobody_is_left(shared: Shared) {
    let store = &shared.store;
    let adopt = async || replication(store).adopt(NOW).await;
    register(store, FIRST).await;
    lease(store, FIRST, ask("b", 4)).await;
    move_away(&shared).await;
    let refused = adopt().await.unwrap_err().to_string();
    assert!(refused.contains("process 1"), "{refused}");
    restate(store, FIRST, vec![]).await;
    silence(&shared, FIRST).await;
    shared.sql("UPDATE sequence SET moving_since = moving_since - interval '1 hour'").await;
    shared.sql("UPDATE replicas SET restated = (SELECT moving FROM sequence)").await;
    assert!(adopt().await.is_err(), "it remembers, and has said so");
    shared.sql("UPDATE replicas SET restated = NULL").await;
    assert_eq!(adopt().await.unwrap(), Revision::new(51));
    assert_eq!(position(store).await.revision, Revision::new(51));
    assert_eq!(standing(store, FIRST, 1).await, Standing::Buried);
    register(store, SECOND).await;
    assert_eq!(lease(store, SECOND, LeaseAsk { needed: 9, ..ask("b", 9) }).await.granted, 6);
}

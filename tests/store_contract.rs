//! What every storage engine does, case by case, against the trait alone.
//!
//! A case is an `async fn(SharedStore)` in one of the modules, and a line in [`suite`]; each gets an empty store. To run
//! the suite on a further engine, add a line at the end of this file.
//!
//! Where a machine has no PostgreSQL its half says `SKIPPED`.

#![cfg(test)]

#[path = "store_contract/commit.rs"]
mod commit;
#[path = "store_contract/keys.rs"]
mod keys;
#[path = "store_contract/leases.rs"]
mod leases;
#[path = "store_contract/lists.rs"]
mod lists;
#[path = "store_contract/load.rs"]
mod load;
#[path = "store_contract/model.rs"]
mod model;
#[path = "store_contract/operations.rs"]
mod operations;
#[path = "store_contract/records.rs"]
mod records;
#[path = "store_contract/replication.rs"]
mod replication;
#[path = "store_contract/restating.rs"]
mod restating;
#[path = "store_contract/shared_leases.rs"]
mod shared_leases;
mod support;
#[path = "store_contract/usage.rs"]
mod usage;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use support::postgres::{Database, Postgres};
use tokio::runtime::Runtime;
use tollgate::store::SharedStore;
use tollgate::store::postgres::PostgresStore;
use tollgate::store::sqlite::{OpenMode, SqliteStore};

macro_rules! suite {
    ($engine:ident, $fresh:path) => {
        suite! { $engine, $fresh:
            commit::revisions_are_dense_and_in_the_order_of_commits,
            commit::a_commit_that_fails_leaves_nothing,
            commit::what_is_written_is_read,
            commit::a_stale_record_is_not_written,
            commit::ids_are_taken_once,
            commit::parents_must_exist,
            commit::a_plan_in_use_stays,
            commit::guards_on_revisions,
            commit::guards_on_the_number_of_keys,
            commit::a_commit_whose_caller_goes_away_is_whole,
            commit::an_account_its_plan_and_its_keys_in_one_commit,
            keys::names_are_unique_among_keys_that_are_not_revoked,
            keys::hashes_are_unique_over_current_and_retired_secrets,
            keys::many_keys_at_once,
            keys::one_wrong_key_among_many_is_told,
            keys::rotation_retires_the_secret,
            keys::the_grace_of_a_retired_secret_can_be_changed,
            keys::revoked_keys_stay,
            keys::renewals_are_found,
            leases::no_more_is_leased_than_there_is,
            leases::a_budget_that_is_asked_for_twice_is_one,
            leases::what_is_returned_can_be_leased_again_and_what_is_spent_not,
            leases::leases_of_the_dead_are_charged_or_refunded,
            leases::leases_of_which_it_is_known_what_was_spent,
            leases::a_journal_that_tells_too_much_gives_nothing_back,
            leases::what_is_uncertain_of_one_key,
            leases::a_large_batch_of_leases,
            leases::leases_at_once_share_what_there_is,
            leases::units_of_the_next_slot_are_leased_before_it_begins,
            leases::units_leased_ahead_by_the_dead_are_charged_or_refunded,
            leases::a_slot_that_was_begun_is_not_left_again_where_the_clock_is_set_back,
            lists::absence_is_no_error,
            lists::keys_are_listed_in_the_order_of_their_ids,
            lists::each_filter_of_keys,
            lists::filters_hold_together,
            lists::pages_are_stable_under_inserts,
            lists::accounts_and_plans_are_listed_in_order,
            load::an_empty_store,
            load::all_that_was_committed,
            load::more_than_one_chunk_and_equal_policies_shared,
            load::a_snapshot_while_commits_go_on,
            load::a_receiver_that_goes_away,
            operations::an_operation_is_charged_once_for_its_name,
            operations::a_batch_of_operations_has_one_of_each_name,
            operations::a_large_batch_of_operations,
            operations::an_operation_is_given_back_once,
            operations::operations_are_remembered_for_a_day,
            operations::of_operations_at_once_one_is_charged,
            usage::sums_by_bucket_and_verdict,
            usage::sums_by_key_in_order,
            usage::a_flush_counts_once,
            usage::unknown_keys_are_dropped,
            usage::buckets_apart_and_row_bound,
            usage::large_numbers,
            usage::the_latest_use_stays,
            usage::a_large_flush,
            usage::pepper_ids_of_current_and_retired_secrets,
            usage::a_sound_store_has_no_damage,
            usage::a_closed_store_is_unavailable,
            model::reads_are_those_of_the_model,
        }
    };
    ($engine:ident, $fresh:path: $($module:ident::$case:ident,)*) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    if let Some((_kept, store)) = $fresh().await {
                        super::$module::$case(store).await;
                    }
                }
            )*
        }
    };
}

/// An empty store in a file of its own, and what keeps that file.
async fn fresh_sqlite() -> Option<(tempfile::TempDir, SharedStore)> {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("tollgate.db"), OpenMode::Create).await.unwrap();
    Some((folder, Arc::new(store)))
}

/// The server of this process of tests, and an empty database that was migrated.
static SERVER: LazyLock<Option<(Postgres, Database)>> = LazyLock::new(|| {
    let server = Postgres::start()?;
    let template = server.new_database();
    let migrated = std::thread::scope(|threads| {
        let migrate = || Runtime::new().unwrap().block_on(PostgresStore::migrate(&template.options()));
        threads.spawn(migrate).join().unwrap()
    });
    migrated.unwrap();
    Some((server, template))
});

/// An empty store in a database of its own.
async fn fresh_postgres() -> Option<((), SharedStore)> {
    let (server, template) = SERVER.as_ref()?;
    let store = PostgresStore::open(&server.copy_of(template).options()).await.unwrap();
    Some(((), Arc::new(store)))
}

suite!(sqlite, crate::fresh_sqlite);
suite!(postgres, crate::fresh_postgres);

/// Stores that share a database, and what else is needed to try them.
pub(crate) struct Shared {
    pub(crate) store: SharedStore,
    database: Database,
}

impl Shared {
    /// The store as another process has it.
    pub(crate) async fn open(&self) -> SharedStore {
        Arc::new(PostgresStore::open(&self.database.options()).await.unwrap())
    }

    /// A connection that no store knows of.
    pub(crate) async fn connect(&self) -> sqlx::PgConnection {
        <sqlx::PgConnection as sqlx::Connection>::connect(&self.database.url_with_password()).await.unwrap()
    }

    /// Runs a statement. Returns its last row, with `|` between values.
    pub(crate) async fn sql(&self, statement: &str) -> String {
        let (name, statement) = (self.database.name.clone(), statement.to_owned());
        let run = move || SERVER.as_ref().unwrap().0.sql(&name, &statement);
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// Waits until a statement on this database waits for a row.
    pub(crate) async fn until_one_waits_for_a_lock(&self) {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while self.sql(waiting).await == "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An empty store in a database of its own, which others can share.
async fn fresh_shared() -> Option<((), Shared)> {
    let (server, template) = SERVER.as_ref()?;
    let database = server.copy_of(template);
    let store = Arc::new(PostgresStore::open(&database.options()).await.unwrap());
    Some(((), Shared { store, database }))
}

suite! { shared, crate::fresh_shared:
    replication::a_poll_tells_what_has_changed,
    replication::a_thousand_keys_in_one_poll,
    replication::more_changes_than_one_poll_tells,
    replication::a_log_that_does_not_reach_back,
    replication::peers_and_what_they_acknowledge,
    replication::a_change_that_was_under_way_during_a_poll,
    replication::another_history_is_noticed,
    replication::polls_that_overtake_each_other,
    replication::who_is_silent_is_buried_by_one_who_listens,
    replication::a_burial_waits_for_a_poll_and_a_poll_for_a_burial,
    replication::a_poll_that_is_given_up_is_in_nobodys_way,
    replication::hints_come_with_changes_and_after_a_break,
    replication::polls_while_commits_go_on,
    restating::what_processes_know_is_merged_before_anything_is_granted,
    restating::who_never_comes_is_waited_for_and_given_up,
    restating::what_was_told_in_one_move_does_not_count_in_another,
    restating::many_budgets_are_restated,
    restating::a_process_of_which_the_database_does_not_know_is_waited_for,
    restating::a_database_is_adopted_where_nobody_is_left,
    usage::what_a_killed_process_had_counted_counts_once_beside_others,
    shared_leases::units_are_called_back_from_who_holds_them,
    shared_leases::units_of_which_their_holder_does_not_know_are_spent,
    shared_leases::what_nobody_holds_is_not_called_back_again,
    shared_leases::units_of_who_is_gone_are_elsewhere_until_they_are_closed,
    shared_leases::who_is_buried_is_refused,
    shared_leases::nothing_is_granted_by_a_database_that_moved,
    shared_leases::one_operation_at_once_from_two_processes,
    shared_leases::crossing_leases_neither_hang_nor_exceed,
}

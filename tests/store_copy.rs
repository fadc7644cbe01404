//! `tollgate store copy`: from a SQLite file to a PostgreSQL database, whole or not at all.
//!
//! Where a machine has no PostgreSQL each test says `SKIPPED`.

#![cfg(test)]

#[path = "store_contract/records.rs"]
mod records;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use support::postgres::{Database, Postgres};
use support::{Home, run, said, tollgate};
use tollgate::decision::quota::Rule;
use tollgate::domain::{
    Activity, Algorithm, BudgetId, Environment, KeyStatus, OperationId, PreviousSecret, Revocation, Subject, Time,
    TimeZone, UsageDelta, Verdict,
};
use tollgate::proto::v1::{CheckKeyRequest, GetLimitsRequest, GetUsageRequest};
use tollgate::store::postgres::PostgresStore;
use tollgate::store::sqlite::{OpenMode, SqliteStore};
use tollgate::store::{
    Incarnation, LeaseAsk, LeaseBatch, Loaded, NamedOperation, Operation, OperationBatch, OperationCharge, SharedStore,
    StoredSecret, UsageFlush, UsageOf, UsageQuery, Write,
};

use records::{
    NOW, account, account_id, all_keys, hash, insert, key, key_id, later, limit, plan, policy, secret, with_account,
    write,
};

const PROCESS: Incarnation = Incarnation([7; 16]);
/// What is not copied.
const NOT_COPIED: [&str; 7] = ["changes", "commits", "leases", "recalls", "replicas", "schema_migrations", "sequence"];

/// A file with something in each of its tables, as a process leaves it that was killed without a journal.
async fn fill(path: &Path) -> SharedStore {
    let store: SharedStore = Arc::new(SqliteStore::open(path, OpenMode::Create).await.unwrap());
    with_account(&store).await;
    write(&store, vec![Write::InsertPlan(plan("other")), Write::InsertAccount(account("b", "other"))]).await.unwrap();
    let mut full = key(1, "a");
    full.name = "tab\\t \u{1f600} 'quoted' \"and\" \\N".to_owned();
    full.description = "two\nlines,\ttabs, \\ and \\.".to_owned();
    full.policy = policy();
    full.metadata = [("n".to_owned(), "v\u{e9}\r\n".to_owned())].into();
    full.expire_time = Some(later(5));
    full.auto_renew_millis = Some(86_400_000);
    let revision = insert(&store, vec![(1, full.clone()), (2, key(2, "a")), (3, key(3, "b"))]).await;
    full.previous = Some(PreviousSecret { prefix: "sk_old".to_owned(), expire_time: later(9) });
    let new_secret = Some(StoredSecret { hash: hash(11), pepper_id: Some("p1".to_owned()) });
    let rotated = Write::UpdateKey { key: full, expected: revision, new_secret };
    let mut revoked = key(2, "a");
    revoked.status =
        KeyStatus::Revoked(Revocation { time: NOW, reason: "leaked".to_owned(), actor: "system".to_owned() });
    write(&store, vec![rotated, Write::UpdateKey { key: revoked, expected: revision, new_secret: None }])
        .await
        .unwrap();
    // Enough keys for more than one message.
    for first in (100..3_100).step_by(1_000) {
        insert(&store, (first..first + 1_000).map(|number| (number, key(number, "b"))).collect()).await;
    }
    let deltas = (1..=3)
        .map(|number| UsageDelta {
            key_id: key_id(number),
            hour: -2,
            verdict: Verdict::Allowed,
            requests: number,
            credits: u64::MAX,
        })
        .collect();
    let used = |number, ip: Option<&str>| Activity {
        key_id: key_id(number),
        last_used_time: NOW,
        last_used_ip: ip.map(|ip| ip.parse().unwrap()),
    };
    let activities = vec![used(1, Some("2001:db8::1")), used(3, None)];
    store.record_usage(&UsageFlush { id: [9; 16], time: NOW, deltas, activities }).await.unwrap();
    lease_and_charge(&store).await;
    store
}

/// Leaves 15 of 20 units of a lease unspent, and not given back.
async fn lease_and_charge(store: &SharedStore) {
    let limit = limit("pool", 100);
    let budget = BudgetId::of_limit(&Subject::Account(account_id("a"), Environment::Live), &limit);
    let ask = LeaseAsk {
        budget: budget.clone(),
        account: account_id("a"),
        rule: Rule::of(&limit),
        zone: TimeZone::UTC,
        settled: vec![],
        reached: Time::from_millis(0),
        wanted: 20,
        needed: 20,
        recalled: false,
        cell: None,
        ahead: 0,
        ahead_cell: None,
    };
    assert_eq!(limit.algorithm, Algorithm::SlidingWindow);
    let leased = store
        .lease(&LeaseBatch { incarnation: PROCESS, now: NOW, asks: vec![ask], released: vec![] })
        .await
        .unwrap()
        .remove(0);
    let charge = OperationCharge { budget, slot: leased.state.slot(), cell: None, units: 5 };
    let operation = Operation {
        key_id: key_id(1),
        environment: Environment::Live,
        cost: 5,
        credits: 5,
        time: NOW,
        charges: vec![charge],
        refund_time: None,
    };
    let named = NamedOperation { account_id: account_id("a"), id: OperationId::parse("op").unwrap(), operation };
    store.record_operations(&OperationBatch { incarnation: PROCESS, now: NOW, operations: vec![named] }).await.unwrap();
}

/// All that can be read of a store.
async fn all(store: &SharedStore) -> Vec<String> {
    let usage =
        UsageQuery { of: UsageOf::Account(account_id("a")), buckets: vec![(-9, 9)], by_key: true, rows_max: 99 };
    let hours = 0..i64::MAX;
    let (sink, mut parts) = tokio::sync::mpsc::channel(1_000);
    store.load(sink).await.unwrap();
    let mut loaded = Vec::new();
    while let Some(part) = parts.recv().await {
        match part {
            Loaded::Keys(keys) => loaded.extend(keys.iter().map(|key| format!("{key:?}"))),
            Loaded::RetiredSecrets(secrets) => loaded.extend(secrets.iter().map(|secret| format!("{secret:?}"))),
            Loaded::SecretsExpected(_) | Loaded::Plans(_) | Loaded::Accounts(_) => {}
        }
    }
    loaded.sort();
    let uncertain = store.uncertain(&account_id("a"), None, hours, 99).await.unwrap();
    assert_eq!(uncertain.iter().map(|row| row.units).collect::<Vec<_>>(), [15]);
    loaded.extend([
        format!("{:?}", store.revision().await.unwrap()),
        format!("{:?}", store.plans(None, 99).await.unwrap()),
        format!("{:?}", store.accounts(None, 99).await.unwrap()),
        format!("{:?}", store.keys(&all_keys()).await.unwrap()),
        format!("{:?}", store.usage(&usage).await.unwrap()),
        format!("{:?}", store.operation(&account_id("a"), &OperationId::parse("op").unwrap(), NOW).await.unwrap()),
        format!("{:?}", store.pepper_ids().await.unwrap()),
        format!("{uncertain:?}"),
    ]);
    loaded
}

/// A file that was filled, and a database that was prepared.
struct Move {
    server: Postgres,
    database: Database,
    folder: tempfile::TempDir,
}

impl Move {
    async fn prepare() -> Option<Self> {
        let server = Postgres::start()?;
        let database = server.new_database();
        PostgresStore::migrate(&database.options()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Some(Self { server, database, folder })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("t.sqlite")
    }

    /// Copies. The tables, or why not.
    fn copy(&self) -> Result<Value, String> {
        self.copy_between(&format!("sqlite:{}", self.file().display()), &self.database.url())
    }

    fn copy_between(&self, from: &str, to: &str) -> Result<Value, String> {
        let mut command = tollgate(&["store", "copy", "--output=json", "--from", from, "--to", to]);
        let output = run(command.arg("--password-file").arg(&self.database.password_file), "");
        let said = said(&output);
        assert!(!said.contains("canary"), "{said}");
        if output.status.success() { Ok(serde_json::from_slice(&output.stdout).unwrap()) } else { Err(said) }
    }

    fn tables(&self) -> Vec<String> {
        let tables = "SELECT string_agg(table_name, ' ') FROM information_schema.tables WHERE table_schema = 'public'";
        let tables = self.server.sql(&self.database.name, tables);
        let mut tables: Vec<String> = tables.split(' ').map(str::to_owned).collect();
        tables.sort();
        tables
    }

    /// Which tables of the database have rows.
    fn filled(&self) -> Vec<String> {
        let rows = |table: &String| self.server.sql(&self.database.name, &format!("SELECT count(*) FROM {table}"));
        self.tables().into_iter().filter(|table| rows(table) != "0").collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_copied_and_goes_on() {
    let Some(moved) = Move::prepare().await else { return };
    fill(&moved.file()).await.close().await;
    let copied = moved.copy().unwrap();
    assert_eq!(copied["tables"]["keys"]["rows"], 3_003);
    assert_eq!(copied["tables"]["keys"]["sha256"].as_str().unwrap().len(), 64);

    let source: SharedStore = Arc::new(SqliteStore::open(&moved.file(), OpenMode::MustExist).await.unwrap());
    let there: SharedStore = Arc::new(PostgresStore::open(&moved.database.options()).await.unwrap());
    assert_eq!(all(&source).await, all(&there).await);
    assert_eq!(there.verify().await.unwrap(), [""; 0]);
    let revision = source.revision().await.unwrap();
    assert_eq!(copied["revision"], revision.number());
    // No table is forgotten, nor was any of them empty.
    let mut tables: Vec<String> = copied["tables"].as_object().unwrap().keys().cloned().collect();
    tables.extend(NOT_COPIED.map(str::to_owned));
    tables.sort();
    assert_eq!(tables, moved.tables());
    for (table, told) in copied["tables"].as_object().unwrap() {
        assert!(told["rows"].as_u64().unwrap() > 0, "{table}");
    }

    // It goes on where the file ended, also for a flush that is sent again.
    let flush = UsageFlush { id: [9; 16], time: NOW, deltas: vec![], activities: vec![] };
    there.record_usage(&flush).await.unwrap();
    let next = insert(&there, vec![(5_000, key(5_000, "b"))]).await;
    assert_eq!(next.number(), revision.number() + 1);
    assert!(matches!(
        write(&there, vec![Write::InsertKey(key(5_001, "b"), secret(1))]).await,
        Err(tollgate::store::CommitError::HashTaken(0))
    ));
    source.close().await;
    there.close().await;
    let again = moved.copy().unwrap_err();
    assert!(again.contains("is not empty"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_use_or_not_prepared_is_refused() {
    let Some(moved) = Move::prepare().await else { return };
    let (file, url) = (format!("sqlite:{}", moved.file().display()), moved.database.url());
    let refused = |from: &str, to: &str, why: &str| {
        let said = moved.copy_between(from, to).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    };
    refused(&file, &url, "there is no database");
    assert!(!moved.file().exists());
    let store = fill(&moved.file()).await;
    refused(&file, &url, "is in use");
    store.close().await;
    refused(&url, &file, "--from sqlite:PATH");
    refused(&file, &file, "--to postgres://");
    refused(&file, &moved.server.new_database().url(), "tollgate migrate");
    // A server works on it.
    let replica = "INSERT INTO replicas (incarnation, name, fence_millis, beat, acknowledged, seen, flushed)
         VALUES (decode(repeat('00', 16), 'hex'), 'other', 5000, 0, 0, now(), 0)";
    moved.server.sql(&moved.database.name, replica);
    refused(&file, &url, "there are rows in replicas");
    moved.server.sql(&moved.database.name, "DELETE FROM replicas; UPDATE sequence SET lineage = 'another'");
    refused(&file, &url, "was restored or moved");
    moved.server.sql(&moved.database.name, "UPDATE sequence SET revision = 1");
    assert_eq!(moved.filled(), ["commits", "schema_migrations", "sequence"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_in_the_middle_leaves_nothing() {
    let Some(moved) = Move::prepare().await else { return };
    fill(&moved.file()).await.close().await;
    let untouched = ["commits", "schema_migrations", "sequence"];
    for (table, body, why) in [
        ("audit_events", "RAISE 'no more'", "no more"),
        ("plans", "NEW.body := NEW.body || ' '", "`plans` arrived as 2 rows that are not the 2 that were sent"),
        ("operations", "RETURN NULL", "`operations` arrived as 0 rows that are not the 1 that were sent"),
    ] {
        let trigger = format!(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {}; RETURN NEW; END';
             CREATE TRIGGER fail BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION fail()",
            body.replace('\'', "''")
        );
        moved.server.sql(&moved.database.name, &trigger);
        let said = moved.copy().unwrap_err();
        assert!(said.contains(why), "{said}");
        assert_eq!(moved.filled(), untouched);
        moved.server.sql(&moved.database.name, "DROP FUNCTION fail CASCADE");
    }
    // What failed can be tried again.
    moved.copy().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_goes_on_from_its_journal() {
    let Some(moved) = Move::prepare().await else { return };
    let home = Home::new();
    let mut server = home.serve(&["--usage-flush-interval=10s"]);
    let (account_id, key) = support::budgeted_key(&server, &home.token, 1_000).await;
    for _ in 0..7 {
        let request = CheckKeyRequest { key: key.clone(), ..CheckKeyRequest::default() };
        assert!(server.keys(&home.token).await.check_key(request).await.unwrap().into_inner().allowed);
    }
    server.kill();
    moved.copy_between(&format!("sqlite:{}", home.path().join("t.sqlite").display()), &moved.database.url()).unwrap();

    let (database, password) = (
        format!("--database={}", moved.database.url()),
        format!("--password-file={}", moved.database.password_file.display()),
    );
    let mut server = home.serve(&[&database, &password]);
    let usage = GetUsageRequest { account_id: account_id.clone(), ..GetUsageRequest::default() };
    let usage = server.keys(&home.token).await.get_usage(usage).await.unwrap().into_inner();
    assert_eq!(usage.totals.unwrap().allowed, 7);
    // Nothing is uncertain: the journal told what was spent, to the unit.
    let request = CheckKeyRequest { key, ..CheckKeyRequest::default() };
    let checked = server.keys(&home.token).await.check_key(request).await.unwrap().into_inner();
    assert!(checked.allowed, "{checked:?}");
    let limits = GetLimitsRequest { id: checked.key_id };
    let limits = server.keys(&home.token).await.get_limits(limits).await.unwrap().into_inner();
    assert_eq!(limits.limits.iter().map(|limit| limit.remaining).collect::<Vec<_>>(), [992; 3], "{limits:?}");
    server.stop();
}

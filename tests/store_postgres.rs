//! What only a server can do to a store: refuse, hang, be another version, go away.
//!
//! Where a machine has no PostgreSQL each test says `SKIPPED`.

#![cfg(test)]

#[path = "store_contract/records.rs"]
#[expect(dead_code, reason = "the contract's cases use more of it")]
mod records;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use support::postgres::{Database, OWNER, OWNER_PASSWORD, Postgres};
use tollgate::store::postgres::{Migrated, OpenError, PostgresOptions, PostgresStore};
use tollgate::store::{CommitError, SharedStore, Store as _, StoreError, Write};

use records::{account, insert, key, plan, with_account, write};

fn with_url(database: &Database, url: &str) -> PostgresOptions {
    PostgresOptions { url: url.into(), ..database.options() }
}

/// Why it is not opened. Says so if a password is in it.
async fn refusal(options: &PostgresOptions) -> OpenError {
    let error = PostgresStore::open(options).await.unwrap_err();
    for said in [error.to_string(), format!("{error:?}"), format!("{options:?}")] {
        assert!(!said.contains("canary"), "{said}");
    }
    error
}

/// An empty store.
async fn migrated(database: &Database) -> PostgresStore {
    PostgresStore::migrate(&database.options()).await.unwrap();
    PostgresStore::open(&database.options()).await.unwrap()
}

/// A connection of somebody else.
async fn stranger(database: &Database) -> PgConnection {
    PgConnection::connect(&database.url_with_password()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_schema_that_fits_is_opened() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    let options = database.options();
    let error = refusal(&options).await;
    assert!(matches!(error, OpenError::Empty { .. }) && error.to_string().contains("tollgate migrate"), "{error}");
    assert_eq!(server.sql(&database.name, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0");

    // Of several at once one does it.
    let (one, other) = tokio::join!(PostgresStore::migrate(&options), PostgresStore::migrate(&options));
    let mut found = [one.unwrap(), other.unwrap()];
    found.sort_by_key(|migrated| migrated.from);
    assert_eq!(found, [Migrated { from: 0, to: 1 }, Migrated { from: 1, to: 1 }]);
    assert_eq!(server.sql(&database.name, "SELECT count(*) FROM sequence JOIN commits USING (revision)"), "1");
    PostgresStore::open(&options).await.unwrap().close().await;

    let later = |compatible_from| {
        let values = format!("(2, 'later', {compatible_from})");
        let row = "INSERT INTO schema_migrations (version, name, compatible_from) VALUES";
        server.sql(&database.name, &format!("DELETE FROM schema_migrations WHERE version = 2; {row} {values}"));
    };
    later(1);
    let store = PostgresStore::open(&options).await.unwrap();
    assert_eq!(PostgresStore::migrate(&options).await.unwrap(), Migrated { from: 2, to: 2 });
    store.close().await;
    later(2);
    assert!(matches!(refusal(&options).await, OpenError::NewerSchema { found: 2, known: 1, .. }));
    assert!(matches!(PostgresStore::migrate(&options).await, Err(OpenError::NewerSchema { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_that_are_not_ours_are_left_alone() {
    let Some(server) = Postgres::start() else { return };
    for table in ["orders (id bigint)", "schema_migrations (version text)", "schema_migrations (id bigint)"] {
        let database = server.new_database();
        server.sql(
            &database.name,
            &format!("CREATE TABLE {table}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {OWNER}"),
        );
        let options = database.options();
        assert!(matches!(refusal(&options).await, OpenError::Foreign { .. }), "{table}");
        assert!(matches!(PostgresStore::migrate(&options).await, Err(OpenError::Foreign { .. })), "{table}");
        assert_eq!(server.sql(&database.name, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "1");
    }
    let mut other = server.new_database();
    other.name = "ascii".to_owned();
    server.sql("postgres", "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0");
    let error = refusal(&other.options()).await;
    assert!(matches!(&error, OpenError::Encoding { encoding, .. } if encoding == "SQL_ASCII"), "{error}");
    other.name = "nowhere".to_owned();
    assert!(matches!(refusal(&other.options()).await, OpenError::NoDatabase { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    migrated(&database).await.close().await;
    let standby = server.standby();
    server.is_followed_by(&standby);
    let url = database.url_through(standby.addr());
    let error = refusal(&with_url(&database, &url)).await;
    assert!(matches!(error, OpenError::Standby { .. }), "{error}");
    assert!(PostgresStore::migrate(&with_url(&database, &url)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_comes_from_the_url_or_from_a_file_and_is_shown_nowhere() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    migrated(&database).await.close().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        PostgresOptions { password_file: Some(path), ..database.options() }
    };
    for (wrong, why) in [
        (file("empty", "\nx", 0o600), "is empty"),
        (file("open", OWNER_PASSWORD, 0o644), "every user of this machine"),
        (PostgresOptions { password_file: Some(folder.path().join("none")), ..database.options() }, "cannot be read"),
    ] {
        let error = refusal(&wrong).await;
        assert!(matches!(error, OpenError::PasswordFile { .. }) && error.to_string().contains(why), "{error}");
    }
    let unknown = file("wrong", "canary-that-is-wrong", 0o600);
    assert!(matches!(refusal(&unknown).await, OpenError::Login { .. }));
    let unknown = with_url(&database, &database.url_with_password().replace(OWNER_PASSWORD, "canary-too"));
    assert!(matches!(refusal(&unknown).await, OpenError::Login { .. }));
    for url in [
        database.url() + "?passwd=canary",
        database.url() + "?sslmode=canary",
        database.url().replace('@', ":can/ary@canary:canary@"),
        "postgres://u:canary@h1:1,h2:2/db".to_owned(),
    ] {
        assert!(matches!(refusal(&with_url(&database, &url)).await, OpenError::Url(_)), "{url}");
    }
    // One in the URL goes before the file.
    let both = PostgresOptions { url: database.url_with_password().into(), ..file("wrong", "canary", 0o600) };
    PostgresStore::open(&both).await.unwrap().close().await;
    // Only the first line is it.
    PostgresStore::open(&file("long", &format!("{OWNER_PASSWORD}\nnot this"), 0o640)).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_can_be_changed_while_a_store_is_open() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    let store = migrated(&database).await;
    store.revision().await.unwrap();
    server.sql("postgres", &format!("ALTER ROLE {OWNER} PASSWORD 'canary-of-tomorrow'"));
    fs::write(&database.password_file, "canary-of-tomorrow\n").unwrap();
    cut_off(&server, &database);
    // The connection that was cut is found out by whoever uses it.
    let mut tries = 0;
    while let Err(error) = store.revision().await {
        tries += 1;
        assert!(tries < 10, "{error}");
    }
    store.close().await;
}

/// Ends all connections to a database.
fn cut_off(server: &Postgres, database: &Database) {
    let others = format!("datname = '{}' AND pid <> pg_backend_pid()", database.name);
    server.sql("postgres", &format!("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {others}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_told_for_what() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    migrated(&database).await.close().await;
    let impatient = PostgresOptions {
        connections_max: 3,
        connect_timeout: Duration::from_millis(500),
        statement_timeout: Duration::from_secs(4),
        ..database.options()
    };
    let store: SharedStore = Arc::new(PostgresStore::open(&impatient).await.unwrap());
    with_account(&store).await;

    // Another holds the row that every commit begins with; the commit has the only connection for all but polls.
    let mut other = stranger(&database).await;
    other.execute("BEGIN; UPDATE sequence SET revision = revision").await.unwrap();
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { write(&store, vec![Write::InsertPlan(plan("other"))]).await }
    });
    wait_for(&server, &database, "wait_event_type = 'Lock'");
    let busy = store.revision().await.unwrap_err().to_string();
    assert!(busy.contains("all of its 1 connections were busy") && busy.contains("store.pool_max"), "{busy}");
    let locked = waiting.await.unwrap().unwrap_err().to_string();
    assert!(locked.contains("lock timeout") && locked.contains("another transaction held it"), "{locked}");
    other.execute("ROLLBACK").await.unwrap();

    // A statement that takes too long.
    let slow =
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
                CREATE TRIGGER slow BEFORE INSERT ON plans FOR EACH ROW EXECUTE FUNCTION slow()";
    other.execute(slow).await.unwrap();
    let before = store.revision().await.unwrap();
    let slow = write(&store, vec![Write::InsertPlan(plan("slow"))]).await.unwrap_err().to_string();
    assert!(slow.contains("statement timeout") && slow.contains("store.statement_timeout"), "{slow}");
    other.execute("DROP TRIGGER slow ON plans").await.unwrap();
    assert_eq!(store.revision().await.unwrap(), before);
    write(&store, vec![Write::InsertPlan(plan("slow"))]).await.unwrap();
    store.close().await;
}

/// Waits until a connection of that database is in this state.
fn wait_for(server: &Postgres, database: &Database, state: &str) {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND {state}", database.name);
    support::eventually(state, || server.sql("postgres", &sql) != "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_says_so() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    let store: SharedStore = Arc::new(migrated(&database).await);
    with_account(&store).await;
    // Slow only once all is written.
    let slow =
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
                CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON plans DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION slow()";
    stranger(&database).await.execute(slow).await.unwrap();
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { write(&store, vec![Write::InsertPlan(plan("other"))]).await }
    });
    wait_for(&server, &database, "wait_event = 'PgSleep' AND query LIKE '%COMMIT%'");
    cut_off(&server, &database);
    let lost = waiting.await.unwrap().unwrap_err();
    assert!(matches!(&lost, CommitError::Store(StoreError::Unavailable(_))), "{lost:?}");
    assert!(lost.to_string().contains("whether it was written is not known"), "{lost}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_synchronous_standby_has_is_not_said_to_be_written() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    migrated(&database).await.close().await;
    let impatient = PostgresOptions { statement_timeout: Duration::from_secs(1), ..database.options() };
    let store: SharedStore = Arc::new(PostgresStore::open(&impatient).await.unwrap());
    with_account(&store).await;
    server.configure("synchronous_standby_names = 'nobody'");
    server.reload();
    // A limit on the server's side would end its wait for the standby, and have it say that all is well.
    let waiting = write(&store, vec![Write::InsertPlan(plan("other"))]).await.unwrap_err();
    assert!(waiting.to_string().contains("whether it was written is not known"), "{waiting}");
    server.configure("synchronous_standby_names = ''");
    server.reload();
    support::eventually("commits end", || {
        server.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "0"
    });
    write(&store, vec![Write::InsertPlan(plan("another"))]).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_is_used_again() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    let store: SharedStore = Arc::new({
        migrated(&database).await.close().await;
        let impatient = PostgresOptions { connect_timeout: Duration::from_secs(1), ..database.options() };
        PostgresStore::open(&impatient).await.unwrap()
    });
    let before = with_account(&store).await;
    server.stop();
    for _ in 0..3 {
        assert!(matches!(store.revision().await, Err(StoreError::Unavailable(_))));
    }
    let error = refusal(&PostgresOptions { connect_timeout: Duration::from_secs(1), ..database.options() }).await;
    assert!(matches!(error, OpenError::Unavailable { .. }), "{error}");
    server.start_again();
    let mut tries = 0;
    while let Err(error) = store.revision().await {
        tries += 1;
        assert!(tries < 60, "{error}");
    }
    assert_eq!(store.revision().await.unwrap(), before);
    insert(&store, vec![(1, key(1, "a"))]).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_kept_for_as_long_as_it_was_told() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    let store: SharedStore = Arc::new(migrated(&database).await);
    with_account(&store).await;
    for number in 1..=20 {
        insert(&store, vec![(number, key(number, "a"))]).await;
    }
    store.close().await;
    let count = |table: &str| server.sql(&database.name, &format!("SELECT count(*), min(revision) FROM {table}"));
    assert_eq!((count("commits"), count("changes")), ("22|0".to_owned(), "22|1".to_owned()));
    let forgetful = PostgresOptions { log_kept: Duration::ZERO, ..database.options() };
    let store: SharedStore = Arc::new(PostgresStore::open(&forgetful).await.unwrap());
    // A few with each commit, from the beginning.
    write(&store, vec![Write::InsertAccount(account("b", "free"))]).await.unwrap();
    assert_eq!((count("commits"), count("changes")), ("8|15".to_owned(), "8|15".to_owned()));
    for id in ["c", "d", "e"] {
        write(&store, vec![Write::InsertAccount(account(id, "free"))]).await.unwrap();
    }
    // Who has applied the last revision but one still finds it.
    assert_eq!((count("commits"), count("changes")), ("2|24".to_owned(), "2|24".to_owned()));
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_can_be_seen_is_told() {
    let Some(server) = Postgres::start_in(None, "fsync = off") else { return };
    let database = server.new_database();
    let store = migrated(&database).await;
    let health = PostgresStore::look(&database.options()).await.unwrap();
    assert_eq!((health.schema, health.schema_known, health.refusal), (1, 1, None));
    assert!(health.warnings.len() == 1 && health.warnings[0].contains("`fsync` off"), "{:?}", health.warnings);
    for (damage, told) in [
        ("DELETE FROM commits", "stamps of the last revision"),
        ("INSERT INTO commits (revision, stamp) VALUES (7, 1)", "revisions in the log after the last one"),
        ("DELETE FROM sequence", "numbers of the last revision"),
    ] {
        server.sql(&database.name, damage);
        let found = store.verify().await.unwrap();
        assert!(found.iter().any(|line| line.contains(told)), "{damage}: {found:?}");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_as_the_url_asks_for_it() {
    let Some(server) = Postgres::start() else { return };
    let database = server.new_database();
    migrated(&database).await.close().await;
    let url = |query: &str| with_url(&database, &format!("{}?{query}", database.url()));
    // Without TLS on the server.
    PostgresStore::open(&url("sslmode=prefer")).await.unwrap().close().await;
    assert!(matches!(refusal(&url("sslmode=require")).await, OpenError::Tls { .. }));

    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (folder.path().join("ca.pem"), folder.path().join("other.pem"));
    let name_and_address = certify(server.socket(), &["localhost", "127.0.0.1"]);
    fs::write(&right, name_and_address).unwrap();
    fs::write(&wrong, authority().0.pem()).unwrap();
    server.configure(&format!(
        "ssl = on\nssl_cert_file = '{0}/server.pem'\nssl_key_file = '{0}/server.key'",
        server.socket().display()
    ));
    server.restart();
    let by = |mode: &str, authority: &Path| url(&format!("sslmode={mode}&sslrootcert={}", authority.display()));
    for open in [url("sslmode=require"), by("require", &right), by("verify-ca", &right), by("verify-full", &right)] {
        let store = PostgresStore::open(&open).await.unwrap();
        store.revision().await.unwrap();
        let encrypted =
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'tollgate'";
        assert_eq!(server.sql("postgres", encrypted), "t");
        store.close().await;
    }
    // Who names an authority wants it to be the one.
    for refused in
        [by("require", &wrong), by("verify-ca", &wrong), by("verify-full", &wrong), url("sslmode=verify-full")]
    {
        assert!(matches!(refusal(&refused).await, OpenError::Tls { .. }));
    }
    // A certificate of another host.
    fs::write(&right, certify(server.socket(), &["db.example.org"])).unwrap();
    server.restart();
    PostgresStore::open(&by("verify-ca", &right)).await.unwrap().close().await;
    assert!(matches!(refusal(&by("verify-full", &right)).await, OpenError::Tls { .. }));
}

fn authority() -> (rcgen::Certificate, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate, rcgen::Issuer::new(params, key))
}

/// Puts a certificate for these names where the server's user can read it; the authority behind it.
fn certify(folder: &Path, names: &[&str]) -> String {
    let (authority, issuer) = authority();
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let owner = fs::metadata(folder).unwrap();
    for (name, text) in [("server.pem", certificate.pem()), ("server.key", key.serialize_pem())] {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    authority.pem()
}

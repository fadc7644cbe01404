//! What is true of the embedded store alone: its file, its lock, and what becomes of it when things go wrong.

#![cfg(test)]

#[path = "store_contract/records.rs"]
mod records;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tollgate::domain::Revision;
use tollgate::store::sqlite::{OpenError, OpenMode, SqliteStore};
use tollgate::store::{CommitError, SharedStore, Store as _, StoreError, Write};

use records::{account, all_keys, insert, key, key_id, policy, secret, with_account, write};

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tollgate.db");
    (folder, path)
}

async fn open(path: &Path) -> SharedStore {
    Arc::new(SqliteStore::open(path, OpenMode::Create).await.unwrap())
}

async fn refusal(path: &Path) -> OpenError {
    SqliteStore::open(path, OpenMode::Create).await.unwrap_err()
}

/// Runs statements beside a store that is closed, as a person with a tool would.
async fn tamper(path: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(path).foreign_keys(false).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn count(path: &Path, sql: &'static str) -> i64 {
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let count = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    count
}

/// Says why a test proves nothing here; where everything must be there, that is a failure.
fn skip(reason: &str) {
    assert!(std::env::var_os("TOLLGATE_REQUIRE_TOOLS").is_none_or(|value| value != "1"), "{reason}");
    println!("SKIPPED: {reason}");
}

#[tokio::test]
async fn survives_being_opened_again() {
    let (_folder, path) = folder();
    assert!(matches!(SqliteStore::open(&path, OpenMode::MustExist).await, Err(OpenError::Missing(_))));
    assert!(!path.exists());
    let store = open(&path).await;
    with_account(&store).await;
    let revision = insert(&store, vec![(1, key(1, "a"))]).await;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    store.close().await;
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "the file and its lock alone are left");
    for _ in 0..2 {
        let store = SqliteStore::open(&path, OpenMode::MustExist).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), revision);
        assert_eq!(store.key(key_id(1)).await.unwrap().unwrap().key.revision, revision);
        store.close().await;
    }
}

#[tokio::test]
async fn one_process_at_a_time() {
    let (folder, path) = folder();
    let store = open(&path).await;
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        let error = refusal(path).await;
        let OpenError::Locked { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(*holder, format!("process {}", std::process::id()));
    }
    store.close().await;
    let store = open(&link).await;
    store.close().await;

    let (mut child, _committed) = start_writer(&path);
    let error = refusal(&path).await.to_string();
    assert!(error.contains(&format!("is in use by process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    open(&path).await.close().await;
}

/// Not a test of its own: what [`start_writer`] runs in another process.
#[tokio::test]
async fn writes_until_it_is_killed() {
    let Some(path) = std::env::var_os("TOLLGATE_TEST_WRITER") else { return };
    let store = open(Path::new(&path)).await;
    with_account(&store).await;
    for number in 1.. {
        let revision = insert(&store, vec![(number, key(number, "a"))]).await;
        println!("committed {number} {}", revision.number());
    }
}

/// Another process that commits key after key. Returns once it has made the first; its output tells of each.
fn start_writer(path: &Path) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writes_until_it_is_killed", "--nocapture"])
        .env("TOLLGATE_TEST_WRITER", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut committed = lines.filter(|line| line.starts_with("committed "));
    committed.next().unwrap();
    (child, committed)
}

#[tokio::test]
async fn what_was_committed_outlives_a_kill() {
    let (_folder, path) = folder();
    let (mut child, committed) = start_writer(&path);
    let mut told: Vec<String> = Vec::new();
    for (i, line) in committed.enumerate() {
        told.push(line);
        if i == 40 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(path.with_extension("db-wal").metadata().unwrap().len() > 0, "the log is left behind");
    let (number, revision) = told.last().unwrap().strip_prefix("committed ").unwrap().split_once(' ').unwrap();
    let store = open(&path).await;
    assert!(store.revision().await.unwrap() >= Revision::new(revision.parse().unwrap()));
    for number in 1..=number.parse().unwrap() {
        assert!(store.key(key_id(number)).await.unwrap().is_some(), "{number}");
    }
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
    store.close().await;
}

#[tokio::test]
async fn files_that_are_no_database_of_ours() {
    let (folder, path) = folder();
    let expect = async |wanted: &str| {
        let before = std::fs::read(&path).ok();
        let error = refusal(&path).await.to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(std::fs::read(&path).ok() == before, "it was touched");
    };
    std::fs::write(&path, "dear diary\n").unwrap();
    expect("is not an SQLite database").await;
    std::fs::write(&path, [b"SQLite format 3\0".as_slice(), &[0x5a; 4_000]].concat()).unwrap();
    expect("is not an SQLite database").await;
    std::fs::remove_file(&path).unwrap();
    tamper(&path, "CREATE TABLE bookmarks (url TEXT)").await;
    expect("is a database of another program").await;
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = refusal(&path).await.to_string();
    assert!(error.contains("is not a regular file"), "{error}");
    let missing = folder.path().join("no/such/tollgate.db");
    assert!(refusal(&missing).await.to_string().contains("the folder of the database"));
    // An empty file is a database to be.
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    open(&path).await.close().await;
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (_folder, path) = folder();
    open(&path).await.close().await;
    tamper(&path, "PRAGMA user_version = 99").await;
    let error = refusal(&path).await;
    assert!(matches!(error, OpenError::NewerSchema { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("run the version that wrote it"), "{error}");
}

#[tokio::test]
async fn damage_is_told() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    with_account(&store).await;
    insert(&store, (1..=500).map(|number| (number, key(number, "a"))).collect()).await;
    store.close().await;
    let sound = std::fs::read(&path).unwrap();

    // Pages of nothing where rows were.
    let mut damaged = sound.clone();
    for page in damaged.chunks_mut(4_096).skip(20).step_by(3) {
        page.fill(0xff);
    }
    std::fs::write(&path, damaged).unwrap();
    match SqliteStore::open(&path, OpenMode::Create).await {
        Ok(store) => {
            let found = store.verify().await;
            assert!(matches!(&found, Err(StoreError::Corrupt(_))) || !found.as_ref().unwrap().is_empty(), "{found:?}");
            assert!(matches!(store.keys(&all_keys()).await, Err(StoreError::Corrupt(_))));
            store.close().await;
        }
        Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "{error}"),
    }

    // Rows that fit nothing.
    std::fs::write(&path, sound).unwrap();
    tamper(&path, "DELETE FROM accounts; UPDATE sequence SET revision = 1").await;
    let store = open(&path).await;
    let found = store.verify().await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("keys refers to accounts that are not there: 500 rows"), "{found:?}");
    assert!(found[1].contains("the last revision is said to be 1, but there are changes of revision 2"), "{found:?}");
    store.close().await;
}

#[tokio::test]
async fn content_of_another_version() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    with_account(&store).await;
    let mut full = key(1, "a");
    full.policy = policy();
    full.metadata = [("a".to_owned(), "b".to_owned())].into();
    insert(&store, vec![(1, full)]).await;
    let before = store.key(key_id(1)).await.unwrap();
    store.close().await;

    // What a later version adds is passed over.
    let added = "json_set(body, '$.later', json('{\"a\": [1]}'))";
    tamper(
        &path,
        &format!(
            "UPDATE keys SET body = {added}, policy = {}; UPDATE accounts SET body = {added}; UPDATE plans SET body = {added}",
            added.replace("body", "policy")
        ),
    )
    .await;
    let store = open(&path).await;
    assert_eq!(store.key(key_id(1)).await.unwrap(), before);
    assert_eq!(store.accounts(None, 9).await.unwrap().len(), 1);
    assert_eq!(store.plans(None, 9).await.unwrap().len(), 1);
    store.close().await;

    // What no version writes is an error that says where, and no panic.
    for (table, change) in [
        ("keys", "policy = '{'"),
        ("keys", "metadata = '7'"),
        ("keys", "name = 'a' || char(31) || 'b'"),
        ("keys", "name = 'a' || char(30) || 'b'"),
        ("keys", "account_id = 'nobody'"),
        ("accounts", "body = '{}'"),
        ("plans", "body = '[]'"),
        ("plans", "id = 'Not A Plan'"),
    ] {
        let (_folder, copy) = folder();
        std::fs::copy(&path, &copy).unwrap();
        tamper(&copy, &format!("UPDATE {table} SET {change}")).await;
        let store = open(&copy).await;
        let (sender, mut receiver) = mpsc::channel(100);
        let loaded = store.load(sender).await;
        assert!(matches!(loaded, Err(StoreError::Corrupt(_))), "{change}: {loaded:?}");
        while receiver.recv().await.is_some() {}
        store.close().await;
    }
}

#[tokio::test]
async fn what_fails_leaves_no_row() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    with_account(&store).await;
    let writes = vec![
        Write::InsertKey(key(1, "a"), secret(1)),
        Write::InsertAccount(account("b", "free")),
        Write::InsertKey(key(2, "a"), secret(1)),
    ];
    let error = write(&store, writes).await.unwrap_err();
    assert!(matches!(error, CommitError::HashTaken(2)), "{error:?}");
    store.close().await;
    assert_eq!(count(&path, "SELECT count(*) FROM changes").await, 2);
    assert_eq!(count(&path, "SELECT count(*) FROM audit_events").await, 2);
    assert_eq!(count(&path, "SELECT revision FROM sequence").await, 1);
    let orphans = "SELECT count(*) FROM changes WHERE revision > (SELECT revision FROM sequence)";
    assert_eq!(count(&path, orphans).await, 0);
}

/// A file system of its own, small, and gone with the value.
struct Mount(TempDir);

impl Mount {
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        skip("mounting a file system needs root and `mount`");
        None
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[tokio::test]
async fn a_full_disk_is_ridden_out() {
    let Some(mount) = Mount::new("3m") else { return };
    let path = mount.0.path().join("tollgate.db");
    let store = open(&path).await;
    with_account(&store).await;
    let mut number = 0;
    let refused = loop {
        let before = store.revision().await.unwrap();
        let writes = (0..200)
            .map(|_| {
                number += 1;
                Write::InsertKey(key(number, "a"), secret(number))
            })
            .collect();
        match write(&store, writes).await {
            Ok(_) => {}
            Err(error) => break (before, error),
        }
    };
    let (before, error) = refused;
    assert!(matches!(error, CommitError::Store(StoreError::Unavailable(_))), "{error:?}");
    assert!(error.to_string().contains("disk"), "{error}");
    // Nothing of it is there, reading goes on, and trying again says the same.
    assert_eq!(store.revision().await.unwrap(), before);
    assert_eq!(u64::try_from(store.keys(&all_keys()).await.unwrap().len()).unwrap(), number - 200);
    for _ in 0..3 {
        let again = (number..number + 400).map(|number| Write::InsertKey(key(number, "a"), secret(number))).collect();
        let error = write(&store, again).await.unwrap_err();
        assert!(matches!(error, CommitError::Store(StoreError::Unavailable(_))), "{error:?}");
    }
    mount.remount("size=30m");
    let again = (number..number + 400).map(|number| Write::InsertKey(key(number, "a"), secret(number))).collect();
    assert_eq!(write(&store, again).await.unwrap().number(), before.number() + 1);
    assert_eq!(store.verify().await.unwrap(), [""; 0]);
    store.close().await;
}

#[tokio::test]
async fn a_read_only_disk_is_told() {
    let Some(mount) = Mount::new("8m") else { return };
    let path = mount.0.path().join("tollgate.db");
    let store = open(&path).await;
    with_account(&store).await;
    store.close().await;
    mount.remount("ro");
    let error = refusal(&path).await;
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
    mount.remount("rw");
    open(&path).await.close().await;
}

#[tokio::test]
async fn no_error_holds_a_hash() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    with_account(&store).await;
    insert(&store, vec![(1, key(1, "a"))]).await;
    let bytes = secret(1).hash;
    let hex = bytes.as_bytes().iter().take(4).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let error = write(&store, vec![Write::InsertKey(key(2, "a"), secret(1))]).await.unwrap_err();
    let stored = store.key(key_id(1)).await.unwrap();
    let texts = [format!("{error}"), format!("{error:?}"), format!("{stored:?}"), format!("{:?}", secret(1))];
    for text in texts {
        assert!(!text.to_lowercase().contains(&hex), "{text}");
        assert!(!text.contains(&format!("{:?}", bytes.as_bytes())), "{text}");
    }
    store.close().await;
}

//! The disk fills up, or can't be written any more, under a server that runs: checks go on, changes wait, nothing is lost.
//!
//! Needs root, for a small file system of its own and for files that even root can't write.
#![cfg(test)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64};

use serde_json::Value;
use tollgate::proto::v1::{CheckKeyRequest, GetUsageRequest, ListKeysRequest, RevokeKeyRequest, Verdict};
use tonic::Code;

use support::{
    GLANCE, Home, Keys, PATIENCE, Server, bootstrap, code, create, database, eventually, run, said, stopwatch,
};

/// How the log's lines about it begin.
const FAILS: &str = "the store cannot be written";
const WORKS: &str = "the store can be written again";

fn is_done(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A file system of a few megabytes in memory.
struct Disk(tempfile::TempDir);

impl Drop for Disk {
    fn drop(&mut self) {
        is_done(Command::new("umount").arg("--lazy").arg(self.path()));
    }
}

impl Disk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = is_done(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(folder.path()));
        if !mounted {
            println!("SKIPPED: a file system cannot be mounted here; it takes root");
        }
        mounted.then(|| Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        while file.write_all(&[b'x'; 4_096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

/// An ext4 file system in a file, which turns read-only where it finds an error, as a failing disk makes it.
struct Ext4 {
    folder: tempfile::TempDir,
    image: tempfile::NamedTempFile,
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        is_done(Command::new("umount").arg("--lazy").arg(self.folder.path()));
    }
}

impl Ext4 {
    fn new() -> Option<Self> {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(32 << 20).unwrap();
        let disk = Self { folder: tempfile::tempdir().unwrap(), image };
        let made = is_done(Command::new("mkfs.ext4").arg("-q").arg(disk.image.path())) && disk.mount();
        let usable = made && disk.error_trigger().is_some_and(|trigger| trigger.exists());
        if !usable {
            println!(
                "SKIPPED: an ext4 file system in a file cannot be mounted here; it takes root, mkfs.ext4 and a loop device"
            );
        }
        usable.then_some(disk)
    }

    fn mount(&self) -> bool {
        let options = ["-o", "loop,errors=remount-ro"];
        is_done(Command::new("mount").args(options).arg(self.image.path()).arg(self.folder.path()))
    }

    /// Where its kernel driver can be told that an error was found.
    fn error_trigger(&self) -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let folder = self.folder.path().to_str()?;
        let device = mounts.lines().find(|line| line.split(' ').nth(1) == Some(folder))?.split(' ').next()?;
        Some(Path::new("/sys/fs/ext4").join(Path::new(device).file_name()?).join("trigger_fs_error"))
    }
}

/// Makes files immutable, also for what has them open. Not every file system knows how. What is mapped into memory is
/// left out: a process that writes there is ended by the system.
fn freeze(folder: &Path, frozen: bool) -> bool {
    let flag = if frozen { "+i" } else { "-i" };
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mapped = |file: &PathBuf| ["-shm", ".spent"].iter().any(|end| file.to_string_lossy().ends_with(end));
    let files = files.filter(|file| !mapped(file));
    is_done(Command::new("chattr").arg(flag).args(files))
}

fn can_freeze() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut file = OpenOptions::new().append(true).create(true).open(folder.path().join("probe")).unwrap();
    let frozen = freeze(folder.path(), true) && file.write_all(b"x").is_err();
    freeze(folder.path(), false);
    if !frozen {
        println!(
            "SKIPPED: `chattr +i` does not keep open files from being written here; it takes root, and ext4 or the like"
        );
    }
    frozen
}

/// Lines of the log with a message that begins so.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message))).collect()
}

/// Checks without a pause, all of them admitted, until told to end. Counts them.
async fn check_on(mut keys: Keys, key: String, ending: Arc<AtomicBool>, allowed: Arc<AtomicI64>) {
    while !ending.load(SeqCst) {
        let request = CheckKeyRequest { key: key.clone(), ..CheckKeyRequest::default() };
        let answer = keys.check_key(request).await.unwrap().into_inner();
        assert_eq!(answer.verdict(), Verdict::Allowed);
        allowed.fetch_add(1, SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

async fn more(allowed: &AtomicI64) {
    let (before, elapsed) = (allowed.load(SeqCst), stopwatch());
    while allowed.load(SeqCst) < before + 50 {
        assert!(elapsed() < PATIENCE, "checks wait for the disk");
        tokio::time::sleep(GLANCE).await;
    }
}

/// Takes the disk away from a server on a folder and gives it back.
async fn outage(folder: &Path, begin: impl FnOnce(), end: impl FnOnce(), cause: &str) {
    let home = Home { dir: tempfile::tempdir().unwrap(), token: bootstrap(folder) };
    let arguments = [&*database(folder), "--usage-flush-interval=100ms", "--log-format=json"];
    let mut server = home.serve(&arguments);
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let used = create(&mut keys, &account, "used").await.unwrap();
    let leaked = create(&mut keys, &account, "leaked").await.unwrap().key.unwrap().id;
    let (ending, allowed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let checks =
        tokio::spawn(check_on(server.keys(&home.token).await, used.secret.clone(), ending.clone(), allowed.clone()));
    more(&allowed).await;

    begin();
    // What is in the log already may leave room for a few.
    let (mut made, mut failed) = (Vec::new(), 0);
    while failed < 3 {
        assert!(made.len() < 5_000, "the disk never fills up");
        match create(&mut keys, &account, &format!("number {} {failed}", made.len())).await {
            Ok(created) => {
                assert_eq!(failed, 0, "it came back by itself");
                made.push(created.key.unwrap().id);
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("see the server's log"), "{status:?}");
                failed += 1;
            }
        }
    }
    let revoke = || RevokeKeyRequest { id: leaked.clone(), reason: "leaked".into() };
    assert_eq!(keys.revoke_key(revoke()).await.unwrap_err().code(), Code::Unavailable);
    eventually("usage cannot be written", || {
        let metrics = server.get("/metrics").1;
        let failed = metrics.lines().find_map(|line| line.strip_prefix("tollgate_usage_flush_errors_total "));
        failed.is_some_and(|number| number.parse::<f64>().unwrap() >= 3.0)
    });
    more(&allowed).await;
    assert_eq!(server.get("/readyz").0, 200, "checks are answered");
    // That it lasts is no news. What is small may find room in between.
    eventually("the log says so", || lines(&server.log(), FAILS).len() == lines(&server.log(), WORKS).len() + 1);
    let told = lines(&server.log(), FAILS);
    assert!(told.len() < 10, "{}", server.log());
    for line in told {
        assert!(line["error"].as_str().unwrap().contains(cause), "{line}");
    }

    end();
    let revoked = keys.revoke_key(revoke()).await.unwrap().into_inner();
    assert_eq!(revoked.key.unwrap().id, leaked);
    create(&mut keys, &account, "afterwards").await.unwrap();
    assert_eq!(lines(&server.log(), WORKS).len(), lines(&server.log(), FAILS).len(), "{}", server.log());
    more(&allowed).await;
    ending.store(true, SeqCst);
    checks.await.unwrap();
    server.stop();
    drop(server);

    let server = home.serve(&arguments);
    all_is_there(&server, &home, &account, made.len() + 3, allowed.load(SeqCst)).await;
}

async fn all_is_there(server: &Server, home: &Home, account: &str, keys_made: usize, allowed: i64) {
    let mut keys = server.keys(&home.token).await;
    let usage = GetUsageRequest { account_id: account.to_owned(), ..GetUsageRequest::default() };
    let totals = keys.get_usage(usage).await.unwrap().into_inner().totals.unwrap();
    assert_eq!(totals.allowed, allowed, "usage against the answers that were seen");
    let mut listed = 0;
    let mut page_token = String::new();
    loop {
        let request = ListKeysRequest {
            account_id: account.to_owned(),
            page_size: 1_000,
            page_token,
            ..ListKeysRequest::default()
        };
        let page = keys.list_keys(request).await.unwrap().into_inner();
        listed += page.keys.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, keys_made, "what was refused was not made, what was made is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_changes_and_nothing_else() {
    let Some(disk) = Disk::mount() else { return };
    outage(disk.path(), || disk.fill(), || disk.free(), "free some space").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_written_stop_changes_and_nothing_else() {
    if !can_freeze() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let thaw = Thaw(folder.path());
    outage(folder.path(), || assert!(freeze(thaw.0, true)), || assert!(freeze(thaw.0, false)), "SQLite result").await;
}

/// Files that stay frozen could not be removed.
struct Thaw<'a>(&'a Path);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        freeze(self.0, false);
    }
}

/// No way leads back from this but a new mount: the server answers checks until it is told to end, and says what is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_turns_read_only_stops_changes_and_nothing_else() {
    let Some(disk) = Ext4::new() else { return };
    let folder = disk.folder.path();
    let home = Home { dir: tempfile::tempdir().unwrap(), token: bootstrap(folder) };
    let mut server = home.serve(&[&*database(folder), "--log-format=json"]);
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let secret = create(&mut keys, &account, "used").await.unwrap().secret;
    fs::write(disk.error_trigger().unwrap(), "a test").unwrap();
    let mut made = 1;
    for number in 0..5 {
        let request = CheckKeyRequest { key: secret.clone(), ..CheckKeyRequest::default() };
        assert!(keys.check_key(request).await.unwrap().into_inner().allowed);
        match create(&mut keys, &account, &number.to_string()).await {
            Ok(_) => made += 1,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
    }
    assert!(made < 6, "the disk can be written: {}", server.log());
    assert_eq!(lines(&server.log(), FAILS).len(), 1, "{}", server.log());
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(1));
    assert!(server.log().contains("waits in the journal"), "{}", server.log());

    assert!(is_done(Command::new("umount").arg(folder)) && disk.mount());
    let server = home.serve(&[&database(folder)]);
    let listed = ListKeysRequest { account_id: account, ..ListKeysRequest::default() };
    let listed = server.keys(&home.token).await.list_keys(listed).await.unwrap().into_inner().keys;
    assert_eq!(listed.len(), made, "{listed:?}");
}

#[test]
fn a_file_system_that_is_read_only_is_told_at_the_start() {
    let Some(disk) = Disk::mount() else { return };
    bootstrap(disk.path());
    assert!(is_done(Command::new("mount").args(["-o", "remount,ro"]).arg(disk.path())));
    for command in ["serve", "doctor", "migrate"] {
        let mut command = support::tollgate(&[command, "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0"]);
        let output = run(command.arg(database(disk.path())), "");
        assert_eq!(code(&output), 1, "{}", said(&output));
        assert!(said(&output).contains("cannot be read and written"), "{}", said(&output));
    }
    assert!(is_done(Command::new("mount").args(["-o", "remount,rw"]).arg(disk.path())));
    let home = Home::empty();
    home.serve(&[&database(disk.path())]).stop();
}

/// What can't be written at the end waits in the journal, or is lost where there is none, and must not look as if it were not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_that_is_not_written_at_the_end_is_reported() {
    for (journal, said, used) in [("auto", "waits in the journal", 1), ("off", "is lost", 0)] {
        usage_not_written(&["--limits-journal", journal], said, used).await;
    }
}

async fn usage_not_written(journal: &[&str], told: &str, used: i64) {
    let Some(disk) = Disk::mount() else { return };
    let home = Home { dir: tempfile::tempdir().unwrap(), token: bootstrap(disk.path()) };
    let mut server = home.serve(&[&[&*database(disk.path()), "--usage-flush-interval=10s"], journal].concat());
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let secret = create(&mut keys, &account, "used").await.unwrap().secret;
    disk.fill();
    let mut made = 0;
    while create(&mut keys, &account, &made.to_string()).await.is_ok() {
        made += 1;
    }
    let request = CheckKeyRequest { key: secret, ..CheckKeyRequest::default() };
    assert!(keys.check_key(request).await.unwrap().into_inner().allowed);
    server.signal("TERM");
    let status = server.ended();
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(server.log().contains("usage") && server.log().contains(told), "{}", server.log());
    disk.free();
    let server = home.serve(&[&[&*database(disk.path())], journal].concat());
    all_is_there(&server, &home, &account, made + 1, used).await;
}

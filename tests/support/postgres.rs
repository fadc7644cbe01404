//! PostgreSQL servers for tests: each on a folder and a port of its own, gone with the test, however that ends.
//!
//! A server keeps what it promises (`fsync` is on): tests kill it. Where the tests run as root, which PostgreSQL refuses, it runs
//! as the user `postgres` or `nobody`. Its clients need a password, which [`Database`] has in a file.
//!
//! All servers of one machine are copies of one template, and so have one system identifier, as a database and its backup do.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tollgate::store::postgres::PostgresOptions;

use super::{dice, eventually, run, said, signal, skipped, text, tollgate};

/// The oldest version that Tollgate takes.
const VERSION_MIN: u32 = 15;
const SUPERUSER: &str = "postgres";
const SUPERUSER_PASSWORD: &str = "canary-of-the-superuser";
/// Who owns the databases that tests make; not a superuser.
pub(crate) const OWNER: &str = "tollgate";
pub(crate) const OWNER_PASSWORD: &str = "canary-of-the-owner";
/// Names a folder with `initdb` and `postgres`, where they are in none that is looked into.
const PROGRAMS: &str = "TOLLGATE_TEST_POSTGRES";
/// How the folders of servers are called, before the number of the process that started them.
const HOME: &str = "tollgate-postgres-";
/// Fits a machine that runs several. Segments of a megabyte make a server that is copied in no time.
const SETTINGS: &str = "
shared_buffers = 32MB
max_wal_size = 64MB
min_wal_size = 8MB
wal_keep_size = 256MB
max_connections = 120
listen_addresses = '127.0.0.1'
log_line_prefix = '%m [%p] '
log_min_messages = log
stats_fetch_consistency = none
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
";

/// The folder with PostgreSQL's programs, the newest there is. Says so where there is none.
fn programs() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os(PROGRAMS).map(PathBuf::from).into_iter().collect();
    if folders.is_empty() {
        folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        folders.extend(debian.map(|version| version.path().join("bin")));
    }
    let complete = |folder: &PathBuf| ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file());
    let found = folders.into_iter().filter(complete).filter_map(|folder| Some((version(&folder)?, folder)));
    let newest = found.filter(|(version, _)| *version >= VERSION_MIN).max_by_key(|(version, _)| *version);
    if newest.is_none() {
        skipped(&format!("there is no PostgreSQL {VERSION_MIN} or later in {PROGRAMS}, PATH or /usr/lib/postgresql"));
    }
    newest.map(|(_, folder)| folder)
}

fn version(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    // Such as `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, or `17devel`.
    let digits = |word: &str| word.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    String::from_utf8_lossy(&output.stdout).split(' ').find_map(digits)
}

/// Who runs the servers where the tests run as root.
#[derive(Clone, Debug)]
struct User {
    id: u32,
    group: u32,
}

/// Ids as `id` tells them.
fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

impl User {
    fn find() -> Option<Self> {
        ["postgres", "nobody"].iter().find_map(|name| Some(Self { id: id(&["-u", name])?, group: id(&["-g", name])? }))
    }
}

fn folder_of_this_process() -> TempDir {
    tempfile::Builder::new().prefix(&format!("{HOME}{}-", std::process::id())).tempdir().unwrap()
}

/// Removes what servers left behind whose tests were killed, or kept them until the process ended.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(HOME)?.split('-').next()) else { continue };
        if !Path::new("/proc").join(owner).exists() {
            // Another may do so at the same time.
            _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Starts processes that are to end with the process of the tests, from a thread that lives as long: the system counts the
/// end of the thread that started them.
static NURSE: LazyLock<mpsc::Sender<(Command, mpsc::Sender<Child>)>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<(Command, mpsc::Sender<Child>)>();
    thread::spawn(move || {
        while let Ok((mut command, answer)) = receiver.recv() {
            _ = answer.send(command.spawn().unwrap());
        }
    });
    sender
});

/// A server. Ended when dropped, and by the system if the tests are killed.
#[derive(Debug)]
pub(crate) struct Postgres {
    programs: PathBuf,
    user: Option<User>,
    child: Mutex<Option<Child>>,
    data: PathBuf,
    port: u16,
    databases: AtomicUsize,
    // Its sockets, its log and its passwords; also `data`, where nothing else was asked for.
    home: TempDir,
}

/// A database of a server, and who may use it.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) name: String,
    /// Holds the password of [`OWNER`].
    pub(crate) password_file: PathBuf,
    pub(crate) addr: SocketAddr,
}

impl Database {
    /// Without the password.
    pub(crate) fn url(&self) -> String {
        self.url_through(self.addr)
    }

    /// The same, on the way over a proxy that listens there.
    pub(crate) fn url_through(&self, addr: SocketAddr) -> String {
        format!("postgres://{OWNER}@{addr}/{}", self.name)
    }

    /// Flags with which a command reaches it.
    pub(crate) fn access(&self) -> [String; 2] {
        self.access_through(self.addr)
    }

    /// The same, on the way over a proxy that listens there.
    pub(crate) fn access_through(&self, addr: SocketAddr) -> [String; 2] {
        let password_file = self.password_file.display();
        [format!("--database={}", self.url_through(addr)), format!("--password-file={password_file}")]
    }

    /// Makes the tables and the first operator key, whose secret is returned.
    pub(crate) fn bootstrap(&self) -> String {
        text(&run(tollgate(&["migrate"]).args(self.access()), ""));
        let made = text(&run(tollgate(&["bootstrap", "--output=json"]).args(self.access()), ""));
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        made["secret"].as_str().unwrap().to_owned()
    }

    /// How it is opened by who has patience.
    pub(crate) fn options(&self) -> PostgresOptions {
        PostgresOptions {
            url: self.url().into(),
            password_file: Some(self.password_file.clone()),
            connections_max: 8,
            connect_timeout: Duration::from_secs(30),
            statement_timeout: Duration::from_mins(1),
            log_kept: Duration::from_hours(24),
        }
    }

    /// With the password.
    pub(crate) fn url_with_password(&self) -> String {
        format!("postgres://{OWNER}:{OWNER_PASSWORD}@{}/{}", self.addr, self.name)
    }
}

/// A copy of a server's folder, as `pg_basebackup` made it.
#[derive(Debug)]
pub(crate) struct Backup(TempDir);

impl Drop for Postgres {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("=== the end of PostgreSQL's log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        self.end("QUIT");
    }
}

impl Postgres {
    /// Starts one. Nothing, and a word about it, where the machine has no PostgreSQL.
    pub(crate) fn start() -> Option<Self> {
        Self::start_in(None, "")
    }

    /// Starts one with more settings, as lines of `postgresql.conf`, and where its data are in a folder of the caller's.
    pub(crate) fn start_in(folder: Option<&Path>, settings: &str) -> Option<Self> {
        let server = Self::prepare(folder)?;
        server.fill();
        server.configure(SETTINGS);
        server.configure(settings);
        server.start_again();
        server.sql("postgres", &format!("CREATE ROLE {OWNER} LOGIN PASSWORD '{OWNER_PASSWORD}'"));
        Some(server)
    }

    /// One whose folder has yet to be filled.
    fn prepare(folder: Option<&Path>) -> Option<Self> {
        let programs = programs()?;
        let is_root = id(&["-u"]) == Some(0);
        let user = User::find().filter(|_| is_root);
        if is_root && user.is_none() {
            skipped("there is neither a user `postgres` nor `nobody` to run PostgreSQL, which does not run as root");
            return None;
        }
        sweep();
        let home = folder_of_this_process();
        let data = folder.unwrap_or_else(|| home.path()).join("data");
        let password_file = home.path().join("password");
        // The end of the line is no part of it.
        fs::write(&password_file, format!("{OWNER_PASSWORD}\n")).unwrap();
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).unwrap();
        let server = Self {
            programs,
            user,
            child: Mutex::new(None),
            data,
            port: free_port(),
            databases: AtomicUsize::new(0),
            home,
        };
        server.give(server.home.path());
        server.give(server.data.parent().unwrap());
        Some(server)
    }

    /// Gives a folder to the user who runs the server.
    fn give(&self, folder: &Path) {
        if let Some(user) = &self.user {
            chown(folder, Some(user.id), Some(user.group)).unwrap();
        }
    }

    /// Fills the folder from the template, which is made by the first that needs it.
    fn fill(&self) {
        let owner = self.user.as_ref().map_or_else(|| id(&["-u"]).unwrap(), |user| user.id);
        let version = version(&self.programs).unwrap();
        let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{version}-{owner}"));
        if !template.join("PG_VERSION").is_file() {
            self.initialize();
            // Others may do the same: the first one's stays.
            let copy = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            copy_all(&self.data, &copy.path().join("data"));
            _ = fs::rename(copy.path().join("data"), &template);
            return;
        }
        copy_all(&template, &self.data);
    }

    fn initialize(&self) {
        let passwords = self.home.path().join("superuser");
        fs::write(&passwords, SUPERUSER_PASSWORD).unwrap();
        self.give(&passwords);
        let mut initdb = self.program("initdb");
        initdb.arg("--pgdata").arg(&self.data).arg("--username").arg(SUPERUSER).arg("--pwfile").arg(passwords);
        initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--wal-segsize=1", "--no-sync"]);
        done(&mut initdb);
    }

    /// Adds lines to its configuration. They hold from its next start, or [`Self::reload`].
    pub(crate) fn configure(&self, settings: &str) {
        let mut file = OpenOptions::new().append(true).open(self.data.join("postgresql.conf")).unwrap();
        writeln!(file, "{settings}").unwrap();
    }

    /// A program of PostgreSQL's, as the user who may run it, and as the superuser of its servers.
    fn program(&self, name: &str) -> Command {
        self.as_user(&self.programs.join(name), &[])
    }

    fn as_user(&self, program: &Path, options: &[&str]) -> Command {
        let mut command = if self.user.is_some() || !options.is_empty() {
            let mut command = Command::new("setpriv");
            if let Some(user) = &self.user {
                command.args([format!("--reuid={}", user.id), format!("--regid={}", user.group)]);
                command.arg("--clear-groups");
            }
            command.args(options).arg("--").arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.home.path()).env("LC_ALL", "C").env("PGPASSWORD", SUPERUSER_PASSWORD);
        command
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The folder with its socket.
    pub(crate) fn socket(&self) -> &Path {
        self.home.path()
    }

    /// Starts it, after an end of whatever kind, and waits until it can be used.
    pub(crate) fn start_again(&self) {
        eventually("PostgreSQL is up", || {
            self.launch();
            self.wait()
        });
    }

    fn launch(&self) {
        let log = OpenOptions::new().append(true).create(true).open(self.log_file()).unwrap();
        let has_setpriv = Command::new("setpriv").arg("--version").output().is_ok();
        let options: &[&str] = if has_setpriv { &["--pdeathsig", "QUIT"] } else { &[] };
        let mut postgres = self.as_user(&self.programs.join("postgres"), options);
        postgres.arg("-D").arg(&self.data).arg("-k").arg(self.home.path()).arg("-p").arg(self.port.to_string());
        postgres.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let (sender, receiver) = mpsc::channel();
        NURSE.send((postgres, sender)).unwrap();
        *self.child.lock().unwrap() = Some(receiver.recv().unwrap());
    }

    /// Waits until it can be used. False where it has ended instead: processes of one that was killed may still hold its
    /// memory.
    fn wait(&self) -> bool {
        let mut is_up = false;
        eventually("PostgreSQL is up or has ended", || {
            let mut ready = self.client("pg_isready", "postgres");
            is_up = ready.output().unwrap().status.success();
            is_up || self.child.lock().unwrap().as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
        });
        is_up
    }

    /// Ends it in order, as fast as it can be: clients are cut off.
    pub(crate) fn stop(&self) {
        self.end("INT");
    }

    pub(crate) fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// Ends all of its processes at once.
    pub(crate) fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let tasks = format!("/proc/{0}/task/{0}/children", child.id());
            let others = fs::read_to_string(tasks).unwrap_or_default();
            _ = child.kill();
            for other in others.split_whitespace() {
                _ = Command::new("kill").args(["-KILL", other]).output();
            }
            _ = child.wait();
        }
    }

    fn end(&self, name: &str) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            if child.try_wait().unwrap().is_none() {
                signal(child.id(), name);
            }
            _ = child.wait();
        }
    }

    /// Reads its configuration anew.
    pub(crate) fn reload(&self) {
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("postgres.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn client(&self, name: &str, database: &str) -> Command {
        let mut client = self.program(name);
        client.arg("--host").arg(self.home.path()).args(["--port", &self.port.to_string(), "--username", SUPERUSER]);
        if name != "pg_basebackup" {
            client.args(["--dbname", database]);
        }
        client
    }

    /// Runs statements as the superuser, in one transaction. Returns the rows of the last, with `|` between values.
    pub(crate) fn sql(&self, database: &str, statements: &str) -> String {
        let output = self.try_sql(database, statements);
        assert!(output.status.success(), "{statements}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The same, where they may fail.
    pub(crate) fn try_sql(&self, database: &str, statements: &str) -> Output {
        let mut psql = self.client("psql", database);
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        psql.args(["--command", statements]).output().unwrap()
    }

    /// A new database without anything in it.
    pub(crate) fn new_database(&self) -> Database {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {OWNER}"));
        Database { name, password_file: self.home.path().join("password"), addr: self.addr() }
    }

    /// A new database with all that another has, which nobody uses meanwhile.
    pub(crate) fn copy_of(&self, template: &Database) -> Database {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {}", template.name));
        Database { name, ..template.clone() }
    }

    /// Copies all of it as it is now.
    pub(crate) fn back_up(&self) -> Backup {
        let folder = folder_of_this_process();
        self.give(folder.path());
        self.base_backup(&folder.path().join("data"), &[]);
        Backup(folder)
    }

    fn base_backup(&self, to: &Path, options: &[&str]) {
        let mut copy = self.client("pg_basebackup", "");
        copy.arg("--pgdata").arg(to).args(["--checkpoint=fast", "--no-sync", "--wal-method=stream"]).args(options);
        done(&mut copy);
    }

    /// Puts a backup in the place of what this server has, and starts it. It is the same database to all who look at its
    /// identifier and its timeline, only earlier.
    pub(crate) fn restore(&self, backup: &Backup) {
        self.stop();
        fs::remove_dir_all(&self.data).unwrap();
        copy_all(&backup.0.path().join("data"), &self.data);
        self.start_again();
    }

    /// A standby that follows this server.
    pub(crate) fn standby(&self) -> Self {
        let standby = Self::prepare(None).unwrap();
        self.base_backup(&standby.data, &["--write-recovery-conf"]);
        standby.start_again();
        standby.databases.store(self.databases.load(Ordering::Relaxed), Ordering::Relaxed);
        standby
    }

    /// Waits until a standby has all that this server has.
    pub(crate) fn is_followed_by(&self, standby: &Self) {
        let end = self.sql("postgres", "SELECT pg_current_wal_lsn()");
        eventually("the standby has everything", || {
            standby.sql("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) == "t"
        });
    }

    /// From now on this standby gets nothing.
    pub(crate) fn hold_back(&self) {
        self.sql("postgres", "ALTER SYSTEM SET primary_conninfo = ''");
        self.reload();
        eventually("the standby is held back", || {
            self.sql("postgres", "SELECT count(*) FROM pg_stat_wal_receiver") == "0"
        });
    }

    /// Makes this standby a server of its own, with what it has.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql("postgres", "SELECT pg_promote(true, 60)"), "t");
    }
}

/// Runs a command to its end, which must be a good one.
fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}

/// Copies a folder with the owners and the rights of its files.
fn copy_all(from: &Path, to: &Path) {
    done(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// A port below those that the system gives to clients, so that it is still free after a restart.
pub(crate) fn free_port() -> u16 {
    let mut port = 0;
    eventually("a free port", || {
        port = u16::try_from(20_000 + dice(12_000)).unwrap();
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
    port
}

/// A file system of a few megabytes in memory, or nothing where that takes rights that the tests don't have.
#[derive(Debug)]
pub(crate) struct SmallDisk(TempDir);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

impl SmallDisk {
    pub(crate) fn mount(megabytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            skipped("a file system cannot be mounted here; it takes root");
            return None;
        }
        Some(Self(folder))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        while file.write_all(&[b'x'; 4_096]).is_ok() {}
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

//! Servers of the real binary on sockets and files of their own, clients of them, and the tools that a machine may lack.
#![allow(dead_code, clippy::allow_attributes, reason = "each file of tests uses a part of this")]

pub(crate) mod postgres;

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tollgate::ambient::{Clock, random};
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::plan_service_client::PlanServiceClient;
use tollgate::proto::v1::{
    Account, AdjustCreditsRequest, Algorithm, CreateAccountRequest, CreateKeyRequest, CreateKeyResponse,
    CreatePlanRequest, Key, Limit, Period, Plan, UpdateAccountRequest,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
/// How long a test waits for what must come. No test passes or fails by how fast something is.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at whether it has come.
pub(crate) const GLANCE: Duration = Duration::from_millis(5);

/// A program without the variables of whoever runs the tests.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOLLGATE_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// The binary with these arguments.
pub(crate) fn tollgate(arguments: &[&str]) -> Command {
    let mut command = command(BINARY);
    command.args(arguments);
    command
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads no input may be gone already.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// What a command wrote, on both of its outputs.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Standard output of a command that did what it was told.
pub(crate) fn text(output: &Output) -> String {
    assert_eq!(code(output), 0, "{}", said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Notes that a test can't run for want of something; where all tools must be there, fails.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("TOLLGATE_REQUIRE_TOOLS").is_none_or(|value| value != "1"), "missing: {why}");
    println!("SKIPPED: {why}");
}

/// A tool by its variable or by its name in PATH; says so where it is missing.
pub(crate) fn tool(variable: &str, name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    });
    if found.is_none() {
        skipped(&format!("there is neither {variable} nor `{name}` in PATH"));
    }
    found
}

/// The time since this clock was made.
pub(crate) fn stopwatch() -> impl Fn() -> Duration {
    let clock = Clock::system();
    move || clock.monotonic()
}

/// A number below `bound`.
pub(crate) fn dice(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    random::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % bound
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(u32::from(digit), 16).unwrap()).collect()
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let elapsed = stopwatch();
    while !holds() {
        assert!(elapsed() < PATIENCE, "never came: {what}");
        std::thread::sleep(GLANCE);
    }
}

/// A directory with a database, the log of its servers, and the first operator key.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    /// The operator's secret.
    pub(crate) token: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        let mut home = Self::empty();
        home.token = bootstrap(home.dir.path());
        home
    }

    /// Without a database yet.
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), token: String::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn serve(&self, arguments: &[&str]) -> Server {
        Server::start(self.path(), arguments)
    }

    /// Says what `doctor` found wrong.
    pub(crate) fn damage(&self) -> Vec<String> {
        let mut doctor = tollgate(&["doctor", "--output=json", "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0"]);
        let output = run(doctor.arg(database(self.path())), "");
        let findings: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let findings = findings.as_array().unwrap();
        assert!(findings.iter().any(|finding| finding["what"].as_str().unwrap().contains("revision")), "{findings:?}");
        findings.iter().filter(|finding| finding["ok"] != true).map(ToString::to_string).collect()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

/// The database of a directory, as a flag.
pub(crate) fn database(dir: &Path) -> String {
    format!("--database=sqlite:{}", dir.join("t.sqlite").display())
}

/// Makes the database of a directory and its first operator key.
pub(crate) fn bootstrap(dir: &Path) -> String {
    let made = text(&run(tollgate(&["bootstrap", "--output=json"]).arg(database(dir)), ""));
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert!(made["key_id"].as_str().unwrap().starts_with("key_"), "{made}");
    made["secret"].as_str().unwrap().to_owned()
}

/// `serve`, its log in the file `log` of a directory; where the arguments say nothing else, with ports of its choice and
/// on the database of the directory.
pub(crate) fn serve_command(dir: &Path, arguments: &[&str]) -> Command {
    let log = OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
    let mut command = tollgate(&["serve"]);
    let defaults = ["--grpc-addr=127.0.0.1:0".to_owned(), "--http-addr=127.0.0.1:0".to_owned(), database(dir)];
    let given = |flag: &str| arguments.iter().any(|argument| argument.split('=').next() == flag.split('=').next());
    command.args(defaults.iter().filter(|flag| !given(flag))).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command
}

/// A server that runs, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    /// What it wrote on its standard output.
    pub(crate) printed: Arc<Mutex<String>>,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts one and waits until it is ready.
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Self {
        Self::started(&mut serve_command(dir, arguments), &dir.join("log"))
    }

    /// Starts a prepared command and waits until it is ready.
    pub(crate) fn started(command: &mut Command, log: &Path) -> Self {
        let mut child = command.spawn().unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        let page = Arc::clone(&printed);
        // Whoever reads no further must not stop the server: the thread goes on reading.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut page = page.lock().unwrap();
                page.push_str(&line);
                page.push('\n');
                drop(page);
                if let Some(addresses) = line.strip_prefix("tollgate ready ") {
                    _ = sender.send(addresses.to_owned());
                }
            }
        });
        let Ok(addresses) = receiver.recv_timeout(PATIENCE) else {
            _ = child.kill();
            let log = std::fs::read_to_string(log).unwrap_or_default();
            panic!("the server is not ready; it printed:\n{}\nand logged:\n{log}", printed.lock().unwrap());
        };
        let address = |name: &str| {
            let word = addresses.split(' ').find_map(|word| word.strip_prefix(name)).unwrap();
            word.parse().unwrap()
        };
        Self { grpc: address("grpc="), http: address("http="), child, printed, log: log.to_owned() }
    }

    /// As the system does when memory runs out: at once, with no chance to tidy up.
    pub(crate) fn kill(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }

    /// Stops all of its threads where they are, until it gets `CONT`.
    pub(crate) fn hang(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        // The signal stops one thread at once, and the others when that one runs.
        eventually("all threads stand still", || {
            let Ok(tasks) = std::fs::read_dir(&tasks) else { return true };
            tasks.flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
            })
        });
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the server's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Stops it in order.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        channel(self.grpc).await
    }

    pub(crate) async fn keys(&self, token: &str) -> Keys {
        KeyServiceClient::with_interceptor(self.channel().await, Bearer::new(token))
    }

    /// A new account on a plan without limits.
    pub(crate) async fn account(&self, token: &str) -> String {
        let channel = self.channel().await;
        let mut plans = PlanServiceClient::with_interceptor(channel.clone(), Bearer::new(token));
        let plan = Plan { id: "open".into(), api_access: true, ..Plan::default() };
        let made = plans.create_plan(CreatePlanRequest { plan: Some(plan) }).await;
        // Made with the first account.
        assert!(made.as_ref().err().is_none_or(|status| status.code() == Code::AlreadyExists), "{made:?}");
        let mut accounts = AccountServiceClient::with_interceptor(channel, Bearer::new(token));
        let account = Account { name: "Test".into(), plan: "open".into(), ..Account::default() };
        let made = accounts.create_account(CreateAccountRequest { account: Some(account) }).await.unwrap();
        made.into_inner().id
    }

    /// A command that calls this server.
    pub(crate) fn client_command(&self, token: &str, arguments: &[&str]) -> Command {
        let mut command = tollgate(arguments);
        command.env("TOLLGATE_TOKEN", token).env("TOLLGATE_ENDPOINT", self.endpoint());
        command
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        http_get(self.http, path).unwrap()
    }
}

/// Sends a signal to a process, by its name, such as `TERM`.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(sent.success());
}

/// A connection to an address.
pub(crate) async fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

pub(crate) type Keys = KeyServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the caller's key to each call.
#[derive(Clone, Debug)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    pub(crate) fn new(token: &str) -> Self {
        Self(format!("Bearer {token}").parse().unwrap())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Makes a key.
pub(crate) async fn create(keys: &mut Keys, account: &str, name: &str) -> Result<CreateKeyResponse, Status> {
    let key = Key { account_id: account.to_owned(), name: name.to_owned(), ..Key::default() };
    Ok(keys.create_key(CreateKeyRequest { key: Some(key) }).await?.into_inner())
}

/// The status and the body of an answer.
pub(crate) fn http_get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| std::io::Error::other(format!("no answer: `{answer}`")))
}

/// All that comes back from `/v1/check`, with a query and headers.
pub(crate) fn http_send(addr: SocketAddr, query: &str, headers: &[(&str, &str)]) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /v1/check{query} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n").unwrap();
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n").unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// All bytes of a directory's files, by their names.
pub(crate) fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let mut bytes = Vec::new();
        if entry.file_type().unwrap().is_file() && File::open(entry.path()).unwrap().read_to_end(&mut bytes).is_ok() {
            found.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
    }
    found
}

/// An account with a pooled limit and topped-up credits, and a key of its own two limits, each of so many
/// units. Returns the account's id and the key's secret.
pub(crate) async fn budgeted_key(server: &Server, token: &str, capacity: i64) -> (String, String) {
    // No window of a year ends while a test runs.
    let limit = |name: &str, algorithm: Algorithm| Limit {
        name: name.into(),
        capacity,
        period: Period::Seconds.into(),
        period_seconds: 31_536_000,
        algorithm: algorithm.into(),
    };
    let account_id = server.account(token).await;
    let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, Bearer::new(token));
    let account = Account {
        id: account_id.clone(),
        account_limits: vec![limit("pool", Algorithm::FixedWindow)],
        monthly_credits: Some(0),
        ..Account::default()
    };
    let paths = ["account_limits", "monthly_credits"].map(str::to_owned).to_vec();
    let update_mask = Some(prost_types::FieldMask { paths });
    accounts.update_account(UpdateAccountRequest { account: Some(account), update_mask }).await.unwrap();
    let top_up = AdjustCreditsRequest {
        account_id: account_id.clone(),
        amount: capacity,
        reason: "a test".into(),
        ..Default::default()
    };
    accounts.adjust_credits(top_up).await.unwrap();
    let limits = vec![limit("fixed", Algorithm::FixedWindow), limit("sliding", Algorithm::SlidingWindow)];
    let key = Key { account_id: account_id.clone(), name: "k".into(), limits, ..Key::default() };
    let made = server.keys(token).await.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
    (account_id, made.secret)
}

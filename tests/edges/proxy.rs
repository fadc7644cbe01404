//! The edges as processes: a file of `deploy/`, what the test replaces in it, and the program that runs it.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::rig::Rig;
use crate::support::{command, dice, eventually, tool};

/// A file of `deploy/` on its way to what a test needs.
#[derive(Clone, Debug)]
pub(crate) struct Config(String);

impl Config {
    /// As it is shipped.
    pub(crate) fn shipped(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
        Self(std::fs::read_to_string(path).unwrap())
    }

    /// Replaces a text, which must be there so many times: who changes the file finds out here.
    #[track_caller]
    pub(crate) fn replace(mut self, from: &str, to: &str, times: usize) -> Self {
        assert_eq!(self.0.matches(from).count(), times, "`{from}` in\n{}", self.0);
        self.0 = self.0.replace(from, to);
        self
    }

    /// Takes out what is commented, from a line that begins with `#` and this text, as deep as it stands.
    #[track_caller]
    pub(crate) fn uncomment(mut self, begin: &str) -> Self {
        let start = self.0.find(&format!("#{begin}")).unwrap_or_else(|| panic!("no comment begins with `{begin}`"));
        let (before, after) = self.0.split_at(start);
        let (block, rest) = after.split_once("\n\n").unwrap();
        let block: Vec<String> = block.lines().map(|line| line.replacen('#', "", 1)).collect();
        self.0 = format!("{before}{}\n\n{rest}", block.join("\n"));
        self
    }
}

/// A program that runs, killed when dropped; a test that fails shows what it said.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) addr: SocketAddr,
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Edge {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            println!("=== the edge's output\n{}{}", self.output(), self.errors());
        }
    }
}

impl Edge {
    fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("errors")).unwrap_or_default()
    }

    /// The lines of the access log of Envoy or nginx.
    pub(crate) fn access_log(&self) -> Vec<serde_json::Value> {
        let nginx = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        let lines = format!("{nginx}{}", self.output());
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the line of a request in the access log.
    pub(crate) fn logged(&self, path: &str) -> serde_json::Value {
        let mut found = None;
        eventually(&format!("`{path}` in the access log"), || {
            found = self.access_log().into_iter().find(|line| line["path"] == path);
            found.is_some()
        });
        found.unwrap()
    }

    fn start(mut command: Command, folder: tempfile::TempDir, ready: impl Fn(&Path) -> Option<SocketAddr>) -> Self {
        let file = |name: &str| File::create(folder.path().join(name)).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file("output")).stderr(file("errors")).spawn().unwrap();
        let mut edge = Self { addr: ([127, 0, 0, 1], 0).into(), child, folder };
        eventually("the edge is ready", || {
            assert_eq!(edge.child.try_wait().unwrap(), None, "it ended");
            let Some(addr) = ready(edge.folder.path()) else { return false };
            edge.addr = addr;
            true
        });
        edge
    }
}

/// A port that is free, and below those that the system gives to whoever asks for any.
fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| u16::try_from(10_000 + dice(20_000)).unwrap());
    ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

fn listens(port: u16) -> Option<SocketAddr> {
    let addr = ([127, 0, 0, 1], port).into();
    TcpStream::connect(addr).is_ok().then_some(addr)
}

/// How long the edges wait is not what is tested, but where a test says so; a machine that is busy takes its time.
const LONG: &str = "30s";

/// Envoy with a file of `deploy/`, before this rig.
#[derive(Debug)]
pub(crate) struct Envoy {
    config: Config,
    token: String,
}

impl Envoy {
    /// The shipped configuration.
    pub(crate) fn shipped(rig: &Rig) -> Self {
        Self::file(rig, "envoy.yaml", 2).replace("max_interval: 0.25s", &format!("max_interval: {LONG}"), 1)
    }

    /// The one for several replicas, which are there.
    pub(crate) fn replicas(rig: &Rig, addresses: &[SocketAddr]) -> Self {
        let endpoint = |host: &str, port: u16| {
            format!("{{ endpoint: {{ address: {{ socket_address: {{ address: {host}, port_value: {port} }} }} }} }}")
        };
        let endpoints: Vec<String> = addresses.iter().map(|addr| endpoint("127.0.0.1", addr.port())).collect();
        Self::file(rig, "envoy-replicas.yaml", 2)
            .replace("max_interval: 0.25s", &format!("max_interval: {LONG}"), 1)
            .replace("          timeout: 1s\n", &format!("          timeout: {LONG}\n"), 1)
            .replace(&endpoint("tollgate", rig.grpc().port()), &endpoints.join(", "), 1)
    }

    /// The one with the rate limit filter.
    pub(crate) fn ratelimit(rig: &Rig) -> Self {
        Self::file(rig, "envoy-ratelimit.yaml", 1)
    }

    fn file(rig: &Rig, name: &str, upstreams: usize) -> Self {
        let timeouts = if name == "envoy-ratelimit.yaml" { 2 } else { 1 };
        let config = Config::shipped(name)
            .replace("address: 127.0.0.1, port_value: 9901 ", "address: 127.0.0.1, port_value: 0 ", 1)
            .replace("address: 0.0.0.0, port_value: 10000 ", "address: 127.0.0.1, port_value: 0 ", 1)
            .replace("port_value: 50051 ", &format!("port_value: {} ", rig.grpc().port()), 1)
            .replace("port_value: 9000 ", &format!("port_value: {} ", rig.upstream.addr.port()), upstreams)
            .replace(" timeout: 0.25s", &format!(" timeout: {LONG}"), timeouts)
            .replace("connect_timeout: 0.25s", &format!("connect_timeout: {LONG}"), 1);
        Self { config, token: rig.caller.clone() }
    }

    #[track_caller]
    pub(crate) fn replace(self, from: &str, to: &str, times: usize) -> Self {
        Self { config: self.config.replace(from, to, times), ..self }
    }

    pub(crate) fn uncomment(self, begin: &str) -> Self {
        Self { config: self.config.uncomment(begin), ..self }
    }

    /// Shows another key than that of the rig.
    pub(crate) fn token(self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self }
    }

    /// As the shipped deadline is.
    pub(crate) fn impatient(self) -> Self {
        self.replace(&format!(" timeout: {LONG}"), " timeout: 0.25s", 1).replace(
            &format!("max_interval: {LONG}"),
            "max_interval: 0.25s",
            1,
        )
    }

    /// One more route, before the others: a prefix with the `context_extensions` of its policy, as in `cost: "2"`.
    #[track_caller]
    pub(crate) fn route(self, prefix: &str, policy: &str) -> Self {
        let route = format!(
            "                      routes:
                        - match: {{ path_separated_prefix: {prefix} }}
                          route: {{ cluster: upstream }}
                          typed_per_filter_config:
                            envoy.filters.http.ext_authz:
                              \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                              check_settings: {{ context_extensions: {{ {policy} }} }}
"
        );
        self.replace("                      routes:\n", &route, 1)
    }

    /// Header values as text, without those bytes that are none; paths as they come.
    pub(crate) fn text_headers(self) -> Self {
        self.replace("encode_raw_headers: true", "encode_raw_headers: false", 1)
    }

    /// Without what makes one path of many spellings.
    pub(crate) fn raw_paths(self) -> Self {
        self.replace("normalize_path: true", "normalize_path: false", 1)
            .replace("merge_slashes: true", "merge_slashes: false", 1)
            .replace("[^?]*(;|%25|%5[Cc]|%00)[^?]*", "/no-such-path", 1)
            .replace(
                "path_with_escaped_slashes_action: REJECT_REQUEST",
                "path_with_escaped_slashes_action: KEEP_UNCHANGED",
                1,
            )
    }

    /// Lets clients' headers reach the check and the upstream as they are.
    pub(crate) fn without_stripping(self) -> Self {
        let strip = "                          - remove_on_match: { key_matcher: { safe_regex: { regex: \"x[-_.]auth[-_.].*\" } } }\n";
        self.replace(strip, "", 1).replace(
            "headers_with_underscores_action: REJECT_REQUEST",
            "headers_with_underscores_action: ALLOW",
            1,
        )
    }

    /// Starts it, where it is installed.
    pub(crate) fn start(self) -> Option<Edge> {
        let envoy = tool("TOLLGATE_TEST_ENVOY", "envoy")?;
        let folder = tempfile::tempdir().unwrap();
        let (file, admin) = (folder.path().join("envoy.yaml"), folder.path().join("admin"));
        std::fs::write(&file, &self.config.0).unwrap();
        let mut run = command(envoy);
        run.arg("-c").arg(file).arg("--admin-address-path").arg(&admin);
        run.args(["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "50"]);
        run.args(["--log-level", "warning"]).env("TOLLGATE_TOKEN", self.token);
        Some(Edge::start(run, folder, |_| {
            let admin: SocketAddr = std::fs::read_to_string(&admin).ok()?.parse().ok()?;
            let (200, _) = crate::support::http_get(admin, "/ready").ok()? else { return None };
            let (_, listeners) = crate::support::http_get(admin, "/listeners").ok()?;
            listeners.lines().find_map(|line| line.strip_prefix("edge::")?.trim().parse().ok())
        }))
    }
}

/// nginx with the shipped configuration, where it is installed.
pub(crate) fn nginx(rig: &Rig, change: impl FnOnce(Config) -> Config) -> Option<Edge> {
    let nginx = tool("TOLLGATE_TEST_NGINX", "nginx")?;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = free_port();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {};\n", path(kind)))
        .concat();
    let config = Config::shipped("nginx.conf")
        .replace("\nhttp {\n", &format!("\nhttp {{\n{temporary}"), 1)
        .replace("server 127.0.0.1:8080;", &format!("server {};", rig.server.http), 1)
        .replace("server 127.0.0.1:9000;", &format!("server {};", rig.upstream.addr), 1)
        .replace("listen 10000;", &format!("listen 127.0.0.1:{port};"), 1)
        .replace("/var/log/nginx/", &path(""), 2)
        .replace("include /etc/nginx/tollgate-token.conf;", &format!("include {};", path("token.conf")), 1)
        .replace("connect_timeout 250ms", &format!("connect_timeout {LONG}"), 1)
        .replace("read_timeout 250ms", &format!("read_timeout {LONG}"), 1);
    std::fs::write(path("token.conf"), format!("proxy_set_header X-Tollgate-Token \"{}\";\n", rig.caller)).unwrap();
    std::fs::write(path("nginx.conf"), change(config).0).unwrap();
    let mut run = command(nginx);
    run.arg("-p").arg(folder.path()).arg("-c").arg(path("nginx.conf")).arg("-e").arg(path("error.log"));
    // One process, which is ended by ending it.
    run.arg("-g").arg(format!("daemon off; master_process off; pid {};", path("pid")));
    Some(Edge::start(run, folder, |_| listens(port)))
}

/// Caddy with the shipped configuration, where it is installed.
pub(crate) fn caddy(rig: &Rig, change: impl FnOnce(Config) -> Config) -> Option<Edge> {
    let caddy = tool("TOLLGATE_TEST_CADDY", "caddy")?;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = Config::shipped("Caddyfile")
        .replace("admin localhost:2019", "admin off", 1)
        .replace("reverse_proxy 127.0.0.1:8080 ", &format!("reverse_proxy {} ", rig.server.http), 3)
        .replace("reverse_proxy 127.0.0.1:9000\n", &format!("reverse_proxy {}\n", rig.upstream.addr), 1)
        .replace("\nhttp://:10000 {", &format!("\nhttp://:{port} {{"), 1)
        .replace("_timeout 250ms", &format!("_timeout {LONG}"), 2);
    let file: PathBuf = folder.path().join("Caddyfile");
    std::fs::write(&file, change(config).0).unwrap();
    let mut run = command(caddy);
    run.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    // It keeps its state under the home folder.
    run.env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
    run.env("TOLLGATE_TOKEN", &rig.caller);
    Some(Edge::start(run, folder, |_| listens(port)))
}

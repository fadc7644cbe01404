//! What `tollgate serve --dev` prints for people: the demo's keys, once, and commands that work as printed.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use secrecy::ExposeSecret as _;

use crate::app::DevInfo;

/// The text to print, for the terminal alone: on the first start it holds secrets.
#[must_use]
pub fn render(info: &DevInfo) -> String {
    let program = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    let program = match (&program, &here) {
        (Some(program), Some(here)) => quoted(program.strip_prefix(here).unwrap_or(program)),
        (Some(program), None) => quoted(program),
        (None, _) => "tollgate".into(),
    };
    // Without a slash a shell would look for it in PATH.
    let program = if program.contains('/') || program == "tollgate" { program } else { format!("./{program}") };
    render_for(info, &program)
}

fn render_for(info: &DevInfo, program: &str) -> String {
    let mut text = format!(
        "\nTollgate for development: gRPC on {}, HTTP on {}, database {}\n\n",
        info.grpc_addr, info.http_addr, info.database
    );
    let (operator, live) = if let Some(secrets) = &info.secrets {
        let (operator, live) = (secrets.operator.expose_secret(), secrets.live.expose_secret());
        _ = write!(
            text,
            "Made a demo account, {}. Its keys are shown this once:\n\n  \
             operator key  {operator}\n  live key      {live}\n  test key      {}\n\n",
            info.account_id,
            secrets.test.expose_secret(),
        );
        (operator, live)
    } else {
        text.push_str(&kept(info, program));
        ("$TOLLGATE_TOKEN", "$LIVE_KEY")
    };
    text.push_str(&commands(info, program, operator, live));
    text
}

fn kept(info: &DevInfo, program: &str) -> String {
    let mut text = format!(
        "The database was here before, and what it holds is kept. The demo's keys were shown at its first start and can't\n\
         be shown again. With them, the commands below work once you have set:\n\n  \
         export TOLLGATE_TOKEN=…   # the operator key\n  \
         export LIVE_KEY=…         # the live key\n\n\
         Without an operator key, stop the server, make another, and start again:\n\n  \
         {program} bootstrap --again --database \"{}\"\n\n",
        info.database
    );
    if !info.live_key_id.is_empty() {
        _ = write!(
            text,
            "Without the live key, give it a new secret:\n\n  {program} keys rotate {}{}\n\n",
            info.live_key_id,
            endpoint(info)
        );
    }
    text
}

/// The flag by which commands find the server, where it is not where they look by themselves.
fn endpoint(info: &DevInfo) -> String {
    let addr = reachable(info.grpc_addr);
    if addr == SocketAddr::from(([127, 0, 0, 1], 50_051)) {
        String::new()
    } else {
        format!(" --endpoint http://{addr}")
    }
}

/// One line a command, each complete, so that any of them can be pasted alone.
fn commands(info: &DevInfo, program: &str, operator: &str, live: &str) -> String {
    let addr = reachable(info.grpc_addr);
    let account = &info.account_id;
    let endpoint = endpoint(info);
    // JSON stands in double quotes, so that the shell puts in what the text calls by a variable's name.
    let grpcurl = |method: &str, json: &str| {
        format!(
            "grpcurl -plaintext -H \"authorization: Bearer {operator}\" -d \"{}\" {addr} tollgate.v1.KeyService/{method}",
            json.replace('"', "\\\"")
        )
    };
    let tollgate = |arguments: &str| format!("TOLLGATE_TOKEN=\"{operator}\" {program} {arguments}{endpoint}");
    let check = grpcurl("CheckKey", &format!(r#"{{"key": "{live}"}}"#));
    let create = grpcurl(
        "CreateKey",
        &format!(r#"{{"key": {{"account_id": "{account}", "name": "from grpcurl", "scopes": ["tasks:read"]}}}}"#),
    );
    let usage = grpcurl("GetUsage", &format!(r#"{{"account_id": "{account}"}}"#));
    let check_too = format!("echo \"{live}\" | {}", tollgate("check"));
    let create_too =
        tollgate(&format!("keys create --account {account} --name \"from the command line\" --scope tasks:read"));
    let usage_too = tollgate(&format!("usage --account {account}"));
    let http = reachable(info.http_addr);
    let edge = format!(
        "curl -i http://{http}/v1/check -H \"X-Tollgate-Token: {operator}\" -H \"Authorization: Bearer {live}\""
    );
    format!(
        "Check the live key:\n\n  {check}\n  {check_too}\n\n\
         What nginx or another proxy would be told (Envoy: docs/envoy.md):\n\n  {edge}\n\n\
         Make a key:\n\n  {create}\n  {create_too}\n\n\
         See what was used, about a second later:\n\n  {usage}\n  {usage_too}\n\n"
    )
}

/// An address that a client on this machine can call.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::DevSecrets;

    fn info(secrets: Option<DevSecrets>) -> DevInfo {
        DevInfo {
            grpc_addr: SocketAddr::from(([0, 0, 0, 0], 50_051)),
            http_addr: SocketAddr::from(([127, 0, 0, 1], 8_080)),
            database: "sqlite:t.sqlite".into(),
            account_id: "acct_demo".into(),
            live_key_id: "key_1".into(),
            secrets,
        }
    }

    #[test]
    fn the_first_start_prints_commands_with_their_keys() {
        let secrets =
            DevSecrets { operator: "sk_live_OP".into(), live: "sk_live_LIVE".into(), test: "sk_test_TEST".into() };
        let text = render_for(&info(Some(secrets)), "target/release/tollgate");
        for line in [
            r#"  grpcurl -plaintext -H "authorization: Bearer sk_live_OP" -d "{\"key\": \"sk_live_LIVE\"}" 127.0.0.1:50051 tollgate.v1.KeyService/CheckKey"#,
            r#"  echo "sk_live_LIVE" | TOLLGATE_TOKEN="sk_live_OP" target/release/tollgate check"#,
            r#"  TOLLGATE_TOKEN="sk_live_OP" target/release/tollgate usage --account acct_demo"#,
        ] {
            assert!(text.lines().any(|printed| printed == line), "{line}\n{text}");
        }
        assert!(text.contains("sk_test_TEST"));
    }

    #[test]
    fn a_later_start_says_that_it_does_not_know_the_keys() {
        let mut later = info(None);
        later.grpc_addr.set_port(1_234);
        let text = render_for(&later, "tollgate");
        assert!(
            text.contains("can't\nbe shown again")
                && text.contains("tollgate bootstrap --again --database \"sqlite:t.sqlite\""),
            "{text}"
        );
        assert!(text.contains(
            r#"TOLLGATE_TOKEN="$TOLLGATE_TOKEN" tollgate usage --account acct_demo --endpoint http://127.0.0.1:1234"#
        ));
    }

    #[test]
    fn paths_are_one_word() {
        assert_eq!(quoted(Path::new("target/release/tollgate")), "target/release/tollgate");
        assert_eq!(quoted(Path::new("/my dir/it's/tollgate")), r"'/my dir/it'\''s/tollgate'");
    }
}

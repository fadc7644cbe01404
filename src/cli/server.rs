//! The commands of the server's side: each reads the settings and hands them to [`app`].

use secrecy::ExposeSecret as _;
use serde::Serialize;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::ClientArgs;
use super::config_args::ConfigArgs;
use super::dev::render;
use super::failure::{Exit, Failure, Outcome};
use super::out::{self, Output, Record};
use crate::app;

pub(super) fn serve(args: &ConfigArgs, dev: bool) -> Outcome {
    // Whoever waits for this line has gone if it can't be written.
    let say = |text: &str| _ = out::say(text);
    Ok(app::serve(&args.load()?.config, dev, |ready| {
        if let Some(demo) = &ready.demo {
            say(&render(demo));
        }
        say(&format!("tollgate ready grpc={} http={}", ready.grpc_addr, ready.http_addr));
    })?)
}

#[derive(Serialize)]
struct Bootstrapped<'a> {
    key_id: &'a str,
    account_id: &'a str,
    secret: &'a str,
}

pub(super) fn bootstrap(args: &ConfigArgs, again: bool, output: Output) -> Outcome {
    let made = app::bootstrap(&args.load()?.config, again)?;
    let secret = made.secret.expose_secret();
    out::note("note: keep the secret now; it can't be shown again");
    if output == Output::Json {
        return out::json(&Bootstrapped { key_id: &made.key_id, account_id: &made.account_id, secret });
    }
    let mut record = Record::default();
    record.add("secret", secret).add("key id", &made.key_id).add("account", &made.account_id);
    record.print()
}

pub(super) fn migrate(args: &ConfigArgs) -> Outcome {
    out::say(&app::migrate(&args.load()?.config)?)
}

#[derive(Serialize)]
struct Finding {
    ok: bool,
    what: String,
    advice: String,
}

pub(super) fn doctor(args: &ConfigArgs, output: Output) -> Outcome {
    let config = args.load()?.config;
    let mut findings: Vec<Finding> = app::doctor(&config)
        .into_iter()
        .map(|app::Finding { ok, what, advice }| Finding { ok, what, advice })
        .collect();
    findings.extend(config.warnings().into_iter().map(|what| Finding { ok: false, what, advice: String::new() }));
    if output == Output::Json {
        out::json(&findings)?;
    } else {
        for finding in &findings {
            out::say(&format!("{}  {}", if finding.ok { "ok   " } else { "WRONG" }, finding.what))?;
            if !finding.ok && !finding.advice.is_empty() {
                out::say(&format!("       {}", finding.advice))?;
            }
        }
    }
    if findings.iter().all(|finding| finding.ok) { Ok(()) } else { Err(Failure::silent(Exit::Error)) }
}

/// A probe asks one thing, so every failure has the same exit code.
pub(super) async fn health(client: &ClientArgs, service: String) -> Outcome {
    let failed = |failure: Failure| Failure { exit: Exit::Error, ..failure };
    let channel = client.connect_perhaps_unknown().await.map_err(failed)?.channel();
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
    let status = answer.map_err(|status| failed(status.into()))?.into_inner().status();
    out::say(status.as_str_name())?;
    if status == ServingStatus::Serving { Ok(()) } else { Err(Failure::silent(Exit::Error)) }
}

//! The demo: in an empty store an account on the plan `free`, one live and one test key, and an operator's.

use std::net::SocketAddr;
use std::sync::Arc;

use secrecy::SecretString;

use crate::config::parse_plans;
use crate::domain::{
    Account, AccountId, AccountStatus, Environment, Metadata, PlanId, Policy, Revision, Scope, Time, TimeZone, TopUps,
};
use crate::engine::{Caller, Engine, KeyFilter, MadeKey, NewKey};

use super::Failure;

const PLANS: &str = include_str!("../../deploy/plans.toml");
const PLAN: &str = "free";
const ACCOUNT: &str = "acct_demo";
/// What the demo's keys may do. They can call Tollgate for their own account too.
const SCOPES: [&str; 6] =
    ["tasks:read", "tasks:write", "projects:read", "tollgate:check", "tollgate:keys:read", "tollgate:usage:read"];

/// A server for development, as it is once it serves.
#[derive(Debug)]
pub struct DevInfo {
    /// Where it serves gRPC.
    pub grpc_addr: SocketAddr,
    /// Where it serves HTTP.
    pub http_addr: SocketAddr,
    /// Its database's URL.
    pub database: String,
    /// The demo account.
    pub account_id: String,
    /// The demo account's live key.
    pub live_key_id: String,
    /// What only the first start knows.
    pub secrets: Option<DevSecrets>,
}

/// The secrets of the demo's keys.
#[derive(Debug)]
pub struct DevSecrets {
    /// Of the operator key.
    pub operator: SecretString,
    /// Of the live key.
    pub live: SecretString,
    /// Of the test key.
    pub test: SecretString,
}

/// Makes the demo where the store is empty, and otherwise keeps what is there.
pub(super) async fn prepare(
    engine: &Arc<Engine>,
    database: String,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
) -> Result<DevInfo, Failure> {
    let account_id = AccountId::parse(ACCOUNT)?;
    let secrets = if engine.index_size().0 == 0 { Some(make(engine, &account_id).await?) } else { None };
    let filter =
        KeyFilter { account_id: Some(account_id), environment: Some(Environment::Live), ..KeyFilter::default() };
    // A store that was not made by a demo has no such account.
    let keys = engine.keys(&Caller::System, filter, None, 1).await.unwrap_or_default();
    let live_key_id = keys.first().map(|stored| stored.key.id.to_string()).unwrap_or_default();
    Ok(DevInfo { grpc_addr, http_addr, database, account_id: ACCOUNT.to_owned(), live_key_id, secrets })
}

async fn make(engine: &Engine, account_id: &AccountId) -> Result<DevSecrets, Failure> {
    // Plans may be there without keys, from `plans apply`.
    for plan in parse_plans(PLANS)? {
        if engine.plan(&Caller::System, &plan.id).await.is_err() {
            engine.create_plan(&Caller::System, plan).await?;
        }
    }
    let zero = Time::from_millis(0);
    let account = Account {
        id: account_id.clone(),
        name: "Demo".to_owned(),
        plan: PlanId::parse(PLAN)?,
        status: AccountStatus::Active,
        time_zone: TimeZone::UTC,
        key_limits: Vec::new(),
        account_limits: Vec::new(),
        credits: None,
        credits_reset_day: 1,
        top_ups: TopUps::default(),
        metadata: Metadata::new(),
        create_time: zero,
        update_time: zero,
        revision: Revision::ZERO,
    };
    if engine.account(&Caller::System, account_id).await.is_err() {
        engine.create_account(&Caller::System, account).await?;
    }
    let live = make_key(engine, account_id, Environment::Live).await?;
    let test = make_key(engine, account_id, Environment::Test).await?;
    let operator = engine.bootstrap(true).await?;
    Ok(DevSecrets { operator: operator.secret, live: live.secret, test: test.secret })
}

async fn make_key(engine: &Engine, account_id: &AccountId, environment: Environment) -> Result<MadeKey, Failure> {
    let scopes = SCOPES.into_iter().map(Scope::parse).collect::<Result<Vec<Scope>, _>>()?;
    let new = NewKey {
        account_id: Some(account_id.clone()),
        name: format!("Demo {environment}"),
        description: "made by `tollgate serve --dev`".to_owned(),
        environment,
        policy: Policy { scopes, ..Policy::default() },
        expire_time: None,
        auto_renew_millis: None,
        metadata: Metadata::new(),
    };
    Ok(engine.create_key(&Caller::System, new).await?)
}

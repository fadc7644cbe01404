//! `tollgate keys`: make, read, change and end keys.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use prost_types::{FieldMask, Timestamp};

use super::client::ClientArgs;
use super::failure::{Failure, Outcome};
use super::import::{self, ImportArgs};
use super::out::{self, Output, Record, Rows};
use super::values::{self, EnvironmentArg};
use crate::proto::v1::{
    AutoRenew, CreateKeyRequest, Environment, GetKeyRequest, GetLimitsRequest, Key, KeyFilter, Limit, ListKeysRequest,
    ListKeysResponse, Restrictions, RevokeKeyRequest, RotateKeyRequest, Status, UpdateKeyRequest,
};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key, and print its secret this once.
    Create(CreateArgs),
    /// Show a key.
    Get {
        /// The key's id.
        id: String,
    },
    /// List keys, oldest first.
    List(ListArgs),
    /// Change what a key may do, until when, or whether it is switched on.
    Update(UpdateArgs),
    /// Give a key a new secret, and print it this once.
    Rotate {
        /// The key's id.
        id: String,
        /// How long the old secret goes on working, as in `24h`; at once over where left out.
        #[arg(long, value_name = "TIME", value_parser = values::length)]
        grace_period: Option<Duration>,
        /// Rotate only if the key has not changed since it had this etag.
        #[arg(long, default_value = "")]
        etag: String,
    },
    /// End a key, at once and for good.
    Revoke {
        /// The key's id.
        id: String,
        /// Why; kept with the key.
        #[arg(long, default_value = "")]
        reason: String,
        /// Don't ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// What is left of a key's limits.
    Limits {
        /// The key's id; the caller's own where left out.
        id: Option<String>,
    },
    /// Take over keys of another system by their hashes, from a file of JSON lines.
    Import(ImportArgs),
}

/// What can be said of a key, new or not.
#[derive(Debug, Args)]
pub(super) struct KeyFields {
    /// More about it.
    #[arg(long)]
    description: Option<String>,
    /// What it may do, as in `tasks:read`; can be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// A limit of its own, as in `per-minute=100/minute`; can be given several times.
    #[arg(long = "limit", value_name = "NAME=CAPACITY/PERIOD", value_parser = values::limit)]
    limits: Vec<Limit>,
    /// A network or address whence it may be used; can be given several times.
    #[arg(long = "allow-ip", value_name = "CIDR")]
    allowed_ips: Vec<String>,
    /// A referring host, as in `*.example.com`; can be given several times.
    #[arg(long = "allow-referrer", value_name = "HOST")]
    allowed_referrers: Vec<String>,
    /// A method and path, as in `GET /v1/tasks/*`; can be given several times.
    #[arg(long = "allow-endpoint", value_name = "ENDPOINT")]
    allowed_endpoints: Vec<String>,
    /// When it expires: a time, or a length of time from now such as `90d`.
    #[arg(long = "expires", value_name = "TIME", value_parser = values::time_ahead)]
    expire_time: Option<Timestamp>,
    /// Extend the expiry by itself, by this much.
    #[arg(long, value_name = "TIME", value_parser = values::length)]
    auto_renew: Option<Duration>,
    /// A note, handed out with each check; can be given several times.
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = values::entry)]
    metadata: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The account that owns it; the caller's own where left out.
    #[arg(long, default_value = "", hide_default_value = true)]
    account: String,
    /// Its name, unique among the account's keys.
    #[arg(long)]
    name: String,
    /// Live or test.
    #[arg(long = "env", value_enum, default_value = "live")]
    environment: EnvironmentArg,
    #[command(flatten)]
    fields: KeyFields,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// The key's id.
    id: String,
    /// A new name.
    #[arg(long)]
    name: Option<String>,
    /// Switch it on or off.
    #[arg(long, value_enum)]
    status: Option<Switch>,
    #[command(flatten)]
    fields: KeyFields,
    /// A field to empty; can be given several times. A list that is given replaces the old one.
    #[arg(long, value_enum)]
    clear: Vec<Clearable>,
    /// Change it only if it has not changed since it had this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    Active,
    Disabled,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Clearable {
    Description,
    Scopes,
    Restrictions,
    Limits,
    Expires,
    AutoRenew,
    Metadata,
}

impl Clearable {
    const fn field(self) -> &'static str {
        match self {
            Self::Description => "description",
            Self::Scopes => "scopes",
            Self::Restrictions => "restrictions",
            Self::Limits => "limits",
            Self::Expires => "expire_time",
            Self::AutoRenew => "auto_renew",
            Self::Metadata => "metadata",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only keys of this account.
    #[arg(long, default_value = "", hide_default_value = true)]
    account: String,
    /// Only keys in this state.
    #[arg(long, value_enum)]
    status: Option<StatusArg>,
    /// Only live or only test keys.
    #[arg(long = "env", value_enum)]
    environment: Option<EnvironmentArg>,
    /// Only keys whose display prefix begins so.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Only keys not used since: a time, or a length of time before now such as `90d`.
    #[arg(long, value_name = "TIME", value_parser = values::time_ago)]
    unused_since: Option<Timestamp>,
    /// Only keys that expire before: a time, or a length of time from now such as `14d`.
    #[arg(long, value_name = "TIME", value_parser = values::time_ahead)]
    expires_before: Option<Timestamp>,
    /// At most so many.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max: u32,
    /// Go on where an earlier list ended: its `next_page_token`.
    #[arg(long, default_value = "", hide_default_value = true)]
    page_token: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatusArg {
    Active,
    Disabled,
    Revoked,
    Expired,
}

pub(super) async fn run(client: &ClientArgs, command: KeysCommand, output: Output) -> Outcome {
    match command {
        KeysCommand::Create(args) => create(client, args, output).await,
        KeysCommand::Get { id } => {
            let key = client.connect().await?.keys().get_key(GetKeyRequest { id }).await?.into_inner();
            show_key(&key, output)
        }
        KeysCommand::List(args) => list(client, args, output).await,
        KeysCommand::Update(args) => {
            let request = update_request(args)?;
            let key = client.connect().await?.keys().update_key(request).await?.into_inner();
            show_key(&key, output)
        }
        KeysCommand::Rotate { id, grace_period, etag } => rotate(client, id, grace_period, etag, output).await,
        KeysCommand::Revoke { id, reason, yes } => revoke(client, id, reason, yes, output).await,
        KeysCommand::Limits { id } => {
            let request = GetLimitsRequest { id: id.unwrap_or_default() };
            let limits = client.connect().await?.keys().get_limits(request).await?.into_inner();
            if output == Output::Json {
                return out::message_json("GetLimitsResponse", &limits);
            }
            super::check::show_budgets(&limits.limits, limits.credits.as_ref())
        }
        KeysCommand::Import(args) => import::run(client, &args, output).await,
    }
}

async fn create(client: &ClientArgs, args: CreateArgs, output: Output) -> Outcome {
    let CreateArgs { account, name, environment, fields } = args;
    let key =
        Key { account_id: account, name, environment: EnvironmentArg::wire(Some(environment)), ..fields.into_key()? };
    let request = CreateKeyRequest { key: Some(key) };
    let made = client.connect().await?.keys().create_key(request).await?.into_inner();
    out::note(SECRET_NOTE);
    if output == Output::Json {
        return out::message_json("CreateKeyResponse", &made);
    }
    show_secret(&made.secret)?;
    show_key(&made.key.unwrap_or_default(), output)
}

const SECRET_NOTE: &str = "note: keep the secret now; it can't be shown again";

fn show_secret(secret: &str) -> Outcome {
    out::say(&format!("secret  {secret}"))?;
    out::say("")
}

async fn rotate(
    client: &ClientArgs,
    id: String,
    grace_period: Option<Duration>,
    etag: String,
    output: Output,
) -> Outcome {
    let grace_period = grace_period.map(values::wire_length).transpose().map_err(Failure::usage)?;
    let request = RotateKeyRequest { id, grace_period, etag };
    let rotated = client.connect().await?.keys().rotate_key(request).await?.into_inner();
    out::note(SECRET_NOTE);
    if output == Output::Json {
        return out::message_json("RotateKeyResponse", &rotated);
    }
    show_secret(&rotated.secret)?;
    show_key(&rotated.key.unwrap_or_default(), output)
}

async fn revoke(client: &ClientArgs, id: String, reason: String, yes: bool, output: Output) -> Outcome {
    if !yes && !confirmed(&id)? {
        return Err(Failure::error("nothing was revoked"));
    }
    let request = RevokeKeyRequest { id, reason };
    let revoked = client.connect().await?.keys().revoke_key(request).await?.into_inner();
    if output == Output::Json {
        return out::message_json("RevokeKeyResponse", &revoked);
    }
    show_key(&revoked.key.unwrap_or_default(), output)
}

/// Asks a person; a script has said what it wants by calling.
fn confirmed(id: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(true);
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "Revoke {id}? It stops working at once, for good. [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn list(client: &ClientArgs, args: ListArgs, output: Output) -> Outcome {
    let ListArgs { account, status, environment, prefix, unused_since, expires_before, max, page_token } = args;
    let status = status.map_or(Status::Unspecified, |status| match status {
        StatusArg::Active => Status::Active,
        StatusArg::Disabled => Status::Disabled,
        StatusArg::Revoked => Status::Revoked,
        StatusArg::Expired => Status::Expired,
    });
    let filter = KeyFilter {
        status: status.into(),
        environment: EnvironmentArg::wire(environment),
        prefix,
        unused_since,
        expires_before,
    };
    let mut keys = client.connect().await?.keys();
    let mut all = ListKeysResponse { keys: Vec::new(), next_page_token: page_token };
    loop {
        let left = i32::try_from(max).unwrap_or(i32::MAX) - i32::try_from(all.keys.len()).unwrap_or(i32::MAX);
        let request = ListKeysRequest {
            account_id: account.clone(),
            filter: Some(filter.clone()),
            page_size: left.min(1_000),
            page_token: all.next_page_token,
        };
        let page = keys.list_keys(request).await?.into_inner();
        all.keys.extend(page.keys);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() || all.keys.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            break;
        }
    }
    if output == Output::Json {
        return out::message_json("ListKeysResponse", &all);
    }
    let mut rows = Rows::new(&["id", "account", "name", "env", "prefix", "status", "scopes", "expires", "last used"]);
    for key in &all.keys {
        rows.add([
            key.id.clone(),
            key.account_id.clone(),
            key.name.clone(),
            environment_of(key),
            key.prefix.clone(),
            status_of(key),
            out::list(&key.scopes),
            out::time(key.expire_time.as_ref()),
            out::time(key.last_used_time.as_ref()),
        ]);
    }
    rows.print()?;
    if !all.next_page_token.is_empty() {
        out::note(&format!("note: there are more than these {}; see --max and the filters", all.keys.len()));
    }
    Ok(())
}

impl KeyFields {
    fn into_key(self) -> Result<Key, Failure> {
        let Self {
            description,
            scopes,
            limits,
            allowed_ips,
            allowed_referrers,
            allowed_endpoints,
            expire_time,
            auto_renew,
            metadata,
        } = self;
        let period = auto_renew.map(values::wire_length).transpose().map_err(Failure::usage)?;
        Ok(Key {
            description: description.unwrap_or_default(),
            scopes,
            restrictions: Some(Restrictions { allowed_ips, allowed_referrers, allowed_endpoints }),
            limits,
            expire_time,
            auto_renew: period.map(|period| AutoRenew { period: Some(period) }),
            metadata: metadata.into_iter().collect(),
            ..Key::default()
        })
    }

    /// The names of those that were given.
    fn given(&self) -> Vec<&'static str> {
        let restricted = [&self.allowed_ips, &self.allowed_referrers, &self.allowed_endpoints];
        let fields = [
            ("description", self.description.is_some()),
            ("scopes", !self.scopes.is_empty()),
            ("restrictions", restricted.iter().any(|list| !list.is_empty())),
            ("limits", !self.limits.is_empty()),
            ("expire_time", self.expire_time.is_some()),
            ("auto_renew", self.auto_renew.is_some()),
            ("metadata", !self.metadata.is_empty()),
        ];
        fields.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

fn update_request(args: UpdateArgs) -> Result<UpdateKeyRequest, Failure> {
    let UpdateArgs { id, name, status, fields, clear, etag } = args;
    let mut paths = fields.given();
    paths.extend(name.is_some().then_some("name"));
    paths.extend(status.is_some().then_some("status"));
    for field in clear.iter().map(|clearable| clearable.field()) {
        if paths.contains(&field) {
            return Err(Failure::usage(format!("`{field}` can't be both set and cleared")));
        }
        paths.push(field);
    }
    if paths.is_empty() {
        return Err(Failure::usage("nothing to change; `tollgate keys update --help` lists what can be"));
    }
    let status = status.map_or(Status::Unspecified, |status| match status {
        Switch::Active => Status::Active,
        Switch::Disabled => Status::Disabled,
    });
    let key = Key { id, name: name.unwrap_or_default(), status: status.into(), etag, ..fields.into_key()? };
    let paths = paths.into_iter().map(str::to_owned).collect();
    Ok(UpdateKeyRequest { key: Some(key), update_mask: Some(FieldMask { paths }) })
}

fn environment_of(key: &Key) -> String {
    out::short(Environment::try_from(key.environment).unwrap_or_default().as_str_name(), "ENVIRONMENT_")
}

fn status_of(key: &Key) -> String {
    out::short(Status::try_from(key.status).unwrap_or_default().as_str_name(), "STATUS_")
}

/// Prints a key.
pub(super) fn show_key(key: &Key, output: Output) -> Outcome {
    if output == Output::Json {
        return out::message_json("Key", key);
    }
    let mut record = Record::default();
    record.add("id", &key.id).add("account", &key.account_id).add("name", &key.name);
    record.add_some("description", &key.description);
    record.add("environment", environment_of(key)).add("prefix", &key.prefix).add("status", status_of(key));
    record.add("scopes", out::list(&key.scopes));
    if let Some(restrictions) = &key.restrictions {
        record.add_some("allowed ips", &restrictions.allowed_ips.join(", "));
        record.add_some("allowed referrers", &restrictions.allowed_referrers.join(", "));
        record.add_some("allowed endpoints", &restrictions.allowed_endpoints.join(", "));
    }
    let limits: Vec<String> = key.limits.iter().map(values::show_limit).collect();
    record.add_some("limits", &limits.join(", "));
    record.add("created", out::time(key.create_time.as_ref())).add("expires", out::time(key.expire_time.as_ref()));
    if let Some(period) = key.auto_renew.as_ref().and_then(|renew| renew.period.as_ref()) {
        record.add("renews itself by", period.to_string());
    }
    record.add("last used", out::time(key.last_used_time.as_ref()));
    record.add_some("last used from", &key.last_used_ip);
    if let Some(usage) = &key.usage {
        record.add("checks today", usage.requests_today.to_string());
        record.add("checks this month", usage.requests_this_month.to_string());
    }
    if key.rotate_time.is_some() {
        record.add("rotated", out::time(key.rotate_time.as_ref())).add_some("previous prefix", &key.previous_prefix);
        record.add_some("previous works until", &out::time_or_empty(key.previous_expire_time.as_ref()));
    }
    record.add_some("revoked", &out::time_or_empty(key.revoke_time.as_ref()));
    record.add_some("revoked because", &key.revoke_reason).add_some("revoked by", &key.revoke_actor);
    record.add_some("metadata", &values::show_metadata(&key.metadata));
    record.add("etag", &key.etag);
    record.print()
}

//! `tollgate accounts`: the owners of keys.

use clap::{Args, Subcommand};
use prost_types::FieldMask;

use super::check;
use super::client::ClientArgs;
use super::failure::{Failure, Outcome};
use super::out::{self, Output, Record, Rows};
use super::values;
use crate::proto::v1::{
    Account, AccountStatus, AdjustCreditsRequest, AdjustCreditsResponse, CreateAccountRequest, GetAccountRequest,
    Limit, ListAccountsRequest, ListAccountsResponse, UpdateAccountRequest,
};

#[derive(Debug, Subcommand)]
pub(super) enum AccountsCommand {
    /// Make an account.
    Create(CreateArgs),
    /// Show an account.
    Get {
        /// The account's id.
        id: String,
    },
    /// List accounts, by id.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        max: u32,
    },
    /// Change an account; it holds from the next check on.
    Update(UpdateArgs),
    /// Give it credits that don't end with the month, or take such away.
    AdjustCredits(AdjustCreditsArgs),
    /// Refuse all of its keys, until it is resumed.
    Suspend {
        /// The account's id.
        id: String,
    },
    /// Let its keys work again.
    Resume {
        /// The account's id.
        id: String,
    },
}

/// What can be said of an account, new or not.
#[derive(Debug, Args)]
pub(super) struct AccountFields {
    /// The zone in which its days and months begin, as in `Europe/Berlin`.
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// A limit of each of its keys, instead of the plan's of the same name; can be given several times.
    #[arg(long = "key-limit", value_name = "NAME=CAPACITY/PERIOD", value_parser = values::limit)]
    key_limits: Vec<Limit>,
    /// A limit shared by its keys, instead of the plan's of the same name; can be given several times.
    #[arg(long = "account-limit", value_name = "NAME=CAPACITY/PERIOD", value_parser = values::limit)]
    account_limits: Vec<Limit>,
    /// Credits a month instead of the plan's; -1: not counted.
    #[arg(long, value_name = "CREDITS", allow_negative_numbers = true)]
    monthly_credits: Option<i64>,
    /// The day of the month on which credits begin anew.
    #[arg(long, value_name = "DAY")]
    credits_reset_day: Option<i32>,
    /// A note; can be given several times.
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = values::entry)]
    metadata: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Its id, `acct_` and letters and digits; chosen by the server where left out.
    #[arg(long, default_value = "", hide_default_value = true)]
    id: String,
    /// Its name.
    #[arg(long)]
    name: String,
    /// Its plan.
    #[arg(long)]
    plan: String,
    #[command(flatten)]
    fields: AccountFields,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// The account's id.
    id: String,
    /// A new name.
    #[arg(long)]
    name: Option<String>,
    /// Another plan.
    #[arg(long)]
    plan: Option<String>,
    #[command(flatten)]
    fields: AccountFields,
    /// A field to empty; can be given several times. A list that is given replaces the old one.
    #[arg(long, value_enum)]
    clear: Vec<Clearable>,
    /// Change it only if it has not changed since it had this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

#[derive(Debug, Args)]
pub(super) struct AdjustCreditsArgs {
    /// The account's id.
    id: String,
    /// Credits to give, or, below 0, to take away from what is left of those given.
    #[arg(allow_negative_numbers = true)]
    amount: i64,
    /// Why; it is kept in the audit trail.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// What this is called: the same again changes nothing, so that it can be repeated when nobody knows whether it was done.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    operation_id: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Clearable {
    KeyLimits,
    AccountLimits,
    MonthlyCredits,
    Metadata,
}

impl Clearable {
    const fn field(self) -> &'static str {
        match self {
            Self::KeyLimits => "key_limits",
            Self::AccountLimits => "account_limits",
            Self::MonthlyCredits => "monthly_credits",
            Self::Metadata => "metadata",
        }
    }
}

pub(super) async fn run(client: &ClientArgs, command: AccountsCommand, output: Output) -> Outcome {
    match command {
        AccountsCommand::Create(CreateArgs { id, name, plan, fields }) => {
            let account = Account { id, name, plan, ..fields.into_account() };
            let request = CreateAccountRequest { account: Some(account) };
            show(&client.connect().await?.accounts().create_account(request).await?.into_inner(), output)
        }
        AccountsCommand::Get { id } => {
            let request = GetAccountRequest { id };
            show(&client.connect().await?.accounts().get_account(request).await?.into_inner(), output)
        }
        AccountsCommand::List { max } => list(client, max, output).await,
        AccountsCommand::Update(args) => update(client, update_request(args)?, output).await,
        AccountsCommand::AdjustCredits(args) => adjust_credits(client, args, output).await,
        AccountsCommand::Suspend { id } => update(client, status_request(id, AccountStatus::Suspended), output).await,
        AccountsCommand::Resume { id } => update(client, status_request(id, AccountStatus::Active), output).await,
    }
}

async fn adjust_credits(client: &ClientArgs, args: AdjustCreditsArgs, output: Output) -> Outcome {
    let AdjustCreditsArgs { id, amount, reason, operation_id } = args;
    let request = AdjustCreditsRequest { account_id: id, amount, reason, operation_id };
    let answer = client.connect().await?.accounts().adjust_credits(request).await?.into_inner();
    if output == Output::Json {
        return out::message_json("AdjustCreditsResponse", &answer);
    }
    let AdjustCreditsResponse { account, credits, revision: _ } = answer;
    show(&account.unwrap_or_default(), output)?;
    if credits.is_some() {
        out::say("")?;
        check::show_budgets(&[], credits.as_ref())?;
    }
    Ok(())
}

async fn update(client: &ClientArgs, request: UpdateAccountRequest, output: Output) -> Outcome {
    show(&client.connect().await?.accounts().update_account(request).await?.into_inner(), output)
}

fn status_request(id: String, status: AccountStatus) -> UpdateAccountRequest {
    let account = Account { id, status: status.into(), ..Account::default() };
    UpdateAccountRequest { account: Some(account), update_mask: Some(FieldMask { paths: vec!["status".into()] }) }
}

impl AccountFields {
    fn into_account(self) -> Account {
        let Self { time_zone, key_limits, account_limits, monthly_credits, credits_reset_day, metadata } = self;
        Account {
            time_zone: time_zone.unwrap_or_default(),
            key_limits,
            account_limits,
            monthly_credits,
            credits_reset_day: credits_reset_day.unwrap_or_default(),
            metadata: metadata.into_iter().collect(),
            ..Account::default()
        }
    }

    /// The names of those that were given.
    fn given(&self) -> Vec<&'static str> {
        let fields = [
            ("time_zone", self.time_zone.is_some()),
            ("key_limits", !self.key_limits.is_empty()),
            ("account_limits", !self.account_limits.is_empty()),
            ("monthly_credits", self.monthly_credits.is_some()),
            ("credits_reset_day", self.credits_reset_day.is_some()),
            ("metadata", !self.metadata.is_empty()),
        ];
        fields.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

fn update_request(args: UpdateArgs) -> Result<UpdateAccountRequest, Failure> {
    let UpdateArgs { id, name, plan, fields, clear, etag } = args;
    let mut paths = fields.given();
    paths.extend(name.is_some().then_some("name"));
    paths.extend(plan.is_some().then_some("plan"));
    for field in clear.iter().map(|clearable| clearable.field()) {
        if paths.contains(&field) {
            return Err(Failure::usage(format!("`{field}` can't be both set and cleared")));
        }
        paths.push(field);
    }
    if paths.is_empty() {
        return Err(Failure::usage("nothing to change; `tollgate accounts update --help` lists what can be"));
    }
    let account =
        Account { id, name: name.unwrap_or_default(), plan: plan.unwrap_or_default(), etag, ..fields.into_account() };
    let paths = paths.into_iter().map(str::to_owned).collect();
    Ok(UpdateAccountRequest { account: Some(account), update_mask: Some(FieldMask { paths }) })
}

async fn list(client: &ClientArgs, max: u32, output: Output) -> Outcome {
    let mut accounts = client.connect().await?.accounts();
    let mut all = ListAccountsResponse::default();
    loop {
        let left = i32::try_from(max).unwrap_or(i32::MAX) - i32::try_from(all.accounts.len()).unwrap_or(i32::MAX);
        let request = ListAccountsRequest { page_size: left.min(1_000), page_token: all.next_page_token };
        let page = accounts.list_accounts(request).await?.into_inner();
        all.accounts.extend(page.accounts);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() || all.accounts.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            break;
        }
    }
    if output == Output::Json {
        return out::message_json("ListAccountsResponse", &all);
    }
    let mut rows = Rows::new(&["id", "name", "plan", "status", "time zone", "created"]);
    for account in &all.accounts {
        rows.add([
            account.id.clone(),
            account.name.clone(),
            account.plan.clone(),
            status_of(account),
            account.time_zone.clone(),
            out::time(account.create_time.as_ref()),
        ]);
    }
    rows.print()?;
    if !all.next_page_token.is_empty() {
        out::note(&format!("note: there are more than these {}; see --max", all.accounts.len()));
    }
    Ok(())
}

fn status_of(account: &Account) -> String {
    let status = AccountStatus::try_from(account.status).unwrap_or_default();
    out::short(status.as_str_name(), "ACCOUNT_STATUS_")
}

fn show(account: &Account, output: Output) -> Outcome {
    if output == Output::Json {
        return out::message_json("Account", account);
    }
    let limits = |limits: &[Limit]| limits.iter().map(values::show_limit).collect::<Vec<_>>().join(", ");
    let credits = match account.monthly_credits {
        None => "as the plan".into(),
        Some(-1) => "not counted".into(),
        Some(credits) => credits.to_string(),
    };
    let mut record = Record::default();
    record.add("id", &account.id).add("name", &account.name).add("plan", &account.plan);
    record.add("status", status_of(account)).add("time zone", &account.time_zone);
    record.add_some("key limits", &limits(&account.key_limits));
    record.add_some("account limits", &limits(&account.account_limits));
    record.add("monthly credits", credits).add("credits reset day", account.credits_reset_day.to_string());
    record.add("topped up", account.topped_up_credits.to_string());
    record.add_some("metadata", &values::show_metadata(&account.metadata));
    record.add("created", out::time(account.create_time.as_ref()));
    record.add("changed", out::time(account.update_time.as_ref())).add("etag", &account.etag);
    record.print()
}

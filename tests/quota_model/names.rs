//! What the engine and the store call the model's things.

use std::collections::HashMap;

use tollgate::domain::{
    self, AccountId, BudgetId, Environment, KeyId, Metadata, OperationId, Period, PlanId, Subject, Time, Verdict,
};
use tollgate::engine::{Answer, Level, LimitStatus, NewKey};

use crate::terms::{BudgetKey, CREDITS, Limit, Outcome, Owner, TOP_UPS, Terms, Told, budget_key};
use crate::window::Window;
use crate::{DAY, HOUR, KEYS, MINUTE, NAMES, START, WINDOWS};

pub(crate) fn outcome(verdict: Verdict) -> Result<Outcome, String> {
    let all = [
        (Verdict::Allowed, Outcome::Allowed),
        (Verdict::RateLimited, Outcome::RateLimited),
        (Verdict::CreditsExhausted, Outcome::CreditsExhausted),
    ];
    let found = all.iter().find(|(one, _)| *one == verdict);
    found.map(|(_, outcome)| *outcome).ok_or_else(|| format!("the check ended in {verdict:?}"))
}

pub(crate) fn limit_to(limit: &Limit) -> domain::Limit {
    let (period, algorithm) = match limit.window {
        Window::Fixed(MINUTE) => (Period::Minute, domain::Algorithm::FixedWindow),
        Window::Fixed(HOUR) => (Period::Hour, domain::Algorithm::FixedWindow),
        Window::Fixed(DAY) => (Period::Day, domain::Algorithm::FixedWindow),
        Window::MonthFrom(1) => (Period::Month, domain::Algorithm::FixedWindow),
        Window::Sliding(MINUTE) => (Period::Minute, domain::Algorithm::SlidingWindow),
        Window::Sliding(millis) => {
            (Period::Seconds(u32::try_from(millis / 1_000).unwrap()), domain::Algorithm::SlidingWindow)
        }
        Window::Fixed(_) | Window::MonthFrom(_) | Window::Forever => panic!("no limit has {:?}", limit.window),
    };
    domain::Limit { name: domain::LimitName::parse(limit.name).unwrap(), capacity: limit.capacity, period, algorithm }
}

pub(crate) fn limit_from(limit: &domain::Limit) -> Limit {
    let mut all = NAMES.iter().flat_map(|name| WINDOWS.map(|window| Limit { name, capacity: limit.capacity, window }));
    all.find(|one| limit_to(one) == *limit).unwrap()
}

/// By what the store calls them.
pub(crate) fn all_budgets(account: &AccountId, keys: &[(KeyId, String)], reset_day: i8) -> HashMap<String, BudgetKey> {
    let of_keys = keys.iter().enumerate().map(|(place, (id, _))| (Owner::Key(place), Subject::Key(*id)));
    let pools = [(Owner::Live, Environment::Live), (Owner::Test, Environment::Test)];
    let of_account = pools.map(|(owner, environment)| (owner, Subject::Account(account.clone(), environment)));
    let mut all = HashMap::new();
    for (owner, subject) in of_keys.chain(of_account) {
        for (name, window) in NAMES.iter().flat_map(|name| WINDOWS.map(|window| (name, window))) {
            let limit = Limit { name, capacity: 0, window };
            let id = BudgetId::of_limit(&subject, &limit_to(&limit));
            all.insert(id.as_str().to_owned(), budget_key(owner, &limit));
        }
    }
    let credits = Limit { name: CREDITS, capacity: 0, window: Window::MonthFrom(reset_day) };
    all.insert(BudgetId::of_credits(account).as_str().to_owned(), budget_key(Owner::Live, &credits));
    let top_ups = Limit { name: TOP_UPS, capacity: 0, window: Window::Forever };
    all.insert(BudgetId::of_top_ups(account).as_str().to_owned(), budget_key(Owner::Live, &top_ups));
    all
}

pub(crate) fn operation_id(number: usize) -> OperationId {
    OperationId::parse(&format!("operation-{number}")).unwrap()
}

pub(crate) fn plan_id(number: usize) -> PlanId {
    PlanId::parse(&format!("plan{number}")).unwrap()
}

pub(crate) fn plan(number: usize, terms: &Terms) -> domain::Plan {
    domain::Plan {
        id: plan_id(number),
        display_name: String::new(),
        api_access: true,
        key_limits: terms.key_limits.iter().map(limit_to).collect(),
        account_limits: terms.account_limits.iter().map(limit_to).collect(),
        monthly_credits: terms.credits.counted(),
        allowed_scopes: Vec::new(),
        keys_max: None,
        create_time: Time::from_millis(START),
        update_time: Time::from_millis(START),
        revision: domain::Revision::ZERO,
    }
}

pub(crate) fn account(id: AccountId, reset_day: i8) -> domain::Account {
    domain::Account {
        id,
        name: "Test".to_owned(),
        plan: plan_id(0),
        status: domain::AccountStatus::Active,
        time_zone: domain::TimeZone::UTC,
        key_limits: Vec::new(),
        account_limits: Vec::new(),
        credits: None,
        credits_reset_day: u8::try_from(reset_day).unwrap(),
        top_ups: domain::TopUps::default(),
        metadata: Metadata::new(),
        create_time: Time::from_millis(START),
        update_time: Time::from_millis(START),
        revision: domain::Revision::ZERO,
    }
}

pub(crate) fn new_key(account: &AccountId, number: usize, live: bool) -> NewKey {
    NewKey {
        account_id: Some(account.clone()),
        name: format!("k{number}"),
        description: String::new(),
        environment: if live { Environment::Live } else { Environment::Test },
        policy: domain::Policy::default(),
        expire_time: None,
        auto_renew_millis: None,
        metadata: Metadata::new(),
    }
}

/// An answer, in the model's words and order.
pub(crate) fn told(key: usize, answer: &Answer, reset_day: i8, topped_up: u64) -> Vec<Told> {
    let pool = if KEYS[key] { Owner::Live } else { Owner::Test };
    let told = |status: &LimitStatus| Told {
        limit: limit_from(&status.limit),
        owner: if status.level == Level::Key { Owner::Key(key) } else { pool },
        remaining: status.remaining,
        reset: status.reset_time.millis(),
        exceeded: status.exceeded,
    };
    let mut all: Vec<Told> = answer.limits.iter().map(told).collect();
    all.sort_by_key(|told| (told.owner, told.limit.name));
    if let Some(status) = answer.credits {
        let fund = |name, capacity, window, remaining, reset| Told {
            limit: Limit { name, capacity, window },
            owner: pool,
            remaining,
            reset,
            exceeded: status.exceeded,
        };
        let of_month =
            status.remaining.checked_sub(status.topped_up_remaining).expect("both are more than one of them");
        let month = Window::MonthFrom(reset_day);
        all.push(fund(CREDITS, status.allowance, month, of_month, status.reset_time.millis()));
        all.push(fund(TOP_UPS, topped_up, Window::Forever, status.topped_up_remaining, i64::MAX));
    }
    all
}

//! Clocks that jump by an hour and by a month, ahead and back: what was spent in any window stays spent.

use tollgate::proto::v1::*;

use crate::harness::{PLAN, START, Server, Settings, account, key, limit};

const UNITS: i64 = 5;
const FIXED: Algorithm = Algorithm::FixedWindow;
const SLIDING: Algorithm = Algorithm::SlidingWindow;

/// What happens to the server between two jumps.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    Restart,
    Kill,
}

impl Between {
    async fn happens(self, server: Server) -> Server {
        match self {
            Self::Nothing => server,
            Self::Restart => server.restart(Settings::default()).await,
            Self::Kill => server.kill(Settings::default()).await,
        }
    }
}

/// Keys with one budget each: of each length and movement, the key's own and the account's; and of credits.
async fn keys(server: &Server) -> Vec<(String, String)> {
    let mut limits = Vec::new();
    for algorithm in [FIXED, SLIDING] {
        for period in [Period::Minute, Period::Hour, Period::Day, Period::Month, Period::Seconds] {
            let period_seconds = if period == Period::Seconds { 5_400 } else { 0 };
            limits.push(Limit { algorithm: algorithm.into(), period_seconds, ..limit("l", UNITS, period) });
        }
    }
    let mut made = Vec::new();
    let mut accounts = vec![("credits".to_owned(), vec![], vec![], Some(UNITS))];
    for limit in limits {
        let name = format!("{}{}", limit.period().as_str_name(), limit.algorithm().as_str_name()).replace('_', "");
        accounts.push((format!("own{name}"), vec![limit.clone()], vec![], None));
        accounts.push((format!("pool{name}"), vec![], vec![limit], None));
    }
    for (name, limits, account_limits, monthly_credits) in accounts {
        let id = format!("acct_{name}");
        let counted = Account { account_limits, monthly_credits, credits_reset_day: 31, ..account(&id, PLAN) };
        server.account(counted).await;
        made.push((name, server.key(Key { account_id: id, limits, ..key("k") }).await.secret));
    }
    made
}

/// Takes all that each key has, a unit at a time.
async fn drain(server: &Server, keys: &[(String, String)]) -> Vec<i64> {
    let mut drained = Vec::new();
    for (_, secret) in keys {
        let mut admitted = 0;
        while server.check(secret).await.allowed {
            admitted += 1;
        }
        drained.push(admitted);
    }
    drained
}

async fn jump(ahead: &str, back: &[&str], between: Between) {
    let server = Server::start().await;
    let keys = keys(&server).await;
    let all = vec![UNITS; keys.len()];
    let none = vec![0; keys.len()];
    assert_eq!(drain(&server, &keys).await, all, "{keys:?}");
    server.set_time(ahead);
    let server = between.happens(server).await;
    let begun = drain(&server, &keys).await;
    assert!(begun.iter().all(|units| [0, UNITS].contains(units)) && begun.contains(&UNITS), "{begun:?}");
    let mut server = between.happens(server).await;
    for time in back.iter().chain([&START, &ahead]) {
        server.set_time(time);
        assert_eq!(drain(&server, &keys).await, none, "{time} after {ahead}, {between:?}");
        server = between.happens(server).await;
        assert_eq!(drain(&server, &keys).await, none, "{time} after {ahead}, {between:?}");
    }
    server.set_time("2026-08-01T00:00:00Z");
    assert_eq!(drain(&server, &keys).await, all, "{keys:?}");
}

const BACK: [&str; 4] =
    ["2026-03-10T11:00:00Z", "2026-02-10T12:00:00Z", "2026-03-10T12:59:59Z", "2026-03-31T00:00:00Z"];

#[tokio::test]
async fn an_hour_ahead_and_back_opens_nothing_again() {
    for between in [Between::Nothing, Between::Restart, Between::Kill] {
        jump("2026-03-10T13:00:00Z", &BACK[..3], between).await;
    }
}

#[tokio::test]
async fn a_month_ahead_and_back_opens_nothing_again() {
    for between in [Between::Nothing, Between::Restart, Between::Kill] {
        jump("2026-04-30T12:00:00Z", &BACK, between).await;
    }
}

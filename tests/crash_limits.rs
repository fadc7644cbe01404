//! The real binary under load, killed as the system kills when memory runs out, again and again: no limit ever admits more
//! than it has, whatever was leased when the process ended.
#![cfg(test)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use support::{Home, Keys, Server, dice};
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::*;

/// How often it is killed; `make soak` asks for more.
const KILLS_DEFAULT: u64 = 100;
const CLIENTS: usize = 4;
const KEYS: usize = 4;
/// Of each key, and of all together.
const KEY_CAPACITY: i64 = 6_000;
const POOL_CAPACITY: i64 = 20_000;
/// Of the month, and topped up.
const CREDITS: i64 = ALLOWANCE + TOPPED_UP;
const ALLOWANCE: i64 = 5_000;
const TOPPED_UP: i64 = 10_000;

/// What the clients were told.
#[derive(Debug, Default)]
struct Admitted {
    by_key: [AtomicI64; KEYS],
}

impl Admitted {
    fn all(&self) -> i64 {
        self.by_key.iter().map(|units| units.load(Ordering::Relaxed)).sum()
    }
}

fn kills() -> u64 {
    std::env::var("TOLLGATE_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS_DEFAULT)
}

async fn make_keys(server: &Server, token: &str) -> Vec<(String, String)> {
    let account_id = server.account(token).await;
    let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, support::Bearer::new(token));
    let limit = |name: &str, capacity: i64| Limit {
        name: name.into(),
        capacity,
        period: Period::Month.into(),
        ..Limit::default()
    };
    let account = Account {
        id: account_id.clone(),
        account_limits: vec![limit("pool", POOL_CAPACITY)],
        monthly_credits: Some(ALLOWANCE),
        ..Account::default()
    };
    let paths = ["account_limits", "monthly_credits"].map(str::to_owned).to_vec();
    let update_mask = Some(prost_types::FieldMask { paths });
    accounts.update_account(UpdateAccountRequest { account: Some(account), update_mask }).await.unwrap();
    let top_up = AdjustCreditsRequest {
        account_id: account_id.clone(),
        amount: TOPPED_UP,
        reason: "a test".into(),
        ..Default::default()
    };
    accounts.adjust_credits(top_up).await.unwrap();
    let mut keys = server.keys(token).await;
    let mut made = Vec::new();
    for i in 0..KEYS {
        let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("sliding", KEY_CAPACITY) };
        let limits = vec![if i % 2 == 0 { limit("fixed", KEY_CAPACITY) } else { sliding }];
        let key = Key { account_id: account_id.clone(), name: format!("k{i}"), limits, ..Key::default() };
        let answer = keys.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
        made.push((answer.key.unwrap().id, answer.secret));
    }
    made
}

/// Checks one key after the other until the server is gone, and counts what it is told.
async fn hammer(
    mut client: Keys,
    secrets: Arc<Vec<String>>,
    admitted: Arc<Admitted>,
    stop: Arc<AtomicBool>,
    first: usize,
) {
    for i in first.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let place = i % KEYS;
        let cost = i64::from(u8::try_from(i % 3).unwrap()) + 1;
        let request = CheckKeyRequest { key: secrets[place].clone(), cost: Some(cost), ..CheckKeyRequest::default() };
        let Ok(answer) = client.check_key(request).await else { return };
        if answer.into_inner().allowed {
            admitted.by_key[place].fetch_add(cost, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_limit_admits_more_than_it_has_however_often_the_server_is_killed() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let made = make_keys(&server, &home.token).await;
    let secrets: Arc<Vec<String>> = Arc::new(made.iter().map(|(_, secret)| secret.clone()).collect());
    let admitted = Arc::new(Admitted::default());
    for _ in 0..kills() {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for first in 0..CLIENTS {
            let client = server.keys(&home.token).await;
            clients.spawn(hammer(client, Arc::clone(&secrets), Arc::clone(&admitted), Arc::clone(&stop), first));
        }
        tokio::time::sleep(Duration::from_millis(10 + dice(70))).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        clients.join_all().await;
        server = home.serve(&[]);
    }
    // And now all that is left.
    let mut client = server.keys(&home.token).await;
    for (place, secret) in secrets.iter().enumerate() {
        let request = CheckKeyRequest { key: secret.clone(), ..CheckKeyRequest::default() };
        while client.check_key(request.clone()).await.unwrap().into_inner().allowed {
            admitted.by_key[place].fetch_add(1, Ordering::Relaxed);
        }
    }
    for units in &admitted.by_key {
        let units = units.load(Ordering::Relaxed);
        assert!(units <= KEY_CAPACITY, "{units} of {KEY_CAPACITY}");
    }
    let all = admitted.all();
    assert!(all <= CREDITS.min(POOL_CAPACITY), "{all} of {CREDITS} credits");
    assert!(all > CREDITS / 20, "only {all}: the kills have used up more than is left to see");
    drop(client);
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
    println!("{} kills, {all} of {CREDITS} units admitted", kills());
}

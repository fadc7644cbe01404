//! The real binary, killed as the system kills when memory runs out, while clients charge operations and send each again until
//! it is answered: each is charged once, in every budget and in the usage, and what is given back is given back once.
#![cfg(test)]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Bearer, GLANCE, Home, Keys, Server, dice};
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::*;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// How often it is killed; `make soak` asks for more.
const KILLS_DEFAULT: u64 = 20;
const CLIENTS: usize = 8;
/// So much that it never runs out: of what is refused nothing would be seen.
const CAPACITY: i64 = 1_000_000_000;
/// Every so many operations one is given back.
const REFUNDED_EACH: usize = 5;

fn kills() -> u64 {
    std::env::var("TOLLGATE_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS_DEFAULT)
}

/// Where the server is now, and who calls.
#[derive(Debug)]
struct Target {
    addr: Mutex<SocketAddr>,
    token: String,
    stop: AtomicBool,
}

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    operations: i64,
    refunds: i64,
    /// Cost units charged and not given back.
    units: i64,
    /// Calls that had to be sent again.
    retries: i64,
}

impl Target {
    fn client(&self) -> Keys {
        let addr = *self.addr.lock().unwrap();
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
        KeyServiceClient::with_interceptor(channel, Bearer::new(&self.token))
    }

    /// After a call that was cut off: another connection, perhaps to the next server. Any other failure is one of the test.
    async fn reconnect(&self, told: &mut Told, status: &Status) -> Keys {
        let away = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
        assert!(away, "{status:?}");
        told.retries += 1;
        tokio::time::sleep(GLANCE).await;
        self.client()
    }
}

/// Charges one operation after the other.
async fn charge(target: Arc<Target>, secret: String, account_id: String, name: String) -> Told {
    let mut client = target.client();
    let mut told = Told::default();
    for i in 0.. {
        if target.stop.load(Ordering::Relaxed) {
            break;
        }
        let (id, cost) = (format!("{name}-{i}"), i64::from(u8::try_from(i % 4).unwrap()));
        let check = CheckKeyRequest {
            key: secret.clone(),
            operation_id: id.clone(),
            cost: Some(cost),
            ..CheckKeyRequest::default()
        };
        let answer = loop {
            match client.check_key(check.clone()).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => client = target.reconnect(&mut told, &status).await,
            }
        };
        assert!(answer.allowed, "{answer:?}");
        told.operations += 1;
        told.units += cost;
        if i % REFUNDED_EACH == 0 {
            refund(
                &target,
                &mut client,
                &mut told,
                RefundCheckRequest { operation_id: id, account_id: account_id.clone() },
            )
            .await;
            told.units -= cost;
        }
    }
    told
}

/// Gives an operation back.
async fn refund(target: &Target, client: &mut Keys, told: &mut Told, refund: RefundCheckRequest) {
    let retries = told.retries;
    loop {
        match client.refund_check(refund.clone()).await {
            Ok(_) => break,
            // The answer was lost, and not what it said.
            Err(status) if status.code() == Code::FailedPrecondition && told.retries > retries => break,
            Err(status) => *client = target.reconnect(told, &status).await,
        }
    }
    told.refunds += 1;
}

/// An account with credits and a pooled limit, and a key with two limits of its own. The account, the key and its secret.
async fn make_key(server: &Server, token: &str) -> (String, String, String) {
    let account_id = server.account(token).await;
    let mut accounts = AccountServiceClient::with_interceptor(server.channel().await, Bearer::new(token));
    let limit = |name: &str, algorithm: Algorithm| Limit {
        name: name.into(),
        capacity: CAPACITY,
        period: Period::Month.into(),
        algorithm: algorithm.into(),
        ..Limit::default()
    };
    let account = Account {
        id: account_id.clone(),
        account_limits: vec![limit("pool", Algorithm::FixedWindow)],
        monthly_credits: Some(CAPACITY),
        ..Account::default()
    };
    let paths = ["account_limits", "monthly_credits"].map(str::to_owned).to_vec();
    let update_mask = Some(prost_types::FieldMask { paths });
    accounts.update_account(UpdateAccountRequest { account: Some(account), update_mask }).await.unwrap();
    let limits = vec![limit("fixed", Algorithm::FixedWindow), limit("sliding", Algorithm::SlidingWindow)];
    let key = Key { account_id: account_id.clone(), name: "k".into(), limits, ..Key::default() };
    let made = server.keys(token).await.create_key(CreateKeyRequest { key: Some(key) }).await.unwrap().into_inner();
    (account_id, made.key.unwrap().id, made.secret)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_operation_is_charged_once_however_often_the_server_is_killed() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let (account_id, key_id, secret) = make_key(&server, &home.token).await;
    let target =
        Arc::new(Target { addr: Mutex::new(server.grpc), token: home.token.clone(), stop: AtomicBool::new(false) });
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..CLIENTS {
        clients.spawn(charge(Arc::clone(&target), secret.clone(), account_id.clone(), format!("client-{i}")));
    }
    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_millis(50 + dice(150))).await;
        server.kill();
        server = home.serve(&[]);
        *target.addr.lock().unwrap() = server.grpc;
    }
    target.stop.store(true, Ordering::Relaxed);
    let told = clients.join_all().await.into_iter().fold(Told::default(), |all, one| Told {
        operations: all.operations + one.operations,
        refunds: all.refunds + one.refunds,
        units: all.units + one.units,
        retries: all.retries + one.retries,
    });
    println!("{} kills, {told:?}", kills());
    assert!(told.retries > 0, "no call was cut off");

    let mut client = server.keys(&home.token).await;
    let usage = GetUsageRequest { key_id: key_id.clone(), ..GetUsageRequest::default() };
    let totals = client.get_usage(usage).await.unwrap().into_inner().totals.unwrap();
    assert_eq!((totals.requests, totals.denied, totals.credits), (told.operations, 0, told.units));
    let left = client.get_limits(GetLimitsRequest { id: key_id }).await.unwrap().into_inner();
    let mut remaining: Vec<i64> = left.limits.iter().map(|limit| limit.remaining).collect();
    remaining.push(left.credits.unwrap().remaining);
    assert_eq!(remaining, [CAPACITY - told.units; 4]);
    drop(client);
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

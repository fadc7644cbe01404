//! `GetLimits`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, OTHER_ACCOUNT, Server, key, limit, of, reason, refused};

fn get(id: &str) -> GetLimitsRequest {
    GetLimitsRequest { id: id.to_owned() }
}

#[tokio::test]
async fn it_agrees_with_what_a_check_says() {
    let server = Server::start().await;
    let change = Account {
        id: ACCOUNT.to_owned(),
        account_limits: vec![limit("pool", 100, Period::Day)],
        monthly_credits: Some(50),
        ..Account::default()
    };
    server.change_account(change, &[]).await;
    let sliding = Limit { algorithm: Algorithm::SlidingWindow.into(), ..limit("sliding", 8, Period::Minute) };
    let limits = vec![limit("hourly", 10, Period::Hour), sliding];
    let made = server.key(Key { limits, ..key("k") }).await;
    let id = made.key.unwrap().id;
    let checked = server.ask(CheckKeyRequest { cost: Some(3), ..of(&made.secret) }).await;
    for _ in 0..2 {
        let own = server.caller(&made.secret).get_limits(get("")).await.unwrap();
        let by_id = server.operator.get_limits(get(&id)).await.unwrap();
        assert_eq!(own, by_id);
        assert_eq!((own.limits, own.credits), (checked.limits.clone(), checked.credits));
        // 5 of 8 is the smallest part that is left.
        assert_eq!((own.limit, own.remaining), (Some(8), Some(5)));
        assert_eq!(own.reset_at, checked.limits[1].reset_time);
        assert_eq!(own.reset, own.reset_at.map(|time| time.seconds));
    }
}

#[tokio::test]
async fn the_reset_is_rounded_up_to_a_second() {
    let server = Server::start().await;
    let sliding =
        Limit { algorithm: Algorithm::SlidingWindow.into(), period_seconds: 7, ..limit("s", 5, Period::Seconds) };
    let made = server.key(Key { limits: vec![sliding], ..key("k") }).await;
    server.clock.advance(std::time::Duration::from_millis(123));
    server.check(&made.secret).await;
    let found = server.caller(&made.secret).get_limits(get("")).await.unwrap();
    let reset_at = found.reset_at.unwrap();
    assert_ne!(reset_at.nanos, 0, "the case that is meant");
    assert_eq!(found.reset, Some(reset_at.seconds + 1));
}

#[tokio::test]
async fn without_limits_the_first_fields_are_unset() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    assert_eq!(server.caller(&secret).get_limits(get("")).await.unwrap(), GetLimitsResponse::default());
}

#[tokio::test]
async fn its_own_limits_any_key_may_ask_and_others_take_a_scope() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await.key.unwrap().id;
    let plain = server.caller(&secret);
    plain.get_limits(get("")).await.unwrap();
    let status = refused(plain.get_limits(get(&id)).await, Code::PermissionDenied);
    assert_eq!(reason(&status), "PERMISSION_DENIED");
    let reader = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    reader.get_limits(get(&id)).await.unwrap();
    for id in [other.as_str(), &server.operator_key_id, "key_0000000000000000000000", "nonsense"] {
        refused(reader.get_limits(get(id)).await, Code::NotFound);
    }
}

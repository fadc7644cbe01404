//! `GetKey`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{OTHER_ACCOUNT, PLAN, Server, account, at, invalid, key, of, of_from, refused};

fn get(id: &str) -> GetKeyRequest {
    GetKeyRequest { id: id.to_owned() }
}

#[tokio::test]
async fn usage_is_of_today_and_of_this_month() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    let usage = async || {
        server.flush().await;
        let usage = server.get_key(&id).await.usage.unwrap();
        (usage.requests_today, usage.requests_this_month)
    };
    assert_eq!(usage().await, (0, 0));
    server.check(&secret).await;
    server.ask(CheckKeyRequest { all_of: vec!["a:b".to_owned()], ..of(&secret) }).await;
    assert_eq!(usage().await, (2, 2));
    server.set_time("2026-03-11T00:00:00Z");
    assert_eq!(usage().await, (0, 2));
    server.check(&secret).await;
    assert_eq!(usage().await, (1, 3));
    server.set_time("2026-04-01T00:00:00Z");
    assert_eq!(usage().await, (0, 0));
}

#[tokio::test]
async fn days_begin_at_the_accounts_midnight() {
    let server = Server::start().await;
    server.account(Account { time_zone: "Asia/Tokyo".to_owned(), ..account("acct_jp", PLAN) }).await;
    let made = server.key(Key { account_id: "acct_jp".to_owned(), ..key("k") }).await;
    let id = made.key.unwrap().id;
    // 23:30 and 00:30 in Tokyo.
    for (time, today) in [("2026-03-11T14:30:00Z", 1), ("2026-03-11T15:30:00Z", 1)] {
        server.set_time(time);
        server.check(&made.secret).await;
        server.flush().await;
        assert_eq!(server.get_key(&id).await.usage.unwrap().requests_today, today, "{time}");
    }
}

#[tokio::test]
async fn the_last_use_is_told_after_a_flush() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    let last = async || {
        server.flush().await;
        let key = server.get_key(&id).await;
        (key.last_used_time, key.last_used_ip)
    };
    assert_eq!(last().await, (None, String::new()));
    let used_at = server.now();
    server.ask(of_from(&secret, "2001:db8::1")).await;
    assert_eq!(last().await, (Some(used_at), "2001:db8::1".to_owned()));
    // Neither a denial nor a peek is a use.
    server.advance(10);
    server.ask(CheckKeyRequest { all_of: vec!["a:b".to_owned()], ..of_from(&secret, "192.0.2.1") }).await;
    server.ask(CheckKeyRequest { mode: Mode::Peek.into(), ..of_from(&secret, "192.0.2.1") }).await;
    assert_eq!(last().await, (Some(used_at), "2001:db8::1".to_owned()));
    server.ask(of_from(&secret, "192.0.2.9")).await;
    assert_eq!(last().await, (Some(server.now()), "192.0.2.9".to_owned()));
}

#[tokio::test]
async fn the_status_follows_from_what_was_done_and_from_the_clock() {
    let server = Server::start().await;
    let expire_time = server.in_seconds(60);
    let id = server.key(Key { expire_time, ..key("k") }).await.key.unwrap().id;
    let status = async || server.get_key(&id).await.status();
    assert_eq!(status().await, Status::Active);
    server.change_key(Key { id: id.clone(), status: Status::Disabled.into(), ..Key::default() }, &[]).await;
    assert_eq!(status().await, Status::Disabled);
    server.advance(60);
    assert_eq!(status().await, Status::Expired);
    server.revoke(&id).await;
    assert_eq!(status().await, Status::Revoked);
    assert_eq!(server.get_key(&id).await.revoke_time, Some(at("2026-03-10T12:01:00Z")));
}

#[tokio::test]
async fn an_id_of_nothing_is_not_found() {
    let server = Server::start().await;
    for id in ["key_0000000000000000000000", "key_1", "acct_a", "nonsense", "key_00000000000000000000é", "\u{1b}[31m"]
    {
        let status = refused(server.operator.get_key(get(id)).await, Code::NotFound);
        assert!(!status.message().contains('\u{1b}'));
    }
    assert_eq!(invalid(server.operator.get_key(get("")).await), ["id"]);
    // A secret sent in the place of an id does not come back whole.
    let (_, secret) = server.plain_key("k").await;
    let status = refused(server.operator.get_key(get(&secret)).await, Code::NotFound);
    assert!(!format!("{status:?}").contains(&secret));
}

#[tokio::test]
async fn a_customer_sees_its_own_keys_alone() {
    let server = Server::start().await;
    let (own, _) = server.plain_key("own").await;
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await.key.unwrap().id;
    let customer = server.caller_of("acct_a", &["tollgate:keys:read"]).await;
    assert_eq!(customer.get_key(get(&own)).await.unwrap().name, "own");
    refused(customer.get_key(get(&other)).await, Code::NotFound);
    refused(customer.get_key(get(&server.operator_key_id)).await, Code::NotFound);
}

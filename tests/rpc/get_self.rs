//! `GetSelf`.

use tollgate::proto::v1::*;

use crate::harness::{ACCOUNT, PLAN, Server, account, key, limit, of, of_from, plan};

#[tokio::test]
async fn it_agrees_with_what_a_check_says() {
    let server = Server::start().await;
    let tier = Plan {
        key_limits: vec![limit("requests", 10, Period::Hour)],
        account_limits: vec![limit("pool", 20, Period::Hour)],
        monthly_credits: Some(100),
        ..plan("professional")
    };
    server.plan(tier).await;
    server.account(account("acct_p", "professional")).await;
    let made = server.key(Key { account_id: "acct_p".to_owned(), ..key("k") }).await;
    let checked = server.ask(CheckKeyRequest { cost: Some(4), ..of(&made.secret) }).await;
    let caller = server.caller(&made.secret);
    for _ in 0..3 {
        let found = caller.get_self(GetSelfRequest {}).await.unwrap();
        assert_eq!(found.tier, "professional");
        assert_eq!((found.credits_remaining, found.monthly_allowance), (Some(96), Some(100)));
        assert_eq!(found.limits, checked.limits);
        assert_eq!(found.create_time, made.key.as_ref().unwrap().create_time);
        let key = found.key.unwrap();
        assert_eq!(key, *made.key.as_ref().unwrap());
    }
    let costless = server.ask(CheckKeyRequest { cost: Some(0), ..of(&made.secret) }).await;
    assert_eq!(costless.limits, checked.limits, "asking costs nothing");
}

#[tokio::test]
async fn what_is_not_counted_is_unset() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let found = server.caller(&secret).get_self(GetSelfRequest {}).await.unwrap();
    assert_eq!((found.tier.as_str(), found.credits_remaining, found.monthly_allowance), (PLAN, None, None));
    assert!(found.limits.is_empty());
    // A test key uses no credits.
    let change = Account { id: ACCOUNT.to_owned(), monthly_credits: Some(5), ..Account::default() };
    server.change_account(change, &[]).await;
    let test = server.key(Key { environment: Environment::Test.into(), ..key("test") }).await.secret;
    let found = server.caller(&test).get_self(GetSelfRequest {}).await.unwrap();
    assert_eq!((found.credits_remaining, found.monthly_allowance), (None, None));
    let found = server.caller(&secret).get_self(GetSelfRequest {}).await.unwrap();
    assert_eq!((found.credits_remaining, found.monthly_allowance), (Some(5), Some(5)));
}

#[tokio::test]
async fn the_last_use_is_told() {
    let server = Server::start().await;
    let (id, secret) = server.plain_key("k").await;
    let used_at = server.now();
    server.ask(of_from(&secret, "192.0.2.1")).await;
    server.flush().await;
    let found = server.caller(&secret).get_self(GetSelfRequest {}).await.unwrap();
    assert_eq!(found.last_used_time, Some(used_at));
    assert_eq!(found.key.unwrap().last_used_time, Some(used_at));
    // Asking about itself is a use of the key, from the caller's own address.
    server.advance(30);
    server.caller(&secret).get_self(GetSelfRequest {}).await.unwrap();
    server.flush().await;
    let key = server.get_key(&id).await;
    assert_eq!((key.last_used_time, key.last_used_ip.as_str()), (Some(server.now()), "127.0.0.1"));
}

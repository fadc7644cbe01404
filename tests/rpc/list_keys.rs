//! `ListKeys`.

use prost::Message as _;
use tollgate::proto::v1::*;
use tonic::Code;

use crate::client::Client;
use crate::harness::{ACCOUNT, OTHER_ACCOUNT, Server, invalid, key, refused};

fn of_account(account_id: &str) -> ListKeysRequest {
    ListKeysRequest { account_id: account_id.to_owned(), ..ListKeysRequest::default() }
}

fn names(answer: &ListKeysResponse) -> Vec<&str> {
    answer.keys.iter().map(|key| key.name.as_str()).collect()
}

/// Follows the tokens to the end; the names of each page.
async fn pages(client: &Client, mut request: ListKeysRequest) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    loop {
        let answer = client.list_keys(request.clone()).await.unwrap();
        pages.push(answer.keys.into_iter().map(|key| key.name).collect());
        if answer.next_page_token.is_empty() {
            return pages;
        }
        request.page_token = answer.next_page_token;
    }
}

#[tokio::test]
async fn pages_hold_every_key_once_in_the_order_of_making() {
    let server = Server::start().await;
    let expected: Vec<String> = (0..7).map(|i| format!("k{i}")).collect();
    for name in &expected {
        server.plain_key(name).await;
    }
    for (page_size, sizes) in [(1, vec![1; 7]), (3, vec![3, 3, 1]), (7, vec![7]), (0, vec![7]), (1_000, vec![7])] {
        let pages = pages(&server.operator, ListKeysRequest { page_size, ..of_account(ACCOUNT) }).await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), sizes, "{page_size}");
        assert_eq!(pages.concat(), expected);
    }
    let key = server.operator.list_keys(of_account(ACCOUNT)).await.unwrap().keys.remove(0);
    assert_eq!(key.usage, None, "GetKey alone fills it in");
    assert_eq!(Key { usage: None, ..server.get_key(&key.id).await }, key);
}

#[tokio::test]
async fn keys_made_and_ended_meanwhile_neither_shift_nor_repeat_a_page() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for i in 0..6 {
        ids.push(server.plain_key(&format!("k{i}")).await.0);
    }
    let request = ListKeysRequest { page_size: 2, ..of_account(ACCOUNT) };
    let first = server.operator.list_keys(request.clone()).await.unwrap();
    assert_eq!(names(&first), ["k0", "k1"]);
    server.plain_key("later").await;
    server.revoke(&ids[0]).await;
    server.revoke(&ids[3]).await;
    let page_token = first.next_page_token;
    let rest = pages(&server.operator, ListKeysRequest { page_token, ..request }).await;
    assert_eq!(rest, [vec!["k2", "k3"], vec!["k4", "k5"], vec!["later"]]);
}

#[tokio::test]
async fn the_size_of_a_page_has_bounds() {
    let server = Server::start().await;
    let rows = (0..101).map(|i| ImportKeysRequest {
        dry_run: false,
        key: Some(ImportedKey { hash: format!("{i:064x}"), key: Some(key(&format!("k{i}"))) }),
    });
    server.operator.import_keys(rows.collect()).await.unwrap();
    for (page_size, expected) in [(0, 100), (5_000, 101), (i32::MAX, 101)] {
        let request = ListKeysRequest { page_size, ..of_account(ACCOUNT) };
        assert_eq!(server.operator.list_keys(request).await.unwrap().keys.len(), expected, "{page_size}");
    }
    for page_size in [-1, i32::MIN] {
        let request = ListKeysRequest { page_size, ..of_account(ACCOUNT) };
        assert_eq!(invalid(server.operator.list_keys(request).await), ["page_size"]);
    }
}

#[tokio::test]
async fn a_page_of_large_keys_ends_before_it_is_too_large_for_a_client() {
    let server = Server::start().await;
    let large = |i: usize| Key {
        description: "🔑".repeat(1_000),
        metadata: (0..16).map(|n| (format!("{n:040}"), "🔑".repeat(200))).collect(),
        scopes: (0..64).map(|n| format!("{}:{n:04}", "s".repeat(95))).collect(),
        restrictions: Some(Restrictions {
            allowed_endpoints: (0..64).map(|n| format!("GET /{n:02}{}", "x".repeat(280))).collect(),
            ..Restrictions::default()
        }),
        ..key(&format!("k{i:03}"))
    };
    let rows = (0..150).map(|i| ImportKeysRequest {
        dry_run: false,
        key: Some(ImportedKey { hash: format!("{i:064x}"), key: Some(large(i)) }),
    });
    assert_eq!(server.operator.import_keys(rows.collect()).await.unwrap().imported, 150);
    let request = ListKeysRequest { page_size: 1_000, ..of_account(ACCOUNT) };
    let first = server.operator.list_keys(request.clone()).await.unwrap();
    assert!(first.encoded_len() < 4 << 20 && first.keys.len() > 10, "{} keys", first.keys.len());
    let pages = pages(&server.operator, request).await;
    assert!(pages.len() > 1);
    assert_eq!(pages.concat(), (0..150).map(|i| format!("k{i:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_token_is_good_for_its_own_list_alone() {
    let server = Server::start().await;
    for i in 0..3 {
        server.plain_key(&format!("k{i}")).await;
        server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key(&format!("k{i}")) }).await;
    }
    let first = ListKeysRequest { page_size: 1, ..of_account(ACCOUNT) };
    let page_token = server.operator.list_keys(first.clone()).await.unwrap().next_page_token;
    let next = ListKeysRequest { page_token: page_token.clone(), ..first.clone() };
    assert_eq!(names(&server.operator.list_keys(next.clone()).await.unwrap()), ["k1"]);
    // Its size may change on the way.
    let wider = ListKeysRequest { page_size: 2, ..next.clone() };
    assert_eq!(names(&server.operator.list_keys(wider).await.unwrap()), ["k1", "k2"]);

    let filter = Some(KeyFilter { status: Status::Active.into(), ..KeyFilter::default() });
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    let rows = [
        (&server.operator, ListKeysRequest { account_id: OTHER_ACCOUNT.to_owned(), ..next.clone() }),
        (&server.operator, ListKeysRequest { account_id: String::new(), ..next.clone() }),
        (&server.operator, ListKeysRequest { filter, ..next.clone() }),
        (&server.operator, ListKeysRequest { page_token: "nonsense".to_owned(), ..first.clone() }),
        (&server.operator, ListKeysRequest { page_token: format!("{page_token}A"), ..first.clone() }),
        (&server.operator, ListKeysRequest { page_token: page_token[1..].to_owned(), ..first.clone() }),
        (&customer, next),
    ];
    for (client, request) in rows {
        let shown = format!("{request:?}");
        assert_eq!(invalid(client.list_keys(request).await), ["page_token"], "{shown}");
    }
    let of_plans = ListPlansRequest { page_size: 1, ..ListPlansRequest::default() };
    let page_token = server.operator.list_plans(of_plans).await.unwrap().next_page_token;
    assert!(!page_token.is_empty());
    assert_eq!(invalid(server.operator.list_keys(ListKeysRequest { page_token, ..first }).await), ["page_token"]);
}

#[tokio::test]
async fn conditions_must_all_hold() {
    let server = Server::start().await;
    let (_, used) = server.plain_key("used").await;
    let test = Key { environment: Environment::Test.into(), ..key("test") };
    let prefix = server.key(test).await.key.unwrap().prefix;
    server.key(Key { expire_time: server.in_seconds(60), ..key("expired") }).await;
    server.key(Key { expire_time: server.in_seconds(3_600), ..key("expiring") }).await;
    let (id, _) = server.plain_key("disabled").await;
    server.change_key(Key { id, status: Status::Disabled.into(), ..Key::default() }, &[]).await;
    let (id, _) = server.plain_key("revoked").await;
    server.revoke(&id).await;
    server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("foreign") }).await;
    server.advance(60);
    let unused_since = server.in_seconds(0);
    server.check(&used).await;
    server.plain_key("new").await;
    server.flush().await;

    let any = KeyFilter::default;
    let state = |status: Status| KeyFilter { status: status.into(), ..any() };
    let until = |seconds| KeyFilter { expires_before: server.in_seconds(seconds), ..any() };
    let test = || KeyFilter { environment: Environment::Test.into(), ..any() };
    let rows: Vec<(KeyFilter, &[&str])> = vec![
        (any(), &["used", "test", "expired", "expiring", "disabled", "revoked", "new"]),
        (state(Status::Active), &["used", "test", "expiring", "new"]),
        (state(Status::Disabled), &["disabled"]),
        (state(Status::Revoked), &["revoked"]),
        (state(Status::Expired), &["expired"]),
        (test(), &["test"]),
        (KeyFilter { environment: Environment::Live.into(), ..state(Status::Active) }, &["used", "expiring", "new"]),
        (KeyFilter { prefix: "sk_test_".to_owned(), ..any() }, &["test"]),
        (KeyFilter { prefix, ..any() }, &["test"]),
        (KeyFilter { prefix: "sk_l%".to_owned(), ..any() }, &[]),
        (KeyFilter { unused_since, ..any() }, &["test", "expired", "expiring", "disabled", "revoked"]),
        (KeyFilter { unused_since, ..test() }, &["test"]),
        (until(1), &["expired"]),
        (until(3_600), &["expired", "expiring"]),
        (KeyFilter { status: Status::Active.into(), ..until(3_600) }, &["expiring"]),
    ];
    for (filter, expected) in rows {
        let shown = format!("{filter:?}");
        let answer = server.operator.list_keys(ListKeysRequest { filter: Some(filter.clone()), ..of_account(ACCOUNT) });
        assert_eq!(names(&answer.await.unwrap()), expected, "{shown}");
        // Cut into pages, the same.
        let request = ListKeysRequest { filter: Some(filter), page_size: 2, ..of_account(ACCOUNT) };
        assert_eq!(pages(&server.operator, request).await.concat(), expected, "{shown}");
    }
    let everybodys = server.operator.list_keys(of_account("")).await.unwrap();
    assert_eq!(everybodys.keys.len(), 9, "those of both accounts and the operator's: {:?}", names(&everybodys));
}

#[tokio::test]
async fn each_wrong_condition_is_named() {
    let server = Server::start().await;
    let nonsense = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    let rows = [
        (KeyFilter { status: 5, ..KeyFilter::default() }, "filter.status"),
        (KeyFilter { environment: -3, ..KeyFilter::default() }, "filter.environment"),
        (KeyFilter { unused_since: nonsense, ..KeyFilter::default() }, "filter.unused_since"),
        (KeyFilter { expires_before: nonsense, ..KeyFilter::default() }, "filter.expires_before"),
    ];
    for (filter, field) in rows {
        let request = ListKeysRequest { filter: Some(filter), ..of_account(ACCOUNT) };
        assert_eq!(invalid(server.operator.list_keys(request).await), [field]);
    }
}

#[tokio::test]
async fn a_customer_lists_its_own_account_alone() {
    let server = Server::start().await;
    server.plain_key("own").await;
    server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    for account_id in ["", ACCOUNT] {
        let answer = customer.list_keys(of_account(account_id)).await.unwrap();
        assert_eq!(names(&answer), ["own", "caller 1"]);
    }
    for account_id in [OTHER_ACCOUNT, "acct_operator", "acct_nobody", "nonsense"] {
        refused(customer.list_keys(of_account(account_id)).await, Code::NotFound);
    }
    for account_id in ["acct_nobody", "nonsense"] {
        refused(server.operator.list_keys(of_account(account_id)).await, Code::NotFound);
    }
}

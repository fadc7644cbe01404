//! `ListAccounts`.

use tollgate::proto::v1::*;

use crate::harness::{ACCOUNT, PLAN, Server, account, invalid};

fn page(page_size: i32, page_token: &str) -> ListAccountsRequest {
    ListAccountsRequest { page_size, page_token: page_token.to_owned() }
}

fn ids(answer: &ListAccountsResponse) -> Vec<&str> {
    answer.accounts.iter().map(|account| account.id.as_str()).collect()
}

#[tokio::test]
async fn pages_in_the_order_of_ids_whatever_is_made_meanwhile() {
    let server = Server::start().await;
    for id in ["acct_d", "acct_c"] {
        server.account(account(id, PLAN)).await;
    }
    let all = server.operator.list_accounts(page(0, "")).await.unwrap();
    assert_eq!(ids(&all), ["acct_a", "acct_b", "acct_c", "acct_d", "acct_operator"]);
    assert!(all.next_page_token.is_empty());
    let first = server.operator.list_accounts(page(2, "")).await.unwrap();
    assert_eq!(ids(&first), ["acct_a", "acct_b"]);
    for id in ["acct_aa", "acct_bb"] {
        server.account(account(id, PLAN)).await;
    }
    let second = server.operator.list_accounts(page(2, &first.next_page_token)).await.unwrap();
    assert_eq!(ids(&second), ["acct_bb", "acct_c"]);
    let third = server.operator.list_accounts(page(2, &second.next_page_token)).await.unwrap();
    assert_eq!((ids(&third), third.next_page_token.as_str()), (vec!["acct_d", "acct_operator"], ""));
    assert_eq!(
        third.accounts[0],
        server.operator.get_account(GetAccountRequest { id: "acct_d".to_owned() }).await.unwrap()
    );
}

#[tokio::test]
async fn what_is_no_page() {
    let server = Server::start().await;
    assert_eq!(invalid(server.operator.list_accounts(page(-1, "")).await), ["page_size"]);
    let first = server.operator.list_accounts(page(1, "")).await.unwrap();
    let of_plans = server.operator.list_plans(ListPlansRequest { page_size: 1, ..ListPlansRequest::default() });
    let of_plans = of_plans.await.unwrap().next_page_token;
    for token in ["nonsense", &of_plans, &format!("{}AAAA", first.next_page_token)] {
        assert_eq!(invalid(server.operator.list_accounts(page(1, token)).await), ["page_token"], "{token}");
    }
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    let foreign = customer.list_accounts(page(1, &first.next_page_token)).await;
    assert_eq!(invalid(foreign), ["page_token"], "the token of another caller's list");
    let own = customer.list_accounts(page(1, "")).await.unwrap();
    assert_eq!((ids(&own), own.next_page_token.as_str()), (vec![ACCOUNT], ""));
}

//! `ListPlans`.

use tollgate::proto::v1::*;

use crate::harness::{ACCOUNT, PLAN, Server, invalid, plan};

fn page(page_size: i32, page_token: &str) -> ListPlansRequest {
    ListPlansRequest { page_size, page_token: page_token.to_owned() }
}

fn ids(answer: &ListPlansResponse) -> Vec<&str> {
    answer.plans.iter().map(|plan| plan.id.as_str()).collect()
}

#[tokio::test]
async fn pages_in_the_order_of_ids_whatever_is_made_meanwhile() {
    let server = Server::start().await;
    for id in ["pro", "free"] {
        server.plan(plan(id)).await;
    }
    let all = server.operator.list_plans(page(0, "")).await.unwrap();
    assert_eq!((ids(&all), all.next_page_token.as_str()), (vec!["basic", "free", "operator", "pro"], ""));
    let first = server.operator.list_plans(page(2, "")).await.unwrap();
    assert_eq!(ids(&first), ["basic", "free"]);
    server.plan(plan("a-new-one")).await;
    server.plan(plan("gold")).await;
    let second = server.operator.list_plans(page(2, &first.next_page_token)).await.unwrap();
    assert_eq!(ids(&second), ["gold", "operator"]);
    let third = server.operator.list_plans(page(2, &second.next_page_token)).await.unwrap();
    assert_eq!((ids(&third), third.next_page_token.as_str()), (vec!["pro"], ""));
    assert_eq!(third.plans[0], server.operator.get_plan(GetPlanRequest { id: "pro".to_owned() }).await.unwrap());
}

#[tokio::test]
async fn what_is_no_page() {
    let server = Server::start().await;
    assert_eq!(invalid(server.operator.list_plans(page(-1, "")).await), ["page_size"]);
    let first = server.operator.list_plans(page(1, "")).await.unwrap();
    let of_accounts = server.operator.list_accounts(ListAccountsRequest { page_size: 1, ..Default::default() });
    let of_accounts = of_accounts.await.unwrap().next_page_token;
    for token in ["nonsense", &of_accounts, &first.next_page_token[..4]] {
        assert_eq!(invalid(server.operator.list_plans(page(1, token)).await), ["page_token"], "{token}");
    }
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    assert_eq!(invalid(customer.list_plans(page(1, &first.next_page_token)).await), ["page_token"]);
    assert_eq!(ids(&customer.list_plans(page(1, "")).await.unwrap()), [PLAN]);
}

//! `GetPlan`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, PLAN, Server, invalid, plan, refused};

fn get(id: &str) -> GetPlanRequest {
    GetPlanRequest { id: id.to_owned() }
}

#[tokio::test]
async fn one_by_its_id() {
    let server = Server::start().await;
    let made = server.plan(plan("new")).await;
    assert_eq!(server.operator.get_plan(get("new")).await.unwrap(), made);
    assert!(server.operator.get_plan(get("operator")).await.unwrap().api_access);
    for id in ["nothing", "NONSENSE", "é"] {
        refused(server.operator.get_plan(get(id)).await, Code::NotFound);
    }
    assert_eq!(invalid(server.operator.get_plan(get("")).await), ["id"]);
}

#[tokio::test]
async fn a_customer_sees_the_one_that_it_is_on() {
    let server = Server::start().await;
    server.plan(plan("other")).await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    assert_eq!(customer.get_plan(get(PLAN)).await.unwrap().id, PLAN);
    for id in ["other", "operator", "nothing"] {
        refused(customer.get_plan(get(id)).await, Code::NotFound);
    }
    let change = Account { id: ACCOUNT.to_owned(), plan: "other".to_owned(), ..Account::default() };
    server.change_account(change, &[]).await;
    customer.get_plan(get("other")).await.unwrap();
    refused(customer.get_plan(get(PLAN)).await, Code::NotFound);
}

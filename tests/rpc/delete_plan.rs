//! `DeletePlan`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{PLAN, Server, account, invalid, plan, precondition, reason, refused};

fn delete(id: &str, etag: &str) -> DeletePlanRequest {
    DeletePlanRequest { id: id.to_owned(), etag: etag.to_owned() }
}

#[tokio::test]
async fn a_plan_that_nobody_is_on_goes() {
    let server = Server::start().await;
    server.plan(plan("unused")).await;
    server.operator.delete_plan(delete("unused", "")).await.unwrap();
    refused(server.operator.get_plan(GetPlanRequest { id: "unused".to_owned() }).await, Code::NotFound);
    refused(server.operator.delete_plan(delete("unused", "")).await, Code::NotFound);
    let onto = CreateAccountRequest { account: Some(account("acct_late", "unused")) };
    assert_eq!(precondition(server.operator.create_account(onto).await), "NO_SUCH_PLAN");
    // Its id is free again.
    server.plan(plan("unused")).await;
    server.account(account("acct_late", "unused")).await;
}

#[tokio::test]
async fn a_plan_in_use_stays_until_its_accounts_have_left() {
    let server = Server::start().await;
    server.plan(plan("left")).await;
    server.account(account("acct_m", "left")).await;
    assert_eq!(precondition(server.operator.delete_plan(delete("left", "")).await), "PLAN_IN_USE");
    server.change_account(account("acct_m", PLAN), &["plan"]).await;
    server.operator.delete_plan(delete("left", "")).await.unwrap();
}

#[tokio::test]
async fn what_stands_in_the_way_is_told() {
    let server = Server::start().await;
    let first = server.plan(plan("p")).await.etag;
    let second = server.change_plan(Plan { display_name: "P".to_owned(), ..plan("p") }, &[]).await.etag;
    assert_eq!(reason(&refused(server.operator.delete_plan(delete("p", &first)).await, Code::Aborted)), "ETAG_STALE");
    server.operator.delete_plan(delete("p", &second)).await.unwrap();
    assert_eq!(precondition(server.operator.delete_plan(delete("operator", "")).await), "BUILT_IN");
    assert_eq!(invalid(server.operator.delete_plan(delete("", "")).await), ["id"]);
    for id in ["nothing", "NONSENSE"] {
        refused(server.operator.delete_plan(delete(id, "")).await, Code::NotFound);
    }
}

//! `GetAccount`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, OTHER_ACCOUNT, PLAN, Server, account, invalid, refused};

fn get(id: &str) -> GetAccountRequest {
    GetAccountRequest { id: id.to_owned() }
}

#[tokio::test]
async fn one_by_its_id() {
    let server = Server::start().await;
    let made = server.account(account("acct_new", PLAN)).await;
    assert_eq!(server.operator.get_account(get("acct_new")).await.unwrap(), made);
    let built_in = server.operator.get_account(get("acct_operator")).await.unwrap();
    assert_eq!((built_in.plan.as_str(), built_in.status()), ("operator", AccountStatus::Active));
    for id in ["acct_nobody", "nonsense", "acct_é"] {
        refused(server.operator.get_account(get(id)).await, Code::NotFound);
    }
    assert_eq!(invalid(server.operator.get_account(get("")).await), ["id"]);
}

#[tokio::test]
async fn a_customer_sees_its_own() {
    let server = Server::start().await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    assert_eq!(customer.get_account(get(ACCOUNT)).await.unwrap().id, ACCOUNT);
    for id in [OTHER_ACCOUNT, "acct_operator", "acct_nobody"] {
        refused(customer.get_account(get(id)).await, Code::NotFound);
    }
}

//! `RefundCheck`, which is still to come.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, Server, refused};

#[tokio::test]
async fn it_is_not_implemented_and_says_so_to_those_who_may_call_it() {
    let server = Server::start().await;
    let request = || RefundCheckRequest { operation_id: "op-1".to_owned() };
    let status = refused(server.operator.refund_check(request()).await, Code::Unimplemented);
    assert!(status.message().contains("RefundCheck"), "{status:?}");
    let other = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    refused(other.refund_check(request()).await, Code::PermissionDenied);
    refused(server.anonymous().refund_check(request()).await, Code::Unauthenticated);
}

//! Who may call what: every call of the contract, with the scope that it takes.

use std::collections::BTreeSet;
use std::pin::Pin;

use prost_reflect::DescriptorPool;
use tollgate::proto::{DESCRIPTORS, v1::*};
use tonic::{Code, Status as Refusal};

use crate::client::Client;
use crate::harness::{ACCOUNT, OTHER_ACCOUNT, PLAN, Server, account, key, of, plan, reason, refused, strings};
use crate::wire;

const CHECK: &str = "tollgate:check";
const READ: &str = "tollgate:keys:read";
const WRITE: &str = "tollgate:keys:write";
const USAGE: &str = "tollgate:usage:read";
const ADMIN: &str = "tollgate:admin";
const ALL: [&str; 5] = [CHECK, READ, WRITE, USAGE, ADMIN];

type Called<'a> = Pin<Box<dyn Future<Output = Result<(), Refusal>> + 'a>>;

/// A call that anybody who may make it can make with these ids.
struct Call {
    name: &'static str,
    /// Each of which is enough; none: any valid key may.
    scopes: &'static [&'static str],
    /// Whether it takes an operator.
    operator: bool,
    make: for<'a> fn(&'a Client, &'a Ids) -> Called<'a>,
}

/// What a call is about.
struct Ids {
    account: String,
    key: String,
    plan: String,
}

/// Calls with the ids of what is there, and otherwise with as little as the call takes.
fn calls() -> Vec<Call> {
    macro_rules! call {
        ($name:literal, $scopes:expr, |$client:ident, $ids:ident| $made:expr) => {
            Call {
                name: $name,
                scopes: &$scopes,
                operator: false,
                make: |$client, $ids| Box::pin(async move { $made.await.map(drop) }),
            }
        };
    }
    let operators = |call: Call| Call { operator: true, ..call };
    vec![
        call!("KeyService/CheckKey", [CHECK], |client, _ids| client.check_key(of("not-a-key"))),
        call!("KeyService/CreateKey", [WRITE], |client, ids| {
            client.create_key(CreateKeyRequest { key: Some(Key { account_id: ids.account.clone(), ..key("made") }) })
        }),
        call!("KeyService/GetKey", [READ], |client, ids| client.get_key(GetKeyRequest { id: ids.key.clone() })),
        call!("KeyService/ListKeys", [READ], |client, ids| {
            client.list_keys(ListKeysRequest { account_id: ids.account.clone(), ..ListKeysRequest::default() })
        }),
        call!("KeyService/UpdateKey", [WRITE], |client, ids| {
            let key = Key { id: ids.key.clone(), description: "changed".to_owned(), ..Key::default() };
            client.update_key(UpdateKeyRequest { key: Some(key), update_mask: None })
        }),
        call!("KeyService/RotateKey", [WRITE], |client, ids| {
            client.rotate_key(RotateKeyRequest { id: ids.key.clone(), ..RotateKeyRequest::default() })
        }),
        call!("KeyService/RevokeKey", [WRITE], |client, ids| {
            client.revoke_key(RevokeKeyRequest { id: ids.key.clone(), reason: String::new() })
        }),
        call!("KeyService/GetUsage", [USAGE], |client, ids| {
            client.get_usage(GetUsageRequest { account_id: ids.account.clone(), ..GetUsageRequest::default() })
        }),
        call!("KeyService/GetSelf", [], |client, _ids| client.get_self(GetSelfRequest {})),
        call!("KeyService/GetLimits", [READ], |client, ids| client
            .get_limits(GetLimitsRequest { id: ids.key.clone() })),
        call!("KeyService/RefundCheck", [CHECK], |client, ids| {
            client.refund_check(RefundCheckRequest { operation_id: "op".to_owned(), account_id: ids.account.clone() })
        }),
        call!("KeyService/ImportKeys", [WRITE], |client, _ids| client.import_keys(Vec::new())),
        operators(call!("AccountService/CreateAccount", [ADMIN], |client, ids| {
            let account = Account { id: String::new(), ..account("acct_made", &ids.plan) };
            client.create_account(CreateAccountRequest { account: Some(account) })
        })),
        call!("AccountService/GetAccount", [READ, ADMIN], |client, ids| {
            client.get_account(GetAccountRequest { id: ids.account.clone() })
        }),
        call!("AccountService/ListAccounts", [READ, ADMIN], |client, _ids| {
            client.list_accounts(ListAccountsRequest::default())
        }),
        operators(call!("AccountService/UpdateAccount", [ADMIN], |client, ids| {
            let account = Account { id: ids.account.clone(), name: "changed".to_owned(), ..Account::default() };
            client.update_account(UpdateAccountRequest { account: Some(account), update_mask: None })
        })),
        operators(call!("AccountService/AdjustCredits", [ADMIN], |client, ids| client.adjust_credits(given(ids)))),
        operators(call!("PlanService/CreatePlan", [ADMIN], |client, ids| {
            client.create_plan(CreatePlanRequest { plan: Some(plan(&format!("{}-more", ids.plan))) })
        })),
        call!("PlanService/GetPlan", [READ, ADMIN], |client, ids| client
            .get_plan(GetPlanRequest { id: ids.plan.clone() })),
        call!("PlanService/ListPlans", [READ, ADMIN], |client, _ids| client.list_plans(ListPlansRequest::default())),
        operators(call!("PlanService/UpdatePlan", [ADMIN], |client, ids| {
            let plan = Plan { display_name: "changed".to_owned(), ..plan(&ids.plan) };
            client.update_plan(UpdatePlanRequest { plan: Some(plan), update_mask: None })
        })),
        operators(call!("PlanService/DeletePlan", [ADMIN], |client, ids| {
            client.delete_plan(DeletePlanRequest { id: format!("{}-more", ids.plan), etag: String::new() })
        })),
    ]
}

fn given(ids: &Ids) -> AdjustCreditsRequest {
    let (account_id, reason) = (ids.account.clone(), "a test".to_owned());
    AdjustCreditsRequest { account_id, amount: 1, reason, operation_id: String::new() }
}

/// Whether the call went past the question who may make it.
fn let_through(result: &Result<(), Refusal>) -> bool {
    !matches!(result.as_ref().map_err(Refusal::code), Err(Code::Unauthenticated | Code::PermissionDenied))
}

async fn ids(server: &Server) -> Ids {
    let (key, _) = server.plain_key("subject").await;
    Ids { account: ACCOUNT.to_owned(), key, plan: PLAN.to_owned() }
}

#[test]
fn the_table_has_every_call_of_the_contract() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let contract: BTreeSet<String> = pool
        .services()
        .filter(|service| service.package_name() == "tollgate.v1")
        .flat_map(|service| {
            service
                .methods()
                .map(|method| format!("{}/{}", method.parent_service().name(), method.name()))
                .collect::<Vec<_>>()
        })
        .collect();
    let table: BTreeSet<String> = calls().iter().map(|call| call.name.to_owned()).collect();
    assert_eq!(table, contract);
}

#[tokio::test]
async fn every_call_takes_a_caller() {
    let server = Server::start().await;
    let (ids, anonymous) = (ids(&server).await, server.anonymous());
    for call in calls() {
        let status = refused((call.make)(&anonymous, &ids).await, Code::Unauthenticated);
        assert_eq!(reason(&status), "MISSING", "{}", call.name);
    }
}

#[tokio::test]
async fn a_message_that_does_not_decode_is_refused_by_every_call() {
    let server = Server::start().await;
    for call in calls() {
        let path = format!("/tollgate.v1.{}", call.name);
        let status = refused(wire::call(&server, &path, b"\x0a\x20abc").await, Code::InvalidArgument);
        assert!(status.message().contains("decode"), "{status:?}");
    }
}

#[tokio::test]
async fn who_may_call_is_asked_before_what() {
    let server = Server::start().await;
    // This would have to wait, for good.
    let request = CheckKeyRequest { min_revision: i64::MAX, cost: Some(-1), ..of("x") };
    refused(server.anonymous().check_key(request.clone()).await, Code::Unauthenticated);
    let reader = server.caller_of(ACCOUNT, &[READ]).await;
    refused(reader.check_key(request).await, Code::PermissionDenied);
}

#[tokio::test]
async fn every_call_takes_its_scope_and_no_other() {
    let server = Server::start().await;
    let ids = ids(&server).await;
    for call in calls() {
        for scope in call.scopes {
            let enough = server.caller_of("acct_operator", &[scope]).await;
            let result = (call.make)(&enough, &ids).await;
            assert!(let_through(&result), "{} with {scope}: {result:?}", call.name);
            assert_ne!(result.err().map(|status| status.code()), Some(Code::Unimplemented), "{}", call.name);
        }
        // All others, and the widest of an application's own.
        let mut others: Vec<&str> = ALL.into_iter().filter(|scope| !call.scopes.contains(scope)).collect();
        others.push("admin:*");
        let without = server.caller_of("acct_operator", &others).await;
        let result = (call.make)(&without, &ids).await;
        if call.scopes.is_empty() {
            result.unwrap();
        } else {
            let status = refused(result, Code::PermissionDenied);
            assert_eq!(reason(&status), "PERMISSION_DENIED", "{}", call.name);
            assert!(call.scopes.iter().any(|scope| status.message().contains(scope)), "{status:?}");
        }
    }
}

#[tokio::test]
async fn a_customer_may_not_do_what_takes_an_operator() {
    let server = Server::start().await;
    let ids = ids(&server).await;
    let customer = server.caller_of(ACCOUNT, &ALL).await;
    for call in calls() {
        let result = (call.make)(&customer, &ids).await;
        if call.operator {
            let status = refused(result, Code::PermissionDenied);
            assert!(status.message().contains("operator"), "{}: {status:?}", call.name);
        } else {
            assert!(let_through(&result), "{}: {result:?}", call.name);
        }
    }
}

#[tokio::test]
async fn what_is_of_another_tenant_is_as_if_it_were_not_there() {
    let server = Server::start().await;
    let customer = server.caller_of(ACCOUNT, &ALL).await;
    server.plan(plan("foreign")).await;
    let change = Account { id: OTHER_ACCOUNT.to_owned(), plan: "foreign".to_owned(), ..Account::default() };
    server.change_account(change, &[]).await;
    let other = server.key(Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("other") }).await;
    let foreign = Ids { account: OTHER_ACCOUNT.to_owned(), key: other.key.unwrap().id, plan: "foreign".to_owned() };
    let absent = Ids {
        account: "acct_nobody".to_owned(),
        key: "key_0000000000000000000000".to_owned(),
        plan: "nothing".to_owned(),
    };
    // The others are about no id, or take an operator.
    let about_an_id: Vec<Call> = calls()
        .into_iter()
        .filter(|call| {
            !call.operator
                && !["CheckKey", "GetSelf", "ImportKeys", "ListAccounts", "ListPlans"]
                    .iter()
                    .any(|name| call.name.ends_with(name))
        })
        .collect();
    assert_eq!(about_an_id.len(), 11);
    for call in about_an_id {
        let there = refused((call.make)(&customer, &foreign).await, Code::NotFound);
        let nowhere = refused((call.make)(&customer, &absent).await, Code::NotFound);
        let plain = |status: &Refusal, ids: &Ids| {
            [&ids.key, &ids.account, &ids.plan]
                .into_iter()
                .fold(status.message().to_owned(), |text, id| text.replace(id.as_str(), "…"))
        };
        assert_eq!(plain(&there, &foreign), plain(&nowhere, &absent), "{}", call.name);
    }

    let answer = customer.check_key(of(&other.secret)).await.unwrap();
    let unknown = customer.check_key(of("not-a-key")).await.unwrap();
    assert_eq!(answer, unknown);
    assert_eq!(answer.verdict(), Verdict::Unknown);
    assert!(server.check(&other.secret).await.allowed);
    let (_, own) = server.plain_key("own").await;
    assert!(customer.check_key(of(&own)).await.unwrap().allowed);
    let own = customer.list_accounts(ListAccountsRequest::default()).await.unwrap().accounts;
    assert_eq!(own.iter().map(|account| account.id.as_str()).collect::<Vec<_>>(), [ACCOUNT]);
    let own = customer.list_plans(ListPlansRequest::default()).await.unwrap().plans;
    assert_eq!(own.iter().map(|plan| plan.id.as_str()).collect::<Vec<_>>(), [PLAN]);
    // And nothing of it was changed or counted.
    server.flush().await;
    let found = server.get_key(&foreign.key).await;
    assert_eq!((found.status(), found.description.as_str()), (Status::Active, ""));
    assert_eq!(found.usage.unwrap().requests_today, 1);
}

#[tokio::test]
async fn a_key_that_is_not_in_use_does_not_call() {
    let server = Server::start().await;
    let made = async |name: &str, change: Key| {
        let made = server.key(Key { name: name.to_owned(), ..change }).await;
        (made.key.unwrap().id, made.secret)
    };
    let (revoked_id, revoked) = made("revoked", key("")).await;
    server.revoke(&revoked_id).await;
    let (rotated_id, rotated) = made("rotated", key("")).await;
    server.rotate(&rotated_id, 0).await;
    let (_, expired) = made("expired", Key { expire_time: server.in_seconds(1), ..key("") }).await;
    let (disabled_id, disabled) = made("disabled", key("")).await;
    server.change_key(Key { id: disabled_id, status: Status::Disabled.into(), ..Key::default() }, &[]).await;
    let (_, suspended) = made("suspended", Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("") }).await;
    let status = AccountStatus::Suspended.into();
    server.change_account(Account { id: OTHER_ACCOUNT.to_owned(), status, ..Account::default() }, &[]).await;
    let elsewhere = |ip: &str| Some(Restrictions { allowed_ips: strings(&[ip]), ..Restrictions::default() });
    let (_, denied) = made("elsewhere", Key { restrictions: elsewhere("192.0.2.1"), ..key("") }).await;
    let (_, here) = made("here", Key { restrictions: elsewhere("127.0.0.0/8"), ..key("") }).await;
    let (_, plain) = made("plain", key("")).await;
    server.plan(plan("closing")).await;
    server.account(account("acct_c", "closing")).await;
    let (_, closed) = made("closed", Key { account_id: "acct_c".to_owned(), ..key("") }).await;
    server.change_plan(Plan { api_access: false, ..plan("closing") }, &["api_access"]).await;
    server.advance(1);
    let rows = [
        (revoked.as_str(), "REVOKED"),
        (&rotated, "ROTATED_OUT"),
        (&expired, "EXPIRED"),
        (&disabled, "DISABLED"),
        (&suspended, "ACCOUNT_SUSPENDED"),
        (&closed, "PLAN_DENIED"),
        (&denied, "IP_DENIED"),
        ("not-a-key", "UNKNOWN"),
        ("sk_live_damaged", "MALFORMED"),
    ];
    for (secret, expected) in rows {
        let status = refused(server.caller(secret).get_self(GetSelfRequest {}).await, Code::Unauthenticated);
        assert_eq!(reason(&status), expected);
        assert!(!format!("{status:?}").contains(secret));
    }
    for secret in [&here, &plain] {
        server.caller(secret).get_self(GetSelfRequest {}).await.unwrap();
    }
}

/// None keeps the others, or itself later, from being answered.
#[tokio::test]
async fn many_calls_of_one_account_at_once_are_served_or_told_to_wait() {
    let server = Server::start().await;
    let customer = server.caller_of(ACCOUNT, &[READ]).await;
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let client = customer.clone();
            tokio::spawn(async move { client.list_keys(ListKeysRequest::default()).await })
        })
        .collect();
    server.operator.get_account(GetAccountRequest { id: ACCOUNT.to_owned() }).await.unwrap();
    let mut answered = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => answered += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
    }
    assert!(answered > 0);
    for _ in 0..40 {
        customer.list_keys(ListKeysRequest::default()).await.unwrap();
    }
}

#[tokio::test]
async fn the_header_is_one_bearer() {
    let server = Server::start().await;
    let (_, secret) = server.plain_key("k").await;
    let bearer = format!("Bearer {secret}");
    let rows: Vec<(Vec<String>, Option<&str>)> = vec![
        (vec![bearer.clone()], None),
        (vec![format!("bearer {secret}")], None),
        (vec![format!("BEARER {secret}")], None),
        (vec![], Some("MISSING")),
        (vec!["Bearer ".to_owned()], Some("MISSING")),
        (vec![String::new()], Some("MALFORMED")),
        (vec!["Bearer".to_owned()], Some("MALFORMED")),
        (vec![secret.clone()], Some("MALFORMED")),
        (vec![format!("Bearer  {secret}")], Some("MALFORMED")),
        (vec![format!("{bearer} {secret}")], Some("MALFORMED")),
        (vec![format!("Basic {secret}")], Some("MALFORMED")),
        (vec![format!("Bearer\t{secret}")], Some("MALFORMED")),
        (vec![format!("Bearer {secret},{secret}")], Some("MALFORMED")),
        (vec![bearer.clone(), bearer.clone()], Some("MALFORMED")),
        (vec![bearer, "Basic x".to_owned()], Some("MALFORMED")),
        (vec![format!("Bearer {}", "x".repeat(513))], Some("MALFORMED")),
    ];
    for (place, (headers, expected)) in rows.into_iter().enumerate() {
        let client = Client::with_headers(server.channel.clone(), &headers);
        let result = client.get_self(GetSelfRequest {}).await;
        match expected {
            None => drop(result.unwrap()),
            Some(expected) => {
                let status = refused(result, Code::Unauthenticated);
                assert_eq!(reason(&status), expected, "header {place}");
                assert!(!format!("{status:?}").contains(&secret));
            }
        }
    }
}

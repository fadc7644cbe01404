//! `CreatePlan`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{PLAN, Server, invalid, limit, plan, reason, refused, strings};

async fn create(server: &Server, plan: Plan) -> Result<Plan, tonic::Status> {
    server.operator.create_plan(CreatePlanRequest { plan: Some(plan) }).await
}

#[tokio::test]
async fn a_plan_is_made_as_it_was_asked_for() {
    let server = Server::start().await;
    let full = Plan {
        display_name: "Professional".to_owned(),
        key_limits: vec![Limit {
            algorithm: Algorithm::SlidingWindow.into(),
            period_seconds: 10,
            ..limit("burst", 5, Period::Seconds)
        }],
        account_limits: vec![Limit { algorithm: Algorithm::FixedWindow.into(), ..limit("daily", 0, Period::Day) }],
        monthly_credits: Some(0),
        allowed_scopes: strings(&["tasks:*", "tollgate:check"]),
        max_keys: 7,
        ..plan("pro-2")
    };
    let bare = Plan { api_access: false, ..plan(&format!("p{}", "0".repeat(39))) };
    for wanted in [full, bare] {
        let made = create(&server, wanted.clone()).await.unwrap();
        let expected = Plan {
            create_time: Some(server.now()),
            update_time: Some(server.now()),
            etag: format!("r{}", server.engine.index_size().2.number()),
            ..wanted
        };
        assert_eq!(made, expected);
        assert_eq!(server.operator.get_plan(GetPlanRequest { id: made.id }).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn each_wrong_field_is_named() {
    let server = Server::start().await;
    let good = || plan("new");
    let rows: Vec<(Plan, &[&str])> = vec![
        (plan(""), &["plan.id"]),
        (plan("Free"), &["plan.id"]),
        (plan("1st"), &["plan.id"]),
        (plan("a_b"), &["plan.id"]),
        (plan(&"a".repeat(41)), &["plan.id"]),
        (Plan { display_name: "n".repeat(101), ..good() }, &["plan.display_name"]),
        (Plan { display_name: "a\nb".to_owned(), ..good() }, &["plan.display_name"]),
        (Plan { key_limits: vec![limit("l", 1, Period::Unspecified)], ..good() }, &["plan.key_limits[0]"]),
        (Plan { account_limits: vec![limit("l", -1, Period::Day)], ..good() }, &["plan.account_limits[0]"]),
        (Plan { account_limits: vec![limit("l", 1, Period::Day); 2], ..good() }, &["plan.account_limits"]),
        (
            Plan { key_limits: (0..9).map(|i| limit(&format!("l{i}"), 1, Period::Day)).collect(), ..good() },
            &["plan.key_limits"],
        ),
        (Plan { monthly_credits: Some(-1), ..good() }, &["plan.monthly_credits"]),
        (Plan { monthly_credits: Some(1_000_000_000_000_001), ..good() }, &["plan.monthly_credits"]),
        (Plan { allowed_scopes: strings(&["a:b", "*"]), ..good() }, &["plan.allowed_scopes[1]"]),
        (Plan { allowed_scopes: strings(&["a:b", "a:b"]), ..good() }, &["plan.allowed_scopes"]),
        (Plan { max_keys: -1, ..good() }, &["plan.max_keys"]),
        (
            Plan { max_keys: -1, monthly_credits: Some(-1), ..plan("X") },
            &["plan.id", "plan.monthly_credits", "plan.max_keys"],
        ),
    ];
    for (wrong, fields) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(create(&server, wrong).await), fields, "{shown}");
    }
    assert_eq!(invalid(server.operator.create_plan(CreatePlanRequest::default()).await), ["plan"]);
}

#[tokio::test]
async fn an_id_is_taken_once() {
    let server = Server::start().await;
    for taken in [PLAN, "operator"] {
        let status = refused(create(&server, plan(taken)).await, Code::AlreadyExists);
        assert_eq!(reason(&status), "ALREADY_EXISTS");
    }
}

//! `UpdatePlan`. What a change does to checks is in `check_key`.

use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{PLAN, Server, invalid, limit, mask, plan, precondition, reason, refused, strings};

/// Takes over one field of the second.
type Set = fn(&mut Plan, Plan);

async fn update(server: &Server, plan: Plan, paths: &[&str]) -> Result<Plan, tonic::Status> {
    server.operator.update_plan(UpdatePlanRequest { plan: Some(plan), update_mask: mask(paths) }).await
}

fn without_marks(plan: Plan) -> Plan {
    Plan { update_time: None, etag: String::new(), ..plan }
}

fn fixed(limit: Limit) -> Vec<Limit> {
    vec![Limit { algorithm: Algorithm::FixedWindow.into(), ..limit }]
}

/// Nothing but an id.
fn subject() -> Plan {
    Plan { api_access: false, ..plan(PLAN) }
}

#[tokio::test]
async fn each_path_changes_its_field_alone() {
    let server = Server::start().await;
    let made = server.operator.get_plan(GetPlanRequest { id: PLAN.to_owned() }).await.unwrap();
    let changed = Plan {
        display_name: "After".to_owned(),
        key_limits: fixed(limit("k", 1, Period::Hour)),
        account_limits: fixed(limit("a", 2, Period::Hour)),
        monthly_credits: Some(50),
        allowed_scopes: strings(&["tasks:*"]),
        max_keys: 3,
        ..subject()
    };
    let rows: [(&str, Set); 7] = [
        ("display_name", |plan, new| plan.display_name = new.display_name),
        ("api_access", |plan, new| plan.api_access = new.api_access),
        ("key_limits", |plan, new| plan.key_limits = new.key_limits),
        ("account_limits", |plan, new| plan.account_limits = new.account_limits),
        ("monthly_credits", |plan, new| plan.monthly_credits = new.monthly_credits),
        ("allowed_scopes", |plan, new| plan.allowed_scopes = new.allowed_scopes),
        ("max_keys", |plan, new| plan.max_keys = new.max_keys),
    ];
    let mut expected = made.clone();
    for (path, set) in rows {
        server.advance(1);
        set(&mut expected, changed.clone());
        let answer = update(&server, changed.clone(), &[path]).await.unwrap();
        assert_eq!((answer.create_time, answer.update_time), (made.create_time, Some(server.now())));
        assert_eq!(answer.etag, format!("r{}", server.engine.index_size().2.number()));
        assert_eq!(without_marks(answer), without_marks(expected.clone()), "{path}");
    }
    // Without a mask what is not empty, with a star everything.
    let answer = update(&server, Plan { api_access: true, max_keys: 4, ..subject() }, &[]).await.unwrap();
    assert_eq!(without_marks(answer), without_marks(Plan { api_access: true, max_keys: 4, ..expected }));
    let answer = update(&server, subject(), &["*"]).await.unwrap();
    assert_eq!(without_marks(answer), Plan { create_time: made.create_time, ..subject() });
}

#[tokio::test]
async fn each_wrong_value_is_named() {
    let server = Server::start().await;
    let rows: Vec<(Plan, &str, &str)> = vec![
        (Plan { display_name: " x".to_owned(), ..subject() }, "display_name", "plan.display_name"),
        (Plan { key_limits: vec![limit("L", 1, Period::Day)], ..subject() }, "key_limits", "plan.key_limits[0]"),
        (Plan { monthly_credits: Some(-1), ..subject() }, "monthly_credits", "plan.monthly_credits"),
        (Plan { allowed_scopes: strings(&["x"]), ..subject() }, "allowed_scopes", "plan.allowed_scopes[0]"),
        (Plan { max_keys: -5, ..subject() }, "max_keys", "plan.max_keys"),
        (subject(), "nonsense", "update_mask"),
        (subject(), "id", "update_mask"),
        (subject(), "create_time", "update_mask"),
        (subject(), "update_time", "update_mask"),
        (subject(), "etag", "update_mask"),
        (Plan::default(), "display_name", "id"),
    ];
    for (wrong, path, field) in rows {
        let shown = format!("{wrong:?}");
        assert_eq!(invalid(update(&server, wrong, &[path]).await), [field], "{path} of {shown}");
    }
    assert_eq!(invalid(server.operator.update_plan(UpdatePlanRequest::default()).await), ["plan"]);
}

#[tokio::test]
async fn what_stands_in_the_way_is_told() {
    let server = Server::start().await;
    let etag = server.operator.get_plan(GetPlanRequest { id: PLAN.to_owned() }).await.unwrap().etag;
    let named = |etag: &str| Plan { display_name: "New".to_owned(), etag: etag.to_owned(), ..subject() };
    update(&server, named(&etag), &[]).await.unwrap();
    assert_eq!(reason(&refused(update(&server, named(&etag), &[]).await, Code::Aborted)), "ETAG_STALE");
    for id in ["nothing", "NONSENSE"] {
        refused(update(&server, Plan { id: id.to_owned(), ..named("") }, &[]).await, Code::NotFound);
    }
    assert_eq!(precondition(update(&server, Plan { id: "operator".to_owned(), ..named("") }, &[]).await), "BUILT_IN");
}

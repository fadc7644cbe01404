//! Plans as operators write them down.
#![cfg(test)]

use tollgate::config::{PlanChange, diff_plans, parse_plans};
use tollgate::domain::{Algorithm, Period, Plan, PlanId, Revision, Time};

const DEMO: &str = include_str!("../deploy/plans.toml");

fn one(body: &str) -> Result<Plan, String> {
    let plans = parse_plans(&format!("[plans.p]\n{body}\n")).map_err(|error| error.to_string())?;
    Ok(plans.into_iter().next().unwrap())
}

#[test]
fn the_demo_has_the_figures_of_the_sources() {
    let plans = parse_plans(DEMO).unwrap();
    let summary: Vec<_> = plans
        .iter()
        .map(|plan| {
            let limits: Vec<_> = plan.key_limits.iter().map(|limit| (limit.capacity, limit.period)).collect();
            (plan.id.as_str(), plan.api_access, limits, plan.monthly_credits)
        })
        .collect();
    assert_eq!(
        summary,
        [
            ("enterprise", true, vec![], None),
            ("free", true, vec![(1_000, Period::Hour), (100, Period::Minute)], Some(500)),
            ("professional", true, vec![(10_000, Period::Hour), (500, Period::Minute)], None),
        ]
    );
}

#[test]
fn a_plan_may_say_nothing_or_everything() {
    let plan = one("").unwrap();
    assert!(plan.api_access && plan.key_limits.is_empty() && plan.keys_max.is_none());
    let plan = one(r#"
        api_access = false
        account_limits = [{ name = "burst", capacity = 10, period = "15m", algorithm = "sliding_window" }]
        allowed_scopes = ["tasks:*"]
        monthly_credits = 0
        max_keys = 0
    "#)
    .unwrap();
    assert!(!plan.api_access && plan.keys_max.is_none());
    assert_eq!(plan.account_limits[0].period, Period::Seconds(900));
    assert_eq!(plan.account_limits[0].algorithm, Algorithm::SlidingWindow);
    assert_eq!(plan.monthly_credits, Some(0));
}

#[test]
fn what_is_wrong_is_named() {
    let limit =
        |fields: &str| format!("key_limits = [{{ name = \"a\", capacity = 1, period = \"minute\" }}, {{ {fields} }}]");
    let rows = [
        ("max_key = 1".to_owned(), "max_key"),
        ("monthly_credits = -1".to_owned(), "line 2"),
        ("monthly_credits = 1000000000000001".to_owned(), "`plans.p.monthly_credits`: "),
        ("allowed_scopes = [\"tasks:read\", \"tasks\"]".to_owned(), "`plans.p.allowed_scopes[1]`: `tasks` is no scope"),
        ("display_name = \" x\"".to_owned(), "`plans.p.display_name`: "),
        (limit("name = \"B\", capacity = 1, period = \"hour\""), "`plans.p.key_limits[1].name`: `B`"),
        (limit("name = \"b\", capacity = 1, period = \"week\""), "`plans.p.key_limits[1].period`: `week` is no period"),
        (limit("name = \"b\", capacity = 1, period = \"0s\""), "`plans.p.key_limits[1].period`: `0` is not between"),
        (limit("name = \"b\", capacity = 1, period = \"1500ms\""), "is no period"),
        (limit("name = \"a\", capacity = 1, period = \"hour\""), "`plans.p.key_limits`: `a` stands there twice"),
        (limit("name = \"b\", period = \"hour\""), "capacity"),
        (limit("name = \"b\", capacity = 1, period = \"hour\", algorithm = \"leaky\""), "leaky"),
        ("max_keys = 4000000000".to_owned(), "`plans.p.max_keys`: "),
    ];
    for (body, expected) in rows {
        let said = one(&body).unwrap_err();
        assert!(said.contains(expected), "{body}: {said}");
    }
    for (text, expected) in [
        ("[plans.Free]", "`plans.Free`: `Free` is no plan id"),
        ("[plans.operator]", "built in"),
        ("[plan.free]", "plan"),
        ("[plans.a]\n[plans.a]", "duplicate"),
        ("free", "1"),
    ] {
        let said = parse_plans(text).unwrap_err().to_string();
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn only_what_differs_is_changed() {
    let wanted = parse_plans(DEMO).unwrap();
    let stored = |plan: &Plan| Plan { create_time: Time::from_millis(5), revision: Revision::new(7), ..plan.clone() };
    let mut existing: Vec<Plan> = wanted.iter().skip(1).map(stored).collect();
    existing[0].monthly_credits = Some(1);
    let own = Plan { id: PlanId::operator(), ..existing[1].clone() };
    let old = Plan { id: PlanId::parse("old").unwrap(), ..existing[1].clone() };
    existing.extend([own, old.clone()]);
    let kept = diff_plans(&existing, &wanted, false);
    let expected = [
        PlanChange::Create(wanted[0].clone()),
        PlanChange::Update { existing: existing[0].clone(), wanted: wanted[1].clone() },
        PlanChange::Keep(wanted[2].clone()),
    ];
    assert_eq!(kept, expected);
    let pruned = diff_plans(&existing, &wanted, true);
    assert_eq!(pruned[..3], expected);
    assert_eq!(pruned[3..], [PlanChange::Delete(old)], "the operator's own plan stays");
}

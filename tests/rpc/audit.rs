//! What the store keeps of each change: a row of the change log, and an event of who did what to what.

use tollgate::proto::v1::*;

use crate::harness::{ACCOUNT, PLAN, Server, account, key, plan, strings};

/// One change of each kind; what the trail has to say of it, and the secrets that were seen on the way.
async fn change_everything(server: &Server) -> (Vec<[String; 3]>, Vec<String>) {
    let mut expected = Vec::new();
    let mut expect = |action: &str, entity: &str, subject: &str| {
        expected.push([action, entity, subject].map(ToOwned::to_owned));
    };
    server.plan(plan("audited")).await;
    expect("plan.create", "plan", "audited");
    server.change_plan(Plan { display_name: "Audited".to_owned(), ..plan("audited") }, &[]).await;
    expect("plan.update", "plan", "audited");
    server.account(account("acct_z", PLAN)).await;
    expect("account.create", "account", "acct_z");
    server.change_account(account("acct_z", "audited"), &["plan"]).await;
    expect("account.update", "account", "acct_z");
    let account_id = "acct_z".to_owned();
    let given = AdjustCreditsRequest { account_id, amount: 5, reason: "paid".to_owned(), ..Default::default() };
    server.operator.adjust_credits(given).await.unwrap();
    expect("account.adjust_credits", "account", "acct_z");
    let made = server.key(key("audited")).await;
    let id = made.key.unwrap().id;
    expect("key.create", "key", &id);
    server.change_key(Key { id: id.clone(), description: "changed".to_owned(), ..Key::default() }, &[]).await;
    expect("key.update", "key", &id);
    let rotated = server.rotate(&id, 60).await;
    expect("key.rotate", "key", &id);
    server.revoke(&id).await;
    expect("key.revoke", "key", &id);
    let hash = "ab".repeat(32);
    let row = ImportedKey { hash: hash.clone(), key: Some(key("imported")) };
    let messages = vec![ImportKeysRequest { dry_run: false, key: Some(row) }];
    server.operator.import_keys(messages).await.unwrap();
    let list = ListKeysRequest { account_id: ACCOUNT.to_owned(), ..ListKeysRequest::default() };
    let keys = server.operator.list_keys(list).await.unwrap().keys;
    expect("key.import", "key", &keys.last().unwrap().id);
    server.plan(plan("unused")).await;
    expect("plan.create", "plan", "unused");
    server.operator.delete_plan(DeletePlanRequest { id: "unused".to_owned(), etag: String::new() }).await.unwrap();
    expect("plan.delete", "plan", "unused");
    (expected, vec![made.secret, rotated, hash])
}

#[tokio::test]
async fn every_change_has_a_revision_and_an_event() {
    let server = Server::start().await;
    let before = server.engine.index_size().2.number();
    server.advance(5);
    let (expected, secrets) = change_everything(&server).await;
    let rows = server
        .rows(
            "SELECT e.action, c.entity, c.id, e.subject, e.actor, CAST(e.time AS TEXT), CAST(c.revision AS TEXT)
             FROM changes AS c JOIN audit_events AS e USING (revision) ORDER BY c.revision",
        )
        .await;
    let made_here: Vec<Vec<String>> = rows.into_iter().filter(|row| row[6].parse::<i64>().unwrap() > before).collect();
    assert_eq!(made_here.len(), expected.len());
    let now_ms = (server.now().seconds * 1_000).to_string();
    for (place, (row, expected)) in made_here.iter().zip(&expected).enumerate() {
        assert_eq!(row[..3], expected[..], "change {place}");
        let revision = before + 1 + i64::try_from(place).unwrap();
        let rest = [&expected[2], &server.operator_key_id, &now_ms, &revision.to_string()];
        assert_eq!(row[3..].iter().collect::<Vec<_>>(), rest, "change {place}");
    }
    let details = server.rows("SELECT details || actor || subject FROM audit_events").await.concat().join("\n");
    for secret in &secrets {
        assert!(!details.contains(secret.as_str()));
    }
}

#[tokio::test]
async fn an_event_tells_what_changed_from_what_to_what() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("before").await;
    let change = Key { id, name: "after".to_owned(), scopes: strings(&["tasks:read"]), ..Key::default() };
    server.change_key(change, &["name", "scopes", "description"]).await;
    let details = server.rows("SELECT details FROM audit_events ORDER BY revision DESC LIMIT 1").await;
    let details: serde_json::Value = serde_json::from_str(&details[0][0]).unwrap();
    let expected = serde_json::json!({
        "name": { "from": "before", "to": "after" },
        "scopes": { "from": [], "to": ["tasks:read"] },
    });
    assert_eq!(details, expected);
}

#[tokio::test]
async fn what_was_refused_leaves_no_trace() {
    let server = Server::start().await;
    let (id, _) = server.plain_key("k").await;
    let logs = async || server.rows("SELECT revision || action || subject FROM audit_events ORDER BY revision").await;
    let (before, revision) = (logs().await, server.engine.index_size().2);
    let create = |key| server.operator.create_key(CreateKeyRequest { key: Some(key) });
    create(key("k")).await.unwrap_err();
    create(key("")).await.unwrap_err();
    let stale = Key { id: id.clone(), name: "x".to_owned(), etag: "r0".to_owned(), ..Key::default() };
    let stale = UpdateKeyRequest { key: Some(stale), update_mask: None };
    server.operator.update_key(stale).await.unwrap_err();
    let in_use = DeletePlanRequest { id: PLAN.to_owned(), etag: String::new() };
    server.operator.delete_plan(in_use).await.unwrap_err();
    let dry = ImportedKey { hash: "cd".repeat(32), key: Some(key("imported")) };
    server.operator.import_keys(vec![ImportKeysRequest { dry_run: true, key: Some(dry) }]).await.unwrap();
    assert_eq!((logs().await, server.engine.index_size().2), (before, revision));
}

#[tokio::test]
async fn no_secret_is_in_the_database() {
    let server = Server::start().await;
    let (_, mut secrets) = change_everything(&server).await;
    secrets.pop();
    secrets.push(server.operator_secret.clone());
    for secret in &secrets {
        server.check(secret).await;
    }
    server.flush().await;
    let bytes = server.database_bytes();
    assert!(bytes.windows(7).any(|window| window == b"audited"), "the files were read");
    for secret in &secrets {
        // What may be shown is its beginning; anything longer would narrow a search for the rest.
        let part = &secret.as_bytes()["sk_live_0000".len()..][..8];
        assert!(!bytes.windows(part.len()).any(|window| window == part));
    }
}

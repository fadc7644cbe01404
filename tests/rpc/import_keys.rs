//! `ImportKeys`.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tollgate::proto::v1::*;
use tonic::Code;

use crate::harness::{ACCOUNT, IMPORT_MESSAGE_BYTES_MAX, OTHER_ACCOUNT, PLAN, Server, account, at, key, limit, plan};
use crate::harness::{refused, strings};

/// How a hash is written down.
type Form = fn(&[u8]) -> String;

fn sha256(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A row for the key with this secret.
fn row(secret: &str, key: Key) -> ImportKeysRequest {
    message(hex(&sha256(secret)), Some(key))
}

fn message(hash: String, key: Option<Key>) -> ImportKeysRequest {
    ImportKeysRequest { dry_run: false, key: Some(ImportedKey { hash, key }) }
}

async fn import(server: &Server, messages: Vec<ImportKeysRequest>) -> ImportKeysResponse {
    server.operator.import_keys(messages).await.unwrap()
}

/// Imported, already present, failed.
fn counts(answer: &ImportKeysResponse) -> (i64, i64, i64) {
    (answer.imported, answer.already_present, answer.failed)
}

fn errors(answer: &ImportKeysResponse) -> Vec<(i64, &str)> {
    assert!(answer.errors.iter().all(|error| !error.message.is_empty()), "{answer:?}");
    answer.errors.iter().map(|error| (error.row, error.field.as_str())).collect()
}

async fn names(server: &Server) -> Vec<String> {
    let request = ListKeysRequest { account_id: ACCOUNT.to_owned(), ..ListKeysRequest::default() };
    server.operator.list_keys(request).await.unwrap().keys.into_iter().map(|key| key.name).collect()
}

#[tokio::test]
async fn an_imported_key_goes_on_with_its_own_secret() {
    let server = Server::start().await;
    let wanted = Key {
        prefix: "pk_2f9a".to_owned(),
        description: "from the old system".to_owned(),
        environment: Environment::Test.into(),
        scopes: strings(&["tasks:read"]),
        limits: vec![limit("l", 5, Period::Day)],
        create_time: Some(at("2019-05-01T00:00:00Z")),
        expire_time: server.in_seconds(60),
        ..key("old")
    };
    let answer =
        import(&server, vec![row("pk_2f9a-anything goes~", wanted.clone()), row("correct/horse", key("b"))]).await;
    assert_eq!(counts(&answer), (2, 0, 0));
    assert_eq!(answer.revision, server.engine.index_size().2.number());
    // A space is nothing that a client could send.
    assert_eq!(server.verdict("pk_2f9a-anything goes~").await, Verdict::Malformed);
    let checked = server.ask(CheckKeyRequest {
        key: "correct/horse".to_owned(),
        min_revision: answer.revision,
        ..CheckKeyRequest::default()
    });
    assert_eq!(checked.await.key_name, "b");
    let list = ListKeysRequest { account_id: ACCOUNT.to_owned(), ..ListKeysRequest::default() };
    let found = server.operator.list_keys(list).await.unwrap().keys.remove(0);
    let expected = Key {
        id: found.id.clone(),
        status: Status::Active.into(),
        limits: found.limits.clone(),
        update_time: Some(server.now()),
        etag: found.etag.clone(),
        ..wanted
    };
    assert_eq!(found, expected);
    // From here on it is like any other.
    let rotated = server.rotate(&found.id, 0).await;
    assert_eq!(server.check(&rotated).await.key_id, found.id);
}

#[tokio::test]
async fn a_hash_is_taken_in_each_of_its_forms() {
    let server = Server::start().await;
    let forms: [(&str, Form); 6] = [
        ("hex", hex),
        ("HEX", |bytes| hex(bytes).to_uppercase()),
        ("base64", |bytes| BASE64_STANDARD.encode(bytes)),
        ("base64 unpadded", |bytes| BASE64_STANDARD_NO_PAD.encode(bytes)),
        ("base64url", |bytes| BASE64_URL_SAFE.encode(bytes)),
        ("base64url unpadded", |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes)),
    ];
    for (name, form) in forms {
        let secret = format!("secret-of-{}", name.replace(' ', "-"));
        let answer = import(&server, vec![message(form(&sha256(&secret)), Some(key(name)))]).await;
        assert_eq!(counts(&answer), (1, 0, 0), "{name}: {answer:?}");
        assert_eq!(server.check(&secret).await.key_name, name);
    }
}

#[tokio::test]
async fn a_bad_row_is_told_and_passed_over() {
    let server = Server::start().await;
    let hash = || hex(&sha256("unused"));
    let (_, taken) = server.plain_key("taken").await;
    server.account(Account { status: AccountStatus::Suspended.into(), ..account("acct_s", PLAN) }).await;
    server.plan(Plan { api_access: false, ..plan("none") }).await;
    server.account(account("acct_n", "none")).await;
    let to = |account_id: &str| Some(Key { account_id: account_id.to_owned(), ..key("k") });
    let wrong = vec![
        (message(String::new(), Some(key("k"))), "hash"),
        (message("abc".to_owned(), Some(key("k"))), "hash"),
        (message("g".repeat(64), Some(key("k"))), "hash"),
        (message("+".repeat(64), Some(key("k"))), "hash"),
        (message(taken, Some(key("k"))), "hash"),
        (message(hash(), None), "key"),
        (message(hash(), Some(key(""))), "key.name"),
        (message(hash(), Some(Key { scopes: strings(&["a:b", "x"]), ..key("k") })), "key.scopes[1]"),
        (message(hash(), Some(Key { prefix: "p".repeat(21), ..key("k") })), "key.prefix"),
        (message(hash(), Some(Key { prefix: "a b".to_owned(), ..key("k") })), "key.prefix"),
        (message(hash(), Some(Key { expire_time: server.in_seconds(0), ..key("k") })), "key.expire_time"),
        (message(hash(), Some(Key { create_time: server.in_seconds(1), ..key("k") })), "key.create_time"),
        (message(hash(), Some(Key { environment: 5, ..key("k") })), "key.environment"),
        (message(hash(), to("")), "key.account_id"),
        (message(hash(), to("nonsense")), "key.account_id"),
        // These are about more than a field.
        (message(hash(), to("acct_nobody")), ""),
        (message(hash(), to("acct_s")), ""),
        (message(hash(), to("acct_n")), ""),
        (message(hash(), Some(key("taken"))), ""),
        (ImportKeysRequest::default(), "key"),
    ];
    let mut messages = vec![row("good-1", key("good 1"))];
    messages.extend(wrong.iter().map(|(message, _)| message.clone()));
    messages.push(row("good-2", key("good 2")));
    let answer = import(&server, messages).await;
    assert_eq!(counts(&answer), (2, 0, i64::try_from(wrong.len()).unwrap()), "{answer:?}");
    let mut found = errors(&answer);
    found.sort_unstable();
    let expected: Vec<(i64, &str)> = (1..).zip(wrong.iter().map(|(_, field)| *field)).collect();
    assert_eq!(found, expected);
    assert!(!format!("{:?}", answer.errors).contains(&hash()), "an error tells a hash");
    assert_eq!(names(&server).await, ["taken", "good 1", "good 2"]);
}

#[tokio::test]
async fn sending_the_same_again_imports_nothing_twice() {
    let server = Server::start().await;
    let rows: Vec<ImportKeysRequest> = (0..5).map(|i| row(&format!("s{i}"), key(&format!("k{i}")))).collect();
    assert_eq!(counts(&import(&server, rows.clone()).await), (5, 0, 0));
    let before = server.engine.index_size();
    let again = import(&server, rows).await;
    assert_eq!((counts(&again), again.revision), ((0, 5, 0), 0));
    assert_eq!(server.engine.index_size(), before);
    // Of another account it is somebody else's secret.
    let foreign = Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("foreign") };
    let answer = import(&server, vec![row("s0", foreign)]).await;
    assert_eq!((counts(&answer), errors(&answer)), ((0, 0, 1), vec![(0, "")]));
}

#[tokio::test]
async fn a_stream_that_repeats_itself() {
    let server = Server::start().await;
    let foreign = Key { account_id: OTHER_ACCOUNT.to_owned(), ..key("foreign") };
    let rows =
        vec![row("a", key("a")), row("a", key("a again")), row("b", key("a")), row("a", foreign), row("c", key("c"))];
    let answer = import(&server, rows).await;
    assert_eq!(counts(&answer), (2, 1, 2));
    let mut found = errors(&answer);
    found.sort_unstable();
    assert_eq!(found, [(2, ""), (3, "")]);
    assert_eq!(names(&server).await, ["a", "c"]);
}

#[tokio::test]
async fn a_secret_that_a_rotation_replaced_is_not_free() {
    let server = Server::start().await;
    import(&server, vec![row("old", key("old"))]).await;
    let list = ListKeysRequest { account_id: ACCOUNT.to_owned(), ..ListKeysRequest::default() };
    let id = server.operator.list_keys(list).await.unwrap().keys.remove(0).id;
    server.rotate(&id, 0).await;
    let answer = import(&server, vec![row("old", key("new"))]).await;
    assert_eq!(counts(&answer).0, 0, "{answer:?}");
    assert_eq!(server.verdict("old").await, Verdict::RotatedOut);
}

#[tokio::test]
async fn a_dry_run_commits_nothing() {
    let server = Server::start().await;
    import(&server, vec![row("present", key("present"))]).await;
    let before = (server.engine.index_size(), names(&server).await);
    let first = ImportKeysRequest { dry_run: true, key: None };
    let rows = [
        first.clone(),
        row("present", key("x")),
        row("new", key("new")),
        row("new", key("new again")),
        row("bad", key("")),
    ];
    let answer = import(&server, rows.to_vec()).await;
    assert_eq!((counts(&answer), answer.revision), ((1, 2, 1), 0));
    assert_eq!(errors(&answer), [(3, "key.name")], "a first message without a key is no row");
    // The first message may hold a key too; later ones do not change what the first said.
    let with_key = ImportKeysRequest { dry_run: true, ..row("new", key("new")) };
    assert_eq!(counts(&import(&server, vec![with_key, row("newer", key("newer"))]).await), (2, 0, 0));
    let late = ImportKeysRequest { dry_run: true, ..row("late", key("")) };
    assert_eq!((server.engine.index_size(), names(&server).await), before);
    assert_eq!(counts(&import(&server, vec![row("new", key("new")), late]).await), (1, 0, 1));
    assert!(server.check("new").await.allowed);
}

#[tokio::test]
async fn what_was_committed_before_a_stream_breaks_off_stays() {
    let server = Server::start().await;
    let mut messages: Vec<ImportKeysRequest> =
        (0..1_500).map(|i| row(&format!("s{i}"), key(&format!("k{i}")))).collect();
    messages.push(row("x", Key { revoke_reason: "x".repeat(IMPORT_MESSAGE_BYTES_MAX), ..key("x") }));
    refused(server.operator.import_keys(messages.clone()).await, Code::OutOfRange);
    assert_eq!([server.verdict("s999").await, server.verdict("s1000").await], [Verdict::Allowed, Verdict::Unknown]);
    messages.pop();
    assert_eq!(counts(&import(&server, messages).await), (500, 1_000, 0));
}

/// What the rows before it would have done counts too, whatever batch they came in.
#[tokio::test]
async fn a_dry_run_tells_what_the_import_would_do() {
    let server = Server::start().await;
    server.plan(Plan { max_keys: 1_100, ..plan("roomy") }).await;
    server.account(account("acct_roomy", "roomy")).await;
    server.plain_key("taken").await;
    let roomy = |name: &str| Key { account_id: "acct_roomy".to_owned(), ..key(name) };
    let mut rows: Vec<ImportKeysRequest> = (0..1_050).map(|i| row(&format!("s{i}"), roomy(&format!("k{i}")))).collect();
    rows.push(row("s0", roomy("the same secret")));
    rows.push(row("other", roomy("k1")));
    rows.push(row("another", key("taken")));
    rows.push(row("s2", key("somebody else's secret")));
    rows.extend((0..60).map(|i| row(&format!("t{i}"), roomy(&format!("t{i}")))));
    let mut dry = rows.clone();
    dry[0].dry_run = true;
    let rehearsed = import(&server, dry).await;
    assert!(!server.check("s0").await.allowed, "nothing was imported");
    let done = import(&server, rows).await;
    assert_eq!(counts(&done), (1_100, 1, 13));
    assert_eq!(counts(&rehearsed), counts(&done));
    let sorted = |answer: &ImportKeysResponse| {
        let mut errors = errors(answer).into_iter().map(|(row, _)| row).collect::<Vec<_>>();
        errors.sort_unstable();
        errors
    };
    assert_eq!(sorted(&rehearsed), sorted(&done));
}

#[tokio::test]
async fn an_empty_stream_is_no_error() {
    let server = Server::start().await;
    assert_eq!(import(&server, Vec::new()).await, ImportKeysResponse::default());
    let answer = import(&server, vec![ImportKeysRequest::default()]).await;
    assert_eq!(answer, ImportKeysResponse::default());
    let answer = import(&server, vec![ImportKeysRequest::default(); 3]).await;
    assert_eq!((counts(&answer), errors(&answer)), ((0, 0, 2), vec![(0, "key"), (1, "key")]));
}

#[tokio::test]
async fn the_plans_room_is_held() {
    let server = Server::start().await;
    server.change_plan(Plan { max_keys: 3, ..plan(PLAN) }, &["max_keys"]).await;
    let rows = (0..5).map(|i| row(&format!("s{i}"), key(&format!("k{i}")))).collect();
    let answer = import(&server, rows).await;
    assert_eq!(counts(&answer), (3, 0, 2));
    assert_eq!(names(&server).await, ["k0", "k1", "k2"]);
}

#[tokio::test]
async fn a_message_may_be_larger_than_elsewhere() {
    let server = Server::start().await;
    // Passed over, but it has to be read.
    let padded = |bytes: usize| Key { revoke_reason: "x".repeat(bytes), ..key("padded") };
    let answer = import(&server, vec![row("a", padded(200_000))]).await;
    assert_eq!(counts(&answer), (1, 0, 0));
    let create = CreateKeyRequest { key: Some(padded(200_000)) };
    refused(server.operator.create_key(create).await, Code::OutOfRange);
    let messages = vec![row("b", key("b")), row("c", padded(IMPORT_MESSAGE_BYTES_MAX))];
    refused(server.operator.import_keys(messages).await, Code::OutOfRange);
}

#[tokio::test]
async fn a_hundred_thousand_keys_in_one_call() {
    let server = Server::start().await;
    let rows: i64 = 100_000;
    // Every 1,000th row is bad, and refused alone.
    let messages = (0..rows)
        .map(|i| row(&format!("secret-{i}"), key(&if i % 1_000 == 7 { String::new() } else { format!("k{i}") })));
    let answer = import(&server, messages.collect()).await;
    assert_eq!(counts(&answer), (rows - rows / 1_000, 0, rows / 1_000));
    assert_eq!(answer.errors.len(), usize::try_from(rows / 1_000).unwrap());
    for i in [0, 999, 1_000, 5_555, rows - 1] {
        assert_eq!(server.check(&format!("secret-{i}")).await.key_name, format!("k{i}"));
    }
    assert_eq!(server.verdict("secret-7").await, Verdict::Unknown);
}

#[tokio::test]
async fn of_many_refused_rows_the_first_thousand_are_told() {
    let server = Server::start().await;
    let answer = import(&server, vec![row("s", key("")); 1_500]).await;
    assert_eq!((counts(&answer), answer.errors.len()), ((0, 0, 1_500), 1_000));
    assert_eq!(errors(&answer), (0..1_000).map(|row| (row, "key.name")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_customer_imports_into_its_own_account_and_nothing_wider_than_its_key() {
    let server = Server::start().await;
    let customer = server.caller_of(ACCOUNT, &["tollgate:keys:write", "tasks:read"]).await;
    let to = |name: &str, account_id: &str| Key { account_id: account_id.to_owned(), ..key(name) };
    let wider = Key { scopes: strings(&["tasks:write"]), ..key("wider") };
    let narrow = Key { scopes: strings(&["tasks:read"]), ..key("narrow") };
    let rows = vec![
        row("a", to("own", "")),
        row("b", to("foreign", OTHER_ACCOUNT)),
        row("c", to("operator", "acct_operator")),
        row("d", wider),
        row("e", narrow),
    ];
    let answer = customer.import_keys(rows).await.unwrap();
    assert_eq!(counts(&answer), (2, 0, 3));
    assert_eq!(errors(&answer), [(1, ""), (2, ""), (3, "")]);
    let unable = server.caller_of(ACCOUNT, &["tollgate:keys:read"]).await;
    refused(unable.import_keys(vec![row("f", key("f"))]).await, Code::PermissionDenied);
}

//! What a server answers after a restart, from the store alone.

use tollgate::proto::v1::{Verdict as V, *};

use crate::check_key::verdicts::requests;
use crate::harness::{Server, Settings, key, of};

fn settings() -> Settings {
    Settings { key_checks_per_second: 1, ..Settings::default() }
}

#[tokio::test]
async fn every_verdict_is_the_same() {
    let server = Server::start_with(settings()).await;
    let requests = requests(&server).await;
    let mut before = Vec::new();
    for (_, request) in &requests {
        before.push(server.ask(request.clone()).await);
    }
    server.advance(1);
    let server = server.restart(settings()).await;
    for ((verdict, request), before) in requests.into_iter().zip(before) {
        let after = server.ask(request).await;
        if verdict == Verdict::Throttled {
            // Another second.
            assert_eq!(after.verdict(), Verdict::Allowed);
        } else {
            // Windows have moved on by the second that passed.
            let without_wait = |answer: CheckKeyResponse| CheckKeyResponse { retry_after: None, ..answer };
            assert_eq!(without_wait(after), without_wait(before));
        }
    }
}

#[tokio::test]
async fn both_secrets_of_a_rotated_key_are_known() {
    let server = Server::start().await;
    let (id, first) = server.plain_key("k").await;
    let second = server.rotate(&id, 60).await;
    let third = server.rotate(&id, 60).await;
    let server = server.restart(Settings::default()).await;
    for (secret, expected) in [(&first, V::RotatedOut), (&second, V::Allowed), (&third, V::Allowed)] {
        assert_eq!(server.verdict(secret).await, expected);
    }
    server.advance(60);
    for (secret, expected) in [(&first, V::RotatedOut), (&second, V::RotatedOut), (&third, V::Allowed)] {
        assert_eq!(server.verdict(secret).await, expected);
    }
    // It goes on from there.
    let fourth = server.rotate(&id, 0).await;
    assert_eq!([server.verdict(&third).await, server.verdict(&fourth).await], [V::RotatedOut, V::Allowed]);
}

#[tokio::test]
async fn revisions_usage_and_names_go_on() {
    let server = Server::start().await;
    let made = server.key(key("k")).await;
    let id = made.key.unwrap().id;
    server.check(&made.secret).await;
    server.flush().await;
    let server = server.restart(Settings::default()).await;
    assert_eq!(server.check(&made.secret).await.revision, made.revision);
    server.flush().await;
    assert_eq!(server.get_key(&id).await.usage.unwrap().requests_today, 2);
    let taken = CreateKeyRequest { key: Some(key("k")) };
    assert_eq!(server.operator.create_key(taken).await.unwrap_err().code(), tonic::Code::AlreadyExists);
    let next = server.key(key("next")).await;
    assert_eq!(next.revision, made.revision + 1);
    assert!(next.key.unwrap().id > id);
    let waiting = CheckKeyRequest { min_revision: next.revision, ..of(&next.secret) };
    assert!(server.ask(waiting).await.allowed);
}

//! The process ends at any moment, and what it has acknowledged holds.
#![cfg(test)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::task::JoinSet;
use tollgate::proto::v1::{
    CheckKeyRequest, CheckKeyResponse, GetKeyRequest, GetUsageRequest, Key, ListKeysRequest, Mode, RevokeKeyRequest,
    RotateKeyRequest, Status as KeyStatus, UpdateKeyRequest, Verdict,
};
use tonic::Status;

use support::{GLANCE, Home, Keys, PATIENCE, Server, create, dice, serve_command, stopwatch};

const KILLS: usize = 6;
const WORKERS: usize = 4;
/// Acknowledged calls of a round before its server may be killed.
const CALLS_MIN: usize = 60;
const GRACE_SECONDS: i64 = 3_600;

/// A key as its maker knows it.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    /// Unknown where a rotation's answer was lost.
    secret: Option<String>,
    /// A secret before a rotation, and what it must answer while the key is in use.
    old: Option<(String, Verdict)>,
    note: String,
    revoked: bool,
    /// What was asked for last, where the answer was lost: it may have been done or not.
    doubt: Option<Doubt>,
}

#[derive(Clone, Debug)]
enum Doubt {
    Note(String),
    Rotation { grace: bool },
    Revocation,
}

/// What the workers of a round share.
#[derive(Debug, Default)]
struct Round {
    killed: AtomicBool,
    acknowledged: AtomicUsize,
    revision: AtomicI64,
    /// Charged answers that were seen, and those that may have been lost on their way.
    allowed: AtomicU64,
    allowed_lost: AtomicU64,
    creations_lost: AtomicUsize,
}

impl Round {
    fn acknowledge(&self, revision: i64) {
        self.acknowledged.fetch_add(1, SeqCst);
        self.revision.fetch_max(revision, SeqCst);
    }

    /// Only the kill makes a call fail.
    fn lost(&self, status: &Status) {
        assert!(self.killed.load(SeqCst), "a call failed on a server that runs: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_every_kill() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let account = server.account(&home.token).await;
    let round = Arc::new(Round::default());
    let mut known: Vec<Vec<Known>> = vec![Vec::new(); WORKERS];
    for kill in 0..KILLS {
        let touched: Vec<usize> = known.iter().map(Vec::len).collect();
        round.killed.store(false, SeqCst);
        round.acknowledged.store(0, SeqCst);
        let mut workers = JoinSet::new();
        for (number, book) in known.drain(..).enumerate() {
            let worker = Worker {
                keys: server.keys(&home.token).await,
                account: account.clone(),
                round: Arc::clone(&round),
                names: format!("{kill}-{number}"),
                book,
            };
            workers.spawn(async move { (number, worker.work().await) });
        }
        let elapsed = stopwatch();
        while round.acknowledged.load(SeqCst) < CALLS_MIN {
            assert!(elapsed() < PATIENCE, "the workers hang");
            tokio::time::sleep(GLANCE).await;
        }
        tokio::time::sleep(Duration::from_millis(dice(250))).await;
        round.killed.store(true, SeqCst);
        server.kill();
        let mut books = workers.join_all().await;
        books.sort_by_key(|(number, _)| *number);
        known = books.into_iter().map(|(_, book)| book).collect();

        // Some servers meet the file as it was left, some after `doctor`, some after one that was killed as it started.
        match kill % 3 {
            0 => assert_eq!(home.damage(), Vec::<String>::new()),
            1 => {
                let mut child = serve_command(home.path(), &[]).spawn().unwrap();
                tokio::time::sleep(Duration::from_millis(dice(60))).await;
                child.kill().unwrap();
                child.wait().unwrap();
            }
            _ => {}
        }
        server = home.serve(&[]);
        let mut keys = server.keys(&home.token).await;
        for (book, from) in known.iter_mut().zip(touched) {
            // All that the round can have changed, and all in the last.
            let from = if kill + 1 == KILLS { 0 } else { from };
            for (place, key) in book.iter_mut().enumerate() {
                if place >= from || key.doubt.is_some() {
                    settle(&mut keys, key).await;
                    verify(&mut keys, key, round.revision.load(SeqCst)).await;
                }
            }
        }
    }
    nothing_was_made_up(&server, &home, &account, &known, &round).await;
    server.stop();
    assert_eq!(home.damage(), Vec::<String>::new());
}

/// There are no other keys than those asked for, and no other usage.
async fn nothing_was_made_up(server: &Server, home: &Home, account: &str, known: &[Vec<Known>], round: &Round) {
    let mut keys = server.keys(&home.token).await;
    let (mut listed, mut page_token) = (0, String::new());
    loop {
        let request = ListKeysRequest {
            account_id: account.to_owned(),
            page_size: 1_000,
            page_token,
            ..ListKeysRequest::default()
        };
        let page = keys.list_keys(request).await.unwrap().into_inner();
        listed += page.keys.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let created: usize = known.iter().map(Vec::len).sum();
    let lost = round.creations_lost.load(SeqCst);
    assert!((created..=created + lost).contains(&listed), "{listed} keys, of {created} and {lost} in doubt");
    let usage = GetUsageRequest { account_id: account.to_owned(), ..GetUsageRequest::default() };
    let counted = keys.get_usage(usage).await.unwrap().into_inner().totals.unwrap().allowed;
    let (seen, lost) = (round.allowed.load(SeqCst), round.allowed_lost.load(SeqCst));
    println!("{listed} keys; {counted} checks counted of {seen} seen and {lost} in doubt");
    assert!(u64::try_from(counted).unwrap() <= seen + lost, "{counted} checks counted of {seen} and {lost} in doubt");
}

/// Makes, changes and ends keys of its own, one call after the other, until the server is gone.
struct Worker {
    keys: Keys,
    account: String,
    round: Arc<Round>,
    names: String,
    book: Vec<Known>,
}

impl Worker {
    async fn work(mut self) -> Vec<Known> {
        for number in 0_u64.. {
            let alive = self.book.iter().filter(|key| !key.revoked).count();
            let done = if alive < 3 || dice(10) < 4 { self.create(number).await } else { self.change().await };
            if let Err(status) = done {
                self.round.lost(&status);
                break;
            }
        }
        self.book
    }

    async fn create(&mut self, number: u64) -> Result<(), Status> {
        let name = format!("{}-{number}", self.names);
        let made = create(&mut self.keys, &self.account, &name).await.inspect_err(|_| {
            self.round.creations_lost.fetch_add(1, SeqCst);
        })?;
        self.round.acknowledge(made.revision);
        self.book.push(Known {
            id: made.key.unwrap().id,
            secret: Some(made.secret),
            old: None,
            note: String::new(),
            revoked: false,
            doubt: None,
        });
        Ok(())
    }

    async fn change(&mut self) -> Result<(), Status> {
        let usable: Vec<usize> = (0..self.book.len()).filter(|&place| !self.book[place].revoked).collect();
        let place = usable[usize::try_from(dice(u64::try_from(usable.len()).unwrap())).unwrap()];
        let mut key = self.book[place].clone();
        let done = match dice(6) {
            0 => self.note(&mut key).await,
            1 => self.rotate(&mut key).await,
            2 => self.revoke(&mut key).await,
            _ => self.check(&key).await,
        };
        self.book[place] = key;
        done
    }

    async fn note(&mut self, key: &mut Known) -> Result<(), Status> {
        let note = dice(u64::MAX).to_string();
        key.doubt = Some(Doubt::Note(note.clone()));
        let changed =
            Key { id: key.id.clone(), metadata: [("note".to_owned(), note.clone())].into(), ..Key::default() };
        let update_mask = Some(prost_types::FieldMask { paths: vec!["metadata".into()] });
        self.keys.update_key(UpdateKeyRequest { key: Some(changed), update_mask }).await?;
        self.round.acknowledge(0);
        (key.note, key.doubt) = (note, None);
        Ok(())
    }

    async fn rotate(&mut self, key: &mut Known) -> Result<(), Status> {
        let grace = dice(2) == 0;
        key.doubt = Some(Doubt::Rotation { grace });
        let rotated = rotate(&mut self.keys, key, grace).await?;
        self.round.acknowledge(rotated);
        key.doubt = None;
        Ok(())
    }

    async fn revoke(&mut self, key: &mut Known) -> Result<(), Status> {
        key.doubt = Some(Doubt::Revocation);
        let request = RevokeKeyRequest { id: key.id.clone(), reason: "crash test".into() };
        let revoked = self.keys.revoke_key(request).await?.into_inner();
        self.round.acknowledge(revoked.revision);
        (key.revoked, key.doubt) = (true, None);
        Ok(())
    }

    async fn check(&mut self, key: &Known) -> Result<(), Status> {
        let before = self.round.revision.load(SeqCst);
        let Some(secret) = &key.secret else { return Ok(()) };
        self.round.allowed_lost.fetch_add(1, SeqCst);
        let answer = check(&mut self.keys, secret, Mode::Consume).await?;
        self.round.allowed_lost.fetch_sub(1, SeqCst);
        assert_eq!(answer.verdict(), Verdict::Allowed, "{key:?}");
        assert_eq!(answer.metadata.get("note").map_or("", |note| note), key.note, "read your writes");
        assert!(answer.revision >= before, "revision {} after {before}", answer.revision);
        self.round.allowed.fetch_add(1, SeqCst);
        self.round.acknowledge(answer.revision);
        Ok(())
    }
}

async fn check(keys: &mut Keys, secret: &str, mode: Mode) -> Result<CheckKeyResponse, Status> {
    let request = CheckKeyRequest { key: secret.to_owned(), mode: mode.into(), ..CheckKeyRequest::default() };
    Ok(keys.check_key(request).await?.into_inner())
}

/// Gives a key a new secret, and knows it. Returns the revision.
async fn rotate(keys: &mut Keys, key: &mut Known, grace: bool) -> Result<i64, Status> {
    let grace_period = grace.then_some(prost_types::Duration { seconds: GRACE_SECONDS, nanos: 0 });
    let request = RotateKeyRequest { id: key.id.clone(), grace_period, ..RotateKeyRequest::default() };
    let rotated = keys.rotate_key(request).await?.into_inner();
    let verdict = if grace { Verdict::Allowed } else { Verdict::RotatedOut };
    key.old = key.secret.replace(rotated.secret).map(|old| (old, verdict));
    Ok(rotated.revision)
}

/// Finds out whether the last call on a key, whose answer was lost, was carried out: wholly, or not at all.
async fn settle(keys: &mut Keys, key: &mut Known) {
    let Some(doubt) = key.doubt.take() else { return };
    let stored = keys.get_key(GetKeyRequest { id: key.id.clone() }).await.unwrap().into_inner();
    match doubt {
        Doubt::Note(note) => {
            if stored.metadata.get("note") == Some(&note) {
                key.note = note;
            }
        }
        Doubt::Revocation => key.revoked = stored.status() == KeyStatus::Revoked,
        Doubt::Rotation { grace } => {
            let secret = key.secret.clone().unwrap();
            if !secret.starts_with(&stored.prefix) {
                let verdict = if grace { Verdict::Allowed } else { Verdict::RotatedOut };
                assert_eq!(check(keys, &secret, Mode::Peek).await.unwrap().verdict(), verdict, "{stored:?}");
                // A rotation that followed would end its grace.
                (key.secret, key.old) = (None, None);
                rotate(keys, key, false).await.unwrap();
            }
        }
    }
}

async fn verify(keys: &mut Keys, key: &Known, revision: i64) {
    let stored = keys.get_key(GetKeyRequest { id: key.id.clone() }).await.unwrap().into_inner();
    let status = if key.revoked { KeyStatus::Revoked } else { KeyStatus::Active };
    assert_eq!(stored.status(), status, "{key:?}");
    assert_eq!(stored.revoke_reason, if key.revoked { "crash test" } else { "" });
    assert_eq!(stored.metadata.get("note").map_or("", |note| note), key.note, "{key:?}");
    let secrets = key.secret.iter().map(|secret| (secret, Verdict::Allowed));
    for (secret, verdict) in secrets.chain(key.old.iter().map(|(secret, verdict)| (secret, *verdict))) {
        let verdict = if key.revoked { Verdict::Revoked } else { verdict };
        let answer = check(keys, secret, Mode::Peek).await.unwrap();
        assert_eq!((answer.verdict(), answer.allowed), (verdict, verdict == Verdict::Allowed), "{key:?}");
        assert!(answer.revision >= revision, "the revision went back from {revision} to {}", answer.revision);
    }
}

/// Revocations under load, and the checks around each.
const REVOCATIONS: usize = 520;
const CHECKERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_check_that_begins_after_a_revocation_returned_is_admitted() {
    let home = Home::new();
    let server = home.serve(&[]);
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let mut made = Vec::new();
    for number in 0..REVOCATIONS {
        let created = create(&mut keys, &account, &number.to_string()).await.unwrap();
        made.push((created.key.unwrap().id, created.secret, AtomicBool::new(false)));
    }
    let (made, next, after, admitted) =
        (Arc::new(made), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut checkers = JoinSet::new();
    for _ in 0..CHECKERS {
        let mut keys = server.keys(&home.token).await;
        let (made, next, after, admitted) = (made.clone(), next.clone(), after.clone(), admitted.clone());
        checkers.spawn(async move {
            while next.load(SeqCst) < REVOCATIONS {
                // One of those that are being revoked, were just now, or will be next.
                let around = (next.load(SeqCst) + usize::try_from(dice(6)).unwrap()).saturating_sub(3);
                let (id, secret, revoked) = &made[around.min(REVOCATIONS - 1)];
                let begins_after = revoked.load(SeqCst);
                let answer = check(&mut keys, secret, Mode::Consume).await.unwrap();
                if begins_after {
                    assert_eq!(answer.verdict(), Verdict::Revoked, "{id} was admitted after its revocation");
                    after.fetch_add(1, SeqCst);
                } else if answer.allowed {
                    admitted.fetch_add(1, SeqCst);
                }
            }
        });
    }
    let mut revokers = JoinSet::new();
    for _ in 0..2 {
        let mut keys = server.keys(&home.token).await;
        let (made, next) = (made.clone(), next.clone());
        revokers.spawn(async move {
            while let Some((id, secret, revoked)) = made.get(next.fetch_add(1, SeqCst)) {
                keys.revoke_key(RevokeKeyRequest { id: id.clone(), reason: String::new() }).await.unwrap();
                revoked.store(true, SeqCst);
                let answer = check(&mut keys, secret, Mode::Consume).await.unwrap();
                assert_eq!((answer.verdict(), answer.allowed), (Verdict::Revoked, false), "{id}");
            }
        });
    }
    revokers.join_all().await;
    checkers.join_all().await;
    let (after, admitted) = (after.load(SeqCst), admitted.load(SeqCst));
    println!("{REVOCATIONS} revocations, beside them {admitted} checks admitted before and {after} begun after one");
    assert!(admitted > 0, "nothing was checked before its revocation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_end_under_load_loses_no_usage() {
    let home = Home::new();
    let mut server = home.serve(&["--usage-flush-interval=200ms"]);
    let account = server.account(&home.token).await;
    let mut keys = server.keys(&home.token).await;
    let mut secrets = Vec::new();
    for number in 0..20 {
        secrets.push(create(&mut keys, &account, &number.to_string()).await.unwrap().secret);
    }
    let (secrets, stopping) = (Arc::new(secrets), Arc::new(AtomicBool::new(false)));
    let allowed = Arc::new(AtomicI64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let mut keys = server.keys(&home.token).await;
        let (secrets, stopping, allowed) = (secrets.clone(), stopping.clone(), allowed.clone());
        clients.spawn(async move {
            for number in client.. {
                match check(&mut keys, &secrets[number % secrets.len()], Mode::Consume).await {
                    Ok(answer) => {
                        assert!(answer.allowed, "{answer:?}");
                        allowed.fetch_add(1, SeqCst);
                    }
                    Err(status) => {
                        assert!(stopping.load(SeqCst), "{status:?}");
                        return;
                    }
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stopping.store(true, SeqCst);
    server.stop();
    clients.join_all().await;
    let server = home.serve(&[]);
    let usage = GetUsageRequest { account_id: account, ..GetUsageRequest::default() };
    let totals = server.keys(&home.token).await.get_usage(usage).await.unwrap().into_inner().totals.unwrap();
    let seen = allowed.load(SeqCst);
    assert!(seen > 0);
    assert_eq!((totals.allowed, totals.requests), (seen, seen), "usage against the answers that clients saw");
}

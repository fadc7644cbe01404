//! One process among several that share a store: what it knows of the store and of the others, and how it keeps up.
//!
//! A poll tells what has changed, and by having been answered moves the fence on ([`super::fence`]). Polls go out at an interval, at once
//! when the store hints at news, and every few milliseconds while a call waits for the others ([`super::acknowledge`]). One that is
//! not answered soon is followed by another, because it may have been sent into a connection that is dead: the later answer then shows
//! that the earlier will not come.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::ambient::{Clock, random};
use crate::domain::{Revision, Time};
use crate::store::{
    Incarnation, LogPosition, Peer, Poll, Polled, RESTATING_PATIENCE, Registration, Replica, Replication, Standing,
    StoreError, silent_after,
};

use super::restate::Remembered;
use super::{Engine, LoadError};

/// How this process takes part.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// What operators know it by.
    pub name: String,
    /// For how long after the start of a poll it admits.
    pub fence: Duration,
    /// How often it polls.
    pub poll_interval: Duration,
}

/// How often it polls while a call waits for the others.
const HURRIED_INTERVAL: Duration = Duration::from_millis(10);
/// After how long another poll is sent, should the one before not be answered: at least, and where answers take longer than that, twice
/// as long as the last took. More of them would only wait for each other.
const OVERDUE: Duration = Duration::from_millis(500);
/// Polls under way at once.
const POLLS_MAX: usize = 8;
/// How much later a poll began that was answered, if one before it is to be given up.
const OVERTAKEN: Duration = Duration::from_secs(1);
/// How long after a failure the next poll is sent: between the first, doubled each time, and the second.
const RETRY_MIN: Duration = Duration::from_millis(25);
const RETRY_MAX: Duration = Duration::from_millis(400);
/// How long a poll may take, also where the fence is longer: so that not too many are under way.
const POLL_TIME_MAX: Duration = Duration::from_secs(4);
/// In the place of a time: a poll has failed since.
const BROKEN: u64 = u64::MAX;
/// Times of the database that are the same but for rounding, in milliseconds. Who is there is heard of after ten times that.
const SAME_MILLIS: i64 = 2;
/// Round trips that a new connection takes before it polls.
const CONNECTING_TRIPS: u32 = 8;

/// What this process knows of the store and of the others.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) options: ReplicaOptions,
    /// What is applied.
    position: watch::Sender<LogPosition>,
    beat: AtomicI64,
    beat_confirmed: AtomicI64,
    /// The last poll that was answered.
    pub(super) seen: watch::Sender<Seen>,
    /// Calls that wait for what a poll will tell.
    hurried: AtomicUsize,
    hurry: Notify,
    /// The beginning of the last poll that was answered before a change waited for one in vain, in nanoseconds.
    given_up: AtomicU64,
    /// When polls began to be answered without a break, in nanoseconds.
    unbroken_since: AtomicU64,
    /// Of each of the others: when the database last heard of it, by the database's clock, and since when that is so, by this one's.
    heard: Mutex<HashMap<Incarnation, (Time, Duration)>>,
    moves: AtomicU64,
    /// What it had to restate when the database was found to have gone back, until that is over.
    pub(super) remembered: tokio::sync::Mutex<Option<Remembered>>,
}

/// What a poll told.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// When it began, by the monotonic clock.
    pub(super) began: Duration,
    /// The last revision in the store.
    pub(super) revision: Revision,
    pub(super) peers: Vec<Peer>,
}

/// How a process stands among those that share its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStats {
    /// Since the start of the last poll that was answered.
    pub fence_age: Duration,
    /// Whether nothing is admitted.
    pub fenced: bool,
    /// Revisions that the last poll told of and that are not applied.
    pub log_lag: i64,
    /// Processes that share the store and have not been silent for longer than their fences, this one included.
    pub alive: usize,
}

impl Share {
    pub(super) fn new(options: ReplicaOptions) -> Self {
        Self {
            options,
            position: watch::Sender::new(LogPosition::default()),
            beat: AtomicI64::new(0),
            beat_confirmed: AtomicI64::new(0),
            seen: watch::Sender::new(Seen::default()),
            hurried: AtomicUsize::new(0),
            hurry: Notify::new(),
            given_up: AtomicU64::new(u64::MAX),
            unbroken_since: AtomicU64::new(BROKEN),
            heard: Mutex::default(),
            moves: AtomicU64::new(0),
            remembered: tokio::sync::Mutex::default(),
        }
    }

    /// Notes of which of the others a poll told nothing new.
    fn note_silence(&self, peers: &[Peer], time: Time, began: Duration) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = |peer: &Peer| {
            let silence = i64::try_from(peer.silence.as_millis()).unwrap_or(i64::MAX);
            let seen = time.plus_millis(silence.saturating_neg());
            let before = heard.get(&peer.incarnation);
            let same = before.filter(|(before, _)| seen.millis_since(*before).abs() <= SAME_MILLIS).copied();
            (peer.incarnation, same.unwrap_or((seen, began)))
        };
        let now = peers.iter().map(of_peer).collect();
        *heard = now;
    }

    /// For how long nothing was heard of any of these, by this process's own clock: the database's may be set.
    pub(super) fn unheard_for(&self, peers: &[Incarnation], now: Duration) -> Duration {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let since = peers.iter().map(|peer| heard.get(peer).map_or(now, |(_, since)| *since)).max();
        now.saturating_sub(since.unwrap_or(now))
    }

    /// A poll that began then was answered.
    fn note_contact(&self, began: Duration) {
        _ = self.unbroken_since.compare_exchange(BROKEN, nanos(began), Ordering::Relaxed, Ordering::Relaxed);
    }

    fn note_break(&self) {
        self.unbroken_since.store(BROKEN, Ordering::Relaxed);
    }

    /// For how long polls have been answered without a break.
    pub(super) fn in_contact_for(&self, now: Duration) -> Duration {
        let since = self.unbroken_since.load(Ordering::Relaxed);
        if since == BROKEN { Duration::ZERO } else { now.saturating_sub(Duration::from_nanos(since)) }
    }

    /// How often the database was found to be another than before, or to have given this process up.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// What was known of the store, and told of changes, may not hold any more.
    pub(super) fn note_move(&self) {
        self.moves.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn position(&self) -> LogPosition {
        *self.position.borrow()
    }

    pub(super) fn set_position(&self, position: LogPosition) {
        self.position.send_replace(position);
    }

    /// Has polls go out at once, and again and again, until it is dropped.
    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::Relaxed);
        self.hurry.notify_one();
        Hurry(self)
    }

    /// Notes that a poll that began after this one was waited for in vain.
    pub(super) fn give_up(&self, heard: Duration) {
        self.given_up.store(nanos(heard), Ordering::Relaxed);
    }

    pub(super) fn was_given_up(&self, heard: Duration) -> bool {
        self.given_up.load(Ordering::Relaxed) == nanos(heard)
    }

    /// Beats count anew: the row of this process was made anew.
    pub(super) fn forget_beats(&self) {
        self.beat_confirmed.store(0, Ordering::Relaxed);
    }

    fn next_poll(&self, incarnation: Incarnation, flushed: Time) -> Poll {
        Poll {
            incarnation,
            flushed,
            position: self.position(),
            beat: self.beat.fetch_add(1, Ordering::Relaxed) + 1,
            beat_confirmed: self.beat_confirmed.load(Ordering::Relaxed),
        }
    }

    pub(super) fn replica(&self, incarnation: Incarnation) -> Replica {
        Replica { incarnation, name: self.options.name.clone(), fence: self.options.fence }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(0)
}

/// A call that waits for what a poll will tell.
#[derive(Debug)]
pub(super) struct Hurry<'a>(&'a Share);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A poll, and what came of it.
struct Sent {
    poll: Poll,
    began: Duration,
    result: Result<Polled, StoreError>,
}

/// What a poll has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    None,
    /// Something that is now applied, and that the others want to hear acknowledged.
    Applied,
    /// That this process counts for nothing as it was: polls that are still under way are of what it was.
    Anew,
}

/// When to poll next.
#[derive(Debug, Default)]
struct Pace {
    failures: u32,
    /// Whether the last one brought something, which the others want to hear acknowledged.
    again: bool,
    /// When a poll was answered last, so that there is a connection that works, and how long that took.
    answered: Duration,
    round_trip: Duration,
}

/// Polls under way.
#[derive(Default)]
struct Polls {
    tasks: JoinSet<Sent>,
    /// When each of them began, by its number.
    began: BTreeMap<i64, Duration>,
}

impl Polls {
    /// The next that is answered; none is where none is under way, or where one panicked.
    async fn next(&mut self) -> Option<Sent> {
        let Some(joined) = self.tasks.join_next().await else { return std::future::pending().await };
        let Ok(sent) = joined else {
            // Which one it was is not known, and one that never comes would seem to be overtaken by all others.
            self.give_up();
            return None;
        };
        self.began.remove(&sent.poll.beat);
        Some(sent)
    }

    fn began_after(&self, answered: Duration) -> usize {
        self.began.values().filter(|began| **began > answered).count()
    }

    fn give_up(&mut self) {
        self.tasks.abort_all();
        *self = Self::default();
    }
}

impl Pace {
    fn retry_after(&self) -> Duration {
        let doubled = RETRY_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(8)).min(RETRY_MAX);
        // Up to a half more, so that processes that lost the database together don't come back together.
        let mut byte = [0];
        let drawn = random::fill(&mut byte).map_or(0, |()| u32::from(byte[0]));
        doubled + doubled * drawn / 512
    }
}

impl Engine {
    /// The store as what several processes share, and what this one knows of that. Absent where it has the store for itself.
    pub(super) fn shared(&self) -> Option<(&dyn Replication, &Share)> {
        Some((self.store.replication()?, self.share.as_ref()?))
    }

    /// Whether others may share the store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared().is_some()
    }

    /// How this process stands among those that share its store. Absent where there are no others.
    #[must_use]
    pub fn replica_stats(&self) -> Option<ReplicaStats> {
        let (_, share) = self.shared()?;
        let seen = share.seen.borrow();
        let alive = seen.peers.iter().filter(|peer| peer.silence < silent_after(peer.fence)).count() + 1;
        Some(ReplicaStats {
            fence_age: self.clock.monotonic().saturating_sub(seen.began),
            fenced: !self.is_fresh(),
            log_lag: (seen.revision.number() - self.index.revision().number()).max(0),
            alive,
        })
    }

    /// Takes part among those that share the store, with the index filled. Checks are admitted from then on.
    pub(super) async fn join(&self) -> Result<(), LoadError> {
        let Some((store, share)) = self.shared() else { return Ok(()) };
        if store.register(&share.replica(self.leases.incarnation())).await? == Registration::Moved {
            return Err(LoadError::Moved);
        }
        // Before it was there, it counted nothing.
        self.usage.set_as_of(self.clock.now());
        let poll = self.next_poll(share);
        let sent = self.poll(poll, self.clock.monotonic()).await;
        self.heed(store, share, sent).await?;
        Ok(())
    }

    /// Waits until a database that has moved is settled by those who remember, and takes its clock for this process's.
    pub(super) async fn await_settled(&self) -> Result<(), LoadError> {
        let Some((store, share)) = self.shared() else { return Ok(()) };
        // They may have to wait for each other.
        let patience = RESTATING_PATIENCE.max(silent_after(share.options.fence)) * 2;
        let deadline = self.clock.monotonic() + patience;
        loop {
            let sent = self.clock.monotonic();
            // Of a process that has applied nothing yet, not even the empty database: whatever the log holds is no other history.
            let position = LogPosition { revision: Revision::new(-1), stamp: 0 };
            let poll = Poll { position, ..self.next_poll(share) };
            let Polled { standing, time, .. } = store.poll(&poll).await?;
            self.clock.steer(time, sent, self.clock.monotonic());
            if standing != Standing::Moved {
                return Ok(());
            }
            if self.clock.monotonic() > deadline {
                return Err(LoadError::Moved);
            }
            tokio::time::sleep(RETRY_MAX).await;
        }
    }

    /// Polls until it is told to stop. Where nobody shares the store, there is nothing to do.
    pub async fn follow(self: &Arc<Self>, stop: impl Future<Output = ()>) {
        let Some((store, share)) = self.shared() else { return };
        let mut stop = std::pin::pin!(stop);
        let mut polls = Polls::default();
        let mut pace = Pace::default();
        loop {
            let (under_way, unanswered) = (polls.tasks.len(), polls.began_after(pace.answered));
            let answered = tokio::select! {
                biased;
                () = &mut stop => return,
                sent = polls.next() => sent,
                () = self.next_poll_due(store, share, under_way, unanswered, &pace) => {
                    pace.again = false;
                    self.send_poll(share, &mut polls);
                    continue;
                }
            };
            let Some(sent) = answered else { continue };
            let answered = self.clock.monotonic();
            let round_trip = answered.saturating_sub(sent.began);
            // On a slow network others may still be connecting.
            let overtaken = OVERTAKEN.max(round_trip * CONNECTING_TRIPS);
            if sent.result.is_ok() && polls.began.values().any(|began| *began + overtaken <= sent.began) {
                // Those that were sent so much earlier went into connections that are dead, as did whatever else was sent then.
                store.reset();
                polls.give_up();
            }
            let heard = self.heed(store, share, sent).await;
            Self::note_store(&self.following_fails, heard.as_ref().err(), "followed");
            if let Ok(news) = heard {
                if news == News::Anew {
                    polls.give_up();
                }
                pace = Pace { failures: 0, again: news != News::None, answered, round_trip };
            } else {
                pace.failures = pace.failures.saturating_add(1);
                share.note_break();
            }
        }
    }

    /// `unanswered`: polls under way that began after the last answer had come.
    async fn next_poll_due(
        &self,
        store: &dyn Replication,
        share: &Share,
        under_way: usize,
        unanswered: usize,
        pace: &Pace,
    ) {
        if under_way >= POLLS_MAX {
            return std::future::pending().await;
        }
        if unanswered > 0 {
            return tokio::time::sleep((pace.round_trip * 2).clamp(OVERDUE, POLL_TIME_MAX)).await;
        }
        if pace.failures > 0 {
            return tokio::time::sleep(pace.retry_after()).await;
        }
        if pace.again {
            return;
        }
        if share.hurried.load(Ordering::Relaxed) > 0 {
            tokio::select! {
                () = share.hurry.notified() => {}
                () = tokio::time::sleep(HURRIED_INTERVAL) => {}
            }
            return;
        }
        tokio::select! {
            () = share.hurry.notified() => {}
            () = store.hint() => {}
            () = tokio::time::sleep(share.options.poll_interval) => {}
        }
    }

    fn send_poll(self: &Arc<Self>, share: &Share, polls: &mut Polls) {
        let (poll, began) = (self.next_poll(share), self.clock.monotonic());
        polls.began.insert(poll.beat, began);
        let engine = Arc::clone(self);
        polls.tasks.spawn(async move { engine.poll(poll, began).await });
    }

    pub(super) fn next_poll(&self, share: &Share) -> Poll {
        share.next_poll(self.leases.incarnation(), self.usage.as_of().unwrap_or(Time::from_millis(0)))
    }

    /// Up to when all that any process counted is in the store, but those that fell silent and were buried. Absent before the first
    /// flush.
    pub(super) fn usage_complete_to(&self) -> Option<Time> {
        let own = self.usage.as_of()?;
        let of_peers =
            self.shared().and_then(|(_, share)| share.seen.borrow().peers.iter().map(|peer| peer.flushed).min());
        Some(of_peers.map_or(own, |peers| own.min(peers)))
    }

    async fn poll(&self, poll: Poll, began: Duration) -> Sent {
        let Some((store, share)) = self.shared() else {
            let result = Err(StoreError::Unavailable("nobody shares the store".to_owned()));
            return Sent { poll, began, result };
        };
        // One that takes longer than the fence says nothing any more.
        let limit = share.options.fence.clamp(OVERTAKEN, POLL_TIME_MAX);
        let result = tokio::time::timeout(limit, store.poll(&poll)).await;
        let result = result.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("the database has not answered a poll within {limit:?}")))
        });
        Sent { poll, began, result }
    }

    /// Does what a poll tells.
    async fn heed(&self, store: &dyn Replication, share: &Share, sent: Sent) -> Result<News, StoreError> {
        let Sent { poll, began, result } = sent;
        let polled = result?;
        self.clock.steer(polled.time, began, self.clock.monotonic());
        match polled.standing {
            Standing::Registered if poll.incarnation == self.leases.incarnation() => {}
            // Of an earlier one, which is not this process any more.
            Standing::Registered => return Ok(News::None),
            Standing::Buried | Standing::Moved => {
                self.fence.shut();
                share.note_contact(began);
                // Where the others have ended a move without what this process had to tell, there is more to do than to come back.
                let coming_back = polled.standing == Standing::Buried && !self.has_to_restate(share).await;
                if coming_back {
                    self.rejoin(store, share, poll.incarnation).await?;
                } else {
                    self.restate(store, share).await?;
                }
                return Ok(News::Anew);
            }
        }
        if self.begin_anew_after_move(share).await? {
            return Ok(News::Anew);
        }
        let news = if polled.position == share.position() { News::None } else { News::Applied };
        self.apply(share, poll.position, polled.position, polled.changes).await?;
        share.beat_confirmed.fetch_max(poll.beat, Ordering::Relaxed);
        self.fence.extend(began + share.options.fence);
        share.note_contact(began);
        if !polled.recalled.is_empty() {
            self.recall(&polled.recalled);
        }
        share.seen.send_if_modified(|seen| {
            let newer = began >= seen.began;
            if newer {
                share.note_silence(&polled.peers, polled.time, began);
                *seen = Seen { began, revision: polled.position.revision, peers: polled.peers };
            }
            newer
        });
        Ok(news)
    }

    /// Goes on under another name, after the others took this process for dead: what it had leased is closed.
    async fn rejoin(&self, store: &dyn Replication, share: &Share, buried: Incarnation) -> Result<(), StoreError> {
        if buried == self.leases.incarnation() {
            share.note_move();
            store.reset();
            tracing::warn!("this process was silent for so long that the others took it for dead; it begins anew");
            self.forget_leases(Self::draw_incarnation(&self.clock)).await;
            share.forget_beats();
        }
        // Where the database has moved meanwhile, the next poll says so.
        store.register(&share.replica(self.leases.incarnation())).await.map(drop)
    }

    /// Leaves those that share the store: this process ends, and has given its leases back.
    pub async fn depart(&self) -> Result<(), StoreError> {
        let Some((store, _)) = self.shared() else { return Ok(()) };
        self.fence.shut();
        store.depart(self.leases.incarnation()).await
    }

    /// A name that no process has had. Without randomness no key can be made either, and the time alone tells two apart well enough.
    pub(super) fn draw_incarnation(clock: &Clock) -> Incarnation {
        let now = clock.now();
        Incarnation(random::uuid_v7(now).unwrap_or_else(|_| i128::from(now.millis()).to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the database's clock says: a process is silent for as long as nothing new was heard of it.
    #[test]
    fn a_clock_that_is_set_makes_nobody_silent() {
        let options = ReplicaOptions {
            name: String::new(),
            fence: Duration::from_secs(5),
            poll_interval: Duration::from_millis(100),
        };
        let share = Share::new(options);
        let other = Incarnation([1; 16]);
        let hear = |time: i64, silence: u64, at: u64| {
            let peer = Peer {
                incarnation: other,
                name: String::new(),
                fence: Duration::from_secs(5),
                acknowledged: Revision::ZERO,
                silence: Duration::from_millis(silence),
                flushed: Time::from_millis(0),
            };
            share.note_silence(&[peer], Time::from_millis(time), Duration::from_millis(at));
        };
        let unheard = |at: u64| share.unheard_for(&[other], Duration::from_millis(at)).as_millis();
        assert_eq!(unheard(50), 0, "of whom nothing was ever heard");
        hear(1_000, 50, 100);
        hear(1_100, 150, 200);
        assert_eq!(unheard(200), 100);
        // Set forward by an hour: the same beat seems an hour old, and is not.
        hear(3_601_200, 3_600_251, 300);
        assert_eq!(unheard(300), 200);
        hear(3_601_300, 20, 400);
        assert_eq!(unheard(400), 0, "it is there");
    }
}

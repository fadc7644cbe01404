//! Waiting for the other processes: until they have applied what is to hold everywhere, or have fenced themselves.

use std::time::Duration;

use crate::domain::Revision;
use crate::store::{Peer, silent_after};

use super::replica::{Seen, Share};
use super::{Engine, Error};

/// How long a change waits to be heard of by this process itself.
const OWN_POLL_MAX: Duration = Duration::from_secs(2);
/// How much longer than the longest fence a change waits for polls that tell of the others.
const PATIENCE: Duration = Duration::from_secs(2);

impl Engine {
    /// Waits until this process has applied what was in the store when it was called, so that a change is decided by it. At once where
    /// nobody shares the store.
    ///
    /// Changes come here one after the other: where one has waited in vain, and nothing was heard since, the next do not wait.
    pub(super) async fn catch_up(&self) -> Result<(), Error> {
        let Some((_, share)) = self.shared() else { return Ok(()) };
        let (since, heard) = (self.clock.monotonic(), share.seen.borrow().began);
        let limit = if share.was_given_up(heard) { Duration::ZERO } else { OWN_POLL_MAX };
        self.next_seen(since, limit).await.map(drop).inspect_err(|_| share.give_up(heard))
    }

    /// Waits until this process has applied a revision of its own. That it has not is no error: the change is made, and comes
    /// with the next poll, before which the fence shuts.
    pub(super) async fn await_own(&self, revision: Revision) {
        let Some((_, share)) = self.shared() else { return };
        let _hurry = share.hurry();
        let mut applied = self.index.watch_revision();
        let applied = applied.wait_for(|applied| *applied >= revision);
        if tokio::time::timeout(OWN_POLL_MAX, applied).await.is_err() {
            tracing::warn!(
                revision = revision.number(),
                "a change is made and not yet applied here: the database does not answer polls"
            );
        }
    }

    /// Waits until a revision, which is committed, holds on every process: each has said that it applied it, or has been silent for
    /// longer than its fence since then.
    /// `moves` is [`Self::moves`] from before the commit: a database that has gone back since may have lost it.
    pub(super) async fn await_everybody(&self, revision: Revision, moves: u64) -> Result<(), Error> {
        let Some((_, share)) = self.shared() else { return Ok(()) };
        if cfg!(feature = "mutate-acknowledgement") {
            return Ok(());
        }
        let since = self.clock.monotonic();
        let mut longest = share.options.fence;
        let mut after = since;
        loop {
            let unknown = |()| {
                Error::Unavailable(format!(
                    "the change is made, at revision {}, but not every process is known to have applied it; repeat the call to be sure",
                    revision.number()
                ))
            };
            let limit = (since + silent_after(longest) + PATIENCE).saturating_sub(self.clock.monotonic());
            let Seen { began, peers, .. } = self.next_seen(after, limit).await.map_err(|_| unknown(()))?;
            let waited = self.clock.monotonic().saturating_sub(since);
            let pending = |peer: &&Peer| peer.acknowledged < revision && waited < silent_after(peer.fence);
            if self.moves() != moves {
                return Err(unknown(()));
            }
            let Some(fence) = peers.iter().filter(pending).map(|peer| peer.fence).max() else { return Ok(()) };
            longest = longest.max(fence);
            after = began + Duration::from_nanos(1);
        }
    }

    /// How often the store was found to be another than it was.
    pub(super) fn moves(&self) -> u64 {
        self.share.as_ref().map_or(0, Share::moves)
    }

    /// What a poll told that began at this time or later, and is applied.
    async fn next_seen(&self, began: Duration, limit: Duration) -> Result<Seen, Error> {
        let Some((_, share)) = self.shared() else { return Ok(Seen::default()) };
        let _hurry = share.hurry();
        let mut seen = share.seen.subscribe();
        let newer = seen.wait_for(|seen| seen.began >= began);
        match tokio::time::timeout(limit, newer).await {
            Ok(Ok(seen)) => Ok(seen.clone()),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable(
                "the database does not tell what has changed; see the server's log, and repeat the call later"
                    .to_owned(),
            )),
        }
    }
}

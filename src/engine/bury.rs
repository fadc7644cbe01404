//! Processes that fell silent, and what becomes of their leases.

use std::sync::atomic::Ordering;

use crate::store::{Closed, Closing, Incarnation, Peer, silent_after};

use super::Engine;

impl Engine {
    /// Takes processes for dead that have been silent for longer than their fences, by the database's clock and by this one's, and
    /// closes their leases.
    pub async fn bury_the_silent(&self) {
        let Some((_, share)) = self.shared() else { return };
        let is_silent = |peer: &&Peer| peer.silence >= silent_after(peer.fence);
        let silent: Vec<Incarnation> =
            share.seen.borrow().peers.iter().filter(is_silent).map(|peer| peer.incarnation).collect();
        let now = self.clock.monotonic();
        let watched = share.in_contact_for(now).min(share.unheard_for(&silent, now));
        if silent.is_empty() || !self.is_fresh() || watched.is_zero() {
            return;
        }
        let closing = Closing {
            survivor: self.leases.incarnation(),
            now: self.clock.now(),
            policy: self.options.uncertain,
            known: None,
            watched,
        };
        let result = self.store.close_leases(&closing).await;
        Self::note_store(&self.writing_fails, result.as_ref().err(), "written");
        if let Ok(Closed { uncertain, .. }) = result {
            let units = uncertain.iter().map(|lease| lease.units).fold(0, u64::saturating_add);
            self.leases.uncertain.fetch_add(units, Ordering::Relaxed);
            if units > 0 {
                let leases = uncertain.len();
                tracing::warn!(
                    leases,
                    units,
                    "another process fell silent: nobody knows whether it spent what it had leased"
                );
            }
        }
    }
}

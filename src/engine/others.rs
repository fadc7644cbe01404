//! What a budget knows of other processes that spend from it, too.
//!
//! What the store said of it is then true for a moment. Others may give units back, so a denial is believed for
//! [`BELIEVED`] and not for as long as the slot lasts. And others may hold units that they don't need: before a check is
//! refused, the store calls them back, and the check asks again and again, until it has them, or nobody holds any, or it has
//! asked for so long that whoever holds them does not answer.

use std::time::Duration;

/// For how long the store's word is believed, and how long units are sought that others hold.
const BELIEVED: Duration = Duration::from_secs(1);

/// What the store said to checks that waited for units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Here they are.
    Granted,
    /// There are fewer, and nobody holds any.
    Denied,
    /// There are fewer, and those that others hold are called back.
    Elsewhere,
}

impl Said {
    /// What an answer means. Absent where nobody waited: then the store has not looked who holds units.
    pub(super) const fn of(needed: u64, granted: u64, elsewhere: bool) -> Option<Self> {
        match (needed, granted < needed, elsewhere) {
            (0, _, _) => None,
            (_, false, _) => Some(Self::Granted),
            (_, true, false) => Some(Self::Denied),
            (_, true, true) => Some(Self::Elsewhere),
        }
    }
}

/// All times are those of the clock that never steps back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Others {
    /// When the store was asked last.
    asked: Duration,
    /// Since when units are sought that others hold.
    seeking: Option<Duration>,
    /// When the store was asked that said that there are none.
    denied: Option<Duration>,
    /// Whether all that is not spent has been called back.
    recalled: bool,
    /// Whether somebody wants to know how it stands, whatever was just said.
    curious: bool,
}

impl Others {
    /// The store is asked now.
    pub(super) fn ask(&mut self, at: Duration) {
        if self.is_old(at) {
            // Whoever sought has gone.
            self.seeking = None;
        }
        (self.asked, self.curious) = (at, false);
    }

    /// What it said.
    pub(super) fn hear(&mut self, said: Said) {
        let asked = self.asked;
        let in_vain = self.seeking.is_some_and(|since| asked.saturating_sub(since) >= BELIEVED);
        (self.seeking, self.denied) = match said {
            Said::Granted => (None, None),
            Said::Elsewhere if !in_vain => (self.seeking.or(Some(asked)), None),
            Said::Elsewhere | Said::Denied => (None, Some(asked)),
        };
    }

    /// Whether what the store said last is no longer to be relied on.
    pub(super) fn is_old(&self, at: Duration) -> bool {
        at.saturating_sub(self.asked) >= BELIEVED
    }

    /// Whether the store has said that there are not so many units as were needed, and that nobody holds any.
    pub(super) const fn is_denied(&self) -> bool {
        self.denied.is_some()
    }

    /// Forgets a denial that is not to be believed any more.
    pub(super) fn doubt(&mut self, at: Duration) {
        self.denied = self.denied.filter(|denied| at.saturating_sub(*denied) < BELIEVED);
    }

    /// Forgets what was said: units may have come back.
    pub(super) const fn want_to_know(&mut self) {
        (self.denied, self.curious) = (None, true);
    }

    /// Whether asking is in vain for those who want units, where by what is known nothing is left: it was denied while they waited.
    pub(super) const fn is_vain(&self) -> bool {
        self.is_denied() && !self.curious
    }

    /// Whether units are sought that others hold, so that asking is a matter of waiting for them.
    pub(super) const fn is_seeking(&self) -> bool {
        self.seeking.is_some()
    }

    pub(super) const fn recall(&mut self) {
        self.recalled = true;
    }

    /// Whether everything has to go back, which is then done. Whoever waits here does not take it again at once: it is
    /// others' turn.
    pub(super) fn take_recall(&mut self, at: Duration) -> bool {
        let recalled = std::mem::take(&mut self.recalled);
        if recalled {
            self.seeking.get_or_insert(at);
        }
        recalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn asked(others: &mut Others, millis: u64, said: Said) -> bool {
        others.ask(at(millis));
        others.hear(said);
        others.is_denied()
    }

    #[test]
    fn a_denial_is_believed_for_a_second() {
        let mut others = Others::default();
        assert!(asked(&mut others, 5_000, Said::Denied));
        for (millis, denied) in [(5_999, true), (6_000, false)] {
            others.doubt(at(millis));
            assert_eq!(others.is_denied(), denied, "{millis}");
        }
    }

    #[test]
    fn units_that_others_hold_are_sought_for_a_second() {
        let mut others = Others::default();
        for (millis, denied) in [(5_000, false), (5_500, false), (5_999, false), (6_000, true)] {
            assert_eq!(asked(&mut others, millis, Said::Elsewhere), denied, "{millis}");
            assert_eq!(others.is_seeking(), !denied, "{millis}");
        }
        // When that is not believed any more, for another.
        for (millis, denied) in [(7_000, false), (7_990, false), (8_000, true)] {
            assert_eq!(asked(&mut others, millis, Said::Elsewhere), denied, "{millis}");
        }
    }

    #[test]
    fn whoever_comes_late_seeks_for_a_second_too() {
        let mut others = Others::default();
        assert!(!asked(&mut others, 5_000, Said::Elsewhere));
        // Nobody followed that up.
        assert!(!asked(&mut others, 9_000, Said::Elsewhere));
        assert!(!asked(&mut others, 9_990, Said::Elsewhere) && asked(&mut others, 10_000, Said::Elsewhere));
    }

    #[test]
    fn only_what_was_waited_for_tells_something() {
        let rows = [
            ((0, 0, false), None),
            ((0, 9, false), None),
            ((5, 5, false), Some(Said::Granted)),
            ((5, 4, false), Some(Said::Denied)),
            ((5, 4, true), Some(Said::Elsewhere)),
        ];
        for ((needed, granted, elsewhere), said) in rows {
            assert_eq!(Said::of(needed, granted, elsewhere), said, "{needed} {granted} {elsewhere}");
        }
    }
}

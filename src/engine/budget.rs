//! What one process may still spend of one limit.
//!
//! Units are spent from a [`Lease`], and a lease is granted in the store before anything is spent from it: what a crash
//! leaves behind was counted already. The ledger here is what the store said last, moved on by the clock with the same
//! arithmetic; while this process alone has the store, it is what the store has.
//!
//! Three answers are possible to a cost: the lease holds it; the store may grant it, so it has to be asked; or the store has
//! said that there is not so much in this slot, which is remembered, so that a flood of refused checks asks nothing. Where
//! other processes spend from it, too, that holds for a moment alone (`others`).
//!
//! Under steady demand the units of the next slot are leased before it begins, so that its first check need not wait either. To
//! everybody else these are units that nobody has taken: a view shows them as left, and they go back where this slot lacks them.

use std::time::Duration;

use crate::decision::quota::{Rule, Slot, State};
use crate::decision::window::Window;
use crate::domain::{Time, TimeZone};
use crate::journal::{Journal, SpendCell};
use crate::store::Leased;

use super::ask::{Ask, Cells, LeaseName, Urgency, number};
use super::demand::Demand;
use super::lent::{Lease, Outcome};
use super::others::{Others, Said};

/// How long before a slot's end units of the next one are leased, in milliseconds: many times what the store needs, and
/// so short that the demand will not have changed much.
const AHEAD_MILLIS: i64 = 2_000;
/// A lease of this part of a capacity may take all that is left. A sliding window at its limit lives on such parts: it gets back
/// one slot's at a time, and were each of them leased bit by bit, checks would wait in every slot.
const PARTS: u64 = 60;

/// One limit of one subject.
#[derive(Debug)]
pub(super) struct Budget {
    rule: Rule,
    /// What the store said last, without the units of `next`. Absent before it was asked.
    ledger: Option<State>,
    lease: Lease,
    /// Leased for the slot after the ledger's. Most budgets have none, so it has a place of its own.
    next: Option<Box<Lease>>,
    /// Whether such a one was asked for in this slot: once is enough.
    looked_ahead: bool,
    /// When the slot began in which something was spent last; long ago where nothing was. It is never left for an earlier one,
    /// also where the store has not heard yet that it has begun.
    reached: Time,
    /// Whether all that is leased was leased before this slot, so that the store may still be in an earlier one.
    unheard: bool,
    /// What became of leases, and is still to be told to the store. One for each lease.
    told_next: Vec<Outcome>,
    /// Leases of which units are reserved, and how many: their counters stay theirs, also when they have ended.
    reserved: Vec<(LeaseName, u64)>,
    demand: Demand,
    /// Units that checks wait for, beyond what the lease holds. Set while the budget stands in a queue.
    wanted: Option<u64>,
    /// Absent where one process has the store, and where it was not asked yet.
    others: Option<Box<Others>>,
}

/// Whether a budget holds a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// It is leased.
    Leased,
    /// The store has to be asked.
    Unknown,
    /// There is not so much in this slot by what is known; but others may hold units that they don't need, so the store has to be
    /// asked.
    Doubtful,
    /// There is not so much in this slot.
    Short,
}

/// What a budget looks like to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BudgetView {
    pub(super) remaining: u64,
    pub(super) reset_time: Time,
}

impl Budget {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            ledger: None,
            lease: Lease::of(Slot::new(i64::MIN)),
            next: None,
            looked_ahead: false,
            reached: Time::from_millis(i64::MIN),
            unheard: false,
            told_next: Vec::new(),
            reserved: Vec::new(),
            demand: Demand::default(),
            wanted: None,
            others: None,
        }
    }

    /// Goes on under a rule of which only the capacity differs: what was spent stays spent. Where it is less, what is leased
    /// goes back, as it may be more than there is now.
    pub(super) fn set_rule(&mut self, rule: Rule) {
        if rule.capacity < self.rule.capacity {
            self.settle_next();
        }
        self.rule = rule;
        self.give_back_excess();
    }

    fn give_back_excess(&mut self) {
        let Some(ledger) = &mut self.ledger else { return };
        let Lease { slot, units, cell, .. } = self.lease;
        let excess = ledger.excess(&self.rule).min(units);
        if excess > 0 {
            ledger.give_back(slot, excess);
            self.lease.units = units - excess;
            self.note(Outcome { slot, cell, spent: 0, returned: excess, over: false });
        }
    }

    /// Moves on to the slot of `now`. Units leased for an earlier one are given back, and those leased for it taken into use.
    pub(super) fn advance(&mut self, zone: &TimeZone, now: Time) {
        let Some(ledger) = &mut self.ledger else { return };
        ledger.advance(&self.rule, zone, now);
        let early = now < ledger.bounds().start;
        self.follow();
        if early && self.unheard && !self.is_begun() {
            // The clock was set back before anything was spent in this slot: the store knows what the earlier one has.
            self.settle();
        }
    }

    /// Whether something was spent in this slot.
    fn is_begun(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.bounds().start == self.reached)
    }

    /// Brings the lease to the ledger's slot.
    fn follow(&mut self) {
        let Some(slot) = self.ledger.as_ref().map(State::slot) else { return };
        if self.lease.slot == slot {
            return;
        }
        self.settle();
        self.lease.slot = slot;
        (self.looked_ahead, self.unheard) = (false, false);
        let next = self.next.take_if(|next| next.slot == slot);
        // One for another slot: the clock has jumped past it.
        self.settle_next();
        if let (Some(next), Some(ledger)) = (next, &mut self.ledger) {
            // All of it, unless the limit was lowered since.
            let units = ledger.grant(&self.rule, next.units);
            let returned = next.units.saturating_sub(units);
            self.lease = Lease { units, ..*next };
            self.unheard = true;
            self.note(Outcome { slot, cell: next.cell, spent: 0, returned, over: false });
        }
    }

    /// Ends the lease: what was not spent is given back.
    fn settle(&mut self) {
        let after = Lease::of(self.lease.slot);
        let lease = std::mem::replace(&mut self.lease, after);
        if lease.units > 0
            && let Some(ledger) = &mut self.ledger
        {
            ledger.give_back(lease.slot, lease.units);
        }
        self.note(lease.ended());
    }

    /// Gives back what is leased for the next slot. In the ledger it never was.
    fn settle_next(&mut self) {
        if let Some(next) = self.next.take() {
            self.note(next.ended());
        }
    }

    fn note(&mut self, new: Outcome) {
        match self.told_next.iter_mut().find(|one| one.is_of(new.slot, new.cell)) {
            Some(one) => {
                one.spent = one.spent.saturating_add(new.spent);
                one.returned = one.returned.saturating_add(new.returned);
                one.over |= new.over;
            }
            None if new.spent == 0 && new.returned == 0 && (new.cell.is_none() || !new.over) => {}
            None => self.told_next.push(new),
        }
    }

    /// Whether so many units can be spent now. A cost above the capacity never can, whatever is left.
    pub(super) fn cover(&self, units: u64) -> Cover {
        let Some(ledger) = &self.ledger else { return Cover::Unknown };
        if units <= self.lease.units {
            Cover::Leased
        } else if units - self.lease.units <= ledger.available(&self.rule) {
            Cover::Unknown
        } else if units <= self.rule.capacity && self.is_doubtful() {
            Cover::Doubtful
        } else {
            Cover::Short
        }
    }

    /// Whether others may hold units of it: nobody has just asked whether they do.
    pub(super) fn is_doubtful(&self) -> bool {
        self.others.as_ref().is_some_and(|others| !others.is_denied())
    }

    /// Units leased.
    pub(super) const fn leased(&self) -> u64 {
        self.lease.units
    }

    /// Units that the store may still grant, by what is known. All, before it was asked.
    pub(super) fn unleased(&self) -> u64 {
        self.ledger.as_ref().map_or(self.rule.capacity, |ledger| ledger.available(&self.rule))
    }

    /// Whether the store has ever said how it stands.
    pub(super) fn is_asked(&self) -> bool {
        self.ledger.is_some()
    }

    /// Whether there are so many units, leased or not, by what is known.
    pub(super) fn covers(&self, units: u64) -> bool {
        matches!(self.cover(units), Cover::Leased | Cover::Unknown)
    }

    /// Spends units that [`Self::cover`] has said are leased. True if the lease should be filled up before it is empty.
    pub(super) fn spend(&mut self, units: u64, now: Time) -> bool {
        self.lease.spent = self.lease.spent.saturating_add(units);
        if let Some(cell) = self.lease.cell {
            cell.spend(units);
        }
        self.take_out(units, now)
    }

    /// Takes units out of the lease that [`Self::cover`] has said are leased, for the store to charge them: it is told of them
    /// elsewhere. Until then they are still leased by its books. Returns whence they are, and whether the lease should be filled up.
    pub(super) fn reserve(&mut self, units: u64, now: Time) -> (LeaseName, bool) {
        let Lease { slot, cell, .. } = self.lease;
        let lease = LeaseName { slot, cell };
        match self.reserved.iter_mut().find(|(one, _)| one.is(lease)) {
            Some((_, reserved)) => *reserved = reserved.saturating_add(units),
            None => self.reserved.push((lease, units)),
        }
        (lease, self.take_out(units, now))
    }

    /// Units that were reserved are charged: the store has taken them from the lease itself.
    pub(super) fn charged(&mut self, lease: LeaseName, units: u64) {
        let Some(place) = self.reserved.iter().position(|(one, _)| one.is(lease)) else { return };
        let Some((_, reserved)) = self.reserved.get_mut(place) else { return };
        *reserved = reserved.saturating_sub(units);
        if *reserved == 0 {
            self.reserved.swap_remove(place);
            let LeaseName { slot, cell } = lease;
            if slot != self.lease.slot || number(cell) != number(self.lease.cell) {
                self.note(Outcome { slot, cell, spent: 0, returned: 0, over: true });
            }
        }
    }

    /// Puts back units that were reserved and not charged.
    pub(super) fn unreserve(&mut self, lease: LeaseName, units: u64) {
        let LeaseName { slot, cell } = lease;
        if self.lease.slot == slot && number(self.lease.cell) == number(cell) {
            self.lease.units = self.lease.units.saturating_add(units);
            // The limit may have been lowered meanwhile.
            self.give_back_excess();
        } else {
            if let Some(ledger) = &mut self.ledger {
                ledger.give_back(slot, units);
            }
            self.note(Outcome { slot, cell, spent: 0, returned: units, over: false });
        }
        self.charged(lease, units);
    }

    fn take_out(&mut self, units: u64, now: Time) -> bool {
        self.lease.units = self.lease.units.saturating_sub(units);
        self.demand.spent(units, now);
        if let Some(ledger) = self.ledger.as_ref().filter(|_| units > 0) {
            self.reached = self.reached.max(ledger.bounds().start);
        }
        if units == 0 || self.wanted.is_some() {
            return false;
        }
        let low = self.lease.units < self.demand.a_second(now) / 2;
        (low && self.available() > 0) || self.is_next_due(now)
    }

    /// Units that the store can still grant in this slot, beside those that it has granted for the next one.
    fn available(&self) -> u64 {
        let ahead = self.next.as_ref().map_or(0, |next| next.units);
        self.ledger.as_ref().map_or(u64::MAX, |ledger| ledger.available_beside(&self.rule, ahead))
    }

    /// Whether units of the next slot should be leased: it begins soon, and will likely be used.
    fn is_next_due(&mut self, now: Time) -> bool {
        let Some(ledger) = &self.ledger else { return false };
        !self.looked_ahead
            && self.next.is_none()
            && ledger.bounds().end.millis_since(now) <= AHEAD_MILLIS
            && self.demand.is_steady(now)
    }

    /// Wants so many units, beside those that others wait for; with 0, to know how it stands or to have about a second's worth.
    pub(super) fn want(&mut self, units: u64) {
        self.wanted = Some(self.wanted.unwrap_or(0).saturating_add(units));
    }

    /// Wants to know how it stands, also where the store has just said that nothing is left.
    pub(super) fn want_to_know(&mut self) {
        if let Some(others) = &mut self.others {
            others.want_to_know();
        }
        self.want(0);
    }

    /// Takes up that other processes spend from it, too, before the store is asked at `at` by the clock that never steps back. True
    /// if it has to give everything back.
    pub(super) fn face_others(&mut self, at: Duration) -> bool {
        let nothing_left = self.available() == 0;
        let others = self.others.get_or_insert_default();
        let recalled = others.take_recall(at);
        others.doubt(at);
        // Those who wait will find out that it was denied while they did.
        let in_vain = nothing_left && others.is_vain() && self.wanted.is_some_and(|wanted| wanted > 0);
        if recalled || in_vain {
            self.wanted = None;
        }
        recalled
    }

    /// The store is asked at that time.
    pub(super) fn note_asked(&mut self, at: Duration) {
        self.others.get_or_insert_default().ask(at);
    }

    /// What the store said to those who waited.
    pub(super) fn hear(&mut self, said: Said) {
        self.others.get_or_insert_default().hear(said);
    }

    /// Forgets a denial that is not to be believed any more.
    pub(super) fn doubt(&mut self, at: Duration) {
        if let Some(others) = &mut self.others {
            others.doubt(at);
        }
    }

    /// Wants to know how it stands where the store was not asked lately. True if it does.
    pub(super) fn freshen(&mut self, at: Duration) -> bool {
        let old = self.others.as_ref().is_some_and(|others| others.is_old(at));
        if old {
            self.want_to_know();
        }
        old
    }

    /// All that is not spent is to go back when the store is next asked, because others need it.
    pub(super) fn recall(&mut self) {
        if let Some(others) = &mut self.others {
            others.recall();
        }
    }

    /// How soon the store is to be asked by a check that waits.
    pub(super) fn urgency(&self) -> Urgency {
        if self.others.as_ref().is_some_and(|others| others.is_seeking()) { Urgency::Soon } else { Urgency::Now }
    }

    /// What the store is to be asked, if anything. It is then on its way; where no answer comes, what it told is not told again,
    /// because units that went back twice could be spent twice.
    pub(super) fn ask(&mut self, journal: &Journal, now: Time) -> Option<Ask> {
        let wanted = self.wanted.take()?;
        // Two slots don't share a counter, or what is spent in one would seem to be spent in the other.
        let is_over = self.ledger.as_ref().is_some_and(|ledger| ledger.bounds().end <= now);
        let needed = if is_over { wanted } else { wanted.saturating_sub(self.lease.units) };
        self.note_spent();
        if wanted.saturating_sub(self.lease.units) > self.available() {
            self.settle_next();
        }
        let left = self.available().saturating_sub(wanted);
        // About a second's worth beside what is waited for.
        let more = self.demand.a_second(now).saturating_sub(self.lease.units);
        let ahead = self.ahead(wanted.saturating_add(more.min(left)), now);
        let wanted = wanted.saturating_add(more.min(self.at_once(left)));
        // What is leased already stays without a counter, where there was none when it was.
        let is_counted = self.lease.cell.is_some_and(|cell| !journal.is_retired(cell));
        if wanted > 0 && !is_counted && self.lease.units == 0 && !is_over {
            self.lease.cell = journal.spend_cell();
        }
        let here = if wanted > 0 && is_over { journal.spend_cell() } else { self.lease.cell };
        let cells = Cells { here, ahead: if ahead > 0 { journal.spend_cell() } else { None } };
        Some(Ask { wanted, needed, ahead, cells, ..self.tell() })
    }

    /// Units of the next slot to be asked for, where this one may still need so many.
    fn ahead(&mut self, needed: u64, now: Time) -> u64 {
        if !self.is_next_due(now) {
            return 0;
        }
        self.looked_ahead = true;
        let Some(ledger) = &self.ledger else { return 0 };
        let Window { start, end } = ledger.bounds();
        let millis = u64::try_from(end.millis_since(start).min(1_000)).unwrap_or(0);
        let left = ledger.available_ahead(&self.rule, needed);
        self.demand.a_second(now).saturating_mul(millis).div_ceil(1_000).min(self.at_once(left))
    }

    /// How many of the units that are left may be leased at once: ever less as the budget runs out, because they are lost to
    /// everybody else meanwhile.
    fn at_once(&self, left: u64) -> u64 {
        left.min((left / 4).max(self.rule.capacity / PARTS))
    }

    fn tell(&mut self) -> Ask {
        let told = std::mem::take(&mut self.told_next);
        // A lease that came to its end may have gone on, or, where a slot began while it was asked for, the one of that slot has
        // its counter; and then both may have ended since.
        let next = self.next.as_ref().and_then(|next| next.cell);
        let reserved = self.reserved.iter().map(|(lease, _)| lease.cell);
        let used: Vec<u32> = [self.lease.cell, next].into_iter().chain(reserved).filter_map(number).collect();
        let over = told.iter().filter(|one| one.over).filter_map(|one| one.cell);
        let mut freed: Vec<SpendCell> = over.filter(|cell| !used.contains(&cell.number())).collect();
        freed.sort_unstable_by_key(|cell| cell.number());
        freed.dedup_by_key(|cell| cell.number());
        let settled = told.into_iter().map(Outcome::settled).collect();
        Ask {
            rule: self.rule,
            settled,
            reached: self.reached,
            wanted: 0,
            needed: 0,
            ahead: 0,
            cells: Cells::default(),
            freed,
        }
    }

    /// What is to be told to the store of a lease that is not in use any more.
    pub(super) fn end(&mut self) -> Option<Ask> {
        self.settle();
        self.settle_next();
        (!self.told_next.is_empty()).then(|| self.tell())
    }

    /// The same where it was called back: the store is told also that nothing is leased but what operations have reserved.
    pub(super) fn give_up(&mut self) -> Option<Ask> {
        self.end().or_else(|| (!self.reserved.is_empty()).then(|| self.tell()))
    }

    fn note_spent(&mut self) {
        let Lease { slot, spent, cell, .. } = self.lease;
        self.note(Outcome { slot, cell, spent, returned: 0, over: false });
        self.lease.spent = 0;
    }

    /// Whether nothing was spent lately, so that units leased are better given back.
    pub(super) fn is_idle(&mut self, now: Time) -> bool {
        self.demand.a_second(now) == 0 && self.wanted.is_none()
    }

    /// Whether something is leased, or to be told.
    pub(super) fn is_open(&self) -> bool {
        let Lease { slot: _, units, spent, cell } = self.lease;
        units > 0 || spent > 0 || cell.is_some() || self.next.is_some() || !self.told_next.is_empty()
    }

    /// Takes what the store has granted, and counts in `cells` what is spent of it.
    pub(super) fn grant(&mut self, leased: Leased, cells: Cells) {
        let Leased { granted, ahead, elsewhere: _, state: mut ledger } = leased;
        let (slot, next_slot) = (ledger.slot(), ledger.next_slot());
        // A slot may have begun since it was asked, and its units be in use.
        if let Some(before) = self.ledger.as_ref().filter(|_| self.is_begun()) {
            ledger.catch_up(before);
        }
        // What went back since it was asked, the store is told the next time.
        for one in &self.told_next {
            ledger.give_back(one.slot, one.returned);
        }
        if let Some(next) = &self.next {
            ledger.give_back(next.slot, next.units);
        }
        self.ledger = Some(ledger);
        self.follow();
        if granted == 0 && number(self.lease.cell) != number(cells.here) {
            let (spent, returned) = (0, 0);
            self.note(Outcome { slot, cell: cells.here, spent, returned, over: true });
        }
        self.take(slot, granted, cells.here);
        if self.ledger.as_ref().is_some_and(|ledger| ledger.next_slot() == next_slot) {
            self.take_ahead(next_slot, ahead, cells.ahead);
        } else {
            self.take(next_slot, ahead, cells.ahead);
        }
        // It was asked for before the limit was lowered.
        self.give_back_excess();
    }

    /// Adds units to the lease, or gives them back where they are for a slot that is over, or would be counted in two places.
    fn take(&mut self, slot: Slot, units: u64, cell: Option<SpendCell>) {
        if units == 0 {
            return;
        }
        let Lease { units: leased, spent, cell: own, .. } = self.lease;
        let is_empty = leased == 0 && spent == 0 && own.is_none();
        if slot == self.lease.slot && (is_empty || number(own) == number(cell)) {
            self.unheard = false;
            self.lease.cell = cell;
            self.lease.units = leased.saturating_add(units);
        } else {
            if let Some(ledger) = &mut self.ledger {
                ledger.give_back(slot, units);
            }
            self.note(Outcome { slot, cell, spent: 0, returned: units, over: number(own) != number(cell) });
        }
    }

    fn take_ahead(&mut self, slot: Slot, units: u64, cell: Option<SpendCell>) {
        if units == 0 {
            return;
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.give_back(slot, units);
        }
        let lease = Lease { units, cell, ..Lease::of(slot) };
        if self.next.is_none() {
            self.next = Some(Box::new(lease));
        } else {
            self.note(lease.ended());
        }
    }

    /// Forgets all that was leased and reserved, without a word to the store, which has closed it. Counters are not given to anybody
    /// else. What stays is that slots never run backwards.
    pub(super) fn forget(&mut self) {
        *self = Self { reached: self.reached, demand: self.demand, ..Self::new(self.rule) };
    }

    /// What was granted, in the slot that it is in and ahead. Absent where that is over, or the store was not asked.
    pub(super) fn remembered(&self, now: Time) -> Option<State> {
        let mut state = self.ledger.clone()?;
        if let Some(next) = &self.next {
            // Whatever the limit is now.
            state.grant_ahead(&Rule { capacity: u64::MAX, ..self.rule }, next.units);
        }
        (state.reset_time(now) > now).then_some(state)
    }

    pub(super) fn view(&self, now: Time) -> BudgetView {
        let Some(ledger) = &self.ledger else { return BudgetView { remaining: self.rule.capacity, reset_time: now } };
        let remaining = ledger.available(&self.rule).saturating_add(self.lease.units).min(self.rule.capacity);
        BudgetView { remaining, reset_time: ledger.reset_time(now) }
    }

    /// When so many units can be spent if nothing is until then; absent where never.
    pub(super) fn available_at(&self, units: u64, now: Time) -> Option<Time> {
        if self.covers(units) {
            return Some(now);
        }
        if units > self.rule.capacity {
            return None;
        }
        // What is leased is not gone: it only has to be found beside the rest.
        self.ledger.as_ref()?.available_at(&self.rule, units.saturating_sub(self.lease.units), now)
    }
}

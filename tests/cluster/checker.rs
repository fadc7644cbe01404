//! Whether a history keeps what is promised, whatever went on meanwhile. Each function returns what it has judged by, so that
//! a test can see that there was something to judge.
//!
//! A call is done at one moment between its start and its end. Where its answer is unknown, either is possible.

use std::collections::HashMap;
use std::time::Duration;

use tollgate::proto::v1::Verdict;

use super::history::{Answer, Call, Done, Kind};

/// How each finding begins; `scripts/mutants` looks for it.
const BROKEN: &str = "a promise is broken";

/// What revocations were judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revocations {
    pub(crate) revoked: usize,
    /// Checks of a revoked key that began after its revocation had returned, and were answered.
    pub(crate) checks_after: usize,
}

/// No check that began after the revocation of its key had returned is admitted.
pub(crate) fn revocations_hold(calls: &[Call]) -> Result<Revocations, String> {
    let mut revoked: HashMap<usize, &Call> = HashMap::new();
    for call in calls.iter().filter(|call| call.kind == Kind::Revoke && call.answer == Answer::Done) {
        let first = revoked.entry(call.key).or_insert(call);
        if call.end < first.end {
            *first = call;
        }
    }
    let mut checks_after = 0;
    for call in calls.iter().filter(|call| matches!(call.kind, Kind::Check | Kind::Operation(_))) {
        let Some(revocation) = revoked.get(&call.key).filter(|revocation| call.start > revocation.end) else {
            continue;
        };
        match call.answer {
            Answer::Admitted => {
                return Err(format!("{BROKEN}: revoked and admitted afterwards: {revocation:?}, {call:?}"));
            }
            Answer::Denied(_) => checks_after += 1,
            Answer::Done | Answer::Failed(_) => {}
        }
    }
    Ok(Revocations { revoked: revoked.len(), checks_after })
}

/// What was charged, at least and at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) low: i64,
    pub(crate) high: i64,
}

/// What counts of a call: its cost, or that it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    Cost,
    One,
}

/// What one operation came to.
#[derive(Clone, Copy, Debug, Default)]
struct Operation {
    weight: i64,
    admitted: Done,
    refunded: Done,
}

/// What the checks of these keys were charged: each operation once, and nothing that was given back.
pub(crate) fn charged(calls: &[Call], keys: &[usize], weight: Weight) -> Bounds {
    let mut bounds = Bounds::default();
    let mut operations: HashMap<u64, Operation> = HashMap::new();
    for call in calls.iter().filter(|call| keys.contains(&call.key)) {
        let weight = if weight == Weight::Cost { call.cost } else { 1 };
        let done = call.answer.done();
        match call.kind {
            Kind::Check => {
                bounds.low += if done == Done::Yes { weight } else { 0 };
                bounds.high += if done == Done::No { 0 } else { weight };
            }
            Kind::Operation(number) => {
                let operation = operations.entry(number).or_default();
                operation.weight = weight;
                operation.admitted = operation.admitted.max(done);
            }
            Kind::Refund(number) => {
                let operation = operations.entry(number).or_default();
                operation.refunded = operation.refunded.max(done);
            }
            Kind::Revoke => {}
        }
    }
    for Operation { weight, admitted, refunded } in operations.into_values() {
        bounds.low += if admitted == Done::Yes && refunded == Done::No { weight } else { 0 };
        bounds.high += if admitted != Done::No && refunded != Done::Yes { weight } else { 0 };
    }
    bounds
}

/// What is told, of a limit or in the usage report, is what was charged; `beyond` may be added to it.
pub(crate) fn agrees(what: &str, bounds: Bounds, told: i64, beyond: i64) -> Result<(), String> {
    if (bounds.low..=bounds.high + beyond).contains(&told) {
        return Ok(());
    }
    Err(format!("{BROKEN}: {what}: {told} is told, and {bounds:?} was charged"))
}

/// No more is admitted than there is, in a window that is longer than the test.
pub(crate) fn within(calls: &[Call], keys: &[usize], capacity: i64) -> Result<Bounds, String> {
    let bounds = charged(calls, keys, Weight::Cost);
    if bounds.low > capacity {
        return Err(format!("{BROKEN}: {} units were admitted of {capacity}", bounds.low));
    }
    Ok(bounds)
}

/// Windows of one length, by the database's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    pub(crate) length: Duration,
    /// The database's clock at zero of the history's, in milliseconds since 1970.
    pub(crate) epoch_millis: i64,
    /// By how much the moment of a check may be off.
    pub(crate) slack: Duration,
}

impl Windows {
    fn number(self, at_millis: i64) -> i64 {
        at_millis.div_euclid(i64::try_from(self.length.as_millis()).unwrap())
    }

    /// The first and the last window in which a call may have been done.
    fn of(self, call: &Call) -> (i64, i64) {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap();
        let (start, end) = (self.epoch_millis + millis(call.start), self.epoch_millis + millis(call.end) + 1);
        (self.number(start - millis(self.slack)), self.number(end + millis(self.slack)))
    }
}

/// No more is admitted in any windows that follow each other than they have together, of what was certainly done in them.
/// Returns how many windows there were, and the most that was admitted in one.
pub(crate) fn within_windows(
    calls: &[Call],
    keys: &[usize],
    capacity: i64,
    windows: Windows,
) -> Result<(usize, i64), String> {
    let mut by_windows: HashMap<(i64, i64), i64> = HashMap::new();
    for call in calls.iter().filter(|call| call.kind == Kind::Check && call.answer == Answer::Admitted) {
        if keys.contains(&call.key) {
            *by_windows.entry(windows.of(call)).or_default() += call.cost;
        }
    }
    let mut numbers: Vec<i64> = by_windows.keys().flat_map(|(first, last)| [*first, *last]).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut most = 0;
    for (place, first) in numbers.iter().enumerate() {
        for last in &numbers[place..] {
            let inside = by_windows.iter().filter(|((from, to), _)| from >= first && to <= last);
            let admitted: i64 = inside.map(|(_, cost)| cost).sum();
            if admitted > capacity * (last - first + 1) {
                return Err(format!(
                    "{BROKEN}: {admitted} units were admitted in windows {first} to {last}, of {capacity} each"
                ));
            }
            most = if first == last { most.max(admitted) } else { most };
        }
    }
    Ok((numbers.len(), most))
}

/// Checks of a key that were refused because a limit was used up.
pub(crate) fn refusals(calls: &[Call], key: usize) -> usize {
    calls.iter().filter(|call| call.key == key && call.answer == Answer::Denied(Verdict::RateLimited)).count()
}

/// In no span of this length more is admitted than the capacity, wherever it begins, of what was certainly done in it. Returns the
/// most that was.
pub(crate) fn within_spans(calls: &[Call], keys: &[usize], capacity: i64, length: Duration) -> Result<i64, String> {
    let is_admitted = |call: &&Call| call.kind == Kind::Check && call.answer == Answer::Admitted;
    let mut admitted: Vec<&Call> = calls.iter().filter(is_admitted).filter(|call| keys.contains(&call.key)).collect();
    admitted.sort_by_key(|call| call.start);
    let mut most = 0;
    for (place, first) in admitted.iter().enumerate() {
        let begun = admitted[place..].iter().take_while(|call| call.start <= first.start + length);
        let units = begun.filter(|call| call.end <= first.start + length).map(|call| call.cost).sum();
        if units > capacity {
            return Err(format!(
                "{BROKEN}: {units} units were admitted in the {length:?} after {:?}, of {capacity}",
                first.start
            ));
        }
        most = most.max(units);
    }
    Ok(most)
}

/// An operation that was admitted stays so to all who ask again, as long as it is not given back and its key is not revoked.
/// Returns how many times somebody asked again.
pub(crate) fn operations_stay(calls: &[Call]) -> Result<usize, String> {
    let mut admitted: HashMap<u64, &Call> = HashMap::new();
    let is_given_up = |call: &Call| {
        let of_key = |other: &&Call| other.kind == Kind::Revoke && other.key == call.key;
        let of_operation =
            |other: &&Call| matches!((other.kind, call.kind), (Kind::Refund(a), Kind::Operation(b)) if a == b);
        calls.iter().any(|other| of_key(&other) || of_operation(&other))
    };
    let mut again = 0;
    let mut by_start: Vec<&Call> = calls.iter().filter(|call| matches!(call.kind, Kind::Operation(_))).collect();
    for call in &by_start {
        if let (Kind::Operation(number), Answer::Admitted) = (call.kind, call.answer) {
            let first = admitted.entry(number).or_insert(call);
            if call.end < first.end {
                *first = call;
            }
        }
    }
    by_start.sort_by_key(|call| call.start);
    for call in by_start {
        let Kind::Operation(number) = call.kind else { continue };
        let Some(first) = admitted.get(&number).filter(|first| call.start > first.end) else { continue };
        if matches!(call.answer, Answer::Denied(_)) && !is_given_up(call) {
            return Err(format!("{BROKEN}: an operation that was admitted is denied: {first:?}, {call:?}"));
        }
        again += 1;
    }
    Ok(again)
}

mod tests {
    use tonic::Code;

    use super::*;

    const LOST: Answer = Answer::Failed(Code::Unavailable);
    const REVOKED: Answer = Answer::Denied(Verdict::Revoked);
    const LIMITED: Answer = Answer::Denied(Verdict::RateLimited);

    /// A call of key 0 for 2 units, between these milliseconds.
    fn call(kind: Kind, start: u64, end: u64, answer: Answer) -> Call {
        let (start, end) = (Duration::from_millis(start), Duration::from_millis(end));
        Call { start, end, replica: 0, key: 0, kind, cost: 2, answer }
    }

    fn check(start: u64, end: u64, answer: Answer) -> Call {
        call(Kind::Check, start, end, answer)
    }

    #[test]
    fn a_span_holds_what_lies_in_it() {
        let length = Duration::from_millis(100);
        let calls = [
            check(10, 20, Answer::Admitted),
            check(15, 111, Answer::Admitted),
            check(50, 110, Answer::Admitted),
            check(60, 70, LIMITED),
            check(111, 115, Answer::Admitted),
        ];
        assert_eq!(within_spans(&calls, &[0], 6, length), Ok(6), "15 to 115");
        assert!(within_spans(&calls, &[0], 5, length).unwrap_err().starts_with(BROKEN));
        assert_eq!(within_spans(&calls, &[1], 0, length), Ok(0));
    }

    #[test]
    fn a_revocation_holds_for_what_begins_after_it() {
        let revoke = call(Kind::Revoke, 10, 20, Answer::Done);
        let lost = call(Kind::Revoke, 1, 5, LOST);
        let other_key = Call { key: 1, ..check(21, 22, Answer::Admitted) };
        for (calls, judged) in [
            (vec![revoke, check(15, 30, Answer::Admitted), check(20, 21, Answer::Admitted)], Some((1, 0))),
            (vec![revoke, check(21, 22, REVOKED), check(22, 23, LOST), other_key], Some((1, 1))),
            (vec![lost, check(6, 7, Answer::Admitted)], Some((0, 0))),
            (vec![check(21, 22, Answer::Admitted), revoke], None),
            (vec![lost, revoke, call(Kind::Operation(1), 30, 40, Answer::Admitted)], None),
            // The first that returned counts.
            (vec![call(Kind::Revoke, 10, 90, Answer::Done), revoke, check(50, 60, Answer::Admitted)], None),
        ] {
            let found = revocations_hold(&calls);
            let expected = judged.map(|(revoked, checks_after)| Revocations { revoked, checks_after });
            assert_eq!(found.clone().ok(), expected, "{calls:?}");
            assert!(found.err().is_none_or(|error| error.starts_with(BROKEN)));
        }
    }

    #[test]
    fn what_is_unknown_widens_the_bounds_and_operations_count_once() {
        let operation = |answer| call(Kind::Operation(7), 1, 2, answer);
        let refund = |answer| call(Kind::Refund(7), 3, 4, answer);
        for (calls, low, high) in [
            (vec![check(1, 2, Answer::Admitted), check(1, 2, LIMITED), check(1, 2, LOST)], 2, 4),
            (vec![operation(LOST), operation(Answer::Admitted), operation(Answer::Admitted)], 2, 2),
            (vec![operation(LOST), operation(LOST)], 0, 2),
            (vec![operation(LOST), operation(LIMITED)], 0, 2),
            (vec![operation(Answer::Admitted), refund(LOST)], 0, 2),
            (vec![operation(Answer::Admitted), refund(LOST), refund(Answer::Done)], 0, 0),
            (vec![Call { key: 1, ..check(1, 2, Answer::Admitted) }], 0, 0),
        ] {
            assert_eq!(charged(&calls, &[0], Weight::Cost), Bounds { low, high }, "{calls:?}");
            assert_eq!(charged(&calls, &[0], Weight::One), Bounds { low: low / 2, high: high / 2 }, "{calls:?}");
        }
        let bounds = Bounds { low: 2, high: 4 };
        let told = [(1, 0), (2, 0), (4, 0), (5, 0), (5, 1)];
        let agreed = told.map(|(told, beyond)| agrees("usage", bounds, told, beyond).is_ok());
        assert_eq!(agreed, [false, true, true, false, true]);
    }

    #[test]
    fn no_more_is_admitted_than_there_is() {
        let calls = [check(1, 2, Answer::Admitted), check(3, 4, Answer::Admitted), check(5, 6, LOST)];
        assert_eq!(within(&calls, &[0], 4), Ok(Bounds { low: 4, high: 6 }));
        assert!(within(&calls, &[0], 3).is_err());
        assert!(within(&calls, &[1], 0).is_ok());
    }

    #[test]
    fn windows_hold_what_certainly_was_in_them() {
        let windows =
            Windows { length: Duration::from_millis(100), epoch_millis: 1_000, slack: Duration::from_millis(5) };
        let inside = |start| check(start, start + 1, Answer::Admitted);
        for (calls, found) in [
            (vec![inside(10), inside(20), inside(110)], Some((2, 4))),
            (vec![inside(10), inside(20), inside(30)], None),
            // Where one may be of either window, both together have to hold it.
            (vec![inside(10), inside(20), inside(97)], Some((2, 4))),
            (vec![inside(10), inside(20), inside(97), inside(120), inside(130)], None),
            (vec![inside(10), inside(20), check(30, 31, LOST), check(32, 33, LIMITED)], Some((1, 4))),
        ] {
            assert_eq!(within_windows(&calls, &[0], 4, windows).ok(), found, "{calls:?}");
        }
    }

    #[test]
    fn an_operation_that_was_admitted_stays_admitted() {
        let operation = |start, answer| call(Kind::Operation(7), start, start + 2, answer);
        let first = operation(10, Answer::Admitted);
        let refund = call(Kind::Refund(7), 13, 14, Answer::Done);
        for (calls, again) in [
            (vec![operation(11, LIMITED), first, operation(20, Answer::Admitted), operation(21, LOST)], Some(2)),
            (vec![operation(20, LIMITED), first], None),
            (vec![first, refund, operation(20, LIMITED)], Some(1)),
            (vec![first, call(Kind::Operation(8), 20, 21, LIMITED)], Some(0)),
        ] {
            assert_eq!(operations_stay(&calls).ok(), again, "{calls:?}");
        }
    }
}

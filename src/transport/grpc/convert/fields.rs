//! Single fields.

use prost_types::{Duration, FieldMask, Timestamp};

use crate::domain::{AccountId, Environment, Invalid, KeyId, PlanId, Time, caps, shown};
use crate::engine::{Error, Violation};
use crate::proto::v1;

/// Most that is told to be wrong with one message.
const VIOLATIONS_MAX: usize = 8;
/// Longest list that is looked at; some have shorter bounds of their own.
const LIST_MAX: usize = caps::SCOPES_MAX;

/// What is wrong with a message, gathered field by field.
#[derive(Debug, Default)]
pub(in crate::transport::grpc) struct Violations(Vec<Violation>);

impl Violations {
    /// Notes that a field is wrong. More than fit into the head of an answer are passed over.
    pub(in crate::transport::grpc) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.0.len() >= VIOLATIONS_MAX {
            return;
        }
        self.0.push(Violation { field: field.into(), message: message.into() });
    }

    /// A parsed field; where it is wrong that is noted, and the default stands in until [`Self::check`].
    pub(super) fn take<T: Default>(&mut self, field: &str, parsed: Result<T, Invalid>) -> T {
        self.take_or(field, parsed, T::default)
    }

    /// The same for types without a default.
    pub(super) fn take_or<T>(&mut self, field: &str, parsed: Result<T, Invalid>, or: impl FnOnce() -> T) -> T {
        parsed.unwrap_or_else(|error| {
            self.add(field, error.to_string());
            or()
        })
    }

    /// The parsed entries of a list; each wrong one is noted with its place. A list that is longer than any may be is not
    /// looked at.
    pub(super) fn take_list<S, T>(
        &mut self,
        field: &str,
        list: &[S],
        parse: impl Fn(&S) -> Result<T, Invalid>,
    ) -> Vec<T> {
        if list.len() > LIST_MAX {
            self.add(field, format!("has {} entries; at most {LIST_MAX} are allowed", list.len()));
            return Vec::new();
        }
        let parsed = list.iter().enumerate().filter_map(|(i, entry)| match parse(entry) {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(format!("{field}[{i}]"), error.to_string());
                None
            }
        });
        parsed.collect()
    }

    /// Refuses the message if anything was noted.
    pub(in crate::transport::grpc) fn check(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Invalid(self.0)) }
    }
}

pub(in crate::transport::grpc) fn timestamp_to(time: Time) -> Timestamp {
    let seconds = time.seconds();
    let nanos = i32::try_from(time.millis().rem_euclid(1_000)).unwrap_or(0) * 1_000_000;
    Timestamp { seconds, nanos }
}

/// A time, to the millisecond; what is finer is cut off.
pub(super) fn time_from(timestamp: &Timestamp) -> Result<Time, Invalid> {
    const YEAR_1: i64 = -62_135_596_800;
    const YEAR_9999_END: i64 = 253_402_300_799;
    let Timestamp { seconds, nanos } = *timestamp;
    if !(YEAR_1..=YEAR_9999_END).contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(Invalid::new("is no time between the years 1 and 9999"));
    }
    Ok(Time::from_millis(seconds * 1_000 + i64::from(nanos / 1_000_000)))
}

pub(super) fn optional_time_from(
    violations: &mut Violations,
    field: &str,
    timestamp: Option<&Timestamp>,
) -> Option<Time> {
    violations.take(field, timestamp.map(time_from).transpose())
}

pub(in crate::transport::grpc) fn duration_to(millis: i64) -> Duration {
    let nanos = i32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000;
    Duration { seconds: millis / 1_000, nanos }
}

/// Milliseconds of a duration.
pub(super) fn millis_from(duration: &Duration) -> Result<i64, Invalid> {
    let Duration { seconds, nanos } = *duration;
    let whole = seconds.checked_mul(1_000);
    let millis = whole.and_then(|whole| whole.checked_add(i64::from(nanos / 1_000_000)));
    millis.ok_or_else(|| Invalid::new(format!("`{seconds}` seconds are too many")))
}

/// A value of an enum that has to be known; `names` says which are allowed.
pub(super) fn known<E: TryFrom<i32>>(number: i32, names: &str) -> Result<E, Invalid> {
    E::try_from(number).map_err(|_| Invalid::new(format!("`{number}` is not known; allowed are {names}")))
}

pub(super) fn environment_from(number: i32) -> Result<Option<Environment>, Invalid> {
    Ok(match known(number, "ENVIRONMENT_LIVE and ENVIRONMENT_TEST")? {
        v1::Environment::Unspecified => None,
        v1::Environment::Live => Some(Environment::Live),
        v1::Environment::Test => Some(Environment::Test),
    })
}

pub(super) fn environment_to(environment: Environment) -> v1::Environment {
    match environment {
        Environment::Live => v1::Environment::Live,
        Environment::Test => v1::Environment::Test,
    }
}

/// A key's id. What can't be one is answered like one that does not exist.
pub(in crate::transport::grpc) fn key_id_from(id: &str) -> Result<KeyId, Error> {
    require_set("id", id)?;
    KeyId::parse(id).ok_or_else(|| Error::no_key(id))
}

/// An account's id, likewise.
pub(in crate::transport::grpc) fn account_id_from(field: &str, id: &str) -> Result<AccountId, Error> {
    require_set(field, id)?;
    AccountId::parse(id).map_err(|_| Error::no_account(id))
}

/// A plan's id, likewise.
pub(in crate::transport::grpc) fn plan_id_from(field: &str, id: &str) -> Result<PlanId, Error> {
    require_set(field, id)?;
    PlanId::parse(id).map_err(|_| Error::no_plan(id))
}

fn require_set(field: &str, id: &str) -> Result<(), Error> {
    if id.is_empty() { Err(Error::invalid(field, "must be set")) } else { Ok(()) }
}

/// The fields that an update changes: those that the mask names, or without one all for which `is_set` holds.
pub(super) fn masked(
    violations: &mut Violations,
    mask: Option<&FieldMask>,
    changeable: &[&'static str],
    is_set: impl Fn(&str) -> bool,
) -> Vec<&'static str> {
    let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else {
        return changeable.iter().copied().filter(|field| is_set(field)).collect();
    };
    if mask.paths == ["*"] {
        return changeable.to_vec();
    }
    for path in mask.paths.iter().filter(|path| !changeable.contains(&path.as_str())).take(VIOLATIONS_MAX) {
        let message = format!("`{}` cannot be changed; `*` and these can: {}", shown(path), changeable.join(", "));
        violations.add("update_mask", message);
    }
    changeable.iter().copied().filter(|field| mask.paths.iter().any(|path| path == field)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_wire() {
        for millis in [0, 1, -1, 1_700_000_000_123, -62_135_596_800_000] {
            let time = Time::from_millis(millis);
            assert_eq!(time_from(&timestamp_to(time)).unwrap(), time);
        }
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0)] {
            assert!(time_from(&Timestamp { seconds, nanos }).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(millis_from(&duration_to(1_234)).unwrap(), 1_234);
        assert!(millis_from(&Duration { seconds: i64::MAX, nanos: 0 }).is_err());
    }

    #[test]
    fn a_mask_names_what_can_be_changed() {
        let fields = |paths: &[&str]| {
            let mut violations = Violations::default();
            let mask = FieldMask { paths: paths.iter().map(ToString::to_string).collect() };
            let fields = masked(&mut violations, Some(&mask), &["name", "plan"], |field| field == "plan");
            violations.check().map(|()| fields)
        };
        assert_eq!(fields(&[]).unwrap(), ["plan"]);
        assert_eq!(fields(&["*"]).unwrap(), ["name", "plan"]);
        assert_eq!(fields(&["name", "name"]).unwrap(), ["name"]);
        assert!(fields(&["name", "id"]).is_err());
        assert!(fields(&["*", "name"]).is_err());
    }
}

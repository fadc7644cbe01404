//! What is left, as HTTP headers: `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the limit that is nearest to its end, and
//! all of them in `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10).

use crate::domain::{Period, Time};
use crate::engine::{CreditStatus, Level, LimitStatus, nearest_limit};

/// A header and its value.
pub(super) type Field = (&'static str, String);

/// Room for three limits with large numbers, so that the text seldom has to move.
const TEXT_BYTES: usize = 128;
/// Of the largest number.
const DIGITS_MAX: usize = 20;

/// The fields of an answer; none where nothing is limited. `X-RateLimit-Reset` is in seconds since 1970.
pub(in crate::transport) fn fields(limits: &[LimitStatus], credits: Option<CreditStatus>, now: Time) -> Vec<Field> {
    let mut fields = Vec::with_capacity(5);
    let limit = nearest_limit(limits).map(|it| (it.limit.capacity, it.remaining, it.reset_time));
    // Credits speak where they alone are why, or where there is nothing else.
    let credits_first = credits.is_some_and(|it| it.exceeded) && !limits.iter().any(|it| it.exceeded);
    let of_credits = credits.map(|it| (it.capacity(), it.remaining, it.reset_time));
    let nearest = if credits_first { of_credits } else { limit.or(of_credits) };
    let Some((capacity, remaining, reset_time)) = nearest else { return fields };
    fields.push(("x-ratelimit-limit", capacity.to_string()));
    fields.push(("x-ratelimit-remaining", remaining.to_string()));
    fields.push(("x-ratelimit-reset", reset_time.plus_millis(999).seconds().to_string()));

    let (mut policy, mut state) = (String::with_capacity(TEXT_BYTES), String::with_capacity(TEXT_BYTES));
    for it in limits {
        let name = [level(it.level), it.limit.name.as_str()];
        let window = window_seconds(it.limit.period).map(u64::from);
        push_item(&mut policy, name, [(";q=", Some(it.limit.capacity)), (";w=", window)]);
        push_item(&mut state, name, [(";r=", Some(it.remaining)), (";t=", whole_seconds_until(it.reset_time, now))]);
    }
    if let Some(it) = credits {
        let name = ["", "credits"];
        push_item(&mut policy, name, [(";q=", Some(it.capacity())), (";w=", None)]);
        push_item(&mut state, name, [(";r=", Some(it.remaining)), (";t=", whole_seconds_until(it.reset_time, now))]);
    }
    fields.push(("ratelimit-policy", policy));
    fields.push(("ratelimit", state));
    fields
}

/// One more item of a list, as in `"per-minute";q=100;w=60`. Every check that is allowed has two a limit, and what `format!`
/// makes of so many small parts takes twice as long.
fn push_item(list: &mut String, name: [&str; 2], parameters: [(&str, Option<u64>); 2]) {
    list.push_str(if list.is_empty() { "\"" } else { ", \"" });
    for part in name {
        list.push_str(part);
    }
    list.push('"');
    for (name, value) in parameters {
        if let Some(value) = value {
            list.push_str(name);
            push_number(list, value);
        }
    }
}

fn push_number(text: &mut String, number: u64) {
    let (mut digits, mut start, mut rest) = ([0; DIGITS_MAX], DIGITS_MAX, number);
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        (start, rest) = (start - 1, rest / 10);
        if rest == 0 {
            break;
        }
    }
    let written = digits.get(start..).and_then(|digits| std::str::from_utf8(digits).ok());
    text.push_str(written.unwrap_or_default());
}

/// A key's limit and one of its account may have the same name.
const fn level(level: Level) -> &'static str {
    match level {
        Level::Key => "",
        Level::Account => "account:",
    }
}

/// Months have no fixed length.
const fn window_seconds(period: Period) -> Option<u32> {
    match period {
        Period::Minute => Some(60),
        Period::Hour => Some(3_600),
        Period::Day => Some(86_400),
        Period::Month => None,
        Period::Seconds(seconds) => Some(seconds),
    }
}

/// Whole seconds, rounded up.
pub(super) fn seconds_until(time: Time, now: Time) -> i64 {
    time.millis_since(now).max(0).saturating_add(999) / 1_000
}

/// The same, as a number to write.
fn whole_seconds_until(time: Time, now: Time) -> Option<u64> {
    u64::try_from(seconds_until(time, now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Algorithm, Limit, LimitName};

    fn status(name: &str, level: Level, capacity: u64, remaining: u64, reset_ms: i64) -> LimitStatus {
        let name = LimitName::parse(name).unwrap();
        let limit = Limit { name, capacity, period: Period::Minute, algorithm: Algorithm::FixedWindow };
        LimitStatus { limit, level, remaining, reset_time: Time::from_millis(reset_ms), exceeded: remaining == 0 }
    }

    fn told(limits: &[LimitStatus], credits: Option<CreditStatus>) -> Vec<String> {
        let fields = fields(limits, credits, Time::from_millis(1_500));
        fields.into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn the_limit_nearest_to_its_end_speaks_for_all() {
        let limits = [status("a", Level::Key, 100, 50, 60_000), status("a", Level::Account, 1_000, 10, 3_600_000)];
        let expected = [
            "x-ratelimit-limit: 1000",
            "x-ratelimit-remaining: 10",
            "x-ratelimit-reset: 3600",
            "ratelimit-policy: \"a\";q=100;w=60, \"account:a\";q=1000;w=60",
            "ratelimit: \"a\";r=50;t=59, \"account:a\";r=10;t=3599",
        ];
        assert_eq!(told(&limits, None), expected);
        assert!(told(&[], None).is_empty());
    }

    #[test]
    fn numbers_are_written_as_by_format() {
        for number in [0, 1, 9, 10, 99, 100, 1_234_567_890, u64::MAX - 1, u64::MAX] {
            let mut text = "=".to_owned();
            push_number(&mut text, number);
            assert_eq!(text, format!("={number}"));
        }
    }

    #[test]
    fn credits_speak_where_they_are_why() {
        let credits = |remaining, exceeded| {
            let reset_time = Time::from_millis(2_000);
            Some(CreditStatus { allowance: 500, remaining, topped_up_remaining: 0, reset_time, exceeded })
        };
        let limits = [status("a", Level::Key, 100, 50, 60_000)];
        assert_eq!(told(&limits, credits(0, true))[0], "x-ratelimit-limit: 500");
        assert_eq!(told(&limits, credits(9, false))[0], "x-ratelimit-limit: 100");
        let alone = told(&[], credits(9, false));
        assert_eq!(alone[0], "x-ratelimit-limit: 500");
        assert_eq!(alone[4], "ratelimit: \"credits\";r=9;t=1");
        // No more is ever said to be left than there is.
        let topped_up = credits(760, false).map(|it| CreditStatus { topped_up_remaining: 300, ..it });
        let alone = told(&[], topped_up);
        assert_eq!(alone[..2], ["x-ratelimit-limit: 800", "x-ratelimit-remaining: 760"]);
        assert_eq!(alone[3..], ["ratelimit-policy: \"credits\";q=800", "ratelimit: \"credits\";r=760;t=1"]);
    }
}

//! Credits that operators give, or take away, beside the monthly allowance.

use serde::{Deserialize, Serialize};

use super::text::bounded;
use super::{Invalid, Time, UNITS_MAX};

/// Adjustments of which the operation ids are remembered.
const REMEMBERED_MAX: usize = 100;
const OPERATION_ID_CHARS_MAX: usize = 100;

/// What was topped up to an account's credits. No month ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopUps {
    /// Cost units of all adjustments together, spent ones included; up to [`UNITS_MAX`].
    pub sum: u64,
    /// The last adjustments that had an operation id, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remembered: Vec<Adjustment>,
}

/// An adjustment that is remembered, so that a retry of it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjustment {
    /// What the caller called it.
    pub operation_id: String,
    /// Cost units given, or, below 0, taken away.
    pub amount: i64,
    /// When.
    pub time: Time,
}

impl TopUps {
    /// Of so many cost units.
    #[must_use]
    pub const fn of(sum: u64) -> Self {
        Self { sum, remembered: Vec::new() }
    }

    /// Whether there never were any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sum == 0 && self.remembered.is_empty()
    }

    /// The remembered adjustment that was called so.
    #[must_use]
    pub fn find(&self, operation_id: &str) -> Option<&Adjustment> {
        self.remembered.iter().find(|adjustment| adjustment.operation_id == operation_id)
    }

    /// With an adjustment made; absent where the sum would be below 0 or above [`UNITS_MAX`].
    #[must_use]
    pub fn adjusted(&self, amount: i64, operation_id: Option<&str>, time: Time) -> Option<Self> {
        let sum = self.sum.checked_add_signed(amount).filter(|sum| *sum <= UNITS_MAX)?;
        let mut remembered = self.remembered.clone();
        if let Some(id) = operation_id {
            remembered.drain(..(remembered.len() + 1).saturating_sub(REMEMBERED_MAX));
            remembered.push(Adjustment { operation_id: id.to_owned(), amount, time });
        }
        Some(Self { sum, remembered })
    }
}

/// How many cost units an adjustment gives or takes: up to [`UNITS_MAX`], and not 0.
pub fn parse_adjustment(amount: i64) -> Result<i64, Invalid> {
    if amount == 0 {
        return Err(Invalid::new("must not be 0"));
    }
    if amount.unsigned_abs() > UNITS_MAX {
        return Err(Invalid::new(format!("`{amount}` is not between -{UNITS_MAX} and {UNITS_MAX}")));
    }
    Ok(amount)
}

/// What a caller calls an operation: 1 to 100 printable ASCII characters without spaces.
pub fn parse_operation_id(text: &str) -> Result<String, Invalid> {
    if text.is_empty() {
        return Err(Invalid::new("must not be empty"));
    }
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Invalid::new("must be printable ASCII characters without spaces"));
    }
    bounded(text, OPERATION_ID_CHARS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stay_within_their_bounds() {
        let max = i64::try_from(UNITS_MAX).unwrap();
        let rows = [
            (0, 5, Some(5)),
            (5, -5, Some(0)),
            (5, -6, None),
            (0, i64::MIN, None),
            (0, max, Some(UNITS_MAX)),
            (1, max, None),
            (UNITS_MAX, i64::MAX, None),
            (UNITS_MAX, -1, Some(UNITS_MAX - 1)),
        ];
        for (sum, amount, expected) in rows {
            let adjusted = TopUps::of(sum).adjusted(amount, None, Time::from_millis(0));
            assert_eq!(adjusted.map(|top_ups| top_ups.sum), expected, "{sum} and {amount}");
        }
        for (amount, good) in [(0, false), (1, true), (-1, true), (max, true), (-max, true), (max + 1, false)] {
            assert_eq!(parse_adjustment(amount).is_ok(), good, "{amount}");
        }
        assert!(parse_adjustment(i64::MIN).is_err());
    }

    #[test]
    fn the_last_operations_are_remembered() {
        let mut top_ups = TopUps::default();
        for i in 0..150_i64 {
            let id = format!("op-{i}");
            // Those without an id push none out.
            top_ups = top_ups.adjusted(1, None, Time::from_millis(i)).unwrap();
            top_ups = top_ups.adjusted(1, Some(&id), Time::from_millis(i)).unwrap();
        }
        assert_eq!((top_ups.sum, top_ups.remembered.len()), (300, REMEMBERED_MAX));
        assert_eq!((top_ups.find("op-49"), top_ups.find("op-50").unwrap().amount), (None, 1));
        assert_eq!(top_ups.find("op-149").unwrap().time, Time::from_millis(149));
    }

    #[test]
    fn what_an_operation_may_be_called() {
        let long = "x".repeat(100);
        for (text, good) in
            [("a", true), ("2026/11#7", true), (&long, true), ("", false), ("a b", false), ("\u{e9}", false)]
        {
            assert_eq!(parse_operation_id(text).is_ok(), good, "{text}");
        }
        assert!(parse_operation_id(&format!("{long}x")).is_err());
    }
}

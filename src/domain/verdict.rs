//! The answers that a check can have.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The answer to a check, or the first reason why not. In this order the reasons are looked for. The numbers are those
/// of the wire and of the store, and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum Verdict {
    /// The key may.
    Allowed = 1,
    /// No key was given.
    Missing = 2,
    /// Not something that can be a key.
    Malformed = 3,
    /// No such key.
    Unknown = 4,
    /// Ended for good.
    Revoked = 5,
    /// A secret that a rotation replaced, after its grace period.
    RotatedOut = 6,
    /// Past its expiry.
    Expired = 7,
    /// Switched off.
    Disabled = 8,
    /// The account is suspended.
    AccountSuspended = 9,
    /// The plan has no API access.
    PlanDenied = 10,
    /// Live where test was expected, or the other way round.
    WrongEnvironment = 11,
    /// The client's address is not allowed, or unknown.
    IpDenied = 12,
    /// The referring host is not allowed, or unknown.
    ReferrerDenied = 13,
    /// The method and path are not allowed, unknown or ambiguous.
    EndpointDenied = 14,
    /// A scope is missing.
    ScopeDenied = 15,
    /// A limit is used up.
    RateLimited = 16,
    /// The month's credits are used up.
    CreditsExhausted = 17,
    /// Checked more often per second than the server permits one key.
    Throttled = 18,
}

impl Verdict {
    /// All of them, in order.
    pub const ALL: [Self; 18] = [
        Self::Allowed,
        Self::Missing,
        Self::Malformed,
        Self::Unknown,
        Self::Revoked,
        Self::RotatedOut,
        Self::Expired,
        Self::Disabled,
        Self::AccountSuspended,
        Self::PlanDenied,
        Self::WrongEnvironment,
        Self::IpDenied,
        Self::ReferrerDenied,
        Self::EndpointDenied,
        Self::ScopeDenied,
        Self::RateLimited,
        Self::CreditsExhausted,
        Self::Throttled,
    ];

    /// Its name, as in `RATE_LIMITED`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Missing => "MISSING",
            Self::Malformed => "MALFORMED",
            Self::Unknown => "UNKNOWN",
            Self::Revoked => "REVOKED",
            Self::RotatedOut => "ROTATED_OUT",
            Self::Expired => "EXPIRED",
            Self::Disabled => "DISABLED",
            Self::AccountSuspended => "ACCOUNT_SUSPENDED",
            Self::PlanDenied => "PLAN_DENIED",
            Self::WrongEnvironment => "WRONG_ENVIRONMENT",
            Self::IpDenied => "IP_DENIED",
            Self::ReferrerDenied => "REFERRER_DENIED",
            Self::EndpointDenied => "ENDPOINT_DENIED",
            Self::ScopeDenied => "SCOPE_DENIED",
            Self::RateLimited => "RATE_LIMITED",
            Self::CreditsExhausted => "CREDITS_EXHAUSTED",
            Self::Throttled => "THROTTLED",
        }
    }

    /// From its number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Its number, from 1.
    #[must_use]
    #[expect(clippy::as_conversions, reason = "the discriminants are the numbers, and fit by repr(u8)")]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The HTTP status that an edge should send unless configured otherwise: 401 where it is the credential (RFC 9110,
    /// 15.5.2), 403 where it is what the credential may do, 429 (RFC 6585) where it is how much.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Allowed => 200,
            Self::Missing
            | Self::Malformed
            | Self::Unknown
            | Self::Revoked
            | Self::RotatedOut
            | Self::Expired
            | Self::Disabled => 401,
            Self::AccountSuspended
            | Self::PlanDenied
            | Self::WrongEnvironment
            | Self::IpDenied
            | Self::ReferrerDenied
            | Self::EndpointDenied
            | Self::ScopeDenied => 403,
            Self::RateLimited | Self::CreditsExhausted | Self::Throttled => 429,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_those_of_the_contract() {
        for (i, verdict) in (1..).zip(Verdict::ALL) {
            assert_eq!(verdict.number(), i);
            assert_eq!(Verdict::from_number(i), Some(verdict));
            let wire = crate::proto::v1::Verdict::try_from(i32::from(i)).unwrap();
            assert_eq!(wire.as_str_name(), format!("VERDICT_{verdict}"));
        }
        assert_eq!(Verdict::from_number(0), None);
        assert_eq!(Verdict::from_number(19), None);
    }
}

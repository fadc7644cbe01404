//! What a verdict is for those outside: an HTTP status, and words.

use crate::domain::Verdict;
use crate::engine::{Answer, CreditStatus, Level};

/// What an edge should send for each verdict.
#[derive(Clone, Debug)]
pub struct HttpStatuses([u16; Verdict::ALL.len()]);

impl HttpStatuses {
    /// The verdicts' own, but for these.
    #[must_use]
    pub fn with(overrides: &std::collections::BTreeMap<Verdict, u16>) -> Self {
        Self(Verdict::ALL.map(|verdict| overrides.get(&verdict).copied().unwrap_or(verdict.http_status())))
    }

    /// For one verdict.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> u16 {
        let place = usize::from(verdict.number()) - 1;
        self.0.get(place).copied().unwrap_or(verdict.http_status())
    }
}

/// The verdict in a few words, the same for all keys: the heading of an error page.
pub(super) const fn title(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "Allowed",
        Verdict::Missing => "Missing API key",
        Verdict::Malformed | Verdict::Unknown | Verdict::Revoked | Verdict::RotatedOut => "Invalid API key",
        Verdict::Expired => "Expired API key",
        Verdict::Disabled => "Disabled API key",
        Verdict::AccountSuspended => "Account suspended",
        Verdict::PlanDenied => "Plan without API access",
        Verdict::WrongEnvironment => "Wrong environment",
        Verdict::IpDenied => "Address not allowed",
        Verdict::ReferrerDenied => "Referrer not allowed",
        Verdict::EndpointDenied => "Endpoint not allowed",
        Verdict::ScopeDenied => "Insufficient permissions",
        Verdict::RateLimited => "Rate limit exceeded",
        Verdict::CreditsExhausted => "Credits exhausted",
        Verdict::Throttled => "Too many requests",
    }
}

/// The verdict in words, for the client's developer.
pub(super) fn message(answer: &Answer) -> String {
    let plain = match answer.verdict {
        Verdict::Allowed => "",
        Verdict::Missing => "no API key was given",
        Verdict::Malformed => "this is not an API key: its characters, length or checksum are wrong",
        Verdict::Unknown => "there is no such API key",
        Verdict::Revoked => "the API key is revoked",
        Verdict::RotatedOut => "the API key was rotated, and this old secret has ended",
        Verdict::Expired => "the API key has expired",
        Verdict::Disabled => "the API key is disabled",
        Verdict::AccountSuspended => "the account is suspended",
        Verdict::PlanDenied => "the account's plan does not include API access",
        Verdict::WrongEnvironment => {
            "the API key is of the other environment: live and test keys are not interchangeable"
        }
        Verdict::IpDenied => "the API key may not be used from this address",
        Verdict::ReferrerDenied => "the API key may not be used from this site",
        Verdict::EndpointDenied => "the API key may not be used for this endpoint",
        Verdict::ScopeDenied => return format!("the API key lacks: {}", answer.missing_scopes.join(", ")),
        Verdict::RateLimited => return limited(answer),
        Verdict::CreditsExhausted => return out_of_credits(answer),
        Verdict::Throttled => "the API key is used too often in one second",
    };
    plain.to_owned()
}

fn limited(answer: &Answer) -> String {
    let Some(status) = answer.limits.iter().find(|limit| limit.exceeded) else { return String::new() };
    let whose = match status.level {
        Level::Key => "key",
        Level::Account => "account",
    };
    let (name, capacity, left) = (&status.limit.name, status.limit.capacity, status.remaining);
    if answer.retry_after_millis.is_none() {
        return format!(
            "the check costs more than a limit ever has: the {whose}'s limit `{name}` has {capacity} in all"
        );
    }
    format!("the {whose}'s limit `{name}` has {left} of {capacity} left until {}", status.reset_time)
}

fn out_of_credits(answer: &Answer) -> String {
    let Some(CreditStatus { allowance, remaining, topped_up_remaining, reset_time, .. }) = answer.credits else {
        return String::new();
    };
    let of_month = remaining.saturating_sub(topped_up_remaining);
    let topped_up = if topped_up_remaining > 0 {
        format!(", and {topped_up_remaining} that were topped up")
    } else {
        String::new()
    };
    format!("the account has {of_month} of {allowance} credits left until {reset_time}{topped_up}")
}

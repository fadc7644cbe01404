//! Why an edge got no decision. Never the client's fault, so it is no denial: the client is told to come again, and the
//! operator why.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::ambient::Clock;

/// Why there is no decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::transport) enum Fault {
    /// The edge's configuration says something that is not understood.
    #[error("the policy of a route is wrong: {0}")]
    Policy(String),
    /// The edge has not said who it is.
    #[error("the proxy is refused: {0}")]
    Caller(String),
    /// Tollgate can't know now.
    #[error("Tollgate cannot decide now: {0}")]
    Unavailable(String),
}

impl Fault {
    /// What it is called in answers and in the log.
    pub(in crate::transport) const fn code(&self) -> &'static str {
        match self {
            Self::Policy(_) => "POLICY_INVALID",
            Self::Caller(_) => "CALLER_REFUSED",
            Self::Unavailable(_) => "UNAVAILABLE",
        }
    }

    /// What the client gets: 503 where it is worth coming again.
    pub(in crate::transport) const fn http_status(&self) -> u16 {
        match self {
            Self::Policy(_) => 500,
            Self::Caller(_) | Self::Unavailable(_) => 503,
        }
    }

    /// Seconds after which it is.
    pub(in crate::transport) const fn retry_after_seconds(&self) -> Option<u32> {
        match self {
            Self::Unavailable(_) => Some(1),
            Self::Policy(_) | Self::Caller(_) => None,
        }
    }

    /// What the client is told. The details are the operator's.
    pub(in crate::transport) const fn message(&self) -> &'static str {
        match self {
            Self::Policy(_) | Self::Caller(_) => {
                "the gateway is misconfigured; its operator finds the reason in the log"
            }
            Self::Unavailable(_) => "the API key cannot be checked now; try again in a moment",
        }
    }
}

/// The log of faults: a line a second at most for each kind, because each request of a route with a wrong policy has the same.
#[derive(Debug)]
pub struct FaultLog {
    clock: Clock,
    last_seconds: [AtomicI64; 3],
}

impl FaultLog {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, last_seconds: std::array::from_fn(|_| AtomicI64::new(i64::MIN)) }
    }

    pub(in crate::transport) fn tell(&self, fault: &Fault) {
        let [policy, caller, unavailable] = &self.last_seconds;
        let last_second = match fault {
            Fault::Policy(_) => policy,
            Fault::Caller(_) => caller,
            Fault::Unavailable(_) => unavailable,
        };
        let second = i64::try_from(self.clock.monotonic().as_secs()).unwrap_or(i64::MAX);
        if last_second.swap(second, Ordering::Relaxed) != second {
            tracing::error!(code = fault.code(), "an edge got no decision: {fault}");
        }
    }
}

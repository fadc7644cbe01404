//! What was asked of a cluster and what it answered, call by call.

use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use tollgate::ambient::Clock;
use tollgate::proto::v1::{CheckKeyResponse, Verdict};
use tonic::{Code, Response, Status};

/// One for the process, which no setting of the wall clock moves.
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::system);

/// Now, on the clock of the histories.
pub(crate) fn now() -> Duration {
    CLOCK.monotonic()
}

/// How long it is since then.
pub(crate) fn since(begun: Duration) -> Duration {
    now().saturating_sub(begun)
}

/// The wall clock of this machine, and so of a database on it, at zero of the clock of the histories; in milliseconds.
pub(crate) fn epoch_millis() -> i64 {
    CLOCK.now().millis() - i64::try_from(CLOCK.monotonic().as_millis()).unwrap()
}

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Check,
    /// A check under an operation's number.
    Operation(u64),
    /// To give back what an operation was charged.
    Refund(u64),
    Revoke,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A check was allowed.
    Admitted,
    /// A check was not.
    Denied(Verdict),
    /// Something else was done.
    Done,
    /// Nobody knows: no answer came, or one that does not say what was done.
    Failed(Code),
}

impl Answer {
    pub(crate) fn of_check(answer: &Result<Response<CheckKeyResponse>, Status>) -> Self {
        match answer.as_ref().map(Response::get_ref) {
            Ok(answer) if answer.allowed => Self::Admitted,
            Ok(answer) => Self::Denied(answer.verdict()),
            Err(status) => Self::failed(status),
        }
    }

    pub(crate) fn of_change<T>(answer: &Result<T, Status>) -> Self {
        answer.as_ref().map_or_else(Self::failed, |_| Self::Done)
    }

    /// Whatever happens, nobody is told that a call was wrong.
    fn failed(status: &Status) -> Self {
        let code = status.code();
        // An operation that was given back, or that nobody knows of.
        if matches!(code, Code::FailedPrecondition | Code::NotFound) {
            return Self::Denied(Verdict::Unspecified);
        }
        let expected = [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Cancelled, Code::Aborted];
        // What the client's own side of a connection makes of a server that goes away.
        let is_of_client = code == Code::Internal && status.message().starts_with("h2 protocol error");
        assert!(expected.contains(&code) || is_of_client, "{status:?}");
        Self::Failed(code)
    }
}

/// Whether something was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Done {
    #[default]
    No,
    Maybe,
    Yes,
}

impl Answer {
    pub(crate) fn done(self) -> Done {
        match self {
            Self::Admitted | Self::Done => Done::Yes,
            Self::Denied(_) => Done::No,
            Self::Failed(_) => Done::Maybe,
        }
    }
}

/// A call that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    /// By its place in the cluster.
    pub(crate) replica: usize,
    /// By its place in the list of the test.
    pub(crate) key: usize,
    pub(crate) kind: Kind,
    pub(crate) cost: i64,
    pub(crate) answer: Answer,
}

/// All calls of a test, in the order of their ends.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Vec<Call>>);

impl History {
    pub(crate) fn record(&self, call: Call) {
        self.0.lock().unwrap().push(call);
    }

    pub(crate) fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap()
    }

    /// How many checks were answered since then, by one replica, or by all of them: those admitted, those denied, and those that
    /// failed.
    pub(crate) fn tally(&self, since: Duration, replica: Option<usize>) -> Tally {
        let mut tally = Tally::default();
        for call in self.calls().iter().rev().take_while(|call| call.end >= since) {
            let counts = matches!(call.kind, Kind::Check | Kind::Operation(_));
            if counts && call.start >= since && replica.is_none_or(|replica| call.replica == replica) {
                match call.answer {
                    Answer::Admitted | Answer::Done => tally.admitted += 1,
                    Answer::Denied(_) => tally.denied += 1,
                    Answer::Failed(_) => tally.failed += 1,
                }
            }
        }
        tally
    }
}

/// Checks by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) admitted: usize,
    pub(crate) denied: usize,
    pub(crate) failed: usize,
}

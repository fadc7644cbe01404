//! Why a command failed, what to do about it, and the exit code that scripts see.

use std::error::Error;
use std::fmt::Write as _;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What a command returns.
pub(super) type Outcome = Result<(), Failure>;

/// What scripts see; documented in `docs/cli.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Done. Also where whoever read the output has gone.
    Fine = 0,
    /// It failed.
    Error = 1,
    /// The command was not understood; clap's own code too.
    Usage = 2,
    /// The check was denied.
    Denied = 3,
    /// No such thing.
    NotFound = 4,
    /// No caller's key, or one that may not do this.
    Caller = 5,
    /// The server can't be reached, or can't answer now.
    Unavailable = 6,
}

impl Exit {
    #[expect(clippy::as_conversions, reason = "the discriminants are the codes")]
    pub(super) const fn code(self) -> u8 {
        self as u8
    }
}

/// A failure, for people and for scripts.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// Empty where all has been said.
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    pub(super) fn error(message: impl Into<String>) -> Self {
        Self::new(Exit::Error, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Where the output has already said it.
    pub(super) const fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }

    pub(super) fn missing_token() -> Self {
        let message = format!("no caller's key\n{TOKEN_HINT}");
        Self::new(Exit::Caller, message)
    }
}

const TOKEN_HINT: &str = "hint: set TOLLGATE_TOKEN to an API key, or name a file that holds one with --token-file; `tollgate bootstrap` makes \
     the first operator key";

impl From<Box<dyn Error + Send + Sync>> for Failure {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        Self::error(chain(&*error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Fine);
        }
        Self::error(error.to_string())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A connection that breaks is UNKNOWN to tonic, as where the server wants a certificate.
        let broke = status.source().is_some_and(<dyn Error>::is::<tonic::transport::Error>);
        let exit = if broke { Exit::Unavailable } else { exit(status.code()) };
        let mut message = match status.message() {
            "" => status.code().description().to_lowercase(),
            said => said.to_owned(),
        };
        let details = status.get_error_details();
        for violation in details.bad_request().map(|details| &*details.field_violations).unwrap_or_default() {
            // A server may say the only violation in its message already.
            if !message.contains(&violation.description) || !message.contains(&violation.field) {
                append(&mut message, &format!("  {}: {}", violation.field, violation.description));
            }
        }
        for violation in details.precondition_failure().map(|details| &*details.violations).unwrap_or_default() {
            if !message.contains(&violation.description) {
                append(&mut message, &format!("  {}: {}", violation.subject, violation.description));
            }
        }
        if let Some(source) = status.source().filter(|_| exit == Exit::Unavailable) {
            append(&mut message, &format!("  {}", chain(source)));
        }
        if status.code() == Code::Unauthenticated {
            append(&mut message, TOKEN_HINT);
        }
        Self { exit, message }
    }
}

fn append(message: &mut String, line: &str) {
    // Writing to a string does not fail.
    _ = write!(message, "\n{line}");
}

fn exit(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Fine,
        Code::NotFound => Exit::NotFound,
        Code::Unauthenticated | Code::PermissionDenied => Exit::Caller,
        // tonic's own time-out is CANCELLED.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unavailable,
        Code::Unknown
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Error,
    }
}

/// An error and what caused it, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            _ = write!(text, ": {cause_text}");
        }
        next = cause.source();
    }
    text
}

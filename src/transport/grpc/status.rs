//! The engine's errors as gRPC statuses, with the details of `google.rpc` (AIP-193).

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::engine::Error;

/// Whose reasons they are.
const DOMAIN: &str = "tollgate.v1";
/// After how long it is worth asking again where the store was away.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

pub(super) fn status_from(error: &Error) -> Status {
    let message = error.to_string();
    let mut details = ErrorDetails::new();
    let code = match error {
        Error::Invalid(violations) => {
            for violation in violations {
                details.add_bad_request_violation(&violation.field, &violation.message);
            }
            Code::InvalidArgument
        }
        Error::NotFound { kind, id } => {
            details.set_resource_info(*kind, id, "", "");
            Code::NotFound
        }
        Error::AlreadyExists(_) => {
            reason(&mut details, "ALREADY_EXISTS");
            Code::AlreadyExists
        }
        Error::Precondition { kind, subject, message } => {
            details.add_precondition_failure_violation(*kind, subject, message);
            Code::FailedPrecondition
        }
        Error::Stale { .. } => {
            reason(&mut details, "ETAG_STALE");
            Code::Aborted
        }
        Error::PermissionDenied(_) => {
            reason(&mut details, "PERMISSION_DENIED");
            Code::PermissionDenied
        }
        Error::Unauthenticated { verdict, .. } => {
            reason(&mut details, verdict.name());
            Code::Unauthenticated
        }
        Error::Unavailable(_) => {
            details.set_retry_info(Some(RETRY_AFTER));
            Code::Unavailable
        }
        Error::Internal(_) => {
            tracing::error!(%error, "a call failed for a reason that is not the caller's");
            Code::Internal
        }
    };
    Status::with_error_details(code, message, details)
}

fn reason(details: &mut ErrorDetails, reason: &str) {
    details.set_error_info(reason, DOMAIN, HashMap::new());
}

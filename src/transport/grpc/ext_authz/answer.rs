//! What Envoy is told. One constructor for each outcome, and never a default: an empty `CheckResponse` lets the request
//! pass.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Code;

use crate::domain::{Time, Verdict};
use crate::proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use crate::proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use crate::proto::envoy::service::auth::v3::check_response::HttpResponse;
use crate::proto::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use crate::proto::envoy::r#type::v3::HttpStatus;
use crate::proto::google::rpc;
use crate::transport::edge::{
    Allowed, Decision, Denied, Fault, Identity, MessageFormat, Place, Settings, header_value,
};
use crate::transport::request_id;

/// What an answer is about, beside the decision.
#[derive(Debug)]
pub(super) struct About<'a> {
    pub(super) settings: &'a Settings,
    /// The client's own, if it is safe to print.
    pub(super) request_id: Option<&'a str>,
    pub(super) format: MessageFormat,
    /// Whether the client speaks gRPC.
    pub(super) grpc: bool,
    pub(super) now: Time,
}

impl About<'_> {
    pub(super) fn answer(&self, decision: Decision<'_>) -> CheckResponse {
        match decision {
            Decision::Allowed(allowed) => self.allowed(&allowed),
            Decision::Denied(denied) => self.denied(&denied),
        }
    }

    fn allowed(&self, allowed: &Allowed<'_>) -> CheckResponse {
        let identity = Identity::of(allowed.answer.as_ref());
        let metadata = self.metadata(Verdict::Allowed, &identity, Some(allowed.charged));
        let mut ok = OkHttpResponse {
            headers: options(identity.into_headers(&self.settings.identity)),
            response_headers_to_add: options(allowed.client_headers(self.now)),
            ..OkHttpResponse::default()
        };
        if self.settings.strip_credential {
            match allowed.place {
                Some(Place::Header(name)) => ok.headers_to_remove.push(name.to_owned()),
                Some(Place::Query(name)) => ok.query_parameters_to_remove.push(name.to_owned()),
                None => {}
            }
        }
        response(Code::Ok, "", HttpResponse::OkResponse(ok), metadata)
    }

    fn denied(&self, denied: &Denied) -> CheckResponse {
        let (verdict, code) = (denied.answer.verdict, denied.grpc_code());
        let request_id = self.known_request_id();
        let identity = Identity::of(Some(&denied.answer));
        let metadata = self.metadata(verdict, &identity, None);
        let mut headers = denied.client_headers(self.settings, self.now);
        let body = if self.grpc {
            headers.extend(grpc_status(code, &denied.message()));
            String::new()
        } else {
            let (content_type, body) = denied.body(self.format, &request_id);
            headers.push(("content-type", content_type.to_owned()));
            body
        };
        let page = page(denied.status, options(headers), body);
        response(code, verdict.name(), HttpResponse::DeniedResponse(page), metadata)
    }

    /// Envoy counts it as an error and not as a denial (since 1.37).
    pub(super) fn fault(&self, fault: &Fault) -> CheckResponse {
        let code = match fault {
            Fault::Unavailable(_) => Code::Unavailable,
            Fault::Policy(_) | Fault::Caller(_) => Code::Internal,
        };
        let mut headers = vec![("cache-control", "no-store".to_owned())];
        headers.extend(fault.retry_after_seconds().map(|seconds| ("retry-after", seconds.to_string())));
        let body = if self.grpc {
            headers.extend(grpc_status(code, fault.message()));
            String::new()
        } else {
            let (content_type, body) = fault.body(self.format, &self.known_request_id());
            headers.push(("content-type", content_type.to_owned()));
            body
        };
        let page = page(fault.http_status(), options(headers), body);
        let metadata = [("error", text(fault.code())), ("message", text(&fault.to_string()))];
        response(code, fault.code(), HttpResponse::ErrorResponse(page), structure(metadata))
    }

    fn known_request_id(&self) -> String {
        self.request_id.map_or_else(|| request_id::fresh(self.now), ToOwned::to_owned)
    }

    /// What the access log and other filters can know. `uncharged_key_id` is there only where nothing was charged, so that a
    /// rate limit filter that takes its key from there charges no request for a second time.
    fn metadata(&self, verdict: Verdict, identity: &Identity, charged: Option<u64>) -> Struct {
        let known = |value: &str| Some(value).filter(|value| !value.is_empty()).map(text);
        let entries = [
            ("verdict", Some(text(verdict.name()))),
            ("key_id", known(&identity.key_id)),
            ("account_id", known(&identity.account_id)),
            ("plan", known(&identity.plan)),
            ("environment", known(&identity.environment)),
            ("request_id", self.request_id.map(text)),
            ("charged", charged.map(number)),
            ("uncharged_key_id", known(&identity.key_id).filter(|_| charged == Some(0))),
        ];
        structure(entries.into_iter().filter_map(|(name, value)| Some((name, value?))))
    }
}

/// The one place where an answer is made. `code` alone decides what Envoy does.
fn response(code: Code, message: &str, http: HttpResponse, metadata: Struct) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status { code: code.into(), message: message.to_owned() }),
        http_response: Some(http),
        dynamic_metadata: Some(metadata),
    }
}

fn page(status: u16, headers: Vec<HeaderValueOption>, body: String) -> DeniedHttpResponse {
    DeniedHttpResponse { status: Some(HttpStatus { code: i32::from(status) }), headers, body }
}

/// Headers that take the place of those of the same name. Envoys differ in which of the two fields they go by, and what
/// they do where it is not set.
fn options<N: Into<String>>(headers: impl IntoIterator<Item = (N, String)>) -> Vec<HeaderValueOption> {
    let option = |(name, value): (N, String)| HeaderValueOption {
        header: Some(HeaderValue { key: name.into(), value: header_value(value), raw_value: Vec::new() }),
        append: Some(false),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    };
    headers.into_iter().map(option).collect()
}

/// Envoy makes 429 UNAVAILABLE for gRPC clients, which they take for a reason to try again at once.
fn grpc_status(code: Code, message: &str) -> [(&'static str, String); 2] {
    let message = percent_encoding::utf8_percent_encode(message, GRPC_MESSAGE).to_string();
    [("grpc-status", i32::from(code).to_string()), ("grpc-message", message)]
}

/// What a `grpc-message` can't hold as it is (gRPC over HTTP/2, "Percent-Encoded").
const GRPC_MESSAGE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

fn structure(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "JSON has no other numbers; costs are far below 2^53"
)]
fn number(value: u64) -> Value {
    Value { kind: Some(Kind::NumberValue(value as f64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_for_grpc_is_one_line_of_ascii() {
        for (message, encoded) in [
            ("lacks: tasks:write", "lacks: tasks:write"),
            ("100%\r\ngrpc-status: 0", "100%25%0D%0Agrpc-status: 0"),
            ("\u{e9}\0", "%C3%A9%00"),
        ] {
            let [(_, code), (_, found)] = grpc_status(Code::PermissionDenied, message);
            assert_eq!((code.as_str(), found.as_str()), ("7", encoded));
        }
    }

    #[test]
    fn every_header_that_goes_out_is_made_to_fit() {
        let options = options([("x-a", "a\r\nx-b: c".to_owned())]);
        assert_eq!(options[0].header.as_ref().unwrap().value, "a??x-b: c");
    }
}

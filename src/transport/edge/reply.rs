//! What an edge does with a request, and what it tells the client and the upstream.

use serde::Serialize;
use tonic::Code;

use crate::domain::{Time, Verdict};
use crate::engine::Answer;
use crate::transport::verdict;

use super::rate_limit::{self, Field};
use super::{Fault, MessageFormat, Place, Settings};

/// What the edge shall do.
#[derive(Debug)]
pub(in crate::transport) enum Decision<'a> {
    /// Let it pass.
    Allowed(Allowed<'a>),
    /// Answer it with this.
    Denied(Box<Denied>),
}

/// A request that may pass.
#[derive(Debug)]
pub(in crate::transport) struct Allowed<'a> {
    /// Where its credential stood.
    pub(in crate::transport) place: Option<Place<'a>>,
    /// Cost units charged.
    pub(in crate::transport) charged: u64,
    /// Absent where nobody was identified.
    pub(in crate::transport) answer: Option<Answer>,
}

/// A request that may not.
#[derive(Debug)]
pub(in crate::transport) struct Denied {
    /// HTTP status for the client.
    pub(in crate::transport) status: u16,
    pub(in crate::transport) answer: Answer,
}

/// Names of the headers that tell the upstream whose request it is, in the order of [`Identity`].
#[derive(Clone, Debug)]
pub struct IdentityNames([String; 5]);

impl IdentityNames {
    /// That begin so, as in `x-auth-key-id`.
    #[must_use]
    pub fn with_prefix(prefix: &str) -> Self {
        Self(["key-id", "account-id", "plan", "environment", "scopes"].map(|name| format!("{prefix}{name}")))
    }
}

/// Whose request it is. Every one of them is always sent, empty where nobody was identified, so that what the client
/// sent under these names never arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::transport) struct Identity {
    pub(in crate::transport) key_id: String,
    pub(in crate::transport) account_id: String,
    pub(in crate::transport) plan: String,
    /// `live` or `test`.
    pub(in crate::transport) environment: String,
    /// That the key may use, separated by spaces (RFC 6749, section 3.3).
    pub(in crate::transport) scopes: String,
}

impl Identity {
    /// Of whom an answer is about.
    pub(in crate::transport) fn of(answer: Option<&Answer>) -> Self {
        let Some(subject) = answer.and_then(|answer| answer.subject.as_ref()) else { return Self::default() };
        let (record, terms) = (&subject.record, &subject.terms);
        let mut scopes = String::new();
        for scope in terms.usable_scopes(&record.policy.scopes) {
            if !scopes.is_empty() {
                scopes.push(' ');
            }
            scopes.push_str(scope.as_str());
        }
        Self {
            key_id: subject.key_id.to_string(),
            account_id: terms.account_id.as_str().to_owned(),
            plan: terms.plan_id.as_str().to_owned(),
            environment: record.environment.to_string(),
            scopes,
        }
    }

    /// As headers.
    pub(in crate::transport) fn into_headers(self, names: &IdentityNames) -> [(&str, String); 5] {
        let [key_id, account_id, plan, environment, scopes] = &names.0;
        [
            (key_id, self.key_id),
            (account_id, self.account_id),
            (plan, self.plan),
            (environment, self.environment),
            (scopes, self.scopes),
        ]
    }
}

impl Allowed<'_> {
    /// Without anybody identified.
    pub(super) const fn anonymous() -> Self {
        Self { place: None, charged: 0, answer: None }
    }

    /// Headers for the client.
    pub(in crate::transport) fn client_headers(&self, now: Time) -> Vec<Field> {
        self.answer.as_ref().map_or_else(Vec::new, |it| rate_limit::fields(&it.limits, it.credits, now))
    }
}

impl Denied {
    /// The status for a client that speaks gRPC, which knows fewer: by the verdict, whatever HTTP status is configured.
    pub(in crate::transport) const fn grpc_code(&self) -> Code {
        match self.answer.verdict.http_status() {
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            _ => Code::ResourceExhausted,
        }
    }

    /// Why, in a sentence.
    pub(in crate::transport) fn message(&self) -> String {
        verdict::message(&self.answer)
    }

    /// Headers for the client, but for those of the body.
    pub(in crate::transport) fn client_headers(&self, settings: &Settings, now: Time) -> Vec<Field> {
        let Answer { limits, credits, retry_after_millis, .. } = &self.answer;
        let mut fields = rate_limit::fields(limits, *credits, now);
        if let Some(challenge) = self.challenge(&settings.realm) {
            fields.push(("www-authenticate", challenge));
        }
        if let Some(millis) = retry_after_millis {
            let seconds = rate_limit::seconds_until(now.plus_millis(*millis), now).max(1);
            fields.push(("retry-after", seconds.to_string()));
        }
        // A shared cache must not serve one client's denial to another.
        fields.push(("cache-control", "no-store".to_owned()));
        fields
    }

    /// `WWW-Authenticate` (RFC 6750, section 3): with a 401 always, and where a scope is missing. A request without a
    /// credential is told of no error (section 3.1).
    fn challenge(&self, realm: &str) -> Option<String> {
        let Answer { verdict, missing_scopes, .. } = &self.answer;
        let error = match (verdict, verdict.http_status()) {
            (Verdict::Missing, _) => return Some(format!("Bearer realm=\"{realm}\"")),
            (Verdict::ScopeDenied, _) => "insufficient_scope",
            (_, 401) => "invalid_token",
            _ => return None,
        };
        let description = quotable(&self.message());
        let scope = if *verdict == Verdict::ScopeDenied {
            format!(", scope=\"{}\"", quotable(&missing_scopes.join(" ")))
        } else {
            String::new()
        };
        Some(format!("Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{description}\"{scope}"))
    }

    /// The body and its content type.
    pub(in crate::transport) fn body(&self, format: MessageFormat, request_id: &str) -> (&'static str, String) {
        let Answer { verdict, .. } = self.answer;
        let message = self.message();
        Page { status: self.status, title: verdict::title(verdict), code: verdict.name(), message: &message }
            .write(format, request_id)
    }
}

impl Fault {
    /// The body and its content type.
    pub(in crate::transport) fn body(&self, format: MessageFormat, request_id: &str) -> (&'static str, String) {
        let title = "Authorization unavailable";
        Page { status: self.http_status(), title, code: self.code(), message: self.message() }.write(format, request_id)
    }
}

/// What a client reads, in the order in which it reads it.
struct Page<'a> {
    status: u16,
    title: &'a str,
    code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Json<'a> {
    error: &'a str,
    code: &'a str,
    message: &'a str,
    request_id: &'a str,
}

/// RFC 9457, with two members of our own.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: &'a str,
}

impl Page<'_> {
    fn write(&self, format: MessageFormat, request_id: &str) -> (&'static str, String) {
        let Self { status, title, code, message } = *self;
        // Text in a struct can't fail to be written.
        match format {
            MessageFormat::Json => {
                let page = Json { error: title, code, message, request_id };
                ("application/json", serde_json::to_string(&page).unwrap_or_default())
            }
            MessageFormat::Problem => {
                let page = Problem { r#type: "about:blank", title, status, detail: message, code, request_id };
                ("application/problem+json", serde_json::to_string(&page).unwrap_or_default())
            }
        }
    }
}

/// A text as it may stand between quotes in a header.
fn quotable(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') && c != '"' && c != '\\' { c } else { '\'' }).collect()
}

/// A value as it may stand in a header: visible ASCII and spaces. Everything that is told is made of such, and this holds
/// it to that: a line break would be a header of the sender's choice.
pub(in crate::transport) fn header_value(mut value: String) -> String {
    if !value.bytes().all(|b| matches!(b, b' '..=b'~')) {
        value = value.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_header_breaks_nothing() {
        for (value, header, quoted) in [
            ("plain ~text!", "plain ~text!", "plain ~text!"),
            ("a\r\nset-cookie: x=1", "a??set-cookie: x=1", "a''set-cookie: x=1"),
            ("nul\0tab\tdel\u{7f}", "nul?tab?del?", "nul'tab'del'"),
            ("\u{e9}\u{2028}\u{1F511}", "???", "'''"),
            ("\"quoted\" back\\slash", "\"quoted\" back\\slash", "'quoted' back'slash"),
        ] {
            assert_eq!(header_value(value.to_owned()), header);
            assert_eq!(quotable(value), quoted);
        }
    }
}

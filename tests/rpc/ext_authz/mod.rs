//! `envoy.service.auth.v3.Authorization/Check`, message by message. What the real Envoy makes of the answers is held in
//! `tests/edges`.

mod callers;
mod outcomes;
mod policy;
mod retries;

use std::collections::BTreeMap;

use prost_types::value::Kind;
use tollgate::proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use tollgate::proto::envoy::config::core::v3::{
    Address, HeaderMap, HeaderValue, HeaderValueOption, SocketAddress, address,
};
use tollgate::proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use tollgate::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tollgate::proto::envoy::service::auth::v3::check_response::HttpResponse;
use tollgate::proto::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use tonic::Status;

use crate::harness::Server;

/// Names with their values.
pub(crate) type Pairs<'a> = &'a [(&'static str, &'a str)];

/// A request as Envoy tells it, with the headers as they were sent.
pub(crate) fn request(headers: &[(&str, &str)], policy: &[(&str, &str)]) -> CheckRequest {
    let header = |(name, value): &(&str, &str)| HeaderValue {
        key: (*name).to_owned(),
        value: String::new(),
        raw_value: value.as_bytes().to_vec(),
    };
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: "/v1/tasks?page=2".to_owned(),
        host: "api.example.com".to_owned(),
        header_map: Some(HeaderMap { headers: headers.iter().map(header).collect() }),
        ..HttpRequest::default()
    };
    let socket = address::Address::SocketAddress(SocketAddress { address: "192.0.2.7".to_owned() });
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer { address: Some(Address { address: Some(socket) }) }),
            request: Some(Request { http: Some(http) }),
            context_extensions: policy.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        }),
    }
}

/// A request with this key.
pub(crate) fn with_key(secret: &str, policy: &[(&str, &str)]) -> CheckRequest {
    request(&[("authorization", &format!("Bearer {secret}"))], policy)
}

/// The part of it that is the client's.
pub(crate) fn http(request: &mut CheckRequest) -> &mut HttpRequest {
    request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap()
}

/// Asks with this metadata.
pub(crate) async fn ask_with(
    server: &Server,
    metadata: &[(&'static str, &str)],
    request: CheckRequest,
) -> Result<CheckResponse, Status> {
    let mut call = tonic::Request::new(request);
    for (name, value) in metadata {
        call.metadata_mut().append(*name, value.parse().unwrap());
    }
    Ok(AuthorizationClient::new(server.channel.clone()).check(call).await?.into_inner())
}

/// Asks as an Envoy with the operator's key.
pub(crate) async fn ask(server: &Server, request: CheckRequest) -> CheckResponse {
    let authorization = format!("Bearer {}", server.operator_secret);
    ask_with(server, &[("authorization", &authorization)], request).await.unwrap()
}

/// Which of the answers it is.
#[derive(Debug)]
pub(crate) enum Outcome {
    Allowed(OkHttpResponse),
    Denied(DeniedHttpResponse),
    Failed(DeniedHttpResponse),
}

/// The answer, whose code has to agree with it.
pub(crate) fn outcome(answer: &CheckResponse) -> Outcome {
    let code = answer.status.as_ref().expect("an answer without a status lets the request pass").code;
    match (code, answer.http_response.clone()) {
        (0, Some(HttpResponse::OkResponse(ok))) => Outcome::Allowed(ok),
        (1.., Some(HttpResponse::DeniedResponse(denied))) => Outcome::Denied(denied),
        (1.., Some(HttpResponse::ErrorResponse(failed))) => Outcome::Failed(failed),
        other => panic!("code and answer do not agree: {other:?}"),
    }
}

pub(crate) fn allowed(answer: &CheckResponse) -> OkHttpResponse {
    let Outcome::Allowed(ok) = outcome(answer) else { panic!("{answer:?}") };
    ok
}

/// The HTTP status, the headers and the body of a denial.
pub(crate) fn denied(answer: &CheckResponse) -> (i32, BTreeMap<String, String>, String) {
    let Outcome::Denied(denied) = outcome(answer) else { panic!("{answer:?}") };
    (denied.status.unwrap().code, headers(&denied.headers), denied.body)
}

/// The same of a fault.
pub(crate) fn failed(answer: &CheckResponse) -> (i32, BTreeMap<String, String>, String) {
    let Outcome::Failed(failed) = outcome(answer) else { panic!("{answer:?}") };
    (failed.status.unwrap().code, headers(&failed.headers), failed.body)
}

/// Headers by name; each takes the place of what was there, for any Envoy.
pub(crate) fn headers(options: &[HeaderValueOption]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for option in options {
        assert_eq!(option.append, Some(false), "{option:?}");
        assert_eq!(option.append_action(), HeaderAppendAction::OverwriteIfExistsOrAdd, "{option:?}");
        let header = option.header.clone().unwrap();
        assert!(header.value.bytes().all(|b| (b' '..=b'~').contains(&b)), "{header:?}");
        assert!(found.insert(header.key.clone(), header.value).is_none(), "{} is there twice", header.key);
    }
    found
}

/// A field of the dynamic metadata, as text.
pub(crate) fn metadata(answer: &CheckResponse, name: &str) -> Option<String> {
    let kind = answer.dynamic_metadata.as_ref()?.fields.get(name)?.kind.clone()?;
    if let Kind::NumberValue(number) = kind {
        return Some(number.to_string());
    }
    let Kind::StringValue(text) = kind else { panic!("{kind:?}") };
    Some(text)
}

/// The verdict that an answer tells of.
pub(crate) fn verdict(answer: &CheckResponse) -> String {
    metadata(answer, "verdict").unwrap_or_default()
}

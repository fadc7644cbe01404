//! The policy of a route, from the URL that the operator gave the proxy, and from the headers that this URL names.

use std::borrow::Cow;

use axum::http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::forwarded::{Forwarded, single};
use crate::domain::shown;
use crate::transport::edge::{Fault, POLICY_NAMES, Policy, PolicyBuilder};

/// The query parameter that names the settings which stand in headers.
const HEADERS: &str = "headers";

/// A name and a value.
type Setting<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Settings as they were told.
#[derive(Debug)]
pub(super) struct Told<'a>(Vec<Setting<'a>>);

impl<'a> Told<'a> {
    pub(super) fn read(query: &'a str, headers: &'a HeaderMap, forwarded: &Forwarded<'_>) -> Result<Self, Fault> {
        let mut settings = pairs(query)?;
        require_own(&settings, forwarded)?;
        let named = settings.iter().position(|(name, _)| name == HEADERS).map(|place| settings.remove(place).1);
        let named: Vec<&str> = named.as_deref().map_or_else(Vec::new, |named| named.split(',').collect());
        if let Some(wrong) = named.iter().find(|name| !POLICY_NAMES.contains(name)) {
            return Err(Fault::Policy(format!(
                "`{HEADERS}` names `{}`, which is no setting of a policy",
                shown(wrong)
            )));
        }
        for name in POLICY_NAMES {
            let header = format!("x-tollgate-{}", name.replace('_', "-"));
            match (named.contains(&name), headers.contains_key(&header)) {
                (false, false) => {}
                (true, _) => {
                    let absent = || Fault::Policy(format!("the URL names `{name}`, and there is no `{header}`"));
                    let value = single(headers, &header)?.ok_or_else(absent)?;
                    settings.push((name.into(), value.into()));
                }
                // A client could have sent it.
                (false, true) => {
                    return Err(Fault::Policy(format!(
                        "there is a header `{header}`, which the proxy's URL does not name: `/v1/check?{HEADERS}={name}`"
                    )));
                }
            }
        }
        Ok(Self(settings))
    }

    pub(super) fn policy(&self) -> Result<Policy<'_>, Fault> {
        let mut policy = PolicyBuilder::default();
        for (name, value) in &self.0 {
            policy.set(name, value)?;
        }
        Ok(policy.build())
    }
}

/// Refuses settings that the client may have written: some proxies hand the client's query on to the check, or a part of it.
fn require_own(settings: &[Setting<'_>], forwarded: &Forwarded<'_>) -> Result<(), Fault> {
    // A server that gets the whole of it cuts our query where the `#` stands, and what follows it is lost.
    if forwarded.endpoint.path.is_some_and(|uri| uri.contains('#')) {
        return Err(Fault::Policy("the client's URI has a `#`, which no client sends".to_owned()));
    }
    if settings.is_empty() {
        return Ok(());
    }
    if forwarded.endpoint.path.is_none() {
        return Err(Fault::Policy(
            "the URL has a query, and there is no `x-forwarded-uri` that would tell it from the client's: have the proxy \
             send it"
                .to_owned(),
        ));
    }
    // A pair that can't be read is not what stands in ours.
    let mut of_client = forwarded.query().split('&').filter_map(|pair| decoded(pair).ok());
    match of_client.find(|pair| settings.contains(pair)) {
        None => Ok(()),
        Some((name, _)) => Err(Fault::Policy(format!(
            "`{}` stands in the client's own query too: the proxy may hand that on to `/v1/check`",
            shown(&name)
        ))),
    }
}

fn pairs(query: &str) -> Result<Vec<Setting<'_>>, Fault> {
    let pairs = || query.split('&').filter(|pair| !pair.is_empty());
    // No more than there are settings, so that none is compared with thousands.
    if pairs().nth(POLICY_NAMES.len() + 1).is_some() {
        return Err(Fault::Policy("the query of `/v1/check` has more settings than there are".to_owned()));
    }
    pairs().map(decoded).collect()
}

fn decoded(pair: &str) -> Result<Setting<'_>, Fault> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let text = |encoded| {
        let decoded = percent_decode_str(encoded).decode_utf8();
        decoded.map_err(|_| Fault::Policy("the query of `/v1/check` is not UTF-8".to_owned()))
    };
    Ok((text(name)?, text(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::restriction::Endpoint;

    fn cost(query: &str, headers: &[(&'static str, &str)], uri: Option<&str>) -> Result<u64, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let forwarded = Forwarded { client_ip: None, endpoint: Endpoint { path: uri, ..Endpoint::default() } };
        let told = Told::read(query, &map, &forwarded).map_err(|fault| fault.to_string())?;
        told.policy().map(|policy| policy.cost).map_err(|fault| fault.to_string())
    }

    #[test]
    fn the_query_and_the_headers_that_it_names_are_the_policy() {
        assert_eq!(cost("", &[], None), Ok(1));
        assert_eq!(cost("cost=5", &[], Some("/")), Ok(5));
        assert_eq!(cost("scopes=tasks%3Aread,a:b&cost=5", &[], Some("/x?page=2&cost=50&c=%zz")), Ok(5));
        assert_eq!(cost("headers=cost", &[("x-tollgate-cost", "7")], Some("/")), Ok(7));
        let both = [("x-tollgate-cost", "7"), ("x-tollgate-any-scopes", "a:b")];
        assert_eq!(cost("headers=cost,any_scopes&mode=peek", &both, Some("/")), Ok(7));
    }

    type Headers<'a> = &'a [(&'static str, &'a str)];

    #[test]
    fn what_a_client_can_write_steers_nothing() {
        let rows: [(&str, Headers<'_>, Option<&str>); 18] = [
            // The proxy hands on the client's query.
            ("mode=off", &[], Some("/tasks?mode=off")),
            ("mode=off", &[], Some("/tasks?mode=of%66&&")),
            ("mode=off", &[], Some("/tasks?mode=off&a;b&c=%zz")),
            ("mode=off", &[], Some("/tasks?mode=off#")),
            ("", &[], Some("/tasks?#&scopes=a:b")),
            ("a&a&a&a&a&a&a&a", &[], Some("/tasks")),
            ("mode=off", &[], Some("/tasks?mode=off#&page=2")),
            ("scopes=a:b&mode=off", &[], Some("/tasks?mode=off")),
            ("a=1&mode=off", &[], Some("/tasks?a=1&mode=off")),
            ("cost=0", &[], None),
            // Headers that the proxy does not set.
            ("", &[("x-tollgate-mode", "off")], Some("/")),
            ("headers=scopes", &[("x-tollgate-scopes", "a:b"), ("x-tollgate-mode", "off")], Some("/")),
            ("headers=cost", &[("x-tollgate-cost", "7"), ("x-tollgate-cost", "0")], Some("/")),
            ("headers=cost", &[], Some("/")),
            // What is not understood.
            ("headers=costs", &[], Some("/")),
            ("page=2", &[], Some("/")),
            ("cost=1&cost=1", &[], Some("/")),
            ("cost=5&headers=cost", &[("x-tollgate-cost", "7")], Some("/")),
        ];
        for (query, headers, uri) in rows {
            assert!(cost(query, headers, uri).is_err(), "{query} {headers:?} {uri:?}");
        }
    }
}

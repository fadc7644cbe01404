//! What a proxy tells of its client's request, in `X-Forwarded-*`.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::decision::restriction::{Endpoint, ip_allowed};
use crate::transport::edge::Fault;

/// A client's request, as its proxy tells it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Forwarded<'a> {
    pub(super) client_ip: Option<IpAddr>,
    /// The path has the query.
    pub(super) endpoint: Endpoint<'a>,
}

impl<'a> Forwarded<'a> {
    /// By somebody who is not to be believed: nothing is known but who that is. One that speaks for another is no client.
    pub(super) fn by(peer: IpAddr, headers: &HeaderMap) -> Self {
        let for_another = headers.contains_key("x-forwarded-for") || headers.contains_key("forwarded");
        Self { client_ip: (!for_another).then_some(peer), endpoint: Endpoint::default() }
    }

    /// From headers that are to be believed.
    pub(super) fn read(headers: &'a HeaderMap, trusted: &[IpNet]) -> Result<Self, Fault> {
        let endpoint = Endpoint {
            method: single(headers, "x-forwarded-method")?,
            host: single(headers, "x-forwarded-host")?,
            path: single(headers, "x-forwarded-uri")?,
        };
        Ok(Self { client_ip: client_ip(headers, trusted), endpoint })
    }

    /// The client's own query.
    pub(super) fn query(&self) -> &'a str {
        let query = self.endpoint.path.and_then(|uri| uri.split_once('?'));
        query.map_or("", |(_, query)| query)
    }
}

/// The value of a header that may be sent once. A second one could be the client's, beside the proxy's.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Fault> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Fault::Policy(format!("`{name}` is sent twice; have the proxy set it, not add to it")));
    }
    // What is no text counts as absent, and meets no restriction.
    Ok(first.and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty()))
}

/// The last address in `X-Forwarded-For` that is no proxy of ours: each proxy adds, at the end, whom it got the request
/// from, so that what stands before the first that we don't know is whatever the client wrote.
fn client_ip(headers: &HeaderMap, trusted: &[IpNet]) -> Option<IpAddr> {
    let mut outermost = None;
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        for item in value.to_str().ok()?.rsplit(',') {
            let ip = address(item.trim())?.to_canonical();
            if trusted.is_empty() || !ip_allowed(trusted, Some(ip)) {
                return Some(ip);
            }
            outermost = Some(ip);
        }
    }
    outermost
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_the_last_that_is_no_proxy_of_ours() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into();
        let rows: [(&[&str], Option<&str>); 11] = [
            (&[], None),
            (&["192.0.2.7"], Some("192.0.2.7")),
            (&["198.51.100.1, 192.0.2.7"], Some("192.0.2.7")),
            (&["198.51.100.1, 192.0.2.7, 10.1.2.3"], Some("192.0.2.7")),
            (&["198.51.100.1", "192.0.2.7", "10.1.2.3, 10.9.9.9"], Some("192.0.2.7")),
            (&["192.0.2.7:4711"], Some("192.0.2.7")),
            (&["[2001:db9::1]:443, 2001:db8::7"], Some("2001:db9::1")),
            (&["::ffff:10.0.0.1", "10.0.0.2"], Some("10.0.0.1")),
            (&["192.0.2.7, unknown"], None),
            (&["192.0.2.7,"], None),
            (&["evil, 192.0.2.7"], Some("192.0.2.7")),
        ];
        for (values, expected) in rows {
            let values: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let found = client_ip(&headers(&values), &trusted).map(|ip| ip.to_string());
            assert_eq!(found.as_deref(), expected, "{values:?}");
        }
    }

    #[test]
    fn a_header_that_is_sent_twice_is_a_fault() {
        for name in ["x-forwarded-method", "x-forwarded-host", "x-forwarded-uri"] {
            assert!(Forwarded::read(&headers(&[(name, "a"), (name, "a")]), &[]).is_err(), "{name}");
        }
        let headers = headers(&[("x-forwarded-uri", "/a?b=1&c"), ("x-forwarded-method", "GET")]);
        let forwarded = Forwarded::read(&headers, &[]).unwrap();
        assert_eq!((forwarded.endpoint.method, forwarded.query()), (Some("GET"), "b=1&c"));
    }
}

//! Whence and for what a key may be used: the patterns as they are written down. How a request is held against them
//! is `decision::restriction`.

use std::fmt;
use std::str::FromStr as _;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Invalid, caps, shown};

/// Lists that must be met where they are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restrictions {
    /// Networks of the client's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<IpNet>,
    /// Hosts of the `Referer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_referrers: Vec<ReferrerPattern>,
    /// Methods and paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_endpoints: Vec<EndpointPattern>,
}

impl Restrictions {
    /// A network in CIDR notation, or a single address. Bits beyond the prefix must be zero, so that nobody believes
    /// a network to be narrower than it is.
    pub fn parse_ip(text: &str) -> Result<IpNet, Invalid> {
        let net = match std::net::IpAddr::from_str(text) {
            Ok(address) => IpNet::from(address),
            Err(_) => IpNet::from_str(text).map_err(|_| {
                Invalid::new(format!(
                    "`{}` is neither an IP address nor a network such as `10.0.0.0/8` or `2001:db8::/32`",
                    shown(text)
                ))
            })?,
        };
        if net.trunc() != net {
            return Err(Invalid::new(format!(
                "`{}` has bits set beyond its prefix; did you mean `{}`?",
                shown(text),
                net.trunc()
            )));
        }
        Ok(net)
    }

    /// How many entries the longest list may have.
    pub(super) fn check_sizes(&self) -> Result<(), Invalid> {
        let max = caps::RESTRICTIONS_MAX;
        for (name, len) in [
            ("allowed_ips", self.allowed_ips.len()),
            ("allowed_referrers", self.allowed_referrers.len()),
            ("allowed_endpoints", self.allowed_endpoints.len()),
        ] {
            if len > max {
                return Err(Invalid::new(format!("`{name}` has {len} entries; at most {max} are allowed")));
            }
        }
        Ok(())
    }
}

/// A host, or all subdomains of one (`*.example.com`); lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReferrerPattern(Box<str>);

impl ReferrerPattern {
    /// From its text: DNS labels of letters, digits and `-`, the first of which may be `*`; up to 253 characters.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let host = text.strip_prefix("*.").unwrap_or(text);
        let label = |label: &str| {
            !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if text.len() > 253 || !host.split('.').all(label) {
            return Err(Invalid::new(format!(
                "`{}` is no host such as `example.com` or `*.example.com` (no scheme, port or path)",
                shown(text)
            )));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const ENDPOINT_BYTES_MAX: usize = 300;

/// A method, or `*`, and a path with wildcards, optionally with the host before it: `GET /v1/tasks/*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointPattern {
    method: Box<str>,
    host: Option<Box<str>>,
    path: Box<str>,
}

impl EndpointPattern {
    /// From its text. In the path `*` stands for any characters of one segment, and a last segment `**` for any
    /// number of segments.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (method, target) = text.split_once(' ').ok_or_else(|| endpoint_shape(text))?;
        let slash = target.find('/').ok_or_else(|| endpoint_shape(text))?;
        let (host, path) = target.split_at(slash);
        let method_ok =
            method == "*" || (!method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'));
        let host_ok = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
        let path_ok = path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b';' | b'\\'));
        if text.len() > ENDPOINT_BYTES_MAX || !method_ok || !host_ok || !path_ok {
            return Err(endpoint_shape(text));
        }
        let mut segments = path.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            let inside = segments.peek().is_some();
            let stars_misplaced = segment.contains("**") && (inside || segment != "**");
            if stars_misplaced || matches!(segment, "." | "..") || (segment.is_empty() && inside) {
                return Err(endpoint_shape(text));
            }
        }
        Ok(Self {
            method: method.into(),
            host: (!host.is_empty()).then(|| host.to_ascii_lowercase().into()),
            path: path.into(),
        })
    }

    /// The method, or `*`.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The host, lower case, where one is named.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The path with its wildcards.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

fn endpoint_shape(text: &str) -> Invalid {
    Invalid::new(format!(
        "`{}` is no endpoint such as `GET /v1/tasks/*`: a method in capitals or `*`, a space, and a path in which `*` stands \
         for characters of one segment and `**`, at the end, for any segments; no query, empty or dot segments; up to \
         {ENDPOINT_BYTES_MAX} characters",
        shown(text)
    ))
}

impl fmt::Display for EndpointPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.method, self.host.as_deref().unwrap_or_default(), self.path)
    }
}

impl From<EndpointPattern> for String {
    fn from(pattern: EndpointPattern) -> Self {
        pattern.to_string()
    }
}

impl TryFrom<String> for EndpointPattern {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_exact() {
        assert_eq!(Restrictions::parse_ip("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(Restrictions::parse_ip("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(Restrictions::parse_ip("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/8", "10.0.0", "::/129", "localhost", "10.0.0.0/8 "] {
            assert!(Restrictions::parse_ip(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_and_endpoints_as_they_are_written() {
        assert_eq!(ReferrerPattern::parse("*.Example.com").unwrap().as_str(), "*.example.com");
        for wrong in [
            "",
            "*",
            "*.",
            "https://example.com",
            "example.com:8080",
            "example.com/",
            "a..b",
            "ex*mple.com",
            "exämple.com",
        ] {
            assert!(ReferrerPattern::parse(wrong).is_err(), "{wrong}");
        }
        for right in [
            "GET /v1/tasks/*",
            "* /**",
            "POST /a.B/C",
            "GET api.example.com/v1/",
            "GET /",
            "GET /v1/*.json",
            "M-SEARCH /x",
        ] {
            assert_eq!(EndpointPattern::parse(right).unwrap().to_string(), right);
        }
        for wrong in [
            "",
            "GET",
            "/v1",
            "get /v1",
            "GET v1",
            "GET /v1?x=1",
            "GET /v1/../x",
            "GET //x",
            "GET /**/x",
            "GET /a**",
            "GET /a;b",
            "GET /a b",
            "GET /ä",
            "GET  /a",
            "G*T /a",
        ] {
            assert!(EndpointPattern::parse(wrong).is_err(), "{wrong}");
        }
    }
}

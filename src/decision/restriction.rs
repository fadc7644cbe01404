//! Holding a request against a key's restrictions.
//!
//! Each list that is not empty must be met, and what the request does not tell meets nothing. A path is compared as it
//! was sent, so one that another server would read differently (dot segments, empty segments, escaped separators,
//! path parameters) is refused rather than interpreted.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::domain::{EndpointPattern, ReferrerPattern};

/// Whether the address lies in one of the networks. An IPv4 address in IPv6 clothing counts as what it is.
#[must_use]
pub fn ip_allowed(allowed: &[IpNet], client: Option<IpAddr>) -> bool {
    allowed.is_empty() || client.is_some_and(|client| allowed.iter().any(|net| net.contains(&client.to_canonical())))
}

/// Whether the host of the referrer, a URL or a bare host, is one of those allowed.
#[must_use]
pub fn referrer_allowed(allowed: &[ReferrerPattern], referrer: Option<&str>) -> bool {
    if allowed.is_empty() {
        return true;
    }
    let Some(host) = referrer.and_then(referrer_host) else { return false };
    allowed.iter().any(|pattern| match pattern.as_str().strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => host == pattern.as_str(),
    })
}

/// The host of a URL, or of what is a bare host; lower case, without port and final dot. Absent where it is in doubt: a
/// referrer never holds user information (RFC 9110, 10.1.3), so one that does is a trick.
fn referrer_host(referrer: &str) -> Option<String> {
    let rest = match referrer.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") => rest,
        Some(_) => return None,
        None => referrer,
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        Some(_) => return None,
        None => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    plain.then(|| host.to_ascii_lowercase())
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endpoint<'a> {
    /// HTTP method.
    pub method: Option<&'a str>,
    /// The `Host`.
    pub host: Option<&'a str>,
    /// Path, with or without a query.
    pub path: Option<&'a str>,
}

/// Whether method, host and path are among those allowed.
#[must_use]
pub fn endpoint_allowed(allowed: &[EndpointPattern], endpoint: Endpoint<'_>) -> bool {
    if allowed.is_empty() {
        return true;
    }
    let (Some(method), Some(path)) = (endpoint.method, endpoint.path) else { return false };
    let path = path.split('?').next().unwrap_or_default();
    path_is_plain(path)
        && allowed.iter().any(|pattern| {
            (pattern.method() == "*" || pattern.method() == method)
                && pattern.host().is_none_or(|host| endpoint.host.is_some_and(|asked| asked.eq_ignore_ascii_case(host)))
                && path_matches(pattern.path(), path)
        })
}

/// Whether every server reads this path alike.
fn path_is_plain(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else { return false };
    if !path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b';' | b'#')) || !escapes_are_plain(path) {
        return false;
    }
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let inside = segments.peek().is_some();
        if matches!(segment, "." | "..") || (segment.is_empty() && inside) {
            return false;
        }
    }
    true
}

/// Whether what is percent-encoded could not have stood there unencoded (RFC 3986, 6.2.2.2), separates nothing, and is
/// not itself the sign of an escape.
fn escapes_are_plain(path: &str) -> bool {
    // Bytes that are no UTF-8 could be another spelling of what is refused below, for a server that reads them so.
    if percent_encoding::percent_decode_str(path).decode_utf8().is_err() {
        return false;
    }
    path.split('%').skip(1).all(|escape| {
        let Some(byte) = escape.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) else { return false };
        let unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        !(unreserved || byte.is_ascii_control() || matches!(byte, b'/' | b'\\' | b'%' | b';' | b'?' | b'#'))
    })
}

fn path_matches(pattern: &str, path: &str) -> bool {
    let mut patterns = pattern.split('/').skip(1);
    let mut segments = path.split('/').skip(1);
    loop {
        match (patterns.next(), segments.next()) {
            (Some("**"), _) | (None, None) => return true,
            (Some(pattern), Some(segment)) if segment_matches(pattern, segment) => {}
            (Some(_), _) | (None, Some(_)) => return false,
        }
    }
}

/// `*` stands for any characters, and for at least one where it is the whole segment. Linear in the length for each
/// star: a mismatch goes back to the last star alone.
fn segment_matches(pattern: &str, segment: &str) -> bool {
    if pattern == "*" {
        return !segment.is_empty();
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| segment.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let nets = ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().unwrap());
        let rows = [
            (Some("10.1.2.3"), true),
            (Some("11.1.2.3"), false),
            (Some("2001:db8::1"), true),
            (Some("2001:db9::1"), false),
            (Some("::ffff:10.1.2.3"), true),
            (Some("::ffff:11.1.2.3"), false),
            (None, false),
        ];
        for (client, expected) in rows {
            assert_eq!(ip_allowed(&nets, client.map(|text| text.parse().unwrap())), expected, "{client:?}");
        }
        assert!(ip_allowed(&[], None));
    }

    #[test]
    fn referrers() {
        let allowed = ["example.com", "*.app.example.com"].map(|host| ReferrerPattern::parse(host).unwrap());
        let rows = [
            ("https://example.com/path?x=1", true),
            ("HTTPS://Example.COM", true),
            ("https://example.com:8443/", true),
            ("https://example.com./", true),
            ("example.com", true),
            ("https://a.app.example.com/", true),
            ("https://a.b.app.example.com/", true),
            ("https://app.example.com/", false),
            ("https://evilapp.example.com/", false),
            ("https://www.example.com/", false),
            ("https://example.com.evil.net/", false),
            ("https://example.com@evil.net/", false),
            ("https://evil.net/?https://example.com/", false),
            ("https://evil.net/https://example.com", false),
            ("https://evil.net#example.com", false),
            ("https://evil.net\\.example.com", false),
            ("ftp://example.com/", false),
            ("https://", false),
            ("", false),
        ];
        for (referrer, expected) in rows {
            assert_eq!(referrer_allowed(&allowed, Some(referrer)), expected, "{referrer}");
        }
        assert!(!referrer_allowed(&allowed, None));
        assert!(referrer_allowed(&[], None));
    }

    fn allows(pattern: &str, method: &str, path: &str) -> bool {
        let pattern = EndpointPattern::parse(pattern).unwrap();
        endpoint_allowed(&[pattern], Endpoint { method: Some(method), host: Some("api.example.com"), path: Some(path) })
    }

    #[test]
    fn endpoints() {
        let rows = [
            ("GET /v1/tasks/*", "GET", "/v1/tasks/7", true),
            ("GET /v1/tasks/*", "GET", "/v1/tasks/7?all=/../x", true),
            ("GET /v1/tasks/*", "POST", "/v1/tasks/7", false),
            ("GET /v1/tasks/*", "get", "/v1/tasks/7", false),
            ("GET /v1/tasks/*", "GET", "/v1/tasks", false),
            ("GET /v1/tasks/*", "GET", "/v1/tasks/", false),
            ("GET /v1/tasks/*", "GET", "/v1/tasks/7/notes", false),
            ("GET /v1/tasks/*", "GET", "/V1/tasks/7", false),
            ("* /v1/**", "DELETE", "/v1/a/b/c", true),
            ("* /v1/**", "GET", "/v1", true),
            ("* /v1/**", "GET", "/v1/", true),
            ("* /v1/**", "GET", "/v12", false),
            ("* /**", "GET", "/", true),
            ("GET /files/*.json", "GET", "/files/a.b.json", true),
            ("GET /files/*.json", "GET", "/files/a.jsonx", false),
            ("GET /files/a*b*c", "GET", "/files/aXbYbZc", true),
            ("GET /files/a*b*c", "GET", "/files/ac", false),
            ("GET /", "GET", "/", true),
            ("GET api.example.com/v1/*", "GET", "/v1/x", true),
            ("GET other.example.com/v1/*", "GET", "/v1/x", false),
            ("GET /v1/*", "GET", "/v1/caf%C3%A9", true),
            ("GET /v1/*", "GET", "/v1/a%20b", true),
        ];
        for (pattern, method, path, expected) in rows {
            assert_eq!(allows(pattern, method, path), expected, "{pattern} against {method} {path}");
        }
    }

    #[test]
    fn paths_that_servers_read_differently_match_nothing() {
        for path in [
            "/v1/../admin",
            "/v1/./x",
            "/v1//x",
            "//v1/x",
            "/v1/%2e%2e/admin",
            "/v1/%2Fadmin",
            "/v1/%5cadmin",
            "/v1/a%00",
            "/v1/..;/admin",
            "/v1/a;b",
            "/v1\\admin",
            "/v1/%61dmin",
            "/v1/%2561dmin",
            "/v1/%c0%ae%c0%ae%c0%afadmin",
            "/v1/%ff",
            "/v1/%zz",
            "/v1/%4",
            "/v1/a b",
            "/v1/é",
            "/v1/a#b",
            "/v1/%3fx",
            "v1/x",
            "http://h/v1/x",
            "*",
            "",
        ] {
            assert!(!allows("* /**", "GET", path), "{path}");
        }
    }

    #[test]
    fn what_is_not_told_is_not_allowed() {
        let allowed = [EndpointPattern::parse("* h/**").unwrap()];
        let told = Endpoint { method: Some("GET"), host: Some("h"), path: Some("/") };
        assert!(endpoint_allowed(&allowed, told));
        for lacking in [
            Endpoint { method: None, ..told },
            Endpoint { host: None, ..told },
            Endpoint { host: Some("h,evil"), ..told },
            Endpoint { path: None, ..told },
        ] {
            assert!(!endpoint_allowed(&allowed, lacking), "{lacking:?}");
        }
    }
}

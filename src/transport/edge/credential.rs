//! The one credential of a request.
//!
//! A request with two is refused: which of them the upstream, a log or another proxy would take for the client's is not
//! ours to guess (RFC 6750, section 2, forbids more than one method as well).

/// Longest value that is looked at, so that a flood of large headers costs no more than others.
const VALUE_BYTES_MAX: usize = 1_024;

/// What a request has for a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Credential<'a> {
    /// None at all.
    Absent,
    /// One that may be a key.
    One { key: &'a str, place: Place<'a> },
    /// Several, or one that can't be a key.
    Unclear,
}

/// Where a credential stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transport) enum Place<'a> {
    /// In the header of this name.
    Header(&'a str),
    /// In the query parameter of this name.
    Query(&'a str),
}

/// Looks for the credential in the headers and the path of a request, in any order.
#[derive(Debug)]
pub(in crate::transport) struct Search<'a> {
    headers: &'a [String],
    query: Option<&'a str>,
    found: Credential<'a>,
    /// An `Authorization` of another scheme: it is for somebody else, or a mistake where there is no key beside it.
    other_scheme: bool,
}

impl<'a> Search<'a> {
    /// In `Authorization`, in these headers, and in this query parameter.
    pub(in crate::transport) fn new(headers: &'a [String], query: Option<&'a str>) -> Self {
        Self { headers, query, found: Credential::Absent, other_scheme: false }
    }

    /// Looks at a header. Its name is in lower case.
    pub(in crate::transport) fn header(&mut self, name: &[u8], value: &'a [u8]) {
        if name == b"authorization" {
            match bearer(value) {
                Some(key) => self.add(key, Place::Header("authorization")),
                None => self.other_scheme = true,
            }
        } else if let Some(known) = self.headers.iter().find(|known| known.as_bytes() == name) {
            self.add(value, Place::Header(known));
        }
    }

    /// Looks at the query of a path, if keys may stand there.
    pub(in crate::transport) fn path(&mut self, path: &'a str) {
        let Some(name) = self.query else { return };
        let Some((_, query)) = path.split_once('?') else { return };
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        for pair in query.split('&') {
            let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
            if found == name {
                self.add(value.as_bytes(), Place::Query(name));
            }
        }
    }

    fn add(&mut self, value: &'a [u8], place: Place<'a>) {
        let key = plain(value).filter(|_| self.found == Credential::Absent);
        self.found = key.map_or(Credential::Unclear, |key| Credential::One { key, place });
    }

    /// What was found.
    pub(in crate::transport) fn finish(self) -> Credential<'a> {
        if self.found == Credential::Absent && self.other_scheme { Credential::Unclear } else { self.found }
    }
}

/// What stands after `Bearer ` (RFC 6750, section 2.1); the scheme in any case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer");
    match rest {
        [] if is_bearer => Some(rest),
        [b' ', key @ ..] if is_bearer => Some(key),
        _ => None,
    }
}

/// A value that can be one key: printable ASCII without comma, which joins several headers into one.
fn plain(value: &[u8]) -> Option<&str> {
    let possible = !value.is_empty() && value.len() <= VALUE_BYTES_MAX;
    let plain = possible && value.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'"'));
    if plain { std::str::from_utf8(value).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search<'a>(headers: &[(&str, &'a str)], path: &'a str) -> Credential<'a> {
        static NAMES: std::sync::LazyLock<Vec<String>> =
            std::sync::LazyLock::new(|| vec!["x-api-key".to_owned(), "x-key".to_owned()]);
        let mut search = Search::new(&NAMES, Some("api_key"));
        for (name, value) in headers {
            search.header(name.as_bytes(), value.as_bytes());
        }
        search.path(path);
        search.finish()
    }

    type Headers<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn one_credential_is_found_wherever_it_may_stand() {
        let header = |key, name| Credential::One { key, place: Place::Header(name) };
        let query = |key| Credential::One { key, place: Place::Query("api_key") };
        let rows: [(Headers<'_>, &str, Credential<'_>); 9] = [
            (&[], "/", Credential::Absent),
            (&[("accept", "*/*")], "/?x=1&apikey=1", Credential::Absent),
            (&[("authorization", "Bearer a-key")], "/", header("a-key", "authorization")),
            (&[("authorization", "bEARER a-key")], "/", header("a-key", "authorization")),
            (&[("x-api-key", "a-key")], "/", header("a-key", "x-api-key")),
            (&[("x-key", "1|a:key")], "/", header("1|a:key", "x-key")),
            (&[], "/v1?a=1&api_key=a-key#api_key=b", query("a-key")),
            (&[("authorization", "Basic dTpw"), ("x-api-key", "a-key")], "/", header("a-key", "x-api-key")),
            (&[("x-api-key", "a-key"), ("authorization", "Negotiate x")], "/", header("a-key", "x-api-key")),
        ];
        for (headers, path, expected) in rows {
            assert_eq!(search(headers, path), expected, "{headers:?} {path}");
        }
    }

    #[test]
    fn two_credentials_are_none() {
        let long = "a".repeat(VALUE_BYTES_MAX + 1);
        let rows: [(Headers<'_>, &str); 17] = [
            (&[("authorization", "Bearer a"), ("authorization", "Bearer b")], "/"),
            (&[("authorization", "Bearer a"), ("authorization", "Bearer a")], "/"),
            (&[("authorization", "Bearer a,Bearer b")], "/"),
            (&[("authorization", "Bearer a"), ("x-api-key", "a")], "/"),
            (&[("x-api-key", "a"), ("x-key", "b")], "/"),
            (&[("x-api-key", "a,b")], "/"),
            (&[("x-api-key", "a"), ("x-api-key", "b")], "/"),
            (&[("x-api-key", "")], "/"),
            (&[("x-api-key", "a b")], "/"),
            (&[("x-api-key", "ä")], "/"),
            (&[("x-api-key", long.as_str())], "/"),
            (&[("authorization", "Bearer")], "/"),
            (&[("authorization", "Bearer  a")], "/"),
            (&[("authorization", "Basic dTpw")], "/"),
            (&[], "/?api_key=a&api_key=b"),
            (&[], "/?api_key"),
            (&[("x-api-key", "a")], "/?api_key=b"),
        ];
        for (headers, path) in rows {
            assert_eq!(search(headers, path), Credential::Unclear, "{headers:?} {path}");
        }
    }
}

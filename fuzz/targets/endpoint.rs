//! An endpoint pattern allows what its description says, and never a path that servers read differently.
//!
//! An input is lines: a pattern, a method, a host, and a path, which is the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::decision::restriction::{Endpoint, endpoint_allowed};
use tollgate::domain::EndpointPattern;

fuzz_target!(|input: &str| {
    let mut lines = input.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (pattern, method, host, path) = (line(), line(), line(), line());
    let endpoint = Endpoint { method: Some(method), host: Some(host), path: Some(path) };
    let anything = [EndpointPattern::parse("* /**").unwrap()];
    let plain = endpoint_allowed(&anything, endpoint);
    assert!(!(plain && is_ambiguous(path)), "{path:?} is taken for plain");

    let Ok(pattern) = EndpointPattern::parse(pattern) else { return };
    assert_eq!(EndpointPattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    let allowed = endpoint_allowed(std::slice::from_ref(&pattern), endpoint);
    assert_eq!(allowed, plain && model(&pattern, method, host, path), "{pattern} {endpoint:?}");
    for silent in [Endpoint { method: None, ..endpoint }, Endpoint { path: None, ..endpoint }] {
        assert!(!endpoint_allowed(std::slice::from_ref(&pattern), silent));
    }
});

/// Whether there is a server that takes this path for another than it looks.
fn is_ambiguous(path: &str) -> bool {
    let path = path.split('?').next().unwrap();
    let lower = path.to_ascii_lowercase();
    let marks = ["/../", "/./", "//", "%2f", "%2e", "%5c", "%25", "%3b", "%00", "\\", ";", "#"];
    !path.starts_with('/')
        || marks.iter().any(|mark| lower.contains(mark))
        || lower.ends_with("/..")
        || lower.ends_with("/.")
        || path.bytes().any(|b| !(0x21..=0x7e).contains(&b))
        || path
            .match_indices('%')
            .any(|(at, _)| !path[at + 1..].bytes().take(2).filter(u8::is_ascii_hexdigit).count().eq(&2))
}

/// The rule once more, character by character and slowly.
fn model(pattern: &EndpointPattern, method: &str, host: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap();
    let patterns: Vec<&str> = pattern.path().split('/').skip(1).collect();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (patterns, any_more) = match patterns.split_last() {
        Some((&"**", before)) => (before, true),
        _ => (patterns.as_slice(), false),
    };
    let lengths = if any_more { patterns.len() <= segments.len() } else { patterns.len() == segments.len() };
    (pattern.method() == "*" || pattern.method() == method)
        && pattern.host().is_none_or(|wanted| wanted == host.to_ascii_lowercase())
        && lengths
        && patterns.iter().zip(&segments).all(|(pattern, segment)| {
            glob(pattern.as_bytes(), segment.as_bytes()) && !(*pattern == "*" && segment.is_empty())
        })
}

/// Whether the pattern can be read as the text: row by row, which of its beginnings match the text so far.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut row: Vec<bool> = (0..=pattern.len()).map(|i| pattern[..i].iter().all(|&b| b == b'*')).collect();
    for &byte in text {
        let mut next = vec![false; row.len()];
        for (i, &part) in pattern.iter().enumerate() {
            next[i + 1] = if part == b'*' { next[i] || row[i + 1] } else { row[i] && part == byte };
        }
        row = next;
    }
    row[pattern.len()]
}

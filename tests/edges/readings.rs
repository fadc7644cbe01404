//! Paths that servers read in several ways, and what the most generous of them reads.

/// Spellings of a path below which a policy holds.
pub(crate) fn spellings(path: &str) -> Vec<String> {
    let (head, tail) = path.rsplit_once('/').unwrap();
    let first = tail.chars().next().map(u32::from).unwrap();
    let rest = tail.get(1..).unwrap();
    vec![
        path.to_owned(),
        format!("{path}/"),
        format!("{path}/7"),
        format!("{path};x"),
        format!("{path};x/7"),
        format!("{path}%3bx"),
        format!("{path}?x=1"),
        format!("{path}%3fx=1"),
        format!("{path}%23"),
        format!("{path}%20"),
        format!("{path}%00"),
        format!("{path}%2f"),
        format!("{path}%5c"),
        format!("{path}\\7"),
        format!("{path}//"),
        format!("{path}/."),
        format!("/{path}"),
        format!("/.{path}"),
        format!("{head}//{tail}"),
        format!("{head}/./{tail}"),
        format!("{head}/x/../{tail}"),
        format!("{head};x/{tail}"),
        format!("{head}/;/{tail}"),
        format!("{head}/..;{path}"),
        format!("{head}%2f{tail}"),
        format!("{head}%5c{tail}"),
        format!("{head}/%{first:02x}{rest}"),
        format!("{head}/%25{first:02x}{rest}"),
        format!("{head}/%2525{first:02x}{rest}"),
        format!("/public/..{path}"),
        format!("/public/..;{path}"),
        format!("/public/..;x=y{path}"),
        format!("/public/%2e%2e{path}"),
        format!("/public/%2e%2e;{path}"),
        format!("/public/.%2e%2f{path}"),
        format!("/public/..%2f{path}"),
        format!("/public/..%5c{path}"),
        format!("/public/%252e%252e{path}"),
        format!("/public/..\\{path}"),
        format!("/public;/..{path}"),
        format!("/healthz/..{path}"),
        format!("/healthz/..;{path}"),
        format!("/healthz;/..{path}"),
        format!("/healthz%2f..{path}"),
        path.to_uppercase(),
        format!("{}/{}", head.to_uppercase(), tail),
        format!("http://other.example{path}"),
        format!("http://other.example/public/..;{path}"),
    ]
}

/// What a server makes of a path that decodes it as often as it can, in small letters, forgets what stands behind a `;`, and then
/// resolves dots.
pub(crate) fn generous(target: &str) -> String {
    let mut path = target.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    loop {
        let decoded = percent_encoding::percent_decode_str(&path).decode_utf8_lossy().into_owned();
        if decoded == path {
            break;
        }
        path = decoded;
    }
    let path = path.replace('\\', "/");
    let mut segments = Vec::new();
    for segment in path.split(['?', '#', '\0']).next().unwrap_or_default().split('/') {
        match segment.split(';').next().unwrap_or_default().trim() {
            "" | "." => {}
            ".." => _ = segments.pop(),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[test]
fn the_generous_reading() {
    for (target, read) in [
        ("/v1/tasks?x=/admin", "/v1/tasks"),
        ("//V1;x/%2574asks/..;y/./tasks;z", "/v1/tasks"),
        ("/public/%252e%252e\\admin%00.html", "/admin"),
        ("/../..", "/"),
    ] {
        assert_eq!(generous(target), read, "{target}");
    }
}

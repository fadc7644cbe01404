//! A client of HTTP/1.1 that sends what it is told, byte for byte.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::support::{PATIENCE, command, run, text, tool};

/// A request as it is to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: String,
}

/// GET of a target, which is sent as it stands.
pub(crate) fn get(target: &str) -> Call {
    call("GET", target)
}

pub(crate) fn call(method: &str, target: &str) -> Call {
    Call { method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: String::new() }
}

impl Call {
    /// One more header, also of a name that was sent before.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn bearer(self, key: &str) -> Self {
        self.header("Authorization", format!("Bearer {key}"))
    }

    pub(crate) fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    pub(crate) fn send(&self, addr: SocketAddr) -> Answer {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            bytes.extend_from_slice(b"Host: api.example.com\r\n");
        }
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        if !self.body.is_empty() {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"Connection: close\r\n\r\n");
        bytes.extend_from_slice(self.body.as_bytes());
        exchange(addr, &bytes, self.method == "HEAD")
    }
}

fn exchange(addr: SocketAddr, request: &[u8], head_only: bool) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Who refuses a request may close before it has read all of it.
    _ = stream.write_all(request);
    let (mut bytes, mut piece) = (Vec::new(), [0; 16 << 10]);
    // Not to the end of the connection, which an edge that is done with a client leaves open for a while.
    while !is_whole(&bytes, head_only) {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    }
    Answer::parse(&String::from_utf8_lossy(&bytes))
}

/// Whether this is all of an answer, as far as its head tells.
fn is_whole(bytes: &[u8], head_only: bool) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    head_only || length.is_some_and(|length| body.len() >= length) || (length.is_none() && body.ends_with("0\r\n\r\n"))
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// As they came, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// From the text of one response.
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: `{text}`"));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("no header `{line}` in `{text}`")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status: status.unwrap(), headers, body: body.to_owned() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = dechunked(body);
        }
        answer
    }

    /// The value of a header that may come once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str());
        let value = found.next();
        assert_eq!(found.next(), None, "`{name}` twice: {self:?}");
        value
    }

    /// A header that must be a number.
    pub(crate) fn number(&self, name: &str) -> i64 {
        let value = self.header(name).unwrap_or_else(|| panic!("no `{name}`: {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("`{name}` is no number: {self:?}"))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// A denial as Tollgate words it.
    #[track_caller]
    pub(crate) fn assert_denied(&self, status: u16, code: &str, error: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        assert_eq!((body["code"].as_str(), body["error"].as_str()), (Some(code), Some(error)), "{self:?}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
    }
}

fn dechunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        let (chunk, rest) = rest.split_at(size);
        text.push_str(chunk);
        body = rest.strip_prefix("\r\n").unwrap();
    }
    text
}

/// What curl shows of the head and the body of an answer.
pub(crate) fn curl(arguments: &[&str]) -> Option<Answer> {
    let curl = tool("TOLLGATE_TEST_CURL", "curl")?;
    let output =
        run(command(curl).args(["--silent", "--show-error", "--include", "--max-time", "60"]).args(arguments), "");
    Some(Answer::parse(&text(&output)))
}

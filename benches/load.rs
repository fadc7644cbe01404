//! Asks a server of Envoy's external authorization the same question many times, as fast as it answers, and takes little
//! of a core to do so. `make bench` runs it.
//!
//! ```sh
//! cargo run --release --example load -- HOST:PORT MESSAGE_FILE CALLS [ID] < HEADERS
//! ```
//!
//! The file holds one framed `CheckRequest`. `ID` is a number that stands in it as text, Envoy's number of the stream: it is
//! counted up, so that no call looks like another one that is sent again. The headers are read from standard input, a line
//! each, because there is a secret among them.
//!
//! It speaks just enough HTTP/2 for this, since a whole client costs as much as the server that is measured. It fails at the
//! first answer that does not let the request pass.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 32;
const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
const USAGE: &str = "usage: load HOST:PORT MESSAGE_FILE CALLS [ID] < HEADERS";

/// Bytes before a gRPC message.
const MESSAGE_HEAD_BYTES: usize = 5;
/// How an answer begins that lets the request pass: with an empty `status`, whose code then is 0.
const PASS: &[u8] = &[0x0a, 0x00];

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, file, calls, rest @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let message = std::fs::read(file)?;
    let number = rest.first().map(|id| Number::find(&message, id)).transpose()?;
    let headers = std::io::read_to_string(std::io::stdin())?;
    let load = Load {
        address: address.clone(),
        heads: heads(address, &headers)?,
        message,
        number,
        calls: calls.parse()?,
        next: AtomicU64::new(0),
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(Arc::new(load)))
}

async fn run(load: Arc<Load>) -> Result<(), Failure> {
    let mut connections = JoinSet::new();
    for _ in 0..CONNECTIONS {
        connections.spawn(Connection::new(Arc::clone(&load)).run());
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    Ok(())
}

/// What is sent.
struct Load {
    address: String,
    /// The headers of a connection's first call, and of those that follow it.
    heads: [Vec<u8>; 2],
    message: Vec<u8>,
    number: Option<Number>,
    calls: u64,
    next: AtomicU64,
}

/// Where the number stands in the message, and where it begins.
struct Number {
    at: usize,
    digits: usize,
    first: u64,
}

impl Number {
    fn find(message: &[u8], text: &str) -> Result<Self, Failure> {
        let at = message.windows(text.len()).position(|bytes| bytes == text.as_bytes());
        Ok(Self { at: at.ok_or("the message does not hold the id")?, digits: text.len(), first: text.parse()? })
    }

    fn write(&self, message: &mut [u8], turn: u64) {
        let mut rest = self.first.wrapping_add(turn);
        for place in message.iter_mut().skip(self.at).take(self.digits).rev() {
            *place = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
    }
}

// The headers: HPACK, RFC 7541.

/// All of them as new entries of the connection's table, and then by their places in it.
fn heads(address: &str, headers: &str) -> Result<[Vec<u8>; 2], Failure> {
    // `:method: POST` and `:scheme: http` are in the table that every connection begins with.
    let (mut first, mut next) = (vec![0x83, 0x86], vec![0x83, 0x86]);
    let own = [(":path", PATH), (":authority", address), ("content-type", "application/grpc"), ("te", "trailers")];
    let given = headers.lines().map(|line| line.split_once(": ").ok_or("a header is `name: value`"));
    let given = given.collect::<Result<Vec<_>, _>>()?;
    let all: Vec<_> = own.into_iter().chain(given).collect();
    for (place, (name, value)) in all.iter().enumerate() {
        first.push(0x40);
        for text in [name, value] {
            integer(&mut first, 0x7f, text.len())?;
            first.extend_from_slice(text.as_bytes());
        }
        // The newest entry is the 62nd.
        let entry = u8::try_from(61 + all.len() - place)?;
        next.push(0x80 | entry);
    }
    Ok([first, next])
}

fn integer(out: &mut Vec<u8>, prefix: u8, value: usize) -> Result<(), Failure> {
    let Some(mut rest) = value.checked_sub(usize::from(prefix)) else {
        out.push(u8::try_from(value)?);
        return Ok(());
    };
    out.push(prefix);
    while rest > 0x7f {
        out.push(u8::try_from(rest & 0x7f)? | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest)?);
    Ok(())
}

// The frames: RFC 9113, section 6.

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const FRAME_HEAD_BYTES: usize = 9;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What each side may send before the other one says more.
const WINDOW_AT_FIRST: u32 = 65_535;
/// What the server may send, and what it is given anew when half of it is gone.
const WINDOW: u32 = 1 << 30;
const READ_BYTES: usize = 64 << 10;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Bytes,
}

/// The next frame, if it is there as a whole.
fn frame(buffer: &mut BytesMut) -> Option<Frame> {
    let (mut head, _) = buffer.split_at_checked(FRAME_HEAD_BYTES)?;
    let length = usize::try_from(head.get_uint(3)).ok()?;
    let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
    if buffer.len() < FRAME_HEAD_BYTES + length {
        return None;
    }
    buffer.advance(FRAME_HEAD_BYTES);
    Some(Frame { kind, flags, stream, payload: buffer.split_to(length).freeze() })
}

/// One connection, with its calls.
struct Connection {
    load: Arc<Load>,
    out: BytesMut,
    stream: u32,
    /// Calls that were asked and have not ended, and those of them that have their answer.
    in_flight: usize,
    answered: usize,
    /// Bytes that may be sent, and that were received since the window was last opened.
    window: u32,
    received: u32,
    all_asked: bool,
}

impl Connection {
    fn new(load: Arc<Load>) -> Self {
        let out = BytesMut::with_capacity(READ_BYTES);
        let window = WINDOW_AT_FIRST;
        Self { load, out, stream: 1, in_flight: 0, answered: 0, window, received: 0, all_asked: false }
    }

    async fn run(mut self) -> Result<(), Failure> {
        let mut socket = TcpStream::connect(&self.load.address).await?;
        socket.set_nodelay(true)?;
        self.out.put_slice(PREFACE);
        self.put(SETTINGS, 0, 0, &[]);
        self.put(WINDOW_UPDATE, 0, 0, &(WINDOW - WINDOW_AT_FIRST).to_be_bytes());
        let mut buffer = BytesMut::new();
        loop {
            self.ask();
            if self.all_asked && self.in_flight == 0 {
                return if self.answered == 0 { Ok(()) } else { Err("there are more answers than calls".into()) };
            }
            socket.write_all(&self.out).await?;
            self.out.clear();
            buffer.reserve(READ_BYTES);
            if socket.read_buf(&mut buffer).await? == 0 {
                return Err("the server has closed the connection".into());
            }
            while let Some(frame) = frame(&mut buffer) {
                self.take(&frame)?;
            }
        }
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out.put_uint(u64::try_from(payload.len()).unwrap_or(0), 3);
        self.out.put_u8(kind);
        self.out.put_u8(flags);
        self.out.put_u32(stream);
        self.out.put_slice(payload);
    }

    /// As many calls as the streams have room for.
    fn ask(&mut self) {
        let load = Arc::clone(&self.load);
        let bytes = u32::try_from(load.message.len()).unwrap_or(u32::MAX);
        while !self.all_asked && self.in_flight < STREAMS && bytes <= self.window {
            let turn = load.next.fetch_add(1, Ordering::Relaxed);
            if turn >= load.calls {
                self.all_asked = true;
                return;
            }
            let [first, next] = &load.heads;
            self.put(HEADERS, END_HEADERS, self.stream, if self.stream == 1 { first } else { next });
            self.put(DATA, END_STREAM, self.stream, &load.message);
            let start = self.out.len() - load.message.len();
            if let (Some(number), Some(message)) = (&load.number, self.out.get_mut(start..)) {
                number.write(message, turn);
            }
            self.stream += 2;
            self.window -= bytes;
            self.in_flight += 1;
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<(), Failure> {
        match frame.kind {
            DATA => self.answer(&frame.payload)?,
            HEADERS if frame.flags & END_STREAM != 0 => {
                let answered = self.answered.checked_sub(1).ok_or("a call ended without an answer")?;
                (self.answered, self.in_flight) = (answered, self.in_flight - 1);
            }
            SETTINGS if frame.flags & ACK == 0 => self.put(SETTINGS, ACK, 0, &[]),
            PING if frame.flags & ACK == 0 => self.put(PING, ACK, 0, &frame.payload),
            WINDOW_UPDATE if frame.stream == 0 => {
                self.window = self.window.saturating_add(frame.payload.clone().try_get_u32()?);
            }
            RST_STREAM | GOAWAY => return Err("the server has broken off".into()),
            _ => {}
        }
        Ok(())
    }

    /// An answer is short enough to be one frame.
    fn answer(&mut self, payload: &[u8]) -> Result<(), Failure> {
        if !payload.get(MESSAGE_HEAD_BYTES..).is_some_and(|message| message.starts_with(PASS)) {
            return Err(format!("an answer lets no request pass: {:?}", String::from_utf8_lossy(payload)).into());
        }
        self.answered += 1;
        self.received += u32::try_from(payload.len())?;
        if self.received > WINDOW / 2 {
            self.put(WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
            self.received = 0;
        }
        Ok(())
    }
}

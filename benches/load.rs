//! Asks a server of Envoy's external authorization the same question many times, as fast as it answers, and takes little
//! of a core to do so. `make bench` runs it.
//!
//! ```sh
//! cargo run --release --example load -- HOST:PORT MESSAGE_FILE CALLS [ID] < HEADERS
//! ```
//!
//! The file holds one framed `CheckRequest`. `ID` is a number that stands in it as text, Envoy's number of the stream: it is
//! counted up, so that no call looks like another one that is sent again. The headers are read from standard input, a line
//! each, because there is a secret among them. It fails at the first answer that does not let the request pass.

mod h2;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use h2::{Connection, Failure, Heads, READ_BYTES, frame};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 32;
const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
const USAGE: &str = "usage: load HOST:PORT MESSAGE_FILE CALLS [ID] < HEADERS";

/// How an answer begins that lets the request pass: with an empty `status`, whose code then is 0.
const PASS: &[u8] = &[0x0a, 0x00];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, file, calls, rest @ ..] = arguments.as_slice() else { return Err(USAGE.into()) };
    let message = std::fs::read(file)?;
    let number = rest.first().map(|id| Number::find(&message, id)).transpose()?;
    let headers = std::io::read_to_string(std::io::stdin())?;
    let load = Load {
        address: address.clone(),
        heads: Heads::new(address, PATH, &headers)?,
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
        connections.spawn(Lane::new(Arc::clone(&load)).run());
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    Ok(())
}

/// What is sent.
struct Load {
    address: String,
    heads: Heads,
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

/// One connection, and its own copy of the message.
struct Lane {
    load: Arc<Load>,
    message: Vec<u8>,
    connection: Connection,
    all_asked: bool,
}

impl Lane {
    fn new(load: Arc<Load>) -> Self {
        let message = load.message.clone();
        Self { load, message, connection: Connection::new(STREAMS, PASS), all_asked: false }
    }

    async fn run(mut self) -> Result<(), Failure> {
        let mut socket = TcpStream::connect(&self.load.address).await?;
        socket.set_nodelay(true)?;
        let mut buffer = BytesMut::new();
        loop {
            self.ask();
            if self.all_asked && self.connection.in_flight == 0 {
                return self.connection.end();
            }
            socket.write_all(&self.connection.out).await?;
            self.connection.out.clear();
            buffer.reserve(READ_BYTES);
            if socket.read_buf(&mut buffer).await? == 0 {
                return Err("the server has closed the connection".into());
            }
            while let Some(frame) = frame(&mut buffer) {
                self.connection.take(&frame)?;
            }
        }
    }

    /// As many calls as the streams have room for.
    fn ask(&mut self) {
        while !self.all_asked && self.connection.has_room(&self.message) {
            let turn = self.load.next.fetch_add(1, Ordering::Relaxed);
            if turn >= self.load.calls {
                self.all_asked = true;
                return;
            }
            if let Some(number) = &self.load.number {
                number.write(&mut self.message, turn);
            }
            self.connection.ask(&self.load.heads, &self.message);
        }
    }
}

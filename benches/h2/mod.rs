//! Just enough HTTP/2 to ask a gRPC server many times and take little of a core to do so, since a whole client costs as much as
//! the server that is measured. It fails at the first answer that does not begin as it should.

use std::error::Error;

use prost::bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

pub(crate) const READ_BYTES: usize = 64 << 10;
/// Bytes before a gRPC message.
const MESSAGE_HEAD_BYTES: usize = 5;

// The headers: HPACK, RFC 7541.

/// The headers of a connection's first call, and of those that follow it.
#[derive(Clone, Debug)]
pub(crate) struct Heads([Vec<u8>; 2]);

impl Heads {
    /// All of them as new entries of the connection's table, and then by their places in it. `headers` are `name: value`, a
    /// line each.
    pub(crate) fn new(address: &str, path: &str, headers: &str) -> Result<Self, Failure> {
        // `:method: POST` and `:scheme: http` are in the table that every connection begins with.
        let (mut first, mut next) = (vec![0x83, 0x86], vec![0x83, 0x86]);
        let own = [(":path", path), (":authority", address), ("content-type", "application/grpc"), ("te", "trailers")];
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
        Ok(Self([first, next]))
    }
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

pub(crate) struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Bytes,
}

/// The next frame, if it is there as a whole.
pub(crate) fn frame(buffer: &mut BytesMut) -> Option<Frame> {
    let (mut head, _) = buffer.split_at_checked(FRAME_HEAD_BYTES)?;
    let length = usize::try_from(head.get_uint(3)).ok()?;
    let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
    if buffer.len() < FRAME_HEAD_BYTES + length {
        return None;
    }
    buffer.advance(FRAME_HEAD_BYTES);
    Some(Frame { kind, flags, stream, payload: buffer.split_to(length).freeze() })
}

/// One connection, with its calls. The socket is the caller's.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What is to be sent.
    pub(crate) out: BytesMut,
    /// Calls that were asked and have not ended.
    pub(crate) in_flight: usize,
    /// Those of them that have their answer.
    answered: usize,
    streams_max: usize,
    stream: u32,
    /// Bytes that may be sent, and that were received since the window was last opened.
    window: u32,
    received: u32,
    /// How an answer begins.
    answer_begins: &'static [u8],
}

impl Connection {
    pub(crate) fn new(streams_max: usize, answer_begins: &'static [u8]) -> Self {
        let mut new = Self {
            out: BytesMut::with_capacity(READ_BYTES),
            in_flight: 0,
            answered: 0,
            streams_max,
            stream: 1,
            window: WINDOW_AT_FIRST,
            received: 0,
            answer_begins,
        };
        new.out.put_slice(PREFACE);
        new.put(SETTINGS, 0, 0, &[]);
        new.put(WINDOW_UPDATE, 0, 0, &(WINDOW - WINDOW_AT_FIRST).to_be_bytes());
        new
    }

    /// Whether there is room for another call with so large a message.
    pub(crate) fn has_room(&self, message: &[u8]) -> bool {
        self.in_flight < self.streams_max && u32::try_from(message.len()).is_ok_and(|bytes| bytes <= self.window)
    }

    /// Asks. Returns the number of the stream: 1, 3, 5 and so on.
    pub(crate) fn ask(&mut self, Heads([first, next]): &Heads, message: &[u8]) -> u32 {
        let stream = self.stream;
        self.put(HEADERS, END_HEADERS, stream, if stream == 1 { first } else { next });
        self.put(DATA, END_STREAM, stream, message);
        self.stream += 2;
        self.window = self.window.saturating_sub(u32::try_from(message.len()).unwrap_or(u32::MAX));
        self.in_flight += 1;
        stream
    }

    /// Takes a frame. Returns the stream that ended with it.
    pub(crate) fn take(&mut self, frame: &Frame) -> Result<Option<u32>, Failure> {
        match frame.kind {
            DATA => self.answer(&frame.payload)?,
            HEADERS if frame.flags & END_STREAM != 0 => {
                let answered = self.answered.checked_sub(1).ok_or("a call ended without an answer")?;
                (self.answered, self.in_flight) = (answered, self.in_flight - 1);
                return Ok(Some(frame.stream));
            }
            SETTINGS if frame.flags & ACK == 0 => self.put(SETTINGS, ACK, 0, &[]),
            PING if frame.flags & ACK == 0 => self.put(PING, ACK, 0, &frame.payload),
            WINDOW_UPDATE if frame.stream == 0 => {
                self.window = self.window.saturating_add(frame.payload.clone().try_get_u32()?);
            }
            RST_STREAM | GOAWAY => return Err("the server has broken off".into()),
            _ => {}
        }
        Ok(None)
    }

    /// To be called when nothing is in flight any more.
    pub(crate) fn end(&self) -> Result<(), Failure> {
        if self.answered == 0 { Ok(()) } else { Err("there are more answers than calls".into()) }
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.out.put_uint(u64::try_from(payload.len()).unwrap_or(0), 3);
        self.out.put_u8(kind);
        self.out.put_u8(flags);
        self.out.put_u32(stream);
        self.out.put_slice(payload);
    }

    /// An answer is short enough to be one frame.
    fn answer(&mut self, payload: &[u8]) -> Result<(), Failure> {
        if !payload.get(MESSAGE_HEAD_BYTES..).is_some_and(|message| message.starts_with(self.answer_begins)) {
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

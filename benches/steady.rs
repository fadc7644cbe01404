//! Checks many keys, each at a rate of its own, whether answers come or not, and tells how long they took from when they
//! were due. `make bench` runs it.
//!
//! ```sh
//! cargo run --release --example steady -- HOST:PORT SECONDS < LOAD
//! ```
//!
//! Standard input has the headers, a line each, an empty line, and then for each key a line with its calls a second and
//! the framed `CheckKeyRequest` in hexadecimal. The keys' calls are spread over time. It fails at the first answer that is not
//! ALLOWED, and else writes a line of JSON. It never sleeps, because a timer is less exact than what it measures.

mod h2;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use prost::bytes::{Buf as _, BytesMut};
use tollgate::ambient::Clock;

use h2::{Connection, Failure, Heads, READ_BYTES, frame};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
/// As many as the server allows, so that it is the server that lets calls wait.
const STREAMS: usize = 1_000;
const PATH: &str = "/tollgate.v1.KeyService/CheckKey";
const USAGE: &str = "usage: steady HOST:PORT SECONDS < LOAD";
/// How an answer begins: with `allowed`, which is true.
const PASS: &[u8] = &[0x08, 0x01];
/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Keys begin apart by this part of their interval, which spreads any number of them evenly.
const APART: f64 = 0.618_033_988_749_895;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().ok_or(USAGE);
    let (address, seconds): (String, f64) = (argument()?, argument()?.parse()?);
    let input = std::io::read_to_string(std::io::stdin())?;
    let (headers, keys) = input.split_once("\n\n").ok_or("an empty line is to follow the headers")?;
    let keys = keys.lines().map(Key::parse).collect::<Result<Vec<_>, _>>()?;
    let heads = Heads::new(&address, PATH, headers)?;
    let lanes = (0..CONNECTIONS).map(|_| Lane::connect(&address)).collect::<Result<Vec<_>, _>>()?;
    let found = Steady::new(keys, heads, lanes)?.run(Duration::try_from_secs_f64(seconds)?)?;
    say(&found);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is how the caller learns what was found")]
fn say(text: &str) {
    println!("{text}");
}

/// What is checked, and how often.
struct Key {
    interval: Duration,
    message: Vec<u8>,
}

impl Key {
    fn parse(line: &str) -> Result<Self, Failure> {
        let (rate, message) = line.split_once(' ').ok_or("a key is `RATE MESSAGE`")?;
        let interval = Duration::try_from_secs_f64(1.0 / rate.parse::<f64>()?)?;
        let digits = message.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(str::from_utf8(pair)?, 16)?));
        Ok(Self { interval, message: digits.collect::<Result<_, Failure>>()? })
    }
}

/// One connection.
struct Lane {
    socket: TcpStream,
    connection: Connection,
    buffer: BytesMut,
    /// When the calls that have not all ended were due, by their streams; absent of those that have.
    due: VecDeque<Option<Duration>>,
    /// The stream of the first of them.
    first: u32,
}

impl Lane {
    fn connect(address: &str) -> Result<Self, Failure> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let connection = Connection::new(STREAMS, PASS);
        Ok(Self { socket, connection, buffer: BytesMut::new(), due: VecDeque::new(), first: 1 })
    }

    fn ask(&mut self, heads: &Heads, key: &Key, due: Duration) {
        self.connection.ask(heads, &key.message);
        self.due.push_back(Some(due));
    }

    /// Sends what is to be sent, and takes what has come. `ended` is told when each call that ended was due.
    fn exchange(&mut self, scratch: &mut [u8], mut ended: impl FnMut(Duration)) -> Result<(), Failure> {
        let out = &mut self.connection.out;
        while !out.is_empty() {
            match self.socket.write(out) {
                Ok(sent) => out.advance(sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        match self.socket.read(scratch) {
            Ok(0) => return Err("the server has closed the connection".into()),
            Ok(bytes) => self.buffer.extend_from_slice(scratch.get(..bytes).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(frame) = frame(&mut self.buffer) {
            let Some(stream) = self.connection.take(&frame)? else { continue };
            let place = usize::try_from((stream - self.first) / 2)?;
            let due = self.due.get_mut(place).and_then(Option::take).ok_or("an answer to a call that was not asked")?;
            ended(due);
            while self.due.front().is_some_and(Option::is_none) {
                self.due.pop_front();
                self.first += 2;
            }
        }
        Ok(())
    }
}

struct Steady {
    keys: Vec<Key>,
    heads: Heads,
    lanes: Vec<Lane>,
    /// When each key is due, those that come first on top.
    schedule: BinaryHeap<Reverse<(Duration, usize)>>,
    clock: Clock,
    /// How long calls took from when they were due, and how late they were asked.
    took: Vec<Duration>,
    late: Vec<Duration>,
}

impl Steady {
    fn new(keys: Vec<Key>, heads: Heads, lanes: Vec<Lane>) -> Result<Self, Failure> {
        let mut schedule = BinaryHeap::new();
        for (place, key) in keys.iter().enumerate() {
            let part = (f64::from(u32::try_from(place)?) * APART).fract();
            schedule.push(Reverse((key.interval.mul_f64(part), place)));
        }
        let (took, late) = (Vec::new(), Vec::new());
        Ok(Self { keys, heads, lanes, schedule, clock: Clock::system(), took, late })
    }

    /// Asks for so long, and waits for the last answers.
    fn run(mut self, length: Duration) -> Result<String, Failure> {
        let mut scratch = vec![0; READ_BYTES];
        // Settings are exchanged before anything is due.
        self.clock = Clock::system();
        loop {
            let now = self.clock.monotonic();
            self.ask_due(now, length);
            let before = self.took.len();
            for lane in &mut self.lanes {
                lane.exchange(&mut scratch, |due| self.took.push(self.clock.monotonic().saturating_sub(due)))?;
            }
            let all_ended = self.lanes.iter().all(|lane| lane.connection.in_flight == 0);
            if now >= length && all_ended && self.next_due().is_none_or(|due| due >= length) {
                break;
            }
            if now > length + PATIENCE {
                return Err("the last answers don't come".into());
            }
            if self.took.len() == before {
                std::thread::yield_now();
            }
        }
        self.lanes.iter().try_for_each(|lane| lane.connection.end())?;
        Ok(self.found())
    }

    fn next_due(&self) -> Option<Duration> {
        self.schedule.peek().map(|Reverse((due, _))| *due)
    }

    /// Asks what is due, on one connection after the other. What finds no room is asked when there is some, and has been due
    /// since it was.
    fn ask_due(&mut self, now: Duration, length: Duration) {
        while let Some(Reverse((due, place))) = self.schedule.peek().copied() {
            let Some(key) = self.keys.get(place).filter(|_| due <= now && due < length) else { return };
            let Some(free) = self.lanes.iter().position(|lane| lane.connection.has_room(&key.message)) else { return };
            if let Some(lane) = self.lanes.get_mut(free) {
                lane.ask(&self.heads, key, due);
            }
            self.lanes.rotate_left(free + 1);
            self.late.push(now.saturating_sub(due));
            self.schedule.pop();
            self.schedule.push(Reverse((due + key.interval, place)));
        }
    }

    fn found(mut self) -> String {
        self.took.sort_unstable();
        self.late.sort_unstable();
        format!(
            r#"{{"sent": {}, "p50": {:.1}, "p99": {:.1}, "p999": {:.1}, "max": {:.1}, "late_p99": {:.1}}}"#,
            self.took.len(),
            micros(&self.took, 500),
            micros(&self.took, 990),
            micros(&self.took, 999),
            micros(&self.took, 1_000),
            micros(&self.late, 990),
        )
    }
}

/// Microseconds of what so many in a thousand stay below, of a sorted list.
fn micros(sorted: &[Duration], of_thousand: usize) -> f64 {
    let place = (sorted.len() * of_thousand / 1_000).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(0.0, |took| took.as_secs_f64() * 1e6)
}

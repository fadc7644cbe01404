//! A network between a replica and PostgreSQL that does what it is told: late, silent, or broken off.
//!
//! What is held back is kept and arrives later, as TCP sends again what was lost; to lose it for good, [`Proxy::cut`] the
//! connections.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Of its own, so that what a test does meanwhile is no reason for delay.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// What is read at once, and how many of those may be on their way in one direction.
const CHUNK_BYTES: usize = 16 << 10;
const CHUNKS_MAX: usize = 4_096;

/// What becomes of the bytes that go in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They arrive after so long.
    After(Duration),
    /// They don't, for now.
    Held,
}

impl Way {
    const OPEN: Self = Self::After(Duration::ZERO);
}

#[derive(Clone, Copy, Debug)]
struct State {
    upstream: SocketAddr,
    to_database: Way,
    from_database: Way,
    refuses: bool,
    /// Connections of earlier numbers are broken off.
    epoch: u64,
    /// Those of earlier numbers stay silent for good.
    alive: u64,
}

impl State {
    /// What becomes of bytes of a connection that began in this state.
    fn way(&self, now: &Self, way: Way) -> Way {
        if now.alive == self.alive { way } else { Way::Held }
    }
}

/// Listens on a port of its own until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    state: watch::Sender<State>,
}

impl Proxy {
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let open =
            State { upstream, to_database: Way::OPEN, from_database: Way::OPEN, refuses: false, epoch: 0, alive: 0 };
        let (state, watched) = watch::channel(open);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        RUNTIME.spawn(async move { accept(TcpListener::from_std(listener).unwrap(), watched).await });
        Self { addr, state }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections that stay silent, in both directions. New ones are taken, and stay silent too.
    pub(crate) fn black_hole(&self) {
        self.ways(Way::Held, Way::Held);
    }

    /// The database hears, and is not heard.
    pub(crate) fn half_open(&self) {
        self.ways(Way::OPEN, Way::Held);
    }

    /// Each direction takes so long.
    pub(crate) fn slow(&self, each: Duration) {
        self.ways(Way::After(each), Way::After(each));
    }

    fn ways(&self, to_database: Way, from_database: Way) {
        self.state.send_modify(|state| (state.to_database, state.from_database) = (to_database, from_database));
    }

    /// Breaks all connections off and takes no new ones.
    pub(crate) fn refuse(&self) {
        self.state.send_modify(|state| state.refuses = true);
        self.cut();
    }

    /// Breaks all connections off. What was on its way is lost.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.epoch += 1);
    }

    /// All connections that are there fall silent for good, and nobody is told; new ones work.
    pub(crate) fn lose(&self) {
        self.state.send_modify(|state| state.alive += 1);
    }

    /// All is well again. What was held back arrives.
    pub(crate) fn heal(&self) {
        self.state.send_modify(|state| state.refuses = false);
        self.ways(Way::OPEN, Way::OPEN);
    }

    /// New connections go there, and those that are there are broken off.
    pub(crate) fn turn_to(&self, upstream: SocketAddr) {
        self.state.send_modify(|state| state.upstream = upstream);
        self.cut();
    }
}

async fn accept(listener: TcpListener, watched: watch::Receiver<State>) {
    let mut ending = watched.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let state = *watched.borrow();
                if state.refuses {
                    reset(&client);
                } else {
                    tokio::spawn(carry(client, state, watched.clone()));
                }
            }
            // The proxy was dropped where there is nobody left to change anything.
            () = async { while ending.changed().await.is_ok() {} } => return,
        }
    }
}

/// So that the end of this connection is no orderly one.
fn reset(stream: &TcpStream) {
    _ = stream.set_zero_linger();
}

async fn carry(mut client: TcpStream, begun: State, watched: watch::Receiver<State>) {
    let mut own = watched.clone();
    let mut broken = watched.clone();
    let broken_off = broken.wait_for(|state| state.epoch != begun.epoch);
    // Where nothing passes, a connection to the database would be heard of there.
    let connect = async {
        _ = own.wait_for(|state| state.to_database != Way::Held).await;
        TcpStream::connect(begun.upstream).await
    };
    let mut database = tokio::select! {
        connected = connect => match connected {
            Ok(stream) => stream,
            Err(_) => return reset(&client),
        },
        _ = broken_off => return reset(&client),
    };
    _ = client.set_nodelay(true);
    _ = database.set_nodelay(true);
    let mut broken = watched.clone();
    let is_broken = {
        let (from_client, to_client) = client.split();
        let (from_database, to_database) = database.split();
        let ways = async {
            tokio::join!(
                pass(from_client, to_database, watched.clone(), |state| begun.way(state, state.to_database)),
                pass(from_database, to_client, watched.clone(), |state| begun.way(state, state.from_database)),
            );
        };
        tokio::select! {
            () = ways => false,
            _ = broken.wait_for(|state| state.epoch != begun.epoch) => true,
        }
    };
    if is_broken {
        reset(&client);
        reset(&database);
    }
}

/// Carries bytes, and then the end, in one direction.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut watched: watch::Receiver<State>,
    way: impl Fn(&State) -> Way,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now(), buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((sent, bytes)) = receiver.recv().await {
            arrival(sent, &mut watched, &way).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        arrival(Instant::now(), &mut watched, &way).await;
        _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Waits until what was sent then arrives, as the network is and comes to be.
async fn arrival(sent: Instant, watched: &mut watch::Receiver<State>, way: &impl Fn(&State) -> Way) {
    loop {
        let now = way(&watched.borrow_and_update());
        match now {
            Way::After(delay) if sent.elapsed() >= delay => return,
            Way::After(delay) => {
                tokio::select! {
                    () = tokio::time::sleep_until(sent + delay) => {}
                    _ = watched.changed() => {}
                }
            }
            Way::Held => {
                if watched.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

mod tests {
    use super::*;
    use crate::support::GLANCE;

    /// Sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        addr
    }

    async fn ask(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        stream.write_u8(byte).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn passes_holds_and_delays() {
        let proxy = Proxy::start(echo().await);
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await.unwrap(), 1);
        proxy.slow(GLANCE * 4);
        let begun = Instant::now();
        assert_eq!(ask(&mut stream, 2).await.unwrap(), 2);
        assert!(begun.elapsed() >= GLANCE * 8);
        for hold in [Proxy::black_hole, Proxy::half_open] {
            hold(&proxy);
            let silent = tokio::time::timeout(GLANCE * 20, ask(&mut stream, 3)).await;
            assert!(silent.is_err());
            let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
            assert!(tokio::time::timeout(GLANCE * 20, ask(&mut new, 4)).await.is_err());
            proxy.heal();
            assert_eq!((stream.read_u8().await.unwrap(), new.read_u8().await.unwrap()), (3, 4));
        }
    }

    #[tokio::test]
    async fn loses_what_is_there_and_nothing_new() {
        let proxy = Proxy::start(echo().await);
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await.unwrap(), 1);
        proxy.lose();
        assert!(tokio::time::timeout(GLANCE * 20, ask(&mut stream, 2)).await.is_err());
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut new, 3).await.unwrap(), 3);
        proxy.heal();
        assert!(tokio::time::timeout(GLANCE * 20, ask(&mut stream, 4)).await.is_err());
    }

    #[tokio::test]
    async fn breaks_off_refuses_and_turns() {
        let proxy = Proxy::start(echo().await);
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await.unwrap(), 1);
        proxy.black_hole();
        _ = stream.write_u8(2).await;
        proxy.cut();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        proxy.refuse();
        proxy.heal();
        proxy.refuse();
        // Which of its steps is the first to hear of it is up to the system.
        let refused = async { ask(&mut TcpStream::connect(proxy.addr()).await?, 3).await };
        assert!(refused.await.is_err());
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        proxy.turn_to(other.local_addr().unwrap());
        proxy.heal();
        let mut turned = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut upstream, _) = other.accept().await.unwrap();
        upstream.write_u8(9).await.unwrap();
        assert_eq!(turned.read_u8().await.unwrap(), 9);
    }
}

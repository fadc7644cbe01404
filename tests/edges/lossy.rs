//! A wire between Envoy and Tollgate that breaks when an answer comes: the call was made, and its caller does not know.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const HEADERS: u8 = 1;

#[derive(Debug)]
pub(crate) struct Lossy {
    pub(crate) addr: SocketAddr,
    to_lose: Arc<AtomicUsize>,
}

impl Lossy {
    /// To an address that speaks HTTP/2 in the clear.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let to_lose = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&to_lose);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else { continue };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || copy(from, to));
                let count = Arc::clone(&count);
                std::thread::spawn(move || answers(server, client, &count));
            }
        });
        Self { addr, to_lose }
    }

    /// Loses the next answers, each with its connection.
    pub(crate) fn lose(&self, answers: usize) {
        self.to_lose.store(answers, Ordering::SeqCst);
    }

    /// How many are still to be lost.
    pub(crate) fn left(&self) -> usize {
        self.to_lose.load(Ordering::SeqCst)
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    _ = std::io::copy(&mut from, &mut to);
    _ = to.shutdown(Shutdown::Both);
}

/// Hands on frame by frame, until one begins an answer that is to be lost.
fn answers(mut server: TcpStream, mut client: TcpStream, to_lose: &AtomicUsize) {
    let mut head = [0; 9];
    while server.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length.try_into().unwrap()];
        let lost = head[3] == HEADERS
            && to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok();
        if lost || server.read_exact(&mut payload).is_err() {
            break;
        }
        if client.write_all(&[&head[..], &payload].concat()).is_err() {
            break;
        }
    }
    _ = client.shutdown(Shutdown::Both);
    _ = server.shutdown(Shutdown::Both);
}

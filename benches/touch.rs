//! Checks each of many keys once, over the wire: for the memory that keys take once they were used, and for the price of a
//! check whose key is in no cache. `make bench` runs it.
//!
//! ```sh
//! echo "$TOKEN" | cargo run --release --example touch -- HOST:PORT SECRET_PREFIX KEYS
//! ```
//!
//! The secrets are the prefix and a number from 0 of seven digits. The caller's key is read from standard input. It fails at
//! the first answer that is not ALLOWED.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::{CheckKeyRequest, Verdict};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 32;
/// Far enough from each other that no two that follow share a cache line, and without a common divisor with any number of
/// keys that is not a multiple of it.
const STRIDE: usize = 7_919;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().ok_or("usage: touch HOST:PORT SECRET_PREFIX KEYS");
    let (endpoint, prefix, keys) = (format!("http://{}", argument()?), argument()?, argument()?.parse()?);
    let token = std::io::read_to_string(std::io::stdin())?;
    let token = format!("Bearer {}", token.trim()).parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(endpoint, Touch { token, prefix, keys, next: AtomicUsize::new(0) }))
}

struct Touch {
    token: MetadataValue<Ascii>,
    prefix: String,
    keys: usize,
    next: AtomicUsize,
}

async fn run(endpoint: String, touch: Touch) -> Result<(), Failure> {
    let touch = Arc::new(touch);
    let mut streams = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let channel = Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true).connect().await?;
        for _ in 0..STREAMS {
            streams.spawn(Arc::clone(&touch).stream(KeyServiceClient::new(channel.clone())));
        }
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    Ok(())
}

impl Touch {
    /// One check after the other, until all keys have been taken.
    async fn stream(self: Arc<Self>, mut client: KeyServiceClient<Channel>) -> Result<(), Failure> {
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            if turn >= self.keys {
                return Ok(());
            }
            let number = turn.wrapping_mul(STRIDE) % self.keys;
            let key = format!("{}{number:07}", self.prefix);
            let message = CheckKeyRequest { key, all_of: vec!["tasks:read".to_owned()], ..CheckKeyRequest::default() };
            let mut request = Request::new(message);
            request.metadata_mut().insert("authorization", self.token.clone());
            let answer = client.check_key(request).await?.into_inner();
            if answer.verdict() != Verdict::Allowed {
                return Err(format!("key {number} is {}", answer.verdict().as_str_name()).into());
            }
        }
    }
}

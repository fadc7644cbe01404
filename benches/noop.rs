//! What a gRPC server costs that decides nothing: the reference that `make bench` holds Tollgate against.
//!
//! It is tonic's own server as most people run it at its best: one thread with a current-thread runtime, `TCP_NODELAY`, the
//! allocator and the build profile of Tollgate. It decodes every `CheckKeyRequest` and encodes the same
//! `CheckKeyResponse`, which it reads at its start from a file: one gRPC message, as a server sent it.
//!
//! ```sh
//! cargo run --release --example noop -- ANSWER_FILE      # prints its address, then serves until it is killed
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message as _;
use tollgate::proto::v1::{CheckKeyRequest, CheckKeyResponse};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes before a gRPC message: whether it is compressed, and its length.
const FRAME_HEAD_BYTES: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("which file holds the answer?")?;
    let frame = std::fs::read(path)?;
    let message = frame.get(FRAME_HEAD_BYTES..).ok_or("the file holds no gRPC message")?;
    let answer = Arc::new(CheckKeyResponse::decode(message)?);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(Noop { answer }))
}

async fn serve(noop: Noop) -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into())?.with_nodelay(Some(true));
    say(&incoming.local_addr()?.to_string());
    Server::builder().add_service(noop).serve_with_incoming(incoming).await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is how the caller learns the address")]
fn say(text: &str) {
    println!("{text}");
}

/// `tollgate.v1.KeyService` with one call, written as tonic generates it.
#[derive(Clone, Debug)]
struct Noop {
    answer: Arc<CheckKeyResponse>,
}

impl NamedService for Noop {
    const NAME: &'static str = "tollgate.v1.KeyService";
}

impl tower::Service<http::Request<Body>> for Noop {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let noop = self.clone();
        Box::pin(async move {
            if request.uri().path() == "/tollgate.v1.KeyService/CheckKey" {
                Ok(Grpc::new(ProstCodec::default()).unary(noop, request).await)
            } else {
                Ok(Status::unimplemented("only CheckKey is served").into_http())
            }
        })
    }
}

impl UnaryService<CheckKeyRequest> for Noop {
    type Response = CheckKeyResponse;
    type Future = BoxFuture<Response<CheckKeyResponse>, Status>;

    fn call(&mut self, _: Request<CheckKeyRequest>) -> Self::Future {
        let answer = CheckKeyResponse::clone(&self.answer);
        Box::pin(async move { Ok(Response::new(answer)) })
    }
}

//! What a gRPC server costs that decides nothing: the reference that `make bench` holds Tollgate against.
//!
//! It is tonic's own server as most people run it at its best: one thread with a current-thread runtime, `TCP_NODELAY`, the
//! allocator and the build profile of Tollgate. It serves two calls: `CheckKey`, and the Check of Envoy's external
//! authorization. It decodes every request in full and encodes the same answer each time, which it reads at its start from
//! a file: one gRPC message, as Tollgate sent it.
//!
//! ```sh
//! cargo run --release --example noop -- CHECK_KEY_ANSWER CHECK_ANSWER      # prints its address, then serves until it is killed
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::task::{Context, Poll};

use prost::Message;
use tollgate::proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
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
    let mut files = std::env::args_os().skip(1);
    let mut file = || files.next().ok_or("usage: noop CHECK_KEY_ANSWER CHECK_ANSWER");
    let keys = Noop::<CheckKey>::answering(&std::fs::read(file()?)?)?;
    let edges = Noop::<Check>::answering(&std::fs::read(file()?)?)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(keys, edges))
}

async fn serve(keys: Noop<CheckKey>, edges: Noop<Check>) -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into())?.with_nodelay(Some(true));
    say(&incoming.local_addr()?.to_string());
    Server::builder().add_service(keys).add_service(edges).serve_with_incoming(incoming).await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is how the caller learns the address")]
fn say(text: &str) {
    println!("{text}");
}

/// A call that is served.
trait Call: Send + Sync + 'static {
    const SERVICE: &'static str;
    const PATH: &'static str;
    type Question: Message + Default + Send + 'static;
    type Answer: Message + Default + Clone + Send + Sync + 'static;
}

#[derive(Debug)]
enum CheckKey {}

impl Call for CheckKey {
    const SERVICE: &'static str = "tollgate.v1.KeyService";
    const PATH: &'static str = "/tollgate.v1.KeyService/CheckKey";
    type Question = CheckKeyRequest;
    type Answer = CheckKeyResponse;
}

#[derive(Debug)]
enum Check {}

impl Call for Check {
    const SERVICE: &'static str = "envoy.service.auth.v3.Authorization";
    const PATH: &'static str = "/envoy.service.auth.v3.Authorization/Check";
    type Question = CheckRequest;
    type Answer = CheckResponse;
}

/// A service with one call, written as tonic generates it.
struct Noop<C: Call> {
    answer: Arc<C::Answer>,
    call: PhantomData<C>,
}

impl<C: Call> Noop<C> {
    fn answering(frame: &[u8]) -> Result<Self, Box<dyn Error>> {
        let message = frame.get(FRAME_HEAD_BYTES..).ok_or("the file holds no gRPC message")?;
        Ok(Self { answer: Arc::new(C::Answer::decode(message)?), call: PhantomData })
    }
}

impl<C: Call> Clone for Noop<C> {
    fn clone(&self) -> Self {
        Self { answer: Arc::clone(&self.answer), call: PhantomData }
    }
}

impl<C: Call> NamedService for Noop<C> {
    const NAME: &'static str = C::SERVICE;
}

impl<C: Call> tower::Service<http::Request<Body>> for Noop<C> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let noop = self.clone();
        Box::pin(async move {
            if request.uri().path() == C::PATH {
                Ok(Grpc::new(ProstCodec::default()).unary(noop, request).await)
            } else {
                Ok(Status::unimplemented("only one call of this service is served").into_http())
            }
        })
    }
}

impl<C: Call> UnaryService<C::Question> for Noop<C> {
    type Response = C::Answer;
    type Future = BoxFuture<Response<C::Answer>, Status>;

    fn call(&mut self, _: Request<C::Question>) -> Self::Future {
        let answer = C::Answer::clone(&self.answer);
        Box::pin(async move { Ok(Response::new(answer)) })
    }
}

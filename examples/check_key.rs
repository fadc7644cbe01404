//! Asks Tollgate whether the API key on standard input may read tasks, as a service would for each request.
//!
//! ```sh
//! echo "$KEY" | TOLLGATE_TOKEN=sk_live_… cargo run --example check_key
//! ```
//!
//! It takes the client from this crate. A service of its own compiles it from `proto/` with `tonic-prost-build`.
#![allow(clippy::print_stdout, clippy::allow_attributes, reason = "an example talks; a test uses it as a module")]

use std::error::Error;
use std::time::Duration;

use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::{CheckKeyRequest, CheckKeyResponse};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// May this key read tasks? An error is no admission.
///
/// # Errors
///
/// Where the server can't be reached, or can't know in time.
pub async fn check_key(
    mut client: KeyServiceClient<Channel>,
    token: &str,
    key: &str,
) -> Result<CheckKeyResponse, Box<dyn Error>> {
    let check = CheckKeyRequest { key: key.into(), all_of: vec!["tasks:read".into()], ..Default::default() };
    let mut request = Request::new(check);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    request.set_timeout(Duration::from_millis(250));
    Ok(client.check_key(request).await?.into_inner())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addr = std::env::var("TOLLGATE_ADDR").unwrap_or_else(|_| "127.0.0.1:50051".into());
    let mut key = String::new();
    std::io::stdin().read_line(&mut key)?;
    // One channel for the life of the process: a clone is cheap, and it reconnects by itself.
    let client = KeyServiceClient::new(Endpoint::from_shared(format!("http://{addr}"))?.connect_lazy());
    let answer = check_key(client, &std::env::var("TOLLGATE_TOKEN")?, key.trim()).await?;
    if answer.allowed {
        println!("allowed: {} of {}", answer.key_name, answer.account_id);
    } else {
        println!("denied, HTTP {}: {}", answer.http_status, answer.message);
    }
    Ok(())
}

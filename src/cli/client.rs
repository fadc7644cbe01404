//! How a server is reached, and as whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::failure::{Exit, Failure, chain};
use super::{out, values};
use crate::proto::v1::account_service_client::AccountServiceClient;
use crate::proto::v1::key_service_client::KeyServiceClient;
use crate::proto::v1::plan_service_client::PlanServiceClient;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Which server, and as whom.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Calling a server")]
pub(super) struct ClientArgs {
    /// The server's gRPC address.
    #[arg(
        long,
        global = true,
        env = "TOLLGATE_ENDPOINT",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL"
    )]
    endpoint: String,
    /// The authority of the server's certificate (PEM); needed for https.
    #[arg(long, global = true, env = "TOLLGATE_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The caller's certificate (PEM), where the server asks for one.
    #[arg(long, global = true, env = "TOLLGATE_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, global = true, env = "TOLLGATE_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// A file that holds the caller's API key, instead of `TOLLGATE_TOKEN`.
    #[arg(long, global = true, env = "TOLLGATE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long a call may take, as in `5s` [default: 15s; an import has no bound of its own].
    #[arg(long, global = true, value_name = "TIME", value_parser = values::length)]
    timeout: Option<Duration>,
}

impl ClientArgs {
    /// A connection with the caller's key, which every call but a few needs: without one nothing is sent.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let token = self.token()?.ok_or_else(Failure::missing_token)?;
        self.open(Some(token), Some(self.timeout.unwrap_or(CALL_TIMEOUT))).await
    }

    /// The same without a bound on the call's time, for streams of any length.
    pub(super) async fn connect_for_stream(&self) -> Result<Client, Failure> {
        let token = self.token()?.ok_or_else(Failure::missing_token)?;
        self.open(Some(token), self.timeout).await
    }

    /// With the caller's key if there is one.
    pub(super) async fn connect_perhaps_unknown(&self) -> Result<Client, Failure> {
        let token = self.token()?;
        self.open(token, Some(self.timeout.unwrap_or(CALL_TIMEOUT))).await
    }

    async fn open(&self, token: Option<MetadataValue<Ascii>>, timeout: Option<Duration>) -> Result<Client, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            let message = format!("`{}` is no endpoint such as `http://127.0.0.1:50051`: {error}", self.endpoint);
            Failure::usage(message)
        };
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(|error| wrong(&error))?;
        let (scheme, host) = (endpoint.uri().scheme_str(), endpoint.uri().host().unwrap_or_default().to_owned());
        match scheme {
            Some("https") => {
                endpoint = endpoint.tls_config(self.tls()?).map_err(|error| Failure::error(chain(&error)))?;
            }
            Some("http") if token.is_some() && !is_local(&host) => {
                out::note(&format!("warning: the caller's key goes to `{host}` in the clear; use https"));
            }
            Some("http") => {}
            _ => return Err(wrong(&"the scheme is neither `http` nor `https`")),
        }
        endpoint = endpoint
            .connect_timeout(self.timeout.unwrap_or(CONNECT_TIMEOUT).min(CONNECT_TIMEOUT))
            .user_agent(concat!("tollgate-cli/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| wrong(&error))?;
        if let Some(timeout) = timeout {
            endpoint = endpoint.timeout(timeout);
        }
        let channel = endpoint.connect().await.map_err(|error| {
            let message = format!(
                "can't connect to `{0}`: {1}\nhint: is `tollgate serve` running there? --endpoint or TOLLGATE_ENDPOINT \
                 names another address",
                self.endpoint,
                chain(&error)
            );
            Failure::new(Exit::Unavailable, message)
        })?;
        Ok(Client { channel, caller: Caller { token } })
    }

    fn tls(&self) -> Result<ClientTlsConfig, Failure> {
        let ca_file = self.ca_file.as_deref().ok_or_else(|| {
            Failure::usage(
                "https needs the authority of the server's certificate: --ca-file or TOLLGATE_CA_FILE; for a public one \
                 on Debian, /etc/ssl/certs/ca-certificates.crt",
            )
        })?;
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca_file)?));
        match (&self.client_cert, &self.client_key) {
            (Some(cert), Some(key)) => Ok(tls.identity(Identity::from_pem(read(cert)?, read(key)?))),
            (None, None) => Ok(tls),
            (Some(_), None) | (None, Some(_)) => {
                Err(Failure::usage("--client-cert and --client-key are needed together"))
            }
        }
    }

    /// The caller's key. `TOLLGATE_TOKEN` is no flag, because what is in a command line is seen by every user of the
    /// machine and kept by the shell.
    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let (from, text) = match (&self.token_file, std::env::var("TOLLGATE_TOKEN")) {
            (Some(path), _) => (format!("`{}`", path.display()), read(path)?),
            (None, Ok(text)) => ("TOLLGATE_TOKEN".to_owned(), text.into_bytes()),
            (None, Err(_)) => return Ok(None),
        };
        let text = String::from_utf8_lossy(&text);
        let text = text.trim();
        if text.is_empty() {
            return Err(Failure::new(Exit::Caller, format!("{from} holds no key")));
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {text}")
            .parse()
            .map_err(|_| Failure::new(Exit::Caller, format!("{from} holds characters that no key has")))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn is_local(host: &str) -> bool {
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::error(format!("`{}` can't be read: {error}", path.display())))
}

/// A connection to a server.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    caller: Caller,
}

/// What every call is made over.
pub(super) type Called = InterceptedService<Channel, Caller>;

impl Client {
    pub(super) fn keys(&self) -> KeyServiceClient<Called> {
        // A page of a thousand full keys is larger than the library's bound.
        KeyServiceClient::with_interceptor(self.channel.clone(), self.caller.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn accounts(&self) -> AccountServiceClient<Called> {
        AccountServiceClient::with_interceptor(self.channel.clone(), self.caller.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn plans(&self) -> PlanServiceClient<Called> {
        PlanServiceClient::with_interceptor(self.channel.clone(), self.caller.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Adds the caller's key to each call.
#[derive(Clone)]
pub(super) struct Caller {
    token: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

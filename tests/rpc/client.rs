//! A client of all services.

use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use tollgate::proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tollgate::proto::v1::account_service_client::AccountServiceClient;
use tollgate::proto::v1::key_service_client::KeyServiceClient;
use tollgate::proto::v1::plan_service_client::PlanServiceClient;
use tollgate::proto::v1::*;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

type Transport = InterceptedService<Channel, Headers>;

/// Calls with the same key each time.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    keys: KeyServiceClient<Transport>,
    accounts: AccountServiceClient<Transport>,
    plans: PlanServiceClient<Transport>,
    rate_limits: RateLimitServiceClient<Transport>,
}

/// What is sent as `authorization`.
#[derive(Clone, Debug)]
struct Headers(Vec<MetadataValue<Ascii>>);

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for value in &self.0 {
            request.metadata_mut().append("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// With a header for each of the secrets.
    pub(crate) fn new(channel: Channel, secrets: &[&str]) -> Self {
        let values: Vec<String> = secrets.iter().map(|secret| format!("Bearer {secret}")).collect();
        Self::with_headers(channel, &values)
    }

    /// With these headers.
    pub(crate) fn with_headers(channel: Channel, values: &[impl AsRef<str>]) -> Self {
        let headers = Headers(values.iter().map(|value| value.as_ref().parse().unwrap()).collect());
        let transport = InterceptedService::new(channel, headers);
        Self {
            // The server's bounds are under test, not the client's.
            keys: KeyServiceClient::new(transport.clone()).max_decoding_message_size(usize::MAX),
            accounts: AccountServiceClient::new(transport.clone()),
            plans: PlanServiceClient::new(transport.clone()),
            rate_limits: RateLimitServiceClient::new(transport),
        }
    }

    /// Sends these messages, one after the other.
    pub(crate) async fn import_keys(&self, messages: Vec<ImportKeysRequest>) -> Result<ImportKeysResponse, Status> {
        Ok(self.keys.clone().import_keys(tokio_stream::iter(messages)).await?.into_inner())
    }
}

macro_rules! calls {
    ($($service:ident.$method:ident($request:ty) -> $answer:ty;)+) => {
        impl Client {
            $(pub(crate) async fn $method(&self, request: $request) -> Result<$answer, Status> {
                Ok(self.$service.clone().$method(request).await?.into_inner())
            })+
        }
    };
}

calls! {
    keys.check_key(CheckKeyRequest) -> CheckKeyResponse;
    keys.create_key(CreateKeyRequest) -> CreateKeyResponse;
    keys.get_key(GetKeyRequest) -> Key;
    keys.list_keys(ListKeysRequest) -> ListKeysResponse;
    keys.update_key(UpdateKeyRequest) -> Key;
    keys.rotate_key(RotateKeyRequest) -> RotateKeyResponse;
    keys.revoke_key(RevokeKeyRequest) -> RevokeKeyResponse;
    keys.get_usage(GetUsageRequest) -> GetUsageResponse;
    keys.get_self(GetSelfRequest) -> GetSelfResponse;
    keys.get_limits(GetLimitsRequest) -> GetLimitsResponse;
    keys.refund_check(RefundCheckRequest) -> RefundCheckResponse;
    accounts.create_account(CreateAccountRequest) -> Account;
    accounts.get_account(GetAccountRequest) -> Account;
    accounts.list_accounts(ListAccountsRequest) -> ListAccountsResponse;
    accounts.update_account(UpdateAccountRequest) -> Account;
    accounts.adjust_credits(AdjustCreditsRequest) -> AdjustCreditsResponse;
    plans.create_plan(CreatePlanRequest) -> Plan;
    plans.get_plan(GetPlanRequest) -> Plan;
    plans.list_plans(ListPlansRequest) -> ListPlansResponse;
    plans.update_plan(UpdatePlanRequest) -> Plan;
    plans.delete_plan(DeletePlanRequest) -> DeletePlanResponse;
    rate_limits.should_rate_limit(RateLimitRequest) -> RateLimitResponse;
}

//! Server reflection, in both versions: what grpcurl asks before it can call.

use prost_reflect::DescriptorPool;
use tollgate::proto::DESCRIPTORS;
use tonic::Code;

use crate::harness::{Server, Settings};
use crate::wire;

/// The same tests for each version of the protocol.
macro_rules! version {
    ($version:ident) => {
        mod $version {
            use prost::Message as _;
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            use super::*;

            async fn ask(server: &Server, request: MessageRequest) -> Result<MessageResponse, tonic::Status> {
                let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
                let mut client = ServerReflectionClient::new(server.channel.clone());
                let answers = client.server_reflection_info(tokio_stream::iter([request])).await?;
                Ok(answers.into_inner().message().await?.unwrap().message_response.unwrap())
            }

            #[tokio::test]
            async fn the_services_are_listed_to_anybody() {
                let server = Server::start().await;
                let answer = ask(&server, MessageRequest::ListServices(String::new())).await.unwrap();
                let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
                let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
                names.retain(|name| !name.starts_with("grpc.reflection."));
                names.sort_unstable();
                let expected = [
                    "envoy.service.auth.v3.Authorization",
                    "envoy.service.ratelimit.v3.RateLimitService",
                    "grpc.health.v1.Health",
                    "tollgate.v1.AccountService",
                    "tollgate.v1.KeyService",
                    "tollgate.v1.PlanService",
                ];
                assert_eq!(names, expected);
            }

            #[tokio::test]
            async fn each_file_comes_as_it_was_compiled() {
                let server = Server::start().await;
                let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
                for service in pool.services() {
                    let symbol = MessageRequest::FileContainingSymbol(service.full_name().to_owned());
                    let answer = ask(&server, symbol).await.unwrap();
                    let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
                    let file = prost_types::FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
                    assert_eq!(file.name(), service.parent_file().name());
                    let methods = file.service.iter().find(|found| found.name() == service.name()).unwrap();
                    assert_eq!(methods.method.len(), service.methods().len());
                }
                let answer = ask(&server, MessageRequest::FileContainingSymbol("no.Such".to_owned())).await;
                assert_eq!(answer.unwrap_err().code(), Code::NotFound);
            }

            #[tokio::test]
            async fn it_can_be_switched_off() {
                let server = Server::start_with(Settings { reflection: false, ..Settings::default() }).await;
                let answer = ask(&server, MessageRequest::ListServices(String::new())).await;
                assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
            }
        }
    };
}

version!(v1);
version!(v1alpha);

#[tokio::test]
async fn what_is_not_in_the_contract_is_not_implemented() {
    let server = Server::start().await;
    for path in ["/tollgate.v1.KeyService/Nothing", "/tollgate.v2.KeyService/CheckKey", "/no.Such/Call", "/"] {
        assert_eq!(wire::call(&server, path, b"").await.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
}

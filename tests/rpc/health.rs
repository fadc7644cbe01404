//! The standard health service, beside those of the contract.

use tollgate::transport::grpc::SERVICES;
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Wire;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::Server;

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn it_is_told_for_each_service_and_to_anybody() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel.clone());
    for service in [""].into_iter().chain(SERVICES) {
        for (status, expected) in
            [(ServingStatus::NotServing, Wire::NotServing), (ServingStatus::Serving, Wire::Serving)]
        {
            server.health.set_service_status(service, status).await;
            let answer = client.check(of(service)).await.unwrap().into_inner();
            assert_eq!(answer.status(), expected, "{service}");
        }
    }
    assert_eq!(client.check(of("tollgate.v1.NoService")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn whoever_watches_is_told_of_a_change() {
    let server = Server::start().await;
    server.health.set_service_status("", ServingStatus::Serving).await;
    let mut client = HealthClient::new(server.channel.clone());
    let mut watch = client.watch(of("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), Wire::Serving);
    server.health.set_service_status("", ServingStatus::NotServing).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status(), Wire::NotServing);
}

//! Tollgate behind the edges that people use: the real Envoy, nginx and Caddy with the configurations of `deploy/`, in which
//! only addresses and the caller's key are replaced; before an upstream that records what reaches it.
//!
//! Most tests are tables of named cases on one edge, because starting one takes a second.
#![cfg(test)]

#[path = "../support/mod.rs"]
mod support;

mod case;
mod http_edges;
mod lossy;
mod proxy;
mod readings;
mod rig;
mod upstream;
mod wire;

mod caddy;
mod envoy_allow;
mod envoy_client_address;
mod envoy_credentials;
mod envoy_denials;
mod envoy_grpc;
mod envoy_outages;
mod envoy_paths;
mod envoy_policies;
mod envoy_postgres;
mod envoy_ratelimit;
mod envoy_replicas;
mod envoy_retries;
mod envoy_tls;
mod nginx;
mod shipped;
mod traefik;

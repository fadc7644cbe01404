//! Tollgate.
pub mod ambient;
pub mod app;
pub mod cli;
pub mod config;
pub mod decision;
pub mod domain;
pub mod engine;
pub mod proto;
pub mod store;
pub mod telemetry;
pub mod transport;

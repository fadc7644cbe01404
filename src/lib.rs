//! Tollgate.
pub mod ambient;
pub mod config;
pub mod decision;
pub mod domain;
pub mod proto;
pub mod store;

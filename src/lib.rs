//! Tollgate: decides, on every request of other people's systems, whether an API key may do this now and what it costs.
//!
//! `ARCHITECTURE.md` is the map. In short: `transport` translates, `engine` finds and records, `decision` decides, `store`
//! keeps; `app` puts them together and `cli` is what people type.

pub mod ambient;
pub mod app;
pub mod cli;
pub mod config;
pub mod decision;
pub mod domain;
pub mod engine;
pub mod journal;
pub mod proto;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod transport;

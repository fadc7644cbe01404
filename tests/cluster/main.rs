//! Several replicas on one PostgreSQL, and what goes wrong between them.
#![cfg(test)]

#[path = "../support/mod.rs"]
mod support;

mod checker;
mod fixture;
mod history;
mod limits;
mod load;
mod proxy;
mod replicas;
mod revocations;

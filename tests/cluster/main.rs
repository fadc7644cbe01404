//! Several replicas on one PostgreSQL, and what goes wrong between them.
#![cfg(test)]

#[path = "../support/mod.rs"]
mod support;

mod fixture;

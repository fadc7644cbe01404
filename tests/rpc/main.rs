//! Every call of the contract through the real server: a file for each.
#![cfg(test)]

mod check_key;
mod client;
mod harness;

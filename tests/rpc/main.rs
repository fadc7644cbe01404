//! Every call of the contract through the real server: a file for each.
#![cfg(test)]

mod audit;
mod check_key;
mod client;
mod create_key;
mod get_key;
mod harness;
mod list_keys;
mod revoke_key;
mod rotate_key;
mod update_key;
mod wire;

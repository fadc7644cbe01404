//! Every call of the contract through the real server: a file for each.
#![cfg(test)]

mod audit;
mod callers;
mod check_key;
mod client;
mod create_key;
mod get_key;
mod get_limits;
mod get_self;
mod get_usage;
mod harness;
mod import_keys;
mod list_keys;
mod privileges;
mod refund_check;
mod revoke_key;
mod rotate_key;
mod update_key;
mod wire;

//! Every call of the contract through the real server: a file for each.
#![cfg(test)]
#![expect(clippy::string_slice, reason = "secrets and ids are ASCII")]

mod adjust_credits;
mod audit;
mod callers;
mod check_key;
mod client;
mod clock_jumps;
mod create_account;
mod create_key;
mod create_plan;
mod delete_plan;
mod ext_authz;
mod get_account;
mod get_key;
mod get_limits;
mod get_plan;
mod get_self;
mod get_usage;
mod harness;
mod health;
mod import_keys;
mod list_accounts;
mod list_keys;
mod list_plans;
mod privileges;
mod reflection;
mod refund_check;
mod restart;
mod revoke_key;
mod rotate_key;
mod should_rate_limit;
mod update_account;
mod update_key;
mod update_plan;
mod wire;

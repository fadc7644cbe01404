//! Between the wire's types and the domain's. Nothing else translates.
//!
//! Messages that come in are destructured in full, so that a field added to the contract does not compile until
//! somebody has considered it. All that is wrong with a message is told at once, each with the path of its field.

mod account;
mod check;
mod fields;
mod key;
mod limit;
mod rate_limit;
mod usage;

pub(super) use account::{
    account_from, account_patch_from, account_to, adjusted_to, adjustment_from, plan_from, plan_patch_from, plan_to,
};
pub(super) use check::{check_from, check_to, limits_to, refund_from, refund_to, revision_from};
pub(super) use fields::{account_id_from, key_id_from, plan_id_from};
pub(super) use key::{
    created_to, filter_from, grace_from, import_row_from, key_patch_from, key_to, key_view_to, new_key_from,
    reason_from, self_to,
};
pub(super) use rate_limit::{charges_to, shares_from};
pub(super) use usage::{usage_from, usage_to};

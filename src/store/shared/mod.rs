//! What the adapters on SQL have in common.

mod error;
pub(super) mod intern;
pub(super) mod key_query;
pub(super) mod new_keys;
pub(super) mod packed;
pub(super) mod rows;
pub(super) mod tables;
pub(super) mod usage;
pub(super) mod writes;

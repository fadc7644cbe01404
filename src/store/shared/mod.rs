//! What the adapters on SQL have in common.

mod error;

//! The wire types of `tollgate.v1`, generated from `proto/`. They stay inside `transport` and `cli`.
#![allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::as_conversions,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    reason = "generated code"
)]

/// The package `tollgate.v1`.
pub mod v1 {
    tonic::include_proto!("tollgate.v1");
}

/// Every file of the contract with its options and comments, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tollgate.bin"));

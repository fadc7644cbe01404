//! The nouns: keys, accounts, plans, limits, and the rules for writing each down. Everything else is written in these
//! types; they know neither the wire nor a database, and hold no clock.
//!
//! A type that can only be made by parsing carries its own rule, so that whoever holds a [`Scope`] or a [`LimitName`]
//! need not check it again. The errors of these parsers are [`Invalid`]: a sentence that says what was wrong and what
//! is allowed, to which the caller adds the field.

mod account;
pub mod base62;
mod budget;
mod id;
mod key;
mod limit;
mod operation;
mod restriction;
mod scope;
mod text;
mod time;
mod top_up;
mod usage;
mod verdict;

pub use account::{Account, AccountStatus, CreditOverride, Plan};
pub use budget::{BudgetId, Subject};
pub use id::{AccountId, KeyId, PlanId, Revision};
pub use key::{Environment, Key, KeyStatus, Policy, PreviousSecret, Revocation, SecretHash, Status};
pub use limit::{Algorithm, Limit, LimitName, Period, UNITS_MAX};
pub use operation::OperationId;
pub use restriction::{EndpointPattern, ReferrerPattern, Restrictions};
pub use scope::{OWN_NAMESPACE, Scope, ScopeRef};
pub use text::{
    Invalid, Metadata, parse_description, parse_display_prefix, parse_metadata, parse_name, parse_reason, shown,
};
pub use time::{Time, TimeZone};
pub use top_up::{Adjustment, TopUps, parse_adjustment, parse_operation_id};
pub use usage::{Activity, UsageDelta, UsageRow};
pub use verdict::Verdict;

/// Bounds on what one record may hold, together in one place.
pub mod caps {
    /// Scopes of a key or a plan.
    pub const SCOPES_MAX: usize = 64;
    /// Entries of each list of a key's restrictions.
    pub const RESTRICTIONS_MAX: usize = 64;
    /// Limits of a key, or at one level of an account or a plan.
    pub const LIMITS_MAX: usize = 8;
    /// Scopes that one check may ask for, in each of its two lists.
    pub const SCOPES_ASKED_MAX: usize = 64;
    /// Rows of a page.
    pub const PAGE_SIZE_MAX: u32 = 1_000;
    /// Rows of a page where the caller names no number.
    pub const PAGE_SIZE_DEFAULT: u32 = 100;
    /// Characters of an operation's id.
    pub const OPERATION_ID_CHARS_MAX: usize = 128;
}

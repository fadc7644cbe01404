//! The decision: may this key do this now, and what does it cost?
//!
//! Everything in here is a function of its arguments: `now` is one of them, and so is what was spent before. No I/O, no
//! clock, no randomness, no lock. Callers hold the state, and keep what comes back.

pub mod quota;
pub mod restriction;
pub mod secret;
pub mod window;

mod authorize;
mod record;
mod terms;

pub use authorize::{Request, account_usable, authorize, grants, missing_scopes, usable};
pub use record::{Expiry, KeyPhase, KeyRecord, PreviousHash};
pub use terms::{AccountTerms, Credits};

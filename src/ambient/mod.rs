//! What the process takes from its surroundings: the time and randomness. Nothing else reads either, so that whatever
//! depends on them can be tested with a clock that the test moves. `clippy.toml` points strays here.

mod clock;
pub mod random;

pub use clock::{Clock, ManualClock};

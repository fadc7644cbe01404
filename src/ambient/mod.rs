//! What the process takes from its surroundings: the time, randomness, and its name. Nothing else reads either, so that whatever
//! depends on them can be tested with a clock that the test moves. `clippy.toml` points strays here.

mod clock;
mod host;
pub mod random;

pub use clock::{Clock, ManualClock};
pub use host::host_name;

//! Cases of one test: all of them run, and those that fail are named.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The cases of a test; dropped, it fails where one of them did.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    failed: Vec<String>,
}

impl Cases {
    /// Runs one.
    pub(crate) fn run(&mut self, name: &str, case: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(case)).is_err() {
            println!("^^^ in the case `{name}`");
            self.failed.push(name.to_owned());
        }
    }
}

impl Drop for Cases {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.failed.is_empty(), "cases that failed: {:#?}", self.failed);
        }
    }
}

//! Whether the process can serve.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Everything that must hold before calls are welcome. Each part of the process holds a [`Condition`] of its own; the
/// probe of the HTTP port and the health service read the whole. A clone is another handle to the same.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Conditions>>);

/// The conditions at one moment, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions(BTreeMap<&'static str, bool>);

impl Conditions {
    /// Whether all hold.
    #[must_use]
    pub fn are_met(&self) -> bool {
        self.0.values().all(|met| *met)
    }

    /// Those that do not hold, in order.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.iter().filter(|(_, met)| !**met).map(|(name, _)| *name).collect()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Without a condition, and so ready: add them all before anything reads it.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Conditions::default())))
    }

    /// Adds a condition, which does not hold yet. Its name is told to whoever asks what is missing.
    #[must_use]
    pub fn require(&self, name: &'static str) -> Condition {
        let condition = Condition { name, readiness: self.clone() };
        condition.set(false);
        condition
    }

    /// The conditions now.
    #[must_use]
    pub fn now(&self) -> Conditions {
        self.0.borrow().clone()
    }

    /// Follows the conditions, from now on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Conditions> {
        self.0.subscribe()
    }
}

/// One condition, in the hands of the part that knows whether it holds.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Condition {
    /// Says whether it holds. Watchers wake only where that is news.
    pub fn set(&self, met: bool) {
        self.readiness.0.send_if_modified(|conditions| conditions.0.insert(self.name, met) != Some(met));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_everything_is() {
        let readiness = Readiness::new();
        let (store, index) = (readiness.require("store"), readiness.require("index"));
        assert_eq!(readiness.now().missing(), ["index", "store"]);
        let mut watch = readiness.watch();
        store.set(true);
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        store.set(true);
        assert!(!watch.has_changed().unwrap(), "no news");
        assert!(!readiness.now().are_met());
        index.set(true);
        assert!(watch.borrow_and_update().are_met());
        index.set(false);
        assert_eq!(watch.borrow_and_update().missing(), ["index"]);
    }
}

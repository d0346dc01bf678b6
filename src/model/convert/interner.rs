//! One copy of each text that many objects repeat.

use std::sync::Arc;

use crate::model::Hints;
use crate::model::shared::Shared;

/// Hands out shared copies of namespaces, Service, node, zone and port names, and of endpoint hints. What nobody else holds any
/// more is dropped from time to time.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Shared<str>,
    hints: Shared<Hints>,
}

impl Interner {
    /// A shared copy of a text.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        self.texts.get(text, |text| Arc::from(text))
    }

    /// A shared copy of hints; `None` for hints that say nothing.
    pub fn hints(&mut self, hints: Hints) -> Option<Arc<Hints>> {
        if hints.zones.is_empty() && hints.nodes.is_empty() {
            return None;
        }
        Some(self.hints.get(&hints, |hints| Arc::new(hints.clone())))
    }

    /// How many texts and hints are held.
    pub fn len(&self) -> usize {
        self.texts.len() + self.hints.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what nobody else holds.
    pub fn purge(&mut self) {
        // Hints hold texts, so they go first.
        self.hints.purge();
        self.texts.purge();
    }
}

//! One copy of each text that many objects repeat.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::model::Hints;

/// Hands out shared copies of namespaces, Service, node, zone and port names, and of endpoint hints.
///
/// What nobody else holds any more is dropped when the tables have grown by as much as they held after the last
/// purge, so that memory stays within twice of what is in use and the cost per text stays constant.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Table<str>,
    hints: Table<Hints>,
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
        if let Some(known) = self.hints.entries.get(&hints) {
            return Some(known.clone());
        }
        Some(self.hints.insert(Arc::new(hints)))
    }

    /// How many texts and hints are held.
    pub fn len(&self) -> usize {
        self.texts.entries.len() + self.hints.entries.len()
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

#[derive(Debug)]
struct Table<T: ?Sized> {
    entries: HashSet<Arc<T>, RandomState>,
    /// The size at which to purge.
    limit: usize,
}

/// No purge below this size.
const MIN_LIMIT: usize = 1024;

impl<T: ?Sized> Default for Table<T> {
    fn default() -> Self {
        Table { entries: HashSet::default(), limit: MIN_LIMIT }
    }
}

impl<T: ?Sized + Eq + Hash> Table<T> {
    fn get(&mut self, value: &T, make: impl FnOnce(&T) -> Arc<T>) -> Arc<T>
    where
        Arc<T>: Borrow<T>,
    {
        match self.entries.get(value) {
            Some(known) => known.clone(),
            None => self.insert(make(value)),
        }
    }

    fn insert(&mut self, value: Arc<T>) -> Arc<T> {
        if self.entries.len() >= self.limit {
            self.purge();
        }
        self.entries.insert(value.clone());
        value
    }

    fn purge(&mut self) {
        self.entries.retain(|entry| Arc::strong_count(entry) > 1);
        self.entries.shrink_to(MIN_LIMIT);
        self.limit = (self.entries.len() * 2).max(MIN_LIMIT);
    }
}

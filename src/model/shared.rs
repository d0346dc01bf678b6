//! One copy of each value that many objects repeat.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Hands out shared copies.
///
/// What nobody else holds any more is dropped when the table has grown by as much as it held after the last
/// purge, so that memory stays within twice of what is in use and the cost per value stays constant.
#[derive(Debug)]
pub(in crate::model) struct Shared<T: ?Sized> {
    entries: HashSet<Arc<T>, RandomState>,
    /// The size at which to purge.
    limit: usize,
}

/// No purge below this size.
const MIN_LIMIT: usize = 1024;

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Shared { entries: HashSet::default(), limit: MIN_LIMIT }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The shared copy of a value, which `make` makes if there is none.
    pub(in crate::model) fn get(&mut self, value: &T, make: impl FnOnce(&T) -> Arc<T>) -> Arc<T>
    where
        Arc<T>: Borrow<T>,
    {
        if let Some(known) = self.entries.get(value) {
            return known.clone();
        }
        if self.entries.len() >= self.limit {
            self.purge();
        }
        let value = make(value);
        self.entries.insert(value.clone());
        value
    }

    /// How many are held.
    pub(in crate::model) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Drops what nobody else holds.
    pub(in crate::model) fn purge(&mut self) {
        self.entries.retain(|entry| Arc::strong_count(entry) > 1);
        self.entries.shrink_to(MIN_LIMIT);
        self.limit = (self.entries.len() * 2).max(MIN_LIMIT);
    }
}

//! What is wanted and what is known, side by side, for one kind of kernel object.
//!
//! Pending work is never stored: it is the difference of the two sides, so that nothing is lost when an
//! operation fails. An entry knows its owners, so that an object that several want needs no pass over all of them.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::sync::owner::OwnerId;

/// A value of a kernel object that can be compared with another one.
pub(crate) trait State: Copy {
    /// Whether the kernel need not be touched to get from one to the other.
    fn same(&self, other: &Self) -> bool;
}

/// All objects of one kind.
#[derive(Debug)]
pub(crate) struct Tracked<K, V> {
    entries: HashMap<K, Entry<V>, RandomState>,
}

#[derive(Debug)]
struct Entry<V> {
    /// Who wants the object and how. With more than one, the owner with the lowest number decides.
    wants: SmallVec<[(OwnerId, V); 1]>,
    /// What the kernel is known to hold; `None`: no such object.
    known: Option<V>,
}

/// What has to be done about one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending<V> {
    /// It is not there and should be.
    Add(V),
    /// It is there, but not like this.
    Change(V),
    /// It is there and should not be.
    Remove,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Tracked { entries: HashMap::default() }
    }
}

impl<K: Eq + Hash + Clone, V: State> Tracked<K, V> {
    /// The owner wants the object like this.
    pub(crate) fn want(&mut self, key: &K, owner: OwnerId, value: V) {
        let entry = match self.entries.get_mut(key) {
            Some(entry) => entry,
            None => self.entries.entry(key.clone()).or_insert(Entry { wants: SmallVec::new(), known: None }),
        };
        match entry.wants.binary_search_by_key(&owner, |(other, _)| *other) {
            Ok(at) => entry.wants[at].1 = value,
            Err(at) => entry.wants.insert(at, (owner, value)),
        }
    }

    /// The owner does not want the object any more.
    pub(crate) fn unwant(&mut self, key: &K, owner: OwnerId) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.wants.retain(|(other, _)| *other != owner);
            self.drop_if_empty(key);
        }
    }

    /// The kernel is now known to hold this. Returns what was known before.
    pub(crate) fn learn(&mut self, key: &K, known: Option<V>) -> Option<V> {
        let before = match self.entries.get_mut(key) {
            Some(entry) => std::mem::replace(&mut entry.known, known),
            None => {
                if known.is_some() {
                    self.entries.insert(key.clone(), Entry { wants: SmallVec::new(), known });
                }
                None
            }
        };
        self.drop_if_empty(key);
        before
    }

    /// What is to be done about an object.
    pub(crate) fn pending(&self, key: &K) -> Option<Pending<V>> {
        let entry = self.entries.get(key)?;
        match (entry.wants.first(), &entry.known) {
            (Some((_, wanted)), None) => Some(Pending::Add(*wanted)),
            (Some((_, wanted)), Some(known)) if !wanted.same(known) => Some(Pending::Change(*wanted)),
            (None, Some(_)) => Some(Pending::Remove),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// How the object is wanted.
    pub(crate) fn wanted(&self, key: &K) -> Option<V> {
        self.entries.get(key)?.wants.first().map(|(_, value)| *value)
    }

    /// How this owner wants the object.
    pub(crate) fn wanted_by(&self, key: &K, owner: OwnerId) -> Option<V> {
        let wants = &self.entries.get(key)?.wants;
        wants.iter().find(|(other, _)| *other == owner).map(|(_, value)| *value)
    }

    /// What the kernel is known to hold.
    pub(crate) fn known(&self, key: &K) -> Option<V> {
        self.entries.get(key)?.known
    }

    /// Whether there is anything to say about the object.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether this owner wants the object.
    pub(crate) fn wants(&self, key: &K, owner: OwnerId) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.wants.iter().any(|(other, _)| *other == owner))
    }

    /// The owners of an object.
    pub(crate) fn owners(&self, key: &K) -> impl Iterator<Item = OwnerId> {
        self.entries.get(key).into_iter().flat_map(|entry| entry.wants.iter().map(|(owner, _)| *owner))
    }

    /// All objects: key, wanted, known.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, Option<V>, Option<V>)> {
        self.entries.iter().map(|(key, entry)| (key, entry.wants.first().map(|(_, value)| *value), entry.known))
    }

    fn drop_if_empty(&mut self, key: &K) {
        if self.entries.get(key).is_some_and(|entry| entry.wants.is_empty() && entry.known.is_none()) {
            self.entries.remove(key);
        }
    }
}

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
pub(crate) trait State: Copy + PartialEq {
    /// Whether the kernel need not be touched to get from one to the other.
    fn same(&self, other: &Self) -> bool;
}

/// All objects of one kind.
#[derive(Debug)]
pub(crate) struct Tracked<K, V> {
    entries: HashMap<K, Entry<V>, RandomState>,
}

/// Nearly all objects are as their only owner wants them: there the value stands once, and nothing else.
#[derive(Debug)]
enum Entry<V> {
    /// One owner wants it, and the kernel holds it exactly so.
    Settled { owner: OwnerId, value: V },
    /// One owner wants it, and the kernel holds no such object.
    Missing { owner: OwnerId, value: V },
    /// Anything else.
    Other(Box<Sides<V>>),
}

/// Both sides of one object.
#[derive(Clone, Debug)]
struct Sides<V> {
    /// Who wants the object and how. With more than one, the owner with the lowest number decides.
    wants: SmallVec<[(OwnerId, V); 1]>,
    /// What the kernel is known to hold; `None`: no such object.
    known: Option<V>,
}

impl<V: State> Entry<V> {
    /// `None`: there is nothing to say.
    fn of(sides: Sides<V>) -> Option<Entry<V>> {
        match (&sides.wants[..], sides.known) {
            ([], None) => None,
            ([(owner, value)], None) => Some(Entry::Missing { owner: *owner, value: *value }),
            ([(owner, value)], Some(known)) if *value == known => Some(Entry::Settled { owner: *owner, value: *value }),
            _ => Some(Entry::Other(Box::new(sides))),
        }
    }

    fn sides(&self) -> Sides<V> {
        match self {
            Entry::Settled { .. } | Entry::Missing { .. } => {
                Sides { wants: self.wants().collect(), known: self.known() }
            }
            Entry::Other(sides) => Sides::clone(sides),
        }
    }

    fn wants(&self) -> impl Iterator<Item = (OwnerId, V)> {
        let (one, several) = match self {
            Entry::Settled { owner, value } | Entry::Missing { owner, value } => (Some((*owner, *value)), &[][..]),
            Entry::Other(sides) => (None, &sides.wants[..]),
        };
        one.into_iter().chain(several.iter().copied())
    }

    fn wanted(&self) -> Option<V> {
        self.wants().next().map(|(_, value)| value)
    }

    fn known(&self) -> Option<V> {
        match self {
            Entry::Settled { value, .. } => Some(*value),
            Entry::Missing { .. } => None,
            Entry::Other(sides) => sides.known,
        }
    }
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
        self.change(key, |sides| match sides.wants.binary_search_by_key(&owner, |(other, _)| *other) {
            Ok(at) => sides.wants[at].1 = value,
            Err(at) => sides.wants.insert(at, (owner, value)),
        });
    }

    /// The owner does not want the object any more.
    pub(crate) fn unwant(&mut self, key: &K, owner: OwnerId) {
        self.change(key, |sides| sides.wants.retain(|(other, _)| *other != owner));
    }

    /// The kernel is now known to hold this. Returns what was known before.
    pub(crate) fn learn(&mut self, key: &K, known: Option<V>) -> Option<V> {
        self.change(key, |sides| std::mem::replace(&mut sides.known, known))
    }

    /// What is to be done about an object.
    pub(crate) fn pending(&self, key: &K) -> Option<Pending<V>> {
        let entry = self.entries.get(key)?;
        match (entry.wanted(), entry.known()) {
            (Some(wanted), None) => Some(Pending::Add(wanted)),
            (Some(wanted), Some(known)) if !wanted.same(&known) => Some(Pending::Change(wanted)),
            (None, Some(_)) => Some(Pending::Remove),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// How the object is wanted.
    pub(crate) fn wanted(&self, key: &K) -> Option<V> {
        self.entries.get(key)?.wanted()
    }

    /// How this owner wants the object.
    pub(crate) fn wanted_by(&self, key: &K, owner: OwnerId) -> Option<V> {
        self.entries.get(key)?.wants().find(|(other, _)| *other == owner).map(|(_, value)| value)
    }

    /// What the kernel is known to hold.
    pub(crate) fn known(&self, key: &K) -> Option<V> {
        self.entries.get(key)?.known()
    }

    /// Whether there is anything to say about the object.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether this owner wants the object.
    pub(crate) fn wants(&self, key: &K, owner: OwnerId) -> bool {
        self.wanted_by(key, owner).is_some()
    }

    /// The owners of an object.
    pub(crate) fn owners<'a>(&'a self, key: &K) -> impl Iterator<Item = OwnerId> + use<'a, K, V> {
        self.entries.get(key).into_iter().flat_map(|entry| entry.wants().map(|(owner, _)| owner))
    }

    /// All objects: key, wanted, known.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, Option<V>, Option<V>)> {
        self.entries.iter().map(|(key, entry)| (key, entry.wanted(), entry.known()))
    }

    /// Changes both sides of an object; one about which nothing is left to say is forgotten.
    fn change<R>(&mut self, key: &K, change: impl FnOnce(&mut Sides<V>) -> R) -> R {
        let Some(entry) = self.entries.get_mut(key) else {
            let mut sides = Sides { wants: SmallVec::new(), known: None };
            let result = change(&mut sides);
            if let Some(entry) = Entry::of(sides) {
                self.entries.insert(key.clone(), entry);
            }
            return result;
        };
        let mut sides = entry.sides();
        let result = change(&mut sides);
        match Entry::of(sides) {
            Some(changed) => *entry = changed,
            None => drop(self.entries.remove(key)),
        }
        result
    }
}

//! A table by endpoints that can be walked through in slices.
//!
//! Connections that are over are found by visiting every entry. There may be a million, and the
//! engine handles no packet meanwhile. So one call visits at most [`SLICE`] entries, and the next
//! call goes on where it stopped. To make that possible, the entries are in a vector, with an index
//! by endpoints beside it. One large block also leaves no holes when entries go: the C library gives it
//! back as it shrinks, and what is spare at its end takes no memory as long as it wasn't used.
//!
//! A [`Walk`] goes from the vector's end to its beginning. When an entry is removed, the last entry
//! takes its place. That one was visited before, or moves to a place that is still to be visited.
//! So a walk visits every entry that existed when it began, unless it is removed. What is inserted
//! meanwhile is visited by the next walk.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::endpoints::Endpoints;
use super::room::less_room;

/// How many entries one call visits at the most.
pub(super) const SLICE: usize = 8192;

/// Values by endpoints.
#[derive(Debug)]
pub(super) struct EndpointTable<V> {
    /// Where in `entries` each is, by the hash of its endpoints. They aren't kept twice.
    index: HashTable<u32>,
    /// Nobody can choose endpoints that share a hash.
    hasher: RandomState,
    entries: Vec<(Endpoints, V)>,
}

/// A walk through a table: how many entries, from the first on, are still to be visited.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walk {
    left: usize,
}

impl Walk {
    /// Whether no entry is left to visit.
    pub(super) fn is_over(self) -> bool {
        self.left == 0
    }
}

impl<V> Default for EndpointTable<V> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            hasher: RandomState::new(),
            entries: Vec::new(),
        }
    }
}

impl<V> EndpointTable<V> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn contains(&self, ends: &Endpoints) -> bool {
        self.place(ends).is_some()
    }

    /// Where an entry is.
    fn place(&self, ends: &Endpoints) -> Option<usize> {
        let entries = &self.entries;
        let is = |at: &u32| {
            entries
                .get(*at as usize)
                .is_some_and(|(own, _)| own == ends)
        };
        let at = self.index.find(self.hasher.hash_one(ends), is)?;
        Some(*at as usize)
    }

    /// The index has this entry at `was`; it is at `at` from now on, or nowhere.
    fn moves(&mut self, ends: &Endpoints, was: usize, at: Option<u32>) {
        let hash = self.hasher.hash_one(ends);
        let found = self.index.find_entry(hash, |at| *at as usize == was);
        match (found, at) {
            (Ok(mut entry), Some(at)) => *entry.get_mut() = at,
            (Ok(entry), None) => drop(entry.remove()),
            (Err(_), _) => {}
        }
    }

    pub(super) fn get(&self, ends: &Endpoints) -> Option<&V> {
        let (_, value) = self.entries.get(self.place(ends)?)?;
        Some(value)
    }

    pub(super) fn get_mut(&mut self, ends: &Endpoints) -> Option<&mut V> {
        let at = self.place(ends)?;
        let (_, value) = self.entries.get_mut(at)?;
        Some(value)
    }

    /// Inserts or replaces a value. A table holds fewer than 2³² entries; more aren't inserted.
    pub(super) fn insert(&mut self, ends: Endpoints, value: V) {
        if let Some(old) = self.get_mut(&ends) {
            *old = value;
        } else if let Ok(at) = u32::try_from(self.entries.len()) {
            self.entries.push((ends, value));
            let hash = self.hasher.hash_one(ends);
            let hash_again = hash_of_entry(&self.hasher, &self.entries);
            self.index.insert_unique(hash, at, hash_again);
        }
    }

    pub(super) fn remove(&mut self, ends: &Endpoints) -> Option<V> {
        let at = self.place(ends)?;
        self.moves(ends, at, None);
        // The last entry takes its place.
        let end = self.entries.len().saturating_sub(1);
        if let Some((last, _)) = self.entries.last().filter(|_| at != end) {
            let last = *last;
            self.moves(&last, end, u32::try_from(at).ok());
        }
        let (_, value) = self.entries.swap_remove(at);
        self.shrink();
        Some(value)
    }

    /// Gives memory back that many entries needed, once few are left: no more than one call visits, so
    /// that no packet waits for it.
    fn shrink(&mut self) {
        let room = less_room(self.len(), self.entries.capacity());
        if let Some(room) = room.filter(|_| self.len() <= SLICE) {
            self.entries.shrink_to(room);
            let hash_again = hash_of_entry(&self.hasher, &self.entries);
            self.index.shrink_to(room, hash_again);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Endpoints, V)> {
        self.entries.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Endpoints, &mut V)> {
        self.entries.iter_mut().map(|(ends, value)| (&*ends, value))
    }

    /// A walk through what is there now.
    pub(super) fn walk(&self) -> Walk {
        Walk { left: self.len() }
    }

    /// Visits the next [`SLICE`] entries of a walk, and removes those for which `keep` returns
    /// false.
    pub(super) fn sweep(
        &mut self,
        walk: &mut Walk,
        mut keep: impl FnMut(&Endpoints, &mut V) -> bool,
    ) {
        walk.left = walk.left.min(self.len());
        let stop = walk.left.saturating_sub(SLICE);
        while walk.left > stop {
            walk.left = walk.left.saturating_sub(1);
            if let Some((ends, value)) = self.entries.get_mut(walk.left)
                && !keep(ends, value)
            {
                let ends = *ends;
                self.remove(&ends);
            }
        }
    }
}

/// The hash of the entry at a place.
fn hash_of_entry<'a, V>(
    hasher: &'a RandomState,
    entries: &'a [(Endpoints, V)],
) -> impl Fn(&u32) -> u64 + 'a {
    move |at| {
        let entry = entries.get(*at as usize);
        entry.map_or(0, |(ends, _)| hasher.hash_one(ends))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn table(entries: u32) -> EndpointTable<u32> {
        let mut table = EndpointTable::default();
        (0..entries).for_each(|n| table.insert(Endpoints::numbered(n), n));
        table
    }

    /// Every entry is where the index says.
    fn is_consistent(table: &EndpointTable<u32>) -> bool {
        let found = |(ends, n): &(Endpoints, u32)| table.get(ends) == Some(n);
        table.index.len() == table.len() && table.iter().all(found)
    }

    #[test]
    fn entries_come_and_go() {
        let mut table = table(3);
        let [first, second, third] = [0, 1, 2].map(Endpoints::numbered);
        assert_eq!(table.remove(&first), Some(0));
        assert_eq!(table.remove(&first), None);
        assert_eq!((table.get(&third), table.get(&first)), (Some(&2), None));
        table.insert(second, 7);
        assert_eq!((table.remove(&third), table.len()), (Some(2), 1));
        assert_eq!(table.remove(&second), Some(7));
        assert!(table.is_empty() && is_consistent(&table));
    }

    #[test]
    fn memory_is_given_back_when_few_entries_are_left() {
        let mut table = table(50_000);
        let room =
            |table: &EndpointTable<u32>| table.entries.capacity().max(table.index.capacity());
        assert!(room(&table) >= 50_000);
        for left in (0..50_000u32).rev() {
            table.remove(&Endpoints::numbered(left));
            let left = left as usize;
            if left <= SLICE {
                assert!(room(&table) <= 16 * left.max(32) + 256, "{left}");
            }
        }
        assert!(is_consistent(&table));
    }

    /// A walk visits all that was there when it began, a slice at a time, whatever comes and goes
    /// in between.
    #[test]
    fn a_walk_visits_everything_in_slices() {
        const ALL: u32 = 5 * SLICE as u32 / 2;
        let mut table = table(ALL);
        let mut walk = table.walk();
        let mut visited = BTreeSet::new();
        let mut removed = BTreeSet::new();
        let mut calls = 0;
        while !walk.is_over() {
            let mut visits = 0;
            table.sweep(&mut walk, |_, n| {
                visits += 1;
                visited.insert(*n);
                *n % 3 != 0
            });
            assert!(visits <= SLICE, "{visits}");
            calls += 1;
            // Between the calls: connections that begin and end, at either end of the vector.
            for n in (calls * 100..calls * 100 + 50).chain(ALL - calls * 70..ALL - calls * 70 + 50)
            {
                if table.remove(&Endpoints::numbered(n)).is_some() {
                    removed.insert(n);
                }
            }
            (0..60).for_each(|n| table.insert(Endpoints::numbered(ALL + calls * 60 + n), ALL));
            assert!(is_consistent(&table));
        }
        assert_eq!(calls, 3);
        let missed: Vec<u32> = (0..ALL)
            .filter(|n| !visited.contains(n) && !removed.contains(n))
            .collect();
        assert!(missed.is_empty(), "{missed:?}");
        assert!(
            (0..ALL)
                .step_by(3)
                .all(|n| !table.contains(&Endpoints::numbered(n)))
        );
    }
}

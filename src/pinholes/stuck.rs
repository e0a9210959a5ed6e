//! Pinholes and ranges that the kernel refused to close: closing is tried again every second.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

/// The time between two attempts to close.
const RETRY: Duration = Duration::from_secs(1);

/// What couldn't be closed, of one kind: `H` by its key `K`.
#[derive(Debug)]
pub(super) struct Stuck<K, H> {
    holes: BTreeMap<K, H>,
    /// The last one that couldn't be closed again. The next round begins behind it.
    failed: Option<K>,
    retry_at: Duration,
}

impl<K, H> Default for Stuck<K, H> {
    fn default() -> Self {
        Self {
            holes: BTreeMap::new(),
            failed: None,
            retry_at: Duration::ZERO,
        }
    }
}

impl<K: Copy + Ord, H> Stuck<K, H> {
    /// When closing is tried again.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        (!self.holes.is_empty()).then_some(self.retry_at)
    }

    /// Adds one, unless there are `limit` already: then only the kernel's timeout ends it.
    pub(super) fn add(&mut self, key: K, hole: H, limit: usize, now: Duration) {
        if self.holes.is_empty() {
            self.retry_at = now + RETRY;
        }
        if self.holes.len() < limit {
            self.holes.insert(key, hole);
        }
    }

    /// Whether one is still open.
    pub(super) fn has(&self, key: &K) -> bool {
        self.holes.contains_key(key)
    }

    /// Forgets one: another has taken its place in the kernel.
    pub(super) fn remove(&mut self, key: &K) {
        self.holes.remove(key);
    }

    /// Forgets all: nothing is in the kernel any more.
    pub(super) fn clear(&mut self) {
        self.holes.clear();
    }

    /// Tries to close all again if it is time, up to the first failure: each may take seconds while
    /// somebody holds the kernel's lock, and the plane is held meanwhile. `close` returns whether one is
    /// closed now.
    pub(super) fn retry(&mut self, now: Duration, mut close: impl FnMut(&K, &H) -> bool) {
        if self.holes.is_empty() || now < self.retry_at {
            return;
        }
        while let Some((key, hole)) = self.next() {
            if !close(&key, hole) {
                self.failed = Some(key);
                break;
            }
            self.holes.remove(&key);
        }
        self.retry_at = now + RETRY;
    }

    /// The first behind the one that failed last, round and round.
    fn next(&self) -> Option<(K, &H)> {
        let from = self.failed.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.holes.range((from, Bound::Unbounded)).next();
        let (key, hole) = behind.or_else(|| self.holes.first_key_value())?;
        Some((*key, hole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tried_again_after_a_while_and_bounded() {
        let mut stuck = Stuck::default();
        let at = |ms| Duration::from_millis(ms);
        assert_eq!(stuck.next_deadline(), None);
        for n in 0..5 {
            stuck.add(n, "hole", 3, at(100 * n));
        }
        assert_eq!(stuck.next_deadline(), Some(RETRY));
        stuck.retry(at(999), |_, _| panic!("too early"));
        let mut tried = Vec::new();
        stuck.retry(at(1000), |n, _| {
            tried.push(*n);
            *n == 0
        });
        assert_eq!(tried, [0, 1]);
        assert_eq!(stuck.next_deadline(), Some(at(1000) + RETRY));
        stuck.remove(&1);
        stuck.retry(at(3000), |_, _| true);
        assert_eq!(stuck.next_deadline(), None);
    }

    #[test]
    fn a_round_ends_with_the_first_failure_and_the_next_begins_behind_it() {
        let mut stuck = Stuck::default();
        for n in 1..=4 {
            stuck.add(n, (), 9, Duration::ZERO);
        }
        let mut round = |second, closes: &[u32]| {
            let mut tried = Vec::new();
            stuck.retry(Duration::from_secs(second), |n, ()| {
                tried.push(*n);
                closes.contains(n)
            });
            tried
        };
        assert_eq!(round(1, &[]), [1]);
        assert_eq!(round(2, &[]), [2]);
        assert_eq!(round(3, &[3]), [3, 4]);
        assert_eq!(round(4, &[1]), [1, 2]);
        assert_eq!(round(5, &[2]), [4]);
        assert_eq!(round(6, &[2, 4]), [2, 4]);
        assert!(round(7, &[]).is_empty());
    }
}

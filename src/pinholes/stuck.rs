//! Pinholes and ranges that the kernel refused to close: closing is tried again every second.

use std::collections::BTreeMap;
use std::time::Duration;

/// The time between two attempts to close.
const RETRY: Duration = Duration::from_secs(1);

/// What couldn't be closed, of one kind: `H` by its key `K`.
#[derive(Debug)]
pub(super) struct Stuck<K, H> {
    holes: BTreeMap<K, H>,
    retry_at: Duration,
}

impl<K, H> Default for Stuck<K, H> {
    fn default() -> Self {
        Self {
            holes: BTreeMap::new(),
            retry_at: Duration::ZERO,
        }
    }
}

impl<K: Ord, H> Stuck<K, H> {
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

    /// Tries to close all again if it is time. `close` returns whether one is closed now.
    pub(super) fn retry(&mut self, now: Duration, mut close: impl FnMut(&K, &H) -> bool) {
        if self.holes.is_empty() || now < self.retry_at {
            return;
        }
        self.holes.retain(|key, hole| !close(key, hole));
        self.retry_at = now + RETRY;
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
        assert_eq!(tried, [0, 1, 2]);
        assert_eq!(stuck.next_deadline(), Some(at(1000) + RETRY));
        stuck.remove(&1);
        stuck.retry(at(3000), |_, _| true);
        assert_eq!(stuck.next_deadline(), None);
    }
}

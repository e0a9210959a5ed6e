//! Pinholes that were used, and are closed together a moment later.
//!
//! The backend itself keeps a second connection out for some time ([`Backend::holds`]). So one change of
//! the kernel's tables can close the pinholes of many connections, and no thread need wake up for each
//! of them.
//!
//! [`Backend::holds`]: super::backend::Backend::holds

use std::collections::HashMap;
use std::time::Duration;

use super::{Pinhole, PinholeKey};

/// Pinholes that were used and are open in the kernel.
#[derive(Debug, Default)]
pub(super) struct Used {
    holes: HashMap<PinholeKey, Pinhole>,
    /// When the first of them is to be closed, and all others with it.
    deadline: Option<Duration>,
}

impl Used {
    /// Adds pinholes whose use was told just before they are to be closed, at `until` at the latest.
    pub(super) fn add(&mut self, holes: Vec<Pinhole>, until: Duration) {
        if !holes.is_empty() {
            self.deadline.get_or_insert(until);
        }
        let by_key = holes.into_iter().map(|hole| (hole.key(), hole));
        self.holes.extend(by_key);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.holes.len()
    }

    /// Whether the one with this key is among them.
    pub(super) fn has(&self, key: &PinholeKey) -> bool {
        self.holes.contains_key(key)
    }

    /// Another pinhole has taken the place of the one with this key.
    pub(super) fn replaced(&mut self, key: &PinholeKey) {
        self.holes.remove(key);
    }

    /// When they are to be closed.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// All of them if it is time to close them.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Pinhole> {
        match self.deadline.is_some_and(|deadline| deadline <= now) {
            true => self.take(),
            false => Vec::new(),
        }
    }

    /// All of them.
    pub(super) fn take(&mut self) -> Vec<Pinhole> {
        self.deadline = None;
        std::mem::take(&mut self.holes).into_values().collect()
    }
}

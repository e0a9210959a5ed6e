//! The rules of pinholes, or of ranges, that are in the kernel, and how they are changed there.
//!
//! Which should be open is for the plane to say. What is kept here is the text of their rules, which
//! the tools need to delete them.

use std::collections::BTreeMap;

use super::lines::{RuleLine, transaction, verb_lines};
use super::{Host, NatTable};
use crate::net::Family;
use crate::pinholes::backend::BackendError;
use crate::pinholes::{PinholeKey, RangeKey};

/// How often opening is tried again while others are being closed.
const ATTEMPTS: usize = 3;

/// The key of a pinhole or of a range.
pub(super) trait HoleKey: Copy + Ord {
    fn family(self) -> Family;
}

impl HoleKey for PinholeKey {
    fn family(self) -> Family {
        Family::of(self.from)
    }
}

impl HoleKey for RangeKey {
    fn family(self) -> Family {
        Family::of(self.from)
    }
}

/// All open pinholes, or all open ranges: they have chains of their own.
#[derive(Debug)]
pub(super) struct Open<K> {
    chains: [&'static str; 2],
    holes: BTreeMap<K, Vec<RuleLine>>,
}

/// The table `nat` of a family, and the tools to change it.
pub(super) struct Nat<'a> {
    pub(super) host: &'a Host,
    pub(super) table: NatTable,
}

impl<K: HoleKey> Open<K> {
    pub(super) fn new(chains: [&'static str; 2]) -> Self {
        Self {
            chains,
            holes: BTreeMap::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.holes.clear();
    }

    pub(super) fn contains(&self, key: K) -> bool {
        self.holes.contains_key(&key)
    }

    /// Adds those whose rules are in the kernel now.
    pub(super) fn extend(&mut self, holes: Vec<(K, Vec<RuleLine>)>) {
        self.holes.extend(holes);
    }

    /// Takes some out, with their rules, which the caller removes from the kernel.
    pub(super) fn take(&mut self, keys: &[K]) -> Vec<(K, Vec<RuleLine>)> {
        let entries = keys.iter().filter_map(|key| self.holes.remove_entry(key));
        entries.collect()
    }

    /// All rules of a family.
    pub(super) fn lines(&self, family: Family) -> impl Iterator<Item = &RuleLine> {
        let holes = self.holes.iter();
        holes
            .filter(move |(key, _)| key.family() == family)
            .flat_map(|(_, lines)| lines)
    }

    /// Replaces the rules of a key, in one commit; no rules close it. `first`: the new ones come before
    /// all others.
    ///
    /// If somebody else removed some of the old rules, fills the chains again with all that they
    /// should hold.
    pub(super) fn change(
        &mut self,
        nat: &Nat<'_>,
        key: K,
        new: Vec<RuleLine>,
        first: bool,
    ) -> Result<(), BackendError> {
        let old = self.holes.remove(&key).unwrap_or_default();
        let text = transaction(&old, &new, first);
        let mut done = nat.restore(&text);
        if first {
            // iptables-nft inserts before the rule that it saw first, which may be gone by then.
            for _ in 0..ATTEMPTS {
                done = done.or_else(|_| nat.restore(&text));
            }
        }
        if done.is_err() && old.is_empty() {
            // The tool may have been ended just after its commit. If this fails, the chains are gone.
            let _ = self.refill(nat);
            return done;
        }
        let opens = !new.is_empty();
        if opens {
            self.holes.insert(key, new);
        }
        let Err(error) = done.or_else(|_| self.refill(nat)) else {
            return Ok(());
        };
        if opens {
            self.holes.remove(&key);
        }
        let old = (!old.is_empty()).then_some((key, old));
        if self.stay(nat, old) || opens {
            Err(error)
        } else {
            Ok(())
        }
    }

    /// Makes the chains hold what they should after rules could not be removed.
    pub(super) fn mend(
        &mut self,
        nat: &Nat<'_>,
        removed: impl IntoIterator<Item = (K, Vec<RuleLine>)>,
    ) -> Result<(), BackendError> {
        match self.refill(nat) {
            Err(error) if self.stay(nat, removed) => Err(error),
            _ => Ok(()),
        }
    }

    /// Fills our chains again with exactly the rules that they should hold. Fails if they are gone.
    fn refill(&self, nat: &Nat<'_>) -> Result<(), BackendError> {
        let [pre, post] = self.chains;
        let lines = verb_lines("-A", self.lines(nat.table.family));
        nat.restore(&format!("*nat\n-F {pre}\n-F {post}\n{lines}COMMIT\n"))
    }

    /// Remembers rules that may still be there, so that closing can be tried again. `false` if our
    /// chains are gone: then nothing is open.
    fn stay(
        &mut self,
        nat: &Nat<'_>,
        removed: impl IntoIterator<Item = (K, Vec<RuleLine>)>,
    ) -> bool {
        let family = nat.table.family;
        let there = nat.has_chain(self.chains[0]);
        if there {
            for (key, lines) in removed {
                self.holes.entry(key).or_default().extend(lines);
            }
        } else {
            self.holes.retain(|key, _| key.family() != family);
        }
        there
    }
}

impl Nat<'_> {
    fn restore(&self, text: &str) -> Result<(), BackendError> {
        self.table.restore(text)
    }

    /// Whether a chain is there; true as well if that can't be told.
    fn has_chain(&self, name: &str) -> bool {
        let table = &self.table;
        self.host.snapshot().map_or(true, |snapshot| {
            let nat = snapshot.table(table.family, table.flavour, "nat");
            nat.is_some_and(|table| table.chain(name).is_some())
        })
    }
}

//! The holes of one kind that are in the kernel, and how their rules are changed there.

use std::collections::BTreeMap;

use super::lines::{RuleLine, transaction, verb_lines};
use super::{Host, NatTable};
use crate::net::Family;
use crate::pinholes::backend::BackendError;
use crate::pinholes::{PinholeKey, RangeKey};

/// How often a hole is tried again to be opened while others are being closed.
const ATTEMPTS: usize = 3;

/// What identifies a hole.
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

/// The holes that are open, in chains of their own.
#[derive(Debug)]
pub(super) struct Open<K> {
    chains: [&'static str; 2],
    holes: BTreeMap<K, Vec<RuleLine>>,
}

/// A table `nat` of the host's.
#[derive(Clone, Copy)]
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

    /// Counts holes in whose rules were put into the kernel.
    pub(super) fn extend(&mut self, holes: Vec<(K, Vec<RuleLine>)>) {
        self.holes.extend(holes);
    }

    /// Forgets holes, whose rules are being removed.
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

    /// Takes the rules of some holes out and puts those of another one in, all at once, `first`
    /// before all that are there.
    ///
    /// If somebody else removed some of them meanwhile, fills the chains anew with all that should
    /// be in there.
    pub(super) fn change(
        &mut self,
        nat: Nat<'_>,
        out: &[K],
        into: Option<(K, Vec<RuleLine>)>,
        first: bool,
    ) -> Result<(), BackendError> {
        let removed = self.take(out);
        let old: Vec<RuleLine> = removed.iter().flat_map(|(_, l)| l.clone()).collect();
        let new = into.as_ref().map_or(&[][..], |(_, lines)| lines);
        let text = transaction(&old, new, first);
        let mut done = nat.restore(&text);
        if first {
            // iptables-nft says "before the rule that is the first now": it may be gone by then.
            for _ in 0..ATTEMPTS {
                done = done.or_else(|_| nat.restore(&text));
            }
        }
        if done.is_err() && old.is_empty() {
            return done;
        }
        let added = into.map(|(key, lines)| {
            self.holes.insert(key, lines);
            key
        });
        let Err(error) = done.or_else(|_| self.refill(nat)) else {
            return Ok(());
        };
        if let Some(key) = added {
            self.holes.remove(&key);
        }
        if self.stay(nat, removed) || added.is_some() {
            Err(error)
        } else {
            Ok(())
        }
    }

    /// Learns that the rules of some holes could not be removed: makes the chains hold what they
    /// should.
    pub(super) fn mend(
        &mut self,
        nat: Nat<'_>,
        removed: impl IntoIterator<Item = (K, Vec<RuleLine>)>,
    ) -> Result<(), BackendError> {
        match self.refill(nat) {
            Err(error) if self.stay(nat, removed) => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes our chains hold exactly the holes that are open. Fails if the chains are gone.
    fn refill(&self, nat: Nat<'_>) -> Result<(), BackendError> {
        let [pre, post] = self.chains;
        let lines = verb_lines("-A", self.lines(nat.table.family));
        nat.restore(&format!("*nat\n-F {pre}\n-F {post}\n{lines}COMMIT\n"))
    }

    /// Keeps holes whose rules may still be there, to be tried again. `false` if our chains are
    /// gone: then no hole is open.
    fn stay(
        &mut self,
        nat: Nat<'_>,
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
    pub(super) fn restore(self, text: &str) -> Result<(), BackendError> {
        let NatTable {
            family, flavour, ..
        } = self.table;
        Ok(self.host.restore(family, flavour, text)?)
    }

    /// Whether a chain is there, or that can't be told.
    fn has_chain(self, name: &str) -> bool {
        let NatTable {
            family, flavour, ..
        } = self.table;
        self.host.snapshot().map_or(true, |snapshot| {
            let nat = snapshot.table(family, flavour, "nat");
            nat.is_some_and(|table| table.chain(name).is_some())
        })
    }
}

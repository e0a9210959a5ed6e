//! The rules of pinholes, or of ranges, that are in the kernel, and how they are changed there.
//!
//! Which should be open is for the plane to say. What is kept here is what deletes their rules: their
//! text, for the tools, and their handles.

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

/// The rules of a pinhole or range.
#[derive(Clone, Debug, Default)]
pub(super) struct HoleRules {
    pub(super) lines: Vec<RuleLine>,
    /// The kernel's handle of each; none if the tool has added them.
    handles: Vec<u64>,
    /// The handle of the table that they were added to, or of an earlier one.
    table: u64,
}

impl HoleRules {
    /// What was added over netlink after a look at the [table](super::handles::NatHandle).
    pub(super) fn with_handles(lines: Vec<RuleLine>, handles: Vec<u64>, table: u64) -> Self {
        Self {
            lines,
            handles,
            table,
        }
    }

    /// The chain and the handle of each; `None` if they aren't known in the table that is there now.
    pub(super) fn handles(&self, now: u64) -> Option<impl Iterator<Item = (&'static str, u64)>> {
        let chains = self.lines.iter().map(|(chain, _)| *chain);
        let all = self.lines.len() == self.handles.len() && self.table == now && now != 0;
        all.then(|| chains.zip(self.handles.iter().copied()))
    }
}

impl From<Vec<RuleLine>> for HoleRules {
    /// What the tool has added.
    fn from(lines: Vec<RuleLine>) -> Self {
        Self::with_handles(lines, Vec::new(), 0)
    }
}

/// All open pinholes, or all open ranges: they have chains of their own.
#[derive(Debug)]
pub(super) struct Open<K> {
    chains: [&'static str; 2],
    holes: BTreeMap<K, HoleRules>,
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

    /// The rules of one.
    pub(super) fn get(&self, key: K) -> Option<&HoleRules> {
        self.holes.get(&key)
    }

    /// Adds one whose rules are in the kernel now, in place of those that it had.
    pub(super) fn insert(&mut self, key: K, rules: HoleRules) {
        self.holes.insert(key, rules);
    }

    /// Adds those whose rules the tool has added.
    pub(super) fn extend(&mut self, holes: Vec<(K, Vec<RuleLine>)>) {
        let holes = holes.into_iter();
        self.holes
            .extend(holes.map(|(key, lines)| (key, lines.into())));
    }

    /// Takes some out, with their rules, which the caller removes from the kernel.
    pub(super) fn take(&mut self, keys: &[K]) -> Vec<(K, HoleRules)> {
        let entries = keys.iter().filter_map(|key| self.holes.remove_entry(key));
        entries.collect()
    }

    /// All rules of a family.
    pub(super) fn lines(&self, family: Family) -> impl Iterator<Item = &RuleLine> {
        let holes = self.holes.iter();
        holes
            .filter(move |(key, _)| key.family() == family)
            .flat_map(|(_, rules)| &rules.lines)
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
        let text = transaction(&old.lines, &new, first);
        let mut done = nat.restore(&text);
        if first {
            // iptables-nft inserts before the rule that it saw first, which may be gone by then.
            for _ in 0..ATTEMPTS {
                done = done.or_else(|_| nat.restore(&text));
            }
        }
        if done.is_err() && old.lines.is_empty() {
            // The tool may have been ended just after its commit. If this fails, the chains are gone.
            let _ = self.refill(nat);
            return done;
        }
        let opens = !new.is_empty();
        if opens {
            self.holes.insert(key, new.into());
        }
        let Err(error) = done.or_else(|_| self.refill(nat)) else {
            return Ok(());
        };
        if opens {
            self.holes.remove(&key);
        }
        let old = (!old.lines.is_empty()).then_some((key, old));
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
        removed: impl IntoIterator<Item = (K, HoleRules)>,
    ) -> Result<(), BackendError> {
        match self.refill(nat) {
            Err(error) if self.stay(nat, removed) => Err(error),
            _ => Ok(()),
        }
    }

    /// Fills our chains again with exactly the rules that they should hold. Fails if they are gone.
    fn refill(&mut self, nat: &Nat<'_>) -> Result<(), BackendError> {
        let [pre, post] = self.chains;
        let family = nat.table.family;
        let lines = verb_lines("-A", self.lines(family));
        for (_, rules) in self
            .holes
            .iter_mut()
            .filter(|(key, _)| key.family() == family)
        {
            rules.handles.clear();
        }
        nat.restore(&format!("*nat\n-F {pre}\n-F {post}\n{lines}COMMIT\n"))
    }

    /// Remembers rules that may still be there, so that closing can be tried again. `false` if our
    /// chains are gone: then nothing is open.
    fn stay(&mut self, nat: &Nat<'_>, removed: impl IntoIterator<Item = (K, HoleRules)>) -> bool {
        let family = nat.table.family;
        let there = nat.has_chain(self.chains[0]);
        if there {
            for (key, rules) in removed {
                let all = self.holes.entry(key).or_default();
                all.lines.extend(rules.lines);
                all.handles.clear();
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

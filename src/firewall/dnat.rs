//! Finds the ports that the user's DNAT and redirect rules publish, where these are written for nft
//! itself, in tables of any name.
//!
//! Reading starts at the base chains of type nat at the prerouting hook. [`collect`](mod@collect)
//! says which other chains, sets and maps it needs. Only these are fetched, until it needs no more.
//! Tables that iptables-nft can show are left to `published`.

mod collect;
#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::errno::Errno;

use super::is_our_chain;
use super::names::{ACCEPT_COMMENT, is_our_table};
use super::native::{base_chains, is_iptables};
use super::published::Published;
use crate::firewall::tables;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::netlink::codec::Message;
use crate::netlink::nftables::set::{self, Set};
use crate::netlink::nftables::{attr, comment, hook, msg};
use crate::netlink::socket::{NetlinkRequest, Socket};

use collect::NftTable;

/// The most chains, rules and elements that are read in all, and elements of one set.
const CHAINS: usize = 1024;
const RULES: usize = 8192;
const ELEMENTS: usize = 65_536;
const ELEMENTS_OF_SET: usize = 4096;

/// A set or map of nf_tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetName {
    /// The family of its table, `NFPROTO_*`.
    pub family: u8,
    /// The name of its table.
    pub table: String,
    /// Its name.
    pub name: String,
}

/// What native rules publish.
#[derive(Debug, Default)]
pub(super) struct Native {
    pub(super) published: Vec<Published>,
    /// What it depends on besides the rules.
    pub(super) sets: BTreeSet<SetName>,
    /// Whether there was more than is read.
    pub(super) cut: bool,
}

/// Reads what native rules publish; nothing on a kernel without nf_tables.
pub(super) fn published(snapshot: &Snapshot) -> io::Result<Native> {
    let mut native = Native::default();
    let Some((socket, chains)) = base_chains("nat")? else {
        return Ok(native);
    };
    let mut bases: BTreeMap<(u8, String), Vec<String>> = BTreeMap::new();
    for chain in chains {
        let hooked = chain.base.as_ref().map(|base| base.hook);
        if hooked == Some(hook::PREROUTING)
            && !is_our_table(&chain.table)
            && !is_iptables(snapshot, &chain)
        {
            let of_table = bases.entry((chain.family, chain.table)).or_default();
            of_table.push(chain.name);
        }
    }
    let mut reader = RuleReader::new(socket);
    for ((family, name), bases) in bases {
        reader.table(family, &name, &bases, &mut native)?;
    }
    native.cut |= reader.cut;
    Ok(native)
}

/// Asks the kernel, as long as there is room.
pub(super) struct RuleReader {
    socket: Socket,
    /// How many are left.
    chains: usize,
    rules: usize,
    elements: usize,
    pub(super) cut: bool,
}

impl RuleReader {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            chains: CHAINS,
            rules: RULES,
            elements: ELEMENTS,
            cut: false,
        }
    }

    fn table(
        &mut self,
        family: u8,
        name: &str,
        bases: &[String],
        native: &mut Native,
    ) -> io::Result<()> {
        let mut table = NftTable::default();
        // Each round reads chains or sets that weren't known: it ends.
        loop {
            let found = collect::collect(&table, bases);
            if found.chains.is_empty() && found.sets.is_empty() {
                native.published.extend(found.published);
                native.cut |= found.cut;
                break;
            }
            for chain in found.chains {
                let rules = self.rules(family, name, &chain)?;
                table.chains.insert(chain, rules);
            }
            for set in found.sets {
                let content = self.set(family, name, &set)?;
                table.sets.insert(set, content);
            }
        }
        native
            .sets
            .extend(table.sets.into_keys().map(|set| SetName {
                family,
                table: name.to_owned(),
                name: set,
            }));
        Ok(())
    }

    /// The rules of a chain, without ours.
    pub(super) fn rules(
        &mut self,
        family: u8,
        table: &str,
        chain: &str,
    ) -> io::Result<Vec<Vec<u8>>> {
        if is_our_chain(chain) {
            return Ok(Vec::new());
        }
        if self.chains == 0 || self.rules == 0 {
            self.cut = true;
            return Ok(Vec::new());
        }
        let request = tables::rules_of(family, table, Some(chain));
        let (rules, complete) = self.socket.dump_some(&request, self.rules, |message| {
            let is = |kind, name| message.attrs().find(kind).and_then(|a| a.text()) == Some(name);
            let userdata = message.attrs().find(attr::RULE_USERDATA);
            let ours = userdata.is_some_and(|data| data.value == comment(0, ACCEPT_COMMENT));
            let meant = message.family() == family
                && is(attr::RULE_TABLE, table)
                && is(attr::RULE_CHAIN, chain)
                && !ours;
            meant.then(|| expressions(message))
        })?;
        self.chains -= 1;
        self.rules -= rules.len();
        self.cut |= !complete;
        Ok(rules)
    }

    /// A set or map; `None` if it can't be read.
    pub(super) fn set(&mut self, family: u8, table: &str, name: &str) -> io::Result<Option<Set>> {
        let limit = self.elements.min(ELEMENTS_OF_SET);
        if limit == 0 {
            self.cut = true;
            return Ok(None);
        }
        let about = |kind, table_attr, name_attr| NetlinkRequest {
            kind,
            flags: 0,
            family,
            attrs: Box::new(move |b| {
                b.text(table_attr, table);
                b.text(name_attr, name);
            }),
        };
        let set = about(msg::GET_SET, attr::SET_TABLE, attr::SET_NAME);
        let elements = about(msg::GET_ELEM, attr::ELEMS_TABLE, attr::ELEMS_SET);
        let flags = self.socket.get(&set, set::flags);
        let content = flags.and_then(|flags| {
            let content = self.socket.dump_some(&elements, limit, set::elements)?;
            Ok((flags, content))
        });
        match content {
            Ok((flags, (elements, complete))) => {
                self.elements -= elements.len();
                Ok(Some(Set::new(flags, elements, complete)))
            }
            // It was deleted meanwhile: a notification follows.
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The expressions of a rule.
fn expressions(message: &Message<'_>) -> Vec<u8> {
    let list = message.attrs().find(attr::RULE_EXPRESSIONS);
    list.map_or_else(Vec::new, |list| list.value.to_vec())
}

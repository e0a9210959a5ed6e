//! Removes rules of iptables-nft by their handles.
//!
//! Where a tool removes a rule that it is told by its text, it compares it with all rules of the chain. For
//! several hundred pinholes that takes seconds. The kernel tells the handles of rules that are added over
//! netlink. Those of others are found by the number in their comments.
//!
//! A restore without `--noflush` replaces the table, with our rules in it. Then their handles are others, and
//! the old ones may be those of other rules. So the table's own handle is looked at before.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lines::serial_of_spec;
use super::open::HoleRules;
use crate::firewall::names::TAG;
use crate::firewall::tables::{rules_of, table_on};
use crate::net::Family;
use crate::netlink::codec::{Attrs, Builder, Message};
use crate::netlink::nftables::expression::{self, Expression};
use crate::netlink::nftables::{attr, msg};
use crate::netlink::socket::{NetlinkRequest, Socket};
use crate::pinholes::backend::BackendError;

/// How many rules one batch removes.
const BATCH: usize = 512;

/// The handle of a family's table `nat` when it was last looked at; 0: it isn't known. No other table ever
/// has the same.
#[derive(Debug, Default)]
pub(super) struct NatHandle(AtomicU64);

impl NatHandle {
    /// Looks at the table now.
    pub(super) fn look(&self, socket: &mut Socket, family: Family) -> u64 {
        let table = table_on(socket, family.number(), "nat");
        let handle = table.map_or(0, |table| table.handle);
        self.0.store(handle, Ordering::Relaxed);
        handle
    }

    /// What the last look has found. Handles that are learned from now on are those of rules of this table,
    /// or of a later one.
    pub(super) fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Removes rules from table `nat`.
///
/// # Errors
/// Some are still there, or somebody else has changed them.
pub(super) fn delete(
    family: Family,
    nat: &NatHandle,
    rules: &[HoleRules],
) -> Result<(), BackendError> {
    delete_rules(family, nat, rules).map_err(|source| BackendError::System {
        what: "can't remove the rules of pinholes",
        source,
    })
}

fn delete_rules(family: Family, nat: &NatHandle, rules: &[HoleRules]) -> io::Result<()> {
    let mut socket = Socket::open()?;
    let table = nat.look(&mut socket, family);
    let mut found: Vec<_> = rules
        .iter()
        .filter_map(|rules| rules.handles(table))
        .flatten()
        .collect();
    let unknown = rules.iter().filter(|rules| rules.handles(table).is_none());
    let mut chains: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (chain, spec) in unknown.flat_map(|rules| &rules.lines) {
        chains
            .entry(chain)
            .or_default()
            .extend(serial_of_spec(spec));
    }
    for (chain, mut serials) in chains {
        serials.sort_unstable();
        let request = rules_of(family.number(), "nat", Some(chain));
        found.extend(socket.dump(&request, |message| {
            let (handle, serial) = handle(message, chain)?;
            serials
                .binary_search(&serial)
                .is_ok()
                .then_some((chain, handle))
        })?);
    }
    let wanted: usize = rules.iter().map(|rules| rules.lines.len()).sum();
    if found.len() != wanted {
        return Err(io::Error::other("somebody else has changed them"));
    }
    for some in found.chunks(BATCH) {
        let requests: Vec<_> = some
            .iter()
            .map(|&(chain, handle)| deletion(family, chain, handle))
            .collect();
        socket.batch(&requests)?;
    }
    Ok(())
}

/// What the kernel tells of a rule, if it is in this chain of table `nat`: old kernels tell of all rules.
pub(super) fn rule_in<'a>(message: &Message<'a>, chain: &str) -> Option<Attrs<'a>> {
    let text = |kind| message.attrs().find(kind)?.text();
    let is_in = text(attr::RULE_TABLE)? == "nat" && text(attr::RULE_CHAIN)? == chain;
    is_in.then(|| message.attrs())
}

/// The handle of a rule in a chain of table `nat`, and the number in its comment.
fn handle(message: &Message<'_>, chain: &str) -> Option<(u64, u64)> {
    let rule = rule_in(message, chain)?;
    let find = |kind| rule.find(kind);
    let handle = find(attr::RULE_HANDLE)?.be64()?;
    let in_match = find(attr::RULE_EXPRESSIONS)
        .and_then(|list| expression::read(list.value).find_map(|one| comment_of_match(&one)));
    let in_userdata = || find(attr::RULE_USERDATA).and_then(|data| comment_of_userdata(data.value));
    let comment = in_match.or_else(in_userdata)?;
    let serial = comment.strip_prefix(TAG)?.strip_prefix("pinhole ")?;
    Some((handle, serial.parse().ok()?))
}

/// `struct xt_comment_info`: a text that ends with NUL.
fn comment_of_match<'a>(one: &Expression<'a>) -> Option<&'a str> {
    match one {
        Expression::XtMatch(extension) if extension.name == "comment" => until_nul(extension.info),
        _ => None,
    }
}

/// `NFTNL_UDATA_RULE_COMMENT`: a type (0), a length, and a text that ends with NUL.
fn comment_of_userdata(data: &[u8]) -> Option<&str> {
    match data {
        [0, length, rest @ ..] => until_nul(rest.get(..usize::from(*length))?),
        _ => None,
    }
}

fn until_nul(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// A request that removes a rule.
pub(super) fn deletion(family: Family, chain: &str, handle: u64) -> NetlinkRequest<'_> {
    NetlinkRequest {
        kind: msg::DEL_RULE,
        flags: 0,
        family: family.number(),
        attrs: Box::new(move |b: &mut Builder| {
            b.text(attr::RULE_TABLE, "nat")
                .text(attr::RULE_CHAIN, chain)
                .be64(attr::RULE_HANDLE, handle);
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_comments_are_read() {
        let mut info = b"ftpalg:pinhole 7".to_vec();
        info.resize(256, 0);
        assert_eq!(until_nul(&info), Some("ftpalg:pinhole 7"));
        assert_eq!(comment_of_userdata(b"\0\x03ab\0"), Some("ab"));
        for other in [&b""[..], b"\0", b"\0\x04ab\0", b"\x01\x03ab\0"] {
            assert_eq!(comment_of_userdata(other), None, "{other:?}");
        }
    }
}

//! The tables and chains of nf_tables: lists them, and deletes those that are empty.

use std::io;

use super::PINHOLE_TABLE;
use crate::netlink::codec::{Builder, Message};
use crate::netlink::nftables::{ONLY_IF_EMPTY, attr, msg, policy};
use crate::netlink::socket::{NetlinkRequest, Socket};

/// An nf_tables table. `iptables-nft` keeps its rules in tables named as those of iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// `NFPROTO_*`: see [`family`](crate::netlink::nftables::family).
    pub family: u8,
    /// Its name.
    pub name: String,
    /// Its handle: no other table ever has the same.
    pub handle: u64,
    /// How many chains, sets and other objects it holds.
    pub objects: u32,
    /// The netlink port of the socket that owns it, where it has an owner.
    pub owner: Option<u32>,
}

/// An nf_tables chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// The family of its table: see [`TableInfo::family`].
    pub family: u8,
    /// The name of its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its handle: no other chain of its table ever has the same.
    pub handle: u64,
    /// Where it is hooked in; `None` for chains that are only jumped to.
    pub base: Option<BaseChain>,
    /// How many rules it has; for other than base chains, plus those that jump to it.
    pub rules: u32,
}

/// What only a base chain has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `NF_INET_*`: see [`hook`](crate::netlink::nftables::hook).
    pub hook: u32,
    /// Its place among the chains of that hook, as the kernel counts: lower comes first.
    pub priority: i32,
    /// Whether packets that reach its end are dropped.
    pub drops: bool,
}

/// Whether the kernel has nf_tables and lets this process use it.
#[must_use]
pub fn available() -> bool {
    Socket::open()
        .and_then(|mut socket| socket.get(&question(msg::GET_GEN), |_| ()))
        .is_ok()
}

/// All tables of this network namespace.
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_NET_ADMIN`.
pub fn tables() -> io::Result<Vec<TableInfo>> {
    tables_on(&mut Socket::open()?)
}

/// All tables of the network namespace that a socket was opened in.
pub(crate) fn tables_on(socket: &mut Socket) -> io::Result<Vec<TableInfo>> {
    socket.dump(&question(msg::GET_TABLE), parse_table)
}

/// A table of the network namespace that a socket was opened in.
pub(crate) fn table_on(socket: &mut Socket, family: u8, name: &str) -> io::Result<TableInfo> {
    let question = NetlinkRequest {
        kind: msg::GET_TABLE,
        flags: 0,
        family,
        attrs: Box::new(move |b| {
            b.text(attr::TABLE_NAME, name);
        }),
    };
    socket
        .get(&question, parse_table)?
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// All chains of this network namespace.
///
/// # Errors
/// As [`tables`].
pub fn chains() -> io::Result<Vec<ChainInfo>> {
    chains_on(&mut Socket::open()?)
}

/// All chains of the network namespace that a socket was opened in.
pub(crate) fn chains_on(socket: &mut Socket) -> io::Result<Vec<ChainInfo>> {
    socket.dump(&question(msg::GET_CHAIN), parse_chain)
}

/// Deletes a chain without rules.
///
/// # Errors
/// `ENOENT` if there is none, `EBUSY` if it isn't empty, and what else the kernel says.
pub fn delete_chain(family: u8, table: &str, chain: &str) -> io::Result<()> {
    delete_empty(msg::DEL_CHAIN, family, move |b| {
        b.text(attr::CHAIN_TABLE, table);
        b.text(attr::CHAIN_NAME, chain);
    })
}

/// Deletes a table without chains, sets and other objects.
///
/// # Errors
/// As [`delete_chain`].
pub fn delete_table(family: u8, table: &str) -> io::Result<()> {
    delete_empty(msg::DEL_TABLE, family, move |b| {
        b.text(attr::TABLE_NAME, table);
    })
}

/// Deletes the nft backend's tables that have no owner: those of a killed daemon. Returns how many
/// rules they had.
///
/// # Errors
/// As [`tables`]; `EPERM` if a program took one of them meanwhile.
pub fn remove_abandoned() -> io::Result<usize> {
    let mut socket = Socket::open()?;
    let mut tables = tables_on(&mut socket)?;
    tables.retain(|table| table.name == PINHOLE_TABLE && table.owner.is_none());
    if tables.is_empty() {
        return Ok(0);
    }
    let chains = chains_on(&mut socket)?;
    let deletions: Vec<_> = tables
        .iter()
        .map(|table| NetlinkRequest {
            kind: msg::DEL_TABLE,
            flags: 0,
            family: table.family,
            attrs: Box::new(|b| {
                b.text(attr::TABLE_NAME, PINHOLE_TABLE);
            }),
        })
        .collect();
    socket.batch(&deletions)?;
    let of = |chain: &&ChainInfo| {
        let mut tables = tables.iter();
        tables.any(|table| table.family == chain.family && table.name == chain.table)
    };
    let rules = chains.iter().filter(of).map(|chain| chain.rules);
    Ok(rules.filter_map(|n| usize::try_from(n).ok()).sum())
}

fn delete_empty(kind: u16, family: u8, name: impl Fn(&mut Builder)) -> io::Result<()> {
    let delete = NetlinkRequest {
        kind,
        flags: ONLY_IF_EMPTY,
        family,
        attrs: Box::new(name),
    };
    Ok(Socket::open()?.batch(&[delete])?)
}

/// Asks for the rules of a table, or of one of its chains. Old kernels answer with those of all.
pub(crate) fn rules_of<'a>(
    family: u8,
    table: &'a str,
    chain: Option<&'a str>,
) -> NetlinkRequest<'a> {
    NetlinkRequest {
        kind: msg::GET_RULE,
        flags: 0,
        family,
        attrs: Box::new(move |b| {
            b.text(attr::RULE_TABLE, table);
            if let Some(chain) = chain {
                b.text(attr::RULE_CHAIN, chain);
            }
        }),
    }
}

/// About all families.
fn question(kind: u16) -> NetlinkRequest<'static> {
    NetlinkRequest {
        kind,
        flags: 0,
        family: 0,
        attrs: Box::new(|_| {}),
    }
}

fn parse_table(message: &Message<'_>) -> Option<TableInfo> {
    let find = |kind| message.attrs().find(kind);
    Some(TableInfo {
        family: message.family(),
        name: find(attr::TABLE_NAME)?.text()?.to_owned(),
        handle: find(attr::TABLE_HANDLE)?.be64()?,
        objects: find(attr::TABLE_USE)?.be32()?,
        owner: find(attr::TABLE_OWNER).and_then(|attr| attr.be32()),
    })
}

fn parse_chain(message: &Message<'_>) -> Option<ChainInfo> {
    let find = |kind| message.attrs().find(kind);
    let text = |kind| Some(find(kind)?.text()?.to_owned());
    let base = find(attr::CHAIN_HOOK).and_then(|hook| {
        Some(BaseChain {
            kind: text(attr::CHAIN_TYPE)?,
            hook: hook.nested().find(attr::HOOK_NUM)?.be32()?,
            priority: hook
                .nested()
                .find(attr::HOOK_PRIORITY)?
                .be32()?
                .cast_signed(),
            drops: find(attr::CHAIN_POLICY)?.be32()? == policy::DROP,
        })
    });
    Some(ChainInfo {
        family: message.family(),
        table: text(attr::CHAIN_TABLE)?,
        name: text(attr::CHAIN_NAME)?,
        handle: find(attr::CHAIN_HANDLE)?.be64()?,
        base,
        rules: find(attr::CHAIN_USE)?.be32()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::Messages;

    #[test]
    fn a_base_chain_is_read() {
        let mut b = Builder::new();
        b.message(msg::NEW_CHAIN, 0, 1, 2, 0)
            .text(attr::CHAIN_TABLE, "filter")
            .text(attr::CHAIN_NAME, "FORWARD")
            .be64(attr::CHAIN_HANDLE, 3)
            .nest(attr::CHAIN_HOOK, |b| {
                b.be32(attr::HOOK_NUM, 2)
                    .be32(attr::HOOK_PRIORITY, (-5i32).cast_unsigned());
            })
            .be32(attr::CHAIN_POLICY, 0)
            .be32(attr::CHAIN_USE, 3)
            .text(attr::CHAIN_TYPE, "filter");
        let bytes = b.finish().unwrap();
        assert_eq!(
            parse_chain(&Messages::new(&bytes).next().unwrap()),
            Some(ChainInfo {
                family: 2,
                table: "filter".into(),
                name: "FORWARD".into(),
                handle: 3,
                base: Some(BaseChain {
                    kind: "filter".into(),
                    hook: 2,
                    priority: -5,
                    drops: true,
                }),
                rules: 3,
            })
        );
    }
}

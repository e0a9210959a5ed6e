//! Rules of ours in tables of iptables-nft, where none of its tools is: another ftpalg left them, that
//! had the tools. They are found in nf_tables, and removed over netlink, with what was made for them.

use std::collections::BTreeSet;
use std::io;

use super::left::Unread;
use super::names::{ACCEPT_COMMENT, NEW_CHAIN, NEW_TABLE, TAG, is_our_chain};
use super::own_table::queues;
use super::tables;
use super::xtables::snapshot::Snapshot;
use super::xtables::{self, Flavour};
use crate::net::Family;
use crate::netlink::codec::Message;
use crate::netlink::nftables::expression::{self, Expression, Extension, RuleVerdict};
use crate::netlink::nftables::{attr, msg};
use crate::netlink::socket::{NetlinkRequest, Socket};

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stray {
    /// How many rules.
    pub(crate) rules: usize,
    /// What they do with control packets that nobody looks at.
    pub(crate) control: Option<Unread>,
}

/// A rule of ours.
#[derive(Debug)]
struct StrayRule {
    chain: String,
    handle: u64,
    comment: String,
    /// Whether it queues packets, and then, whether they pass while nobody reads the queue.
    queues: Option<bool>,
}

/// Looks for them in these tables of iptables.
pub(crate) fn find(snapshot: &Snapshot, tables: &[&str]) -> io::Result<Stray> {
    let mut stray = Stray::default();
    for (_, _, rules) in all(snapshot, tables)? {
        stray.rules += rules.len();
        for bypass in rules.iter().filter_map(|rule| rule.queues) {
            match bypass {
                false => stray.control = Some(Unread::Dropped),
                true => _ = stray.control.get_or_insert(Unread::Passed),
            }
        }
    }
    Ok(stray)
}

/// Removes them from these tables of iptables; returns how many there were.
pub(super) fn remove(snapshot: &Snapshot, tables: &[&str]) -> io::Result<usize> {
    let mut removed = 0;
    for (family, table, rules) in all(snapshot, tables)? {
        let number = family.number();
        let mut own: BTreeSet<String> = tables::chains()?
            .into_iter()
            .filter(|chain| chain.family == number && chain.table == table)
            .map(|chain| chain.name)
            .collect();
        own.retain(|name| is_our_chain(name));
        let jumps = rules.iter().filter(|rule| !is_our_chain(&rule.chain));
        let request = |kind, attrs| NetlinkRequest {
            kind,
            flags: 0,
            family: number,
            attrs,
        };
        let mut requests = Vec::new();
        for rule in jumps.clone() {
            let table = table.clone();
            requests.push(request(
                msg::DEL_RULE,
                Box::new(move |b| {
                    b.text(attr::RULE_TABLE, &table)
                        .text(attr::RULE_CHAIN, &rule.chain)
                        .be64(attr::RULE_HANDLE, rule.handle);
                }),
            ));
        }
        for chain in &own {
            let table = table.clone();
            requests.push(request(
                msg::DEL_RULE,
                Box::new(move |b| {
                    b.text(attr::RULE_TABLE, &table)
                        .text(attr::RULE_CHAIN, chain);
                }),
            ));
        }
        for chain in &own {
            let table = table.clone();
            requests.push(request(
                msg::DEL_CHAIN,
                Box::new(move |b| {
                    b.text(attr::CHAIN_TABLE, &table)
                        .text(attr::CHAIN_NAME, chain);
                }),
            ));
        }
        Socket::open()?.batch(&requests)?;
        removed += rules.len();
        tidy(family, &table, jumps);
    }
    Ok(removed)
}

/// Deletes what was made for our rules, as far as it is empty.
fn tidy<'a>(family: Family, table: &str, jumps: impl Iterator<Item = &'a StrayRule>) {
    let mut new_table = false;
    for jump in jumps {
        let mut words = jump.comment.split(' ').skip(1);
        new_table |= words.clone().any(|word| word == NEW_TABLE);
        if words.any(|word| word == NEW_CHAIN)
            && let Err(e) = tables::delete_chain(family.number(), table, &jump.chain)
        {
            log::debug!("{table} {}: the chain stays: {e}", jump.chain);
        }
    }
    if new_table && let Err(e) = tables::delete_table(family.number(), table) {
        log::debug!("{table}: the table stays: {e}");
    }
}

/// All of ours, by family and table, where no tool shows them.
fn all(snapshot: &Snapshot, names: &[&str]) -> io::Result<Vec<(Family, String, Vec<StrayRule>)>> {
    let unseen = |family| snapshot.view(family, Flavour::Nft).is_none();
    let mut found = Vec::new();
    if !Family::ALL.into_iter().any(unseen) || !tables::available() {
        return Ok(found);
    }
    let mut socket = Socket::open()?;
    for table in tables::tables_on(&mut socket)? {
        let family = Family::from_number(table.family).filter(|family| unseen(*family));
        let name = table.name.as_str();
        let (Some(family), true) = (
            family,
            xtables::TABLES.contains(&name) && names.contains(&name),
        ) else {
            continue;
        };
        let read = |message: &Message<'_>| {
            let is_here = message.family() == table.family;
            StrayRule::read(message, name).filter(|_| is_here)
        };
        let question = tables::rules_of(table.family, name, None);
        let rules = socket.dump(&question, read)?;
        if !rules.is_empty() {
            found.push((family, table.name.clone(), rules));
        }
    }
    Ok(found)
}

impl StrayRule {
    /// Reads a rule; `None` if it isn't one of ours in this table.
    fn read(message: &Message<'_>, table: &str) -> Option<Self> {
        let find = |kind| message.attrs().find(kind);
        let text = |kind| find(kind)?.text();
        let list = find(attr::RULE_EXPRESSIONS).map_or(&[][..], |list| list.value);
        let chain = text(attr::RULE_CHAIN)?;
        let mut comment = String::new();
        let mut jumps = false;
        for one in expression::read(list) {
            match one {
                Expression::XtMatch(Extension {
                    name: "comment",
                    info,
                    ..
                }) => {
                    let end = info.split(|byte| *byte == 0).next().unwrap_or_default();
                    comment = String::from_utf8_lossy(end).into_owned();
                }
                Expression::Verdict(RuleVerdict::Jump(to) | RuleVerdict::Goto(to)) => {
                    jumps |= is_our_chain(to);
                }
                _ => {}
            }
        }
        // That one is looked after elsewhere, with those in tables of any name.
        let tagged = comment.starts_with(TAG) && comment != ACCEPT_COMMENT;
        let ours = text(attr::RULE_TABLE)? == table && (is_our_chain(chain) || jumps || tagged);
        // The rule for connections with a sequence delta alone looks at their mark.
        let marked = expression::read(list)
            .any(|one| matches!(one, Expression::XtMatch(one) if one.name == "connmark"));
        ours.then_some(Self {
            chain: chain.to_owned(),
            handle: find(attr::RULE_HANDLE)?.be64()?,
            comment,
            queues: queues(list).map(|(_, bypass)| bypass).filter(|_| !marked),
        })
    }
}

//! Accept rules in firewalls that are written for nft itself (`inet filter forward`, firewalld).
//!
//! No verdict of another table can overrule a drop there, so data connections are accepted in the
//! chain that drops: one rule per chain, with the comment `ftpalg:accept`, in front of the first
//! rule that may drop, or at the end if only the chain's policy does. Rules before it still apply
//! (MSS clamping, counters, marks). Our rules are recognised by their comment and removed by their
//! handle.
//!
//! Tables that iptables-nft can show are left to iptables. Where its tools aren't here, in a container
//! beside a host that has them, the rule is written as iptables-nft writes it: of another one, the tool
//! would say that it can't show the table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::errno::Errno;

use crate::firewall::names::{ACCEPT_COMMENT, STEERING_TABLE, is_our_chain};
use crate::firewall::tables::{self, ChainInfo, TableInfo};
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::{self, Flavour};
use crate::net::{Family, Mark, TCP};
use crate::netlink::codec::{self, Message};
use crate::netlink::nftables::expression::{
    self, Ct, Expression, Expressions, Extension, MapValue, RuleVerdict,
};
use crate::netlink::nftables::{attr, comment, family, hook, msg};
use crate::netlink::socket::{BatchError, NetlinkRequest, Socket};

/// The chains of iptables' tables.
const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The revision of the match `connmark` that iptables writes.
const CONNMARK_REVISION: u32 = 1;

/// What identifies a chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ChainName {
    family: u8,
    table: String,
    chain: String,
}

/// A chain that drops packets, and where our rule goes in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DroppingChain {
    at: ChainName,
    /// The handle of the rule that it goes in front of; `None`: the end.
    before: Option<u64>,
    /// The handles of ours that are there.
    ours: Vec<u64>,
    /// Whether the table belongs to a running program, which alone may change it.
    owned: bool,
    /// Whether it is a chain of a table that iptables-nft reads, where it isn't here to show it.
    of_iptables: bool,
}

impl std::fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ChainName {
            family,
            table,
            chain,
        } = &self.at;
        write!(f, "nft {} {table} {chain}", family::name(*family))
    }
}

impl DroppingChain {
    /// Whether our rule is there.
    pub(crate) fn is_taken(&self) -> bool {
        !self.ours.is_empty()
    }

    /// Whether only the program that made the table can put a rule there.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.owned && !self.is_taken()
    }
}

/// The places where data connections need to be accepted; none on a kernel without nf_tables.
pub(crate) fn places(snapshot: &Snapshot, local: bool) -> io::Result<Vec<DroppingChain>> {
    let Some((mut socket, mut chains)) = base_chains("filter")? else {
        return Ok(Vec::new());
    };
    chains.retain(|chain| {
        let hooked = match chain.base.as_ref().map(|base| base.hook) {
            Some(hook::FORWARD) => true,
            Some(hook::INPUT | hook::OUTPUT) => local,
            _ => false,
        };
        hooked && chain.table != STEERING_TABLE && !is_iptables(snapshot, chain)
    });
    let tables = tables::tables_on(&mut socket)?;
    let mut places = find(&mut socket, &chains, &tables)?;
    for place in &mut places {
        // A table that the tool here can't show stays as it is.
        let family = Family::from_number(place.at.family);
        place.of_iptables &=
            family.is_some_and(|family| snapshot.view(family, Flavour::Nft).is_none());
    }
    Ok(places)
}

/// Puts our rule into each place, replacing those that are there: all or none.
pub(crate) fn install(places: &[DroppingChain], mark: Mark) -> io::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let requests = |as_iptables: bool| {
        let mut requests = Vec::new();
        for place in places.iter().filter(|place| !place.owned) {
            let ours = place.ours.iter();
            requests.extend(ours.map(|handle| delete(&place.at, *handle)));
            requests.push(insert(place, mark, as_iptables && place.of_iptables));
        }
        requests
    };
    let mut socket = Socket::open()?;
    match socket.batch(&requests(true)) {
        // The kernel has no matches of iptables in nf_tables: then no tool of iptables shows the table anyway.
        Err(BatchError::Refused(_)) if places.iter().any(|place| place.of_iptables) => {
            Ok(socket.batch(&requests(false))?)
        }
        done => Ok(done?),
    }
}

/// Removes all of ours, wherever they are: how many there were.
pub(crate) fn remove() -> io::Result<usize> {
    let Some((mut socket, chains)) = base_chains("filter")? else {
        return Ok(0);
    };
    let mut ours = rules(&mut socket, &chains)?;
    ours.retain(|rule| rule.ours);
    let mut removed = 0;
    let mut result = Ok(());
    for rule in &ours {
        let deleted = socket.batch(&[delete(&rule.at, rule.handle)]);
        match deleted.map_err(io::Error::from) {
            Ok(()) => removed += 1,
            // Its table was deleted meanwhile.
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            Err(e) => result = Err(e),
        }
    }
    result.map(|()| removed)
}

/// All base chains of this type (`filter`, `nat`), of the families that carry IP; `None` on a kernel
/// without nf_tables.
pub(super) fn base_chains(kind: &str) -> io::Result<Option<(Socket, Vec<ChainInfo>)>> {
    if !tables::available() {
        return Ok(None);
    }
    let mut socket = Socket::open()?;
    let mut chains = tables::chains_on(&mut socket)?;
    chains.retain(|chain| {
        matches!(chain.family, family::INET | family::IPV4 | family::IPV6)
            && chain.base.as_ref().is_some_and(|base| base.kind == kind)
    });
    Ok(Some((socket, chains)))
}

/// Whether iptables-nft shows the chain, so that it is read and changed by iptables.
pub(super) fn is_iptables(snapshot: &Snapshot, chain: &ChainInfo) -> bool {
    let Some(family) = Family::from_number(chain.family) else {
        return false;
    };
    is_named_as_of_iptables(chain)
        && snapshot.view(family, Flavour::Nft).is_some()
        && !snapshot.is_hidden(family, Flavour::Nft, &chain.table)
}

/// Whether iptables-nft would take the chain for one of its own.
fn is_named_as_of_iptables(chain: &ChainInfo) -> bool {
    Family::from_number(chain.family).is_some()
        && xtables::TABLES.contains(&chain.table.as_str())
        && BUILTIN.contains(&chain.name.as_str())
}

fn find(
    socket: &mut Socket,
    chains: &[ChainInfo],
    all: &[TableInfo],
) -> io::Result<Vec<DroppingChain>> {
    let mut of_chain: BTreeMap<ChainName, Vec<NftRule>> = BTreeMap::new();
    for rule in rules(socket, chains)? {
        of_chain.entry(rule.at.clone()).or_default().push(rule);
    }
    let mut places = Vec::new();
    for chain in chains {
        let at = ChainName {
            family: chain.family,
            table: chain.table.clone(),
            chain: chain.name.clone(),
        };
        let own = of_chain.get(&at).map(Vec::as_slice).unwrap_or_default();
        let first = own
            .iter()
            .find(|rule| !rule.ours && drops(rule, &of_chain, &mut BTreeSet::new()));
        let policy = chain.base.as_ref().is_some_and(|base| base.drops);
        let ours: Vec<u64> = own.iter().filter(|r| r.ours).map(|r| r.handle).collect();
        if first.is_none() && !policy && ours.is_empty() {
            continue;
        }
        let table = all
            .iter()
            .find(|table| table.family == chain.family && table.name == chain.table);
        places.push(DroppingChain {
            at,
            before: first.map(|rule| rule.handle),
            ours,
            owned: table.is_some_and(|table| table.owner.is_some()),
            of_iptables: is_named_as_of_iptables(chain),
        });
    }
    Ok(places)
}

/// Whether a rule may drop packets, itself or in a chain that it jumps to.
fn drops<'a>(
    rule: &'a NftRule,
    of_chain: &'a BTreeMap<ChainName, Vec<NftRule>>,
    seen: &mut BTreeSet<&'a str>,
) -> bool {
    match &rule.effect {
        Effect::None => false,
        Effect::Drop => true,
        // The kernel refuses loops. Each chain is looked at once.
        Effect::Jump(to) if !seen.insert(to) => false,
        Effect::Jump(to) => {
            let chain = to.clone();
            let at = ChainName {
                chain,
                ..rule.at.clone()
            };
            let rules = of_chain.get(&at).into_iter().flatten();
            rules.into_iter().any(|rule| drops(rule, of_chain, seen))
        }
    }
}

/// What is to be known of a rule.
#[derive(Debug, PartialEq, Eq)]
struct NftRule {
    at: ChainName,
    handle: u64,
    ours: bool,
    effect: Effect,
}

#[derive(Debug, PartialEq, Eq)]
enum Effect {
    /// No packet is lost by it.
    None,
    /// It may drop or reject, or it can't be told.
    Drop,
    /// It goes on in that chain.
    Jump(String),
}

/// All rules of the tables that these chains are in, in order.
fn rules(socket: &mut Socket, chains: &[ChainInfo]) -> io::Result<Vec<NftRule>> {
    let tables: BTreeSet<_> = chains
        .iter()
        .map(|c| (c.family, c.table.as_str()))
        .collect();
    let mut all = Vec::new();
    for (family, table) in tables {
        let of_table = |message: &Message<'_>| {
            read(message).filter(|rule| rule.at.family == family && rule.at.table == table)
        };
        all.extend(socket.dump(&tables::rules_of(family, table, None), of_table)?);
    }
    Ok(all)
}

fn read(message: &Message<'_>) -> Option<NftRule> {
    let find = |kind| message.attrs().find(kind);
    let text = |kind| Some(find(kind)?.text()?.to_owned());
    let userdata = find(attr::RULE_USERDATA).map_or(&[][..], |data| data.value);
    let list = find(attr::RULE_EXPRESSIONS).map_or(&[][..], |list| list.value);
    Some(NftRule {
        at: ChainName {
            family: message.family(),
            table: text(attr::RULE_TABLE)?,
            chain: text(attr::RULE_CHAIN)?,
        },
        handle: find(attr::RULE_HANDLE)?.be64()?,
        ours: userdata == comment(0, ACCEPT_COMMENT) || is_commented(list),
        effect: effect(list),
    })
}

/// Whether a rule has our comment in the way that `iptables-nft-restore` writes it, which somebody may
/// have run on rules that were saved.
fn is_commented(expressions: &[u8]) -> bool {
    expression::read(expressions).any(|one| match one {
        Expression::XtMatch(Extension {
            name: "comment",
            info,
            ..
        }) => info.split(|byte| *byte == 0).next() == Some(ACCEPT_COMMENT.as_bytes()),
        _ => false,
    })
}

/// What a rule does to packets, going by its expressions.
fn effect(expressions: &[u8]) -> Effect {
    for expression in expression::read(expressions) {
        return match expression {
            Expression::Verdict(
                RuleVerdict::Accept | RuleVerdict::Continue | RuleVerdict::Return,
            ) => Effect::None,
            // What queues packets in there drops none for good.
            Expression::Verdict(RuleVerdict::Jump(chain)) if is_our_chain(chain) => Effect::None,
            Expression::Verdict(RuleVerdict::Jump(chain)) => Effect::Jump(chain.to_owned()),
            // A verdict map: its elements may be anything.
            Expression::Verdict(_)
            | Expression::Lookup {
                value: MapValue::Verdict,
                ..
            }
            | Expression::XtTarget(_)
            | Expression::Queue { .. }
            | Expression::Other("reject" | "queue" | "synproxy" | "tproxy") => Effect::Drop,
            _ => continue,
        };
    }
    Effect::None
}

/// Puts our rule in, with a match of iptables if `as_iptables`.
fn insert(place: &DroppingChain, mark: Mark, as_iptables: bool) -> NetlinkRequest<'_> {
    let bit = mark.bit();
    NetlinkRequest {
        kind: msg::NEW_RULE,
        // In front of the rule that is named, or of none: at the end.
        flags: match place.before {
            Some(_) => codec::CREATE,
            None => codec::CREATE | codec::APPEND,
        },
        family: place.at.family,
        attrs: Box::new(move |b| {
            b.text(attr::RULE_TABLE, &place.at.table);
            b.text(attr::RULE_CHAIN, &place.at.chain);
            b.nest(attr::RULE_EXPRESSIONS, |b| {
                let mut list = Expressions::new(b);
                list.protocol(0, TCP);
                if as_iptables {
                    list.xt_match(Extension {
                        name: "connmark",
                        revision: CONNMARK_REVISION,
                        info: &connmark(bit),
                    });
                } else {
                    list.ct(0, Ct::Mark)
                        .bits(0, bit, 0)
                        .compare(0, true, &bit.to_ne_bytes());
                }
                list.accept();
            });
            if let Some(handle) = place.before {
                b.be64(attr::RULE_POSITION, handle);
            }
            b.bytes(attr::RULE_USERDATA, &comment(0, ACCEPT_COMMENT));
        }),
    }
}

/// `struct xt_connmark_mtinfo1`, with the bytes that align it: mark, mask, whether it is inverted.
fn connmark(bit: u32) -> [u8; 16] {
    let mut info = [0; 16];
    let bits = bit.to_ne_bytes();
    for (to, from) in info.iter_mut().zip([bits, bits].concat()) {
        *to = from;
    }
    info
}

fn delete(at: &ChainName, handle: u64) -> NetlinkRequest<'_> {
    NetlinkRequest {
        kind: msg::DEL_RULE,
        flags: 0,
        family: at.family,
        attrs: Box::new(move |b| {
            b.text(attr::RULE_TABLE, &at.table);
            b.text(attr::RULE_CHAIN, &at.chain);
            b.be64(attr::RULE_HANDLE, handle);
        }),
    }
}

//! Steering rules in tables of our own, placed over netlink: no program is run.
//!
//! There is a table `ftpalg-steering` for each family. Its rules are those of `sets/steering.rules`,
//! translated (`compile`), and so are its chains. What iptables has in a builtin chain is in a base
//! chain beside it: just behind the user's where our rules stand at the end (`after-raw-prerouting`,
//! priority −299), just before it where they stand at the top (`before-mangle-prerouting`, −151).
//!
//! Control packets are sent to the queue by nf_tables' own `queue`, or by the target `NFQUEUE` of
//! iptables where the kernel doesn't have that (`nft_compat`, which needs a table of one family).
//!
//! The tables have no owner: they stay when the process is killed, as rules of iptables do. Chains that
//! are there already are filled anew instead of being made anew, since a base chain that goes away takes
//! the packets with it that wait in queues.
//!
//! Accepting data connections isn't done here: an accept in a table of ours overrules no drop in
//! another one.

mod compile;
mod objects;
mod text;

use std::io;

use nix::errno::Errno;

use super::left::Unread;
use super::names::STEERING_TABLE;
use super::steering::Steering;
use super::tables::{self, BaseChain, ChainInfo};
use super::xtables::save::Ruleset;
use super::{RulesError, print};
use crate::firewall::xtables::snapshot::read_proc;
use crate::net::Family;
use crate::netlink::codec::{Builder, Message, Messages};
use crate::netlink::nftables::expression::{self, Expression, MapValue};
use crate::netlink::nftables::set::{self, Set};
use crate::netlink::nftables::{attr, family, msg};
use crate::netlink::socket::{BatchError, NetlinkRequest, Socket};

use compile::{OwnChain, OwnRule};

/// How often an installation is tried: somebody else may change the tables after they were looked at.
const ATTEMPTS: usize = 3;
/// The target of iptables that queues packets.
const NFQUEUE: &str = "NFQUEUE";

/// What sends packets to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queueing {
    /// nf_tables' own `queue` (`CONFIG_NFT_QUEUE`).
    Queue,
    /// The target `NFQUEUE` of iptables (`CONFIG_NFT_COMPAT`, `CONFIG_NETFILTER_XT_TARGET_NFQUEUE`).
    Target,
}

impl std::fmt::Display for Queueing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Target => "the target NFQUEUE",
        })
    }
}

/// What is to be in the table of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnTable {
    family: Family,
    chains: Vec<OwnChain>,
}

impl std::fmt::Display for OwnTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = family::name(self.family.number());
        write!(f, "nft {family} {STEERING_TABLE}")
    }
}

/// What the tables hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InOwnTables {
    /// How many rules.
    pub rules: usize,
    /// How many tables.
    pub tables: usize,
    /// What sends control packets to the queue.
    pub queueing: Option<Queueing>,
    /// What becomes of control packets while nobody reads the queue.
    pub control: Option<Unread>,
}

/// The tables that a steering takes; none for a family that isn't here, or has nothing to steer.
pub(super) fn plan(steering: &Steering) -> Result<Vec<OwnTable>, RulesError> {
    let mut tables = Vec::new();
    for family in Family::ALL {
        if steering.has(family) && (family == Family::V4 || read_proc("if_inet6")?.is_some()) {
            tables.push(table(steering, family)?);
        }
    }
    Ok(tables)
}

fn table(steering: &Steering, family: Family) -> Result<OwnTable, RulesError> {
    let set = Ruleset::parse(&print(steering, family)?);
    let chains = compile::compile(&set, family)?;
    Ok(OwnTable { family, chains })
}

/// The rules of a family as text for `nft -f`.
///
/// # Errors
/// [`RulesError::Input`] if the steering makes no sense.
pub fn print_nft(steering: &Steering, family: Family) -> Result<String, RulesError> {
    let table = table(steering, family)?;
    Ok(text::head(steering.mark) + &text::script(&table))
}

/// The same of a plan.
pub(super) fn as_text(table: &OwnTable) -> String {
    text::script(table)
}

/// Puts all tables into place in one transaction, and removes those that aren't planned.
pub(super) fn install(plan: &[OwnTable]) -> Result<Queueing, RulesError> {
    let mut refused = None;
    for queueing in [Queueing::Queue, Queueing::Target] {
        match install_with(plan, queueing) {
            Ok(()) => return Ok(queueing),
            Err(Trouble::Queueing(errno)) => {
                log::debug!("the kernel doesn't take {queueing} in nf_tables: {errno}");
                refused = Some(errno);
            }
            Err(Trouble::Other(e)) => return Err(e),
        }
    }
    let why = refused.map_or_else(String::new, |errno| format!(" ({errno})"));
    Err(RulesError::Input(format!(
        "nf_tables of this kernel can't queue packets{why}: load the module nft_queue, or nft_compat and \
         xt_NFQUEUE, or install iptables-legacy and use --steering iptables"
    )))
}

/// Why an installation failed.
enum Trouble {
    /// The kernel doesn't know this way to queue packets.
    Queueing(Errno),
    Other(RulesError),
}

fn install_with(plan: &[OwnTable], queueing: Queueing) -> Result<(), Trouble> {
    let failed = |e| Trouble::Other(RulesError::system("can't place rules over netlink")(e));
    let mut socket = Socket::open().map_err(failed)?;
    let mut left = ATTEMPTS;
    loop {
        let there = There::read(&mut socket).map_err(failed)?;
        let (about, requests): (Vec<_>, Vec<_>) = objects::installation(plan, &there, queueing)
            .into_iter()
            .unzip();
        left -= 1;
        match socket.batch(&requests) {
            Ok(()) => return Ok(()),
            Err(BatchError::Refused(refused)) => {
                // Nothing else: where a chain is missing, its rules are refused as well.
                let queues = refused.iter().all(|one| {
                    let what = one.index.and_then(|index| about.get(index));
                    what == Some(&objects::What::QueueingRule)
                });
                if let (true, Some(first)) = (queues, refused.first()) {
                    return Err(Trouble::Queueing(first.errno));
                }
                let changed = |errno| matches!(errno, Errno::ENOENT | Errno::EEXIST | Errno::EBUSY);
                let changed = refused.iter().any(|one| changed(one.errno));
                if !changed || left == 0 {
                    return Err(failed(BatchError::Refused(refused).into()));
                }
            }
            Err(e) => return Err(failed(e.into())),
        }
    }
}

/// Empties all tables of ours: nothing more is sent to the queue by them. What waits there stays.
pub(super) fn silence() -> Result<(), RulesError> {
    let silence = || {
        if !tables::available() {
            return Ok(());
        }
        let mut socket = Socket::open()?;
        let there = There::read(&mut socket)?;
        let all: Vec<_> = there.families.iter().map(|f| objects::flush(*f)).collect();
        match socket.batch(&all).map_err(io::Error::from) {
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
            done => done,
        }
    };
    silence().map_err(RulesError::system("can't empty the tables ftpalg-steering"))
}

/// Removes all tables of ours; returns how many rules they had.
pub(super) fn remove() -> Result<usize, RulesError> {
    let remove = || {
        if !tables::available() {
            return Ok(0);
        }
        let mut socket = Socket::open()?;
        let there = There::read(&mut socket)?;
        for family in &there.families {
            match socket
                .batch(&[objects::delete_table(*family)])
                .map_err(io::Error::from)
            {
                Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                done => done?,
            }
        }
        Ok(there.rules.len())
    };
    remove().map_err(RulesError::system(
        "can't remove the tables ftpalg-steering",
    ))
}

/// What is there, whoever put it there.
///
/// # Errors
/// What the kernel says; nothing is there on a kernel without nf_tables.
pub fn in_own_tables() -> io::Result<InOwnTables> {
    if !tables::available() {
        return Ok(InOwnTables::default());
    }
    let there = There::read(&mut Socket::open()?)?;
    let mut found = InOwnTables {
        rules: there.rules.len(),
        tables: there.families.len(),
        ..InOwnTables::default()
    };
    for rule in &there.rules {
        // The rule for connections with a sequence delta alone looks at their mark. It drops with
        // `--fail open`, too.
        let all = expression::read(&rule.expressions);
        let marked = all
            .into_iter()
            .any(|one| matches!(one, Expression::Load { .. }));
        let Some((queueing, bypass)) = queues(&rule.expressions) else {
            continue;
        };
        found.queueing = Some(queueing);
        match (marked, bypass) {
            (true, _) => {}
            (false, false) => found.control = Some(Unread::Dropped),
            (false, true) => _ = found.control.get_or_insert(Unread::Passed),
        }
    }
    Ok(found)
}

/// How a rule queues packets, and whether they pass while nobody reads the queue.
pub(super) fn queues(expressions: &[u8]) -> Option<(Queueing, bool)> {
    expression::read(expressions).find_map(|one| match one {
        Expression::Queue { bypass, .. } => Some((Queueing::Queue, bypass)),
        Expression::XtTarget(target) if target.name == NFQUEUE => {
            Some((Queueing::Target, objects::bypasses(&target)))
        }
        _ => None,
    })
}

/// What of a plan isn't in place, in words.
pub(super) fn missing(plan: &[OwnTable]) -> io::Result<Vec<String>> {
    let mut socket = Socket::open()?;
    let there = There::read(&mut socket)?;
    let mut missing = Vec::new();
    for table in plan {
        let family = table.family.number();
        if !there.families.contains(&family) {
            missing.push(format!("{table}: the table is gone"));
            continue;
        }
        for chain in &table.chains {
            let at = format!("{table} {}", chain.name);
            let Some(found) = there.chain(family, &chain.name) else {
                missing.push(format!("{at}: the chain is gone"));
                continue;
            };
            if !chain.is_hooked_as(found) {
                missing.push(format!("{at}: the chain was changed"));
                continue;
            }
            let rules = there.rules.iter();
            let rules = rules.filter(|rule| rule.family == family && rule.chain == chain.name);
            let rules: Vec<_> = rules.collect();
            let mut same = rules.len() == chain.rules.len();
            for (rule, wanted) in rules.iter().zip(&chain.rules) {
                same = same && rule.is(wanted, table.family, &mut socket)?;
            }
            if !same {
                missing.push(format!("{at}: rules are gone or were changed"));
            }
        }
    }
    Ok(missing)
}

/// What is in the kernel of our tables.
#[derive(Debug, Default)]
struct There {
    families: Vec<u8>,
    chains: Vec<ChainInfo>,
    rules: Vec<ThereRule>,
}

#[derive(Debug)]
struct ThereRule {
    family: u8,
    chain: String,
    expressions: Vec<u8>,
}

impl There {
    fn read(socket: &mut Socket) -> io::Result<Self> {
        let tables = tables::tables_on(socket)?.into_iter();
        let ours =
            |family, name: &str| name == STEERING_TABLE && Family::from_number(family).is_some();
        let families: Vec<u8> = tables
            .filter(|table| ours(table.family, &table.name))
            .map(|table| table.family)
            .collect();
        if families.is_empty() {
            return Ok(Self::default());
        }
        let mut chains = tables::chains_on(socket)?;
        chains.retain(|chain| ours(chain.family, &chain.table));
        let mut rules = Vec::new();
        for family in &families {
            let of_table = |message: &Message<'_>| {
                ThereRule::read(message).filter(|rule| rule.family == *family)
            };
            rules.extend(socket.dump(&tables::rules_of(*family, STEERING_TABLE, None), of_table)?);
        }
        Ok(Self {
            families,
            chains,
            rules,
        })
    }

    fn chain(&self, family: u8, name: &str) -> Option<&ChainInfo> {
        let mut chains = self.chains.iter();
        chains.find(|chain| chain.family == family && chain.name == name)
    }
}

impl ThereRule {
    fn read(message: &Message<'_>) -> Option<Self> {
        let find = |kind| message.attrs().find(kind);
        let table = find(attr::RULE_TABLE)?.text()?;
        let list = find(attr::RULE_EXPRESSIONS).map_or(&[][..], |list| list.value);
        (table == STEERING_TABLE).then_some(Self {
            family: message.family(),
            chain: find(attr::RULE_CHAIN)?.text()?.to_owned(),
            expressions: list.to_vec(),
        })
    }

    /// Whether it does what a rule of ours does, with either way to queue packets.
    fn is(&self, rule: &OwnRule, family: Family, socket: &mut Socket) -> io::Result<bool> {
        for queueing in [Queueing::Queue, Queueing::Target] {
            let mut builder = Builder::new();
            builder.message(msg::NEW_RULE, 0, 0, family.number(), 0);
            builder.nest(attr::RULE_EXPRESSIONS, |b| rule.put(b, family, queueing, 0));
            let bytes = builder.finish().unwrap_or_default();
            let message = Messages::new(&bytes).next();
            let list = message.and_then(|message| message.attrs().find(attr::RULE_EXPRESSIONS));
            let wanted = list.map_or(&[][..], |list| list.value);
            if self.matches(wanted, rule, socket)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn matches(&self, wanted: &[u8], rule: &OwnRule, socket: &mut Socket) -> io::Result<bool> {
        // Somebody who places the rules by himself may count packets.
        let counts = |one: &Expression<'_>| *one == Expression::Statement("counter");
        let mut found = expression::read(&self.expressions).filter(|one| !counts(one));
        for wanted in expression::read(wanted) {
            let Some(found) = found.next() else {
                return Ok(false);
            };
            let same = match (&found, &wanted) {
                // Our sets have no names: what is in them is compared.
                (
                    Expression::Lookup {
                        from,
                        set,
                        value: MapValue::None,
                    },
                    Expression::Lookup { from: wanted, .. },
                ) => from == wanted && objects::is_of(&self.set(set, socket)?, rule.ports()),
                _ => found == wanted,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(found.next().is_none())
    }

    fn set(&self, name: &str, socket: &mut Socket) -> io::Result<Set> {
        let about = |kind, table_attr, name_attr| NetlinkRequest {
            kind,
            flags: 0,
            family: self.family,
            attrs: Box::new(move |b| {
                b.text(table_attr, STEERING_TABLE).text(name_attr, name);
            }),
        };
        let question = about(msg::GET_SET, attr::SET_TABLE, attr::SET_NAME);
        let flags = match socket.get(&question, set::flags) {
            // It was deleted meanwhile, with the rule.
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(Set::default()),
            flags => flags?,
        };
        let elements = about(msg::GET_ELEM, attr::ELEMS_TABLE, attr::ELEMS_SET);
        let (elements, complete) =
            socket.dump_some(&elements, objects::MOST_PORTS, set::elements)?;
        Ok(Set::new(flags, elements, complete))
    }
}

impl OwnChain {
    /// Whether a chain in the kernel is hooked in at the same place.
    fn is_hooked_as(&self, found: &ChainInfo) -> bool {
        match (&self.hook, &found.base) {
            (None, None) => true,
            (Some((hook, priority)), Some(base)) => {
                let BaseChain { kind, drops, .. } = base;
                kind == "filter" && base.hook == *hook && base.priority == *priority && !drops
            }
            _ => false,
        }
    }
}

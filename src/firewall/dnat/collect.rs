//! Collects the ports that a rule with `dnat` or `redirect` compares, chain by chain.
//!
//! Rules aren't executed. Of the registers, only these are followed: where the destination port and
//! the protocol were loaded to, and which constants. A comparison of the port narrows the set of
//! ports; all other comparisons count as met. A rule in a chain starts with the ports that the jump
//! to it was for. So it may find too many ports, but never too few. A rule that compares no port
//! publishes all of them. It is left out, since then no port could be chosen at all.
//!
//! Contract: it never fails, and its work is bounded, whatever the rules are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use crate::firewall::is_our_chain;
use crate::firewall::port_set::PortSet;
use crate::firewall::published::Published;
use crate::net::TCP;
use crate::netlink::nftables::expression::{
    self, Expression, Extension, MapValue, Register, RuleVerdict,
};
use crate::netlink::nftables::set::Set;

/// The most expressions and elements that are looked at in a table.
const STEPS: usize = 1 << 18;
/// The most visits to chains. A chain is visited once for each set of ports on the way to it.
const VISITS: usize = 8192;
/// The most results that a table may have.
const RESULTS: usize = 4096;
/// Where the destination port is in the TCP header.
const PORT: std::ops::Range<usize> = 2..4;
/// How many bytes a load is taken to overwrite, where its size isn't known.
const LONGEST: usize = 16;
/// All registers.
const REGISTERS: usize = 64;

/// What is known of a table.
#[derive(Debug, Default)]
pub(super) struct NftTable {
    /// The rules of chains, by name: lists of expressions.
    pub(super) chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// Sets and maps by name; `None` for those that couldn't be read.
    pub(super) sets: BTreeMap<String, Option<Set>>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) published: BTreeSet<Published>,
    /// Chains that are needed to find all.
    pub(super) chains: BTreeSet<String>,
    /// Sets that are needed to find all.
    pub(super) sets: BTreeSet<String>,
    /// Whether there was more than the bounds allow.
    pub(super) cut: bool,
}

/// The ports that were compared on the way to a rule; `None`: none yet.
type Way = Option<PortSet>;

/// Collects from these chains on.
pub(super) fn collect(table: &NftTable, bases: &[String]) -> Found {
    let mut collector = Collector {
        table,
        found: Found::default(),
        steps: STEPS,
        seen: BTreeSet::new(),
        ahead: VecDeque::new(),
    };
    for base in bases {
        collector.enter(base, None);
    }
    while let Some((chain, way)) = collector.ahead.pop_front() {
        let Some(rules) = table.chains.get(chain) else {
            collector.found.chains.insert(chain.to_owned());
            continue;
        };
        for rule in rules {
            if collector.steps == 0 {
                collector.found.cut = true;
                return collector.found;
            }
            collector.rule(rule, &way);
        }
    }
    collector.found
}

struct Collector<'a> {
    table: &'a NftTable,
    found: Found,
    /// How many are left.
    steps: usize,
    seen: BTreeSet<(&'a str, Way)>,
    ahead: VecDeque<(&'a str, Way)>,
}

impl<'a> Collector<'a> {
    fn enter(&mut self, chain: &'a str, way: Way) {
        if is_our_chain(chain) || self.seen.contains(&(chain, way.clone())) {
            return;
        }
        if self.seen.len() >= VISITS {
            self.found.cut = true;
            return;
        }
        self.seen.insert((chain, way.clone()));
        self.ahead.push_back((chain, way));
    }

    /// Whether there is room for so many steps more.
    fn step(&mut self, count: usize) -> bool {
        let left = self.steps.checked_sub(count);
        self.steps = left.unwrap_or(0);
        self.found.cut |= left.is_none();
        left.is_some()
    }

    fn rule(&mut self, rule: &'a [u8], way: &Way) {
        let mut way = way.clone();
        let mut registers = Registers::default();
        for expression in expression::read(rule) {
            if !self.step(1) {
                return;
            }
            let goes_on = match expression {
                Expression::Equal { from, value } => {
                    narrow(&mut way, [registers.says(from, value, value)])
                }
                Expression::Within {
                    from,
                    first,
                    last,
                    inclusive,
                } => narrow(
                    &mut way,
                    [registers.says_range(from, first, last, inclusive)],
                ),
                Expression::XtMatch(extension) => {
                    extension.name != "multiport" || narrow_to(&mut way, multiport(extension))
                }
                Expression::Lookup {
                    from,
                    set: name,
                    value,
                } => {
                    let goes_on = self.lookup(&registers, &mut way, from, name, value);
                    if let MapValue::To(register) = value {
                        registers.overwrite(register, LONGEST);
                    }
                    goes_on
                }
                Expression::Verdict(RuleVerdict::Jump(chain) | RuleVerdict::Goto(chain)) => {
                    self.enter(chain, way.clone());
                    false
                }
                Expression::Dnat { address, port } => {
                    let to = address.and_then(|register| registers.address(register));
                    let to_port = port.map(|register| registers.port(register?));
                    match to_port {
                        // A port that differs from connection to connection.
                        Some(None) => self.publish(&way, None, None),
                        to_port => self.publish(&way, to, to_port.flatten()),
                    }
                    false
                }
                Expression::Redirect => {
                    self.publish(&way, None, None);
                    false
                }
                Expression::XtTarget(Extension { name, .. }) => {
                    if matches!(name, "DNAT" | "REDIRECT") {
                        self.publish(&way, None, None);
                    }
                    false
                }
                Expression::Verdict(_) | Expression::OtherNat => false,
                other => {
                    registers.load(&other);
                    true
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Whether any packet gets past a lookup in the rule.
    fn lookup(
        &mut self,
        registers: &Registers<'_>,
        way: &mut Way,
        from: Register,
        name: &'a str,
        value: MapValue,
    ) -> bool {
        let table = self.table;
        let Some(set) = table.sets.get(name) else {
            self.found.sets.insert(name.to_owned());
            return true;
        };
        // A set that couldn't be read says nothing.
        let Some(set) = set else {
            return true;
        };
        if !self.step(set.elements.len()) {
            return false;
        }
        let says = set.elements.iter().map(|element| match &element.keys {
            Some((first, last)) => registers.says(from, first, last),
            None => Says::Nothing,
        });
        if value != MapValue::Verdict {
            let of_ports = says.clone().any(|says| matches!(says, Says::Ports(..)));
            self.found.cut |= !set.complete && (of_ports || set.elements.is_empty());
            return narrow(way, says);
        }
        self.found.cut |= !set.complete;
        let mut jumps: BTreeMap<&str, Vec<Says>> = BTreeMap::new();
        for (element, says) in set.elements.iter().zip(says) {
            if let Some(chain) = &element.jump {
                jumps.entry(chain).or_default().push(says);
            }
        }
        for (chain, says) in jumps {
            let mut way = way.clone();
            if narrow(&mut way, says) {
                self.enter(chain, way);
            }
        }
        false
    }

    fn publish(&mut self, way: &Way, to: Option<IpAddr>, to_port: Option<u16>) {
        let Some(ports) = way.clone() else {
            return;
        };
        let published = Published::of_ports(ports, to, to_port);
        self.found.published.insert(published);
        if self.found.published.len() > RESULTS {
            self.found.published.pop_last();
            self.found.cut = true;
        }
    }
}

/// What a comparison says about the destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    /// No TCP packet meets it.
    Never,
    /// It is in this range.
    Ports(u16, u16),
}

/// Narrows the way to packets that meet one of the conditions, as far as these are about ports.
/// Returns whether any packet is left.
fn narrow(way: &mut Way, conditions: impl IntoIterator<Item = Says>) -> bool {
    let mut ports = Vec::new();
    for condition in conditions {
        match condition {
            Says::Nothing => return true,
            Says::Never => {}
            Says::Ports(first, last) => ports.push((first, last)),
        }
    }
    narrow_to(way, Some(PortSet::new(ports)))
}

fn narrow_to(way: &mut Way, ports: Option<PortSet>) -> bool {
    let Some(ports) = ports else {
        return true;
    };
    let both = way
        .as_ref()
        .map_or_else(|| ports.clone(), |way| way.and(&ports));
    let any = !both.is_empty();
    *way = Some(both);
    any
}

/// What is in the registers, as far as it matters.
#[derive(Debug, Default)]
struct Registers<'a> {
    /// Where the destination port begins, and which of its bits are there.
    port: Option<(Register, u16)>,
    protocol: Option<Register>,
    constants: Vec<(Register, &'a [u8])>,
}

impl<'a> Registers<'a> {
    fn load(&mut self, expression: &Expression<'a>) {
        match *expression {
            Expression::Payload {
                to,
                transport,
                offset,
                len,
            } => {
                self.overwrite(to, len);
                let ends = offset.saturating_add(len);
                if transport && ends >= PORT.end && offset <= PORT.start {
                    self.port = Some((to + PORT.start - offset, u16::MAX));
                }
            }
            Expression::Protocol { to } => {
                self.overwrite(to, 4);
                self.protocol = Some(to);
            }
            Expression::Load { to, .. } => self.overwrite(to, LONGEST),
            Expression::Constant { to, value } => {
                self.overwrite(to, value.len());
                self.constants.push((to, value));
            }
            Expression::Mask { from, to, mask } => {
                let masked = self.port.and_then(|(at, old)| {
                    let at = at.checked_sub(from)?;
                    let bits = old & u16::from_be_bytes(*mask.get(at..)?.first_chunk()?);
                    (bits != 0).then_some((to.saturating_add(at), bits))
                });
                self.overwrite(to, mask.len());
                self.port = masked.or(self.port);
            }
            Expression::Other(_) => self.overwrite(0, REGISTERS),
            _ => {}
        }
    }

    /// Forgets what was in these bytes, in whole registers.
    fn overwrite(&mut self, to: Register, len: usize) {
        let end = to.saturating_add(len.next_multiple_of(4));
        let gone = |at: Register, len: usize| at < end && to < at.saturating_add(len);
        self.port = self.port.filter(|(at, _)| !gone(*at, 2));
        self.protocol = self.protocol.filter(|at| !gone(*at, 1));
        self.constants.retain(|(at, value)| !gone(*at, value.len()));
    }

    /// What follows from a match: from register `from` on there is a key between these two, field
    /// by field.
    fn says(&self, from: Register, first: &[u8], last: &[u8]) -> Says {
        let at = |register: Register| register.checked_sub(from);
        let protocols = self.protocol.and_then(at);
        let protocols = protocols.and_then(|at| Some(*first.get(at)?..=*last.get(at)?));
        if protocols.is_some_and(|protocols| !protocols.contains(&TCP)) {
            return Says::Never;
        }
        let ports = self.port.and_then(|(register, bits)| {
            let at = at(register)?;
            let port = |key: &[u8]| Some(u16::from_be_bytes(*key.get(at..)?.first_chunk()?));
            // What a mask took away may be anything.
            Some((port(first)?, port(last)?.saturating_add(!bits)))
        });
        ports.map_or(Says::Nothing, |(first, last)| Says::Ports(first, last))
    }

    /// The same for a range of numbers. If the number is longer than the port, nothing follows.
    fn says_range(
        &self,
        from: Register,
        first: Option<&[u8]>,
        last: Option<&[u8]>,
        inclusive: bool,
    ) -> Says {
        let lengths = [first, last].into_iter().flatten().map(<[u8]>::len);
        let Some((_, bits)) = self.port.filter(|(at, _)| *at == from) else {
            return Says::Nothing;
        };
        if lengths.into_iter().any(|len| len != 2) {
            return Says::Nothing;
        }
        let step = u16::from(!inclusive);
        let first = first.map_or(Some(0), |key| be16(key)?.checked_add(step));
        let last = last.map_or(Some(u16::MAX), |key| be16(key)?.checked_sub(step));
        first.zip(last).map_or(Says::Never, |(first, last)| {
            Says::Ports(first, last.saturating_add(!bits))
        })
    }

    fn constant(&self, register: Register) -> Option<&'a [u8]> {
        let constant = self.constants.iter().find(|(at, _)| *at == register)?;
        Some(constant.1)
    }

    fn address(&self, register: Register) -> Option<IpAddr> {
        let bytes = self.constant(register)?;
        let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
            .ok()
    }

    fn port(&self, register: Register) -> Option<u16> {
        be16(self.constant(register)?)
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

/// Reads `struct xt_multiport_v1`: which ports, how many, 15 of them, whether each begins a range,
/// and whether others are meant. `None` if it isn't about certain destination ports.
fn multiport(extension: Extension<'_>) -> Option<PortSet> {
    const DESTINATION: u8 = 1;
    let [which, count, rest @ ..] = extension.info else {
        return None;
    };
    let (numbers, rest) = rest.split_at_checked(30)?;
    let (begins, rest) = rest.split_at_checked(15)?;
    let others = *rest.first()? != 0;
    if extension.revision != 1 || *which != DESTINATION || others {
        return None;
    }
    let numbers = numbers.chunks_exact(2).filter_map(|n| n.first_chunk());
    let mut ports = numbers
        .map(|n| u16::from_ne_bytes(*n))
        .zip(begins)
        .take(usize::from(*count));
    let mut all = Vec::new();
    while let Some((first, begins)) = ports.next() {
        let last = match begins {
            0 => first,
            _ => ports.next()?.0,
        };
        all.push((first, last));
    }
    Some(PortSet::new(all))
}

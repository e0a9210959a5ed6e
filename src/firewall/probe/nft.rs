//! Judges rules that were written for nft itself, in filter chains of tables of any name.
//!
//! Tables that iptables-nft can show are left to [`xt`](super::xt). Of a rule, the registers are followed
//! byte by byte, as far as the sample says what is in them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::{Effect, Judged, Met, Sample, Verdict, Walked, walk};
use crate::firewall::dnat::RuleReader;
use crate::firewall::is_our_chain;
use crate::firewall::names::is_our_table;
use crate::firewall::native::{base_chains, is_iptables};
use crate::firewall::tables::ChainInfo;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::net::{Family, TCP};
use crate::netlink::nftables::expression::{
    self, CT_HELPER, Expression, FLOW_OFFLOAD, Loaded, MapValue, NOTRACK, Register, RuleVerdict,
};
use crate::netlink::nftables::family;
use crate::netlink::nftables::set::{Element, ElementVerdict, Set};

/// The bytes of all registers.
const REGISTERS: usize = 64;
/// `NFT_META_PROTOCOL`, `_IIFNAME`, `_OIFNAME`, `_NFPROTO`, `_L4PROTO`
const META_PROTOCOL: u32 = 1;
const META_CAME_BY: u32 = 6;
const META_LEAVES_BY: u32 = 7;
const META_FAMILY: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `NFT_CT_STATE`, and its bits `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)` and `IP_CT_NEW`.
const CT_STATE: u32 = 0;
const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
/// The longest name of an interface, with its NUL.
const NAME: usize = 16;

/// A table: its family and name.
type TableName = (u8, String);

/// The filter chains of nft's own firewalls, with all that they lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NftRules {
    /// The base chains, in no order.
    pub(crate) bases: Vec<ChainInfo>,
    /// Whether there was more than is read.
    pub(crate) cut: bool,
    chains: BTreeMap<(TableName, String), Vec<Vec<u8>>>,
    sets: BTreeMap<(TableName, String), Option<Set>>,
}

impl NftRules {
    /// Reads them; nothing on a kernel without nf_tables.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn read(snapshot: &Snapshot) -> io::Result<Self> {
        let Some((socket, mut chains)) = base_chains("filter")? else {
            return Ok(Self::default());
        };
        chains.retain(|chain| !is_our_table(&chain.table) && !is_iptables(snapshot, chain));
        let mut reader = RuleReader::new(socket);
        let mut found = Self::default();
        let mut ahead: Vec<(TableName, String)> = chains
            .iter()
            .map(|chain| ((chain.family, chain.table.clone()), chain.name.clone()))
            .collect();
        found.bases = chains;
        while let Some((table, chain)) = ahead.pop() {
            let key = (table, chain);
            if found.chains.contains_key(&key) {
                continue;
            }
            let (table, chain) = &key;
            let rules = reader.rules(table.0, &table.1, chain)?;
            let mut jumps = BTreeSet::new();
            for rule in &rules {
                for set in mentioned(rule, &mut jumps) {
                    let key = (table.clone(), set);
                    let set = match found.sets.entry(key) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(new) => {
                            let set = reader.set(table.0, &table.1, &new.key().1)?;
                            new.insert(set)
                        }
                    };
                    let elements = set.iter().flat_map(|set| &set.elements);
                    jumps.extend(elements.filter_map(|element| element.jump.clone()));
                }
            }
            ahead.extend(jumps.into_iter().map(|chain| (table.clone(), chain)));
            found.chains.insert(key, rules);
        }
        found.cut = reader.cut;
        Ok(found)
    }

    /// Takes a sample through a base chain.
    pub(crate) fn through(&self, base: &ChainInfo, sample: &Sample) -> Walked {
        let table = (base.family, base.table.clone());
        let rules = |name: &str| {
            if is_our_chain(name) {
                return Some(Vec::new());
            }
            let rules = self.chains.get(&(table.clone(), name.to_owned()))?;
            let numbered = rules.iter().zip(1..);
            Some(
                numbered
                    .flat_map(|(rule, number)| {
                        let text = format!(
                            "nft {} {} {name}, rule {number}",
                            family::name(table.0),
                            table.1
                        );
                        self.judge(&table, rule, sample, text)
                    })
                    .collect(),
            )
        };
        walk(&base.name, &rules)
    }

    /// Whether any rule has an expression of this name that isn't known further.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        let mut rules = self.chains.values().flatten();
        rules.any(|rule| expression::read(rule).any(|one| one == Expression::Other(name)))
    }

    /// Whether packets of a family get to a base chain.
    pub(crate) fn meets(base: &ChainInfo, of: Family) -> bool {
        base.family == family::INET || Family::from_number(base.family) == Some(of)
    }

    /// A rule, as one for each verdict that it may end with.
    fn judge(&self, table: &TableName, rule: &[u8], sample: &Sample, text: String) -> Vec<Judged> {
        let mut registers = Registers([None; REGISTERS]);
        let mut met = Met::Yes;
        let mut effects = Vec::new();
        let mut last = Vec::new();
        for expression in expression::read(rule) {
            match expression {
                Expression::Equal { from, value } => met = met.and(registers.equal(from, value)),
                Expression::NotEqual { from, value } => {
                    met = met.and(registers.equal(from, value).negated(true));
                }
                Expression::Within {
                    from,
                    first,
                    last,
                    inclusive,
                } => met = met.and(registers.within(from, first, last, inclusive)),
                Expression::Lookup { from, set, value } => {
                    let set = self.sets.get(&(table.clone(), set.to_owned()));
                    let set = set.and_then(Option::as_ref).filter(|set| set.complete);
                    match (set, value) {
                        (Some(set), MapValue::Verdict) => {
                            last = registers.verdicts(from, set, met, &text);
                            break;
                        }
                        (None, MapValue::Verdict) => {
                            met = met.and(Met::Maybe);
                            last = vec![ended(met, Verdict::Jump("a map".into()), &text)];
                            break;
                        }
                        (Some(set), MapValue::None) => {
                            met = met.and(registers.is_in(from, set));
                        }
                        (_, value) => {
                            met = met.and(Met::Maybe);
                            if let MapValue::To(register) = value {
                                registers.forget(register, NAME);
                            }
                        }
                    }
                }
                Expression::Verdict(verdict) => {
                    last = vec![ended(met, verdict_of(verdict), &text)];
                    break;
                }
                Expression::Statement(name) => {
                    let effect = match name {
                        NOTRACK => Some(Effect::Untracked),
                        CT_HELPER => Some(Effect::Helper),
                        FLOW_OFFLOAD => Some(Effect::Offloaded),
                        _ => None,
                    };
                    effects.extend(effect.map(|effect| (effect, met)));
                }
                Expression::Other("reject") => {
                    last = vec![ended(met, Verdict::Drop, &text)];
                    break;
                }
                Expression::Queue { .. }
                | Expression::Other("queue" | "synproxy" | "tproxy")
                | Expression::XtTarget(_) => {
                    let anything = Verdict::Jump("a program".into());
                    last = vec![ended(met, anything, &text)];
                    break;
                }
                Expression::Condition | Expression::XtMatch(_) => met = met.and(Met::Maybe),
                other => {
                    met = met.and(registers.load(&other, sample));
                }
            }
        }
        let mut judged = vec![Judged {
            effects,
            ..ended(met, Verdict::None, &text)
        }];
        judged.extend(last);
        judged
    }
}

/// The sets that a rule looks something up in. Adds the chains that it jumps to.
fn mentioned(rule: &[u8], jumps: &mut BTreeSet<String>) -> Vec<String> {
    let mut sets = Vec::new();
    for expression in expression::read(rule) {
        match expression {
            Expression::Verdict(RuleVerdict::Jump(chain) | RuleVerdict::Goto(chain)) => {
                jumps.insert(chain.to_owned());
            }
            Expression::Lookup { set, .. } => sets.push(set.to_owned()),
            _ => {}
        }
    }
    sets
}

fn ended(met: Met, verdict: Verdict, text: &str) -> Judged {
    Judged {
        met,
        effects: Vec::new(),
        verdict,
        text: text.to_owned(),
    }
}

fn verdict_of(verdict: RuleVerdict<'_>) -> Verdict {
    match verdict {
        RuleVerdict::Accept => Verdict::Accept,
        RuleVerdict::Drop => Verdict::Drop,
        RuleVerdict::Continue => Verdict::None,
        RuleVerdict::Return => Verdict::Return,
        RuleVerdict::Jump(chain) => Verdict::Jump(chain.to_owned()),
        RuleVerdict::Goto(chain) => Verdict::Goto(chain.to_owned()),
        RuleVerdict::Other => Verdict::Jump("a program".into()),
    }
}

/// What is in the registers; `None` for bytes that aren't known.
struct Registers([Option<u8>; REGISTERS]);

impl Registers {
    /// Does what an expression does to the registers. Returns whether the rule goes on.
    fn load(&mut self, expression: &Expression<'_>, sample: &Sample) -> Met {
        match *expression {
            Expression::Payload {
                to,
                transport,
                offset,
                len,
            } => {
                self.forget(to, len);
                for (at, byte) in (offset..offset.saturating_add(len)).zip(to..) {
                    self.put(byte, packet(sample, transport, at));
                }
            }
            Expression::Protocol { to } => self.write(to, 4, &[TCP]),
            Expression::Load { to, what } => self.known(to, what, sample),
            Expression::Constant { to, value } => self.write(to, value.len(), value),
            Expression::Mask { from, to, mask } => {
                let masked: Vec<Option<u8>> = mask
                    .iter()
                    .zip(from..)
                    .map(|(mask, at)| match mask {
                        0 => Some(0),
                        mask => Some(self.at(at)? & mask),
                    })
                    .collect();
                self.forget(to, mask.len());
                for (byte, at) in masked.into_iter().zip(to..) {
                    self.put(at, byte);
                }
            }
            _ => {
                self.forget(0, REGISTERS);
                return Met::Maybe;
            }
        }
        Met::Yes
    }

    /// Loads what is known of the packet besides its bytes.
    fn known(&mut self, to: Register, what: Loaded, sample: &Sample) {
        let name = |name: &Option<String>| {
            let mut bytes = name.as_ref()?.as_bytes().to_vec();
            bytes.resize(NAME, 0);
            Some(bytes)
        };
        let value = match what {
            Loaded::Meta(META_CAME_BY) => name(&sample.came_by),
            Loaded::Meta(META_LEAVES_BY) => name(&sample.leaves_by),
            Loaded::Meta(META_FAMILY) => Some(vec![sample.family.number()]),
            Loaded::Meta(META_L4PROTO) => Some(vec![TCP]),
            Loaded::Meta(META_PROTOCOL) => Some(match sample.family {
                Family::V4 => vec![0x08, 0x00],
                Family::V6 => vec![0x86, 0xdd],
            }),
            Loaded::Ct(CT_STATE) => {
                let bits = if sample.begins { NEW } else { ESTABLISHED };
                Some(bits.to_ne_bytes().to_vec())
            }
            _ => None,
        };
        match value {
            Some(value) => self.write(to, value.len(), &value),
            None => self.forget(to, NAME),
        }
    }

    fn at(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied().flatten()
    }

    fn put(&mut self, at: usize, byte: Option<u8>) {
        if let Some(place) = self.0.get_mut(at) {
            *place = byte;
        }
    }

    /// Forgets whole registers.
    fn forget(&mut self, to: Register, len: usize) {
        for at in to..to.saturating_add(len.next_multiple_of(4)) {
            self.put(at, None);
        }
    }

    fn write(&mut self, to: Register, len: usize, value: &[u8]) {
        self.forget(to, len);
        for (byte, at) in value.iter().zip(to..) {
            self.put(at, Some(*byte));
        }
    }

    fn equal(&self, from: Register, value: &[u8]) -> Met {
        let same = value.iter().zip(from..).map(|(byte, at)| {
            let known = self.at(at);
            known.map_or(Met::Maybe, |known| Met::of(known == *byte))
        });
        same.fold(Met::Yes, Met::and)
    }

    /// The bytes from a register on, if all are known.
    fn bytes(&self, from: Register, len: usize) -> Option<Vec<u8>> {
        (from..from.saturating_add(len))
            .map(|at| self.at(at))
            .collect()
    }

    fn within(
        &self,
        from: Register,
        first: Option<&[u8]>,
        last: Option<&[u8]>,
        inclusive: bool,
    ) -> Met {
        let len = first.or(last).map_or(0, <[u8]>::len);
        let Some(value) = self.bytes(from, len) else {
            return Met::Maybe;
        };
        let value = value.as_slice();
        let above = first.is_none_or(|first| value > first || (inclusive && value == first));
        let below = last.is_none_or(|last| value < last || (inclusive && value == last));
        Met::of(above && below)
    }

    /// Whether an element is for what is in the registers.
    fn is(&self, from: Register, element: &Element) -> Met {
        let Some((first, last)) = &element.keys else {
            return Met::Yes;
        };
        if first == last {
            return self.equal(from, first);
        }
        match self.within(from, Some(first), Some(last), true) {
            // Each part of a concatenation has a range of its own.
            Met::Yes if !matches!(first.len(), 1..=4 | 16) => Met::Maybe,
            met => met,
        }
    }

    fn is_in(&self, from: Register, set: &Set) -> Met {
        let mut elements = set.elements.iter();
        elements
            .try_fold(Met::No, |met, element| {
                let met = met.or(self.is(from, element));
                if met == Met::Yes { Err(met) } else { Ok(met) }
            })
            .unwrap_or(Met::Yes)
    }

    /// What a verdict map does.
    fn verdicts(&self, from: Register, map: &Set, met: Met, text: &str) -> Vec<Judged> {
        let mut left = met;
        let mut all = Vec::new();
        for element in &map.elements {
            let is = self.is(from, element);
            let verdict = match (&element.jump, element.verdict) {
                (Some(chain), _) => Verdict::Jump(chain.clone()),
                (None, Some(ElementVerdict::Accept)) => Verdict::Accept,
                (None, Some(ElementVerdict::Drop)) => Verdict::Drop,
                (None, Some(ElementVerdict::None)) => Verdict::None,
                (None, _) => Verdict::Jump("a program".into()),
            };
            all.push(ended(left.and(is), verdict, text));
            if is == Met::Yes {
                break;
            }
            if is == Met::Maybe {
                left = left.and(Met::Maybe);
            }
        }
        all
    }
}

/// A byte of a sample, by its place in the network or transport header.
fn packet(sample: &Sample, transport: bool, at: usize) -> Option<u8> {
    let of_port = |port: Option<u16>, at: usize| port?.to_be_bytes().get(at).copied();
    if transport {
        return match at {
            0..2 => of_port(sample.from_port, at),
            2..4 => of_port(sample.to_port, at - 2),
            _ => None,
        };
    }
    let (from, to, len) = match sample.family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    };
    let of_address = |address: Option<IpAddr>, at: usize| match address? {
        IpAddr::V4(address) => address.octets().get(at).copied(),
        IpAddr::V6(address) => address.octets().get(at).copied(),
    };
    match at {
        at if (from..from + len).contains(&at) => of_address(sample.from, at - from),
        at if (to..to + len).contains(&at) => of_address(sample.to, at - to),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use crate::firewall::probe::Fate;
    use crate::firewall::tables::BaseChain;
    use crate::netlink::codec::Builder;
    use crate::netlink::nftables::expression::Expressions;
    use crate::netlink::nftables::hook;
    use proptest::prelude::*;

    fn base(drops: bool) -> ChainInfo {
        ChainInfo {
            family: family::INET,
            table: "filter".into(),
            name: "forward".into(),
            handle: 1,
            base: Some(BaseChain {
                kind: "filter".into(),
                hook: hook::FORWARD,
                priority: 0,
                drops,
            }),
            rules: 1,
        }
    }

    /// A rule's expressions as the kernel gives them: those in the builder's only attribute.
    fn rule(write: impl FnOnce(&mut Expressions<'_>)) -> Vec<u8> {
        let mut builder = Builder::new();
        builder.message(0, 0, 0, 0, 0);
        let header = 20;
        write(&mut Expressions::new(&mut builder));
        builder.finish().unwrap().split_off(header)
    }

    fn fate(rules: Vec<Vec<u8>>, drops: bool) -> Fate {
        let base = base(drops);
        let key = ((base.family, base.table.clone()), base.name.clone());
        let all = NftRules {
            bases: vec![base.clone()],
            chains: BTreeMap::from([(key, rules)]),
            ..NftRules::default()
        };
        all.through(&base, &sample()).fate(drops)
    }

    #[test]
    fn protocol_and_port_are_judged() {
        let port = |port: u16| {
            rule(|e| {
                e.protocol(0, TCP)
                    .payload(0, expression::Base::Transport, 2, 2)
                    .compare(0, true, &port.to_be_bytes())
                    .accept();
            })
        };
        assert_eq!(fate(vec![port(21)], true), Fate::Passes);
        assert_eq!(fate(vec![port(22)], true), Fate::Dropped(None));
        let udp = rule(|e| {
            e.protocol(0, 17).accept();
        });
        assert_eq!(fate(vec![udp], true), Fate::Dropped(None));
        let source = rule(|e| {
            e.payload(0, expression::Base::Network, 12, 4)
                .compare(0, true, &[198, 51, 100, 2])
                .accept();
        });
        assert_eq!(fate(vec![source.clone()], true), Fate::Unsure);
        assert_eq!(fate(vec![source, port(21)], true), Fate::Passes);
    }

    #[test]
    fn verdict_maps_are_judged() {
        // ct state vmap { established : accept, new : drop }
        let element = |state: u32, verdict| Element {
            keys: Some((state.to_ne_bytes().into(), state.to_ne_bytes().into())),
            jump: None,
            verdict: Some(verdict),
        };
        let map = Set {
            elements: vec![
                element(ESTABLISHED, ElementVerdict::Accept),
                element(NEW, ElementVerdict::Drop),
            ],
            complete: true,
        };
        let registers = {
            let mut registers = Registers([None; REGISTERS]);
            registers.known(0, Loaded::Ct(CT_STATE), &sample());
            registers
        };
        let judged = registers.verdicts(0, &map, Met::Yes, "");
        let mets: Vec<_> = judged.iter().map(|j| (j.met, j.verdict.clone())).collect();
        assert_eq!(
            mets,
            [(Met::No, Verdict::Accept), (Met::Yes, Verdict::Drop)]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(rule in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = fate(vec![rule], false);
        }
    }
}

//! Follows new TCP connections through the rules of a table, and collects where which ports lead.
//!
//! A packet is known only by what the rules ask: protocol, family, addresses and destination port.
//! Each byte of the registers is one of these, a constant, or unknown. What is asked about anything
//! else (interfaces, marks, states) may be so: more may be found than there is, never less, but for
//! what is beyond the bounds.
//!
//! Contract: total, and bounded whatever the rules are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::expression::{Data, Dnat, Expression, Register, Set, Target};
use super::ports::{Ports, Span, common};
use crate::nat::rules::is_our_chain;
use crate::nat::rules::published::Published;

/// How deep chains may be nested (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// How many steps are made in a table: one expression for one kind of packets.
const STEPS: usize = 1 << 18;
/// How many kinds of packets a rule may tell apart.
const KINDS: usize = 4096;
/// How many ranges of addresses are kept of a kind of packets.
const SPANS: usize = 1024;
/// How many jumps may wait to be followed.
const AHEAD: usize = 8192;
/// How many results a table may have.
const RESULTS: usize = 4096;
/// The bytes of all registers.
const REGISTERS: usize = 64;
/// `NFPROTO_*`
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;

/// What is known of a table.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// `NFPROTO_*`
    pub(super) family: u8,
    /// The rules of chains, by name.
    pub(super) chains: BTreeMap<String, Vec<Vec<Expression>>>,
    /// Sets and maps by name; `None`: they can't be had.
    pub(super) sets: BTreeMap<String, Option<Set>>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) published: BTreeSet<Published>,
    /// Chains that need to be known to find all.
    pub(super) chains: BTreeSet<String>,
    /// Sets that need to be known.
    pub(super) sets: BTreeSet<String>,
    /// Whether there was more than the bounds allow.
    pub(super) cut: bool,
}

/// Follows packets from these chains on.
pub(super) fn trace(table: &Table, bases: &[String]) -> Found {
    let mut tracer = Tracer {
        table,
        found: Found::default(),
        steps: STEPS,
        ahead: VecDeque::new(),
    };
    let any = Kind {
        family: Some(table.family).filter(|f| matches!(*f, IPV4 | IPV6)),
        ports: Ports::all(),
        certain: false,
        source: None,
        target: None,
    };
    for base in bases {
        tracer.ahead.push_back((base, any.clone(), 0));
    }
    while let Some((chain, kind, depth)) = tracer.ahead.pop_front() {
        tracer.chain(chain, &kind, depth);
    }
    tracer.found
}

/// Packets that have something in common.
#[derive(Clone, Debug)]
struct Kind {
    /// `NFPROTO_*`; `None`: either.
    family: Option<u8>,
    ports: Ports,
    /// Whether a rule asked for ports.
    certain: bool,
    /// `None`: all.
    source: Option<Arc<[Span]>>,
    target: Option<Arc<[Span]>>,
}

/// What a byte in a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Byte {
    Unknown,
    Constant(u8),
    /// The byte at this position of a field, and a mask.
    Of(Field, u8, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Protocol,
    Family,
    Port,
    Source,
    Target,
}

/// A kind of packets, in the middle of a rule.
#[derive(Clone, Debug)]
struct State {
    kind: Kind,
    registers: [Byte; REGISTERS],
}

/// A range of keys.
type Keys<'a> = (&'a [u8], &'a [u8]);

struct Tracer<'a> {
    table: &'a Table,
    found: Found,
    /// How many are left.
    steps: usize,
    ahead: VecDeque<(&'a str, Kind, usize)>,
}

impl<'a> Tracer<'a> {
    fn chain(&mut self, name: &str, kind: &Kind, depth: usize) {
        let table = self.table;
        let Some(rules) = table.chains.get(name) else {
            self.found.chains.insert(name.to_owned());
            return;
        };
        for rule in rules {
            let mut states = vec![State {
                kind: kind.clone(),
                registers: [Byte::Unknown; REGISTERS],
            }];
            for expression in rule {
                if states.is_empty() {
                    break;
                }
                let Some(left) = self.steps.checked_sub(states.len()) else {
                    self.found.cut = true;
                    return;
                };
                self.steps = left;
                states = self.step(expression, states, depth);
            }
        }
    }

    /// What becomes of packets in one step of a rule.
    fn step(
        &mut self,
        expression: &'a Expression,
        mut states: Vec<State>,
        depth: usize,
    ) -> Vec<State> {
        match expression {
            Expression::Condition => {}
            Expression::Payload {
                to,
                base,
                offset,
                len,
            } => {
                for state in &mut states {
                    let family = state.kind.family;
                    let load = |i: usize| payload(family, *base, offset.saturating_add(i));
                    state.load(*to, *len, load);
                }
            }
            Expression::Meta { to, key } => {
                for state in &mut states {
                    // NFT_META_NFPROTO, NFT_META_L4PROTO; others have up to 16 bytes (iifname).
                    match key {
                        15 => state.load(*to, 4, |i| one_byte(Field::Family, i)),
                        16 => state.load(*to, 4, |i| one_byte(Field::Protocol, i)),
                        _ => state.load(*to, 16, |_| Byte::Unknown),
                    }
                }
            }
            Expression::Immediate { to, value } => {
                for state in &mut states {
                    state.constant(*to, value);
                }
            }
            Expression::Mask { from, to, mask } => {
                for state in &mut states {
                    let old = state.registers;
                    let masked = |i: usize| {
                        let byte = old.get(from.saturating_add(i)).copied();
                        mask.get(i).zip(byte).map_or(Byte::Unknown, masked)
                    };
                    state.load(*to, mask.len(), masked);
                }
            }
            Expression::Range {
                from,
                negated,
                first,
                last,
            } => states.retain_mut(|state| {
                let keys = [(first.as_slice(), last.as_slice())];
                match negated {
                    false => state.restrict(*from, &keys),
                    true => state.exclude(*from, &keys),
                }
            }),
            Expression::Lookup {
                from,
                set,
                target,
                negated,
            } => return self.lookup(states, *from, set, *target, *negated, depth),
            Expression::Jump(chain) => {
                for state in states {
                    self.jump(chain, state.kind, depth);
                }
                return Vec::new();
            }
            Expression::End => return Vec::new(),
            Expression::Dnat(dnat) => {
                for state in states {
                    self.publish(state.led(dnat));
                }
                return Vec::new();
            }
            Expression::Ports(ports) => states.retain_mut(|state| state.kind.take_ports(ports)),
            Expression::Lead { address, port } => {
                for state in states {
                    let size = if state.kind.family == Some(IPV4) {
                        4
                    } else {
                        16
                    };
                    let address = address.and_then(|bytes| ip(bytes.get(..size)?.into(), size, 0));
                    self.publish(state.kind.led(address, *port));
                }
                return Vec::new();
            }
            Expression::Redirect => {
                for state in states {
                    self.publish(state.kind.published(None, None));
                }
                return Vec::new();
            }
            Expression::Other => {
                for state in &mut states {
                    state.registers = [Byte::Unknown; REGISTERS];
                }
            }
        }
        states
    }

    fn lookup(
        &mut self,
        mut states: Vec<State>,
        from: Register,
        name: &'a str,
        target: Target,
        negated: bool,
        depth: usize,
    ) -> Vec<State> {
        let set = match self.table.sets.get(name) {
            Some(set) => set.as_ref(),
            None => {
                self.found.sets.insert(name.to_owned());
                None
            }
        };
        let Some(set) = set else {
            // Whatever is in there.
            if let Target::Register(to) = target {
                let unknown = |state: &mut State| state.load(to, REGISTERS, |_| Byte::Unknown);
                states.iter_mut().for_each(unknown);
            }
            return states;
        };
        if target == Target::Nowhere {
            let keys: Vec<Keys<'_>> = set.elements.iter().map(keys).collect();
            if negated {
                states.retain_mut(|state| !set.complete || state.exclude(from, &keys));
                return states;
            }
            let simple = |state: &State| {
                let len = keys.first().map_or(0, |(first, _)| first.len());
                let fields = state.fields(from, len);
                let whole = set.complete || !matches!(fields[..], [(Field::Port, ..)]);
                fields.len() < 2 && whole
            };
            if set.rest.is_some() || (states.iter().all(simple) && !keys.is_empty()) {
                states.retain_mut(|state| {
                    // Those that weren't read may be meant, unless it is about ports.
                    set.rest.is_some() || state.restrict_to(from, &keys, set.complete)
                });
                return states;
            }
        }
        // Where the rest leads isn't known.
        self.found.cut |= !set.complete;
        let mut all = Vec::new();
        for state in states {
            let rest = set.rest.as_ref().map(|data| (None, data));
            let elements = set.elements.iter().map(|one| (Some(keys(one)), &one.data));
            for (keys, data) in elements.chain(rest) {
                let Some(left) = self.steps.checked_sub(1).filter(|_| all.len() < KINDS) else {
                    self.found.cut = true;
                    return all;
                };
                self.steps = left;
                let mut state = state.clone();
                if !keys.is_none_or(|keys| state.restrict(from, &[keys])) {
                    continue;
                }
                match (target, data) {
                    (Target::Verdict, Data::Jump(chain)) => self.jump(chain, state.kind, depth),
                    (Target::Verdict, _) => {}
                    (Target::Register(to), Data::Value(value)) => {
                        state.constant(to, value);
                        all.push(state);
                    }
                    _ => all.push(state),
                }
            }
        }
        all
    }

    fn jump(&mut self, chain: &'a str, kind: Kind, depth: usize) {
        if is_our_chain(chain) {
            return;
        }
        if depth >= DEPTH || self.ahead.len() >= AHEAD {
            self.found.cut = true;
            return;
        }
        self.ahead.push_back((chain, kind, depth.saturating_add(1)));
    }

    fn publish(&mut self, published: Option<Published>) {
        let Some(published) = published else {
            return;
        };
        self.found.published.insert(published);
        if self.found.published.len() > RESULTS {
            self.found.published.pop_last();
            self.found.cut = true;
        }
    }
}

fn keys(element: &super::expression::Element) -> Keys<'_> {
    (&element.first, &element.last)
}

fn one_byte(field: Field, at: usize) -> Byte {
    match at {
        0 => Byte::Of(field, 0, u8::MAX),
        _ => Byte::Constant(0),
    }
}

fn masked((mask, byte): (&u8, Byte)) -> Byte {
    match byte {
        Byte::Constant(value) => Byte::Constant(value & mask),
        Byte::Of(field, at, old) => Byte::Of(field, at, old & mask),
        Byte::Unknown => Byte::Unknown,
    }
}

/// What a byte of the packet is: `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
fn payload(family: Option<u8>, base: u32, offset: usize) -> Byte {
    let of = |field, first: usize| {
        let at = u8::try_from(offset.saturating_sub(first));
        at.map_or(Byte::Unknown, |at| Byte::Of(field, at, u8::MAX))
    };
    match (base, family, offset) {
        (2, _, 2..4) => of(Field::Port, 2),
        (1, Some(IPV4), 9) => of(Field::Protocol, 9),
        (1, Some(IPV4), 12..16) => of(Field::Source, 12),
        (1, Some(IPV4), 16..20) => of(Field::Target, 16),
        (1, Some(IPV6), 6) => of(Field::Protocol, 6),
        (1, Some(IPV6), 8..24) => of(Field::Source, 8),
        (1, Some(IPV6), 24..40) => of(Field::Target, 24),
        _ => Byte::Unknown,
    }
}

/// A field in a key: which, where it begins, and the masks of the bytes that are there.
type Part = (Field, usize, Vec<u8>);

impl State {
    fn load(&mut self, to: Register, len: usize, byte: impl Fn(usize) -> Byte) {
        let bytes = self.registers.iter_mut().skip(to).take(len);
        bytes.enumerate().for_each(|(i, place)| *place = byte(i));
    }

    fn constant(&mut self, to: Register, value: &[u8]) {
        // A register that is filled in part is zero in the rest.
        let byte = |i: usize| Byte::Constant(value.get(i).copied().unwrap_or(0));
        self.load(to, value.len().next_multiple_of(4), byte);
    }

    /// The fields that a key has from their beginning on.
    fn fields(&self, from: Register, len: usize) -> Vec<Part> {
        let mut all: Vec<Part> = Vec::new();
        // Whether the last one may go on.
        let mut open = false;
        for (i, byte) in self.registers.iter().skip(from).take(len).enumerate() {
            match (*byte, all.last_mut()) {
                (Byte::Of(field, 0, mask), _) => {
                    all.push((field, i, vec![mask]));
                    open = true;
                }
                (Byte::Of(field, at, mask), Some((last, _, masks)))
                    if open && field == *last && usize::from(at) == masks.len() =>
                {
                    masks.push(mask);
                }
                _ => open = false,
            }
        }
        all.retain(|(field, _, masks)| match field {
            Field::Port => masks == &[u8::MAX; 2],
            Field::Protocol | Field::Family => masks == &[u8::MAX],
            Field::Source | Field::Target => true,
        });
        all
    }

    /// Takes those packets whose key is in one of the ranges; whether there are any.
    fn restrict(&mut self, from: Register, keys: &[Keys<'_>]) -> bool {
        self.restrict_to(from, keys, true)
    }

    /// If these aren't all ranges that are meant, just the ports are told apart.
    fn restrict_to(&mut self, from: Register, keys: &[Keys<'_>], complete: bool) -> bool {
        let len = keys.first().map_or(0, |(first, _)| first.len());
        let fields = self.fields(from, len);
        // The range of a number that has several fields says little about each.
        let ranges = keys.iter().any(|(first, last)| first != last);
        let whole = matches!(fields[..], [(_, 0, _)]);
        fields.iter().all(|(field, at, masks)| {
            let part = |key: &&[u8]| key.get(*at..at.saturating_add(masks.len())).map(Vec::from);
            let parts = keys.iter().map(|(first, last)| part(first).zip(part(last)));
            let Some(parts) = parts.collect::<Option<Vec<_>>>() else {
                return true;
            };
            let concat = at % 4 == 0 && keys.iter().all(|(a, _)| a.len() % 4 == 0);
            let usable = complete || *field == Field::Port;
            !usable || (ranges && !whole && !concat) || self.kind.take(*field, masks, &parts)
        })
    }

    /// Takes those packets whose key isn't in any of the ranges, as far as that can be told.
    fn exclude(&mut self, from: Register, keys: &[Keys<'_>]) -> bool {
        let len = keys.first().map_or(0, |(first, _)| first.len());
        let fields = self.fields(from, len);
        let [(field, 0, masks)] = &fields[..] else {
            return true;
        };
        if masks.len() != len {
            return true;
        }
        let has = |byte: u8| {
            keys.iter()
                .any(|(a, b)| *a <= &[byte][..] && &[byte][..] <= *b)
        };
        match field {
            Field::Port => {
                let ports = keys.iter().filter_map(|(a, b)| be16(a).zip(be16(b)));
                self.kind.ports = self.kind.ports.without(&Ports::new(ports.collect()));
                !self.kind.ports.is_empty()
            }
            Field::Protocol => !has(TCP),
            Field::Family => self.kind.family.is_none_or(|family| !has(family)),
            Field::Source | Field::Target => true,
        }
    }

    /// The bytes from a place on, if they are constants.
    fn constants<const N: usize>(&self, at: Register) -> Option<[u8; N]> {
        let bytes = self.registers.get(at..)?.first_chunk::<N>()?;
        let mut all = [0; N];
        for (to, byte) in all.iter_mut().zip(bytes) {
            let Byte::Constant(value) = byte else {
                return None;
            };
            *to = *value;
        }
        Some(all)
    }

    fn address(&self, family: u8, at: Register) -> Option<IpAddr> {
        match family {
            IPV4 => self.constants::<4>(at).map(IpAddr::from),
            IPV6 => self.constants::<16>(at).map(IpAddr::from),
            _ => None,
        }
    }

    /// What such a rule publishes.
    fn led(mut self, dnat: &Dnat) -> Option<Published> {
        let family = u8::try_from(dnat.family).unwrap_or(0);
        if matches!(family, IPV4 | IPV6) && !self.kind.is_of(family) {
            return None;
        }
        let port = |at| self.constants::<2>(at).map(u16::from_be_bytes);
        let address = dnat
            .address
            .map(|(first, last)| (self.address(family, first), self.address(family, last)));
        let to = match address {
            Some((first, last)) if first == last && !dnat.netmap => first,
            _ => None,
        };
        match dnat.port.map(|(first, last)| port(first).zip(port(last))) {
            // Ports that can't be told.
            Some(None) => self.kind.published(None, None),
            ports => self.kind.led(to, ports.flatten()),
        }
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

impl Kind {
    /// Takes those of one family; whether there are any.
    fn is_of(&mut self, family: u8) -> bool {
        *self.family.get_or_insert(family) == family
    }

    /// Takes those whose field is in one of the ranges; whether there are any.
    fn take(&mut self, field: Field, masks: &[u8], ranges: &[(Vec<u8>, Vec<u8>)]) -> bool {
        let has = |byte: u8| {
            let byte = &[byte][..];
            let within = |(first, last): &(Vec<u8>, Vec<u8>)| &**first <= byte && byte <= &**last;
            ranges.iter().any(within)
        };
        match field {
            Field::Protocol => has(TCP),
            Field::Family => match (has(IPV4), has(IPV6)) {
                (true, true) => true,
                (true, false) => self.is_of(IPV4),
                (false, true) => self.is_of(IPV6),
                (false, false) => false,
            },
            Field::Port => {
                let ports = ranges.iter().filter_map(|(a, b)| be16(a).zip(be16(b)));
                self.take_ports(&Ports::new(ports.collect()))
            }
            Field::Source | Field::Target => {
                let size = match self.family {
                    Some(IPV4) => 4,
                    Some(IPV6) => 16,
                    _ => return true,
                };
                // A mask is told for single values only.
                let told = |(a, b): &&(Vec<u8>, Vec<u8>)| a == b || masks.iter().all(|m| *m == 255);
                if !ranges.iter().all(|range| told(&range)) {
                    return true;
                }
                let spans = ranges.iter().filter_map(|(first, last)| {
                    let low: Vec<u8> = first.iter().zip(masks).map(|(b, m)| b & m).collect();
                    let high: Vec<u8> = last.iter().zip(masks).map(|(b, m)| b | !m).collect();
                    Some((ip(low, size, 0)?, ip(high, size, u8::MAX)?))
                });
                let spans: Vec<Span> = spans.take(SPANS.saturating_add(1)).collect();
                if spans.len() > SPANS {
                    return true;
                }
                let old = match field {
                    Field::Source => &mut self.source,
                    _ => &mut self.target,
                };
                let both = common(old.as_deref(), spans, SPANS);
                let any = !both.is_empty();
                *old = Some(both.into());
                any
            }
        }
    }

    /// Takes those to these ports; whether there are any.
    fn take_ports(&mut self, ports: &Ports) -> bool {
        self.ports = self.ports.and(ports);
        self.certain = true;
        !self.ports.is_empty()
    }

    /// What a rule publishes that leads them to an address, if it can be told, and to one of a range
    /// of ports.
    fn led(&self, to: Option<IpAddr>, ports: Option<(u16, u16)>) -> Option<Published> {
        match ports {
            Some((first, last)) if first == last => self.published(to, Some(first)),
            // Each port stays what it is.
            Some((first, last)) if !self.ports.are_within(first, last) => {
                self.published(None, None)
            }
            _ => self.published(to, None),
        }
    }

    fn published(&self, to: Option<IpAddr>, to_port: Option<u16>) -> Option<Published> {
        let all = |size| Some((ip(Vec::new(), size, 0)?, ip(Vec::new(), size, u8::MAX)?));
        let family = match self.family {
            Some(IPV4) => all(4),
            Some(IPV6) => all(16),
            _ => None,
        };
        self.certain.then(|| {
            Published::new(
                self.target.clone().or(family.map(|span| Arc::from([span]))),
                self.source.clone(),
                self.ports.shared(),
                to,
                to_port,
            )
        })
    }
}

/// An address from its first bytes.
fn ip(mut bytes: Vec<u8>, size: usize, rest: u8) -> Option<IpAddr> {
    bytes.resize(size, rest);
    match size {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
}

//! What is known of packets in the middle of a rule.
//!
//! A kind of packets is known by family, addresses and destination port; all of them are TCP. Each
//! byte of the registers is one of a packet's fields, a constant, or unknown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::expression::{Dnat, Register};
use super::ports::{Ports, Span, common};
use crate::firewall::published::Published;

/// How many ranges of addresses are kept of a kind of packets.
const SPANS: usize = 1024;
/// The bytes of all registers.
pub(super) const REGISTERS: usize = 64;
/// `NFPROTO_*`
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;
const TCP: u8 = 6;

/// Packets that have something in common.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// `NFPROTO_*`; `None`: either.
    pub(super) family: Option<u8>,
    pub(super) ports: Ports,
    /// Whether a rule asked for ports.
    certain: bool,
    /// `None`: all.
    source: Option<Arc<[Span]>>,
    target: Option<Arc<[Span]>>,
}

/// What a byte in a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    Unknown,
    Constant(u8),
    /// The byte at this position of a field, and a mask.
    Of(Field, u8, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Protocol,
    Family,
    Port,
    Source,
    Target,
}

/// A kind of packets, in the middle of a rule.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) kind: Kind,
    registers: [Byte; REGISTERS],
}

/// A range of keys.
pub(super) type Keys<'a> = (&'a [u8], &'a [u8]);

pub(super) fn one_byte(field: Field, at: usize) -> Byte {
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
pub(super) fn payload(family: Option<u8>, base: u32, offset: usize) -> Byte {
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
    pub(super) fn new(kind: &Kind) -> Self {
        Self {
            kind: kind.clone(),
            registers: [Byte::Unknown; REGISTERS],
        }
    }

    pub(super) fn mask(&mut self, from: Register, to: Register, mask: &[u8]) {
        let old = self.registers;
        let byte = |i: usize| {
            let byte = old.get(from.saturating_add(i)).copied();
            mask.get(i).zip(byte).map_or(Byte::Unknown, masked)
        };
        self.load(to, mask.len(), byte);
    }

    pub(super) fn load(&mut self, to: Register, len: usize, byte: impl Fn(usize) -> Byte) {
        let bytes = self.registers.iter_mut().skip(to).take(len);
        bytes.enumerate().for_each(|(i, place)| *place = byte(i));
    }

    pub(super) fn constant(&mut self, to: Register, value: &[u8]) {
        // A register that is filled in part is zero in the rest.
        let byte = |i: usize| Byte::Constant(value.get(i).copied().unwrap_or(0));
        self.load(to, value.len().next_multiple_of(4), byte);
    }

    /// The fields that a key has from their beginning on.
    pub(super) fn fields(&self, from: Register, len: usize) -> Vec<Part> {
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
    pub(super) fn restrict(&mut self, from: Register, keys: &[Keys<'_>]) -> bool {
        self.restrict_to(from, keys, true)
    }

    /// If these aren't all ranges that are meant, just the ports are told apart.
    pub(super) fn restrict_to(
        &mut self,
        from: Register,
        keys: &[Keys<'_>],
        complete: bool,
    ) -> bool {
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
    pub(super) fn exclude(&mut self, from: Register, keys: &[Keys<'_>]) -> bool {
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
    pub(super) fn led(mut self, dnat: &Dnat) -> Option<Published> {
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
    /// All that a table of this family sees.
    pub(super) fn of(family: u8) -> Self {
        Self {
            family: Some(family).filter(|f| matches!(*f, IPV4 | IPV6)),
            ports: Ports::all(),
            certain: false,
            source: None,
            target: None,
        }
    }

    /// An address of their family, from its bytes and others behind them.
    pub(super) fn address(&self, bytes: [u8; 16]) -> Option<IpAddr> {
        let size = if self.family == Some(IPV4) { 4 } else { 16 };
        ip(bytes.get(..size)?.into(), size, 0)
    }

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
    pub(super) fn take_ports(&mut self, ports: &Ports) -> bool {
        self.ports = self.ports.and(ports);
        self.certain = true;
        !self.ports.is_empty()
    }

    /// What a rule publishes that leads them to an address, if it can be told, and to one of a range
    /// of ports.
    pub(super) fn led(&self, to: Option<IpAddr>, ports: Option<(u16, u16)>) -> Option<Published> {
        match ports {
            Some((first, last)) if first == last => self.published(to, Some(first)),
            // Each port stays what it is.
            Some((first, last)) if !self.ports.are_within(first, last) => {
                self.published(None, None)
            }
            _ => self.published(to, None),
        }
    }

    pub(super) fn published(&self, to: Option<IpAddr>, to_port: Option<u16>) -> Option<Published> {
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

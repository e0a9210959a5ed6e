//! Rules and sets of nf_tables, decoded from what the kernel says about them.
//!
//! Contract: total and bounded by the message that is read. What isn't known becomes
//! [`Expression::Other`]; a rule that can lead packets nowhere isn't kept.

use super::ports::Ports;
use crate::netlink::codec::{Attr, Attrs, Message};
use crate::netlink::nftables::{ELEM_END, ELEM_REST, SET_CONCAT, SET_INTERVAL, attr};

/// `NFT_JUMP`, `NFT_GOTO`
const JUMP: i32 = -3;
const GOTO: i32 = -4;
/// `NFT_REG_VERDICT`
const VERDICT_REGISTER: u32 = 0;
/// `NF_NAT_RANGE_NETMAP`: each address is mapped to one of its own.
const NETMAP: u32 = 0x40;

/// Where a register begins among the 64 bytes of all of them.
pub(super) type Register = usize;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads bytes of the packet; `base` as `NFT_PAYLOAD_*`.
    Payload {
        to: Register,
        base: u32,
        offset: usize,
        len: usize,
    },
    /// Loads something about the packet: `NFT_META_*`.
    Meta { to: Register, key: u32 },
    /// Loads a value.
    Immediate { to: Register, value: Vec<u8> },
    /// Masks a value.
    Mask {
        from: Register,
        to: Register,
        mask: Vec<u8>,
    },
    /// Goes on if the value is (not) in a range, both ends included.
    Range {
        from: Register,
        negated: bool,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// Goes on if the value is (not) an element, or with what it is mapped to.
    Lookup {
        from: Register,
        set: String,
        target: Target,
        negated: bool,
    },
    /// Goes on in another chain.
    Jump(String),
    /// Ends the rule.
    End,
    /// Changes the destination.
    Dnat(Dnat),
    /// Changes it as a rule of iptables does: to an address (IPv4: its first bytes) and port.
    Lead {
        address: Option<[u8; 16]>,
        port: Option<(u16, u16)>,
    },
    /// Changes it to this host, or in a way that can't be told.
    Redirect,
    /// Goes on for these destination ports.
    Ports(Ports),
    /// May end the rule, and leaves the registers as they are.
    Condition,
    /// Isn't known: it may do anything to the registers.
    Other,
}

/// Where a lookup puts what a key is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Nowhere,
    Register(Register),
    Verdict,
}

/// Where a packet is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dnat {
    /// `NFPROTO_*`
    pub(super) family: u32,
    /// The first and last address.
    pub(super) address: Option<(Register, Register)>,
    /// The first and last port.
    pub(super) port: Option<(Register, Register)>,
    /// Whether each address is mapped to one of its own.
    pub(super) netmap: bool,
}

/// Decodes a rule; `None` if it leads nowhere.
pub(super) fn rule(message: &Message<'_>) -> Option<Vec<Expression>> {
    let list = message.attrs().find(attr::RULE_EXPRESSIONS)?;
    let all: Vec<_> = list.nested().filter_map(|one| expression(&one)).collect();
    let leads = |one: &Expression| match one {
        Expression::Dnat(_) | Expression::Lead { .. } | Expression::Redirect => true,
        Expression::Jump(_) => true,
        Expression::Lookup { target, .. } => *target == Target::Verdict,
        _ => false,
    };
    all.iter().any(leads).then_some(all)
}

fn expression(one: &Attr<'_>) -> Option<Expression> {
    let name = one.nested().find(attr::EXPR_NAME)?.text()?;
    let parts = one
        .nested()
        .find(attr::EXPR_DATA)
        .map_or_else(|| Attrs::new(&[]), |data| data.nested());
    Some(known(name, parts).unwrap_or(match name {
        "counter" | "log" | "limit" | "quota" | "connlimit" | "last" | "notrack" | "objref"
        | "dynset" => Expression::Condition,
        _ => Expression::Other,
    }))
}

/// Decodes an expression by the numbers of its attributes (`NFTA_PAYLOAD_*` and so on).
fn known(name: &str, parts: Attrs<'_>) -> Option<Expression> {
    let number = |kind| parts.find(kind)?.be32();
    let size = |kind| usize::try_from(number(kind)?).ok();
    let register = |kind| place(number(kind)?);
    let value = |kind| {
        let value = parts.find(kind)?.nested().find(attr::DATA_VALUE)?.value;
        Some(value.to_vec())
    };
    Some(match name {
        // A value is written: to the packet, or to what is known about it.
        "payload" if parts.find(5).is_some() => Expression::Condition,
        "meta" if parts.find(3).is_some() => Expression::Condition,
        "payload" => Expression::Payload {
            to: register(1)?,
            base: number(2)?,
            offset: size(3)?,
            len: size(4)?,
        },
        "meta" => Expression::Meta {
            to: register(1)?,
            key: number(2)?,
        },
        "immediate" => match parts
            .find(attr::IMMEDIATE_DATA)
            .map(|d| verdict(d.nested()))
        {
            Some(Some(Verdict::Jump(chain))) => Expression::Jump(chain),
            Some(Some(Verdict::Other)) => Expression::End,
            _ => Expression::Immediate {
                to: register(attr::IMMEDIATE_TARGET)?,
                value: value(attr::IMMEDIATE_DATA)?,
            },
        },
        "bitwise" if number(6).unwrap_or(0) == 0 && value(5)?.iter().all(|b| *b == 0) => {
            Expression::Mask {
                from: register(1)?,
                to: register(2)?,
                mask: value(4)?,
            }
        }
        "cmp" => compare(register(1)?, number(2)?, value(3)?)?,
        "range" => Expression::Range {
            from: register(1)?,
            negated: number(2)? != 0,
            first: value(3)?,
            last: value(4)?,
        },
        "lookup" => Expression::Lookup {
            set: parts.find(1)?.text()?.to_owned(),
            from: register(2)?,
            target: match number(attr::LOOKUP_TARGET) {
                None => Target::Nowhere,
                Some(VERDICT_REGISTER) => Target::Verdict,
                Some(to) => Target::Register(place(to)?),
            },
            negated: number(5).unwrap_or(0) & 1 != 0,
        },
        "nat" if number(1)? == 1 => {
            let both = |min, max| register(min).map(|at| (at, register(max).unwrap_or(at)));
            Expression::Dnat(Dnat {
                family: number(2)?,
                address: both(3, 4),
                port: both(5, 6),
                netmap: number(7).unwrap_or(0) & NETMAP != 0,
            })
        }
        "redir" => Expression::Redirect,
        // Of iptables-nft, in a table that its tools can't show for other rules in it.
        "target" => match (parts.find(1)?.text()?, number(2)) {
            ("DNAT", Some(2)) => lead(parts.find(3)?.value).unwrap_or(Expression::Redirect),
            ("DNAT" | "REDIRECT", _) => Expression::Redirect,
            _ => Expression::End,
        },
        "match" => match (parts.find(1)?.text()?, number(2)) {
            ("multiport", Some(1)) => multiport(parts.find(3)?.value),
            _ => Expression::Condition,
        },
        "nat" | "masq" => Expression::End,
        _ => return None,
    })
}

/// Decodes `struct nf_nat_range2`: flags, lowest and highest address, lowest and highest port, base.
fn lead(range: &[u8]) -> Option<Expression> {
    let flags = u32::from_ne_bytes(*range.first_chunk()?);
    let address = |at: usize| range.get(at..)?.first_chunk::<16>().copied();
    let port = |at: usize| {
        let bytes = range.get(at..)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let (low, high) = (address(4)?, address(20)?);
    let ports = (port(36)?, port(38)?);
    let has = |flag| flags & flag != 0;
    // NF_NAT_RANGE_PROTO_OFFSET.
    let told = low == high && !has(NETMAP) && !has(0x20);
    Some(Expression::Lead {
        // NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED.
        address: Some(low).filter(|_| has(1) && told),
        port: Some(ports).filter(|_| has(2)),
    })
}

/// Decodes `struct xt_multiport_v1`: which ports, how many, 15 of them, whether each begins a range,
/// and whether others are meant. What isn't certain ports is a condition as any other.
fn multiport(info: &[u8]) -> Expression {
    let decoded = || {
        let [which, count, rest @ ..] = info else {
            return None;
        };
        let (numbers, rest) = rest.split_at_checked(30)?;
        let (begins, rest) = rest.split_at_checked(15)?;
        if (*which, *rest.first()?) != (1, 0) {
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
        Some(Expression::Ports(Ports::new(all)))
    };
    decoded().unwrap_or(Expression::Condition)
}

/// A comparison as a range of big-endian numbers.
fn compare(from: Register, operation: u32, with: Vec<u8>) -> Option<Expression> {
    let lowest = vec![0; with.len()];
    let highest = vec![u8::MAX; with.len()];
    // NFT_CMP_EQ, _NEQ, _LT, _LTE, _GT, _GTE.
    let range = match operation {
        0 | 1 => Some((with.clone(), with)),
        2 => before(&with).map(|last| (lowest, last)),
        3 => Some((lowest, with)),
        4 => after(&with).map(|first| (first, highest)),
        5 => Some((with, highest)),
        _ => return None,
    };
    // Nothing is less than the lowest, or more than the highest.
    Some(
        range.map_or(Expression::End, |(first, last)| Expression::Range {
            from,
            negated: operation == 1,
            first,
            last,
        }),
    )
}

/// The big-endian number that is one less.
fn before(number: &[u8]) -> Option<Vec<u8>> {
    step(number, 0, |byte| byte.wrapping_sub(1))
}

/// The big-endian number that is one more.
fn after(number: &[u8]) -> Option<Vec<u8>> {
    step(number, u8::MAX, |byte| byte.wrapping_add(1))
}

/// Steps the last byte that isn't at its end, and those behind it, which are.
fn step(number: &[u8], end: u8, next: impl Fn(u8) -> u8) -> Option<Vec<u8>> {
    let at = number.iter().rposition(|byte| *byte != end)?;
    let stepped = |(i, byte): (usize, &u8)| if i < at { *byte } else { next(*byte) };
    Some(number.iter().enumerate().map(stepped).collect())
}

/// Where a register is (`NFT_REG_1` and so on have 16 bytes, `NFT_REG32_00` and so on 4).
fn place(register: u32) -> Option<Register> {
    let at = match register {
        1..=4 => (register - 1) * 16,
        8..=23 => (register - 8) * 4,
        _ => return None,
    };
    usize::try_from(at).ok()
}

enum Verdict {
    Jump(String),
    Other,
}

/// Reads `NFTA_DATA_VERDICT`.
fn verdict(data: Attrs<'_>) -> Option<Verdict> {
    let verdict = data.find(attr::DATA_VERDICT)?.nested();
    let code = verdict.find(attr::VERDICT_CODE)?.be32()?.cast_signed();
    let chain = || Some(verdict.find(attr::VERDICT_CHAIN)?.text()?.to_owned());
    Some(match code {
        JUMP | GOTO => chain().map_or(Verdict::Other, Verdict::Jump),
        _ => Verdict::Other,
    })
}

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) elements: Vec<Element>,
    /// What all other keys are mapped to, or just in the set.
    pub(super) rest: Option<Data>,
    /// Whether these are all.
    pub(super) complete: bool,
}

/// An element: a range of keys, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
    pub(super) data: Data,
}

/// What a key is mapped to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing, or another verdict than a jump.
    None,
    /// A value.
    Value(Vec<u8>),
    /// It goes on in that chain.
    Jump(String),
}

/// An element as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawElement {
    key: Vec<u8>,
    /// The last key, where it is a concatenation.
    last: Option<Vec<u8>>,
    /// Whether it ends an interval, without being in it.
    end: bool,
    /// Whether it is for all other keys.
    rest: bool,
    data: Data,
}

/// The flags of a set.
pub(super) fn set_flags(message: &Message<'_>) -> u32 {
    let flags = message.attrs().find(attr::SET_FLAGS);
    flags.and_then(|flags| flags.be32()).unwrap_or(0)
}

/// The elements that a message tells of.
pub(super) fn elements(message: &Message<'_>) -> Vec<RawElement> {
    let list = message.attrs().find(attr::ELEMS_LIST);
    list.into_iter()
        .flat_map(|list| list.nested())
        .filter_map(|one| element(one.nested()))
        .collect()
}

fn element(parts: Attrs<'_>) -> Option<RawElement> {
    let value = |kind| {
        let value = parts.find(kind)?.nested().find(attr::DATA_VALUE)?.value;
        Some(value.to_vec())
    };
    let flags = parts.find(attr::ELEM_FLAGS).and_then(|flags| flags.be32());
    let has = |flag| flags.unwrap_or(0) & flag != 0;
    let verdict = || verdict(parts.find(attr::ELEM_DATA)?.nested());
    Some(RawElement {
        key: match has(ELEM_REST) {
            true => Vec::new(),
            false => value(attr::ELEM_KEY)?,
        },
        last: value(attr::ELEM_KEY_END),
        end: has(ELEM_END),
        rest: has(ELEM_REST),
        data: match (value(attr::ELEM_DATA), verdict()) {
            (Some(value), _) => Data::Value(value),
            (None, Some(Verdict::Jump(chain))) => Data::Jump(chain),
            _ => Data::None,
        },
    })
}

impl Set {
    /// Puts a set together from its flags and elements; `complete` if these are all.
    pub(super) fn new(flags: u32, mut raw: Vec<RawElement>, complete: bool) -> Self {
        let mut rest = None;
        raw.retain_mut(|one| {
            if one.rest {
                rest = Some(std::mem::replace(&mut one.data, Data::None));
            }
            !one.rest
        });
        let elements = match flags & (SET_INTERVAL | SET_CONCAT) {
            SET_INTERVAL if raw.iter().all(|one| one.last.is_none()) => intervals(raw, complete),
            _ => raw.into_iter().map(RawElement::whole).collect(),
        };
        Self {
            elements,
            rest,
            complete,
        }
    }
}

impl RawElement {
    fn whole(self) -> Element {
        Element {
            last: self.last.unwrap_or_else(|| self.key.clone()),
            first: self.key,
            data: self.data,
        }
    }
}

/// Each interval is an element for its first key, and one for the first key behind it.
fn intervals(mut raw: Vec<RawElement>, complete: bool) -> Vec<Element> {
    raw.sort_by(|a, b| (&a.key, !a.end).cmp(&(&b.key, !b.end)));
    let mut all: Vec<Element> = Vec::with_capacity(raw.len() / 2);
    let mut open: Option<RawElement> = None;
    for next in raw {
        if let (Some(mut one), Some(last)) = (open.take(), before(&next.key)) {
            one.last = Some(last);
            all.push(one.whole());
        }
        open = Some(next).filter(|next| !next.end);
    }
    all.extend(open.map(|mut one| {
        // Without an end: up to the highest key, unless the end wasn't read.
        one.last = complete.then(|| vec![u8::MAX; one.key.len()]);
        one.whole()
    }));
    all
}

//! Reads the expressions of a rule.
//!
//! Contract: reading is total, and bounded by the bytes that are read.

use super::*;
use crate::netlink::codec::{Attr, Attrs};

/// A register, by its first byte among the 64 bytes of all of them.
pub(crate) type Register = usize;

/// An expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression<'a> {
    /// Loads bytes of the packet.
    Payload {
        to: Register,
        /// Whether they are of the TCP or UDP header.
        transport: bool,
        offset: usize,
        len: usize,
    },
    /// Loads the protocol above IP, one byte (`meta l4proto`).
    Protocol { to: Register },
    /// Loads something else that is known of the packet, at most 16 bytes.
    Load { to: Register, what: Loaded },
    /// Loads a constant.
    Constant { to: Register, value: &'a [u8] },
    /// Masks a value.
    Mask {
        from: Register,
        to: Register,
        /// The bits that stay.
        mask: &'a [u8],
    },
    /// Goes on if the register holds this value.
    Equal { from: Register, value: &'a [u8] },
    /// Goes on if the register doesn't hold this value.
    NotEqual { from: Register, value: &'a [u8] },
    /// Goes on if the register holds a big-endian number of this range.
    Within {
        from: Register,
        /// The lowest number, if there is one.
        first: Option<&'a [u8]>,
        /// The highest one.
        last: Option<&'a [u8]>,
        /// Whether both are in the range.
        inclusive: bool,
    },
    /// Goes on if the register holds an element of the set (with its value, for a map).
    Lookup {
        from: Register,
        set: &'a str,
        /// What is done with the element's value.
        value: MapValue,
    },
    /// Ends the rule.
    Verdict(RuleVerdict<'a>),
    /// Translates the destination.
    Dnat {
        /// `None`: it stays, or there are several.
        address: Option<Register>,
        /// `None`: it stays. `Some(None)`: there are several.
        port: Option<Option<Register>>,
    },
    /// Sends the packet to a program.
    Queue {
        /// The first queue's number.
        first: u16,
        /// How many there are.
        count: u16,
        /// Whether it passes while nobody reads the queue.
        bypass: bool,
    },
    /// Leads the packet to this host.
    Redirect,
    /// Another translation.
    OtherNat,
    /// A match of iptables.
    XtMatch(Extension<'a>),
    /// A target of iptables.
    XtTarget(Extension<'a>),
    /// Never ends the rule, and leaves the registers as they are: `counter`, `notrack`,
    /// [`CT_HELPER`], [`FLOW_OFFLOAD`].
    Statement(&'a str),
    /// May end the rule; the registers stay as they are.
    Condition,
    /// Isn't known here: may do anything to the registers.
    Other(&'a str),
}

/// The statement that gives a connection a helper: an `objref` to one.
pub(crate) const CT_HELPER: &str = "ct helper";
/// The statement that puts a connection into a flowtable.
pub(crate) const FLOW_OFFLOAD: &str = "flow_offload";
/// The statement that hides a packet from conntrack.
pub(crate) const NOTRACK: &str = "notrack";

/// What [`Expression::Load`] loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// `NFT_META_*`
    Meta(u32),
    /// `NFT_CT_*`, of the connection or of either direction.
    Ct(u32),
    /// Anything else.
    Other,
}

/// What [`Expression::Lookup`] does with what the key is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapValue {
    /// There is none: it is a set.
    None,
    /// It is loaded.
    To(Register),
    /// It is the verdict.
    Verdict,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleVerdict<'a> {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `continue`
    Continue,
    /// `return`: goes on behind the jump to this chain.
    Return,
    /// Goes on in that chain, and comes back from its end.
    Jump(&'a str),
    /// Goes on in that chain.
    Goto(&'a str),
    /// `queue` and others.
    Other,
}

/// A match or target of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extension<'a> {
    pub(crate) name: &'a str,
    /// Its revision: what `info` looks like.
    pub(crate) revision: u32,
    /// Its `struct xt_…_info`, in host byte order.
    pub(crate) info: &'a [u8],
}

/// Reads a list of expressions: the value of [`attr::RULE_EXPRESSIONS`].
pub(crate) fn read(list: &[u8]) -> impl Iterator<Item = Expression<'_>> {
    Attrs::new(list).map(|one| Expression::read(&one))
}

impl<'a> Expression<'a> {
    fn read(one: &Attr<'a>) -> Self {
        let name = one.nested().find(EXPR_NAME).and_then(|name| name.text());
        let name = name.unwrap_or_default();
        let data = one.nested().find(EXPR_DATA);
        let parts = data.map_or_else(|| Attrs::new(&[]), |data| data.nested());
        Self::known(name, parts).unwrap_or(Self::Other(name))
    }

    fn known(name: &'a str, parts: Attrs<'a>) -> Option<Self> {
        let number = |kind| parts.find(kind)?.be32();
        let size = |kind| usize::try_from(number(kind)?).ok();
        let register = |kind| register(number(kind)?);
        let value = |kind| Some(parts.find(kind)?.nested().find(attr::DATA_VALUE)?.value);
        let has = |kind| parts.find(kind).is_some();
        Some(match name {
            // A value is written: to the packet, or to what is known about it.
            name::PAYLOAD if has(PAYLOAD_FROM) => Self::Statement(name),
            name::META if has(META_FROM) => Self::Statement(name),
            name::CT if has(CT_FROM) => Self::Statement(name),
            name::PAYLOAD => Self::Payload {
                to: register(PAYLOAD_TO)?,
                transport: number(PAYLOAD_BASE)? == Base::Transport as u32,
                offset: size(PAYLOAD_OFFSET)?,
                len: size(PAYLOAD_LEN)?,
            },
            name::META if number(META_KEY) == Some(META_L4PROTO) => Self::Protocol {
                to: register(META_TO)?,
            },
            // The first attribute of all of these says where to.
            name::META | name::CT | "fib" | "rt" | "numgen" | "osf" => Self::Load {
                to: register(META_TO)?,
                what: match (name, number(META_KEY)) {
                    (name::META, Some(key)) => Loaded::Meta(key),
                    (name::CT, Some(key)) => Loaded::Ct(key),
                    _ => Loaded::Other,
                },
            },
            name::IMMEDIATE if number(IMMEDIATE_TO)? == VERDICT_REGISTER => {
                Self::Verdict(RuleVerdict::read(&parts.find(IMMEDIATE_VALUE)?)?)
            }
            name::IMMEDIATE => Self::Constant {
                to: register(IMMEDIATE_TO)?,
                value: value(IMMEDIATE_VALUE)?,
            },
            name::BITWISE
                if number(BITWISE_OPERATION).unwrap_or(0) == 0
                    && value(BITWISE_XOR)?.iter().all(|byte| *byte == 0) =>
            {
                Self::Mask {
                    from: register(BITWISE_FROM)?,
                    to: register(BITWISE_TO)?,
                    mask: value(BITWISE_MASK)?,
                }
            }
            name::COMPARE => {
                let (from, value) = (register(CMP_FROM)?, value(CMP_VALUE)?);
                let within = |first, last, inclusive| Self::Within {
                    from,
                    first,
                    last,
                    inclusive,
                };
                match number(CMP_OPERATION)? {
                    EQUAL => Self::Equal { from, value },
                    LESS => within(None, Some(value), false),
                    LESS_OR_EQUAL => within(None, Some(value), true),
                    GREATER => within(Some(value), None, false),
                    GREATER_OR_EQUAL => within(Some(value), None, true),
                    NOT_EQUAL => Self::NotEqual { from, value },
                    _ => Self::Condition,
                }
            }
            name::RANGE if number(RANGE_OPERATION)? == EQUAL => Self::Within {
                from: register(RANGE_FROM)?,
                first: Some(value(RANGE_FIRST)?),
                last: Some(value(RANGE_LAST)?),
                inclusive: true,
            },
            name::RANGE => Self::Condition,
            name::LOOKUP if number(LOOKUP_FLAGS).unwrap_or(0) & INVERTED != 0 => Self::Condition,
            name::LOOKUP => Self::Lookup {
                from: register(LOOKUP_FROM)?,
                set: parts.find(LOOKUP_SET)?.text()?,
                value: match number(LOOKUP_TO) {
                    None => MapValue::None,
                    Some(VERDICT_REGISTER) => MapValue::Verdict,
                    Some(_) => MapValue::To(register(LOOKUP_TO)?),
                },
            },
            name::NAT if number(NAT_TYPE)? == Translate::Destination as u32 => {
                let one = |first, last| {
                    let first = register(first)?;
                    (register(last).is_none_or(|last| last == first)).then_some(first)
                };
                let netmap = number(NAT_FLAGS).unwrap_or(0) & NETMAP != 0;
                Self::Dnat {
                    address: one(NAT_ADDRESS, NAT_LAST_ADDRESS).filter(|_| !netmap),
                    port: has(NAT_PORT).then(|| one(NAT_PORT, NAT_LAST_PORT)),
                }
            }
            name::QUEUE if has(QUEUE_FIRST) => {
                let short = |kind| parts.find(kind).and_then(|part| part.be16());
                Self::Queue {
                    first: short(QUEUE_FIRST)?,
                    count: short(QUEUE_COUNT).unwrap_or(1),
                    bypass: short(QUEUE_FLAGS).unwrap_or(0) & QUEUE_BYPASS != 0,
                }
            }
            name::REDIRECT => Self::Redirect,
            name::NAT | "masq" => Self::OtherNat,
            name::XT_MATCH => Self::XtMatch(Extension::read(parts)?),
            name::XT_TARGET => Self::XtTarget(Extension::read(parts)?),
            "objref" if number(OBJREF_TYPE) == Some(OBJECT_CT_HELPER) => Self::Statement(CT_HELPER),
            "counter" | "log" | "last" | NOTRACK | FLOW_OFFLOAD => Self::Statement(name),
            name::LIMIT | "quota" | "connlimit" | "objref" | "dynset" => Self::Condition,
            _ => return None,
        })
    }
}

impl<'a> Extension<'a> {
    fn read(parts: Attrs<'a>) -> Option<Self> {
        Some(Self {
            name: parts.find(XT_NAME)?.text()?,
            revision: parts.find(XT_REVISION)?.be32()?,
            info: parts.find(XT_INFO)?.value,
        })
    }
}

impl<'a> RuleVerdict<'a> {
    /// Reads `NFTA_DATA_VERDICT` out of a rule's or an element's data.
    pub(in crate::netlink::nftables) fn read(data: &Attr<'a>) -> Option<Self> {
        let verdict = data.nested().find(attr::DATA_VERDICT)?.nested();
        let code = verdict.find(VERDICT_CODE)?.be32()?.cast_signed();
        let chain = || verdict.find(VERDICT_CHAIN)?.text();
        Some(match code {
            ACCEPT => Self::Accept,
            DROP => Self::Drop,
            CONTINUE => Self::Continue,
            RETURN => Self::Return,
            JUMP => chain().map_or(Self::Other, Self::Jump),
            GOTO => chain().map_or(Self::Other, Self::Goto),
            _ => Self::Other,
        })
    }
}

/// Registers have two numberings: `NFT_REG_1` and so on have 16 bytes, `NFT_REG32_00` and so on 4.
fn register(number: u32) -> Option<Register> {
    let at = match number {
        1..=4 => (number - 1) * 16,
        FIRST_REGISTER..=23 => (number - FIRST_REGISTER) * 4,
        _ => return None,
    };
    usize::try_from(at).ok()
}

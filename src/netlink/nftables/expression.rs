//! Expressions: the steps of a rule of nf_tables, which work on 16 registers of 4 bytes.
//!
//! [`Expressions`] writes a rule, and numbers registers from 0 to 15. `read` parses one.

mod read;

use super::attr;
use crate::netlink::codec::{Attrs, Builder};

pub(crate) use read::{
    CT_HELPER, Expression, Extension, FLOW_OFFLOAD, Loaded, MapValue, NOTRACK, Register,
    RuleVerdict, read,
};

/// The names of expressions.
mod name {
    pub(super) const BITWISE: &str = "bitwise";
    pub(super) const COMPARE: &str = "cmp";
    pub(super) const COUNTER: &str = "counter";
    pub(super) const CT: &str = "ct";
    pub(super) const IMMEDIATE: &str = "immediate";
    pub(super) const LIMIT: &str = "limit";
    pub(super) const LOOKUP: &str = "lookup";
    pub(super) const META: &str = "meta";
    pub(super) const NAT: &str = "nat";
    pub(super) const PAYLOAD: &str = "payload";
    pub(super) const QUEUE: &str = "queue";
    pub(super) const RANGE: &str = "range";
    pub(super) const REDIRECT: &str = "redir";
    /// Extensions of iptables: `struct xt_match`, `struct xt_target`.
    pub(super) const XT_MATCH: &str = "match";
    pub(super) const XT_TARGET: &str = "target";
}

/// `NFTA_EXPR_*`
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// `NFTA_BITWISE_*`
const BITWISE_FROM: u16 = 1;
const BITWISE_TO: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OPERATION: u16 = 6;
/// `NFTA_CMP_*`
const CMP_FROM: u16 = 1;
const CMP_OPERATION: u16 = 2;
const CMP_VALUE: u16 = 3;
/// `NFTA_COUNTER_*`
const COUNTER_PACKETS: u16 = 2;
/// `NFTA_CT_*`
const CT_TO: u16 = 1;
const CT_KEY: u16 = 2;
const CT_DIRECTION: u16 = 3;
const CT_FROM: u16 = 4;
/// `NFTA_IMMEDIATE_*`
const IMMEDIATE_TO: u16 = 1;
const IMMEDIATE_VALUE: u16 = 2;
/// `NFTA_LIMIT_*`
const LIMIT_RATE: u16 = 1;
const LIMIT_UNIT: u16 = 2;
const LIMIT_BURST: u16 = 3;
const LIMIT_TYPE: u16 = 4;
/// `NFTA_LOOKUP_*`
const LOOKUP_SET: u16 = 1;
const LOOKUP_FROM: u16 = 2;
const LOOKUP_TO: u16 = 3;
const LOOKUP_SET_ID: u16 = 4;
const LOOKUP_FLAGS: u16 = 5;
/// `NFTA_META_*`
const META_TO: u16 = 1;
const META_KEY: u16 = 2;
const META_FROM: u16 = 3;
/// `NFTA_NAT_*`
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDRESS: u16 = 3;
const NAT_LAST_ADDRESS: u16 = 4;
const NAT_PORT: u16 = 5;
const NAT_LAST_PORT: u16 = 6;
const NAT_FLAGS: u16 = 7;
/// `NFTA_OBJREF_IMM_TYPE`, and `NFT_OBJECT_CT_HELPER`
const OBJREF_TYPE: u16 = 1;
const OBJECT_CT_HELPER: u32 = 3;
/// `NFTA_PAYLOAD_*`
const PAYLOAD_TO: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const PAYLOAD_FROM: u16 = 5;
/// `NFTA_QUEUE_*`
const QUEUE_FIRST: u16 = 1;
const QUEUE_COUNT: u16 = 2;
const QUEUE_FLAGS: u16 = 3;
/// `NFTA_RANGE_*`
const RANGE_FROM: u16 = 1;
const RANGE_OPERATION: u16 = 2;
const RANGE_FIRST: u16 = 3;
const RANGE_LAST: u16 = 4;
/// `NFTA_MATCH_*` and `NFTA_TARGET_*`, which are the same.
const XT_NAME: u16 = 1;
const XT_REVISION: u16 = 2;
const XT_INFO: u16 = 3;
/// `NFTA_VERDICT_*`
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NFT_REG_VERDICT`
const VERDICT_REGISTER: u32 = 0;
/// `NFT_REG32_00`
const FIRST_REGISTER: u32 = 8;
/// `NFT_META_MARK`, `NFT_META_IIFNAME`, `NFT_META_OIFNAME`, `NFT_META_L4PROTO`
const META_MARK: u32 = 3;
const META_CAME_BY: u32 = 6;
const META_LEAVES_BY: u32 = 7;
const META_L4PROTO: u32 = 16;
/// `IFNAMSIZ`
const INTERFACE_NAME: usize = 16;
/// `NFT_QUEUE_FLAG_BYPASS`
const QUEUE_BYPASS: u16 = 1;
/// `NFT_LIMIT_PKTS`
const LIMIT_PACKETS: u32 = 0;
/// `NFT_LOOKUP_F_INV`
const INVERTED: u32 = 1;
/// `NF_NAT_RANGE_NETMAP`: each address is mapped to one of its own.
const NETMAP: u32 = 0x40;
/// `NFT_CMP_*`
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const LESS: u32 = 2;
const LESS_OR_EQUAL: u32 = 3;
const GREATER: u32 = 4;
const GREATER_OR_EQUAL: u32 = 5;
/// `NF_*`, `NFT_*`: codes of verdicts.
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const CONTINUE: i32 = -1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// The header that an offset refers to: `NFT_PAYLOAD_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// From the start of the IP header.
    Network = 1,
    /// From the start of the TCP header.
    Transport = 2,
}

/// What [`Expressions::ct`] reads: `NFT_CT_*`.
#[derive(Clone, Copy, Debug)]
pub enum Ct {
    /// The connection mark, in host byte order.
    Mark = 3,
    /// Destination port of the original direction.
    OriginalPort = 12,
    /// IPv4 source of the original direction.
    OriginalSource4 = 19,
    /// IPv4 destination of the original direction.
    OriginalTarget4 = 20,
    /// IPv6 source of the original direction.
    OriginalSource6 = 21,
    /// IPv6 destination of the original direction.
    OriginalTarget6 = 22,
}

/// Which address is translated: `NFT_NAT_SNAT`, `NFT_NAT_DNAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translate {
    /// The source.
    Source = 0,
    /// The destination.
    Destination = 1,
}

/// Adds expressions to a rule. `source`, `target`, `scratch`, `register`, `key`, `addr` and `port` are
/// numbers of registers of four bytes: 0 is `NFT_REG32_00`. `scratch` is one that is overwritten.
pub struct Expressions<'a>(&'a mut Builder);

impl<'a> Expressions<'a> {
    /// Adds to the list that is being built.
    pub fn new(list: &'a mut Builder) -> Self {
        Self(list)
    }

    /// Ends the rule unless the packet is of this protocol (`meta l4proto`).
    pub fn protocol(&mut self, scratch: u32, protocol: u8) -> &mut Self {
        self.meta(scratch, META_L4PROTO)
            .compare(scratch, true, &[protocol])
    }

    /// Ends the rule unless the register's value is (not) equal to these bytes.
    pub fn compare(&mut self, source: u32, equal: bool, with: &[u8]) -> &mut Self {
        let operation = if equal { EQUAL } else { NOT_EQUAL };
        self.operation(source, operation, with)
    }

    /// Ends the rule unless the register's value, a port in network byte order, is in the range.
    pub fn port_within(&mut self, source: u32, first: u16, last: u16) -> &mut Self {
        self.operation(source, GREATER_OR_EQUAL, &first.to_be_bytes())
            .operation(source, LESS_OR_EQUAL, &last.to_be_bytes())
    }

    fn operation(&mut self, source: u32, operation: u32, with: &[u8]) -> &mut Self {
        self.add(name::COMPARE, |b| {
            b.be32(CMP_FROM, number(source))
                .be32(CMP_OPERATION, operation);
            put_value(b, CMP_VALUE, with);
        })
    }

    /// Loads `len` bytes of the packet.
    pub fn payload(&mut self, target: u32, base: Base, offset: u32, len: u32) -> &mut Self {
        self.add(name::PAYLOAD, |b| {
            b.be32(PAYLOAD_TO, number(target))
                .be32(PAYLOAD_BASE, base as u32);
            b.be32(PAYLOAD_OFFSET, offset).be32(PAYLOAD_LEN, len);
        })
    }

    /// Loads something of the connection.
    pub fn ct(&mut self, target: u32, what: Ct) -> &mut Self {
        self.add(name::CT, |b| {
            b.be32(CT_TO, number(target)).be32(CT_KEY, what as u32);
            if !matches!(what, Ct::Mark) {
                b.bytes(CT_DIRECTION, &[0]);
            }
        })
    }

    /// Loads the packet's mark (`meta mark`).
    pub fn packet_mark(&mut self, target: u32) -> &mut Self {
        self.meta(target, META_MARK)
    }

    /// Ends the rule unless the packet came by this interface (or another one, if not `equal`).
    pub fn came_by(&mut self, scratch: u32, equal: bool, name: &str) -> &mut Self {
        self.meta(scratch, META_CAME_BY)
            .compare(scratch, equal, &interface(name))
    }

    /// Ends the rule unless the packet leaves by this interface (or another one, if not `equal`).
    pub fn leaves_by(&mut self, scratch: u32, equal: bool, name: &str) -> &mut Self {
        self.meta(scratch, META_LEAVES_BY)
            .compare(scratch, equal, &interface(name))
    }

    fn meta(&mut self, target: u32, key: u32) -> &mut Self {
        self.add(name::META, |b| {
            b.be32(META_TO, number(target)).be32(META_KEY, key);
        })
    }

    /// Sets the connection mark.
    pub fn set_mark(&mut self, source: u32) -> &mut Self {
        self.add(name::CT, |b| {
            b.be32(CT_KEY, Ct::Mark as u32)
                .be32(CT_FROM, number(source));
        })
    }

    /// Sets the packet's mark (`meta mark`).
    pub fn set_packet_mark(&mut self, source: u32) -> &mut Self {
        self.add(name::META, |b| {
            b.be32(META_KEY, META_MARK).be32(META_FROM, number(source));
        })
    }

    /// `register = (register & mask) ^ xor`, on 32 bits in host byte order.
    pub fn bits(&mut self, register: u32, mask: u32, xor: u32) -> &mut Self {
        self.masked(register, &mask.to_ne_bytes(), &xor.to_ne_bytes())
    }

    /// Keeps these bits of a register's value, of at most 16 bytes.
    pub fn mask(&mut self, register: u32, mask: &[u8]) -> &mut Self {
        self.masked(register, mask, &vec![0; mask.len()])
    }

    fn masked(&mut self, register: u32, mask: &[u8], xor: &[u8]) -> &mut Self {
        let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.add(name::BITWISE, |b| {
            b.be32(BITWISE_FROM, number(register))
                .be32(BITWISE_TO, number(register))
                .be32(BITWISE_LEN, len);
            put_value(b, BITWISE_MASK, mask);
            put_value(b, BITWISE_XOR, xor);
        })
    }

    /// Loads what a map maps the key at `key` to; ends the rule if it has no such key.
    pub fn lookup(&mut self, map: &str, set_id: u32, key: u32, target: u32) -> &mut Self {
        self.add(name::LOOKUP, |b| {
            b.text(LOOKUP_SET, map)
                .be32(LOOKUP_FROM, number(key))
                .be32(LOOKUP_TO, number(target))
                .be32(LOOKUP_SET_ID, set_id);
        })
    }

    /// Ends the rule unless the set has the key at `key`.
    pub fn is_in(&mut self, set: &str, set_id: u32, key: u32) -> &mut Self {
        self.add(name::LOOKUP, |b| {
            b.text(LOOKUP_SET, set)
                .be32(LOOKUP_FROM, number(key))
                .be32(LOOKUP_SET_ID, set_id);
        })
    }

    /// Translates an address, and the port if one is given. Ends the chain.
    pub fn nat(&mut self, what: Translate, family: u8, addr: u32, port: Option<u32>) -> &mut Self {
        self.add(name::NAT, |b| {
            b.be32(NAT_TYPE, what as u32)
                .be32(NAT_FAMILY, u32::from(family))
                .be32(NAT_ADDRESS, number(addr));
            if let Some(port) = port {
                b.be32(NAT_PORT, number(port));
            }
        })
    }

    /// Ends the rule with `NF_ACCEPT`: the packet passes this base chain.
    pub fn accept(&mut self) -> &mut Self {
        self.verdict(ACCEPT, None)
    }

    /// Ends the rule with `NF_DROP`.
    pub fn drop(&mut self) -> &mut Self {
        self.verdict(DROP, None)
    }

    /// Goes on in another chain of the table, and comes back from its end.
    pub fn jump(&mut self, chain: &str) -> &mut Self {
        self.verdict(JUMP, Some(chain))
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) -> &mut Self {
        self.add(name::IMMEDIATE, |b| {
            b.be32(IMMEDIATE_TO, VERDICT_REGISTER);
            b.nest(IMMEDIATE_VALUE, |b| {
                b.nest(attr::DATA_VERDICT, |b| {
                    b.be32(VERDICT_CODE, code.cast_unsigned());
                    if let Some(chain) = chain {
                        b.text(VERDICT_CHAIN, chain);
                    }
                });
            });
        })
    }

    /// Sends the packet to one of `count` queues of NFQUEUE, by a hash of its addresses that is the same
    /// for both directions. `bypass`: it passes while nobody reads the queue.
    pub fn queue(&mut self, first: u16, count: u16, bypass: bool) -> &mut Self {
        let flags = if bypass { QUEUE_BYPASS } else { 0 };
        self.add(name::QUEUE, |b| {
            b.bytes(QUEUE_FIRST, &first.to_be_bytes())
                .bytes(QUEUE_COUNT, &count.to_be_bytes())
                .bytes(QUEUE_FLAGS, &flags.to_be_bytes());
        })
    }

    /// A match of iptables, as `iptables-nft` writes it. Only in tables of one family.
    pub(crate) fn xt_match(&mut self, extension: Extension<'_>) -> &mut Self {
        self.extension(name::XT_MATCH, extension)
    }

    /// A target of iptables, as `iptables-nft` writes it. Only in tables of one family.
    pub(crate) fn xt_target(&mut self, extension: Extension<'_>) -> &mut Self {
        self.extension(name::XT_TARGET, extension)
    }

    fn extension(&mut self, name: &str, extension: Extension<'_>) -> &mut Self {
        self.add(name, |b| {
            b.text(XT_NAME, extension.name)
                .be32(XT_REVISION, extension.revision)
                .bytes(XT_INFO, extension.info);
        })
    }

    fn add(&mut self, name: &str, data: impl FnOnce(&mut Builder)) -> &mut Self {
        self.0.nest(attr::LIST_ELEM, |b| {
            b.text(EXPR_NAME, name).nest(EXPR_DATA, data);
        });
        self
    }
}

/// The attributes of an expression that ends the rule for packets beyond `rate` per second, with a
/// burst of one.
pub fn put_limit(b: &mut Builder, rate: u64) {
    const PER_SECOND: u64 = 1;
    b.text(EXPR_NAME, name::LIMIT).nest(EXPR_DATA, |b| {
        b.be64(LIMIT_RATE, rate).be64(LIMIT_UNIT, PER_SECOND);
        b.be32(LIMIT_BURST, 1).be32(LIMIT_TYPE, LIMIT_PACKETS);
    });
}

/// The attributes of an expression that counts packets.
pub fn put_counter(b: &mut Builder) {
    b.text(EXPR_NAME, name::COUNTER).nest(EXPR_DATA, |_| {});
}

/// How many packets a counter has counted, if these are the attributes of one.
#[must_use]
pub fn counted_packets(expression: Attrs<'_>) -> Option<u64> {
    let name = expression.find(EXPR_NAME)?.text()?;
    let data = expression.find(EXPR_DATA)?.nested();
    (name == name::COUNTER).then(|| data.find(COUNTER_PACKETS)?.be64())?
}

fn put_value(b: &mut Builder, kind: u16, value: &[u8]) {
    b.nest(kind, |b| {
        b.bytes(attr::DATA_VALUE, value);
    });
}

/// A name as it is compared.
fn interface(name: &str) -> [u8; INTERFACE_NAME] {
    let mut bytes = [0; INTERFACE_NAME];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn number(register: u32) -> u32 {
    FIRST_REGISTER + register
}

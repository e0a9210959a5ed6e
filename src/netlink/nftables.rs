//! The numbers of nf_tables (`linux/netfilter/nf_tables.h`), and its expressions as attributes.
//!
//! A rule is a list of expressions that work on 16 registers of 4 bytes, here numbered 0 to 15.

use super::codec::Builder;

const SUBSYSTEM: u16 = 10 << 8;

/// `NFT_MSG_*` with the subsystem in the upper byte.
pub mod msg {
    use super::SUBSYSTEM;

    /// Makes a table.
    pub const NEW_TABLE: u16 = SUBSYSTEM;
    /// Asks for tables.
    pub const GET_TABLE: u16 = SUBSYSTEM | 1;
    /// Deletes a table.
    pub const DEL_TABLE: u16 = SUBSYSTEM | 2;
    /// Makes a chain.
    pub const NEW_CHAIN: u16 = SUBSYSTEM | 3;
    /// Asks for chains.
    pub const GET_CHAIN: u16 = SUBSYSTEM | 4;
    /// Deletes a chain.
    pub const DEL_CHAIN: u16 = SUBSYSTEM | 5;
    /// Adds a rule.
    pub const NEW_RULE: u16 = SUBSYSTEM | 6;
    /// Asks for rules.
    pub const GET_RULE: u16 = SUBSYSTEM | 7;
    /// Deletes rules.
    pub const DEL_RULE: u16 = SUBSYSTEM | 8;
    /// Makes a set or map.
    pub const NEW_SET: u16 = SUBSYSTEM | 9;
    /// Asks for sets and maps.
    pub const GET_SET: u16 = SUBSYSTEM | 10;
    /// Adds elements.
    pub const NEW_ELEM: u16 = SUBSYSTEM | 12;
    /// Asks for elements.
    pub const GET_ELEM: u16 = SUBSYSTEM | 13;
    /// Deletes elements.
    pub const DEL_ELEM: u16 = SUBSYSTEM | 14;
    /// Asks for the generation of the rules.
    pub const GET_GEN: u16 = SUBSYSTEM | 16;
}

/// Attribute types.
pub mod attr {
    /// `NFTA_TABLE_*`
    pub const TABLE_NAME: u16 = 1;
    /// Flags: see [`super::TABLE_OWNER`].
    pub const TABLE_FLAGS: u16 = 2;
    /// How many objects the table holds.
    pub const TABLE_USE: u16 = 3;
    /// The table's handle.
    pub const TABLE_HANDLE: u16 = 4;
    /// Free for programs: `nft` keeps comments there.
    pub const TABLE_USERDATA: u16 = 6;
    /// The netlink port of the table's owner.
    pub const TABLE_OWNER: u16 = 7;
    /// `NFTA_CHAIN_*`
    pub const CHAIN_TABLE: u16 = 1;
    /// The chain's handle.
    pub const CHAIN_HANDLE: u16 = 2;
    /// The chain's name.
    pub const CHAIN_NAME: u16 = 3;
    /// Hook of a base chain.
    pub const CHAIN_HOOK: u16 = 4;
    /// Verdict of a base chain's end.
    pub const CHAIN_POLICY: u16 = 5;
    /// How many rules the chain has, and rules elsewhere that jump to it.
    pub const CHAIN_USE: u16 = 6;
    /// `filter`, `nat`, `route`.
    pub const CHAIN_TYPE: u16 = 7;
    /// Free for programs.
    pub const CHAIN_USERDATA: u16 = 12;
    /// `NFTA_HOOK_*`
    pub const HOOK_NUM: u16 = 1;
    /// Priority within the hook, signed.
    pub const HOOK_PRIORITY: u16 = 2;
    /// `NFTA_RULE_*`
    pub const RULE_TABLE: u16 = 1;
    /// The chain's name.
    pub const RULE_CHAIN: u16 = 2;
    /// The rule's handle.
    pub const RULE_HANDLE: u16 = 3;
    /// A list of expressions.
    pub const RULE_EXPRESSIONS: u16 = 4;
    /// The handle of the rule in front of which a new one goes (behind which, with `APPEND`).
    pub const RULE_POSITION: u16 = 6;
    /// Free for programs.
    pub const RULE_USERDATA: u16 = 7;
    /// `NFTA_SET_*`
    pub const SET_TABLE: u16 = 1;
    /// The set's name.
    pub const SET_NAME: u16 = 2;
    /// See [`super::SET_MAP`] and what follows it.
    pub const SET_FLAGS: u16 = 3;
    /// For programs that print it: not interpreted by the kernel.
    pub const SET_KEY_TYPE: u16 = 4;
    /// Bytes.
    pub const SET_KEY_LEN: u16 = 5;
    /// For programs that print it.
    pub const SET_DATA_TYPE: u16 = 6;
    /// Bytes.
    pub const SET_DATA_LEN: u16 = 7;
    /// A name for the set within the batch.
    pub const SET_ID: u16 = 10;
    /// Free for programs.
    pub const SET_USERDATA: u16 = 13;
    /// An expression with a state of its own for each element, evaluated when it is looked up.
    pub const SET_EXPR: u16 = 17;
    /// `NFTA_SET_ELEM_LIST_*`
    pub const ELEMS_TABLE: u16 = 1;
    /// The set's name.
    pub const ELEMS_SET: u16 = 2;
    /// A list of elements.
    pub const ELEMS_LIST: u16 = 3;
    /// `NFTA_SET_ELEM_*`
    pub const ELEM_KEY: u16 = 1;
    /// What a map maps the key to.
    pub const ELEM_DATA: u16 = 2;
    /// See [`super::ELEM_END`] and [`super::ELEM_REST`].
    pub const ELEM_FLAGS: u16 = 3;
    /// Milliseconds.
    pub const ELEM_TIMEOUT: u16 = 4;
    /// The last key of a range of concatenations.
    pub const ELEM_KEY_END: u16 = 10;
    /// `NFTA_EXPR_*`
    pub const EXPR_NAME: u16 = 1;
    /// What the expression consists of.
    pub const EXPR_DATA: u16 = 2;
    /// `NFTA_IMMEDIATE_DREG`
    pub const IMMEDIATE_TARGET: u16 = 1;
    /// What is loaded: a value or a verdict.
    pub const IMMEDIATE_DATA: u16 = 2;
    /// `NFTA_LOOKUP_DREG`: where what a map maps to is put.
    pub const LOOKUP_TARGET: u16 = 3;
    /// `NFTA_DATA_VERDICT`
    pub const DATA_VERDICT: u16 = 2;
    /// `NFTA_VERDICT_CODE`
    pub const VERDICT_CODE: u16 = 1;
    /// Where a jump leads.
    pub const VERDICT_CHAIN: u16 = 2;
    /// `NFTA_DATA_VALUE`
    pub const DATA_VALUE: u16 = 1;
    /// `NFTA_LIST_ELEM`
    pub const LIST_ELEM: u16 = 1;
}

/// `NFT_TABLE_F_OWNER` (Linux 5.12): only the socket that made the table may change it, and the
/// table goes when the socket is closed.
pub const TABLE_OWNER: u32 = 0x2;
/// `NFT_SET_INTERVAL`
pub const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`
pub const SET_MAP: u32 = 0x8;
/// `NFT_SET_TIMEOUT`: elements may have a timeout.
pub const SET_TIMEOUT: u32 = 0x10;
/// `NFT_SET_EVAL`: rules may change elements (`dynamic`).
pub const SET_DYNAMIC: u32 = 0x20;
/// `NFT_SET_CONCAT`: keys are concatenations, of which each part has a range of its own.
pub const SET_CONCAT: u32 = 0x80;
/// `NFT_SET_ELEM_INTERVAL_END`: the first key behind an interval.
pub const ELEM_END: u32 = 0x1;
/// `NFT_SET_ELEM_CATCHALL`: for all keys that have no element.
pub const ELEM_REST: u32 = 0x2;
/// Flag of a delete: fail with `EBUSY` if the object isn't empty (`NLM_F_NONREC`).
pub const ONLY_IF_EMPTY: u16 = 0x100;

/// Types of the `nft` program's sets (`enum datatypes`), 6 bits each in a concatenation.
pub mod datatype {
    /// `ipv4_addr`
    pub const IPV4: u32 = 7;
    /// `ipv6_addr`
    pub const IPV6: u32 = 8;
    /// `inet_service`
    pub const PORT: u32 = 13;
    /// `mark`
    pub const MARK: u32 = 19;

    /// The type of a concatenation.
    #[must_use]
    pub fn concat(types: &[u32]) -> u32 {
        types.iter().fold(0, |all, one| all << 6 | one)
    }
}

/// Where [`Expressions::payload`] reads.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// From the start of the IP header.
    Network = 1,
    /// From the start of the TCP header.
    Transport = 2,
}

/// What [`Expressions::ct`] reads.
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

/// Which address [`Expressions::nat`] changes.
#[derive(Clone, Copy, Debug)]
pub enum Nat {
    /// The source.
    Source = 0,
    /// The destination.
    Destination = 1,
}

/// How [`Expressions::verdict`] ends a rule.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// `NF_ACCEPT`: the packet passes this base chain.
    Accept = 1,
}

/// Adds expressions to a rule; the numbers are registers unless said otherwise.
pub struct Expressions<'a>(&'a mut Builder);

impl<'a> Expressions<'a> {
    /// Adds to the list that is being built.
    pub fn new(list: &'a mut Builder) -> Self {
        Self(list)
    }

    /// Ends the rule unless the packet is of this protocol (`meta l4proto`).
    pub fn protocol(&mut self, scratch: u32, protocol: u8) -> &mut Self {
        self.add("meta", |b| {
            // NFTA_META_DREG, NFTA_META_KEY: NFT_META_L4PROTO.
            b.be32(1, reg(scratch)).be32(2, 16);
        })
        .compare(scratch, true, &[protocol])
    }

    /// Ends the rule unless the register's value is (not) equal to these bytes.
    pub fn compare(&mut self, source: u32, equal: bool, with: &[u8]) -> &mut Self {
        self.add("cmp", |b| {
            b.be32(1, reg(source)).be32(2, u32::from(!equal));
            b.nest(3, |b| {
                b.bytes(attr::DATA_VALUE, with);
            });
        })
    }

    /// Ends the rule unless the register's value, a port in network byte order, is in the range.
    pub fn port_within(&mut self, source: u32, first: u16, last: u16) -> &mut Self {
        // NFT_CMP_GTE, NFT_CMP_LTE.
        for (operation, bound) in [(5, first), (3, last)] {
            self.add("cmp", |b| {
                b.be32(1, reg(source)).be32(2, operation);
                b.nest(3, |b| {
                    b.bytes(attr::DATA_VALUE, &bound.to_be_bytes());
                });
            });
        }
        self
    }

    /// Loads `len` bytes of the packet.
    pub fn payload(&mut self, target: u32, base: Base, offset: u32, len: u32) -> &mut Self {
        self.add("payload", |b| {
            b.be32(1, reg(target)).be32(2, base as u32);
            b.be32(3, offset).be32(4, len);
        })
    }

    /// Loads something of the connection.
    pub fn ct(&mut self, target: u32, what: Ct) -> &mut Self {
        self.add("ct", |b| {
            b.be32(1, reg(target)).be32(2, what as u32);
            if !matches!(what, Ct::Mark) {
                b.bytes(3, &[0]);
            }
        })
    }

    /// Sets the connection mark.
    pub fn set_mark(&mut self, source: u32) -> &mut Self {
        self.add("ct", |b| {
            b.be32(2, Ct::Mark as u32).be32(4, reg(source));
        })
    }

    /// Sets the packet's mark (`meta mark`).
    pub fn set_packet_mark(&mut self, source: u32) -> &mut Self {
        self.add("meta", |b| {
            // NFTA_META_KEY: NFT_META_MARK, NFTA_META_SREG.
            b.be32(2, 3).be32(3, reg(source));
        })
    }

    /// `register = (register & mask) ^ xor`, on 32 bits in host byte order.
    pub fn bits(&mut self, register: u32, mask: u32, xor: u32) -> &mut Self {
        self.add("bitwise", |b| {
            b.be32(1, reg(register)).be32(2, reg(register)).be32(3, 4);
            for (kind, value) in [(4, mask), (5, xor)] {
                b.nest(kind, |b| {
                    b.bytes(attr::DATA_VALUE, &value.to_ne_bytes());
                });
            }
        })
    }

    /// Loads what a map maps the key at `key` to; ends the rule if it has no such key.
    pub fn lookup(&mut self, map: &str, set_id: u32, key: u32, target: u32) -> &mut Self {
        self.add("lookup", |b| {
            b.text(1, map).be32(2, reg(key)).be32(3, reg(target));
            b.be32(4, set_id);
        })
    }

    /// Translates an address, and the port if one is given. Ends the chain.
    pub fn nat(&mut self, nat: Nat, family: u8, addr: u32, port: Option<u32>) -> &mut Self {
        self.add("nat", |b| {
            b.be32(1, nat as u32).be32(2, u32::from(family));
            b.be32(3, reg(addr));
            if let Some(port) = port {
                b.be32(5, reg(port));
            }
        })
    }

    /// Ends the rule with a verdict.
    pub fn verdict(&mut self, verdict: Verdict) -> &mut Self {
        self.add("immediate", |b| {
            // NFT_REG_VERDICT
            b.be32(attr::IMMEDIATE_TARGET, 0);
            b.nest(attr::IMMEDIATE_DATA, |b| {
                b.nest(attr::DATA_VERDICT, |b| {
                    b.be32(attr::VERDICT_CODE, verdict as u32);
                });
            });
        })
    }

    fn add(&mut self, name: &str, data: impl FnOnce(&mut Builder)) -> &mut Self {
        self.0.nest(attr::LIST_ELEM, |b| {
            // NFTA_EXPR_NAME, NFTA_EXPR_DATA.
            b.text(1, name).nest(2, data);
        });
        self
    }
}

/// The attributes of an expression that ends the rule for packets beyond `rate` per second, none of
/// them saved up.
pub fn limit(b: &mut Builder, rate: u64) {
    b.text(1, "limit").nest(2, |b| {
        // NFTA_LIMIT_RATE, _UNIT (seconds), _BURST, _TYPE: NFT_LIMIT_PKTS.
        b.be64(1, rate).be64(2, 1).be32(3, 1).be32(4, 0);
    });
}

/// `NFT_REG32_00` + n
fn reg(n: u32) -> u32 {
    8 + n
}

/// A comment as `nft` keeps and prints it: one entry of user data, a text of at most 127 bytes.
#[must_use]
pub fn comment(kind: u8, text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(127).chain([0]).collect();
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [vec![kind, len], text].concat()
}

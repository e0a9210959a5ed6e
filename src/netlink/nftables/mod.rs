//! The numbers and names of nf_tables (`linux/netfilter/nf_tables.h`).
//!
//! This file has messages, attributes and flags. [`expression`] writes and reads the expressions of
//! rules, [`set`] reads the elements of sets and maps.

pub mod expression;
pub mod set;

const SUBSYSTEM: u16 = super::socket::SUBSYS_NFTABLES << 8;

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
    /// Tells that a batch is committed.
    pub const NEW_GEN: u16 = SUBSYSTEM | 15;
    /// Asks for the generation of the rules.
    pub const GET_GEN: u16 = SUBSYSTEM | 16;
    /// Deletes a table that may not be there (Linux 6.3).
    pub const DESTROY_TABLE: u16 = SUBSYSTEM | 26;
    /// Deletes a chain that may not be there.
    pub const DESTROY_CHAIN: u16 = SUBSYSTEM | 27;
    /// Deletes a rule that may not be there.
    pub const DESTROY_RULE: u16 = SUBSYSTEM | 28;
    /// Deletes elements that may not be there.
    pub const DESTROY_ELEM: u16 = SUBSYSTEM | 30;
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
    /// What matches of iptables may ask for: `NFTA_RULE_COMPAT_*`.
    pub const RULE_COMPAT: u16 = 5;
    /// The protocol above IP.
    pub const COMPAT_PROTOCOL: u16 = 1;
    /// Whether the protocol is any other than that.
    pub const COMPAT_FLAGS: u16 = 2;
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
    /// Several of them, one evaluated after the other until one breaks off (Linux 5.11).
    pub const SET_EXPRESSIONS: u16 = 18;
    /// How many elements it has (Linux 6.16).
    pub const SET_COUNT: u16 = 20;
    /// `NFTA_SET_ELEM_LIST_*`
    pub const ELEMS_TABLE: u16 = 1;
    /// The set's name.
    pub const ELEMS_SET: u16 = 2;
    /// A list of elements.
    pub const ELEMS_LIST: u16 = 3;
    /// The set's name within the batch.
    pub const ELEMS_SET_ID: u16 = 4;
    /// `NFTA_SET_ELEM_*`
    pub const ELEM_KEY: u16 = 1;
    /// What a map maps the key to.
    pub const ELEM_DATA: u16 = 2;
    /// See [`super::ELEM_INTERVAL_END`] and [`super::ELEM_CATCHALL`].
    pub const ELEM_FLAGS: u16 = 3;
    /// Milliseconds.
    pub const ELEM_TIMEOUT: u16 = 4;
    /// Milliseconds that are left of the timeout.
    pub const ELEM_EXPIRATION: u16 = 5;
    /// The last key of a range of concatenations.
    pub const ELEM_KEY_END: u16 = 10;
    /// The expressions of [`SET_EXPRESSIONS`], with the element's state.
    pub const ELEM_EXPRESSIONS: u16 = 11;
    /// `NFTA_LIST_ELEM`
    pub const LIST_ELEM: u16 = 1;
    /// `NFTA_DATA_VALUE`
    pub const DATA_VALUE: u16 = 1;
    /// `NFTA_DATA_VERDICT`
    pub const DATA_VERDICT: u16 = 2;
}

/// The family of a table.
pub mod family {
    /// `NFPROTO_INET`: IPv4 and IPv6.
    pub const INET: u8 = 1;
    /// `NFPROTO_IPV4`
    pub const IPV4: u8 = 2;
    /// `NFPROTO_IPV6`
    pub const IPV6: u8 = 10;

    /// What `nft` calls it.
    #[must_use]
    pub fn name(family: u8) -> &'static str {
        match family {
            INET => "inet",
            IPV4 => "ip",
            IPV6 => "ip6",
            _ => "other",
        }
    }
}

/// `NF_INET_*`: the hook of a base chain.
pub mod hook {
    /// Before routing.
    pub const PREROUTING: u32 = 0;
    /// Towards a process on this host.
    pub const INPUT: u32 = 1;
    /// Between two interfaces.
    pub const FORWARD: u32 = 2;
    /// From a process on this host.
    pub const OUTPUT: u32 = 3;
    /// After routing.
    pub const POSTROUTING: u32 = 4;
}

/// The policy of a base chain.
pub mod policy {
    /// `NF_DROP`
    pub const DROP: u32 = 0;
    /// `NF_ACCEPT`
    pub const ACCEPT: u32 = 1;
}

/// `NFT_TABLE_F_OWNER` (Linux 5.12): only the socket that made the table may change it, and the
/// table goes when the socket is closed.
pub const TABLE_OWNER: u32 = 0x2;
/// `NFT_TABLE_F_PERSIST` (Linux 6.9): the table stays when the socket of its owner is closed, and
/// has no owner from then on.
pub const TABLE_PERSIST: u32 = 0x4;
/// `NFT_SET_ANONYMOUS`: it belongs to one rule, and goes with it.
pub const SET_ANONYMOUS: u32 = 0x1;
/// `NFT_SET_CONSTANT`: its elements stay as they are while a rule looks them up.
pub const SET_CONSTANT: u32 = 0x2;
/// `NFT_SET_INTERVAL`
pub const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`
pub const SET_MAP: u32 = 0x8;
/// `NFT_SET_TIMEOUT`: elements may have a timeout.
pub const SET_TIMEOUT: u32 = 0x10;
/// `NFT_SET_EVAL`: rules may change elements (`dynamic`).
pub const SET_DYNAMIC: u32 = 0x20;
/// It has [`attr::SET_EXPRESSIONS`].
pub const SET_WITH_EXPRESSIONS: u32 = 0x100;
/// `NFT_SET_CONCAT`: keys are concatenations, of which each part has a range of its own.
pub const SET_CONCAT: u32 = 0x80;
/// `NFT_SET_ELEM_INTERVAL_END`: the first key behind an interval.
pub const ELEM_INTERVAL_END: u32 = 0x1;
/// `NFT_SET_ELEM_CATCHALL`: for all keys that have no element.
pub const ELEM_CATCHALL: u32 = 0x2;
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

/// A comment as `nft` keeps and prints it: one entry of user data, a text of at most 127 bytes.
#[must_use]
pub fn comment(kind: u8, text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(127).chain([0]).collect();
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [vec![kind, len], text].concat()
}

//! The objects of the nft backend as netlink requests: table, maps, chains and rules.

use std::net::IpAddr;
use std::path::Path;

use super::ranges;
use std::time::Duration;

use crate::firewall::PINHOLE_TABLE;
use crate::net::{Family, Mark, PortRange, TCP};
use crate::netlink::codec::{self, Builder};
use crate::netlink::nftables::expression::{
    Base, Ct, Expressions, Translate, put_counter, put_limit,
};
use crate::netlink::nftables::{
    SET_DYNAMIC, SET_MAP, SET_TIMEOUT, SET_WITH_EXPRESSIONS, TABLE_OWNER, TABLE_PERSIST, attr,
    comment, datatype, hook, msg, policy,
};
use crate::netlink::socket::NetlinkRequest;

/// Just before `dstnat` (−100) and `srcnat` (100) of the user's rules.
const DNAT_PRIORITY: i32 = -101;
const SNAT_PRIORITY: i32 = 99;
/// How many first packets a pinhole lets in per second. The time between two is shorter than the one
/// after which a SYN is repeated (1 s, RFC 6298 §2.1).
const FIRST_PACKETS: u64 = 2;
/// The time between two of them.
pub(super) const LIMIT_HOLDS: Duration = Duration::from_millis(1000 / FIRST_PACKETS);

/// What the kernel supports; found out by trying.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    /// A table that belongs to our socket.
    pub(super) owner: bool,
    /// A table that has an owner, and stays without it.
    pub(super) persist: bool,
    /// A limit for each element of a map.
    pub(super) limit: bool,
    /// A counter behind that.
    pub(super) count: bool,
    /// Deleting elements that may not be there.
    pub(super) destroy: bool,
}

/// What differs between IPv4 and IPv6: names, offsets and sizes.
#[derive(Debug)]
pub(super) struct FamilyLayout {
    pub(super) family: Family,
    /// How many registers an address takes.
    pub(super) words: u32,
    /// Where the addresses are in the IP header.
    pub(super) source_at: u32,
    pub(super) target_at: u32,
    pub(super) ct_source: Ct,
    pub(super) ct_target: Ct,
    pub(super) datatype: u32,
    pub(super) optional: bool,
}

pub(super) static IPV4: FamilyLayout = FamilyLayout {
    family: Family::V4,
    words: 1,
    source_at: 12,
    target_at: 16,
    ct_source: Ct::OriginalSource4,
    ct_target: Ct::OriginalTarget4,
    datatype: datatype::IPV4,
    optional: false,
};

pub(super) static IPV6: FamilyLayout = FamilyLayout {
    family: Family::V6,
    words: 4,
    source_at: 8,
    target_at: 24,
    ct_source: Ct::OriginalSource6,
    ct_target: Ct::OriginalTarget6,
    datatype: datatype::IPV6,
    optional: true,
};

impl FamilyLayout {
    pub(super) fn is_of(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family
    }

    pub(super) fn is_here(&self) -> bool {
        !self.optional || Path::new("/proc/sys/net/ipv6").exists()
    }

    /// Bytes of an address.
    pub(super) fn addr_len(&self) -> u32 {
        4 * self.words
    }

    /// The name of a map of this family, such as `pinholes4`.
    pub(super) fn name(&self, map: Map) -> &'static str {
        let [ipv4, ipv6] = map.names();
        match self.family {
            Family::V4 => ipv4,
            Family::V6 => ipv6,
        }
    }

    /// Registers: the key from 0 (source, target, port), then what a map gives, then the mark.
    fn target(&self) -> u32 {
        self.words
    }
    fn port(&self) -> u32 {
        2 * self.words
    }
    fn data(&self) -> u32 {
        2 * self.words + 1
    }
    fn data_port(&self) -> u32 {
        3 * self.words + 1
    }
    fn mark(&self) -> u32 {
        3 * self.words + 2
    }
    fn carried(&self) -> u32 {
        3 * self.words + 3
    }
}

/// The maps of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// Of pinholes: where the connection is delivered.
    Pinholes = 1,
    /// Of pinholes: which source it shows, if not its own.
    Sources,
    /// Of pinholes: the connection mark that it takes over from its control connection, with our
    /// bit.
    Marks,
    /// Of ranges: where the connections are delivered.
    Ranges,
    /// Of ranges: which source they show, if not their own.
    RangeSources,
}

impl Map {
    /// Those in which a pinhole has elements, all under its key.
    pub(super) const OF_PINHOLE: [Self; 3] = [Self::Pinholes, Self::Sources, Self::Marks];
    /// Those of a range.
    pub(super) const OF_RANGE: [Self; 2] = [Self::Ranges, Self::RangeSources];

    /// What it is for, as its comment says.
    fn role(self) -> &'static str {
        let [name, _] = self.names();
        name.trim_end_matches('4')
    }

    /// Its names in the tables of IPv4 and of IPv6.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Pinholes => ["pinholes4", "pinholes6"],
            Self::Sources => ["sources4", "sources6"],
            Self::Marks => ["marks4", "marks6"],
            Self::Ranges => ["ranges4", "ranges6"],
            Self::RangeSources => ["range-sources4", "range-sources6"],
        }
    }

    /// Names the map within the batch that makes it.
    pub(super) fn id(self) -> u32 {
        self as u32
    }
}

/// What a request of an installation is about, as far as another one is tried if it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Table,
    PinholeMap,
    Other,
}

type WriteRule = fn(&FamilyLayout, Mark, &mut Expressions<'_>);
type WriteRangeRule = fn(&FamilyLayout, Mark, PortRange, &mut Expressions<'_>);

/// A chain with its rules.
pub(super) struct ChainSpec {
    pub(super) name: &'static str,
    hook: u32,
    priority: i32,
    role: &'static str,
    rules: &'static [WriteRule],
    /// The last rule, where a range of ports is configured: pinholes come first.
    range_rule: WriteRangeRule,
}

impl ChainSpec {
    /// How many rules it has.
    pub(super) fn size(&self, range: Option<PortRange>) -> usize {
        self.rules.len() + usize::from(range.is_some())
    }
}

pub(super) static CHAINS: [ChainSpec; 4] = [
    ChainSpec {
        name: "prerouting",
        hook: hook::PREROUTING,
        priority: DNAT_PRIORITY,
        role: "ftpalg:dnat",
        rules: &[marked_dnat_rule, dnat_rule],
        range_rule: ranges::dnat_rule,
    },
    ChainSpec {
        name: "output",
        hook: hook::OUTPUT,
        priority: DNAT_PRIORITY,
        role: "ftpalg:dnat-local",
        rules: &[marked_dnat_rule, dnat_rule],
        range_rule: ranges::dnat_rule,
    },
    ChainSpec {
        name: "postrouting",
        hook: hook::POSTROUTING,
        priority: SNAT_PRIORITY,
        role: "ftpalg:snat",
        rules: &[snat_rule],
        range_rule: ranges::snat_rule,
    },
    ChainSpec {
        name: "input",
        hook: hook::INPUT,
        priority: SNAT_PRIORITY,
        role: "ftpalg:snat-local",
        rules: &[snat_rule],
        range_rule: ranges::snat_rule,
    },
];

/// The requests that make all objects of one family, for one batch. A leftover is deleted first.
pub(super) fn plan(
    layout: &'static FamilyLayout,
    mark: Mark,
    abilities: Abilities,
    range: Option<PortRange>,
    leftover: bool,
) -> Vec<(What, NetlinkRequest<'static>)> {
    let mut steps = Vec::new();
    if leftover {
        steps.push((What::Other, del_table(layout)));
    }
    let mut add = |what, kind, flags, attrs: Box<dyn Fn(&mut Builder)>| {
        let family = layout.family.number();
        let request = NetlinkRequest {
            kind,
            flags,
            family,
            attrs,
        };
        steps.push((what, request));
    };
    let put_table = move |b: &mut Builder| {
        b.text(attr::TABLE_NAME, PINHOLE_TABLE);
        match abilities {
            Abilities { owner: false, .. } => {}
            Abilities { persist: false, .. } => _ = b.be32(attr::TABLE_FLAGS, TABLE_OWNER),
            _ => _ = b.be32(attr::TABLE_FLAGS, TABLE_OWNER | TABLE_PERSIST),
        }
        b.bytes(attr::TABLE_USERDATA, &comment(0, "ftpalg:pinholes"));
    };
    let flags = codec::CREATE | codec::EXCL;
    add(What::Table, msg::NEW_TABLE, flags, Box::new(put_table));
    for map in Map::OF_PINHOLE {
        let put = move |b: &mut Builder| put_map(b, layout, map, abilities);
        let put = Box::new(put);
        add(What::PinholeMap, msg::NEW_SET, codec::CREATE, put);
    }
    for map in Map::OF_RANGE.into_iter().filter(|_| range.is_some()) {
        let put = Box::new(move |b: &mut Builder| put_map(b, layout, map, abilities));
        add(What::Other, msg::NEW_SET, codec::CREATE, put);
    }
    for spec in &CHAINS {
        let put = Box::new(|b: &mut Builder| put_chain(b, spec));
        add(What::Other, msg::NEW_CHAIN, codec::CREATE, put);
        let flags = codec::CREATE | codec::APPEND;
        for rule in spec.rules {
            let put = move |b: &mut Builder| put_rule(b, spec, |list| rule(layout, mark, list));
            add(What::Other, msg::NEW_RULE, flags, Box::new(put));
        }
        if let Some(range) = range {
            let rule = spec.range_rule;
            let put =
                move |b: &mut Builder| put_rule(b, spec, |list| rule(layout, mark, range, list));
            add(What::Other, msg::NEW_RULE, flags, Box::new(put));
        }
    }
    steps
}

fn put_chain(b: &mut Builder, spec: &ChainSpec) {
    b.text(attr::CHAIN_TABLE, PINHOLE_TABLE);
    b.text(attr::CHAIN_NAME, spec.name);
    b.nest(attr::CHAIN_HOOK, |b| {
        b.be32(attr::HOOK_NUM, spec.hook);
        b.be32(attr::HOOK_PRIORITY, spec.priority.cast_unsigned());
    });
    b.be32(attr::CHAIN_POLICY, policy::ACCEPT);
    b.text(attr::CHAIN_TYPE, "nat");
    b.bytes(attr::CHAIN_USERDATA, &comment(0, spec.role));
}

fn put_rule(b: &mut Builder, spec: &ChainSpec, rule: impl FnOnce(&mut Expressions<'_>)) {
    b.text(attr::RULE_TABLE, PINHOLE_TABLE);
    b.text(attr::RULE_CHAIN, spec.name);
    b.nest(attr::RULE_EXPRESSIONS, |b| rule(&mut Expressions::new(b)));
    b.bytes(attr::RULE_USERDATA, &comment(0, spec.role));
}

/// What a map's keys and data are: their types and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) key: (u32, u32),
    pub(super) data: (u32, u32),
}

/// The shape of a map.
pub(super) fn shape(layout: &FamilyLayout, map: Map) -> Shape {
    let addr = layout.datatype;
    let (key, data): (&[u32], &[u32]) = match map {
        Map::Pinholes => (&[addr, addr, datatype::PORT], &[addr, datatype::PORT]),
        Map::Sources => (&[addr, addr, datatype::PORT], &[addr]),
        Map::Marks => (&[addr, addr, datatype::PORT], &[datatype::MARK]),
        Map::Ranges => (&[addr, addr], &[addr]),
        Map::RangeSources => (&[addr, addr, addr], &[addr]),
    };
    let len_of = |one: &u32| if *one == addr { layout.addr_len() } else { 4 };
    let of = |types: &[u32]| (datatype::concat(types), types.iter().map(len_of).sum());
    Shape {
        key: of(key),
        data: of(data),
    }
}

fn put_map(b: &mut Builder, layout: &FamilyLayout, map: Map, abilities: Abilities) {
    let Shape { key, data } = shape(layout, map);
    let limit = map == Map::Pinholes && abilities.limit;
    let count = limit && abilities.count;
    let flags = match map {
        Map::Ranges | Map::RangeSources => SET_MAP | SET_TIMEOUT,
        _ if count => SET_MAP | SET_TIMEOUT | SET_DYNAMIC | SET_WITH_EXPRESSIONS,
        _ => SET_MAP | SET_TIMEOUT | SET_DYNAMIC,
    };
    b.text(attr::SET_TABLE, PINHOLE_TABLE);
    b.text(attr::SET_NAME, layout.name(map));
    b.be32(attr::SET_FLAGS, flags);
    b.be32(attr::SET_KEY_TYPE, key.0);
    b.be32(attr::SET_KEY_LEN, key.1);
    b.be32(attr::SET_DATA_TYPE, data.0);
    b.be32(attr::SET_DATA_LEN, data.1);
    b.be32(attr::SET_ID, map.id());
    b.bytes(attr::SET_USERDATA, &set_userdata(map));
    if count {
        b.nest(attr::SET_EXPRESSIONS, |b| {
            b.nest(attr::LIST_ELEM, |b| put_limit(b, FIRST_PACKETS));
            b.nest(attr::LIST_ELEM, put_counter);
        });
    } else if limit {
        b.nest(attr::SET_EXPR, |b| put_limit(b, FIRST_PACKETS));
    }
}

/// User data of a set starts with the byte order of key and data (1: the host's, 2: network).
fn set_userdata(map: Map) -> Vec<u8> {
    let order = |kind: u8, order: u32| [vec![kind, 4], order.to_ne_bytes().to_vec()].concat();
    let data = if map == Map::Marks { 1 } else { 2 };
    let role = comment(7, &format!("ftpalg:{}", map.role()));
    [order(0, 2), order(1, data), role].concat()
}

/// For pinholes whose control connection has a mark of the user's. A data connection that the user
/// has marked already keeps its mark. The packet gets the mark, too, since it is routed next.
fn marked_dnat_rule(layout: &FamilyLayout, mark: Mark, rule: &mut Expressions<'_>) {
    rule.ct(layout.mark(), Ct::Mark)
        .compare(layout.mark(), true, &[0; 4]);
    load_key(layout, rule)
        .lookup(
            layout.name(Map::Marks),
            Map::Marks.id(),
            0,
            layout.carried(),
        )
        .lookup(
            layout.name(Map::Pinholes),
            Map::Pinholes.id(),
            0,
            layout.data(),
        )
        .set_mark(layout.carried())
        .bits(layout.carried(), !mark.bit(), 0)
        .set_packet_mark(layout.carried())
        .nat(
            Translate::Destination,
            layout.family.number(),
            layout.data(),
            Some(layout.data_port()),
        );
}

fn load_key<'a, 'b>(
    layout: &FamilyLayout,
    rule: &'a mut Expressions<'b>,
) -> &'a mut Expressions<'b> {
    let addr_len = layout.addr_len();
    rule.protocol(0, TCP)
        .payload(0, Base::Network, layout.source_at, addr_len)
        .payload(layout.target(), Base::Network, layout.target_at, addr_len)
        .payload(layout.port(), Base::Transport, 2, 2)
}

fn dnat_rule(layout: &FamilyLayout, mark: Mark, rule: &mut Expressions<'_>) {
    load_key(layout, rule)
        .lookup(
            layout.name(Map::Pinholes),
            Map::Pinholes.id(),
            0,
            layout.data(),
        )
        .ct(layout.mark(), Ct::Mark)
        .bits(layout.mark(), !mark.bit(), mark.bit())
        .set_mark(layout.mark())
        .nat(
            Translate::Destination,
            layout.family.number(),
            layout.data(),
            Some(layout.data_port()),
        );
}

fn snat_rule(layout: &FamilyLayout, mark: Mark, rule: &mut Expressions<'_>) {
    rule.ct(0, Ct::Mark)
        .bits(0, mark.bit(), 0)
        .compare(0, false, &[0; 4])
        .protocol(0, TCP)
        .ct(0, layout.ct_source)
        .ct(layout.target(), layout.ct_target)
        .ct(layout.port(), Ct::OriginalPort)
        .lookup(
            layout.name(Map::Sources),
            Map::Sources.id(),
            0,
            layout.data(),
        )
        .nat(
            Translate::Source,
            layout.family.number(),
            layout.data(),
            None,
        );
}

pub(super) fn del_table(layout: &'static FamilyLayout) -> NetlinkRequest<'static> {
    NetlinkRequest {
        kind: msg::DEL_TABLE,
        flags: 0,
        family: layout.family.number(),
        attrs: Box::new(|b| {
            b.text(attr::TABLE_NAME, PINHOLE_TABLE);
        }),
    }
}

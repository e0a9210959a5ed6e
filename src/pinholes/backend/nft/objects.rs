//! The objects of the nft backend as netlink requests: table, maps, chains and rules.

use std::net::IpAddr;
use std::path::Path;

use super::ranges;
use crate::firewall::PINHOLE_TABLE;
use crate::net::{Family, Mark, PortRange, TCP};
use crate::netlink::codec::{self, Builder};
use crate::netlink::nftables::expression::{Base, Ct, Expressions, Translate, put_limit};
use crate::netlink::nftables::{
    SET_DYNAMIC, SET_MAP, SET_TIMEOUT, TABLE_OWNER, attr, comment, datatype, hook, msg, policy,
};
use crate::netlink::socket::Request;

/// Names of the maps within the batch that makes them.
const PINHOLES_ID: u32 = 1;
const SOURCES_ID: u32 = 2;
const MARKS_ID: u32 = 3;
/// Just before `dstnat` (−100) and `srcnat` (100) of the user's rules.
const DNAT_PRIORITY: i32 = -101;
const SNAT_PRIORITY: i32 = 99;
/// First packets of a connection that a hole lets in per second: below the shortest time after which
/// a SYN is sent again (1 s, RFC 6298 §2.1).
const FIRST_PACKETS: u64 = 2;

/// What the kernel takes; found out by trying.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    /// A table that belongs to our socket.
    pub(super) owner: bool,
    /// A limit for each element of a map.
    pub(super) limit: bool,
}

/// What differs between IPv4 and IPv6: names, and where things are.
#[derive(Debug)]
pub(super) struct FamilyLayout {
    pub(super) family: Family,
    pinholes: &'static str,
    sources: &'static str,
    marks: &'static str,
    pub(super) ranges: &'static str,
    pub(super) range_sources: &'static str,
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
    pinholes: "pinholes4",
    sources: "sources4",
    marks: "marks4",
    ranges: "ranges4",
    range_sources: "range-sources4",
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
    pinholes: "pinholes6",
    sources: "sources6",
    marks: "marks6",
    ranges: "ranges6",
    range_sources: "range-sources6",
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

    pub(super) fn set(&self, map: Map) -> &'static str {
        match map {
            Map::Pinholes => self.pinholes,
            Map::Sources => self.sources,
            Map::Marks => self.marks,
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

/// What a hole has elements in, all under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// Where the connection is delivered.
    Pinholes,
    /// Which source it shows, if it is another than its own.
    Sources,
    /// The connection mark that it takes over from its control connection, with our bit.
    Marks,
}

/// All of them.
pub(super) const MAPS: [Map; 3] = [Map::Pinholes, Map::Sources, Map::Marks];

/// One change of an installation, and what it is about.
pub(super) struct Change {
    pub(super) what: What,
    kind: u16,
    flags: u16,
    family: u8,
    attrs: Box<dyn Fn(&mut Builder)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Leftover,
    Table,
    Map,
    RangeMap,
    Chain,
}

impl Change {
    pub(super) fn request(&self) -> Request<'_> {
        Request {
            kind: self.kind,
            flags: self.flags,
            family: self.family,
            attrs: Box::new(|b| (self.attrs)(b)),
        }
    }
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

/// Everything of one family in one batch: it replaces a leftover and is there at once, or not at all.
pub(super) fn plan(
    layout: &'static FamilyLayout,
    mark: Mark,
    abilities: Abilities,
    range: Option<PortRange>,
    leftover: bool,
) -> Vec<Change> {
    let step = |what, kind, flags, attrs| Change {
        what,
        kind,
        flags,
        family: layout.family.number(),
        attrs,
    };
    let mut steps = Vec::new();
    if leftover {
        steps.push(step(
            What::Leftover,
            msg::DEL_TABLE,
            0,
            Box::new(|b| {
                b.text(attr::TABLE_NAME, PINHOLE_TABLE);
            }),
        ));
    }
    steps.push(step(
        What::Table,
        msg::NEW_TABLE,
        codec::CREATE | codec::EXCL,
        Box::new(move |b| {
            b.text(attr::TABLE_NAME, PINHOLE_TABLE);
            if abilities.owner {
                b.be32(attr::TABLE_FLAGS, TABLE_OWNER);
            }
            b.bytes(attr::TABLE_USERDATA, &comment(0, "ftpalg:pinholes"));
        }),
    ));
    for map in MAPS {
        steps.push(step(
            What::Map,
            msg::NEW_SET,
            codec::CREATE,
            Box::new(move |b| put_map(b, layout, map, abilities.limit)),
        ));
    }
    if range.is_some() {
        for map in ranges::MAPS {
            steps.push(step(
                What::RangeMap,
                msg::NEW_SET,
                codec::CREATE,
                Box::new(move |b| ranges::put_map(b, layout, map)),
            ));
        }
    }
    for spec in &CHAINS {
        steps.push(step(
            What::Chain,
            msg::NEW_CHAIN,
            codec::CREATE,
            Box::new(move |b| put_chain(b, spec)),
        ));
        for rule in spec.rules {
            steps.push(step(
                What::Chain,
                msg::NEW_RULE,
                codec::CREATE | codec::APPEND,
                Box::new(move |b| put_rule(b, spec, |list| rule(layout, mark, list))),
            ));
        }
        if let Some(range) = range {
            let rule = spec.range_rule;
            steps.push(step(
                What::Chain,
                msg::NEW_RULE,
                codec::CREATE | codec::APPEND,
                Box::new(move |b| put_rule(b, spec, |list| rule(layout, mark, range, list))),
            ));
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

fn put_map(b: &mut Builder, layout: &FamilyLayout, map: Map, limit: bool) {
    let addr = layout.datatype;
    let addr_len = 4 * layout.words;
    let (id, data_type, data_len, role) = match map {
        Map::Pinholes => {
            let data = datatype::concat(&[addr, datatype::PORT]);
            (PINHOLES_ID, data, addr_len + 4, "ftpalg:pinholes")
        }
        Map::Sources => (SOURCES_ID, addr, addr_len, "ftpalg:sources"),
        Map::Marks => (MARKS_ID, datatype::MARK, 4, "ftpalg:marks"),
    };
    let key_type = datatype::concat(&[addr, addr, datatype::PORT]);
    b.text(attr::SET_TABLE, PINHOLE_TABLE);
    b.text(attr::SET_NAME, layout.set(map));
    b.be32(attr::SET_FLAGS, SET_MAP | SET_TIMEOUT | SET_DYNAMIC);
    b.be32(attr::SET_KEY_TYPE, key_type);
    b.be32(attr::SET_KEY_LEN, 2 * addr_len + 4);
    b.be32(attr::SET_DATA_TYPE, data_type);
    b.be32(attr::SET_DATA_LEN, data_len);
    b.be32(attr::SET_ID, id);
    let host_order = map == Map::Marks;
    b.bytes(attr::SET_USERDATA, &set_userdata(role, host_order));
    if map == Map::Pinholes && limit {
        b.nest(attr::SET_EXPR, |b| put_limit(b, FIRST_PACKETS));
    }
}

/// User data of a set starts with the byte order of key and data (1: the host's, 2: network).
pub(super) fn set_userdata(role: &str, host_order: bool) -> Vec<u8> {
    let order = |kind: u8, order: u32| [vec![kind, 4], order.to_ne_bytes().to_vec()].concat();
    let data = if host_order { 1 } else { 2 };
    [order(0, 2), order(1, data), comment(7, role)].concat()
}

/// For control connections that the user has marked. The user's own mark on the data connection
/// comes first. The packet's mark is set, too: the next thing that happens to it is routing.
fn marked_dnat_rule(layout: &FamilyLayout, mark: Mark, rule: &mut Expressions<'_>) {
    rule.ct(layout.mark(), Ct::Mark)
        .compare(layout.mark(), true, &[0; 4]);
    load_key(layout, rule)
        .lookup(layout.marks, MARKS_ID, 0, layout.carried())
        .lookup(layout.pinholes, PINHOLES_ID, 0, layout.data())
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
    let addr_len = 4 * layout.words;
    rule.protocol(0, TCP)
        .payload(0, Base::Network, layout.source_at, addr_len)
        .payload(layout.target(), Base::Network, layout.target_at, addr_len)
        .payload(layout.port(), Base::Transport, 2, 2)
}

fn dnat_rule(layout: &FamilyLayout, mark: Mark, rule: &mut Expressions<'_>) {
    load_key(layout, rule)
        .lookup(layout.pinholes, PINHOLES_ID, 0, layout.data())
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
        .lookup(layout.sources, SOURCES_ID, 0, layout.data())
        .nat(
            Translate::Source,
            layout.family.number(),
            layout.data(),
            None,
        );
}

pub(super) fn del_table(layout: &'static FamilyLayout) -> Request<'static> {
    Request {
        kind: msg::DEL_TABLE,
        flags: 0,
        family: layout.family.number(),
        attrs: Box::new(|b| {
            b.text(attr::TABLE_NAME, PINHOLE_TABLE);
        }),
    }
}

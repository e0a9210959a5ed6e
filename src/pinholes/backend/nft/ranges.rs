//! Holes for ranges of ports: their maps, rules and elements.
//!
//! Only where a range A-B is configured, here for IPv4 in the notation of `nft`:
//!
//! ```text
//! map ranges4        { type ipv4_addr . ipv4_addr : ipv4_addr }
//! map range-sources4 { type ipv4_addr . ipv4_addr . ipv4_addr : ipv4_addr }
//! prerouting, output   # behind the pinholes' rule
//!     tcp dport A-B ct mark set ct mark | BIT dnat to ip saddr . ip daddr map @ranges4
//! postrouting, input
//!     ct mark & BIT != 0 ct original proto-dst A-B
//!         snat to ct original saddr . ct original daddr . ip daddr map @range-sources4
//! ```
//!
//! Without a port in the translation, the port stays. The second map's key ends with the address
//! that the connection was delivered to: a pinhole at the same public address, but to another
//! server, keeps its own source.

use std::net::IpAddr;

use super::elements::{Element, octets};
use super::objects::{Layout, TABLE, TCP, set_userdata};
use crate::net::Mark;
use crate::net::PortRange;
use crate::netlink::codec::Builder;
use crate::netlink::nftables::expression::{Base, Ct, Expressions, Translate};
use crate::netlink::nftables::{SET_MAP, SET_TIMEOUT, attr, datatype};
use crate::pinholes::RangeHole;

/// Which of the two maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeMap {
    Targets,
    Sources,
}

pub(super) const MAPS: [RangeMap; 2] = [RangeMap::Targets, RangeMap::Sources];

impl RangeMap {
    fn name(self, family: &Layout) -> &'static str {
        match self {
            Self::Targets => family.ranges,
            Self::Sources => family.range_sources,
        }
    }

    /// Its name within the batch that makes it: 1 to 3 are those of the pinholes.
    const fn id(self) -> u32 {
        match self {
            Self::Targets => 4,
            Self::Sources => 5,
        }
    }

    /// How many addresses its key consists of.
    const fn addresses(self) -> u32 {
        match self {
            Self::Targets => 2,
            Self::Sources => 3,
        }
    }
}

/// The elements of a hole.
pub(super) fn elements(family: &Layout, hole: &RangeHole) -> [Element; MAPS.len()] {
    let target = [octets(hole.from), octets(hole.to)].concat();
    let source = [&target[..], &octets(hole.land)].concat();
    let element = |map: RangeMap, key, data: Option<IpAddr>| Element {
        map: map.name(family),
        key,
        data: data.map(octets),
    };
    [
        element(RangeMap::Targets, target, Some(hole.land)),
        element(RangeMap::Sources, source, hole.as_source),
    ]
}

pub(super) fn put_map(b: &mut Builder, family: &Layout, map: RangeMap) {
    let addr_len = 4 * family.words;
    let key = [family.datatype; 3];
    let role = match map {
        RangeMap::Targets => "ftpalg:ranges",
        RangeMap::Sources => "ftpalg:range-sources",
    };
    let key = &key[..map.addresses() as usize];
    b.text(attr::SET_TABLE, TABLE);
    b.text(attr::SET_NAME, map.name(family));
    b.be32(attr::SET_FLAGS, SET_MAP | SET_TIMEOUT);
    b.be32(attr::SET_KEY_TYPE, datatype::concat(key));
    b.be32(attr::SET_KEY_LEN, map.addresses() * addr_len);
    b.be32(attr::SET_DATA_TYPE, family.datatype);
    b.be32(attr::SET_DATA_LEN, addr_len);
    b.be32(attr::SET_ID, map.id());
    b.bytes(attr::SET_USERDATA, &set_userdata(role, false));
}

pub(super) fn dnat_rule(family: &Layout, mark: Mark, range: PortRange, rule: &mut Expressions<'_>) {
    let (addr_len, data) = (4 * family.words, 2 * family.words);
    let bits = 3 * family.words;
    rule.protocol(0, TCP)
        .payload(0, Base::Transport, 2, 2)
        .port_within(0, range.first(), range.last())
        .payload(0, Base::Network, family.source_at, addr_len)
        .payload(family.words, Base::Network, family.target_at, addr_len)
        .lookup(family.ranges, RangeMap::Targets.id(), 0, data)
        .ct(bits, Ct::Mark)
        .bits(bits, !mark.bit(), mark.bit())
        .set_mark(bits)
        .nat(Translate::Destination, family.number, data, None);
}

pub(super) fn snat_rule(family: &Layout, mark: Mark, range: PortRange, rule: &mut Expressions<'_>) {
    let (addr_len, data) = (4 * family.words, 3 * family.words);
    rule.ct(0, Ct::Mark)
        .bits(0, mark.bit(), 0)
        .compare(0, false, &[0; 4])
        .protocol(0, TCP)
        .ct(0, Ct::OriginalPort)
        .port_within(0, range.first(), range.last())
        .ct(0, family.ct_source)
        .ct(family.words, family.ct_target)
        .payload(2 * family.words, Base::Network, family.target_at, addr_len)
        .lookup(family.range_sources, RangeMap::Sources.id(), 0, data)
        .nat(Translate::Source, family.number, data, None);
}

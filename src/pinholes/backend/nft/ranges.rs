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

use super::elements::{MapElement, octets};
use super::objects::{FamilyLayout, set_userdata};
use crate::firewall::PINHOLE_TABLE;
use crate::net::{Mark, PortRange, TCP};
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
    fn name(self, layout: &FamilyLayout) -> &'static str {
        match self {
            Self::Targets => layout.ranges,
            Self::Sources => layout.range_sources,
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
pub(super) fn elements(layout: &FamilyLayout, hole: &RangeHole) -> [MapElement; MAPS.len()] {
    let target = [octets(hole.from), octets(hole.to)].concat();
    let source = [&target[..], &octets(hole.land)].concat();
    let element = |map: RangeMap, key, data: Option<IpAddr>| MapElement {
        map: map.name(layout),
        key,
        data: data.map(octets),
    };
    [
        element(RangeMap::Targets, target, Some(hole.land)),
        element(RangeMap::Sources, source, hole.as_source),
    ]
}

pub(super) fn put_map(b: &mut Builder, layout: &FamilyLayout, map: RangeMap) {
    let addr_len = 4 * layout.words;
    let key = [layout.datatype; 3];
    let role = match map {
        RangeMap::Targets => "ftpalg:ranges",
        RangeMap::Sources => "ftpalg:range-sources",
    };
    let key = &key[..map.addresses() as usize];
    b.text(attr::SET_TABLE, PINHOLE_TABLE);
    b.text(attr::SET_NAME, map.name(layout));
    b.be32(attr::SET_FLAGS, SET_MAP | SET_TIMEOUT);
    b.be32(attr::SET_KEY_TYPE, datatype::concat(key));
    b.be32(attr::SET_KEY_LEN, map.addresses() * addr_len);
    b.be32(attr::SET_DATA_TYPE, layout.datatype);
    b.be32(attr::SET_DATA_LEN, addr_len);
    b.be32(attr::SET_ID, map.id());
    b.bytes(attr::SET_USERDATA, &set_userdata(role, false));
}

pub(super) fn dnat_rule(
    layout: &FamilyLayout,
    mark: Mark,
    range: PortRange,
    rule: &mut Expressions<'_>,
) {
    let (addr_len, data) = (4 * layout.words, 2 * layout.words);
    let bits = 3 * layout.words;
    rule.protocol(0, TCP)
        .payload(0, Base::Transport, 2, 2)
        .port_within(0, range.first(), range.last())
        .payload(0, Base::Network, layout.source_at, addr_len)
        .payload(layout.words, Base::Network, layout.target_at, addr_len)
        .lookup(layout.ranges, RangeMap::Targets.id(), 0, data)
        .ct(bits, Ct::Mark)
        .bits(bits, !mark.bit(), mark.bit())
        .set_mark(bits)
        .nat(Translate::Destination, layout.family.number(), data, None);
}

pub(super) fn snat_rule(
    layout: &FamilyLayout,
    mark: Mark,
    range: PortRange,
    rule: &mut Expressions<'_>,
) {
    let (addr_len, data) = (4 * layout.words, 3 * layout.words);
    rule.ct(0, Ct::Mark)
        .bits(0, mark.bit(), 0)
        .compare(0, false, &[0; 4])
        .protocol(0, TCP)
        .ct(0, Ct::OriginalPort)
        .port_within(0, range.first(), range.last())
        .ct(0, layout.ct_source)
        .ct(layout.words, layout.ct_target)
        .payload(2 * layout.words, Base::Network, layout.target_at, addr_len)
        .lookup(layout.range_sources, RangeMap::Sources.id(), 0, data)
        .nat(Translate::Source, layout.family.number(), data, None);
}

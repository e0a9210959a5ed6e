//! Ranges of ports in nf_tables: their elements and rules.
//!
//! They are there only if a range A-B is configured. Here for IPv4 in the notation of `nft`:
//!
//! ```text
//! map ranges4        { type ipv4_addr . ipv4_addr : ipv4_addr }
//! map range-sources4 { type ipv4_addr . ipv4_addr . ipv4_addr : ipv4_addr }
//! prerouting, output   # after the pinholes' rules
//!     tcp dport A-B ct mark set ct mark | BIT dnat to ip saddr . ip daddr map @ranges4
//! postrouting, input
//!     ct mark & BIT != 0 ct original proto-dst A-B
//!         snat to ct original saddr . ct original daddr . ip daddr map @range-sources4
//! ```
//!
//! The translation names no port, so the port stays. The key of the second map ends with the address
//! that the connection was delivered to, so a pinhole at the same public address, but to another
//! server, isn't affected.

use std::net::IpAddr;

use super::elements::{MapElement, bytes};
use super::objects::{FamilyLayout, Map};
use crate::net::{Mark, PortRange, TCP};
use crate::netlink::nftables::expression::{Base, Ct, Expressions, Translate};
use crate::pinholes::RangeHole;

/// The elements of a range.
pub(super) fn elements(layout: &FamilyLayout, hole: &RangeHole) -> [MapElement; 2] {
    let key = bytes(&[hole.from, hole.to], None);
    let delivered = bytes(&[hole.from, hole.to, hole.land], None);
    let [targets, sources] = Map::OF_RANGE;
    let element = |map, key, data: Option<IpAddr>| MapElement {
        map: layout.name(map),
        key,
        data: data.map(|ip| bytes(&[ip], None)),
    };
    [
        element(targets, key, Some(hole.land)),
        element(sources, delivered, hole.as_source),
    ]
}

pub(super) fn dnat_rule(
    layout: &FamilyLayout,
    mark: Mark,
    range: PortRange,
    rule: &mut Expressions<'_>,
) {
    let (addr_len, data) = (layout.addr_len(), 2 * layout.words);
    let bits = 3 * layout.words;
    rule.protocol(0, TCP)
        .payload(0, Base::Transport, 2, 2)
        .port_within(0, range.first(), range.last())
        .payload(0, Base::Network, layout.source_at, addr_len)
        .payload(layout.words, Base::Network, layout.target_at, addr_len)
        .lookup(layout.name(Map::Ranges), Map::Ranges.id(), 0, data)
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
    let (addr_len, data) = (layout.addr_len(), 3 * layout.words);
    rule.ct(0, Ct::Mark)
        .bits(0, mark.bit(), 0)
        .compare(0, false, &[0; 4])
        .protocol(0, TCP)
        .ct(0, Ct::OriginalPort)
        .port_within(0, range.first(), range.last())
        .ct(0, layout.ct_source)
        .ct(layout.words, layout.ct_target)
        .payload(2 * layout.words, Base::Network, layout.target_at, addr_len)
        .lookup(
            layout.name(Map::RangeSources),
            Map::RangeSources.id(),
            0,
            data,
        )
        .nat(Translate::Source, layout.family.number(), data, None);
}

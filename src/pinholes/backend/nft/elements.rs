//! The elements of the maps: what a pinhole is in the kernel.

use std::net::IpAddr;
use std::time::Duration;

use super::objects::{FamilyLayout, Map};
use crate::firewall::PINHOLE_TABLE;
use crate::net::Mark;
use crate::netlink::codec::{self, Builder};
use crate::netlink::nftables::{attr, msg};
use crate::netlink::socket::NetlinkRequest;
use crate::pinholes::Pinhole;

/// The bytes of three IPv6 addresses.
const LONGEST: usize = 48;

/// A key of a map, and what it is mapped to.
#[derive(Debug)]
pub(super) struct MapElement {
    /// The map's name.
    pub(super) map: &'static str,
    pub(super) key: Vec<u8>,
    /// `None`: nothing, but an older pinhole with that key may have left an element.
    pub(super) data: Option<Vec<u8>>,
}

/// The elements of a pinhole, one for each of [`Map::OF_PINHOLE`]. Only the first one always has data.
pub(super) fn of_pinhole(
    layout: &FamilyLayout,
    hole: &Pinhole,
    mark: Mark,
) -> impl Iterator<Item = MapElement> {
    Map::OF_PINHOLE.into_iter().map(move |map| MapElement {
        map: layout.name(map),
        key: bytes(&[hole.from, hole.to.ip()], Some(hole.to.port())),
        data: match map {
            Map::Pinholes => Some(bytes(&[hole.land.ip()], Some(hole.land.port()))),
            Map::Sources => hole.as_source.map(|ip| bytes(&[ip], None)),
            // With our bit: the rule sets the whole mark.
            _ => (hole.mark != 0).then(|| (hole.mark | mark.bit()).to_ne_bytes().to_vec()),
        },
    })
}

impl MapElement {
    /// Asks whether the key has an element.
    pub(super) fn question(&self, layout: &FamilyLayout) -> NetlinkRequest<'_> {
        self.request(msg::GET_ELEM, 0, layout, |_| {})
    }

    /// Deletes the element.
    pub(super) fn delete(&self, layout: &FamilyLayout) -> NetlinkRequest<'_> {
        self.request(msg::DEL_ELEM, 0, layout, |_| {})
    }

    /// Deletes the element if it is there. See [`msg::DESTROY_ELEM`].
    pub(super) fn destroy(&self, layout: &FamilyLayout) -> NetlinkRequest<'_> {
        self.request(msg::DESTROY_ELEM, 0, layout, |_| {})
    }

    /// Adds the element, if there is one to add. There must be none with that key.
    pub(super) fn add(
        &self,
        layout: &FamilyLayout,
        timeout: Duration,
    ) -> Option<NetlinkRequest<'_>> {
        let data = self.data.as_deref()?;
        // The kernel takes 0 for "no timeout".
        let millis = u64::try_from(timeout.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let flags = codec::CREATE | codec::EXCL;
        Some(self.request(msg::NEW_ELEM, flags, layout, move |b| {
            b.nest(attr::ELEM_DATA, |b| {
                b.bytes(attr::DATA_VALUE, data);
            });
            b.be64(attr::ELEM_TIMEOUT, millis);
        }))
    }

    fn request<'a>(
        &'a self,
        kind: u16,
        flags: u16,
        layout: &FamilyLayout,
        more: impl Fn(&mut Builder) + 'a,
    ) -> NetlinkRequest<'a> {
        NetlinkRequest {
            kind,
            flags,
            family: layout.family.number(),
            attrs: Box::new(move |b| {
                b.text(attr::ELEMS_TABLE, PINHOLE_TABLE);
                b.text(attr::ELEMS_SET, self.map);
                b.nest(attr::ELEMS_LIST, |b| {
                    b.nest(attr::LIST_ELEM, |b| {
                        b.nest(attr::ELEM_KEY, |b| {
                            b.bytes(attr::DATA_VALUE, &self.key);
                        });
                        more(b);
                    });
                });
            }),
        }
    }
}

/// Addresses, and a port behind them, each padded to 4 bytes.
pub(super) fn bytes(addresses: &[IpAddr], port: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LONGEST);
    for ip in addresses {
        match ip {
            IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
        }
    }
    if let Some(port) = port {
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
    }
    bytes
}

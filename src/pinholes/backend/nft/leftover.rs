//! What a daemon before this one left: the pinholes in the maps of its table.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::objects::{FamilyLayout, Map, Shape, shape};
use crate::firewall::{PINHOLE_TABLE, tables};
use crate::net::{Family, Mark};
use crate::netlink::codec::{Attr, Attrs, Message};
use crate::netlink::nftables::expression::counted_packets;
use crate::netlink::nftables::{attr, msg};
use crate::netlink::socket::{NetlinkRequest, Socket};
use crate::pinholes::Pinhole;

/// While the kernel moves elements to a larger table, it lists some of them twice, and others not at all. Then
/// they are listed again until no other ones come, so often at most.
const LISTINGS: usize = 4;
/// So few are moved at once. For kernels that don't say how many there are.
const FEW: usize = 256;

/// An element as the kernel lists it.
struct Listed {
    key: Vec<u8>,
    data: Vec<u8>,
    /// What is left of its timeout, where it has one.
    left: Option<Duration>,
    /// How many packets have used it, where they were counted.
    packets: Option<u64>,
}

/// A pinhole that was left open.
#[derive(Debug)]
pub(super) struct LeftOpen {
    pub(super) pinhole: Pinhole,
    /// The time that it has left.
    pub(super) left: Duration,
    /// Certainly no connection was made through it.
    pub(super) unused: bool,
}

/// The pinholes in the table of a family, those with the shortest time left first: at most `most`, for at
/// most `longest` each. One line says what is dropped.
pub(super) fn pinholes(
    socket: &mut Socket,
    layout: &FamilyLayout,
    mark: Mark,
    most: usize,
    longest: Duration,
) -> Vec<LeftOpen> {
    let [pinholes, sources, marks] = match lists(socket, layout) {
        Ok(Some(lists)) => lists,
        Ok(None) => return Vec::new(),
        Err(error) => {
            let family = layout.family;
            log::warn!("{family} pinholes of an earlier ftpalg are dropped: {error}");
            return Vec::new();
        }
    };
    let by_key = |list: Vec<Listed>| -> HashMap<_, _> {
        list.into_iter().map(|one| (one.key, one.data)).collect()
    };
    let (sources, marks) = (by_key(sources), by_key(marks));
    let all = pinholes.len();
    let mut holes: Vec<_> = pinholes
        .into_iter()
        .filter_map(|listed| {
            let (key, data) = (&listed.key, &listed.data);
            let (source, marks) = (sources.get(key), marks.get(key));
            Some(LeftOpen {
                pinhole: pinhole(layout, mark, key, data, source, marks)?,
                left: listed.left.map_or(longest, |left| left.min(longest)),
                unused: listed.packets == Some(0),
            })
        })
        .collect();
    holes.sort_by_key(|hole| hole.left);
    // The oldest ones go.
    holes.drain(..holes.len().saturating_sub(most));
    let dropped = all.saturating_sub(holes.len());
    if dropped > 0 {
        log::warn!(
            "{dropped} of {all} {} pinholes of an earlier ftpalg are dropped: beyond the limit of \
             pinholes, or not understood",
            layout.family
        );
    }
    holes
}

/// The elements of the three maps of pinholes; `None` if there is no table, or one of another shape.
fn lists(socket: &mut Socket, layout: &FamilyLayout) -> io::Result<Option<[Vec<Listed>; 3]>> {
    let family = layout.family.number();
    let tables = tables::tables_on(socket)?;
    if !tables
        .iter()
        .any(|table| table.family == family && table.name == PINHOLE_TABLE)
    {
        return Ok(None);
    }
    let maps = socket.dump(
        &request(msg::GET_SET, family, attr::SET_TABLE, None),
        |message| Some((name_of(message)?, shape_of(message)?, count_of(message))),
    )?;
    let find = |map: Map| {
        let wanted = (layout.name(map), shape(layout, map));
        let mut maps = maps.iter();
        maps.find(|(name, shape, _)| (name.as_str(), shape) == (wanted.0, &wanted.1))
    };
    let is_ours = |map: &Map| find(*map).is_some();
    if !Map::OF_PINHOLE.iter().all(is_ours) {
        log::info!("the {} table ftpalg isn't of this version", layout.family);
        return Ok(None);
    }
    let mut list = |map| -> io::Result<Vec<Listed>> {
        let name = layout.name(map);
        let question = request(msg::GET_ELEM, family, attr::ELEMS_TABLE, Some(name));
        let count = find(map).and_then(|(_, _, count)| *count);
        whole(count, || {
            let messages = socket.dump(&question, |message| Some(elements(message)))?;
            Ok(messages.into_iter().flatten().collect())
        })
    };
    let [pinholes, sources, marks] = Map::OF_PINHOLE;
    Ok(Some([list(pinholes)?, list(sources)?, list(marks)?]))
}

/// Each element once, of listings that may have some twice and others not at all. `count`: how many there
/// are, if the kernel tells.
fn whole(
    count: Option<usize>,
    mut list: impl FnMut() -> io::Result<Vec<Listed>>,
) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    let mut keys = HashSet::new();
    for _ in 0..LISTINGS {
        let before = listed.len();
        let fresh = list()?.into_iter();
        listed.extend(fresh.filter(|one| keys.insert(one.key.clone())));
        let all = count.map_or(listed.len() < FEW, |count| listed.len() >= count);
        if all || listed.len() == before {
            break;
        }
    }
    Ok(listed)
}

/// Asks about our table; about one of its maps, if there is a name.
fn request(kind: u16, family: u8, table: u16, map: Option<&str>) -> NetlinkRequest<'_> {
    NetlinkRequest {
        kind,
        flags: 0,
        family,
        attrs: Box::new(move |b| {
            b.text(table, PINHOLE_TABLE);
            if let Some(map) = map {
                b.text(attr::ELEMS_SET, map);
            }
        }),
    }
}

fn name_of(message: &Message<'_>) -> Option<String> {
    let name = message.attrs().find(attr::SET_NAME)?;
    name.text().map(str::to_owned)
}

fn shape_of(message: &Message<'_>) -> Option<Shape> {
    let number = |kind| message.attrs().find(kind)?.be32();
    Some(Shape {
        key: (number(attr::SET_KEY_TYPE)?, number(attr::SET_KEY_LEN)?),
        data: (number(attr::SET_DATA_TYPE)?, number(attr::SET_DATA_LEN)?),
    })
}

/// How many elements a map has, those included whose time is over (Linux 6.16 tells).
fn count_of(message: &Message<'_>) -> Option<usize> {
    let count = message.attrs().find(attr::SET_COUNT)?.be32()?;
    usize::try_from(count).ok()
}

fn elements(message: &Message<'_>) -> Vec<Listed> {
    let list = message.attrs().find(attr::ELEMS_LIST);
    list.into_iter()
        .flat_map(|list| list.nested())
        .filter_map(|one| element(one.nested()))
        .collect()
}

fn element(parts: Attrs<'_>) -> Option<Listed> {
    let value = |kind| -> Option<Vec<u8>> {
        let value = parts.find(kind)?.nested().find(attr::DATA_VALUE)?.value;
        Some(value.to_vec())
    };
    let left = parts.find(attr::ELEM_EXPIRATION);
    let expressions = parts.find(attr::ELEM_EXPRESSIONS);
    let mut expressions = expressions.into_iter().flat_map(|list| list.nested());
    Some(Listed {
        key: value(attr::ELEM_KEY)?,
        data: value(attr::ELEM_DATA)?,
        left: left.and_then(|left: Attr<'_>| left.be64().map(Duration::from_millis)),
        packets: expressions.find_map(|one| counted_packets(one.nested())),
    })
}

/// The pinhole with these elements: the reverse of [`of_pinhole`](super::elements::of_pinhole).
/// `None` if they make none, or if their mark is that of a daemon with another `--mark`.
fn pinhole(
    layout: &FamilyLayout,
    mark: Mark,
    key: &[u8],
    data: &[u8],
    source: Option<&Vec<u8>>,
    carried: Option<&Vec<u8>>,
) -> Option<Pinhole> {
    let (from, key) = split_address(layout, key)?;
    let (to, key) = split_address(layout, key)?;
    let (land, data) = split_address(layout, data)?;
    let as_source = match source {
        Some(source) => Some(split_address(layout, source)?.0),
        None => None,
    };
    let carried = match carried {
        Some(bytes) => u32::from_ne_bytes(bytes.as_slice().try_into().ok()?),
        None => mark.bit(),
    };
    mark.is_in(carried).then_some(Pinhole {
        from,
        to: SocketAddr::new(to, port(key)?),
        land: SocketAddr::new(land, port(data)?),
        as_source,
        mark: carried & !mark.bit(),
    })
}

/// The address at the start, and what follows it.
fn split_address<'a>(layout: &FamilyLayout, bytes: &'a [u8]) -> Option<(IpAddr, &'a [u8])> {
    match layout.family {
        Family::V4 => {
            let (ip, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::from(*ip), rest))
        }
        Family::V6 => {
            let (ip, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::from(*ip), rest))
        }
    }
}

/// The port, which is padded to 4 bytes.
fn port(bytes: &[u8]) -> Option<u16> {
    let [high, low, _, _] = *bytes.first_chunk::<4>()?;
    Some(u16::from_be_bytes([high, low])).filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::super::elements::of_pinhole;
    use super::super::objects::{IPV4, IPV6};
    use super::*;

    #[test]
    fn what_a_listing_leaves_out_is_listed_again() {
        let one = |n: u32| Listed {
            key: n.to_be_bytes().to_vec(),
            data: Vec::new(),
            left: None,
            packets: None,
        };
        let many = u32::try_from(FEW).unwrap();
        // What the kernel says, each listing as a range and what is in it twice; how many listings it takes.
        let cases = [
            (Some(3), vec![(0..3, 0)], 1),
            (Some(3), vec![(0..2, 2), (1..3, 0)], 2),
            // One has expired.
            (Some(4), vec![(0..3, 0), (0..3, 0)], 2),
            (None, vec![(0..many - 1, 0)], 1),
            (None, vec![(0..many, 1), (9..many + 9, 0), (0..many, 0)], 3),
            (
                Some(99),
                vec![(0..1, 0), (1..2, 0), (2..3, 0), (3..4, 0)],
                LISTINGS,
            ),
        ];
        for (count, listings, took) in cases {
            let all = listings.iter().map(|(range, _)| range.end).max();
            let mut listings = listings.into_iter();
            let mut asked = 0;
            let list = || {
                asked += 1;
                let (range, twice) = listings.next().unwrap();
                let again = range.clone().take(twice);
                Ok(range.chain(again).map(one).collect())
            };
            let mut found: Vec<_> = whole(count, list).unwrap();
            found.sort_by(|a, b| a.key.cmp(&b.key));
            let keys: Vec<_> = found.into_iter().map(|one| one.key).collect();
            let expected: Vec<_> = (0..all.unwrap()).map(|n| one(n).key).collect();
            assert_eq!((keys, asked), (expected, took));
        }
    }

    #[test]
    fn elements_are_read_as_they_are_written() {
        let v4 = ["192.0.2.7", "203.0.113.1:4000", "10.0.0.2:5000", "10.0.0.1"];
        let v6 = [
            "2001:db8::7",
            "[2001:db8::1]:4000",
            "[fd00::2]:1",
            "fd00::1",
        ];
        for (layout, [from, to, land, source]) in [(&IPV4, v4), (&IPV6, v6)] {
            for (as_source, user) in [(None, 0), (Some(source), 0x11)] {
                let hole = Pinhole {
                    from: from.parse().unwrap(),
                    to: to.parse().unwrap(),
                    land: land.parse().unwrap(),
                    as_source: as_source.map(|ip| ip.parse().unwrap()),
                    mark: user,
                };
                let elements: Vec<_> = of_pinhole(layout, &hole, Mark::DEFAULT).collect();
                let [main, sources, marks] = elements.try_into().unwrap();
                let data = main.data.unwrap();
                let (source, marks) = (sources.data.as_ref(), marks.data.as_ref());
                let read =
                    |mark, key: &[u8], data: &[u8]| pinhole(layout, mark, key, data, source, marks);
                assert_eq!(read(Mark::DEFAULT, &main.key, &data), Some(hole));
                let other = read(Mark::new(0x2000_0000).unwrap(), &main.key, &data);
                assert_eq!(other.is_none(), user != 0, "another mark");
                // Nothing that is cut short is a pinhole.
                for len in 0..main.key.len() {
                    let short = &main.key[..len];
                    assert_eq!(read(Mark::DEFAULT, short, &data), None);
                }
                for len in 0..data.len() {
                    assert_eq!(read(Mark::DEFAULT, &main.key, &data[..len]), None);
                }
            }
        }
    }
}

//! The codec of ctnetlink: requests, entries and events (`linux/netfilter/nfnetlink_conntrack.h`).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{Bytes, ConntrackEvent, Entry, Kept, Progress, SEEN_REPLY, TcpState, Tuple};
use crate::net::{Family, Mark, TCP};
use crate::netlink::codec::{Attrs, Builder, Message};
use crate::netlink::filter::{Filter, To};
use crate::netlink::socket::NetlinkRequest;

/// `NFNL_SUBSYS_CTNETLINK` in the upper byte, the `IPCTNL_MSG_CT_*` in the lower.
const CT_NEW: u16 = 0x0100;
const CT_GET: u16 = 0x0101;
const CT_DELETE: u16 = 0x0102;
/// `enum ctattr_type`.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_TIMESTAMP: u16 = 20;
const CTA_MARK_MASK: u16 = 21;
const CTA_FILTER: u16 = 25;
/// `enum ctattr_filter`, and the kernel's own `CTA_FILTER_F_*` bits: which parts of the tuple count.
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_TARGET: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 5;
const FILTER_SOURCE_PORT: u32 = 1 << 3 | 1 << 4;
const FILTER_PORTS_AND_TARGET: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5;
/// `enum ctattr_tuple`, `ctattr_ip`, `ctattr_l4proto`, `ctattr_counters`, `ctattr_tstamp`.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_COUNTERS_BYTES: u16 = 2;
/// `CTA_PROTOINFO_TCP`, `CTA_PROTOINFO_TCP_STATE`.
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_TIMESTAMP_START: u16 = 1;
const CTA_TIMESTAMP_STOP: u16 = 2;

/// Asks for the entry of the connection that has this direction.
pub(super) fn ask(src: SocketAddr, dst: SocketAddr) -> NetlinkRequest<'static> {
    // The kernel finds either direction by this attribute.
    let tuple = move |b: &mut Builder| put_tuple(b, CTA_TUPLE_ORIG, src, dst);
    request(CT_GET, family(src.ip()), tuple)
}

/// Asks for all entries that carry the mark.
pub(super) fn ask_marked(mark: Mark) -> NetlinkRequest<'static> {
    request(CT_GET, 0, move |b| {
        b.be32(CTA_MARK, mark.bit());
        b.be32(CTA_MARK_MASK, mark.bit());
    })
}

/// Asks for all entries of connections from `from` to `to`. Kernels before 5.8 don't know the filter
/// and give all entries.
pub(super) fn ask_attempts(from: IpAddr, to: SocketAddr) -> NetlinkRequest<'static> {
    request(CT_GET, family(from), move |b| {
        put_tuple(b, CTA_TUPLE_ORIG, SocketAddr::new(from, 0), to);
        b.nest(CTA_FILTER, |b| {
            b.bytes(CTA_FILTER_ORIG_FLAGS, &FILTER_TARGET.to_ne_bytes());
            b.bytes(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
        });
    })
}

/// Asks for all entries of connections that a port answers, as its host sees it. Kernels before 5.8 give
/// all entries.
pub(super) fn ask_answered_by(family: Family, port: u16) -> NetlinkRequest<'static> {
    request(CT_GET, family.number(), move |b| {
        let any = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let (from, to) = (SocketAddr::new(any, port), SocketAddr::new(any, 0));
        put_tuple(b, CTA_TUPLE_REPLY, from, to);
        b.nest(CTA_FILTER, |b| {
            b.bytes(CTA_FILTER_ORIG_FLAGS, &0u32.to_ne_bytes());
            b.bytes(CTA_FILTER_REPLY_FLAGS, &FILTER_SOURCE_PORT.to_ne_bytes());
        });
    })
}

/// Asks for all entries of connections from this port to `server`. Kernels before 5.8 give all entries.
pub(super) fn ask_with_client_port(client: u16, server: SocketAddr) -> NetlinkRequest<'static> {
    request(CT_GET, family(server.ip()), move |b| {
        let any = match server.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        put_tuple(b, CTA_TUPLE_ORIG, SocketAddr::new(any, client), server);
        b.nest(CTA_FILTER, |b| {
            b.bytes(
                CTA_FILTER_ORIG_FLAGS,
                &FILTER_PORTS_AND_TARGET.to_ne_bytes(),
            );
            b.bytes(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
        });
    })
}

/// Deletes an entry.
pub(super) fn forget(original: Tuple, id: u32) -> NetlinkRequest<'static> {
    request(CT_DELETE, family(original.src.ip()), move |b| {
        put_tuple(b, CTA_TUPLE_ORIG, original.src, original.dst);
        b.be32(CTA_ID, id);
    })
}

/// Sets the bits of `mask` in the mark of the connection that has this direction to those of `mark`.
pub(super) fn change_mark(
    src: SocketAddr,
    dst: SocketAddr,
    mark: u32,
    mask: u32,
) -> NetlinkRequest<'static> {
    request(CT_NEW, family(src.ip()), move |b| {
        put_tuple(b, CTA_TUPLE_ORIG, src, dst);
        b.be32(CTA_MARK, mark);
        b.be32(CTA_MARK_MASK, mask);
    })
}

fn request(
    kind: u16,
    family: u8,
    attrs: impl Fn(&mut Builder) + 'static,
) -> NetlinkRequest<'static> {
    NetlinkRequest {
        kind,
        flags: 0,
        family,
        attrs: Box::new(attrs),
    }
}

fn family(ip: IpAddr) -> u8 {
    Family::of(ip).number()
}

fn put_tuple(b: &mut Builder, kind: u16, src: SocketAddr, dst: SocketAddr) {
    b.nest(kind, |b| {
        b.nest(CTA_TUPLE_IP, |b| match (src.ip(), dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                b.bytes(CTA_IP_V4_SRC, &src.octets());
                b.bytes(CTA_IP_V4_DST, &dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                b.bytes(CTA_IP_V6_SRC, &src.octets());
                b.bytes(CTA_IP_V6_DST, &dst.octets());
            }
            _ => {}
        });
        b.nest(CTA_TUPLE_PROTO, |b| {
            b.bytes(CTA_PROTO_NUM, &[TCP]);
            b.bytes(CTA_PROTO_SRC_PORT, &src.port().to_be_bytes());
            b.bytes(CTA_PROTO_DST_PORT, &dst.port().to_be_bytes());
        });
    });
}

/// Passes the events of connections with the mark; `ends`: also the ends of all others.
pub(super) fn filter(wanted: Mark, ends: bool) -> Filter {
    let marked = Filter::new().any_bit(CTA_MARK, wanted.bit(), To::Pass);
    match ends {
        true => marked.kind(CT_DELETE, To::Pass),
        false => marked,
    }
}

pub(super) fn parse_event(
    message: &Message<'_>,
    wanted: Mark,
    watched: &HashSet<Tuple>,
) -> Option<ConntrackEvent> {
    if message.kind != CT_NEW && message.kind != CT_DELETE {
        return None;
    }
    let number = |kind| message.attrs().find(kind).and_then(|attr| attr.be32());
    // First, since nearly all connections of a busy gateway are somebody else's. An entry without a
    // mark has no attribute for it.
    let marked = wanted.is_in(number(CTA_MARK).unwrap_or(0));
    if !marked && (message.kind == CT_NEW || watched.is_empty()) {
        return None;
    }
    let entry = parse_entry(message)?;
    if !marked && !watched.contains(&entry.original) {
        return None;
    }
    let id = number(CTA_ID).unwrap_or(0);
    let status = number(CTA_STATUS).unwrap_or(0);
    if message.kind == CT_NEW {
        return Some(ConntrackEvent::New { entry, id, status });
    }
    Some(ConntrackEvent::Destroy {
        entry,
        id,
        bytes: parse_bytes(message),
        lifetime: parse_lifetime(message),
        state: parse_state(message),
        status,
    })
}

pub(super) fn parse_progress(message: &Message<'_>) -> Progress {
    let status = message.attrs().find(CTA_STATUS);
    Progress {
        state: parse_state(message),
        status: status.and_then(|attr| attr.be32()).unwrap_or(0),
        bytes: parse_bytes(message),
    }
}

/// The direction and `CTA_ID` of a connection from `from` to `to` that nobody has answered
/// and that doesn't carry the mark.
pub(super) fn parse_attempt(
    message: &Message<'_>,
    from: IpAddr,
    to: SocketAddr,
    mark: Mark,
) -> Option<(Tuple, u32)> {
    let entry = parse_entry(message)?;
    let number = |kind| message.attrs().find(kind)?.be32();
    let waits = number(CTA_STATUS)? & SEEN_REPLY == 0 && !mark.is_in(entry.mark);
    let there = entry.original.src.ip() == from && entry.original.dst == to;
    (waits && there).then_some((entry.original, number(CTA_ID)?))
}

pub(super) fn parse_entry(message: &Message<'_>) -> Option<Entry> {
    let mut original = None;
    let mut reply = None;
    let mut mark = 0;
    for attr in message.attrs() {
        match attr.kind {
            CTA_TUPLE_ORIG => original = parse_tuple(attr.nested()),
            CTA_TUPLE_REPLY => reply = parse_tuple(attr.nested()),
            CTA_MARK => mark = attr.be32()?,
            _ => {}
        }
    }
    Some(Entry {
        original: original?,
        reply: reply?,
        mark,
    })
}

/// `None` for what isn't TCP.
fn parse_tuple(tuple: Attrs<'_>) -> Option<Tuple> {
    let proto = tuple.find(CTA_TUPLE_PROTO)?.nested();
    if proto.find(CTA_PROTO_NUM)?.value != [TCP] {
        return None;
    }
    let ips = tuple.find(CTA_TUPLE_IP)?.nested();
    let ip = |v4, v6| -> Option<IpAddr> {
        if let Some(attr) = ips.find(v4) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(attr.value).ok()?).into());
        }
        let octets = <[u8; 16]>::try_from(ips.find(v6)?.value).ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    Some(Tuple {
        src: SocketAddr::new(
            ip(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            proto.find(CTA_PROTO_SRC_PORT)?.be16()?,
        ),
        dst: SocketAddr::new(
            ip(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            proto.find(CTA_PROTO_DST_PORT)?.be16()?,
        ),
    })
}

pub(super) fn parse_bytes(message: &Message<'_>) -> Option<Bytes> {
    let bytes = |kind| {
        let counters = message.attrs().find(kind)?.nested();
        counters.find(CTA_COUNTERS_BYTES)?.be64()
    };
    Some(Bytes {
        original: bytes(CTA_COUNTERS_ORIG)?,
        reply: bytes(CTA_COUNTERS_REPLY)?,
    })
}

/// How long an entry is kept, and for which state.
pub(super) fn parse_kept(message: &Message<'_>) -> Option<Kept> {
    let seconds = message.attrs().find(CTA_TIMEOUT)?.be32()?;
    Some(Kept {
        state: parse_state(message)?,
        left: Duration::from_secs(u64::from(seconds)),
    })
}

fn parse_state(message: &Message<'_>) -> Option<TcpState> {
    let tcp = message.attrs().find(CTA_PROTOINFO)?.nested();
    let state = tcp.find(CTA_PROTOINFO_TCP)?.nested();
    let state = state.find(CTA_PROTOINFO_TCP_STATE)?;
    state.value.first().copied().map(TcpState)
}

fn parse_lifetime(message: &Message<'_>) -> Option<Duration> {
    let times = message.attrs().find(CTA_TIMESTAMP)?.nested();
    let start = times.find(CTA_TIMESTAMP_START)?.be64()?;
    let stop = times.find(CTA_TIMESTAMP_STOP)?.be64()?;
    Some(Duration::from_nanos(stop.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::Messages;
    use crate::netlink::filter;
    use proptest::prelude::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A DESTROY as the kernel writes it, with accounting and time stamps on.
    fn destroy(src: &str, dst: &str, mark: u32) -> Vec<u8> {
        let mut b = Builder::new();
        b.message(CT_DELETE, 0, 0, family(addr(src).ip()), 0);
        put_tuple(&mut b, CTA_TUPLE_ORIG, addr(src), addr(dst));
        put_tuple(&mut b, CTA_TUPLE_REPLY, addr(dst), addr(src));
        for (kind, bytes) in [
            (CTA_COUNTERS_ORIG, 100),
            (CTA_COUNTERS_REPLY, 5_000_000_000),
        ] {
            b.nest(kind, |b| {
                b.be64(1, 3).be64(CTA_COUNTERS_BYTES, bytes);
            });
        }
        b.nest(CTA_TIMESTAMP, |b| {
            b.be64(CTA_TIMESTAMP_START, 1_000_000_000)
                .be64(CTA_TIMESTAMP_STOP, 3_500_000_000);
        });
        b.nest(CTA_PROTOINFO, |b| {
            b.nest(CTA_PROTOINFO_TCP, |b| {
                b.bytes(CTA_PROTOINFO_TCP_STATE, &[7]);
            });
        });
        b.be32(CTA_MARK, mark).be32(CTA_ID, 77);
        b.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Option<ConntrackEvent> {
        read_watching(bytes, &HashSet::new())
    }

    fn read_watching(bytes: &[u8], watched: &HashSet<Tuple>) -> Option<ConntrackEvent> {
        parse_event(&Messages::new(bytes).next()?, Mark::DEFAULT, watched)
    }

    #[test]
    fn a_destroy_event_gives_tuples_bytes_and_lifetime() {
        for (src, dst) in [
            ("192.0.2.1:40000", "203.0.113.5:50001"),
            ("[2001:db8::1]:40000", "[2001:db8::2]:50001"),
        ] {
            let bytes = destroy(src, dst, 0x4000_0001);
            let tuple = |src, dst| Tuple {
                src: addr(src),
                dst: addr(dst),
            };
            assert_eq!(
                read(&bytes),
                Some(ConntrackEvent::Destroy {
                    entry: Entry {
                        original: tuple(src, dst),
                        reply: tuple(dst, src),
                        mark: 0x4000_0001,
                    },
                    id: 77,
                    bytes: Some(Bytes {
                        original: 100,
                        reply: 5_000_000_000,
                    }),
                    lifetime: Some(Duration::from_millis(2500)),
                    state: Some(TcpState(7)),
                    status: 0,
                })
            );
        }
    }

    #[test]
    fn other_peoples_connections_are_skipped() {
        assert_eq!(
            read(&destroy("192.0.2.1:1", "192.0.2.2:2", 0x3fff_ffff)),
            None
        );
    }

    #[test]
    fn the_end_of_a_watched_connection_is_told() {
        let bytes = destroy("192.0.2.1:1", "192.0.2.2:21", 0);
        let tuple = |src, dst| Tuple {
            src: addr(src),
            dst: addr(dst),
        };
        let watch = |tuple| read_watching(&bytes, &HashSet::from([tuple]));
        assert!(matches!(
            watch(tuple("192.0.2.1:1", "192.0.2.2:21")),
            Some(ConntrackEvent::Destroy { .. })
        ));
        assert_eq!(watch(tuple("192.0.2.1:2", "192.0.2.2:21")), None);
    }

    #[test]
    fn the_kernels_filter_agrees_with_what_is_read() {
        let events = [0, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff].map(|mark| {
            let end = destroy("192.0.2.1:1", "192.0.2.2:2", mark);
            let mut begin = end.clone();
            begin[4..6].copy_from_slice(&CT_NEW.to_ne_bytes());
            [begin, end]
        });
        let all: Vec<_> = events.iter().flatten().map(Vec::as_slice).collect();
        let delivered = |ends| filter::delivered(&filter(Mark::DEFAULT, ends), &all);
        let read: Vec<_> = all.iter().map(|bytes| read(bytes).is_some()).collect();
        assert_eq!(delivered(false), read);
        let tuple = Tuple {
            src: addr("192.0.2.1:1"),
            dst: addr("192.0.2.2:2"),
        };
        let watched = HashSet::from([tuple]);
        let read: Vec<_> = all
            .iter()
            .map(|bytes| read_watching(bytes, &watched).is_some())
            .collect();
        assert_eq!(delivered(true), read);
    }

    proptest! {
        #[test]
        fn a_damaged_event_is_read_without_harm(
            at in 0usize..300, with: u8, cut in 0usize..300
        ) {
            let mut bytes = destroy("192.0.2.1:40000", "203.0.113.5:50001", 0x4000_0000);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            let _ = read(&bytes);
            bytes.truncate(cut);
            let _ = read(&bytes);
            prop_assert!(bytes.len() <= 300);
        }
    }
}

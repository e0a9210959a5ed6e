//! Conntrack entries of TCP connections, as ctnetlink tells them.
//!
//! [`Conntrack`] answers questions; [`Events`] reports new and ended connections.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP};

use super::backend::Mark;
use super::pinhole::Key;
use crate::netlink::codec::{Attrs, Builder, Message};
use crate::netlink::socket::{Request, Socket};

/// `NFNL_SUBSYS_CTNETLINK` in the upper byte, the `IPCTNL_MSG_CT_*` in the lower.
const CT_NEW: u16 = 0x0100;
const CT_GET: u16 = 0x0101;
const CT_DELETE: u16 = 0x0102;
/// `NFNLGRP_CONNTRACK_NEW` (1) and `NFNLGRP_CONNTRACK_DESTROY` (3) as bits.
const GROUPS: u32 = 1 | 1 << 2;
/// `enum ctattr_type`.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
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
/// `IPS_SEEN_REPLY`: the other end has answered.
const SEEN_REPLY: u32 = 1 << 1;
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

/// How many datagrams one [`Events::read`] takes at most, so that it ends under any load.
const READ_AT_ONCE: usize = 65_536;
/// Receive buffer of [`Events`], in bytes: about 10,000 events.
const EVENT_BUFFER: usize = 8 * 1024 * 1024;

/// One direction of a connection, as its packets look on the side where they enter the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where packets of this direction come from (before any source NAT).
    pub src: SocketAddr,
    /// Where packets of this direction are sent to (before any destination NAT).
    pub dst: SocketAddr,
}

/// A conntrack entry of a TCP connection: both directions, as each sender writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The direction of the first SYN: client to the address that the client dials.
    pub original: Tuple,
    /// The opposite direction: server to the address under which the server sees the client.
    pub reply: Tuple,
    /// The connection mark (`CTA_MARK`), 0 where the kernel keeps none.
    pub mark: u32,
}

impl Entry {
    /// The direction in which packets with this tuple go, and the opposite one; `None` if neither
    /// direction has it.
    #[must_use]
    pub fn from_sender(&self, tuple: Tuple) -> Option<(Tuple, Tuple)> {
        if self.original == tuple {
            Some((self.original, self.reply))
        } else if self.reply == tuple {
            Some((self.reply, self.original))
        } else {
            None
        }
    }
}

/// Something that happened to a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConntrackEvent {
    /// Its first packet left the gateway.
    New {
        /// The connection.
        entry: Entry,
        /// `CTA_ID`: tells connections with equal tuples apart.
        id: u32,
        /// `IPS_*` bits.
        status: u32,
    },
    /// It is forgotten: some time after it was closed, or idle for long.
    Destroy {
        /// The connection.
        entry: Entry,
        /// `CTA_ID`, as in the event of its start.
        id: u32,
        /// Bytes with IP headers of both directions, where `net.netfilter.nf_conntrack_acct` is on.
        bytes: Option<Bytes>,
        /// How long it existed, where `net.netfilter.nf_conntrack_timestamp` is on.
        lifetime: Option<Duration>,
        /// How far its end had come when it was forgotten, where the kernel tells (Linux 5.12).
        state: Option<TcpState>,
    },
}

/// `enum tcp_conntrack`: how far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState(pub u8);

impl TcpState {
    /// For how long conntrack still remembers a connection that came so far and no further: the
    /// sysctl of the calling thread's network namespace. `None` for one that hadn't begun to end.
    #[must_use]
    pub fn remembered(self) -> Option<Duration> {
        let name = match self.0 {
            4 => "fin_wait",
            5 => "close_wait",
            6 => "last_ack",
            7 => "time_wait",
            8 => "close",
            _ => return None,
        };
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}");
        let seconds = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// Bytes that a connection carried, IP headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Bytes {
    /// In the direction of the first SYN.
    pub original: u64,
    /// In the opposite direction.
    pub reply: u64,
}

/// Whether [`Events::read`] read all that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Nothing is missing.
    Complete,
    /// Events were lost (the receive buffer was full): compare with [`Conntrack::marked`].
    Missed,
}

/// Asks the kernel about connections of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a socket for questions.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open()?,
        })
    }

    /// Whether ctnetlink works here: opens a socket and asks a question.
    ///
    /// # Errors
    /// One line: what is missing and how to mend it.
    pub fn probe() -> Result<(), String> {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let asked = Self::open().and_then(|mut conntrack| conntrack.lookup(nobody, nobody));
        match asked {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => {
                Err("no permission to ask conntrack: run as root or with CAP_NET_ADMIN".into())
            }
            Err(error) => Err(format!(
                "can't ask conntrack ({error}): load it with `modprobe nf_conntrack_netlink`, \
                 or use a kernel with CONFIG_NF_CT_NETLINK"
            )),
        }
    }

    /// The TCP connection that has a direction from `src` to `dst`, either one.
    ///
    /// # Errors
    /// `InvalidInput` for addresses of different families, and what the kernel says.
    pub fn lookup(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Entry>> {
        match self.find(src, dst, parse_entry)? {
            Some(Some(entry)) => Ok(Some(entry)),
            Some(None) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel's conntrack entry can't be read",
            )),
            None => Ok(None),
        }
    }

    fn find<T>(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        read: impl FnOnce(&Message<'_>) -> T,
    ) -> io::Result<Option<T>> {
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let request = Request {
            kind: CT_GET,
            flags: 0,
            family: family(src.ip()),
            // Either direction is found, whichever attribute carries it.
            attrs: Box::new(move |b| put_tuple(b, CTA_TUPLE_ORIG, src, dst)),
        };
        match self.socket.get(&request, read) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a connection with this direction has carried so far; `None` if there is none, or
    /// `net.netfilter.nf_conntrack_acct` was off when it began.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn bytes(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Bytes>> {
        let found = self.find(src, dst, parse_bytes)?;
        Ok(found.flatten())
    }

    /// All TCP connections that carry the mark.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn marked(&mut self, mark: Mark) -> io::Result<Vec<Entry>> {
        let request = Request {
            kind: CT_GET,
            flags: 0,
            family: 0,
            attrs: Box::new(move |b| {
                b.be32(CTA_MARK, mark.bit());
                b.be32(CTA_MARK_MASK, mark.bit());
            }),
        };
        self.socket.dump(&request, |message| {
            parse_entry(message).filter(|entry| mark.is_in(entry.mark))
        })
    }

    /// Forgets the connection attempts from `key.from` to `key.to` that nobody has answered and
    /// that don't carry the mark: how many there were.
    ///
    /// An attempt made before its pinhole was there was let through untranslated, or the answer
    /// would have come. While conntrack remembers it (two minutes), its retransmissions, and later
    /// attempts from the same port, go the same way and never meet the pinhole. Costs a walk
    /// through conntrack's table.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget_unanswered(&mut self, key: Key, mark: Mark) -> io::Result<usize> {
        if key.from.is_ipv4() != key.to.is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let request = Request {
            kind: CT_GET,
            flags: 0,
            family: family(key.from),
            // Kernels before 5.8 don't know the filter and show all.
            attrs: Box::new(move |b| {
                put_tuple(b, CTA_TUPLE_ORIG, SocketAddr::new(key.from, 0), key.to);
                b.nest(CTA_FILTER, |b| {
                    b.bytes(CTA_FILTER_ORIG_FLAGS, &FILTER_TARGET.to_ne_bytes());
                    b.bytes(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
                });
            }),
        };
        let attempts = self.socket.dump(&request, |message| {
            let entry = parse_entry(message)?;
            let number = |kind| message.attrs().find(kind)?.be32();
            let waits = number(CTA_STATUS)? & SEEN_REPLY == 0 && !mark.is_in(entry.mark);
            let there = entry.original.src.ip() == key.from && entry.original.dst == key.to;
            (waits && there).then_some((entry.original, number(CTA_ID)?))
        })?;
        let mut forgotten = 0;
        for (tuple, id) in attempts {
            let request = Request {
                kind: CT_DELETE,
                flags: 0,
                family: family(key.from),
                attrs: Box::new(move |b| {
                    put_tuple(b, CTA_TUPLE_ORIG, tuple.src, tuple.dst);
                    b.be32(CTA_ID, id);
                }),
            };
            match self.socket.change(&request) {
                Ok(()) => forgotten += 1,
                // It went by itself.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}

/// New and ended TCP connections that carry a mark, and the end of others that are watched.
///
/// Ready to [`read`](Self::read) when its file descriptor is readable.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    mark: Mark,
    watched: HashSet<Tuple>,
}

impl Events {
    /// Subscribes. Connections that exist already give no events on kernels that record them only
    /// while somebody listens (`net.netfilter.nf_conntrack_events=2`).
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(mark: Mark) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::subscribe(GROUPS, EVENT_BUFFER)?,
            mark,
            watched: HashSet::new(),
        })
    }

    /// Reports the end of the connection with this original direction, too, or doesn't any more.
    pub fn watch(&mut self, original: Tuple, watched: bool) {
        if watched {
            self.watched.insert(original);
        } else {
            self.watched.remove(&original);
        }
    }

    /// Whether the kernel reports events at all here (`net.netfilter.nf_conntrack_events`).
    ///
    /// `None` where it can't be found out.
    #[must_use]
    pub fn enabled() -> Option<bool> {
        let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_events").ok()?;
        Some(text.trim() != "0")
    }

    /// Whether new connections' bytes are counted (`net.netfilter.nf_conntrack_acct`).
    #[must_use]
    pub fn counts_bytes() -> bool {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct")
            .is_ok_and(|text| text.trim() != "0")
    }

    /// Adds everything that happened since the last call to `out`, without waiting.
    ///
    /// # Errors
    /// What the operating system says; lost events are no error.
    pub fn read(&mut self, out: &mut Vec<ConntrackEvent>) -> io::Result<Completeness> {
        let (mark, watched) = (self.mark, &self.watched);
        let mut completeness = Completeness::Complete;
        for _ in 0..READ_AT_ONCE {
            let more = self
                .socket
                .events(|message| out.extend(parse_event(message, mark, watched)));
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                    completeness = Completeness::Missed;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(completeness)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn family(ip: IpAddr) -> u8 {
    let family = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
    u8::try_from(family).unwrap_or(0)
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

const TCP: u8 = IPPROTO_TCP as u8;

fn parse_event(
    message: &Message<'_>,
    wanted: Mark,
    watched: &HashSet<Tuple>,
) -> Option<ConntrackEvent> {
    if message.kind != CT_NEW && message.kind != CT_DELETE {
        return None;
    }
    let number = |kind| message.attrs().find(kind).and_then(|attr| attr.be32());
    // Before anything else: nearly all connections of a busy gateway are somebody else's. One
    // without a mark has no attribute for it.
    let marked = wanted.is_in(number(CTA_MARK).unwrap_or(0));
    if !marked && (message.kind == CT_NEW || watched.is_empty()) {
        return None;
    }
    let entry = parse_entry(message)?;
    if !marked && !watched.contains(&entry.original) {
        return None;
    }
    let id = number(CTA_ID).unwrap_or(0);
    if message.kind == CT_NEW {
        let status = number(CTA_STATUS).unwrap_or(0);
        return Some(ConntrackEvent::New { entry, id, status });
    }
    Some(ConntrackEvent::Destroy {
        entry,
        id,
        bytes: parse_bytes(message),
        lifetime: parse_lifetime(message),
        state: parse_state(message),
    })
}

fn parse_entry(message: &Message<'_>) -> Option<Entry> {
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

fn parse_bytes(message: &Message<'_>) -> Option<Bytes> {
    let bytes = |kind| {
        let counters = message.attrs().find(kind)?.nested();
        counters.find(CTA_COUNTERS_BYTES)?.be64()
    };
    Some(Bytes {
        original: bytes(CTA_COUNTERS_ORIG)?,
        reply: bytes(CTA_COUNTERS_REPLY)?,
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
    fn addresses_of_different_families_are_no_question() {
        if let Ok(mut conntrack) = Conntrack::open() {
            let error = conntrack
                .lookup(addr("192.0.2.1:1"), addr("[2001:db8::1]:1"))
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
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

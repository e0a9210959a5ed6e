//! Which side of the gateway a packet is of, and which connections of a capture are one.
//!
//! A capture on a gateway may have a connection twice: as the inside sees it, and as the outside does.
//! Only what the inside sees is replayed; the rest tells how the connection is translated.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::engine::{Entry, Side, Tuple};

/// How many SYNs, and how many other names of connections, are remembered.
const MAX: usize = 65_536;

/// Where a packet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) side: Side,
    /// The inside end has its public address: the packet was seen outside.
    pub(super) outer: bool,
    /// What the inside end sends.
    pub(super) outward: Tuple,
    /// The hook that the client's packets come through, as far as the ports tell.
    pub(super) client: Side,
}

/// A SYN that waits for the same one on the other side of NAT.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    tuple: Tuple,
    inner: bool,
}

/// A connection on both sides of NAT, as its SYN names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) inner: Tuple,
    pub(super) outer: Tuple,
}

/// What tells the sides apart.
#[derive(Debug)]
pub(super) struct Views {
    inside: Vec<IpNet>,
    public: Vec<IpAddr>,
    ports: Vec<u16>,
    syns: HashMap<u32, Waiting>,
    /// Both directions of connections as the outside sees them, where the inside's view is there, too.
    copies: HashSet<Tuple>,
}

pub(super) fn reversed(tuple: Tuple) -> Tuple {
    Tuple {
        src: tuple.dst,
        dst: tuple.src,
    }
}

impl Views {
    pub(super) fn new(inside: Vec<IpNet>, public: Vec<IpAddr>, ports: Vec<u16>) -> Self {
        Self {
            inside,
            public,
            ports,
            syns: HashMap::new(),
            copies: HashSet::new(),
        }
    }

    pub(super) fn is_inside(&self, ip: IpAddr) -> bool {
        self.inside.iter().any(|net| net.contains(&ip))
    }

    /// The only address that the inside has, of the family of `ip`.
    pub(super) fn only_inside(&self, ip: IpAddr) -> Option<IpAddr> {
        let mut nets = self.inside.iter();
        let net = nets.find(|net| net.addr().is_ipv4() == ip.is_ipv4())?;
        let others = nets.any(|net| net.addr().is_ipv4() == ip.is_ipv4());
        (!others && net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
    }

    /// Whether a connection is a control connection.
    pub(super) fn is_control(&self, tuple: &Tuple) -> bool {
        let ports = [tuple.src.port(), tuple.dst.port()];
        ports.iter().any(|port| self.ports.contains(port))
    }

    /// Whether a packet is the outside's copy of one that is replayed.
    pub(super) fn is_copy(&self, tuple: &Tuple) -> bool {
        !self.copies.is_empty() && self.copies.contains(tuple)
    }

    /// Where a packet of a control connection stands. `None`: neither end is inside.
    pub(super) fn stand(&self, tuple: Tuple) -> Option<Stand> {
        let Tuple { src, dst } = tuple;
        let to_server = self.ports.contains(&dst.port());
        let within = |at: SocketAddr| self.is_inside(at.ip());
        let published = |at: SocketAddr| self.public.contains(&at.ip());
        let (side, outer) = match (within(src), within(dst)) {
            // Both ends are inside: what counts is the server's.
            (true, true) if to_server => (Side::Ingress, false),
            (true, _) => (Side::Egress, false),
            (false, true) => (Side::Ingress, false),
            (false, false) if published(src) => (Side::Egress, true),
            (false, false) if published(dst) => (Side::Ingress, true),
            (false, false) => return None,
        };
        let outward = match side {
            Side::Egress => tuple,
            Side::Ingress => reversed(tuple),
        };
        let client = match (side, to_server) {
            (Side::Egress, true) | (Side::Ingress, false) => Side::Egress,
            (Side::Egress, false) | (Side::Ingress, true) => Side::Ingress,
        };
        Some(Stand {
            side,
            outer,
            outward,
            client,
        })
    }

    /// Takes a SYN of any connection. `Some`: it came before, on the other side of NAT.
    pub(super) fn syn(&mut self, tuple: Tuple, isn: u32) -> Option<Pair> {
        let inner = self.is_inside(tuple.src.ip()) || self.is_inside(tuple.dst.ip());
        let here = Waiting { tuple, inner };
        let Some(there) = self.syns.get(&isn).copied() else {
            if self.syns.len() >= MAX {
                self.syns.clear();
            }
            self.syns.insert(isn, here);
            return None;
        };
        let same_end = there.tuple.src == tuple.src || there.tuple.dst == tuple.dst;
        if there.inner == inner || there.tuple == tuple || !same_end {
            self.syns.insert(isn, here);
            return None;
        }
        self.syns.remove(&isn);
        let (inner, outer) = match inner {
            true => (tuple, there.tuple),
            false => (there.tuple, tuple),
        };
        Some(Pair { inner, outer })
    }

    /// From here on, the outside's view of a connection is known to be a copy.
    pub(super) fn remember(&mut self, pair: Pair) {
        if self.copies.len() >= MAX {
            self.copies.clear();
        }
        self.copies.insert(pair.outer);
        self.copies.insert(reversed(pair.outer));
    }

    /// How conntrack would know a connection. `named`: what its inside end sends, with its own
    /// address; `pair`: its two names, if the capture has both.
    pub(super) fn entry(&self, named: Tuple, client: Side, pair: Option<Pair>) -> Entry {
        let public = self.public(named.src);
        let (original, reply) = match (client, pair) {
            (Side::Egress, Some(pair)) => (named, reversed(pair.outer)),
            (Side::Ingress, Some(pair)) => (pair.outer, named),
            (Side::Egress, None) => (
                named,
                Tuple {
                    src: named.dst,
                    dst: public,
                },
            ),
            (Side::Ingress, None) => (
                Tuple {
                    src: named.dst,
                    dst: public,
                },
                named,
            ),
        };
        Entry {
            original,
            reply,
            mark: 0,
        }
    }

    /// The public name of an end inside; its own where there is none.
    fn public(&self, inside: SocketAddr) -> SocketAddr {
        let same = |ip: &&IpAddr| ip.is_ipv4() == inside.is_ipv4();
        let public = self.public.iter().find(same).copied();
        SocketAddr::new(public.unwrap_or(inside.ip()), inside.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: &str, dst: &str) -> Tuple {
        Tuple {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
        }
    }

    fn views(public: &[&str]) -> Views {
        let public = public.iter().map(|ip| ip.parse().unwrap()).collect();
        Views::new(vec!["10.0.0.0/24".parse().unwrap()], public, vec![21])
    }

    #[test]
    fn the_inside_says_which_way_a_packet_goes() {
        let stand = |from, to| {
            let stand = views(&["203.0.113.1"]).stand(tuple(from, to))?;
            Some((stand.side, stand.client, stand.outer))
        };
        use Side::{Egress, Ingress};
        for (from, to, is) in [
            (
                "10.0.0.2:21",
                "198.51.100.2:4",
                Some((Egress, Ingress, false)),
            ),
            (
                "198.51.100.2:4",
                "10.0.0.2:21",
                Some((Ingress, Ingress, false)),
            ),
            (
                "10.0.0.2:4",
                "198.51.100.2:21",
                Some((Egress, Egress, false)),
            ),
            (
                "198.51.100.2:21",
                "10.0.0.2:4",
                Some((Ingress, Egress, false)),
            ),
            (
                "203.0.113.1:21",
                "198.51.100.2:4",
                Some((Egress, Ingress, true)),
            ),
            (
                "198.51.100.2:21",
                "203.0.113.1:4",
                Some((Ingress, Egress, true)),
            ),
            ("10.0.0.3:4", "10.0.0.2:21", Some((Ingress, Ingress, false))),
            ("10.0.0.2:21", "10.0.0.3:4", Some((Egress, Ingress, false))),
            ("192.0.2.1:21", "198.51.100.2:4", None),
        ] {
            assert_eq!(stand(from, to), is, "{from} {to}");
        }
    }

    #[test]
    fn the_two_sides_of_nat_are_one_connection() {
        // A server inside, published: the outside is seen first.
        let mut one = views(&[]);
        let outer = tuple("198.51.100.2:4", "203.0.113.1:2121");
        let inner = tuple("198.51.100.2:4", "10.0.0.2:21");
        assert_eq!(one.syn(outer, 7), None);
        assert_eq!(one.syn(inner, 8), None, "another connection");
        assert_eq!(one.syn(inner, 7), Some(Pair { inner, outer }));
        let entry = one.entry(reversed(inner), Side::Ingress, Some(Pair { inner, outer }));
        assert_eq!((entry.original, entry.reply), (outer, reversed(inner)));
        // A client inside, masqueraded: the inside is.
        let inner = tuple("10.0.0.2:4", "198.51.100.2:21");
        let outer = tuple("203.0.113.1:4", "198.51.100.2:21");
        assert_eq!(one.syn(inner, 7), None);
        assert_eq!(one.syn(inner, 7), None, "sent again");
        assert_eq!(one.syn(outer, 7), Some(Pair { inner, outer }));
        let entry = one.entry(inner, Side::Egress, Some(Pair { inner, outer }));
        assert_eq!((entry.original, entry.reply), (inner, reversed(outer)));
        // Without the outside's view, --public says what it is.
        let said = views(&["2001:db8::1", "203.0.113.1"]);
        assert_eq!(said.entry(inner, Side::Egress, None), entry);
    }
}

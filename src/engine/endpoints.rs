//! The two ends of a control connection: the key of the engine's tables.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use super::hash::hash_ends;
use super::{Entry, Side, Tuple};
use crate::wire::Segment;

/// An address and a port. Takes 20 bytes, where a `SocketAddr` takes 32: the tables hold many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Endpoint {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
        }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(Endpoint { ip, port }: Endpoint) -> Self {
        Self::new(ip, port)
    }
}

/// The two ends of a control connection, as both hooks see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Endpoints {
    inside: Endpoint,
    outside: Endpoint,
}

impl Hash for Endpoints {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_ends(self.inside(), self.outside(), state);
    }
}

impl Endpoints {
    pub(super) fn of(segment: &Segment<'_>, side: Side) -> Self {
        let (source, destination) = (segment.source().into(), segment.destination().into());
        match side {
            Side::Egress => Self {
                inside: source,
                outside: destination,
            },
            Side::Ingress => Self {
                inside: destination,
                outside: source,
            },
        }
    }

    /// The ends of the connection whose inside end sends with this tuple.
    pub(super) fn from_outward(outward: Tuple) -> Self {
        Self {
            inside: outward.src.into(),
            outside: outward.dst.into(),
        }
    }

    pub(super) fn inside(&self) -> SocketAddr {
        self.inside.into()
    }

    pub(super) fn outside(&self) -> SocketAddr {
        self.outside.into()
    }

    /// The end whose packets come through `side`'s hook.
    pub(super) fn of_side(&self, side: Side) -> SocketAddr {
        match side {
            Side::Egress => self.inside(),
            Side::Ingress => self.outside(),
        }
    }

    /// Client and server, where the client's packets come through `client`'s hook.
    pub(super) fn client_and_server(&self, client: Side) -> (SocketAddr, SocketAddr) {
        (self.of_side(client), self.of_side(client.opposite()))
    }

    /// The tuple of what the inside end sends.
    pub(super) fn outward(&self) -> Tuple {
        Tuple {
            src: self.inside(),
            dst: self.outside(),
        }
    }

    /// How packets towards the inside name the connection, according to its conntrack entry: their
    /// source isn't translated yet. `None`: it is another one's entry.
    pub(super) fn towards_inside(&self, entry: &Entry) -> Option<Self> {
        let (_, inward) = entry.from_sender(self.outward())?;
        let outside = inward.src.into();
        Some(Self { outside, ..*self })
    }

    /// The names that the connection has at its other end, from it and towards it, according to its
    /// conntrack entry.
    pub(super) fn at_other_end(&self, entry: &Entry) -> Option<[Self; 2]> {
        let (_, inward) = entry.from_sender(self.outward())?;
        let (inside, outside) = (inward.src.into(), inward.dst.into());
        let other = Self { inside, outside };
        Some([other, other.towards_inside(entry)?])
    }

    /// The same connection as the hooks of its other end name it.
    pub(super) fn mirrored(&self) -> Self {
        Self {
            inside: self.outside,
            outside: self.inside,
        }
    }
}

#[cfg(test)]
impl Endpoints {
    /// Two ends that no other number gives.
    pub(super) fn numbered(n: u32) -> Self {
        Self {
            inside: SocketAddr::from(([10, 0, 0, 2], 21)).into(),
            outside: SocketAddr::new(std::net::Ipv4Addr::from_bits(n).into(), 40_000).into(),
        }
    }
}

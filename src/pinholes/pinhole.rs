//! What a pinhole is: the permission for one announced data connection, or, under TLS, for any
//! number of them to a range of ports.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use crate::engine::Tuple;
use crate::engine::hash_ends;

/// The permission for one data connection.
///
/// With X the endpoint that announced an address to its peer Y, and the control connection's
/// conntrack tuples `tx` (X's packets) and `ty` (Y's packets):
/// `from = ty.src.ip`, `to = ty.dst.ip : public port`, `land = tx.src.ip : announced port`,
/// `as_source = tx.dst.ip` where this differs from `ty.src.ip`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pinhole {
    /// The only address that may connect (Y), as its packets arrive at the gateway.
    pub from: IpAddr,
    /// The address and port that Y connects to, as its packets arrive at the gateway.
    pub to: SocketAddr,
    /// Where the connection is delivered (X). Equal to `to` where nothing is translated.
    pub land: SocketAddr,
    /// The source address that X must see, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// The user's bits of the control connection's mark (0: none). A data connection without a mark
    /// of its own takes them over, so that it is routed like the control connection.
    pub mark: u32,
}

impl Pinhole {
    /// The addresses and port by which the kernel matches the data connection.
    #[must_use]
    pub fn key(&self) -> PinholeKey {
        PinholeKey {
            from: self.from,
            to: self.to,
        }
    }
}

/// What identifies a pinhole in the kernel. No two are open with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinholeKey {
    /// The peer's address.
    pub from: IpAddr,
    /// The address and port the peer connects to.
    pub to: SocketAddr,
}

impl Hash for PinholeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_ends(SocketAddr::new(self.from, 0), self.to, state);
    }
}

impl PinholeKey {
    /// That of the pinhole that a connection with this original direction comes through.
    #[must_use]
    pub fn of(original: Tuple) -> Self {
        Self {
            from: original.src.ip(),
            to: original.dst,
        }
    }
}

/// The permission for any number of data connections to a range of ports, the same on both sides.
/// It takes the place of pinholes where the announcements can't be read (TLS).
///
/// The ports are the same for all: [`TlsRange::ports`](super::TlsRange::ports).
///
/// `from`, `to`, `land` and `as_source` are as in [`Pinhole`], with the server as X.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeHole {
    /// The only address that may connect, as its packets arrive at the gateway.
    pub from: IpAddr,
    /// The address that it connects to, as its packets arrive at the gateway.
    pub to: IpAddr,
    /// Where the connections are delivered; their ports stay. Equal to `to` where nothing is
    /// translated.
    pub land: IpAddr,
    /// The source address that the server must see, where it isn't `from`.
    pub as_source: Option<IpAddr>,
}

impl RangeHole {
    /// The addresses by which the kernel matches the data connections.
    #[must_use]
    pub fn key(&self) -> RangeKey {
        RangeKey {
            from: self.from,
            to: self.to,
        }
    }
}

/// What identifies a [`RangeHole`] in the kernel. No two are open with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeKey {
    /// The client's address.
    pub from: IpAddr,
    /// The address that it connects to.
    pub to: IpAddr,
}

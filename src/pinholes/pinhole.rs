//! What a pinhole is: the permission for one announced data connection.

use std::net::{IpAddr, SocketAddr};

/// A hole for one data connection.
///
/// With X the endpoint that announced an address to its peer Y, and the control connection's
/// conntrack tuples `tx` (X's packets) and `ty` (Y's packets):
/// `from = ty.src.ip`, `to = ty.dst.ip : public port`, `land = tx.src.ip : announced port`,
/// `as_source = tx.dst.ip` where this differs from `ty.src.ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinhole {
    /// The only address that may connect (Y), as its packets arrive at the gateway.
    pub from: IpAddr,
    /// The address and port that Y connects to, as its packets arrive at the gateway.
    pub to: SocketAddr,
    /// Where the connection is delivered (X). Equal to `to` where nothing is translated.
    pub land: SocketAddr,
    /// The source address that X must see, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// The user's bits of the control connection's mark, 0 if there are none: the data connection
    /// takes them over if it has no mark of its own, so that it leaves by the same path.
    pub mark: u32,
}

impl Pinhole {
    /// What packets of the data connection are matched by.
    #[must_use]
    pub fn key(&self) -> PinholeKey {
        PinholeKey {
            from: self.from,
            to: self.to,
        }
    }
}

/// What identifies a pinhole in the kernel: at most one hole has the same key at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinholeKey {
    /// The peer's address.
    pub from: IpAddr,
    /// The address and port the peer connects to.
    pub to: SocketAddr,
}

/// A hole for any number of data connections to a range of ports, the same on both sides: what
/// replaces pinholes where the announcements can't be read (TLS). The range itself is the
/// backend's.
///
/// `from`, `to`, `land` and `as_source` are as in [`Pinhole`], with the server as X.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeHole {
    /// The only address that may connect, as its packets arrive at the gateway.
    pub from: IpAddr,
    /// The address that it connects to, as its packets arrive at the gateway.
    pub to: IpAddr,
    /// Where the connections are delivered, under the ports that they were made to. Equal to `to`
    /// where nothing is translated.
    pub land: IpAddr,
    /// The source address that the server must see, where it isn't `from`.
    pub as_source: Option<IpAddr>,
}

impl RangeHole {
    /// What packets are matched by, besides their port.
    #[must_use]
    pub fn key(&self) -> RangeKey {
        RangeKey {
            from: self.from,
            to: self.to,
        }
    }
}

/// What identifies a [`RangeHole`] in the kernel: at most one has the same key at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeKey {
    /// The client's address.
    pub from: IpAddr,
    /// The address that it connects to.
    pub to: IpAddr,
}

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
}

impl Pinhole {
    /// What packets of the data connection are matched by.
    #[must_use]
    pub fn key(&self) -> Key {
        Key {
            from: self.from,
            to: self.to,
        }
    }
}

/// What identifies a pinhole in the kernel: at most one hole has the same key at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The peer's address.
    pub from: IpAddr,
    /// The address and port the peer connects to.
    pub to: SocketAddr,
}

//! A control connection as connection tracking and NAT see it: what the
//! [`Gateway`](super::gateway::Gateway) answers.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::hash::hash_ends;

/// One direction of a connection, as its packets look on the side where they enter the gateway.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Tuple {
    /// Where packets of this direction come from (before any source NAT).
    pub src: SocketAddr,
    /// Where packets of this direction are sent to (before any destination NAT).
    pub dst: SocketAddr,
}

impl Hash for Tuple {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_ends(self.src, self.dst, state);
    }
}

impl Tuple {
    /// The one before all others.
    pub const FIRST: Self = {
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            src: nobody,
            dst: nobody,
        }
    };
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

//! The engine's settings.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::endpoints::Endpoints;
use crate::ftp::nat64::Prefix;
use crate::ftp::policy::Policy;
use crate::stream::BufferLimits;

/// The engine's settings. Each limit that is reached is counted in [`Stats`](super::Stats).
#[derive(Clone, Debug)]
pub struct Config {
    /// What FTP sessions may do.
    pub policy: Arc<Policy>,
    /// Addresses to announce instead of what conntrack says, for NAT that another machine does.
    pub advertise: Vec<Advertise>,
    /// Whether announcements are rewritten such that their line keeps its length, wherever that can be
    /// had (default yes): see [`crate::ftp::fit`].
    pub keep_length: bool,
    /// The bits of a control connection's mark that say what its numbers are like (default: none, so
    /// no connection that is under way is joined).
    pub marks: Option<Marks>,
    /// Buffers of one direction of a control connection.
    pub limits: BufferLimits,
    /// How many engines share the traffic (default 1). Their session numbers interleave.
    pub workers: u16,
    /// Control connections per worker (default 65,536), closed ones that linger included. More pass
    /// unmodified.
    pub max_flows: usize,
    /// Bytes of replies in flight to a client, for each control connection (default 1 MiB). A long
    /// listing over a slow path (`STAT`, RFC 959 §4.1.3) has a whole window in flight. Once half of
    /// `max_buffered` is taken, [`BufferLimits::unacked`] is the limit. The limit is never less than that.
    pub long_reply: usize,
    /// Bytes in all buffers of a worker together (default 64 MiB).
    pub max_buffered: usize,
    /// How long a control connection may be without a packet before it is forgotten (default 5
    /// days, as `nf_conntrack_tcp_timeout_established`).
    pub idle: Duration,
    /// How long a closed connection's numbers are kept for retransmissions, where they differ on the two
    /// sides (default 60 s; two seconds at most where they don't).
    pub linger: Duration,
    /// How long a SYN may wait for its SYN-ACK (default 60 s). When the table is full, a connection
    /// without a login that was silent for so long is evicted.
    pub half_open: Duration,
    /// How long bytes may wait for the rest of an address (default 60 s). Then a reply passes as it
    /// is, and a command is refused.
    pub hold: Duration,
    /// Whether a client reaches a range of its server's ports while the session is under TLS. The
    /// gateway knows the range. Default: no.
    pub tls_range: bool,
    /// Ports of servers, as the inside sees them (default: none is known). Some servers make data connections
    /// *from* such a port: a connection from one of them to a port that is none passes unread.
    pub control_ports: Vec<u16>,
    /// Ports of servers that are spoken to under TLS from the first byte (implicit FTPS), as the
    /// inside sees them. Default: none.
    pub implicit_ports: Vec<u16>,
    /// Networks whose connections pass unread, whichever end is in them, as the inside sees it
    /// (default: none). What is followed already, or has a record, is followed to its end.
    pub bypass: Vec<IpNet>,
    /// Prefixes by which a translator shows IPv4-only servers to IPv6-only clients (default: none).
    pub nat64: Vec<Prefix>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Arc::default(),
            advertise: Vec::new(),
            keep_length: true,
            marks: None,
            limits: BufferLimits::default(),
            workers: 1,
            max_flows: 65_536,
            long_reply: 1 << 20,
            max_buffered: 64 << 20,
            idle: Duration::from_secs(5 * 24 * 3600),
            linger: Duration::from_secs(60),
            half_open: Duration::from_secs(60),
            hold: Duration::from_secs(60),
            tls_range: false,
            control_ports: Vec::new(),
            implicit_ports: Vec::new(),
            bypass: Vec::new(),
            nat64: Vec::new(),
        }
    }
}

/// What the numbers of a control connection are like, as its mark says to whoever sees the
/// connection in its middle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// The same on both sides, and nobody follows it: it may pass unread.
    #[default]
    Unfollowed,
    /// The same on both sides: anybody may join it, and follow it from there on.
    Even,
    /// They differ. Only who knows by how much can go on with it.
    Uneven,
}

/// The two bits for that; each of them is one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// [`Standing::Even`].
    pub even: u32,
    /// [`Standing::Uneven`].
    pub uneven: u32,
}

impl Marks {
    /// Both bits.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.even | self.uneven
    }

    /// The bits that say so.
    #[must_use]
    pub const fn bits(self, standing: Standing) -> u32 {
        match standing {
            Standing::Unfollowed => 0,
            Standing::Even => self.even,
            Standing::Uneven => self.uneven,
        }
    }

    /// What a connection mark says. Both bits are set by nobody; then the stricter one counts.
    #[must_use]
    pub const fn standing(self, mark: u32) -> Standing {
        if mark & self.uneven != 0 {
            Standing::Uneven
        } else if mark & self.even != 0 {
            Standing::Even
        } else {
            Standing::Unfollowed
        }
    }
}

/// One `--advertise [INSIDE=]PUBLIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The endpoint it is for; `None`: every one of the same address family.
    pub inside: Option<IpAddr>,
    /// The address its peers are told.
    pub public: IpAddr,
}

impl Config {
    /// How many other names of connections are remembered.
    pub(super) fn max_names(&self) -> usize {
        self.max_flows.saturating_mul(2)
    }

    /// Whether a connection is one that a server makes from its control port: Pure-FTPd takes that where its
    /// port 20 isn't free. What it carries is a file.
    pub(super) fn is_data(&self, client: SocketAddr, server: SocketAddr) -> bool {
        let is_control = |end: SocketAddr| self.control_ports.contains(&end.port());
        is_control(client) && !is_control(server)
    }

    /// The network of [`bypass`](Self::bypass) that one of these ends is in.
    pub(super) fn bypassed(&self, ends: &Endpoints) -> Option<IpNet> {
        let ips = [ends.inside().ip(), ends.outside().ip()];
        let has = |net: &&IpNet| ips.iter().any(|ip| net.contains(ip));
        self.bypass.iter().find(has).copied()
    }

    /// The address to announce for `inside`, if one is configured.
    #[must_use]
    pub fn advertised(&self, inside: IpAddr) -> Option<IpAddr> {
        let family = |a: &&Advertise| a.public.is_ipv4() == inside.is_ipv4();
        let named = self
            .advertise
            .iter()
            .filter(family)
            .find(|a| a.inside == Some(inside));
        named
            .or_else(|| {
                self.advertise
                    .iter()
                    .filter(family)
                    .find(|a| a.inside.is_none())
            })
            .map(|a| a.public)
    }
}

//! The kernel's connection tracking, over ctnetlink: entries of TCP connections, and their events.
//!
//! [`Conntrack`] looks entries up and deletes them. [`Events`] reports new and deleted ones.

mod message;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use self::message::{parse_bytes, parse_entry, parse_event};
use crate::engine::{Entry, Tuple};
use crate::net::{Family, Mark};
use crate::netlink::codec::Message;
use crate::netlink::socket::Socket;

/// `NFNLGRP_CONNTRACK_NEW` (1) and `NFNLGRP_CONNTRACK_DESTROY` (3) as bits.
const GROUPS: u32 = 1 | 1 << 2;
/// The most datagrams that one [`Events::read`] takes, so that it ends under any load.
const READ_AT_ONCE: usize = 65_536;
/// Receive buffer of [`Events`], in bytes: about 10,000 events.
const EVENT_BUFFER: usize = 8 * 1024 * 1024;

/// `IPS_SEEN_REPLY`: the other end has answered.
pub const SEEN_REPLY: u32 = 1 << 1;
/// `IPS_ASSURED`: both ends have completed the handshake.
pub const ASSURED: u32 = 1 << 2;

/// An event of a TCP connection's entry.
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
    /// The entry is deleted: some time after the connection was closed, or was idle for long.
    Destroy {
        /// The connection.
        entry: Entry,
        /// `CTA_ID`, as in the event of its start.
        id: u32,
        /// Bytes with IP headers of both directions, where `net.netfilter.nf_conntrack_acct` is on.
        bytes: Option<Bytes>,
        /// How long it existed, in the kernel's nanoseconds, where
        /// `net.netfilter.nf_conntrack_timestamp` is on.
        lifetime: Option<Duration>,
        /// Its state when it was deleted, if the kernel tells (Linux 5.12).
        state: Option<TcpState>,
        /// `IPS_*` bits.
        status: u32,
    },
}

/// `enum tcp_conntrack`: the state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState(pub u8);

impl TcpState {
    /// Both ends have agreed on the connection, and neither has begun to end it.
    pub const ESTABLISHED: Self = Self(3);

    /// Both ends have said that they send no more (`TIME_WAIT`), or one has reset it (`CLOSE`).
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self.0, 7 | 8)
    }

    /// One end has said that it sends no more (`FIN_WAIT`, `CLOSE_WAIT`, `LAST_ACK`).
    #[must_use]
    pub const fn is_ending(self) -> bool {
        matches!(self.0, 4..=6)
    }

    /// It was reset (`CLOSE`).
    #[must_use]
    pub const fn is_reset(self) -> bool {
        self.0 == 8
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its state, if the kernel tells.
    pub state: Option<TcpState>,
    /// `IPS_*` bits.
    pub status: u32,
    /// Bytes with IP headers of both directions, where `net.netfilter.nf_conntrack_acct` is on.
    pub bytes: Option<Bytes>,
}

impl Progress {
    /// Whether both ends were there. Yes if that can't be told.
    #[must_use]
    pub fn was_established(state: Option<TcpState>, status: u32) -> bool {
        let attempt = |state: TcpState| matches!(state.0, 1 | 2 | 8 | 9);
        status & ASSURED != 0 || !state.is_some_and(attempt)
    }
}

/// How long the entry of a connection is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The state that the connection is in.
    pub state: TcpState,
    /// The time left, if nothing comes (`CTA_TIMEOUT`), to the second.
    pub left: Duration,
}

/// How long conntrack keeps entries of connections that end: `nf_conntrack_tcp_timeout_*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeouts(Vec<(TcpState, Duration)>);

impl Timeouts {
    /// Reads the sysctls of the calling thread's network namespace.
    #[must_use]
    pub fn read() -> Self {
        let ending = [
            (4, "fin_wait"),
            (5, "close_wait"),
            (6, "last_ack"),
            (7, "time_wait"),
            (8, "close"),
        ];
        let timeouts = ending.into_iter().filter_map(|(state, name)| {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}");
            let seconds = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
            Some((TcpState(state), Duration::from_secs(seconds)))
        });
        timeouts.collect()
    }

    /// How long the entry of a connection in this state is kept. `None` if the connection hadn't
    /// begun to end.
    #[must_use]
    pub fn after(&self, state: TcpState) -> Option<Duration> {
        let (_, timeout) = self.0.iter().find(|(ending, _)| *ending == state)?;
        Some(*timeout)
    }
}

impl FromIterator<(TcpState, Duration)> for Timeouts {
    fn from_iter<I: IntoIterator<Item = (TcpState, Duration)>>(timeouts: I) -> Self {
        Self(timeouts.into_iter().collect())
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

/// Whether [`Events::read`] gave all events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Nothing is missing.
    Complete,
    /// Events were lost (the receive buffer was full): compare with [`Conntrack::marked`].
    Missed,
}

/// Looks up entries in the network namespace in which it was opened.
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

    /// Sets the bits in `mask` of the mark of the connection that has a direction from `src` to `dst`
    /// to those in `bits`; false if there is none.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn set_mark(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        bits: u32,
        mask: u32,
    ) -> io::Result<bool> {
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let change = message::change_mark(src, dst, bits, mask);
        match self.socket.change(&change) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
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
        match self.socket.get(&message::ask(src, dst), read) {
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

    /// How far the connection with this direction has come; `None` if there is none.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn progress(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Progress>> {
        self.find(src, dst, message::parse_progress)
    }

    /// All TCP connections that carry the mark.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn marked(&mut self, mark: Mark) -> io::Result<Vec<Entry>> {
        self.socket.dump(&message::ask_marked(mark), |message| {
            parse_entry(message).filter(|entry| mark.is_in(entry.mark))
        })
    }

    /// The same, each with its state and the time that its entry is still kept for, if both are known.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn marked_with_state(&mut self, mark: Mark) -> io::Result<Vec<(Entry, Option<Kept>)>> {
        self.socket.dump(&message::ask_marked(mark), |message| {
            let entry = parse_entry(message).filter(|entry| mark.is_in(entry.mark))?;
            Some((entry, message::parse_kept(message)))
        })
    }

    /// All established TCP connections that a port answers, as its host sees it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn answered_by(&mut self, family: Family, port: u16) -> io::Result<Vec<Entry>> {
        let request = message::ask_answered_by(family, port);
        self.socket.dump(&request, |message| {
            let entry = parse_entry(message).filter(|entry| entry.reply.src.port() == port)?;
            let kept = message::parse_kept(message)?;
            (kept.state == TcpState::ESTABLISHED).then_some(entry)
        })
    }

    /// All established TCP connections with this port of the client's, to this server as the client
    /// dials it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn with_client_port(&mut self, client: u16, server: SocketAddr) -> io::Result<Vec<Entry>> {
        let request = message::ask_with_client_port(client, server);
        self.socket.dump(&request, |message| {
            let entry = parse_entry(message)?;
            let is = entry.original.dst == server && entry.original.src.port() == client;
            let kept = message::parse_kept(message)?;
            (is && kept.state == TcpState::ESTABLISHED).then_some(entry)
        })
    }

    /// Deletes the entries of connection attempts from `from` to `to` that nobody has answered and
    /// that don't carry the mark. Returns how many there were.
    ///
    /// A SYN that came before its pinhole was open wasn't translated. While its entry exists (two
    /// minutes), its retransmissions, and later attempts from the same port, aren't translated
    /// either, and so never reach the pinhole. Walks through all of conntrack's table.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget_unanswered(
        &mut self,
        from: IpAddr,
        to: SocketAddr,
        mark: Mark,
    ) -> io::Result<usize> {
        if from.is_ipv4() != to.is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let attempts = self
            .socket
            .dump(&message::ask_attempts(from, to), |message| {
                message::parse_attempt(message, from, to, mark)
            })?;
        let mut forgotten = 0;
        for (tuple, id) in attempts {
            match self.socket.change(&message::forget(tuple, id)) {
                Ok(()) => forgotten += 1,
                // The entry is gone already.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}

/// Events of TCP connections that carry a mark, and the end of others that are watched.
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
        let events = Self {
            socket: Socket::subscribe(GROUPS, EVENT_BUFFER)?,
            mark,
            watched: HashSet::new(),
        };
        events.filter();
        Ok(events)
    }

    /// Has the kernel keep the events of everybody else's connections to itself: on a busy gateway,
    /// these are nearly all.
    fn filter(&self) {
        let filter = message::filter(self.mark, !self.watched.is_empty());
        if let Err(error) = self.socket.filter(&filter) {
            log::info!("conntrack's events aren't filtered in the kernel: {error}");
        }
    }

    /// Begins or ends to report the end of the connection with this original direction.
    pub fn watch(&mut self, original: Tuple, watched: bool) {
        let none = self.watched.is_empty();
        if watched {
            self.watched.insert(original);
        } else {
            self.watched.remove(&original);
        }
        if self.watched.is_empty() != none {
            self.filter();
        }
    }

    /// Whether the kernel reports events at all here (`net.netfilter.nf_conntrack_events`).
    ///
    /// `None` if that can't be found out.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_different_families_are_no_question() {
        if let Ok(mut conntrack) = Conntrack::open() {
            let error = conntrack
                .lookup(
                    "192.0.2.1:1".parse().unwrap(),
                    "[2001:db8::1]:1".parse().unwrap(),
                )
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}

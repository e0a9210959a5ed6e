//! Notices when an address comes to this host or leaves it, as the addresses do that two gateways
//! share.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::events::What;
use crate::engine::Entry;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x10 | 0x100;
/// Room for any message: what it says isn't read.
const DATAGRAM: usize = 8192;

/// For how long packets may still come that were sent before their senders heard of an address' move.
const LATE: Duration = Duration::from_secs(10);

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The addresses that have come.
    pub came: BTreeSet<IpAddr>,
    /// Those that have gone.
    pub went: BTreeSet<IpAddr>,
}

impl Change {
    /// As a record.
    pub(super) fn what(&self) -> What {
        What::Addresses {
            came: self.came.iter().copied().collect(),
            went: self.went.iter().copied().collect(),
        }
    }
}

/// The addresses that have gone a moment ago, and aren't back.
#[derive(Debug, Default)]
pub(super) struct Departed(Mutex<HashMap<IpAddr, Instant>>);

impl Departed {
    pub(super) fn note(&self, Change { came, went }: Change) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|address, since| !came.contains(address) && since.elapsed() < LATE);
        let now = Instant::now();
        all.extend(went.into_iter().map(|address| (address, now)));
    }

    /// Whether a connection goes through one of them.
    pub(super) fn has(
        &self,
        Entry {
            original, reply, ..
        }: &Entry,
    ) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |address: IpAddr| all.get(&address).is_some_and(|at| at.elapsed() < LATE);
        // Where it is translated, its packets are addressed to the gateway.
        gone(original.dst.ip()) || gone(reply.dst.ip())
    }
}

/// The addresses of this host.
pub(super) struct Addresses {
    events: OwnedFd,
    known: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Those of now, in the calling thread's network namespace.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn watch() -> io::Result<Self> {
        let events = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        let known = own()?;
        Ok(Self { events, known })
    }

    /// Waits until there is another address, or one less, for `limit` at most (`None`: for ever). The
    /// renewal of one is nothing new.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<Change>> {
        let begun = Instant::now();
        loop {
            let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
            let timeout = left.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from);
            let mut events = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut events, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            }
            match recv(
                self.events.as_raw_fd(),
                &mut [0; DATAGRAM],
                MsgFlags::empty(),
            ) {
                // Of several lost events, the addresses tell as much.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let now = own()?;
            if now != self.known {
                let change = Change {
                    came: &now - &self.known,
                    went: &self.known - &now,
                };
                self.known = now;
                return Ok(Some(change));
            }
        }
    }
}

fn own() -> io::Result<BTreeSet<IpAddr>> {
    let all = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    // These come by themselves, and belong to one host only.
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    Ok(all.filter(|address| !link_local(address)).collect())
}

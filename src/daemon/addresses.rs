//! Notices when an address comes to this host or leaves it, as the addresses do that two gateways
//! share.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x10 | 0x100;
/// Room for any message: what it says isn't read.
const DATAGRAM: usize = 8192;

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

    /// Waits until there is another address, or one less. The renewal of one is nothing new.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        loop {
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
                self.known = now;
                return Ok(());
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

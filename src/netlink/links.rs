//! The interfaces of this network namespace, as rtnetlink tells of them.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::codec::{self, Attrs, Builder, Messages};

/// `RTM_GETLINK` and `RTM_NEWLINK`.
const GET: u16 = 18;
const NEW: u16 = 16;
/// The size of `struct ifinfomsg`, which comes before the attributes.
const HEADER: usize = 16;
/// `IFLA_IFNAME`, `IFLA_MTU`, `IFLA_LINKINFO` and in it `IFLA_INFO_KIND`.
const NAME: u16 = 3;
const MTU: u16 = 4;
const INFO: u16 = 18;
const KIND: u16 = 1;
/// Room for one datagram: the kernel fills dumps up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// How long an answer is waited for, in seconds.
const PATIENCE: i64 = 3;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// The longest packet that it takes, in bytes.
    pub mtu: u32,
    /// What makes it: `veth`, `bridge`, `tun`, …; empty for hardware.
    pub kind: String,
}

/// All interfaces of the calling thread's network namespace.
///
/// # Errors
/// What the operating system says.
pub fn links() -> io::Result<Vec<Link>> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    let mut builder = Builder::new();
    builder.message(GET, codec::REQUEST | codec::DUMP, 1, 0, 0);
    let request = builder.finish().unwrap_or_default();
    let kernel = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
    let mut all = Vec::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in Messages::new(buffer.get(..len).unwrap_or_default()) {
            match (message.kind, message.errno()) {
                (codec::DONE, _) => return Ok(all),
                (_, Some(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                (NEW, _) => all.extend(read(message.payload)),
                _ => {}
            }
        }
        if len == 0 {
            return Ok(all);
        }
    }
}

fn read(payload: &[u8]) -> Option<Link> {
    let attrs = Attrs::new(payload.get(HEADER..)?);
    let info = attrs.find(INFO);
    let kind = info.and_then(|info| info.nested().find(KIND)?.text().map(str::to_owned));
    Some(Link {
        name: attrs.find(NAME)?.text()?.to_owned(),
        mtu: u32::from_ne_bytes(attrs.find(MTU)?.value.try_into().ok()?),
        kind: kind.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_there() {
        let links = links().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.mtu >= 1280, "{lo:?}");
    }

    #[test]
    fn what_is_cut_short_is_no_interface() {
        assert_eq!(read(&[0; 10]), None);
        assert_eq!(read(&[0; 40]), None);
    }
}

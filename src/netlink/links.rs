//! The interfaces of this network namespace, as rtnetlink tells of them.

use std::io;

use nix::sys::socket::SockProtocol;

use super::codec::{self, Attrs, Builder};
use super::dump::DumpSocket;

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
    let mut builder = Builder::new();
    builder.message(GET, codec::REQUEST | codec::DUMP, 1, 0, 0);
    let request = builder.finish().unwrap_or_default();
    let mut all = Vec::new();
    DumpSocket::open(SockProtocol::NetlinkRoute)?.dump(&request, |message| {
        if message.kind == NEW {
            all.extend(read(message.payload));
        }
    })?;
    Ok(all)
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

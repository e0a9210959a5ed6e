//! Dumps of netlink families other than netfilter's: one question, many messages.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, NetlinkAddr, SockProtocol, recv, sendto};

use super::codec::{self, Message, Messages};
use super::socket::{self, DATAGRAM};

/// A socket of the calling thread's network namespace that asks for dumps.
pub(super) struct DumpSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl DumpSocket {
    /// Opens one of this family.
    pub(super) fn open(family: SockProtocol) -> io::Result<Self> {
        let fd = socket::open(family, 0)?;
        let buffer = vec![0; DATAGRAM];
        Ok(Self { fd, buffer })
    }

    /// Sends a request for a dump, and has each message of it read.
    pub(super) fn dump(
        &mut self,
        request: &[u8],
        mut read: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let (fd, kernel) = (self.fd.as_raw_fd(), NetlinkAddr::new(0, 0));
        sendto(fd, request, &kernel, MsgFlags::empty())?;
        loop {
            let len = recv(fd, &mut self.buffer, MsgFlags::empty())?;
            for message in Messages::new(self.buffer.get(..len).unwrap_or_default()) {
                match (message.kind, message.errno()) {
                    (codec::DONE, None | Some(0)) => return Ok(()),
                    (_, Some(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                    _ => read(&message),
                }
            }
            if len == 0 {
                return Ok(());
            }
        }
    }
}

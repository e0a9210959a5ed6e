//! On which ports the processes of this network namespace listen, as `sock_diag` tells
//! (`linux/inet_diag.h`).
//!
//! `/proc/net/tcp` tells it as well, but the kernel then looks at every established connection, too, and at
//! those in TIME_WAIT, of all namespaces: a millisecond at least, and several on a busy machine.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::codec::{self, Messages};

/// `AF_INET`, `AF_INET6`
const V4: u8 = 2;
const V6: u8 = 10;
/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = 20;
/// `IPPROTO_TCP`
const TCP: u8 = 6;
/// The bit of `TCP_LISTEN` among the states that are asked for.
const LISTEN: u32 = 1 << 10;
/// The size of a message's header, and of `struct inet_diag_req_v2` behind it.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Room for one datagram: the kernel fills dumps up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;
/// How long an answer is waited for, in seconds.
const PATIENCE: i64 = 3;

/// The addresses and ports of all TCP sockets that listen in the calling thread's network namespace.
///
/// # Errors
/// `ENOENT` on a kernel without `tcp_diag`, and what the operating system says.
pub fn listeners() -> io::Result<HashSet<(IpAddr, u16)>> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    let mut all = HashSet::new();
    let mut buffer = vec![0; DATAGRAM];
    ask(&fd, V4, &mut buffer, &mut all)?;
    match ask(&fd, V6, &mut buffer, &mut all) {
        // Without IPv6, nobody listens there.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(all),
    }
}

/// Adds those of one family.
fn ask(
    fd: &OwnedFd,
    family: u8,
    buffer: &mut [u8],
    all: &mut HashSet<(IpAddr, u16)>,
) -> io::Result<()> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), &request(family), &kernel, MsgFlags::empty())?;
    loop {
        let len = recv(fd.as_raw_fd(), buffer, MsgFlags::empty())?;
        for message in Messages::new(buffer.get(..len).unwrap_or_default()) {
            match (message.kind, message.errno()) {
                (codec::DONE, _) => return ended(message.payload),
                (_, Some(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                (BY_FAMILY, _) => all.extend(read(message.payload)),
                _ => {}
            }
        }
        if len == 0 {
            return Ok(());
        }
    }
}

/// How a dump ended: without `tcp_diag`, it is one without sockets, and with an error.
fn ended(payload: &[u8]) -> io::Result<()> {
    let status = payload.first_chunk().map_or(0, |n| i32::from_ne_bytes(*n));
    match status {
        ..0 => Err(io::Error::from_raw_os_error(status.saturating_neg())),
        _ => Ok(()),
    }
}

/// A dump of the sockets that listen; their addresses don't matter, so they stay zero.
fn request(family: u8) -> Vec<u8> {
    let length = u32::try_from(HEADER + REQUEST).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&(codec::REQUEST | codec::DUMP).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, TCP, 0, 0]);
    bytes.extend_from_slice(&LISTEN.to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// The address and port of a `struct inet_diag_msg`. An IPv4 address in an IPv6 socket is one of IPv4.
fn read(payload: &[u8]) -> Option<(IpAddr, u16)> {
    let port = u16::from_be_bytes(payload.get(4..6)?.try_into().ok()?);
    let address: [u8; 16] = payload.get(8..24)?.try_into().ok()?;
    let [a, b, c, d, ..] = address;
    let ip = match payload.first() {
        Some(&V4) => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(address).to_canonical(),
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listeners_of_both_families_are_found() {
        let wanted = ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"];
        // Not where there is no IPv6.
        let sockets = wanted.map(|at| TcpListener::bind(at).ok());
        // Not where the kernel has no tcp_diag.
        let Ok(all) = listeners() else { return };
        for socket in sockets.iter().flatten() {
            let at = socket.local_addr().unwrap();
            let one = (at.ip().to_canonical(), at.port());
            assert!(all.contains(&one), "{one:?}");
        }
    }

    #[test]
    fn connections_are_no_listeners() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let at = client.local_addr().unwrap();
        let Ok(all) = listeners() else { return };
        assert!(!all.contains(&(at.ip(), at.port())));
    }

    #[test]
    fn a_kernel_without_the_module_is_told_from_one_without_listeners() {
        assert!(ended(&[]).is_ok() && ended(&0i32.to_ne_bytes()).is_ok());
        let error = ended(&(-2i32).to_ne_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_cut_short_is_no_socket() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[2; 23]), None);
        let mut one = [0; 72];
        one[..12].copy_from_slice(&[2, 10, 0, 0, 0, 21, 0, 0, 192, 0, 2, 1]);
        assert_eq!(read(&one), Some(([192, 0, 2, 1].into(), 21)));
    }
}

//! On which ports the processes of this network namespace listen, as `sock_diag` tells
//! (`linux/inet_diag.h`).
//!
//! `/proc/net/tcp` tells it as well, but the kernel then looks at every established connection, too, and at
//! those in TIME_WAIT, of all namespaces: a millisecond at least, and several on a busy machine.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::sys::socket::SockProtocol;

use super::codec;
use super::dump::DumpSocket;

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

/// The addresses and ports of all TCP sockets that listen in the calling thread's network namespace.
///
/// # Errors
/// `ENOENT` on a kernel without `tcp_diag`, and what the operating system says.
pub fn listeners() -> io::Result<HashSet<(IpAddr, u16)>> {
    let mut socket = DumpSocket::open(SockProtocol::NetlinkSockDiag)?;
    let mut all = HashSet::new();
    let mut ask = |family| {
        socket.dump(&request(family), |message| {
            if message.kind == BY_FAMILY {
                all.extend(read(message.payload));
            }
        })
    };
    ask(V4)?;
    match ask(V6) {
        // Without IPv6, nobody listens there.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(all),
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
    fn what_is_cut_short_is_no_socket() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[2; 23]), None);
        let mut one = [0; 72];
        one[..12].copy_from_slice(&[2, 10, 0, 0, 0, 21, 0, 0, 192, 0, 2, 1]);
        assert_eq!(read(&one), Some(([192, 0, 2, 1].into(), 21)));
    }
}

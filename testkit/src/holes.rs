//! Pinholes, and connections through them, for the tests of the two backends.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ftpalg::pinholes::Pinhole;

use crate::lab::net::Net;
use crate::lab::topology::{Topology, host, link, router};

/// How long a new network may take until its hosts reach each other.
const REACHED: Duration = Duration::from_secs(10);

/// Client `c` (203.0.113.10, 203.0.113.11) — gateway `g`, with `out` and `in` — server `s` (10.0.0.2);
/// IPv6 alike.
pub fn network() -> Net {
    let hosts = vec![
        host(
            "c",
            &["default via 203.0.113.1", "default via 2001:db8:1::1"],
        ),
        router("g", &[]),
        host("s", &["default via 10.0.0.1", "default via fd00::1"]),
    ];
    let client = ["203.0.113.10/24", "203.0.113.11/24", "2001:db8:1::10/64"];
    let links = vec![
        link(
            ("c", "e0", &client),
            ("g", "out", &["203.0.113.1/24", "2001:db8:1::1/64"]),
        ),
        link(
            ("s", "e0", &["10.0.0.2/24", "fd00::2/64"]),
            ("g", "in", &["10.0.0.1/24", "fd00::1/64"]),
        ),
    ];
    let net = Net::new(&Topology::bare(hosts, links));
    // For up to a second after an interface came up, nobody answers for its IPv6 addresses, and a SYN
    // waits at its sender. One of an attempt that was given up would go out later, and use up a pinhole
    // that was opened meanwhile.
    for (from, to) in [
        ("c", ["203.0.113.1:9", "[2001:db8:1::1]:9"]),
        ("s", ["10.0.0.1:9", "[fd00::1]:9"]),
    ] {
        for to in to.map(|to| to.parse::<SocketAddr>().unwrap()) {
            let tried = net.within(from, || TcpStream::connect_timeout(&to, REACHED));
            let error = tried.expect_err("nobody listens").kind();
            assert_eq!(error, ErrorKind::ConnectionRefused, "{from} reaches {to}");
        }
    }
    net
}

/// The peer, what it dials, where that lands, and from which source: for each IP version.
pub const CASES: [(&str, &str, &str, &str); 2] = [
    (
        "203.0.113.10",
        "203.0.113.1:50001",
        "10.0.0.2:40001",
        "10.0.0.1",
    ),
    (
        "2001:db8:1::10",
        "[2001:db8:1::1]:50001",
        "[fd00::2]:40001",
        "fd00::1",
    ),
];

/// A pinhole for that peer, without a mark.
pub fn hole(from: &str, to: &str, land: &str, as_source: Option<&str>) -> Pinhole {
    Pinhole {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        land: land.parse().unwrap(),
        as_source: as_source.map(|source| source.parse().unwrap()),
        mark: 0,
    }
}

/// Sends a word each way.
pub fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    const LIMIT: Duration = Duration::from_secs(60);
    let mut word = [0; 4];
    client.set_read_timeout(Some(LIMIT)).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

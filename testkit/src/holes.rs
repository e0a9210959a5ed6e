//! Pinholes, and connections through them, for the tests of the two backends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use ftpalg::pinholes::Pinhole;

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

pub fn hole(from: &str, to: &str, land: &str, as_source: Option<&str>) -> Pinhole {
    Pinhole {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        land: land.parse().unwrap(),
        as_source: as_source.map(|source| source.parse().unwrap()),
        mark: 0,
    }
}

/// Listens in the namespace of the calling thread. A listener that was closed may still be held by a
/// process that another thread has forked.
pub fn bind(at: &str) -> TcpListener {
    let pause = || std::thread::sleep(Duration::from_millis(5));
    let retry = || (0..1000).find_map(|_| TcpListener::bind(at).map_err(|_| pause()).ok());
    retry().unwrap()
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

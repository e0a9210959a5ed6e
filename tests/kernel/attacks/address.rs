//! Addresses that two readers read in two ways: odd numbers, line ends, Telnet commands.

use std::net::Ipv4Addr;

use super::arena::{Arena, Family, Helper, NEIGHBOUR, ONE, OUTSIDER, Result, USER, attack, falls};
use testkit::lab::topology::Topology;

/// Services that the ways to read the lines would lead to.
const VICTIMS: [(Ipv4Addr, u16); 6] = [
    (USER, 22),
    (USER, 6000),
    (NEIGHBOUR, 22),
    (NEIGHBOUR, 7777),
    (USER, 1022),
    (USER, 258),
];

/// A program inside says this to a server outside; then the server tries the services.
fn said(arena: &Arena, line: &[u8]) -> Result {
    let services = VICTIMS.map(|(ip, port)| arena.service(ip, port));
    let mut pair = arena.session()?;
    std::io::Write::write_all(&mut pair.client.stream, &[line, b"\r\n"].concat())?;
    let mut read = Vec::new();
    // It is one line or two, with odd ends.
    std::io::Write::write_all(&mut pair.client.stream, b"NOOP\r\nLIST\r\n")?;
    loop {
        let mut part = [0; 512];
        let n = std::io::Read::read(&mut pair.server.stream, &mut part)?;
        read.extend_from_slice(&part[..n]);
        if n == 0 || read.ends_with(b"LIST\r\n") {
            break;
        }
    }
    pair.say("200 fine\r\n200 fine\r\n150 here it comes\r\n")?;
    for (service, (ip, port)) in services.into_iter().zip(VICTIMS) {
        if arena.reaches(OUTSIDER, port, &service?)? {
            let read = read.escape_ascii();
            return Ok(falls(true, &format!("{ip}:{port} reached ({read})")));
        }
    }
    Ok(falls(false, ""))
}

macro_rules! attacks {
    ($($name:literal, $helper:ident, $line:expr;)*) => {
        vec![$(attack($name, Helper::$helper, |arena| said(arena, $line)),)*]
    };
}

#[test]
fn an_address_that_two_read_in_two_ways() {
    Family {
        name: "Tricks inside the address",
        topology: Topology::masqueraded_client(),
        drop_invalid: true,
        gates: ONE,
        attacks: attacks! {
            "an octet of 256 + 10", Falls, b"PORT 266,0,0,2,0,22";
            "a port's half of 256 + 22", Any, b"PORT 10,0,0,2,0,278";
            "a port's half over 255", Falls, b"PORT 10,0,0,2,256,22";
            "EPRT, a port over 65535", Falls, b"EPRT |1|10.0.0.2|65558|";
            "EPRT, a port of 2^32 + 22", Falls, b"EPRT |1|10.0.0.2|4294967318|";
            "EPRT, a negative port", Any, b"EPRT |1|10.0.0.2|-65514|";
            "leading zeros", Falls, b"PORT 010,000,000,002,000,022";
            "leading zeros in EPRT", Falls, b"EPRT |1|010.0.0.2|0022|";
            "many leading zeros", Falls, b"PORT 0000010,0,0,2,0,00022";
            "octal", Any, b"PORT 012,0,0,3,036,0141";
            "hexadecimal", Any, b"PORT 0xa,0,0,3,0x1e,0x61";
            "blanks between", Any, b"PORT 10, 0, 0, 2, 0, 22";
            "a tab before", Any, b"PORT\t10,0,0,2,0,22";
            "more than six numbers", Any, b"PORT 10,0,0,2,0,22,0,22";
            "a bare CR in the middle", Falls, b"PORT 10,0,0,2,0,22\rPORT 10,0,0,2,200,1";
            "a bare CR before a number", Any, b"PORT 10,0,0,2,200,\r1,0,22";
            "a bare LF in the middle", Any, b"PORT 10,0,0,2,0,22\nPORT 10,0,0,3,30,97";
            "NUL in the number", Any, b"PORT 10,0,0,2,0,2\x002";
            "NUL behind", Any, b"PORT 10,0,0,2,0,22\x00,7";
            "IAC NOP in the number", Any, b"PORT 10,0,0,2,0,2\xff\xf12";
            "IAC NOP in the verb", Any, b"PO\xff\xf1RT 10,0,0,2,0,22";
            "IAC DO before the verb", Any, b"\xff\xfd\x01PORT 10,0,0,2,0,22";
            "IAC erase character", Any, b"PORT 10,0,0,2,200,1\xff\xf722";
            "backspace", Any, b"PORT 10,0,0,2,200,1\x08\x08\x08\x080,22";
            "EPRT, IPv4 as family 2", Any, b"EPRT |2|10.0.0.2|22|";
            "EPRT, IPv6 as family 1", Any, b"EPRT |1|::ffff:10.0.0.2|22|";
            "EPRT, IPv4-mapped", Any, b"EPRT |2|::ffff:10.0.0.3|7777|";
            "EPRT, IPv4-mapped in hexadecimal", Any, b"EPRT |2|::ffff:a00:3|7777|";
            "EPRT with a zone", Any, b"EPRT |2|::ffff:10.0.0.3%1|7777|";
            "EPRT, the delimiter a digit", Any, b"EPRT 1110.0.0.21221";
            "EPRT, no family", Any, b"EPRT ||10.0.0.2|22|";
            "EPRT, no address", Any, b"EPRT |1||22|";
            "EPRT, something behind", Falls, b"EPRT |1|10.0.0.2|22|6000|";
            "in lower case", Falls, b"port 10,0,0,2,0,22";
            "two verbs", Any, b"PORT PORT 10,0,0,2,0,22";
            "a very long line", Any, &[b"PORT 10,0,0,2,0,22".as_slice(), &[b' '; 6000]].concat();
            "a very long line before it", Any,
                &[&[b'x'; 6000], b"\nPORT 10,0,0,2,0,22".as_slice()].concat();
            "very many zeros", Falls, &[b"PORT ".as_slice(), &[b'0'; 6000], b"10,0,0,2,0,22"].concat();
        },
    }
    .fight();
}

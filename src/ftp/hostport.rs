//! Reads and writes addresses and ports as FTP writes them.
//!
//! Reading is strict. What two implementations might read differently is no address here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::session::Form;

/// The result of looking for an address at the start of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan<T> {
    /// The first `len` bytes are an address.
    Found { len: usize, value: T },
    /// They may become one when more bytes follow.
    Partial,
    /// They are no address, and none begins within the first `len` bytes (≥ 1).
    No { len: usize },
}

impl<T> Scan<T> {
    /// The same result, with the value converted.
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Scan<U> {
        match self {
            Self::Found { len, value } => Scan::Found {
                len,
                value: f(value),
            },
            Self::Partial => Scan::Partial,
            Self::No { len } => Scan::No { len },
        }
    }
}

/// `h1,h2,h3,h4,p1,p2` (RFC 959 §4.1.2) at the start of `text`, which begins with a digit: six
/// decimal numbers up to 255 of at most three digits, then a byte that is neither digit nor comma.
/// Port 0 is none.
pub(super) fn scan_host_port(text: &[u8]) -> Scan<(Ipv4Addr, u16)> {
    let run = text
        .iter()
        .take_while(|b| b.is_ascii_digit() || **b == b',')
        .count();
    let ended = run < text.len();
    let mut numbers = [0u8; 6];
    let mut count = 0usize;
    let run_bytes = text.get(..run).unwrap_or_default();
    let mut parts = run_bytes.split(|b| *b == b',').enumerate().peekable();
    while let Some((at, part)) = parts.next() {
        count = at.saturating_add(1);
        // An empty last part: the number is still to come.
        let unfinished = part.is_empty() && !ended && at > 0 && parts.peek().is_none();
        match (numbers.get_mut(at), decimal(part, 255, 3)) {
            (Some(slot), Some(value)) => *slot = u8::try_from(value).unwrap_or(0),
            (Some(_), None) if unfinished => {}
            _ => return Scan::No { len: run.max(1) },
        }
    }
    if !ended {
        return Scan::Partial;
    }
    let [a, b, c, d, hi, lo] = numbers;
    let port = u16::from_be_bytes([hi, lo]);
    if count == 6 && port != 0 {
        Scan::Found {
            len: run,
            value: (Ipv4Addr::new(a, b, c, d), port),
        }
    } else {
        Scan::No { len: run.max(1) }
    }
}

/// `(<d><d><d>port<d>)` (RFC 2428 §3) at the start of `text`, which begins with `(`. The address
/// found is the part between the parentheses; its offset is 1.
pub(super) fn scan_extended_port(text: &[u8]) -> Scan<(u8, u16)> {
    let no = Scan::No { len: 1 };
    let Some(&delimiter) = text.get(1) else {
        return Scan::Partial;
    };
    if !is_delimiter(delimiter) {
        return no;
    }
    for at in 2..4 {
        match text.get(at) {
            None => return Scan::Partial,
            Some(b) if *b == delimiter => {}
            Some(_) => return no,
        }
    }
    let rest = text.get(4..).unwrap_or_default();
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits > 5 {
        return no;
    }
    let (Some(&close), after) = (rest.get(digits), rest.get(digits.saturating_add(1))) else {
        return Scan::Partial;
    };
    let port = rest.get(..digits).and_then(|text| decimal(text, 65_535, 5));
    match (port, after) {
        (Some(port), _) if port == 0 || close != delimiter => no,
        (None, _) => no,
        (Some(_), None) => Scan::Partial,
        (Some(port), Some(b')')) => Scan::Found {
            len: digits.saturating_add(4),
            value: (delimiter, u16::try_from(port).unwrap_or(0)),
        },
        (Some(_), Some(_)) => no,
    }
}

/// The whole argument of `PORT`.
pub(super) fn parse_host_port(argument: &[u8]) -> Option<(Ipv4Addr, u16)> {
    // The longest one has 23 bytes. The line end is the byte that ends the run.
    let mut text = [b'\r'; 24];
    text.get_mut(..argument.len())?.copy_from_slice(argument);
    match scan_host_port(&text) {
        Scan::Found { len, value } if len == argument.len() => Some(value),
        _ => None,
    }
}

/// The whole argument of `EPRT`: `<d>net-prt<d>net-addr<d>tcp-port<d>` (RFC 2428 §2).
pub(super) fn parse_extended(argument: &[u8]) -> Option<(u8, IpAddr, u16)> {
    let (&delimiter, rest) = argument.split_first()?;
    if !is_delimiter(delimiter) {
        return None;
    }
    let mut parts = rest.split(|b| *b == delimiter);
    let (protocol, address, port, end) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !end.is_empty() || parts.next().is_some() {
        return None;
    }
    let address: IpAddr = std::str::from_utf8(address).ok()?.parse().ok()?;
    let expected: &[u8] = if address.is_ipv4() { b"1" } else { b"2" };
    let port = decimal(port, 65_535, 5).filter(|port| *port != 0)?;
    (protocol == expected).then_some((delimiter, address, u16::try_from(port).ok()?))
}

/// Whether a lenient server might read an argument of `PORT` as an address although it isn't one.
/// Such are six numbers between commas, with characters around or behind them that `scanf`, `int()`
/// or `Number` ignore. No server accepts five numbers, a dot instead of a comma, or letters instead
/// of a number.
pub(super) fn may_be_host_port(argument: &[u8]) -> bool {
    let bare: Vec<u8> = without_noise(argument);
    let mut parts = bare.split(|b| *b == b',');
    let mut octets = [0u32; 6];
    for slot in &mut octets {
        let number = parts.next().unwrap_or_default();
        let digits = number.iter().take_while(|b| b.is_ascii_digit()).count();
        let Some(octet) = lenient(number.get(..digits).unwrap_or_default(), 255) else {
            return false;
        };
        *slot = octet;
    }
    let [_, _, _, _, high, low] = octets;
    (high, low) != (0, 0)
}

/// A text without what lenient servers ignore: Telnet commands, control characters, blanks, signs,
/// and underscores between digits.
fn without_noise(text: &[u8]) -> Vec<u8> {
    let mut bare = Vec::with_capacity(text.len());
    let mut at = 0usize;
    while let Some(byte) = text.get(at) {
        let skip = match text.get(at..).unwrap_or_default() {
            [255, 251..=254, _, ..] => 3,
            [255, _, ..] => 2,
            _ => 1,
        };
        let noise = byte.is_ascii_control() || matches!(byte, b' ' | b'+' | b'_' | b'"' | 255);
        if !noise {
            bare.push(*byte);
        }
        at = at.saturating_add(skip);
    }
    bare
}

/// The same as [`may_be_host_port`] for `EPRT`: an address and a port between delimiters.
pub(super) fn may_be_extended(argument: &[u8]) -> bool {
    let Some((delimiter, rest)) = argument.split_first() else {
        return false;
    };
    let mut parts = rest.split(|b| b == delimiter).skip(1);
    let address = parts.next().map(|part| String::from_utf8_lossy(part));
    let port = parts.next().map(<[u8]>::trim_ascii).unwrap_or_default();
    let digits = port.iter().take_while(|b| b.is_ascii_digit()).count();
    let port = lenient(port.get(..digits).unwrap_or_default(), 65_535);
    address.is_some_and(|text| text.trim().parse::<IpAddr>().is_ok())
        && port.is_some_and(|port| port != 0)
}

/// A decimal number, with any number of leading zeros.
fn lenient(digits: &[u8], max: u32) -> Option<u32> {
    let zeros = digits.iter().take_while(|b| **b == b'0').count();
    match digits.get(zeros..).unwrap_or_default() {
        [] if zeros > 0 => Some(0),
        rest => decimal(rest, max, 5),
    }
}

/// RFC 2428 §2: any ASCII character from 33 to 126. A digit would be ambiguous.
fn is_delimiter(byte: u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_digit()
}

fn decimal(text: &[u8], max: u32, digits: usize) -> Option<u32> {
    if text.is_empty() || text.len() > digits || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = text.iter().fold(0u32, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u32::from(digit.wrapping_sub(b'0')))
    });
    (value <= max).then_some(value)
}

/// Writes `addr` in the given form. [`Form::HostPort`] has room for IPv4 only, so callers must not
/// pass an IPv6 address with it.
#[must_use]
pub fn encode(form: Form, addr: SocketAddr) -> Vec<u8> {
    let port = addr.port();
    match form {
        Form::HostPort => {
            let [a, b, c, d] = match addr.ip() {
                IpAddr::V4(ip) => ip.octets(),
                IpAddr::V6(_) => [0; 4],
            };
            let [hi, lo] = port.to_be_bytes();
            host_port([a, b, c, d, hi, lo])
        }
        Form::Extended(delimiter) => {
            let d = char::from(delimiter);
            let protocol = if addr.is_ipv4() { 1 } else { 2 };
            format!("{d}{protocol}{d}{}{d}{port}{d}", addr.ip()).into_bytes()
        }
        Form::ExtendedPort(delimiter) => {
            let d = char::from(delimiter);
            format!("{d}{d}{d}{port}{d}").into_bytes()
        }
    }
}

/// The numbers of a [`Form::HostPort`]. `format!` would be a sixth of what a `227` costs.
fn host_port(numbers: [u8; 6]) -> Vec<u8> {
    let mut text = Vec::with_capacity("255,255,255,255,255,255".len());
    for (at, number) in numbers.into_iter().enumerate() {
        if at > 0 {
            text.push(b',');
        }
        text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_host_port() {
        for text in [
            "256,0,0,1,1,1",
            "1,2,3,4,0,0",
            "1,2,3,4,5",
            "1,2,3,4,5,6,7",
            "1,2,3,4,5,",
            "0001,2,3,4,5,6",
            "1,,2,3,4,5",
            "1,2,3,4,5,256",
        ] {
            assert_eq!(parse_host_port(text.as_bytes()), None, "{text}");
            assert!(
                matches!(
                    scan_host_port(format!("{text})").as_bytes()),
                    Scan::No { .. }
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn a_run_that_may_go_on_is_partial() {
        let whole = b"10,0,0,2,195,80";
        for n in 1..=whole.len() {
            assert_eq!(scan_host_port(&whole[..n]), Scan::Partial, "{n}");
        }
        assert!(matches!(
            scan_host_port(b"10,0,0,2,195,80)"),
            Scan::Found { len: 15, .. }
        ));
        assert!(matches!(scan_host_port(b"300"), Scan::No { .. }));
        // A number in the middle that is missing never comes.
        assert!(matches!(scan_host_port(b"100,,0,"), Scan::No { .. }));
        assert!(matches!(scan_host_port(b"1,2,3,4,5,6,"), Scan::No { .. }));
    }

    #[test]
    fn extended_port_at_every_cut() {
        let whole = b"(|||6446|)";
        for n in 1..whole.len() {
            assert_eq!(scan_extended_port(&whole[..n]), Scan::Partial, "{n}");
        }
        assert_eq!(
            scan_extended_port(whole),
            Scan::Found {
                len: 8,
                value: (b'|', 6446)
            }
        );
        for text in [
            "(||6446|)",
            "(|||0|)",
            "(|||65536|)",
            "(|||6446)",
            "(|1|1.2.3.4|5|)",
            "(x",
            "(111222)",
        ] {
            let scan = scan_extended_port(format!("{text}\r\n").as_bytes());
            assert!(matches!(scan, Scan::No { .. }), "{text}: {scan:?}");
        }
    }

    #[test]
    fn what_is_no_eprt() {
        for text in [
            "|1|1.2.3.4|0|",
            "|2|1.2.3.4|5|",
            "|1|::1|5|",
            "|1|1.2.3.4|5",
            "|1|1.2.3.4|5||",
            "",
            "|",
            "|1|1.2.3|5|",
        ] {
            assert_eq!(parse_extended(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_may_be_read_as_an_address() {
        let either = |text: &[u8]| {
            let extended = text.starts_with(b"|");
            if extended {
                may_be_extended(text)
            } else {
                may_be_host_port(text)
            }
        };
        for text in [
            &b"1,2,3,4,5,6 x"[..],
            b"1,2,3,4,5,6,7",
            b"1,2,3\xff\xf1,4,5,6",
            b"+1,2,3,4,5,6",
            b"1_0,2,3,4,5,6",
            b"1,2,3,4,5,6x",
            b"1, 2, 3, 4, 5, 006",
            b"0001,2,3,4,5,6",
            b"|1|1.2.3.4|5",
            b"|2|1.2.3.4|5|",
            b"|1|::1|5|",
            b"|1| 1.2.3.4|05 x|x",
        ] {
            assert!(either(text), "{}", text.escape_ascii());
        }
        for text in [
            "",
            "1,2,3",
            "300,1,1,1,1,1",
            "1,2,3,4,5,256",
            "1,2,3,4,5",
            "1,2,3,4,0,0",
            "1.2.3.4,5,6",
            "a,2,3,4,5,6",
            "1,2,3,4,5,x6",
            "|1|1.2.3.4|0|",
            "|1|1.2.3.4|65536|",
            "|1|1.2.3.400|5|",
            "|1|1.2.3.4|",
            "|||50000|",
        ] {
            assert!(!either(text.as_bytes()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn host_port_round_trip(ip: u32, port in 1u16..) {
            let ip = Ipv4Addr::from(ip);
            let text = encode(Form::HostPort, SocketAddr::new(ip.into(), port));
            prop_assert_eq!(parse_host_port(&text), Some((ip, port)));
        }

        #[test]
        fn extended_round_trip(ip: u128, v4: bool, port in 1u16..) {
            let ip = if v4 { IpAddr::from((ip as u32).to_be_bytes()) } else { IpAddr::from(ip.to_be_bytes()) };
            let text = encode(Form::Extended(b'|'), SocketAddr::new(ip, port));
            prop_assert_eq!(parse_extended(&text), Some((b'|', ip, port)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            let _ = parse_host_port(&bytes);
            let _ = parse_extended(&bytes);
            for scan in [matches!(scan_host_port(&bytes), Scan::No { len: 0 }), matches!(scan_extended_port(&bytes), Scan::No { len: 0 })] {
                prop_assert!(!scan);
            }
        }
    }
}

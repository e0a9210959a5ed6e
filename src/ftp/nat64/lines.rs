//! What becomes of the lines of either end.

use std::net::SocketAddr;

use super::super::hostport;
use crate::ftp::session::Form;

/// What `EPSV` becomes (RFC 6384 §6).
pub(in crate::ftp) const PASV: &[u8] = b"PASV";
/// What goes to the server in place of a command that isn't for it (RFC 6384 §12).
pub(in crate::ftp) const NOOP: &[u8] = b"NOOP";
/// The reply to that which becomes the one that is [owed](Owed).
pub(in crate::ftp) const OWED_BY: u16 = 200;

/// The argument of an `EPSV` (RFC 2428 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ftp) enum EpsvArgument {
    /// There is none.
    None,
    /// `1` or `2`: IPv4 or IPv6.
    Known,
    /// The number of another protocol.
    Number,
    /// `ALL`.
    All,
    /// Anything else.
    Other,
}

impl EpsvArgument {
    pub(in crate::ftp) fn of(argument: &[u8]) -> Self {
        match argument {
            b"" => Self::None,
            b"1" | b"2" => Self::Known,
            _ if argument.iter().all(u8::is_ascii_digit) => Self::Number,
            _ if argument.eq_ignore_ascii_case(b"ALL") => Self::All,
            _ => Self::Other,
        }
    }
}

/// What an `ALGS` asks for (RFC 6384 §11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ftp) enum Algs {
    Status,
    Enable,
    Disable,
    /// Nothing that the RFC knows.
    Unknown,
}

impl Algs {
    pub(in crate::ftp) fn of(argument: &[u8]) -> Self {
        let is = |name: &[u8]| argument.eq_ignore_ascii_case(name);
        match argument {
            _ if is(b"STATUS64") => Self::Status,
            _ if is(b"ENABLE64") => Self::Enable,
            _ if is(b"DISABLE64") => Self::Disable,
            _ => Self::Unknown,
        }
    }
}

/// The reply that a client gets to a command that the server never saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::ftp) enum Owed {
    /// To an `EPSV` with the number of a protocol that isn't spoken here (RFC 2428 §2).
    Protocol,
    /// To `EPSV ALL`.
    EpsvAll,
    /// To an `ALGS`: what is translated.
    Translating,
    /// The same: nothing is.
    NotTranslating,
    /// To an `ALGS` that the RFC doesn't know.
    UnknownAlgs,
}

impl Owed {
    /// The reply, without its line end.
    pub(in crate::ftp) const fn text(self) -> &'static [u8] {
        match self {
            Self::Protocol => b"522 Network protocol not supported, use (2)",
            Self::EpsvAll => b"504 EPSV ALL not supported through NAT64",
            Self::Translating => b"216 EPSVEPRT",
            Self::NotTranslating => b"216 NONE",
            Self::UnknownAlgs => b"504 ALGS parameter not supported",
        }
    }

    /// Its code.
    pub(in crate::ftp) const fn code(self) -> &'static [u8] {
        match self.text().first_chunk::<3>() {
            Some(code) => code,
            None => b"",
        }
    }
}

/// The words of a `229`, where there is room for them.
const ENTERING: [&str; 3] = [
    "229 Entering Extended Passive Mode ",
    "229 Extended Passive Mode ",
    "229 ",
];

/// The `229` in place of a `227` whose text, up to the end of its address and what closes that, has
/// `room` bytes. It is as long: `227 ` and six numbers are never shorter than the shortest `229`.
#[must_use]
pub fn extended_reply(port: u16, room: usize) -> Vec<u8> {
    let address = format!("(|||{port}|)");
    let left = room.saturating_sub(address.len());
    let words = ENTERING.into_iter().find(|words| words.len() <= left);
    let words = words.unwrap_or("229 ");
    // Clients look for the parenthesis.
    let blanks = left.saturating_sub(words.len());
    [words.as_bytes(), &vec![b' '; blanks], address.as_bytes()].concat()
}

/// The refusal in place of such a `227`, as long if there is room. RFC 959 has 425 for transfer commands
/// only, but clients go by the first digit (RFC 1123 §4.1.2.11).
#[must_use]
pub fn refused_reply(room: usize) -> Vec<u8> {
    let mut text = b"425 Can't open data connection".to_vec();
    text.resize(text.len().max(room), b' ');
    text
}

/// The `PORT` in place of an `EPRT`. `None`: not an IPv4 address.
#[must_use]
pub fn port_command(address: SocketAddr) -> Option<Vec<u8>> {
    let argument = hostport::encode(Form::HostPort, address);
    (address.is_ipv4()).then(|| [b"PORT ", argument.as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arguments() {
        for (argument, expected) in [
            (&b""[..], EpsvArgument::None),
            (b"1", EpsvArgument::Known),
            (b"2", EpsvArgument::Known),
            (b"3", EpsvArgument::Number),
            (b"12", EpsvArgument::Number),
            (b"all", EpsvArgument::All),
            (b"IPv6", EpsvArgument::Other),
            (b"-1", EpsvArgument::Other),
        ] {
            assert_eq!(EpsvArgument::of(argument), expected, "{argument:?}");
        }
        assert_eq!(Algs::of(b"status64"), Algs::Status);
        assert_eq!(Algs::of(b"ENABLE64"), Algs::Enable);
        assert_eq!(Algs::of(b"Disable64"), Algs::Disable);
        assert_eq!(Algs::of(b""), Algs::Unknown);
        assert_eq!(Algs::of(b"STATUS64 x"), Algs::Unknown);
    }

    #[test]
    fn replies_fill_their_room() {
        let text = |port, room| String::from_utf8(extended_reply(port, room)).unwrap();
        let old = "227 Entering Passive Mode (192,0,2,31,237,19)";
        assert_eq!(
            text(60_691, old.len()),
            "229 Extended Passive Mode         (|||60691|)"
        );
        assert_eq!(
            text(60_691, "227 =1,1,1,1,237,19".len()),
            "229     (|||60691|)"
        );
        assert_eq!(text(60_691, 60).len(), 60);
        assert!(text(1, 60).starts_with("229 Entering Extended Passive Mode "));
    }

    proptest! {
        /// No `227` is too short for its `229`.
        #[test]
        fn a_229_always_fits(v4: u32, port in 1u16.., extra in 0usize..80) {
            let address = SocketAddr::new(std::net::Ipv4Addr::from_bits(v4).into(), port);
            let shortest = 4 + hostport::encode(Form::HostPort, address).len();
            let text = extended_reply(port, shortest + extra);
            prop_assert_eq!(text.len(), shortest + extra);
            let written = format!("(|||{port}|)");
            prop_assert!(text.starts_with(b"229 ") && text.ends_with(written.as_bytes()));
            prop_assert_eq!(text.iter().filter(|b| **b == b'(').count(), 1);
        }
    }
}

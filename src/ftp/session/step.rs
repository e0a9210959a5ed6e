//! The interface of the session machine: its steps, and what the caller tells it.

use crate::ftp::Mode;

/// Who wrote a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The FTP client (it sent the first SYN): commands.
    Client,
    /// The FTP server: replies.
    Server,
}

/// How an announced address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `h1,h2,h3,h4,p1,p2` (RFC 959 §4.1.2): `PORT` and `227`.
    HostPort,
    /// `<d>net-prt<d>net-addr<d>tcp-port<d>` (RFC 2428 §2): `EPRT`, with its delimiter.
    Extended(u8),
    /// `<d><d><d>tcp-port<d>` (RFC 2428 §3): `229`, with its delimiter. Carries no address.
    ExtendedPort(u8),
}

/// An address that an endpoint announces to its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// `227`, `229`, `PORT` or `EPRT`.
    pub verb: &'static str,
    /// Who connects to whom.
    pub mode: Mode,
    /// How it is written.
    pub form: Form,
    /// The address as written; `None` for a `229`, which names none.
    pub addr: Option<std::net::IpAddr>,
    /// The port as written (never 0).
    pub port: u16,
}

/// What to do with the pending bytes of one stream: see [`super::Session::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first `n` pending bytes (n ≥ 1) go out as they are.
    Pass(usize),
    /// All pending bytes wait, for more of them or for the reply to a login.
    Wait,
    /// What the client says isn't FTP. Nothing opens from here on. What is always refused still is,
    /// since the server may read it as FTP. This step comes once. Nothing is removed from pending;
    /// call [`super::Session::next`] again.
    Unfollowed,
    /// `pending[..at]` passes as it is, `pending[at..at + len]` is an address. The caller decides
    /// and calls [`super::Session::announced`] with the outcome, then removes `at + len` bytes from
    /// pending.
    Address(Address),
    /// `pending[..at]` passes as it is, and `pending[at..at + with.len()]` is replaced by `with`.
    /// The server then refuses the command itself: its argument is no address, or its verb isn't
    /// known. Both parts are removed from pending.
    Refuse {
        /// Where the replaced text starts.
        at: usize,
        /// What goes out in its place, of the same length (≥ 1).
        with: Vec<u8>,
        /// The command it was.
        verb: &'static str,
        /// Why, in a few words.
        why: &'static str,
    },
    /// `pending[..at]` passes as it is, and `pending[at..at + len]` is replaced by `with`, of any
    /// length. Both parts are removed from pending.
    Replace {
        /// Where the replaced text starts.
        at: usize,
        /// Its length (≥ 1).
        len: usize,
        /// What goes out in its place.
        with: Vec<u8>,
    },
    /// The next pending bytes of a refused line, up to its line end, are replaced by these, as many
    /// (≥ 1), and removed from pending.
    Blank(Vec<u8>),
    /// The pinhole that an earlier `PORT`/`EPRT` reserved must be open before any of the pending
    /// bytes go out. Say what became of it with [`super::Session::active_opened`]. Nothing is
    /// removed from pending; call [`super::Session::next`] again.
    OpenActive(Hole),
    /// Both streams pass uninspected from here on. The pending bytes go out as they are.
    Opaque(Over),
}

/// Why a session isn't inspected any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Over {
    /// It went on under TLS (RFC 4217).
    Tls,
    /// It isn't FTP.
    NotFtp,
    /// It was expected to be under TLS from its first byte, and isn't.
    NotTls,
}

impl Over {
    /// In a few words.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::NotFtp => "not FTP",
            Self::NotTls => "not TLS",
        }
    }
}

/// Where an address is in `pending`, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where its text starts.
    pub at: usize,
    /// How many bytes it takes (≥ 1).
    pub len: usize,
    /// What it says.
    pub announcement: Announcement,
    /// How to refuse it in place; `None` for replies.
    pub refusal: Option<Refusal>,
    /// Whether it may be followed. If not, nothing opens for it. It is refused if the policy says
    /// so, else it goes out as it is.
    pub follow: bool,
    /// Where the line's verb or code starts, if an `EPRT` is to become a `PORT`, or a `227` a `229`
    /// (RFC 6384). Nothing of it has gone.
    pub translated_from: Option<usize>,
}

/// How a command that announces an address is refused. `pending[at..at + with.len()]`, the argument
/// with the blank before it, becomes `with`, which no server reads as an address. The verb stays,
/// so that the server answers 501 (not 500, unknown command).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where the replaced text starts, behind the verb.
    pub at: usize,
    /// What goes out in its place.
    pub with: Vec<u8>,
}

/// The caller's number of the pinhole of a `PORT` or `EPRT`. The session keeps it, and gives it
/// back when that pinhole must be opened or closed. Packed, so that it costs a session no padding.
#[repr(Rust, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hole(pub u64);

/// What became of an [`Announcement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes out, rewritten or not.
    Accepted {
        /// Its pinhole.
        hole: Hole,
        /// Whether that is open; else it is reserved.
        open: bool,
    },
    /// It goes out unmodified and there is no pinhole.
    PassedUnmodified,
    /// Its [`Refusal`] was carried out: its receiver will refuse it.
    Refused,
}

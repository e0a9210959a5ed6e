//! IPv6-only clients of IPv4-only servers: the FTP ALG for NAT64 (RFC 6384), as far as it is about
//! text.
//!
//! A translator between IPv6 and IPv4 changes addresses in headers only. So the client must be told
//! nothing but ports (`229`), and the server must be asked for, and told, IPv4 addresses (`PASV`,
//! `PORT`).
//!
//! | file | holds |
//! |---|---|
//! | `prefix` | IPv4 addresses in IPv6 ones (RFC 6052) |
//! | `lines` | what becomes of the lines of either end |

mod lines;
mod prefix;

use std::net::{Ipv4Addr, SocketAddr};

pub(super) use lines::{Algs, EpsvArgument, NOOP, OWED_BY, Owed, PASV};
pub use lines::{extended_reply, port_command, refused_reply};
pub use prefix::{Prefix, is_clat};

/// What a session with a server behind a translator needs besides any other.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Nat64 {
    /// The server's own address.
    server: Ipv4Addr,
    /// The client's end of the control connection on the IPv4 side, once it was asked for.
    translated: Option<SocketAddr>,
    /// The client has switched the translation off (`ALGS DISABLE64`).
    off: bool,
    /// The server has answered an `EPSV` with a `229`.
    speaks_epsv: bool,
    /// What happened since it was asked for.
    #[serde(skip)]
    news: Nat64News,
}

/// What happened in such a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nat64News {
    /// It turned out whether the server speaks `EPSV`.
    pub speaks_epsv: Option<bool>,
    /// Lines that were translated.
    pub translated: u16,
    /// A `NOOP` in place of a command that the server didn't answer with `200`: the client got that
    /// reply.
    pub noop_refused: u16,
}

impl Nat64 {
    /// Of a session with this server. `speaks_epsv`: it is known to answer `EPSV`.
    #[must_use]
    pub fn new(server: Ipv4Addr, speaks_epsv: bool) -> Self {
        Self {
            server,
            translated: None,
            off: false,
            speaks_epsv,
            news: Nat64News::default(),
        }
    }

    /// The server's own address.
    #[must_use]
    pub fn server(&self) -> Ipv4Addr {
        self.server
    }

    /// The client's end of the control connection on the IPv4 side, if it is known.
    #[must_use]
    pub fn translated(&self) -> Option<SocketAddr> {
        self.translated
    }

    /// Notes the client's end on the IPv4 side.
    pub fn is_translated_to(&mut self, client: SocketAddr) {
        self.translated = Some(client);
    }

    /// Whether commands are translated.
    pub(super) fn is_on(&self) -> bool {
        !self.off
    }

    /// Whether `EPSV` goes to the server as it is (RFC 6384 §6: only with positive knowledge).
    pub(super) fn speaks_epsv(&self) -> bool {
        self.speaks_epsv
    }

    /// Carries out an `ALGS`, and says what reply is owed for it.
    pub(super) fn algs(&mut self, asked: Algs) -> Owed {
        match asked {
            Algs::Status => {}
            Algs::Enable => self.off = false,
            Algs::Disable => self.off = true,
            Algs::Unknown => return Owed::UnknownAlgs,
        }
        match self.off {
            false => Owed::Translating,
            true => Owed::NotTranslating,
        }
    }

    /// A `NOOP` wasn't answered with `200` (RFC 6384 §12): as at the beginning.
    pub(super) fn reset(&mut self) {
        self.off = false;
        self.news.noop_refused = self.news.noop_refused.saturating_add(1);
    }

    /// A line was translated.
    pub(super) fn count(&mut self) {
        self.news.translated = self.news.translated.saturating_add(1);
    }

    /// The server has answered an `EPSV` that it got as it was.
    pub(super) fn epsv_answered(&mut self, code: u16) {
        let speaks = match code {
            229 => true,
            // Not known, or not implemented.
            500..=502 => false,
            _ => return,
        };
        if speaks != self.speaks_epsv {
            self.speaks_epsv = speaks;
            self.news.speaks_epsv = Some(speaks);
        }
    }

    /// Takes what happened since the last call.
    pub fn take_news(&mut self) -> Nat64News {
        std::mem::take(&mut self.news)
    }
}

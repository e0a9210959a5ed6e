//! What the engine reports: sessions, rewrites, refusals.

use std::net::SocketAddr;

use serde::Serialize;

use super::gateway::{PinholeId, SessionId};
use crate::ftp::Mode;

/// Something that happened in a control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A control connection is followed from here on.
    SessionOpened {
        /// The session.
        session: SessionId,
        /// The client, as the inside of the gateway sees it.
        client: SocketAddr,
        /// The server, as the inside of the gateway sees it.
        server: SocketAddr,
        /// It was under way already: the handshake wasn't seen.
        joined: bool,
    },
    /// A limit on sessions was reached: a control connection gets no pinholes. What is always
    /// refused is refused in it as well.
    NotAdmitted {
        /// The number that its session would have had.
        session: SessionId,
        /// The client, as the inside of the gateway sees it.
        client: SocketAddr,
        /// The server, as the inside of the gateway sees it.
        server: SocketAddr,
        /// Which limit.
        why: String,
    },
    /// An announced address was let through, rewritten if `new` differs from `old`.
    Announced {
        /// The session.
        session: SessionId,
        /// Its pinhole.
        pinhole: PinholeId,
        /// The command or reply that carried it: `227`, `229`, `PORT`, `EPRT`.
        verb: &'static str,
        /// Active or passive.
        mode: Mode,
        /// What the endpoint wrote.
        old: SocketAddr,
        /// What its peer reads.
        new: SocketAddr,
        /// Who may connect.
        from: std::net::IpAddr,
        /// Where the data connection goes.
        land: SocketAddr,
    },
    /// An announcement was not followed: passed unmodified or refused in place.
    Refused {
        /// The session.
        session: SessionId,
        /// The command or reply.
        verb: &'static str,
        /// Why, in a few words.
        why: String,
        /// The address that it named, if it named one.
        address: Option<SocketAddr>,
        /// Whether the text was replaced, so that the server answers with an error.
        replaced: bool,
    },
    /// The user logged in.
    LoggedIn {
        /// The session.
        session: SessionId,
        /// The argument of `USER`. Shown only where asked for: never in a log above debug.
        user: String,
    },
    /// The server refused a login.
    LoginRefused {
        /// The session.
        session: SessionId,
        /// The argument of `USER`; empty if there was none. Shown only where asked for.
        user: String,
        /// The reply.
        code: u16,
    },
    /// The server's preliminary reply to a transfer command has come.
    TransferBegun {
        /// The session.
        session: SessionId,
        /// `RETR`, `STOR`, `STOU`, `APPE`, `LIST`, `NLST` or `MLSD`.
        verb: &'static str,
        /// Its argument. Shown only where asked for.
        name: String,
    },
    /// A transfer command has its final reply, or won't get one any more.
    TransferEnded {
        /// The session.
        session: SessionId,
        /// The command, as where it began.
        verb: &'static str,
        /// Its argument. Shown only where asked for.
        name: String,
        /// Whether it had begun. If not, the server refused it, or did it without saying so first.
        begun: bool,
        /// The reply; `None` if the server went on without one.
        code: Option<u16>,
    },
    /// Inspection ended. Sequence numbers are still translated.
    Opaque {
        /// The session.
        session: SessionId,
        /// Why: `TLS`, `not FTP`, `limit`, …
        why: &'static str,
    },
    /// A session went on under TLS, and no range of ports is configured: its data connections get
    /// no pinholes.
    TlsPassed {
        /// The session.
        session: SessionId,
        /// The client's address, as the inside of the gateway sees it.
        client: std::net::IpAddr,
    },
    /// A session under TLS went back to clear text (`CCC`, RFC 4217 §12.3).
    ClearAgain {
        /// The session.
        session: SessionId,
        /// Whether it is inspected again; else what it announces gets no pinholes.
        followed: bool,
    },
    /// A session passes unread, since one of its ends is in a network of
    /// [`Config::bypass`](super::Config::bypass).
    Bypassed {
        /// The session.
        session: SessionId,
        /// The network.
        by: String,
    },
    /// The control connection ended.
    SessionClosed {
        /// The session.
        session: SessionId,
        /// How: `FIN`, `RST`, `idle`, `replaced`.
        how: &'static str,
    },
}

impl Event {
    /// The session that it is about.
    #[must_use]
    pub fn session(&self) -> SessionId {
        match self {
            Self::SessionOpened { session, .. }
            | Self::NotAdmitted { session, .. }
            | Self::Announced { session, .. }
            | Self::Refused { session, .. }
            | Self::LoggedIn { session, .. }
            | Self::LoginRefused { session, .. }
            | Self::TransferBegun { session, .. }
            | Self::TransferEnded { session, .. }
            | Self::Opaque { session, .. }
            | Self::TlsPassed { session, .. }
            | Self::ClearAgain { session, .. }
            | Self::Bypassed { session, .. }
            | Self::SessionClosed { session, .. } => *session,
        }
    }
}

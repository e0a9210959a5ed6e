//! The questions the engine may ask while it looks at a packet.
//!
//! The packet's verdict waits for the answer in any case (a pinhole must be acknowledged by the
//! kernel before the packet that announces it leaves), so these are plain calls. Every failure is
//! an answer like any other: the engine then passes the text on unmodified, or refuses it.

use std::net::{IpAddr, SocketAddr};

use super::event::Event;
use super::{Entry, Tuple};
use crate::ftp::Mode;
use crate::ftp::fit::Fitting;

/// Identifies a control connection for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// Identifies a reserved or open pinhole for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct PinholeId(pub u64);

/// A data connection that an endpoint X announces to its peer Y.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The control connection that it belongs to.
    pub session: SessionId,
    /// Who connects to whom.
    pub mode: Mode,
    /// Y's address, as its packets arrive at the gateway.
    pub from: IpAddr,
    /// The address by which Y reaches X.
    pub to: IpAddr,
    /// X's own address and the port that X announced.
    pub land: SocketAddr,
    /// The address by which X knows Y, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// The control connection's mark, all of it.
    pub mark: u32,
    /// Whether only NAT leads from `to` to X: then the public port may be another than the announced
    /// one.
    pub published: bool,
    /// Whether the public port comes from `--data-ports`, where that is given and the port may be
    /// another: X is inside.
    pub from_range: bool,
    /// The public ports with which the announcement keeps its length: they are preferred.
    pub fitting: Fitting,
}

/// A range of a server's ports that its client is to reach, because what they announce to each
/// other can't be read. Which range is the gateway's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// The control connection that it belongs to.
    pub session: SessionId,
    /// That connection, as conntrack knows it: with it, the range goes.
    pub control: Tuple,
    /// The client's address, as its packets arrive at the gateway.
    pub from: IpAddr,
    /// The address by which it reaches the server.
    pub to: IpAddr,
    /// The server's own address.
    pub land: IpAddr,
    /// The address by which the server knows the client, where it isn't `from`.
    pub as_source: Option<IpAddr>,
}

/// A port that was chosen for a [`Request`]; nothing is in the kernel yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The name to open or release it by.
    pub id: PinholeId,
    /// Where Y connects to: `Request::to` and the public port.
    pub to: SocketAddr,
}

/// Why the gateway couldn't answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No conntrack entry for the control connection (yet).
    #[error("conntrack doesn't know the control connection")]
    NoConntrack,
    /// Every public port that may be used for this peer is taken.
    #[error("no free data port for {0} (widen --data-ports)")]
    NoPort(IpAddr),
    /// A limit was reached: its name.
    #[error("the limit {0} is reached")]
    Limit(&'static str),
    /// Another server's range is open to the same client at the same address.
    #[error("the client already reaches the range of {0} at that address")]
    RangeTaken(IpAddr),
    /// The kernel refused.
    #[error("{0}")]
    Kernel(String),
}

/// What the engine needs from the world outside. Implemented by the NAT plane, and by test doubles.
pub trait Gateway {
    /// The conntrack entry of the TCP connection that has a direction from `src` to `dst`.
    ///
    /// # Errors
    /// [`Error::NoConntrack`] if there is none, [`Error::Kernel`] if it could not be asked.
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error>;

    /// Sets or clears the bit of a control connection's mark that says that it may be joined in its
    /// middle ([`Config::resume_mark`](super::Config::resume_mark)); returns when the kernel
    /// acknowledged it. `src` and `dst`: either direction.
    ///
    /// # Errors
    /// [`Error::NoConntrack`] or [`Error::Kernel`]: the bit is as it was.
    fn set_resumable(
        &mut self,
        _src: SocketAddr,
        _dst: SocketAddr,
        _resumable: bool,
    ) -> Result<(), Error> {
        Err(Error::NoConntrack)
    }

    /// A control connection began; it ends with [`session_ended`](Self::session_ended). `client`:
    /// its address, as the inside sees it.
    ///
    /// # Errors
    /// [`Error::Limit`]: nothing may open for it.
    fn admit(&mut self, _session: SessionId, _client: IpAddr) -> Result<(), Error> {
        Ok(())
    }

    /// Chooses a public port for an announcement; nothing opens yet.
    ///
    /// Supersedes the session's oldest pending pinhole beyond the per-session limit.
    ///
    /// # Errors
    /// [`Error::NoPort`] or [`Error::Limit`].
    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error>;

    /// Puts the pinhole into the kernel; returns when the kernel acknowledged it.
    ///
    /// # Errors
    /// [`Error::Kernel`]; the reservation is released then.
    fn open(&mut self, id: PinholeId) -> Result<(), Error>;

    /// Closes a pinhole or drops a reservation that nobody used. Unknown ids are ignored.
    fn release(&mut self, id: PinholeId);

    /// Lets a client reach the configured range of its server's ports, until the session ends or
    /// the idle limit passes without another call; returns when the kernel acknowledged it. To be
    /// called whenever data comes from the client: that is its activity, and opens anew what was
    /// closed for want of it.
    ///
    /// # Errors
    /// [`Error::Limit`], [`Error::RangeTaken`] or [`Error::Kernel`]; the session has no range then.
    fn open_range(&mut self, _request: &RangeRequest) -> Result<(), Error> {
        Err(Error::Kernel("no range of ports is configured".into()))
    }

    /// The control connection ended: closes what it has pending. Running transfers go on.
    fn session_ended(&mut self, session: SessionId);

    /// Something happened that a person may want to see.
    fn event(&mut self, event: Event);
}

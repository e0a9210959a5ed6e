//! The questions the engine may ask while it looks at a packet.
//!
//! These are plain calls, since the verdict waits for the answer in any case: the kernel must
//! acknowledge a pinhole before the packet that announces it leaves. A failure is an answer like
//! any other. The engine then passes the text on unmodified, or refuses it.
//!
//! Where a pinhole takes long to open, the gateway may have the packet come again when it is open
//! ([`Gateway::may_put_off`]), so that those of several packets open together.

use std::net::{IpAddr, SocketAddr};

use super::event::Event;
use super::{Entry, Standing, Tuple};
use crate::ftp::Mode;
use crate::ftp::fit::Fitting;

/// Identifies a control connection for as long as the daemon runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
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
    /// The control connection's mark, all of it but ftpalg's own bits for control connections
    /// ([`Marks`](super::Marks)).
    pub mark: u32,
    /// Whether `to` is translated to X. Then the public port may differ from the announced one.
    pub published: bool,
    /// Whether the public port is taken from `--data-ports` if it can't be the announced one: X is
    /// inside.
    pub from_range: bool,
    /// The public ports with which the announcement keeps its length: they are preferred.
    pub fitting: Fitting,
    /// The same data connection on the other side of a translator (NAT64).
    pub twin: Option<Twin>,
}

/// A data connection passes the gateway twice if a translator between IPv6 and IPv4 is on it: a
/// [`Request`] is about the side on which it is announced, and this about the other one. Both pinholes
/// open and close together, but each is used by its own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twin {
    /// Who connects.
    pub from: IpAddr,
    /// To what address and port.
    pub to: SocketAddr,
    /// Where it is delivered.
    pub land: SocketAddr,
    /// The source that the host there sees, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// The mark of the control connection on that side.
    pub mark: u32,
}

/// A range of a server's ports that its client is to reach, because the two announce addresses
/// under TLS. The gateway's settings say which range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// The control connection that it belongs to.
    pub session: SessionId,
    /// That connection, as conntrack knows it. The range is closed with it.
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
    /// Its number, to open or release it by.
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
    /// Several translated connections look like it.
    #[error("several translated connections have the client's port")]
    Ambiguous,
    /// Every public port that may be used for this peer is taken.
    #[error("no free data port for {0} (widen --data-ports)")]
    NoPort(IpAddr),
    /// A limit was reached: its name.
    #[error("the limit {0} is reached")]
    Limit(&'static str),
    /// Another server's range is open to the same client at the same address.
    #[error("the client already reaches the range of {0} at that address")]
    RangeTaken(IpAddr),
    /// The pinhole opens in a moment, together with others. What asked for it is to be put off until then:
    /// see [`Gateway::may_put_off`].
    #[error("the pinhole opens in a moment")]
    Later,
    /// The gateway ends: nothing opens any more. What asked for it is to be sent again, to a successor.
    #[error("ftpalg is being stopped")]
    Closing,
    /// What a successor must know can't be kept.
    #[error("no record can be kept")]
    NoRecord,
    /// The kernel refused.
    #[error("{0}")]
    Kernel(String),
}

/// What the engine needs from its surroundings. Implemented by the daemon, and by test doubles.
pub trait Gateway {
    /// The conntrack entry of the TCP connection that has a direction from `src` to `dst`.
    ///
    /// # Errors
    /// [`Error::NoConntrack`] if there is none, [`Error::Kernel`] if it could not be asked.
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error>;

    /// The conntrack entry of the IPv4 connection that a translator (NAT64) makes of an IPv6 one: that of
    /// this client, whose port it keeps, to this server.
    ///
    /// # Errors
    /// [`Error::NoConntrack`] if there is none, [`Error::Ambiguous`] if there are several,
    /// [`Error::Kernel`] if it could not be asked.
    fn translated(&mut self, _client: SocketAddr, _server: SocketAddr) -> Result<Entry, Error> {
        Err(Error::NoConntrack)
    }

    /// Says in a control connection's mark what its numbers are like: see
    /// [`Config::marks`](super::Config::marks). Returns when the kernel acknowledged it. `src` and
    /// `dst`: either direction.
    ///
    /// # Errors
    /// [`Error::NoConntrack`] or [`Error::Kernel`]: the mark is as it was.
    fn mark(
        &mut self,
        _src: SocketAddr,
        _dst: SocketAddr,
        _standing: Standing,
    ) -> Result<(), Error> {
        Err(Error::NoConntrack)
    }

    /// Keeps what a successor must know of a control connection, in place of what was kept of it
    /// before. Returns when a successor will find it, whatever becomes of this process. `name`: how
    /// packets towards the inside name the connection, if that is another name than `outward`, the
    /// one that packets from the inside give it.
    ///
    /// # Errors
    /// [`Error::NoRecord`]: it isn't kept, and what was kept before isn't either.
    fn keep_record(
        &mut self,
        _outward: Tuple,
        _name: Option<Tuple>,
        _record: &[u8],
    ) -> Result<(), Error> {
        Err(Error::NoRecord)
    }

    /// Forgets what is kept of a control connection.
    fn drop_record(&mut self, _outward: Tuple) {}

    /// What an earlier process has kept of the control connection with this name. It stays kept.
    fn find_record(&mut self, _outward: Tuple) -> Option<Vec<u8>> {
        None
    }

    /// Whether a connection has gone to another gateway a moment ago, with the address that it goes
    /// through. What still comes of it here is late: it is to be sent again, to whoever has it.
    fn is_elsewhere(&mut self, _entry: &Entry) -> bool {
        false
    }

    /// What another gateway has kept of a control connection that was there before. It stays kept.
    ///
    /// # Errors
    /// It can't be asked just now, and may be in a moment.
    fn fetch_record(&mut self, _outward: Tuple) -> Result<Option<Vec<u8>>, Error> {
        Ok(None)
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
    /// [`Error::NoPort`] or [`Error::Limit`]. [`Error::Later`], if it [may](Self::may_put_off).
    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error>;

    /// Puts the pinhole into the kernel; returns when the kernel acknowledged it.
    ///
    /// # Errors
    /// [`Error::Kernel`]; the reservation is released then. [`Error::Closing`]. [`Error::Later`], if it
    /// [may](Self::may_put_off).
    fn open(&mut self, id: PinholeId) -> Result<(), Error>;

    /// Whether [`reserve`](Self::reserve) and [`open`](Self::open) will answer [`Error::Later`] about the packet
    /// that is handled now. Without this question, or if the engine can't undo what the packet changes
    /// (`undoable`), they don't. After that answer the engine undoes it, and is given the packet
    /// [again](super::Engine::again). It asks for the same then: what was reserved must be reserved still,
    /// and `open` must say how it went. Events of a packet that is put off didn't happen; a
    /// [`release`](Self::release) did.
    fn may_put_off(&mut self, _undoable: bool) -> bool {
        false
    }

    /// Closes a pinhole or drops a reservation that nobody used. Unknown ids are ignored.
    fn release(&mut self, id: PinholeId);

    /// Lets a client reach the configured range of its server's ports. Returns when the kernel has
    /// acknowledged it. The range stays open until the session ends, or no call comes for the idle
    /// limit. To be called whenever data comes from the client, since that is its activity. It
    /// reopens a range that was closed for idleness.
    ///
    /// # Errors
    /// [`Error::Limit`], [`Error::RangeTaken`] or [`Error::Kernel`]; the session has no range then.
    /// [`Error::Closing`].
    fn open_range(&mut self, _request: &RangeRequest) -> Result<(), Error> {
        Err(Error::Kernel("no range of ports is configured".into()))
    }

    /// The control connection ended: closes its pending pinholes. Running transfers go on.
    fn session_ended(&mut self, session: SessionId);

    /// Reports something that a person may want to see.
    fn event(&mut self, event: Event);
}

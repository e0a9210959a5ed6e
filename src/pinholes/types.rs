//! What a [`Plane`](super::Plane) is made of (settings, limits, its kernel interfaces), and what it
//! tells (pinholes, connections, reports, counters).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::conntrack::{Bytes, Completeness, Conntrack, ConntrackEvent, Events, Kept, Timeouts};
use crate::engine::gateway::{PinholeId, SessionId};
use crate::engine::{Entry, Tuple};
use crate::ftp::Mode;
use crate::net::Mark;
use crate::net::PortRange;
use crate::pinholes::backend::Backend;

/// The settings of a [`Plane`](super::Plane).
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    /// Public ports for data connections to published addresses (`--data-ports`).
    pub data_ports: Option<PortRange>,
    /// How long a pinhole waits for its connection (default 60 s).
    pub deadline: Duration,
    /// How much of each there may be.
    pub limits: PlaneLimits,
    /// The bit by which data connections are known.
    pub mark: Mark,
    /// What clients under TLS reach; `None`: nothing.
    pub tls_range: Option<TlsRange>,
}

/// What clients reach at their server while their session is under TLS (`--tls range:A-B`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsRange {
    /// The ports, the same on the public side and at the server.
    pub ports: PortRange,
    /// How long they stay open while nothing comes from the client (`--tls-idle`).
    pub idle: Duration,
}

/// How much of each there may be, for all workers together. The names are those of `--limit`.
///
/// A client is an IPv4 address or an IPv6 /64 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PlaneLimits {
    /// Control connections that pinholes open for (default 65,536); more aren't followed.
    pub sessions: usize,
    /// Control connections of one client (default 4,096); more aren't followed.
    pub sessions_per_client: usize,
    /// Pending pinholes (default 4,096); the client with the most makes room, or more are refused.
    pub pinholes: usize,
    /// Pending pinholes of one client (default 512); more are refused.
    pub pinholes_per_client: usize,
    /// Pending pinholes of one session (default 4); the oldest makes room.
    pub pinholes_per_session: usize,
    /// Pinholes reserved per minute (default 240,000); more are refused.
    pub pinholes_per_minute: u32,
    /// Pinholes reserved per minute for one client (default 60,000); more are refused.
    pub pinholes_per_client_per_minute: u32,
    /// Data connections that are kept track of (65,536); more aren't reported when they end.
    #[serde(skip)]
    pub connections: usize,
    /// Sessions that have a range of ports open (4,096); more get none.
    #[serde(skip)]
    pub ranges: usize,
}

impl Default for PlaneConfig {
    fn default() -> Self {
        Self {
            data_ports: None,
            deadline: Duration::from_secs(60),
            limits: PlaneLimits::default(),
            mark: Mark::DEFAULT,
            tls_range: None,
        }
    }
}

impl Default for PlaneLimits {
    fn default() -> Self {
        Self {
            sessions: 65_536,
            sessions_per_client: 4096,
            pinholes: 4096,
            pinholes_per_client: 512,
            pinholes_per_session: 4,
            pinholes_per_minute: 240_000,
            pinholes_per_client_per_minute: 60_000,
            connections: 65_536,
            ranges: 4096,
        }
    }
}

/// Answers the plane's questions about connections: [`Conntrack`], or a test double.
pub trait Lookups: Send {
    /// See [`Conntrack::lookup`].
    ///
    /// # Errors
    /// If it could not be asked.
    fn lookup(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Entry>>;

    /// See [`Conntrack::marked`].
    ///
    /// # Errors
    /// If it could not be asked.
    fn marked(&mut self, mark: Mark) -> io::Result<Vec<Entry>>;

    /// See [`Conntrack::marked_with_state`].
    ///
    /// # Errors
    /// If it could not be asked.
    fn marked_with_state(&mut self, mark: Mark) -> io::Result<Vec<(Entry, Option<Kept>)>> {
        let entries = self.marked(mark)?;
        Ok(entries.into_iter().map(|entry| (entry, None)).collect())
    }
}

impl Lookups for Conntrack {
    fn lookup(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Entry>> {
        Self::lookup(self, src, dst)
    }

    fn marked(&mut self, mark: Mark) -> io::Result<Vec<Entry>> {
        Self::marked(self, mark)
    }

    fn marked_with_state(&mut self, mark: Mark) -> io::Result<Vec<(Entry, Option<Kept>)>> {
        Self::marked_with_state(self, mark)
    }
}

/// Tells the plane of new and ended connections: [`Events`], or a test double.
pub trait EventSource: Send {
    /// See [`Events::read`]: never waits.
    ///
    /// # Errors
    /// If it could not be read.
    fn read(&mut self, out: &mut Vec<ConntrackEvent>) -> io::Result<Completeness>;

    /// See [`Events::watch`].
    fn watch(&mut self, _original: Tuple, _watched: bool) {}
}

impl EventSource for Events {
    fn read(&mut self, out: &mut Vec<ConntrackEvent>) -> io::Result<Completeness> {
        Self::read(self, out)
    }

    fn watch(&mut self, original: Tuple, watched: bool) {
        Self::watch(self, original, watched);
    }
}

/// What a [`Plane`](super::Plane) works with.
pub struct Parts {
    /// Puts pinholes into the kernel.
    pub backend: Box<dyn Backend>,
    /// Answers questions about connections.
    pub lookups: Box<dyn Lookups>,
    /// Tells of new and ended connections.
    pub events: Box<dyn EventSource>,
    /// How long conntrack keeps the entries of closed connections.
    pub timeouts: Timeouts,
    /// The time since some start; never goes back.
    pub clock: Box<dyn Fn() -> Duration + Send>,
}

/// The state of a pinhole or of the connection that was made through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PinholeState {
    /// It has a port, but isn't in the kernel yet.
    Reserved,
    /// It waits for its connection.
    Open,
    /// Its connection exists; the pinhole itself is closed.
    Used,
    /// Its connection is over.
    Over,
    /// Nobody came until its deadline.
    Expired,
}

/// A pinhole, as the control socket and the output show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PinholeInfo {
    /// Its name.
    pub id: PinholeId,
    /// The control connection that it belongs to; 0 if it was adopted from a daemon before this one.
    pub session: SessionId,
    /// Active or passive; passive if it was adopted.
    pub mode: Mode,
    /// Who may connect.
    pub from: IpAddr,
    /// The address and port to connect to.
    pub to: SocketAddr,
    /// Where the connection is delivered.
    pub land: SocketAddr,
    /// The source address that the landing side sees, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// Its state.
    pub state: PinholeState,
    /// Seconds until its deadline, rounded up; none once it is used. Each activity of the client
    /// restarts that of a range.
    pub expires_in: Option<u64>,
    /// `A-B` for a range of ports; `to` and `land` then name the first one.
    pub ports: Option<String>,
    /// Seconds that its connection has lasted.
    pub seconds: Option<f64>,
    /// What its connection has carried in both directions, IP headers included, where conntrack counts.
    pub bytes: Option<u64>,
    /// Its connection, as conntrack knows it, while that exists.
    #[serde(skip)]
    pub connection: Option<Tuple>,
}

/// A data connection that was made through a pinhole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DataConnection {
    /// The pinhole.
    pub pinhole: PinholeId,
    /// The control connection; 0 if the pinhole was adopted from a daemon before this one.
    pub session: SessionId,
    /// Active or passive; passive if it was adopted.
    pub mode: Mode,
    /// The address and port that connected.
    pub from: SocketAddr,
    /// The address and port connected to.
    pub to: SocketAddr,
    /// Where it was delivered.
    pub land: SocketAddr,
    /// The source that the landing side sees, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// When it was reported, on the plane's clock.
    #[serde(skip)]
    pub started: Duration,
}

/// A data connection that is over: both ends have closed it, or conntrack has deleted its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Finished {
    /// The connection.
    pub connection: DataConnection,
    /// What it carried, where conntrack counts.
    pub bytes: Option<Bytes>,
    /// How long it lasted. If its end was told by the deletion of its entry, up to a minute too much:
    /// conntrack deletes entries with delay. Before Linux 5.12 the time for which conntrack keeps closed
    /// connections (two minutes as a rule) is included as well.
    pub duration: Duration,
    /// Whether both ends were there.
    pub established: bool,
    /// Whether an end has reset it.
    pub reset: bool,
}

/// The data connections of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Transferred {
    /// How many there were, those that exist now included.
    pub data_connections: u64,
    /// Bytes of both directions, IP headers and connections that exist now included. `None` where
    /// conntrack doesn't count them.
    pub bytes: Option<u64>,
}

/// Something to print that happened in the plane.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaneReport {
    /// A pinhole was used.
    Connected(DataConnection),
    /// A data connection ended.
    Finished(Finished),
    /// A data connection goes on when the daemon ends: what it has carried so far.
    Running(Finished),
    /// A pinhole was not used in time.
    Expired(PinholeInfo),
    /// A range opened.
    RangeOpened(PinholeInfo),
    /// A range closed.
    RangeClosed(PinholeInfo, RangeEnd),
    /// Steering rules or the backend's objects, which somebody else had removed, were restored.
    Restored {
        /// What was missing, in words.
        missing: Vec<String>,
    },
    /// Conntrack events were lost; the plane compared with conntrack's list.
    MissedEvents,
}

/// Why a range was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// Its last session ended.
    Session,
    /// Nothing came from its client for the idle limit.
    Idle,
    /// Conntrack deleted the entry of the control connection.
    Conntrack,
}

impl RangeEnd {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Session => "the session ended",
            Self::Idle => "idle",
            Self::Conntrack => "conntrack forgot the session",
        }
    }
}

/// What a plane counts, from its start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlaneCounters {
    /// Pinholes taken over from a daemon before this one.
    pub adopted: u64,
    /// Pinholes opened in the kernel.
    pub opened: u64,
    /// Pinholes used.
    pub used: u64,
    /// Pinholes that nobody used in time.
    pub expired: u64,
    /// Pinholes replaced by later ones of their session.
    pub superseded: u64,
    /// Requests refused because of a limit: of pinholes (the next four) or of ranges.
    pub limited: u64,
    /// Pinholes refused because of `pinholes`.
    pub limited_total: u64,
    /// Pinholes refused because of `pinholes-per-client`.
    pub limited_per_client: u64,
    /// Pinholes refused because of `pinholes-per-minute`.
    pub limited_rate: u64,
    /// Pinholes refused because of `pinholes-per-client-per-minute`.
    pub limited_rate_per_client: u64,
    /// Control connections that nothing opens for, because of `sessions`.
    pub limited_sessions: u64,
    /// Control connections that nothing opens for, because of `sessions-per-client`.
    pub limited_sessions_per_client: u64,
    /// Requests refused for want of a port.
    pub no_port: u64,
    /// Changes that the kernel refused.
    pub kernel_errors: u64,
    /// Connections with the mark that belong to no pending pinhole.
    pub unattributed: u64,
    /// Connection attempts from before their pinhole that were in its way, and were deleted from
    /// conntrack.
    pub stale_attempts: u64,
    /// Times that conntrack events were lost.
    pub missed_events: u64,
    /// Ranges opened for sessions under TLS.
    pub ranges_opened: u64,
    /// Ranges closed because nothing came from the client for the idle limit.
    pub ranges_idle: u64,
    /// Ranges refused because the client had that of another server at the same address.
    pub ranges_taken: u64,
    /// Data connections made through ranges.
    pub range_connections: u64,
    /// Bytes that data connections carried that are over, where conntrack counts them: both directions, IP
    /// headers included.
    pub bytes: u64,
    /// Times that what somebody else had removed was restored.
    pub restored: u64,
    /// Times that they could not be.
    pub restore_failures: u64,
}

impl Finished {
    /// Its pinhole, as it is shown.
    pub(super) fn info(&self) -> PinholeInfo {
        let connection = &self.connection;
        PinholeInfo {
            id: connection.pinhole,
            session: connection.session,
            mode: connection.mode,
            from: connection.from.ip(),
            to: connection.to,
            land: connection.land,
            as_source: connection.as_source,
            state: PinholeState::Over,
            expires_in: None,
            ports: None,
            seconds: Some(self.duration.as_secs_f64()),
            bytes: (self.bytes).map(|bytes| bytes.original.saturating_add(bytes.reply)),
            connection: None,
        }
    }
}

impl DataConnection {
    /// The pinhole that it came through, as it is shown.
    pub(super) fn info(&self, connection: Tuple, now: Duration) -> PinholeInfo {
        PinholeInfo {
            id: self.pinhole,
            session: self.session,
            mode: self.mode,
            from: self.from.ip(),
            to: self.to,
            land: self.land,
            as_source: self.as_source,
            state: PinholeState::Used,
            expires_in: None,
            ports: None,
            seconds: Some(now.saturating_sub(self.started).as_secs_f64()),
            bytes: None,
            connection: Some(connection),
        }
    }
}

//! What goes into a [`Plane`](super::Plane), and what comes out: choices, parts, reports, counters.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::conntrack::{Bytes, Completeness, Conntrack, ConntrackEvent, Events, Timeouts};
use crate::engine::gateway::{PinholeId, SessionId};
use crate::engine::{Entry, Tuple};
use crate::ftp::Mode;
use crate::net::Mark;
use crate::net::PortRange;
use crate::pinholes::backend::Backend;

/// What a [`Plane`](super::Plane) goes by.
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

/// Where a [`Plane`](super::Plane) asks about connections: [`Conntrack`], or a test double.
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
}

impl Lookups for Conntrack {
    fn lookup(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Entry>> {
        Self::lookup(self, src, dst)
    }

    fn marked(&mut self, mark: Mark) -> io::Result<Vec<Entry>> {
        Self::marked(self, mark)
    }
}

/// Where a [`Plane`](super::Plane) learns of connections: [`Events`], or a test double.
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
    /// Puts holes into the kernel. Installed and removed by the caller, through the plane.
    pub backend: Box<dyn Backend>,
    /// Answers questions about connections.
    pub lookups: Box<dyn Lookups>,
    /// Tells of new and ended connections.
    pub events: Box<dyn EventSource>,
    /// For how long conntrack remembers closed connections.
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
    /// Its connection exists; the hole itself is closed.
    Used,
    /// Nobody came until its deadline.
    Expired,
}

/// A pinhole as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinholeInfo {
    /// Its name.
    pub id: PinholeId,
    /// The control connection that it belongs to.
    pub session: SessionId,
    /// Active or passive.
    pub mode: Mode,
    /// Who may connect.
    pub from: IpAddr,
    /// The address and port to connect to.
    pub to: SocketAddr,
    /// Where the connection is delivered.
    pub land: SocketAddr,
    /// The source that the landing side sees, where it isn't `from`.
    pub as_source: Option<IpAddr>,
    /// What has become of it.
    pub state: PinholeState,
    /// Seconds until its deadline, rounded up; none once it is used. A range's starts anew with
    /// each activity of its client.
    pub expires_in: Option<u64>,
    /// The range of ports `A-B` that it is for, where it isn't one port: `to` and `land` name the
    /// first one then.
    pub ports: Option<String>,
}

/// A data connection that was made through a pinhole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DataConnection {
    /// The pinhole.
    pub pinhole: PinholeId,
    /// The control connection.
    pub session: SessionId,
    /// Active or passive.
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

/// A data connection that conntrack has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Finished {
    /// The connection.
    pub connection: DataConnection,
    /// What it carried, where conntrack counts.
    pub bytes: Option<Bytes>,
    /// How long it lasted. Where the kernel doesn't tell how it ended (before Linux 5.12), this
    /// includes the time for which conntrack remembers closed connections, two minutes as a rule;
    /// and up to a minute more everywhere, since conntrack forgets when it gets to it.
    pub duration: Duration,
}

/// The data connections of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Transferred {
    /// How many there were, those that exist now included.
    pub data_connections: u64,
    /// Bytes of both directions with IP headers, those of connections that exist now included.
    /// `None` where conntrack doesn't count them.
    pub bytes: Option<u64>,
}

/// Something that happened outside of any packet's handling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaneReport {
    /// A pinhole was used.
    Connected(DataConnection),
    /// A data connection ended.
    Finished(Finished),
    /// A pinhole was not used in time.
    Expired(PinholeInfo),
    /// A client reaches a range of its server's ports.
    RangeOpened(PinholeInfo),
    /// It does so no longer.
    RangeClosed(PinholeInfo, RangeEnd),
    /// Somebody had removed what carries the pinholes or steers control packets; it is back.
    Restored {
        /// What was missing, in words.
        missing: Vec<String>,
    },
    /// Conntrack's events came faster than they were read; the plane compared with its list.
    MissedEvents,
}

/// Why a range was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// Its session ended, and no other one has it.
    Session,
    /// Nothing came from its client for the idle limit.
    Idle,
    /// Conntrack forgot the control connection.
    Conntrack,
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlaneCounters {
    /// Pinholes opened in the kernel.
    pub opened: u64,
    /// Pinholes used.
    pub used: u64,
    /// Pinholes that nobody used in time.
    pub expired: u64,
    /// Pinholes replaced by later ones of their session.
    pub superseded: u64,
    /// Requests refused because of a limit: the sum of those below for pinholes.
    pub limited: u64,
    /// Because there were too many pinholes pending.
    pub limited_total: u64,
    /// Because there were too many of the client's pending.
    pub limited_per_client: u64,
    /// Because there were too many within a minute.
    pub limited_rate: u64,
    /// Because there were too many of the client's within a minute.
    pub limited_rate_per_client: u64,
    /// Control connections passed unread because there were too many.
    pub limited_sessions: u64,
    /// Control connections passed unread because there were too many of the client's.
    pub limited_sessions_per_client: u64,
    /// Requests refused for want of a port.
    pub no_port: u64,
    /// Changes that the kernel refused.
    pub kernel_errors: u64,
    /// Connections with the mark that belong to no pending pinhole.
    pub unattributed: u64,
    /// Connection attempts made before their pinhole that were in its way, and were forgotten.
    pub stale_attempts: u64,
    /// Times that conntrack events were lost.
    pub missed_events: u64,
    /// Ranges opened for sessions under TLS.
    pub ranges_opened: u64,
    /// Ranges closed because nothing came from the client for the idle limit.
    pub ranges_idle: u64,
    /// Ranges refused because the same client reached another server's at the same address.
    pub ranges_taken: u64,
    /// Data connections made through ranges.
    pub range_connections: u64,
    /// Times that rules which somebody else had removed were put back.
    pub restored: u64,
    /// Times that they could not be.
    pub restore_failures: u64,
}

impl DataConnection {
    /// As people see the pinhole that it came through.
    pub(super) fn info(&self) -> PinholeInfo {
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
        }
    }
}

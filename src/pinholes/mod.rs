//! The NAT plane: all pinholes and data connections, and everything that ends them.
//!
//! Shared by the queue workers, the thread that watches conntrack, and the control socket, behind
//! a mutex. No call waits for anything but the kernel's acknowledgement. It answers everything of
//! [`Gateway`](crate::engine::gateway::Gateway) but its events and its questions to conntrack.
//!
//! A pinhole is *reserved* (it has a port), then *open* (it is in the kernel). It goes at the first
//! connection, at its deadline, with its session, or when the session announces too many others.
//! A connection that was made through it lives on by itself.
//!
//! [`ports`] chooses the port, `admission` applies the limits, `holes` keeps what is pending,
//! `connections` goes by conntrack's events, `ending` closes. [`backend`] puts it into the kernel.

mod admission;
pub mod backend;
mod clients;
mod connections;
mod ending;
mod holes;
mod installing;
mod pinhole;
pub mod ports;
mod ranges;
mod stuck;
mod types;

pub use pinhole::{Pinhole, PinholeKey, RangeHole, RangeKey};
pub use types::{
    DataConnection, EventSource, Finished, Lookups, Parts, PinholeInfo, PinholeState, PlaneConfig,
    PlaneCounters, PlaneLimits, PlaneReport, RangeEnd, TlsRange, Transferred,
};

use clients::Clients;
use holes::{Holes, PendingHole};

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::Tuple;
use crate::engine::gateway::{Error, PinholeId, Request, Reservation, SessionId};
use crate::firewall::Published;
use ports::Listeners;
use ranges::Ranges;
use stuck::Stuck;

/// Reports that nobody takes are dropped beyond this number, oldest first.
const MAX_REPORTS: usize = 10_000;

/// All pinholes and data connections.
pub struct Plane {
    config: PlaneConfig,
    parts: Parts,
    holes: Holes,
    connections: HashMap<Tuple, DataConnection>,
    /// Of sessions that had data connections and are still there.
    transferred: HashMap<SessionId, Transferred>,
    ranges: Ranges,
    /// Used or given up, but not closed yet: the backend takes long to close.
    done: Vec<Pinhole>,
    /// Being closed, by a thread that doesn't hold the plane.
    closing: Vec<Pinhole>,
    /// Holes that the kernel refused to close.
    stuck: Stuck<PinholeKey, Pinhole>,
    clients: Clients,
    listeners: Option<(Duration, Listeners)>,
    user_ports: Vec<Published>,
    reports: VecDeque<PlaneReport>,
    counters: PlaneCounters,
    last_id: u64,
    next_port: u32,
}

impl Plane {
    /// A plane without pinholes.
    #[must_use]
    pub fn new(config: PlaneConfig, mut parts: Parts) -> Self {
        if let Some(range) = config.tls_range {
            parts.backend.set_range(range.ports);
        }
        Self {
            config,
            parts,
            holes: Holes::default(),
            connections: HashMap::new(),
            transferred: HashMap::new(),
            ranges: Ranges::default(),
            done: Vec::new(),
            closing: Vec::new(),
            stuck: Stuck::default(),
            clients: Clients::default(),
            listeners: None,
            user_ports: Vec::new(),
            reports: VecDeque::new(),
            counters: PlaneCounters::default(),
            last_id: 0,
            next_port: 0,
        }
    }

    /// See [`Gateway::admit`](crate::engine::gateway::Gateway::admit).
    ///
    /// # Errors
    /// As there.
    pub fn admit(&mut self, session: SessionId, client: IpAddr) -> Result<(), Error> {
        let now = self.now();
        self.clients.admit(
            session,
            client,
            now,
            &self.config.limits,
            &mut self.counters,
        )
    }

    /// See [`Gateway::reserve`](crate::engine::gateway::Gateway::reserve).
    ///
    /// # Errors
    /// As there.
    pub fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        // Otherwise a used hole looks pending, and its connection like that of its successor.
        self.catch_up();
        self.expire();
        let now = self.now();
        let Some(port) = self.choose_port(request) else {
            self.counters.no_port += 1;
            return Err(Error::NoPort(request.from));
        };
        let to = SocketAddr::new(request.to, port);
        let key = PinholeKey {
            from: request.from,
            to,
        };
        self.check_limits(request, key, now)?;
        self.make_room(request.session, key);
        let client = admission::client(request);
        self.clients.reserved(client, now);

        self.last_id += 1;
        let id = PinholeId(self.last_id);
        let deadline = now + self.config.deadline;
        self.holes.insert(
            id,
            PendingHole {
                session: request.session,
                client,
                mode: request.mode,
                pinhole: Pinhole {
                    from: request.from,
                    to,
                    land: request.land,
                    as_source: request.as_source.filter(|&ip| ip != request.from),
                    mark: request.mark & !self.config.mark.bit(),
                },
                deadline,
                open: false,
            },
        );
        Ok(Reservation { id, to })
    }

    /// See [`Gateway::open`](crate::engine::gateway::Gateway::open). The deadline starts anew.
    ///
    /// # Errors
    /// As there; also if the reservation is gone.
    pub fn open(&mut self, id: PinholeId) -> Result<(), Error> {
        let now = self.now();
        let Some(hole) = self.holes.get(id) else {
            let gone = "the pinhole expired or was superseded before it could open";
            return Err(Error::Kernel(gone.into()));
        };
        if hole.open {
            return Ok(());
        }
        let timeout = self.config.deadline;
        let key = hole.pinhole.key();
        match self.parts.backend.open(&hole.pinhole, timeout) {
            Ok(()) => {
                self.holes.opened(id, now, now + timeout);
                self.stuck.remove(&key);
                self.done.retain(|old| old.key() != key);
                self.counters.opened += 1;
                Ok(())
            }
            Err(error) => {
                self.counters.kernel_errors += 1;
                self.forget(id);
                Err(Error::Kernel(error.to_string()))
            }
        }
    }

    /// See [`Gateway::release`](crate::engine::gateway::Gateway::release).
    pub fn release(&mut self, id: PinholeId) {
        self.catch_up();
        self.drop_hole(id);
    }

    /// See [`Gateway::session_ended`](crate::engine::gateway::Gateway::session_ended).
    pub fn session_ended(&mut self, session: SessionId) {
        self.catch_up();
        self.clients.ended(session);
        let mut holes = Vec::new();
        while let Some(id) = self.holes.oldest_of(session) {
            holes.extend(self.forget(id).filter(|hole| hole.open));
        }
        self.transferred.remove(&session);
        self.close(holes.into_iter().map(|hole| hole.pinhole).collect());
        self.leave_range(session, RangeEnd::Session);
    }

    /// What happened since the last call, oldest first.
    pub fn take_reports(&mut self) -> impl Iterator<Item = PlaneReport> + use<> {
        std::mem::take(&mut self.reports).into_iter()
    }

    /// All pending holes, then open ranges, then all data connections, each in the order of their
    /// ids.
    #[must_use]
    pub fn pinholes(&self) -> Vec<PinholeInfo> {
        let now = self.now();
        let mut used: Vec<_> = self
            .connections
            .values()
            .map(DataConnection::info)
            .collect();
        used.sort_by_key(|info| info.id);
        let pending = self.holes.iter().map(|(id, hole)| hole.info(id, now));
        pending.chain(self.range_infos(now)).chain(used).collect()
    }

    /// How often things happened.
    #[must_use]
    pub fn counters(&self) -> PlaneCounters {
        self.counters
    }

    /// The name of the backend.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.parts.backend.name()
    }

    fn now(&self) -> Duration {
        (self.parts.clock)()
    }

    /// Forgets a hole that isn't pending any more. Doesn't close it.
    fn forget(&mut self, id: PinholeId) -> Option<PendingHole> {
        let hole = self.holes.remove(id)?;
        self.clients.settled(hole.client);
        Some(hole)
    }

    fn report(&mut self, report: PlaneReport) {
        if self.reports.len() >= MAX_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }
}

/// Whole seconds.
fn round_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;

//! The NAT plane: all pinholes and data connections, and everything that ends them.
//!
//! Shared by the queue workers, the thread that watches conntrack, and the control socket (behind
//! a mutex: no call waits for anything but the kernel's acknowledgement). Answers everything of
//! [`Gateway`](crate::engine::gateway::Gateway) but its events.
//!
//! A pinhole is *reserved* (it has a port), then *open* (it is in the kernel), and goes at the first
//! connection, at its deadline, with its session, or when the session announces too many others.
//! A connection that was made through it lives on by itself.

mod admission;
pub mod backend;
mod clients;
mod connections;
mod ending;
mod installing;
mod pinhole;
pub mod ports;
mod ranges;
mod stuck;
mod types;

pub use pinhole::{Key, Pinhole, RangeHole, RangeKey};
pub use types::{
    Config, Counters, DataConnection, EventSource, Finished, Parts, PinholeInfo, RangeEnd, Report,
    State, Transferred, Tuples,
};

use clients::Clients;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::gateway::{Error, PinholeId, Request, Reservation, SessionId};
use crate::engine::{Entry, Tuple};
use crate::firewall::Published;
use crate::ftp::Mode;
use ports::Listeners;
use ranges::Ranges;
use stuck::Stuck;

/// Reports that nobody takes are dropped beyond this number, oldest first.
const MAX_REPORTS: usize = 10_000;

/// All pinholes and data connections.
pub struct Plane {
    config: Config,
    parts: Parts,
    holes: BTreeMap<PinholeId, Hole>,
    by_key: HashMap<Key, PinholeId>,
    by_session: HashMap<SessionId, VecDeque<PinholeId>>,
    deadlines: BTreeSet<(Duration, PinholeId)>,
    /// Active holes since they opened, oldest first, until they are looked after.
    young: VecDeque<(Duration, PinholeId)>,
    look_at: Duration,
    connections: HashMap<Tuple, DataConnection>,
    /// Of sessions that had data connections and are still there.
    transferred: HashMap<SessionId, Transferred>,
    ranges: Ranges,
    /// Holes that are done with, where closing takes long.
    done: Vec<Pinhole>,
    /// Holes that are being closed.
    closing: Vec<Pinhole>,
    /// Holes that the kernel refused to close.
    stuck: Stuck<Key, Pinhole>,
    clients: Clients,
    listeners: Option<(Duration, Listeners)>,
    user_ports: Vec<Published>,
    reports: VecDeque<Report>,
    counters: Counters,
    last_id: u64,
    next_port: u32,
}

impl Plane {
    /// A plane without pinholes.
    #[must_use]
    pub fn new(config: Config, parts: Parts) -> Self {
        Self {
            config,
            parts,
            holes: BTreeMap::new(),
            by_key: HashMap::new(),
            by_session: HashMap::new(),
            deadlines: BTreeSet::new(),
            young: VecDeque::new(),
            look_at: Duration::ZERO,
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
            counters: Counters::default(),
            last_id: 0,
            next_port: 0,
        }
    }

    /// See [`Gateway::conntrack`](crate::engine::gateway::Gateway::conntrack).
    ///
    /// # Errors
    /// As there.
    pub fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        match self.parts.tuples.lookup(src, dst) {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) => Err(Error::NoConntrack),
            Err(error) => Err(Error::Kernel(format!("ask conntrack: {error}"))),
        }
    }

    /// See [`Gateway::admit`](crate::engine::gateway::Gateway::admit).
    ///
    /// # Errors
    /// As there.
    pub fn admit(&mut self, session: SessionId, client: IpAddr) -> Result<(), Error> {
        let now = self.now();
        self.clients
            .admit(session, client, now, &self.config, &mut self.counters)
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
        let Some(port) = self.choose_port(request, now) else {
            self.counters.no_port += 1;
            return Err(Error::NoPort(request.from));
        };
        let to = SocketAddr::new(request.to, port);
        let key = Key {
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
        self.by_key.insert(key, id);
        self.by_session
            .entry(request.session)
            .or_default()
            .push_back(id);
        self.deadlines.insert((deadline, id));
        self.holes.insert(
            id,
            Hole {
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
        let Some(hole) = self.holes.get_mut(&id) else {
            let gone = "the pinhole expired or was superseded before it could open";
            return Err(Error::Kernel(gone.into()));
        };
        if hole.open {
            return Ok(());
        }
        let timeout = self.config.deadline;
        match self.parts.backend.open(&hole.pinhole, timeout) {
            Ok(()) => {
                hole.open = true;
                self.deadlines.remove(&(hole.deadline, id));
                hole.deadline = now + timeout;
                self.deadlines.insert((hole.deadline, id));
                let key = hole.pinhole.key();
                self.stuck.remove(&key);
                self.done.retain(|old| old.key() != key);
                if hole.mode == Mode::Active {
                    self.young.push_back((now + ending::NEGLECTED, id));
                }
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
        while let Some(id) = self.oldest(session) {
            holes.extend(self.forget(id).filter(|hole| hole.open));
        }
        self.transferred.remove(&session);
        self.close(holes.into_iter().map(|hole| hole.pinhole).collect());
        self.leave_range(session, RangeEnd::Session);
    }

    /// What happened since the last call, oldest first.
    pub fn take_reports(&mut self) -> impl Iterator<Item = Report> + use<> {
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
        let pending = self.holes.iter().map(|(&id, hole)| hole.info(id, now));
        pending.chain(self.range_infos(now)).chain(used).collect()
    }

    /// How often things happened.
    #[must_use]
    pub fn counters(&self) -> Counters {
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

    fn oldest(&self, session: SessionId) -> Option<PinholeId> {
        self.by_session.get(&session)?.front().copied()
    }

    fn forget(&mut self, id: PinholeId) -> Option<Hole> {
        let hole = self.holes.remove(&id)?;
        self.clients.settled(hole.client);
        self.by_key.remove(&hole.pinhole.key());
        self.deadlines.remove(&(hole.deadline, id));
        // Most holes are used in the order in which they open: then there is nothing to wake up for.
        while let Some((_, id)) = self.young.front()
            && !self.holes.contains_key(id)
        {
            self.young.pop_front();
        }
        if let Some(ids) = self.by_session.get_mut(&hole.session) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_session.remove(&hole.session);
            }
        }
        Some(hole)
    }

    fn report(&mut self, report: Report) {
        if self.reports.len() >= MAX_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }
}

struct Hole {
    session: SessionId,
    /// Whose limits it counts for.
    client: IpAddr,
    mode: Mode,
    pinhole: Pinhole,
    deadline: Duration,
    open: bool,
}

impl Hole {
    fn info(&self, id: PinholeId, now: Duration) -> PinholeInfo {
        let left = self.deadline.saturating_sub(now);
        PinholeInfo {
            id,
            session: self.session,
            mode: self.mode,
            from: self.pinhole.from,
            to: self.pinhole.to,
            land: self.pinhole.land,
            as_source: self.pinhole.as_source,
            state: if self.open {
                State::Open
            } else {
                State::Reserved
            },
            expires_in: Some(round_up(left)),
            ports: None,
        }
    }
}

/// Whole seconds.
fn round_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;

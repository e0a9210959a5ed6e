//! The NAT plane: all pinholes and data connections, from the choice of a port to the end of the
//! transfer.
//!
//! A pinhole is *reserved* (it has a port), then *open* (it is in the kernel). It ends with its
//! first connection, at its deadline, with its session, or when its session announces too many
//! others. A connection that was made through it lives on in conntrack.
//!
//! Who owns what:
//!
//! | state | owner | derived from it |
//! |---|---|---|
//! | pinholes and ranges, and how long they last | the plane (`holes`, `ranges`) | the kernel's elements or rules, which a [`backend`] writes and deletes; after a flush, [`Plane::install`] writes them again |
//! | the text of the rules that are in the kernel | the backend iptables, which needs it to delete them where it doesn't know their handles (iptables-legacy) | |
//! | connections | conntrack | the plane's list of data connections (`connections`), which goes by conntrack's events |
//! | what the session announced | the session machine ([`crate::ftp`]) | it names pinholes by their ids |
//!
//! The kernel's own timeouts of elements and rules matter only if the daemon is killed. The next
//! daemon adopts the pinholes that are open then ([`Plane::adopt`]): they belong to no session.
//!
//! All threads share the plane behind a mutex. While it is held, nothing is waited for but the kernel
//! and, with the backend iptables, its tools. The plane answers all of [`Gateway`](crate::engine::gateway::Gateway) but events and
//! questions to conntrack.
//!
//! [`ports`] chooses the port, `admission` applies the limits, `ending` closes pinholes, and
//! `installing` puts the backend's objects into place.

mod admission;
pub mod backend;
mod clients;
mod connections;
mod ending;
mod fixed;
mod holes;
mod installing;
mod pinhole;
pub mod ports;
mod ranges;
mod seldom;
mod stuck;
mod twins;
mod types;
mod used;

pub use pinhole::{Pinhole, PinholeKey, RangeHole, RangeKey};
pub use seldom::Seldom;
pub use types::{
    DataConnection, EventSource, Finished, Lookups, Parts, PinholeInfo, PinholeState, PlaneConfig,
    PlaneCounters, PlaneLimits, PlaneReport, RangeEnd, TlsRange, Transferred,
};

use clients::Clients;
use fixed::FixedPorts;
use holes::{Holes, PendingHole};

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::Tuple;
use crate::engine::gateway::{Error, PinholeId, Request, Reservation, SessionId};
use crate::firewall::Published;
use ports::Listeners;
use ranges::Ranges;
use stuck::Stuck;
use used::Used;

/// How many reports are kept until they are taken; beyond it, the oldest is dropped.
const MAX_REPORTS: usize = 10_000;

/// How many pinholes are opened together for one peer at most.
const MOST_TOGETHER: u32 = 8;
/// Of a range of ports they may take one in so many.
const SHARE: u32 = 8;

/// How many pinholes of the past are shown.
const MAX_PAST: usize = 1000;

/// The session of pinholes that were adopted from a daemon before this one. Sessions of this one are
/// numbered from 1.
const NO_SESSION: SessionId = SessionId(0);

/// All pinholes and data connections.
pub struct Plane {
    config: PlaneConfig,
    parts: Parts,
    holes: Holes,
    /// The data connections that conntrack has, until it deletes their entries.
    connections: HashMap<Tuple, DataConnection>,
    /// Those that come from a fixed port, also if they began before this process.
    fixed: FixedPorts,
    /// Those of them that aren't known to be over.
    live: BTreeSet<(SessionId, Tuple)>,
    /// Pinholes that were used or have expired, oldest first.
    past: VecDeque<PinholeInfo>,
    /// The twins of pending pinholes that have one: see `twins`.
    twins: HashMap<PinholeId, PinholeId>,
    /// Totals of the sessions that have had data connections and go on.
    transferred: HashMap<SessionId, Transferred>,
    ranges: Ranges,
    /// Pinholes that were adopted, and that nobody had used before.
    unused: HashSet<PinholeKey>,
    /// Pinholes that have ended, but are open in the kernel until the next
    /// [`take_closing`](Self::take_closing).
    to_close: Vec<Pinhole>,
    /// Pinholes that were used, and that the backend itself holds closed for a moment.
    used: Used,
    /// Pinholes that a thread is closing without holding the plane.
    closing: Vec<Pinhole>,
    /// Pinholes that the kernel refused to close.
    stuck: Stuck<PinholeKey, Pinhole>,
    clients: Clients,
    listeners: Option<(Duration, Listeners)>,
    user_ports: Vec<Published>,
    reports: VecDeque<PlaneReport>,
    /// Pinholes that have ended since they were [taken](Self::take_ended); `None`: nobody asks.
    ended: Option<Vec<PinholeKey>>,
    /// Conntrack's list has to be read, since events were lost.
    behind: bool,
    /// The connections that were learnt from that list. The events of their starts may be on their way.
    listed: HashSet<Tuple>,
    troubles: Troubles,
    counters: PlaneCounters,
    last_id: u64,
    next_port: u32,
}

/// What may go wrong many times in a row.
#[derive(Debug, Default)]
struct Troubles {
    /// Events can't be read.
    unread: Seldom,
    /// Events were lost.
    missed: Seldom,
    /// Conntrack's list can't be read.
    unlisted: Seldom,
    /// Pinholes can't be closed.
    stuck: Seldom,
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
            fixed: FixedPorts::default(),
            live: BTreeSet::new(),
            past: VecDeque::new(),
            twins: HashMap::new(),
            transferred: HashMap::new(),
            ranges: Ranges::default(),
            unused: HashSet::new(),
            to_close: Vec::new(),
            used: Used::default(),
            closing: Vec::new(),
            stuck: Stuck::default(),
            clients: Clients::default(),
            listeners: None,
            user_ports: Vec::new(),
            reports: VecDeque::new(),
            ended: None,
            behind: false,
            listed: HashSet::new(),
            troubles: Troubles::default(),
            counters: PlaneCounters::default(),
            last_id: 0,
            next_port: 0,
        }
    }

    /// Goes by other settings from now on. Pinholes, ranges and connections that exist stay, with the
    /// deadlines that they have.
    ///
    /// [`PlaneConfig::mark`] and the ports of [`PlaneConfig::tls_range`] stay as they are: they are built
    /// into the backend's objects.
    pub fn reconfigure(&mut self, new: &PlaneConfig) {
        let config = &mut self.config;
        config.data_ports = new.data_ports;
        config.deadline = new.deadline;
        config.limits = new.limits;
        if let (Some(range), Some(new)) = (&mut config.tls_range, new.tls_range) {
            range.idle = new.idle;
        }
    }

    /// Sets where in their range the search for free ports begins; each goes on behind the last one. A
    /// process should begin elsewhere than the one before it: a connection that was made through that
    /// one's pinhole, and has just ended, would be taken for one through a new pinhole with its port.
    pub fn begin_ports_at(&mut self, start: u32) {
        self.next_port = start;
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
        // A pinhole whose use isn't known yet would be replaced, and its connection taken for that
        // of the new one.
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
        let pinhole = Pinhole {
            from: request.from,
            to,
            land: request.land,
            as_source: request.as_source,
            mark: request.mark,
        };
        let deadline = now + self.config.deadline;
        let id = self.insert_reserved(request, pinhole, deadline, false);
        if let Some(twin) = &request.twin {
            self.reserve_twin(id, request, twin, deadline);
        }
        Ok(Reservation { id, to })
    }

    /// Adds a pinhole that isn't open yet.
    fn insert_reserved(
        &mut self,
        request: &Request,
        pinhole: Pinhole,
        deadline: Duration,
        is_twin: bool,
    ) -> PinholeId {
        let client = admission::client(request);
        self.clients.reserved(client, self.now());
        let id = self.next_id();
        let hole = PendingHole {
            session: request.session,
            client,
            mode: request.mode,
            pinhole: Pinhole {
                as_source: pinhole.as_source.filter(|&ip| ip != pinhole.from),
                mark: pinhole.mark & !self.config.mark.bit(),
                ..pinhole
            },
            deadline,
            open: false,
            is_twin,
        };
        self.holes.insert(id, hole);
        id
    }

    /// See [`Gateway::open`](crate::engine::gateway::Gateway::open). The deadline starts again.
    ///
    /// # Errors
    /// As there; also if the reservation is gone.
    pub fn open(&mut self, id: PinholeId) -> Result<(), Error> {
        let twin = self.twin(id);
        let opened = twin.map_or(Ok(()), |twin| self.open_one(twin));
        let opened = opened.and_then(|()| self.open_one(id));
        if opened.is_err() {
            [Some(id), twin]
                .into_iter()
                .flatten()
                .for_each(|id| self.drop_hole(id));
        }
        opened
    }

    /// The same for several, in few changes of the kernel where the backend can do that. One result for
    /// each id, in their order. [`Error::Kernel`]: that pinhole isn't open, and its reservation is gone.
    pub fn open_together(&mut self, ids: &[PinholeId]) -> Vec<Result<(), Error>> {
        let mut new: BTreeMap<PinholeKey, (PinholeId, Pinhole)> = BTreeMap::new();
        for id in ids
            .iter()
            .flat_map(|id| [self.twin(*id), Some(*id)])
            .flatten()
        {
            if let Some(hole) = self.holes.get(id).filter(|hole| !hole.open) {
                new.insert(hole.pinhole.key(), (id, hole.pinhole.clone()));
            }
        }
        let timeout = self.config.deadline;
        let holes: Vec<_> = new
            .values()
            .map(|(_, hole)| (hole.clone(), timeout))
            .collect();
        if holes.len() > 1 && self.parts.backend.open_all(&holes).is_ok() {
            for (key, (id, _)) in new {
                self.note_open(id, key);
            }
        }
        // The rest, one by one: whatever is wrong with one of them is for that one alone.
        ids.iter().map(|id| self.open(*id)).collect()
    }

    /// Whether something with this key may be in the kernel, though no pinhole with it is open.
    fn may_be_there(&self, key: PinholeKey) -> bool {
        let mut ended = self.to_close.iter().chain(&self.closing);
        self.stuck.has(&key) || self.used.has(&key) || ended.any(|old| old.key() == key)
    }

    /// A pinhole was opened in the kernel.
    fn note_open(&mut self, id: PinholeId, key: PinholeKey) {
        let now = self.now();
        self.holes.opened(id, now, now + self.config.deadline);
        self.note_open_again(key);
        self.counters.opened += 1;
    }

    fn open_one(&mut self, id: PinholeId) -> Result<(), Error> {
        let Some(hole) = self.holes.get(id) else {
            let gone = "the pinhole expired or was superseded before it could open";
            return Err(Error::Kernel(gone.into()));
        };
        if hole.open {
            return Ok(());
        }
        let timeout = self.config.deadline;
        let key = hole.pinhole.key();
        let opened = match self.may_be_there(key) {
            true => self.parts.backend.open(&hole.pinhole, timeout),
            false => self.parts.backend.open_new(&hole.pinhole, timeout),
        };
        match opened {
            Ok(()) => {
                self.note_open(id, key);
                Ok(())
            }
            Err(error) => {
                self.counters.kernel_errors += 1;
                self.forget(id);
                Err(Error::Kernel(error.to_string()))
            }
        }
    }

    /// A pinhole took the place of one that may be waiting to be closed.
    fn note_open_again(&mut self, key: PinholeKey) {
        self.stuck.remove(&key);
        self.used.replaced(&key);
        self.to_close.retain(|old| old.key() != key);
    }

    /// See [`Gateway::release`](crate::engine::gateway::Gateway::release).
    pub fn release(&mut self, id: PinholeId) {
        self.catch_up();
        self.drop_hole(id);
    }

    /// Whether a session has pinholes or a range: then its end changes something in the kernel.
    #[must_use]
    pub fn has_open(&self, session: SessionId) -> bool {
        self.holes.oldest_of(session).is_some() || self.ranges.has(session)
    }

    /// See [`Gateway::session_ended`](crate::engine::gateway::Gateway::session_ended).
    pub fn session_ended(&mut self, session: SessionId) {
        // A pinhole whose use isn't known yet would be closed as unused.
        if self.has_open(session) {
            self.catch_up();
        }
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

    /// All pending pinholes, then open ranges, then data connections that aren't over, each in the order
    /// of ids.
    #[must_use]
    pub fn pinholes(&self) -> Vec<PinholeInfo> {
        let now = self.now();
        let connection = |(_, original): &(SessionId, Tuple)| {
            let connection = self.connections.get(original)?;
            Some(connection.info(*original, now))
        };
        let mut used: Vec<_> = self.live.iter().filter_map(connection).collect();
        used.sort_by_key(|info| info.id);
        let pending = self.holes.iter().map(|(id, hole)| hole.info(id, now));
        pending.chain(self.range_infos(now)).chain(used).collect()
    }

    /// Pinholes that were used or have expired, oldest first: the last ones only.
    #[must_use]
    pub fn past(&self) -> Vec<PinholeInfo> {
        self.past.iter().cloned().collect()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> PlaneCounters {
        self.counters
    }

    /// How many pinholes for one peer should be [opened together](Self::open_together) at most. Each has a
    /// port until it is used, so if many are opened together, ports run out that would be free again in a
    /// moment: those of a narrow range, or those with which a line keeps its length.
    #[must_use]
    pub fn most_together(&self, request: &Request) -> usize {
        let range = self.config.data_ports.filter(|_| request.from_range);
        let most = range.map_or(MOST_TOGETHER, |range| range.size() / SHARE);
        usize::try_from(most.clamp(1, MOST_TOGETHER)).unwrap_or(1)
    }

    /// Whether pinholes should be [opened together](Self::open_together).
    #[must_use]
    pub fn opens_slowly(&self) -> bool {
        self.parts.backend.opens_slowly()
    }

    /// The name of the backend.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.parts.backend.name()
    }

    fn next_id(&mut self) -> PinholeId {
        self.last_id += 1;
        PinholeId(self.last_id)
    }

    fn now(&self) -> Duration {
        (self.parts.clock)()
    }

    /// Takes a pinhole out of the list of pending ones. Doesn't close it in the kernel.
    fn forget(&mut self, id: PinholeId) -> Option<PendingHole> {
        let hole = self.holes.remove(id)?;
        self.twins.remove(&id);
        self.clients.settled(hole.client);
        if let Some(ended) = self.ended.as_mut().filter(|_| hole.open) {
            ended.push(hole.pinhole.key());
        }
        Some(hole)
    }

    /// Has the plane remember which pinholes end. [`take_ended`](Self::take_ended) must be called then.
    pub fn remember_ended(&mut self) {
        self.ended.get_or_insert_default();
    }

    /// The open pinholes that have ended since the last call: used, closed, or not used in time.
    pub fn take_ended(&mut self) -> Vec<PinholeKey> {
        self.ended.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A pinhole that is open, and how long it may still be used.
    #[must_use]
    pub fn open_pinhole(&self, id: PinholeId) -> Option<(Pinhole, Duration)> {
        let hole = self.holes.get(id).filter(|hole| hole.open)?;
        let left = hole.deadline.saturating_sub(self.now());
        Some((hole.pinhole.clone(), left))
    }

    fn report(&mut self, report: PlaneReport) {
        let past = match &report {
            PlaneReport::Finished(finished) => Some(finished.info()),
            PlaneReport::Expired(hole) => Some(hole.clone()),
            _ => None,
        };
        if let Some(past) = past {
            if self.past.len() >= MAX_PAST {
                self.past.pop_front();
            }
            self.past.push_back(past);
        }
        if self.reports.len() >= MAX_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
    }
}

/// In whole seconds, rounded up.
fn round_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests;

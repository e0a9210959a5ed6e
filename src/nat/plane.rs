//! The NAT plane: all pinholes and data connections, and everything that ends them.
//!
//! Shared by the queue workers, the thread that watches conntrack, and the control socket (behind
//! a mutex: no call waits for anything but the kernel's acknowledgement). Answers everything of
//! [`Gateway`](crate::engine::gateway::Gateway) but its events.
//!
//! A pinhole is *reserved* (it has a port), then *open* (it is in the kernel), and goes at the first
//! connection, at its deadline, with its session, or when the session announces too many others.
//! A connection that was made through it lives on by itself.

mod types;

pub use types::{
    Config, Counters, DataConnection, EventSource, Finished, Parts, PinholeInfo, Report, State,
    Tuples,
};

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::backend::{BackendError, Closing};
use super::conntrack::{Bytes, Completeness, ConntrackEvent, Entry, Tuple};
use super::pinhole::{Key, Pinhole};
use super::ports::{self, Holder, Listeners};
use crate::engine::gateway::{Error, Mode, PinholeId, Request, Reservation, SessionId};

/// How long the list of the gateway's own listening ports is believed.
const LISTENERS_LIFE: Duration = Duration::from_secs(5);
/// When a hole that the kernel refused to close is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// When an active pinhole that nobody used is looked after: before the server sends its SYN again
/// (1 s, RFC 6298 §2.1).
const NEGLECTED: Duration = Duration::from_millis(500);
/// How many of them, at most, in that time: each costs a walk through conntrack's table.
const LOOK_AFTER: usize = 8;
/// The time over which [`Config::per_client_per_minute`] counts.
const MINUTE: Duration = Duration::from_secs(60);
/// Reports that nobody takes are dropped beyond this number, oldest first.
const MAX_REPORTS: usize = 10_000;
/// Clients whose rate is remembered; beyond this, all start anew.
const MAX_CLIENTS: usize = 65_536;

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
    /// Holes that are done with, where closing takes long.
    done: Vec<Pinhole>,
    /// Holes that are being closed.
    closing: Vec<Pinhole>,
    /// Holes that the kernel refused to close.
    stuck: HashMap<Key, Pinhole>,
    retry_at: Duration,
    clients: HashMap<IpAddr, Rate>,
    listeners: Option<(Duration, Listeners)>,
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
            done: Vec::new(),
            closing: Vec::new(),
            stuck: HashMap::new(),
            retry_at: Duration::ZERO,
            clients: HashMap::new(),
            listeners: None,
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
                mode: request.mode,
                pinhole: Pinhole {
                    from: request.from,
                    to,
                    land: request.land,
                    as_source: request.as_source.filter(|&ip| ip != request.from),
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
                    self.young.push_back((now + NEGLECTED, id));
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
        let mut holes = Vec::new();
        while let Some(id) = self.oldest(session) {
            holes.extend(self.forget(id).filter(|hole| hole.open));
        }
        self.close(holes.into_iter().map(|hole| hole.pinhole).collect());
    }

    /// Learns what conntrack has reported. To be called when its events are readable; every call
    /// that looks at holes does so as well. Whether they could be read.
    pub fn catch_up(&mut self) -> bool {
        let mut events = Vec::new();
        let completeness = match self.parts.events.read(&mut events) {
            Ok(completeness) => completeness,
            Err(error) => {
                log::warn!("can't read conntrack events: {error}");
                return false;
            }
        };
        let mut used = Vec::new();
        for event in events {
            match event {
                ConntrackEvent::New { entry, .. } => {
                    used.extend(self.connected(entry.original).map(|(_, hole)| hole));
                }
                ConntrackEvent::Destroy {
                    entry,
                    bytes,
                    lifetime,
                    ..
                } => {
                    self.on_conntrack_destroy(entry.original, bytes, lifetime);
                }
            }
        }
        self.close(used);
        if completeness == Completeness::Missed {
            self.resync();
        }
        true
    }

    /// A connection with the mark exists: its hole, if it has one, is used and closed.
    pub fn on_conntrack_new(&mut self, original: Tuple) -> Option<DataConnection> {
        let (connection, hole) = self.connected(original)?;
        self.close(vec![hole]);
        Some(connection)
    }

    /// A connection with the mark exists: its hole, which is to be closed, is forgotten.
    fn connected(&mut self, original: Tuple) -> Option<(DataConnection, Pinhole)> {
        let key = Key {
            from: original.src.ip(),
            to: original.dst,
        };
        let id = self.by_key.get(&key).copied();
        let hole = id.and_then(|id| self.holes.get(&id)).filter(|h| h.open);
        let (Some(id), Some(hole)) = (id, hole) else {
            self.counters.unattributed += 1;
            return None;
        };
        let connection = DataConnection {
            pinhole: id,
            session: hole.session,
            mode: hole.mode,
            from: original.src,
            to: original.dst,
            land: hole.pinhole.land,
            as_source: hole.pinhole.as_source,
            started: self.now(),
        };
        let hole = self.forget(id)?;
        self.counters.used += 1;
        if self.connections.len() < self.config.connections {
            self.connections.insert(original, connection);
        }
        self.report(Report::Connected(connection));
        Some((connection, hole.pinhole))
    }

    /// A connection with the mark is gone.
    pub fn on_conntrack_destroy(
        &mut self,
        original: Tuple,
        bytes: Option<Bytes>,
        lifetime: Option<Duration>,
    ) -> Option<Finished> {
        let connection = self.connections.remove(&original)?;
        let known = self.now().saturating_sub(connection.started);
        let finished = Finished {
            connection,
            bytes,
            lifetime: lifetime.unwrap_or(known),
        };
        self.report(Report::Finished(finished));
        Some(finished)
    }

    /// Closes holes whose deadline has passed. To be called at [`next_deadline`](Self::next_deadline).
    pub fn expire(&mut self) {
        let now = self.now();
        let mut holes = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            if let Some(hole) = self.forget(id) {
                let mut info = hole.info(id, now);
                info.state = State::Expired;
                self.counters.expired += 1;
                self.report(Report::Expired(info));
                holes.extend(hole.open.then_some(hole.pinhole));
            }
            // Whatever the maps say, this one is done with.
            self.deadlines.remove(&(deadline, id));
        }
        self.close(holes);
        if !self.stuck.is_empty() && now >= self.retry_at {
            self.retry_stuck(now);
        }
    }

    /// When [`expire`](Self::expire) has something to do, on the plane's clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        let retry = (!self.stuck.is_empty()).then_some(self.retry_at);
        let look = self.young.front().map(|&(at, _)| at.max(self.look_at));
        first.into_iter().chain(retry).chain(look).min()
    }

    /// Active pinholes that should have been used by now: see
    /// [`Conntrack::forget_unanswered`](super::conntrack::Conntrack::forget_unanswered). To be
    /// called at [`next_deadline`](Self::next_deadline); names each hole once, and only some of
    /// very many.
    pub fn neglected(&mut self) -> Vec<Key> {
        let now = self.now();
        if now < self.look_at {
            return Vec::new();
        }
        let mut keys = Vec::new();
        while let Some(&(at, id)) = self.young.front() {
            if at > now {
                break;
            }
            self.young.pop_front();
            let hole = self.holes.get(&id).filter(|_| keys.len() < LOOK_AFTER);
            keys.extend(hole.map(|hole| hole.pinhole.key()));
        }
        if !keys.is_empty() {
            self.look_at = now + NEGLECTED;
        }
        keys
    }

    /// Whether holes wait to be closed by [`take_closing`](Self::take_closing).
    #[must_use]
    pub fn has_closing(&self) -> bool {
        !self.done.is_empty() && self.closing.is_empty()
    }

    /// Work that closes holes and takes long, to be done while others use the plane; then call
    /// [`closed`](Self::closed). `None` if there is none, or some is being done already.
    pub fn take_closing(&mut self) -> Option<Box<dyn FnOnce() -> Result<(), BackendError> + Send>> {
        if !self.has_closing() {
            return None;
        }
        let holes = std::mem::take(&mut self.done);
        match self.parts.backend.closing(holes.clone()) {
            Ok(Some(Closing { holes, work })) => {
                self.closing = holes;
                Some(work)
            }
            Ok(None) => None,
            Err(error) => {
                self.stay_open(holes, &error);
                None
            }
        }
    }

    /// Learns what came of the work.
    pub fn closed(&mut self, done: Result<(), BackendError>) {
        let holes = std::mem::take(&mut self.closing);
        if let Err(error) = self.parts.backend.closed(done) {
            self.stay_open(holes, &error);
        }
    }

    /// Counts what came of [`neglected`](Self::neglected): attempts that were forgotten.
    pub fn forgot(&mut self, attempts: usize) {
        let attempts = u64::try_from(attempts).unwrap_or(u64::MAX);
        self.counters.stale_attempts = self.counters.stale_attempts.saturating_add(attempts);
    }

    /// What happened since the last call, oldest first.
    pub fn take_reports(&mut self) -> impl Iterator<Item = Report> + use<> {
        std::mem::take(&mut self.reports).into_iter()
    }

    /// All pending holes, then all data connections, each in the order of their ids.
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
        pending.chain(used).collect()
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

    /// Installs the backend's objects, and opens anew the holes that were open: at start-up, or
    /// when [`in_place`](Self::in_place) says that somebody flushed them.
    ///
    /// # Errors
    /// What the backend says. Holes that can't be opened again are dropped and counted.
    pub fn install(&mut self) -> Result<(), BackendError> {
        self.catch_up();
        self.parts.backend.install()?;
        self.done.clear();
        let now = self.now();
        let open = self.holes.iter().filter(|(_, hole)| hole.open);
        let mut lost = Vec::new();
        for (&id, hole) in open {
            let left = hole.deadline.saturating_sub(now);
            if let Err(error) = self.parts.backend.open(&hole.pinhole, left) {
                log::warn!("pinhole {} is lost: {error}", id.0);
                lost.push(id);
            }
        }
        for id in lost {
            self.counters.kernel_errors += 1;
            self.forget(id);
        }
        self.stuck.clear();
        Ok(())
    }

    /// Whether the backend's objects are still in place.
    ///
    /// # Errors
    /// If it couldn't be found out.
    pub fn in_place(&mut self) -> Result<bool, BackendError> {
        self.parts.backend.verify()
    }

    /// Removes all holes and the backend's objects.
    ///
    /// # Errors
    /// What the backend says.
    pub fn remove(&mut self) -> Result<(), BackendError> {
        self.holes.clear();
        self.by_key.clear();
        self.by_session.clear();
        self.deadlines.clear();
        self.young.clear();
        self.done.clear();
        self.stuck.clear();
        self.parts.backend.remove()
    }

    fn now(&self) -> Duration {
        (self.parts.clock)()
    }

    fn choose_port(&mut self, request: &Request, now: Duration) -> Option<u16> {
        if request.published {
            let stale = |at: Duration| now.saturating_sub(at) > LISTENERS_LIFE;
            if self.listeners.as_ref().is_none_or(|(at, _)| stale(*at)) {
                self.listeners = Some((now, (self.parts.listeners)()));
            }
        }
        let listeners = self
            .listeners
            .as_ref()
            .filter(|_| request.published)
            .map(|(_, listeners)| listeners);
        let holder = |port| {
            let to = SocketAddr::new(request.to, port);
            // The server itself runs on the gateway: its own socket is where the hole leads.
            let listening = to != request.land
                && listeners.is_some_and(|listeners| listeners.contains(request.to, port));
            let key = Key {
                from: request.from,
                to,
            };
            let hole = self.by_key.get(&key).and_then(|id| self.holes.get(id));
            match hole {
                _ if listening => Holder::Other,
                None => Holder::Nobody,
                Some(hole) if hole.session != request.session => Holder::Other,
                // The same announcement anew: the hole is replaced in any case.
                Some(hole) if hole.pinhole.land == request.land => Holder::Nobody,
                Some(_) => Holder::Same,
            }
        };
        let port = ports::choose(
            request.land.port(),
            request.published,
            self.config.data_ports,
            self.next_port,
            holder,
        )?;
        // Not the same port at once again: the peer may still have a connection on it.
        self.next_port = self.next_port.wrapping_add(1);
        Some(port)
    }

    fn check_limits(&mut self, request: &Request, key: Key, now: Duration) -> Result<(), Error> {
        let own = self
            .by_session
            .get(&request.session)
            .map_or(0, VecDeque::len);
        let replaces = self.by_key.contains_key(&key) || own >= self.config.per_session;
        if self.holes.len() >= self.config.total && !replaces {
            self.counters.limited += 1;
            return Err(Error::Limit("too many are pending in total"));
        }
        let client = match request.mode {
            Mode::Passive => request.from,
            Mode::Active => request.land.ip(),
        };
        if !self.within_rate(client, now) {
            self.counters.limited += 1;
            return Err(Error::Limit("too many per minute for this client"));
        }
        Ok(())
    }

    fn within_rate(&mut self, client: IpAddr, now: Duration) -> bool {
        let Some(limit) = self.config.per_client_per_minute else {
            return true;
        };
        if self.clients.len() >= MAX_CLIENTS {
            self.clients
                .retain(|_, rate| now.saturating_sub(rate.since) < MINUTE);
            if self.clients.len() >= MAX_CLIENTS {
                self.clients.clear();
            }
        }
        let rate = self.clients.entry(client).or_insert(Rate {
            since: now,
            count: 0,
        });
        if now.saturating_sub(rate.since) >= MINUTE {
            *rate = Rate {
                since: now,
                count: 0,
            };
        }
        let within = rate.count < limit;
        rate.count = rate.count.saturating_add(1);
        within
    }

    /// Drops the session's own hole on the key, and its oldest ones beyond the limit.
    fn make_room(&mut self, session: SessionId, key: Key) {
        if let Some(&id) = self.by_key.get(&key) {
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
        let count = |plane: &Self| plane.by_session.get(&session).map_or(0, VecDeque::len);
        while count(self) > 0 && count(self) >= self.config.per_session {
            let Some(id) = self.oldest(session) else {
                return;
            };
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
    }

    fn oldest(&self, session: SessionId) -> Option<PinholeId> {
        self.by_session.get(&session)?.front().copied()
    }

    /// Closes a hole in the kernel if it is there, and forgets it.
    fn drop_hole(&mut self, id: PinholeId) {
        if let Some(hole) = self.forget(id).filter(|hole| hole.open) {
            self.close(vec![hole.pinhole]);
        }
    }

    /// Closes holes in the kernel, at once; what it refuses to close is tried again later.
    fn close(&mut self, holes: Vec<Pinhole>) {
        if holes.is_empty() {
            return;
        }
        if self.parts.backend.closes_slowly() {
            self.done.extend(holes);
        } else if let Err(error) = self.parts.backend.close_all(&holes) {
            self.stay_open(holes, &error);
        }
    }

    fn stay_open(&mut self, holes: Vec<Pinhole>, error: &BackendError) {
        self.counters.kernel_errors += 1;
        log::warn!("{} pinholes stay open for now: {error}", holes.len());
        if self.stuck.is_empty() {
            self.retry_at = self.now() + RETRY;
        }
        for hole in holes {
            if self.stuck.len() < self.config.total {
                self.stuck.insert(hole.key(), hole);
            }
        }
    }

    fn forget(&mut self, id: PinholeId) -> Option<Hole> {
        let hole = self.holes.remove(&id)?;
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

    fn retry_stuck(&mut self, now: Duration) {
        let (by_key, holes, backend) = (&self.by_key, &self.holes, &mut self.parts.backend);
        self.stuck.retain(|key, pinhole| {
            // Meanwhile replaced by another one.
            let replaced = by_key.get(key).and_then(|id| holes.get(id));
            !replaced.is_some_and(|hole| hole.open) && backend.close(pinhole).is_err()
        });
        self.retry_at = now + RETRY;
    }

    /// Events were lost: compares with the kernel's list of connections.
    fn resync(&mut self) {
        self.counters.missed_events += 1;
        self.report(Report::MissedEvents);
        let entries = match self.parts.tuples.marked(self.config.mark) {
            Ok(entries) => entries,
            Err(error) => {
                log::warn!("can't list conntrack entries: {error}");
                return;
            }
        };
        let existing: std::collections::HashSet<_> =
            entries.iter().map(|entry| entry.original).collect();
        for &original in &existing {
            if !self.connections.contains_key(&original) {
                self.on_conntrack_new(original);
            }
        }
        let gone: Vec<_> = self
            .connections
            .keys()
            .filter(|original| !existing.contains(*original))
            .copied()
            .collect();
        for original in gone {
            self.on_conntrack_destroy(original, None, None);
        }
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
            expires_in: Some(left.as_secs() + u64::from(left.subsec_nanos() > 0)),
        }
    }
}

struct Rate {
    since: Duration,
    count: u32,
}

#[cfg(test)]
mod tests;

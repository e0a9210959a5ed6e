//! Ranges of ports for sessions under TLS: who has one, and what ends it.
//!
//! A range is open for one client, at one public address, towards one server. All sessions between
//! them share it. A session leaves it when its control connection ends, when conntrack deletes the
//! entry of that connection, or when nothing comes from the client for the idle limit. When the last
//! session leaves, the range is closed.
//!
//! While a range is open, a session of the same client with another server at the same public address
//! gets none: a packet doesn't say which server it is for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::stuck::Stuck;
use super::{
    DataConnection, PinholeInfo, PinholeState, Plane, PlaneReport, RangeEnd, TlsRange, round_up,
};
use crate::engine::Tuple;
use crate::engine::gateway::{Error, PinholeId, RangeRequest, SessionId};
use crate::ftp::Mode;
use crate::net::PortRange;
use crate::pinholes::{PinholeKey, RangeHole, RangeKey};

/// The kernel's timeout of a range, in idle limits: it ends the ranges of a killed daemon. It is
/// renewed when half of it has passed.
const KERNEL_LIFE: u32 = 4;

/// All ranges.
#[derive(Default)]
pub(super) struct Ranges {
    open: BTreeMap<RangeKey, OpenRange>,
    sessions: HashMap<SessionId, Share>,
    controls: HashMap<Tuple, SessionId>,
    deadlines: BTreeSet<(Duration, SessionId)>,
    /// Ranges that the kernel refused to close.
    stuck: Stuck<RangeKey, RangeHole>,
    /// Whether the user was warned that the range hides a published port.
    warned: bool,
}

/// A range that is open.
struct OpenRange {
    hole: RangeHole,
    /// When the kernel's timeout ends.
    lasts: Duration,
    sessions: BTreeSet<SessionId>,
}

/// A session that has a range.
#[derive(Clone, Copy)]
struct Share {
    id: PinholeId,
    key: RangeKey,
    control: Tuple,
    deadline: Duration,
}

impl Ranges {
    /// Whether a session has a share in one.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// When a session is idle for too long, or closing is tried again.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        first.into_iter().chain(self.stuck.next_deadline()).min()
    }
}

impl Plane {
    /// See [`Gateway::open_range`](crate::engine::gateway::Gateway::open_range).
    ///
    /// # Errors
    /// As there.
    pub fn open_range(&mut self, request: &RangeRequest) -> Result<(), Error> {
        let Some(TlsRange { ports, idle }) = self.config.tls_range else {
            return Err(Error::Kernel("no range of ports is configured".into()));
        };
        self.catch_up();
        let now = self.now();
        self.expire_ranges(now);
        let session = request.session;
        let hole = RangeHole {
            from: request.from,
            to: request.to,
            land: request.land,
            as_source: request.as_source.filter(|&ip| ip != request.from),
        };
        let key = hole.key();
        let mine = self.ranges.sessions.get(&session).copied();
        // The control connection is translated in another way now, so the old range leads elsewhere.
        if mine.is_some_and(|mine| mine.key != key || mine.control != request.control) {
            self.leave_range(session, RangeEnd::Conntrack);
        }
        if let Some(other) = self.ranges.open.get(&key).map(|range| range.hole.land)
            && other != hole.land
        {
            self.counters.ranges_taken += 1;
            self.leave_range(session, RangeEnd::Conntrack);
            return Err(Error::RangeTaken(other));
        }
        if self.ranges.sessions.len() >= self.config.limits.ranges && mine.is_none() {
            self.counters.limited += 1;
            return Err(Error::Limit("ranges"));
        }
        let is_new = self.put_range(hole, idle, now)?;
        let deadline = now + idle;
        let id = if let Some(old) = self.ranges.sessions.get(&session) {
            self.ranges.deadlines.remove(&(old.deadline, session));
            old.id
        } else {
            self.parts.events.watch(request.control, true);
            self.next_id()
        };
        let share = Share {
            id,
            key,
            control: request.control,
            deadline,
        };
        self.ranges.sessions.insert(session, share);
        self.ranges.controls.insert(request.control, session);
        self.ranges.deadlines.insert((deadline, session));
        if let Some(range) = self.ranges.open.get_mut(&key) {
            range.sessions.insert(session);
        }
        if is_new {
            self.counters.ranges_opened += 1;
            self.warn_of_hidden(hole, ports);
            self.report(PlaneReport::RangeOpened(info(
                session, share, hole, ports, now,
            )));
        }
        Ok(())
    }

    /// Warns, once, that a range takes a port that the user publishes.
    fn warn_of_hidden(&mut self, hole: RangeHole, ports: PortRange) {
        let RangeHole { from, to, land, .. } = hole;
        let mut rules = self.user_ports.iter();
        if !self.ranges.warned
            && let Some(port) = rules.find_map(|rule| rule.takes_of(from, to, ports, land))
        {
            self.ranges.warned = true;
            log::warn!(
                "port {port} of {to}, which a rule of yours publishes, is in the range {ports} of \
                 --tls: clients under TLS reach the FTP server there; choose another range"
            );
        }
    }

    /// Opens a range in the kernel, or renews its timeout. Returns whether it is new.
    fn put_range(&mut self, hole: RangeHole, idle: Duration, now: Duration) -> Result<bool, Error> {
        let key = hole.key();
        let life = idle.saturating_mul(KERNEL_LIFE);
        let open = self.ranges.open.get(&key);
        if open.is_some_and(|range| range.lasts.saturating_sub(now) > life / 2) {
            return Ok(false);
        }
        let is_new = open.is_none();
        let hole = open.map_or(hole, |range| range.hole);
        if let Err(error) = self.parts.backend.open_range(&hole, life) {
            self.counters.kernel_errors += 1;
            return Err(Error::Kernel(error.to_string()));
        }
        self.ranges.stuck.remove(&key);
        let range = self.ranges.open.entry(key).or_insert_with(|| OpenRange {
            hole,
            lasts: Duration::ZERO,
            sessions: BTreeSet::new(),
        });
        range.lasts = now + life;
        Ok(is_new)
    }

    /// A session leaves its range, and closes it if it was the last one.
    pub(super) fn leave_range(&mut self, session: SessionId, why: RangeEnd) {
        let Some(share) = self.ranges.sessions.remove(&session) else {
            return;
        };
        self.ranges.deadlines.remove(&(share.deadline, session));
        self.ranges.controls.remove(&share.control);
        self.parts.events.watch(share.control, false);
        let Some(range) = self.ranges.open.get_mut(&share.key) else {
            return;
        };
        range.sessions.remove(&session);
        if !range.sessions.is_empty() {
            return;
        }
        let hole = range.hole;
        self.ranges.open.remove(&share.key);
        let now = self.now();
        if let Err(error) = self.parts.backend.close_range(&hole) {
            self.counters.kernel_errors += 1;
            log::warn!("the range of {} stays open for now: {error}", hole.from);
            let limit = self.config.limits.ranges;
            self.ranges.stuck.add(share.key, hole, limit, now);
        }
        self.counters.ranges_idle += u64::from(why == RangeEnd::Idle);
        if let Some(range) = self.config.tls_range {
            let info = info(session, share, hole, range.ports, now);
            self.report(PlaneReport::RangeClosed(info, why));
        }
    }

    /// Ends the ranges of sessions that were idle for too long.
    pub(super) fn expire_ranges(&mut self, now: Duration) {
        while let Some(&(deadline, session)) = self.ranges.deadlines.first() {
            if deadline > now {
                break;
            }
            self.leave_range(session, RangeEnd::Idle);
            // So that the loop ends even if the session had no range.
            self.ranges.deadlines.remove(&(deadline, session));
        }
        let backend = &mut self.parts.backend;
        let close = |_: &_, hole: &_| backend.close_range(hole).is_ok();
        self.ranges.stuck.retry(now, close);
    }

    /// Conntrack deleted the entry of a connection, which may be a control connection with a range.
    pub(super) fn control_forgotten(&mut self, original: Tuple) {
        if let Some(&session) = self.ranges.controls.get(&original) {
            self.leave_range(session, RangeEnd::Conntrack);
        }
    }

    /// Events were lost: asks conntrack which control connections are left.
    pub(super) fn look_after_controls(&mut self) {
        let controls: Vec<_> = self.ranges.controls.keys().copied().collect();
        for control in controls {
            if let Ok(None) = self.parts.lookups.lookup(control.src, control.dst) {
                self.control_forgotten(control);
            }
        }
    }

    /// The data connection with this original direction, if it came through a range. Which of the
    /// sessions that share the range it belongs to isn't known: the one that was active last is taken.
    pub(super) fn range_connection(&self, original: Tuple) -> Option<DataConnection> {
        let key = RangeKey {
            from: original.src.ip(),
            to: original.dst.ip(),
        };
        let range = self.ranges.open.get(&key)?;
        let port = original.dst.port();
        if !self.config.tls_range?.ports.contains(port) {
            return None;
        }
        let share = |session: &SessionId| Some((*session, *self.ranges.sessions.get(session)?));
        let (session, share) = range
            .sessions
            .iter()
            .filter_map(share)
            .max_by_key(|(_, share)| share.deadline)?;
        Some(DataConnection {
            pinhole: share.id,
            session,
            mode: Mode::Passive,
            from: original.src,
            to: original.dst,
            land: SocketAddr::new(range.hole.land, port),
            as_source: range.hole.as_source,
            started: self.now(),
        })
    }

    /// Whether a pinhole with this key would take a port from another server's range.
    pub(super) fn is_in_range_of_other(&self, key: PinholeKey, land: IpAddr) -> bool {
        let range = RangeKey {
            from: key.from,
            to: key.to.ip(),
        };
        let within = |tls: TlsRange| tls.ports.contains(key.to.port());
        self.config.tls_range.is_some_and(within)
            && self
                .ranges
                .open
                .get(&range)
                .is_some_and(|r| r.hole.land != land)
    }

    /// The ranges of all sessions, in the order of their ids.
    pub(super) fn range_infos(&self, now: Duration) -> Vec<PinholeInfo> {
        let Some(TlsRange { ports, .. }) = self.config.tls_range else {
            return Vec::new();
        };
        let mut infos: Vec<_> = self
            .ranges
            .sessions
            .iter()
            .filter_map(|(session, share)| {
                let hole = self.ranges.open.get(&share.key)?.hole;
                Some(info(*session, *share, hole, ports, now))
            })
            .collect();
        infos.sort_by_key(|info| info.id);
        infos
    }

    /// Opens all ranges again after the backend was installed again.
    pub(super) fn reopen_ranges(&mut self, now: Duration) {
        self.ranges.stuck.clear();
        let Some(TlsRange { idle, .. }) = self.config.tls_range else {
            return;
        };
        let open = self.ranges.open.iter();
        let all: Vec<_> = open.map(|(key, range)| (*key, range.hole)).collect();
        for (key, hole) in all {
            if let Some(range) = self.ranges.open.get_mut(&key) {
                range.lasts = Duration::ZERO;
            }
            let Err(error) = self.put_range(hole, idle, now) else {
                continue;
            };
            log::warn!("the range of {} is lost: {error}", hole.from);
            let lost = self.ranges.open.remove(&key);
            for session in lost.into_iter().flat_map(|range| range.sessions) {
                self.leave_range(session, RangeEnd::Conntrack);
            }
        }
    }

    /// Forgets all ranges, without closing them in the kernel.
    pub(super) fn forget_ranges(&mut self) {
        for control in self.ranges.controls.keys() {
            self.parts.events.watch(*control, false);
        }
        self.ranges = Ranges::default();
    }
}

fn info(
    session: SessionId,
    share: Share,
    hole: RangeHole,
    ports: PortRange,
    now: Duration,
) -> PinholeInfo {
    PinholeInfo {
        id: share.id,
        session,
        mode: Mode::Passive,
        from: hole.from,
        to: SocketAddr::new(hole.to, ports.first()),
        land: SocketAddr::new(hole.land, ports.first()),
        as_source: hole.as_source,
        state: PinholeState::Open,
        expires_in: Some(round_up(share.deadline.saturating_sub(now))),
        ports: Some(ports.to_string()),
        seconds: None,
        bytes: None,
        connection: None,
    }
}

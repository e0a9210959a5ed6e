//! Data connections: what conntrack's events say of them.

use std::collections::{HashMap, HashSet};
use std::ops::Bound;
use std::time::Duration;

use super::fixed::FixedPorts;
use super::{DataConnection, Finished, NO_SESSION, Plane, PlaneReport, Transferred};
use crate::conntrack::{
    ASSURED, Bytes, Completeness, ConntrackEvent, Progress, SEEN_REPLY, TcpState,
};
use crate::engine::Tuple;
use crate::engine::gateway::SessionId;
use crate::engine::room::less_room;
use crate::pinholes::{Pinhole, PinholeKey};

/// By how much conntrack's timeouts, counted in jiffies, may differ from its time stamps.
const TICK: Duration = Duration::from_millis(50);

impl Plane {
    /// Reads conntrack's events and acts on them; false if they, or conntrack's list in place of lost
    /// ones, could not be read: then call it again. To be called when they are readable. Calls that
    /// look at pending pinholes read them by themselves.
    pub fn catch_up(&mut self) -> bool {
        let mut events = Vec::new();
        let completeness = match self.parts.events.read(&mut events) {
            Ok(completeness) => completeness,
            Err(error) => {
                let now = self.now();
                let what = || format!("can't read conntrack events: {error}; trying again");
                self.troubles.unread.warn(now, what);
                return false;
            }
        };
        // What was on its way when the list was read has come with these.
        let mut listed = std::mem::take(&mut self.listed);
        let mut used = Vec::new();
        for event in events {
            match event {
                // Answered already: conntrackd has copied it from another gateway.
                ConntrackEvent::New { status, .. } if status & SEEN_REPLY != 0 => {}
                // Conntrack's list came before its event.
                ConntrackEvent::New { entry, .. } if listed.remove(&entry.original) => {}
                ConntrackEvent::New { entry, .. } => {
                    let most = self.config.limits.connections;
                    self.fixed.begun(entry.original, most);
                    used.extend(self.connected(entry.original).and_then(|(_, hole)| hole));
                }
                ConntrackEvent::Destroy {
                    entry,
                    bytes,
                    lifetime,
                    state,
                    status,
                    ..
                } => {
                    listed.remove(&entry.original);
                    self.fixed.forgotten(entry.original);
                    self.deleted(entry.original, bytes, lifetime, state, status);
                    self.control_forgotten(entry.original);
                }
            }
        }
        self.close_used(used);
        if completeness == Completeness::Missed {
            self.counters.missed_events += 1;
            self.behind = true;
            if self.troubles.missed.comes(self.now()).is_some() {
                self.report(PlaneReport::MissedEvents);
            }
        }
        if self.behind {
            self.behind = !self.resync();
        }
        !self.behind
    }

    /// A connection with the mark has begun: its pinhole, if it has one, is used and closed.
    pub fn on_conntrack_new(&mut self, original: Tuple) -> Option<DataConnection> {
        let (connection, hole) = self.connected(original)?;
        self.close_used(hole.into_iter().collect());
        connection
    }

    /// A connection with the mark has begun. Returns the pinhole that it came through, which isn't
    /// pending any more, for the caller to close. A connection through a range has none. One through a
    /// twin isn't reported, since it is the same data connection.
    fn connected(&mut self, original: Tuple) -> Option<(Option<DataConnection>, Option<Pinhole>)> {
        let key = PinholeKey::of(original);
        let Some((id, hole)) = self.holes.at(key).filter(|(_, hole)| hole.open) else {
            let Some(connection) = self.range_connection(original) else {
                self.counters.unattributed += 1;
                return None;
            };
            self.counters.range_connections += 1;
            self.keep(original, connection);
            return Some((Some(connection), None));
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
        if hole.is_twin {
            return Some((None, Some(hole.pinhole)));
        }
        self.counters.used += 1;
        self.keep(original, connection);
        Some((Some(connection), Some(hole.pinhole)))
    }

    /// Keeps track of a new data connection.
    fn keep(&mut self, original: Tuple, connection: DataConnection) {
        // One with the same ends is over. The event of its end was lost.
        self.deleted(original, None, None, None, ASSURED);
        if connection.session != NO_SESSION {
            let total = self.transferred.entry(connection.session).or_default();
            total.data_connections += 1;
        }
        if self.connections.len() < self.config.limits.connections {
            self.connections.insert(original, connection);
            self.live.insert((connection.session, original));
        }
        self.report(PlaneReport::Connected(connection));
    }

    /// Conntrack deleted a connection with the mark.
    pub fn on_conntrack_destroy(
        &mut self,
        original: Tuple,
        bytes: Option<Bytes>,
        lifetime: Option<Duration>,
        state: Option<TcpState>,
    ) -> Option<Finished> {
        self.deleted(original, bytes, lifetime, state, ASSURED)
    }

    /// The same; `status` are its `IPS_*` bits. Returns nothing if its end was known before.
    fn deleted(
        &mut self,
        original: Tuple,
        bytes: Option<Bytes>,
        lifetime: Option<Duration>,
        state: Option<TcpState>,
        status: u32,
    ) -> Option<Finished> {
        let connection = self.connections.remove(&original)?;
        if let Some(total) = self.transferred.get_mut(&connection.session) {
            total.bytes = add(total.bytes, bytes);
        }
        let is_news = self.live.remove(&(connection.session, original));
        let room = less_room(self.connections.len(), self.connections.capacity());
        if let Some(room) = room {
            self.connections.shrink_to(room);
        }
        let known = self.now().saturating_sub(connection.started);
        let lifetime = lifetime.unwrap_or(known);
        let remembered = state.and_then(|state| self.parts.timeouts.after(state));
        let remembered = remembered.unwrap_or_default();
        let finished = Finished {
            connection,
            bytes,
            duration: match lifetime + TICK < remembered {
                // Somebody deleted the entry before its timeout.
                true => lifetime,
                false => lifetime.saturating_sub(remembered),
            },
            established: Progress::was_established(state, status),
            reset: state.is_some_and(TcpState::is_reset),
        };
        if !is_news {
            return None;
        }
        self.counters.bytes = add(Some(self.counters.bytes), bytes).unwrap_or(u64::MAX);
        self.report(PlaneReport::Finished(finished));
        Some(finished)
    }

    /// The original directions of the data connections that exist now.
    #[must_use]
    pub fn running(&self) -> Vec<Tuple> {
        self.connections.keys().copied().collect()
    }

    /// The data connections of a session that aren't known to be over.
    pub fn live_of(&self, session: SessionId) -> impl Iterator<Item = Tuple> {
        let from = self
            .live
            .range((Bound::Included((session, Tuple::FIRST)), Bound::Unbounded));
        from.take_while(move |(of, _)| *of == session)
            .map(|(_, original)| *original)
    }

    /// How many data connections aren't known to be over.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// Some of the data connections that aren't known to be over: at most so many, from behind `last`
    /// on.
    #[must_use]
    pub fn some_live(
        &self,
        last: Option<(SessionId, Tuple)>,
        most: usize,
    ) -> Vec<(SessionId, Tuple)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.live.range((from, Bound::Unbounded));
        some.take(most).copied().collect()
    }

    /// Conntrack was asked about a data connection. If it is over, that is reported now, long before
    /// conntrack deletes its entry. `half`: it counts as over when one end has closed it. Returns
    /// whether it is over.
    pub fn on_progress(&mut self, original: Tuple, progress: &Progress, half: bool) -> bool {
        let over = progress
            .state
            .is_some_and(|state| state.is_over() || half && state.is_ending());
        if !over {
            return false;
        }
        if let Some(finished) = self.so_far(original, progress)
            && self.live.remove(&(finished.connection.session, original))
        {
            self.report(PlaneReport::Finished(finished));
        }
        true
    }

    /// The daemon ends: reports what a data connection has carried, whether it is over or not.
    pub fn take_leave(&mut self, original: Tuple, progress: &Progress) {
        if !self.on_progress(original, progress, false)
            && let Some(finished) = self.so_far(original, progress)
        {
            self.report(PlaneReport::Running(finished));
        }
    }

    fn so_far(&self, original: Tuple, progress: &Progress) -> Option<Finished> {
        let connection = *self.connections.get(&original)?;
        Some(Finished {
            connection,
            bytes: progress.bytes,
            duration: self.now().saturating_sub(connection.started),
            established: Progress::was_established(progress.state, progress.status),
            reset: progress.state.is_some_and(TcpState::is_reset),
        })
    }

    /// What the data connections of each session carried so far. Sessions without any are left out.
    ///
    /// `running` is what conntrack says of the connections named by [`running`](Self::running),
    /// asked without holding the plane. One that ended since counts with the bytes of its end, and
    /// one that began since with none.
    #[must_use]
    pub fn transferred(&self, running: &HashMap<Tuple, Bytes>) -> HashMap<SessionId, Transferred> {
        let mut all = self.transferred.clone();
        for (original, connection) in &self.connections {
            if let Some(total) = all.get_mut(&connection.session) {
                total.bytes = add(total.bytes, running.get(original).copied());
            }
        }
        all
    }

    /// Bytes that all data connections carried so far, those that exist now included: see
    /// [`transferred`](Self::transferred) about `running`.
    #[must_use]
    pub fn carried(&self, running: &HashMap<Tuple, Bytes>) -> u64 {
        let now = self
            .connections
            .keys()
            .filter_map(|tuple| running.get(tuple));
        now.fold(self.counters.bytes, |sum, bytes| {
            let both = bytes.original.saturating_add(bytes.reply);
            sum.saturating_add(both)
        })
    }

    /// Conntrack's list has these data connections, and no others.
    pub(super) fn learn_fixed(&mut self, originals: impl Iterator<Item = Tuple>) {
        self.fixed = FixedPorts::default();
        for original in originals {
            self.fixed.begun(original, self.config.limits.connections);
        }
    }

    /// Events were lost: compares with the kernel's list of connections; false if that can't be read.
    fn resync(&mut self) -> bool {
        let entries = match self.parts.lookups.marked_with_state(self.config.mark) {
            Ok(entries) => entries,
            Err(error) => {
                let now = self.now();
                let what = || format!("can't list conntrack entries: {error}; trying again");
                self.troubles.unlisted.warn(now, what);
                return false;
            }
        };
        let existing: HashSet<_> = entries.iter().map(|(entry, _)| entry.original).collect();
        self.learn_fixed(existing.iter().copied());
        let now = self.now();
        for (entry, kept) in entries {
            let original = entry.original;
            let hole = self.holes.at(PinholeKey::of(original));
            let is_earlier = hole.is_some_and(|(_, hole)| {
                let quiet_for = self.quiet_for(kept);
                quiet_for.is_some_and(|quiet_for| self.was_before(hole, quiet_for, now))
            });
            if !is_earlier && !self.connections.contains_key(&original) {
                self.listed.insert(original);
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
            self.on_conntrack_destroy(original, None, None, None);
        }
        self.look_after_controls();
        true
    }
}

/// Adds bytes to a total, where they are known.
fn add(total: Option<u64>, bytes: Option<Bytes>) -> Option<u64> {
    let Some(bytes) = bytes else {
        return total;
    };
    let both = bytes.original.saturating_add(bytes.reply);
    Some(total.unwrap_or(0).saturating_add(both))
}

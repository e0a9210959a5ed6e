//! The pending pinholes: reserved, or open and not used yet.
//!
//! They are found by id, key, session and deadline. Only this file changes these indices, and always
//! together.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::{Pinhole, PinholeInfo, PinholeKey, PinholeState, round_up};
use crate::engine::gateway::{PinholeId, SessionId};
use crate::ftp::Mode;

/// When an active pinhole should have been used: before the server repeats its SYN (1 s, RFC 6298
/// §2.1).
pub(super) const OVERDUE_AFTER: Duration = Duration::from_millis(500);
/// How many overdue pinholes are named within [`OVERDUE_AFTER`]: each costs a walk through
/// conntrack's table.
pub(super) const MAX_OVERDUE: usize = 8;

/// A pinhole that is reserved or open.
pub(super) struct PendingHole {
    pub(super) session: SessionId,
    /// The client whose limits it counts towards.
    pub(super) client: IpAddr,
    pub(super) mode: Mode,
    pub(super) pinhole: Pinhole,
    pub(super) deadline: Duration,
    /// Whether it is in the kernel.
    pub(super) open: bool,
    /// It is the twin of another one, on the other side of a translator: its connection is the same.
    pub(super) is_twin: bool,
}

/// All pending pinholes.
#[derive(Default)]
pub(super) struct Holes {
    holes: BTreeMap<PinholeId, PendingHole>,
    by_key: HashMap<PinholeKey, PinholeId>,
    /// Oldest first.
    by_session: HashMap<SessionId, VecDeque<PinholeId>>,
    deadlines: BTreeSet<(Duration, PinholeId)>,
    /// Open active pinholes that aren't overdue yet, and when they will be; oldest first.
    not_overdue: VecDeque<(Duration, PinholeId)>,
    /// The earliest time at which more of them are named.
    next_overdue: Duration,
}

impl Holes {
    pub(super) fn len(&self) -> usize {
        self.holes.len()
    }

    pub(super) fn get(&self, id: PinholeId) -> Option<&PendingHole> {
        self.holes.get(&id)
    }

    /// All pinholes, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PinholeId, &PendingHole)> + Clone {
        self.holes.iter().map(|(&id, hole)| (id, hole))
    }

    pub(super) fn at(&self, key: PinholeKey) -> Option<(PinholeId, &PendingHole)> {
        let id = *self.by_key.get(&key)?;
        Some((id, self.holes.get(&id)?))
    }

    /// How many pinholes a session has, twins left out.
    pub(super) fn count(&self, session: SessionId) -> usize {
        let ids = self.by_session.get(&session);
        let is_twin = |id: &PinholeId| self.holes.get(id).is_some_and(|hole| hole.is_twin);
        ids.map_or(0, |ids| ids.iter().filter(|id| !is_twin(id)).count())
    }

    pub(super) fn oldest_of(&self, session: SessionId) -> Option<PinholeId> {
        self.by_session.get(&session)?.front().copied()
    }

    /// Adds a reserved pinhole. There must be none with its key, and ids must grow.
    pub(super) fn insert(&mut self, id: PinholeId, hole: PendingHole) {
        self.by_key.insert(hole.pinhole.key(), id);
        let of_session = self.by_session.entry(hole.session).or_default();
        of_session.push_back(id);
        self.deadlines.insert((hole.deadline, id));
        self.holes.insert(id, hole);
    }

    /// A pinhole is in the kernel from now on, with a new deadline.
    pub(super) fn opened(&mut self, id: PinholeId, now: Duration, deadline: Duration) {
        let Some(hole) = self.holes.get_mut(&id) else {
            return;
        };
        hole.open = true;
        self.deadlines.remove(&(hole.deadline, id));
        self.deadlines.insert((deadline, id));
        hole.deadline = deadline;
        if hole.mode == Mode::Active {
            self.not_overdue.push_back((now + OVERDUE_AFTER, id));
        }
    }

    pub(super) fn remove(&mut self, id: PinholeId) -> Option<PendingHole> {
        let hole = self.holes.remove(&id)?;
        self.by_key.remove(&hole.pinhole.key());
        self.deadlines.remove(&(hole.deadline, id));
        if let Some(ids) = self.by_session.get_mut(&hole.session) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_session.remove(&hole.session);
            }
        }
        // Most are used in the order in which they open, so nobody need wake up for them.
        while let Some((_, id)) = self.not_overdue.front()
            && !self.holes.contains_key(id)
        {
            self.not_overdue.pop_front();
        }
        Some(hole)
    }

    /// Open pinholes belong to this session from now on.
    pub(super) fn all_belong_to(&mut self, session: SessionId) {
        let open = self.holes.iter_mut().filter(|(_, hole)| hole.open);
        for (&id, hole) in open {
            if hole.session == session {
                continue;
            }
            if let Some(ids) = self.by_session.get_mut(&hole.session) {
                ids.retain(|&other| other != id);
                if ids.is_empty() {
                    self.by_session.remove(&hole.session);
                }
            }
            hole.session = session;
            self.by_session.entry(session).or_default().push_back(id);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self {
            next_overdue: self.next_overdue,
            ..Self::default()
        };
    }

    /// A pinhole whose deadline has passed.
    pub(super) fn expired(&self, now: Duration) -> Option<PinholeId> {
        let &(deadline, id) = self.deadlines.first()?;
        (deadline <= now).then_some(id)
    }

    /// When the next pinhole expires or is overdue.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        let overdue = self.not_overdue.front();
        let overdue = overdue.map(|&(at, _)| at.max(self.next_overdue));
        first.into_iter().chain(overdue).min()
    }

    /// Active pinholes that should have been used by now. Names each once, and only
    /// [`MAX_OVERDUE`] at a time.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<PinholeKey> {
        if now < self.next_overdue {
            return Vec::new();
        }
        let mut keys = Vec::new();
        while let Some(&(at, id)) = self.not_overdue.front()
            && at <= now
        {
            self.not_overdue.pop_front();
            let hole = self.holes.get(&id).filter(|_| keys.len() < MAX_OVERDUE);
            keys.extend(hole.map(|hole| hole.pinhole.key()));
        }
        if !keys.is_empty() {
            self.next_overdue = now + OVERDUE_AFTER;
        }
        keys
    }

    /// Whether no index holds a pinhole.
    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        self.holes.is_empty()
            && self.by_key.is_empty()
            && self.by_session.is_empty()
            && self.deadlines.is_empty()
    }

    /// Whether every active pinhole was overdue.
    #[cfg(test)]
    pub(super) fn all_overdue(&self) -> bool {
        self.not_overdue.is_empty()
    }
}

impl PendingHole {
    /// As the control socket and the output show it.
    pub(super) fn info(&self, id: PinholeId, now: Duration) -> PinholeInfo {
        let left = self.deadline.saturating_sub(now);
        PinholeInfo {
            id,
            session: self.session,
            mode: self.mode,
            from: self.pinhole.from,
            to: self.pinhole.to,
            land: self.pinhole.land,
            as_source: self.pinhole.as_source,
            state: match self.open {
                true => PinholeState::Open,
                false => PinholeState::Reserved,
            },
            expires_in: Some(round_up(left)),
            ports: None,
            seconds: None,
            bytes: None,
            connection: None,
        }
    }
}

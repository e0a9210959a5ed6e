//! The pending pinholes, and how they are found: by id, key, session and deadline.
//!
//! All indices change together, here and nowhere else.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::{Pinhole, PinholeInfo, PinholeKey, PinholeState, round_up};
use crate::engine::gateway::{PinholeId, SessionId};
use crate::ftp::Mode;

/// When an active pinhole that nobody used is looked after: before the server sends its SYN again
/// (1 s, RFC 6298 §2.1).
pub(super) const NEGLECTED: Duration = Duration::from_millis(500);
/// How many of them, at most, in that time: each costs a walk through conntrack's table.
pub(super) const LOOK_AFTER: usize = 8;

/// A pinhole that nobody has used yet.
pub(super) struct PendingHole {
    pub(super) session: SessionId,
    /// Whose limits it counts for.
    pub(super) client: IpAddr,
    pub(super) mode: Mode,
    pub(super) pinhole: Pinhole,
    pub(super) deadline: Duration,
    /// Whether it is in the kernel.
    pub(super) open: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Holes {
    holes: BTreeMap<PinholeId, PendingHole>,
    by_key: HashMap<PinholeKey, PinholeId>,
    /// Oldest first.
    by_session: HashMap<SessionId, VecDeque<PinholeId>>,
    deadlines: BTreeSet<(Duration, PinholeId)>,
    /// Active holes since they opened, oldest first, until they are looked after.
    young: VecDeque<(Duration, PinholeId)>,
    /// Until then, no others are looked after.
    look_at: Duration,
}

impl Holes {
    pub(super) fn len(&self) -> usize {
        self.holes.len()
    }

    pub(super) fn get(&self, id: PinholeId) -> Option<&PendingHole> {
        self.holes.get(&id)
    }

    /// All, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PinholeId, &PendingHole)> + Clone {
        self.holes.iter().map(|(&id, hole)| (id, hole))
    }

    pub(super) fn at(&self, key: PinholeKey) -> Option<(PinholeId, &PendingHole)> {
        let id = *self.by_key.get(&key)?;
        Some((id, self.holes.get(&id)?))
    }

    /// How many a session has.
    pub(super) fn count(&self, session: SessionId) -> usize {
        self.by_session.get(&session).map_or(0, VecDeque::len)
    }

    pub(super) fn oldest_of(&self, session: SessionId) -> Option<PinholeId> {
        self.by_session.get(&session)?.front().copied()
    }

    /// A reserved hole. None has its key, and ids only grow.
    pub(super) fn insert(&mut self, id: PinholeId, hole: PendingHole) {
        self.by_key.insert(hole.pinhole.key(), id);
        let of_session = self.by_session.entry(hole.session).or_default();
        of_session.push_back(id);
        self.deadlines.insert((hole.deadline, id));
        self.holes.insert(id, hole);
    }

    /// It is in the kernel now, with a deadline of its own.
    pub(super) fn opened(&mut self, id: PinholeId, now: Duration, deadline: Duration) {
        let Some(hole) = self.holes.get_mut(&id) else {
            return;
        };
        hole.open = true;
        self.deadlines.remove(&(hole.deadline, id));
        self.deadlines.insert((deadline, id));
        hole.deadline = deadline;
        if hole.mode == Mode::Active {
            self.young.push_back((now + NEGLECTED, id));
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
        // Most holes are used in the order in which they open: then nobody need wake up for them.
        while let Some((_, id)) = self.young.front()
            && !self.holes.contains_key(id)
        {
            self.young.pop_front();
        }
        Some(hole)
    }

    pub(super) fn clear(&mut self) {
        let look_at = self.look_at;
        *self = Self {
            look_at,
            ..Self::default()
        };
    }

    /// A hole whose deadline has passed.
    pub(super) fn expired(&self, now: Duration) -> Option<PinholeId> {
        let &(deadline, id) = self.deadlines.first()?;
        (deadline <= now).then_some(id)
    }

    /// When there is something to do.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        let look = self.young.front().map(|&(at, _)| at.max(self.look_at));
        first.into_iter().chain(look).min()
    }

    /// Active holes that should have been used by now: each once, and only some of very many.
    pub(super) fn neglected(&mut self, now: Duration) -> Vec<PinholeKey> {
        if now < self.look_at {
            return Vec::new();
        }
        let mut keys = Vec::new();
        while let Some(&(at, id)) = self.young.front()
            && at <= now
        {
            self.young.pop_front();
            let hole = self.holes.get(&id).filter(|_| keys.len() < LOOK_AFTER);
            keys.extend(hole.map(|hole| hole.pinhole.key()));
        }
        if !keys.is_empty() {
            self.look_at = now + NEGLECTED;
        }
        keys
    }

    /// Whether no index knows of a hole.
    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        self.holes.is_empty()
            && self.by_key.is_empty()
            && self.by_session.is_empty()
            && self.deadlines.is_empty()
    }

    /// Whether no active hole waits to be looked after.
    #[cfg(test)]
    pub(super) fn has_no_young(&self) -> bool {
        self.young.is_empty()
    }
}

impl PendingHole {
    /// As people see it.
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
        }
    }
}

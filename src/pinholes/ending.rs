//! What ends pinholes, and how they are closed in the kernel.

use std::time::Duration;

use super::{Plane, Report, State};
use crate::engine::gateway::PinholeId;
use crate::pinholes::backend::{BackendError, Closing};
use crate::pinholes::{Key, Pinhole};

/// When an active pinhole that nobody used is looked after: before the server sends its SYN again
/// (1 s, RFC 6298 §2.1).
pub(super) const NEGLECTED: Duration = Duration::from_millis(500);
/// How many of them, at most, in that time: each costs a walk through conntrack's table.
pub(super) const LOOK_AFTER: usize = 8;

impl Plane {
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
        let (by_key, holes, backend) = (&self.by_key, &self.holes, &mut self.parts.backend);
        self.stuck.retry(now, |key, pinhole| {
            // Meanwhile replaced by another one.
            let replaced = by_key.get(key).and_then(|id| holes.get(id));
            replaced.is_some_and(|hole| hole.open) || backend.close(pinhole).is_ok()
        });
        self.expire_ranges(now);
    }

    /// When [`expire`](Self::expire) has something to do, on the plane's clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        let look = self.young.front().map(|&(at, _)| at.max(self.look_at));
        let range = self.ranges.next_deadline();
        first
            .into_iter()
            .chain(self.stuck.next_deadline())
            .chain(look)
            .chain(range)
            .min()
    }

    /// Active pinholes that should have been used by now: see
    /// [`Conntrack::forget_unanswered`](crate::conntrack::Conntrack::forget_unanswered). To be
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

    /// Closes a hole in the kernel if it is there, and forgets it.
    pub(super) fn drop_hole(&mut self, id: PinholeId) {
        if let Some(hole) = self.forget(id).filter(|hole| hole.open) {
            self.close(vec![hole.pinhole]);
        }
    }

    /// Closes holes in the kernel, at once; what it refuses to close is tried again later.
    pub(super) fn close(&mut self, holes: Vec<Pinhole>) {
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
        let now = self.now();
        for hole in holes {
            self.stuck.add(hole.key(), hole, self.config.total, now);
        }
    }
}

//! How pinholes end at their deadline, and how they are closed in the kernel.

use std::time::Duration;

use super::{PinholeState, Plane, PlaneReport};
use crate::engine::gateway::PinholeId;
use crate::pinholes::backend::{BackendError, Closed, ClosingWork};
use crate::pinholes::{Pinhole, PinholeKey};

/// Which part of the time that the backend holds a used pinhole closed ([`Backend::holds`]) may go by
/// before its event is read.
///
/// [`Backend::holds`]: crate::pinholes::backend::Backend::holds
const PATIENCE: u32 = 20;

impl Plane {
    /// Ends pinholes and ranges whose deadline has passed, closes used ones, and tries again to close what the kernel
    /// refused to. To be called at [`next_deadline`](Self::next_deadline).
    pub fn expire(&mut self) {
        let now = self.now();
        if self.holes.next_deadline().is_some_and(|at| at <= now) {
            // One that was used in time isn't late, even if this process was stopped meanwhile.
            self.catch_up();
        }
        let mut holes = Vec::new();
        while let Some(id) = self.holes.expired(now)
            && let Some(hole) = self.forget(id)
        {
            let mut info = hole.info(id, now);
            info.state = PinholeState::Expired;
            if !hole.is_twin {
                self.counters.expired += 1;
                self.report(PlaneReport::Expired(info));
            }
            holes.extend(hole.open.then_some(hole.pinhole));
        }
        self.close(holes);
        let used = self.used.due(now);
        self.close(used);
        let (holes, backend) = (&self.holes, &mut self.parts.backend);
        self.stuck.retry(now, |key, pinhole| {
            // Another pinhole may have replaced it in the kernel.
            let replaced = holes.at(*key).is_some_and(|(_, hole)| hole.open);
            replaced || backend.close(pinhole).is_ok()
        });
        self.expire_ranges(now);
    }

    /// When [`expire`](Self::expire) has something to do, on the plane's clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let holes = self.holes.next_deadline().into_iter();
        holes
            .chain(self.stuck.next_deadline())
            .chain(self.ranges.next_deadline())
            .chain(self.used.next_deadline())
            .min()
    }

    /// Active pinholes that should have been used by now. A SYN that came before the pinhole was open
    /// may be in the way: see
    /// [`Conntrack::forget_unanswered`](crate::conntrack::Conntrack::forget_unanswered).
    ///
    /// To be called at [`next_deadline`](Self::next_deadline). Names each pinhole once, and only a
    /// few at a time.
    pub fn overdue(&mut self) -> Vec<PinholeKey> {
        let now = self.now();
        self.holes.overdue(now)
    }

    /// Whether [`take_closing`](Self::take_closing) has something to do.
    #[must_use]
    pub fn has_closing(&self) -> bool {
        !self.to_close.is_empty() && self.closing.is_empty()
    }

    /// Work that closes pinholes, to be run without holding the plane; then call
    /// [`closed`](Self::closed). `None` if there is nothing to close, or such work is under way.
    pub fn take_closing(&mut self) -> Option<ClosingWork> {
        if !self.has_closing() {
            return None;
        }
        let holes = std::mem::take(&mut self.to_close);
        match self.parts.backend.closing(&holes) {
            Ok(Some(work)) => {
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

    /// Takes the result of the work that closes pinholes.
    pub fn closed(&mut self, done: Result<(), BackendError>) {
        let holes = std::mem::take(&mut self.closing);
        if let Err(error) = self.parts.backend.closed(done) {
            self.stay_open(holes, &error);
        }
    }

    /// Counts connection attempts that were in the way of [`overdue`](Self::overdue) pinholes and
    /// were deleted from conntrack.
    pub fn forgot(&mut self, attempts: usize) {
        let attempts = u64::try_from(attempts).unwrap_or(u64::MAX);
        self.counters.stale_attempts = self.counters.stale_attempts.saturating_add(attempts);
    }

    /// Removes a pinhole, and closes it if it is open.
    pub(super) fn drop_hole(&mut self, id: PinholeId) {
        let both = [Some(id), self.twin(id)];
        let gone = both.into_iter().flatten().filter_map(|id| self.forget(id));
        let open = gone.filter(|hole| hole.open);
        let holes: Vec<_> = open.map(|hole| hole.pinhole).collect();
        self.close(holes);
    }

    /// Closes pinholes in the kernel, or leaves that to [`take_closing`](Self::take_closing) if the
    /// backend takes long. What the kernel refuses is tried again.
    pub(super) fn close(&mut self, holes: Vec<Pinhole>) {
        if holes.is_empty() {
            return;
        }
        match self.parts.backend.close_all(&holes) {
            Ok(Closed::Now) => {}
            Ok(Closed::Later) => self.to_close.extend(holes),
            Err(error) => self.stay_open(holes, &error),
        }
    }

    /// Closes pinholes that were used: at once, or a moment later if the backend itself holds them
    /// closed.
    pub(super) fn close_used(&mut self, holes: Vec<Pinhole>) {
        let rests = self.parts.backend.rests();
        if rests.is_zero() {
            self.close(holes);
        } else {
            let until = self.now() + rests;
            self.used.add(holes, until);
            if self.used.len() > self.parts.backend.may_rest() {
                self.close_all_used();
            }
        }
    }

    /// Closes all that was used or has ended, however little time has gone by, and waits for it: a successor
    /// would take what is in the kernel for open. Only where [`take_closing`](Self::take_closing)'s work isn't
    /// under way.
    pub fn close_for_successor(&mut self) {
        self.close_all_used();
        if let Some(work) = self.take_closing() {
            let done = work();
            self.closed(done);
        }
    }

    fn close_all_used(&mut self) {
        let used = self.used.take();
        self.close(used);
    }

    /// How long the events of pinholes that are used may wait. Zero: they are to be read at once.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.parts.backend.holds() / PATIENCE
    }

    fn stay_open(&mut self, holes: Vec<Pinhole>, error: &BackendError) {
        self.counters.kernel_errors += 1;
        let now = self.now();
        let count = holes.len();
        self.troubles.stuck.warn(now, || {
            format!("{count} pinholes stay open for now, and are closed later: {error}")
        });
        for hole in holes {
            self.stuck
                .add(hole.key(), hole, self.config.limits.pinholes, now);
        }
    }
}

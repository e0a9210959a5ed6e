//! Puts the backend's objects into the kernel, looks whether they are there, and removes them.

use std::collections::HashSet;
use std::time::Duration;

use super::admission::network;
use super::{NO_SESSION, PendingHole, Pinhole, Plane, PlaneReport};
use crate::conntrack::Kept;
use crate::engine::Entry;
use crate::engine::gateway::PinholeId;
use crate::ftp::Mode;
use crate::pinholes::PinholeKey;
use crate::pinholes::backend::{BackendError, Verification};

/// How long a pinhole stays open that may have been used: whoever was told of it comes soon.
const DOUBTFUL: Duration = Duration::from_secs(10);

/// Conntrack tells times to the second, the kernel's tables a little more exactly.
const ROUNDING: Duration = Duration::from_secs(2);

impl Plane {
    /// Installs the backend's objects at start-up, and adopts the pinholes that a daemon before this
    /// one left open. Returns how many. They belong to no session (number 0).
    ///
    /// # Errors
    /// What the backend says.
    pub fn adopt(&mut self) -> Result<usize, BackendError> {
        let (most, longest) = (self.config.limits.pinholes, self.config.deadline);
        let found = self.parts.backend.adopt(most, longest)?;
        self.unused = self.parts.backend.take_unused();
        let now = self.now();
        for (pinhole, left) in found {
            self.insert_adopted(pinhole, now + left);
        }
        let entries = self.marked_entries();
        self.learn_fixed(entries.iter().map(|(entry, _)| entry.original));
        self.close_used_of(&entries);
        let adopted = self.holes.len();
        self.counters.adopted = u64::try_from(adopted).unwrap_or(u64::MAX);
        Ok(adopted)
    }

    /// Another gateway may go on with all sessions, or this one goes on with them anew. Open pinholes stay
    /// open, and belong to none of them any more.
    pub fn disown(&mut self) {
        self.catch_up();
        self.holes.all_belong_to(NO_SESSION);
    }

    /// Opens the pinholes that another gateway has left open, and closes those of no session that aren't
    /// among them any more. `found`: with the time that each has left.
    ///
    /// Whether conntrack knows a connection that fits isn't asked: another gateway's are copied here, and
    /// some are of an earlier pinhole with the same port. The gateway that sees a pinhole used takes it
    /// out of the store.
    pub fn adopt_from_elsewhere(&mut self, found: Vec<(Pinhole, Duration)>) {
        let kept: HashSet<PinholeKey> = found.iter().map(|(pinhole, _)| pinhole.key()).collect();
        let nobodys = |(id, hole): (PinholeId, &PendingHole)| {
            let gone = hole.session == NO_SESSION && !kept.contains(&hole.pinhole.key());
            gone.then_some(id)
        };
        let gone: Vec<_> = self.holes.iter().filter_map(nobodys).collect();
        let ended = self.ended.as_ref().map_or(0, Vec::len);
        for id in gone {
            self.drop_hole(id);
        }
        // Of these, `found` says more than this plane knows.
        if let Some(all) = &mut self.ended {
            all.truncate(ended);
        }
        let now = self.now();
        let mut opened = 0;
        for (pinhole, left) in found {
            let key = pinhole.key();
            let full = self.holes.len() >= self.config.limits.pinholes;
            if full || self.holes.at(key).is_some() {
                continue;
            }
            let left = left.min(self.config.deadline);
            if let Err(error) = self.parts.backend.open(&pinhole, left) {
                self.counters.kernel_errors += 1;
                log::warn!("a pinhole of another gateway can't be opened: {error}");
                continue;
            }
            self.note_open_again(key);
            opened += 1;
            self.insert_adopted(pinhole, now + left);
        }
        self.counters.adopted += opened;
        log::debug!(
            "pinholes of another gateway: {}, {opened} of them new",
            kept.len()
        );
    }

    /// Who of the two announced it isn't known, so it counts towards the peer's limits.
    fn insert_adopted(&mut self, pinhole: Pinhole, deadline: Duration) {
        let client = network(pinhole.from);
        self.clients.reserved(client, self.now());
        let id = self.next_id();
        let hole = PendingHole {
            session: NO_SESSION,
            client,
            mode: Mode::Passive,
            pinhole,
            deadline,
            open: true,
            is_twin: false,
        };
        self.holes.insert(id, hole);
    }

    /// Closes adopted pinholes that were used while no daemon was told of it. Where the backend doesn't
    /// tell, conntrack does. A connection that ended before the pinhole opened was made through an
    /// earlier one with the same addresses and port. Where that can't be told either, the pinhole may be
    /// used for a short time only: announced ports come again after a few seconds, and a transfer isn't
    /// to be lost for that.
    pub fn close_used_meanwhile(&mut self) {
        if self.holes.len() == 0 {
            return;
        }
        let entries = self.marked_entries();
        self.close_used_of(&entries);
    }

    /// The data connections that conntrack has; none if it can't be asked.
    fn marked_entries(&mut self) -> Vec<(Entry, Option<Kept>)> {
        let entries = self.parts.lookups.marked_with_state(self.config.mark);
        entries.unwrap_or_else(|error| {
            log::warn!("can't list conntrack entries: {error}");
            Vec::new()
        })
    }

    /// The same, by these connections.
    fn close_used_of(&mut self, entries: &[(Entry, Option<Kept>)]) {
        let now = self.now();
        let mut doubtful = Vec::new();
        for &(entry, kept) in entries {
            let key = PinholeKey::of(entry.original);
            let Some((id, hole)) = self.holes.at(key) else {
                continue;
            };
            if self.unused.contains(&key) {
                continue;
            }
            let quiet_for = self.quiet_for(kept);
            let is_earlier =
                quiet_for.is_some_and(|quiet_for| self.was_before(hole, quiet_for, now));
            match quiet_for {
                _ if is_earlier => {}
                Some(_) => doubtful.push(id),
                None => self.drop_hole(id),
            }
        }
        for id in doubtful {
            self.shorten(id, now);
        }
    }

    /// For how long nothing has come on a connection that is ending.
    pub(super) fn quiet_for(&self, kept: Option<Kept>) -> Option<Duration> {
        let kept = kept?;
        let timeout = self.parts.timeouts.after(kept.state)?;
        Some(timeout.saturating_sub(kept.left))
    }

    /// Whether a connection that has been quiet for so long ended before this pinhole opened.
    pub(super) fn was_before(
        &self,
        hole: &PendingHole,
        quiet_for: Duration,
        now: Duration,
    ) -> bool {
        let left = hole.deadline.saturating_sub(now);
        let open_for = self.config.deadline.saturating_sub(left);
        // A pinhole whose own time isn't known seems to have opened just now.
        !open_for.is_zero() && quiet_for > open_for + ROUNDING
    }

    /// Has a pinhole stay open for [`DOUBTFUL`] at most.
    fn shorten(&mut self, id: PinholeId, now: Duration) {
        let until = now + DOUBTFUL;
        let Some(hole) = self.holes.get(id).filter(|hole| hole.deadline > until) else {
            return;
        };
        match self.parts.backend.open(&hole.pinhole, DOUBTFUL) {
            Ok(()) => self.holes.opened(id, now, until),
            Err(error) => log::warn!("pinhole {} can't be shortened: {error}", id.0),
        }
    }

    /// Installs the backend's objects, and opens all pinholes and ranges that should be open: when
    /// [`in_place`](Self::in_place) says that somebody flushed them.
    ///
    /// # Errors
    /// What the backend says. Pinholes that can't be opened again are dropped and counted.
    pub fn install(&mut self) -> Result<(), BackendError> {
        self.catch_up();
        self.parts.backend.install()?;
        self.to_close.clear();
        self.used.take();
        self.stuck.clear();
        let now = self.now();
        self.reopen_ranges(now);
        let open = self.holes.iter().filter(|(_, hole)| hole.open);
        let left = |hole: &PendingHole| hole.deadline.saturating_sub(now);
        let all: Vec<_> = open
            .clone()
            .map(|(_, hole)| (hole.pinhole.clone(), left(hole)))
            .collect();
        if self.parts.backend.open_all(&all).is_ok() {
            return Ok(());
        }
        // One by one, so that only those are lost that can't be opened.
        let mut lost = Vec::new();
        for (id, hole) in open {
            if let Err(error) = self.parts.backend.open(&hole.pinhole, left(hole)) {
                log::warn!("pinhole {} is lost: {error}", id.0);
                lost.push(id);
            }
        }
        for id in lost {
            self.counters.kernel_errors += 1;
            self.forget(id);
        }
        Ok(())
    }

    /// Whether the backend's objects are still in place.
    ///
    /// # Errors
    /// If it couldn't be found out.
    pub fn in_place(&mut self) -> Result<bool, BackendError> {
        self.parts.backend.verify()
    }

    /// The same as work to be run without holding the plane: see
    /// [`Backend::verification`](crate::pinholes::backend::Backend::verification).
    #[must_use]
    pub fn verification(&self) -> Option<Verification> {
        self.parts.backend.verification()
    }

    /// Counts and reports an attempt to restore what somebody else removed (steering rules, the
    /// backend's objects, or both): `missing` is what was restored, `None` that it failed.
    pub fn restored(&mut self, missing: Option<Vec<String>>) {
        match missing {
            Some(missing) => {
                self.counters.restored += 1;
                self.report(PlaneReport::Restored { missing });
            }
            None => self.counters.restore_failures += 1,
        }
    }

    /// Removes all pinholes and the backend's objects.
    ///
    /// # Errors
    /// What the backend says.
    pub fn remove(&mut self) -> Result<(), BackendError> {
        self.holes.clear();
        self.twins.clear();
        self.to_close.clear();
        self.used.take();
        self.stuck.clear();
        self.forget_ranges();
        self.parts.backend.remove()
    }
}

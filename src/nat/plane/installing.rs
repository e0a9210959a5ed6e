//! The backend's objects: put into the kernel, put back, taken out.

use super::Plane;
use crate::nat::backend::BackendError;

impl Plane {
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
}

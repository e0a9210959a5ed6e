//! Pinhole backends: what puts a [`Pinhole`] into the kernel and takes it out again.
//!
//! All of them behave the same (and are held to it by the same tests). A data connection that a
//! pinhole lets in
//!
//! - is delivered to [`Pinhole::land`] (a hole whose `land` equals its `to` translates nothing,
//!   but is there all the same, for the sake of the mark);
//! - has the [`Mark`](crate::net::Mark) set in its connection mark, the user's own bits left alone: the accept rules
//!   for the user's filter chains go by it;
//! - comes from [`Pinhole::as_source`] as the landing side sees it, its source port kept where free.
//!
//! Which of the user's rules there are, and the steering of control packets, is not known here.

pub mod iptables;
pub mod nft;

use std::io;
use std::time::Duration;

use super::{Pinhole, RangeHole};
use crate::net::PortRange;

/// Why a backend couldn't do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The host lacks something that the backend stands on: what it is and how to mend it.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel can't do what this backend stands on; another one may work.
    #[error("{0}")]
    Lacking(String),
    /// The kernel or the operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// A program that does the work for the backend failed.
    #[error("{program}: {message}")]
    Program {
        /// The program.
        program: String,
        /// What it said, in one line.
        message: String,
    },
}

/// Closes holes. May take long, needs nothing of the backend meanwhile, and is to be run in the
/// backend's network namespace.
pub type ClosingWork = Box<dyn FnOnce() -> Result<(), BackendError> + Send>;

/// Looks whether the installed objects are in place. Needs nothing of the backend meanwhile, and is
/// to be run in the backend's network namespace.
pub type Verification = Box<dyn FnOnce() -> Result<bool, BackendError> + Send>;

/// Whether [`Backend::close_all`] did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The holes are closed.
    Now,
    /// Nothing was done, since it takes long: see [`Backend::closing`].
    Later,
}

/// Puts pinholes into the kernel of the calling thread's network namespace.
///
/// Calls are synchronous: `Ok` means that the kernel acknowledged the change.
pub trait Backend: Send {
    /// `nft` or `iptables`, as `--backend` names it.
    fn name(&self) -> &'static str;

    /// Learns the range of ports of [`open_range`](Self::open_range), before anything is installed.
    /// Without one, there is none.
    fn set_range(&mut self, _ports: PortRange) {}

    /// Makes the objects that holes live in: tables, chains and static rules.
    ///
    /// Idempotent. Removes leftovers of a predecessor that was killed first, so no hole is open
    /// when it returns, and those that were opened before must be opened again.
    ///
    /// # Errors
    /// What is missing or was refused; nothing is left behind then.
    fn install(&mut self) -> Result<(), BackendError>;

    /// Opens a hole. Who opened it closes it when conntrack reports that it was used; a backend
    /// keeps a second connection out until then as well as it can. It closes by itself after
    /// `timeout` where the kernel can do that.
    ///
    /// Atomically replaces an open hole with the same [`Pinhole::key`].
    ///
    /// # Errors
    /// The hole isn't open then.
    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError>;

    /// Opens holes where none is open: at once, where that is cheaper than one after the other.
    ///
    /// # Errors
    /// Some of the holes may not be open then.
    fn open_all(&mut self, holes: &[(Pinhole, Duration)]) -> Result<(), BackendError> {
        holes
            .iter()
            .try_for_each(|(hole, timeout)| self.open(hole, *timeout))
    }

    /// Closes a hole. One that is closed already is no error. Connections made through it go on.
    ///
    /// # Errors
    /// The hole may still be open then.
    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError>;

    /// Closes several holes, unless that is better left to [`closing`](Self::closing).
    ///
    /// # Errors
    /// Some of the holes may still be open then.
    fn close_all(&mut self, holes: &[Pinhole]) -> Result<Closed, BackendError> {
        let mut result = Ok(());
        for hole in holes {
            result = result.and(self.close(hole));
        }
        result.map(|()| Closed::Now)
    }

    /// Closes several holes, but leaves the work to the caller, who may use the backend meanwhile:
    /// a hole that is opened now comes before one with the same key that is being closed. `None` if
    /// there is no work. Only one at a time; ends with [`closed`](Self::closed).
    ///
    /// # Errors
    /// As [`close_all`](Self::close_all).
    fn closing(&mut self, holes: &[Pinhole]) -> Result<Option<ClosingWork>, BackendError> {
        self.close_all(holes).map(|_| None)
    }

    /// Learns what came of [`closing`](Self::closing)'s work, and mends what it can.
    ///
    /// # Errors
    /// Some of the holes may still be open: close them again.
    fn closed(&mut self, done: Result<(), BackendError>) -> Result<(), BackendError> {
        done
    }

    /// Opens a hole for a range of ports, or makes the one that is open last `timeout` from now.
    ///
    /// What a data connection of it meets is the same as that of a pinhole; where a pinhole has its
    /// port, the pinhole counts.
    ///
    /// # Errors
    /// The hole isn't open then, or closes at its old deadline; also where no range is configured.
    fn open_range(&mut self, _hole: &RangeHole, _timeout: Duration) -> Result<(), BackendError> {
        Err(BackendError::Unsupported(
            "no range of ports is configured; give one with --tls range:A-B".into(),
        ))
    }

    /// Closes such a hole. One that is closed already is no error. Connections made through it go on.
    ///
    /// # Errors
    /// The hole may still be open then.
    fn close_range(&mut self, _hole: &RangeHole) -> Result<(), BackendError> {
        Ok(())
    }

    /// Removes everything that [`install`](Self::install) and [`open`](Self::open) made, and
    /// nothing else. Idempotent.
    ///
    /// # Errors
    /// Something could not be removed; what could be, is.
    fn remove(&mut self) -> Result<(), BackendError>;

    /// Whether the installed objects are still in place (somebody may have flushed the rules).
    ///
    /// # Errors
    /// If it couldn't be found out.
    fn verify(&mut self) -> Result<bool, BackendError>;

    /// The same, as work that the caller may run while others use the backend. It can take a hole
    /// that opens or closes meanwhile for a change by somebody else: then
    /// [`verify`](Self::verify) tells. `None`: that is to be called at once.
    fn verification(&self) -> Option<Verification> {
        None
    }
}

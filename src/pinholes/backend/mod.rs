//! Pinhole backends: what puts a [`Pinhole`] into the kernel and takes it out again.
//!
//! Both backends behave alike, and pass the same tests. A data connection that a pinhole lets in
//!
//! - is delivered to [`Pinhole::land`] (if that equals `to`, nothing is translated, but the
//!   connection is marked all the same);
//! - gets the [`Mark`](crate::net::Mark) in its connection mark, by which the accept rules in the
//!   user's filter chains know it; the user's own bits stay;
//! - comes from [`Pinhole::as_source`], as the landing side sees it, with its own source port if that
//!   is free.
//!
//! A backend holds no decisions: the [`Plane`](super::Plane) says what is open, and opens it again
//! after an [`install`](Backend::install). The user's rules, and the steering of control packets, are
//! the [firewall](crate::firewall)'s.

pub mod iptables;
pub mod nft;

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use super::{Pinhole, PinholeKey, RangeHole};
use crate::net::PortRange;

/// Why a backend couldn't do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The host lacks something that the backend needs: what it is and how to mend it.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel lacks something that this backend needs; the other one may work.
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

/// Work that closes pinholes. May take long. Others may use the backend meanwhile. To be run in the
/// backend's network namespace.
pub type ClosingWork = Box<dyn FnOnce() -> Result<(), BackendError> + Send>;

/// Work that looks whether the installed objects are in place. Others may use the backend meanwhile.
/// To be run in the backend's network namespace.
pub type Verification = Box<dyn FnOnce() -> Result<bool, BackendError> + Send>;

/// What [`Backend::close_all`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The pinholes are closed.
    Now,
    /// Nothing, since it takes long: see [`Backend::closing`].
    Later,
}

/// Puts pinholes into the kernel of the calling thread's network namespace.
///
/// Calls are synchronous: `Ok` means that the kernel acknowledged the change.
pub trait Backend: Send {
    /// `nft` or `iptables`, as `--backend` names it.
    fn name(&self) -> &'static str;

    /// Sets the ports of [`open_range`](Self::open_range), before anything is installed. Without
    /// them, no range can be opened.
    fn set_range(&mut self, _ports: PortRange) {}

    /// Makes the objects that pinholes live in: tables, chains and static rules.
    ///
    /// Idempotent. First removes what is there of them, so no pinhole is open when it returns: those
    /// that were must be opened again.
    ///
    /// # Errors
    /// What is missing or was refused; then nothing is left in the kernel.
    fn install(&mut self) -> Result<(), BackendError>;

    /// Like [`install`](Self::install), but *adopts* pinholes that a daemon before this one left:
    /// they stay open. Returns them, with the time that each has left, the shortest first.
    ///
    /// At most `most` pinholes, for at most `longest` each. That is also the time of a pinhole whose
    /// own isn't known. Ranges, pinholes of which a part is missing, and those of another backend
    /// are dropped.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    fn adopt(
        &mut self,
        _most: usize,
        _longest: Duration,
    ) -> Result<Vec<(Pinhole, Duration)>, BackendError> {
        self.install().map(|()| Vec::new())
    }

    /// Which of the pinholes that were adopted certainly were not used before. Of the others, conntrack may
    /// tell.
    fn take_unused(&mut self) -> HashSet<PinholeKey> {
        HashSet::new()
    }

    /// Leaves what is in the kernel to a successor, which may [`adopt`](Self::adopt) it. From then
    /// on, the backend can only be dropped.
    fn leave(&mut self) {}

    /// For how long an open pinhole lets nobody else in after its first connection, by itself. A caller
    /// has so much time to close it. Zero: it is to be closed at once.
    fn holds(&self) -> Duration {
        Duration::ZERO
    }

    /// For how long a used pinhole may rest before it is closed, as a part of [`holds`](Self::holds): all
    /// that were used meanwhile are closed together. What is left is for the event of its use to arrive, and for
    /// threads that are slow to wake up.
    fn rests(&self) -> Duration {
        self.holds() / 10
    }

    /// How many used pinholes may rest at once: if there are more, all are closed before their time.
    fn may_rest(&self) -> usize {
        usize::MAX
    }

    /// Opens a pinhole. The caller closes it when conntrack reports that it was used; until then the
    /// backend keeps a second connection out as well as it can. After `timeout` the kernel closes
    /// the pinhole by itself, if it can.
    ///
    /// Atomically replaces an open pinhole with the same [`Pinhole::key`].
    ///
    /// # Errors
    /// The pinhole isn't open.
    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError>;

    /// The same, if nothing with this key seems to be in the kernel. That may be cheaper.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn open_new(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        self.open(hole, timeout)
    }

    /// Whether opening takes so long that pinholes should be opened together.
    fn opens_slowly(&self) -> bool {
        false
    }

    /// Opens pinholes with different keys, like [`open`](Self::open): all at once, if that is cheaper than
    /// one by one.
    ///
    /// # Errors
    /// Some of the pinholes may not be open.
    fn open_all(&mut self, holes: &[(Pinhole, Duration)]) -> Result<(), BackendError> {
        holes
            .iter()
            .try_for_each(|(hole, timeout)| self.open(hole, *timeout))
    }

    /// Closes a pinhole. Does nothing if it is closed already. Connections made through it go on.
    ///
    /// # Errors
    /// The pinhole may still be open.
    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError>;

    /// Closes several pinholes, or says that [`closing`](Self::closing) must do it.
    ///
    /// # Errors
    /// Some of the pinholes may still be open.
    fn close_all(&mut self, holes: &[Pinhole]) -> Result<Closed, BackendError> {
        let mut result = Ok(());
        for hole in holes {
            result = result.and(self.close(hole));
        }
        result.map(|()| Closed::Now)
    }

    /// Begins to close several pinholes. The caller runs the work that is returned (`None`: there is
    /// none) and gives its result to [`closed`](Self::closed) before it calls this again.
    ///
    /// The backend can be used meanwhile: a pinhole that is opened comes before one with the same key
    /// that is being closed.
    ///
    /// # Errors
    /// As [`close_all`](Self::close_all).
    fn closing(&mut self, holes: &[Pinhole]) -> Result<Option<ClosingWork>, BackendError> {
        self.close_all(holes).map(|_| None)
    }

    /// Takes the result of [`closing`](Self::closing)'s work, and repairs what it can.
    ///
    /// # Errors
    /// Some of the pinholes may still be open: close them again.
    fn closed(&mut self, done: Result<(), BackendError>) -> Result<(), BackendError> {
        done
    }

    /// Opens a range of ports, or lets one that is open last until `timeout` from now.
    ///
    /// Its data connections are treated like those of pinholes. A pinhole with a port of the range
    /// comes first.
    ///
    /// # Errors
    /// The range isn't open, or keeps its old timeout; also if no range is configured.
    fn open_range(&mut self, _hole: &RangeHole, _timeout: Duration) -> Result<(), BackendError> {
        Err(BackendError::Unsupported(
            "no range of ports is configured; give one with --tls range:A-B".into(),
        ))
    }

    /// Closes a range. Does nothing if it is closed already. Connections made through it go on.
    ///
    /// # Errors
    /// The range may still be open.
    fn close_range(&mut self, _hole: &RangeHole) -> Result<(), BackendError> {
        Ok(())
    }

    /// Removes all that the backend made, and nothing else. Idempotent.
    ///
    /// # Errors
    /// Something could not be removed; the rest is.
    fn remove(&mut self) -> Result<(), BackendError>;

    /// Whether the installed objects are still in place (somebody may have flushed the rules).
    ///
    /// # Errors
    /// If it couldn't be found out.
    fn verify(&mut self) -> Result<bool, BackendError>;

    /// The same as work that the caller may run while others use the backend. If a pinhole opens or
    /// closes meanwhile, the result may be a wrong `false`: [`verify`](Self::verify) then tells.
    /// `None`: only `verify` can tell.
    fn verification(&self) -> Option<Verification> {
        None
    }
}

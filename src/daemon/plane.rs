//! What the daemon needs of the NAT plane, shared between the workers and the housekeeping.

use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::event::Event;
use crate::engine::gateway::{Error, Gateway, PinholeId, Request, Reservation, SessionId};
use crate::nat::backend::BackendError;
use crate::nat::conntrack::{ConntrackEvent, Entry};

use super::output::{DataConnection, Output};

/// The NAT plane: conntrack look-ups, port allocation and pinholes over one backend.
/// `now` is the time since the daemon's start.
pub trait Nat: Send {
    /// As [`Gateway::conntrack`].
    ///
    /// # Errors
    /// As there.
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error>;

    /// As [`Gateway::reserve`].
    ///
    /// # Errors
    /// As there.
    fn reserve(&mut self, request: &Request, now: Duration) -> Result<Reservation, Error>;

    /// As [`Gateway::open`].
    ///
    /// # Errors
    /// As there.
    fn open(&mut self, id: PinholeId, now: Duration) -> Result<(), Error>;

    /// As [`Gateway::release`].
    fn release(&mut self, id: PinholeId);

    /// As [`Gateway::session_ended`].
    fn session_ended(&mut self, session: SessionId);

    /// A marked connection began or ended: closes the pinhole it came through. Returns what there
    /// is to tell.
    fn connection(&mut self, event: &ConntrackEvent, now: Duration) -> Option<DataConnection>;

    /// Closes pinholes whose deadline has come.
    fn expire(&mut self, now: Duration);

    /// When [`expire`](Self::expire) has something to do next.
    fn next_deadline(&self) -> Option<Duration>;

    /// The pinholes that are reserved or open.
    fn pinholes(&self, now: Duration) -> Vec<PinholeInfo>;

    /// The backend's name: `nft` or `iptables`.
    fn backend(&self) -> &'static str;

    /// Whether the backend's objects are in place.
    ///
    /// # Errors
    /// If it couldn't be found out.
    fn verify(&mut self) -> Result<bool, BackendError>;

    /// Closes all pinholes and removes the backend's objects.
    ///
    /// # Errors
    /// Something could not be removed; what could be, is.
    fn remove(&mut self) -> Result<(), BackendError>;
}

/// A pinhole, as `ftpalg pinholes` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinholeInfo {
    /// Its number.
    pub id: PinholeId,
    /// The control connection that announced it.
    pub session: SessionId,
    /// Who connects to whom: `passive` or `active`.
    pub mode: crate::engine::gateway::Mode,
    /// Who may connect.
    pub from: std::net::IpAddr,
    /// Where to.
    pub to: SocketAddr,
    /// Where the connection is delivered.
    pub land: SocketAddr,
    /// `reserved` (nothing is in the kernel yet) or `open`.
    pub state: &'static str,
    /// Seconds until it closes by itself.
    pub seconds_left: u64,
}

/// The plane, as threads share it.
pub struct Shared<N> {
    plane: Mutex<Plane<N>>,
    /// Told when a deadline may have become nearer.
    changed: Condvar,
    start: Instant,
}

struct Plane<N> {
    nat: N,
    /// No pinhole opens any more.
    closing: bool,
    /// A session opened since the housekeeping looked.
    opened: bool,
    /// What the housekeeping sleeps towards; `None`: it sleeps until told.
    alarm: Option<Duration>,
}

impl<N: Nat> Shared<N> {
    /// A plane whose time starts now.
    pub fn new(nat: N) -> Self {
        Self {
            plane: Mutex::new(Plane {
                nat,
                closing: false,
                opened: false,
                alarm: None,
            }),
            changed: Condvar::new(),
            start: Instant::now(),
        }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Asks or tells the plane something.
    pub fn with<T>(&self, f: impl FnOnce(&mut N) -> T) -> T {
        f(&mut self.lock().nat)
    }

    /// Opens no pinhole from here on, and removes what is there.
    ///
    /// # Errors
    /// As [`Nat::remove`].
    pub fn close(&self) -> Result<(), BackendError> {
        let mut plane = self.lock();
        plane.closing = true;
        plane.nat.remove()
    }

    /// Closes pinholes at their deadlines for as long as the process lives. Sleeps in between;
    /// `every` is how often `also` is called, as long as it says that it is needed.
    pub fn keep_house(&self, every: Duration, mut also: impl FnMut(Duration) -> bool) {
        let mut needed = true;
        let mut next = Duration::ZERO;
        loop {
            let now = self.now();
            if needed && now >= next {
                needed = also(now);
                next = now + every;
            }
            let mut plane = self.lock();
            needed |= std::mem::take(&mut plane.opened);
            plane.nat.expire(now);
            let deadline = plane.nat.next_deadline();
            let alarm = [deadline, needed.then_some(next)]
                .into_iter()
                .flatten()
                .min();
            plane.alarm = alarm;
            let waited = match alarm {
                Some(at) => self
                    .changed
                    .wait_timeout(plane, at.saturating_sub(now).max(Duration::from_millis(10)))
                    .map(|(plane, _)| plane)
                    .map_err(|e| PoisonError::new(e.into_inner().0)),
                None => self.changed.wait(plane),
            };
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            needed = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Plane<N>> {
        // A thread that panicked ends the daemon; until then there are rules to remove.
        self.plane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's way to the plane and to the printer.
pub struct Door<'a, N> {
    /// The plane.
    pub shared: &'a Shared<N>,
    /// The printer.
    pub output: &'a Output,
}

impl<N: Nat> Gateway for Door<'_, N> {
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        self.shared.with(|nat| nat.conntrack(src, dst))
    }

    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        let now = self.shared.now();
        self.shared.with(|nat| nat.reserve(request, now))
    }

    fn open(&mut self, id: PinholeId) -> Result<(), Error> {
        let now = self.shared.now();
        let mut plane = self.shared.lock();
        if plane.closing {
            plane.nat.release(id);
            return Err(Error::Kernel("ftpalg is being stopped".into()));
        }
        let opened = plane.nat.open(id, now);
        let nearer = match (plane.nat.next_deadline(), plane.alarm) {
            (Some(deadline), Some(alarm)) => deadline < alarm,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if nearer {
            self.shared.changed.notify_all();
        }
        opened
    }

    fn release(&mut self, id: PinholeId) {
        self.shared.with(|nat| nat.release(id));
    }

    fn session_ended(&mut self, session: SessionId) {
        self.shared.with(|nat| nat.session_ended(session));
    }

    fn event(&mut self, event: Event) {
        if matches!(event, Event::SessionOpened { .. }) {
            let mut plane = self.shared.lock();
            plane.opened = true;
            if plane.alarm.is_none() {
                self.shared.changed.notify_all();
            }
        }
        self.output.event(event);
    }
}

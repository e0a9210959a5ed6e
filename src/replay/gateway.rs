//! What answers the engine in place of the kernel: conntrack's entries as the capture tells them, and
//! the plane of pinholes over a kernel that agrees to everything.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::conntrack::{Completeness, ConntrackEvent, Timeouts};
use crate::engine::event::Event;
use crate::engine::gateway::{
    Error, Gateway, PinholeId, RangeRequest, Request, Reservation, SessionId,
};
use crate::engine::{Entry, Marks, Standing, Tuple};
use crate::net::{Mark, PortRange};
use crate::pinholes::backend::{Backend, BackendError};
use crate::pinholes::{
    EventSource, Lookups, Parts, Pinhole, Plane, PlaneConfig, PlaneReport, RangeHole,
};

/// The bits of control connections' marks. Nobody else sees them.
pub(super) const MARKS: Marks = Marks { even: 1, uneven: 2 };

/// A kernel without anything in it.
struct Nothing;

impl Backend for Nothing {
    fn name(&self) -> &'static str {
        "replay"
    }
    fn set_range(&mut self, _: PortRange) {}
    fn install(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn open(&mut self, _: &Pinhole, _: Duration) -> Result<(), BackendError> {
        Ok(())
    }
    fn close(&mut self, _: &Pinhole) -> Result<(), BackendError> {
        Ok(())
    }
    fn open_range(&mut self, _: &RangeHole, _: Duration) -> Result<(), BackendError> {
        Ok(())
    }
    fn remove(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn verify(&mut self) -> Result<bool, BackendError> {
        Ok(true)
    }
}

impl Lookups for Nothing {
    fn lookup(&mut self, _: SocketAddr, _: SocketAddr) -> io::Result<Option<Entry>> {
        Ok(None)
    }
    fn marked(&mut self, _: Mark) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
}

impl EventSource for Nothing {
    fn read(&mut self, _: &mut Vec<ConntrackEvent>) -> io::Result<Completeness> {
        Ok(Completeness::Complete)
    }
}

/// The time of the capture, for the plane.
#[derive(Clone, Debug, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn set(&self, now: Duration) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Relaxed);
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// The engine's gateway.
pub(super) struct World {
    plane: Plane,
    clock: Clock,
    /// By what the inside end sends.
    entries: HashMap<Tuple, Entry>,
    events: Vec<Event>,
}

impl World {
    pub(super) fn new(config: PlaneConfig) -> Self {
        let clock = Clock::default();
        let time = clock.clone();
        let parts = Parts {
            backend: Box::new(Nothing),
            lookups: Box::new(Nothing),
            events: Box::new(Nothing),
            timeouts: Timeouts::from_iter([]),
            clock: Box::new(move || time.now()),
        };
        Self {
            plane: Plane::new(config, parts),
            clock,
            entries: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// The capture's time goes on.
    pub(super) fn set_time(&mut self, now: Duration) {
        self.clock.set(now);
    }

    /// What a connection is like on both sides. Its mark stays.
    pub(super) fn know(&mut self, outward: Tuple, entry: Entry) {
        let mark = self
            .entries
            .get(&outward)
            .map_or(entry.mark, |old| old.mark);
        self.entries.insert(outward, Entry { mark, ..entry });
    }

    pub(super) fn forget(&mut self, outward: &Tuple) {
        self.entries.remove(outward);
    }

    /// What the engine told since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What the plane told since the last call.
    pub(super) fn take_reports(&mut self) -> impl Iterator<Item = PlaneReport> + use<> {
        self.plane.take_reports()
    }

    /// A data connection came through a pinhole.
    pub(super) fn used(&mut self, original: Tuple) {
        self.plane.on_conntrack_new(original);
    }

    fn entry(&mut self, src: SocketAddr, dst: SocketAddr) -> Option<&mut Entry> {
        self.entries.get_mut(&Tuple { src, dst })
    }
}

impl Gateway for World {
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        self.entry(src, dst).copied().ok_or(Error::NoConntrack)
    }

    fn mark(&mut self, src: SocketAddr, dst: SocketAddr, standing: Standing) -> Result<(), Error> {
        let entry = self.entry(src, dst).ok_or(Error::NoConntrack)?;
        entry.mark = entry.mark & !MARKS.mask() | MARKS.bits(standing);
        Ok(())
    }

    fn keep_record(&mut self, _: Tuple, _: Option<Tuple>, _: &[u8]) -> Result<(), Error> {
        // Nobody comes after us.
        Ok(())
    }

    fn admit(&mut self, session: SessionId, client: IpAddr) -> Result<(), Error> {
        self.plane.admit(session, client)
    }

    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        self.plane.reserve(request)
    }

    fn open(&mut self, id: PinholeId) -> Result<(), Error> {
        self.plane.open(id)
    }

    fn release(&mut self, id: PinholeId) {
        self.plane.release(id);
    }

    fn open_range(&mut self, request: &RangeRequest) -> Result<(), Error> {
        self.plane.open_range(request)
    }

    fn session_ended(&mut self, session: SessionId) {
        self.plane.session_ended(session);
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

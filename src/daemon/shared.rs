//! The NAT plane as the daemon's threads share it: the workers by way of [`Door`], the watch over
//! conntrack, and the housekeeping.

mod door;
mod openings;

pub use door::Door;
pub use openings::{Openings, Wishes};

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::conntrack::{Bytes, Conntrack, Progress};
use crate::engine::gateway::{Error, PinholeId, SessionId};
use crate::engine::{Entry, Marks, Standing, Tuple};
use crate::pinholes::backend::BackendError;
use crate::pinholes::{PinholeInfo, PinholeKey, Plane, PlaneReport, Transferred};

use super::addresses::{Change, Departed};
use super::ends::Ends;
use super::events::Ring;
use super::journal::Journal;
use super::output::Output;
use super::overruns::Overruns;
use super::store::{Store, StoreHealth};
use super::translations::Translations;

/// Deadlines closer together than this are met together.
const GRANULARITY: Duration = Duration::from_millis(10);

/// When conntrack's events are read again after they could not be.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the end waits for tools that other threads run for the backend.
const WORK_LIMIT: Duration = Duration::from_secs(20);

/// How many clients are remembered for which it was said what TLS means; with more, all are
/// forgotten, and it is said again.
const MAX_UNDER_TLS: usize = 4096;

/// The daemon's clock: the time since it started, never going back.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// The plane, as threads share it.
pub struct Shared {
    state: Mutex<State>,
    /// Told when the housekeeping has to look earlier than it wanted to.
    changed: Condvar,
    /// Sockets for questions to conntrack that nobody uses now.
    lookups: Mutex<Vec<Conntrack>>,
    clock: Clock,
    output: Output,
    /// The last records.
    records: Ring,
    /// Where the ends of transfers are told.
    ends: Ends,
    overruns: Overruns,
    /// See [`engine::Config::marks`](crate::engine::Config::marks).
    marks: Marks,
    /// What a successor must know.
    journal: Option<Journal>,
    /// The same, where another gateway finds it.
    store: Option<Arc<dyn Store>>,
    /// The addresses that have gone to another gateway.
    departed: Departed,
    /// Which addresses IPv6-only clients have on the IPv4 side.
    translations: Mutex<Translations>,
    /// See [`Openings`].
    opens_together: bool,
}

struct State {
    plane: Plane,
    /// No pinhole opens any more.
    closing: bool,
    /// See [`Shared::moved`].
    moving: bool,
    /// How many threads do the backend's work without holding the lock.
    at_work: usize,
    /// A session opened since the housekeeping looked.
    opened: bool,
    /// What the housekeeping sleeps towards; `None`: it sleeps until told.
    alarm: Option<Duration>,
    /// Clients for which it was said what TLS means.
    under_tls: HashSet<IpAddr>,
}

impl State {
    /// Whether a client hasn't been seen under TLS before, as far as that is remembered.
    fn is_new_under_tls(&mut self, client: IpAddr) -> bool {
        if self.under_tls.len() >= MAX_UNDER_TLS {
            self.under_tls.clear();
        }
        self.under_tls.insert(client)
    }
}

impl Shared {
    /// Shares a plane that goes by `clock`, too.
    #[must_use]
    pub(super) fn new(
        plane: Plane,
        clock: Clock,
        (output, records, ends): (Output, Ring, Ends),
        overruns: Overruns,
        marks: Marks,
        journal: Option<Journal>,
        store: Option<Arc<dyn Store>>,
    ) -> Self {
        let opens_together = plane.opens_slowly();
        Self {
            state: Mutex::new(State {
                plane,
                closing: false,
                moving: false,
                at_work: 0,
                opened: false,
                alarm: None,
                under_tls: HashSet::new(),
            }),
            changed: Condvar::new(),
            lookups: Mutex::default(),
            clock,
            output,
            records,
            ends,
            overruns,
            marks,
            journal,
            store,
            departed: Departed::default(),
            translations: Mutex::default(),
            opens_together,
        }
    }

    /// Whether pinholes should be [opened together](Self::open_together).
    #[must_use]
    pub fn opens_together(&self) -> bool {
        self.opens_together
    }

    /// Tells if a queue was full. To be called about once a second while packets come.
    pub fn look_at_queues(&self, now: Duration) {
        self.overruns.look(now);
    }

    /// The time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The printer.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// The last records.
    #[must_use]
    pub fn records(&self) -> &Ring {
        &self.records
    }

    /// How far a data connection has come; `None` if conntrack doesn't know it.
    ///
    /// # Errors
    /// If conntrack can't be asked.
    pub fn progress(&self, tuple: Tuple) -> io::Result<Option<Progress>> {
        self.ask(|conntrack| conntrack.progress(tuple.src, tuple.dst))
    }

    /// All pinholes and data connections, with what these have carried; `past`: those of the past, too.
    /// Conntrack is asked while no lock is held.
    #[must_use]
    pub fn pinholes(&self, past: bool) -> Vec<PinholeInfo> {
        let (mut all, now) = self.with(|plane| {
            let past = if past { plane.past() } else { Vec::new() };
            (past, plane.pinholes())
        });
        all.extend(now);
        for info in &mut all {
            let bytes = |tuple: Tuple| {
                let bytes = self.ask(|conntrack| conntrack.bytes(tuple.src, tuple.dst));
                bytes.ok().flatten()
            };
            if let Some(bytes) = info.connection.and_then(bytes) {
                info.bytes = Some(bytes.original.saturating_add(bytes.reply));
            }
        }
        all
    }

    /// What a successor must know, if that is kept.
    #[must_use]
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// How what another gateway reads is doing, if there is any.
    #[must_use]
    pub fn store(&self) -> Option<StoreHealth> {
        self.store.as_ref().map(|store| store.health())
    }

    /// Opens the pinholes that another gateway had open, at most so many. Returns whether they are
    /// known: false if the store doesn't answer.
    pub fn adopt_from_elsewhere(&self, most: usize) -> bool {
        let Some(store) = &self.store else {
            return true;
        };
        let Some(found) = store.pinholes(most) else {
            return false;
        };
        self.with(|plane| plane.adopt_from_elsewhere(found));
        true
    }

    /// Addresses came or went, so connections may have moved from or to another gateway. What is known
    /// of them here may be out of date: `forget` has the engines forget it.
    pub fn moved(&self, change: Change, forget: impl FnOnce()) {
        self.departed.note(change);
        self.lock().moving = true;
        self.with(Plane::disown);
        forget();
        if let Some(journal) = &self.journal {
            journal.clear();
        }
        self.lock().moving = false;
    }

    /// Drops the records of connections that conntrack has forgotten. Their packets may never come again:
    /// an earlier process saw their end. Returns whether there are others.
    pub fn forget_records(&self) -> bool {
        let Some(journal) = &self.journal else {
            return false;
        };
        journal.retain(|outward| {
            let exists = self.exists(outward);
            if let Some(store) = self.store.as_ref().filter(|_| !exists) {
                store.drop_record(outward);
            }
            exists
        });
        let left = journal.health().records > 0;
        self.lock().opened |= left;
        left
    }

    /// Whether conntrack knows the connection that has a direction like this; yes if it can't be asked.
    pub(super) fn exists(&self, direction: Tuple) -> bool {
        let found = self.ask(|conntrack| conntrack.lookup(direction.src, direction.dst));
        !matches!(found, Ok(None))
    }

    /// Asks or tells the plane something, and prints what it has to report.
    pub fn with<T>(&self, f: impl FnOnce(&mut Plane) -> T) -> T {
        let mut state = self.lock();
        let result = f(&mut state.plane);
        self.settle(&mut state);
        result
    }

    /// Asks conntrack. Each worker that asks at the same time has a socket of its own, and none waits
    /// for the plane.
    fn look_up(&self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        self.ask(|conntrack| conntrack.lookup(src, dst))
            .map_err(unanswered)?
            .ok_or(Error::NoConntrack)
    }

    /// The connection that a translator makes of a client's. One that has a mark of
    /// ours is followed by itself: it is that of an IPv4 client, and no translator's.
    fn translated(&self, client: SocketAddr, server: SocketAddr) -> Result<Entry, Error> {
        let found = self.ask(|conntrack| conntrack.with_client_port(client.port(), server));
        let mut found = found.map_err(unanswered)?;
        found.retain(|entry| self.marks.standing(entry.mark) == Standing::Unfollowed);
        let translations = self.translations.lock();
        let mut translations = translations.unwrap_or_else(PoisonError::into_inner);
        translations.choose(client.ip(), &found, self.now())
    }

    /// Says in a control connection's mark what its numbers are like.
    fn mark(&self, src: SocketAddr, dst: SocketAddr, standing: Standing) -> Result<(), Error> {
        let (bits, mask) = (self.marks.bits(standing), self.marks.mask());
        let found = self.ask(|conntrack| conntrack.set_mark(src, dst, bits, mask));
        match found.map_err(unanswered)? {
            false if bits != 0 => Err(Error::NoConntrack),
            _ => Ok(()),
        }
    }

    fn ask<T>(&self, question: impl FnOnce(&mut Conntrack) -> io::Result<T>) -> io::Result<T> {
        let idle = || self.lookups.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = idle().pop();
        let mut conntrack = match unused {
            Some(conntrack) => conntrack,
            None => Conntrack::open()?,
        };
        let answer = question(&mut conntrack)?;
        idle().push(conntrack);
        Ok(answer)
    }

    /// What the data connections of each session carried so far. Conntrack is asked about those
    /// that exist now while no lock is held.
    #[must_use]
    pub fn transferred(&self) -> HashMap<SessionId, Transferred> {
        let running = self.running_bytes();
        self.with(|plane| plane.transferred(&running))
    }

    /// Bytes that all data connections carried so far, asked in the same way.
    #[must_use]
    pub fn carried(&self) -> u64 {
        let running = self.running_bytes();
        self.with(|plane| plane.carried(&running))
    }

    /// What conntrack says of the data connections that exist now.
    fn running_bytes(&self) -> HashMap<Tuple, Bytes> {
        let running = self.with(|plane| plane.running());
        let carried = running.into_iter().filter_map(|tuple| {
            let bytes = self.ask(|conntrack| conntrack.bytes(tuple.src, tuple.dst));
            Some((tuple, bytes.ok()??))
        });
        carried.collect()
    }

    /// Has the plane put something into the kernel, unless that is to be empty from now on.
    fn unless_closing<T>(
        &self,
        open: impl FnOnce(&mut Plane) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut state = self.lock();
        if state.closing {
            return Err(Error::Closing);
        }
        let opened = open(&mut state.plane);
        self.settle(&mut state);
        opened
    }

    /// Opens pinholes, and says of each, in their order, how that went: see [`Plane::open_together`].
    /// [`Error::Closing`] for all of them once the daemon ends.
    pub fn open_together(&self, ids: &[PinholeId]) -> Vec<Result<(), Error>> {
        self.unless_closing(|plane| Ok(plane.open_together(ids)))
            .unwrap_or_else(|error| vec![Err(error); ids.len()])
    }

    /// Opens no pinhole from here on, and removes what is there.
    ///
    /// # Errors
    /// Something could not be removed; what could be, is.
    pub fn close(&self) -> Result<(), BackendError> {
        self.leave().plane.remove()
    }

    /// Opens no pinhole from here on, and leaves what is there for a successor.
    pub fn hand_over(&self) {
        self.leave().plane.close_for_successor();
    }

    /// Has nobody change the backend's objects any more.
    fn leave(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.closing = true;
        // A tool that is at work would make anew what is removed afterwards.
        let (state, _) = self
            .changed
            .wait_timeout_while(state, WORK_LIMIT, |state| state.at_work > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state
    }

    /// Puts the backend's objects back, which somebody else removed, and the pinholes that are
    /// open. Nothing happens any more once the plane is closed: then false.
    ///
    /// # Errors
    /// What the backend says.
    pub fn restore(&self) -> Result<bool, BackendError> {
        let mut state = self.lock();
        if state.closing {
            return Ok(false);
        }
        let restored = state.plane.install();
        self.settle(&mut state);
        restored.map(|()| true)
    }

    /// Whether the backend's objects are in place. Looks without the lock first. If something seems to
    /// be missing, or that fails, looks again with it: a pinhole may have opened or closed meanwhile.
    ///
    /// # Errors
    /// What the backend says.
    pub fn in_place(&self) -> Result<bool, BackendError> {
        let verification = {
            let mut state = self.lock();
            // No tool is run any more.
            let look = match state.closing {
                true => None,
                false => state.plane.verification(),
            };
            state.at_work += usize::from(look.is_some());
            look
        };
        if let Some(look) = verification {
            let seen = look();
            drop(self.work_is_done());
            if let Ok(true) = seen {
                return Ok(true);
            }
        }
        self.with(Plane::in_place)
    }

    /// Closes pinholes at their deadlines for as long as the process lives, and calls `also` every
    /// `every` for as long as it says that it is needed, and after a session opened. Sleeps else.
    ///
    /// `unblock` gets pinholes that nobody used in time, one by one, and says how many stale
    /// connection attempts it cleared out of their way. It may take long: no lock is held.
    pub fn keep_house(
        &self,
        every: Duration,
        mut also: impl FnMut(Duration) -> bool,
        mut unblock: impl FnMut(PinholeKey) -> usize,
    ) {
        let mut needed = false;
        let mut next = Duration::ZERO;
        loop {
            let now = self.now();
            if needed && now >= next {
                needed = also(now);
                next = now + every;
            }
            while self.close_some() {}
            let overdue = self.lock().plane.overdue();
            let mut cleared = 0usize;
            for key in overdue {
                cleared = cleared.saturating_add(unblock(key));
                // With many connections that takes long, and what was used is to be closed in time.
                self.with(Plane::expire);
                while self.close_some() {}
            }
            let mut state = self.lock();
            state.plane.forgot(cleared);
            if std::mem::take(&mut state.opened) && !needed {
                needed = true;
                next = now + every;
            }
            state.plane.expire();
            let deadline = state.plane.next_deadline();
            state.alarm = deadline.into_iter().chain(needed.then_some(next)).min();
            self.settle(&mut state);
            if state.plane.has_closing() && !state.closing {
                continue;
            }
            match state.alarm {
                Some(at) => {
                    let sleep = at.saturating_sub(now).max(GRANULARITY);
                    drop(self.changed.wait_timeout(state, sleep));
                }
                None => drop(self.changed.wait(state)),
            }
        }
    }

    /// Closes the pinholes that are done with by now, together; whether there were any. Workers
    /// don't wait for it.
    fn close_some(&self) -> bool {
        let work = {
            let mut state = self.lock();
            if state.closing {
                return false;
            }
            let Some(work) = state.plane.take_closing() else {
                return false;
            };
            state.at_work += 1;
            work
        };
        let done = work();
        self.work_is_done().plane.closed(done);
        true
    }

    /// A thread has done the backend's work, and holds the lock again.
    fn work_is_done(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.at_work = state.at_work.saturating_sub(1);
        if state.closing {
            self.changed.notify_all();
        }
        state
    }

    /// Tells the plane whenever `events` has something to read, for as long as the process lives.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub fn watch(&self, events: &impl AsFd) -> Result<(), Errno> {
        loop {
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {
                    let look = || self.with(|plane| (plane.catch_up(), plane.patience()));
                    let (mut read, mut patience) = look();
                    while !read {
                        thread::sleep(PAUSE);
                        (read, patience) = look();
                    }
                    if !patience.is_zero() {
                        // What comes meanwhile is read together.
                        thread::sleep(patience);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// What is to be done after the plane was used.
    fn settle(&self, state: &mut State) {
        for report in state.plane.take_reports() {
            if let PlaneReport::Connected(connection) = report {
                self.ends.connected(connection.session);
            }
            self.output.report(report);
        }
        if let Some(store) = &self.store {
            let ended = state.plane.take_ended();
            // What is in the store may be another gateway's by now.
            for key in ended.into_iter().filter(|_| !state.moving) {
                store.drop_pinhole(key);
            }
        }
        let deadline = state.plane.next_deadline();
        let earlier = deadline.is_some_and(|at| state.alarm.is_none_or(|alarm| at < alarm));
        if earlier || state.plane.has_closing() {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked ends the daemon; until then there are rules to remove.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unanswered(error: io::Error) -> Error {
    Error::Kernel(format!("ask conntrack: {error}"))
}

//! The door through which an engine reaches the plane, the kernel, the journal and the printer: what
//! [`Gateway`] asks for, on the daemon's [`Shared`].

use std::net::{IpAddr, SocketAddr};
use std::sync::{MutexGuard, TryLockError};

use super::{Openings, Shared, State, Wishes};
use crate::daemon::store::Store;
use crate::engine::event::Event;
use crate::engine::gateway::{
    Error, Gateway, PinholeId, RangeRequest, Request, Reservation, SessionId,
};
use crate::engine::{Entry, Standing, Tuple};
use crate::pinholes::Plane;
use crate::pinholes::ports::Listeners;
use crate::queue::Earlier;

/// An engine's way to the plane and to the printer.
pub struct Door<'a, 'b> {
    shared: &'a Shared,
    /// The packets before the one that the engine handles.
    earlier: Option<&'a mut Earlier<'b>>,
    /// What the packet asks for, while it may be put off.
    wishes: Option<Wishes>,
    /// What the packets ask for that were put off.
    others: Option<&'a Openings>,
}

impl<'a, 'b> Door<'a, 'b> {
    /// Of a thread that handles no packets.
    pub fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            earlier: None,
            wishes: None,
            others: None,
        }
    }

    /// Of a worker. Before it waits for anybody, the packets before go on.
    pub fn of_worker(shared: &'a Shared, earlier: &'a mut Earlier<'b>) -> Self {
        Self {
            earlier: Some(earlier),
            ..Self::new(shared)
        }
    }

    /// For a packet that may be put off until its pinholes are open, or because of what the `others` ask for. To
    /// be [settled](Self::settle).
    pub(in crate::daemon) fn of_packet(&mut self, wishes: Wishes, others: &'a Openings) {
        self.wishes = Some(wishes);
        self.others = Some(others);
    }

    /// The packet is put off: what it asks for until it comes again.
    pub(in crate::daemon) fn wishes(&mut self) -> Wishes {
        self.wishes.take().unwrap_or_default()
    }

    /// The packet isn't put off. From here on it waits for what it asks for.
    pub(in crate::daemon) fn settle(&mut self) {
        if let Some(wishes) = self.wishes.take() {
            let (events, unasked) = wishes.settle();
            unasked.for_each(|id| self.release(id));
            events.into_iter().for_each(|event| self.event(event));
        }
    }

    /// What comes may take long.
    pub(in crate::daemon) fn may_wait(&mut self) {
        if let Some(earlier) = &mut self.earlier {
            earlier.send();
        }
    }

    /// The store that two gateways share, which is asked over the network.
    fn store(&mut self) -> Option<&'a dyn Store> {
        let store = self.shared.store.as_deref()?;
        self.may_wait();
        Some(store)
    }

    fn lock(&mut self) -> MutexGuard<'a, State> {
        match self.shared.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.may_wait();
                self.shared.lock()
            }
        }
    }

    /// Like [`Shared::with`].
    fn with<T>(&mut self, f: impl FnOnce(&mut Plane) -> T) -> T {
        let mut state = self.lock();
        let result = f(&mut state.plane);
        self.shared.settle(&mut state);
        result
    }
}

impl Gateway for Door<'_, '_> {
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        self.shared.look_up(src, dst)
    }

    fn translated(&mut self, client: SocketAddr, server: SocketAddr) -> Result<Entry, Error> {
        self.may_wait();
        self.shared.translated(client, server)
    }

    fn mark(&mut self, src: SocketAddr, dst: SocketAddr, standing: Standing) -> Result<(), Error> {
        self.shared.mark(src, dst, standing)
    }

    fn keep_record(
        &mut self,
        outward: Tuple,
        name: Option<Tuple>,
        record: &[u8],
    ) -> Result<(), Error> {
        let journal = self.shared.journal.as_ref();
        let here = journal.is_some_and(|journal| journal.keep(outward, name, record));
        let store = self.store();
        let elsewhere = store.is_some_and(|store| store.keep_record(outward, record));
        match here || elsewhere {
            true => Ok(()),
            false => Err(Error::NoRecord),
        }
    }

    fn drop_record(&mut self, outward: Tuple) {
        if let Some(journal) = &self.shared.journal {
            journal.drop_record(outward);
        }
        if let Some(store) = self.store() {
            store.drop_record(outward);
        }
    }

    fn fetch_record(&mut self, outward: Tuple) -> Result<Option<Vec<u8>>, Error> {
        let Some(store) = self.store() else {
            return Ok(None);
        };
        let silent = || Error::Kernel("the store doesn't answer".into());
        store.find_record(outward).ok_or_else(silent)
    }

    fn find_record(&mut self, outward: Tuple) -> Option<Vec<u8>> {
        let found = self.shared.journal.as_ref()?.find(outward)?;
        // The connection may have been there and come back while no process was here.
        let store = self.shared.store.as_ref();
        let newer = store.and_then(|store| store.find_record_of_another(outward));
        newer.or(Some(found))
    }

    fn is_elsewhere(&mut self, entry: &Entry) -> bool {
        self.shared.departed.has(entry)
    }

    fn admit(&mut self, session: SessionId, client: IpAddr) -> Result<(), Error> {
        self.with(|plane| plane.admit(session, client))
    }

    fn may_put_off(&mut self, undoable: bool) -> bool {
        let wishes = self.wishes.as_mut();
        wishes.is_some_and(|wishes| wishes.may_put_off(undoable))
    }

    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        if let Some(wishes) = &mut self.wishes {
            if let Some(reserved) = wishes.reserved(request) {
                return Ok(reserved);
            }
            let can_wait = wishes.can_wait();
            let before = (self.others).map_or(0, |others| others.wanted_for(request.from));
            // The first packet never waits for this, so each round brings one further.
            if can_wait && before > 0 && self.with(|plane| before >= plane.most_together(request)) {
                return Err(Error::Later);
            }
        }
        if self.with(|plane| plane.needs_listeners(request)) {
            self.may_wait();
            let listeners = Listeners::read();
            self.with(|plane| plane.learn_listeners(listeners));
        }
        let reserved = self.with(|plane| plane.reserve(request))?;
        if let Some(wishes) = &mut self.wishes {
            wishes.reserve(request, reserved);
        }
        Ok(reserved)
    }

    fn open(&mut self, id: PinholeId) -> Result<(), Error> {
        match self.wishes.as_mut().and_then(|wishes| wishes.open(id)) {
            Some(opened) => opened?,
            None => {
                self.may_wait();
                self.shared.unless_closing(|plane| plane.open(id))?;
            }
        }
        if let Some(store) = self.store() {
            let twin = self.with(|plane| plane.twin(id));
            for id in twin.into_iter().chain([id]) {
                if let Some((pinhole, left)) = self.with(|plane| plane.open_pinhole(id)) {
                    store.keep_pinhole(&pinhole, left);
                }
            }
        }
        Ok(())
    }

    fn release(&mut self, id: PinholeId) {
        self.may_wait();
        self.with(|plane| plane.release(id));
    }

    fn open_range(&mut self, request: &RangeRequest) -> Result<(), Error> {
        self.may_wait();
        self.shared
            .unless_closing(|plane| plane.open_range(request))
    }

    fn session_ended(&mut self, session: SessionId) {
        if self.with(|plane| plane.has_open(session)) {
            self.may_wait();
        }
        self.with(|plane| plane.session_ended(session));
    }

    fn event(&mut self, event: Event) {
        if let Some(wishes) = &mut self.wishes {
            return wishes.tell(event);
        }
        if matches!(event, Event::SessionOpened { .. }) {
            let mut state = self.lock();
            state.opened = true;
            if state.alarm.is_none() {
                self.shared.changed.notify_all();
            }
        }
        if let Event::TlsPassed { client, .. } = event
            && !self.lock().is_new_under_tls(client)
        {
            return;
        }
        if let Event::TransferEnded { session, .. } = event {
            self.shared.ends.transfer_is_over(session);
        }
        self.shared.output.event(event);
    }
}

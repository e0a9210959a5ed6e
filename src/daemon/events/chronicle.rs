//! Makes records of what the engine and the NAT plane tell: a transfer is one record, though its
//! command, its data connection and its reply are told by different threads, in any order.

mod going;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use jiff::Timestamp;

use super::record::{Direction, Record, Refused, Transfer, What};
use super::refusal;
use crate::engine::event::Event;
use crate::engine::gateway::SessionId;
use crate::engine::room::less_room;
use crate::pinholes::{DataConnection, Finished, PlaneReport};
use going::{Announced, Data, Ended, GRACE, Going, MAX_EACH, More, Ripeness, push};

/// How many sessions are known by their ends. Beyond it, the oldest are forgotten: the records of
/// theirs lack the addresses.
const MAX_SESSIONS: usize = 131_072;

/// The sessions as far as records need them.
#[derive(Debug)]
pub(super) struct Chronicle {
    /// Whether users' and files' names are recorded.
    pub(super) names: bool,
    sessions: BTreeMap<SessionId, Box<Known>>,
    /// Sessions with a transfer that has its reply and waits for the rest, and since when.
    waiting: VecDeque<(Instant, SessionId)>,
    /// All that runs has been told: the daemon ends.
    finished: bool,
    last: u64,
}

#[derive(Debug)]
struct Known {
    client: SocketAddr,
    server: SocketAddr,
    opened: Instant,
    user: Option<Box<str>>,
    more: Option<Box<More>>,
}

impl Chronicle {
    pub(super) fn new(names: bool) -> Self {
        Self {
            names,
            sessions: BTreeMap::new(),
            waiting: VecDeque::new(),
            finished: false,
            last: 0,
        }
    }

    /// Something happened that isn't about a session.
    pub(super) fn note(&mut self, what: What, at: Instant, out: &mut Vec<Record>) {
        self.record(None, what, at, out);
    }

    /// The engine tells of `event`, which happened at `at`.
    pub(super) fn event(&mut self, event: &Event, at: Instant, out: &mut Vec<Record>) {
        let session = event.session();
        let what = match event {
            Event::SessionOpened {
                client,
                server,
                joined,
                ..
            } => {
                while self.sessions.len() >= MAX_SESSIONS {
                    self.sessions.pop_first();
                }
                let known = Known {
                    client: *client,
                    server: *server,
                    opened: at,
                    user: None,
                    more: None,
                };
                self.sessions.insert(session, Box::new(known));
                What::SessionStart { joined: *joined }
            }
            Event::NotAdmitted {
                client,
                server,
                why,
                ..
            } => {
                let what = What::Limit { why: why.clone() };
                self.push(Some(session), Some((*client, *server)), what, at, out);
                return;
            }
            Event::Announced {
                pinhole,
                mode,
                old,
                new,
                ..
            } => {
                if let Some(more) = self.more(session) {
                    let announced = Announced {
                        pinhole: *pinhole,
                        mode: *mode,
                        old: *old,
                        new: *new,
                    };
                    push(&mut more.announced, announced);
                }
                return;
            }
            Event::Refused {
                verb,
                why,
                address,
                replaced,
                ..
            } => What::Refused(Box::new(Refused {
                command: (*verb).to_owned(),
                why: why.clone(),
                address: *address,
                rule: refusal::rule(verb, why, *address).map(str::to_owned),
                allowed_by: refusal::allowed_by(verb, why, *address),
                replaced: *replaced,
            })),
            Event::LoggedIn { user, .. } => {
                let user = self.named(user);
                if let (Some(user), Some(known)) = (&user, self.sessions.get_mut(&session)) {
                    known.user = Some(user.as_str().into());
                }
                What::Login { user }
            }
            Event::LoginRefused { user, code, .. } => What::LoginRefused {
                user: self.named(user),
                reply: *code,
            },
            Event::TransferBegun { verb, name, .. } => {
                let name = self.named(name).unwrap_or_default();
                self.begins(session, verb, name, at, out);
                return;
            }
            Event::TransferEnded {
                verb,
                name,
                begun,
                code,
                ..
            } => {
                let ended = Ended {
                    at,
                    begun: *begun,
                    code: *code,
                };
                let name = self.named(name).unwrap_or_default();
                self.ends(session, verb, name, ended, out);
                return;
            }
            Event::Opaque { why, .. } => {
                if let Some(more) = self.more(session) {
                    more.tls = *why == "TLS";
                }
                What::Reading {
                    why: Some((*why).to_owned()),
                }
            }
            Event::ClearAgain { followed, .. } => {
                if let Some(more) = self.more(session) {
                    more.tls = !followed;
                }
                let unread = "in clear text again, but not followed";
                What::Reading {
                    why: (!followed).then(|| unread.to_owned()),
                }
            }
            Event::Bypassed { by, .. } => What::Reading {
                why: Some(format!("--bypass {by}")),
            },
            // Said by the one before.
            Event::TlsPassed { .. } => return,
            Event::SessionClosed { how, .. } => {
                self.closes(session, how, at, out);
                return;
            }
        };
        self.record(Some(session), what, at, out);
    }

    /// The NAT plane tells of `report`.
    pub(super) fn report(&mut self, report: &PlaneReport, at: Instant, out: &mut Vec<Record>) {
        let (session, what) = match report {
            PlaneReport::Connected(connection) => return self.connects(*connection, at),
            // What runs when the daemon ends has no other end here.
            PlaneReport::Finished(finished) | PlaneReport::Running(finished) => {
                return self.finishes(*finished, at, out);
            }
            PlaneReport::Expired(hole) => {
                let what = What::Unused {
                    from: hole.from,
                    to: hole.to,
                    land: hole.land,
                };
                (Some(hole.session), what)
            }
            PlaneReport::RangeOpened(range) => {
                let what = What::RangeOpen {
                    from: range.from,
                    to: range.to.ip(),
                    ports: range.ports.clone().unwrap_or_default(),
                };
                (Some(range.session), what)
            }
            PlaneReport::RangeClosed(range, why) => {
                let what = What::RangeClose {
                    from: range.from,
                    to: range.to.ip(),
                    why: why.words().to_owned(),
                };
                (Some(range.session), what)
            }
            PlaneReport::Restored { missing } => (
                None,
                What::RulesRestored {
                    missing: missing.clone(),
                },
            ),
            PlaneReport::MissedEvents => (None, What::EventsMissed {}),
        };
        self.record(session, what, at, out);
    }

    /// Tells of transfers that have waited for long enough. To be called now and then while
    /// [`is_waiting`](Self::is_waiting).
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Record>) {
        while let Some(&(since, session)) = self.waiting.front()
            && now.saturating_duration_since(since) >= GRACE
        {
            self.waiting.pop_front();
            self.waits_no_more(session);
            self.settle(session, now, false, out);
        }
        if let Some(room) = less_room(self.waiting.len(), self.waiting.capacity()) {
            self.waiting.shrink_to(room);
        }
    }

    fn waits_no_more(&mut self, session: SessionId) {
        let known = self.sessions.get_mut(&session);
        if let Some(more) = known.and_then(|known| known.more.as_mut()) {
            more.waits = false;
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The daemon ends: tells of all transfers, though they still run. `handover`: a successor goes on.
    /// It knows no transfer that began before it, but tells of a data connection that comes to it: what
    /// still waits for one is left to it, or there would be two records.
    pub(super) fn finish(&mut self, now: Instant, handover: bool, out: &mut Vec<Record>) {
        self.finished = true;
        self.waiting.clear();
        let mut busy = Vec::new();
        for (session, known) in &mut self.sessions {
            let Some(more) = known.more.as_mut().filter(|m| !m.transfers.is_empty()) else {
                continue;
            };
            more.waits = false;
            if handover {
                more.transfers.retain(|going| !going.awaits_connection());
            }
            busy.push(*session);
        }
        for session in busy {
            self.settle(session, now, true, out);
        }
    }

    fn begins(
        &mut self,
        session: SessionId,
        verb: &'static str,
        name: String,
        at: Instant,
        out: &mut Vec<Record>,
    ) {
        let Some(more) = self.more(session) else {
            return;
        };
        let going = more.going(verb, name, at);
        more.transfers.push_back(going);
        if more.transfers.len() > MAX_EACH {
            let oldest = more.transfers.pop_front();
            self.tell(session, oldest, at, out);
        }
    }

    fn ends(
        &mut self,
        session: SessionId,
        verb: &'static str,
        name: String,
        ended: Ended,
        out: &mut Vec<Record>,
    ) {
        let finished = self.finished;
        let Some(more) = self.more(session) else {
            return;
        };
        let runs = |going: &&mut Going| ended.begun && going.ended.is_none();
        match more.transfers.iter_mut().find(runs) {
            Some(going) => going.ended = Some(ended),
            // It has its record. Its reply came while the daemon was about to end.
            None if ended.begun && finished => return,
            None => {
                let mut going = more.going(verb, name, ended.at);
                going.ended = Some(ended);
                push(&mut more.transfers, going);
            }
        }
        self.settle(session, ended.at, false, out);
    }

    fn connects(&mut self, connection: DataConnection, at: Instant) {
        let Some(more) = self.more(connection.session) else {
            return;
        };
        let data = Data {
            connection,
            at,
            finished: None,
        };
        let is_its = |going: &&mut Going| {
            let pinhole = going.announced.map(|announced| announced.pinhole);
            pinhole == Some(connection.pinhole) && going.data.is_none()
        };
        match more.transfers.iter_mut().find(is_its) {
            Some(going) => going.data = Some(data),
            None => push(&mut more.unused, data),
        }
    }

    fn finishes(&mut self, finished: Finished, at: Instant, out: &mut Vec<Record>) {
        let connection = finished.connection;
        let session = connection.session;
        let Some(more) = self.more(session) else {
            // Its session isn't known here: it was announced to a process before this one, or has ended.
            let data = Data::over(finished, at);
            return self.tell_alone(session, data, false, out);
        };
        let is_it = |data: &Data| {
            let other = data.connection;
            other.pinhole == connection.pinhole && other.from == connection.from
        };
        let going = more.transfers.iter_mut().find_map(|going| {
            let data = going.data.as_mut()?;
            is_it(data).then_some(data)
        });
        if let Some(data) = going {
            data.finished = Some(finished);
            return self.settle(session, at, false, out);
        }
        let unused = more.unused.iter().position(is_it);
        if more.refused.contains(&connection.pinhole) {
            unused.and_then(|at| more.unused.remove(at));
            return self.forget_if_over(session);
        }
        let (tls, closed) = (more.tls, more.closed);
        if !tls
            && !closed
            && let Some(data) = unused.and_then(|at| more.unused.get_mut(at))
        {
            // Its transfer may be told of in a moment.
            data.finished = Some(finished);
            return;
        }
        let data = unused.and_then(|at| more.unused.remove(at));
        if !tls && !closed {
            // The server refused the command that it was meant for.
            return;
        }
        let data = data.map_or(Data::over(finished, at), |data| Data {
            finished: Some(finished),
            ..data
        });
        self.tell_alone(session, data, tls, out);
        self.forget_if_over(session);
    }

    fn closes(&mut self, session: SessionId, how: &str, at: Instant, out: &mut Vec<Record>) {
        self.settle(session, at, true, out);
        let opened = self.sessions.get(&session).map_or(at, |known| known.opened);
        let what = What::SessionEnd {
            cause: how.to_owned(),
            seconds: at.saturating_duration_since(opened).as_secs_f64(),
        };
        self.record(Some(session), what, at, out);
        let more = self
            .sessions
            .get_mut(&session)
            .and_then(|known| known.more.as_mut());
        if let Some(more) = more {
            more.closed = true;
            more.announced.clear();
            more.unused.retain(|data| data.finished.is_none());
        }
        self.forget_if_over(session);
    }

    /// Forgets a session that has ended, unless a data connection of it goes on.
    fn forget_if_over(&mut self, session: SessionId) {
        let over = self.sessions.get(&session).is_none_or(|known| {
            let more = known.more.as_ref();
            more.is_none_or(|more| {
                more.closed && more.unused.is_empty() && more.transfers.is_empty()
            })
        });
        if over
            && self
                .sessions
                .get(&session)
                .is_none_or(|known| known.is_closed())
        {
            self.sessions.remove(&session);
        }
    }

    /// Tells of the session's transfers that are over in every way. `hurry`: also of those whose data
    /// connection hasn't come; the session ends.
    fn settle(&mut self, session: SessionId, now: Instant, hurry: bool, out: &mut Vec<Record>) {
        let Some(more) = self.more(session) else {
            return;
        };
        let hurry = hurry || more.closed;
        let mut told = Vec::new();
        let mut waits = None;
        let mut at = 0;
        while let Some(going) = more.transfers.get(at) {
            match going.ripeness(now, hurry) {
                Ripeness::Told => told.extend(more.transfers.remove(at)),
                Ripeness::Waits(since) => {
                    waits = Some(since);
                    at += 1;
                }
                Ripeness::Runs => at += 1,
            }
        }
        for going in &told {
            if let Some(pinhole) = going.refused_pinhole() {
                push(&mut more.refused, pinhole);
                let data = going.data.filter(|data| data.finished.is_none());
                data.into_iter()
                    .for_each(|data| push(&mut more.unused, data));
            }
        }
        for going in told {
            self.tell(session, Some(going), now, out);
        }
        if let Some(since) = waits {
            self.waits(session, since);
        }
        self.forget_if_over(session);
    }

    /// A session has a transfer that has waited since then. There may be many such sessions, so whether it
    /// is among them already is noted with the session.
    fn waits(&mut self, session: SessionId, since: Instant) {
        let Some(more) = self.more(session) else {
            return;
        };
        if std::mem::replace(&mut more.waits, true) {
            return;
        }
        if self.waiting.len() >= MAX_SESSIONS
            && let Some((_, oldest)) = self.waiting.pop_front()
        {
            self.waits_no_more(oldest);
        }
        self.waiting.push_back((since, session));
    }

    /// Tells of a transfer.
    fn tell(
        &mut self,
        session: SessionId,
        going: Option<Going>,
        now: Instant,
        out: &mut Vec<Record>,
    ) {
        let Some(going) = going else {
            return;
        };
        let code = going.ended.and_then(|ended| ended.code);
        let end = going.ended.map_or(now, |ended| ended.at);
        let user = self.user(session);
        let mut transfer = Transfer {
            command: Some(going.verb.to_owned()),
            file: self.names.then_some(going.name),
            user,
            direction: Some(Direction::of(going.verb)),
            mode: going.announced.map(|announced| announced.mode),
            reply: code,
            complete: code.is_some_and(|code| (200..300).contains(&code)),
            seconds: end.saturating_duration_since(going.began).as_secs_f64(),
            announced: going.announced.map(|announced| announced.old),
            rewritten: going.announced.map(|announced| announced.new),
            ..Transfer::default()
        };
        let refused = going.ended.is_some_and(|ended| ended.is_refusal());
        if let Some(data) = going.data.filter(|_| !refused) {
            transfer.carried(&data, going.began, end);
        }
        self.record(Some(session), What::Transfer(Box::new(transfer)), now, out);
    }

    /// Tells of a data connection without its command.
    fn tell_alone(&mut self, session: SessionId, data: Data, tls: bool, out: &mut Vec<Record>) {
        let established = data.finished.is_some_and(|finished| finished.established);
        if !established {
            return;
        }
        let mut transfer = Transfer {
            user: self.user(session),
            mode: Some(data.connection.mode),
            tls,
            complete: data.finished.is_some_and(|finished| !finished.reset),
            ..Transfer::default()
        };
        transfer.carried(&data, data.at, data.end());
        let at = data.end();
        self.record(Some(session), What::Transfer(Box::new(transfer)), at, out);
    }

    fn user(&self, session: SessionId) -> Option<String> {
        let user = self.sessions.get(&session)?.user.as_deref()?;
        Some(user.to_owned())
    }

    fn named(&self, name: &str) -> Option<String> {
        self.names.then(|| name.to_owned())
    }

    fn more(&mut self, session: SessionId) -> Option<&mut More> {
        let known = self.sessions.get_mut(&session)?;
        Some(known.more.get_or_insert_default())
    }

    fn record(
        &mut self,
        session: Option<SessionId>,
        what: What,
        at: Instant,
        out: &mut Vec<Record>,
    ) {
        let known = session.and_then(|session| self.sessions.get(&session));
        let ends = known.map(|known| (known.client, known.server));
        self.push(session, ends, what, at, out);
    }

    fn push(
        &mut self,
        session: Option<SessionId>,
        ends: Option<(SocketAddr, SocketAddr)>,
        what: What,
        at: Instant,
        out: &mut Vec<Record>,
    ) {
        self.last += 1;
        let ago = jiff::SignedDuration::try_from(at.elapsed()).unwrap_or_default();
        let now = Timestamp::now();
        out.push(Record {
            seq: self.last,
            time: now.checked_sub(ago).unwrap_or(now),
            session: session.map(|SessionId(number)| number),
            client: ends.map(|(client, _)| client),
            server: ends.map(|(_, server)| server),
            what,
        });
    }
}

impl Known {
    fn is_closed(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.closed)
    }
}

#[cfg(test)]
mod tests;

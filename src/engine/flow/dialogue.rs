//! Carries out the session machine's steps on a flow: bytes pass, wait or change, and inspection
//! may end.

use std::net::SocketAddr;

use super::{Context, Flow};
use crate::engine::Side;
use crate::engine::endpoints::Endpoints;
use crate::engine::event::Event;
use crate::engine::gateway::{Error, PinholeId, SessionId};
use crate::engine::second::Second;
use crate::ftp::session::{Hole, News, Over, Peer, Step, TransferCommand};
use crate::stream::Half;

/// Why a flow isn't read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Unread {
    /// The session machine says so.
    Over(Over),
    /// Packets bypassed us.
    Missed,
    /// A limit was reached.
    Limit,
}

impl Unread {
    pub(in crate::engine) const TLS: Self = Self::Over(Over::Tls);

    const fn why(self) -> &'static str {
        match self {
            Self::Over(over) => over.why(),
            Self::Missed => "missed",
            Self::Limit => "limit",
        }
    }
}

/// How the inspection of the pending bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Inspected {
    /// All are passed or replaced, but for those that may belong to an address.
    Done,
    /// The same, and more wait than [`BufferLimits::held`](crate::stream::BufferLimits::held)
    /// allows.
    HoldsTooMuch,
}

/// The pending bytes of a direction.
pub(super) fn pending(halves: &[Half; 2], side: Side) -> &[u8] {
    let [egress, ingress] = halves;
    match side {
        Side::Egress => egress.pending(),
        Side::Ingress => ingress.pending(),
    }
}

/// What the session machine tells, as an event.
fn told(session: SessionId, news: News) -> Event {
    match news {
        News::LoginFailed { user, code } => Event::LoginRefused {
            session,
            user,
            code,
        },
        News::TransferBegun(TransferCommand { verb, name }) => Event::TransferBegun {
            session,
            verb,
            name,
        },
        News::TransferEnded {
            command: TransferCommand { verb, name },
            begun,
            code,
        } => Event::TransferEnded {
            session,
            verb,
            name,
            begun,
            code,
        },
    }
}

impl Flow {
    pub(in crate::engine) fn peer(&self, side: Side) -> Peer {
        if side == self.client {
            Peer::Client
        } else {
            Peer::Server
        }
    }

    /// Takes what is pending through the session machine, as far as it goes.
    ///
    /// Only what waits is bounded here. What is in flight is bounded where data is taken in
    /// ([`Half::known_if_full`]): a segment is inspected as a whole or not at all.
    pub(in crate::engine) fn inspect(
        &mut self,
        ends: &Endpoints,
        side: Side,
        cx: &mut Context<'_>,
    ) -> Inspected {
        let counted = self.session.counts();
        let inspected = self.take_steps(ends, side, cx);
        cx.stats.count_lines(counted, self.session.counts());
        if let Some(Hole(hole)) = self.session.take_cancelled() {
            cx.gateway.release(PinholeId(hole));
        }
        if let Some(user) = self.session.take_login() {
            cx.gateway.event(Event::LoggedIn {
                session: self.id,
                user,
            });
        }
        inspected
    }

    /// Carries out steps until nothing is pending, or what is pending waits.
    fn take_steps(&mut self, ends: &Endpoints, side: Side, cx: &mut Context<'_>) -> Inspected {
        let peer = self.peer(side);
        loop {
            let pending = pending(&self.halves, side);
            if pending.is_empty() {
                return Inspected::Done;
            }
            let held = pending.len();
            let step = self.session.next(peer, pending);
            while let Some(news) = self.session.take_news() {
                cx.gateway.event(told(self.id, news));
            }
            if let Some(since) = self.waiting.get_mut(side.index()) {
                *since = (step == Step::Wait).then(|| Second::of(cx.now));
            }
            match step {
                Step::Wait if held <= cx.config.limits.held => return Inspected::Done,
                Step::Wait if peer == Peer::Client && self.session.awaits_login() => {
                    self.session.lose_patience();
                }
                Step::Wait => return Inspected::HoldsTooMuch,
                Step::Opaque(over) => {
                    self.become_opaque(ends, side, over, cx);
                    return Inspected::Done;
                }
                Step::Pass(n) => self.forward(side).pass(n.max(1)),
                Step::Address(address) => self.announce(ends, side, &address, cx),
                Step::Refuse {
                    at,
                    with,
                    verb,
                    why,
                } => {
                    self.forward(side).pass(at);
                    self.blank(side, &with);
                    self.count_refusal(verb, why.to_owned(), None, true, cx);
                }
                Step::Replace { at, len, with } => {
                    let forward = self.forward(side);
                    forward.pass(at);
                    forward.replace(len.max(1), &with);
                }
                Step::Blank(with) => self.blank(side, &with),
                Step::OpenActive(hole) => self.open_active(hole, cx),
                Step::Unfollowed => {
                    cx.stats.not_ftp = cx.stats.not_ftp.saturating_add(1);
                    let (session, why) = (self.id, Over::NotFtp.why());
                    cx.gateway.event(Event::Opaque { session, why });
                }
            }
            if self.is_frozen() {
                return Inspected::Done;
            }
        }
    }

    /// Replaces pending bytes by as many others.
    fn blank(&mut self, side: Side, with: &[u8]) {
        self.forward(side).replace(with.len().max(1), with);
    }

    /// Opens the pinhole that a `PORT` reserved.
    fn open_active(&mut self, Hole(hole): Hole, cx: &mut Context<'_>) {
        let opened = cx.gateway.open(PinholeId(hole));
        match opened {
            Err(Error::Closing) => {
                self.freeze();
                return;
            }
            Err(Error::Later) => return self.put_off(cx),
            _ => {}
        }
        self.session.active_opened(opened.is_ok());
        if let Err(error) = opened {
            self.count_refusal("PORT", error.to_string(), None, false, cx);
        }
    }

    /// The session machine reads no further. Under TLS, the records are followed instead.
    fn become_opaque(&mut self, ends: &Endpoints, side: Side, over: Over, cx: &mut Context<'_>) {
        if over == Over::Tls {
            self.follow_records(side);
        }
        self.end_inspection(Unread::Over(over), cx);
        if over == Over::Tls {
            self.tls_begins(ends, cx);
        }
    }

    /// Counts and reports an announcement or command that isn't followed. `replaced`: it was refused
    /// in place.
    pub(in crate::engine) fn count_refusal(
        &mut self,
        verb: &'static str,
        why: String,
        address: Option<SocketAddr>,
        replaced: bool,
        cx: &mut Context<'_>,
    ) {
        self.refused = self.refused.saturating_add(1);
        let counter = if replaced {
            &mut cx.stats.refused
        } else {
            &mut cx.stats.not_opened
        };
        *counter = counter.saturating_add(1);
        if replaced && verb == "AUTH" && cx.config.policy.deny_tls {
            cx.stats.tls_denied = cx.stats.tls_denied.saturating_add(1);
        }
        cx.gateway.event(Event::Refused {
            session: self.id,
            verb,
            why,
            address,
            replaced,
        });
    }

    /// A limit on buffers is reached. Replies pass uninspected from here on. Commands are still
    /// inspected, so that what is always refused is refused; without room, they wait at their
    /// sender.
    pub(in crate::engine) fn reach_limit(&mut self, side: Side, cx: &mut Context<'_>) {
        if side != self.client {
            self.lose_replies(side, Unread::Limit, cx);
        }
    }

    /// Replies pass uninspected from here on, and so nothing opens.
    pub(super) fn lose_replies(&mut self, side: Side, why: Unread, cx: &mut Context<'_>) {
        let forward = self.forward(side);
        if forward.is_opaque() {
            return;
        }
        forward.end_inspection();
        if let Some(since) = self.waiting.get_mut(side.index()) {
            *since = None;
        }
        cx.stats.limit_reached = cx.stats.limit_reached.saturating_add(1);
        let (session, why) = (self.id, why.why());
        cx.gateway.event(Event::Opaque { session, why });
    }

    /// Both directions pass uninspected from here on. Their numbers are still translated.
    pub(in crate::engine) fn end_inspection(&mut self, why: Unread, cx: &mut Context<'_>) {
        if why != Unread::TLS {
            self.tls = None;
        }
        if self.halves.iter().all(Half::is_opaque) {
            return;
        }
        self.halves.iter_mut().for_each(Half::end_inspection);
        self.waiting = [None; 2];
        let counter = match why {
            Unread::Over(Over::Tls) => &mut cx.stats.tls,
            Unread::Over(Over::NotFtp | Over::NotTls) => &mut cx.stats.not_ftp,
            Unread::Missed | Unread::Limit => &mut cx.stats.limit_reached,
        };
        *counter = counter.saturating_add(1);
        cx.gateway.event(Event::Opaque {
            session: self.id,
            why: why.why(),
        });
    }

    /// Ends the wait of bytes that have waited for longer than [`Config::hold`].
    ///
    /// [`Config::hold`]: crate::engine::Config::hold
    pub(in crate::engine) fn give_up_waiting(
        &mut self,
        ends: &Endpoints,
        side: Side,
        cx: &mut Context<'_>,
    ) {
        if self.forward(side).pending().is_empty() {
            return;
        }
        let since = self.waiting.get(side.index()).copied().flatten();
        if since.is_none_or(|since| since.until(cx.now) <= cx.config.hold) {
            return;
        }
        match self.peer(side) {
            Peer::Server => self.pass_waiting(side, cx),
            Peer::Client if self.session.awaits_login() => {
                self.stop_waiting(ends, side, cx);
            }
            Peer::Client => self.refuse_waiting(side, cx),
        }
    }

    /// Commands that wait for the reply to a login go on without it.
    pub(in crate::engine) fn stop_waiting(
        &mut self,
        ends: &Endpoints,
        side: Side,
        cx: &mut Context<'_>,
    ) {
        self.session.lose_patience();
        // If too much is still held, the next segment finds out.
        self.inspect(ends, side, cx);
    }

    /// The server's bytes have waited for too long: they pass, and count as no address.
    fn pass_waiting(&mut self, side: Side, cx: &mut Context<'_>) {
        cx.stats.unparsable = cx.stats.unparsable.saturating_add(1);
        let n = self.session.give_up_reply(pending(&self.halves, side));
        self.forward(side).pass(n);
    }

    /// The client's bytes have waited for too long: they are refused, since they may be the
    /// beginning of a command that must be.
    fn refuse_waiting(&mut self, side: Side, cx: &mut Context<'_>) {
        let step = self.session.give_up(pending(&self.halves, side));
        match step {
            Step::Refuse {
                with, verb, why, ..
            } => {
                self.blank(side, &with);
                self.count_refusal(verb, why.to_owned(), None, true, cx);
            }
            Step::Blank(with) => self.blank(side, &with),
            _ => {
                let forward = self.forward(side);
                forward.pass(forward.pending().len());
            }
        }
    }
}

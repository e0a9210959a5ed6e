//! What the text of a control connection means for it: the session machine's steps carried out,
//! refusals, the end of inspection.

use super::{Context, Flow};
use crate::engine::event::Event;
use crate::engine::second::Second;
use crate::engine::{Endpoints, Side};
use crate::ftp::session::{Over, Peer, Step};
use crate::stream::Half;

/// Why a flow isn't read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Unread {
    /// The session machine says so.
    Over(Over),
    /// Packets went round the gateway.
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

/// How far the session machine came with what was pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Inspected {
    /// All of it is dealt with, but for what may belong to an address.
    Done,
    /// The same, and what waits is more than [`Limits::held`](crate::stream::Limits::held).
    HoldsTooMuch,
}

/// What waits of a direction.
pub(super) fn pending(halves: &[Half; 2], side: Side) -> &[u8] {
    let [egress, ingress] = halves;
    match side {
        Side::Egress => egress.pending(),
        Side::Ingress => ingress.pending(),
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
        let peer = self.peer(side);
        let mut inspected = Inspected::Done;
        let counted = self.session.counts();
        loop {
            let pending = pending(&self.halves, side);
            if pending.is_empty() {
                break;
            }
            let held = pending.len();
            let step = self.session.next(peer, pending);
            let since = self.waiting.get_mut(side.index());
            if let Some(since) = since {
                *since = (step == Step::Wait).then(|| Second::of(cx.now));
            }
            match step {
                Step::Pass(n) => {
                    let forward = self.forward(side);
                    forward.pass(n.max(1));
                }
                Step::Wait => {
                    if held > cx.config.limits.held {
                        if peer == Peer::Client && self.session.awaits_login() {
                            self.session.lose_patience();
                            continue;
                        }
                        inspected = Inspected::HoldsTooMuch;
                    }
                    break;
                }
                Step::Address(said) => self.announce(ends, side, &said, cx),
                Step::Refuse {
                    at,
                    with,
                    verb,
                    why,
                } => {
                    let forward = self.forward(side);
                    forward.pass(at);
                    forward.replace(with.len().max(1), &with);
                    self.count_refusal(verb, why.to_owned(), true, cx);
                }
                Step::Blank(with) => {
                    let forward = self.forward(side);
                    forward.replace(with.len().max(1), &with);
                }
                Step::OpenActive => {
                    let opened = self.active.is_some_and(|hole| {
                        let result = cx.gateway.open(hole.into());
                        if let Err(error) = &result {
                            let why = error.to_string();
                            self.count_refusal("PORT", why, false, cx);
                        }
                        result.is_ok()
                    });
                    self.session.active_opened(opened);
                }
                Step::Unfollowed => {
                    cx.stats.not_ftp = cx.stats.not_ftp.saturating_add(1);
                    let (session, why) = (self.id, Over::NotFtp.why());
                    cx.gateway.event(Event::Opaque { session, why });
                }
                Step::Opaque(Over::Tls) => {
                    self.follow_records(side);
                    self.end_inspection(Unread::TLS, cx);
                    self.tls_begins(ends, cx);
                    break;
                }
                Step::Opaque(over) => {
                    self.end_inspection(Unread::Over(over), cx);
                    break;
                }
            }
        }
        cx.stats.count_lines(counted, self.session.counts());
        if self.session.take_cancelled()
            && let Some(hole) = self.active.take()
        {
            cx.gateway.release(hole.into());
        }
        if let Some(user) = self.session.take_login() {
            cx.gateway.event(Event::LoggedIn {
                session: self.id,
                user,
            });
        }
        inspected
    }

    pub(in crate::engine) fn count_refusal(
        &mut self,
        verb: &'static str,
        why: String,
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
            replaced,
        });
    }

    /// All flows together keep too much: replies pass unread from here on, and none is followed.
    /// Commands stay under inspection, and wait at their sender: what is refused, stays refused.
    pub(in crate::engine) fn reach_limit(&mut self, side: Side, cx: &mut Context<'_>) {
        let from_client = side == self.client;
        let forward = self.forward(side);
        if from_client || forward.is_opaque() {
            return;
        }
        forward.end_inspection();
        if let Some(since) = self.waiting.get_mut(side.index()) {
            *since = None;
        }
        cx.stats.limit_reached = cx.stats.limit_reached.saturating_add(1);
        let (session, why) = (self.id, Unread::Limit.why());
        cx.gateway.event(Event::Opaque { session, why });
    }

    /// From here on both directions pass under the numbers they have.
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

    pub(in crate::engine) fn give_up_waiting(
        &mut self,
        ends: &Endpoints,
        side: Side,
        cx: &mut Context<'_>,
    ) {
        let forward = self.forward(side);
        if forward.pending().is_empty() {
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

    /// Commands that wait for a login go on without it.
    pub(in crate::engine) fn stop_waiting(
        &mut self,
        ends: &Endpoints,
        side: Side,
        cx: &mut Context<'_>,
    ) {
        self.session.lose_patience();
        // Whatever is held then is the beginning of one more line: the next segment tells.
        self.inspect(ends, side, cx);
    }

    /// What waits of the server's is no address: one that ends so late is of no use to anybody.
    fn pass_waiting(&mut self, side: Side, cx: &mut Context<'_>) {
        cx.stats.unparsable = cx.stats.unparsable.saturating_add(1);
        let n = self.session.give_up_reply(pending(&self.halves, side));
        let forward = self.forward(side);
        forward.pass(n);
    }

    /// What waits of the client's goes on as something else: it may be the beginning of what is
    /// refused.
    fn refuse_waiting(&mut self, side: Side, cx: &mut Context<'_>) {
        let step = self.session.give_up(pending(&self.halves, side));
        let forward = self.forward(side);
        match step {
            Step::Refuse {
                with, verb, why, ..
            } => {
                forward.replace(with.len().max(1), &with);
                self.count_refusal(verb, why.to_owned(), true, cx);
            }
            Step::Blank(with) => forward.replace(with.len().max(1), &with),
            _ => {
                let rest = forward.pending().len();
                forward.pass(rest);
            }
        }
    }
}

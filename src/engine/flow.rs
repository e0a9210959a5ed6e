//! One control connection: its two edited directions and its dialogue.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use super::announce::{self, Decision};
use super::config::Config;
use super::event::Event;
use super::gateway::{Gateway, Mode, PinholeId, SessionId};
use super::range::Range;
use super::second::Second;
use super::stats::{SessionInfo, Stats};
use super::tls::Tls;
use super::{Endpoints, Side};
use crate::ftp::session::{Announcement, Outcome, Peer, Refusal, Session, Step};
use crate::stream::{Emit, Half, Intake, Overflow, Seq};
use crate::wire::{Flags, SackBlock, Segment, SegmentMut, for_each_sack};

/// Goes out in place of a `227` or `229` up to the end of its address, where no data connection can
/// be had; the rest of the server's line follows, a closing bracket as a rule. RFC 959 knows 425 as
/// an answer to transfer commands only, but clients go by the first digit (RFC 1123 §4.1.2.11).
const REFUSAL: &[u8] = b"425 Can't open data connection (no port is free";
/// In place of the address alone: no client can read one from it.
const NO_ADDRESS: &[u8] = b"no port is free";

/// What the handshake said about one end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hello {
    pub(super) isn: Seq,
    pub(super) mss: Option<u16>,
    pub(super) shift: Option<u8>,
    /// The connection must not be edited: signed segments, MPTCP, or data in the SYN.
    pub(super) untouchable: bool,
    pub(super) multipath: bool,
}

impl Hello {
    pub(super) fn read(segment: &Segment<'_>) -> Self {
        let options = segment.options();
        Self {
            isn: Seq(segment.seq()),
            mss: options.mss,
            shift: options.window_scale,
            untouchable: options.signed || !segment.payload().is_empty(),
            multipath: options.multipath,
        }
    }
}

/// What is known of a connection besides its handshake.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) v6: bool,
    /// See [`Session::connects_early`].
    pub(super) connects_early: bool,
    /// See [`Session::expect_tls`].
    pub(super) implicit: bool,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Same,
    Changed,
    Dropped,
}

/// The surroundings of one packet.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) gateway: &'a mut dyn Gateway,
    pub(super) stats: &'a mut Stats,
    pub(super) now: Duration,
    /// Half of what all flows together may buffer is taken.
    pub(super) crowded: bool,
}

/// What a direction may have in its buffers where all flows together have much, in bytes: no more than
/// one window of an ordinary dialogue.
const CROWDED: usize = 8 * 1024;

/// A pinhole's number plus one, so that there may be none in as many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole(NonZeroU64);

impl From<PinholeId> for Hole {
    fn from(id: PinholeId) -> Self {
        Self(NonZeroU64::MIN.saturating_add(id.0))
    }
}

impl From<Hole> for PinholeId {
    fn from(hole: Hole) -> Self {
        Self(hole.0.get().saturating_sub(1))
    }
}

/// A [`Step::Address`]: what is pending of a stream announces an address.
struct Said {
    at: usize,
    len: usize,
    announcement: Announcement,
    refusal: Option<Refusal>,
}

/// Whether a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// A RST that wasn't exact was the last packet: what comes next tells whether it was one.
    Reset,
    Closed,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) id: SessionId,
    pub(super) client: Side,
    /// The initial sequence numbers of client and server: they name this incarnation.
    starts: [Seq; 2],
    /// Indexed by [`Side`]: egress carries what the inside endpoint sends.
    halves: [Half; 2],
    /// The window scale of the endpoint that sends in that direction.
    shifts: [u8; 2],
    /// The largest segment for either end, in bytes, TCP options included (RFC 6691).
    mss: u16,
    /// Bit per side: its FIN passed.
    pub(super) fins: u8,
    end: End,
    opened: Second,
    seen: Second,
    /// Since when bytes of either side wait for the rest of an address.
    waiting: [Option<Second>; 2],
    /// The hole that an accepted `PORT`/`EPRT` reserved.
    active: Option<Hole>,
    /// Both directions' records, while the session is under TLS.
    pub(super) tls: Option<Box<Tls>>,
    announced: u32,
    refused: u32,
    /// Where the client may reach a range of the server's ports.
    pub(super) range: Range,
    pub(super) session: Session,
}

impl Flow {
    /// A connection whose SYN (`client`, at the hook `side`) and SYN-ACK (`server`) were seen.
    pub(super) fn new(
        id: SessionId,
        side: Side,
        client: Hello,
        server: Hello,
        known: Known,
        cx: &mut Context<'_>,
    ) -> Self {
        let default = if known.v6 { 1220 } else { 536 };
        let mut halves = [Half::new(client.isn), Half::new(server.isn)];
        // RFC 7323 §2.2: scaling holds only if both ends offer it.
        let scaled = client.shift.is_some() && server.shift.is_some();
        let mut shifts = [client.shift, server.shift].map(|s| s.filter(|_| scaled).unwrap_or(0));
        if side == Side::Ingress {
            halves.swap(0, 1);
            shifts.swap(0, 1);
        }
        let untouchable =
            client.untouchable || server.untouchable || (client.multipath && server.multipath);
        if untouchable {
            halves.iter_mut().for_each(Half::end_inspection);
            cx.stats.untouchable = cx.stats.untouchable.saturating_add(1);
        }
        let mut session = Session::new(cx.config.policy.clone(), known.connects_early);
        if known.implicit {
            session.expect_tls();
        }
        Self {
            id,
            client: side,
            starts: [client.isn, server.isn],
            halves,
            shifts,
            mss: client
                .mss
                .unwrap_or(default)
                .min(server.mss.unwrap_or(default))
                .max(64),
            fins: 0,
            end: End::Open,
            opened: Second::of(cx.now),
            seen: Second::of(cx.now),
            waiting: [None; 2],
            active: None,
            tls: None,
            announced: 0,
            refused: 0,
            range: Range::None,
            session,
        }
    }

    /// Whether it began with these two initial sequence numbers.
    pub(super) fn began_with(&self, client: Seq, server: Seq) -> bool {
        self.starts == [client, server]
    }

    /// How long it has been without a packet.
    pub(super) fn quiet(&self, now: Duration) -> Duration {
        self.seen.until(now)
    }

    pub(super) fn connects_early(&self) -> bool {
        self.session.connects_early()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.end == End::Closed
    }

    /// Whether it is over, or its last packet was a RST that its receiver may have heeded.
    pub(super) fn may_be_over(&self) -> bool {
        self.end != End::Open
    }

    /// Whether it may go where room is needed: nobody has logged in, or it isn't FTP; it was silent for
    /// so long; and its packets need no change.
    pub(super) fn is_idle_guest(&self, now: Duration, patience: Duration) -> bool {
        self.session.is_guest()
            && self.quiet(now) >= patience
            && self.halves.iter().all(Half::is_plain)
    }

    pub(super) fn buffered(&self) -> usize {
        self.halves
            .iter()
            .map(Half::buffered)
            .chain(self.tls.as_ref().map(|tls| tls.buffered()))
            .fold(0, usize::saturating_add)
    }

    pub(super) fn info(&self, ends: &Endpoints, now: Duration) -> SessionInfo {
        let (client, server) = self.client_and_server(ends);
        SessionInfo {
            id: self.id,
            client,
            server,
            state: if self.is_closed() {
                "closed"
            } else {
                self.session.state()
            },
            age: self.opened.until(now).as_secs(),
            idle: self.quiet(now).as_secs(),
            announced: self.announced,
            refused: self.refused,
            buffered: self.buffered(),
        }
    }

    pub(super) fn client_and_server(&self, ends: &Endpoints) -> (SocketAddr, SocketAddr) {
        match self.client {
            Side::Egress => (ends.inside, ends.outside),
            Side::Ingress => (ends.outside, ends.inside),
        }
    }

    /// Says that the control connection ended, once.
    pub(super) fn close(&mut self, how: &'static str, gateway: &mut dyn Gateway) {
        if !self.is_closed() {
            self.end = End::Closed;
            self.tls = None;
            self.active = None;
            gateway.session_ended(self.id);
            gateway.event(Event::SessionClosed {
                session: self.id,
                how,
            });
        }
    }

    /// Handles a segment without SYN; `packet` is a copy of it that may be changed.
    pub(super) fn segment(
        &mut self,
        ends: &Endpoints,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Fate {
        self.seen = Second::of(cx.now);
        let flags = segment.flags();
        let seq = Seq(segment.seq());
        let reset = flags.has(Flags::RST);
        if !self.is_closed() {
            self.end = if reset { End::Reset } else { End::Open };
        }
        if reset {
            let [forward, _] = self.both(side);
            let emit = Emit::Own(forward.header_seq(seq));
            let exact = forward.expects(seq);
            let fate = self.render(side, segment, packet, emit);
            if exact {
                self.close("RST", cx.gateway);
            }
            return fate;
        }
        if flags.has(Flags::ACK) {
            let shift = self.shifts.get(side.index()).copied().unwrap_or(0);
            let ack = Seq(segment.ack());
            let edge = ack.plus(u32::from(segment.window()) << shift);
            let [forward, reverse] = self.both(side);
            let exact = forward.expects(seq);
            reverse.acknowledged(ack, edge, exact);
        }
        let payload = segment.payload();
        if side == self.client && !payload.is_empty() {
            self.renew_range(ends, cx);
        }
        let fin = flags.has(Flags::FIN);
        let limit = self.limit(segment);
        let unread = self.next_records(side, segment, cx);
        let commands = side == self.client && unread == 0;
        let [forward, _] = self.both(side);
        let mut limits = cx.config.limits;
        if cx.crowded {
            limits.unacked = limits.unacked.min(CROWDED);
        }
        let known = forward.known_if_full(seq, payload.len(), &limits);
        let known = known.filter(|_| commands);
        let (payload, fin) = match known {
            // Commands that aren't inspected must not go on: they wait at their sender.
            Some(known) => {
                cx.stats.waited = cx.stats.waited.saturating_add(1);
                // Else the packet carries what is left to send on.
                if known == 0 && forward.is_sent() {
                    return Fate::Dropped;
                }
                (payload.get(..known).unwrap_or_default(), false)
            }
            None => (payload, fin),
        };
        let intake = forward.take_in(seq, payload, fin, &cx.config.limits);
        match intake {
            Intake::Gap => {
                cx.stats.out_of_order = cx.stats.out_of_order.saturating_add(1);
                return Fate::Dropped;
            }
            Intake::New => {
                if unread > 0 {
                    // Within bounds: no more than the segment has.
                    let _ = forward.pass(unread, &cx.config.limits);
                }
                let inspected = self.inspect(ends, side, cx);
                let [forward, _] = self.both(side);
                // At the end of the stream nothing can complete what still waits.
                let rest = if fin { forward.pending().len() } else { 0 };
                let passed = forward.pass(rest, &cx.config.limits);
                if inspected.and(passed).is_err() {
                    cx.stats.limit_reached = cx.stats.limit_reached.saturating_add(1);
                    self.reach_limit(side, cx);
                }
            }
            Intake::Missed => self.end_inspection("missed", cx),
            Intake::Old | Intake::Opaque => {}
        }
        self.give_up_waiting(side, cx);
        let [forward, _] = self.both(side);
        let emit = match forward.emit(seq, payload, fin, intake, limit) {
            Emit::Own(_) if known.is_some() => forward.probe(),
            emit => emit,
        };
        if matches!(emit, Emit::Probe { .. }) {
            cx.stats.held = cx.stats.held.saturating_add(1);
        }
        if intake == Intake::Old
            && known.is_none()
            && !payload.is_empty()
            && contradicts(forward, &emit, payload)
        {
            cx.stats.contradicted = cx.stats.contradicted.saturating_add(1);
        }
        let fate = self.render(side, segment, packet, emit);
        let [forward, _] = self.both(side);
        if fin && forward.ends_at(seq, payload.len()) {
            self.fins |= 1 << side.index();
            if self.fins == 3 {
                self.close("FIN", cx.gateway);
            } else if self.range != Range::None {
                // Whoever has said goodbye asks for no more data connections, or answers that.
                cx.gateway.session_ended(self.id);
            }
        }
        fate
    }

    /// The direction of `side`'s packets, and the opposite one.
    pub(super) fn both(&mut self, side: Side) -> [&mut Half; 2] {
        let [egress, ingress] = &mut self.halves;
        match side {
            Side::Egress => [egress, ingress],
            Side::Ingress => [ingress, egress],
        }
    }

    /// The largest payload that may leave in this packet, in bytes (RFC 6691: the MSS counts
    /// neither IP nor TCP options).
    fn limit(&self, segment: &Segment<'_>) -> usize {
        let layout = segment.layout();
        let plain = if layout.v6 { 60 } else { 40 };
        let options = layout.payload.saturating_sub(plain);
        let length = usize::from(u16::MAX).saturating_sub(layout.payload);
        usize::from(self.mss).saturating_sub(options).min(length)
    }

    // ---- what the packet becomes -----------------------------------------------------------

    fn render(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        emit: Emit,
    ) -> Fate {
        let flags = segment.flags();
        let options = segment.options();
        let shift = self.shifts.get(side.index()).copied().unwrap_or(0);
        let [forward, reverse] = self.both(side);
        let mut changed = false;
        let mut out = SegmentMut::new(packet, segment.layout());
        if flags.has(Flags::ACK) && !reverse.is_plain() {
            let ack = Seq(segment.ack());
            let given = reverse.ack_to_sender(ack);
            if given != ack {
                out.set_ack(given.0);
                changed = true;
            }
            let window = reverse.window_to_sender(ack, given, segment.window(), shift);
            if window != segment.window() {
                out.set_window(window);
                changed = true;
            }
            if let Some(place) = options.sack {
                changed |= map_sack(&mut out, place, reverse);
            }
        }
        let seq = match emit {
            Emit::Own(seq) | Emit::Stream { seq, .. } | Emit::Probe { seq, .. } => seq,
        };
        if seq.0 != segment.seq() {
            out.set_seq(seq.0);
            changed = true;
        }
        if flags.has(Flags::URG) {
            let urgent = forward.urgent(Seq(segment.seq()).plus(u32::from(segment.urgent())));
            let distance = urgent.map_or(0, |at| if at.after(seq) { at.since(seq) } else { 0 });
            let pointer = u16::try_from(distance).unwrap_or(u16::MAX);
            if pointer != segment.urgent() {
                out.set_urgent(pointer);
                if pointer == 0 {
                    // Its place isn't known yet (a later segment says it), or is gone.
                    out.clear_flags(Flags::URG);
                }
                changed = true;
            }
        }
        let own = segment.payload();
        match emit {
            Emit::Own(_) => {}
            Emit::Stream {
                seq,
                len,
                tail,
                fin,
            } => {
                let stream = forward.edited(seq, len);
                let tail = tail.and_then(|at| own.get(at..)).unwrap_or_default();
                let lost_fin = flags.has(Flags::FIN) && !fin;
                if lost_fin {
                    out.clear_flags(Flags::FIN);
                    changed = true;
                }
                if own.strip_prefix(stream) != Some(tail) {
                    out.set_payload(&[stream, tail]);
                    changed = true;
                }
            }
            Emit::Probe { byte, .. } => {
                out.set_urgent(0);
                out.clear_flags(Flags::FIN | Flags::PSH | Flags::URG);
                out.set_payload(&[byte.as_slice()]);
                changed = true;
            }
        }
        if changed { Fate::Changed } else { Fate::Same }
    }

    // ---- what the text means ---------------------------------------------------------------

    pub(super) fn peer(&self, side: Side) -> Peer {
        if side == self.client {
            Peer::Client
        } else {
            Peer::Server
        }
    }

    /// Takes what is pending through the session machine, as far as it goes.
    fn inspect(
        &mut self,
        ends: &Endpoints,
        side: Side,
        cx: &mut Context<'_>,
    ) -> Result<(), Overflow> {
        let peer = self.peer(side);
        let limits = cx.config.limits;
        let counted = self.session.counts();
        loop {
            let [forward, _] = self.both(side);
            if forward.pending().is_empty() {
                break;
            }
            let pending = match side {
                Side::Egress => self.halves[0].pending(),
                Side::Ingress => self.halves[1].pending(),
            };
            let held = pending.len();
            let step = self.session.next(peer, pending);
            let since = self.waiting.get_mut(side.index());
            if let Some(since) = since {
                *since = (step == Step::Wait).then(|| Second::of(cx.now));
            }
            match step {
                Step::Pass(n) => {
                    let [forward, _] = self.both(side);
                    forward.pass(n.max(1), &limits)?;
                }
                Step::Wait => {
                    if held > limits.held {
                        return Err(Overflow);
                    }
                    break;
                }
                Step::Address {
                    at,
                    len,
                    announcement,
                    refusal,
                } => {
                    let said = Said {
                        at,
                        len,
                        announcement,
                        refusal,
                    };
                    self.announce(ends, side, &said, cx)?;
                }
                Step::Refuse {
                    at,
                    with,
                    verb,
                    why,
                } => {
                    let [forward, _] = self.both(side);
                    forward.pass(at, &limits)?;
                    forward.replace(with.len().max(1), &with, &limits)?;
                    self.count_refusal(verb, why.to_owned(), true, cx);
                }
                Step::Blank(with) => {
                    let [forward, _] = self.both(side);
                    forward.replace(with.len().max(1), &with, &limits)?;
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
                Step::Opaque(why) => {
                    if why == "TLS" {
                        self.follow_records(side);
                    }
                    self.end_inspection(why, cx);
                    if why == "TLS" {
                        self.tls_begins(ends, cx);
                    }
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
        Ok(())
    }

    fn announce(
        &mut self,
        ends: &Endpoints,
        side: Side,
        said: &Said,
        cx: &mut Context<'_>,
    ) -> Result<(), Overflow> {
        let peer = self.peer(side);
        let limits = cx.config.limits;
        let Said {
            at,
            len,
            announcement: said,
            refusal,
        } = said;
        let (at, len) = (*at, *len);
        let decision = if self.is_closed() {
            // Its pinholes went when it ended: nothing would end another one in time.
            let why = "the control connection is over".to_owned();
            match said.mode {
                Mode::Active => Decision::Refuse(why),
                Mode::Passive => Decision::Leave(why),
            }
        } else {
            announce::decide(cx.config, cx.gateway, self.id, ends, side, said)
        };
        let [forward, _] = self.both(side);
        match decision {
            Decision::Announce {
                text,
                old,
                new,
                from,
                land,
                hole,
            } => {
                forward.pass(at, &limits)?;
                forward.replace(len, &text, &limits)?;
                if said.mode == Mode::Active {
                    let hole = Hole::from(hole);
                    let superseded = self.active.replace(hole).filter(|old| *old != hole);
                    if let Some(superseded) = superseded
                        && !self.session.active_is_open()
                    {
                        cx.gateway.release(superseded.into());
                    }
                }
                self.session.announced(peer, Outcome::Accepted(new));
                self.announced = self.announced.saturating_add(1);
                cx.stats.announced = cx.stats.announced.saturating_add(1);
                if old != new {
                    cx.stats.rewritten = cx.stats.rewritten.saturating_add(1);
                }
                let (session, verb, mode) = (self.id, said.verb, said.mode);
                cx.gateway.event(Event::Announced {
                    session,
                    verb,
                    mode,
                    old,
                    new,
                    from,
                    land,
                });
            }
            Decision::Leave(why) => {
                forward.pass(at.saturating_add(len), &limits)?;
                self.session.announced(peer, Outcome::PassedUnmodified);
                self.count_refusal(said.verb, why, false, cx);
            }
            Decision::Refuse(why) if said.mode == Mode::Passive => {
                let head = forward.pending().get(..at).unwrap_or_default();
                // The end of a reply of several lines must keep its code (RFC 959 §4.2).
                let whole = head.starts_with(said.verb.as_bytes()) && self.session.begins_reply();
                let (at, len, text) = match whole {
                    true => (0, at.saturating_add(len), REFUSAL),
                    false => (at, len, NO_ADDRESS),
                };
                let [forward, _] = self.both(side);
                forward.pass(at, &limits)?;
                forward.replace(len, text, &limits)?;
                self.session.announced(peer, Outcome::Refused);
                self.count_refusal(said.verb, why, true, cx);
            }
            Decision::Refuse(why) => {
                let Some(refusal) = refusal else {
                    // Only commands are refused.
                    forward.pass(at.saturating_add(len), &limits)?;
                    self.session.announced(peer, Outcome::PassedUnmodified);
                    self.count_refusal(said.verb, why, false, cx);
                    return Ok(());
                };
                forward.pass(refusal.at, &limits)?;
                forward.replace(refusal.with.len().max(1), &refusal.with, &limits)?;
                self.session.announced(peer, Outcome::Refused);
                self.count_refusal(said.verb, why, true, cx);
            }
        }
        Ok(())
    }

    pub(super) fn count_refusal(
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

    /// More is in flight than may be kept. Replies pass unread from here on, and none is followed;
    /// commands stay under inspection: what is refused, stays refused.
    pub(super) fn reach_limit(&mut self, side: Side, cx: &mut Context<'_>) {
        if side == self.client {
            return self.end_inspection("limit", cx);
        }
        let [forward, _] = self.both(side);
        forward.end_inspection();
        if let Some(since) = self.waiting.get_mut(side.index()) {
            *since = None;
        }
        cx.stats.limit_reached = cx.stats.limit_reached.saturating_add(1);
        let (session, why) = (self.id, "limit");
        cx.gateway.event(Event::Opaque { session, why });
    }

    /// From here on both directions pass under the numbers they have.
    pub(super) fn end_inspection(&mut self, why: &'static str, cx: &mut Context<'_>) {
        if why != "TLS" {
            self.tls = None;
        }
        if self.halves.iter().all(Half::is_opaque) {
            return;
        }
        self.halves.iter_mut().for_each(Half::end_inspection);
        self.waiting = [None; 2];
        let counter = match why {
            "TLS" => &mut cx.stats.tls,
            "not FTP" | "not TLS" => &mut cx.stats.not_ftp,
            _ => &mut cx.stats.limit_reached,
        };
        *counter = counter.saturating_add(1);
        cx.gateway.event(Event::Opaque {
            session: self.id,
            why,
        });
    }

    fn give_up_waiting(&mut self, side: Side, cx: &mut Context<'_>) {
        let [forward, _] = self.both(side);
        if forward.pending().is_empty() {
            return;
        }
        let since = self.waiting.get(side.index()).copied().flatten();
        if since.is_none_or(|since| since.until(cx.now) <= cx.config.hold) {
            return;
        }
        if self.peer(side) == Peer::Server {
            self.end_inspection("an address that never ended", cx);
        } else if self.refuse_waiting(side, cx).is_err() {
            self.end_inspection("limit", cx);
        }
    }

    /// What waits of the client's goes on as something else: it may be the beginning of what is
    /// refused.
    fn refuse_waiting(&mut self, side: Side, cx: &mut Context<'_>) -> Result<(), Overflow> {
        let limits = cx.config.limits;
        let pending = match side {
            Side::Egress => self.halves[0].pending(),
            Side::Ingress => self.halves[1].pending(),
        };
        let step = self.session.give_up(pending);
        let [forward, _] = self.both(side);
        match step {
            Step::Refuse {
                with, verb, why, ..
            } => {
                forward.replace(with.len().max(1), &with, &limits)?;
                self.count_refusal(verb, why.to_owned(), true, cx);
            }
            Step::Blank(with) => forward.replace(with.len().max(1), &with, &limits)?,
            _ => {
                let rest = forward.pending().len();
                forward.pass(rest, &limits)?;
            }
        }
        Ok(())
    }
}

/// Whether a retransmission says something else than the first sending did (not asked while edits
/// are in flight).
fn contradicts(forward: &Half, emit: &Emit, payload: &[u8]) -> bool {
    match *emit {
        Emit::Stream {
            seq,
            len,
            tail: None,
            ..
        } if len == payload.len() && !forward.is_edited() => forward.edited(seq, len) != payload,
        _ => false,
    }
}

/// Maps SACK blocks (RFC 2018) to the sender's numbers; returns whether anything changed. If no
/// block is left, the option becomes no-operations.
fn map_sack(out: &mut SegmentMut<'_>, (at, blocks): (usize, usize), reverse: &Half) -> bool {
    let mut changed = false;
    out.edit_options(|options| {
        let end = at.saturating_add(blocks.saturating_mul(8));
        let Some(body) = options.get_mut(at..end) else {
            return;
        };
        let left = for_each_sack(body, |block| {
            let mapped = reverse.sack_to_sender(Seq(block.left), Seq(block.right));
            let mapped = mapped.map(|(left, right)| SackBlock {
                left: left.0,
                right: right.0,
            });
            changed |= mapped != Some(block);
            mapped
        });
        if !left && let Some(option) = options.get_mut(at.saturating_sub(2)..end) {
            option.fill(1);
        }
    });
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_flow_is_small() {
        let (flow, half, session) = (size_of::<Flow>(), size_of::<Half>(), size_of::<Session>());
        assert!(
            flow <= 256 && half <= 56 && session <= 80,
            "flow {flow}, of it half {half} twice and session {session} bytes"
        );
    }
}

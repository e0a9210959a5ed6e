//! A connection that was away: its packets took another way for a while, past another gateway or past a
//! full queue, and come here again.
//!
//! Then the numbers of its segments don't fit what was seen here. One such segment proves nothing, since
//! anybody can forge it. So its data doesn't go on; what goes on in its place is a keep-alive, which its
//! receiver answers with the numbers that it expects (RFC 9293 §3.8.4). If two segments of opposite
//! directions agree with one another, the flow begins anew with their numbers, provided that the
//! connection's mark says that it may be [joined](crate::engine::joining). If not, as under TLS, it isn't
//! read any more.
//!
//! A flow that was read from a [record](crate::engine::record) may find the same: the record is older than
//! the connection, since its last ones couldn't be kept. By how much the numbers differ by now is known to
//! nobody. Two segments of opposite directions prove it: one acknowledges what was never sent on here.
//! Then the connection is [ended](crate::engine::orphans).

use super::{Context, End, FINS, Fate, Flow, RESUMED, UNSETTLED, Unread, received};
use crate::engine::Side;
use crate::engine::config::Standing;
use crate::engine::endpoints::Endpoints;
use crate::engine::joining::followed;
use crate::ftp::session::Session;
use crate::stream::{Emit, Half, Seq};
use crate::wire::{Flags, Segment};

/// How far the numbers of an honest segment may be beyond what is known, in bytes.
const FAR: u32 = 1 << 20;

/// The numbers of a segment that don't fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    side: Side,
    seq: Seq,
    ack: Seq,
    /// It acknowledges what was never sent on here, and is where its sender goes on, or further.
    proves: bool,
}

impl Stray {
    fn of(side: Side, segment: &Segment<'_>) -> Self {
        Self {
            side,
            seq: Seq(segment.seq()),
            ack: Seq(segment.ack()),
            proves: false,
        }
    }

    /// Whether each goes on where the other one's sender has read to.
    fn agrees(&self, other: &Self) -> bool {
        self.side != other.side && self.seq == other.ack && self.ack == other.seq
    }
}

impl Flow {
    /// Begins anew if a segment whose numbers don't fit agrees with the one before it that didn't.
    /// Otherwise it is remembered, and this is false.
    pub(super) fn comes_back(
        &mut self,
        ends: &Endpoints,
        side: Side,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        if !self.may_be_away() || !segment.flags().has(Flags::ACK) {
            return false;
        }
        let stray = Stray::of(side, segment);
        let agrees = self.stray.as_ref().is_some_and(|last| last.agrees(&stray));
        if !agrees {
            self.stray = Some(Box::new(stray));
            return false;
        }
        let elsewhere = Session::joined(cx.config.policy.clone());
        if !self.rejoin(ends, side, (stray.seq, stray.ack), elsewhere, cx) {
            self.goes_on_at(side, stray.seq, stray.ack);
            self.end_inspection(Unread::Missed, cx);
        }
        true
    }

    /// Whether a segment may be of a later connection between the same ends, which began elsewhere: this one
    /// is over, and the segment doesn't fit it.
    pub(in crate::engine) fn is_succeeded(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        let flags = segment.flags();
        let goes_on = flags.has(Flags::ACK) && !flags.has(Flags::RST);
        self.end == End::Closed
            && goes_on
            && !self.believes(side, segment)
            && !self.is_late(side, segment)
    }

    /// Whether the record that this was read from is older than the connection. `segment`: the next one, of
    /// whatever kind.
    pub(in crate::engine) fn is_outdated(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        if !self.may_be_outdated() || !segment.flags().has(Flags::ACK) {
            return false;
        }
        let mut stray = Stray::of(side, segment);
        let [forward, reverse] = self.both(side);
        let ahead = stray.seq.since(forward.expected());
        stray.proves = ahead <= FAR && reverse.may_have_missed(stray.ack);
        let fits = !stray.proves && (ahead == 0 || ahead > FAR);
        if fits {
            if ahead == 0 {
                self.stray = None;
            }
            return false;
        }
        let last = self.stray.as_ref();
        let agrees = |last: &Stray| last.side != side && (last.proves || stray.proves);
        if last.is_some_and(|last| agrees(last)) {
            return true;
        }
        // What proves something is remembered in favour of what doesn't.
        if stray.proves || !last.is_some_and(|last| last.proves) {
            self.stray = Some(Box::new(stray));
        }
        false
    }

    /// Whether somebody else may have gone on with it since its record was kept.
    pub(super) fn may_be_outdated(&self) -> bool {
        let open = !self.is_closed() && self.end != End::Frozen;
        let read = !self.halves.iter().all(Half::is_opaque);
        open && read && self.joined & RESUMED != 0 && self.standing == Standing::Uneven
    }

    /// What goes on in place of data that doesn't fit, and so isn't read.
    pub(super) fn ask_receiver(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
    ) -> Fate {
        if self.may_be_outdated() && !self.is_signed() {
            // The receiver has acknowledged that byte, whatever has come since.
            let [acknowledged, _] = self.forward(side).may_expect();
            let keep_alive = Emit::Probe {
                seq: acknowledged.plus(u32::MAX),
                byte: None,
            };
            return self.render(side, segment, packet, keep_alive);
        }
        if !self.may_be_away() {
            return Fate::Dropped;
        }
        let keep_alive = Emit::Probe {
            seq: Seq(segment.seq()).plus(u32::MAX),
            byte: None,
        };
        self.render(side, segment, packet, keep_alive)
    }

    /// Data came, and what is before it didn't. If it comes once more, what is before it may have taken
    /// another way.
    pub(super) fn leave_gap(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
    ) -> Fate {
        if self.may_be_outdated() {
            return self.ask_receiver(side, segment, packet);
        }
        if !self.may_be_away() {
            return Fate::Dropped;
        }
        let stray = Stray::of(side, segment);
        if self.stray.as_deref() == Some(&stray) {
            return self.ask_receiver(side, segment, packet);
        }
        self.stray = Some(Box::new(stray));
        Fate::Dropped
    }

    /// Whether somebody else could have gone on with it.
    fn may_be_away(&self) -> bool {
        let open = !self.is_closed() && self.end != End::Frozen;
        open && self.standing == Standing::Even && self.is_even() && !self.is_signed()
    }

    /// Begins anew with the numbers of a segment from `side`, if the connection's mark says that they are
    /// the same on both sides. They must have been proven by the other end. `session`: what is read next.
    pub(super) fn rejoin(
        &mut self,
        ends: &Endpoints,
        side: Side,
        (seq, ack): (Seq, Seq),
        session: Session,
        cx: &mut Context<'_>,
    ) -> bool {
        let even = Some(Standing::Even);
        if !self.may_be_away() || followed(ends, cx.config.marks, cx.gateway) != even {
            return false;
        }
        self.goes_on_at(side, seq, ack);
        let nat64 = self.session.nat64().cloned();
        self.session = session;
        if let Some(nat64) = nat64 {
            self.session.translate(nat64);
        }
        self.joined = UNSETTLED | received(side.opposite());
        self.signs &= !FINS;
        cx.stats.joined = cx.stats.joined.saturating_add(1);
        true
    }

    fn goes_on_at(&mut self, side: Side, seq: Seq, ack: Seq) {
        *self.forward(side) = Half::joined(seq);
        *self.reverse(side) = Half::joined(ack);
        self.waiting = [None; 2];
        self.stray = None;
    }
}

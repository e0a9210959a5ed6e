//! Handles a segment of a flow, and decides what of it goes on. [`Flow::segment`] has these stages:
//!
//! | stage | asks |
//! |---|---|
//! | `believes` | does the receiver take it for the connection's? |
//! | `note_acknowledgement` | what has its sender received? |
//! | `next_records` | under TLS: does clear text begin in it? |
//! | `data_with_room` | how much of its data can be kept? |
//! | `take_in` | what is new in it, and what does the session machine say to that? |
//! | `give_up_waiting` | has something waited for too long? |
//! | `send_on` | which bytes go on, under which numbers? |
//! | `note_fin` | is the connection over? |

use super::dialogue::Inspected;
use super::range::Range;
use super::{ANSWERED, Context, FINS, Fate, Flow, UNSETTLED, Unread, received, render};
use crate::engine::Side;
use crate::engine::endpoints::Endpoints;
use crate::ftp::session::Peer;
use crate::stream::{Emit, Half, Intake, Seq};
use crate::wire::{Flags, Segment};

/// Takes the place of [`BufferLimits::unacked`](crate::stream::BufferLimits::unacked) for clients
/// when all flows together have half of what they may buffer.
const CROWDED: usize = 8 * 1024;

/// The data of a segment, as far as it is taken in.
#[derive(Clone, Copy)]
struct Data<'a> {
    seq: Seq,
    ack: Seq,
    payload: &'a [u8],
    fin: bool,
    /// The rest of it waits at its sender, for want of room.
    cut: bool,
}

impl Data<'_> {
    fn is_empty(&self) -> bool {
        self.payload.is_empty() && !self.fin
    }
}

impl Flow {
    /// Handles a segment without SYN; `packet` is a copy of it that may be changed.
    pub(in crate::engine) fn segment(
        &mut self,
        ends: &Endpoints,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Fate {
        if let Some(fate) = self.after_farewell(side, segment, packet) {
            return fate;
        }
        if segment.flags().has(Flags::RST) {
            return self.reset(side, segment, packet, cx);
        }
        if !self.believes(side, segment)
            && (self.is_late(side, segment) || !self.comes_back(ends, side, segment, cx))
        {
            return self.disbelieve(side, segment, packet, cx);
        }
        self.is_alive(side, cx);
        self.settle(side, segment);
        if cx.holding && self.is_held(side, segment) {
            return Fate::Dropped;
        }
        self.note_acknowledgement(side, segment);
        if self.peer(side) == Peer::Client && !segment.payload().is_empty() {
            self.renew_range(ends, cx);
        }
        let unread = self.next_records(side, segment, cx);
        let Some(data) = self.data_with_room(side, segment, unread, cx) else {
            return Fate::Dropped;
        };
        let intake = self.take_in(ends, side, &data, unread, cx);
        if intake == Intake::Gap {
            return self.leave_gap(side, segment, packet);
        }
        self.give_up_waiting(ends, side, cx);
        if self.is_frozen() {
            return Fate::Dropped;
        }
        let fate = self.send_on(side, segment, packet, &data, intake, cx);
        if cx.ending && !self.is_even() && !self.is_recorded() {
            return self.freeze();
        }
        if fate != Fate::Dropped {
            self.note_fin(side, &data, cx);
        }
        fate
    }

    /// In a connection that was joined in its middle, bytes may be under way that nobody has seen
    /// here. Until a direction's receiver has acknowledged just what was seen, its numbers follow
    /// what is sent and acknowledged: an acknowledgement says where the receiver is, the first data
    /// where its sender goes on. A bare segment's own number says neither, since what comes before
    /// may have to be sent again. Nothing goes back behind what was acknowledged: data from there is
    /// an old line that is sent again, and answers nothing.
    fn settle(&mut self, side: Side, segment: &Segment<'_>) {
        if self.joined & UNSETTLED == 0 {
            return;
        }
        let (seq, ack) = (Seq(segment.seq()), Seq(segment.ack()));
        let (own, other) = (side, side.opposite());
        if self.is_unsettled(other) {
            let seen = self.has_sent_data(other);
            let reverse = self.reverse(side);
            let expected = reverse.expected();
            let movable = reverse.is_even() && !reverse.is_edited() && reverse.pending().is_empty();
            let may_go_back = !seen && self.joined & received(other) == 0;
            if ack == expected && seen {
                self.joined &= !(1 << other.index());
            } else if ack == expected {
                self.joined |= received(other);
            } else if movable && (ack.after(expected) || may_go_back) {
                self.moves_to(other, ack);
                self.joined |= received(other);
            }
        }
        if self.is_unsettled(own) && !segment.payload().is_empty() {
            let is_received = self.joined & received(own) != 0;
            let forward = self.forward(side);
            let expected = forward.expected();
            let is_plain = forward.is_plain();
            let begins_before = is_received && seq.before(expected);
            if begins_before && !seq.plus_len(segment.payload().len()).after(expected) {
                return;
            }
            if seq != expected && is_plain && !begins_before && !self.has_sent_data(own) {
                self.moves_to(own, seq);
                self.joined &= !received(own);
            }
            self.joined |= 4 << own.index();
        }
    }

    /// Whether the receiver of `side`'s bytes may have more of them than was seen here.
    pub(super) fn is_unsettled(&self, side: Side) -> bool {
        self.joined & (1 << side.index()) != 0
    }

    /// Whether data of this direction has come since the connection was joined.
    fn has_sent_data(&self, side: Side) -> bool {
        self.joined & (4 << side.index()) != 0
    }

    /// What was sent in this direction before `next` isn't seen any more.
    fn moves_to(&mut self, side: Side, next: Seq) {
        *self.forward(side) = Half::joined(next);
        let peer = self.peer(side);
        self.session.loses_line(peer);
    }

    /// What the sender has received, and how much more it takes.
    pub(super) fn note_acknowledgement(&mut self, side: Side, segment: &Segment<'_>) {
        let shift = self.shifts.get(side.index()).copied().unwrap_or(0);
        let ack = Seq(segment.ack());
        let edge = ack.plus(u32::from(segment.window()) << shift);
        let reverse = self.reverse(side);
        let answered = reverse.is_new_acknowledgement(ack);
        reverse.acknowledged(ack, edge);
        if answered && side == self.client {
            self.signs |= ANSWERED;
        }
    }

    /// The data that there is room for. What isn't inspected must not go on: without room, only
    /// what was taken in before goes on again, and the rest waits at its sender. `None`: nothing
    /// goes on.
    ///
    /// `unread`: how many bytes of it needn't be inspected.
    fn data_with_room<'a>(
        &mut self,
        side: Side,
        segment: &Segment<'a>,
        unread: usize,
        cx: &mut Context<'_>,
    ) -> Option<Data<'a>> {
        let whole = Data {
            seq: Seq(segment.seq()),
            ack: Seq(segment.ack()),
            payload: segment.payload(),
            fin: segment.flags().has(Flags::FIN),
            cut: false,
        };
        if unread > 0 {
            return Some(whole);
        }
        let peer = self.peer(side);
        let mut limits = cx.limits(peer);
        limits.unacked = match peer {
            Peer::Client if cx.crowded => limits.unacked.min(CROWDED),
            Peer::Client => limits.unacked,
            // All of the limit is for what is in flight: segments out of order are few beside a
            // listing.
            Peer::Server => limits.unacked.saturating_mul(2),
        };
        let signed = self.is_signed();
        let forward = self.forward(side);
        let Some(known) = forward.known_if_full(whole.seq, whole.payload.len(), &limits) else {
            return Some(whole);
        };
        cx.stats.waited = cx.stats.waited.saturating_add(1);
        // Otherwise the packet carries what is left to send on.
        if signed || (known == 0 && forward.is_sent()) {
            return None;
        }
        Some(Data {
            payload: whole.payload.get(..known).unwrap_or_default(),
            fin: false,
            cut: true,
            ..whole
        })
    }

    /// Takes data in, and new data through the session machine, but for the first `unread` bytes.
    fn take_in(
        &mut self,
        ends: &Endpoints,
        side: Side,
        data: &Data<'_>,
        unread: usize,
        cx: &mut Context<'_>,
    ) -> Intake {
        let peer = self.peer(side);
        let limits = cx.limits(peer);
        let take_in = |flow: &mut Self| {
            (flow.forward(side)).take_in(data.seq, data.payload, data.fin, &limits)
        };
        let mut intake = take_in(self);
        if intake == Intake::Missed {
            let session = self.session.with_a_gap(cx.config.policy.clone());
            if self.rejoin(ends, side, (data.seq, data.ack), session, cx) {
                self.joined |= 4 << side.index();
                intake = take_in(self);
            }
        }
        match intake {
            Intake::Gap => cx.stats.out_of_order = cx.stats.out_of_order.saturating_add(1),
            // What a client has said so far and says next may still be a command that is always refused.
            Intake::Missed if peer == Peer::Server => self.lose_replies(side, Unread::Missed, cx),
            Intake::Missed => self.end_inspection(Unread::Missed, cx),
            Intake::New => {
                if unread > 0 {
                    self.forward(side).pass(unread);
                }
                self.read_new(ends, side, data.fin, cx);
            }
            Intake::Old if peer == Peer::Client && self.session.resumes() => {
                // The reply to the login has come since.
                self.inspect(ends, side, cx);
            }
            Intake::Old | Intake::Opaque => {}
        }
        intake
    }

    /// Takes new data through the session machine; `fin`: the stream ends with it.
    fn read_new(&mut self, ends: &Endpoints, side: Side, fin: bool, cx: &mut Context<'_>) {
        let peer = self.peer(side);
        let inspected = self.inspect(ends, side, cx);
        if fin && peer == Peer::Client && self.session.awaits_login() {
            self.stop_waiting(ends, side, cx);
        }
        // At the end of the stream nothing can complete what still waits. Signed replies are never
        // changed, so nothing in them need wait.
        if fin || (self.is_signed() && peer == Peer::Server) {
            let forward = self.forward(side);
            forward.pass(forward.pending().len());
        }
        if inspected == Inspected::HoldsTooMuch {
            self.reach_limit(side, cx);
        }
    }

    /// Makes the packet that goes on.
    fn send_on(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        data: &Data<'_>,
        intake: Intake,
        cx: &mut Context<'_>,
    ) -> Fate {
        let limit = self.limit(side, segment, intake);
        if self.is_signed() {
            return self.send_on_signed(side, data, cx);
        }
        let forward = self.forward(side);
        let emit = match forward.emit(data.seq, data.payload, data.fin, intake, limit) {
            Emit::Own(_) if data.cut => forward.probe(),
            emit => emit,
        };
        if matches!(emit, Emit::Probe { .. }) {
            cx.stats.held = cx.stats.held.saturating_add(1);
        }
        if intake == Intake::Old
            && !data.cut
            && !data.payload.is_empty()
            && render::contradicts(forward, &emit, data.payload)
        {
            cx.stats.contradicted = cx.stats.contradicted.saturating_add(1);
        }
        self.reverse(side).guarantee(Seq(segment.ack()));
        self.render(side, segment, packet, emit)
    }

    /// A segment that no change may be made to: it goes on as it came, or not at all.
    fn send_on_signed(&mut self, side: Side, data: &Data<'_>, cx: &mut Context<'_>) -> Fate {
        let forward = self.forward(side);
        if data.is_empty() || forward.clears(data.seq, data.payload, data.fin) {
            return Fate::Same;
        }
        cx.stats.held = cx.stats.held.saturating_add(1);
        Fate::Dropped
    }

    /// Notes that a FIN went on; the connection is over with the second one.
    fn note_fin(&mut self, side: Side, data: &Data<'_>, cx: &mut Context<'_>) {
        if !data.fin || !self.forward(side).ends_at(data.seq, data.payload.len()) {
            return;
        }
        self.signs |= 1 << side.index();
        if self.signs & FINS == FINS {
            self.close("FIN", cx.gateway);
        } else if self.range != Range::None {
            // An end that has sent its FIN starts no more data connections.
            cx.gateway.session_ended(self.id);
        }
    }
}

//! A flow when the gateway ends: see [`farewell`](crate::engine::farewell).

use super::{ANSWERED, Context, End, Fate, Flow};
use crate::engine::Side;
use crate::engine::gateway::Gateway;
use crate::stream::{Emit, Half, Seq};
use crate::wire::{Flags, Segment};

impl Flow {
    /// Whether both directions have the same numbers on both sides.
    pub(super) fn is_even(&self) -> bool {
        self.halves.iter().all(Half::is_even)
    }

    /// Ends the connection if nobody else can go on with it. Returns whether it is ended in this way,
    /// now or before. `handover`: a successor finds its record, if there is one.
    pub(in crate::engine) fn dismiss(&mut self, handover: bool, gateway: &mut dyn Gateway) -> bool {
        if self.can_be_dismissed() && !(handover && self.is_recorded()) {
            self.close("its numbers can't be kept", gateway);
            self.end = End::Dismissed;
        }
        self.end == End::Dismissed
    }

    /// Whether it is under way, and nobody can go on with it who knows no more than its mark.
    pub(in crate::engine) fn can_be_dismissed(&self) -> bool {
        !self.is_closed() && self.end != End::Frozen && !self.is_even()
    }

    /// The numbers of a RST towards the receiver of `side`'s packets: as the receiver counts, and as
    /// its peer does. The receiver expects one of the two pairs.
    pub(in crate::engine) fn reset_numbers(&mut self, side: Side) -> [(Seq, Seq); 2] {
        let forward = self.forward(side);
        forward
            .may_expect()
            .map(|expected| (expected, forward.ack_to_sender(expected)))
    }

    /// Whether a successor couldn't join the session yet, or couldn't understand the reply that it
    /// awaits.
    pub(in crate::engine) fn awaits_telling_reply(&self) -> bool {
        let begins = self.signs & ANSWERED == 0;
        self.end == End::Open && self.is_even() && (begins || self.session.awaits_telling_reply())
    }

    /// Whether a segment has a further command that a successor is to read.
    pub(super) fn is_held(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        let payload = segment.payload();
        let forward = self.forward(side);
        let end = Seq(segment.seq()).plus_len(payload.len());
        let fresh = !forward.is_opaque() && end.after(forward.expected());
        side == self.client && !payload.is_empty() && fresh && !self.awaits_telling_reply()
    }

    /// The packet goes no further, and no other one does.
    pub(super) fn freeze(&mut self) -> Fate {
        self.end = End::Frozen;
        Fate::Dropped
    }

    /// The packet comes again in a moment. All that it has changed is undone: nothing more is read of it.
    pub(super) fn put_off(&mut self, cx: &mut Context<'_>) {
        cx.put_off = true;
        self.freeze();
    }

    /// Whether nothing goes on any more, so that a successor gets it.
    pub(super) fn is_frozen(&self) -> bool {
        self.end == End::Frozen
    }

    /// What becomes of a packet after the farewell; `None` if that changes nothing for this flow.
    pub(super) fn after_farewell(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
    ) -> Option<Fate> {
        let dismissed = match self.end {
            End::Dismissed => true,
            End::Frozen => false,
            _ => return None,
        };
        if segment.flags().has(Flags::RST) {
            if !dismissed {
                return Some(Fate::Same);
            }
            let seq = Seq(segment.seq());
            let numbers = self.reset_numbers(side);
            // Ours come with the sender's numbers where conntrack sees them first.
            let ours = numbers.iter().find(|(_, given)| *given == seq);
            let at = match ours {
                Some((expected, _)) => *expected,
                None if numbers.iter().any(|(expected, _)| *expected == seq) => seq,
                None => self.forward(side).reset_seq(seq),
            };
            return Some(self.render(side, segment, packet, Emit::Own(at)));
        }
        // An end that didn't expect the number of its RST answers with the one that it does
        // (RFC 5961 section 3.2).
        if dismissed && self.believes(side, segment) {
            self.note_acknowledgement(side, segment);
        }
        Some(Fate::Dropped)
    }
}

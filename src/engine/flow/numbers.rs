//! Which packets may change a flow: those that their receiver takes for the connection's.

use super::{Context, End, Fate, Flow};
use crate::engine::Side;
use crate::engine::second::Second;
use crate::stream::{Emit, Reset, Seq};
use crate::wire::{Flags, Segment};

impl Flow {
    /// Whether the receiver believes a segment (neither SYN nor RST): it lies in its window, and
    /// acknowledges something that the receiver sent (RFC 9293 §3.10.7.4, RFC 5961 §5), even if that went
    /// round us. Where nothing is read any more, packets may have gone round us in both directions: the
    /// more must the numbers find back by themselves.
    pub(super) fn believes(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        let (seq, ack) = (Seq(segment.seq()), Seq(segment.ack()));
        let flags = segment.flags();
        let len = length(segment);
        let [forward, reverse] = self.both(side);
        flags.has(Flags::ACK)
            && forward.is_in_window(seq, len)
            && (reverse.can_acknowledge(ack)
                || (reverse.may_have_missed(ack)
                    && (forward.may_begin(seq) || (forward.is_opaque() && reverse.is_opaque()))))
    }

    /// A segment that nobody believes. Bytes that weren't inspected stay here, whatever the receiver would do
    /// with them. What it has, and empty segments, go on: it answers with what it expects, and whoever
    /// lost step by a lost packet finds back.
    pub(super) fn disbelieve(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Fate {
        let (seq, len) = (Seq(segment.seq()), length(segment));
        let forward = self.forward(side);
        let emit = Emit::Own(forward.header_seq(seq));
        if !forward.is_old(seq, len) {
            let inspected = !forward.is_opaque();
            cx.stats.unacceptable = cx.stats.unacceptable.saturating_add(1);
            if len > 0 && inspected {
                return Fate::Dropped;
            }
        }
        self.render(side, segment, packet, emit)
    }

    /// A segment of `side`'s is believed: there is somebody at that end.
    pub(super) fn is_alive(&mut self, side: Side, cx: &Context<'_>) {
        self.seen = Second::of(cx.now);
        if self.is_closed() {
            return;
        }
        if let End::Doubted { by } = self.end
            && by != side
        {
            self.signs |= challenges(side);
        }
        self.end = End::Open;
    }

    /// Handles a RST.
    pub(super) fn reset(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Fate {
        let seq = Seq(segment.seq());
        let forward = self.forward(side);
        let reset = forward.reset(seq);
        let emit = Emit::Own(forward.reset_seq(seq));
        let fate = self.render(side, segment, packet, emit);
        let mut end = self.end;
        match reset {
            Reset::Exact => {
                self.seen = Second::of(cx.now);
                self.close("RST", cx.gateway);
                return fate;
            }
            Reset::Perhaps => end = End::Reset,
            // Whoever has asked before, instead of giving up, does so again, if not each time.
            Reset::Inexact if self.signs & challenges(side.opposite()) == 0 => {
                if end == End::Open {
                    end = End::Doubted { by: side };
                }
            }
            Reset::Inexact | Reset::Void => {}
        }
        if reset != Reset::Perhaps {
            cx.stats.unacceptable = cx.stats.unacceptable.saturating_add(1);
        }
        if end != self.end && !self.is_closed() {
            self.seen = Second::of(cx.now);
            self.end = end;
        }
        fate
    }
}

/// The sign in [`Flow::signs`] that the end whose packets come through that hook has answered a RST
/// that wasn't exact.
const fn challenges(side: Side) -> u8 {
    8 << side.index()
}

/// Data and FIN.
fn length(segment: &Segment<'_>) -> usize {
    let fin = usize::from(segment.flags().has(Flags::FIN));
    segment.payload().len().saturating_add(fin)
}

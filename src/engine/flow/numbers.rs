//! Which packets may change a flow: only those that the receiver accepts.

use super::{Context, End, Fate, Flow, challenges};
use crate::engine::Side;
use crate::engine::config::Standing;
use crate::engine::second::Second;
use crate::stream::{Emit, Reset, Seq};
use crate::wire::{Flags, Segment};

impl Flow {
    /// Whether the receiver accepts a segment (neither SYN nor RST). It must lie in the window, and
    /// acknowledge something that the receiver sent (RFC 9293 §3.10.7.4, RFC 5961 §5), even if that
    /// bypassed us. Once neither direction is inspected, packets may have bypassed us in both. Then
    /// the check is more lenient, so that our numbers catch up.
    pub(super) fn believes(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        let (seq, ack) = (Seq(segment.seq()), Seq(segment.ack()));
        let flags = segment.flags();
        let len = length(segment);
        // Then nobody knows what was done to the bytes that bypassed us.
        let outdated = self.may_be_outdated();
        let [forward, reverse] = self.both(side);
        flags.has(Flags::ACK)
            && forward.is_in_window(seq, len)
            && (reverse.can_acknowledge(ack)
                || (!outdated
                    && reverse.may_have_missed(ack)
                    && (forward.may_begin(seq) || (forward.is_opaque() && reverse.is_opaque()))))
    }

    /// A segment that the receiver doesn't accept. New data is dropped here, since it wasn't
    /// inspected. Old data and empty segments go on. The receiver answers them with the numbers
    /// that it expects, which brings two ends back into step after a loss.
    pub(super) fn disbelieve(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Fate {
        let old = self.is_late(side, segment);
        let forward = self.forward(side);
        let emit = Emit::Own(forward.header_seq(Seq(segment.seq())));
        if !old {
            let inspected = !forward.is_opaque();
            cx.stats.unacceptable = cx.stats.unacceptable.saturating_add(1);
            if length(segment) > 0 && inspected {
                return self.ask_receiver(side, segment, packet);
            }
        }
        self.render(side, segment, packet, emit)
    }

    /// Whether the receiver has all of a segment: it is a repetition, or comes late. Where somebody else
    /// could have gone on with the connection, what it acknowledges must fit, too. Otherwise it may be of
    /// a later connection between the same ends.
    pub(super) fn is_late(&mut self, side: Side, segment: &Segment<'_>) -> bool {
        let elsewhere = self.standing == Standing::Even;
        let [forward, reverse] = self.both(side);
        forward.is_old(Seq(segment.seq()), length(segment))
            && (!elsewhere || reverse.can_acknowledge(Seq(segment.ack())))
    }

    /// A segment from `side` is accepted: that end is alive.
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
            // An end that has sent a challenge ACK before will do so again, if not each time.
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

/// The length of a segment in sequence space: data and FIN.
fn length(segment: &Segment<'_>) -> usize {
    let fin = usize::from(segment.flags().has(Flags::FIN));
    segment.payload().len().saturating_add(fin)
}

//! Writes what goes on into the packet: sequence numbers, window, SACK blocks, urgent pointer,
//! payload.

use super::{Fate, Flow, headers, least_mtu};
use crate::engine::Side;
use crate::stream::{Emit, Half, Intake, Seq};
use crate::wire::{Flags, SackBlock, Segment, SegmentMut, for_each_sack};

impl Flow {
    /// The largest payload that may leave in this packet, in bytes.
    ///
    /// Both SYNs' MSS is a bound (RFC 6691: it counts neither IP nor TCP options), but the path may
    /// take less. What the sender has learned of the path (RFC 1191, RFC 8201) isn't told to us. A
    /// packet larger than any that its sender makes may never arrive, however often it is sent
    /// again. So no packet gets larger than its sender's largest, or than 1,280 bytes, which nearly
    /// every path takes.
    ///
    /// If a packet may have been lost for its size, the sizes seen before don't count any more.
    /// Then the limit is the retransmission's own size, or what every path takes.
    pub(super) fn limit(&mut self, side: Side, segment: &Segment<'_>, intake: Intake) -> usize {
        let layout = segment.layout();
        let data = segment.payload().len();
        let forward = self.forward(side);
        // A segment without data says nothing about sizes.
        let (size, intake) = match data {
            0 => (0, Intake::New),
            _ => (u16::try_from(layout.end).unwrap_or(u16::MAX), intake),
        };
        let end = Seq(segment.seq()).plus_len(data);
        let known = forward.largest(size, end, intake);
        let small = forward.was_too_large(end, intake);
        // What every IPv6 link takes, nearly every IPv4 path does.
        let least = least_mtu(!small || layout.v6);
        let path = usize::from(known.max(least)).saturating_sub(layout.payload);
        let options = layout
            .payload
            .saturating_sub(usize::from(headers(layout.v6)));
        usize::from(self.mss).saturating_sub(options).min(path)
    }

    pub(super) fn render(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
        emit: Emit,
    ) -> Fate {
        if self.is_signed() {
            return Fate::Same;
        }
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
                    // Where it points isn't known yet (a later segment will tell), or is
                    // acknowledged.
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
}

/// Whether a retransmission differs from the first transmission. Not checked while edits are in
/// flight.
pub(super) fn contradicts(forward: &Half, emit: &Emit, payload: &[u8]) -> bool {
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

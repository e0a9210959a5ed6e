//! Connections that nobody can go on with: their numbers differ on the two sides, and who knew by
//! how much is gone without a word.
//!
//! No byte of theirs may go on, since its receiver would read it out of place. So they are ended,
//! such that both ends notice. No packet is made up: what one end sends, and sends again since nobody
//! acknowledges it, is turned into what ends the connection.
//!
//! 1. Data goes on without its bytes, as a keep-alive with an old number. Its receiver answers that
//!    at once with the number that it expects (RFC 9293 §3.10.7.4). The answer goes no further.
//! 2. When the data comes again, it goes on as a RST with that number: its receiver closes.
//! 3. When it comes once more, it is a keep-alive again. The receiver's host doesn't know the
//!    connection any more, and answers with a RST, which passes: its sender closes, too. If the first
//!    RST was lost, the answer is as in 1.
//!
//! While a store may still say how the numbers differ, only 1 is done: it does no harm to a connection
//! that goes on. So the ends need no further retransmission once that is over. Each is twice as far from
//! the last as that from the one before, and conntrack lets the answer in 3 pass for 10 s after 2 only.

use std::collections::HashMap;

use super::Side;
use super::endpoints::Endpoints;
use super::flow::Fate;
use crate::stream::Seq;
use crate::wire::{Flags, Segment, SegmentMut};

/// How many are remembered. With more, all are forgotten, and their ends are asked again.
const MAX: usize = 4096;

/// How far a keep-alive's number is below its sender's: further than the numbers differ, and within
/// every window.
const BELOW: u32 = 1024;

/// The connections, with what is known of their ends, by the [`Side`] that their packets come from.
#[derive(Debug, Default)]
pub(super) struct Orphans(HashMap<Endpoints, [End; 2]>);

#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// The number that it expects.
    expects: Option<Seq>,
    /// The last packet to it was a RST.
    reset: bool,
}

impl Orphans {
    /// Turns a packet of such a connection into one that helps to end it; `packet` is a copy of it.
    /// `certain`: nobody can go on with it.
    pub(super) fn end(
        &mut self,
        ends: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        certain: bool,
        packet: &mut Vec<u8>,
    ) -> Fate {
        let flags = segment.flags();
        if flags.has(Flags::RST) {
            self.forget(&ends);
            return if certain { Fate::Same } else { Fate::Dropped };
        }
        if self.0.len() >= MAX {
            self.0.clear();
        }
        let [egress, ingress] = self.0.entry(ends).or_default();
        let (sender, receiver) = match side {
            Side::Egress => (egress, ingress),
            Side::Ingress => (ingress, egress),
        };
        if flags.has(Flags::ACK) {
            sender.expects = Some(Seq(segment.ack()));
        }
        if segment.payload().is_empty() && !flags.has(Flags::FIN) {
            return Fate::Dropped;
        }
        let number = receiver.expects.filter(|_| certain && !receiver.reset);
        receiver.reset = number.is_some();
        let mut out = SegmentMut::new(packet, segment.layout());
        out.set_payload(&[]);
        out.set_urgent(0);
        match number {
            Some(seq) => {
                out.set_seq(seq.0);
                out.clear_flags(Flags::ACK | Flags::FIN | Flags::PSH | Flags::URG);
                out.set_ack(0);
                out.set_flags(Flags::RST);
            }
            None => {
                out.set_seq(segment.seq().wrapping_sub(BELOW));
                if !certain {
                    // Nothing is acknowledged that may not have come.
                    out.set_ack(segment.ack().wrapping_sub(BELOW));
                }
                out.clear_flags(Flags::FIN | Flags::PSH | Flags::URG);
            }
        }
        Fate::Changed
    }

    /// Somebody goes on with it.
    pub(super) fn forget(&mut self, ends: &Endpoints) {
        self.0.remove(ends);
    }
}

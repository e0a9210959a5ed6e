//! Connections that nobody can go on with: their numbers differ on the two sides, and who knew by
//! how much is gone without a word.
//!
//! No byte of theirs may go on, since its receiver would read it out of place. So they are ended,
//! such that both ends notice. Each packet says which number its sender expects, which is all that a
//! RST to that sender needs. No packet is made up:
//!
//! - A packet goes on without its data, as a keep-alive with an old number. Its receiver answers
//!   that at once (RFC 9293 §3.10.7.4).
//! - If it is known what the receiver expects, it goes on as a RST instead. For the answer to a
//!   keep-alive that is so.
//! - The next one to the same end goes on as a keep-alive again. If that end is gone, its host
//!   answers with a RST, which passes. If the RST was lost, the end itself answers.

use std::collections::HashMap;

use super::Side;
use super::endpoints::Endpoints;
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
    /// Returns false if it goes on as it is.
    pub(super) fn end(
        &mut self,
        ends: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        packet: &mut Vec<u8>,
    ) -> bool {
        let flags = segment.flags();
        if flags.has(Flags::RST) {
            self.0.remove(&ends);
            return false;
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
        let number = receiver.expects.filter(|_| !receiver.reset);
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
                out.clear_flags(Flags::FIN | Flags::PSH | Flags::URG);
            }
        }
        true
    }
}

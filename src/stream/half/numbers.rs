//! Which segments the receiver accepts. Only these may change anything here.
//!
//! An off-path attacker can forge segments with guessed numbers. The receiver drops them, or
//! answers with the numbers that it expects (RFC 9293 §3.10.7.4, RFC 5961).

use super::{Half, Seq};

/// What a RST means to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// It has the number that its receiver expects, or comes right behind all that its sender sent.
    /// The connection is over.
    Exact,
    /// It may have the number that its receiver expects, depending on what has arrived.
    Perhaps,
    /// It lies in the window, but doesn't have the expected number. A receiver that follows RFC
    /// 5961 §3 sends a challenge ACK; older ones close the connection.
    Inexact,
    /// Every receiver ignores it.
    Void,
}

/// How far an acknowledgement may lie beyond what was sent on, in bytes. It is then about bytes
/// that bypassed us.
const FAR: u32 = 1 << 20;

/// How far an acknowledgement may lie behind the newest one, in bytes: the largest unscaled window.
/// RFC 5961 §5 allows the largest window that was offered. With less, at worst a late segment must
/// be sent again.
const LATE: u32 = 0xffff;

impl Half {
    /// Notes the window that the receiver offered with its own SYN, in bytes.
    pub fn offered(&mut self, window: u16) {
        self.edge = self.edge.max(self.acked.plus(u32::from(window)));
    }

    /// Whether a segment lies in the receiver's window and isn't [old](Self::is_old). `len` counts
    /// its data and its FIN.
    #[must_use]
    pub fn is_in_window(&self, seq: Seq, len: usize) -> bool {
        !self.is_old(seq, len) && !seq.after(self.right())
    }

    /// Whether the receiver has acknowledged all of a segment, and more. It only answers such a
    /// segment.
    #[must_use]
    pub fn is_old(&self, seq: Seq, len: usize) -> bool {
        let received = if self.is_settled() {
            self.acked.plus(self.una.original.since(self.una.edited))
        } else {
            self.una.original
        };
        seq.before(received) && seq.plus_len(len).before(received)
    }

    /// Where the receiver's window ends, in the sender's numbers. All that was sent on counts as
    /// within it.
    fn right(&self) -> Seq {
        let right = self.edge.max(self.sent);
        if self.is_settled() {
            right.plus(self.una.original.since(self.una.edited))
        } else if right.after(self.emitted) {
            self.next.plus(right.since(self.emitted))
        } else {
            self.next
        }
    }

    /// Whether the receiver can acknowledge this, in edited space: it was sent on, and not
    /// acknowledged long ago.
    #[must_use]
    pub fn can_acknowledge(&self, ack: Seq) -> bool {
        !ack.after(self.sent) && !ack.plus(LATE).before(self.acked)
    }

    /// Whether this may acknowledge bytes that bypassed us (a full queue that fails open lets
    /// packets pass). To be trusted only in a segment that [begins](Self::may_begin) where an
    /// honest one does.
    #[must_use]
    pub fn may_have_missed(&self, ack: Seq) -> bool {
        ack.after(self.sent) && ack.since(self.sent) <= FAR
    }

    /// Whether this is an acknowledgement that goes no further back than the last one.
    #[must_use]
    pub fn is_new_acknowledgement(&self, ack: Seq) -> bool {
        !ack.before(self.acked) && !ack.after(self.sent)
    }

    /// The numbers that the receiver may expect next, in edited space: what it acknowledged last,
    /// and the end of all that it may have.
    #[must_use]
    pub fn may_expect(&self) -> [Seq; 2] {
        [self.acked, self.sent]
    }

    /// Whether a segment at `seq` comes right behind all that its sender sent before.
    #[must_use]
    pub fn is_exact(&self, seq: Seq) -> bool {
        if self.opaque {
            self.header_seq(seq) == self.sent
        } else {
            seq == self.next || self.fin().is_some_and(|fin| seq == fin.plus(1))
        }
    }

    /// Whether an honest segment is likely to begin at `seq`: behind all that was sent before, or
    /// at the number that was acknowledged. An off-path attacker can't guess these.
    #[must_use]
    pub fn may_begin(&self, seq: Seq) -> bool {
        self.is_exact(seq) || seq == self.una.original || seq == self.guaranteed
    }

    /// What a RST from the sender means to the receiver.
    #[must_use]
    pub fn reset(&self, seq: Seq) -> Reset {
        let at = self.reset_seq(seq);
        if self.is_exact(seq) || at == self.sent {
            Reset::Exact
        } else if at.before(self.acked) {
            Reset::Void
        } else if at.before(self.sent) {
            Reset::Perhaps
        } else if !at.after(self.edge) {
            Reset::Inexact
        } else {
            Reset::Void
        }
    }

    /// The sequence number with which a RST goes on. Two numbers can be exact: the one behind all
    /// that its sender sent, and the one that was acknowledged to the sender. Numbers between them
    /// are of bytes that wait here. They must not become the number that the receiver expects.
    #[must_use]
    pub fn reset_seq(&self, seq: Seq) -> Seq {
        let waits = self.released().original;
        let between = !self.opaque && seq.after(waits) && seq.before(self.next);
        if between && seq != self.guaranteed {
            self.emitted.plus(seq.since(waits))
        } else {
            self.header_seq(seq)
        }
    }
}

//! Which segments the receiver takes for its connection's: only such may change anything here.
//!
//! Somebody who doesn't see the connection can send segments in its name, with numbers at random.
//! Their receiver throws them away (RFC 9293 §3.10.7.4, RFC 5961), or answers with what it expects.

use super::{Half, Seq};

/// What a RST means to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// It has the number that its receiver expects, or all that its sender sent comes before it:
    /// the connection is over.
    Exact,
    /// It may have the number that its receiver expects, depending on what has arrived.
    Perhaps,
    /// It lies in the window, but isn't what is expected: for RFC 5961 §3 a reason to ask the
    /// sender by an acknowledgement, for older TCPs the end.
    Inexact,
    /// No receiver heeds it.
    Void,
}

/// How far beyond what was sent on an acknowledgement is believed to be about bytes that went
/// round us, in bytes.
const FAR: u32 = 1 << 20;

/// How old an acknowledgement may be, in bytes: the largest window that is never scaled. RFC 5961
/// §5 says the largest one that was offered; to take less only means that a late segment comes
/// again.
const LATE: u32 = 0xffff;

impl Half {
    /// Notes the window that the receiver offered with its own SYN, in bytes.
    pub fn offered(&mut self, window: u16) {
        self.edge = self.edge.max(self.acked.plus(u32::from(window)));
    }

    /// Whether a segment of the sender's lies where the receiver looks at it: `len` counts its data
    /// and its FIN. Nothing is said of old ones, which the receiver has: these it only answers.
    #[must_use]
    pub fn is_in_window(&self, seq: Seq, len: usize) -> bool {
        !self.is_old(seq, len) && !seq.after(self.right())
    }

    /// Whether the receiver has acknowledged all of a segment, and more.
    #[must_use]
    pub fn is_old(&self, seq: Seq, len: usize) -> bool {
        let received = if self.is_settled() {
            self.acked.plus(self.una.original.since(self.una.edited))
        } else {
            self.una.original
        };
        seq.before(received) && seq.plus_len(len).before(received)
    }

    /// Where the receiver's window ends, in the sender's numbers; what was sent on lies in it.
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

    /// Whether it acknowledges what may have gone round us (a full queue that fails open lets
    /// packets pass). To be believed only of a segment that [begins](Self::may_begin) where an
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

    /// Whether a segment at `seq` comes right behind all that its sender sent before.
    #[must_use]
    pub fn is_exact(&self, seq: Seq) -> bool {
        if self.opaque {
            self.header_seq(seq) == self.sent
        } else {
            seq == self.next || self.fin.is_some_and(|fin| seq == fin.plus(1))
        }
    }

    /// Whether an honest segment may well begin at `seq`: behind all that was sent before, or where
    /// the receiver, or its sender, thinks that the receiver is. Nobody hits that who doesn't see
    /// the connection.
    #[must_use]
    pub fn may_begin(&self, seq: Seq) -> bool {
        self.is_exact(seq) || seq == self.una.original || seq == self.guaranteed
    }

    /// What a RST of the sender's is for the receiver.
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

    /// The number under which a RST goes on. Two numbers can be exact: the one behind all that its
    /// sender sent, and the one that it was told is expected of it. Those between, of bytes that
    /// wait here, must not become the number that the receiver expects.
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

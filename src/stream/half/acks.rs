//! The receiver's acknowledgements: what they change here, and how they are passed on to the
//! sender.

use super::{Fin, Half, Point, Round, Seq};

impl Half {
    /// Notes that the receiver acknowledged everything before `ack` (in edited space), and that its
    /// window ends at `edge`. To be called for acceptable segments whose acknowledgement is
    /// [possible](Self::can_acknowledge) or [of bytes that bypassed us](Self::may_have_missed).
    pub fn acknowledged(&mut self, ack: Seq, edge: Seq) {
        let released = self.released();
        self.heard = true;
        self.sent = self.sent.max(ack);
        if self.is_new_acknowledgement(ack) {
            self.edge = self.edge.max(edge);
        }
        if !ack.after(self.acked) {
            return;
        }
        if let Some(fin) = self.fin()
            && self.fin_sent
            && ack == released.edited.plus(1)
        {
            self.trim(released);
            self.una = Point {
                original: fin.plus(1),
                edited: ack,
            };
            self.emitted = ack;
            self.acked = ack;
            self.next = fin.plus(1);
            self.fin = Fin::Acknowledged;
        } else if self.is_settled() && self.fin == Fin::Unseen {
            self.moves_along(ack);
        } else if ack.after(self.emitted) {
            // It acknowledges bytes that weren't inspected. That is normal once inspection has
            // ended.
            if self.opaque && self.emitted == released.edited {
                self.trim(released);
                self.acked = ack;
            }
        } else {
            self.acked = ack;
            self.trim(self.edits_map_edited(ack));
        }
    }

    /// What follows isn't looked at, but its numbers are still compared: see [`Half::trim`].
    fn moves_along(&mut self, ack: Seq) {
        self.una = self.edits_map_edited(ack);
        self.acked = ack;
        self.emitted = ack;
        self.next = self.una.original;
        self.guaranteed = self.una.original;
    }

    fn edits_map_edited(&self, ack: Seq) -> Point {
        self.work.as_ref().map_or(
            Point {
                original: self.una.original.plus(ack.since(self.una.edited)),
                edited: ack,
            },
            |work| work.edits.at_edited(self.una, ack, Round::Down),
        )
    }

    fn trim(&mut self, to: Point) {
        if let Some(work) = self.work.as_mut() {
            let n = to.edited.len_since(self.una.edited).min(work.released);
            if n > 0 {
                self.last = work.out().get(n.saturating_sub(1)).copied();
            }
            work.buffer.drain(..n);
            work.released = work.released.saturating_sub(n);
            work.edits.fold(to.original);
        }
        self.tidy();
        self.una = to;
        // Sequence numbers compare correctly only within half of their space, so none may stay
        // behind.
        self.guaranteed = self.guaranteed.max(to.original);
    }

    /// The receiver acknowledges `ack`. If that is all that may go on, the held bytes are
    /// acknowledged to the sender early: see the documentation of [`crate::stream`].
    pub fn guarantee(&mut self, ack: Seq) {
        if !self.opaque
            && self.fin().is_none()
            && ack == self.released().edited
            && self.emitted == ack
            && !self.pending().is_empty()
        {
            self.guaranteed = self.next;
        }
    }

    /// The acknowledgement that the sender is given for the receiver's `ack`.
    #[must_use]
    pub fn ack_to_sender(&self, ack: Seq) -> Seq {
        if self.is_settled() {
            return ack.plus(self.una.original.since(self.una.edited));
        }
        let released = self.released();
        // While something is left to send on, the receiver can't have more than was sent.
        let ahead = self.emitted != released.edited || !self.pending().is_empty();
        if ahead && ack.after(self.sent) {
            // No receiver sends this. It must not become a number that the sender takes: that
            // would acknowledge bytes that never arrived.
            let end = self.fin().map_or(self.next, |fin| fin.plus(1));
            return end.plus(ack.since(self.emitted));
        }
        let ack = if ahead { ack.min(self.emitted) } else { ack };
        let mapped = if ack.before(self.una.edited) {
            ack.plus(self.una.original.since(self.una.edited))
        } else if ack.after(released.edited) {
            ack.plus(released.original.since(released.edited))
        } else {
            self.edits_map_edited(ack).original
        };
        // Nor must a number from long ago become a current one.
        if self.guaranteed.after(self.una.original) && self.can_acknowledge(ack) {
            mapped.max(self.guaranteed)
        } else {
            mapped
        }
    }

    /// What the receiver acknowledges once it has the edited stream, where the sender knows it as
    /// `ack`: the inverse of [`ack_to_sender`](Self::ack_to_sender). It never acknowledges what
    /// wasn't sent on, but for bytes that were never seen here.
    #[must_use]
    pub fn ack_of_receiver(&self, ack: Seq) -> Seq {
        let released = self.released();
        if ack.before(self.una.original) {
            return ack.plus(self.una.edited.since(self.una.original));
        }
        if ack.after(self.next) && self.fin().is_none() {
            return released.edited.plus(ack.since(self.next));
        }
        let mapped = if ack.after(self.next) {
            released.edited.plus(ack.since(self.next))
        } else if ack.after(released.original) {
            released.edited
        } else {
            self.map(ack, Round::Down).edited
        };
        mapped.min(self.sent)
    }

    /// The receiver's SACK block in the sender's numbers, reduced to whole edits; `None` if nothing
    /// is left.
    #[must_use]
    pub fn sack_to_sender(&self, left: Seq, right: Seq) -> Option<(Seq, Seq)> {
        let edge = |at: Seq, round| {
            let released = self.released();
            if at.before(self.una.edited) {
                at.plus(self.una.original.since(self.una.edited))
            } else if at.after(released.edited) {
                at.plus(released.original.since(released.edited))
            } else {
                self.work
                    .as_ref()
                    .map_or(self.una.original.plus(at.since(self.una.edited)), |work| {
                        work.edits.at_edited(self.una, at, round).original
                    })
            }
        };
        let (mut left, right) = (edge(left, Round::Up), edge(right, Round::Down));
        if !left.before(self.una.original) {
            // A block below the acknowledgement would report a duplicate (RFC 2883).
            left = left.max(self.guaranteed);
        }
        left.before(right).then_some((left, right))
    }

    /// The window field that goes with an acknowledgement. The sender must not send what would,
    /// once edited, end beyond the receiver's window.
    ///
    /// `ack` is the receiver's own, `given` what [`Half::ack_to_sender`] made of it; `window` is the
    /// receiver's field as it is in the header, not scaled, and so is the result; `shift` is the
    /// receiver's window scale (RFC 7323 §2.3).
    #[must_use]
    pub fn window_to_sender(&self, ack: Seq, given: Seq, window: u16, shift: u8) -> u16 {
        if self.work.is_none() && !self.guaranteed.after(self.una.original) {
            return window;
        }
        let released = self.released();
        let right = ack.plus(u32::from(window) << shift);
        let right = if right.before(self.una.edited) {
            return window;
        } else if right.before(released.edited) {
            self.edits_map_edited(right).original
        } else {
            right.plus(released.original.since(released.edited))
        };
        let room = if right.after(given) {
            right.since(given) >> shift
        } else {
            0
        };
        u16::try_from(room).unwrap_or(u16::MAX).min(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequence numbers go round every 4 GiB, and compare for half of that.
    #[test]
    fn an_unread_stream_goes_on_beyond_two_gibibytes() {
        const STEP: u32 = 1 << 30;
        let mut half = Half::joined(Seq(7));
        half.end_inspection();
        let mut at = Seq(7);
        for step in 0..9 {
            at = at.plus(STEP);
            half.acknowledged(at, at);
            assert_eq!(half.plain_ack(at), Some(at), "{step}");
            assert_eq!(half.header_seq(at), at, "{step}");
            assert!(half.is_even() && half.is_old(Seq(at.0.wrapping_sub(9)), 1));
        }
    }
}

//! What a packet carries to the receiver, and with which sequence number.

use super::{Emit, Half, Intake, Round, Seq};

impl Half {
    /// Says what the packet that carries `seq` and `payload` must carry on. To be called after
    /// [`Half::take_in`] and after what is pending was dealt with; not for RST.
    ///
    /// `limit` is the largest payload that the path to the receiver is known to take, in bytes. A
    /// payload that came in one packet may always leave in one.
    pub fn emit(
        &mut self,
        seq: Seq,
        payload: &[u8],
        fin: bool,
        intake: Intake,
        limit: usize,
    ) -> Emit {
        let emit = self.choose(seq, payload, fin, intake, limit);
        let end = match emit {
            Emit::Own(seq) if !payload.is_empty() || fin => {
                seq.plus_len(payload.len()).plus(u32::from(fin))
            }
            Emit::Stream {
                seq,
                len,
                tail,
                fin,
            } => {
                let own = tail.map_or(0, |at| payload.len().saturating_sub(at));
                seq.plus_len(len.saturating_add(own)).plus(u32::from(fin))
            }
            Emit::Own(_) | Emit::Probe { .. } => return emit,
        };
        self.sent = self.sent.max(end);
        self.heard = false;
        emit
    }

    fn choose(
        &mut self,
        seq: Seq,
        payload: &[u8],
        fin: bool,
        intake: Intake,
        limit: usize,
    ) -> Emit {
        let released = self.released();
        let end = seq.plus_len(payload.len());
        let past = end.plus(u32::from(fin));
        if self.is_settled() {
            return Emit::Own(self.shifted(seq));
        }
        // Bytes that only we can deliver: the sender has an early acknowledgement of them, or they
        // didn't fit into their packet.
        let owed = self.guaranteed.after(self.una.original) && self.emitted != self.una.edited;
        let behind = owed || self.emitted != released.edited;
        let bare = payload.is_empty() && !fin;
        let beyond = self.opaque && !seq.before(self.next);
        // A segment without data may be sent when the receiver's window has no room.
        let room = bare.then(|| self.edge.since(self.una.edited) as usize);
        if !behind && (beyond || bare) {
            return Emit::Own(self.header_seq(seq));
        }
        if !behind && !past.after(self.una.original) {
            // The receiver has acknowledged it all: its sender only missed the acknowledgement.
            return Emit::Own(self.shifted(seq));
        }
        let limit = limit.max(payload.len()).max(1);
        let first = if owed || seq.before(self.una.original) {
            self.una.original
        } else {
            seq
        };
        let start = if first.before(released.original) {
            self.map(first, Round::Down).edited.min(self.emitted)
        } else {
            self.emitted
        };
        // What was acknowledged of an edit isn't sent again.
        let start = start.max(self.acked.min(self.emitted));
        let more = intake == Intake::New || (self.opaque && end.after(self.next));
        let stop = if more || behind || !end.before(released.original) {
            released.edited
        } else {
            self.map(end, Round::Up).edited
        };
        let whole = if stop.after(start) {
            stop.since(start) as usize
        } else {
            0
        };
        let len = whole.min(limit);
        let len = room.map_or(len, |room| {
            len.min(room.saturating_sub(start.len_since(self.una.edited)))
        });
        let complete = start.plus_len(len) == released.edited && self.pending().is_empty();
        // Only if all of it fits.
        let tail = (self.opaque && !seq.after(self.next) && end.after(self.next))
            .then(|| self.next.len_since(seq))
            .filter(|tail| len.saturating_add(payload.len().saturating_sub(*tail)) <= limit);
        let with_fin = fin
            && complete
            && (tail.is_some() || !end.after(self.next))
            && self.ends_at(seq, payload.len());
        if fin == with_fin && tail.is_none() && self.overlaps(seq, payload, start, len) {
            self.note(start.plus_len(len), with_fin);
            return Emit::Own(self.shifted(seq));
        }
        self.note(start.plus_len(len), with_fin);
        if len == 0 && !with_fin && tail.is_none() {
            if bare {
                return Emit::Own(self.header_seq(seq));
            }
            if !payload.is_empty() {
                return self.probe();
            }
        }
        Emit::Stream {
            seq: start,
            len,
            tail,
            fin: with_fin,
        }
    }

    /// Notes the size of a packet, in bytes of IP, whose data ends before `end`. Returns the
    /// largest since one may have been [too large](Self::was_too_large). To be called after
    /// [`Half::take_in`].
    pub fn largest(&mut self, size: u16, end: Seq, intake: Intake) -> u16 {
        self.largest = if self.was_too_large(end, intake) {
            size
        } else {
            self.largest.max(size)
        };
        self.largest
    }

    /// Whether the data that ends before `end` is a retransmission, and the first transmission may
    /// have been too large for the path. That may be so if the receiver has sent nothing since: it
    /// acknowledges even data that it has no room for. To be called after [`Half::take_in`].
    #[must_use]
    pub fn was_too_large(&self, end: Seq, intake: Intake) -> bool {
        if self.heard {
            return false;
        }
        match intake {
            Intake::Old => true,
            Intake::Opaque => !self.is_settled() && !end.after(self.next),
            Intake::New | Intake::Gap | Intake::Missed => false,
        }
    }

    /// Whether a segment may go on as it came: all of it was inspected, and nothing in it is
    /// edited. If so, it counts as sent on. For connections whose segments must not be changed.
    pub fn clears(&mut self, seq: Seq, payload: &[u8], fin: bool) -> bool {
        let end = seq.plus_len(payload.len());
        let behind = self.una.original.max(seq);
        let own = payload.get(behind.len_since(seq)..).unwrap_or_default();
        let clear = self.opaque
            || (!end.after(self.released().original)
                && (!fin || self.fin() == Some(end))
                && self.edited(self.shifted(behind), own.len()) == own);
        if clear {
            let end = self.shifted(end);
            self.note(end.min(self.released().edited), fin);
            self.sent = self.sent.max(end.plus(u32::from(fin)));
        }
        clear
    }

    /// A packet that carries nothing new, so that the receiver acknowledges at once.
    #[must_use]
    pub fn probe(&self) -> Emit {
        Emit::Probe {
            seq: self.emitted.plus(u32::MAX),
            byte: self.last_emitted(),
        }
    }

    /// Notes what a packet carries on.
    fn note(&mut self, end: Seq, fin: bool) {
        self.emitted = self.emitted.max(end);
        self.fin_sent |= fin && !self.opaque;
    }

    /// Whether a segment that begins with acknowledged bytes has, behind them, exactly the bytes
    /// that are to go on. Then it may pass as it is.
    fn overlaps(&self, seq: Seq, payload: &[u8], start: Seq, len: usize) -> bool {
        seq.before(self.una.original)
            && start == self.una.edited
            && payload.get(self.una.original.len_since(seq)..) == Some(self.edited(start, len))
    }

    /// The edited stream's bytes from `seq` on, as [`Emit::Stream`] names them.
    #[must_use]
    pub fn edited(&self, seq: Seq, len: usize) -> &[u8] {
        let from = seq.len_since(self.una.edited);
        let out = self.work.as_ref().map_or(&[][..], |work| work.out());
        out.get(from..from.saturating_add(len)).unwrap_or_default()
    }

    /// The sequence number for a packet without data (or a RST). To the receiver it must look as if
    /// the sender had sent nothing but what was sent on.
    #[must_use]
    pub fn header_seq(&self, seq: Seq) -> Seq {
        if self.is_settled() {
            return self.shifted(seq);
        }
        let released = self.released();
        if self.opaque && !seq.before(self.next) {
            return seq.plus(released.edited.since(released.original));
        }
        if let Some(fin) = self.fin()
            && seq == fin.plus(1)
        {
            return if self.una.original == seq {
                self.una.edited
            } else if self.fin_sent {
                released.edited.plus(1)
            } else {
                self.emitted
            };
        }
        if seq.before(self.una.original) {
            return self.shifted(seq);
        }
        if seq.plus(1) == self.next && self.next != self.una.original {
            // A keep-alive (RFC 9293 §3.8.4): its number must be one below the expected one.
            return self.emitted.plus(u32::MAX);
        }
        if !seq.before(released.original) {
            // For the receiver, bytes that wait here aren't sent yet. A number beyond them stays
            // beyond by as much. Either a segment between was lost, or this one is forged. It must
            // not become exactly the number that the receiver expects.
            let beyond = if seq.after(self.next) {
                seq.since(self.next)
            } else {
                0
            };
            return self.emitted.plus(beyond);
        }
        self.map(seq, Round::Down).edited.min(self.emitted)
    }

    /// The sender's urgent pointer in edited space (it points behind the urgent data, RFC 9293
    /// §3.8.5). `None` while bytes before it wait, since their edits aren't known.
    #[must_use]
    pub fn urgent(&self, at: Seq) -> Option<Seq> {
        let released = self.released();
        if at.before(self.una.original) {
            Some(self.shifted(at))
        } else if at.before(released.original) {
            Some(self.map(at, Round::Up).edited)
        } else if at == released.original || self.pending().is_empty() {
            Some(at.plus(released.edited.since(released.original)))
        } else {
            None
        }
    }

    fn last_emitted(&self) -> Option<u8> {
        let sent = self.emitted.len_since(self.una.edited);
        match (sent.checked_sub(1), &self.work) {
            (Some(at), Some(work)) => work.out().get(at).copied().or(self.last),
            _ => self.last,
        }
    }
}

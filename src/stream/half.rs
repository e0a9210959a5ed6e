//! One direction of an edited TCP stream: its state, and how the sender's segments are taken in.

mod acks;
mod emit;
mod numbers;

use super::edits::{Edit, Edits, Point, Round};
use super::seq::Seq;
pub use numbers::Reset;

/// Limits on the buffers of one direction, in bytes unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferLimits {
    /// Bytes that wait for the rest of an address.
    pub held: usize,
    /// Bytes sent on that the receiver hasn't acknowledged.
    pub unacked: usize,
    /// Edits that the receiver hasn't acknowledged. From half of it on, further bytes wait at their
    /// sender.
    pub edits: usize,
    /// Bytes that arrived out of order.
    pub ahead: usize,
}

impl Default for BufferLimits {
    fn default() -> Self {
        Self {
            held: 4096,
            unacked: 64 * 1024,
            edits: 1024,
            ahead: 16 * 1024,
        }
    }
}

/// What became of a segment's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Nothing that wasn't there before (a retransmission, or no data).
    Old,
    /// New bytes are pending: see [`Half::pending`].
    New,
    /// Bytes before it are missing. It was kept, or dropped if there was no room. The packet must
    /// not go on.
    Gap,
    /// The receiver has bytes before it that were never seen here, so the stream can't be followed
    /// any more. The caller ends the inspection of the flow.
    Missed,
    /// The stream isn't inspected any more.
    Opaque,
}

/// What a packet must carry on its way to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// Its own payload, under this sequence number.
    Own(Seq),
    /// `len` bytes of the edited stream from `seq` on (see [`Half::edited`]). Then, if there is a
    /// `tail`, its own payload from there on. FIN only if `fin`.
    Stream {
        /// Sequence number in edited space.
        seq: Seq,
        /// How many bytes of the edited stream.
        len: usize,
        /// Where in the packet's own payload to go on.
        tail: Option<usize>,
        /// Whether the FIN goes with it.
        fin: bool,
    },
    /// There is nothing new to carry. The last byte goes again, if any was ever sent, so that the
    /// receiver acknowledges at once.
    Probe {
        /// Sequence number in edited space.
        seq: Seq,
        /// The byte.
        byte: Option<u8>,
    },
}

/// One direction of a TCP stream: what its sender sent, what its receiver gets, and how the two
/// are numbered.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Half {
    /// The first original byte that hasn't been taken in.
    next: Seq,
    /// Everything before was acknowledged by the receiver.
    una: Point,
    /// The highest acknowledgement itself, in edited space: `una` stays at the start of an edit
    /// that was acknowledged in part.
    acked: Seq,
    /// The end of the receiver's window, in edited space.
    edge: Seq,
    /// The first byte of the edited stream that was never sent on. Bytes that pass uninspected
    /// behind the edits don't move it.
    emitted: Seq,
    /// The end of all that the receiver may have, in edited space. That is what was sent on (FIN
    /// and uninspected bytes included), and what the receiver acknowledged though it was never seen
    /// here. The number that the receiver expects lies between `acked` and this.
    sent: Seq,
    /// Original bytes before this one were acknowledged to the sender, whether the receiver has
    /// them or not. Matters while it is after `una`.
    guaranteed: Seq,
    /// Where the sender's FIN is: see [`Half::fin`].
    fin: Fin,
    /// The FIN went on to the receiver.
    fin_sent: bool,
    /// Inspection ended at `next`. What comes after passes with its numbers shifted by the sum of
    /// the edits.
    opaque: bool,
    /// The last byte that the receiver acknowledged, for probes.
    last: Option<u8>,
    /// The size of the sender's largest packet with data, in bytes of IP, since one may have been
    /// lost for its size.
    largest: u16,
    /// The receiver has sent something since data was last sent on.
    heard: bool,
    /// Present only while something is in flight: an idle direction needs no buffers.
    work: Option<Box<Work>>,
}

/// Where the sender's FIN is. It ends the stream, so the next byte tells where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum Fin {
    /// It hasn't come, or something before it hasn't.
    Unseen,
    /// At the next byte.
    Here,
    /// Just before the next byte: the receiver has acknowledged it.
    Acknowledged,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Work {
    /// The edited stream from `una` on, `released` bytes long. Behind it, original bytes that may
    /// not go on yet, up to `next`.
    buffer: Vec<u8>,
    released: usize,
    /// The edits in it.
    edits: Edits,
    /// Segments that arrived before the bytes in front of them.
    ahead: Vec<(Seq, Vec<u8>)>,
    /// Something in the buffer was replaced by text of the same length.
    overwritten: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.edits.is_empty() && self.ahead.is_empty()
    }

    fn out(&self) -> &[u8] {
        self.buffer.get(..self.released).unwrap_or_default()
    }

    fn held(&self) -> &[u8] {
        self.buffer.get(self.released..).unwrap_or_default()
    }
}

impl Half {
    /// A direction whose SYN had the sequence number `isn`.
    #[must_use]
    pub fn new(isn: Seq) -> Self {
        let first = isn.plus(1);
        Self {
            next: first,
            una: Point {
                original: first,
                edited: first,
            },
            acked: first,
            edge: first,
            emitted: first,
            sent: first,
            guaranteed: first,
            fin: Fin::Unseen,
            fin_sent: false,
            opaque: false,
            last: None,
            largest: 0,
            heard: false,
            work: None,
        }
    }

    /// A direction that is under way: everything before `next` was sent and received under the same
    /// numbers.
    #[must_use]
    pub fn joined(next: Seq) -> Self {
        let mut half = Self::new(next.plus(u32::MAX));
        // What the receiver offers isn't known yet.
        half.offered(u16::MAX);
        half
    }

    /// Whether somebody else could go on with this direction who knows nothing of it: both ends have
    /// the same numbers, whatever is in flight, and no byte that waits here was acknowledged.
    #[must_use]
    pub fn is_even(&self) -> bool {
        self.una.original == self.una.edited
            && !self.guaranteed.after(self.una.original)
            && self.work.as_ref().is_none_or(|work| work.edits.is_empty())
    }

    /// Whether what was read from a record can be a direction of a stream.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let taken_in = |work: &Work| {
            let released = work.edits.original_len(work.released)?;
            let held = work.buffer.len().checked_sub(work.released)?;
            Some(self.una.original.plus_len(released).plus_len(held))
        };
        let mut work = self.work.iter();
        work.all(|work| taken_in(work) == Some(self.next))
    }

    // ---- the sender's segments -------------------------------------------------------------

    /// Takes in a segment's data (`fin`: it carries FIN). New bytes are appended to
    /// [`Half::pending`].
    pub fn take_in(
        &mut self,
        seq: Seq,
        payload: &[u8],
        fin: bool,
        limits: &BufferLimits,
    ) -> Intake {
        let end = seq.plus_len(payload.len());
        if self.opaque {
            return Intake::Opaque;
        }
        if payload.is_empty() && !fin {
            return Intake::Old;
        }
        if seq.after(self.next) {
            if self.went_round(seq) {
                return Intake::Missed;
            }
            if self.fin().is_none() {
                self.keep_ahead(seq, payload, limits);
            }
            return Intake::Gap;
        }
        if self.fin().is_some() {
            return Intake::Old;
        }
        let fresh = payload.get(self.next.len_since(seq)..).unwrap_or_default();
        if !fresh.is_empty() {
            self.append(fresh);
        }
        if fin && end == self.next {
            self.fin = Fin::Here;
            if let Some(work) = self.work.as_mut() {
                work.ahead = Vec::new();
            }
            self.tidy();
            return Intake::New;
        }
        if fresh.is_empty() {
            return Intake::Old;
        }
        self.append_ahead();
        Intake::New
    }

    /// If this segment's data is more than may be in flight: how many of its bytes were taken in
    /// before, and may go on again. `None`: there is room. Only half of the [`BufferLimits`] is
    /// used here; the rest is for segments that arrived out of order, and for edits that make the
    /// text longer.
    #[must_use]
    pub fn known_if_full(&self, seq: Seq, len: usize, limits: &BufferLimits) -> Option<usize> {
        let end = seq.plus_len(len);
        let work = self.work.as_ref()?;
        if self.opaque || len == 0 || !end.after(self.next) {
            return None;
        }
        let fresh = len.min(end.len_since(self.next));
        let much = work.buffer.len().saturating_add(fresh) > limits.unacked / 2;
        let many = work.edits.len() > limits.edits / 2;
        (work.released > 0 && (much || many)).then(|| len.saturating_sub(fresh))
    }

    /// Whether all that may go on was sent on once.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.emitted == self.released().edited
    }

    /// Whether the bytes between `next` and `seq` bypassed us and reached the receiver (a full
    /// queue that fails open lets packets pass).
    fn went_round(&self, seq: Seq) -> bool {
        let released = self.released();
        self.sent.after(self.emitted)
            && self.emitted == released.edited
            && self.pending().is_empty()
            && self.fin().is_none()
            && self.sent.since(released.edited) >= seq.since(released.original)
    }

    fn append(&mut self, bytes: &[u8]) {
        self.work
            .get_or_insert_default()
            .buffer
            .extend_from_slice(bytes);
        self.next = self.next.plus_len(bytes.len());
    }

    fn keep_ahead(&mut self, seq: Seq, payload: &[u8], limits: &BufferLimits) {
        let room = limits.ahead;
        if payload.is_empty() || seq.plus_len(payload.len()).len_since(self.next) > room {
            return;
        }
        let ahead = &mut self.work.get_or_insert_default().ahead;
        let kept: usize = ahead.iter().map(|(_, bytes)| bytes.len()).sum();
        let known = ahead
            .iter()
            .any(|(start, bytes)| *start == seq && bytes.len() >= payload.len());
        if !known && kept.saturating_add(payload.len()) <= room && ahead.len() < 64 {
            ahead.push((seq, payload.to_vec()));
        }
    }

    fn append_ahead(&mut self) {
        loop {
            let next = self.next;
            let Some(work) = self.work.as_mut() else {
                return;
            };
            work.ahead
                .retain(|(start, bytes)| start.plus_len(bytes.len()).after(next));
            let Some(at) = work.ahead.iter().position(|(start, _)| !start.after(next)) else {
                return;
            };
            let (start, bytes) = work.ahead.swap_remove(at);
            let fresh = bytes
                .get(next.len_since(start)..)
                .unwrap_or_default()
                .to_vec();
            self.append(&fresh);
        }
    }

    /// Frees the buffers when nothing is in them.
    fn tidy(&mut self) {
        if self.work.as_ref().is_some_and(|work| work.is_empty()) {
            self.work = None;
        }
    }

    /// Bytes that were taken in and not yet passed or replaced, in stream order.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.work.as_ref().map_or(&[], |work| work.held())
    }

    /// Lets the first `n` pending bytes go on as they are.
    pub fn pass(&mut self, n: usize) {
        if let Some(work) = self.work.as_mut() {
            work.released = work.released.saturating_add(n).min(work.buffer.len());
        }
    }

    /// Replaces the first `len` pending bytes by `with` (both at least one byte).
    pub fn replace(&mut self, len: usize, with: &[u8]) {
        let start = self.released().original;
        let Some(work) = self.work.as_mut() else {
            return;
        };
        let len = len.min(work.held().len());
        let at = work.released..work.released.saturating_add(len);
        work.buffer.splice(at, with.iter().copied());
        work.released = work.released.saturating_add(with.len());
        if len == with.len() {
            work.overwritten = true;
        } else {
            work.edits.push(Edit {
                start,
                old_len: len as u32,
                new_len: with.len() as u32,
            });
        }
    }

    /// Ends inspection: what is pending goes on as it is, and so does all that follows.
    pub fn end_inspection(&mut self) {
        self.opaque = true;
        if let Some(work) = self.work.as_mut() {
            work.released = work.buffer.len();
            work.ahead = Vec::new();
        }
        self.tidy();
    }

    /// Resumes inspection behind `sent`: uninspected bytes in flight, the first of them at `from`,
    /// which is the receiver's next. Returns false while edits from before are in flight, since
    /// then it isn't possible.
    #[must_use]
    pub fn resume(&mut self, from: Seq, sent: &[u8]) -> bool {
        if !self.is_settled() || from.before(self.next) {
            return false;
        }
        let edited = self.shifted(from);
        self.opaque = false;
        self.next = from.plus_len(sent.len());
        self.una = Point {
            original: from,
            edited,
        };
        self.acked = edited;
        self.edge = self.edge.max(edited);
        self.emitted = edited.plus_len(sent.len());
        self.sent = self.emitted;
        self.guaranteed = from;
        self.fin = Fin::Unseen;
        self.fin_sent = false;
        self.last = None;
        self.work = (!sent.is_empty()).then(|| {
            Box::new(Work {
                buffer: sent.to_vec(),
                released: sent.len(),
                ..Work::default()
            })
        });
        true
    }

    /// The number of the first byte that waits, or of the next one to come.
    #[must_use]
    pub fn pending_at(&self) -> Seq {
        self.released().original
    }

    /// The number of the next byte to come.
    #[must_use]
    pub fn expected(&self) -> Seq {
        self.next
    }

    /// The receiver's acknowledgement in the sender's numbers. `None` while the stream is
    /// inspected, or edits are in flight.
    #[must_use]
    pub fn plain_ack(&self, ack: Seq) -> Option<Seq> {
        self.is_settled()
            .then(|| ack.plus(self.una.original.since(self.una.edited)))
    }

    /// Whether inspection ended.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.opaque
    }

    /// By how much the sequence number of the next byte differs on the two sides: how many more bytes its
    /// receiver has got than its sender has sent.
    #[must_use]
    pub fn delta(&self) -> i32 {
        let next = self.released();
        next.edited.since(next.original).cast_signed()
    }

    /// Whether packets of this direction and acknowledgements of it need no change at all, now and
    /// as long as nothing is edited.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.una.original == self.una.edited && self.work.is_none()
    }

    /// Whether what is in flight differs from what its sender sent.
    #[must_use]
    pub fn is_edited(&self) -> bool {
        self.work
            .as_ref()
            .is_some_and(|work| work.overwritten || !work.edits.is_empty())
    }

    /// Bytes kept in buffers.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.work.as_ref().map_or(0, |work| {
            let ahead: usize = work.ahead.iter().map(|(_, bytes)| bytes.len()).sum();
            work.buffer.len().saturating_add(ahead)
        })
    }

    /// Whether a segment with FIN that starts at `seq` and has `len` bytes ends the stream.
    #[must_use]
    pub fn ends_at(&self, seq: Seq, len: usize) -> bool {
        let end = seq.plus_len(len);
        self.fin() == Some(end) || (self.opaque && (self.is_settled() || !end.before(self.next)))
    }

    // ---- positions -------------------------------------------------------------------------

    /// The number of the sender's FIN, once everything before it was taken in.
    fn fin(&self) -> Option<Seq> {
        match self.fin {
            Fin::Unseen => None,
            Fin::Here => Some(self.next),
            Fin::Acknowledged => Some(self.next.plus(u32::MAX)),
        }
    }

    /// Whether all that is left to do is to shift numbers by the sum of the edits.
    fn is_settled(&self) -> bool {
        self.opaque && self.work.is_none() && self.una.original == self.next
    }

    /// A number from before the edits in flight, in edited space.
    fn shifted(&self, seq: Seq) -> Seq {
        seq.plus(self.una.edited.since(self.una.original))
    }

    /// The end of what may go on.
    fn released(&self) -> Point {
        match &self.work {
            None => Point {
                original: self.next,
                edited: self.una.edited.plus(self.next.since(self.una.original)),
            },
            Some(work) => Point {
                original: self.next.plus((work.held().len() as u32).wrapping_neg()),
                edited: self.una.edited.plus_len(work.released),
            },
        }
    }

    fn map(&self, at: Seq, round: Round) -> Point {
        self.work.as_ref().map_or(
            Point {
                original: at,
                edited: self.una.edited.plus(at.since(self.una.original)),
            },
            |work| work.edits.at_original(self.una, at, round),
        )
    }
}

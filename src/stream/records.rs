//! TLS record framing: finds where a stream returns to clear text (RFC 4217 §12.3, `CCC`). Nothing
//! is held for that.
//!
//! Records have a header in the clear (RFC 8446 §5.1): type, version, length. As long as every byte
//! is seen in order, the end of each record is known. A byte there that begins no record is clear
//! text. After a gap, or a header that is none, the records can't be followed any more.

use super::seq::Seq;

/// The record types of TLS: change of cipher, alert, handshake, data, heartbeat.
const TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
/// The longest body, in bytes (RFC 5246 §6.2.3; that of TLS 1.3 is shorter).
const MAX_BODY: u16 = (1 << 14) + 2048;
/// How many unacknowledged bytes are kept. They are needed if clear text begins after them.
const MAX_TAIL: usize = 2048;

/// One direction of a connection under TLS.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Records {
    /// The first byte that hasn't come.
    next: Seq,
    place: RecordPart,
    /// Which types have been seen. A TLS session has both before it returns to clear text.
    handshake: bool,
    data: bool,
    /// What the receiver hasn't acknowledged, up to `next`; `None`: too much.
    tail: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum RecordPart {
    /// `have` bytes of a header have come; `high` is the first byte of the length.
    Header {
        have: u8,
        high: u8,
    },
    /// This many bytes of a record are still to come.
    Body(u16),
    Lost,
}

const BOUNDARY: RecordPart = RecordPart::Header { have: 0, high: 0 };

impl Records {
    /// Whether a record may begin with this byte.
    #[must_use]
    pub fn may_begin_with(byte: u8) -> bool {
        TYPES.contains(&byte)
    }

    /// A direction whose first record begins at `start`.
    #[must_use]
    pub fn new(start: Seq) -> Self {
        Self {
            next: start,
            place: BOUNDARY,
            handshake: false,
            data: false,
            tail: Some(Vec::new()),
        }
    }

    /// Follows a segment's data. If clear text begins in it, returns where. Then the segment isn't
    /// part of [`unacknowledged`](Self::unacknowledged).
    pub fn follow(&mut self, seq: Seq, payload: &[u8]) -> Option<Seq> {
        if self.is_lost() || payload.is_empty() {
            return None;
        }
        if seq.after(self.next) {
            self.place = RecordPart::Lost;
            self.tail = None;
            return None;
        }
        let fresh = payload.get(self.next.len_since(seq)..).unwrap_or_default();
        let mut at = 0;
        while let Some(byte) = fresh.get(at) {
            self.place = match self.place {
                RecordPart::Header { have: 0, .. } if !Self::may_begin_with(*byte) => {
                    if self.handshake && self.data {
                        return Some(self.next.plus_len(at));
                    }
                    RecordPart::Lost
                }
                RecordPart::Header { have: 0, .. } => {
                    self.handshake |= *byte == HANDSHAKE;
                    self.data |= *byte == DATA;
                    RecordPart::Header { have: 1, high: 0 }
                }
                RecordPart::Header { have: 1, .. } if *byte != 3 => RecordPart::Lost,
                RecordPart::Header { have: 3, .. } => RecordPart::Header {
                    have: 4,
                    high: *byte,
                },
                RecordPart::Header { have: 4, high } => match u16::from_be_bytes([high, *byte]) {
                    0 => BOUNDARY,
                    length if length > MAX_BODY => RecordPart::Lost,
                    length => RecordPart::Body(length),
                },
                RecordPart::Header { have, high } => RecordPart::Header {
                    have: have.saturating_add(1),
                    high,
                },
                RecordPart::Body(left) => {
                    let rest = fresh.len().saturating_sub(at).min(usize::from(left));
                    let left = left.saturating_sub(u16::try_from(rest).unwrap_or(left));
                    at = at.saturating_add(rest.saturating_sub(1));
                    if left == 0 {
                        BOUNDARY
                    } else {
                        RecordPart::Body(left)
                    }
                }
                RecordPart::Lost => break,
            };
            at = at.saturating_add(1);
        }
        self.next = self.next.plus_len(fresh.len());
        self.tail = self
            .tail
            .take()
            .filter(|tail| tail.len().saturating_add(fresh.len()) <= MAX_TAIL && !self.is_lost());
        if let Some(tail) = self.tail.as_mut() {
            tail.extend_from_slice(fresh);
        }
        None
    }

    /// The receiver has everything before `ack` (in the numbers of the sender).
    pub fn acknowledged(&mut self, ack: Seq) {
        // A FIN counts as one more.
        if ack.after(self.next.plus(1)) || self.is_lost() {
            return;
        }
        let ack = ack.min(self.next);
        match self.tail.as_mut() {
            Some(tail) => {
                let left = self.next.len_since(ack);
                let gone = tail.len().saturating_sub(left);
                tail.drain(..gone);
                if tail.is_empty() {
                    *tail = Vec::new();
                }
            }
            None if ack == self.next => self.tail = Some(Vec::new()),
            None => {}
        }
    }

    /// Bytes kept.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.tail.as_ref().map_or(0, Vec::len)
    }

    /// Whether the records can't be followed any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.place == RecordPart::Lost
    }

    /// The bytes that have come and that the receiver hasn't acknowledged, and where they begin;
    /// `None` if they are too many.
    #[must_use]
    pub fn unacknowledged(&self) -> Option<(Seq, &[u8])> {
        let tail = self.tail.as_deref()?;
        let start = self.next.plus((tail.len() as u32).wrapping_neg());
        Some((start, tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3][..], &length, body].concat()
    }

    fn session() -> Vec<u8> {
        [
            record(22, &[1; 300]),
            record(20, &[1]),
            record(23, b"200 encrypted"),
            record(23, b""),
            record(21, &[9; 19]),
        ]
        .concat()
    }

    #[test]
    fn clear_text_behind_the_last_record_is_found_in_any_cut() {
        let tls = session();
        let all = [&tls[..], b"PASV\r\n"].concat();
        let start = Seq(u32::MAX - 100);
        for cut in 1..all.len() {
            let mut records = Records::new(start);
            let (first, second) = all.split_at(cut);
            let found = [
                records.follow(start, first),
                // A retransmission says nothing new.
                records.follow(start, &first[..first.len().min(tls.len())]),
                records.follow(start.plus_len(cut), second),
            ];
            let at = start.plus_len(tls.len());
            assert!(found.contains(&Some(at)), "cut at {cut}: {found:?}");
        }
    }

    #[test]
    fn what_never_was_tls_is_not_followed() {
        for start in [
            &b"USER lab\r\n"[..],
            &record(22, b"hello"),
            &record(23, b"data"),
            &[22, 2, 0, 0, 0],
            &[22, 3, 1, 0xff, 0xff],
        ] {
            let mut records = Records::new(Seq(7));
            let all = [start, b"PASV\r\n"].concat();
            assert_eq!(records.follow(Seq(7), &all), None, "{start:?}");
            assert!(records.is_lost());
            assert_eq!(
                records.follow(Seq(7).plus_len(all.len()), b"PASV\r\n"),
                None
            );
        }
    }

    #[test]
    fn a_gap_loses_the_thread() {
        let mut records = Records::new(Seq(0));
        assert_eq!(records.follow(Seq(1), b"x"), None);
        assert!(records.is_lost() && records.unacknowledged().is_none());
    }

    #[test]
    fn what_is_unacknowledged_is_remembered_up_to_a_limit() {
        let mut records = Records::new(Seq(0));
        records.follow(Seq(0), &record(22, &[0; 95]));
        records.acknowledged(Seq(90));
        assert_eq!(records.unacknowledged(), Some((Seq(90), &[0; 10][..])));
        records.follow(Seq(100), &record(23, &[0; 3000]));
        assert_eq!(records.unacknowledged(), None);
        records.acknowledged(Seq(200));
        assert_eq!(records.unacknowledged(), None);
        records.acknowledged(Seq(3105));
        assert_eq!(records.unacknowledged(), Some((Seq(3105), &[][..])));
        records.acknowledged(Seq(9999));
        records.follow(Seq(3105), &record(23, b"bye"));
        records.acknowledged(Seq(3105 + 9));
        assert_eq!(records.buffered(), 0, "with the FIN");
        records = Records::new(Seq(3105));
        assert_eq!(records.unacknowledged(), Some((Seq(3105), &[][..])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(pieces in prop::collection::vec((0u32..400, prop::collection::vec(any::<u8>(), 0..400)), 0..20)) {
            let mut records = Records::new(Seq(0));
            for (seq, bytes) in pieces {
                records.follow(Seq(seq), &bytes);
                records.acknowledged(Seq(seq));
                prop_assert!(records.unacknowledged().is_none_or(|(_, tail)| tail.len() <= MAX_TAIL));
            }
        }
    }
}

//! Sessions under TLS: finds where they go back to clear text (`CCC`, RFC 4217 §12.3), and resumes
//! inspection there.
//!
//! The command and its reply can't be read. But both directions consist of TLS records from the
//! first byte on, and the first byte behind the last record is no record. Inspection resumes there,
//! in each direction. If the records can't be followed (a segment that is never seen is enough),
//! the session stays uninspected. That is reported when clear text shows.

use super::{Context, Flow, Unread};
use crate::engine::Side;
use crate::engine::event::Event;
use crate::ftp::session::Peer;
use crate::stream::{Half, Records, Seq};
use crate::wire::{Flags, Segment};

/// The records of both directions, by [`Side`]; `None` where the stream is inspected again.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(in crate::engine) struct TlsRecords {
    records: [Option<Records>; 2],
}

impl Flow {
    /// TLS begins. In `side`'s stream, the server's, it begins behind the pending line, or with the
    /// pending bytes if they are a record already. In the client's it begins with the next byte. To
    /// be called while both are inspected.
    pub(in crate::engine) fn follow_records(&mut self, side: Side) {
        let [server, client] = self.both(side);
        let pending = server.pending();
        let line = pending.iter().position(|b| *b == b'\n');
        let start = match (pending.first(), line) {
            (Some(byte), _) if Records::may_begin_with(*byte) => 0,
            (_, None) => 0,
            (_, Some(end)) => end.saturating_add(1),
        };
        let at = server.pending_at().plus_len(start);
        let mut records = Records::new(at);
        records.follow(at, pending.get(start..).unwrap_or_default());
        let both = [Some(records), Some(Records::new(client.expected()))];
        let [server, client] = both;
        self.tls = Some(Box::new(TlsRecords {
            records: match side {
                Side::Egress => [server, client],
                Side::Ingress => [client, server],
            },
        }));
    }

    /// Follows a segment's records. If clear text begins in it, the direction is inspected again.
    /// Returns how many bytes come before that, and pass uninspected.
    pub(in crate::engine) fn next_records(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> usize {
        let Some(mut tls) = self.tls.take() else {
            return 0;
        };
        let other = side.opposite();
        let [forward, reverse] = self.both(side);
        if segment.flags().has(Flags::ACK)
            && let Some(ack) = reverse.plain_ack(Seq(segment.ack()))
            && let Some(records) = tls.of(other)
        {
            records.acknowledged(ack);
        }
        let (seq, payload) = (Seq(segment.seq()), segment.payload());
        let Some(records) = tls.of(side) else {
            // This direction is inspected again. If the other one can't be followed, that is of no
            // use.
            let lost = tls.of(other).is_some_and(|records| records.is_lost());
            if lost {
                self.end_inspection(Unread::TLS, cx);
            } else if tls.records.iter().any(Option::is_some) {
                self.tls = Some(tls);
            }
            return 0;
        };
        if !forward.is_opaque() {
            return 0;
        }
        let begins = records.follow(seq, payload);
        let lost = tls.records.iter().flatten().any(Records::is_lost);
        let peer = self.peer(side);
        let first = begins.map_or(payload, |at| {
            payload.get(at.len_since(seq)..).unwrap_or_default()
        });
        let shows = match begins {
            Some(_) => is_text(peer, first),
            None => lost && peer == Peer::Client && is_line(payload),
        };
        if !shows {
            // Neither a record nor text.
            if begins.is_none() {
                self.tls = Some(tls);
            }
            return 0;
        }
        let forward = self.forward(side);
        let unread = begins
            .filter(|_| !lost)
            .and_then(|at| resume(forward, tls.of(side)?, at));
        let was_first = tls.records.iter().all(Option::is_some);
        if was_first || unread.is_none() {
            cx.gateway.event(Event::ClearAgain {
                session: self.id,
                followed: unread.is_some(),
            });
        }
        let Some(unread) = unread else {
            if !was_first {
                self.end_inspection(Unread::TLS, cx);
            }
            return 0;
        };
        if was_first {
            self.session.clear_again();
            cx.stats.clear_again = cx.stats.clear_again.saturating_add(1);
        }
        tls.forget(side);
        if tls.records.iter().any(Option::is_some) {
            self.tls = Some(tls);
        }
        unread
    }
}

impl TlsRecords {
    /// Bytes in its buffers.
    pub(in crate::engine) fn buffered(&self) -> usize {
        let records = self.records.iter().flatten();
        records.map(Records::buffered).sum()
    }

    fn of(&mut self, side: Side) -> Option<&mut Records> {
        self.records.get_mut(side.index())?.as_mut()
    }

    fn forget(&mut self, side: Side) {
        if let Some(records) = self.records.get_mut(side.index()) {
            *records = None;
        }
    }
}

/// Resumes inspection at `at`. Returns how many bytes before that aren't in `records`.
fn resume(half: &mut Half, records: &Records, at: Seq) -> Option<usize> {
    let (from, sent) = records.unacknowledged()?;
    half.resume(from, sent)
        .then(|| at.len_since(from.plus_len(sent.len())))
}

/// Whether clear text of FTP may begin so: a verb (perhaps with Telnet's IAC before it), a code.
fn is_text(peer: Peer, start: &[u8]) -> bool {
    match (peer, start.first()) {
        (Peer::Client, Some(byte)) => byte.is_ascii_alphabetic() || *byte == 255,
        (Peer::Server, Some(byte)) => (b'1'..=b'6').contains(byte),
        (_, None) => false,
    }
}

/// Whether a segment is a command line, as encrypted bytes never are.
fn is_line(payload: &[u8]) -> bool {
    payload.len() >= 5
        && payload.ends_with(b"\r\n")
        && payload.iter().take(3).all(u8::is_ascii_alphabetic)
        && payload
            .iter()
            .all(|b| (b' '..127).contains(b) || matches!(b, b'\r' | b'\n'))
}

//! A TCP endpoint without timers or algorithms: it sends what it is told to, and asserts whatever a
//! receiver may rely on.

use std::collections::{BTreeMap, BTreeSet};

use crate::packet::{ACK, FIN, PSH, RST, SYN, Seg};

/// One TCP endpoint, seen as a sender and as a receiver. Offsets count from the byte behind the
/// SYN, in its own numbers.
pub struct End {
    /// Its initial sequence number.
    pub isn: u32,
    /// All that it may have sent by now.
    pub text: Vec<u8>,
    /// Whether a FIN is behind the text.
    pub fin: bool,
    /// Behind the last byte that it ever sent (the FIN counts).
    pub sent: u32,
    /// What it knows to be delivered.
    pub una: u32,
    /// Its peer's initial sequence number.
    pub peer_isn: u32,
    /// What it has read.
    pub got: Vec<u8>,
    /// What came in behind a gap.
    ahead: BTreeMap<u32, u8>,
    /// Where the peer's FIN came in.
    pub fin_at: Option<u32>,
    /// What it must read.
    pub due: Vec<u8>,
    /// Whether the peer may have closed.
    pub peer_fin: bool,
    /// What it offers.
    pub window: u32,
    /// What it offers when it isn't short of room.
    pub wide: u32,
    /// The furthest end of its window that it told.
    pub edge: u32,
    /// What it was told is delivered beyond `una` (RFC 2018): it doesn't send that again.
    sacked: BTreeSet<u32>,
}

impl End {
    /// One whose SYN and whose peer's SYN have arrived; `wide`: what it offers.
    pub fn new(isn: u32, peer_isn: u32, wide: u32) -> Self {
        Self {
            isn,
            text: Vec::new(),
            fin: false,
            sent: 0,
            una: 0,
            peer_isn,
            got: Vec::new(),
            ahead: BTreeMap::new(),
            fin_at: None,
            due: Vec::new(),
            peer_fin: false,
            window: wide,
            wide,
            edge: 0,
            sacked: BTreeSet::new(),
        }
    }

    /// Behind all that it may have sent, FIN included.
    pub fn end(&self) -> u32 {
        self.text.len() as u32 + u32::from(self.fin)
    }

    /// What it has read without a gap, FIN included.
    pub fn have(&self) -> u32 {
        let n = self.got.len() as u32;
        n + u32::from(self.fin_at == Some(n))
    }

    /// Sends so many bytes from there on, and acknowledges all that it has.
    pub fn segment(&mut self, from: u32, len: u32) -> Seg {
        let text_end = self.text.len() as u32;
        let (from, to) = (
            from.min(self.end()),
            from.saturating_add(len).min(self.end()),
        );
        let fin = self.fin && to == self.end() && from <= text_end && to > from;
        let payload = &self.text[from.min(text_end) as usize..to.min(text_end) as usize];
        self.sent = self.sent.max(to);
        self.edge = self.edge.max(self.have() + self.window);
        Seg {
            seq: self.isn.wrapping_add(1).wrapping_add(from),
            ack: self.peer_isn.wrapping_add(1).wrapping_add(self.have()),
            flags: ACK | if payload.is_empty() { 0 } else { PSH } | if fin { FIN } else { 0 },
            window: self.window as u16,
            urgent: 0,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// The first of what it must send again, up to what it knows to be delivered.
    pub fn missing(&mut self, most: u32) -> Seg {
        let mut from = self.una;
        while self.sacked.contains(&from) {
            from += 1;
        }
        let len = (0..most).take_while(|n| !self.sacked.contains(&(from + n)));
        let len = len.count() as u32;
        self.segment(from, len)
    }

    /// The option that tells what it has beyond a gap (RFC 2018), if anything.
    pub fn sack(&self) -> Vec<u8> {
        let mut blocks: Vec<(u32, u32)> = Vec::new();
        for at in self.ahead.keys() {
            match blocks.last_mut() {
                Some((_, right)) if *right == *at => *right += 1,
                _ => blocks.push((*at, at + 1)),
            }
        }
        let mut options = Vec::new();
        if !blocks.is_empty() {
            blocks.truncate(3);
            options.extend([1, 1, 5, 2 + 8 * blocks.len() as u8]);
            for (left, right) in blocks {
                for edge in [left, right] {
                    let edge = self.peer_isn.wrapping_add(1).wrapping_add(edge);
                    options.extend(edge.to_be_bytes());
                }
            }
        }
        options
    }

    /// Takes a segment as a receiver does, and checks it against what it must read.
    ///
    /// # Panics
    /// If it acknowledges what was never sent, or says what the peer didn't.
    pub fn take(&mut self, seg: &Seg) {
        assert_eq!(seg.flags & (SYN | RST), 0);
        let acked = seg.ack.wrapping_sub(self.isn.wrapping_add(1));
        assert!(
            acked <= self.sent || acked >= 1 << 31,
            "{acked} acknowledged of {} sent",
            self.sent
        );
        if acked < 1 << 31 {
            self.una = self.una.max(acked);
        }
        if let [1, 1, 5, _, blocks @ ..] = seg.options.as_slice() {
            for block in blocks.chunks_exact(8) {
                let edge = |at: usize| {
                    let edge = [block[at], block[at + 1], block[at + 2], block[at + 3]];
                    u32::from_be_bytes(edge).wrapping_sub(self.isn.wrapping_add(1))
                };
                let (left, right) = (edge(0), edge(4));
                if right < 1 << 31 && left >= self.una {
                    assert!(
                        left < right && right <= self.sent,
                        "SACK of what wasn't sent"
                    );
                    self.sacked.extend(left..right);
                }
            }
        }
        let start = seg.seq.wrapping_sub(self.peer_isn.wrapping_add(1));
        let most = self.due.len() as u32 + u32::from(self.peer_fin);
        assert!(start <= most || start >= 1 << 31, "{start} of {most}");
        let have = self.have();
        let mut at = start;
        for byte in &seg.payload {
            // Offsets beyond 2³¹ lie before the beginning (keep-alives).
            if at < 1 << 31 && at >= have && at < have + self.window {
                assert_eq!(
                    self.due.get(at as usize).map(|b| char::from(*b)),
                    Some(char::from(*byte)),
                    "byte {at} of {:?}",
                    String::from_utf8_lossy(&self.due)
                );
                self.ahead.insert(at, *byte);
            }
            at = at.wrapping_add(1);
        }
        while let Some(byte) = self.ahead.remove(&(self.got.len() as u32)) {
            self.got.push(byte);
        }
        if seg.flags & FIN != 0 {
            let at = start.wrapping_add(seg.payload.len() as u32);
            if at < 1 << 31 && at >= have {
                assert_eq!(at as usize, self.due.len(), "a FIN where there is none");
                self.fin_at = Some(at);
            }
        }
    }
}

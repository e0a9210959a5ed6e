//! The lines of one direction of a stream, put together from segments.

use std::collections::BTreeMap;

/// The longest part of a line that is kept, in bytes.
const MAX_LINE: usize = 2048;
/// The most bytes, and the most segments, that are kept of what came before its turn.
const MAX_AHEAD: usize = 64 << 10;
const MAX_SEGMENTS: usize = 64;

/// A line without its line end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Its text, as far as it is kept.
    pub(super) text: Vec<u8>,
    /// How many bytes of the stream came before it.
    pub(super) at: u64,
    /// How long it is, its line end included.
    pub(super) length: u64,
    /// Its beginning is missing: nobody knows what it is.
    pub(super) headless: bool,
}

/// One direction of a stream, as far as it was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    /// The number of the next byte; `None`: nothing was seen yet.
    next: Option<u32>,
    /// How many bytes there were.
    count: u64,
    line: Line,
    /// Segments by their distance from the first byte of the stream.
    ahead: BTreeMap<u64, Vec<u8>>,
    kept: usize,
    /// Bytes that were missing.
    missing: u64,
    /// What comes from here on isn't text.
    mute: bool,
}

impl Lines {
    /// A stream whose first byte has this number.
    pub(super) fn begin(first: u32) -> Self {
        Self {
            next: Some(first),
            ..Self::default()
        }
    }

    /// A stream that is under way: it begins with its next segment, in the middle of a line.
    pub(super) fn joined() -> Self {
        Self {
            line: Line {
                headless: true,
                ..Line::default()
            },
            ..Self::default()
        }
    }

    /// Takes a segment's data. Returns how many bytes of it are new.
    pub(super) fn push(&mut self, seq: u32, data: &[u8], out: &mut Vec<Line>) -> usize {
        if data.is_empty() {
            return 0;
        }
        let next = *self.next.get_or_insert(seq);
        let distance = seq.wrapping_sub(next);
        if distance == 0 || distance > u32::MAX / 2 {
            let old = usize::try_from(next.wrapping_sub(seq)).unwrap_or(usize::MAX);
            let fresh = data.get(old..).unwrap_or_default();
            self.take(fresh, out);
            if !fresh.is_empty() {
                self.take_ahead(out);
            }
            return fresh.len();
        }
        let at = self.count.saturating_add(distance.into());
        if self.kept.saturating_add(data.len()) <= MAX_AHEAD
            && self.ahead.len() < MAX_SEGMENTS
            && !self.ahead.contains_key(&at)
        {
            self.kept = self.kept.saturating_add(data.len());
            self.ahead.insert(at, data.to_vec());
        }
        0
    }

    /// The receiver has all before `seq`: what of it wasn't seen never will be. Returns how many bytes
    /// that are.
    pub(super) fn jump(&mut self, seq: u32, out: &mut Vec<Line>) -> u64 {
        let Some(next) = self.next else { return 0 };
        let mut distance = seq.wrapping_sub(next);
        if distance == 0 || distance > u32::MAX / 2 {
            return 0;
        }
        let goal = self.count.saturating_add(distance.into());
        let mut missing = 0;
        while self.count < goal {
            // Up to the next segment that was seen, if there is one before the goal.
            let until = self.ahead.keys().next().copied().unwrap_or(goal).min(goal);
            distance = u32::try_from(until.saturating_sub(self.count)).unwrap_or(u32::MAX);
            missing += u64::from(distance);
            self.count = until.max(self.count);
            self.next = self.next.map(|next| next.wrapping_add(distance));
            self.line = Line {
                at: self.count,
                headless: true,
                ..Line::default()
            };
            self.take_ahead(out);
            if distance == 0 && self.count < goal && self.ahead.is_empty() {
                break;
            }
        }
        self.missing += missing;
        missing
    }

    /// The number of the next byte.
    pub(super) fn next(&self) -> Option<u32> {
        self.next
    }

    /// Whether what comes is no text any more, or is text again.
    pub(super) fn set_mute(&mut self, mute: bool) {
        self.mute = mute;
        self.line = Line {
            at: self.count,
            ..Line::default()
        };
    }

    /// The beginning of the line that has no end yet.
    pub(super) fn begun(&self) -> &[u8] {
        &self.line.text
    }

    /// Takes what was seen of a line that has no end yet.
    pub(super) fn rest(&mut self) -> Option<Line> {
        let line = std::mem::take(&mut self.line);
        (line.length > 0).then_some(line)
    }

    fn take_ahead(&mut self, out: &mut Vec<Line>) {
        while let Some((&at, _)) = self.ahead.first_key_value() {
            if at > self.count {
                return;
            }
            let Some((_, data)) = self.ahead.pop_first() else {
                return;
            };
            self.kept = self.kept.saturating_sub(data.len());
            let old = usize::try_from(self.count - at).unwrap_or(usize::MAX);
            self.take(data.get(old..).unwrap_or_default(), out);
        }
    }

    fn take(&mut self, data: &[u8], out: &mut Vec<Line>) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let wrapping = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.next = self.next.map(|next| next.wrapping_add(wrapping));
        if self.mute {
            self.count = self.count.saturating_add(length);
            self.line.at = self.count;
            return;
        }
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            self.count = self.count.saturating_add(length);
            self.line.length = self.line.length.saturating_add(length);
            let room = MAX_LINE.saturating_sub(self.line.text.len());
            let kept = part.get(..room.min(part.len())).unwrap_or_default();
            self.line.text.extend_from_slice(kept);
            if part.ends_with(b"\n") {
                let next = Line {
                    at: self.count,
                    ..Line::default()
                };
                let mut line = std::mem::replace(&mut self.line, next);
                let end = line.text.trim_ascii_end().len();
                line.text.truncate(end);
                out.push(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<String> {
        let text = |line: &Line| {
            let text = String::from_utf8_lossy(&line.text);
            let head = if line.headless { "…" } else { "" };
            format!("{head}{text}@{}", line.at)
        };
        lines.iter().map(text).collect()
    }

    #[test]
    fn segments_become_lines_however_they_come() {
        let mut lines = Lines::begin(u32::MAX - 2);
        let mut out = Vec::new();
        assert_eq!(lines.push(u32::MAX - 2, b"220 he", &mut out), 6);
        assert_eq!(lines.push(u32::MAX - 2, b"220 he", &mut out), 0, "again");
        assert_eq!(lines.push(6, b"o\r\n33", &mut out), 0, "before its turn");
        assert!(out.is_empty());
        assert_eq!(lines.push(1, b"helllx", &mut out), 4, "with more");
        // What comes in its turn counts, as at the receiver.
        assert_eq!(texts(&out), ["220 helllx@0"]);
        assert_eq!(lines.push(11, b"1 x\r\n", &mut out), 5);
        assert_eq!(texts(&out), ["220 helllx@0", "331 x@12"]);
        assert_eq!((lines.count, lines.next()), (19, Some(16)));
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let mut lines = Lines::begin(0);
        let mut out = Vec::new();
        lines.push(0, b"PASS se", &mut out);
        lines.push(11, b"ret\r\nPASV\r\n", &mut out);
        assert_eq!(lines.jump(22, &mut out), 4);
        assert_eq!(texts(&out), ["…ret@11", "PASV@16"]);
        assert_eq!(lines.jump(22, &mut out), 0);
        assert_eq!(lines.jump(30, &mut out), 8);
        assert_eq!(lines.next(), Some(30));
    }

    #[test]
    fn long_lines_and_silence_cost_little() {
        let mut lines = Lines::begin(0);
        let mut out = Vec::new();
        lines.push(0, &[b'x'; 10_000], &mut out);
        lines.push(10_000, b"\n", &mut out);
        assert_eq!((out[0].text.len(), out[0].length), (MAX_LINE, 10_001));
        lines.set_mute(true);
        lines.push(10_001, b"a\nb\n", &mut out);
        assert_eq!(out.len(), 1);
        lines.set_mute(false);
        lines.push(10_005, b"c\n", &mut out);
        assert_eq!(texts(&out[1..]), ["c@10005"]);
        for n in 0..1000 {
            lines.push(20_000 + n * 1000, &[b'y'; 1000], &mut out);
        }
        assert!(lines.kept <= MAX_AHEAD && lines.ahead.len() <= MAX_SEGMENTS);
    }
}

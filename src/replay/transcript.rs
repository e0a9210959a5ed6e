//! What is told of one connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::words::From;

/// The most that is kept of one connection's transcript, in bytes of text.
pub(super) const MAX_TEXT: usize = 256 << 10;
/// The same once all transcripts together are large.
pub(super) const MAX_TEXT_CROWDED: usize = 4 << 10;
/// When they are.
pub(super) const CROWDED: usize = 64 << 20;
/// What an entry takes besides its text, in bytes.
const ENTRY: usize = 128;
/// How many troubles are named.
const MAX_TROUBLES: usize = 16;

/// Which bytes of a line changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The first of them, counted in its direction's stream, from 0.
    pub(super) at: u64,
    /// How many there were.
    pub(super) old: usize,
    /// How many there are in their place.
    pub(super) new: usize,
}

impl Change {
    /// What differs between two texts; `at`: where they begin.
    pub(super) fn between(at: u64, old: &[u8], new: &[u8]) -> Self {
        let same = |(a, b): &(&u8, &u8)| a == b;
        let before = old.iter().zip(new).take_while(same).count();
        let rest = |text: &[u8]| text.len().saturating_sub(before);
        let after = (old.iter().rev().zip(new.iter().rev()).take_while(same)).count();
        let after = after.min(rest(old)).min(rest(new));
        Self {
            at: at.saturating_add(u64::try_from(before).unwrap_or(u64::MAX)),
            old: rest(old).saturating_sub(after),
            new: rest(new).saturating_sub(after),
        }
    }
}

/// An entry of a transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Somebody said something.
    Line {
        from: From,
        text: String,
        /// What its receiver reads in its place, and which bytes that concerns.
        becomes: Option<(String, Change)>,
        /// How long it waited for the packet with which it went on.
        waited: Duration,
    },
    /// An address was announced, and let through.
    Announced {
        verb: &'static str,
        /// What was written, and what is read.
        old: SocketAddr,
        new: SocketAddr,
        /// Who may connect, and where that leads.
        from: IpAddr,
        land: SocketAddr,
    },
    /// Something happened.
    Note {
        kind: &'static str,
        text: String,
        trouble: bool,
    },
}

/// An entry and when it happened, counted from the connection's first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: Duration,
    pub(super) what: What,
}

/// What is told of one connection.
#[derive(Clone, Debug)]
pub(super) struct Transcript {
    /// The number of its session, if it is one.
    pub(super) session: Option<u64>,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// Since 1970.
    pub(super) began: Duration,
    pub(super) packets: u64,
    pub(super) rewritten: u64,
    pub(super) refused: u64,
    pub(super) entries: Vec<Entry>,
    /// What went wrong.
    pub(super) troubles: Vec<String>,
    /// Part of it was shown before.
    pub(super) continued: bool,
    /// Entries that were left out.
    pub(super) left_out: u64,
    /// The bytes of its text.
    pub(super) size: usize,
}

impl Transcript {
    pub(super) fn new(client: SocketAddr, server: SocketAddr, began: Duration) -> Self {
        Self {
            session: None,
            client,
            server,
            began,
            packets: 0,
            rewritten: 0,
            refused: 0,
            entries: Vec::new(),
            troubles: Vec::new(),
            continued: false,
            left_out: 0,
            size: 0,
        }
    }

    /// Adds an entry; returns how many bytes it takes.
    pub(super) fn add(&mut self, at: Duration, what: What) -> usize {
        let size = match &what {
            What::Line { text, becomes, .. } => {
                text.len() + becomes.as_ref().map_or(0, |(text, _)| text.len())
            }
            What::Announced { .. } => 0,
            What::Note { text, .. } => text.len(),
        };
        if let What::Note {
            text,
            trouble: true,
            ..
        } = &what
            && self.troubles.len() < MAX_TROUBLES
            && !self.troubles.contains(text)
        {
            self.troubles.push(text.clone());
        }
        let size = size.saturating_add(ENTRY);
        self.size = self.size.saturating_add(size);
        let at = at.saturating_sub(self.began);
        self.entries.push(Entry { at, what });
        size
    }

    /// Leaves out what was kept so far, but for its first part, so that little is kept.
    pub(super) fn shorten(&mut self) {
        const FIRST: usize = 8;
        let gone = self.entries.len().saturating_sub(FIRST);
        self.entries.truncate(FIRST);
        self.left_out = self
            .left_out
            .saturating_add(u64::try_from(gone).unwrap_or(u64::MAX));
        self.size = 0;
    }

    /// Takes what is there to be shown; what comes later is shown as its continuation.
    pub(super) fn take_part(&mut self) -> Self {
        let entries = std::mem::take(&mut self.entries);
        let part = Self {
            entries,
            ..self.clone()
        };
        self.continued = true;
        self.size = 0;
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_as_short_as_can_be() {
        let change = |old: &str, new: &str| {
            let change = Change::between(100, old.as_bytes(), new.as_bytes());
            (change.at, change.old, change.new)
        };
        assert_eq!(change("(10,0,0,2,1)", "(1,2,1)"), (102, 5, 0));
        assert_eq!(change("abc", "abc"), (103, 0, 0));
        assert_eq!(change("aa", "aaaa"), (102, 0, 2));
        assert_eq!(change("x", ""), (100, 1, 0));
    }

    #[test]
    fn a_transcript_is_bounded() {
        let at = "10.0.0.2:21".parse().unwrap();
        let mut transcript = Transcript::new(at, at, Duration::ZERO);
        for n in 0..1000 {
            let note = What::Note {
                kind: "x",
                text: format!("trouble {n}"),
                trouble: true,
            };
            transcript.add(Duration::ZERO, note);
        }
        assert_eq!(transcript.troubles.len(), MAX_TROUBLES);
        transcript.shorten();
        assert_eq!((transcript.entries.len(), transcript.left_out), (8, 992));
    }
}

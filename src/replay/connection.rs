//! One control connection of a capture: its names, its lines, and what is told of it.

use std::collections::VecDeque;
use std::time::Duration;

use super::data::Announced;
use super::lines::{Line, Lines};
use super::link::Tap;
use super::transcript::{Change, Transcript, What};
use super::views::{Pair, Stand};
use super::words::{self, From};
use crate::engine::{Side, Tuple};

/// How many lines may wait to go on, and how many commands for their reply.
const MAX_WAITING: usize = 256;
/// How often the same data comes again before that is told.
const STORM: u32 = 5;

/// Commands that begin a transfer, or lead to one.
const TRANSFERS: [&[u8]; 13] = [
    b"PORT", b"EPRT", b"PASV", b"EPSV", b"RETR", b"STOR", b"STOU", b"APPE", b"LIST", b"NLST",
    b"MLSD", b"LPRT", b"LPSV",
];
/// Those of them that move data.
const MOVES: [&[u8]; 7] = [
    b"RETR", b"STOR", b"STOU", b"APPE", b"LIST", b"NLST", b"MLSD",
];

/// The number of a direction.
pub(super) const fn way(side: Side) -> usize {
    match side {
        Side::Egress => 0,
        Side::Ingress => 1,
    }
}

pub(super) const fn opposite(side: Side) -> Side {
    match side {
        Side::Egress => Side::Ingress,
        Side::Ingress => Side::Egress,
    }
}

/// The last announcement of a session, and what came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) announced: Announced,
    /// A transfer was asked for since.
    pub(super) wanted: bool,
    pub(super) tried: bool,
    pub(super) answered: bool,
}

/// One control connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// What the inside end sends, as the engine knows it.
    pub(super) named: Tuple,
    /// See [`Stand::outer`].
    pub(super) outer: bool,
    pub(super) client: Side,
    pub(super) pair: Option<Pair>,
    /// Where each direction is watched.
    pub(super) taps: [Option<Tap>; 2],
    /// The initial sequence number of each direction.
    pub(super) isns: [Option<u32>; 2],
    pub(super) transcript: Transcript,
    /// When its last packet came, in the engine's time.
    pub(super) seen: Duration,
    pub(super) fins: [bool; 2],
    /// Nothing more is told of it.
    pub(super) over: bool,
    /// Why it isn't followed.
    pub(super) unfollowed: Option<&'static str>,
    pub(super) expected: Option<Expected>,
    input: [Lines; 2],
    output: [Lines; 2],
    /// Lines that haven't gone on yet, and when they came.
    waiting: [VecDeque<(Line, Duration)>; 2],
    /// Verbs of commands that wait for their reply.
    commands: VecDeque<Vec<u8>>,
    /// The code of a reply of several lines.
    multiline: Option<[u8; 3]>,
    quits: bool,
    repeated: [u32; 2],
    /// Bytes of each direction that aren't text.
    silent: [u64; 2],
    mute: bool,
    names: bool,
}

impl Connection {
    pub(super) fn new(stand: &Stand, named: Tuple, time: Duration, names: bool) -> Self {
        let (client, server) = match stand.client {
            Side::Egress => (stand.outward.src, stand.outward.dst),
            Side::Ingress => (stand.outward.dst, stand.outward.src),
        };
        Self {
            named,
            outer: stand.outer,
            client: stand.client,
            pair: None,
            taps: [None; 2],
            isns: [None; 2],
            transcript: Transcript::new(client, server, time),
            seen: Duration::ZERO,
            fins: [false; 2],
            over: false,
            unfollowed: None,
            expected: None,
            input: [Lines::joined(), Lines::joined()],
            output: [Lines::joined(), Lines::joined()],
            waiting: [VecDeque::new(), VecDeque::new()],
            commands: VecDeque::new(),
            multiline: None,
            quits: false,
            repeated: [0; 2],
            silent: [0; 2],
            mute: false,
            names,
        }
    }

    /// A new session has the place of one that is over.
    pub(super) fn begin_again(&mut self, time: Duration) {
        let Transcript { client, server, .. } = self.transcript;
        self.transcript = Transcript::new(client, server, time);
        self.over = false;
        self.unfollowed = None;
        self.expected = None;
        self.set_mute(false);
        self.quits = false;
    }

    /// A SYN of this direction was seen.
    pub(super) fn begins(&mut self, side: Side, isn: u32) {
        self.isns[way(side)] = Some(isn);
        let lines = Lines::begin(isn.wrapping_add(1));
        self.input[way(side)] = lines.clone();
        self.output[way(side)] = lines;
    }

    /// Whether the packet is a copy of one that was seen at another place. A packet from the inside
    /// counts where it is seen first, one towards the inside where it is seen last: that is nearest to
    /// the inside.
    pub(super) fn is_copy(&mut self, side: Side, tap: Tap, syn: Option<u32>) -> bool {
        let place = &mut self.taps[way(side)];
        let Some(before) = *place else {
            *place = Some(tap);
            return false;
        };
        if before == tap {
            return false;
        }
        if side == Side::Ingress && syn.is_some() && syn == self.isns[way(side)] {
            *place = Some(tap);
        }
        true
    }

    pub(super) fn from(&self, side: Side) -> From {
        match side == self.client {
            true => From::Client,
            false => From::Server,
        }
    }

    pub(super) fn note(&mut self, at: Duration, kind: &'static str, text: String) {
        self.tell(at, kind, text, false);
    }

    pub(super) fn trouble(&mut self, at: Duration, kind: &'static str, text: String) {
        self.tell(at, kind, text, true);
    }

    fn tell(&mut self, at: Duration, kind: &'static str, text: String, trouble: bool) {
        let note = What::Note {
            kind,
            text,
            trouble,
        };
        self.transcript.add(at, note);
    }

    /// What was sent of a direction's line that has no end yet.
    pub(super) fn begun(&self, side: Side) -> &[u8] {
        self.input[way(side)].begun()
    }

    // ---- what comes, and what goes on ------------------------------------------------------

    /// Takes the data of a packet as it came.
    pub(super) fn came(&mut self, side: Side, seq: u32, data: &[u8], at: Duration) {
        let mut lines = Vec::new();
        let input = &mut self.input[way(side)];
        let fresh = input.push(seq, data, &mut lines);
        if self.mute {
            self.silent[way(side)] += u64::try_from(fresh).unwrap_or(0);
            return;
        }
        self.wait(side, lines, at);
        if data.is_empty() {
            return;
        }
        let repeated = &mut self.repeated[way(side)];
        *repeated = if fresh == 0 { *repeated + 1 } else { 0 };
        if *repeated == STORM {
            let who = self.who(side);
            let text = format!("the {who} sent the same data {STORM} more times");
            self.trouble(at, "storm", text);
        }
    }

    fn wait(&mut self, side: Side, lines: Vec<Line>, at: Duration) {
        for line in lines {
            if self.waiting[way(side)].len() >= MAX_WAITING {
                self.waiting[way(side)].pop_front();
            }
            self.waiting[way(side)].push_back((line, at));
        }
    }

    fn who(&self, side: Side) -> &'static str {
        match self.from(side) {
            From::Client => "client",
            From::Server => "server",
        }
    }

    /// The receiver of a direction has all before `ack`. What of it isn't in the capture won't come:
    /// `edited` is the same number as the edited stream has it.
    pub(super) fn received(&mut self, side: Side, ack: u32, edited: u32, at: Duration) {
        let input = &mut self.input[way(side)];
        let Some(next) = input.next() else { return };
        // A FIN has a number, too.
        let ahead = ack.wrapping_sub(next);
        if ahead == 0 || ahead > u32::MAX / 2 || (ahead == 1 && self.fins[way(side)]) {
            return;
        }
        let mut lines = Vec::new();
        let missing = input.jump(ack, &mut lines);
        self.output[way(side)].jump(edited, &mut Vec::new());
        self.flush(side, at);
        for line in lines {
            self.said(side, line, None, Duration::ZERO, at);
        }
        if missing > 0 && !self.mute {
            let who = self.who(side);
            let text = format!("{missing} bytes of the {who}'s are missing from the capture");
            self.trouble(at, "missing", text);
        }
    }

    /// Takes the data of a packet as it goes on.
    pub(super) fn went_on(&mut self, side: Side, seq: u32, data: &[u8], at: Duration) {
        let mut lines = Vec::new();
        let output = &mut self.output[way(side)];
        if !data.is_empty() {
            output.jump(seq, &mut lines);
        }
        output.push(seq, data, &mut lines);
        for line in lines {
            let Some((was, came)) = self.waiting[way(side)].pop_front() else {
                continue;
            };
            let waited = at.saturating_sub(came);
            let became = (was.text != line.text && !line.headless).then_some(line.text);
            self.said(side, was, became, waited, came);
        }
    }

    /// Lines of which nobody knows how they went on are told as they came.
    fn flush(&mut self, side: Side, _at: Duration) {
        for (line, came) in std::mem::take(&mut self.waiting[way(side)]) {
            self.said(side, line, None, Duration::ZERO, came);
        }
    }

    /// A line, and what its receiver reads in its place.
    fn said(
        &mut self,
        side: Side,
        line: Line,
        became: Option<Vec<u8>>,
        waited: Duration,
        at: Duration,
    ) {
        let from = self.from(side);
        if line.headless {
            // It may be the rest of a password.
            let rest = format!("the end of a line, {} bytes", line.length);
            self.note(at, "cut", rest);
            return;
        }
        let text = words::shown(from, &line.text, self.names);
        let becomes = became.map(|new| {
            self.transcript.rewritten += 1;
            let change = Change::between(line.at, &line.text, &new);
            (words::shown(from, &new, self.names), change)
        });
        let what = What::Line {
            from,
            text,
            becomes,
            waited,
        };
        self.transcript.add(at, what);
        match from {
            From::Client => self.commanded(&line.text),
            From::Server => self.replied(&line.text, at),
        }
    }

    fn commanded(&mut self, line: &[u8]) {
        let (verb, _) = words::verb(line);
        self.quits |= verb == b"QUIT";
        if MOVES.contains(&verb.as_slice())
            && let Some(expected) = &mut self.expected
        {
            expected.wanted = true;
        }
        if self.commands.len() < MAX_WAITING {
            self.commands.push_back(verb);
        }
    }

    /// Follows replies only as far as is needed to see which failed: RFC 959 §4.2.
    fn replied(&mut self, line: &[u8], at: Duration) {
        let Some((code, rest)) = line.split_first_chunk::<3>() else {
            return;
        };
        let is_code = code.iter().all(u8::is_ascii_digit);
        if let Some(open) = self.multiline {
            if *code != open || !matches!(rest, [] | [b' ', ..]) {
                return;
            }
            self.multiline = None;
        } else if is_code && rest.first() == Some(&b'-') {
            self.multiline = Some(*code);
            return;
        } else if !is_code {
            return;
        }
        if code[0] == b'1' {
            return;
        }
        let verb = self.commands.pop_front().unwrap_or_default();
        let code = words::printable(code);
        let failed = matches!(code.as_bytes()[0], b'4' | b'5');
        let lost = matches!(code.as_str(), "421" | "425" | "426");
        if lost || (failed && TRANSFERS.contains(&verb.as_slice())) {
            let verb = match verb.is_empty() {
                true => "the server said".to_owned(),
                false => format!("{} was answered with", words::printable(&verb)),
            };
            self.trouble(at, "failed", format!("{verb} {code}"));
        }
    }

    // ---- its end ---------------------------------------------------------------------------

    /// What comes isn't text from here on, or is again.
    pub(super) fn set_mute(&mut self, mute: bool) {
        self.mute = mute;
        for lines in self.input.iter_mut().chain(&mut self.output) {
            lines.set_mute(mute);
        }
        self.waiting = [VecDeque::new(), VecDeque::new()];
        self.commands.clear();
    }

    /// It ended in this way.
    pub(super) fn closed(&mut self, how: &str, at: Duration) {
        self.leave_rest(at);
        let text = format!("closed: {how}");
        match how == "RST" && !self.quits {
            true => self.trouble(at, "closed", text),
            false => self.note(at, "closed", text),
        }
    }

    /// What never became a line, and lines that never went on.
    pub(super) fn leave_rest(&mut self, at: Duration) {
        let [egress, ingress] = self.silent;
        if egress + ingress > 0 {
            let (client, server) = match self.client {
                Side::Egress => (egress, ingress),
                Side::Ingress => (ingress, egress),
            };
            let text = format!("unread: {client} bytes from the client, {server} from the server");
            self.note(at, "unread", text);
            self.silent = [0; 2];
        }
        for side in [Side::Egress, Side::Ingress] {
            for (line, came) in std::mem::take(&mut self.waiting[way(side)]) {
                self.said(side, line, None, Duration::ZERO, came);
                self.trouble(at, "held", "that line never went on".to_owned());
            }
            if let Some(line) = self.input[way(side)].rest()
                && !self.mute
            {
                self.said(side, line, None, Duration::ZERO, at);
                self.note(at, "cut", "that line has no end".to_owned());
            }
        }
    }
}

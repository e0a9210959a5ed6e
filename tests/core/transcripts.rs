//! Dialogues, as servers and clients lead them, and as attackers would: `tests/core/transcripts/*.txt`.
//!
//! ```text
//! # a comment
//! ! deny-tls          AUTH is refused
//! ! nat64             the server is behind a translator; `! nat64 epsv`: it is known to speak EPSV
//! ! strict            all strict rules; or some: `! unknown-verbs`, `! deny SITE`, …
//! C PASV              a line of the client's, ended by CR LF; \xNN, \r, \n, \t and \\ are escapes
//! S 227 …             a line of the server's
//! C| S|               the same without the line end
//! = announce 227 10.0.0.2 50000     what must have been decided since the line before
//! ```
//!
//! Each is replayed with whole lines, with the lines of one peer in one piece, byte by byte, and
//! with each line cut in two at each of its bytes: decisions and output must be the same.

use ftpalg::ftp::policy::{Policy, Strict};
use ftpalg::ftp::session::Peer;
use testkit::transcript::{Machine, PUBLIC};

struct Transcript {
    policy: Policy,
    /// Whether it is translated, and the server is known to speak `EPSV`.
    nat64: Option<bool>,
    /// A line and what it decides.
    turns: Vec<(Peer, Vec<u8>, Vec<String>)>,
}

impl Transcript {
    fn machine(&self) -> Machine {
        match self.nat64 {
            None => Machine::new(self.policy.clone()),
            Some(speaks_epsv) => Machine::translated(self.policy.clone(), speaks_epsv),
        }
    }

    fn choose(&mut self, what: &str) {
        let rules = &mut self.policy.strict;
        let (what, value) = what.split_once(' ').unwrap_or((what, ""));
        let verbs = || value.split(' ').map(str::to_owned).collect();
        match what {
            "nat64" => self.nat64 = Some(value == "epsv"),
            "deny-tls" => self.policy.deny_tls = true,
            "strict" => *rules = Strict::all(),
            "order" => rules.order = true,
            "unknown-verbs" => rules.unknown_verbs = true,
            "long-lines" => rules.long_lines = true,
            "control-bytes" => rules.control_bytes = true,
            "before-greeting" => rules.before_greeting = true,
            "addresses" => rules.addresses = true,
            "active-late" => rules.active_late = true,
            "allow" => rules.allow = verbs(),
            "deny" => rules.deny = verbs(),
            "failed-logins" => rules.failed_logins = Some(value.parse().expect("a number")),
            other => panic!("what is {other:?}?"),
        }
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&kind, after) = rest.split_first().expect("an escape at the end");
        rest = after;
        match kind {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b't' => out.push(b'\t'),
            b'\\' => out.push(b'\\'),
            b'x' => {
                let digits = std::str::from_utf8(&rest[..2]).expect("two hex digits");
                out.push(u8::from_str_radix(digits, 16).expect("two hex digits"));
                rest = &rest[2..];
            }
            other => panic!("unknown escape {}", char::from(other)),
        }
    }
    out
}

fn read(text: &str) -> Transcript {
    let mut transcript = Transcript {
        policy: Policy::default(),
        nat64: None,
        turns: Vec::new(),
    };
    for line in text.lines() {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (peer, end): (Peer, &[u8]) = match mark {
            "" | "#" => continue,
            "!" => {
                transcript.choose(rest);
                continue;
            }
            "=" => {
                let turn = transcript
                    .turns
                    .last_mut()
                    .expect("a decision before any line");
                turn.2.push(rest.to_owned());
                continue;
            }
            "C" => (Peer::Client, b"\r\n"),
            "S" => (Peer::Server, b"\r\n"),
            "C|" => (Peer::Client, b""),
            "S|" => (Peer::Server, b""),
            _ => panic!("what is {line:?}?"),
        };
        let bytes = [unescape(rest).as_slice(), end].concat();
        transcript.turns.push((peer, bytes, Vec::new()));
    }
    transcript
}

/// What was decided and what went out.
type Result = (Vec<String>, [Vec<u8>; 2]);

fn replay<'a>(how: &Transcript, pieces: impl IntoIterator<Item = (Peer, &'a [u8])>) -> Result {
    let mut machine = how.machine();
    for (peer, piece) in pieces {
        machine.feed(peer, piece);
    }
    (machine.decisions, machine.out)
}

fn check(name: &str, transcript: &Transcript) {
    let turns = &transcript.turns;
    let mut machine = transcript.machine();
    for (peer, bytes, expected) in turns {
        let before = machine.decisions.len();
        machine.feed(*peer, bytes);
        let decided = &machine.decisions[before..];
        let shown = bytes.escape_ascii();
        assert_eq!(decided, expected, "{name}: after {peer:?} {shown}");
    }
    for (i, peer) in [Peer::Client, Peer::Server].into_iter().enumerate() {
        let sent: usize = turns
            .iter()
            .filter(|t| t.0 == peer)
            .map(|t| t.1.len())
            .sum();
        let same = machine.decisions.is_empty();
        assert!(
            !same || machine.out[i].len() == sent,
            "{name}: bytes are missing"
        );
        assert_eq!(machine.held(peer), 0, "{name}: {peer:?} waits at the end");
    }
    let whole = (machine.decisions, machine.out);

    let single = turns
        .iter()
        .flat_map(|(peer, bytes, _)| bytes.chunks(1).map(|b| (*peer, b)));
    assert_eq!(replay(transcript, single), whole, "{name}: byte by byte");

    let mut joined: Vec<(Peer, Vec<u8>)> = Vec::new();
    for (peer, bytes, _) in turns {
        match joined.last_mut() {
            Some((last, all)) if last == peer => all.extend(bytes),
            _ => joined.push((*peer, bytes.clone())),
        }
    }
    let joined = joined.iter().map(|(peer, bytes)| (*peer, bytes.as_slice()));
    let (mut decisions, out) = replay(transcript, joined);
    let mut expected = whole.0.clone();
    // What a whole segment decided is told at its end: the order differs.
    decisions.retain(|what| !told_late(what));
    expected.retain(|what| !told_late(what));
    assert_eq!(
        (decisions, out),
        (expected, whole.1.clone()),
        "{name}: joined"
    );

    for (cut_turn, (_, cut_bytes, _)) in turns.iter().enumerate() {
        for cut in 1..cut_bytes.len() {
            let pieces = turns.iter().enumerate().flat_map(|(n, (peer, bytes, _))| {
                let (first, second) = bytes.split_at(if n == cut_turn { cut } else { 0 });
                [(*peer, first), (*peer, second)]
            });
            let shown = cut_bytes.escape_ascii();
            assert_eq!(
                replay(transcript, pieces),
                whole,
                "{name}: {shown} cut at {cut}"
            );
        }
    }
}

fn told_late(what: &str) -> bool {
    what == "close" || what.starts_with("login ")
}

#[test]
fn every_transcript_whole_and_cut() {
    let folder = testkit::paths::repository().join("tests/core/transcripts");
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("the transcripts")
        .map(|entry| entry.expect("a transcript").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    names.sort();
    assert!(names.len() >= 20, "only {} transcripts", names.len());
    for path in names {
        let text = std::fs::read_to_string(&path).expect("a transcript");
        let name = path.file_stem().expect("a name").to_string_lossy();
        check(&name, &read(&text));
    }
}

#[test]
fn an_address_is_replaced_and_nothing_else() {
    let dialogue = read(
        "S 220 x\nC USER a\nS 331 x\nC PASS b\nS 230 x\nC PASV\n\
         S 227 Entering Passive Mode (10,0,0,2,195,80).\nC EPRT |1|192.168.1.5|50000|",
    );
    let pieces = dialogue
        .turns
        .iter()
        .map(|(peer, bytes, _)| (*peer, bytes.as_slice()));
    let (_, [client, server]) = replay(&dialogue, pieces);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    assert!(text(server).ends_with("227 Entering Passive Mode (203,0,113,1,195,80).\r\n"));
    assert!(text(client).ends_with(&format!("EPRT |1|{PUBLIC}|50000|\r\n")));
}

//! `ftpalg replay` as a function: captures of real sessions become the transcripts that are beside them
//! in `tests/core/captures`, whatever form the file has, and no file makes it fail.
//!
//! `FTPALG_BLESS=1` writes the transcripts anew. `tests/system/replay.rs` makes the captures.

use std::io::Cursor;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ftpalg::engine;
use ftpalg::pinholes::PlaneConfig;
use ftpalg::replay::{CaptureError, End, Options, ReplayError, Summary, View, replay};
use proptest::prelude::*;
use testkit::packet::{ACK, FIN, OUTSIDE, PSH, SYN, Seg, build};
use testkit::pcap::{ETHERNET, Form, Timed, read, sound, write};

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const VIEW: View = View {
    names: true,
    failures: false,
    json: false,
};

fn options(public: &str) -> Options {
    Options {
        inside: ["10.0.0.0/24", "fd00::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        public: vec![public.parse().unwrap()],
        ports: vec![21],
        engine: engine::Config::default(),
        plane: PlaneConfig::default(),
        join: false,
        view: VIEW,
    }
}

/// What a replay of a file gives.
#[derive(Debug)]
struct Done {
    text: String,
    /// The edited packets.
    out: Vec<u8>,
    summary: Result<Summary, ReplayError>,
}

/// A file that is written to.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn run(file: &[u8], options: Options) -> Done {
    let (mut text, out) = (Vec::new(), Shared::default());
    let input = Box::new(Cursor::new(file.to_vec()));
    let edited = Box::new(out.clone());
    let summary = replay(input, options, &mut text, Some(edited), &mut |_| ());
    let out = out.0.lock().unwrap().clone();
    Done {
        text: String::from_utf8(text).unwrap(),
        out,
        summary,
    }
}

fn directory() -> PathBuf {
    testkit::paths::repository().join("tests/core/captures")
}

/// All captures: the file's name, its bytes, the address that the outside knows.
fn captures() -> Vec<(String, Vec<u8>, &'static str)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "pcap") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let public = match (name.contains("masqueraded"), name.contains("ipv6")) {
                (true, false) => "198.51.100.1",
                (false, false) => "203.0.113.1",
                (true, true) => "2001:db8:1::1",
                (false, true) => "2001:db8:f::1",
            };
            all.push((name, std::fs::read(&path).unwrap(), public));
        }
    }
    all.sort();
    assert!(all.len() >= 19, "each client, one under TLS, two over IPv6");
    all
}

/// One that was taken on Ethernet.
fn on_ethernet() -> (Vec<Timed>, Vec<u8>) {
    let (_, file, _) = captures().remove(0);
    (read(&file, ETHERNET.head.len()), file)
}

#[test]
fn transcripts_are_as_committed() {
    for (name, file, public) in captures() {
        let done = run(&file, options(public));
        done.summary.unwrap();
        let path = directory().join(format!("{name}.txt"));
        if std::env::var_os("FTPALG_BLESS").is_some() {
            std::fs::write(&path, &done.text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            done.text, expected,
            "{name}: FTPALG_BLESS=1 cargo test --test core replay:: writes it anew"
        );
        assert!(!done.text.contains("lab@lab"), "{name}: a password");
        if !name.contains("tls") {
            assert!(done.text.contains(" > PASS ****") || !done.text.contains("> PASS"));
        }
    }
}

#[test]
fn what_is_written_is_sound() {
    for (name, file, public) in captures() {
        // Those of `any` have longer headers.
        let head = if file[20] == 1 { 14 } else { 20 };
        let mut plain = options(public);
        plain.engine.keep_length = false;
        for options in [options(public), plain] {
            let keeps = options.engine.keep_length;
            let done = run(&file, options);
            let streams = sound(&read(&done.out, head));
            let text: Vec<_> = streams.into_values().flatten().collect();
            let text = String::from_utf8_lossy(&text).into_owned();
            let inside = text.contains("10,0,0,2,")
                || text.contains("|10.0.0.2|")
                || text.contains("|fd00::2|");
            assert!(!inside, "{name}, {keeps}: {text}");
        }
    }
}

/// The same file in the forms that programs write on other links and machines.
#[test]
fn a_capture_may_have_any_form() {
    const SLL: &[u8] = &[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0];
    const SLL2: &[u8] = &[8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
    const VLAN: &[u8] = &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 7, 8, 0];
    let (packets, file) = on_ethernet();
    let expected = run(&file, options("203.0.113.1"));
    assert!(expected.text.contains("227 Entering"), "{}", expected.text);
    let links: [(u16, &[u8]); 7] = [
        (1, ETHERNET.head),
        (1, VLAN),
        (101, &[]),
        (228, &[]),
        (0, &[2, 0, 0, 0]),
        (113, SLL),
        (276, SLL2),
    ];
    for (link, head) in links {
        for (big, nanos, section) in [
            (false, false, 0),
            (true, false, 0),
            (false, true, 0),
            (true, true, 0),
            (false, false, 9),
            (true, true, 1000),
        ] {
            let form = Form {
                link,
                head,
                big,
                nanos,
                section,
            };
            let done = run(&write(form, &packets, 1 << 18), options("203.0.113.1"));
            assert_eq!(done.text, expected.text, "{form:?}");
            if section == 0 {
                let out = read(&done.out, head.len());
                assert_eq!(out, read(&expected.out, 14), "{form:?}");
            } else {
                // What was written is read again: its times and links are right.
                let again = run(&done.out, options("203.0.113.1"));
                let packets = |done: &Done| done.summary.as_ref().unwrap().control;
                assert_eq!(packets(&again), packets(&done), "{form:?}");
                assert!(again.text.lines().next() == done.text.lines().next());
            }
        }
    }
}

#[test]
fn what_is_missing_is_said() {
    let (packets, _) = on_ethernet();
    let run = |packets: &[Timed], snaplen, join| {
        let mut options = options("203.0.113.1");
        options.join = join;
        run(&write(ETHERNET, packets, snaplen), options).text
    };
    let whole = run(&packets, 1 << 18, false);
    assert!(whole.contains(" 0 with trouble"), "{whole}");
    // It begins in the middle of a session: `PASV` is to come.
    let login = |p: &Timed| p.packet.windows(4).any(|text| text == b"230 ");
    let middle = &packets[packets.iter().position(login).unwrap() + 1..];
    let text = run(middle, 1 << 18, false);
    assert!(
        text.contains("not followed: the capture begins in its middle"),
        "{text}"
    );
    assert!(!text.contains("= 227"), "it is shown as it is: {text}");
    let text = run(middle, 1 << 18, true);
    assert!(text.contains("joined in its middle"), "{text}");
    assert!(text.contains("= 227 Entering Passive Mode"), "{text}");
    // Packets are cut.
    let text = run(&packets, 90, false);
    assert!(
        text.contains("a packet is cut: the capture has 90 of its"),
        "{text}"
    );
    // One is missing that its receiver has acknowledged.
    let at = packets
        .iter()
        .position(|p| p.packet.ends_with(b"PASV\r\n"))
        .unwrap();
    let gap = [&packets[..at], &packets[at + 1..]].concat();
    let text = run(&gap, 1 << 18, false);
    assert!(
        text.contains("6 bytes of the client's are missing from the capture"),
        "{text}"
    );
    assert!(text.contains("226 "), "the rest is there: {text}");
}

#[test]
fn names_are_left_out_if_that_is_wanted() {
    for (name, file, public) in captures() {
        let mut options = options(public);
        options.view.names = false;
        for json in [false, true] {
            let mut options = options.clone();
            options.view.json = json;
            let text = run(&file, options).text;
            for secret in ["small.bin", "anonymous", "lab@lab", "up/", ".up"] {
                assert!(!text.contains(secret), "{name}: {secret}\n{text}");
            }
        }
    }
}

#[test]
fn only_failures_are_shown_if_that_is_wanted() {
    // A client whose data connection nobody answers.
    let mut dialogue = Dialogue::default();
    dialogue.login();
    dialogue.say(false, "PASV\r\n", &[]);
    dialogue.say(true, "227 x (10,0,0,2,195,80).\r\n", &[]);
    dialogue.say(false, "LIST\r\n", &[]);
    let fine = dialogue.packets.clone();
    dialogue.say(true, "425 x\r\n", &[]);
    let text = |packets: &[Timed]| {
        let mut options = options("203.0.113.199");
        options.view.failures = true;
        run(&write(ETHERNET, packets, 1 << 18), options).text
    };
    assert!(!text(&fine).contains("session 1"));
    let text = text(&dialogue.packets);
    assert!(text.contains("! LIST was answered with 425"), "{text}");
    assert!(text.contains("1 with trouble"), "{text}");
}

#[test]
fn other_files_are_no_captures() {
    let why = |file: &[u8]| match run(file, options("203.0.113.1")).summary {
        Err(ReplayError::Capture(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(matches!(why(b""), CaptureError::Empty));
    assert!(matches!(
        why(&[0x1f, 0x8b, 8, 0]),
        CaptureError::Compressed("zcat")
    ));
    for text in [
        &b"x"[..],
        b"a text of some length, which is no capture at all",
        &[0; 100],
    ] {
        assert!(matches!(why(text), CaptureError::NotACapture), "{text:?}");
    }
}

/// What was read of a file that ends too early is told; wherever that is.
#[test]
fn a_file_may_end_anywhere() {
    let (packets, file) = on_ethernet();
    let ng = Form {
        section: 7,
        ..ETHERNET
    };
    for file in [file, write(ng, &packets, 1 << 18)] {
        for end in (1..file.len()).step_by(7) {
            let done = run(&file[..end], options("203.0.113.1"));
            match done.summary {
                Ok(summary) => {
                    assert!(summary.end != End::Damaged(0), "{end}");
                    assert!(summary.packets <= packets.len() as u64);
                }
                Err(ReplayError::Capture(CaptureError::NotACapture)) => assert!(end < 28, "{end}"),
                Err(other) => panic!("{end}: {other}"),
            }
        }
        let whole = run(&file, options("203.0.113.1")).summary.unwrap();
        assert_eq!(whole.end, End::Whole);
        let cut = run(&file[..file.len() - 3], options("203.0.113.1"));
        assert_eq!(cut.summary.unwrap().end, End::CutShort);
    }
}

/// A capture of a dialogue in which nothing is edited.
#[derive(Default)]
struct Dialogue {
    packets: Vec<Timed>,
    /// How many bytes client and server have sent.
    sent: [u32; 2],
}

impl Dialogue {
    fn send(&mut self, server: bool, mut seg: Seg) {
        let first = [1000u32, u32::MAX - 40];
        let (own, other) = (usize::from(server), usize::from(!server));
        seg.seq = seg.seq.wrapping_add(first[own]);
        if seg.flags & ACK != 0 {
            seg.ack = seg.ack.wrapping_add(first[other]);
        }
        seg.window = 64_000;
        let (client, at) = ((OUTSIDE, 40_000), (INSIDE, 21));
        let packet = match server {
            true => build(at, client, &seg),
            false => build(client, at, &seg),
        };
        let at = 1_700_000_000_000_000 + 1000 * self.packets.len() as u64;
        self.packets.push(Timed { at, packet });
    }

    fn ack(&mut self, server: bool) {
        let [client, by_server] = self.sent;
        let (seq, ack) = if server {
            (by_server, client)
        } else {
            (client, by_server)
        };
        self.send(
            server,
            Seg {
                seq,
                ack,
                flags: ACK,
                ..Seg::default()
            },
        );
    }

    fn connect(&mut self) {
        let syn = |flags| Seg {
            seq: u32::MAX,
            flags,
            ..Seg::default()
        };
        self.send(false, syn(SYN));
        self.send(true, syn(SYN | ACK));
        self.ack(false);
    }

    /// Says a text in pieces of these lengths; the receiver acknowledges each. Every third piece comes
    /// twice.
    fn say(&mut self, server: bool, text: &str, cuts: &[usize]) {
        let mut rest = text.as_bytes();
        let mut cuts = cuts.iter();
        while !rest.is_empty() {
            let n = cuts
                .next()
                .map_or(rest.len(), |n| (*n).clamp(1, rest.len()));
            let (piece, left) = rest.split_at(n);
            let own = usize::from(server);
            let seg = Seg {
                seq: self.sent[own],
                ack: self.sent[1 - own],
                flags: ACK | PSH,
                payload: piece.to_vec(),
                ..Seg::default()
            };
            if self.packets.len().is_multiple_of(3) {
                self.send(server, seg.clone());
            }
            self.send(server, seg);
            self.sent[own] = self.sent[own].wrapping_add(n as u32);
            self.ack(!server);
            rest = left;
        }
    }

    fn login(&mut self) {
        self.connect();
        for (server, line) in testkit::packet::LOGIN {
            self.say(server, line, &[]);
        }
    }

    fn end(&mut self) {
        for server in [true, false] {
            let [client, by_server] = self.sent;
            let fin = u32::from(!server);
            let (seq, ack) = if server {
                (by_server, client)
            } else {
                (client, by_server + fin)
            };
            self.send(
                server,
                Seg {
                    seq,
                    ack,
                    flags: ACK | FIN,
                    ..Seg::default()
                },
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a dialogue was cut, the packets that are written are those of two ends of which the
    /// client read the public address all along.
    #[test]
    fn edited_packets_are_one_conversation(
        cuts in proptest::collection::vec(1usize..12, 1..12),
        pipelined: bool,
    ) {
        let mut dialogue = Dialogue::default();
        dialogue.login();
        let mut expected = String::new();
        for round in 0..3 {
            let ask = if pipelined { "PASV\r\nNOOP\r\n" } else { "PASV\r\n" };
            dialogue.say(false, ask, &cuts);
            let port = 50_000 + round;
            let numbers = format!("{},{}", port / 256, port % 256);
            dialogue.say(true, &format!("227 x (10,0,0,2,{numbers}).\r\n"), &cuts);
            expected += &format!("227 x (203,0,113,199,{numbers}).\r\n");
            if pipelined {
                dialogue.say(true, "200 ok\r\n", &cuts);
                expected += "200 ok\r\n";
            }
        }
        dialogue.say(false, "QUIT\r\n", &cuts);
        dialogue.say(true, "221 bye\r\n", &cuts);
        dialogue.end();
        let mut options = options("203.0.113.199");
        options.engine.keep_length = false;
        let done = run(&write(ETHERNET, &dialogue.packets, 1 << 18), options);
        let streams = sound(&read(&done.out, 14));
        let told = String::from_utf8(streams[&(21, 40_000)].clone()).unwrap();
        prop_assert_eq!(told.strip_prefix("220 x\r\n331 x\r\n230 x\r\n"), Some(&*(expected + "221 bye\r\n")));
        prop_assert!(done.text.contains("closed: FIN"), "{}", done.text);
        prop_assert_eq!(done.text.matches("             = 227 x (203,0,113,199,").count(), 3);
        prop_assert!(done.text.contains("0 with trouble") || done.text.contains("same data"), "{}", done.text);
    }

    /// Any bytes, as a file or as what follows a file's beginning.
    #[test]
    fn any_file_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), keep in 0usize..400) {
        let _ = run(&bytes, options("203.0.113.1"));
        let (_, file) = on_ethernet();
        let _ = run(&[&file[..keep.min(file.len())], &bytes].concat(), options("203.0.113.1"));
    }

    /// A good file with some bytes changed, in either format.
    #[test]
    fn damage_is_survived(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..40), ng: bool, json: bool) {
        let (packets, _) = on_ethernet();
        let form = Form { section: if ng { 5 } else { 0 }, ..ETHERNET };
        let mut file = write(form, &packets, 1 << 18);
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        let mut options = options("203.0.113.1");
        options.view.json = json;
        options.join = json;
        let _ = run(&file, options);
    }
}

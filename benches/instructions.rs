//! Instructions per packet in the engine, for conversations that never change: `./scripts/bench
//! instructions`.
//!
//! Runs itself under callgrind, once for each conversation, and prints its counts beside those in
//! `benches/instructions.txt`. Counts don't depend on what else the machine does, so they show a few
//! percent that times can't. They are a report: nothing fails because of them. `--bless` writes the file.
//!
//! The kernel is [`FakeGateway`], which says yes at once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use testkit::gateway::{FakeGateway, entry};
use testkit::packet::{ACK, FIN, LOGIN, OUTSIDE, SYN, Seg, build, data, syn};

use ftpalg::engine::{Config, Engine, Side, Verdict};

/// Where the counts are kept.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
/// How often a conversation's packets are repeated in one run.
const TIMES: usize = 200;
/// The client's port, and the other end's address as the inside knows it.
const PORT: u16 = 40_000;
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A conversation, and what is counted of it.
struct Conversation {
    name: &'static str,
    /// What the count is divided by: so many packets, or whole sessions.
    per: &'static str,
    run: fn() -> usize,
}

const ALL: [Conversation; 7] = [
    Conversation {
        name: "untouched-line",
        per: "packet",
        run: untouched_line,
    },
    Conversation {
        name: "bare-ack",
        per: "packet",
        run: bare_ack,
    },
    Conversation {
        name: "reply-227-same-length",
        per: "packet",
        run: || reply_227(true),
    },
    Conversation {
        name: "reply-227-other-length",
        per: "packet",
        run: || reply_227(false),
    },
    Conversation {
        name: "port",
        per: "packet",
        run: port,
    },
    Conversation {
        name: "ack-of-edited-stream",
        per: "packet",
        run: ack_of_edited_stream,
    },
    Conversation {
        name: "small-session",
        per: "session",
        run: small_session,
    },
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    match args.next().as_deref() {
        None => report(false),
        Some("--bless") => report(true),
        Some(name) => match ALL.iter().find(|one| one.name == name) {
            // Under callgrind. The number of packets or sessions that were counted.
            Some(one) => {
                println!("{}", (one.run)());
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("no conversation is called '{name}'; --bless writes {FILE}");
                ExitCode::from(2)
            }
        },
    }
}

fn report(bless: bool) -> ExitCode {
    let before = committed();
    let mut text =
        "# Instructions per packet or session: ./scripts/bench instructions --bless\n".to_owned();
    println!(
        "| conversation | instructions per | now | committed | change |\n|---|---|---|---|---|"
    );
    for one in &ALL {
        let now = match count(one.name) {
            Ok(now) => now,
            Err(why) => {
                eprintln!("{}: {why}", one.name);
                return ExitCode::FAILURE;
            }
        };
        let (old, change) = match before.get(one.name) {
            Some(&old) => (old.to_string(), change(old, now)),
            None => ("–".into(), "new".into()),
        };
        println!("| {} | {} | {now} | {old} | {change} |", one.name, one.per);
        text += &format!("{} {now}\n", one.name);
    }
    if bless {
        fs::write(FILE, text).expect(FILE);
    }
    ExitCode::SUCCESS
}

/// In percent; what is more than one is marked.
fn change(old: u64, now: u64) -> String {
    let percent = (now as f64 / old.max(1) as f64 - 1.0) * 100.0;
    let mark = match percent.abs() > 1.0 {
        true => " **!**",
        false => "",
    };
    format!("{percent:+.1} %{mark}")
}

fn committed() -> BTreeMap<String, u64> {
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let line = |line: &str| {
        let (name, count) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Instructions in [`counted`] per packet, or per session.
fn count(name: &str) -> Result<u64, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--collect-atstart=no",
            "--toggle-collect=*instructions::counted*",
        ])
        .arg(Path::new(&own))
        .arg(name)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| {
        let (_, count) = line.split_once("Collected :")?;
        count.trim().parse::<u64>().ok()
    });
    let times = String::from_utf8_lossy(&output.stdout);
    match (collected, times.trim().parse::<u64>()) {
        (Some(collected @ 1..), Ok(times @ 1..)) => Ok(collected / times),
        _ => Err(format!("valgrind said nothing of it:\n{said}")),
    }
}

/// What callgrind counts. Not inlined, so that it finds it by its name.
#[inline(never)]
fn counted(engine: &mut Engine, gateway: &mut FakeGateway, packets: &[(Side, Vec<u8>)]) {
    feed(engine, gateway, packets);
}

fn feed(engine: &mut Engine, gateway: &mut FakeGateway, packets: &[(Side, Vec<u8>)]) {
    for (side, packet) in packets {
        std::hint::black_box(engine.packet(*side, packet, Duration::from_secs(1), gateway));
    }
}

/// A control connection through the engine.
struct Talk {
    engine: Engine,
    gateway: FakeGateway,
    /// Whether the server is the inside end.
    server_inside: bool,
    /// Where client and server are in their streams, as each itself counts.
    at: [u32; 2],
    /// By how much the stream of each is longer for the other one.
    growth: [u32; 2],
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

impl Talk {
    /// Nobody has said anything. The inside end's address is translated to `public`.
    fn unborn(server_inside: bool, public: Ipv4Addr, keep_length: bool) -> Self {
        let config = Config {
            keep_length,
            ..Config::default()
        };
        let mut gateway = FakeGateway::with_entry(entry(server_inside, PRIVATE, public, PORT));
        gateway.remembers = false;
        Self {
            engine: Engine::new(config, 0),
            gateway,
            server_inside,
            at: [1000, 5000],
            growth: [0, 0],
        }
    }

    /// Logged in.
    fn new(server_inside: bool, public: Ipv4Addr, keep_length: bool) -> Self {
        let mut talk = Self::unborn(server_inside, public, keep_length);
        let packets = talk.opening();
        talk.feed(&packets);
        talk
    }

    fn feed(&mut self, packets: &[(Side, Vec<u8>)]) {
        feed(&mut self.engine, &mut self.gateway, packets);
    }

    fn counted(&mut self, packets: &[(Side, Vec<u8>)]) {
        counted(&mut self.engine, &mut self.gateway, packets);
    }

    /// The handshake and the login.
    fn opening(&mut self) -> Vec<(Side, Vec<u8>)> {
        let mut packets = vec![
            self.segment(CLIENT, syn(SYN), 1),
            self.segment(SERVER, syn(SYN | ACK), 1),
            self.packet(CLIENT, ""),
        ];
        for (by_server, line) in LOGIN {
            packets.push(self.packet(usize::from(by_server), line));
        }
        packets
    }

    /// The next bytes of one end, acknowledging all of the other's.
    fn packet(&mut self, who: usize, text: &str) -> (Side, Vec<u8>) {
        let mut seg = data(0, 0, text);
        if text.is_empty() {
            seg.flags = ACK;
        }
        self.segment(who, seg, text.len())
    }

    fn segment(&mut self, who: usize, mut seg: Seg, len: usize) -> (Side, Vec<u8>) {
        let other = 1 - who;
        seg.seq = self.at[who];
        if seg.flags & ACK != 0 {
            seg.ack = self.at[other].wrapping_add(self.growth[other]);
        }
        self.at[who] = self.at[who].wrapping_add(u32::try_from(len).unwrap());
        let inside = (who == SERVER) == self.server_inside;
        let [client, server] = match self.server_inside {
            true => [(OUTSIDE, PORT), (PRIVATE, 21)],
            false => [(PRIVATE, PORT), (OUTSIDE, 21)],
        };
        let packet = match who {
            CLIENT => build(client, server, &seg),
            _ => build(server, client, &seg),
        };
        let side = match inside {
            true => Side::Egress,
            false => Side::Ingress,
        };
        (side, packet)
    }

    /// Feeds a packet that must be rewritten, and notes by how much it grew.
    fn rewritten(&mut self, who: usize, packet: &(Side, Vec<u8>)) -> i64 {
        let (side, bytes) = packet;
        let now = Duration::from_secs(1);
        let Verdict::Replace(out) = self.engine.packet(*side, bytes, now, &mut self.gateway) else {
            panic!("it isn't rewritten");
        };
        let grown = out.len() as i64 - bytes.len() as i64;
        self.growth[who] = self.growth[who].wrapping_add_signed(i32::try_from(grown).unwrap());
        grown
    }
}

/// A public address whose text is as long as that of [`PRIVATE`], and a longer one.
const AS_LONG: Ipv4Addr = Ipv4Addr::new(20, 0, 0, 9);
const LONGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 199);

/// Half of the lines are the client's.
fn untouched_line() -> usize {
    let mut talk = Talk::new(true, LONGER, true);
    let mut packets = Vec::new();
    for _ in 0..TIMES {
        packets.push(talk.packet(CLIENT, "NOOP\r\n"));
        packets.push(talk.packet(SERVER, "200 NOOP command successful\r\n"));
    }
    talk.counted(&packets);
    packets.len()
}

fn bare_ack() -> usize {
    let mut talk = Talk::new(true, LONGER, true);
    let packets: Vec<_> = (0..TIMES).map(|_| talk.packet(CLIENT, "")).collect();
    talk.counted(&packets);
    packets.len()
}

/// The `227` alone, without the `PASV` before it.
fn reply_227(same_length: bool) -> usize {
    let public = if same_length { AS_LONG } else { LONGER };
    let mut talk = Talk::new(true, public, same_length);
    let line = "227 Entering Passive Mode (10,0,0,2,195,80).\r\n";
    let grown = if same_length { 0 } else { 5 };
    let pasv = talk.packet(CLIENT, "PASV\r\n");
    talk.feed(&[pasv]);
    let reply = talk.packet(SERVER, line);
    assert_eq!(talk.rewritten(SERVER, &reply), grown);
    for _ in 0..TIMES {
        let pasv = talk.packet(CLIENT, "PASV\r\n");
        talk.feed(&[pasv]);
        let reply = talk.packet(SERVER, line);
        talk.counted(&[reply]);
        talk.growth[SERVER] = talk.growth[SERVER].wrapping_add(grown as u32);
    }
    TIMES
}

/// A client inside announces; the address has another length outside.
fn port() -> usize {
    let mut talk = Talk::new(false, LONGER, true);
    let line = "PORT 10,0,0,2,195,80\r\n";
    let mut grown = 0;
    for n in 0..=TIMES {
        let command = talk.packet(CLIENT, line);
        if n == 0 {
            grown = talk.rewritten(CLIENT, &command);
        } else {
            talk.counted(&[command]);
            talk.growth[CLIENT] = talk.growth[CLIENT].wrapping_add_signed(grown as i32);
        }
        let answer = talk.packet(SERVER, "200 PORT command successful\r\n");
        talk.feed(&[answer]);
    }
    TIMES
}

fn ack_of_edited_stream() -> usize {
    let mut talk = Talk::new(true, LONGER, false);
    let pasv = talk.packet(CLIENT, "PASV\r\n");
    talk.feed(&[pasv]);
    let reply = talk.packet(SERVER, "227 Entering Passive Mode (10,0,0,2,195,80).\r\n");
    assert_eq!(talk.rewritten(SERVER, &reply), 5);
    let packets: Vec<_> = (0..TIMES).map(|_| talk.packet(CLIENT, "")).collect();
    talk.counted(&packets);
    packets.len()
}

/// Login, `PASV`, `RETR`, `QUIT`, and the FIN of both ends, in an engine with one session after the
/// other.
fn small_session() -> usize {
    let mut talk = Talk::unborn(true, LONGER, true);
    for _ in 0..TIMES {
        let mut packets = talk.opening();
        let lines = [
            (CLIENT, "PASV\r\n"),
            (SERVER, "227 Entering Passive Mode (10,0,0,2,195,80).\r\n"),
            (CLIENT, "RETR file\r\n"),
            (SERVER, "150 Opening data connection\r\n"),
            (CLIENT, ""),
            (SERVER, "226 Transfer complete\r\n"),
            (CLIENT, "QUIT\r\n"),
            (SERVER, "221 Goodbye\r\n"),
        ];
        for (who, line) in lines {
            packets.push(talk.packet(who, line));
        }
        for (who, other) in [(SERVER, CLIENT), (CLIENT, SERVER)] {
            let fin = Seg {
                flags: FIN | ACK,
                ..data(0, 0, "")
            };
            packets.push(talk.segment(who, fin, 1));
            packets.push(talk.packet(other, ""));
        }
        talk.counted(&packets);
        // Other numbers, as those of a new connection.
        talk.at = talk.at.map(|at| at.wrapping_add(1 << 20));
    }
    TIMES
}

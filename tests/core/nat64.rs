//! IPv6-only clients of IPv4-only servers (RFC 6384), packet by packet: what either end reads, under
//! which numbers, and what opens for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use ftpalg::engine::event::Event;
use ftpalg::engine::gateway::{Request, Twin};
use ftpalg::engine::{Config, Engine, Entry, Side, Standing, Tuple, Verdict};
use ftpalg::ftp::Mode;
use ftpalg::ftp::policy::{Policy, Strict};
use proptest::prelude::*;
use testkit::gateway::{FakeGateway, MARKS};
use testkit::packet::LOGIN;

const CLIENT: &str = "[2001:db8:1::2]:40000";
const SERVER: &str = "[64:ff9b::198.51.100.2]:21";
/// The client's end on the IPv4 side, the server, and what the server sees of the client.
const POOL: &str = "192.168.255.7:40000";
const SERVER4: &str = "198.51.100.2:21";
const SEEN: &str = "203.0.113.1:40000";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn entry(src: &str, dst: &str, seen: &str) -> Entry {
    let (original, reply) = ((at(src), at(dst)), (at(dst), at(seen)));
    let tuple = |(src, dst)| Tuple { src, dst };
    Entry {
        original: tuple(original),
        reply: tuple(reply),
        mark: 0,
    }
}

fn config() -> Config {
    Config {
        nat64: vec!["default".parse().unwrap()],
        marks: Some(MARKS),
        ..Config::default()
    }
}

/// An end of the control connection: what it has written and read, by its own numbers.
#[derive(Default)]
struct End {
    sent: u32,
    read: Vec<u8>,
    acknowledged: u32,
}

/// Both ends and the engine between them.
struct Talk {
    engine: Engine,
    world: FakeGateway,
    ends: [End; 2],
    server: SocketAddr,
}

const C: usize = 0;
const S: usize = 1;

impl Talk {
    fn new(config: Config) -> Self {
        Self::with(config, SERVER, Some(entry(POOL, SERVER4, SEEN)))
    }

    fn with(config: Config, server: &str, translated: Option<Entry>) -> Self {
        let mut world = FakeGateway::with_entry(entry(CLIENT, server, CLIENT));
        world.translated = translated;
        let mut talk = Self {
            engine: Engine::new(config, 0),
            world,
            ends: Default::default(),
            server: at(server),
        };
        for (who, ack) in [(C, false), (S, true)] {
            let builder = talk.builder(who, u32::MAX, true, ack);
            talk.put(who, builder, b"");
        }
        talk
    }

    /// The same, logged in.
    fn begun(config: Config) -> Self {
        let mut talk = Self::new(config);
        talk.login();
        talk
    }

    fn login(&mut self) {
        for (who, line) in [
            (S, "220 x"),
            (C, "USER a"),
            (S, "331 x"),
            (C, "PASS b"),
            (S, "230 x"),
        ] {
            assert_eq!(self.says(who, line), line);
        }
    }

    fn builder(
        &self,
        who: usize,
        seq: u32,
        syn: bool,
        ack: bool,
    ) -> etherparse::PacketBuilderStep<etherparse::TcpHeader> {
        let (SocketAddr::V6(client), SocketAddr::V6(server)) = (at(CLIENT), self.server) else {
            panic!("not IPv6")
        };
        let (from, to) = if who == C {
            (client, server)
        } else {
            (server, client)
        };
        let octets = |ip: &Ipv6Addr| ip.octets();
        let mut tcp = etherparse::TcpHeader::new(from.port(), to.port(), seq, 64_000);
        (tcp.syn, tcp.ack, tcp.psh) = (syn, ack, !syn);
        tcp.acknowledgment_number = match syn {
            true => 0,
            false => self.ends[who].acknowledged,
        };
        PacketBuilder::ipv6(octets(from.ip()), octets(to.ip()), 61).tcp_header(tcp)
    }

    /// Puts a packet through the engine; its receiver takes what comes.
    fn put(
        &mut self,
        who: usize,
        builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>,
        payload: &[u8],
    ) {
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        let side = if who == C {
            Side::Egress
        } else {
            Side::Ingress
        };
        let verdict = self
            .engine
            .packet(side, &packet, Duration::from_secs(1), &mut self.world);
        let out = match verdict {
            Verdict::Accept => packet.clone(),
            Verdict::Replace(out) => out.to_vec(),
            Verdict::Drop => return,
        };
        let sliced = SlicedPacket::from_ip(&out).unwrap();
        let (Some(NetSlice::Ipv6(head)), Some(TransportSlice::Tcp(tcp))) =
            (sliced.net, sliced.transport)
        else {
            panic!("no TCP over IPv6: {out:02x?}")
        };
        let checksum = tcp
            .to_header()
            .calc_checksum_ipv6(&head.header().to_header(), tcp.payload());
        assert_eq!(checksum.ok(), Some(tcp.checksum()));
        if tcp.syn() {
            return;
        }
        // What its sender hears of its own bytes is never beyond what it sent.
        let receiver = &mut self.ends[1 - who];
        assert!(tcp.acknowledgment_number() <= receiver.sent, "{who}");
        let have = receiver.read.len() as u32;
        let skip = have.checked_sub(tcp.sequence_number()).expect("a gap") as usize;
        let new = tcp.payload().get(skip..).unwrap_or_default();
        receiver.read.extend_from_slice(new);
    }

    /// A piece of text, and the acknowledgement of its receiver.
    fn piece(&mut self, who: usize, text: &[u8]) {
        let builder = self.builder(who, self.ends[who].sent, false, true);
        self.ends[who].sent += text.len() as u32;
        self.put(who, builder, text);
        self.ends[1 - who].acknowledged = self.ends[1 - who].read.len() as u32;
        let builder = self.builder(1 - who, self.ends[1 - who].sent, false, true);
        self.put(1 - who, builder, b"");
    }

    /// A line, in pieces of at most so many bytes; what its receiver reads, without the line end.
    fn cut(&mut self, who: usize, line: &str, pieces: &[usize]) -> String {
        let before = self.ends[1 - who].read.len();
        let text = format!("{line}\r\n");
        let mut rest = text.as_bytes();
        for piece in pieces {
            let (head, tail) = rest.split_at((*piece).min(rest.len()));
            if !head.is_empty() {
                self.piece(who, head);
            }
            rest = tail;
        }
        if !rest.is_empty() {
            self.piece(who, rest);
        }
        let read = String::from_utf8(self.ends[1 - who].read[before..].to_vec()).unwrap();
        read.strip_suffix("\r\n").expect("a whole line").to_owned()
    }

    fn says(&mut self, who: usize, line: &str) -> String {
        self.cut(who, line, &[])
    }

    fn opened(&self) -> &[Request] {
        &self.world.opened
    }

    fn standing(&mut self) -> Standing {
        MARKS.standing(self.world.entry().mark)
    }

    /// The process ends, and another one begins.
    fn restart(&mut self, config: Config) {
        self.engine = Engine::new(config, 0);
    }
}

const OLD: &str = "227 Entering Passive Mode (198,51,100,2,195,80).";
const NEW: &str = "229 Entering Extended Passive Mode (|||50000|).";

/// How often the text of [`OLD`] has blanks when it is translated isn't the matter here.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn without_words(text: &str) -> String {
    squeezed(text).replace("229 Extended", "229 Entering Extended")
}

#[test]
fn a_passive_transfer() {
    let mut talk = Talk::begun(config());
    assert_eq!(talk.says(C, "EPSV"), "PASV");
    let read = talk.says(S, OLD);
    assert_eq!(without_words(&read), NEW);
    assert_eq!(read.len(), OLD.len(), "the length is kept");
    assert_eq!(talk.standing(), Standing::Even);
    let [request] = talk.opened() else {
        panic!("{:?}", talk.opened())
    };
    assert_eq!(request.mode, Mode::Passive);
    assert_eq!(request.from, ip("2001:db8:1::2"));
    assert_eq!(request.land, at("[64:ff9b::198.51.100.2]:50000"));
    assert_eq!((request.to, request.published), (request.land.ip(), false));
    let twin = Twin {
        from: ip("192.168.255.7"),
        to: at("198.51.100.2:50000"),
        land: at("198.51.100.2:50000"),
        as_source: Some(ip("203.0.113.1")),
        mark: 0,
    };
    assert_eq!(request.twin, Some(twin));
    let announced = talk.world.events.iter().any(|event| {
        matches!(event, Event::Announced { old, new, .. }
            if *old == at("198.51.100.2:50000") && *new == request.land)
    });
    assert!(announced);
    assert_eq!(talk.engine.stats().translated, 2);
    assert_eq!(talk.engine.stats().rewritten_227, 1);
}

#[test]
fn cut_at_every_byte() {
    for cut in 1..OLD.len() + 1 {
        let mut talk = Talk::begun(config());
        let asked = talk.cut(C, "EPSV", &[cut.min(5)]);
        assert_eq!(asked, "PASV");
        let read = talk.cut(S, OLD, &[cut]);
        assert_eq!(without_words(&read), NEW, "cut at {cut}");
        assert_eq!(talk.opened().len(), 1);
        // The dialogue goes on.
        assert_eq!(talk.says(C, "NOOP"), "NOOP");
        assert_eq!(talk.says(S, "200 x"), "200 x");
    }
    let mut talk = Talk::begun(config());
    assert_eq!(talk.cut(C, "EPSV 2", &[1; 8]), "PASV");
    assert_eq!(without_words(&talk.cut(S, OLD, &[1; 60])), NEW);
    for (asked, becomes, owed) in [
        ("ALGS STATUS64", "NOOP", "216 EPSVEPRT"),
        (
            "EPSV ALL",
            "NOOP",
            "504 EPSV ALL not supported through NAT64",
        ),
        (
            "EPSV 3",
            "NOOP",
            "522 Network protocol not supported, use (2)",
        ),
    ] {
        assert_eq!(talk.cut(C, asked, &[1; 20]), becomes);
        assert_eq!(talk.cut(S, "200 nothing done", &[1; 20]), owed);
    }
    assert_eq!(
        talk.cut(C, "EPRT |2|2001:db8:1::2|50001|", &[1; 40]),
        "PORT 203,0,113,1,195,81"
    );
    assert_eq!(talk.cut(S, "200 x", &[1; 9]), "200 x");
}

#[test]
fn an_active_transfer() {
    for same_port in [true, false] {
        let mut talk = Talk::begun(config());
        talk.world.same_port = same_port;
        let sent = talk.says(C, "EPRT |2|2001:db8:1::2|50000|");
        let [request] = talk.opened() else {
            panic!("{:?}", talk.opened())
        };
        assert_eq!((request.mode, request.published), (Mode::Active, true));
        assert_eq!(request.from, ip("198.51.100.2"));
        assert_eq!(
            (request.to, request.land),
            (ip("203.0.113.1"), at("192.168.255.7:50000"))
        );
        let twin = Twin {
            from: ip("64:ff9b::198.51.100.2"),
            to: at("[2001:db8:1::2]:50000"),
            land: at("[2001:db8:1::2]:50000"),
            as_source: None,
            mark: 0,
        };
        assert_eq!(request.twin, Some(twin));
        match same_port {
            true => assert_eq!(sent, "PORT 203,0,113,1,195,80"),
            false => assert!(sent.starts_with("PORT 203,0,113,1,") && !sent.ends_with("195,80")),
        }
        assert_eq!(talk.standing(), Standing::Uneven);
        assert_eq!(talk.says(S, "200 x"), "200 x");
        assert_eq!(talk.says(C, "RETR f"), "RETR f");
    }
}

#[test]
fn what_is_refused_stays_refused() {
    let mut talk = Talk::begun(config());
    for line in [
        "EPRT |2|2001:db8:1::3|50000|",
        "EPRT |1|192.0.2.7|50000|",
        "PORT 192,0,2,7,195,80",
        "EPRT |2|2001:db8:1::2|22|",
    ] {
        let sent = talk.says(C, line);
        assert!(sent.ends_with('x') && sent.len() == line.len(), "{sent}");
        talk.says(S, "501 x");
    }
    assert_eq!(talk.opened(), []);
    // Before the login.
    let mut talk = Talk::new(config());
    talk.says(S, "220 x");
    let line = "EPRT |2|2001:db8:1::2|50000|";
    assert_eq!(talk.says(C, line), line);
    talk.says(S, "530 x");
    assert_eq!(talk.says(C, "EPSV"), "PASV");
    assert_eq!(talk.says(S, OLD), OLD);
    assert_eq!(talk.opened(), []);
}

#[test]
fn another_hosts_address_in_a_227() {
    let foreign = "227 Entering Passive Mode (10,9,8,7,195,80).";
    let mut talk = Talk::begun(config());
    talk.says(C, "EPSV");
    assert_eq!(without_words(&talk.says(S, foreign)), NEW);
    let policy = Policy {
        strict: Strict {
            addresses: true,
            ..Strict::default()
        },
        ..Policy::default()
    };
    let mut talk = Talk::begun(Config {
        policy: policy.into(),
        ..config()
    });
    talk.says(C, "EPSV");
    let read = talk.says(S, foreign);
    assert!(
        read.starts_with("425 ") && read.len() == foreign.len(),
        "{read}"
    );
    assert_eq!(talk.opened(), []);
    talk.says(C, "EPSV");
    assert_eq!(without_words(&talk.says(S, OLD)), NEW);
    assert_eq!(talk.opened().len(), 1);
}

/// Of a translator in the kernel, conntrack doesn't know.
#[test]
fn without_an_entry_on_either_side() {
    let mut talk = Talk::with(config(), SERVER, None);
    talk.login();
    talk.world.deaf = true;
    assert_eq!(talk.says(C, "EPSV"), "PASV");
    assert_eq!(without_words(&talk.says(S, OLD)), NEW);
    // Nobody knows what the server sees of the client.
    let line = "EPRT |2|2001:db8:1::2|50000|";
    assert_eq!(talk.says(C, line), line);
    assert_eq!(talk.opened(), []);
    assert_eq!(talk.engine.stats().not_opened, 2);
    // An IPv4 entry alone is somebody else's.
    talk.says(S, "522 x");
    talk.world.translated = Some(entry(POOL, SERVER4, SEEN));
    assert_eq!(talk.says(C, line), line);
    assert_eq!(talk.opened(), []);
    talk.world.translated = None;
    // The IPv6 side alone.
    talk.world.deaf = false;
    talk.says(S, "522 x");
    talk.says(C, "EPSV");
    talk.says(S, OLD);
    assert_eq!(talk.opened().len(), 1);
    assert_eq!(talk.opened()[0].twin, None);
}

#[test]
fn a_session_outside_of_the_prefix_is_as_ever() {
    let server = "[2001:db8:2::2]:21";
    let mut talk = Talk::with(config(), server, Some(entry(POOL, SERVER4, SEEN)));
    talk.login();
    for line in ["EPSV", "EPSV 2", "EPSV ALL", "ALGS STATUS64"] {
        assert_eq!(talk.says(C, line), line);
        let reply = match line.len() {
            4 | 6 => "229 Entering (|||50000|)",
            _ => "500 x",
        };
        assert_eq!(talk.says(S, reply), reply);
    }
    assert_eq!(talk.engine.stats().translated, 0);
    assert!(talk.opened().iter().all(|request| request.twin.is_none()));
}

/// What a server is known for holds for later sessions with it.
#[test]
fn a_server_that_speaks_epsv() {
    let mut talk = Talk::begun(config());
    talk.says(C, "ALGS DISABLE64");
    assert_eq!(talk.says(S, "200 x"), "216 NONE");
    let eprt = "EPRT |2|2001:db8:1::2|50000|";
    assert_eq!(talk.says(C, eprt), eprt);
    assert_eq!(talk.opened(), []);
    talk.says(S, "522 x");
    assert_eq!(talk.says(C, "EPSV"), "EPSV");
    let reply = "229 Entering Extended Passive Mode (|||50000|)";
    assert_eq!(talk.says(S, reply), reply);
    let mut later = Talk::new(config());
    later.engine = talk.engine;
    later.server = at(SERVER);
    let mut later = Talk {
        ends: Default::default(),
        ..later
    };
    // Another connection of the same client.
    later.engine.forget_all(&mut later.world);
    for (who, ack) in [(C, false), (S, true)] {
        let builder = later.builder(who, u32::MAX, true, ack);
        later.put(who, builder, b"");
    }
    later.login();
    assert_eq!(later.says(C, "EPSV"), "EPSV");
    assert_eq!(later.says(S, "500 not any more"), "500 not any more");
    assert_eq!(later.says(C, "EPSV"), "PASV");
}

/// A client that has a translator of its own (464XLAT) speaks IPv4.
#[test]
fn clients_with_a_translator_of_their_own() {
    let mut talk = Talk::begun(config());
    assert_eq!(talk.says(C, "PASV"), "PASV");
    assert_eq!(talk.says(S, OLD), OLD);
    assert_eq!(talk.opened().len(), 1);
    talk.says(C, "PASV");
    let private = "227 Entering Passive Mode (10,0,0,2,195,80).";
    assert_eq!(talk.says(S, private), OLD, "it is corrected");
    talk.says(C, "PASV");
    let long = "227 Entering Passive Mode (192,168,100,200,195,80).";
    let corrected = talk.says(S, long);
    assert_eq!(
        (squeezed(&corrected).as_str(), corrected.len()),
        (OLD, long.len())
    );
    // RFC 7335: the address behind its translator.
    assert_eq!(
        talk.says(C, "PORT 192,0,0,4,195,82"),
        "PORT 203,0,113,1,195,82"
    );
    let request = talk.opened().last().unwrap();
    assert_eq!(request.land, at("192.168.255.7:50002"));
    assert_eq!(request.twin.unwrap().land, at("[2001:db8:1::2]:50002"));
}

/// The process ends at any moment of a dialogue, and its successor goes on.
#[test]
fn successors_go_on() {
    let lines: [(usize, &str, &str); 14] = [
        (C, "EPSV", "PASV"),
        (S, OLD, NEW),
        (C, "ALGS DISABLE64", "NOOP"),
        (C, "EPSV", "EPSV"),
        (S, "200 x", "216 NONE"),
        (S, "229 e (|||50001|)", "229 e (|||50001|)"),
        (C, "ALGS ENABLE64", "NOOP"),
        (S, "200 x", "216 EPSVEPRT"),
        (C, "EPSV 7", "NOOP"),
        (S, "200 x", "522 Network protocol not supported, use (2)"),
        (C, "EPRT |2|2001:db8:1::2|50000|", "PORT 203,0,113,1,195,80"),
        (S, "200 x", "200 x"),
        (C, "EPSV 2", "PASV"),
        (S, OLD, NEW),
    ];
    for ends in 0..1u32 << lines.len().min(10) {
        let mut talk = Talk::begun(config());
        for (n, (who, line, expected)) in lines.into_iter().enumerate() {
            if ends >> (n % 10) & 1 == 1 {
                talk.restart(config());
            }
            let read = talk.says(who, line);
            assert_eq!(
                without_words(&read),
                without_words(expected),
                "{ends:b}: {line}"
            );
        }
        assert_eq!(talk.engine.stats().orphaned, 0);
        assert_eq!(talk.opened().len(), 4, "{ends:b}");
    }
}

/// An even session is recorded for as long as a reply would be taken for another one's.
#[test]
fn a_question_is_recorded() {
    let mut talk = Talk::begun(config());
    assert!(talk.world.records.is_empty());
    talk.says(C, "EPSV");
    assert_eq!(
        (talk.standing(), talk.world.records.len()),
        (Standing::Even, 1)
    );
    talk.says(S, OLD);
    assert_eq!(
        (talk.standing(), talk.world.records.len()),
        (Standing::Even, 0)
    );
}

/// Nothing is translated any more; the numbers stay right.
#[test]
fn after_auth() {
    let mut talk = Talk::begun(config());
    talk.says(C, "EPSV 2");
    talk.says(S, OLD);
    assert_eq!(talk.says(C, "AUTH TLS"), "AUTH TLS");
    assert_eq!(talk.says(S, "234 x"), "234 x");
    for (who, line) in [(C, "EPSV"), (S, OLD), (C, "ALGS STATUS64"), (S, "200 x")] {
        assert_eq!(talk.says(who, line), line);
    }
}

const SAYS: [(bool, &str); 26] = [
    (false, "EPSV\r\n"),
    (false, "EPSV 2\r\n"),
    (false, "EPSV ALL\r\n"),
    (false, "EPSV 9\r\n"),
    (false, "ALGS STATUS64\r\n"),
    (false, "ALGS DISABLE64\r\n"),
    (false, "algs enable64\n"),
    (false, "EPRT |2|::1|50000|\r\n"),
    (false, "EPRT |2|::1|22|\r\n"),
    (false, "RETR x\r\n"),
    (false, "NOOP\r\n"),
    (false, "EP\r\n"),
    (false, "\u{1}EPSV\r\n"),
    (false, " EPSV\r\n"),
    (true, "227 Entering Passive Mode (10,0,0,2,195,80).\r\n"),
    (true, "227 10,0,0,2,195\r\n"),
    (true, "227-x\r\n227 (10,0,0,2,195,80)\r\n"),
    (true, "229 Entering (|||50000|)\r\n"),
    (true, "200 ok\r\n"),
    (true, "200-a\r\n b\r\n200 c\r\n"),
    (true, "150 here\r\n"),
    (true, "226 done\n"),
    (true, "500 no\r\n"),
    (true, "425 no\r\n"),
    (true, "334 go on\r\n"),
    (true, "2\r\n"),
];

proptest! {
    /// However the lines of a dialogue that makes no sense are cut, the same is decided, and the same goes
    /// out.
    #[test]
    fn any_dialogue_however_it_is_cut(
        known: bool, logged_in: bool, lines in prop::collection::vec(0..SAYS.len(), 1..24),
    ) {
        let login: &[(bool, &str)] = if logged_in { &LOGIN } else { &[] };
        let lines = login.iter().copied().chain(lines.into_iter().map(|n| SAYS[n]));
        let mut data = vec![64 | if known { 128 } else { 0 }];
        for (by_server, text) in lines {
            data.push(u8::from(by_server) << 7 | (text.len() - 1) as u8);
            data.extend(text.as_bytes());
        }
        testkit::checks::session::check(&data);
    }

    /// The same with packets, and with successors: no byte is lost, and no number wrong.
    #[test]
    fn any_dialogue_packet_by_packet(
        lines in prop::collection::vec((0..SAYS.len(), 1usize..40, 0u8..12), 1..24), any: bool,
    ) {
        let mut talk = Talk::begun(config());
        if any {
            talk.world.translated = None;
        }
        for (n, piece, ends) in lines {
            if ends == 0 {
                talk.restart(config());
            }
            let (by_server, text) = SAYS[n];
            for piece in text.as_bytes().chunks(piece) {
                talk.piece(usize::from(by_server), piece);
            }
        }
        // Whatever was said, it is a session that is followed.
        let stats = talk.engine.stats();
        prop_assert_eq!((stats.limit_reached, stats.orphaned, stats.unacceptable), (0, 0, 0));
    }
}

//! Whatever becomes of the packets, each end reads exactly the reference rewrite of what the other
//! wrote: two real TCP implementations, the engine, and bad links, in virtual time.

use std::net::Ipv4Addr;

use ftpalg::ftp::policy::SERVICE_PORTS;
use proptest::prelude::*;
use testkit::gateway::public_port;
use testkit::packet::OUTSIDE;
use testkit::random::Rng;
use testkit::tcp::simulator::{self, Piece, Setup, Turn, Weather};
use testkit::trace::Who;

/// How an application cuts what it writes.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    Bytes { pause: u64, wait_ack: bool },
    Random { pause: u64, wait_ack: bool },
}

fn pieces(text: &[u8], cut: Cut, rng: &mut Rng) -> Vec<Piece> {
    let mut rest = text;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (n, pause, wait_ack) = match cut {
            Cut::Whole => (rest.len(), 0, false),
            Cut::Bytes { pause, wait_ack } => (1, pause, wait_ack),
            Cut::Random { pause, wait_ack } => {
                (1 + rng.below(rest.len() as u64) as usize, pause, wait_ack)
            }
        };
        out.push(Piece {
            bytes: rest[..n].to_vec(),
            pause,
            wait_ack,
        });
        rest = &rest[n..];
    }
    out
}

/// A line of the dialogue: as written, and as the other end must read it.
struct Line {
    who: Who,
    written: String,
    read: String,
}

struct Talk {
    private: Ipv4Addr,
    public: Ipv4Addr,
    server_inside: bool,
    same_port: bool,
    lines: Vec<Line>,
}

impl Talk {
    fn plain(&mut self, who: Who, text: &str) {
        self.lines.push(Line {
            who,
            written: text.to_owned(),
            read: text.to_owned(),
        });
    }

    fn tuple(ip: Ipv4Addr, port: u16) -> String {
        let [a, b, c, d] = ip.octets();
        format!("{a},{b},{c},{d},{},{}", port >> 8, port & 255)
    }

    fn own(&self, inside: bool) -> Ipv4Addr {
        if inside { self.private } else { OUTSIDE }
    }

    /// The address and port that the other end must be told.
    fn seen(&self, inside: bool, port: u16) -> (Ipv4Addr, u16) {
        if inside {
            (
                self.public,
                if self.same_port || self.private == self.public {
                    port
                } else {
                    public_port(port)
                },
            )
        } else {
            (OUTSIDE, port)
        }
    }

    fn login(&mut self) {
        self.plain(Who::Server, "220 ready\r\n");
        self.plain(Who::Client, "USER someone\r\n");
        self.plain(Who::Server, "331 password, please\r\n");
        self.plain(Who::Client, "PASS secret\r\n");
        self.plain(
            Who::Server,
            "230-hello\r\n 227 Entering Passive Mode (1,2,3,4,5,6)\r\n230 done\r\n",
        );
    }

    fn pasv(&mut self, port: u16) {
        self.plain(Who::Client, "PASV\r\n");
        self.pasv_reply(port);
    }

    fn pasv_reply(&mut self, port: u16) {
        let own = self.own(self.server_inside);
        let (ip, public) = self.seen(self.server_inside, port);
        self.lines.push(Line {
            who: Who::Server,
            written: format!(
                "227 Entering Passive Mode ({}).\r\n",
                Self::tuple(own, port)
            ),
            read: format!(
                "227 Entering Passive Mode ({}).\r\n",
                Self::tuple(ip, public)
            ),
        });
    }

    fn epsv(&mut self, port: u16) {
        self.plain(Who::Client, "EPSV\r\n");
        let (_, public) = self.seen(self.server_inside, port);
        self.lines.push(Line {
            who: Who::Server,
            written: format!("229 Entering Extended Passive Mode (|||{port}|)\r\n"),
            read: format!("229 Entering Extended Passive Mode (|||{public}|)\r\n"),
        });
    }

    fn port(&mut self, port: u16) {
        let own = self.own(!self.server_inside);
        let (ip, public) = self.seen(!self.server_inside, port);
        self.lines.push(Line {
            who: Who::Client,
            written: format!("PORT {}\r\n", Self::tuple(own, port)),
            read: format!("PORT {}\r\n", Self::tuple(ip, public)),
        });
        self.plain(Who::Server, "200 PORT command successful\r\n");
    }

    fn eprt(&mut self, port: u16) {
        let own = self.own(!self.server_inside);
        let (ip, public) = self.seen(!self.server_inside, port);
        self.lines.push(Line {
            who: Who::Client,
            written: format!("EPRT |1|{own}|{port}|\r\n"),
            read: format!("EPRT |1|{ip}|{public}|\r\n"),
        });
        self.plain(Who::Server, "200 EPRT command successful\r\n");
    }

    fn transfer(&mut self) {
        self.plain(Who::Client, "RETR file.bin\r\n");
        self.plain(Who::Server, "150 here it comes\r\n226 done\r\n");
    }

    /// From here on nothing may be read as FTP.
    fn tls(&mut self) {
        self.plain(Who::Client, "AUTH TLS\r\n");
        self.plain(Who::Server, "234 go on\r\n");
        for n in 0..4 {
            let tuple = Self::tuple(self.private, 2000 + n);
            self.plain(
                Who::Client,
                &format!("\x16\x03\x01\x02PORT {tuple}\r\nPASV\r\n"),
            );
            self.plain(
                Who::Server,
                &format!("\x17\x03\x03227 hm ({tuple})\r\n227 ({tuple}"),
            );
        }
    }

    /// TLS as it is framed, and clear text again behind it (`CCC`): a part of the dialogue that
    /// passes as it is.
    fn under_tls(&mut self, rng: &mut Rng) {
        self.plain(Who::Client, "AUTH TLS\r\n");
        self.plain(Who::Server, "234 go on\r\n");
        let mut record = |kind: u8| {
            let length = 1 + rng.below(120) as usize;
            let body = "PORT 10,0,0,2,7,208\r\n227 (10,0,0,2,7,208)\r\n".repeat(3);
            let header: String = [kind, 3, 3, 0, length as u8]
                .map(char::from)
                .iter()
                .collect();
            header + &body[..length]
        };
        for kinds in [&[22][..], &[20, 22], &[23], &[23, 23], &[21]] {
            for who in [Who::Client, Who::Server] {
                let text: String = kinds.iter().map(|kind| record(*kind)).collect();
                self.plain(who, &text);
            }
        }
    }

    /// Lines without an address.
    fn chat(&mut self, rng: &mut Rng) {
        for _ in 0..3 + rng.below(10) {
            self.plain(Who::Client, "NOOP\r\n");
            let n = rng.below(300) as usize;
            self.plain(
                Who::Server,
                &format!("200-{}\r\n227 x\r\n200 ok\r\n", "o".repeat(n)),
            );
        }
    }

    fn quit(&mut self) {
        self.plain(Who::Client, "QUIT\r\n");
        self.plain(Who::Server, "221 bye\r\n");
    }
}

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    cut: Cut,
    nagle: bool,
    delayed_ack: bool,
    mtu: usize,
    weather: [Weather; 4],
    isn: [Option<u32>; 2],
    transparent: bool,
    forged: u64,
    ends: u64,
}

impl Case {
    fn fine(seed: u64) -> Self {
        Self {
            seed,
            cut: Cut::Whole,
            nagle: false,
            delayed_ack: true,
            mtu: 1500,
            weather: fine(),
            isn: [None; 2],
            transparent: false,
            forged: 0,
            ends: 0,
        }
    }
}

/// A port that a client may name.
fn free_port(rng: &mut Rng) -> u16 {
    loop {
        let port = 1024 + rng.below(64_000) as u16;
        if !SERVICE_PORTS.iter().any(|range| range.contains(&port)) {
            return port;
        }
    }
}

fn talk(rng: &mut Rng) -> Talk {
    let addresses = [
        (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(203, 0, 113, 199)),
        (Ipv4Addr::new(192, 168, 100, 200), Ipv4Addr::new(9, 1, 2, 3)),
        (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 3)),
    ];
    let (private, public) = addresses[rng.below(3) as usize];
    let mut talk = Talk {
        private,
        public,
        server_inside: rng.chance(500),
        same_port: rng.chance(500),
        lines: Vec::new(),
    };
    talk.login();
    for _ in 0..1 + rng.below(5) {
        let port = free_port(rng);
        match rng.below(4) {
            0 => talk.pasv(port),
            1 => talk.epsv(port),
            2 => talk.port(port),
            _ => talk.eprt(port),
        }
        talk.transfer();
    }
    talk.quit();
    talk
}

fn play(case: &Case, talk: &Talk) -> simulator::Outcome {
    let mut rng = Rng::new(case.seed ^ 0x5EED);
    // Without the engine, what is read is what was written.
    let reads = |line: &Line| {
        let read = if case.transparent {
            &line.written
        } else {
            &line.read
        };
        read.clone()
    };
    // Lines of one speaker in a row form one turn.
    let mut turns: Vec<Turn> = Vec::new();
    let mut texts: Vec<(Who, Vec<u8>, usize)> = Vec::new();
    for line in &talk.lines {
        match texts.last_mut() {
            Some((who, text, read)) if *who == line.who => {
                text.extend(line.written.bytes());
                *read += reads(line).len();
            }
            _ => texts.push((
                line.who,
                line.written.clone().into_bytes(),
                reads(line).len(),
            )),
        }
    }
    for (who, text, _) in &texts {
        turns.push(Turn {
            who: *who,
            pieces: pieces(text, case.cut, &mut rng),
        });
    }
    let expect = |who: Who, n: usize| -> usize {
        texts[..n]
            .iter()
            .filter(|(w, _, _)| *w == who)
            .map(|(_, _, read)| *read)
            .sum()
    };
    let setup = Setup {
        seed: case.seed,
        server_inside: talk.server_inside,
        private: talk.private,
        public: talk.public,
        mtu: case.mtu,
        nagle: case.nagle,
        weather: case.weather,
        turns,
        same_port: talk.same_port,
        delayed_ack: case.delayed_ack,
        isn: case.isn,
        transparent: case.transparent,
        forged: case.forged,
        ends: case.ends,
    };
    let outcome = simulator::run(&setup, &expect);
    let reference = |who: Who| -> String {
        talk.lines
            .iter()
            .filter(|l| l.who == who)
            .map(&reads)
            .collect()
    };
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        shown(&outcome.client_read),
        reference(Who::Server),
        "what the client reads; {case:?}\n{:#?}",
        outcome.events
    );
    assert_eq!(
        shown(&outcome.server_read),
        reference(Who::Client),
        "what the server reads; {case:?}\n{:#?}",
        outcome.events
    );
    assert!(
        outcome.finished && outcome.closed,
        "not over: {} {case:?} {:?}",
        outcome.states,
        outcome.stats
    );
    outcome
}

fn fine() -> [Weather; 4] {
    [Weather::default(); 4]
}

fn simple(server_inside: bool) -> Talk {
    let mut talk = Talk {
        private: Ipv4Addr::new(10, 0, 0, 2),
        public: Ipv4Addr::new(203, 0, 113, 199),
        server_inside,
        same_port: false,
        lines: Vec::new(),
    };
    talk.login();
    talk
}

#[test]
fn whole_lines() {
    for inside in [true, false] {
        let mut talk = simple(inside);
        talk.pasv(50_011);
        talk.transfer();
        talk.epsv(2_000);
        talk.port(4_321);
        talk.transfer();
        talk.eprt(65_535);
        talk.quit();
        let case = Case {
            seed: 1,
            cut: Cut::Whole,
            nagle: true,
            mtu: 1500,
            ..Case::fine(1)
        };
        let outcome = play(&case, &talk);
        assert_eq!(outcome.stats.announced, 4);
        assert!(outcome.stats.rewritten >= 2);
    }
}

#[test]
fn cut_at_every_byte_by_every_kind_of_sender() {
    for inside in [true, false] {
        for (nagle, cut) in [
            (
                false,
                Cut::Bytes {
                    pause: 2_000,
                    wait_ack: false,
                },
            ),
            (
                false,
                Cut::Bytes {
                    pause: 0,
                    wait_ack: false,
                },
            ),
            (
                true,
                Cut::Bytes {
                    pause: 0,
                    wait_ack: false,
                },
            ),
            (
                false,
                Cut::Bytes {
                    pause: 0,
                    wait_ack: true,
                },
            ),
        ] {
            let mut talk = simple(inside);
            talk.pasv(50_011);
            talk.transfer();
            talk.port(4_321);
            talk.transfer();
            talk.quit();
            let case = Case {
                seed: 7,
                cut,
                nagle,
                mtu: 1500,
                ..Case::fine(7)
            };
            let outcome = play(&case, &talk);
            // Who waits for acknowledgements of held bytes depends on how soon the receiver repeats
            // itself: smoltcp does so once a second (RFC 5961 §7), Linux at once.
            let waits = nagle || matches!(cut, Cut::Bytes { wait_ack: true, .. });
            assert!(
                waits || outcome.took < 1_500_000,
                "{case:?} took {} µs",
                outcome.took
            );
        }
    }
}

#[test]
fn a_batch_that_outgrows_the_segment() {
    let mut talk = simple(true);
    for _ in 0..60 {
        talk.plain(Who::Client, "PASV\r\n");
    }
    for n in 0..60 {
        talk.pasv_reply(10_000 + n * 7);
    }
    talk.quit();
    let case = Case {
        seed: 3,
        cut: Cut::Whole,
        nagle: true,
        mtu: 576,
        ..Case::fine(3)
    };
    let outcome = play(&case, &talk);
    assert_eq!(outcome.stats.announced, 60);
}

fn weather() -> impl Strategy<Value = Weather> {
    (0u64..100, 0u64..100, 0u64..200).prop_map(|(loss, duplicate, late)| Weather {
        loss,
        duplicate,
        late,
        split: 0,
    })
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        Just(Cut::Whole),
        (0u64..5_000, any::<bool>()).prop_map(|(pause, wait_ack)| Cut::Random { pause, wait_ack }),
        (0u64..2_000).prop_map(|pause| Cut::Bytes {
            pause,
            wait_ack: false
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2000), ..ProptestConfig::default() })]
    #[test]
    fn any_cut_any_weather(
        seed: u64, cut in cut(), nagle: bool, small: bool,
        weather in [weather(), weather(), weather(), weather()],
    ) {
        let talk = talk(&mut Rng::new(seed));
        let mtu = if small { 200 } else { 1500 };
        play(&Case { seed, cut, nagle, mtu, weather , ..Case::fine(seed) }, &talk);
    }
}

/// How many cases of a property are tried: `SIM_CASES` says, for all of them.
fn cases(default: u32) -> u32 {
    std::env::var("SIM_CASES").map_or(default, |n| n.parse().unwrap())
}

#[test]
fn hundreds_of_edits_on_bad_lines() {
    for (server_inside, seed) in [(true, 11), (false, 12)] {
        let mut talk = simple(server_inside);
        for n in 0..50 {
            talk.pasv(10_000 + n * 101);
            talk.port(20_000 + n * 101);
            for _ in 0..4 {
                talk.plain(Who::Client, "PASV\r\n");
            }
            for m in 0..4 {
                talk.pasv_reply(30_000 + n * 101 + m);
            }
        }
        talk.quit();
        let bad = Weather {
            loss: 50,
            duplicate: 50,
            late: 100,
            split: 200,
        };
        let case = Case {
            weather: [bad; 4],
            isn: [Some(u32::MAX - 3000); 2],
            mtu: 300,
            ..Case::fine(seed)
        };
        let outcome = play(&case, &talk);
        assert_eq!(outcome.stats.announced, 300);
    }
}

#[test]
fn one_packet_in_five_is_lost() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let bad = Weather {
            loss: 200,
            duplicate: 20,
            late: 50,
            split: 100,
        };
        let case = Case {
            weather: [bad; 4],
            ..Case::fine(seed)
        };
        play(&case, &talk(&mut rng));
    }
}

fn splitting() -> impl Strategy<Value = Weather> {
    (weather(), 0u64..500).prop_map(|(weather, split)| Weather { split, ..weather })
}

/// A sequence number that the session wraps at, somewhere.
fn wrapping() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![Just(None), (0u32..600).prop_map(|n| Some(u32::MAX - n))]
}

/// Why the simulator lets an endpoint pass that never gets its FIN through: it does the same where
/// nothing stands between the two. When this fails with another smoltcp, `gave_up` can go.
#[test]
fn smoltcp_forgets_its_fin() {
    let weather = |loss, duplicate, late| Weather {
        loss,
        duplicate,
        late,
        split: 0,
    };
    let weather = [
        weather(73, 0, 0),
        weather(60, 23, 24),
        weather(34, 24, 53),
        weather(0, 0, 85),
    ];
    for seed in [15_143_437_847_830_222_500, 408, 2294] {
        let ends = [true, false].map(|transparent| {
            let case = Case {
                weather,
                transparent,
                ..Case::fine(seed)
            };
            let outcome = play(&case, &talk(&mut Rng::new(seed)));
            (
                outcome.gave_up.map(|state| state.to_string()),
                outcome.states,
            )
        });
        let [without, with] = ends;
        assert_eq!(without.0.as_deref(), Some("LAST-ACK"), "seed {seed}");
        assert_eq!(with, without, "seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), ..ProptestConfig::default() })]

    #[test]
    fn any_session_on_any_path(
        seed: u64, cut in cut(), nagle: bool, delayed_ack: bool, mtu in 120usize..1500, tls: bool,
        weather in [splitting(), splitting(), splitting(), splitting()],
        isn in [wrapping(), wrapping()],
    ) {
        let mut talk = talk(&mut Rng::new(seed));
        if tls {
            talk.lines.truncate(talk.lines.len() - 2);
            talk.tls();
        }
        let outcome = play(&Case { seed, cut, nagle, delayed_ack, mtu, weather, isn, transparent: false, forged: 0, ends: 0 }, &talk);
        prop_assert_eq!(outcome.stats.tls, u64::from(tls));
    }

    /// Whatever becomes of the process, once it has made the numbers differ: its successor goes on
    /// with exactly what it knew, and rewrites all that it would have rewritten.
    #[test]
    fn successors_go_on_with_the_record(
        seed: u64, cut in cut(), nagle: bool, delayed_ack: bool, mtu in 120usize..1500, tls: bool,
        weather in [splitting(), splitting(), splitting(), splitting()],
        isn in [wrapping(), wrapping()], ends in 1u64..900,
    ) {
        let mut talk = talk(&mut Rng::new(seed));
        if tls {
            talk.lines.truncate(talk.lines.len() - 2);
            talk.tls();
        }
        // With each end, half of the packets are lost.
        let ends = if weather.iter().any(|w| w.loss > 0) { ends.min(200) } else { ends };
        play(&Case { seed, cut, nagle, delayed_ack, mtu, weather, isn, transparent: false, forged: 0, ends }, &talk);
    }

    /// Packets that no receiver accepts change nothing: both ends read the same, everything is still
    /// rewritten, and the session is followed to its end.
    #[test]
    fn forged_packets_change_nothing(
        seed: u64, cut in cut(), nagle: bool, delayed_ack: bool, mtu in 120usize..1500, tls: bool,
        weather in [splitting(), splitting(), splitting(), splitting()],
        isn in [wrapping(), wrapping()], forged in 100u64..900,
    ) {
        let rng = &mut Rng::new(seed);
        let mut talk = talk(rng);
        // What follows TLS is lost where packets are, but not by forged ones.
        let weather = if tls { fine() } else { weather };
        if tls {
            talk.lines.truncate(talk.lines.len() - 2);
            talk.under_tls(rng);
            talk.pasv(free_port(rng));
            talk.transfer();
            talk.quit();
        }
        let outcome = play(&Case { seed, cut, nagle, delayed_ack, mtu, weather, isn, transparent: false, forged, ends: 0 }, &talk);
        prop_assert_eq!(outcome.stats.clear_again, u64::from(tls));
        prop_assert_eq!(outcome.opened.len() as u64, outcome.stats.announced);
    }

    /// Back in clear text, everything is rewritten as before, whatever becomes of packets behind us.
    #[test]
    fn clear_text_after_tls(
        seed: u64, cut in cut(), nagle: bool, delayed_ack: bool, mtu in 120usize..1500,
        behind in [weather(), weather()], duplicate in 0u64..100, isn in [wrapping(), wrapping()],
    ) {
        let rng = &mut Rng::new(seed);
        let mut talk = talk(rng);
        talk.lines.truncate(talk.lines.len() - 2);
        talk.under_tls(rng);
        talk.pasv(free_port(rng));
        talk.port(free_port(rng));
        talk.transfer();
        talk.epsv(free_port(rng));
        talk.eprt(free_port(rng));
        talk.quit();
        let before = Weather { duplicate, ..Weather::default() };
        let weather = [before, behind[0], before, behind[1]];
        let outcome = play(&Case { seed, cut, nagle, delayed_ack, mtu, weather, isn, transparent: false, forged: 0, ends: 0 }, &talk);
        prop_assert_eq!(outcome.stats.clear_again, 1);
    }

    /// Where there is nothing to rewrite, every packet leaves as it came, however many of them are
    /// lost or late behind us and sent again.
    #[test]
    fn untouched_flows_are_identical_to_the_bit(
        seed: u64, cut in cut(), nagle: bool, delayed_ack: bool, mtu in 120usize..1500,
        behind in [weather(), weather()], duplicate in 0u64..100, isn in [wrapping(), wrapping()],
    ) {
        let mut talk = simple(seed & 1 == 0);
        talk.chat(&mut Rng::new(seed));
        talk.quit();
        let before = Weather { duplicate, ..Weather::default() };
        let weather = [before, behind[0], before, behind[1]];
        let outcome = play(&Case { seed, cut, nagle, delayed_ack, mtu, weather, isn, transparent: false, forged: 0, ends: 0 }, &talk);
        prop_assert_eq!(outcome.changed, 0);
    }
}

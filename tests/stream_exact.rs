//! Whatever becomes of the packets, each end reads exactly the reference rewrite of what the other
//! wrote: two real TCP implementations, the engine, and bad links, in virtual time.

mod sim;

use std::net::Ipv4Addr;

use ftpalg::ftp::policy::SERVICE_PORTS;
use proptest::prelude::*;
use sim::{OUTSIDE, Piece, Rng, Setup, Turn, Weather, Who, public_port};

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
        let own = if self.server_inside {
            self.private
        } else {
            OUTSIDE
        };
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
        let own = if self.server_inside {
            OUTSIDE
        } else {
            self.private
        };
        let (ip, public) = self.seen(!self.server_inside, port);
        self.lines.push(Line {
            who: Who::Client,
            written: format!("PORT {}\r\n", Self::tuple(own, port)),
            read: format!("PORT {}\r\n", Self::tuple(ip, public)),
        });
        self.plain(Who::Server, "200 PORT command successful\r\n");
    }

    fn eprt(&mut self, port: u16) {
        let own = if self.server_inside {
            OUTSIDE
        } else {
            self.private
        };
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
    mtu: usize,
    weather: [Weather; 4],
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

fn play(case: &Case, talk: &Talk) -> sim::Outcome {
    let mut rng = Rng::new(case.seed ^ 0x5EED);
    // Lines of one speaker in a row form one turn.
    let mut turns: Vec<Turn> = Vec::new();
    let mut texts: Vec<(Who, Vec<u8>, usize)> = Vec::new();
    for line in &talk.lines {
        match texts.last_mut() {
            Some((who, text, read)) if *who == line.who => {
                text.extend(line.written.bytes());
                *read += line.read.len();
            }
            _ => texts.push((line.who, line.written.clone().into_bytes(), line.read.len())),
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
    };
    let outcome = sim::run(&setup, &expect);
    let reference = |who: Who| -> String {
        talk.lines
            .iter()
            .filter(|l| l.who == who)
            .map(|l| l.read.as_str())
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
            weather: fine(),
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
                weather: fine(),
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
        weather: fine(),
    };
    let outcome = play(&case, &talk);
    assert_eq!(outcome.stats.announced, 60);
}

fn weather() -> impl Strategy<Value = Weather> {
    (0u64..100, 0u64..100, 0u64..200).prop_map(|(loss, duplicate, late)| Weather {
        loss,
        duplicate,
        late,
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
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn any_cut_any_weather(
        seed: u64, cut in cut(), nagle: bool, small: bool,
        weather in [weather(), weather(), weather(), weather()],
    ) {
        let talk = talk(&mut Rng::new(seed));
        let mtu = if small { 200 } else { 1500 };
        play(&Case { seed, cut, nagle, mtu, weather }, &talk);
    }
}

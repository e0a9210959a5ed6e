//! Whatever clients and servers say: which pinholes are in the kernel, and how many.
//!
//! The engine and the NAT plane over a kernel made of a map. A server at 10.0.0.2 is published;
//! two clients have two sessions each with it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ftpalg::conntrack::{Bytes, Completeness, ConntrackEvent, Timeouts};
use ftpalg::engine::{Config, Engine, Entry, Side, Verdict};
use ftpalg::net::Mark;
use ftpalg::pinholes::backend::{Backend, BackendError};
use ftpalg::pinholes::ports::Listeners;
use ftpalg::pinholes::{self, EventSource, Lookups, Parts, Plane};
use ftpalg::pinholes::{Key, Pinhole};
use proptest::prelude::*;
use testkit::gateway::{Conntrack, FakeGateway};
use testkit::packet::{ACK, LOGIN, PSH, SYN, Seg, build, read};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 199);
const ANN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const BOB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
/// The clients of the sessions.
const CLIENTS: [(Ipv4Addr, u16); 4] = [(ANN, 4001), (BOB, 4001), (ANN, 4002), (BOB, 4002)];
const PER_SESSION: usize = 2;
const PER_CLIENT: usize = 3;
const TOTAL: usize = 5;

/// What is in the kernel.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<HashMap<Key, Pinhole>>>);

impl Kernel {
    fn holes(&self) -> Vec<Pinhole> {
        self.0.lock().unwrap().values().cloned().collect()
    }
}

impl Backend for Kernel {
    fn name(&self) -> &'static str {
        "map"
    }
    fn install(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn open(&mut self, hole: &Pinhole, _: Duration) -> Result<(), BackendError> {
        self.0.lock().unwrap().insert(hole.key(), hole.clone());
        Ok(())
    }
    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError> {
        self.0.lock().unwrap().remove(&hole.key());
        Ok(())
    }
    fn remove(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
    fn verify(&mut self) -> Result<bool, BackendError> {
        Ok(true)
    }
}

const CONNTRACK: Conntrack = Conntrack::Published {
    server: at(SERVER, 21),
    public: at(PUBLIC, 21),
};

const fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(ip, port))
}

impl Lookups for Kernel {
    fn lookup(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Entry>> {
        Ok(Some(CONNTRACK.entry(src, dst)))
    }
    fn marked(&mut self, _: Mark) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    fn bytes(&mut self, _: SocketAddr, _: SocketAddr) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}

impl EventSource for Kernel {
    fn read(&mut self, _: &mut Vec<ConntrackEvent>) -> io::Result<Completeness> {
        Ok(Completeness::Complete)
    }
}

/// A direction of a connection: the sender's next number, and the receiver's next one.
#[derive(Clone, Copy, Default)]
struct Numbers {
    next: u32,
    read: u32,
}

struct Lab {
    engine: Engine,
    gateway: FakeGateway,
    kernel: Kernel,
    now: Arc<Mutex<Duration>>,
    /// By session: the client's direction, and the server's.
    numbers: [[Numbers; 2]; 4],
    /// The most holes that were in the kernel at a time.
    most: usize,
}

impl Lab {
    fn new() -> Self {
        let kernel = Kernel::default();
        let now = Arc::new(Mutex::new(Duration::ZERO));
        let clock = now.clone();
        let config = pinholes::Config {
            per_session: PER_SESSION,
            per_client: PER_CLIENT,
            total: TOTAL,
            ..pinholes::Config::default()
        };
        let parts = Parts {
            backend: Box::new(kernel.clone()),
            lookups: Box::new(kernel.clone()),
            events: Box::new(kernel.clone()),
            timeouts: Timeouts::default(),
            clock: Box::new(move || *clock.lock().unwrap()),
            listeners: Box::new(Listeners::default),
        };
        let mut lab = Self {
            engine: Engine::new(Config::default(), 0),
            gateway: FakeGateway::new(CONNTRACK).plane(Plane::new(config, parts)),
            kernel,
            now,
            numbers: [[Numbers::default(); 2]; 4],
            most: 0,
        };
        for session in 0..CLIENTS.len() {
            lab.segment(session, false, SYN, b"");
            lab.segment(session, true, SYN | ACK, b"");
        }
        lab
    }

    /// Both peers read all that arrives, at once.
    fn segment(&mut self, session: usize, server: bool, flags: u8, payload: &[u8]) {
        let client = CLIENTS[session];
        let (from, to, side) = match server {
            true => ((SERVER, 21), client, Side::Egress),
            false => (client, (SERVER, 21), Side::Ingress),
        };
        let [own, other] = [usize::from(server), usize::from(!server)];
        let seg = Seg {
            seq: self.numbers[session][own].next,
            ack: if flags & ACK == 0 {
                0
            } else {
                self.numbers[session][other].read
            },
            flags,
            window: 60_000,
            payload: payload.to_vec(),
            ..Seg::default()
        };
        let packet = build(from, to, &seg);
        let now = *self.now.lock().unwrap();
        let arrived = match self.engine.packet(side, &packet, now, &mut self.gateway) {
            Verdict::Accept => Some(seg.clone()),
            Verdict::Replace(bytes) => Some(read(bytes)),
            Verdict::Drop => None,
        };
        let syn = u32::from(flags & SYN != 0);
        let length = |seg: &Seg| syn + u32::try_from(seg.payload.len()).unwrap();
        let numbers = &mut self.numbers[session][own];
        numbers.next = numbers.next.wrapping_add(length(&seg));
        if let Some(seg) = arrived {
            let end = seg.seq.wrapping_add(length(&seg));
            if end.wrapping_sub(numbers.read).cast_signed() > 0 {
                numbers.read = end;
            }
        }
        self.check();
    }

    /// What must hold at any time.
    fn check(&mut self) {
        let holes = self.kernel.holes();
        self.most = self.most.max(holes.len());
        assert!(holes.len() <= TOTAL, "{} holes", holes.len());
        let clients = [IpAddr::from(ANN), IpAddr::from(BOB)];
        let mut counts = [0; 2];
        for hole in holes {
            let (from, land) = (hole.from, hole.land.ip());
            let ends = |client: IpAddr| {
                from == client && land == SERVER || from == SERVER && land == client
            };
            let of = clients.into_iter().position(ends);
            let Some(of) = of else {
                panic!("not between two endpoints: {hole:?}");
            };
            counts[of] += 1;
            assert!(hole.land.port() >= 1024, "{hole:?}");
            assert!(from != SERVER || hole.to.ip() == land, "{hole:?}");
            assert!(from == SERVER || hole.to.ip() == PUBLIC, "{hole:?}");
        }
        assert!(
            counts.iter().all(|count| *count <= PER_CLIENT),
            "{counts:?}"
        );
    }

    fn say(&mut self, session: usize, server: bool, bytes: &[u8]) {
        for piece in bytes.chunks(1000) {
            self.segment(session, server, ACK | PSH, piece);
        }
    }

    fn log_in(&mut self, session: usize) {
        for (server, text) in LOGIN {
            self.say(session, server, text.as_bytes());
        }
    }
}

/// What a client may say, whatever its address.
fn client_line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "USER bob",
        "PASS x",
        "PASV",
        "EPSV",
        "EPSV ALL",
        "PORT 198,51,100,7,195,81",
        "PORT 198,51,100,7,195,82",
        "PORT 198,51,100,8,195,81",
        "PORT 10,0,0,2,195,81",
        "PORT 10,0,0,99,195,81",
        "PORT 203,0,113,199,195,81",
        "PORT 198,51,100,7,0,22",
        "PORT 198,51,100,8,23,112",
        "PORT 127,0,0,1,195,81",
        "PORT 198,51,100,7,195,81,1",
        "PORT 300,1,1,1,1,1",
        "EPRT |1|198.51.100.7|50003|",
        "EPRT |1|198.51.100.8|50003|",
        "EPRT |1|10.0.0.99|50003|",
        "EPRT |2|::1|50003|",
        "LPRT 4,4,198,51,100,7,2,195,81",
        "LPSV",
        "LIST",
        "RETR 227 (10,0,0,99,1,1)",
        "STAT",
        "ABOR",
        "REIN",
        "NOOP 227 (10,0,0,2,195,80)",
        "",
    ]);
    testkit::line::known(known, &["\r\n"])
}

fn server_line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "220 ready",
        "331 password",
        "230 in",
        "530 no",
        "227 Entering Passive Mode (10,0,0,2,195,80).",
        "227 Entering Passive Mode (10,0,0,2,195,81).",
        "227 Entering Passive Mode (10,0,0,99,195,80).",
        "227 (198,51,100,8,195,80)",
        "227 (127,0,0,1,0,22)",
        "227-(10,0,0,99,195,80)",
        "229 ok (|||50000|)",
        "229 ok (|||22|)",
        "200 ok",
        "150 x",
        "226 x",
        "425 no",
        "500 no",
        "421 bye",
        "text",
    ]);
    testkit::line::known(known, &["\r\n"])
}

/// Who says what in which session, and how many seconds pass before.
#[derive(Clone, Debug)]
struct Turn {
    session: usize,
    server: bool,
    bytes: Vec<u8>,
    after: u64,
}

fn turn() -> impl Strategy<Value = Turn> {
    let said = prop_oneof![
        client_line().prop_map(|bytes| (false, bytes)),
        server_line().prop_map(|bytes| (true, bytes)),
        Just((false, b"PASV\r\n".to_vec())),
        Just((true, b"227 x (10,0,0,2,195,80)\r\n".to_vec())),
        any::<u16>().prop_map(|port| {
            let [high, low] = (port | 0x8000).to_be_bytes();
            (
                true,
                format!("227 x (10,0,0,2,{high},{low})\r\n").into_bytes(),
            )
        }),
    ];
    let after = prop_oneof![9 => Just(0), 1 => 0u64..90];
    (0..CLIENTS.len(), said, after).prop_map(|(session, (server, bytes), after)| Turn {
        session,
        server,
        bytes,
        after,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// [`Lab::check`] looks after each packet.
    #[test]
    fn holes_are_between_the_two_endpoints_and_bounded(
        logged_in in any::<[bool; 4]>(),
        turns in prop::collection::vec(turn(), 0..120),
    ) {
        let mut lab = Lab::new();
        (0..CLIENTS.len()).filter(|n| logged_in[*n]).for_each(|n| lab.log_in(n));
        for turn in turns {
            *lab.now.lock().unwrap() += Duration::from_secs(turn.after);
            lab.say(turn.session, turn.server, &turn.bytes);
        }
    }

    /// Behind a greeting, which every server sends.
    #[test]
    fn one_peer_alone_opens_nothing(
        turns in prop::collection::vec(turn(), 0..120),
        server: bool,
    ) {
        let mut lab = Lab::new();
        for session in 0..CLIENTS.len() {
            lab.say(session, true, b"220 x\r\n");
        }
        for turn in turns.iter().filter(|turn| turn.server == server) {
            lab.say(turn.session, server, &turn.bytes);
        }
        prop_assert_eq!(lab.most, 0);
    }
}

#[test]
fn the_bounds_are_reached_and_kept() {
    let mut lab = Lab::new();
    for session in 0..CLIENTS.len() {
        lab.log_in(session);
    }
    for n in 0..40u16 {
        for session in 0..CLIENTS.len() {
            lab.say(session, false, b"PASV\r\n");
            let reply = format!("227 x (10,0,0,2,{},{})\r\n", 100 + n, 1 + n);
            lab.say(session, true, reply.as_bytes());
        }
    }
    assert_eq!(lab.most, TOTAL);
    assert!(lab.gateway.plane.unwrap().counters().limited > 0);
}

//! Floods of connections: bounded tables, and room for whoever comes in earnest.
#![allow(
    clippy::unwrap_used,
    reason = "clippy takes functions outside #[test] for other code"
)]

use std::net::Ipv4Addr;
use std::time::Duration;

use ftpalg::engine::{Config, Engine, Side, Verdict};
use testkit::gateway::{FakeGateway, entry};
use testkit::packet::{ACK, LOGIN, OUTSIDE, PSH, SYN, Seg, build, read};

const INSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 21);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 199);

struct Flooded {
    engine: Engine,
    world: FakeGateway,
    now: Duration,
}

/// A client of the server inside: its address and where its numbers begin.
#[derive(Clone, Copy)]
struct Client {
    at: (Ipv4Addr, u16),
    isn: u32,
}

impl Client {
    fn stranger(number: u32) -> Self {
        let port = u16::try_from(1024 + number % 60_000).unwrap();
        let host = u8::try_from(8 + number / 60_000).unwrap();
        Self {
            at: (Ipv4Addr::new(198, 51, 100, host), port),
            isn: number.wrapping_mul(2_654_435_761),
        }
    }

    /// The one whose connection conntrack knows.
    fn honest() -> Self {
        Self {
            at: (OUTSIDE, 40_000),
            isn: 77,
        }
    }
}

impl Flooded {
    fn new(max_flows: usize) -> Self {
        let config = Config {
            max_flows,
            ..Config::default()
        };
        Self {
            engine: Engine::new(config, 0),
            world: FakeGateway::with_entry(entry(true, INSIDE.0, PUBLIC, 40_000)),
            now: Duration::ZERO,
        }
    }

    /// What becomes of a segment's text; `seq` and `ack` are offsets from the bytes behind the SYNs.
    fn send(
        &mut self,
        client: Client,
        server: bool,
        flags: u8,
        at: [u32; 2],
        text: &str,
    ) -> String {
        const SERVERS_ISN: u32 = 5000;
        let [own, other] = match server {
            true => [SERVERS_ISN, client.isn],
            false => [client.isn, SERVERS_ISN],
        };
        let seg = Seg {
            seq: own.wrapping_add(1).wrapping_add(at[0]),
            ack: other.wrapping_add(1).wrapping_add(at[1]),
            flags,
            window: 64_000,
            payload: text.as_bytes().to_vec(),
            ..Seg::default()
        };
        let (side, packet) = match server {
            true => (Side::Egress, build(INSIDE, client.at, &seg)),
            false => (Side::Ingress, build(client.at, INSIDE, &seg)),
        };
        match self.engine.packet(side, &packet, self.now, &mut self.world) {
            Verdict::Accept => text.to_owned(),
            Verdict::Drop => "dropped".to_owned(),
            Verdict::Replace(bytes) => String::from_utf8(read(bytes).payload).unwrap(),
        }
    }

    fn syn(&mut self, client: Client) {
        self.send(client, false, SYN, [u32::MAX, 0], "");
    }

    fn syn_ack(&mut self, client: Client) {
        self.send(client, true, SYN | ACK, [u32::MAX, 0], "");
    }

    fn connect(&mut self, client: Client) {
        self.syn(client);
        self.syn_ack(client);
        self.send(client, false, ACK, [0, 0], "");
    }

    /// A login and a `PASV`; returns the `227` as the client reads it.
    fn asks(&mut self, client: Client) -> String {
        let mut at = [0, 0];
        let mut last = String::new();
        let asked = [(false, "PASV\r\n"), (true, "227 x (10,0,0,2,195,80).\r\n")];
        for (server, text) in LOGIN.into_iter().chain(asked) {
            let [mine, theirs] = [at[usize::from(server)], at[usize::from(!server)]];
            last = self.send(client, server, ACK | PSH, [mine, theirs], text);
            at[usize::from(server)] += u32::try_from(text.len()).unwrap();
        }
        last
    }
}

const TOLD: &str = "227 x (203,0,113,199,195,80).\r\n";

#[test]
fn syns_that_nobody_answers_make_way() {
    let mut flooded = Flooded::new(100);
    for number in 0..100_000 {
        flooded.syn(Client::stranger(number));
    }
    // The flood goes on while the honest client's SYN is on its way.
    flooded.syn(Client::honest());
    for number in 0..49 {
        flooded.syn(Client::stranger(number));
    }
    flooded.syn_ack(Client::honest());
    assert_eq!(flooded.asks(Client::honest()), TOLD);
    // All but those of the last two generations.
    let forgotten = flooded.engine.stats().table_full;
    assert!((99_900..=100_000).contains(&forgotten), "{forgotten}");
}

/// The same in the name of the honest client, before its own SYN and behind it.
#[test]
fn forged_syns_of_one_client_make_way() {
    let mut flooded = Flooded::new(100);
    let forged = |number: u32| Client {
        isn: number.wrapping_mul(2_654_435_761) | 1 << 20,
        ..Client::honest()
    };
    for number in 0..10_000 {
        flooded.syn(forged(number));
    }
    flooded.syn(Client::honest());
    for number in 0..49 {
        flooded.syn(forged(number));
    }
    flooded.syn_ack(Client::honest());
    assert_eq!(flooded.asks(Client::honest()), TOLD);
    let forgotten = flooded.engine.stats().table_full;
    assert!((9_900..=10_000).contains(&forgotten), "{forgotten}");
}

#[test]
fn silent_guests_make_way() {
    let mut flooded = Flooded::new(100);
    for number in 0..200 {
        flooded.connect(Client::stranger(number));
    }
    assert_eq!(flooded.engine.stats().sessions, 100);
    assert_eq!(flooded.engine.stats().table_full, 100);
    flooded.now = Duration::from_secs(30);
    flooded.connect(Client::honest());
    assert_eq!(flooded.engine.stats().sessions, 100);
    flooded.now = Duration::from_secs(61);
    flooded.syn(Client::honest());
    flooded.syn_ack(Client::honest());
    assert_eq!(flooded.asks(Client::honest()), TOLD);
    // Guests that talk stay, and so does whoever has logged in, however silent.
    for number in 0..99 {
        flooded.connect(Client::stranger(number));
    }
    assert_eq!(flooded.engine.stats().sessions, 200);
    flooded.now = Duration::from_secs(100);
    for number in 0..99 {
        flooded.send(
            Client::stranger(number),
            true,
            ACK | PSH,
            [0, 0],
            "220 x\r\n",
        );
    }
    flooded.now = Duration::from_secs(140);
    flooded.syn(Client::stranger(1000));
    flooded.syn_ack(Client::stranger(1000));
    assert_eq!(flooded.engine.stats().sessions, 200);
    assert_eq!(flooded.engine.stats().table_full, 102);
}

#[test]
fn silent_guests_make_way_where_sessions_are_limited() {
    let mut flooded = Flooded::new(10_000);
    flooded.world.room = 100;
    for number in 0..200 {
        flooded.syn(Client::stranger(number));
        flooded.syn_ack(Client::stranger(number));
    }
    assert_eq!(flooded.engine.stats().sessions, 100);
    assert_eq!(flooded.engine.stats().not_admitted, 100);
    flooded.now = Duration::from_secs(61);
    flooded.syn(Client::honest());
    flooded.syn_ack(Client::honest());
    assert_eq!(flooded.asks(Client::honest()), TOLD);
    assert_eq!(flooded.engine.stats().not_admitted, 100);
}

#[test]
fn forged_clients_whose_server_answers_make_way_at_once() {
    let mut flooded = Flooded::new(100);
    for number in 0..200 {
        flooded.syn(Client::stranger(number));
        flooded.syn_ack(Client::stranger(number));
        // Whoever doesn't see the SYN-ACK, doesn't know its number.
        flooded.send(Client::stranger(number), false, ACK, [0, 77_777], "");
    }
    assert_eq!(flooded.engine.stats().sessions, 100);
    flooded.now = Duration::from_secs(2);
    flooded.syn(Client::honest());
    flooded.syn_ack(Client::honest());
    assert_eq!(flooded.asks(Client::honest()), TOLD);
}

//! What the core costs per control segment, without system calls: `cargo bench --bench core`.
//!
//! Each figure is for one packet through [`Engine::packet`]: parse, checksum, flow look-up, session
//! machine, stream editing and, where something changes, building the packet that leaves.

use std::net::SocketAddr;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use etherparse::PacketBuilder;
use ftpalg::engine::event::Event;
use ftpalg::engine::gateway::{Error, Gateway, PinholeId, Request, Reservation, SessionId};
use ftpalg::engine::{Config, Engine, Entry, Side, Tuple, Verdict};

fn main() {
    divan::main();
}

/// A gateway that answers at once.
struct Answers;

const INSIDE: ([u8; 4], u16) = ([10, 0, 0, 2], 21);
const OUTSIDE: ([u8; 4], u16) = ([198, 51, 100, 7], 40_000);

impl Gateway for Answers {
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        let public = SocketAddr::from(([203, 0, 113, 1], 21));
        Ok(Entry {
            original: Tuple {
                src: dst,
                dst: public,
            },
            reply: Tuple { src, dst },
            mark: 0,
        })
    }
    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        Ok(Reservation {
            id: PinholeId(1),
            to: SocketAddr::new(request.to, request.land.port()),
        })
    }
    fn open(&mut self, _: PinholeId) -> Result<(), Error> {
        Ok(())
    }
    fn release(&mut self, _: PinholeId) {}
    fn session_ended(&mut self, _: SessionId) {}
    fn event(&mut self, event: Event) {
        divan::black_box(event);
    }
}

/// A conversation between client and server, as packets.
struct Talk {
    engine: Engine,
    /// Next sequence number of the server (inside) and the client (outside), in the numbers that
    /// each itself uses, and how much longer the client's view of the server's stream is.
    server: u32,
    client: u32,
    growth: u32,
}

impl Talk {
    fn new() -> Self {
        let mut talk = Self {
            engine: Engine::new(Config::default(), 0),
            server: 1000,
            client: 5000,
            growth: 0,
        };
        let syn = PacketBuilder::ipv4(OUTSIDE.0, INSIDE.0, 63)
            .tcp(OUTSIDE.1, INSIDE.1, 5000, 64_000)
            .syn();
        talk.feed(Side::Ingress, &finish(syn, b""));
        let syn_ack = PacketBuilder::ipv4(INSIDE.0, OUTSIDE.0, 64)
            .tcp(INSIDE.1, OUTSIDE.1, 1000, 64_000)
            .syn()
            .ack(5001);
        talk.feed(Side::Egress, &finish(syn_ack, b""));
        talk.server = 1001;
        talk.client = 5001;
        talk.say(Side::Egress, b"220 ready\r\n");
        for (line, reply) in [
            ("USER anonymous\r\n", "331 password\r\n"),
            ("PASS x\r\n", "230 welcome\r\n"),
        ] {
            talk.say(Side::Ingress, line.as_bytes());
            talk.say(Side::Egress, reply.as_bytes());
        }
        talk
    }

    fn feed(&mut self, side: Side, packet: &[u8]) -> usize {
        match self
            .engine
            .packet(side, packet, Duration::ZERO, &mut Answers)
        {
            Verdict::Replace(bytes) => bytes.len(),
            Verdict::Accept | Verdict::Drop => packet.len(),
        }
    }

    /// The packet with the next bytes of one side, acknowledging all of the other's.
    fn packet(&mut self, side: Side, text: &[u8]) -> Vec<u8> {
        let builder = match side {
            Side::Egress => PacketBuilder::ipv4(INSIDE.0, OUTSIDE.0, 64)
                .tcp(INSIDE.1, OUTSIDE.1, self.server, 64_000)
                .ack(self.client),
            Side::Ingress => PacketBuilder::ipv4(OUTSIDE.0, INSIDE.0, 63)
                .tcp(OUTSIDE.1, INSIDE.1, self.client, 64_000)
                .ack(self.server.wrapping_add(self.growth)),
        };
        let next = if side == Side::Egress {
            &mut self.server
        } else {
            &mut self.client
        };
        *next = next.wrapping_add(u32::try_from(text.len()).unwrap_or(0));
        finish(builder, text)
    }

    fn say(&mut self, side: Side, text: &[u8]) {
        let packet = self.packet(side, text);
        let out = self.feed(side, &packet);
        if side == Side::Egress {
            let longer = out.saturating_sub(packet.len());
            self.growth = self.growth.wrapping_add(u32::try_from(longer).unwrap_or(0));
        }
    }
}

fn finish(
    builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    let written = builder.write(&mut packet, payload);
    assert!(written.is_ok(), "{written:?}");
    packet
}

/// How many packets one iteration takes: divide its time by this (divan's items/s is per packet).
const PACKETS: usize = 512;

fn run(bencher: Bencher<'_, '_>, prepare: impl Fn(&mut Talk) -> Vec<(Side, Vec<u8>)>) {
    bencher
        .counter(ItemsCount::new(PACKETS))
        .with_inputs(|| {
            let mut talk = Talk::new();
            let packets = prepare(&mut talk);
            assert_eq!(packets.len(), PACKETS);
            (talk, packets)
        })
        .bench_local_refs(|(talk, packets)| {
            for (side, packet) in packets {
                divan::black_box(talk.feed(*side, packet));
            }
        });
}

/// A control segment with a line that nothing is changed in; it acknowledges the one before.
#[divan::bench]
fn untouched_line(bencher: Bencher<'_, '_>) {
    run(bencher, |talk| {
        let mut packets = Vec::new();
        while packets.len() < PACKETS {
            packets.push((Side::Ingress, talk.packet(Side::Ingress, b"NOOP\r\n")));
            packets.push((
                Side::Egress,
                talk.packet(Side::Egress, b"200 NOOP command successful\r\n"),
            ));
        }
        packets
    });
}

/// A `227` that is rewritten (with a pinhole that is opened at once), and the `PASV` before it:
/// twice the figure, less the untouched line's, is the rewritten segment's.
#[divan::bench]
fn pasv_and_rewritten_227(bencher: Bencher<'_, '_>) {
    run(bencher, |talk| {
        let mut packets = Vec::new();
        let line = b"227 Entering Passive Mode (10,0,0,2,195,80).\r\n";
        while packets.len() < PACKETS {
            packets.push((Side::Ingress, talk.packet(Side::Ingress, b"PASV\r\n")));
            packets.push((Side::Egress, talk.packet(Side::Egress, line)));
            talk.growth = talk.growth.wrapping_add(3);
        }
        packets
    });
}

/// A bare acknowledgement of a stream that was edited before.
#[divan::bench]
fn acknowledgement_mapped(bencher: Bencher<'_, '_>) {
    run(bencher, |talk| {
        talk.say(Side::Ingress, b"PASV\r\n");
        talk.say(
            Side::Egress,
            b"227 Entering Passive Mode (10,0,0,2,195,80).\r\n",
        );
        assert_eq!(talk.growth, 3, "the address must have been rewritten");
        (0..PACKETS)
            .map(|_| (Side::Ingress, talk.packet(Side::Ingress, b"")))
            .collect()
    });
}

/// One [`Engine::tick`] over so many idle connections, none of which is over: how long a packet may
/// wait for the engine's lock.
#[divan::bench(args = [1_000, 65_000, 1_000_000], sample_count = 20, sample_size = 1)]
fn tick(bencher: Bencher<'_, '_>, flows: u32) {
    let config = Config {
        max_flows: 1 << 20,
        ..Config::default()
    };
    let mut engine = Engine::new(config, 0);
    for n in 0..flows {
        let [_, a, b, c] = n.to_be_bytes();
        let client = [198, a, b, c];
        let syn = PacketBuilder::ipv4(client, INSIDE.0, 63)
            .tcp(OUTSIDE.1, INSIDE.1, 5000, 64_000)
            .syn();
        let syn_ack = PacketBuilder::ipv4(INSIDE.0, client, 64)
            .tcp(INSIDE.1, OUTSIDE.1, 1000, 64_000)
            .syn()
            .ack(5001);
        for (side, packet) in [(Side::Ingress, syn), (Side::Egress, syn_ack)] {
            let packet = finish(packet, b"");
            let verdict = engine.packet(side, &packet, Duration::ZERO, &mut Answers);
            assert_eq!(verdict, Verdict::Accept);
        }
    }
    let now = Duration::from_secs(3600);
    bencher.bench_local(|| engine.tick(now, &mut Answers));
    assert_eq!(engine.sessions(now).count(), flows as usize);
}

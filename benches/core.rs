//! What the core costs per control segment, without system calls: `cargo bench --bench core`.
//!
//! Each figure is for one packet through [`Engine::packet`]: parse, checksum, flow look-up, session
//! machine, stream editing and, where something changes, building the packet that leaves.

use divan::Bencher;
use divan::counter::ItemsCount;
use std::net::Ipv4Addr;
use std::time::Duration;

use testkit::gateway::{FakeGateway, MARKS, entry};
use testkit::lab::net::Directory;
use testkit::packet::{ACK, SYN, build, data, syn};
use testkit::trace::{CLIENT_PORT, Client, GROWTH, INSIDE, PUBLIC, Server, Trace, Who, ack, pack};

use ftpalg::daemon::journal::Journal;
use ftpalg::engine::{Config, Engine, Side, Verdict};

fn main() {
    divan::main();
}

/// A conversation between client and server, as packets.
struct Talk {
    trace: Trace,
    /// Where client and server are, in the numbers that each itself uses.
    at: [u32; 2],
    /// How much longer the client's view of the server's stream is.
    growth: u32,
}

impl Talk {
    fn new() -> Self {
        let mut trace = Trace::new();
        trace.world.remembers = false;
        let at = trace.login();
        Self {
            trace,
            at,
            growth: 0,
        }
    }

    fn feed(&mut self, who: Who, packet: &[u8]) -> usize {
        match self.trace.raw(who, packet) {
            Verdict::Replace(bytes) => bytes.len(),
            Verdict::Accept | Verdict::Drop => packet.len(),
        }
    }

    /// The packet with the next bytes of one side, acknowledging all of the other's.
    fn packet(&mut self, who: Who, text: &str) -> Vec<u8> {
        let seen = match who {
            Client => self.at[Server as usize].wrapping_add(self.growth),
            Server => self.at[Client as usize],
        };
        let own = &mut self.at[who as usize];
        let seg = match text {
            "" => ack(*own, seen),
            text => data(*own, seen, text),
        };
        *own = own.wrapping_add(u32::try_from(text.len()).unwrap_or(0));
        pack(who, &self.trace.wire(who, seg))
    }

    fn say(&mut self, who: Who, text: &str) {
        let packet = self.packet(who, text);
        let out = self.feed(who, &packet);
        if who == Server {
            let longer = out.saturating_sub(packet.len());
            self.growth = self.growth.wrapping_add(u32::try_from(longer).unwrap_or(0));
        }
    }
}

/// How many packets one iteration takes: divide its time by this (divan's items/s is per packet).
const PACKETS: usize = 512;

fn run(bencher: Bencher<'_, '_>, prepare: impl Fn(&mut Talk) -> Vec<(Who, Vec<u8>)>) {
    bencher
        .counter(ItemsCount::new(PACKETS))
        .with_inputs(|| {
            let mut talk = Talk::new();
            let packets = prepare(&mut talk);
            assert_eq!(packets.len(), PACKETS);
            (talk, packets)
        })
        .bench_local_refs(|(talk, packets)| {
            for (who, packet) in packets {
                divan::black_box(talk.feed(*who, packet));
            }
        });
}

/// A control segment with a line that nothing is changed in; it acknowledges the one before.
#[divan::bench]
fn untouched_line(bencher: Bencher<'_, '_>) {
    run(bencher, |talk| {
        let mut packets = Vec::new();
        while packets.len() < PACKETS {
            packets.push((Client, talk.packet(Client, "NOOP\r\n")));
            packets.push((
                Server,
                talk.packet(Server, "200 NOOP command successful\r\n"),
            ));
        }
        packets
    });
}

/// The same line in a session with a sequence delta. A record of it is kept before each packet goes on:
/// in a file, or nowhere.
#[divan::bench(args = [true, false])]
fn line_with_a_record(bencher: Bencher<'_, '_>, kept: bool) {
    let directory = Directory::new();
    run(bencher, |talk| {
        talk.trace.engine = Engine::new(
            Config {
                keep_length: false,
                marks: kept.then_some(MARKS),
                ..Config::default()
            },
            0,
        );
        if kept {
            let journal = Journal::open(directory.path()).ok();
            talk.trace.world.journal = journal.map(|(journal, _)| journal);
        }
        let syns = [(Client, SYN), (Server, SYN | ACK)];
        for (who, flags) in syns {
            let packet = pack(who, &talk.trace.wire(who, syn(flags)));
            talk.feed(who, &packet);
        }
        talk.at = talk.trace.login();
        talk.say(Client, "PASV\r\n");
        talk.say(Server, &testkit::trace::reply());
        let mut packets = Vec::new();
        while packets.len() < PACKETS {
            packets.push((Client, talk.packet(Client, "NOOP\r\n")));
            packets.push((
                Server,
                talk.packet(Server, "200 NOOP command successful\r\n"),
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
        let line = "227 Entering Passive Mode (10,0,0,2,195,80).\r\n";
        while packets.len() < PACKETS {
            packets.push((Client, talk.packet(Client, "PASV\r\n")));
            packets.push((Server, talk.packet(Server, line)));
            talk.growth = talk.growth.wrapping_add(GROWTH);
        }
        packets
    });
}

/// A bare acknowledgement of a stream that was edited before.
#[divan::bench]
fn acknowledgement_mapped(bencher: Bencher<'_, '_>) {
    run(bencher, |talk| {
        talk.say(Client, "PASV\r\n");
        talk.say(Server, "227 Entering Passive Mode (10,0,0,2,195,80).\r\n");
        assert_eq!(talk.growth, GROWTH, "the address must have been rewritten");
        (0..PACKETS)
            .map(|_| (Client, talk.packet(Client, "")))
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
    let known = entry(true, INSIDE, PUBLIC, CLIENT_PORT);
    let mut gateway = FakeGateway::with_entry(known);
    gateway.remembers = false;
    for n in 0..flows {
        let [_, a, b, c] = n.to_be_bytes();
        let (client, server) = ((Ipv4Addr::new(198, a, b, c), CLIENT_PORT), (INSIDE, 21));
        let [syn, syn_ack] = [syn(SYN), syn(SYN | ACK)];
        let (syn, syn_ack) = (build(client, server, &syn), build(server, client, &syn_ack));
        for (side, packet) in [(Side::Ingress, syn), (Side::Egress, syn_ack)] {
            let verdict = engine.packet(side, &packet, Duration::ZERO, &mut gateway);
            assert_eq!(verdict, Verdict::Accept);
        }
    }
    let now = Duration::from_secs(3600);
    bencher.bench_local(|| engine.tick(now, &mut gateway));
    assert_eq!(engine.sessions(now).count(), flows as usize);
}

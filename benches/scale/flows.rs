//! Connections at the engine's front door: each begins with its handshake, as packets.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use ftpalg::engine::{Config, Engine, Side};
use testkit::gateway::{FakeGateway, MARKS, entry};
use testkit::packet::{ACK, SYN, build, data, syn};
use testkit::random::Rng;
use testkit::trace::{CLIENT_PORT, INSIDE, PUBLIC, ack};

use super::{micros, percentile};

const COUNTS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// How many are timed together. What is timed are the last ones of each hundred batches.
const BATCH: usize = 100;
const BATCHES: usize = 100;

/// Each count in a process of its own, so that its memory is that of its connections.
pub(super) fn run() {
    println!(
        "| connections | begin, µs each (p99) | find, µs (p99) | forget, µs each | MiB | bytes each |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
    for count in COUNTS {
        let mut own = Command::new(std::env::current_exe().expect("it runs"));
        let done = own.args(["--flows", &count.to_string()]).status();
        assert!(done.expect("it can be started").success());
    }
}

/// The packets from and to the client with this number.
struct Client(u32);

impl Client {
    fn of(number: usize) -> Self {
        Self(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn ends(&self) -> [(Ipv4Addr, u16); 2] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [(Ipv4Addr::new(198, a, b, c), CLIENT_PORT), (INSIDE, 21)]
    }

    fn handshake(&self) -> [(Side, Vec<u8>); 3] {
        let [client, server] = self.ends();
        [
            (Side::Ingress, build(client, server, &syn(SYN))),
            (Side::Egress, build(server, client, &syn(SYN | ACK))),
            (Side::Ingress, build(client, server, &ack(0, 0))),
        ]
    }

    /// An acknowledgement of the greeting, which is on its way.
    fn line(&self) -> Vec<u8> {
        let [client, server] = self.ends();
        build(server, client, &data(0, 0, "220 x\r\n"))
    }
}

/// Prints the line of the table.
pub(super) fn measure(count: usize) {
    let config = Config {
        max_flows: 1 << 20,
        marks: Some(MARKS),
        ..Config::default()
    };
    let idle = config.idle;
    let mut engine = Engine::new(config, 0);
    let mut gateway = FakeGateway::with_entry(entry(true, INSIDE, PUBLIC, CLIENT_PORT));
    gateway.remembers = false;
    let before = memory();
    let mut begun = Vec::new();
    let batches = count.div_ceil(BATCH);
    for batch in 0..batches {
        let numbers = batch * BATCH..((batch + 1) * BATCH).min(count);
        let packets: Vec<_> = numbers.flat_map(|n| Client::of(n).handshake()).collect();
        let start = Instant::now();
        for (side, packet) in &packets {
            black_box(engine.packet(*side, packet, Duration::ZERO, &mut gateway));
        }
        if batch + BATCHES >= batches {
            begun.push(start.elapsed() / u32::try_from(BATCH).unwrap_or(1));
        }
    }
    let after = memory();
    assert_eq!(engine.sessions(Duration::ZERO).count(), count);

    let mut rng = Rng::new(7);
    let mut found = Vec::new();
    for _ in 0..20_000.min(count) {
        let n = usize::try_from(rng.below(count as u64)).unwrap_or(0);
        let packet = Client::of(n).line();
        let start = Instant::now();
        black_box(engine.packet(Side::Egress, &packet, Duration::ZERO, &mut gateway));
        found.push(start.elapsed());
    }

    let start = Instant::now();
    while !engine.tick(2 * idle, &mut gateway) {}
    let forgotten = start.elapsed();
    assert_eq!(engine.sessions(2 * idle).count(), 0);
    let bytes = after.saturating_sub(before);
    println!(
        "| {count} | {} ({}) | {} ({}) | {} | {:.1} | {} |",
        micros(percentile(&mut begun, 50)),
        micros(percentile(&mut begun, 99)),
        micros(percentile(&mut found, 50)),
        micros(percentile(&mut found, 99)),
        micros(forgotten.div_f64(count as f64)),
        bytes as f64 / (1 << 20) as f64,
        bytes / count,
    );
}

/// The resident memory of this process, in bytes.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    number.unwrap_or(0) * 1024
}

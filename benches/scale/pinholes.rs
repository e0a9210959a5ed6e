//! Pinholes in the kernel, by the backend nft.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ftpalg::net::Mark;
use ftpalg::pinholes::Pinhole;
use ftpalg::pinholes::backend::Backend;
use ftpalg::pinholes::backend::nft::Nft;
use nix::sys::signal::Signal;
use testkit::lab::gateway::{gateway, start_with, status};
use testkit::lab::rules::{Flavour, Policy};

use super::{micros, percentile};

const COUNTS: [u32; 4] = [1_000, 10_000, 50_000, 100_000];
/// How many are timed at each count.
const TIMED: u32 = 5_000;
/// How many are closed in one exchange.
const TOGETHER: usize = 64;
const LIFE: Duration = Duration::from_secs(600);
/// When the kernel's table has its size.
const SETTLED: Duration = Duration::from_secs(1);
/// How often a start is timed.
const STARTS: usize = 3;

/// For another client each, so that there may be as many as one likes.
fn hole(number: u32) -> Pinhole {
    let [_, a, b, c] = number.to_be_bytes();
    let at = |ip: [u8; 4], port| SocketAddr::new(Ipv4Addr::from(ip).into(), port);
    Pinhole {
        from: Ipv4Addr::new(198, a, b, c).into(),
        to: at([203, 0, 113, 1], 50_000),
        land: at([10, 0, 0, 2], 50_000),
        as_source: None,
        mark: 0,
    }
}

fn opened(nft: &mut Nft, number: u32) -> Duration {
    let hole = hole(number);
    let start = Instant::now();
    nft.open_new(&hole, LIFE).expect("the kernel takes it");
    start.elapsed()
}

pub(super) fn run() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    println!(
        "| pinholes | open, µs p50 (p99) | close, µs p50 (p99) | close {TOGETHER} together, µs each |"
    );
    println!("| ---: | ---: | ---: | ---: |");
    net.within(net.topology().router, || {
        let mut nft = Nft::new(Mark::DEFAULT).expect("the kernel has nf_tables");
        nft.install().expect("the kernel has NAT in nf_tables");
        let mut there = 0;
        for count in COUNTS {
            while there < count {
                opened(&mut nft, there);
                there += 1;
            }
            let further = count..count + TIMED;
            let mut open: Vec<_> = further.clone().map(|n| opened(&mut nft, n)).collect();
            let close = |n| {
                let hole = hole(n);
                let start = Instant::now();
                nft.close(&hole).expect("it is there");
                start.elapsed()
            };
            let mut closed: Vec<_> = further.clone().map(close).collect();
            let all: Vec<_> = further.map(hole).collect();
            all.iter()
                .for_each(|hole| nft.open_new(hole, LIFE).expect("the kernel takes it"));
            let start = Instant::now();
            for some in all.chunks(TOGETHER) {
                nft.close_all(some).expect("they are there");
            }
            let together = start.elapsed() / TIMED;
            println!(
                "| {count} | {} ({}) | {} ({}) | {} |",
                micros(percentile(&mut open, 50)),
                micros(percentile(&mut open, 99)),
                micros(percentile(&mut closed, 50)),
                micros(percentile(&mut closed, 99)),
                micros(together),
            );
        }
    });
}

/// A process that was killed has left so many pinholes. Its successor starts, and stops.
pub(super) fn start_and_stop() {
    println!("| pinholes | start, ms | stop, ms |");
    println!("| ---: | ---: | ---: |");
    for count in [0, COUNTS[3]] {
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let net = gateway(Policy::Drop, Flavour::Nft);
            net.within(net.topology().router, || {
                let mut nft = Nft::new(Mark::DEFAULT).expect("the kernel has nf_tables");
                nft.install().expect("the kernel has NAT in nf_tables");
                (0..count).for_each(|n| _ = opened(&mut nft, n));
                nft.leave();
            });
            // The kernel moves elements that were added in such a hurry to a larger table.
            std::thread::sleep(SETTLED);
            let limits = ["--limit", "pinholes=1000000", "--deadline", "600"];
            let start = Instant::now();
            let alg = start_with(&net, "nft", Flavour::Nft, &limits);
            starts.push(start.elapsed());
            assert_eq!(status(&net)["pinholes"], count);
            let start = Instant::now();
            let process = alg.process().expect("it runs");
            process.signal(Signal::SIGTERM);
            alg.stop();
            stops.push(start.elapsed());
        }
        let millis = |times: &mut [Duration]| percentile(times, 50).as_millis();
        println!(
            "| {count} | {} | {} |",
            millis(&mut starts),
            millis(&mut stops)
        );
    }
}

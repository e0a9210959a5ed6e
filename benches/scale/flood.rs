//! A session that goes on while somebody floods the control port with SYNs.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use testkit::awake::Awake;
use testkit::lab::gateway::{Control, gateway, start};
use testkit::lab::net::Net;
use testkit::lab::rules::{Flavour, Policy};
use testkit::packet::{SYN, build, syn};

use super::{micros, percentile};

/// SYNs in a millisecond.
const EACH_MS: u32 = 10;
/// How long replies are timed, and how often, in turns.
const TURN: Duration = Duration::from_secs(3);
const TURNS: usize = 5;

pub(super) fn run() {
    let (_awake, idle) = Awake::try_begin();
    println!("{idle}:\n");
    println!(
        "| NOOP, µs p50 (p99) | quiet | {} SYNs/s | p99 flooded / quiet |",
        EACH_MS * 1000
    );
    println!("| --- | ---: | ---: | ---: |");
    for with in [false, true] {
        let net = gateway(Policy::Accept, Flavour::Nft);
        prepare(&net);
        let listener = net.within(net.topology().server, || {
            TcpListener::bind(net.topology().listen).expect("nobody else listens")
        });
        std::thread::spawn(move || serve(&listener));
        let alg = with.then(|| start(&net, "nft", Flavour::Nft));
        let mut control = Control::dial(&net);
        control.reply();
        for (line, code) in [("USER a\r\n", "331"), ("PASS b\r\n", "230")] {
            control.ask(line, code);
        }
        let (mut quiet, mut flooded) = (Vec::new(), Vec::new());
        let mut sent = 0;
        for _ in 0..TURNS {
            quiet.extend(replies(&mut control));
            let stop = AtomicBool::new(false);
            let count = AtomicU64::new(0);
            std::thread::scope(|scope| {
                scope.spawn(|| net.within(net.topology().client, || flood(&net, &stop, &count)));
                flooded.extend(replies(&mut control));
                stop.store(true, Ordering::Relaxed);
            });
            sent += count.into_inner();
        }
        drop(alg);
        let seconds = TURN.as_secs() * TURNS as u64;
        let name = if with { "ftpalg" } else { "without ftpalg" };
        let [calm, busy] = [&mut quiet, &mut flooded].map(|times| {
            let p50 = percentile(times, 50);
            (p50, percentile(times, 99))
        });
        println!(
            "| {name} | {} ({}) | {} ({}), {} sent | {:.2} |",
            micros(calm.0),
            micros(calm.1),
            micros(busy.0),
            micros(busy.1),
            sent / seconds.max(1),
            busy.1.as_secs_f64() / calm.1.as_secs_f64(),
        );
    }
}

/// The flood's sources are behind the client, which drops what comes for them.
fn prepare(net: &Net) {
    let topology = net.topology();
    let (router, server) = (topology.router, topology.server);
    net.exec(
        router,
        &["ip", "route", "add", "100.64.0.0/10", "via", "198.51.100.2"],
    )
    .must();
    for state in ["syn_sent", "syn_recv"] {
        let name = format!("net.netfilter.nf_conntrack_tcp_timeout_{state}");
        net.sysctl(router, &name, "3");
    }
    net.sysctl(server, "net.ipv4.tcp_synack_retries", "0");
    net.sysctl(server, "net.ipv4.tcp_syncookies", "2");
}

/// A server that answers every line at once.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let mut out = &stream;
            let mut say = |text: &str| out.write_all(text.as_bytes()).is_ok();
            say("220 x\r\n");
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let reply = match line.get(..4) {
                    Some("USER") => "331 x\r\n",
                    Some("PASS") => "230 x\r\n",
                    _ => "200 x\r\n",
                };
                if !say(reply) {
                    return;
                }
            }
        });
    }
}

/// How long each reply to a NOOP takes.
fn replies(control: &mut Control) -> Vec<Duration> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while begun.elapsed() < TURN {
        let start = Instant::now();
        control.ask("NOOP\r\n", "200");
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    times
}

/// Sends SYNs from ever other addresses.
fn flood(net: &Net, stop: &AtomicBool, count: &AtomicU64) {
    let raw = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::Raw,
    )
    .expect("root may");
    let SocketAddr::V4(to) = net.topology().dial else {
        panic!("the lab's addresses are IPv4");
    };
    let at = SockaddrIn::from(to);
    let begun = Instant::now();
    let mut number = 0u32;
    while !stop.load(Ordering::Relaxed) {
        let due = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX) * EACH_MS;
        while number < due {
            let source = Ipv4Addr::from_bits(0x6440_0000 | (number & 0x3f_ffff));
            let packet = build((source, 40_000), (*to.ip(), to.port()), &syn(SYN));
            // A full buffer costs a SYN.
            let _ = sendto(raw.as_raw_fd(), &packet, &at, MsgFlags::empty());
            number += 1;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    count.store(number.into(), Ordering::Relaxed);
}

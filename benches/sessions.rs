//! What a gateway costs FTP: small sessions per second and bulk throughput, side by side without
//! an ALG, with the kernel's helper, and with `ftpalg` and either backend.
//!
//! `cargo bench --bench sessions` as root; it takes a minute, and prints one table. All gateways
//! take turns, several times over, so that whatever else the machine does meets all of them alike;
//! the median counts. Client and server run on the same machine: compare the columns, not the
//! figures with another machine's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::io::{Error, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab::alg::{Alg, Running};
use lab::net::Net;
use lab::report;
use lab::rules::{self, Flavour, Policy};
use lab::scripted::{Plan, Step, Verb, accept, connect, peers, serving, visit};
use lab::topology::Topology;

/// How often each gateway has its turn.
const ROUNDS: usize = 5;
/// How long each turn takes, for each number of sessions at once.
const TURN: Duration = Duration::from_millis(1200);
/// Sessions at once.
const CROWDS: [usize; 2] = [1, 50];
/// Bytes in one download.
const BULK: u64 = 1 << 30;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);

fn ftpalg(backend: &str) -> Alg {
    Alg::Ftpalg(["--backend", backend].map(str::to_owned).to_vec())
}

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let kinds = [
        ("no ALG, routed", Topology::routed(), Alg::None),
        ("kernel helper", Topology::published_server(), Alg::Kernel),
        ("ftpalg nft", Topology::published_server(), ftpalg("nft")),
        (
            "ftpalg iptables",
            Topology::published_server(),
            ftpalg("iptables"),
        ),
    ];
    let nets: Vec<_> = kinds
        .iter()
        .map(|(_, topology, _)| {
            let net = Net::new(topology);
            // Rules that look at conntrack's states: it works in all of them.
            rules::install(&net, Flavour::Nft, Policy::Accept, true);
            // Closed sessions are forgotten soon, so that each round meets the same tables.
            let forget = "net.netfilter.nf_conntrack_tcp_timeout_time_wait";
            net.sysctl(topology.router, forget, "1");
            net
        })
        .collect();
    let algs: Vec<_> = kinds
        .iter()
        .zip(&nets)
        .map(|((_, _, alg), net)| alg.start_with_log(net, Flavour::Nft, "warn"))
        .collect();
    // For each gateway: sessions per second for each crowd, then bytes per second, then CPU.
    let mut turns = vec![vec![Vec::new(); CROWDS.len() + 2]; kinds.len()];
    for _ in 0..ROUNDS {
        for ((net, alg), turns) in nets.iter().zip(&algs).zip(&mut turns) {
            let (cpu, mut sessions) = (cpu(alg), 0);
            for (crowd, turns) in CROWDS.iter().zip(turns.iter_mut()) {
                let (count, took) = small_sessions(net, *crowd);
                sessions += count;
                turns.push(count as f64 / took.as_secs_f64());
            }
            let used = self::cpu(alg).saturating_sub(cpu);
            turns[CROWDS.len() + 1].push(used.as_secs_f64() * 1e6 / sessions.max(1) as f64);
            turns[CROWDS.len()].push(bulk(net));
        }
    }
    let medians: Vec<Vec<f64>> = turns
        .into_iter()
        .map(|turns| turns.into_iter().map(median).collect())
        .collect();
    let rows: Vec<_> = kinds
        .iter()
        .zip(&medians)
        .map(|((name, ..), row)| ((*name).to_owned(), cells(row, &medians[0])))
        .collect();
    println!(
        "Small sessions: login, PASV, RETR of 45 bytes, QUIT. Bulk: one RETR of {} MiB.\n\
         Medians of {ROUNDS} turns; × is the ratio to the first line.\n",
        BULK >> 20
    );
    let head = [
        "gateway",
        "sessions/s, 1 at once",
        "sessions/s, 50 at once",
        "bulk MiB/s",
        "daemon's CPU per session",
    ];
    print!("{}", report::table(&head, &rows));
    for alg in algs {
        alg.stop();
    }
}

fn cells(row: &[f64], first: &[f64]) -> Vec<String> {
    let last = row.len() - 1;
    let mut cells: Vec<_> = row[..last]
        .iter()
        .zip(first)
        .enumerate()
        .map(|(column, (value, first))| {
            let scale = if column == CROWDS.len() {
                1048576.0
            } else {
                1.0
            };
            format!("{:.0} (×{:.2})", value / scale, value / first)
        })
        .collect();
    cells.push(if row[last] > 0.0 {
        format!("{:.0} µs", row[last])
    } else {
        "-".to_owned()
    });
    cells
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// As many sessions as there is time for, `crowd` at once.
fn small_sessions(net: &Net, crowd: usize) -> (u64, Duration) {
    let plan = Plan {
        limit: PATIENCE,
        ..Plan::new(vec![Step::whole(Verb::Pasv)])
    };
    let count = AtomicU64::new(0);
    let dial = net.topology().dial;
    let took = serving(net, &plan, || {
        net.within(net.topology().client, || {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..crowd {
                    scope.spawn(|| {
                        while start.elapsed() < TURN {
                            visit(dial, &plan).unwrap_or_else(|error| panic!("{error}"));
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            start.elapsed()
        })
    });
    (count.into_inner(), took)
}

/// Bytes per second of one large download.
fn bulk(net: &Net) -> f64 {
    let client = |mut control: lab::scripted::Control| -> Result<Duration, Error> {
        control.login()?;
        let (_, to) = control.ask(Verb::Pasv)?;
        let mut data = connect(to, PATIENCE)?;
        control.send("RETR file\r\n")?;
        control.expect("150")?;
        let start = Instant::now();
        let (mut buffer, mut total) = (vec![0; 1 << 18], 0);
        loop {
            match data.read(&mut buffer)? {
                0 => break,
                n => total += n as u64,
            }
        }
        let took = start.elapsed();
        if total != BULK {
            return Err(Error::other(format!("{total} bytes came")));
        }
        control.send("QUIT\r\n")?;
        control.expect("221")?;
        Ok(took)
    };
    let server = |mut control: lab::scripted::Control| -> Result<(), Error> {
        control.let_in()?;
        control.expect("PASV")?;
        let here = control.stream.local_addr()?.ip();
        let listener = TcpListener::bind((here, 0))?;
        control.send(&Verb::Pasv.line(listener.local_addr()?))?;
        control.expect("RETR")?;
        control.send("150 here it comes\r\n")?;
        let mut data = accept(&listener, PATIENCE)?;
        let buffer = vec![0; 1 << 18];
        for _ in 0..BULK / buffer.len() as u64 {
            data.write_all(&buffer)?;
        }
        drop(data);
        control.expect("QUIT")?;
        control.send("221 bye\r\n")
    };
    let (took, ()) = peers(net, PATIENCE, client, server).unwrap_or_else(|why| panic!("{why}"));
    BULK as f64 / took.as_secs_f64()
}

/// The processor time that the daemon has used so far; none if there is no daemon.
fn cpu(alg: &Running<'_>) -> Duration {
    let Some(process) = alg.process() else {
        return Duration::ZERO;
    };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

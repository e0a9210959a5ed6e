//! What a gateway costs FTP: small sessions per second and bulk throughput, side by side without
//! an ALG, with the kernel's helper, and with `ftpalg` and either backend.
//!
//! `./scripts/bench sessions`, or `cargo bench --bench sessions`, as root; it takes a minute and a
//! half, and prints one table. All gateways take short turns, many times over, so that whatever else
//! the machine does meets all of them alike; medians count, those of the ratios within each round as
//! well. Client, server and gateway share the machine: compare the lines, not the figures with another
//! machine's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Error, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use testkit::lab::alg::{Alg, Running, no_kernel_helper};
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{CONTENT, Plan, Step, Verb, accept, connect, peers, serving, visit};
use testkit::lab::topology::Topology;

/// How often each gateway has its turn.
const ROUNDS: usize = 15;
/// How long each turn takes, for each number of sessions at once.
const TURN: Duration = Duration::from_millis(400);
/// Sessions at once.
const CROWDS: [usize; 2] = [1, 50];
/// Bytes in one download.
const BULK: u64 = 1 << 30;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);

fn ftpalg(backend: &str) -> Alg {
    Alg::Ftpalg(["--backend", backend].map(str::to_owned).to_vec())
}

/// What each turn measures; the last two in seconds of CPU per session with the larger crowd.
const COLUMNS: [(&str, Unit); 5] = [
    ("sessions/s, 1 at once", Unit::PerSecond),
    ("sessions/s, 50 at once", Unit::PerSecond),
    ("bulk MiB/s", Unit::Mebibytes),
    ("CPU per session, all in", Unit::Seconds),
    ("of it the daemon", Unit::Seconds),
];

#[derive(Clone, Copy)]
enum Unit {
    PerSecond,
    Mebibytes,
    Seconds,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{value:.0}"),
            Self::Mebibytes => format!("{:.0}", value / 1_048_576.0),
            Self::Seconds => format!("{:.0} µs", value * 1e6),
        }
    }
}

/// One turn of one gateway: a figure for each column.
type Turn = [f64; COLUMNS.len()];

struct Gateway {
    name: &'static str,
    topology: Topology,
    alg: Alg,
}

fn gateways() -> Vec<Gateway> {
    let gateway = |name, topology, alg| Gateway {
        name,
        topology,
        alg,
    };
    let published = Topology::published_server;
    let mut all = vec![gateway("no ALG, routed", Topology::routed(), Alg::None)];
    match no_kernel_helper(&Net::new(&published())) {
        None => all.push(gateway("kernel helper", published(), Alg::Kernel)),
        Some(why) => println!("The kernel's helper is left out: {why}\n"),
    }
    all.push(gateway("ftpalg nft", published(), ftpalg("nft")));
    all.push(gateway("ftpalg iptables", published(), ftpalg("iptables")));
    all
}

fn main() {
    // `cargo test --benches` only wants to know that it starts.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let gateways = gateways();
    // What the others are compared with.
    let basis = gateways.iter().position(|g| g.alg == Alg::Kernel);
    let basis = basis.unwrap_or(0);
    let nets: Vec<_> = gateways
        .iter()
        .map(|Gateway { topology, .. }| {
            let net = Net::new(topology);
            // Rules that look at conntrack's states: it works in all of them.
            rules::install(&net, Flavour::Nft, Policy::Accept, true);
            // Closed sessions are forgotten soon, so that each round meets the same tables.
            let forget = "net.netfilter.nf_conntrack_tcp_timeout_time_wait";
            net.sysctl(topology.router, forget, "1");
            net
        })
        .collect();
    let algs: Vec<_> = gateways
        .iter()
        .zip(&nets)
        .map(|(gateway, net)| gateway.alg.start_with_log(net, Flavour::Nft, "warn"))
        .collect();
    let rounds: Vec<Vec<Turn>> = (0..ROUNDS)
        .map(|_| {
            nets.iter()
                .zip(&algs)
                .map(|(net, alg)| turn(net, alg))
                .collect()
        })
        .collect();
    println!(
        "Small sessions: login, PASV, RETR of {} bytes, QUIT. Bulk: one RETR of {} MiB.\n\
         Medians of {ROUNDS} turns; × is the median of the ratios to '{}' in the same round.\n",
        CONTENT.len(),
        BULK >> 20,
        gateways[basis].name
    );
    let rows: Vec<_> = gateways
        .iter()
        .enumerate()
        .map(|(index, gateway)| {
            let cell = |column: usize| {
                let of = |round: &Vec<Turn>, index: usize| round[index][column];
                let value = median(rounds.iter().map(|round| of(round, index)));
                let ratios = rounds.iter().map(|r| of(r, index) / of(r, basis));
                let shown = COLUMNS[column].1.show(value);
                match median(ratios) {
                    _ if value == 0.0 => "-".to_owned(),
                    ratio if ratio.is_finite() => format!("{shown} (×{ratio:.2})"),
                    _ => shown,
                }
            };
            (
                gateway.name.to_owned(),
                (0..COLUMNS.len()).map(cell).collect(),
            )
        })
        .collect();
    let head = COLUMNS.map(|(name, _)| name);
    print!(
        "{}",
        report::table(&[&["gateway"], &head[..]].concat(), &rows)
    );
    for alg in algs {
        alg.stop();
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn turn(net: &Net, alg: &Running<'_>) -> Turn {
    let rate = |(count, took): (u64, Duration)| count as f64 / took.as_secs_f64();
    let alone = rate(small_sessions(net, CROWDS[0]));
    let before = (own_cpu(), cpu(alg));
    let crowd = small_sessions(net, CROWDS[1]);
    let (own, daemon) = (own_cpu() - before.0, cpu(alg) - before.1);
    let each = |time: Duration| time.as_secs_f64() / crowd.0.max(1) as f64;
    [
        alone,
        rate(crowd),
        bulk(net),
        each(own + daemon),
        each(daemon),
    ]
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
    let client = |mut control: testkit::lab::scripted::Control| -> Result<Duration, Error> {
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
    let server = |mut control: testkit::lab::scripted::Control| -> Result<(), Error> {
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

/// The processor time that client, server, and the kernel on their behalf have used so far.
fn own_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the kernel counts");
    let time = |value: TimeVal| Duration::from_micros(value.num_microseconds().unsigned_abs());
    time(usage.user_time()) + time(usage.system_time())
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

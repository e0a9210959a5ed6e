//! What a gateway costs FTP, beside other ways to let FTP through: sessions per second, processor time,
//! delays, throughput, memory.
//!
//! `sudo ./scripts/bench sessions`; docs/BENCHMARKS.md says how it measures and how to read it. Every
//! gateway has a network of its own, and all of them take short turns in each round, so that whatever
//! else the machine does meets all of them alike. A turn that other programs disturbed is repeated, three
//! times at most.
//!
//! | module | lives there |
//! |---|---|
//! | [`server`], [`load`] | the two ends: one thread each, with epoll |
//! | [`gateways`] | what stands between them |
//! | [`accept`] | the least that a program behind NFQUEUE can do |
//! | [`machine`] | processor time, memory, what other programs use |
//! | [`report`], [`plot`] | medians and ratios; tables, JSON, SVG |
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod accept;
mod gateways;
mod load;
mod machine;
mod plot;
mod report;
mod server;

use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use testkit::awake::Awake;

use gateways::{Gateway, Kind};
use load::{Errand, Measured};
use machine::{Cpu, Memory};

/// Sessions at once.
const CROWDS: [usize; 3] = [1, 16, 128];
/// A turn is disturbed if other programs use more than this part of the machine.
const DISTURBED: f64 = 0.06;
/// Or if the hypervisor takes more than this part.
const STOLEN: f64 = 0.02;
/// How long it waits for other programs before that, and how long it looks at them at a time.
const REST: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(250);
/// How long conntrack may take to forget the connections of a load.
const FORGETTING: Duration = Duration::from_secs(90);
/// After so long, nothing is kept of a session that has ended.
const LINGERING: Duration = Duration::from_secs(150);

/// One session may fail, and one more of so many.
const FEW: u64 = 100;
/// How many lines of ftpalg's output are shown if more do.
const LINES: usize = 100;

/// FTP through gateways in network namespaces, side by side.
#[derive(Parser)]
struct Arguments {
    /// Three short rounds, to see that it works.
    #[arg(long)]
    quick: bool,
    /// How often each gateway has its turn.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How long each turn takes, in milliseconds, for each number of sessions at once.
    #[arg(long, value_name = "MS")]
    turn: Option<u64>,
    /// How many sessions the memory is loaded with. 0: it isn't measured.
    #[arg(long, value_name = "N")]
    sessions: Option<u64>,
    /// How often a disturbed turn is repeated at the most. 0 for a machine that is never calm.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeats: u32,
    /// Idle processors may sleep, as they do on most machines: how much of the delays is due to that.
    #[arg(long)]
    let_sleep: bool,
    /// Only these gateways. All ratios are to the kernel helper, or else to the first one.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Another build of ftpalg, to be measured beside this one (with the backend nft).
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,
    /// Where results.json and the plots go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    out: PathBuf,
    /// What Cargo says to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
    /// To be an accept loop on this queue; the benchmark starts itself so.
    #[arg(long, hide = true)]
    accept_loop: Option<u16>,
}

/// How much is measured.
#[derive(Clone, Copy, Serialize)]
struct Plan {
    rounds: usize,
    turn: Duration,
    bulk: usize,
    repeats: u32,
    /// For the memory.
    sessions: u64,
}

/// What one turn of one gateway has measured.
#[derive(Clone, Serialize)]
struct Turn {
    crowds: Vec<Crowd>,
    /// MB/s of one transfer.
    bulk: f64,
    /// Sessions that failed.
    failed: u64,
    /// The part of the machine that other programs used meanwhile.
    others: f64,
    /// The part that the hypervisor took.
    stolen: f64,
    /// Whether it was still disturbed the last time.
    disturbed: bool,
    repeats: u32,
}

/// With so many sessions at once.
#[derive(Clone, Serialize)]
struct Crowd {
    at_once: usize,
    sessions: u64,
    failed: u64,
    per_second: f64,
    /// Microseconds of all processors per session.
    machine_cpu: f64,
    /// Microseconds of the program on the gateway per session.
    process_cpu: Option<f64>,
    /// Microseconds; median and 99th percentile.
    reply: [f64; 2],
    first_byte: [f64; 2],
    noop: [f64; 2],
}

/// What became of a program's memory.
#[derive(Clone, Serialize)]
struct Load {
    fresh: Memory,
    after: Memory,
    /// Some minutes later: an ALG remembers closed sessions for a while, as TCP does.
    later: Memory,
    /// Sessions of all turns, and those of the load at the end.
    sessions: u64,
    /// Microseconds of the program per session of the load at the end, until conntrack had forgotten
    /// its connections.
    process_cpu: f64,
}

/// All about one gateway.
#[derive(Serialize)]
struct Results {
    name: &'static str,
    left_out: Option<String>,
    turns: Vec<Turn>,
    load: Option<Load>,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(queue) = arguments.accept_loop {
        accept::run(queue).expect("the queue works");
        return;
    }
    // `cargo test --benches` only wants to know that it starts.
    if !arguments.bench {
        return;
    }
    let plan = Plan {
        rounds: arguments
            .rounds
            .unwrap_or(if arguments.quick { 3 } else { 15 }),
        turn: Duration::from_millis(arguments.turn.unwrap_or(if arguments.quick {
            150
        } else {
            400
        })),
        bulk: if arguments.quick {
            128 << 20
        } else {
            512 << 20
        },
        repeats: arguments.repeats,
        sessions: arguments
            .sessions
            .unwrap_or(if arguments.quick { 0 } else { 20_000 }),
    };
    // Every server has hundreds of listeners.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");

    let mut kinds = match &arguments.only[..] {
        [] => Kind::ALL.to_vec(),
        some => some.to_vec(),
    };
    kinds.retain(|&kind| kind != Kind::Beside);
    if arguments.beside.is_some() {
        kinds.push(Kind::Beside);
    }
    let mut gateways = Vec::new();
    let mut results = Vec::new();
    for kind in kinds {
        let (gateway, left_out) = match Gateway::start(kind, arguments.beside.as_deref()) {
            Ok(gateway) => (Some(gateway), None),
            Err(why) => (None, Some(why)),
        };
        gateways.push(gateway);
        results.push(Results {
            name: kind.name(),
            left_out,
            turns: Vec::new(),
            load: None,
        });
    }
    let mut sessions = vec![0; gateways.len()];
    let (awake, idle) = match arguments.let_sleep {
        true => (None, "processors may sleep".to_owned()),
        false => Awake::try_begin(),
    };
    for round in 0..plan.rounds {
        for (index, gateway) in gateways.iter().enumerate() {
            let Some(gateway) = gateway else { continue };
            let turn = calm_turn(gateway, plan, &mut sessions[index]);
            let [alone, some, many] = &turn.crowds[..] else {
                unreachable!("a figure for each crowd");
            };
            eprintln!(
                "round {:2} {:16} {:6.0} {:6.0} {:6.0} sessions/s {:6.0} MB/s; others {:2.0}%, stolen {:2.0}%{}",
                round + 1,
                gateway.kind.name(),
                alone.per_second,
                some.per_second,
                many.per_second,
                turn.bulk,
                turn.others * 100.0,
                turn.stolen * 100.0,
                match turn.repeats {
                    0 => String::new(),
                    n => format!(", repeated {n} times"),
                }
            );
            results[index].turns.push(turn);
        }
    }
    drop(awake);
    if plan.sessions > 0 {
        for (index, gateway) in gateways.iter().enumerate() {
            let Some(gateway) = gateway else { continue };
            results[index].load = load_of(gateway, plan, sessions[index]);
        }
        std::thread::sleep(LINGERING);
        for (result, gateway) in results.iter_mut().zip(&gateways) {
            let memory = gateway.as_ref().and_then(Gateway::memory);
            if let (Some(load), Some(memory)) = (&mut result.load, memory) {
                load.later = memory;
            }
        }
    }
    for gateway in gateways.into_iter().flatten() {
        let complaints = gateway.complaints();
        if !complaints.is_empty() && gateway.kind != Kind::Accept {
            eprintln!("{} said:\n{complaints}", gateway.kind.name());
        }
    }
    let machine = format!("{}; {idle}", machine::describe());
    print!("{}", report::text(&machine, plan, &results));
    report::write(&arguments.out, &machine, plan, &results);
    println!("\nresults.json and plots: {}", arguments.out.display());
}

/// A turn, repeated if others disturbed it; the calmest one counts.
fn calm_turn(gateway: &Gateway, plan: Plan, sessions: &mut u64) -> Turn {
    let mut best: Option<Turn> = None;
    for repeats in 0..=plan.repeats {
        if repeats > 0 {
            wait_for_calm();
        }
        let mut turn = turn(gateway, plan, sessions);
        turn.repeats = repeats;
        let calm = !turn.disturbed;
        if best
            .as_ref()
            .is_none_or(|best| turn.others < best.others || calm)
        {
            best = Some(turn);
        }
        if calm {
            break;
        }
    }
    best.expect("it had its turn")
}

/// Waits until other programs leave the machine alone, for some seconds at most.
fn wait_for_calm() {
    let start = Instant::now();
    while start.elapsed() < REST {
        let before = Cpu::now(None);
        std::thread::sleep(LOOK);
        let others = Cpu::now(None).since(before).others;
        if others < LOOK.mul_f64(DISTURBED) {
            return;
        }
    }
}

fn turn(gateway: &Gateway, plan: Plan, sessions: &mut u64) -> Turn {
    let start = Instant::now();
    let before = Cpu::now(gateway.pid());
    let crowds: Vec<_> = CROWDS.map(|crowd| with_crowd(gateway, plan, crowd)).into();
    let failed = crowds.iter().map(|crowd| crowd.failed).sum();
    *sessions += crowds.iter().map(|crowd| crowd.sessions).sum::<u64>();
    let bulk = drive(gateway, 1, Errand::Bulk(plan.bulk), Duration::ZERO);
    let used = Cpu::now(gateway.pid()).since(before);
    let all = start.elapsed().as_secs_f64() * f64::from(machine::processors());
    let (others, stolen) = (
        used.others.as_secs_f64() / all,
        used.stolen.as_secs_f64() / all,
    );
    Turn {
        crowds,
        bulk: bulk.bytes as f64 / 1e6 / bulk.transfer.as_secs_f64(),
        failed,
        others,
        stolen,
        disturbed: others > DISTURBED || stolen > STOLEN,
        repeats: 0,
    }
}

fn with_crowd(gateway: &Gateway, plan: Plan, at_once: usize) -> Crowd {
    let before = Cpu::now(gateway.pid());
    let small = drive(gateway, at_once, Errand::Small, plan.turn);
    let used = Cpu::now(gateway.pid()).since(before);
    let noop = drive(gateway, at_once, Errand::Noop, plan.turn / 8);
    let each = |time: Duration| time.as_secs_f64() * 1e6 / small.sessions.max(1) as f64;
    Crowd {
        at_once,
        sessions: small.sessions,
        failed: small.failed + noop.failed,
        per_second: small.sessions as f64 / small.took.as_secs_f64(),
        machine_cpu: each(used.busy),
        process_cpu: gateway.pid().map(|_| each(used.process)),
        reply: percentiles(small.reply),
        first_byte: percentiles(small.first_byte),
        noop: percentiles(noop.noop),
    }
}

/// Sessions from the clients' host. Those that fail are told, and figures beside more than a few of them
/// would be worthless.
fn drive(gateway: &Gateway, crowd: usize, errand: Errand, time: Duration) -> Measured {
    let SocketAddr::V4(dial) = gateway.net.topology().dial else {
        panic!("the lab is IPv4");
    };
    let dial: SocketAddrV4 = dial;
    let client = gateway.net.topology().client;
    let measured = gateway.net.within(client, || {
        load::run(dial, &gateway.clients, crowd, errand, time)
    });
    if measured.failed > 0 {
        let why = measured.why.as_deref().unwrap_or_default();
        let all = measured.failed + measured.sessions;
        let (name, failed) = (gateway.kind.name(), measured.failed);
        eprintln!("{name}: {failed} of {all} sessions failed, the first one: {why}");
        assert!(
            failed <= 1 + all / FEW,
            "{}\n{}",
            gateway.complaints(),
            gateway.last_lines(LINES)
        );
    }
    measured
}

/// The memory of the program on the gateway, fresh and when conntrack has forgotten its sessions.
fn load_of(gateway: &Gateway, plan: Plan, before: u64) -> Option<Load> {
    let fresh = gateway.fresh?;
    let cpu = Cpu::now(gateway.pid());
    let start = Instant::now();
    let mut sessions = 0;
    while sessions < plan.sessions && start.elapsed() < Duration::from_secs(30) {
        sessions += drive(gateway, CROWDS[1], Errand::Small, Duration::from_secs(1)).sessions;
    }
    let loaded = Instant::now();
    let router = gateway.net.topology().router;
    let remembered = || {
        let count = gateway
            .net
            .read_sysctl(router, "net.netfilter.nf_conntrack_count")?;
        count.parse::<u64>().ok()
    };
    while remembered().is_some_and(|count| count > 0) && loaded.elapsed() < FORGETTING {
        std::thread::sleep(Duration::from_millis(500));
    }
    std::thread::sleep(Duration::from_secs(3));
    let used = Cpu::now(gateway.pid()).since(cpu).process;
    let after = gateway.memory()?;
    Some(Load {
        fresh,
        after,
        later: after,
        sessions: before + sessions,
        process_cpu: used.as_secs_f64() * 1e6 / sessions.max(1) as f64,
    })
}

/// The median and the 99th percentile, in microseconds.
fn percentiles(mut times: Vec<u64>) -> [f64; 2] {
    times.sort_unstable();
    [50, 99].map(|percent| {
        let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(at).map_or(f64::NAN, |&time| time as f64 / 1e3)
    })
}

//! How costs grow with the number of connections and pinholes: `./scripts/bench scale`.
//!
//! | part | shows |
//! |---|---|
//! | `flows` | memory, and the time to begin, find and forget a connection, from 1,000 to 1,000,000 of them |
//! | `pinholes` | the time to open and close one beside 1,000 to 100,000 others, in the kernel |
//! | `start` | how long ftpalg takes to start and to stop with 100,000 pinholes |
//! | `flood` | how long a session waits for its replies while SYNs flood the control port |
//!
//! All but the first need root, and make network namespaces of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

mod flood;
mod flows;
mod pinholes;

use std::time::Duration;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Arguments {
    /// Only these parts
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Connections to begin, in a process of its own
    #[arg(long, hide = true)]
    flows: Option<usize>,
    /// What cargo gives to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Flows,
    Pinholes,
    Start,
    Flood,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(count) = arguments.flows {
        return flows::measure(count);
    }
    let parts = [Part::Flows, Part::Pinholes, Part::Start, Part::Flood];
    for part in parts {
        if !arguments.only.is_empty() && !arguments.only.contains(&part) {
            continue;
        }
        match part {
            Part::Flows => flows::run(),
            Part::Pinholes => pinholes::run(),
            Part::Start => pinholes::start_and_stop(),
            Part::Flood => flood::run(),
        }
        println!();
    }
}

/// The value below which so many of a hundred are; sorts them.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let at = times.len().saturating_sub(1) * percent / 100;
    times.get(at).copied().unwrap_or_default()
}

/// In microseconds.
fn micros(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e6)
}

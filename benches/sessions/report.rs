//! Medians, spreads, and ratios to the kernel's helper; as text, and as JSON.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::gateways::Kind;
use super::{CROWDS, Crowd, Plan, Results, Turn, plot};

/// So many calm rounds are enough to leave the others out.
const ENOUGH: usize = 3;

/// A figure of a turn.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) of: fn(&Crowd) -> Option<f64>,
}

/// What is measured with each number of sessions at once.
pub(crate) const METRICS: [Metric; 9] = [
    Metric {
        key: "per_second",
        name: "sessions/s",
        of: |crowd| Some(crowd.per_second),
    },
    Metric {
        key: "machine_cpu",
        name: "machine's CPU per session, µs",
        of: |crowd| Some(crowd.machine_cpu),
    },
    Metric {
        key: "process_cpu",
        name: "program's CPU per session, µs",
        of: |crowd| crowd.process_cpu,
    },
    Metric {
        key: "reply_p50",
        name: "PASV → 227 p50, µs",
        of: |crowd| Some(crowd.reply[0]),
    },
    Metric {
        key: "reply_p99",
        name: "p99",
        of: |crowd| Some(crowd.reply[1]),
    },
    Metric {
        key: "first_byte_p50",
        name: "PASV → first byte p50, µs",
        of: |crowd| Some(crowd.first_byte[0]),
    },
    Metric {
        key: "first_byte_p99",
        name: "p99",
        of: |crowd| Some(crowd.first_byte[1]),
    },
    Metric {
        key: "noop_p50",
        name: "NOOP p50, µs",
        of: |crowd| Some(crowd.noop[0]),
    },
    Metric {
        key: "noop_p99",
        name: "p99",
        of: |crowd| Some(crowd.noop[1]),
    },
];

/// The least, the median and the greatest of some values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        Some(Self {
            least: *values.first()?,
            median: values[values.len() / 2],
            greatest: *values.last()?,
        })
    }

    fn json(self) -> Value {
        json!({ "min": self.least, "median": self.median, "max": self.greatest })
    }
}

/// What the others are compared with: the kernel's helper, or the first one that is there.
pub(crate) fn basis(results: &[Results]) -> usize {
    let there = |r: &Results| !r.turns.is_empty();
    let kernel = |r: &Results| r.name == Kind::Kernel.name() && there(r);
    let first = || results.iter().position(there);
    results.iter().position(kernel).or_else(first).unwrap_or(0)
}

/// The rounds that count for a gateway: those in which nobody disturbed it or the basis, or all of them
/// if these are too few.
fn rounds(results: &[Results], index: usize) -> Vec<usize> {
    let (turns, others) = (&results[index].turns, &results[basis(results)].turns);
    let all = 0..turns.len().min(others.len());
    let calm = |&round: &usize| !turns[round].disturbed && !others[round].disturbed;
    let calm: Vec<_> = all.clone().filter(calm).collect();
    if calm.len() < ENOUGH {
        all.collect()
    } else {
        calm
    }
}

/// A figure over the rounds that count, and its ratio to the basis in the same rounds.
pub(crate) fn spreads(
    results: &[Results],
    index: usize,
    of: impl Fn(&Turn) -> Option<f64>,
) -> (Option<Spread>, Option<Spread>) {
    let turns = &results[index].turns;
    let others = &results[basis(results)].turns;
    let rounds = rounds(results, index);
    let values = rounds.iter().filter_map(|&round| of(&turns[round]));
    let ratio = |&round: &usize| Some(of(&turns[round])? / of(&others[round])?);
    (
        Spread::over(values),
        Spread::over(rounds.iter().filter_map(ratio)),
    )
}

/// All tables, in Markdown.
pub(crate) fn text(machine: &str, plan: Plan, results: &[Results]) -> String {
    let mut text = format!(
        "{machine}. {} rounds; {} ms for each number of sessions at once. Each cell: the median of \
         the rounds; in brackets the ratio to '{}' in the same round: median, least to greatest.\n",
        plan.rounds,
        plan.turn.as_millis(),
        results[basis(results)].name
    );
    for (at, crowd) in CROWDS.iter().enumerate() {
        let plural = if *crowd == 1 { "" } else { "s" };
        text += &format!("\n{crowd} session{plural} at once:\n\n");
        let mut head = vec!["gateway".to_owned()];
        head.extend(METRICS.iter().map(|metric| metric.name.to_owned()));
        let row = |index: usize| {
            METRICS
                .iter()
                .map(|metric| {
                    let of = |turn: &Turn| (metric.of)(&turn.crowds[at]);
                    // The tail is too unsteady for a ratio to say anything.
                    match metric.name {
                        "p99" => spreads(results, index, of).0.map_or("–".to_owned(), shown),
                        _ => cell(results, index, of),
                    }
                })
                .collect()
        };
        text += &table(head, results, row);
    }
    text += "\nOne large transfer, and the program's memory (MiB; after the sessions of all turns, once \
             conntrack has forgotten them, and minutes later) and its CPU per session of a steady load, with what it does \
             when conntrack forgets:\n\n";
    let head = [
        "gateway",
        "rounds that count",
        "bulk MB/s",
        "sessions",
        "RSS fresh",
        "after",
        "later",
        "peak",
        "PSS fresh",
        "later",
        "CPU per session, µs",
    ];
    let row = |index: usize| {
        let mut cells = vec![
            rounds(results, index).len().to_string(),
            cell(results, index, |turn| Some(turn.bulk)),
        ];
        if let Some(load) = &results[index].load {
            let mebibytes = |kibibytes: u64| format!("{:.1}", kibibytes as f64 / 1024.0);
            cells.push(load.sessions.to_string());
            cells.extend(
                [
                    load.fresh.rss,
                    load.after.rss,
                    load.later.rss,
                    load.later.peak,
                    load.fresh.pss,
                    load.later.pss,
                ]
                .map(mebibytes),
            );
            cells.push(format!("{:.0}", load.process_cpu));
        }
        cells
    };
    text += &table(head.map(str::to_owned).to_vec(), results, row);
    let turns = || results.iter().flat_map(|r| &r.turns);
    let repeated = turns().filter(|turn| turn.repeats > 0).count();
    let disturbed = turns().filter(|turn| turn.disturbed).count();
    text += &format!(
        "\n{} turns; {repeated} were repeated, {disturbed} stayed disturbed by other programs.\n",
        turns().count()
    );
    for one in results {
        let failed: u64 = one.turns.iter().map(|turn| turn.failed).sum();
        if failed > 0 {
            let all = one.turns.iter().flat_map(|turn| &turn.crowds);
            let all = all.map(|crowd| crowd.sessions).sum::<u64>() + failed;
            text += &format!("{}: {failed} of {all} sessions failed.\n", one.name);
        }
    }
    for (name, why) in results
        .iter()
        .filter_map(|r| Some((r.name, r.left_out.as_ref()?)))
    {
        text += &format!("{name} is left out: {why}\n");
    }
    text
}

fn cell(results: &[Results], index: usize, of: impl Fn(&Turn) -> Option<f64>) -> String {
    let (value, ratio) = spreads(results, index, of);
    let Some(value) = value else {
        return "–".to_owned();
    };
    match ratio {
        Some(r) if index != basis(results) => {
            let value = shown(value);
            format!(
                "{value} ({:.2}, {:.2}–{:.2})",
                r.median, r.least, r.greatest
            )
        }
        _ => shown(value),
    }
}

fn shown(value: Spread) -> String {
    format!("{:.0}", value.median)
}

fn table(head: Vec<String>, results: &[Results], row: impl Fn(usize) -> Vec<String>) -> String {
    let columns = head.len();
    let mut lines = vec![head];
    for (index, one) in results.iter().enumerate() {
        if one.turns.is_empty() {
            continue;
        }
        let mut line = vec![one.name.to_owned()];
        line.extend(row(index));
        line.resize(columns, "–".to_owned());
        lines.push(line);
    }
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if number == 0 {
            text += &"|---".repeat(columns);
            text += "|\n";
        }
    }
    text
}

/// Writes `results.json` and the plots.
///
/// # Panics
/// If that isn't possible.
pub(crate) fn write(directory: &Path, machine: &str, plan: Plan, results: &[Results]) {
    let summary: Vec<Value> = results
        .iter()
        .enumerate()
        .filter(|(_, one)| !one.turns.is_empty())
        .map(|(index, one)| {
            let figure = |of: &dyn Fn(&Turn) -> Option<f64>| {
                let (value, ratio) = spreads(results, index, of);
                json!({ "value": value.map(Spread::json), "ratio": ratio.map(Spread::json) })
            };
            let crowds: Vec<Value> = CROWDS
                .iter()
                .enumerate()
                .map(|(at, crowd)| {
                    let mut object = json!({ "at_once": crowd });
                    for metric in &METRICS {
                        object[metric.key] = figure(&|turn| (metric.of)(&turn.crowds[at]));
                    }
                    object
                })
                .collect();
            json!({ "name": one.name, "crowds": crowds, "bulk": figure(&|turn| Some(turn.bulk)) })
        })
        .collect();
    let all = json!({
        "machine": machine,
        "plan": plan,
        "basis": results[basis(results)].name,
        "summary": summary,
        "gateways": results,
    });
    fs::create_dir_all(directory).expect("the directory can be made");
    let text = serde_json::to_string_pretty(&all).expect("JSON");
    fs::write(directory.join("results.json"), text + "\n").expect("the directory can be written");
    for (name, svg) in plot::all(results) {
        fs::write(directory.join(name), svg).expect("the directory can be written");
    }
}

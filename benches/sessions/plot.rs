//! The main figures as bars, in SVG.

use std::fmt::Write;

use super::report::{METRICS, Metric, Spread, spreads};
use super::{CROWDS, Results};

/// Sizes in pixels.
const LEFT: f64 = 130.0;
const TOP: f64 = 40.0;
const WIDTH: f64 = 520.0;
const BAR: f64 = 13.0;
const GAP: f64 = 12.0;
/// One for each number of sessions at once.
const COLOURS: [&str; CROWDS.len()] = ["#4c78a8", "#f58518", "#54a24b"];

/// Which metrics, in which file; whether the ratio is plotted, or the value.
const PLOTS: [(&str, &str, &str, bool); 5] = [
    (
        "sessions.svg",
        "per_second",
        "sessions/s, as a ratio to the kernel helper",
        true,
    ),
    (
        "machine-cpu.svg",
        "machine_cpu",
        "the whole machine's CPU per session, µs",
        false,
    ),
    (
        "process-cpu.svg",
        "process_cpu",
        "the program's CPU per session, µs",
        false,
    ),
    (
        "reply.svg",
        "reply_p50",
        "PASV → 227, median, as a ratio to the kernel helper",
        true,
    ),
    (
        "first-byte.svg",
        "first_byte_p50",
        "PASV → first data byte, median, as a ratio to the kernel helper",
        true,
    ),
];

/// All plots: name and content of each file.
pub(crate) fn all(results: &[Results]) -> Vec<(&'static str, String)> {
    PLOTS
        .iter()
        .filter_map(|&(file, key, title, ratio)| {
            let metric = METRICS.iter().find(|metric| metric.key == key)?;
            Some((file, bars(results, metric, title, ratio)))
        })
        .collect()
}

fn bars(results: &[Results], metric: &Metric, title: &str, ratio: bool) -> String {
    let rows: Vec<(&str, Vec<Option<Spread>>)> = results
        .iter()
        .enumerate()
        .map(|(index, one)| {
            let of = |at: usize| {
                let both = spreads(results, index, |turn| (metric.of)(&turn.crowds[at]));
                if ratio { both.1 } else { both.0 }
            };
            (one.name, (0..CROWDS.len()).map(of).collect::<Vec<_>>())
        })
        .filter(|(_, values)| values.iter().any(Option::is_some))
        .collect();
    // A single outlier doesn't squeeze all others: whiskers may leave the picture.
    let medians = rows.iter().flat_map(|(_, values)| values.iter().flatten());
    let most = medians.map(|spread| spread.median).fold(0.0, f64::max) * 1.25;
    let step = round_step(most / 5.0);
    let x = |value: f64| LEFT + (value / most.max(f64::MIN_POSITIVE)).min(1.0) * WIDTH;
    let group = BAR * CROWDS.len() as f64 + GAP;
    let height = TOP + group * rows.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"16\" font-size=\"13\">{title}</text>\n",
        LEFT + WIDTH + 60.0,
        height + 24.0
    );
    for (at, crowd) in CROWDS.iter().enumerate() {
        let left = LEFT + 100.0 * at as f64;
        let colour = COLOURS[at];
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.0}\" y=\"23\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"32\">{crowd} at once</text>",
            left + 14.0
        );
    }
    let mut mark = 0.0;
    while step > 0.0 && mark <= most {
        let at = x(mark);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{height:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
            height + 14.0,
            number(mark)
        );
        mark += step;
    }
    for (row, (name, values)) in rows.iter().enumerate() {
        let top = TOP + GAP / 2.0 + group * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 8.0,
            top + group / 2.0 - 2.0
        );
        for (at, spread) in values.iter().enumerate() {
            let Some(spread) = spread else { continue };
            let y = top + BAR * at as f64;
            let middle = y + BAR / 2.0 - 1.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" stroke=\"black\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{}</text>",
                x(spread.median) - LEFT,
                BAR - 2.0,
                COLOURS[at],
                x(spread.least),
                x(spread.greatest),
                x(spread.greatest).max(x(spread.median)) + 4.0,
                y + BAR - 4.0,
                number(spread.median)
            );
        }
    }
    svg + "</svg>\n"
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn round_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 0.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let enough = steps.iter().find(|&&step| step * power >= least);
    enough.unwrap_or(&10.0) * power
}

fn number(value: f64) -> String {
    if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

//! Text tables: aligned columns without lines around them, no wider than [`WIDTH`] or the terminal.
//!
//! Where a table would be wider, its least important columns are left out. If what is left is still too
//! wide (long IPv6 addresses), each row takes several lines, and the further ones are indented.

use std::io::{self, IsTerminal};

use clap::builder::styling::Style;
use serde_json::Value;

/// The width where the terminal doesn't say another, or there is none.
const WIDTH: usize = 80;
/// What stands between two columns.
const GAP: usize = 2;
/// By how much the further lines of a row are indented.
const INDENT: usize = 4;

/// A column.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// Its heading.
    heading: &'static str,
    /// The field that it shows.
    field: &'static str,
    /// How.
    show: fn(&Value) -> String,
    /// Which columns go first where there isn't room for all: those with the highest number. 0: none.
    rank: u8,
    /// Whether it is a number, and so aligned to the right.
    right: bool,
}

impl Column {
    /// A column that is always there.
    pub(super) const fn new(
        heading: &'static str,
        field: &'static str,
        show: fn(&Value) -> String,
    ) -> Self {
        Self {
            heading,
            field,
            show,
            rank: 0,
            right: false,
        }
    }

    /// The same, left out where there is no room: the higher `rank`, the earlier.
    pub(super) const fn or_left_out(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    /// The same, aligned to the right.
    pub(super) const fn right(self) -> Self {
        Self {
            right: true,
            ..self
        }
    }
}

/// A list of objects as a table with a heading; `none` where the list is empty.
pub(super) fn table(rows: &Value, columns: &[Column], none: &str) -> String {
    fitted(rows, columns, none, width(), heading_style())
}

/// The width of the terminal that the standard output is, if it is one.
fn width() -> usize {
    let terminal = terminal_size::terminal_size_of(io::stdout());
    let width = terminal.map(|(terminal_size::Width(width), _)| usize::from(width));
    width.filter(|width| *width > 0).unwrap_or(WIDTH)
}

/// How headings look: bold on a terminal, unless `NO_COLOR` is set.
fn heading_style() -> Style {
    style(Style::new().bold())
}

/// A style, if there may be any: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub(super) fn style(style: Style) -> Style {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    match io::stdout().is_terminal() && !forbidden && !dumb {
        true => style,
        false => Style::new(),
    }
}

/// The same, no wider than `width`, its heading in this style.
pub(super) fn fitted(
    rows: &Value,
    columns: &[Column],
    none: &str,
    width: usize,
    style: Style,
) -> String {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let mut shown: Vec<Shown> = columns
        .iter()
        .map(|column| Shown::of(*column, rows))
        .collect();
    while total(&shown) > width
        && let Some(last) = (0..shown.len()).max_by_key(|at| shown[*at].column.rank)
        && shown[last].column.rank > 0
    {
        shown.remove(last);
    }
    let lines = wrapped(&shown, width);
    let mut out = String::new();
    for row in 0..=rows.len() {
        for (number, range) in lines.iter().enumerate() {
            let mut line = " ".repeat(if number == 0 { 0 } else { INDENT });
            for column in &shown[range.clone()] {
                let cell = column.cells.get(row).map_or("", String::as_str);
                let pad = " ".repeat(column.width.saturating_sub(cell.chars().count()));
                match column.column.right {
                    true => line.extend([&pad, cell]),
                    false => line.extend([cell, &pad]),
                }
                line.push_str(&" ".repeat(GAP));
            }
            let line = line.trim_end();
            match row {
                0 => out.push_str(&format!("{style}{line}{style:#}\n")),
                _ => out.push_str(&format!("{line}\n")),
            }
        }
    }
    out
}

/// A column with its cells, its heading first.
struct Shown {
    column: Column,
    cells: Vec<String>,
    width: usize,
}

impl Shown {
    fn of(column: Column, rows: &[Value]) -> Self {
        let heading = std::iter::once(column.heading.to_owned());
        let cell = |row: &Value| (column.show)(row.get(column.field).unwrap_or(&Value::Null));
        let cells: Vec<_> = heading.chain(rows.iter().map(cell)).collect();
        let width = cells.iter().map(|cell| cell.chars().count()).max();
        Self {
            column,
            width: width.unwrap_or_default(),
            cells,
        }
    }
}

fn total(shown: &[Shown]) -> usize {
    let widths: usize = shown.iter().map(|column| column.width + GAP).sum();
    widths.saturating_sub(GAP)
}

/// Which columns share a line.
fn wrapped(shown: &[Shown], width: usize) -> Vec<std::ops::Range<usize>> {
    let (mut lines, mut first, mut used) = (Vec::new(), 0, 0);
    for (at, column) in shown.iter().enumerate() {
        if at > first && used + column.width > width {
            lines.push(first..at);
            (first, used) = (at, INDENT);
        }
        used += column.width + GAP;
    }
    lines.push(first..shown.len());
    lines
}

#[cfg(test)]
mod tests {
    use super::super::units::text;
    use super::*;
    use serde_json::json;

    fn plain(rows: &Value, columns: &[Column], width: usize) -> String {
        fitted(rows, columns, "none", width, Style::new())
    }

    const COLUMNS: [Column; 4] = [
        Column::new("ID", "id", text).right(),
        Column::new("TO", "to", text),
        Column::new("WHY", "why", text).or_left_out(2),
        Column::new("AGE", "age", text).or_left_out(1),
    ];

    #[test]
    fn columns_are_aligned() {
        let rows = json!([{"id": 1, "to": "10.0.0.2:21"}, {"id": 12345, "to": null}]);
        assert_eq!(
            plain(&rows, &COLUMNS[..2], 80),
            "   ID  TO\n    1  10.0.0.2:21\n12345  -\n"
        );
        assert_eq!(plain(&json!([]), &COLUMNS, 80), "none\n");
    }

    #[test]
    fn columns_are_left_out_in_their_order() {
        let rows = json!([{"id": 1, "to": "10.0.0.2:21", "why": "TLS", "age": 100}]);
        for (width, shown) in [
            (25, "ID  TO           WHY  AGE"),
            (24, "ID  TO           AGE"),
            (20, "ID  TO           AGE"),
            (19, "ID  TO"),
        ] {
            let table = plain(&rows, &COLUMNS, width);
            assert_eq!(table.lines().next(), Some(shown), "{table}");
            assert!(table.lines().all(|line| line.len() <= width), "{table}");
        }
    }

    #[test]
    fn what_is_still_too_wide_takes_several_lines() {
        let long = "[2001:db8:1111:2222:3333:4444:5555:6666]:50161";
        let rows = json!([{"id": 1, "to": long, "from": long}, {"id": 2, "to": "x", "from": "y"}]);
        let columns = [
            Column::new("ID", "id", text),
            Column::new("FROM", "from", text),
            Column::new("TO", "to", text),
        ];
        let table = plain(&rows, &columns, 80);
        assert_eq!(
            table,
            format!("ID  FROM\n    TO\n1   {long}\n    {long}\n2   y\n    x\n")
        );
    }

    #[test]
    fn a_style_is_around_the_heading_only() {
        let rows = json!([{"id": 1}]);
        let table = fitted(&rows, &COLUMNS[..1], "none", 80, Style::new().bold());
        assert_eq!(table, "\u{1b}[1mID\u{1b}[0m\n 1\n");
    }
}

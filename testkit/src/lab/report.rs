//! Tables for people, in `target/lab-report/`.

use std::io::Write;

use crate::paths::reports;

/// Writes `target/lab-report/<name>.txt`.
///
/// # Panics
/// If that isn't possible.
pub fn write(name: &str, text: &str) {
    let directory = reports();
    std::fs::create_dir_all(&directory).expect("the target directory can be written");
    std::fs::write(directory.join(format!("{name}.txt")), text)
        .expect("the target directory can be written");
}

/// Tells people that a test couldn't compare anything, and writes `target/lab-report/<name>.txt`: a
/// test that passes has its output hidden, so this goes to standard error itself.
///
/// # Panics
/// If the report can't be written.
pub fn skipped(name: &str, why: &str) {
    let text = format!("SKIPPED {name}: {why}\n");
    write(name, &text);
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A table with one row per `(name, cells)`, columns as wide as needed.
pub fn table(head: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let mut lines: Vec<Vec<&str>> = vec![head.to_vec()];
    for (name, cells) in rows {
        let cells = cells.iter().map(String::as_str);
        lines.push(std::iter::once(name.as_str()).chain(cells).collect());
    }
    let width = |column: usize| {
        let widths = lines.iter().filter_map(|line| line.get(column));
        widths.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let space = width(column) - cell.chars().count() + 2;
            text += cell;
            text.extend(std::iter::repeat_n(' ', space));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

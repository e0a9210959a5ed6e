//! Text tables: aligned columns, no lines around them.

use serde_json::Value;

/// A column: its heading, the field that it shows, and how.
pub(super) type Column = (&'static str, &'static str, fn(&Value) -> String);

/// A list of objects as a table with a heading; `none` where the list is empty.
pub(super) fn table(rows: &Value, columns: &[Column], none: &str) -> String {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let heading = columns.iter().map(|(heading, ..)| (*heading).to_owned());
    let mut lines: Vec<Vec<String>> = vec![heading.collect()];
    lines.extend(rows.iter().map(|row| {
        let cell = |(_, field, show): &Column| show(row.get(field).unwrap_or(&Value::Null));
        columns.iter().map(cell).collect()
    }));
    let mut widths = vec![0; columns.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut out = String::new();
    for line in lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

/// A value as people read it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "-".into(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A number of seconds as its two largest units: `42s`, `3m05s`, `2h03m`, `5d04h`.
pub(super) fn span(value: &Value) -> String {
    let Some(seconds) = value.as_u64() else {
        return text(value);
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_are_short() {
        for (seconds, shown) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (3599, "59m59s"),
            (3600, "1h00m"),
            (86_399, "23h59m"),
            (86_400, "1d00h"),
            (9_000_000, "104d04h"),
        ] {
            assert_eq!(span(&json!(seconds)), shown);
        }
        assert_eq!(span(&json!(null)), "-");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = json!([{"id": 1, "to": "10.0.0.2:21"}, {"id": 12345, "to": null}]);
        let columns: [Column; 2] = [("ID", "id", text), ("TO", "to", text)];
        assert_eq!(
            table(&rows, &columns, "none"),
            "ID     TO\n1      10.0.0.2:21\n12345  -\n"
        );
        assert_eq!(table(&json!([]), &columns, "none"), "none\n");
    }
}

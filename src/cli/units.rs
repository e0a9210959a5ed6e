//! Values as people read them.

use serde_json::Value;

pub(super) use crate::daemon::events::human::bytes;

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

/// A number of seconds as its two largest units, for a column: `42s`, `3m05s`, `2h03m`, `5d04h`.
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

/// The same, for a sentence: `42 s`, `3 min 5 s`, `2 h 3 min`, `5 d 4 h`.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let units = match (days, hours, minutes) {
        (0, 0, 0) => return format!("{seconds} s"),
        (0, 0, _) => [(minutes, "min"), (seconds % 60, "s")],
        (0, _, _) => [(hours, "h"), (minutes % 60, "min")],
        _ => [(days, "d"), (hours % 24, "h")],
    };
    let [(large, unit), (small, smaller)] = units;
    match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {smaller}"),
    }
}

/// A field of bytes, for a column.
pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_are_short() {
        for (seconds, column, sentence) in [
            (0, "0s", "0 s"),
            (59, "59s", "59 s"),
            (60, "1m00s", "1 min"),
            (3599, "59m59s", "59 min 59 s"),
            (3600, "1h00m", "1 h"),
            (86_399, "23h59m", "23 h 59 min"),
            (86_400, "1d00h", "1 d"),
            (273_600, "3d04h", "3 d 4 h"),
            (9_000_000, "104d04h", "104 d 4 h"),
        ] {
            assert_eq!(span(&json!(seconds)), column);
            assert_eq!(duration(seconds), sentence);
        }
        assert_eq!(span(&json!(null)), "-");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10_234, "9.99 KiB"),
            (10_239, "10.0 KiB"),
            (1_070_652, "1.02 MiB"),
            (1_023_999, "0.98 MiB"),
            (12_900_000, "12.3 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), shown, "{count}");
        }
        assert_eq!(size(&json!(null)), "-");
    }
}

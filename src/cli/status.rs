//! `ftpalg status`: how the daemon is.

use std::process::ExitCode;

use serde_json::Value;

use super::table::{table, text};
use super::{Failure, Format};
use crate::daemon::control::Request;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let answer = super::show(Request::Status, format, describe)?;
    Ok(match answer.get("in_place") {
        Some(Value::Bool(true)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// All single values a line each, then the queues, then the counters that aren't zero.
fn describe(status: &Value) -> String {
    let Value::Object(fields) = status else {
        return format!("{status}\n");
    };
    let mut out = String::new();
    let mut counters = String::new();
    for (name, value) in fields {
        match value {
            Value::Object(counts) => {
                for (name, count) in counts.iter().filter(|(_, n)| n.as_u64() != Some(0)) {
                    counters.push_str(&format!("  {name}: {count}\n"));
                }
            }
            Value::Array(rows) if rows.iter().any(Value::is_object) => {}
            value => out.push_str(&format!("{}: {}\n", name.replace('_', " "), text(value))),
        }
    }
    let columns = [
        ("QUEUE", "queue"),
        ("WAITING", "waiting"),
        ("QUEUED", "queued"),
        ("DROPPED-FULL", "dropped_full"),
        ("DROPPED-BUFFER", "dropped_buffer"),
        ("RECEIVE-ERRORS", "receive_errors"),
        ("VERDICT-ERRORS", "verdict_errors"),
    ];
    if let Some(queues) = fields.get("queues") {
        out.push_str(&table(queues, &columns, "no queues"));
    }
    if !counters.is_empty() {
        out.push_str("counters (zeros left out):\n");
        out.push_str(&counters);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_person_can_read_it() {
        let status = json!({
            "pid": 7,
            "in_place": true,
            "missing": [],
            "queues": [{"queue": 2121, "waiting": 0}],
            "counters": {"packets": 5, "refused": 0},
        });
        let text = describe(&status);
        for part in [
            "pid: 7\n",
            "in place: yes\n",
            "missing: -\n",
            "2121",
            "  packets: 5\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("refused"), "{text}");
    }
}
